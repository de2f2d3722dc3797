use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::db::writer::Scope;
use crate::issuance::key_claim::{KeyClaim, hash16};
use crate::issuance::request::IssueRequest;
use crate::model::{CustomerId, Organisation};

/// What prevents a retry from issuing an entity a second time.
pub(super) enum Idempotency {
    None,
    NaturalKey(Uuid),
    /// The `Idempotency-Key` of the request.
    RequestKey(KeyClaim),
}

impl Idempotency {
    /// For a request without an `Idempotency-Key`.
    pub(super) fn natural(request: &IssueRequest, organisation: &Organisation, customer_id: &CustomerId) -> Self {
        let non_blank = |text: &Option<String>| text.clone().filter(|text| !text.trim().is_empty());
        let metadata = request.metadata.as_ref().filter(|_| organisation.natural_key);
        let parts =
            metadata.and_then(|metadata| Some((non_blank(&metadata.source_type)?, non_blank(&metadata.source_id)?)));
        let Some((source_type, source_id)) = parts else { return Self::None };
        let mut hash = Sha256::new();
        for part in [&customer_id.0, &source_type, &source_id] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part.as_bytes());
        }
        Self::NaturalKey(hash16(hash))
    }

    pub(super) const fn natural_key(&self) -> Option<Uuid> {
        match self {
            Self::NaturalKey(key) => Some(*key),
            Self::None | Self::RequestKey(_) => None,
        }
    }

    pub(super) const fn claim(&self) -> Option<&KeyClaim> {
        match self {
            Self::RequestKey(claim) => Some(claim),
            Self::None | Self::NaturalKey(_) => None,
        }
    }

    pub(super) fn update_claim(&mut self, update: impl FnOnce(KeyClaim) -> KeyClaim) {
        *self = match std::mem::replace(self, Self::None) {
            Self::RequestKey(claim) => Self::RequestKey(update(claim)),
            other => other,
        };
    }

    /// The scope of a new coupon. `IssueRun::set_key` replaces it in a request with an `Idempotency-Key`.
    pub(super) const fn scope(&self) -> Scope {
        match self {
            Self::None | Self::RequestKey(_) => Scope::None,
            Self::NaturalKey(key) => Scope::Natural(*key),
        }
    }
}
