//! Every metric on one page: what it is called, and what it says. Whoever counts keeps its own handle and counts where it
//! happens.
//!
//! A label has few values, and none that a caller can choose. README, "Metrics, logs and traces", has the same table.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

/// A metric. Its name ends in its unit, and in `_total` where it only grows.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// What it is called.
    pub name: &'static str,
    kind: Kind,
    help: &'static str,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

const fn counter(name: &'static str, help: &'static str) -> Metric {
    Metric { name, kind: Kind::Counter, help }
}

const fn gauge(name: &'static str, help: &'static str) -> Metric {
    Metric { name, kind: Kind::Gauge, help }
}

const fn histogram(name: &'static str, help: &'static str) -> Metric {
    Metric { name, kind: Kind::Histogram, help }
}

macro_rules! metrics_on_a_page {
    ($($constant:ident = $kind:ident($name:literal, $help:literal);)*) => {
        $(
            #[doc = $help]
            pub const $constant: Metric = $kind($name, $help);
        )*

        /// All of them.
        pub const ALL: &[Metric] = &[$($constant),*];
    };
}

metrics_on_a_page! {
    REQUESTS = counter("coupon_issuer_requests_total", "Requests answered, by route and status.");
    REQUESTS_REFUSED = counter("coupon_issuer_requests_refused_total", "Requests that failed as a whole, by route, error code, and reason: denied of the log line, where there is one.");
    REQUEST_DURATION = histogram("coupon_issuer_request_duration_seconds", "From the request's head to the answer's, by route.");
    REQUESTS_RUNNING = gauge("coupon_issuer_requests_running", "Requests for coupons that are being worked on.");
    TURNED_AWAY = counter("coupon_issuer_turned_away_total", "Requests and connections that were turned away, by reason.");
    CONNECTIONS = gauge("coupon_issuer_connections", "Callers' connections that are open.");
    CONNECTIONS_MAX = gauge("coupon_issuer_connections_max", "Callers' connections that may be open at once.");

    ENTITIES = counter("coupon_issuer_entities_total", "Entities answered, by outcome.");
    ENTITIES_REFUSED = counter("coupon_issuer_entities_refused_total", "Entities that got no coupon, by error code.");
    KEY_CLAIMS = counter("coupon_issuer_key_claims_total", "Claims of an Idempotency-Key, by outcome.");
    KEYED_REQUESTS_PURGED = counter("coupon_issuer_keyed_requests_purged_total", "Keyed requests whose time was over and that were forgotten.");

    QUEUE_COUPONS = gauge("coupon_issuer_queue_coupons", "Coupons that wait to be written.");
    QUEUE_WAIT_ESTIMATE = gauge("coupon_issuer_queue_wait_estimate_seconds", "How long another coupon would have to wait, by which requests are turned away.");
    QUEUE_WAIT = histogram("coupon_issuer_queue_wait_seconds", "How long the first of a batch waited for it, by queue.");
    BATCH_SIZE = histogram("coupon_issuer_batch_size", "What was done in one batch, with one flush: coupons, or confirmations, by queue.");
    BATCH_DURATION = histogram("coupon_issuer_batch_duration_seconds", "A batch's call, with its transactions and its flush; of confirmations the flush alone. By queue.");
    BROKEN_BATCHES = counter("coupon_issuer_broken_batches_total", "Batches that broke midway and were settled coupon by coupon.");
    COUPON_WRITES = counter("coupon_issuer_coupon_writes_total", "Coupons that the writer was given, by outcome.");
    IN_DOUBT = counter("coupon_issuer_coupons_in_doubt_total", "Coupons of which could not be found out in time whether they are stored.");
    WRITERS = gauge("coupon_issuer_writer_connections", "The writer's connections that are up.");
    WRITERS_MAX = gauge("coupon_issuer_writer_connections_max", "The connections that the writer makes, one of them for confirmations.");

    DATABASE_CONNECTIONS = gauge("coupon_issuer_database_connections", "Connections for reads, by state: idle or used.");
    DATABASE_CONNECTIONS_MAX = gauge("coupon_issuer_database_connections_max", "Connections for reads that there may be.");
    DATABASE_WAITING = gauge("coupon_issuer_database_waiting", "Reads that wait for a connection.");
    DATABASE_ACQUIRE = histogram("coupon_issuer_database_acquire_duration_seconds", "How long a read waited for its connection.");
    DATABASE_UP = gauge("coupon_issuer_database_up", "Whether the database answered when it was asked last (every 5 seconds).");
    READY = gauge("coupon_issuer_ready", "Whether the service can serve: the database answers, its schema is known, no stop is under way.");

    AUTHENTICATIONS = counter("coupon_issuer_authentications_total", "Credentials that were checked, by scheme and outcome.");

    SERIES_REMAINING = gauge("coupon_issuer_series_remaining", "Coupons that a series can still issue, by its cap or its uploaded codes (kind); of the series that have the least left.");
    SERIES_REMAINING_RATIO = gauge("coupon_issuer_series_remaining_ratio", "The same as a share of the cap, or of the codes that were uploaded for anyone.");
    LIMITED_SERIES = gauge("coupon_issuer_limited_series", "Series with a cap or with uploaded codes (kind), by state: some are left, or they are used up.");
    LIMITED_SERIES_ORGANISATIONS = gauge("coupon_issuer_limited_series_organisations", "The organisations that those series are of.");

    BUILD_INFO = gauge("coupon_issuer_build_info", "Always 1; its labels say which version this is.");
}

/// Has each described, in the recorder that is installed.
pub fn describe() {
    for Metric { name, kind, help } in ALL.iter().copied() {
        match kind {
            Kind::Counter => describe_counter!(name, Unit::Count, help),
            Kind::Gauge => describe_gauge!(name, help),
            Kind::Histogram => describe_histogram!(name, help),
        }
    }
}

/// How many there are of something that comes and goes.
#[derive(Debug, Clone, Default)]
pub struct Level(Arc<AtomicUsize>);

/// One of them, for as long as it is held.
#[derive(Debug)]
pub struct Held(Arc<AtomicUsize>);

impl Level {
    /// One more.
    #[must_use]
    pub fn hold(&self) -> Held {
        self.0.fetch_add(1, Ordering::Relaxed);
        Held(Arc::clone(&self.0))
    }

    /// So many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_let_go_is_no_longer_counted() {
        let level = Level::default();
        let (one, two) = (level.hold(), level.hold());
        assert_eq!(level.count(), 2);
        drop((one, two));
        assert_eq!(level.count(), 0);
    }
}
