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
    summary = "Whether the process runs",
    responses((status = 200, description = "It does", body = String, example = json!("ok\n")), failures::Any),
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
    summary = "Whether it can serve",
    responses(
        (status = 200, description = "It can", body = String, example = json!("ready\n")),
        (status = 503, description = "The database is away, its schema is none that this version can work on, or a stop has begun",
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
