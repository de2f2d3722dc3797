use std::sync::Arc;

use super::answers::{Answer, EntityAnswer};
use super::outcome::Granted;
use super::refusal::Refusal;
use crate::db::writer::WriteOutcome;
use crate::model::SeriesId;

/// After this many collisions the space of codes counts as full.
const MAX_COLLISIONS: u8 = 10;

/// An entity while its request is processed.
#[derive(Debug)]
pub(super) struct EntityRun {
    pub(super) series_id: SeriesId,
    pub(super) state: EntityState,
}

/// The state of an entity, and its transitions.
///
/// ```text
///            ┌───────────────────── (a) decide again ──────────────────────┐
///            ▼                                                              │
///  new ──▶ Open ────────────── decided: issue or resend ─────────────▶ InFlight ─── unreachable ───▶ Unreached
///           │ │                                                         ▲  │  │
///           │ └── its coupon exists ──▶ Found ── wait for a flush ──────┘  │  └── (b) not stored ──▶ Failed
///           │                           ▲  │                               │                         │  │
///           │                           └──┼──── its coupon exists ────────┼─────────────────────────┘  │
///           │                              │                               │                            │
///           │ refused,                     │ timed out                     │ issued, flushed,           │ no coupon exists,
///           │ timed out                    │                               │ timed out, in doubt        │ timed out
///           ▼                              ▼                               ▼                            ▼
///  ═══════════════════════════════════════════════ Done ═════════════════════════════════════════════════════════════
///
///  Done, InFlight, Failed ── (c) decided without holding the key ──▶ Open
///  Open ── listed again under a natural key ──▶ SameAs ── natural keys are switched off ──▶ Open
/// ```
///
/// (a) Guard failed, settings locked, code taken, key not claimed, not flushed, or already issued. If the queue was full, so that
/// nothing was sent, the entity returns to `Open` or `Found`.
/// (b) With an idempotency key or a natural key: the database refused the coupon, the server failed on it, or the service found no free
/// code. Without a key: `Done`.
/// (c) The claim found a used key, or no coupon was written that could claim it. Entities in doubt stay in doubt.
///
/// An entity that waits for an earlier entity of its request (`run::precedence`) stays `Open`.
#[derive(Debug)]
pub(super) enum EntityState {
    /// Not decided yet.
    Open(Open),
    /// Its coupon exists, from an earlier attempt. The answer shows it once it is flushed.
    Found(Arc<Granted>),
    /// This attempt stored nothing, for this reason. Another attempt may have stored a coupon: look it up before answering.
    Failed(Refusal),
    /// The writer has it.
    InFlight(InFlight),
    /// The database was unavailable, and nothing was sent.
    Unreached(Refusal),
    /// The same series under the same natural key: answered like the entity at this index.
    SameAs(usize),
    /// The answer is final.
    Done(Result<Arc<Granted>, Refusal>),
}

/// The state of an undecided entity.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Open {
    /// Whether the decision needs the history, not only cached settings.
    pub(super) needs_history: bool,
    collisions: u8,
}

/// The state of an entity that the writer has.
#[derive(Debug)]
pub(super) struct InFlight {
    /// The answer, if the write succeeds.
    pub(super) answer: Granted,
    /// The state before, if the entity was open. `None`: its coupon was found, and is the answer.
    open: Option<Open>,
}

/// What the next round must do before it decides an entity again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NextStep {
    Nothing,
    /// Load the coupons that were issued under the key.
    LoadIssued,
    Pause,
}

/// Whether another attempt may issue the coupon of an entity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Certainty {
    /// No other attempt can: there is no key, or this attempt holds the key and has loaded the coupons under it.
    Certain,
    /// Another attempt may have issued it.
    Uncertain,
}

impl Certainty {
    /// 786 and `timed_out` state that nothing is stored. If another attempt may have stored a coupon, the answer is `in_doubt`.
    pub(super) const fn qualify(self, refusal: Refusal) -> Refusal {
        match (self, refusal) {
            (Self::Uncertain, Refusal::Failed | Refusal::TimedOut) => Refusal::InDoubt,
            (_, refusal) => refusal,
        }
    }
}

impl EntityRun {
    pub(super) fn new(series_id: SeriesId) -> Self {
        Self { series_id, state: EntityState::Open(Open::default()) }
    }

