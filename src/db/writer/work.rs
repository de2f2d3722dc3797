use tokio::time::Instant;

use super::coupon::NewCoupon;
use crate::db::keyed_requests::{Claim, RequestName};

/// One item for the writer.
#[derive(Debug, Clone)]
pub enum Work {
    /// Write this coupon.
    Issue(Box<NewCoupon>),
    /// Write nothing, but answer only after everything that was read since this instant is flushed: a coupon that was committed a
    /// moment ago may not be flushed yet.
    FlushBarrier(Instant),
    /// End an attempt.
    EndAttempt(Box<AttemptEnd>),
}

/// The end of an attempt under an idempotency key.
#[derive(Debug, Clone)]
pub struct AttemptEnd {
    /// The request.
    pub request: RequestName,
    /// The claim of the attempt.
    pub claim: Claim,
    /// The answers to store; `None`: the stored answers stay.
    pub answers: Option<String>,
    /// If given, also a barrier: the answers rest on what was read since this instant, and must not be lost.
    pub read_since: Option<Instant>,
}

impl Work {
    pub(super) const fn coupon(&self) -> Option<&NewCoupon> {
        match self {
            Self::Issue(coupon) => Some(coupon),
            Self::FlushBarrier(_) | Self::EndAttempt(_) => None,
        }
    }

    pub(super) const fn attempt_end(&self) -> Option<&AttemptEnd> {
        match self {
            Self::EndAttempt(end) => Some(end),
            Self::Issue(_) | Self::FlushBarrier(_) => None,
        }
    }

    /// Since when everything that was read must be flushed.
    pub(super) const fn read_since(&self) -> Option<Instant> {
        match self {
            Self::FlushBarrier(read_since) => Some(*read_since),
            Self::EndAttempt(end) => end.read_since,
            Self::Issue(_) => None,
        }
    }
}
