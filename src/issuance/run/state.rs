use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;

use tokio::time::Instant;

use super::idempotency::Idempotency;
use crate::issuance::answers::EntityAnswer;
use crate::issuance::deadline::before_deadline;
use crate::issuance::entity::{Certainty, EntityRun, EntityState};
use crate::issuance::error::IssueError;
use crate::issuance::key_claim::KeyClaim;
use crate::issuance::refusal::Refusal;
use crate::issuance::request::IssueRequest;
use crate::issuance::resources::Resources;
use crate::issuance::settings_cache::CachedOrganisation;
use crate::model::CustomerId;

/// The customer of a request.
pub(super) enum Customer {
    Unknown,
    /// The customer whom the identifiers name under the organisation's settings.
    Identified(CustomerId),
    /// The customer of the coupons that were issued under the key. Later changes of identifiers or policy do not matter.
    OfIssued(CustomerId),
}

/// The state of one request while it is processed.
pub(super) struct IssueRun<'a> {
    pub(super) resources: &'a Resources,
    pub(super) request: &'a IssueRequest,
    pub(super) organisation: Arc<CachedOrganisation>,
    pub(super) customer: Customer,
    pub(super) idempotency: Idempotency,
    pub(super) deadline: Instant,
    pub(super) entities: Vec<EntityRun>,
    /// Coupons may have been issued under the key: the next round loads them first.
    pub(super) must_load_issued: bool,
    /// The organisation's settings are being changed: pause before the next round.
    pub(super) is_paused: bool,
    /// When this round began to read.
    pub(super) read_since: Instant,
    /// When the first coupon was read whose resend waits for no flush of its own. The end of a keyed attempt flushes it.
    pub(super) resent_since: Option<Instant>,
    /// The number of claims by a statement.
    pub(super) claim_count: u32,
}

impl<'a> IssueRun<'a> {
    pub(super) async fn start(
        resources: &'a Resources,
        request: &'a IssueRequest,
        deadline: Instant,
    ) -> Result<Self, IssueError> {
        let idempotency = match &request.key {
            Some(key) => {
                let incarnation = match resources.presence.known() {
                    Some(incarnation) => incarnation,
                    None => Box::pin(before_deadline(deadline, resources.presence.incarnation())).await?,
                };
                Idempotency::RequestKey(KeyClaim::new(resources, request, key, incarnation))
            }
            None => Idempotency::None,
        };
        let organisation = before_deadline(deadline, pin!(resources.cached_organisation(&request.caller))).await?;
        Ok(Self {
            resources,
            request,
            organisation,
            customer: Customer::Unknown,
            idempotency,
            deadline,
            entities: request.series_ids.iter().map(|id| EntityRun::new(*id)).collect(),
            must_load_issued: false,
            is_paused: false,
            read_since: Instant::now(),
            resent_since: None,
            claim_count: 0,
        })
    }

    pub(super) fn pending_count(&self) -> usize {
        self.entities.iter().filter(|entity| entity.is_pending()).count()
    }

    pub(super) fn answers_so_far(&self) -> Vec<EntityAnswer> {
        self.entities.iter().map(EntityRun::answer_so_far).collect()
    }

    /// Whether another attempt may have issued an open entity. A held key excludes that once its coupons are loaded. A natural key is
    /// never held.
    pub(super) fn certainty(&self) -> Certainty {
        match &self.idempotency {
            Idempotency::None => Certainty::Certain,
            Idempotency::RequestKey(claim) if claim.held().is_some() && !self.must_load_issued => Certainty::Certain,
            Idempotency::RequestKey(_) | Idempotency::NaturalKey(_) => Certainty::Uncertain,
        }
    }

    pub(super) fn customer_id(&self) -> Result<&CustomerId, IssueError> {
        match &self.customer {
            Customer::Identified(id) | Customer::OfIssued(id) => Ok(id),
            Customer::Unknown => Err(IssueError::Internal("the customer is not known".to_owned())),
        }
    }

    pub(super) fn set_customer(&mut self, id: CustomerId) {
        if !matches!(self.idempotency, Idempotency::RequestKey(_)) {
            self.idempotency = Idempotency::natural(self.request, &self.organisation, &id);
            self.link_duplicates();
        }
        self.customer = Customer::Identified(id);
    }

    /// A natural key names one issuance for each series: a repeated series gets the answer of its first entity.
    fn link_duplicates(&mut self) {
        let is_natural = matches!(self.idempotency, Idempotency::NaturalKey(_));
        let mut first_indices = HashMap::new();
        for (index, entity) in self.entities.iter_mut().enumerate() {
            let first = *first_indices.entry(entity.series_id).or_insert(index);
            match entity.state {
                EntityState::Open(_) if is_natural && first < index => entity.state = EntityState::SameAs(first),
                EntityState::SameAs(_) if !is_natural => entity.reopen(),
                _ => {}
            }
        }
    }

    /// Ends all pending entities: those that are open with this refusal, the others as [`EntityRun::close`] says.
    pub(super) fn close(&mut self, refusal: Refusal) {
        self.reopen_if_not_claimed();
        let certainty = self.certainty();
        self.entities.iter_mut().for_each(|entity| entity.close(refusal, certainty));
    }

    /// If no coupon claimed the key, another request may have used it: the decisions are void.
    pub(super) fn reopen_if_not_claimed(&mut self) {
        if let Idempotency::RequestKey(
            KeyClaim::Unclaimed(_) | KeyClaim::InFlight(..) | KeyClaim::Lapsed(_, None) | KeyClaim::Uncertain(_),
        ) = &self.idempotency
        {
            let decided = self.entities.iter_mut().filter(|entity| !entity.is_unreached_or_in_doubt());
            decided.filter(|entity| !entity.is_open()).for_each(EntityRun::reopen);
        }
    }
}
