//! The history that a decision rests on, besides the settings: what the customer and the series have received so far.
//!
//! Always read from the database for the decision at hand, never cached.

use jiff::Timestamp;

use super::HeldCoupon;

/// What the database knows that can change the decision.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IssuanceHistory {
    /// The number of coupons of the series that the customer received, valid or not.
    pub received: i32,
    /// The largest ordinal among them.
    pub last_ordinal: i32,
    /// The time of issue of the latest of them.
    pub last_issued_at: Option<Timestamp>,
    /// The coupon among them that expires last. If it is still valid, it can be sent again.
    pub longest_valid: Option<HeldCoupon>,
    /// Whether the customer holds a coupon of a mutually exclusive series.
    pub holds_excluded: bool,
    /// The number of coupons of the series. Counted only if the series has a cap.
    pub issued: i64,
    /// Whether the pool has a code for this customer. Meaningful only if the series uses uploaded codes.
    pub pool_has_code: bool,
}
