use std::collections::HashMap;

use super::answers::{self, Answer, EntityAnswer};
use super::outcome::Granted;
use super::refusal::Refusal;
use super::resources::Resources;
use crate::db::{Claim, DbError, IssuedCoupon};
use crate::model::{CustomerId, OrgId};
use crate::telemetry::throttle::Throttle;

static OTHER_SERIES: Throttle = Throttle::new();

/// The stored answers of a keyed request, with their coupons.
#[derive(Debug)]
pub(super) struct StoredOutcomes {
    claim: Claim,
    answers: Vec<EntityAnswer>,
    /// By coupon id and requested version of the series.
    coupons: HashMap<(i64, Option<i32>), IssuedCoupon>,
}

impl StoredOutcomes {
    /// Loads the coupons of these answers. They are committed, but perhaps not flushed.
    pub(super) async fn load(
        resources: &Resources,
        org_id: OrgId,
        claim: Claim,
        answers: &str,
    ) -> Result<Self, DbError> {
        let answers = answers::split(answers);
        let reserved = (0..answers.len()).map(|index| (claim.coupon_id(index), None));
        let resent = answers.iter().filter_map(|entity| match entity.answer {
            Answer::Resent(resend) => Some((resend.coupon_id, resend.series_version)),
            Answer::NewCoupon | Answer::Refused(_) => None,
        });
        let ids: Vec<_> = reserved.chain(resent).collect();
        let coupons = resources.db.coupons(org_id, &ids).await?;
        let coupons = coupons.into_iter().map(|coupon| ((coupon.coupon_id, coupon.asked_version), coupon)).collect();
        Ok(Self { claim, answers, coupons })
    }

    pub(super) fn answers(&self) -> &[EntityAnswer] {
        &self.answers
    }

    /// The outcome of the entity at this index. A new coupon takes precedence over the answer of an earlier attempt. `None`: the entity
    /// has no answer yet.
    pub(super) fn outcome(&self, index: usize) -> Option<Result<Granted, Refusal>> {
        if let Some(granted) = self.granted(index) {
            return Some(Ok(granted));
        }
        match self.answers.get(index)?.answer {
            Answer::Refused(refusal) => Some(Err(refusal)),
            Answer::NewCoupon | Answer::Resent(_) => None,
        }
    }

    /// The coupon of the entity at this index, as the answer showed it.
    pub(super) fn granted(&self, index: usize) -> Option<Granted> {
        let entity = self.answers.get(index)?;
        let is_of_series = |coupon: &&IssuedCoupon| {
            let is_same = coupon.series_id == entity.series_id;
            if !is_same {
                let (coupon_id, series_id) = (coupon.coupon_id, entity.series_id.0);
                OTHER_SERIES.log(|suppressed| {
                    tracing::error!(
                        coupon_id,
                        series_id,
                        suppressed,
                        "a keyed request refers to a coupon of another series"
                    );
                });
            }
            is_same
        };
        if let Some(coupon) = self.coupons.get(&(self.claim.coupon_id(index), None)).filter(is_of_series) {
            return Some(Granted::replay(coupon));
        }
        let Answer::Resent(resend) = entity.answer else { return None };
        let coupon = self.coupons.get(&(resend.coupon_id, resend.series_version)).filter(is_of_series)?;
        Some(Granted { redemption_count: resend.redemption_count, resent: Some(resend), ..Granted::replay(coupon) })
    }

    /// The customer of the coupons. `None`: there are none.
    pub(super) fn customer(&self) -> Option<&CustomerId> {
        self.coupons.values().next().map(|coupon| &coupon.customer_id)
    }
}