    pub(super) const fn is_open(&self) -> bool {
        matches!(self.state, EntityState::Open(_))
    }

    pub(super) const fn is_found(&self) -> bool {
        matches!(self.state, EntityState::Found(_))
    }

    /// Whether another round is needed.
    pub(super) const fn is_pending(&self) -> bool {
        !matches!(self.state, EntityState::Done(_) | EntityState::Unreached(_) | EntityState::SameAs(_))
    }

    /// Stored, or possibly stored: the request must be answered.
    pub(super) const fn is_issued_or_in_doubt(&self) -> bool {
        matches!(self.state, EntityState::Done(Ok(_) | Err(Refusal::InDoubt)))
    }

    /// Never sent, or possibly stored.
    pub(super) const fn is_unreached_or_in_doubt(&self) -> bool {
        matches!(self.state, EntityState::Unreached(_) | EntityState::Done(Err(Refusal::InDoubt)))
    }

    /// Decided without a new coupon.
    pub(super) fn is_refused_or_resent(&self) -> bool {
        match &self.state {
            EntityState::Done(Ok(granted)) => granted.resent.is_some(),
            EntityState::Done(Err(refusal)) => *refusal != Refusal::InDoubt,
            _ => false,
        }
    }

    /// The answer that can be stored while the request is running.
    pub(super) fn answer_so_far(&self) -> EntityAnswer {
        let answer = match &self.state {
            EntityState::Done(Err(refusal)) => Answer::Refused(*refusal),
            EntityState::Done(Ok(granted)) | EntityState::Found(granted) => Answer::from(&**granted),
            EntityState::InFlight(in_flight) => Answer::from(&in_flight.answer),
            EntityState::Open(_) | EntityState::Failed(_) | EntityState::Unreached(_) | EntityState::SameAs(_) => {
                Answer::NewCoupon
            }
        };
        EntityAnswer { series_id: self.series_id, answer }
    }

    /// Makes the next decision use the history.
    pub(super) fn require_history(&mut self) {
        if let EntityState::Open(open) = &mut self.state {
            open.needs_history = true;
        }
    }

    /// Starts again from the beginning.
    pub(super) fn reopen(&mut self) {
        self.state = EntityState::Open(Open { needs_history: true, collisions: 0 });
    }

    /// Ends with this refusal, unless the entity has ended.
    pub(super) fn close(&mut self, refusal: Refusal, certainty: Certainty) {
        let refusal = match self.state {
            EntityState::Done(_) | EntityState::Unreached(_) | EntityState::SameAs(_) => return,
            EntityState::Open(_) => certainty.qualify(refusal),
            EntityState::Failed(failed) => certainty.qualify(failed),
            // The coupon exists or may exist.
            EntityState::Found(_) | EntityState::InFlight(_) => Refusal::InDoubt,
        };
        self.state = EntityState::Done(Err(refusal));
    }

    /// Records that the writer gets the entity.
    pub(super) fn send(&mut self, answer: Granted) {
        let open = if let EntityState::Open(open) = self.state { Some(open) } else { None };
        self.state = EntityState::InFlight(InFlight { answer, open });
    }

    /// Restores the state before [`Self::send`], after the writer's queue rejected the request.
    pub(super) fn restore(&mut self) {
        if let EntityState::InFlight(InFlight { answer, open }) = &self.state {
            self.state = match open {
                Some(open) => EntityState::Open(*open),
                None => EntityState::Found(Arc::new(answer.clone())),
            };
        }
    }

    /// Applies the outcome of the write. `is_keyed`: the request has an idempotency key or a natural key.
    pub(super) fn settle(&mut self, outcome: WriteOutcome, certainty: Certainty, is_keyed: bool) -> NextStep {
        let EntityState::InFlight(in_flight) = std::mem::replace(&mut self.state, EntityState::Open(Open::default()))
        else {
            tracing::error!(
                series_id = self.series_id.0,
                "the writer reported an outcome for an entity that was not sent"
            );
            self.state = EntityState::Done(Err(Refusal::InDoubt));
            return NextStep::Nothing;
        };
        let (state, next_step) = in_flight.after_write(outcome, certainty, is_keyed);
        self.state = state;
        next_step
    }
}

