//! The rules: what the settings of a series (contract 4) make of one customer at one moment.
//!
//! Pure functions over values read beforehand: no clock, no database, no randomness. A decision to issue is still only
//! an intention: the write is guarded, and a decision that has gone stale by then is made again on fresh facts.

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;

use super::refusal::{Refusal, ShownInstant};
use super::validity;
use crate::model::{ClientHandling, Facts, HeldCoupon, Series, StoreId};

/// The moment and place of a decision.
#[derive(Debug, Clone)]
pub struct Moment<'a> {
    /// The instant.
    pub now: Timestamp,
    /// The organisation's time zone: what "today" means.
    pub zone: &'a TimeZone,
    /// The store that asks.
    pub store_id: StoreId,
}

impl Moment<'_> {
    fn today(&self) -> Date {
        self.day_of(self.now)
    }

    fn day_of(&self, instant: Timestamp) -> Date {
        self.zone.to_datetime(instant).date()
    }
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Issue a coupon.
    Issue {
        /// Its last day.
        expires_on: Date,
        /// Its number among the customer's coupons of the series, where they are numbered.
        ordinal: Option<i32>,
    },
    /// Give the customer this one again.
    Resend(HeldCoupon),
    /// Refuse.
    Refuse(Refusal),
}

/// Decides on one series for one customer.
///
/// The order is part of the contract (README, section 4): first what the series and the caller are, then what the customer
/// has, and last the gap: the only reason that goes away by waiting. So one request always gets one and the same code.
#[must_use]
pub fn decide(series: &Series, facts: &Facts, moment: &Moment<'_>) -> Decision {
    let expires_on = match may_issue(series, moment) {
        Ok(expires_on) => expires_on,
        Err(refusal) => return Decision::Refuse(refusal),
    };
    match reissue(series, facts, moment) {
        Reissue::Resend(held) => return Decision::Resend(held),
        Reissue::Refuse(refusal) => return Decision::Refuse(refusal),
        Reissue::Allow => {}
    }
    if facts.holds_excluded {
        return Decision::Refuse(Refusal::MutuallyExclusive);
    }
    if series.max_create.is_some_and(|cap| facts.issued >= cap) {
        return Decision::Refuse(Refusal::CapReached);
    }
    if series.client_handling == ClientHandling::Pool && !facts.pool_has_code {
        return Decision::Refuse(Refusal::PoolEmpty);
    }
    if let Some(next_eligible_at) = gap(series, facts, moment) {
        return Decision::Refuse(Refusal::Gap { next_eligible_at });
    }
    let numbered = series.depends_on_history();
    Decision::Issue { expires_on, ordinal: numbered.then(|| facts.last_ordinal.saturating_add(1)) }
}

/// What holds for every customer: returns the coupon's last day.
///
/// # Errors
/// The refusal, in the fixed order: externally managed, store, expiry.
pub fn may_issue(series: &Series, moment: &Moment<'_>) -> Result<Date, Refusal> {
    if series.externally_managed {
        return Err(Refusal::ExternallyManaged);
    }
    if !series.store_ids.is_empty() && !series.store_ids.contains(&moment.store_id) {
        return Err(Refusal::InvalidStore);
    }
    let expires_on = validity::expires_on(series, moment.today()).ok_or(Refusal::Expired)?;
    match series.redemption_valid_from {
        Some(from) if from > expires_on => Err(Refusal::Expired),
        _ => Ok(expires_on),
    }
}

enum Reissue {
    Allow,
    Resend(HeldCoupon),
    Refuse(Refusal),
}

/// What a customer who was given coupons of the series before may have (contract 4):
///
/// | received | holds a valid one | `doNotResend…` | `isMultiple…Allowed` | below `maxVouchers…` | then |
/// |---|---|---|---|---|---|
/// | 0 | – | – | – | – | a first one |
/// | ≥ 1 | yes | false | – | – | that one again, warning 700 |
/// | ≥ 1 | – | else | false | – | 709, has one |
/// | ≥ 1 | – | else | true | yes | another |
/// | ≥ 1 | – | else | true | no | 730 |
fn reissue(series: &Series, facts: &Facts, moment: &Moment<'_>) -> Reissue {
    let valid = facts.longest_valid.as_ref().filter(|held| held.expires_on >= moment.today());
    let below_maximum = series.max_vouchers_per_user.is_none_or(|maximum| facts.received < maximum);
    match (facts.received, valid) {
        (0, _) if below_maximum => Reissue::Allow,
        (0, _) => Reissue::Refuse(Refusal::PerUserMaximum),
        (_, Some(held)) if !series.do_not_resend_existing_voucher => Reissue::Resend(held.clone()),
        _ if !series.is_multiple_vouchers_per_user_allowed => Reissue::Refuse(Refusal::AlreadyHolds),
        _ if below_maximum => Reissue::Allow,
        _ => Reissue::Refuse(Refusal::PerUserMaximum),
    }
}

/// The first instant at which the least days between two issues are over, if they are not over yet.
fn gap(series: &Series, facts: &Facts, moment: &Moment<'_>) -> Option<ShownInstant> {
    let days = series.min_days_between_vouchers?;
    let next = validity::days_after(moment.day_of(facts.last_issued_at?), days);
    (moment.today() < next).then(|| {
        let instant = validity::start_of_day(next, moment.zone);
        ShownInstant { instant, offset: moment.zone.to_offset(instant) }
    })
}
