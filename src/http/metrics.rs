//! Counts the answered requests by route and status. The handles are cached, so that a successful request builds no label.
//! All paths that match no route share one counter, since callers choose them.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use axum::extract::MatchedPath;
use metrics::{Counter, Histogram, SharedString, counter, histogram};

use super::paths;
use crate::telemetry::metrics as metric;

/// The statuses whose counters are cached. Any other is counted as well, at a higher cost.
const STATUSES: [u16; 14] = [200, 400, 401, 403, 404, 405, 408, 409, 413, 415, 422, 429, 500, 503];
/// The statuses that alert rules query: their series must exist before the first such response.
const REGISTERED_STATUSES: [u16; 3] = [200, 500, 503];
const UNMATCHED: &str = "unmatched";

/// Requests that the service refuses because too many are waiting.
pub(super) static OVERLOAD: LazyLock<Counter> =
    LazyLock::new(|| counter!(metric::TURNED_AWAY.name, "reason" => "overload"));
/// Most requests go to this route, so it needs no lookup.
static ISSUE: LazyLock<Arc<RouteMetrics>> = LazyLock::new(|| Arc::new(RouteMetrics::new(paths::ISSUE)));
static OTHERS: RwLock<BTreeMap<String, Arc<RouteMetrics>>> = RwLock::new(BTreeMap::new());

pub(super) struct RouteMetrics {
    pub(super) route: SharedString,
    duration: Histogram,
    by_status: [OnceLock<Counter>; STATUSES.len()],
}

/// Creates the counters that alert rules query.
pub(super) fn register() {
    LazyLock::force(&OVERLOAD);
    for status in REGISTERED_STATUSES {
        ISSUE.count(status, 0);
    }
}

impl RouteMetrics {
    fn new(route: impl Into<SharedString>) -> Self {
        let route = route.into();
        let duration = histogram!(metric::REQUEST_DURATION.name, "route" => route.clone());
        Self { route, duration, by_status: [const { OnceLock::new() }; STATUSES.len()] }
    }

    pub(super) fn of(path: Option<&MatchedPath>) -> Arc<Self> {
        let route = path.map_or(UNMATCHED, MatchedPath::as_str);
        if route == paths::ISSUE {
            return Arc::clone(&ISSUE);
        }
        if let Some(metrics) = OTHERS.read().unwrap_or_else(PoisonError::into_inner).get(route) {
            return Arc::clone(metrics);
        }
        let mut others = OTHERS.write().unwrap_or_else(PoisonError::into_inner);
        let metrics = others.entry(route.to_owned()).or_insert_with(|| Arc::new(Self::new(route.to_owned())));
        Arc::clone(metrics)
    }

    pub(super) fn record_response(&self, status: u16, elapsed: Duration) {
        self.count(status, 1);
        self.duration.record(elapsed);
    }

    fn count(&self, status: u16, times: u64) {
        let counter = || counter!(metric::REQUESTS.name, "route" => self.route.clone(), "status" => status.to_string());
        match STATUSES.iter().position(|known| *known == status) {
            Some(index) => self.by_status[index].get_or_init(counter).increment(times),
            None => counter().increment(times),
        }
    }

    /// Counts a request that failed as a whole.
    pub(super) fn record_failure(&self, code: u16, reason: &'static str) {
        let (route, code) = (self.route.clone(), code.to_string());
        counter!(metric::REQUESTS_REFUSED.name, "route" => route, "code" => code, "reason" => reason).increment(1);
    }
}
