use std::sync::Arc;

use crate::model::{Caller, Identifiers, Metadata, SeriesId, Source};

/// A request for one coupon of each series, for one customer.
#[derive(Debug, Clone)]
pub struct IssueRequest {
    /// The verified caller.
    pub caller: Arc<Caller>,
    /// The customer who receives the coupons.
    pub customer: Identifiers,
    /// The series, in the order of the answer.
    pub series_ids: Vec<SeriesId>,
    /// Stored with each coupon.
    pub source: Source,
    /// Stored with each coupon.
    pub account_id: Option<String>,
    /// Stored with each coupon.
    pub metadata: Option<Metadata>,
    /// Stored with each coupon.
    pub request_id: Arc<str>,
    /// The idempotency key, if the request has one.
    pub key: Option<RequestKey>,
}

impl IssueRequest {
    /// Whether an earlier attempt may have issued the coupons: the request has an idempotency key, or the parts of a natural key.
    pub(super) fn is_keyed(&self) -> bool {
        let has_source = |metadata: &Metadata| metadata.source_type.is_some() && metadata.source_id.is_some();
        self.key.is_some() || self.metadata.as_ref().is_some_and(has_source)
    }
}

/// An idempotency key. A retry with the same key finishes the request.
#[derive(Debug, Clone)]
pub struct RequestKey {
    /// The text of the caller.
    pub key: Arc<str>,
    /// A version and a hash of the request. The same key with another fingerprint is an error of the caller.
    pub fingerprint: i64,
}
