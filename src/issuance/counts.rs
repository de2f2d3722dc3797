//! What became of the entities that were answered, counted: by outcome, and the refused ones by error code as well.
//! Every counter is there from the start, so that an alert rule finds it at zero.

use metrics::{Counter, counter};
use strum::IntoEnumIterator;

use super::{Entity, Refusal};
use crate::meters;

/// The counters of entities.
pub(super) struct Counts {
    /// By [`Entity::name`]; of a refusal by its code as well.
    outcomes: Vec<(&'static str, Counter, Option<Counter>)>,
    /// Keyed requests that were purged.
    pub(super) purged: Counter,
}

impl Counts {
    pub(super) fn new() -> Self {
        let outcome = |name: &'static str| counter!(meters::ENTITIES.name, "outcome" => name);
        let granted = ["issued", "resent", "replayed"].map(|name| (name, outcome(name), None));
        let refused = Refusal::iter().map(|refusal| {
            let by_code = counter!(meters::ENTITIES_REFUSED.name, "code" => refusal.code().to_string());
            (refusal.name(), outcome(refusal.name()), Some(by_code))
        });
        Self { outcomes: granted.into_iter().chain(refused).collect(), purged: counter!(meters::FORGOTTEN.name) }
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
