//! The OpenAPI document, and the page that shows it (Swagger UI, whose files are in the binary). The page is static: it loads
//! `/openapi.json`, and sends what the user enters.

mod files;

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::header::{ACCEPT, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue, Method, Uri};
use axum::response::{Html, IntoResponse, Redirect, Response};

pub(super) use files::FILES;

use super::errors::ApiError;
use super::openapi::{SERVICE, failures, schemas};
use super::paths;
use super::state::Http;

/// Only what the page needs, and only from this service. The style sheet has icons as `data:` URLs.
const CONTENT_POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; \
     form-action 'none'; frame-ancestors 'none'",
);
const CACHE_ONE_HOUR: HeaderValue = HeaderValue::from_static("public, max-age=3600");

/// Handles all paths without a route: redirects a browser that opens `/` to the page, and answers 404 to all others.
pub(super) async fn fallback(
    State(http): State<Arc<Http>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Redirect, ApiError> {
    let is_root = uri.path() == "/" && matches!(method, Method::GET | Method::HEAD);
    let mut accepted = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let is_browser = is_root && accepted.any(|value| value.to_ascii_lowercase().contains("text/html"));
    if http.settings.docs && is_browser { Ok(Redirect::to(paths::DOCS)) } else { Err(ApiError::NotFound) }
}

#[utoipa::path(
    get,
    path = "/openapi.json",
    operation_id = "openapi",
    tag = SERVICE,
    summary = "This document",
    responses((status = 200, description = "OpenAPI 3.1", body = Object), failures::Any),
    security(),
)]
pub(super) async fn openapi_json(State(http): State<Arc<Http>>) -> Response {
    let content_type = (CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let cache_control = (CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    ([content_type, cache_control], http.openapi.clone()).into_response()
}

#[utoipa::path(
    get,
    path = paths::DOCS,
    operation_id = "docs",
    tag = SERVICE,
    summary = "A page of this document, from which you can send requests",
    responses((status = 200, description = "A page", body = String, content_type = "text/html; charset=utf-8"), failures::Any),
    security(),
)]
pub(super) async fn page(State(http): State<Arc<Http>>) -> Result<Response, ApiError> {
    if !http.settings.docs {
        return Err(ApiError::NotFound);
    }
    Ok(([(CONTENT_SECURITY_POLICY, CONTENT_POLICY)], Html(files::PAGE)).into_response())
}

#[utoipa::path(
    get,
    path = "/docs/{file}",
    operation_id = "docsFile",
    tag = SERVICE,
    summary = "A file of that page",
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
    let mut response = files::serve(&name)?;
    response.headers_mut().insert(CACHE_CONTROL, CACHE_ONE_HOUR);
    Ok(response)
}
