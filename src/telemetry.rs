//! Logs, metrics and spans: how they leave the process. What is said is decided where it happens.
//!
//! Logs go to standard output, one event a line, written together a few times a second (a warning or an error at once);
//! metrics are read from their own port, spans are sent to a collector. None of them ever holds a secret.

use std::io::{BufWriter, IsTerminal, Stdout, Write};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use metrics_util::MetricKindMask;
use tracing::{Level, Metadata};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::Directive;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{Layer, Registry};

use crate::meters;
pub use crate::traces::SpanExport;
use crate::traces::{self, Collector, ExportError};

/// Telemetry could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter is no filter.
    #[error("log.filter: {0}")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// Logs are set up already.
    #[error("logs cannot be set up: {0}")]
    Logs(#[from] TryInitError),
    /// There is no thread for them.
    #[error("logs cannot be set up: {0}")]
    Thread(#[from] std::io::Error),
    /// Spans cannot be told.
    #[error(transparent)]
    Spans(#[from] ExportError),
    /// Metrics are set up already.
    #[error("metrics cannot be set up: {0}")]
    Metrics(#[from] BuildError),
}

/// Starts logging to standard output, as JSON for machines or as text for people; and telling spans to a collector, if there
/// is one. What is returned is to be finished when the service has stopped. Needs a runtime.
///
/// # Errors
/// When `filter` is none, the collector's URL is none, or logging was started before.
pub fn start_logs(
    filter: &str,
    as_json: bool,
    spans: Option<&SpanExport>,
) -> Result<Option<Collector>, TelemetryError> {
    // What is only for the collector is no matter of the log.
    let no_spans: Directive = format!("{}=off", traces::TARGET).parse()?;
    let filter = EnvFilter::try_new(filter)?.add_directive(no_spans);
    let lines = tracing_subscriber::fmt::layer().with_writer(Lines).with_target(false);
    let lines: Box<dyn Layer<Registry> + Send + Sync> = if as_json {
        lines.json().flatten_event(true).with_current_span(true).with_span_list(false).boxed()
    } else {
        lines.with_ansi(std::io::stdout().is_terminal()).boxed()
    };
    let collector = spans.map(Collector::start).transpose()?;
    match &collector {
        // The filter is everybody's then, and so a span for the collector costs nothing.
        None => tracing_subscriber::registry().with(lines).with(filter).try_init()?,
        Some(collector) => {
            let spans = tracing_opentelemetry::layer()
                .with_tracer(collector.tracer())
                .with_location(false)
                .with_threads(false)
                .with_level(false)
                .with_target(false)
                .with_tracked_inactivity(false)
                .with_filter(filter_fn(|of| of.target() == traces::TARGET));
            tracing_subscriber::registry().with(lines.with_filter(filter)).with(spans).try_init()?;
        }
    }
    start_flushing()?;
    Ok(collector)
}

fn start_flushing() -> std::io::Result<()> {
    std::thread::Builder::new().name("log".to_owned()).spawn(|| {
        loop {
            std::thread::sleep(FLUSH_EVERY);
            flush_logs();
        }
    })?;
    Ok(())
}

/// How long a line that is no warning may wait for its companions: one write for all of them.
const FLUSH_EVERY: Duration = Duration::from_millis(100);

/// Writes out what is waiting. To be called before the process ends.
pub fn flush_logs() {
    // Nobody is left to be told that standard output is gone.
    let _ = output().flush();
}

fn output() -> MutexGuard<'static, BufWriter<Stdout>> {
    static OUTPUT: OnceLock<Mutex<BufWriter<Stdout>>> = OnceLock::new();
    let output = OUTPUT.get_or_init(|| Mutex::new(BufWriter::with_capacity(64 * 1024, std::io::stdout())));
    output.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where events are written to.
struct Lines;

/// One event on its way; a warning or an error takes along what is waiting.
struct Line {
    is_urgent: bool,
}

impl<'w> MakeWriter<'w> for Lines {
    type Writer = Line;

    fn make_writer(&'w self) -> Line {
        Line { is_urgent: true }
    }

    fn make_writer_for(&'w self, event: &Metadata<'_>) -> Line {
        Line { is_urgent: *event.level() <= Level::WARN }
    }
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let mut output = output();
        output.write_all(bytes)?;
        if self.is_urgent {
            output.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        output().flush()
    }
}

/// A gauge that nobody has set for so long is no longer told: a series that has left the list of those with the least left.
const FORGET_GAUGES: Duration = Duration::from_mins(2);

const VERSION: &str = env!("CARGO_PKG_VERSION");
/// What this binary was built from, where the build says so.
const REVISION: &str = match option_env!("COUPON_ISSUER_REVISION") {
    Some(revision) => revision,
    None => "unknown",
};

/// Starts collecting metrics. Whoever counts before counts in vain.
///
/// # Errors
/// When they were started before.
pub fn start_metrics() -> Result<Metrics, TelemetryError> {
    let seconds = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
    let coupons = [1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 64.0, 100.0, 200.0];
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &seconds)?
        .set_buckets_for_metric(Matcher::Full(meters::BATCH_SIZE.name.to_owned()), &coupons)?
        .idle_timeout(MetricKindMask::GAUGE, Some(FORGET_GAUGES))
        .install_recorder()?;
    meters::describe();
    metrics_process::Collector::default().describe();
    Ok(Metrics(handle))
}

/// What was counted, to be read.
#[derive(Clone)]
pub struct Metrics(PrometheusHandle);

impl Metrics {
    /// All of it in Prometheus' text format, with what the system says of the process.
    #[must_use]
    pub fn render(&self) -> String {
        // Gauges that nobody sets any more go away; this one is set once.
        metrics::gauge!(meters::BUILD_INFO.name, "version" => VERSION, "revision" => REVISION).set(1.0);
        metrics_process::Collector::default().collect();
        self.0.render()
    }

    /// Sums up what was recorded. To be called every few seconds.
    pub fn run_upkeep(&self) {
        self.0.run_upkeep();
    }
}
