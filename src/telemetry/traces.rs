//! Propagates the caller's trace context (W3C `traceparent`, `tracestate`), and makes spans for the collector if there is one.
//!
//! Without a collector a span costs next to nothing, since its target is disabled. No span contains a secret, a code, a mobile number
//! or an e-mail address.

use axum::http::HeaderMap;
use opentelemetry::Context;
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{SpanContext, Status, TraceContextExt, TraceId};
use opentelemetry_http::{HeaderExtractor, HeaderInjector};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::{Instrument, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// The target of all spans. They go to the collector only; the log ignores them.
pub(crate) const TARGET: &str = "coupon_issuer::spans";

/// A span for the collector, as a child of the current span.
macro_rules! span {
    ($($rest:tt)+) => {
        tracing::info_span!(target: $crate::telemetry::traces::TARGET, $($rest)+)
    };
}
pub(crate) use span;

tokio::task_local! {
    /// The trace of the current request, if it is traced.
    static CURRENT: RequestTrace;
}

/// The trace of a request.
#[derive(Debug, Clone)]
pub(crate) struct RequestTrace {
    span: Span,
    caller_context: Option<Context>,
}

impl RequestTrace {
    /// Starts a span below the caller's span, sampled if the caller's trace is.
    #[must_use]
    pub(crate) fn begin(headers: &HeaderMap, method: &str, route: &str, request_id: &str) -> Self {
        let caller_context = caller_context(headers);
        let span = span!(
            parent: None,
            "request",
            otel.name = format!("{method} {route}"),
            otel.kind = "server",
            http.request.method = method,
            http.route = route,
            coupon_issuer.request_id = request_id,
        );
        if let Some(context) = caller_context.as_ref().filter(|_| !span.is_disabled()) {
            // Cannot fail: the span is new.
            let _ = span.set_parent(context.clone());
        }
        Self { span, caller_context }
    }

    /// The id of the caller's trace, or of a new trace if this request is exported.
    #[must_use]
    pub(crate) fn trace_id(&self) -> Option<TraceId> {
        if let Some(context) = &self.caller_context {
            return Some(context.span().span_context().trace_id());
        }
        if self.span.is_disabled() {
            return None;
        }
        valid(&self.span.context()).filter(SpanContext::is_sampled).map(|context| context.trace_id())
    }

    /// Runs the work of the request in its span.
    pub(crate) async fn run<F: Future>(&self, work: F) -> F::Output {
        if self.span.is_disabled() && self.caller_context.is_none() {
            return work.await;
        }
        // Boxed, so that a request without a trace does not pay for a larger future.
        Box::pin(CURRENT.scope(self.clone(), work.instrument(self.span.clone()))).await
    }

    /// The trace of the current request, to pass on to a task. `None` if it is not traced.
    #[must_use]
    pub(crate) fn current() -> Option<Self> {
        CURRENT.try_with(Clone::clone).ok()
    }

    /// Records the answer.
    pub(crate) fn set_answer(&self, status: u16, org_id: Option<i64>) {
        if self.span.is_disabled() {
            return;
        }
        self.span.set_attribute("http.response.status_code", i64::from(status));
        if let Some(org_id) = org_id {
            self.span.set_attribute("coupon_issuer.org_id", org_id);
        }
        if status >= 500 {
            self.span.set_status(Status::error(""));
        }
    }
}

/// The trace context in the headers, if it is well formed. Two contexts count as none.
fn caller_context(headers: &HeaderMap) -> Option<Context> {
    let mut values = headers.get_all("traceparent").iter();
    let value = values.next()?.to_str().ok()?;
    if values.next().is_some() || !value.split('-').map(str::len).take(4).eq([2, 32, 16, 2]) {
        return None;
    }
    let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &HeaderExtractor(headers));
    context.span().span_context().is_valid().then_some(context)
}

fn valid(context: &Context) -> Option<SpanContext> {
    Some(context.span().span_context().clone()).filter(SpanContext::is_valid)
}

/// The trace headers of a call that is made for the current request.
#[must_use]
pub(crate) fn outgoing_headers() -> HeaderMap {
    let mut headers = HeaderMap::new();
    let current = Span::current().context();
    let context = match valid(&current) {
        Some(_) => Some(current),
        None => RequestTrace::current().and_then(|request| request.caller_context),
    };
    if let Some(context) = context {
        TraceContextPropagator::new().inject_context(&context, &mut HeaderInjector(&mut headers));
    }
    headers
}

/// The span of a job that waits for its batch. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct QueueSpan {
    /// The span that queued the job.
    parent: Span,
    _span: Span,
}

impl QueueSpan {
    /// Starts as a child of the current span.
    #[must_use]
    pub(crate) fn begin(count: usize) -> Self {
        let span = span!("wait in the queue", coupons = count);
        let parent = if span.is_disabled() { Span::none() } else { Span::current() };
        Self { parent, _span: span }
    }
}

/// The span of a batch: a child of the first sampled job, with links to and from the other jobs.
pub(crate) fn batch_span<'w>(jobs: impl Iterator<Item = &'w QueueSpan>, count: usize) -> Span {
    let mut sampled = jobs.filter(|job| !job.parent.is_disabled()).filter_map(|job| {
        let context = job.parent.context();
        context.span().span_context().is_sampled().then_some((job, context))
    });
    let Some((_, first)) = sampled.next() else { return Span::none() };
    let span = span!(parent: None, "write a batch", coupons = count);
    let _ = span.set_parent(first);
    let batch = span.context().span().span_context().clone();
    for (job, context) in sampled {
        span.add_link(context.span().span_context().clone());
        job.parent.add_link(batch.clone());
    }
    span
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

    fn trace_id(values: &[&str]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append("traceparent", value.parse().unwrap());
        }
        RequestTrace::begin(&headers, "POST", "/", "r").trace_id().map(|id| id.to_string())
    }

    #[test]
    fn a_well_formed_context_is_accepted() {
        let good = format!("00-{TRACE}-b7ad6b7169203331-01");
        assert_eq!(trace_id(&[&good]).as_deref(), Some(TRACE));
        assert_eq!(trace_id(&[&good, &good]), None, "twice");
        for bad in
            ["", "nonsense", "00-0af7-b7ad6b7169203331-01", "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"]
        {
            assert_eq!(trace_id(&[bad]), None, "{bad}");
        }
        assert_eq!(trace_id(&["00-00000000000000000000000000000000-b7ad6b7169203331-01"]), None);
    }

    #[tokio::test]
    async fn the_context_is_propagated_without_a_collector() {
        let mut headers = HeaderMap::new();
        headers.insert("traceparent", format!("00-{TRACE}-b7ad6b7169203331-01").parse().unwrap());
        headers.insert("tracestate", "shop=1".parse().unwrap());
        let trace = RequestTrace::begin(&headers, "POST", "/", "r");
        let outgoing = trace.run(async { outgoing_headers() }).await;
        assert_eq!(outgoing["traceparent"], headers["traceparent"]);
        assert_eq!(outgoing["tracestate"], "shop=1");
        assert!(outgoing_headers().is_empty(), "outside of a request");
    }
}
