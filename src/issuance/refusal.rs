use jiff::Timestamp;
use jiff::tz::Offset;
use strum::{EnumIter, EnumString, IntoStaticStr};

/// Why an entity got no coupon: the rows of section 3 of the contract, in its order. A refusal is part of a response with status 200.
/// Metrics, console and the OpenAPI document iterate over the variants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumIter, EnumString, IntoStaticStr)]
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
    /// The series allows one coupon per customer, and the customer received one.
    AlreadyHolds,
    /// The customer received as many coupons as the series allows.
    PerUserMaximum,
    /// The customer holds a coupon of a mutually exclusive series.
    MutuallyExclusive,
    /// The series has reached its cap.
    CapReached,
    /// All uploaded codes are in use.
    PoolEmpty,
    /// Too soon after the customer's last coupon of the series.
    Gap {
        /// The first instant at which the gap is over.
        next_eligible_at: ShownInstant,
    },
    /// The coupon's transaction did not finish in time, or the database server failed on it. It is not stored.
    TimedOut,
    /// The coupon may be stored: the connection broke midway, or another attempt under the same key may have issued it.
    InDoubt,
    /// The database refused the coupon, or the service found no free code. It is not stored.
    Failed,
}

/// An instant, with the offset that an answer shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShownInstant {
    /// The instant.
    pub instant: Timestamp,
    /// The offset of the organisation's time zone at that instant.
    pub offset: Offset,
}

impl Default for ShownInstant {
    /// `EnumIter` and `EnumString` of [`Refusal`] need it.
    fn default() -> Self {
        Self { instant: Timestamp::UNIX_EPOCH, offset: Offset::UTC }
    }
}

impl Refusal {
    /// The inverse of [`Refusal::name`].
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        name.parse().ok()
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

    /// Whether the same request can succeed later.
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

    /// The remaining number of coupons, if that is the reason.
    #[must_use]
    pub const fn remaining(self) -> Option<u64> {
        match self {
            Self::CapReached | Self::PoolEmpty => Some(0),
            _ => None,
        }
    }

    /// The name in metrics, logs and stored answers.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.into()
    }
}

#[cfg(test)]
mod tests {
    use strum::IntoEnumIterator;

    use super::*;

    #[test]
    fn from_name_is_the_inverse_of_name() {
        for refusal in Refusal::iter() {
            assert_eq!(Refusal::from_name(refusal.name()), Some(refusal));
        }
        assert_eq!(Refusal::from_name("issued"), None);
    }
}
