//! Neither endpoint needs credentials, and neither answers more than its one line: the reason is in the log.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;

use super::openapi::{SERVICE, failures};
use super::state::Http;

#[utoipa::path(
    get,
    path = "/healthz",
    operation_id = "healthz",
    tag = SERVICE,
    summary = "Liveness: the process runs",
    responses((status = 200, description = "The process runs", body = String, example = json!("ok\n")), failures::Any),
    security(),
)]
pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

#[utoipa::path(
    get,
    path = "/readyz",
    operation_id = "readyz",
    tag = SERVICE,
    summary = "Readiness: the service can serve",
    responses(
        (status = 200, description = "The service can serve", body = String, example = json!("ready\n")),
        (status = 503, description = "The database is unavailable, this version cannot work on its schema, or the service is stopping",
            body = String, example = json!("stopping\n")),
        failures::Any,
    ),
    security(),
)]
pub(super) async fn readyz(State(http): State<Arc<Http>>) -> (StatusCode, &'static str) {
    if http.readiness.is_draining() {
        return (StatusCode::SERVICE_UNAVAILABLE, "stopping\n");
    }
    match http.readiness.check().await {
        Ok(()) => (StatusCode::OK, "ready\n"),
        Err(reason) => {
            tracing::warn!(reason, "not ready");
            (StatusCode::SERVICE_UNAVAILABLE, "the database is unavailable or its schema is not this version's\n")
        }
    }
}
