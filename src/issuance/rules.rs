//! Decides whether one customer gets a coupon of a series, from the settings of the series (contract 4).
//!
//! Pure functions: no clock, no database, no randomness. A decision to issue is only an intention. The write is guarded, and a stale
//! decision is repeated on fresh history.

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;

use super::expiry;
use super::refusal::{Refusal, ShownInstant};
use crate::model::{ClientHandling, HeldCoupon, IssuanceHistory, Series, StoreId};

/// The time and the store of a decision.
#[derive(Debug, Clone)]
pub struct DecisionContext<'a> {
    /// The current time.
    pub now: Timestamp,
    /// The organisation's time zone, which determines the date of today.
    pub zone: &'a TimeZone,
    /// The store of the caller.
    pub store_id: StoreId,
}

impl DecisionContext<'_> {
    fn today(&self) -> Date {
        self.day_of(self.now)
    }

    fn day_of(&self, instant: Timestamp) -> Date {
        self.zone.to_datetime(instant).date()
    }
}

/// The decision on one series.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Issue a coupon.
    Issue {
        /// Its last day.
        expires_on: Date,
        /// Its number among the customer's coupons of the series, if they are numbered.
        ordinal: Option<i32>,
    },
    /// Send the customer this coupon again.
    Resend(HeldCoupon),
    /// Refuse.
    Refuse(Refusal),
}

/// Decides on one series for one customer.
///
/// The order is part of the contract (docs/contract.md, section 4): first the series and the caller, then the customer's coupons, and
/// last the gap, the only reason that ends by waiting. So the same request always gets the same code.
#[must_use]
pub fn decide(series: &Series, history: &IssuanceHistory, context: &DecisionContext<'_>) -> Decision {
    let expires_on = match may_issue(series, context) {
        Ok(expires_on) => expires_on,
        Err(refusal) => return Decision::Refuse(refusal),
    };
    match reissue(series, history, context) {
        Reissue::Resend(held) => return Decision::Resend(held),
        Reissue::Refuse(refusal) => return Decision::Refuse(refusal),
        Reissue::Allow => {}
    }
    if history.holds_excluded {
        return Decision::Refuse(Refusal::MutuallyExclusive);
    }
    if series.max_create.is_some_and(|cap| history.issued >= cap) {
        return Decision::Refuse(Refusal::CapReached);
    }
    if series.client_handling == ClientHandling::Pool && !history.pool_has_code {
        return Decision::Refuse(Refusal::PoolEmpty);
    }
    if let Some(next_eligible_at) = gap(series, history, context) {
        return Decision::Refuse(Refusal::Gap { next_eligible_at });
    }
    let numbered = series.depends_on_history();
    Decision::Issue { expires_on, ordinal: numbered.then(|| history.last_ordinal.saturating_add(1)) }
}

/// Checks what is the same for every customer, and returns the coupon's last day.
///
/// # Errors
/// The first refusal in this order: externally managed, store, expiry.
pub(super) fn may_issue(series: &Series, context: &DecisionContext<'_>) -> Result<Date, Refusal> {
    if series.externally_managed {
        return Err(Refusal::ExternallyManaged);
    }
    if !series.store_ids.is_empty() && !series.store_ids.contains(&context.store_id) {
        return Err(Refusal::InvalidStore);
    }
    let expires_on = expiry::expires_on(series, context.today()).ok_or(Refusal::Expired)?;
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

/// Decides on a customer who may have received coupons of the series before (contract 4). The first matching row counts:
///
/// | received | holds a valid coupon | `doNotResend…` | `isMultiple…Allowed` | below `maxVouchers…` | result |
/// |---|---|---|---|---|---|
/// | 0 | – | – | – | yes | issue the first coupon |
/// | 0 | – | – | – | no | refuse, 730 |
/// | ≥ 1 | yes | false | – | – | resend the valid coupon, warning 700 |
/// | ≥ 1 | – | – | false | – | refuse, 709 |
/// | ≥ 1 | – | – | true | yes | issue another coupon |
/// | ≥ 1 | – | – | true | no | refuse, 730 |
fn reissue(series: &Series, history: &IssuanceHistory, context: &DecisionContext<'_>) -> Reissue {
    let valid = history.longest_valid.as_ref().filter(|held| held.expires_on >= context.today());
    let below_maximum = series.max_vouchers_per_user.is_none_or(|maximum| history.received < maximum);
    match (history.received, valid) {
        (0, _) if below_maximum => Reissue::Allow,
        (0, _) => Reissue::Refuse(Refusal::PerUserMaximum),
        (_, Some(held)) if !series.do_not_resend_existing_voucher => Reissue::Resend(held.clone()),
        _ if !series.is_multiple_vouchers_per_user_allowed => Reissue::Refuse(Refusal::AlreadyHolds),
        _ if below_maximum => Reissue::Allow,
        _ => Reissue::Refuse(Refusal::PerUserMaximum),
    }
}

/// The first instant at which the gap between two issues is over, if it is not over yet.
fn gap(series: &Series, history: &IssuanceHistory, context: &DecisionContext<'_>) -> Option<ShownInstant> {
    let days = series.min_days_between_vouchers?;
    let next = expiry::days_after(context.day_of(history.last_issued_at?), days);
    (context.today() < next).then(|| {
        let instant = expiry::start_of_day(next, context.zone);
        ShownInstant { instant, offset: context.zone.to_offset(instant) }
    })
}