impl InFlight {
    fn after_write(self, outcome: WriteOutcome, certainty: Certainty, is_keyed: bool) -> (EntityState, NextStep) {
        let Self { answer, open } = self;
        // A coupon that exists but cannot be shown now has not failed.
        let exists = open.is_none() || answer.resent.is_some();
        let certainty = if exists { Certainty::Uncertain } else { certainty };
        let open = open.unwrap_or_default();
        let again = Open { needs_history: true, ..open };
        let next_step = if is_keyed { NextStep::LoadIssued } else { NextStep::Nothing };
        let failed = |refusal| {
            if is_keyed {
                (EntityState::Failed(refusal), NextStep::LoadIssued)
            } else {
                (EntityState::Done(Err(refusal)), NextStep::Nothing)
            }
        };
        match outcome {
            WriteOutcome::Issued { code, .. } => {
                (EntityState::Done(Ok(Arc::new(Granted { code, ..answer }))), NextStep::Nothing)
            }
            WriteOutcome::Flushed => (EntityState::Done(Ok(Arc::new(answer))), NextStep::Nothing),
            WriteOutcome::NotFlushed | WriteOutcome::AlreadyIssued => (EntityState::Open(again), next_step),
            WriteOutcome::GuardFailed(_) | WriteOutcome::HasReceived { .. } => {
                (EntityState::Open(again), NextStep::Nothing)
            }
            WriteOutcome::SettingsLocked => (EntityState::Open(again), NextStep::Pause),
            WriteOutcome::KeyNotClaimed => (EntityState::Open(open), NextStep::Nothing),
            WriteOutcome::CodeTaken if open.collisions + 1 >= MAX_COLLISIONS => failed(Refusal::Failed),
            WriteOutcome::CodeTaken => {
                (EntityState::Open(Open { collisions: open.collisions + 1, ..open }), NextStep::Nothing)
            }
            WriteOutcome::IdTaken | WriteOutcome::Refused => failed(Refusal::Failed),
            WriteOutcome::ServerFault => failed(Refusal::TimedOut),
            WriteOutcome::Unavailable => {
                (EntityState::Unreached(certainty.qualify(Refusal::Failed)), NextStep::Nothing)
            }
            WriteOutcome::TimedOut => (EntityState::Done(Err(certainty.qualify(Refusal::TimedOut))), NextStep::Nothing),
            WriteOutcome::InDoubt => (EntityState::Done(Err(Refusal::InDoubt)), NextStep::Nothing),
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::civil::date;
    use jiff::tz::TimeZone;

    use super::*;
    use crate::model::{DiscountType, SeriesSnapshot};

    fn granted() -> Granted {
        let snapshot = SeriesSnapshot {
            description: String::new(),
            info: String::new(),
            discount_code: None,
            discount_type: DiscountType::Abs,
            discount_value: 0,
            discount_upto: 0,
        };
        Granted {
            snapshot: Arc::new(snapshot),
            zone: TimeZone::UTC,
            code: "CODE".to_owned(),
            expires_on: date(2027, 5, 9),
            redemption_count: 0,
            resent: None,
            replayed: false,
        }
    }

    /// Even if this attempt claimed the key, so that the coupon is not a replay.
    #[test]
    fn a_coupon_that_was_found_ends_in_doubt() {
        for (is_found, outcome, expected) in [
            (true, WriteOutcome::Unavailable, Refusal::InDoubt),
            (true, WriteOutcome::TimedOut, Refusal::InDoubt),
            (false, WriteOutcome::Unavailable, Refusal::Failed),
            (false, WriteOutcome::TimedOut, Refusal::TimedOut),
        ] {
            let mut entity = EntityRun::new(SeriesId(1));
            if is_found {
                entity.state = EntityState::Found(Arc::new(granted()));
            }
            entity.send(granted());
            entity.settle(outcome, Certainty::Certain, true);
            let (EntityState::Unreached(refusal) | EntityState::Done(Err(refusal))) = entity.state else {
                panic!("{:?}", entity.state)
            };
            assert_eq!(refusal, expected);
        }
    }

    #[test]
    fn restore_returns_to_the_state_before_send() {
        let mut entity = EntityRun::new(SeriesId(1));
        entity.require_history();
        entity.send(granted());
        entity.restore();
        assert!(matches!(entity.state, EntityState::Open(Open { needs_history: true, .. })));
        entity.state = EntityState::Found(Arc::new(granted()));
        entity.send(granted());
        entity.restore();
        assert!(matches!(entity.state, EntityState::Found(_)));
    }
}
