//! Around every request: its id, the headers of every answer, one log line and its metrics.
//! No header or body is ever logged: either may hold a secret.

use std::sync::Arc;

use axum::extract::{MatchedPath, Request, State};
use axum::http::header::CONNECTION;
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use tokio::time::Instant;
use tracing::Instrument;
use uuid::Uuid;

use super::address::ClientAddress;
use super::counts::Route;
use super::errors::{Denied, Failure};
use super::{Http, security_headers};
use crate::model::Caller;
use crate::telemetry::traces::RequestTrace;

const CAP_REQUEST_ID: HeaderName = HeaderName::from_static("x-cap-request-id");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// What clients of the platform's own look for.
const CAP_REQUESTID: HeaderName = HeaderName::from_static("x-cap-requestid");

/// The id of a request: the caller's own if it is well formed, else a new one (contract 2).
#[derive(Debug, Clone)]
pub(super) struct RequestId(pub(super) Arc<str>);

/// What became of the entities of a request, for its log line.
#[derive(Debug, Clone)]
pub(super) struct Counts {
    pub(super) total: usize,
    pub(super) issued: usize,
    pub(super) resent: usize,
    pub(super) replayed: usize,
    pub(super) failures: usize,
    /// Of each failure its series and error code, as far as a line should hold them.
    pub(super) refused: Option<String>,
}

pub(super) async fn request_log(State(http): State<Arc<Http>>, mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let address = ClientAddress::find(request.extensions(), request.headers(), &http.settings);
    request.extensions_mut().insert(address);
    let id: Arc<str> = request_id(&request).into();
    let route = Route::of(request.extensions().get::<MatchedPath>());
    let method = request.method().clone();
    let span = tracing::info_span!("request", request_id = %id);
    request.extensions_mut().insert(RequestId(Arc::clone(&id)));

    // Orchestrators ask every few seconds; their questions are no news.
    let is_news = !matches!(&*route.name, "/healthz" | "/readyz");
    let trace = is_news.then(|| RequestTrace::begin(request.headers(), method.as_str(), &route.name, &id));
    let work = next.run(request).instrument(span);
    let mut response = match &trace {
        Some(trace) => trace.of(work).await,
        None => work.await,
    };

    security_headers::add(response.headers_mut(), http.settings.public_url.as_deref());
    if let Ok(value) = HeaderValue::from_str(&id) {
        for name in [CAP_REQUEST_ID, REQUEST_ID, CAP_REQUESTID] {
            response.headers_mut().insert(name, value.clone());
        }
    }
    if http.readiness.is_draining() {
        // Callers that keep their connection are to go on elsewhere.
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    count(&route, &response, started);
    let line = Line { request_id: &id, method: method.as_str(), route: &route.name, from: address, started };
    line.log(&response, trace.as_ref());
    response
}

fn count(route: &Route, response: &Response, started: Instant) {
    let status = response.status();
    route.answered(status.as_u16(), started.elapsed());
    if status.is_client_error() || status.is_server_error() {
        let (failure, denied) = (response.extensions().get::<Failure>(), response.extensions().get::<Denied>());
        let code = failure.map_or(status.as_u16(), |failure| failure.0);
        route.refused(code, denied.map_or("", |denied| denied.0));
    }
}

/// What the line says of a request, whatever it was answered. It names the request itself, outside of its span: that is the
/// cheaper way, and every request takes it.
struct Line<'a> {
    request_id: &'a str,
    method: &'a str,
    route: &'a str,
    from: ClientAddress,
    started: Instant,
}

impl Line<'_> {
    fn log(&self, response: &Response, trace: Option<&RequestTrace>) {
        let Self { request_id, method, route, from, started } = self;
        let status = response.status().as_u16();
        let Some(trace) = trace else {
            tracing::debug!(method, route, status, "answered");
            return;
        };
        let caller = response.extensions().get::<Arc<Caller>>();
        let org_id = caller.map(|caller| caller.org_id.0);
        trace.answered(status, org_id);
        let counts = response.extensions().get::<Counts>();
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
            address = denied.map(|_| tracing::field::display(from.0)),
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

/// Up to 128 characters that can stand in a log or a header as they are.
fn is_well_formed(id: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/+=".contains(&byte);
    (1..=128).contains(&id.len()) && id.bytes().all(plain)
}
