//! Every metric of the service. The code that counts keeps its own handle.
//!
//! A label has few values, and callers cannot choose them. docs/observability.md has the same table.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

/// A metric. Its name ends in its unit, and in `_total` where it only grows.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// As Prometheus exports it.
    pub name: &'static str,
    /// Its type in Prometheus.
    pub kind: Kind,
    help: &'static str,
}

/// The type of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// A distribution.
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

macro_rules! define_metrics {
    ($($constant:ident = $kind:ident($name:literal, $help:literal);)*) => {
        $(
            #[doc = $help]
            pub const $constant: Metric = $kind($name, $help);
        )*

        /// All metrics.
        pub const ALL: &[Metric] = &[$($constant),*];
    };
}

define_metrics! {
    REQUESTS = counter("coupon_issuer_requests_total", "Requests answered, by route and status.");
    REQUESTS_REFUSED = counter("coupon_issuer_requests_refused_total", "Requests that failed as a whole, by route, error code, and reason (the field denied of the log line, if it has one).");
    REQUEST_DURATION = histogram("coupon_issuer_request_duration_seconds", "Time from the head of a request to the head of its answer, by route.");
    REQUESTS_RUNNING = gauge("coupon_issuer_requests_running", "Coupon requests in progress.");
    TURNED_AWAY = counter("coupon_issuer_turned_away_total", "Requests and connections rejected to shed load, by reason.");
    CONNECTIONS = gauge("coupon_issuer_connections", "Open connections of callers.");
    CONNECTIONS_MAX = gauge("coupon_issuer_connections_max", "Limit on the open connections of callers.");

    ENTITIES = counter("coupon_issuer_entities_total", "Entities answered, by outcome.");
    ENTITIES_REFUSED = counter("coupon_issuer_entities_refused_total", "Entities that got no coupon, by error code.");
    KEY_CLAIMS = counter("coupon_issuer_key_claims_total", "Claims of an Idempotency-Key, by outcome.");
    KEYED_REQUESTS_PURGED = counter("coupon_issuer_keyed_requests_purged_total", "Keyed requests purged after their retention time.");

    QUEUE_COUPONS = gauge("coupon_issuer_queue_coupons", "Coupons that wait to be written.");
    QUEUE_WAIT_ESTIMATE = gauge("coupon_issuer_queue_wait_estimate_seconds", "Estimated wait of a new coupon in the queue. Requests are rejected when it is too long.");
    QUEUE_WAIT = histogram("coupon_issuer_queue_wait_seconds", "Time that the first item of a batch waited in the queue, by queue.");
    BATCH_SIZE = histogram("coupon_issuer_batch_size", "Items in a batch (coupons, or confirmations), by queue.");
    BATCH_DURATION = histogram("coupon_issuer_batch_duration_seconds", "Duration of a batch, by queue: the call with its transactions and its flush; for confirmations, the flush.");
    BROKEN_BATCHES = counter("coupon_issuer_broken_batches_total", "Batches that broke midway and were settled coupon by coupon.");
    COUPON_WRITES = counter("coupon_issuer_coupon_writes_total", "Coupons passed to the writer, by outcome.");
    IN_DOUBT = counter("coupon_issuer_coupons_in_doubt_total", "Coupons for which the service could not find out in time whether they are stored.");
    WRITERS = gauge("coupon_issuer_writer_connections", "Open connections of the writer.");
    WRITERS_MAX = gauge("coupon_issuer_writer_connections_max", "Connections that the writer opens, one of them for confirmations.");

    DATABASE_CONNECTIONS = gauge("coupon_issuer_database_connections", "Open connections for reads, by state (idle, used).");
    DATABASE_CONNECTIONS_MAX = gauge("coupon_issuer_database_connections_max", "Limit on the connections for reads.");
    DATABASE_WAITING = gauge("coupon_issuer_database_waiting", "Reads that wait for a connection.");
    DATABASE_ACQUIRE = histogram("coupon_issuer_database_acquire_duration_seconds", "Time that a read waited for a connection.");
    DATABASE_UP = gauge("coupon_issuer_database_up", "1 if the database answered the last check (every 5 seconds), else 0.");
    READY = gauge("coupon_issuer_ready", "1 if the service is ready: the database answers and takes writes, its schema is supported, and the service is not stopping.");

    AUTHENTICATIONS = counter("coupon_issuer_authentications_total", "Credentials checked, by scheme and outcome.");

    SERIES_REMAINING = gauge("coupon_issuer_series_remaining", "Coupons that a series can still issue, by kind of limit (cap, or uploaded codes). Only for the series with the least remaining.");
    SERIES_REMAINING_RATIO = gauge("coupon_issuer_series_remaining_ratio", "The remaining coupons of a series as a share of its cap, or of its codes uploaded for any customer.");
    LIMITED_SERIES = gauge("coupon_issuer_limited_series", "Series with a cap or with uploaded codes, by kind of limit and by state: coupons remain, or all are used up.");
    LIMITED_SERIES_ORGANISATIONS = gauge("coupon_issuer_limited_series_organisations", "Organisations with such series, by the same labels.");

    BUILD_INFO = gauge("coupon_issuer_build_info", "Always 1. The labels hold the version and the revision.");
}

/// Registers the help texts in the installed recorder.
pub(super) fn describe() {
    for Metric { name, kind, help } in ALL.iter().copied() {
        match kind {
            Kind::Counter => describe_counter!(name, Unit::Count, help),
            Kind::Gauge => describe_gauge!(name, help),
            Kind::Histogram => describe_histogram!(name, help),
        }
    }
}

/// Counts how many of something are active.
#[derive(Debug, Clone, Default)]
pub(crate) struct ActiveCount(Arc<AtomicUsize>);

/// Counts as one until it is dropped.
#[derive(Debug)]
pub(crate) struct ActiveGuard(Arc<AtomicUsize>);

impl ActiveCount {
    #[must_use]
    pub(crate) fn enter(&self) -> ActiveGuard {
        self.0.fetch_add(1, Ordering::Relaxed);
        ActiveGuard(Arc::clone(&self.0))
    }

    #[must_use]
    pub(crate) fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for ActiveGuard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_guard_no_longer_counts() {
        let active = ActiveCount::default();
        let guards = (active.enter(), active.enter());
        assert_eq!(active.count(), 2);
        drop(guards);
        assert_eq!(active.count(), 0);
    }
}
