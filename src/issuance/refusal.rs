//! Why a coupon was not issued: every row of the contract's section 3, with its code, message and retry hint.
//!
//! The HTTP status is not decided here: a refusal is an answer about one entity, inside a 200.

use jiff::Timestamp;
use jiff::tz::Offset;
use strum::{EnumIter, IntoEnumIterator, IntoStaticStr};

/// Why one entity got no coupon (contract 3), in the contract's order. The only list there is: counters, console and the OpenAPI
/// document go through its variants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumIter, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Refusal {
    /// The organisation has no such series.
    UnknownSeries,
    /// The series is issued by another system.
    ExternallyManaged,
    /// The caller's store may not issue the series.
    InvalidStore,
    /// The series, or the coupon it would issue, is past its expiry.
    Expired,
    /// One per customer, and the customer has one.
    AlreadyHolds,
    /// The customer has received as many as the series allows.
    PerUserMaximum,
    /// The customer holds a coupon of a mutually exclusive series.
    MutuallyExclusive,
    /// The series has issued all it may.
    CapReached,
    /// The uploaded codes are given out.
    PoolEmpty,
    /// Too soon after the customer's last one.
    Gap {
        /// The first instant at which the gap is over.
        next_eligible_at: ShownInstant,
    },
    /// The coupon's transaction did not finish in time, or the database server failed on it. It is not stored.
    TimedOut,
    /// As `TimedOut`, but it may be stored: the connection broke midway, or another attempt under the same key may have issued it.
    InDoubt,
    /// The database refused this coupon, or no free code was found. It is not stored.
    Failed,
}

/// An instant as a caller was shown it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShownInstant {
    /// The instant.
    pub instant: Timestamp,
    /// The offset of the organisation's time zone then.
    pub offset: Offset,
}

impl Default for ShownInstant {
    /// For going through the variants of [`Refusal`].
    fn default() -> Self {
        Self { instant: Timestamp::UNIX_EPOCH, offset: Offset::UTC }
    }
}

impl Refusal {
    /// The one of this [`Refusal::name`].
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::iter().find(|refusal| refusal.name() == name)
    }

    /// The error code (contract 3).
    #[must_use]
    pub const fn code(self) -> u16 {
        match self {
            Self::UnknownSeries => 707,
            Self::ExternallyManaged => 777,
            Self::InvalidStore => 735,
            Self::Expired => 712,
            Self::MutuallyExclusive | Self::AlreadyHolds | Self::Gap { .. } => 709,
            Self::PerUserMaximum => 730,
            Self::CapReached => 5001,
            Self::PoolEmpty => 5005,
            Self::TimedOut | Self::InDoubt => 748,
            Self::Failed => 786,
        }
    }

    /// The message (contract 3).
    #[must_use]
    pub const fn message(self) -> &'static str {
        match self {
            Self::UnknownSeries => "Coupon Series ID is invalid",
            Self::ExternallyManaged => "coupon source not valid for issue coupon",
            Self::InvalidStore => "Invalid store",
            Self::Expired => "Coupon Series has expired",
            Self::MutuallyExclusive => "Coupon processing failed: coupon present in mutually exclusive series",
            Self::AlreadyHolds => "Coupon processing failed: user already has a coupon",
            Self::PerUserMaximum => "Unknown error : MAX_COUPON_ISSUAL_PER_USER_EXCEEDED",
            Self::CapReached => "Maximum number of series has been created",
            Self::PoolEmpty => "Queue is empty for series",
            Self::Gap { .. } => {
                "Coupon processing failed: days between consecutive issuals for a user less than min days between issuals"
            }
            Self::TimedOut | Self::InDoubt => "Coupon service timed out",
            Self::Failed => "Coupon processing failed, Please try again later",
        }
    }

    /// Whether the same request can later succeed unchanged.
    #[must_use]
    pub const fn is_retryable(self) -> bool {
        matches!(self, Self::Gap { .. } | Self::TimedOut | Self::InDoubt | Self::Failed)
    }

    /// When the gap is over.
    #[must_use]
    pub const fn next_eligible_at(self) -> Option<ShownInstant> {
        match self {
            Self::Gap { next_eligible_at } => Some(next_eligible_at),
            _ => None,
        }
    }

    /// How many coupons are left to issue, where that is the reason.
    #[must_use]
    pub const fn remaining(self) -> Option<u64> {
        match self {
            Self::CapReached | Self::PoolEmpty => Some(0),
            _ => None,
        }
    }

    /// The name under which it is counted, logged and stored.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_found_by_its_name() {
        for refusal in Refusal::iter() {
            assert_eq!(Refusal::named(refusal.name()), Some(refusal));
        }
        assert_eq!(Refusal::named("issued"), None);
    }
}
