//! Logs go to standard output, one event per line. They are flushed ten times a second; a warning or an error is flushed at once.

use std::io::{BufWriter, IsTerminal, Stdout, Write};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tracing::{Level, Metadata};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::Directive;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{Layer, Registry};

use super::export::{Collector, ExportError};
use super::traces::TARGET;
use crate::config::{LogSettings, TracesSettings};

/// Why logs or traces cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter is invalid.
    #[error("log.filter: {0}")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// Logging was started before.
    #[error("logs cannot be set up: {0}")]
    Logs(#[from] TryInitError),
    /// The thread that flushes the log cannot be started.
    #[error("logs cannot be set up: {0}")]
    Thread(#[from] std::io::Error),
    /// The exporter of spans cannot be started.
    #[error(transparent)]
    Spans(#[from] ExportError),
}

/// Starts logging, and starts exporting spans if `traces` names a collector. The caller must call `Collector::finish` after the
/// service has stopped. Needs a runtime.
///
/// # Errors
/// When the filter or the collector's URL is not valid, or logging was started before.
pub fn start_logs(log: &LogSettings, traces: &TracesSettings) -> Result<Option<Collector>, TelemetryError> {
    // Keeps spans for the collector out of the log.
    let no_spans: Directive = format!("{TARGET}=off").parse()?;
    let filter = EnvFilter::try_new(&log.filter)?.add_directive(no_spans);
    let lines = tracing_subscriber::fmt::layer().with_writer(LineWriters).with_target(false);
    let lines: Box<dyn Layer<Registry> + Send + Sync> = if log.format.is_json() {
        lines.json().flatten_event(true).with_current_span(true).with_span_list(false).boxed()
    } else {
        lines.with_ansi(std::io::stdout().is_terminal()).boxed()
    };
    let collector = Collector::start(traces)?;
    match &collector {
        // A global filter disables the spans for the collector, so they cost nothing.
        None => tracing_subscriber::registry().with(lines).with(filter).try_init()?,
        Some(collector) => {
            let spans = tracing_opentelemetry::layer()
                .with_tracer(collector.tracer())
                .with_location(false)
                .with_threads(false)
                .with_level(false)
                .with_target(false)
                .with_tracked_inactivity(false)
                .with_filter(filter_fn(|metadata| metadata.target() == TARGET));
            tracing_subscriber::registry().with(lines.with_filter(filter)).with(spans).try_init()?;
        }
    }
    start_flushing()?;
    Ok(collector)
}

fn start_flushing() -> std::io::Result<()> {
    std::thread::Builder::new().name("log".to_owned()).spawn(|| {
        loop {
            std::thread::sleep(FLUSH_INTERVAL);
            flush_logs();
        }
    })?;
    Ok(())
}

/// Collects lines for one write.
const FLUSH_INTERVAL: Duration = Duration::from_millis(100);

/// Writes the buffered lines. To be called before the process ends.
pub fn flush_logs() {
    // If standard output is gone, there is nowhere to report it.
    let _ = output().flush();
}

fn output() -> MutexGuard<'static, BufWriter<Stdout>> {
    static OUTPUT: OnceLock<Mutex<BufWriter<Stdout>>> = OnceLock::new();
    let output = OUTPUT.get_or_init(|| Mutex::new(BufWriter::with_capacity(64 * 1024, std::io::stdout())));
    output.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes a writer for each event.
struct LineWriters;

/// Writes one event. A warning or an error also flushes the buffered lines.
struct LineWriter {
    is_urgent: bool,
}

impl<'w> MakeWriter<'w> for LineWriters {
    type Writer = LineWriter;

    fn make_writer(&'w self) -> LineWriter {
        LineWriter { is_urgent: true }
    }

    fn make_writer_for(&'w self, event: &Metadata<'_>) -> LineWriter {
        LineWriter { is_urgent: *event.level() <= Level::WARN }
    }
}

impl Write for LineWriter {
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
