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
use super::errors::Denied;
use super::{Http, security_headers};
use crate::model::Caller;

const CAP_REQUEST_ID: HeaderName = HeaderName::from_static("x-cap-request-id");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The id of a request: the caller's own if it is well formed, else a new one (contract 2).
#[derive(Debug, Clone)]
pub(super) struct RequestId(pub(super) Arc<str>);

/// What became of the entities of a request, for its log line.
#[derive(Debug, Clone)]
pub(super) struct Counts {
    pub(super) total: usize,
    pub(super) failures: usize,
    /// Of each failure its series and error code, as far as a line should hold them.
    pub(super) refused: Option<String>,
}

pub(super) async fn request_log(State(http): State<Arc<Http>>, mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let address = ClientAddress::find(request.extensions(), request.headers(), &http.trusted_proxies);
    request.extensions_mut().insert(address);
    let id: Arc<str> = request_id(&request).into();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let method = request.method().clone();
    let span = tracing::info_span!("request", request_id = %id);
    request.extensions_mut().insert(RequestId(Arc::clone(&id)));

    let mut response = next.run(request).instrument(span).await;

    security_headers::add(response.headers_mut(), http.public_url.as_deref());
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(CAP_REQUEST_ID, value.clone());
        response.headers_mut().insert(REQUEST_ID, value);
    }
    if http.readiness.is_draining() {
        // Callers that keep their connection are to go on elsewhere.
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    let route = route.as_ref().map_or("unmatched", MatchedPath::as_str);
    log(&id, method.as_str(), route, address, &response, started);
    response
}

/// The line names the request itself, outside of its span: that is the cheaper way, and every request takes it.
fn log(request_id: &str, method: &str, route: &str, from: ClientAddress, response: &Response, started: Instant) {
    let status = response.status().as_u16();
    let elapsed = started.elapsed();
    let labels = [("route", route.to_owned()), ("status", status.to_string())];
    metrics::counter!("coupon_issuer_requests_total", &labels).increment(1);
    metrics::histogram!("coupon_issuer_request_duration_seconds", "route" => route.to_owned()).record(elapsed);

    // Orchestrators ask every few seconds; their questions are no news.
    if matches!(route, "/healthz" | "/readyz") {
        tracing::debug!(method, route, status, "answered");
        return;
    }
    let caller = response.extensions().get::<Arc<Caller>>();
    let counts = response.extensions().get::<Counts>();
    let denied = response.extensions().get::<Denied>();
    tracing::info!(
        request_id,
        method,
        route,
        status,
        org_id = caller.map(|caller| caller.org_id.0),
        till_id = caller.map(|caller| caller.till_id.as_str()),
        denied = denied.map(|denied| denied.0),
        address = denied.map(|_| tracing::field::display(from.0)),
        total = counts.map(|counts| counts.total),
        issued = counts.map(|counts| counts.total - counts.failures),
        failures = counts.map(|counts| counts.failures),
        refused = counts.and_then(|counts| counts.refused.as_deref()),
        ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
        "answered"
    );
}

fn request_id(request: &Request) -> String {
    let given = [CAP_REQUEST_ID, REQUEST_ID].iter().find_map(|name| {
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
