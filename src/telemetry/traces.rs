//! Traces: the context that a caller sends along (W3C `traceparent`, `tracestate`) is taken over and handed on, and a request is
//! told as spans to a collector, where there is one.
//!
//! Without a collector a span costs a look at a constant: nobody listens to their target. No span holds a secret, a code, a mobile
//! or an e-mail.

use axum::http::HeaderMap;
use opentelemetry::Context;
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{SpanContext, Status, TraceContextExt, TraceId};
use opentelemetry_http::{HeaderExtractor, HeaderInjector};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::{Instrument, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// The target of all spans that are for the collector alone: the log neither records nor shows them.
pub const TARGET: &str = "coupon_issuer::spans";

/// A span for the collector, below the one at hand.
macro_rules! span {
    ($($rest:tt)+) => {
        tracing::info_span!(target: $crate::telemetry::traces::TARGET, $($rest)+)
    };
}
pub(crate) use span;

tokio::task_local! {
    /// Of the request at hand, where there is something to be said of its trace.
    static AT_HAND: RequestTrace;
}

/// A request, as it is traced.
#[derive(Debug, Clone)]
pub struct RequestTrace {
    span: Span,
    callers: Option<Context>,
}

impl RequestTrace {
    /// Begins below what the caller says, and is sampled if the caller's trace is.
    #[must_use]
    pub fn begin(headers: &HeaderMap, method: &str, route: &str, request_id: &str) -> Self {
        let callers = callers(headers);
        let span = span!(
            parent: None,
            "request",
            otel.name = format!("{method} {route}"),
            otel.kind = "server",
            http.request.method = method,
            http.route = route,
            coupon_issuer.request_id = request_id,
        );
        if let Some(callers) = callers.as_ref().filter(|_| !span.is_disabled()) {
            // Nothing has happened in it yet, so it can be set.
            let _ = span.set_parent(callers.clone());
        }
        Self { span, callers }
    }

    /// The trace that it belongs to: the caller's, or one of its own where it is told to a collector.
    #[must_use]
    pub fn trace_id(&self) -> Option<TraceId> {
        if let Some(callers) = &self.callers {
            return Some(callers.span().span_context().trace_id());
        }
        if self.span.is_disabled() {
            return None;
        }
        valid(&self.span.context()).filter(SpanContext::is_sampled).map(|context| context.trace_id())
    }

    /// Does the work of the request.
    pub async fn of<F: Future>(&self, work: F) -> F::Output {
        if self.span.is_disabled() && self.callers.is_none() {
            return work.await;
        }
        // Where nobody traces, nobody carries its state about.
        Box::pin(AT_HAND.scope(self.clone(), work.instrument(self.span.clone()))).await
    }

    /// That of the request at hand, to be taken along into a task of its own; `None`: there is nothing to take.
    #[must_use]
    pub fn at_hand() -> Option<Self> {
        AT_HAND.try_with(Clone::clone).ok()
    }

    /// It is answered.
    pub fn answered(&self, status: u16, org_id: Option<i64>) {
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

/// What a caller has sent along, if it is well formed. What comes twice is none.
fn callers(headers: &HeaderMap) -> Option<Context> {
    let mut given = headers.get_all("traceparent").iter();
    let value = given.next()?.to_str().ok()?;
    if given.next().is_some() || !value.split('-').map(str::len).take(4).eq([2, 32, 16, 2]) {
        return None;
    }
    let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &HeaderExtractor(headers));
    context.span().span_context().is_valid().then_some(context)
}

fn valid(context: &Context) -> Option<SpanContext> {
    Some(context.span().span_context().clone()).filter(SpanContext::is_valid)
}

/// What a call that is made for the request at hand says of its trace.
#[must_use]
pub fn handed_on() -> HeaderMap {
    let mut headers = HeaderMap::new();
    let here = Span::current().context();
    let context = match valid(&here) {
        Some(_) => Some(here),
        None => RequestTrace::at_hand().and_then(|request| request.callers),
    };
    if let Some(context) = context {
        TraceContextPropagator::new().inject_context(&context, &mut HeaderInjector(&mut headers));
    }
    headers
}

/// Something that waits to be done together with others.
#[derive(Debug)]
pub struct Waiting {
    /// For whom.
    of: Span,
    _waits: Span,
}

impl Waiting {
    /// From now on, for the span at hand.
    #[must_use]
    pub fn begin(count: usize) -> Self {
        let waits = span!("wait in the queue", coupons = count);
        let of = if waits.is_disabled() { Span::none() } else { Span::current() };
        Self { of, _waits: waits }
    }
}

/// What is done together for all that have waited: a span below the first of them that is sampled, linked to and from the
/// others. The waiting is over.
pub fn together<'w>(waiting: impl Iterator<Item = &'w Waiting>, count: usize) -> Span {
    let mut waiting = waiting.filter(|one| !one.of.is_disabled()).filter_map(|one| {
        let context = one.of.context();
        context.span().span_context().is_sampled().then_some((one, context))
    });
    let Some((_, first)) = waiting.next() else { return Span::none() };
    let span = span!(parent: None, "write a batch", coupons = count);
    let _ = span.set_parent(first);
    let batch = span.context().span().span_context().clone();
    for (one, context) in waiting {
        span.add_link(context.span().span_context().clone());
        one.of.add_link(batch.clone());
    }
    span
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

    fn trace_id(given: &[&str]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for value in given {
            headers.append("traceparent", value.parse().unwrap());
        }
        RequestTrace::begin(&headers, "POST", "/", "r").trace_id().map(|id| id.to_string())
    }

    #[test]
    fn a_well_formed_context_is_taken_over() {
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
    async fn it_is_handed_on_though_nothing_is_exported() {
        let mut headers = HeaderMap::new();
        headers.insert("traceparent", format!("00-{TRACE}-b7ad6b7169203331-01").parse().unwrap());
        headers.insert("tracestate", "shop=1".parse().unwrap());
        let trace = RequestTrace::begin(&headers, "POST", "/", "r");
        let handed_on = trace.of(async { handed_on() }).await;
        assert_eq!(handed_on["traceparent"], headers["traceparent"]);
        assert_eq!(handed_on["tracestate"], "shop=1");
        assert!(super::handed_on().is_empty(), "outside of a request");
    }
}
