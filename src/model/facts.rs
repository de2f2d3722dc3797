//! The facts that a decision rests on, besides the settings: what the customer and the series have received so far.
//!
//! Always read from the database for the decision at hand, never cached.

use jiff::Timestamp;

use super::HeldCoupon;

/// What the database knows that can change the decision.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// Coupons of the series this customer has received, valid or not.
    pub received: i32,
    /// The largest ordinal among them.
    pub last_ordinal: i32,
    /// When the latest of them was issued.
    pub last_issued_at: Option<Timestamp>,
    /// Of them, the one that expires last: the one to send again, if it is valid still.
    pub longest_valid: Option<HeldCoupon>,
    /// Whether the customer holds a coupon of a mutually exclusive series.
    pub holds_excluded: bool,
    /// Coupons the series has issued; counted only where it has a cap.
    pub issued: i64,
    /// Whether an uploaded code is left for this customer; meant only where codes are uploaded.
    pub pool_has_code: bool,
}
