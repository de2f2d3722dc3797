use std::sync::Arc;
use std::time::Duration;

use super::passwords::PasswordError;
use crate::db::DbError;

/// Why a caller is not authenticated. Cheap to clone: callers that wait for the same verification share its result.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AuthError {
    /// An unknown till or client, a wrong secret, or an invalid token. The reason goes to the log only, never to the caller.
    #[error("the credentials are not valid: {0}")]
    Invalid(&'static str),
    /// The token was valid until it expired.
    #[error("the token has expired")]
    Expired,
    /// The credential has used up its rate limit.
    #[error("more than {limit} requests a minute")]
    TooManyRequests {
        /// Requests a minute.
        limit: u32,
        /// The time until the next request is admitted.
        retry_after: Duration,
    },
    /// Too many secrets for this name, or from this address, were wrong.
    #[error("too many wrong secrets")]
    TooManyFailures {
        /// The time until the next secret is verified.
        retry_after: Duration,
    },
    /// Too many secrets are waiting to be verified.
    #[error("too many secrets are waiting to be verified")]
    Busy,
    /// The keys of the token's issuer have never been fetched.
    #[error("the token's issuer cannot be reached")]
    IssuerAway,
    /// The database is unavailable.
    #[error("the credentials cannot be checked: {0}")]
    Unavailable(#[source] Arc<DbError>),
    /// The lookup timed out.
    #[error("looking up the credentials timed out")]
    TimedOut,
    /// A fault of this service.
    #[error("the credentials cannot be checked: {0}")]
    Internal(String),
}

impl From<DbError> for AuthError {
    fn from(error: DbError) -> Self {
        match error {
            DbError::Unavailable(_) | DbError::ServerFault(_) => Self::Unavailable(Arc::new(error)),
            DbError::TookTooLong(_) => Self::TimedOut,
            DbError::Failed(_) => Self::Internal(error.to_string()),
        }
    }
}

impl From<PasswordError> for AuthError {
    fn from(error: PasswordError) -> Self {
        match error {
            PasswordError::Busy => Self::Busy,
            other => Self::Internal(other.to_string()),
        }
    }
}

/// Why a request cannot be attributed to the till or store that it names. Cheap to clone, as [`AuthError`] is.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AttributionError {
    /// The caller's organisation has no such till or store.
    #[error("names no till or store of the organisation")]
    NoSuchTarget,
    /// The name matches several stores of the organisation.
    #[error("names more than one store of the organisation")]
    SeveralTargets,
    /// The lookup failed.
    #[error(transparent)]
    Unknown(#[from] AuthError),
}

/// Why an authenticator cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum SetUpError {
    /// There is no randomness for the fingerprint key.
    #[error(transparent)]
    Entropy(#[from] crate::model::EntropyError),
    /// The HTTP client that fetches the keys of external issuers cannot be made.
    #[error("fetching the keys of external issuers: {0}")]
    Web(#[from] reqwest::Error),
}
