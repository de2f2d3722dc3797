//! All counters exist from the start, so that an alert rule finds them at zero.

use metrics::{Counter, counter};
use strum::IntoEnumIterator;

use super::outcome::Entity;
use super::refusal::Refusal;
use crate::db::{ClaimOutcome, Resumption};
use crate::telemetry::metrics as metric;

pub(super) struct IssuanceMetrics {
    entities: Vec<EntityCounters>,
    /// Purged keyed requests and natural keys.
    pub(super) purged: Counter,
    pub(super) claims: ClaimMetrics,
}

/// The counters of entities with the same outcome.
struct EntityCounters {
    /// [`Entity::name`].
    outcome: &'static str,
    by_outcome: Counter,
    /// Only refusals have an error code.
    by_code: Option<Counter>,
}

/// The counters of claims of idempotency keys, by outcome.
pub(super) struct ClaimMetrics {
    acquired: Counter,
    complete: Counter,
    resumed: Counter,
    taken_over: Counter,
    in_progress: Counter,
    mismatch: Counter,
}

impl ClaimMetrics {
    fn new() -> Self {
        let outcome = |name: &'static str| counter!(metric::KEY_CLAIMS.name, "outcome" => name);
        Self {
            acquired: outcome("acquired"),
            complete: outcome("complete"),
            resumed: outcome("resumed"),
            taken_over: outcome("taken_over"),
            in_progress: outcome("in_progress"),
            mismatch: outcome("mismatch"),
        }
    }

    /// Records a claim that was made together with a coupon.
    pub(super) fn record_acquired(&self) {
        self.acquired.increment(1);
    }

    /// Records a claim that was made by a statement of its own.
    pub(super) fn record(&self, outcome: &ClaimOutcome) {
        let counter = match outcome {
            ClaimOutcome::Acquired(_) => &self.acquired,
            ClaimOutcome::Resumed { resumption: Resumption::Complete, .. } => &self.complete,
            ClaimOutcome::Resumed { resumption: Resumption::Incomplete, .. } => &self.resumed,
            ClaimOutcome::Resumed { resumption: Resumption::TakenOver, .. } => &self.taken_over,
            ClaimOutcome::InProgress => &self.in_progress,
            ClaimOutcome::FingerprintMismatch => &self.mismatch,
        };
        counter.increment(1);
    }
}

impl IssuanceMetrics {
    pub(super) fn new() -> Self {
        let by_outcome = |name: &'static str| counter!(metric::ENTITIES.name, "outcome" => name);
        let granted = ["issued", "resent", "replayed"].map(|outcome| EntityCounters {
            outcome,
            by_outcome: by_outcome(outcome),
            by_code: None,
        });
        let refused = Refusal::iter().map(|refusal| EntityCounters {
            outcome: refusal.name(),
            by_outcome: by_outcome(refusal.name()),
            by_code: Some(counter!(metric::ENTITIES_REFUSED.name, "code" => refusal.code().to_string())),
        });
        Self {
            entities: granted.into_iter().chain(refused).collect(),
            purged: counter!(metric::KEYED_REQUESTS_PURGED.name),
            claims: ClaimMetrics::new(),
        }
    }

    /// Records the entities of an answer.
    pub(super) fn record_entities(&self, entities: &[Entity]) {
        for entity in entities {
            let Some(counters) = self.entities.iter().find(|counters| counters.outcome == entity.name()) else {
                continue;
            };
            counters.by_outcome.increment(1);
            if let Some(by_code) = &counters.by_code {
                by_code.increment(1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_refusal_has_its_own_counter() {
        let names: BTreeSet<_> = Refusal::iter().map(Refusal::name).collect();
        let counters = IssuanceMetrics::new().entities;
        assert_eq!(names.len(), Refusal::iter().count());
        assert!(names.iter().all(|name| counters.iter().any(|counters| counters.outcome == *name)));
    }
}
