//! Both verdicts on a history: that of the replay against the model, and that of the public checker.
//! A chaos run, the tests of broken builds and `make history` use it.

use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::history::History;
use crate::linearizability::{Checked, check};
use crate::replay::{Replayed, replay};

/// How many findings of each kind are printed.
const MAX_SHOWN: usize = 20;

pub struct Judgement {
    pub replay: Replayed,
    pub checked: Checked,
    replay_time: Duration,
}

impl Judgement {
    pub fn of(history: &History) -> Self {
        let began = Instant::now();
        let replay = replay(history);
        Self { replay, replay_time: began.elapsed(), checked: check(history) }
    }

    pub fn acquits(&self) -> bool {
        self.findings().all(|(_, findings)| findings.is_empty())
    }

    pub fn findings(&self) -> impl Iterator<Item = (&'static str, &[String])> {
        let Replayed { duplicates, divergences, .. } = &self.replay;
        [("duplicate", duplicates), ("divergence", divergences), ("not linearizable", &self.checked.violations)]
            .into_iter()
            .map(|(kind, findings)| (kind, findings.as_slice()))
    }
}

impl fmt::Display for Judgement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Replayed { duplicates, divergences, coupons, operations, answers } = &self.replay;
        let Checked { partitions, operations: checked, violations, checker, took } = &self.checked;
        writeln!(
            f,
            "replay: duplicates {}, divergence {}; {coupons} coupons, {operations} operations, {answers} answers in {:.1} s",
            duplicates.len(),
            divergences.len(),
            self.replay_time.as_secs_f32()
        )?;
        write!(
            f,
            "{checker}: violations {}; {checked} operations on {partitions} objects in {:.1} s",
            violations.len(),
            took.as_secs_f32()
        )?;
        for (kind, findings) in self.findings() {
            for finding in findings.iter().take(MAX_SHOWN) {
                write!(f, "\n{kind}: {finding}")?;
            }
        }
        Ok(())
    }
}

/// `make history`: judges a file.
#[test]
#[ignore = "needs a file: make history FILE=..."]
fn a_history_holds() {
    let path = std::env::var("HISTORY").unwrap();
    let judgement = Judgement::of(&History::read(Path::new(&path)).unwrap());
    println!("{judgement}");
    assert!(judgement.acquits(), "the history does not hold");
}
