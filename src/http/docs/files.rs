use std::sync::Arc;

use axum::http::HeaderValue;
use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use utoipa_swagger_ui::Config;

use crate::http::errors::ApiError;

/// The files that the page loads.
pub(in crate::http) const FILES: [&str; 5] =
    ["docs.js", "docs.css", "swagger-ui-bundle.js", "swagger-ui.css", "favicon-32x32.png"];

pub(super) const PAGE: &str = include_str!("page.html");
const SCRIPT: &str = include_str!("docs.js");
const STYLE: &str = include_str!("docs.css");

/// The response with one of [`FILES`].
pub(super) fn serve(name: &str) -> Result<Response, ApiError> {
    match name {
        "docs.js" => Ok(([(CONTENT_TYPE, "text/javascript")], SCRIPT).into_response()),
        "docs.css" => Ok(([(CONTENT_TYPE, "text/css")], STYLE).into_response()),
        name if FILES.contains(&name) => serve_swagger_ui(name),
        _ => Err(ApiError::NotFound),
    }
}

fn serve_swagger_ui(name: &str) -> Result<Response, ApiError> {
    let found = utoipa_swagger_ui::serve(name, Arc::new(Config::default()));
    let file = found.map_err(|error| ApiError::Internal(error.to_string()))?.ok_or(ApiError::NotFound)?;
    let mut response = ([(CONTENT_TYPE, file.content_type)], file.bytes.into_owned()).into_response();
    if file.gzpipped {
        response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    Ok(response)
}
