use std::collections::{BTreeMap, HashMap};

use metrics::{Counter, Histogram, counter, histogram};
use strum::VariantNames;

use super::outcome::{Guard, WriteOutcome};
use super::work::Work;
use crate::telemetry::metrics as metric;

/// The metrics of one queue.
#[derive(Debug, Clone)]
pub(super) struct QueueMetrics {
    pub(super) wait: Histogram,
    pub(super) batch_size: Histogram,
    pub(super) batch_duration: Histogram,
    pub(super) broken_batches: Counter,
    pub(super) coupons: CouponCounters,
}

impl QueueMetrics {
    pub(super) fn new(queue: &'static str) -> Self {
        Self {
            wait: histogram!(metric::QUEUE_WAIT.name, "queue" => queue),
            batch_size: histogram!(metric::BATCH_SIZE.name, "queue" => queue),
            batch_duration: histogram!(metric::BATCH_DURATION.name, "queue" => queue),
            broken_batches: counter!(metric::BROKEN_BATCHES.name),
            coupons: CouponCounters::new(),
        }
    }
}

/// Counts coupons by outcome. All counters exist from the start, so that an alert rule finds them at zero.
#[derive(Debug, Clone)]
pub(super) struct CouponCounters {
    by_label: BTreeMap<&'static str, Counter>,
    in_doubt: Counter,
}

impl CouponCounters {
    fn new() -> Self {
        let is_of_coupons = |name: &&str| !["guard_failed", "flushed", "not_flushed"].contains(name);
        let labels = WriteOutcome::VARIANTS.iter().chain(Guard::VARIANTS).copied().filter(is_of_coupons);
        let by_label = labels.map(|label| (label, counter!(metric::COUPON_WRITES.name, "outcome" => label))).collect();
        Self { by_label, in_doubt: counter!(metric::IN_DOUBT.name) }
    }

    /// Increments each counter once a batch, not once a coupon: this is the hot path.
    pub(super) fn add(&self, works: &[Work], outcomes: &[WriteOutcome]) {
        let mut coupons: HashMap<&str, u64> = HashMap::new();
        for (_, outcome) in works.iter().zip(outcomes).filter(|(work, _)| work.coupon().is_some()) {
            *coupons.entry(label(outcome)).or_default() += 1;
        }
        for (label, count) in coupons {
            if let Some(counter) = self.by_label.get(label) {
                counter.increment(count);
            }
            if label == <&str>::from(WriteOutcome::InDoubt) {
                self.in_doubt.increment(count);
            }
        }
    }
}

fn label(outcome: &WriteOutcome) -> &'static str {
    match outcome {
        WriteOutcome::GuardFailed(guard) => guard.into(),
        other => other.into(),
    }
}
