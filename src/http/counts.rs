//! Requests that were answered, counted by route and status. The handles are kept: a request that goes well makes no label.
//! A path that is no route has no counter of its own: a caller chooses it.

use std::sync::{LazyLock, OnceLock};
use std::time::Duration;

use axum::extract::MatchedPath;
use metrics::{Counter, Histogram, counter, histogram};

use super::{ISSUE_PATH, PUBLIC, READING};
use crate::meters;

/// The statuses that are answered; another would be counted all the same, only less cheaply.
const STATUSES: [u16; 14] = [200, 400, 401, 403, 404, 405, 408, 409, 413, 415, 422, 429, 500, 503];
/// Those that alert rules ask for, and that must be there before the first of them.
const FROM_THE_START: [u16; 3] = [200, 500, 503];

/// Why requests and connections are turned away before anything of them is looked at.
pub(super) static OVERLOAD: LazyLock<Counter> =
    LazyLock::new(|| counter!(meters::TURNED_AWAY.name, "reason" => "overload"));
/// As [`OVERLOAD`].
pub(super) static TOO_MANY_CONNECTIONS: LazyLock<Counter> =
    LazyLock::new(|| counter!(meters::TURNED_AWAY.name, "reason" => "connections"));

static ROUTES: LazyLock<Vec<Route>> = LazyLock::new(|| {
    let others = READING.into_iter().chain(PUBLIC).chain([UNMATCHED]);
    std::iter::once(ISSUE_PATH).chain(others).map(Route::new).collect()
});
const UNMATCHED: &str = "unmatched";

/// A route, and what is counted of it.
pub(super) struct Route {
    pub(super) name: &'static str,
    duration: Histogram,
    answered: [OnceLock<Counter>; STATUSES.len()],
}

/// Has the counters there from the start.
pub(super) fn start() {
    LazyLock::force(&OVERLOAD);
    LazyLock::force(&TOO_MANY_CONNECTIONS);
    if let Some(issue) = ROUTES.first() {
        for status in FROM_THE_START {
            issue.count(status, 0);
        }
    }
    // Of no use but to be there: what a request was refused for is not known before.
    counter!(meters::REQUESTS_REFUSED.name, "route" => ISSUE_PATH, "code" => "500", "reason" => "").increment(0);
}

impl Route {
    fn new(name: &'static str) -> Self {
        let duration = histogram!(meters::REQUEST_DURATION.name, "route" => name);
        Self { name, duration, answered: [const { OnceLock::new() }; STATUSES.len()] }
    }

    /// That of a request.
    pub(super) fn of(path: Option<&MatchedPath>) -> Option<&'static Self> {
        let name = path.map_or(UNMATCHED, MatchedPath::as_str);
        ROUTES.iter().find(|route| route.name == name).or_else(|| ROUTES.last())
    }

    /// A request of this route was answered.
    pub(super) fn answered(&self, status: u16, elapsed: Duration) {
        self.count(status, 1);
        self.duration.record(elapsed);
    }

    fn count(&self, status: u16, times: u64) {
        let counter = || counter!(meters::REQUESTS.name, "route" => self.name, "status" => status.to_string());
        match STATUSES.iter().position(|known| *known == status) {
            Some(index) => self.answered[index].get_or_init(counter).increment(times),
            None => counter().increment(times),
        }
    }

    /// It failed as a whole.
    pub(super) fn refused(&self, code: u16, reason: &'static str) {
        let labels = [("route", self.name.into()), ("code", code.to_string().into()), ("reason", reason.into())];
        counter!(meters::REQUESTS_REFUSED.name, &labels as &[(&'static str, metrics::SharedString)]).increment(1);
    }
}
