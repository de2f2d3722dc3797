//! The counter of a series with a cap.
//! A refusal for a reason that the contract checks after the cap proves that the cap was not reached.

use super::operations::{Operation, Outcome};
use super::rules::{CAP_REACHED, GAP, POOL_EMPTY, Settings, is};
use super::search::{Object, Timed};
use crate::history::Answer;

#[derive(Debug)]
pub struct Cap;

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Counter {
    pub issued: i64,
    /// -1 means unlimited.
    pub cap: i64,
    /// The number of the change of settings that has set the cap.
    pub version: usize,
}

impl Counter {
    const fn has_room(&self) -> bool {
        self.cap < 0 || self.issued < self.cap
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Issued,
    CapReached,
    /// A refusal for a reason that is checked only if the cap is not reached.
    HasRoom,
    /// An unsettled operation. It issues a coupon if it can: to place it last is the same as no effect.
    Unknown,
    Apply {
        version: usize,
        cap: i64,
    },
}

impl Object for Cap {
    type State = Counter;
    type Step = Step;

    fn apply(step: &Step, counter: &Counter) -> Option<Counter> {
        let Counter { issued, version, .. } = *counter;
        let has_room = counter.has_room();
        match *step {
            Step::Issued | Step::Unknown if has_room => Some(Counter { issued: issued + 1, ..*counter }),
            Step::Issued => None,
            Step::CapReached => (!has_room).then(|| counter.clone()),
            Step::HasRoom => has_room.then(|| counter.clone()),
            Step::Apply { version: later, cap } if later > version => Some(Counter { issued, cap, version: later }),
            Step::Unknown | Step::Apply { .. } => Some(counter.clone()),
        }
    }

    fn only_reads(step: &Step) -> bool {
        matches!(step, Step::CapReached | Step::HasRoom)
    }

    fn is_unsettled(step: &Step) -> bool {
        matches!(step, Step::Unknown)
    }

    fn may_need_a_coupon(step: &Step) -> bool {
        matches!(step, Step::CapReached)
    }

    fn are_interchangeable(one: &Step, other: &Step) -> bool {
        one == other && matches!(one, Step::Issued | Step::Unknown)
    }

    fn settle(step: &Step, counter: &mut Counter) {
        match *step {
            Step::Issued => counter.issued += 1,
            Step::Apply { version, cap } if version > counter.version => {
                counter.cap = cap;
                counter.version = version;
            }
            _ => {}
        }
    }
}

/// The step of an operation. `None`: it neither changes the counter nor shows anything of it.
pub fn step(operation: &Operation) -> Option<Step> {
    match &operation.outcome {
        Outcome::Answered(Answer::Issued { .. }) => Some(Step::Issued),
        Outcome::Answered(answer) if is(answer, CAP_REACHED) => Some(Step::CapReached),
        Outcome::Answered(answer) if is(answer, POOL_EMPTY) || is(answer, GAP) => Some(Step::HasRoom),
        Outcome::Unknown => Some(Step::Unknown),
        _ => None,
    }
}

/// The counter before the first call, and the changes of its cap.
pub fn caps(settings: &[Settings], series: i64) -> (Counter, Vec<Timed<Step>>) {
    let cap = |settings: &Settings| settings.series.get(&series).map_or(-1, |series| series.max_create);
    let initial = Counter { issued: 0, cap: settings.first().map_or(-1, cap), version: 0 };
    let change = |settings: &Settings| {
        let (version, cap) = (settings.version, cap(settings));
        let label = format!("apply {version}: cap {cap}");
        Timed { start: settings.start, end: settings.end, step: Step::Apply { version, cap }, label }
    };
    (initial, settings.iter().skip(1).map(change).collect())
}
