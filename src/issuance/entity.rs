//! One entity on its way, from what was asked for to its answer: its states, and what leads from one to another.
//! `run` drives it.

use std::sync::Arc;

use super::{Granted, Refusal};
use crate::db::writer::WriteOutcome;
use crate::model::SeriesId;

/// After so many codes that existed already, the space of codes counts as full.
const MOST_COLLISIONS: u8 = 10;

/// One entity.
#[derive(Debug)]
pub(super) struct EntityRun {
    pub(super) series_id: SeriesId,
    pub(super) state: EntityState,
}

/// What is known of an entity.
///
/// ```text
///            ┌───────────────────── (a) decide again ──────────────────────┐
///            ▼                                                              │
///  new ──▶ Open ────────────── decided: issue or resend ─────────────▶ InFlight ── database away ──▶ Unreached
///           │ │                                                         ▲  │  │
///           │ └── its coupon exists ──▶ Found ── wait for a flush ──────┘  │  └── (b) not stored ──▶ Failed
///           │                           ▲  │                               │                         │  │
///           │                           └──┼──── its coupon exists ────────┼─────────────────────────┘  │
///           │                              │                               │                            │
///           │ refused,                     │ time over                     │ issued, flushed,           │ no coupon exists,
///           │ time over                    │                               │ timed out, in doubt        │ time over
///           ▼                              ▼                               ▼                            ▼
///  ═══════════════════════════════════════════════ Done ═════════════════════════════════════════════════════════════
///
///  Done, InFlight, Failed ── (c) decided without holding the key ──▶ Open
///  Open ── listed again under a natural key ──▶ SameAs ── natural keys are switched off ──▶ Open
/// ```
///
/// (a) Guard failed, settings locked, code taken, key not claimed, not flushed, issued already, queue full: back to what it was,
/// `Open` or `Found`, if nothing was sent.
/// (b) With a key of either kind: the database refused it, the server failed on it, or no free code was found. Without: `Done`.
/// (c) The claim found a used key, or no coupon was written that could claim it. What is in doubt stays in doubt.
///
/// An entity that has to wait for an earlier one of its request (`run::Precedence`) stays `Open`.
#[derive(Debug)]
pub(super) enum EntityState {
    /// To be decided.
    Open(Open),
    /// Its coupon exists, from an earlier attempt. It is shown once it is flushed.
    Found(Arc<Granted>),
    /// This attempt stored nothing, for this reason. Another attempt may have; look before answering.
    Failed(Refusal),
    /// On its way through the writer.
    InFlight(InFlight),
    /// The database was away, and nothing was sent for it.
    Unreached(Refusal),
    /// A natural key names one issuance: answered as the entity in this place.
    SameAs(usize),
    /// Answered.
    Done(Result<Arc<Granted>, Refusal>),
}

/// An entity that is to be decided.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Open {
    /// Whether cached settings are not good enough.
    pub(super) needs_history: bool,
    collisions: u8,
}

/// What the writer was given for an entity.
#[derive(Debug)]
pub(super) struct InFlight {
    /// The answer, if it succeeds.
    pub(super) answer: Granted,
    /// What it was before, if it was open. Else its coupon was found, and is the answer.
    open: Option<Open>,
}

/// What a settled entity asks of its run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing.
    Nothing,
    /// Load what was issued under its key before it is decided again.
    LoadIssued,
    /// Wait a moment before it is decided again.
    Pause,
}

/// How sure it is that nobody else has issued, or will issue, what an entity asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Certainty {
    /// It has no key, or its attempt holds the key and has loaded what was issued under it.
    Certain,
    /// Another attempt may have issued it.
    Uncertain,
}

impl Certainty {
    /// 786 and `timed_out` claim that nothing is stored. If another attempt may have stored it, the answer is `in_doubt`.
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

    /// Whether its run has something to do for it.
    pub(super) const fn is_pending(&self) -> bool {
        !matches!(self.state, EntityState::Done(_) | EntityState::Unreached(_) | EntityState::SameAs(_))
    }

    /// Stored, or possibly stored: the caller must be told.
    pub(super) const fn is_issued_or_in_doubt(&self) -> bool {
        matches!(self.state, EntityState::Done(Ok(_) | Err(Refusal::InDoubt)))
    }

    /// Never sent, or possibly stored.
    pub(super) const fn is_unreached_or_in_doubt(&self) -> bool {
        matches!(self.state, EntityState::Unreached(_) | EntityState::Done(Err(Refusal::InDoubt)))
    }

    /// Whether it was decided, and no coupon was written for it.
    pub(super) fn is_refused_or_resent(&self) -> bool {
        match &self.state {
            EntityState::Done(Ok(granted)) => granted.resent.is_some(),
            EntityState::Done(Err(refusal)) => *refusal != Refusal::InDoubt,
            _ => false,
        }
    }

    /// Decides it on more than cached settings.
    pub(super) fn require_history(&mut self) {
        if let EntityState::Open(open) = &mut self.state {
            open.needs_history = true;
        }
    }

    /// Decides it again from the beginning.
    pub(super) fn reopen(&mut self) {
        self.state = EntityState::Open(Open { needs_history: true, collisions: 0 });
    }

    /// Ends it with this refusal, unless it has ended.
    pub(super) fn close(&mut self, refusal: Refusal, certainty: Certainty) {
        let refusal = match self.state {
            EntityState::Done(_) | EntityState::Unreached(_) | EntityState::SameAs(_) => return,
            EntityState::Open(_) => certainty.qualify(refusal),
            EntityState::Failed(failed) => certainty.qualify(failed),
            // Its coupon exists or may exist: in doubt, not failed.
            EntityState::Found(_) | EntityState::InFlight(_) => Refusal::InDoubt,
        };
        self.state = EntityState::Done(Err(refusal));
    }

