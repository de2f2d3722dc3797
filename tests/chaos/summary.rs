//! What a run prints at its end.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use crate::faults::Fault;
use crate::tills::{CLIENT_TIMEOUT, CallStats, ViolationKind};
use crate::verdict::{SAMPLE_SIZE, Totals};

const MAX_SHOWN_PER_KIND: usize = 20;

/// The faults that a run has injected.
#[derive(Default)]
pub struct InjectionStats {
    /// How often each fault was injected, and the longest recovery from it.
    faults: BTreeMap<Fault, (usize, Duration)>,
    /// How often two faults were injected at once.
    pub pairs: usize,
    /// A fault that is impossible on this machine.
    pub skipped: Option<Fault>,
}

impl InjectionStats {
    pub fn add(&mut self, fault: Fault, recovery: Duration) {
        let (times, longest) = self.faults.entry(fault).or_default();
        *times += 1;
        *longest = (*longest).max(recovery);
    }
}

pub fn table(injected: &InjectionStats, calls: &CallStats, totals: &Totals, took: Duration) -> String {
    let mut table = format!("\n{:<14}{:>6}{:>18}\n", "fault", "times", "longest recovery");
    for (fault, (times, longest)) in &injected.faults {
        writeln!(table, "{:<14}{times:>6}{:>16.2} s", fault.name(), longest.as_secs_f32()).unwrap();
    }
    if let Some(fault) = injected.skipped {
        writeln!(table, "{:<14}{:>6}{:>18}", fault.name(), 0, "skipped").unwrap();
    }
    let faults: usize = injected.faults.values().map(|(times, _)| times).sum();
    writeln!(table, "{faults} faults injected in {} s, {} times two at once", took.as_secs(), injected.pairs).unwrap();
    table += &call_lines(calls, totals).join("\n");
    for (message, times) in &totals.log_lines {
        write!(table, "\nlogged {times:>5} {message}").unwrap();
    }
    table
}

fn call_lines(calls: &CallStats, totals: &Totals) -> [String; 6] {
    let CallStats { attempts, hang_ups, broken_connections, timed_out, repeated, statuses, undecided, .. } = calls;
    let Totals { requests, coupons, resent, refused, unfinished, .. } = totals;
    let (longest, phase) = &calls.longest;
    let (longest, client_timeout) = (longest.as_secs_f32(), CLIENT_TIMEOUT.as_secs());
    [
        format!("{requests} requests, {attempts} attempts, {repeated} requests repeated much later"),
        format!("{coupons} coupons issued, {resent} resent; refused, by error code: {refused:?}"),
        format!("answers by status: {statuses:?}; undecided entities, by error code: {undecided:?}"),
        format!(
            "{hang_ups} hang-ups, {broken_connections} broken connections, {timed_out} calls without an answer within {client_timeout} s"
        ),
        format!("longest answer: {longest:.2} s, to a call during {phase}"),
        format!("receipts not marked as answered: {unfinished} of {}", requests.min(&SAMPLE_SIZE)),
    ]
}

/// The first violations of each kind, with the number of all.
pub fn by_kind(violations: &[(ViolationKind, String)]) -> String {
    let mut kinds: BTreeMap<ViolationKind, Vec<&str>> = BTreeMap::new();
    for (kind, violation) in violations {
        kinds.entry(*kind).or_default().push(violation);
    }
    let shown = |(kind, violations): (&ViolationKind, &Vec<&str>)| {
        let first = &violations[..violations.len().min(MAX_SHOWN_PER_KIND)];
        format!("{kind:?}, {} times:\n{}", violations.len(), first.join("\n"))
    };
    kinds.iter().map(shown).collect::<Vec<_>>().join("\n")
}
