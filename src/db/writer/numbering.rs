//! Gives coupons their ids.

use std::collections::HashMap;
use std::sync::Arc;

use super::coupon::{KeyHold, KeyedEntity, NewCoupon, Scope};
use crate::db::claims::NewClaim;
use crate::db::keyed_requests::Claim;

/// A coupon with its id.
#[derive(Debug, Clone, Copy)]
pub(super) struct NumberedCoupon<'c> {
    pub(super) coupon: &'c NewCoupon,
    pub(super) coupon_id: i64,
    /// The claim of its key. If a coupon of this batch claims the key: the claim that will be stored.
    pub(super) claim: Option<Claim>,
}

/// The ids that a batch needs. A claim that is stored with the batch reserves one for each entity of its request, also for entities
/// without a coupon in this batch. A key that is claimed already has its reserved ids.
pub(super) struct IdDemand {
    /// By the address of the key, which all coupons of one attempt share.
    by_new_claim: HashMap<usize, usize>,
    unkeyed: usize,
}

impl IdDemand {
    pub(super) fn of(coupons: &[&NewCoupon]) -> Self {
        let new_claim = |coupon: &&NewCoupon| coupon.claims_key().map(|key| (address(key), key.entities));
        let unkeyed = coupons.iter().filter(|coupon| !matches!(coupon.scope, Scope::Key(_))).count();
        Self { by_new_claim: coupons.iter().filter_map(new_claim).collect(), unkeyed }
    }

    pub(super) fn count(&self) -> usize {
        self.unkeyed + self.by_new_claim.values().sum::<usize>()
    }

    /// Numbers the coupons. `take` takes consecutive ids off a lease and returns the first; `None`: too few remain.
    pub(super) fn number<'c>(
        &self,
        coupons: &[&'c NewCoupon],
        mut take: impl FnMut(usize) -> Option<i64>,
    ) -> Option<Vec<NumberedCoupon<'c>>> {
        let mut claims = HashMap::with_capacity(self.by_new_claim.len());
        for (key, entities) in &self.by_new_claim {
            claims.insert(*key, Claim { first_coupon_id: take(*entities)?, attempt: 0 });
        }
        let number = |coupon: &&'c NewCoupon| {
            let (coupon_id, claim) = match &coupon.scope {
                Scope::Key(KeyedEntity { key, index, hold }) => {
                    let claim = match hold {
                        KeyHold::ClaimedWith(_) => *claims.get(&address(key))?,
                        KeyHold::Acquired(claim) | KeyHold::Resumed(claim) => *claim,
                    };
                    (claim.coupon_id(*index), Some(claim))
                }
                Scope::None | Scope::Natural(_) => (take(1)?, None),
            };
            Some(NumberedCoupon { coupon, coupon_id, claim })
        };
        coupons.iter().map(number).collect()
    }
}

fn address(key: &Arc<NewClaim>) -> usize {
    Arc::as_ptr(key).addr()
}