    /// Gives it to the writer.
    pub(super) fn send(&mut self, answer: Granted) {
        let open = if let EntityState::Open(open) = self.state { Some(open) } else { None };
        self.state = EntityState::InFlight(InFlight { answer, open });
    }

    /// Takes it back from the writer, which was given nothing after all.
    pub(super) fn take_back(&mut self) {
        if let EntityState::InFlight(InFlight { answer, open }) = &self.state {
            self.state = match open {
                Some(open) => EntityState::Open(*open),
                None => EntityState::Found(Arc::new(answer.clone())),
            };
        }
    }

    /// Learns what became of it in the writer. `is_keyed`: its request has a key, its own or a natural one.
    pub(super) fn settle(&mut self, outcome: WriteOutcome, certainty: Certainty, is_keyed: bool) -> Next {
        let EntityState::InFlight(in_flight) = std::mem::replace(&mut self.state, EntityState::Open(Open::default()))
        else {
            tracing::error!(series_id = self.series_id.0, "an outcome of the writer for an entity that was not sent");
            self.state = EntityState::Done(Err(Refusal::InDoubt));
            return Next::Nothing;
        };
        let (state, next) = in_flight.settled(outcome, certainty, is_keyed);
        self.state = state;
        next
    }
}

impl InFlight {
    fn settled(self, outcome: WriteOutcome, certainty: Certainty, is_keyed: bool) -> (EntityState, Next) {
        let Self { answer, open } = self;
        // What exists and cannot be shown now is not said to have failed.
        let exists = open.is_none() || answer.resent.is_some();
        let certainty = if exists { Certainty::Uncertain } else { certainty };
        let open = open.unwrap_or_default();
        let again = Open { needs_history: true, ..open };
        let look_up = if is_keyed { Next::LoadIssued } else { Next::Nothing };
        let failed = |refusal| {
            if is_keyed {
                (EntityState::Failed(refusal), Next::LoadIssued)
            } else {
                (EntityState::Done(Err(refusal)), Next::Nothing)
            }
        };
        match outcome {
            WriteOutcome::Issued { code, .. } => {
                (EntityState::Done(Ok(Arc::new(Granted { code, ..answer }))), Next::Nothing)
            }
            WriteOutcome::Flushed => (EntityState::Done(Ok(Arc::new(answer))), Next::Nothing),
            WriteOutcome::NotFlushed | WriteOutcome::AlreadyIssued => (EntityState::Open(again), look_up),
            WriteOutcome::GuardFailed(_) => (EntityState::Open(again), Next::Nothing),
            WriteOutcome::SettingsLocked => (EntityState::Open(again), Next::Pause),
            WriteOutcome::KeyNotClaimed => (EntityState::Open(open), Next::Nothing),
            WriteOutcome::CodeTaken if open.collisions + 1 >= MOST_COLLISIONS => failed(Refusal::Failed),
            WriteOutcome::CodeTaken => {
                (EntityState::Open(Open { collisions: open.collisions + 1, ..open }), Next::Nothing)
            }
            WriteOutcome::IdTaken | WriteOutcome::Refused => failed(Refusal::Failed),
            WriteOutcome::ServerFault => failed(Refusal::TimedOut),
            WriteOutcome::Unavailable => (EntityState::Unreached(certainty.qualify(Refusal::Failed)), Next::Nothing),
            WriteOutcome::TimedOut => (EntityState::Done(Err(certainty.qualify(Refusal::TimedOut))), Next::Nothing),
            WriteOutcome::InDoubt => (EntityState::Done(Err(Refusal::InDoubt)), Next::Nothing),
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::civil::date;
    use jiff::tz::TimeZone;

    use super::*;
    use crate::model::{DiscountType, Face};

    fn shown() -> Granted {
        let face = Face {
            description: String::new(),
            info: String::new(),
            discount_code: None,
            discount_type: DiscountType::Abs,
            discount_value: 0,
            discount_upto: 0,
        };
        Granted {
            face: Arc::new(face),
            zone: TimeZone::UTC,
            code: "CODE".to_owned(),
            expires_on: date(2027, 5, 9),
            redemption_count: 0,
            resent: None,
            replayed: false,
        }
    }

    /// Also if it was found under a key that this very attempt claimed, so that it counts as no replay.
    #[test]
    fn a_coupon_that_was_found_is_never_said_not_to_be_stored() {
        for (is_found, outcome, expected) in [
            (true, WriteOutcome::Unavailable, Refusal::InDoubt),
            (true, WriteOutcome::TimedOut, Refusal::InDoubt),
            (false, WriteOutcome::Unavailable, Refusal::Failed),
            (false, WriteOutcome::TimedOut, Refusal::TimedOut),
        ] {
            let mut entity = EntityRun::new(SeriesId(1));
            if is_found {
                entity.state = EntityState::Found(Arc::new(shown()));
            }
            entity.send(shown());
            entity.settle(outcome, Certainty::Certain, true);
            let (EntityState::Unreached(refusal) | EntityState::Done(Err(refusal))) = entity.state else {
                panic!("{:?}", entity.state)
            };
            assert_eq!(refusal, expected);
        }
    }

    #[test]
    fn what_a_full_queue_did_not_take_is_as_it_was_before() {
        let mut entity = EntityRun::new(SeriesId(1));
        entity.require_history();
        entity.send(shown());
        entity.take_back();
        assert!(matches!(entity.state, EntityState::Open(Open { needs_history: true, .. })));
        entity.state = EntityState::Found(Arc::new(shown()));
        entity.send(shown());
        entity.take_back();
        assert!(matches!(entity.state, EntityState::Found(_)));
    }
}
