//! Builds, serves and stops the service.

mod app;
mod connections;
mod metrics_listener;
mod purge;
mod sampler;

pub(crate) use app::retry_until;
pub use app::{App, Stop};
pub use metrics_listener::serve_metrics;
