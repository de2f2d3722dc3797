use std::sync::Arc;

use jiff::Timestamp;
use jiff::civil::Date;
use uuid::Uuid;

use crate::db::claims::NewClaim;
use crate::db::keyed_requests::Claim;
use crate::model::{CustomerId, Metadata, OrgId, Revision, SeriesId};

/// The code of a new coupon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Code {
    /// A generated code, in upper case. It must be new in the organisation.
    Unique(String),
    /// The code that all coupons of a `GENERIC` series share.
    Generic(String),
    /// A code from the uploaded pool of the series.
    FromPool,
}

/// The number of a coupon among the customer's coupons of its series.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Numbering {
    /// The series has no rule about earlier coupons.
    None,
    /// This number, from the history that the decision rests on. Guard: nothing was issued since.
    Ordinal(i32),
    /// The next number. Guard: the customer must have received fewer coupons of the series than this.
    Next {
        /// The smallest number of coupons that fails the guard, at least 1.
        received_below: i32,
    },
}

/// The name under which an entity is issued at most once.
#[derive(Debug, Clone)]
pub enum Scope {
    /// No name: a retry issues another coupon.
    None,
    /// The natural key: see column `natural_issuance.natural_key`.
    Natural(Uuid),
    /// The idempotency key of the request.
    Key(KeyedEntity),
}

/// An entity of a keyed request.
#[derive(Debug, Clone)]
pub struct KeyedEntity {
    /// The key.
    pub key: Arc<NewClaim>,
    /// The entity's index in the request.
    pub index: usize,
    /// How the attempt holds the key.
    pub hold: KeyHold,
}

/// How an attempt holds its key.
#[derive(Debug, Clone)]
pub enum KeyHold {
    /// A coupon of the same [`Writer::write`](super::Writer::write) claims the key in its own transaction, and stores these answers.
    ClaimedWith(Arc<str>),
    /// The attempt has claimed a new key: nothing was issued under it before.
    Acquired(Claim),
    /// The attempt has claimed a key that was used before.
    Resumed(Claim),
}

/// A decided coupon: what to store, and under which guards.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the columns of table coupon, whose comments say what each is")]
pub struct NewCoupon {
    pub org_id: OrgId,
    pub series_id: SeriesId,
    pub series_version: i32,
    pub origin_id: i32,
    pub customer_id: CustomerId,
    pub numbering: Numbering,
    pub code: Code,
    pub expires_on: Date,
    pub issued_at: Timestamp,
    pub account_id: Option<String>,
    pub metadata: Option<Metadata>,
    pub request_id: Arc<str>,
    pub scope: Scope,
    /// Guard: the organisation must still be at this revision.
    pub revision: Revision,
    /// Guard: the series must have issued fewer than this.
    pub max_create: Option<i64>,
    /// Guard: the customer must hold no coupon of a mutually exclusive series.
    pub is_exclusive: bool,
    /// Whether the code is likely to exist already. If this is false, a collision breaks the batch, which is slower.
    pub may_collide: bool,
}

impl NewCoupon {
    /// The key that this coupon or another one of its request claims.
    pub(super) fn claims_key(&self) -> Option<&Arc<NewClaim>> {
        match &self.scope {
            Scope::Key(KeyedEntity { key, hold: KeyHold::ClaimedWith(_), .. }) => Some(key),
            Scope::Key(_) | Scope::Natural(_) | Scope::None => None,
        }
    }
}
