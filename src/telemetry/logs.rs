//! Logs go to standard output, one event a line. Ten times a second they are written out together; a warning or an error is written
//! at once.

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
}

/// Starts logging, and exports spans to the collector of `traces`, if it names one. The caller finishes the collector after the service
/// has stopped. Needs a runtime.
///
/// # Errors
/// When the filter or the collector's URL is not valid, or logging was started before.
pub fn start_logs(log: &LogSettings, traces: &TracesSettings) -> Result<Option<Collector>, TelemetryError> {
    // What is only for the collector is no matter of the log.
    let no_spans: Directive = format!("{TARGET}=off").parse()?;
    let filter = EnvFilter::try_new(&log.filter)?.add_directive(no_spans);
    let lines = tracing_subscriber::fmt::layer().with_writer(Lines).with_target(false);
    let lines: Box<dyn Layer<Registry> + Send + Sync> = if log.format.is_json() {
        lines.json().flatten_event(true).with_current_span(true).with_span_list(false).boxed()
    } else {
        lines.with_ansi(std::io::stdout().is_terminal()).boxed()
    };
    let collector = Collector::start(traces)?;
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
                .with_filter(filter_fn(|of| of.target() == TARGET));
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
