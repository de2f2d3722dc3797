//! What became of the entities that were answered, counted: by outcome, and the refused ones by error code as well.
//! Every counter is there from the start, so that an alert rule finds it at zero.

use metrics::{Counter, counter};

use super::{Granted, Refusal};
use crate::meters;

/// The counters of entities.
pub(super) struct Counts {
    issued: Counter,
    resent: Counter,
    replayed: Counter,
    /// By outcome and by code, in the order of [`Refusal::EACH`].
    refused: Vec<(&'static str, Counter, Counter)>,
    /// Keyed requests that were forgotten.
    pub(super) forgotten: Counter,
}

impl Counts {
    pub(super) fn new() -> Self {
        let outcome = |name: &'static str| counter!(meters::ENTITIES.name, "outcome" => name);
        let refused = |refusal: Refusal| {
            let by_code = counter!(meters::ENTITIES_REFUSED.name, "code" => refusal.code().to_string());
            (refusal.name(), outcome(refusal.name()), by_code)
        };
        Self {
            issued: outcome("issued"),
            resent: outcome("resent"),
            replayed: outcome("replayed"),
            refused: Refusal::EACH.into_iter().map(refused).collect(),
            forgotten: counter!(meters::FORGOTTEN.name),
        }
    }

    /// One entity is about to be answered.
    pub(super) fn answered(&self, outcome: &Result<Granted, Refusal>) {
        match outcome {
            Ok(Granted { replayed: true, .. }) => self.replayed.increment(1),
            Ok(Granted { resent: true, .. }) => self.resent.increment(1),
            Ok(_) => self.issued.increment(1),
            Err(refusal) => {
                let counters = self.refused.iter().find(|(name, ..)| *name == refusal.name());
                if let Some((_, by_outcome, by_code)) = counters {
                    by_outcome.increment(1);
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
        let names: BTreeSet<_> = Refusal::EACH.map(Refusal::name).into();
        assert_eq!(names.len(), Refusal::EACH.len());
    }
}
