use std::ops::Range;

use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use crate::faults::Fault;

/// What a run does.
pub struct Plan {
    /// Of the directory with the logs and the history.
    pub name: &'static str,
    /// How often each fault is injected.
    pub rounds: usize,
    /// How long a fault lasts.
    pub fault_millis: Range<u64>,
    /// The time without a fault between two injections.
    pub pause_millis: Range<u64>,
    /// Whether the run also injects faults in pairs, and holds a lock for a minute once.
    pub is_long: bool,
    /// How many codes are uploaded for the series `PLENTY`.
    pub plenty_codes: u32,
}

/// One fault or two at once, and how long each lasts.
pub struct Injection {
    pub faults: Vec<Fault>,
    pub millis: Range<u64>,
}

impl Plan {
    /// All injections in random order, without the faults of `CHAOS_SKIP` and the one that is impossible on this machine.
    pub fn injections(&self, impossible: Option<Fault>, random: &mut StdRng) -> Vec<Injection> {
        let skipped = variable("CHAOS_SKIP").unwrap_or_default();
        let skipped: Vec<&str> = skipped.split(',').collect();
        let mut remaining: Vec<Fault> = Fault::ALL
            .into_iter()
            .filter(|fault| !skipped.contains(&fault.name()) && Some(*fault) != impossible)
            .flat_map(|fault| std::iter::repeat_n(fault, self.rounds))
            .collect();
        remaining.shuffle(random);
        let mut injections = Vec::new();
        while let Some(fault) = remaining.pop() {
            let partner = remaining.iter().rposition(|other| fault.can_combine_with(*other));
            let partner = partner.filter(|_| self.is_long && random.random_ratio(1, 3));
            let faults = std::iter::once(fault).chain(partner.map(|index| remaining.remove(index))).collect();
            injections.push(Injection { faults, millis: self.fault_millis.clone() });
        }
        if self.is_long && !skipped.contains(&Fault::Lock.name()) {
            let long_lock = Injection { faults: vec![Fault::Lock], millis: 60_000..60_001 };
            injections.insert(injections.len() / 2, long_lock);
        }
        injections
    }
}

/// An environment variable that is set and not empty.
pub fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
