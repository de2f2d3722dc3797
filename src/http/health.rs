//! `/healthz`: the process runs. `/readyz`: it can serve: the database answers, its schema is known, and no stop is under
//! way. Neither needs credentials, and neither says more than that.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::extract::State;
use axum::http::StatusCode;

use super::Http;
use super::openapi::{self, failures};

/// Asks whether the database can be used; `Err` says why not.
pub type ReadinessCheck = Box<dyn Fn() -> Pin<Box<dyn Future<Output = Result<(), String>> + Send>> + Send + Sync>;

/// Whether the service can serve.
pub struct Readiness {
    check: ReadinessCheck,
    draining: AtomicBool,
}

impl Readiness {
    /// Ready whenever `check` succeeds, until [`Readiness::drain`].
    #[must_use]
    pub const fn new(check: ReadinessCheck) -> Self {
        Self { check, draining: AtomicBool::new(false) }
    }

    /// From now on not ready: a stop has begun.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Whether a stop has begun.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }
}

#[utoipa::path(
    get,
    path = "/healthz",
    operation_id = "healthz",
    tag = openapi::SERVICE,
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
    tag = openapi::SERVICE,
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
    match (http.readiness.check)().await {
        Ok(()) => (StatusCode::OK, "ready\n"),
        Err(reason) => {
            tracing::warn!(reason, "not ready");
            (StatusCode::SERVICE_UNAVAILABLE, "the database is unavailable or its schema is not this version's\n")
        }
    }
}
