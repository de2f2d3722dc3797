//! Where spans go: in batches, by a thread of its own, to a collector that speaks OTLP over HTTP.
//! A collector that is away costs no request anything: what does not fit into the bounded queue is dropped.

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

/// How long the collector may take to take a batch.
const SEND_WITHIN: Duration = Duration::from_secs(10);
/// How long the last batch may take when the service stops.
const FINISH_WITHIN: Duration = Duration::from_secs(2);
const SERVICE: &str = "coupon-issuer";

/// Spans cannot be told to a collector.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The exporter cannot be made.
    #[error("traces.otlp_endpoint: {0}")]
    Exporter(#[from] ExporterBuildError),
    /// There is no client for it.
    #[error("traces.otlp_endpoint: {0}")]
    Web(#[from] reqwest::Error),
}

/// A collector, and what is on its way there.
pub struct Collector(SdkTracerProvider);

impl Collector {
    /// Starts the exporter; `None` without an endpoint. Needs a runtime.
    ///
    /// # Errors
    /// When the endpoint is not a URL.
    pub fn start(settings: &TracesSettings) -> Result<Option<Self>, ExportError> {
        let Some(endpoint) = &settings.otlp_endpoint else { return Ok(None) };
        let web =
            reqwest::Client::builder().timeout(SEND_WITHIN).redirect(reqwest::redirect::Policy::none()).build()?;
        let sender = Sender { web, runtime: Handle::current(), is_away: AtomicBool::new(false) };
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(sender)
            .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
            .with_timeout(SEND_WITHIN)
            .build()?;
        let ratio = Sampler::TraceIdRatioBased(settings.sample_ratio);
        let provider = SdkTracerProvider::builder()
            .with_sampler(Sampler::ParentBased(Box::new(ratio)))
            .with_resource(resource())
            .with_batch_exporter(exporter)
            .build();
        Ok(Some(Self(provider)))
    }

    /// What makes spans.
    #[must_use]
    pub fn tracer(&self) -> SdkTracer {
        self.0.tracer(SERVICE)
    }

    /// Sends what is on its way, if that does not take long.
    pub async fn finish(self) {
        let finished = tokio::task::spawn_blocking(move || self.0.shutdown_with_timeout(FINISH_WITHIN));
        if !matches!(finished.await, Ok(Ok(()))) {
            tracing::warn!("the last spans could not be sent");
        }
    }
}

/// What the environment says (`OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`), or else the name of the service; and its version.
fn resource() -> Resource {
    let told = Resource::builder().build().get(&Key::new("service.name")).map(|name| name.to_string());
    let builder = Resource::builder().with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
    match told {
        Some(name) if !name.starts_with("unknown_service") => builder.build(),
        _ => builder.with_service_name(SERVICE).build(),
    }
}

/// Sends a batch. The thread that asks for it has no runtime, so it borrows one.
struct Sender {
    web: reqwest::Client,
    runtime: Handle,
    is_away: AtomicBool,
}

impl Debug for Sender {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        formatter.write_str("Sender")
    }
}

type Sent<'s> = Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 's>>;

impl HttpClient for Sender {
    fn send_bytes<'s, 'f>(&'s self, request: Request<Bytes>) -> Sent<'f>
    where
        's: 'f,
        Self: 'f,
    {
        let web = self.web.clone();
        let sent = self.runtime.spawn(async move {
            let answer = web.execute(request.try_into()?).await?;
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
                Err(broke_off) => Err(broke_off.into()),
            };
            self.tell(&answer);
            answer
        })
    }
}

impl Sender {
    /// That the collector is away, or back, is told once.
    fn tell(&self, answer: &Result<Response<Bytes>, HttpError>) {
        let reason = match answer {
            Ok(answer) if answer.status().is_success() => None,
            Ok(answer) => Some(format!("it answered {}", answer.status())),
            Err(error) => Some(error.to_string()),
        };
        let was_away = self.is_away.swap(reason.is_some(), Ordering::Relaxed);
        match reason {
            Some(reason) if !was_away => {
                tracing::warn!(reason, "the collector takes no spans; they are dropped until it does");
            }
            None if was_away => tracing::info!("the collector takes spans again"),
            _ => {}
        }
    }
}
