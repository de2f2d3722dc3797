//! What OAuth clients read about this service: its endpoints (RFC 8414), and the keys that verify its tokens (RFC 7517).

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, HOST};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::auth::SCOPE;
use crate::http::errors::ApiError;
use crate::http::openapi::{TOKENS, examples, failures, schemas};
use crate::http::paths;
use crate::http::state::Http;

/// As RFC 8414, section 2.
#[derive(Serialize, ToSchema)]
#[schema(as = AuthorizationServer)]
struct Metadata {
    grant_types_supported: [&'static str; 1],
    issuer: String,
    jwks_uri: String,
    response_types_supported: [&'static str; 0],
    scopes_supported: [&'static str; 1],
    token_endpoint: String,
    token_endpoint_auth_methods_supported: [&'static str; 2],
}

#[utoipa::path(
    get,
    path = paths::OAUTH_METADATA,
    operation_id = "authorizationServer",
    tag = TOKENS,
    summary = "The metadata from which OAuth 2 clients configure themselves",
    responses(
        (status = 200, description = "As RFC 8414; under `http.public_url`, otherwise under the host of the request", body = Metadata,
            example = json!(examples::metadata())),
        failures::Metadata,
    ),
    security(),
)]
pub(in crate::http) async fn metadata(State(http): State<Arc<Http>>, headers: HeaderMap) -> Result<Response, ApiError> {
    let issuer = match &http.settings.public_url {
        Some(url) => url.clone(),
        None => format!("http://{}", host(&headers)?),
    };
    let document = Metadata {
        grant_types_supported: ["client_credentials"],
        jwks_uri: format!("{issuer}{}", paths::OAUTH_KEYS),
        response_types_supported: [],
        scopes_supported: [SCOPE],
        token_endpoint: format!("{issuer}{}", paths::TOKEN),
        token_endpoint_auth_methods_supported: ["client_secret_basic", "client_secret_post"],
        issuer,
    };
    Ok(Json(document).into_response())
}

/// The host name under which the caller reached the service.
fn host(headers: &HeaderMap) -> Result<Authority, ApiError> {
    let host = headers.get(HOST).and_then(|host| host.to_str().ok()).and_then(|host| host.parse().ok());
    host.ok_or_else(|| ApiError::BadRequest("the Host header is missing or no host".to_owned()))
}

#[utoipa::path(
    get,
    path = paths::OAUTH_KEYS,
    operation_id = "keys",
    tag = TOKENS,
    summary = "The keys that verify tokens",
    responses(
        (status = 200, description = "As RFC 7517, section 5", body = schemas::KeySet, content_type = "application/jwk-set+json"),
        failures::Any,
    ),
    security(),
)]
pub(in crate::http) async fn keys(State(http): State<Arc<Http>>) -> Response {
    let cache_control = (CACHE_CONTROL, HeaderValue::from_static("public, max-age=30"));
    let content_type = (CONTENT_TYPE, HeaderValue::from_static("application/jwk-set+json"));
    ([cache_control], [content_type], Json(http.authenticator.keys().published())).into_response()
}
