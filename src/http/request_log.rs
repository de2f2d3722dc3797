//! The middleware around every request: its id, the headers of every response, one log line and the metrics.
//! It never logs a header or a body: either may hold a secret.

use std::sync::Arc;

use axum::extract::{MatchedPath, Request, State};
use axum::http::header::CONNECTION;
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use tokio::time::Instant;
use tracing::Instrument;
use uuid::Uuid;

use super::client_ip::ClientIp;
use super::errors::{Denied, ErrorCode};
use super::metrics::RouteMetrics;
use super::security_headers;
use super::state::Http;
use crate::model::Caller;
use crate::telemetry::traces::RequestTrace;

const CAP_REQUEST_ID: HeaderName = HeaderName::from_static("x-cap-request-id");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The platform's own clients read this one.
const CAP_REQUESTID: HeaderName = HeaderName::from_static("x-cap-requestid");

/// The id of a request: the caller's own if it is well formed, else a new one (contract 2).
#[derive(Debug, Clone)]
pub(super) struct RequestId(pub(super) Arc<str>);

/// The outcomes of a request's entities, for its log line.
#[derive(Debug, Clone)]
pub(super) struct EntityCounts {
    pub(super) total: usize,
    pub(super) issued: usize,
    pub(super) resent: usize,
    pub(super) replayed: usize,
    pub(super) failures: usize,
    /// Series and error code of the first failures: `104:5001 999:707`.
    pub(super) refused: Option<String>,
}

pub(super) async fn request_log(State(http): State<Arc<Http>>, mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let client_ip = ClientIp::find(request.extensions(), request.headers(), &http.settings);
    request.extensions_mut().insert(client_ip);
    let id: Arc<str> = request_id(&request).into();
    let metrics = RouteMetrics::of(request.extensions().get::<MatchedPath>());
    let method = request.method().clone();
    let span = tracing::info_span!("request", request_id = %id);
    request.extensions_mut().insert(RequestId(Arc::clone(&id)));

    // Orchestrators probe every few seconds: such a request has no trace, and its log line has level DEBUG.
    let is_probe = matches!(&*metrics.route, "/healthz" | "/readyz");
    let trace = (!is_probe).then(|| RequestTrace::begin(request.headers(), method.as_str(), &metrics.route, &id));
    let work = next.run(request).instrument(span);
    let mut response = match &trace {
        Some(trace) => trace.run(work).await,
        None => work.await,
    };

    add_headers(&http, &id, &mut response);
    record(&metrics, &response, started);
    let line = Line { request_id: &id, method: method.as_str(), route: &metrics.route, client_ip, started };
    line.log(&response, trace.as_ref());
    response
}

fn add_headers(http: &Http, id: &str, response: &mut Response) {
    security_headers::add(response.headers_mut(), http.settings.public_url.as_deref());
    if let Ok(value) = HeaderValue::from_str(id) {
        for name in [CAP_REQUEST_ID, REQUEST_ID, CAP_REQUESTID] {
            response.headers_mut().insert(name, value.clone());
        }
    }
    if http.readiness.is_draining() {
        // Clients with a kept-alive connection should reconnect, to another replica.
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
}

fn record(metrics: &RouteMetrics, response: &Response, started: Instant) {
    let status = response.status();
    metrics.record_response(status.as_u16(), started.elapsed());
    if status.is_client_error() || status.is_server_error() {
        let (code, denied) = (response.extensions().get::<ErrorCode>(), response.extensions().get::<Denied>());
        let code = code.map_or(status.as_u16(), |code| code.0);
        metrics.record_failure(code, denied.map_or("", |denied| denied.0));
    }
}

/// The log line of a request. It has the request id as a field of its own and is logged outside of the request's span, as that
/// is cheaper.
struct Line<'a> {
    request_id: &'a str,
    method: &'a str,
    route: &'a str,
    client_ip: ClientIp,
    started: Instant,
}

impl Line<'_> {
    fn log(&self, response: &Response, trace: Option<&RequestTrace>) {
        let Self { request_id, method, route, client_ip, started } = self;
        let status = response.status().as_u16();
        let Some(trace) = trace else {
            tracing::debug!(method, route, status, "answered");
            return;
        };
        let caller = response.extensions().get::<Arc<Caller>>();
        let org_id = caller.map(|caller| caller.org_id.0);
        trace.set_answer(status, org_id);
        let counts = response.extensions().get::<EntityCounts>();
        let denied = response.extensions().get::<Denied>();
        tracing::info!(
            request_id,
            trace_id = trace.trace_id().map(tracing::field::display),
            method,
            route,
            status,
            org_id,
            till_id = caller.and_then(|caller| caller.till_id.as_deref()),
            store_id = caller.map(|caller| caller.store_id.0),
            client = caller.and_then(|caller| caller.client_key()),
            attributed = caller.and_then(|caller| caller.is_attributed.then_some(true)),
            denied = denied.map(|denied| denied.0),
            address = denied.map(|_| tracing::field::display(client_ip.0)),
            total = counts.map(|counts| counts.total),
            issued = counts.map(|counts| counts.issued),
            resent = counts.map(|counts| counts.resent),
            replayed = counts.map(|counts| counts.replayed),
            failures = counts.map(|counts| counts.failures),
            refused = counts.and_then(|counts| counts.refused.as_deref()),
            ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            "answered"
        );
    }
}

fn request_id(request: &Request) -> String {
    let given = [CAP_REQUEST_ID, REQUEST_ID, CAP_REQUESTID].iter().find_map(|name| {
        let id = request.headers().get(name)?.to_str().ok()?;
        is_well_formed(id).then(|| id.to_owned())
    });
    given.unwrap_or_else(|| Uuid::new_v4().to_string())
}

/// Up to 128 characters that need no escape in a log or a header.
fn is_well_formed(id: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/+=".contains(&byte);
    (1..=128).contains(&id.len()) && id.bytes().all(is_allowed)
}
