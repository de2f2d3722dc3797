//! The HTTP side: the whole route table, and what stands before and around it.
//!
//! Parses requests into `issuance`'s types and renders what comes back. Nothing is decided here, and there is no SQL.

mod address;
mod attribution;
mod authenticate;
mod body;
mod console;
mod counts;
mod docs;
mod errors;
mod fingerprint;
mod headers;
mod health;
mod idempotency;
mod ids;
mod issue;
mod oauth;
mod object;
mod openapi;
mod request_log;
mod security_headers;
mod token;

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
pub use health::{Readiness, ReadinessCheck};
pub use openapi::document;
use tower_http::catch_panic::CatchPanicLayer;

use crate::activity::Activity;
use crate::auth::Authenticator;
use crate::config::HttpSettings;
use crate::issuance::Issuer;

use self::errors::ApiError;

/// What the handlers share.
pub struct Http {
    /// Issues coupons.
    pub issuer: Arc<Issuer>,
    /// What the console shows.
    pub activity: Arc<Activity>,
    /// Authenticates callers.
    pub authenticator: Arc<Authenticator>,
    /// Whether the service can serve.
    pub readiness: Arc<Readiness>,
    /// `[http]`.
    pub settings: HttpSettings,
    /// What [`document`] makes of the settings.
    pub openapi: Bytes,
}

/// The routes that anyone may call. Every other route needs a caller with write access, or, where it is listed in [`READING`],
/// with read access: a new one is closed until it is listed here.
const PUBLIC: [&str; 9] = [
    "/healthz",
    "/readyz",
    "/v3/oauth/token/generate",
    "/oauth/token",
    oauth::METADATA_PATH,
    oauth::KEYS_PATH,
    "/openapi.json",
    "/docs",
    "/docs/{file}",
];

/// Routes that only look: read access is enough.
const READING: [&str; 2] = [RECEIPT_PATH, console::PATH];
const ISSUE_PATH: &str = "/v2/coupon/bulk/issue";
const RECEIPT_PATH: &str = "/v2/coupon/bulk/issue/{key}";

/// The route table.
pub fn router(http: Arc<Http>) -> Router {
    counts::start();
    let router = Router::new();
    let router = if http.settings.console { router.route(console::PATH, get(console::page)) } else { router };
    router
        .route(ISSUE_PATH, post(issue::issue_bulk))
        .route(RECEIPT_PATH, get(issue::receipt))
        .route("/v3/oauth/token/generate", post(token::generate))
        .route("/oauth/token", post(oauth::token))
        .route(oauth::METADATA_PATH, get(oauth::metadata))
        .route(oauth::KEYS_PATH, get(oauth::keys))
        .route("/healthz", get(health::healthz))
        .route("/readyz", get(health::readyz))
        .route("/openapi.json", get(openapi::serve))
        .route("/docs", get(docs::page))
        .route("/docs/{file}", get(docs::file))
        .route_layer(from_fn_with_state(Arc::clone(&http), authenticate::authenticate))
        .fallback(docs::elsewhere)
        .method_not_allowed_fallback(async || ApiError::MethodNotAllowed)
        .layer(CatchPanicLayer::custom(errors::after_panic))
        .layer(from_fn_with_state(Arc::clone(&http), request_log::request_log))
        .with_state(http)
}
