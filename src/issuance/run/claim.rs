use super::idempotency::Idempotency;
use super::plan::Plan;
use super::state::{Customer, IssueRun};
use crate::db::writer::{Scope, Work};
use crate::issuance::answers::{self, EntityAnswer};
use crate::issuance::entity::EntityRun;
use crate::issuance::error::IssueError;
use crate::issuance::key_claim::{Claimed, KeyClaim};

/// The most claims of one request by a statement. A crash can undo a claim; losing every claim is a bug.
const MAX_CLAIMS: u32 = 5;

impl IssueRun<'_> {
    /// Whether the key must be claimed before the round: the claim was lost, no coupon could carry it, or the customer is unknown. Only
    /// the request that owns the key may create or refuse a customer.
    pub(super) fn needs_claim(&self) -> bool {
        match &self.idempotency {
            Idempotency::RequestKey(KeyClaim::Lapsed(..)) => true,
            Idempotency::RequestKey(KeyClaim::Unclaimed(_)) => matches!(self.customer, Customer::Unknown),
            Idempotency::RequestKey(KeyClaim::InFlight(..) | KeyClaim::Held(_) | KeyClaim::Uncertain(_))
            | Idempotency::NaturalKey(_)
            | Idempotency::None => false,
        }
    }

    /// If the claim was lost, a crash may also have undone what the decisions so far rest on.
    pub(super) fn reopen_if_lapsed(&mut self) {
        if matches!(self.idempotency, Idempotency::RequestKey(KeyClaim::Lapsed(..))) {
            self.resent_since = None;
            self.entities.iter_mut().filter(|entity| entity.is_refused_or_resent()).for_each(EntityRun::reopen);
        }
    }

    /// Claims the key by a statement.
    pub(super) async fn claim(&mut self, answers: Vec<EntityAnswer>) -> Result<Option<Claimed>, IssueError> {
        let Idempotency::RequestKey(claim) = std::mem::replace(&mut self.idempotency, Idempotency::None) else {
            return Ok(None);
        };
        self.claim_count += 1;
        if self.claim_count > MAX_CLAIMS {
            self.idempotency = Idempotency::RequestKey(claim);
            return Err(IssueError::Internal(
                "a claimed key is not found when a coupon is written under it".to_owned(),
            ));
        }
        let result = Box::pin(claim.claim(self.resources, answers::join(answers), self.deadline)).await;
        let (claim, claimed) = match result {
            Ok((claim, claimed)) => (claim, Ok(Some(claimed))),
            Err((claim, error)) => (claim, Err(error)),
        };
        self.idempotency = Idempotency::RequestKey(claim);
        if matches!(claimed, Ok(Some(Claimed::Resumed))) {
            self.must_load_issued = true;
            // Another attempt may have decided differently since: refusals and resends must be decided again.
            self.entities.iter_mut().filter(|entity| entity.is_refused_or_resent()).for_each(EntityRun::reopen);
        }
        claimed
    }

    /// Claims the key, with the first coupon or by a statement. False: the key was used before; the next round loads its coupons.
    pub(super) async fn claim_for(&mut self, plan: &mut Plan) -> Result<bool, IssueError> {
        let Idempotency::RequestKey(KeyClaim::Unclaimed(_)) = &self.idempotency else {
            self.set_key(plan)?;
            return Ok(true);
        };
        let answers = self.answers_so_far();
        let is_coupon = |work: &Work| matches!(work, Work::Issue(_));
        // An exclusive coupon may wait for its customer's lock. If it carried the claim, a retry would wait too instead of getting 409.
        let is_quick = |work: &Work| !matches!(work, Work::Issue(coupon) if coupon.is_exclusive);
        let can_coupons_claim = plan.works.iter().any(is_coupon) && plan.works.iter().all(is_quick);
        if can_coupons_claim && !self.resources.writer.is_stalled() {
            self.idempotency.update_claim(|claim| claim.claim_with_coupons(answers::join(answers)));
        } else if Box::pin(self.claim(answers)).await? == Some(Claimed::Resumed) {
            self.entities.iter_mut().for_each(EntityRun::reopen);
            return Ok(false);
        }
        self.set_key(plan)?;
        Ok(true)
    }

    /// Gives the coupons of a keyed request their key.
    fn set_key(&self, plan: &mut Plan) -> Result<(), IssueError> {
        let Some(claim) = self.idempotency.claim() else { return Ok(()) };
        for (index, work) in plan.indices.iter().zip(&mut plan.works) {
            if let Work::Issue(coupon) = work {
                let unclaimed = || IssueError::Internal("a coupon of a keyed request has no key".to_owned());
                coupon.scope = Scope::Key(claim.keyed_entity(*index).ok_or_else(unclaimed)?);
            }
        }
        Ok(())
    }
}
