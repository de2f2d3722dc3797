//! Authenticates callers: verifies a till's password, a client's secret or an access token, and returns the caller.
//!
//! Knows no HTTP: the middleware in `http` takes the credentials out of the headers.

mod authenticator;
mod credential_cache;
mod error;
mod external_issuers;
mod failure_limits;
mod jwt;
mod keys;
mod metrics;
mod names;
mod passwords;
mod request_limits;
mod tokens;
mod verified_credential;

pub use authenticator::{AccessToken, Authenticator};
pub use error::{AttributionError, AuthError, SetUpError};
pub use keys::{KeyError, KeySource, SigningKeys, generate as generate_signing_key};
pub use names::MAX_NAME_LENGTH;
pub use passwords::{hash_secret, till_password, verify_secret};
pub use tokens::SCOPE;
