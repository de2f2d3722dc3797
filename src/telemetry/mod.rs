//! Logs, metrics and traces. None of them ever contains a secret.

mod export;
mod logs;
pub mod metrics;
mod recorder;
pub mod throttle;
pub mod traces;

pub use export::Collector;
pub use logs::{TelemetryError, flush_logs, start_logs};
pub use recorder::{Metrics, start_metrics};
