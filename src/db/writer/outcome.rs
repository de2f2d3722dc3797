use strum::{IntoStaticStr, VariantNames};

/// The outcome of one [`Work`](super::Work). Each variant says what is stored.
#[derive(Debug, Clone, PartialEq, Eq, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum WriteOutcome {
    /// The coupon is stored and flushed.
    Issued {
        /// Its id.
        coupon_id: i64,
        /// Its code, as it is shown.
        code: String,
    },
    /// Everything before the barrier is flushed.
    Flushed,
    /// What was read before the barrier may be lost, since the database may have crashed. Read it again.
    NotFlushed,
    /// A guard refused a stale decision. Decide again on a fresh history.
    GuardFailed(Guard),
    /// The customer has received coupons of the series, so that the history must decide. A key that a coupon of this write was to claim
    /// is claimed.
    HasReceived {
        /// The id that was reserved for the coupon.
        coupon_id: i64,
    },
    /// `apply` is changing the organisation's settings. Decide again, a moment later.
    SettingsLocked,
    /// The code exists already.
    CodeTaken,
    /// The entity is issued already: by another attempt under its key, or under its natural key.
    AlreadyIssued,
    /// The attempt does not hold the key: the key was used before, another attempt took over, or a crash of the database lost the
    /// claim.
    KeyNotClaimed,
    /// Another coupon has its id.
    IdTaken,
    /// The database refused this coupon alone.
    Refused,
    /// The server failed on this coupon alone, for a reason of its own (classes 53, 58 and XX).
    ServerFault,
    /// The database could not be reached in time, or takes no writes at all.
    Unavailable,
    /// The deadline passed while the coupon was queued or waited for a lock.
    TimedOut,
    /// The connection broke, and the database could not be asked in time whether the coupon is stored.
    InDoubt,
}

/// The guard that refused a coupon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum Guard {
    /// The organisation's settings changed after the decision.
    OtherRevision,
    /// The series has issued all it may.
    CapReached,
    /// Another request issued this number of the customer's coupons.
    OrdinalTaken,
    /// The customer holds a coupon of a mutually exclusive series.
    HoldsExcluded,
    /// The pool has no code for this customer.
    PoolEmpty,
    /// The coupon's transaction lost against another one: a deadlock or a serialization failure.
    Conflict,
}
