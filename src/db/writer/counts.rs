//! Counts the outcomes of the coupons that the writer was given. A counter is incremented once a batch, not once a coupon: this is
//! the hot path. All counters exist from the start, so that an alert rule finds them at zero.

use metrics::{Counter, counter};
use strum::{EnumCount, EnumIter, IntoEnumIterator, IntoStaticStr};

use super::{Guard, Work, WriteOutcome};
use crate::telemetry::metrics as metric;

/// An outcome as the label of the metric calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumCount, EnumIter, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
enum Label {
    Issued,
    OtherRevision,
    CapReached,
    OrdinalTaken,
    HoldsExcluded,
    PoolEmpty,
    Conflict,
    SettingsLocked,
    CodeTaken,
    AlreadyIssued,
    KeyNotClaimed,
    IdTaken,
    Refused,
    ServerFault,
    Unavailable,
    TimedOut,
    InDoubt,
}

impl Label {
    /// `None`: only a flush barrier has this outcome.
    const fn of(outcome: &WriteOutcome) -> Option<Self> {
        Some(match outcome {
            WriteOutcome::Issued { .. } => Self::Issued,
            WriteOutcome::Flushed | WriteOutcome::NotFlushed => return None,
            WriteOutcome::GuardFailed(Guard::OtherRevision) => Self::OtherRevision,
            WriteOutcome::GuardFailed(Guard::CapReached) => Self::CapReached,
            WriteOutcome::GuardFailed(Guard::OrdinalTaken) => Self::OrdinalTaken,
            WriteOutcome::GuardFailed(Guard::HoldsExcluded) => Self::HoldsExcluded,
            WriteOutcome::GuardFailed(Guard::PoolEmpty) => Self::PoolEmpty,
            WriteOutcome::GuardFailed(Guard::Conflict) => Self::Conflict,
            WriteOutcome::SettingsLocked => Self::SettingsLocked,
            WriteOutcome::CodeTaken => Self::CodeTaken,
            WriteOutcome::AlreadyIssued => Self::AlreadyIssued,
            WriteOutcome::KeyNotClaimed => Self::KeyNotClaimed,
            WriteOutcome::IdTaken => Self::IdTaken,
            WriteOutcome::Refused => Self::Refused,
            WriteOutcome::ServerFault => Self::ServerFault,
            WriteOutcome::Unavailable => Self::Unavailable,
            WriteOutcome::TimedOut => Self::TimedOut,
            WriteOutcome::InDoubt => Self::InDoubt,
        })
    }
}

/// The counters of coupons.
#[derive(Debug, Clone)]
pub(super) struct Counts {
    /// In the order of [`Label`].
    by_label: Vec<Counter>,
    in_doubt: Counter,
}

impl Counts {
    pub(super) fn new() -> Self {
        let of = |label: Label| counter!(metric::COUPON_WRITES.name, "outcome" => <&'static str>::from(label));
        Self { by_label: Label::iter().map(of).collect(), in_doubt: counter!(metric::IN_DOUBT.name) }
    }

    /// Counts the outcomes of the coupons among these works.
    pub(super) fn written(&self, works: &[Work], outcomes: &[WriteOutcome]) {
        let mut times = [0; Label::COUNT];
        for (work, outcome) in works.iter().zip(outcomes) {
            if let (Work::Issue(_), Some(label)) = (work, Label::of(outcome)) {
                times[label as usize] += 1;
            }
        }
        for (counter, times) in self.by_label.iter().zip(times) {
            if times > 0 {
                counter.increment(times);
            }
        }
        self.in_doubt.increment(times[Label::InDoubt as usize]);
    }
}
