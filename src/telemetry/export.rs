//! Exports spans in batches to a collector, by OTLP over HTTP, on a thread of its own. While the collector is away, requests are not
//! slowed down: spans that do not fit into the bounded queue are dropped.

use std::fmt::{self, Debug, Formatter};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::body::Bytes;
use axum::http::{Request, Response};
use opentelemetry::trace::TracerProvider;
use opentelemetry::{Key, KeyValue};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider};
use tokio::runtime::Handle;

use crate::config::TracesSettings;

const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// For the last batch when the service stops.
const FINISH_TIMEOUT: Duration = Duration::from_secs(2);
const SERVICE: &str = "coupon-issuer";

/// Why the exporter cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The endpoint is not a URL.
    #[error("traces.otlp_endpoint: {0}")]
    Exporter(#[from] ExporterBuildError),
    /// The HTTP client cannot be built.
    #[error("traces.otlp_endpoint: {0}")]
    Client(#[from] reqwest::Error),
}

/// The exporter of spans to a collector.
pub struct Collector(SdkTracerProvider);

impl Collector {
    /// Starts the exporter; `None` without an endpoint. Needs a runtime.
    ///
    /// # Errors
    /// When the endpoint is not a URL.
    pub(super) fn start(settings: &TracesSettings) -> Result<Option<Self>, ExportError> {
        let Some(endpoint) = &settings.otlp_endpoint else { return Ok(None) };
        let client =
            reqwest::Client::builder().timeout(SEND_TIMEOUT).redirect(reqwest::redirect::Policy::none()).build()?;
        let sender = Sender { client, runtime: Handle::current(), is_away: AtomicBool::new(false) };
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(sender)
            .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
            .with_timeout(SEND_TIMEOUT)
            .build()?;
        let ratio = Sampler::TraceIdRatioBased(settings.sample_ratio);
        let provider = SdkTracerProvider::builder()
            .with_sampler(Sampler::ParentBased(Box::new(ratio)))
            .with_resource(resource())
            .with_batch_exporter(exporter)
            .build();
        Ok(Some(Self(provider)))
    }

    #[must_use]
    pub(super) fn tracer(&self) -> SdkTracer {
        self.0.tracer(SERVICE)
    }

    /// Sends the remaining spans, within the time-out.
    pub async fn finish(self) {
        let finished = tokio::task::spawn_blocking(move || self.0.shutdown_with_timeout(FINISH_TIMEOUT));
        if !matches!(finished.await, Ok(Ok(()))) {
            tracing::warn!("the last spans could not be sent");
        }
    }
}

/// The version, and the name from `OTEL_SERVICE_NAME` or `OTEL_RESOURCE_ATTRIBUTES`; without them, the default name.
fn resource() -> Resource {
    let configured = Resource::builder().build().get(&Key::new("service.name")).map(|name| name.to_string());
    let builder = Resource::builder().with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
    match configured {
        Some(name) if !name.starts_with("unknown_service") => builder.build(),
        _ => builder.with_service_name(SERVICE).build(),
    }
}

/// Sends a batch. The exporter's thread has no runtime, so the request runs on that of the service.
struct Sender {
    client: reqwest::Client,
    runtime: Handle,
    is_away: AtomicBool,
}

impl Debug for Sender {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        formatter.write_str("Sender")
    }
}

type SendFuture<'s> = Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 's>>;

impl HttpClient for Sender {
    fn send_bytes<'s, 'f>(&'s self, request: Request<Bytes>) -> SendFuture<'f>
    where
        's: 'f,
        Self: 'f,
    {
        let client = self.client.clone();
        let sent = self.runtime.spawn(async move {
            let answer = client.execute(request.try_into()?).await?;
            let status = answer.status();
            let body = answer.bytes().await?;
            Ok::<_, reqwest::Error>((status, body))
        });
        Box::pin(async move {
            let answer = match sent.await {
                Ok(Ok((status, body))) => {
                    let mut answer = Response::new(body);
                    *answer.status_mut() = status;
                    Ok(answer)
                }
                Ok(Err(error)) => Err(error.without_url().into()),
                Err(join_error) => Err(join_error.into()),
            };
            self.log_change(&answer);
            answer
        })
    }
}

impl Sender {
    /// Logs once when the collector goes away, and once when it is back.
    fn log_change(&self, answer: &Result<Response<Bytes>, HttpError>) {
        let reason = match answer {
            Ok(answer) if answer.status().is_success() => None,
            Ok(answer) => Some(format!("it answered {}", answer.status())),
            Err(error) => Some(error.to_string()),
        };
        let was_away = self.is_away.swap(reason.is_some(), Ordering::Relaxed);
        match reason {
            Some(reason) if !was_away => {
                tracing::warn!(reason, "the collector does not accept spans: they are dropped until it does");
            }
            None if was_away => tracing::info!("the collector accepts spans again"),
            _ => {}
        }
    }
}
