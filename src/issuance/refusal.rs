//! Why a coupon was not issued: every row of the contract's section 3, with its code, message and retry hint.
//!
//! The HTTP status is not decided here: a refusal is an answer about one entity, inside a 200.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use strum::{EnumIter, IntoEnumIterator, IntoStaticStr};

/// Why one entity got no coupon (contract 3), in the contract's order. The only list there is: counters, console and the OpenAPI
/// document go through its variants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, EnumIter, IntoStaticStr)]
#[serde(tag = "reason", rename_all = "snake_case")]
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
        next_eligible_at: Timestamp,
    },
    /// The coupon's transaction did not finish in time, or the database server failed on it. It may be stored.
    TimedOut,
    /// The database refused this coupon, or no free code was found. It is not stored.
    Failed,
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
            Self::TimedOut => 748,
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
            Self::TimedOut => "Coupon service timed out",
            Self::Failed => "Coupon processing failed, Please try again later",
        }
    }

    /// Whether the same request can later succeed unchanged.
    #[must_use]
    pub const fn is_retryable(self) -> bool {
        matches!(self, Self::Gap { .. } | Self::TimedOut | Self::Failed)
    }

    /// When the gap is over.
    #[must_use]
    pub const fn next_eligible_at(self) -> Option<Timestamp> {
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

    #[test]
    fn it_is_stored_under_its_name() {
        for refusal in Refusal::iter() {
            let stored = serde_json::to_value(refusal).unwrap();
            assert_eq!(stored["reason"], refusal.name());
            assert_eq!(serde_json::from_value::<Refusal>(stored).unwrap(), refusal);
        }
    }
}
