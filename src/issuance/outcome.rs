use std::sync::Arc;

use jiff::civil::Date;
use jiff::tz::TimeZone;

use super::refusal::Refusal;
use crate::activity::{EntityOutcome, OutcomeKind};
use crate::db::IssuedCoupon;
use crate::model::{SeriesId, SeriesSnapshot};

/// The result of a request: one entity for each series, in the order of the request.
#[derive(Debug, Clone)]
pub struct Issuance {
    /// The results.
    pub entities: Vec<Entity>,
}

impl Issuance {
    /// Whether an earlier attempt at the same request issued any of the coupons.
    #[must_use]
    pub fn is_replayed(&self) -> bool {
        self.entities.iter().any(|entity| matches!(&entity.outcome, Ok(granted) if granted.replayed))
    }
}

/// The result for one series of a request.
#[derive(Debug, Clone)]
pub struct Entity {
    /// The series of the request.
    pub series_id: SeriesId,
    /// The coupon, durably stored, or the reason why there is none.
    pub outcome: Result<Arc<Granted>, Refusal>,
}

impl Entity {
    /// The outcome's name in metrics and in the activity: `issued`, `resent`, `replayed`, or the name of a refusal.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match &self.outcome {
            Ok(granted) if granted.replayed => "replayed",
            Ok(granted) if granted.resent.is_some() => "resent",
            Ok(_) => "issued",
            Err(refusal) => refusal.name(),
        }
    }

    pub(super) fn activity_entry(&self) -> EntityOutcome {
        let kind = match &self.outcome {
            Ok(_) => OutcomeKind::Granted,
            Err(Refusal::UnknownSeries) => OutcomeKind::NoSuchSeries,
            Err(_) => OutcomeKind::Refused,
        };
        EntityOutcome { series_id: self.series_id, outcome: self.name(), kind }
    }
}

/// A coupon in an answer.
#[derive(Debug, Clone)]
pub struct Granted {
    /// The settings of the series that the coupon shows.
    pub snapshot: Arc<SeriesSnapshot>,
    /// The time zone of its dates.
    pub zone: TimeZone,
    /// Its code.
    pub code: String,
    /// Its last day.
    pub expires_on: Date,
    /// The number of times it was redeemed.
    pub redemption_count: i32,
    /// Set if the customer already held the coupon.
    pub resent: Option<Resend>,
    /// Whether an earlier attempt at the same request issued it.
    pub replayed: bool,
}

impl Granted {
    /// The coupon as it was shown when it was issued.
    pub(super) fn replay(coupon: &IssuedCoupon) -> Self {
        Self {
            snapshot: Arc::clone(&coupon.snapshot),
            zone: coupon.zone.clone(),
            code: coupon.code.clone(),
            expires_on: coupon.expires_on,
            redemption_count: 0,
            resent: None,
            replayed: true,
        }
    }
}

/// A coupon that the customer already held, as the answer shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resend {
    /// The id of the coupon.
    pub coupon_id: i64,
    /// The version of the series in the answer, if it differs from the version of the coupon.
    pub series_version: Option<i32>,
    /// The number of redemptions in the answer.
    pub redemption_count: i32,
}
