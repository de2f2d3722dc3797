//! Counts answered entities by outcome, refused ones also by error code, and claims of keys by what they found.
//! All counters exist from the start, so that an alert rule finds them at zero.

use metrics::{Counter, counter};
use strum::IntoEnumIterator;

use super::{Entity, Refusal};
use crate::db::{ClaimOutcome, Left};
use crate::telemetry::metrics as metric;

/// The counters.
pub(super) struct Counts {
    /// By [`Entity::name`]; of a refusal by its code as well.
    outcomes: Vec<(&'static str, Counter, Option<Counter>)>,
    /// Keyed requests that were purged.
    pub(super) purged: Counter,
    /// Claims of keys.
    pub(super) claims: ClaimCounts,
}

/// The counters of claims.
pub(super) struct ClaimCounts {
    acquired: Counter,
    complete: Counter,
    resumed: Counter,
    taken_over: Counter,
    in_progress: Counter,
    mismatch: Counter,
}

impl ClaimCounts {
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

    /// A key was claimed together with a coupon.
    pub(super) fn acquired(&self) {
        self.acquired.increment(1);
    }

    /// A claim by a statement has found this.
    pub(super) fn found(&self, outcome: &ClaimOutcome) {
        let counter = match outcome {
            ClaimOutcome::Acquired(_) => &self.acquired,
            ClaimOutcome::Resumed { left: Left::Nothing, .. } => &self.complete,
            ClaimOutcome::Resumed { left: Left::Something, .. } => &self.resumed,
            ClaimOutcome::Resumed { left: Left::Unended, .. } => &self.taken_over,
            ClaimOutcome::InProgress => &self.in_progress,
            ClaimOutcome::FingerprintMismatch => &self.mismatch,
        };
        counter.increment(1);
    }
}

impl Counts {
    pub(super) fn new() -> Self {
        let outcome = |name: &'static str| counter!(metric::ENTITIES.name, "outcome" => name);
        let granted = ["issued", "resent", "replayed"].map(|name| (name, outcome(name), None));
        let refused = Refusal::iter().map(|refusal| {
            let by_code = counter!(metric::ENTITIES_REFUSED.name, "code" => refusal.code().to_string());
            (refusal.name(), outcome(refusal.name()), Some(by_code))
        });
        Self {
            outcomes: granted.into_iter().chain(refused).collect(),
            purged: counter!(metric::KEYED_REQUESTS_PURGED.name),
            claims: ClaimCounts::new(),
        }
    }

    /// These are about to be answered.
    pub(super) fn answered(&self, entities: &[Entity]) {
        for entity in entities {
            if let Some((_, by_outcome, by_code)) = self.outcomes.iter().find(|(name, ..)| *name == entity.name()) {
                by_outcome.increment(1);
                if let Some(by_code) = by_code {
                    by_code.increment(1);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_refusal_has_a_counter_of_its_own() {
        let names: BTreeSet<_> = Refusal::iter().map(Refusal::name).collect();
        let counters = Counts::new().outcomes;
        assert_eq!(names.len(), Refusal::iter().count());
        assert!(names.iter().all(|name| counters.iter().any(|(counted, ..)| counted == name)));
    }
}
