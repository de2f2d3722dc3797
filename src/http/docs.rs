//! `/docs`: the OpenAPI document as a page to try it out on (Swagger UI). Its files are in the binary.
//! The page holds nothing itself: what it shows is `/openapi.json`, what it sends is what a user enters.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::header::{ACCEPT, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue, Method, Uri};
use axum::response::{Html, IntoResponse, Redirect, Response};
use utoipa_swagger_ui::Config;

use super::Http;
use super::errors::ApiError;
use super::openapi::{self, failures, schemas};

/// The files that the page loads.
pub(super) const FILES: [&str; 5] =
    ["docs.js", "docs.css", "swagger-ui-bundle.js", "swagger-ui.css", "favicon-32x32.png"];

const PAGE: &str = include_str!("docs/page.html");
const SCRIPT: &str = include_str!("docs/docs.js");
const STYLE: &str = include_str!("docs/docs.css");

/// What the page needs, from here alone. Icons of the style sheet are `data:`.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; \
     form-action 'none'; frame-ancestors 'none'",
);
const FOR_AN_HOUR: HeaderValue = HeaderValue::from_static("public, max-age=3600");

/// No route's path. A browser that somebody points at `/` is sent to the page; every other client is told that there is nothing.
pub(super) async fn elsewhere(
    State(http): State<Arc<Http>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Redirect, ApiError> {
    let is_root = uri.path() == "/" && matches!(method, Method::GET | Method::HEAD);
    // What is no text asks for no page.
    let mut accepted = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let is_browser = is_root && accepted.any(|value| value.to_ascii_lowercase().contains("text/html"));
    if http.settings.docs && is_browser { Ok(Redirect::to("/docs")) } else { Err(ApiError::NotFound) }
}

#[utoipa::path(
    get,
    path = "/docs",
    operation_id = "docs",
    tag = openapi::SERVICE,
    summary = "This document as a page to try it out on",
    responses((status = 200, description = "A page", body = String, content_type = "text/html; charset=utf-8"), failures::Any),
    security(),
)]
pub(super) async fn page(State(http): State<Arc<Http>>) -> Result<Response, ApiError> {
    if !http.settings.docs {
        return Err(ApiError::NotFound);
    }
    Ok(([(CONTENT_SECURITY_POLICY, POLICY)], Html(PAGE)).into_response())
}

#[utoipa::path(
    get,
    path = "/docs/{file}",
    operation_id = "docsFile",
    tag = openapi::SERVICE,
    summary = "What that page needs",
    params(("file" = inline(schemas::DocsFile), Path, description = "The name of a file")),
    responses(
        (status = 200, description = "The file", content((String = "text/javascript"), (String = "text/css"), (Vec<u8> = "image/png"))),
        failures::File,
    ),
    security(),
)]
pub(super) async fn file(
    State(http): State<Arc<Http>>,
    file: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let Path(name) = file.map_err(|_not_utf8| ApiError::NotFound)?;
    if !http.settings.docs {
        return Err(ApiError::NotFound);
    }
    let mut response = match name.as_str() {
        "docs.js" => ([(CONTENT_TYPE, "text/javascript")], SCRIPT).into_response(),
        "docs.css" => ([(CONTENT_TYPE, "text/css")], STYLE).into_response(),
        name if FILES.contains(&name) => embedded(name)?,
        _ => return Err(ApiError::NotFound),
    };
    response.headers_mut().insert(CACHE_CONTROL, FOR_AN_HOUR);
    Ok(response)
}

/// A file of Swagger UI.
fn embedded(name: &str) -> Result<Response, ApiError> {
    let found = utoipa_swagger_ui::serve(name, Arc::new(Config::default()));
    let file = found.map_err(|error| ApiError::Internal(error.to_string()))?.ok_or(ApiError::NotFound)?;
    let mut response = ([(CONTENT_TYPE, file.content_type)], file.bytes.into_owned()).into_response();
    if file.gzpipped {
        response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    Ok(response)
}
