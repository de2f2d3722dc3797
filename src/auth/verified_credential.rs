use std::sync::Arc;

use crate::model::{Caller, RateLimit};

/// The till or client that requests are counted for, such as `client:crm`. All tokens of a client count together.
pub(super) type CredentialName = Arc<str>;

/// A credential that was verified, as the cache holds it.
pub(super) struct VerifiedCredential {
    pub(super) caller: Arc<Caller>,
    pub(super) name: CredentialName,
    pub(super) rate_limit: Option<RateLimit>,
    /// For a client's secret: the lifetime of its tokens. For a token: its expiry, in seconds since 1970. For a till: 0.
    pub(super) seconds: i64,
}
