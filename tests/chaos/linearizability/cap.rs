//! The counter of a series with a cap: which answers it allows, and what they do to it.
//! A refusal for a reason that the contract looks at after the cap says that there was room.

use super::operations::{Operation, Outcome};
use super::rules::{EMPTY, FULL, GAP, Settings, is};
use super::search::{Object, Timed};
use crate::history::Answer;

#[derive(Debug)]
pub struct Cap;

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Counter {
    pub issued: i64,
    /// -1 is unlimited.
    pub cap: i64,
    /// The place of the change of settings that has set the cap.
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
    /// A refusal because of the cap.
    Full,
    /// A refusal for a reason that is looked at only if the cap leaves room.
    Room,
    /// Nothing says what it did. It issues a coupon if it can. To have no effect is the same as to come last.
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
            Step::Full => (!has_room).then(|| counter.clone()),
            Step::Room => has_room.then(|| counter.clone()),
            Step::Apply { version: later, cap } if later > version => Some(Counter { issued, cap, version: later }),
            Step::Unknown | Step::Apply { .. } => Some(counter.clone()),
        }
    }

    fn only_reads(step: &Step) -> bool {
        matches!(step, Step::Full | Step::Room)
    }

    fn is_unsettled(step: &Step) -> bool {
        matches!(step, Step::Unknown)
    }

    fn may_need_a_coupon(step: &Step) -> bool {
        matches!(step, Step::Full)
    }

    fn are_alike(one: &Step, other: &Step) -> bool {
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

/// What an operation does to the counter; `None`: nothing, and it says nothing of it.
pub fn step(operation: &Operation) -> Option<Step> {
    match &operation.outcome {
        Outcome::Answered(Answer::Issued { .. }) => Some(Step::Issued),
        Outcome::Answered(answer) if is(answer, FULL) => Some(Step::Full),
        Outcome::Answered(answer) if is(answer, EMPTY) || is(answer, GAP) => Some(Step::Room),
        Outcome::Unknown => Some(Step::Unknown),
        _ => None,
    }
}

/// The counter before the first call, and the changes of its cap.
pub fn caps(settings: &[Settings], series: i64) -> (Counter, Vec<Timed<Step>>) {
    let cap = |one: &Settings| one.series.get(&series).map_or(-1, |series| series.max_create);
    let begin = Counter { issued: 0, cap: settings.first().map_or(-1, cap), version: 0 };
    let change = |one: &Settings| {
        let (version, cap) = (one.version, cap(one));
        let label = format!("apply {version}: cap {cap}");
        Timed { start: one.start, end: one.end, step: Step::Apply { version, cap }, label }
    };
    (begin, settings.iter().skip(1).map(change).collect())
}
