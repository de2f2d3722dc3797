//! Requests that were answered, counted by route and status. The handles are kept: a request that goes well makes no label.
//! A path that is no route has no counter of its own: a caller chooses it.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use axum::extract::MatchedPath;
use metrics::{Counter, Histogram, SharedString, counter, histogram};

use super::ISSUE_PATH;
use crate::telemetry::metrics as metric;

/// The statuses that are answered; another would be counted all the same, only less cheaply.
const STATUSES: [u16; 14] = [200, 400, 401, 403, 404, 405, 408, 409, 413, 415, 422, 429, 500, 503];
/// Those that alert rules ask for, and that must be there before the first of them.
const FROM_THE_START: [u16; 3] = [200, 500, 503];

/// Why requests and connections are turned away before anything of them is looked at.
pub(super) static OVERLOAD: LazyLock<Counter> =
    LazyLock::new(|| counter!(metric::TURNED_AWAY.name, "reason" => "overload"));
/// The route that most requests are for.
static ISSUE: LazyLock<Arc<Route>> = LazyLock::new(|| Arc::new(Route::new(ISSUE_PATH)));
/// The others, from their first request on.
static OTHERS: RwLock<BTreeMap<String, Arc<Route>>> = RwLock::new(BTreeMap::new());
const UNMATCHED: &str = "unmatched";

/// A route, and what is counted of it.
pub(super) struct Route {
    pub(super) name: SharedString,
    duration: Histogram,
    answered: [OnceLock<Counter>; STATUSES.len()],
}

/// Has the counters there from the start.
pub(super) fn start() {
    LazyLock::force(&OVERLOAD);
    for status in FROM_THE_START {
        ISSUE.count(status, 0);
    }
}

impl Route {
    fn new(name: impl Into<SharedString>) -> Self {
        let name = name.into();
        let duration = histogram!(metric::REQUEST_DURATION.name, "route" => name.clone());
        Self { name, duration, answered: [const { OnceLock::new() }; STATUSES.len()] }
    }

    /// That of a request.
    pub(super) fn of(path: Option<&MatchedPath>) -> Arc<Self> {
        let name = path.map_or(UNMATCHED, MatchedPath::as_str);
        if name == ISSUE_PATH {
            return Arc::clone(&ISSUE);
        }
        if let Some(route) = OTHERS.read().unwrap_or_else(PoisonError::into_inner).get(name) {
            return Arc::clone(route);
        }
        let mut others = OTHERS.write().unwrap_or_else(PoisonError::into_inner);
        let route = others.entry(name.to_owned()).or_insert_with(|| Arc::new(Self::new(name.to_owned())));
        Arc::clone(route)
    }

    /// A request of this route was answered.
    pub(super) fn answered(&self, status: u16, elapsed: Duration) {
        self.count(status, 1);
        self.duration.record(elapsed);
    }

    fn count(&self, status: u16, times: u64) {
        let counter = || counter!(metric::REQUESTS.name, "route" => self.name.clone(), "status" => status.to_string());
        match STATUSES.iter().position(|known| *known == status) {
            Some(index) => self.answered[index].get_or_init(counter).increment(times),
            None => counter().increment(times),
        }
    }

    /// It failed as a whole.
    pub(super) fn refused(&self, code: u16, reason: &'static str) {
        let (route, code) = (self.name.clone(), code.to_string());
        counter!(metric::REQUESTS_REFUSED.name, "route" => route, "code" => code, "reason" => reason).increment(1);
    }
}
