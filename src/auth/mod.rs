//! Who is calling: checks a till's password, a client's secret or a token, and names the caller.
//!
//! Knows no HTTP: the tower middleware in `http` takes the credentials out of the headers and puts the caller in.

mod passwords;
mod tokens;

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use md5::{Digest, Md5};
use moka::future::Cache;
use passwords::{PasswordError, Passwords};
pub use passwords::{hash_secret, verify_secret};
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;
pub use tokens::{KeyError, TokenKeys};
use tokens::{TokenError, VerifiedToken};

use crate::model::{Caller, Clock, Entropy, EntropyError};
use crate::store::{Store, StoreError};

/// Credentials remembered at once, at most.
const MOST_REMEMBERED: u64 = 100_000;

/// Why a caller is not let in. Cheap to clone: callers that wait for the same check share its result.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AuthError {
    /// No such till or client, or not its secret; or a token that is not one of ours.
    #[error("the credentials are not valid")]
    Invalid,
    /// The token was ours, and its time is over.
    #[error("the token has expired")]
    Expired,
    /// The credentials cannot be checked now.
    #[error("the credentials cannot be checked: {0}")]
    Unavailable(#[source] Arc<StoreError>),
    /// Our fault.
    #[error("the credentials cannot be checked: {0}")]
    Internal(String),
}

impl From<StoreError> for AuthError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable(_) => Self::Unavailable(Arc::new(error)),
            StoreError::Failed(_) => Self::Internal(error.to_string()),
        }
    }
}

impl From<PasswordError> for AuthError {
    fn from(error: PasswordError) -> Self {
        Self::Internal(error.to_string())
    }
}

impl From<TokenError> for AuthError {
    fn from(error: TokenError) -> Self {
        match error {
            TokenError::Invalid => Self::Invalid,
            TokenError::Expired => Self::Expired,
            TokenError::Unsigned(reason) => Self::Internal(reason),
        }
    }
}

/// A token as it is handed out.
pub struct AccessToken {
    /// The JWT.
    pub token: SecretString,
    /// How long it lives, in seconds.
    pub ttl_seconds: i64,
}

/// Checks credentials. What was found good is remembered for a short time, under a hash with a key of this process, so
/// that a busy till costs one argon2 and one read in that time.
pub struct Authenticator {
    store: Store,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    keys: TokenKeys,
    passwords: Passwords,
    remembered: Cache<[u8; 32], Arc<Remembered>>,
    fingerprint: Hmac<Sha256>,
}

struct Remembered {
    caller: Arc<Caller>,
    /// For a client's secret: how long its tokens live. For a token: when it ends.
    seconds: i64,
}

impl Authenticator {
    /// An authenticator that remembers a good credential for `time_to_live`: the longest time for which a changed
    /// password or access level may still work as before.
    ///
    /// # Errors
    /// When there is no randomness for the process's key.
    pub fn new(
        store: Store,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
        keys: TokenKeys,
        time_to_live: Duration,
    ) -> Result<Self, EntropyError> {
        let mut key = [0; 64];
        entropy.fill(&mut key)?;
        Ok(Self {
            store,
            clock,
            entropy,
            keys,
            passwords: Passwords::new(),
            remembered: Cache::builder().max_capacity(MOST_REMEMBERED).time_to_live(time_to_live).build(),
            fingerprint: Hmac::new(&key.into()),
        })
    }

    /// The till that sends this password, plain or as its md5 (contract 5).
    ///
    /// # Errors
    /// [`AuthError`], except `Expired`.
    pub async fn till(&self, till_id: &str, password: &SecretString) -> Result<Arc<Caller>, AuthError> {
        possible(till_id)?;
        let md5 = till_password(password);
        let remembered = self
            .recall(self.fingerprint(&["till", till_id, md5.expose_secret()]), || async {
                let till = self.store.till(till_id).await?;
                let (caller, hash) = till.map(|till| (till.caller, till.password_hash)).unzip();
                self.checked(caller, hash, md5).await.map(|caller| Arc::new(Remembered { caller, seconds: 0 }))
            })
            .await?;
        Ok(Arc::clone(&remembered.caller))
    }

    /// The caller behind a token (contract 5).
    ///
    /// # Errors
    /// [`AuthError`].
    pub async fn token(&self, token: &SecretString) -> Result<Arc<Caller>, AuthError> {
        let remembered = self
            .recall(self.fingerprint(&["token", token.expose_secret()]), || async {
                let VerifiedToken { client_key, expires_at } = self.keys.verify(token, self.clock.now())?;
                possible(&client_key)?;
                let client = self.store.oauth_client(&client_key).await?.ok_or(AuthError::Invalid)?;
                Ok(Arc::new(Remembered { caller: Arc::new(client.caller), seconds: expires_at }))
            })
            .await?;
        if self.clock.now().as_second() >= remembered.seconds {
            return Err(AuthError::Expired);
        }
        Ok(Arc::clone(&remembered.caller))
    }

    /// A token for the client with this key and secret (contract 5).
    ///
    /// # Errors
    /// [`AuthError`], except `Expired`.
    pub async fn grant(&self, client_key: &str, secret: &SecretString) -> Result<AccessToken, AuthError> {
        possible(client_key)?;
        let remembered = self
            .recall(self.fingerprint(&["client", client_key, secret.expose_secret()]), || async {
                let client = self.store.oauth_client(client_key).await?;
                let seconds = client.as_ref().map_or(0, |client| i64::from(client.token_ttl_seconds));
                let (caller, hash) = client.map(|client| (client.caller, client.secret_hash)).unzip();
                let caller = self.checked(caller, hash, secret.clone()).await?;
                Ok(Arc::new(Remembered { caller, seconds }))
            })
            .await?;
        let now = self.clock.now();
        let token = self.keys.sign(client_key, &remembered.caller, now, remembered.seconds, &*self.entropy)?;
        Ok(AccessToken { token, ttl_seconds: remembered.seconds })
    }

    /// What is remembered under this key, or else what the check finds, which is remembered if it is good. Of those who
    /// ask for the same at once, one checks.
    async fn recall<F: Future<Output = Result<Arc<Remembered>, AuthError>>>(
        &self,
        key: [u8; 32],
        check: impl FnOnce() -> F,
    ) -> Result<Arc<Remembered>, AuthError> {
        match self.remembered.get(&key).await {
            Some(remembered) => Ok(remembered),
            // Boxed, so that the many who are remembered do not carry its state about.
            None => Box::pin(self.remembered.try_get_with(key, check())).await.map_err(|shared| (*shared).clone()),
        }
    }

    async fn checked(
        &self,
        caller: Option<Caller>,
        hash: Option<String>,
        secret: SecretString,
    ) -> Result<Arc<Caller>, AuthError> {
        let is_right = self.passwords.verify(hash, secret).await?;
        caller.filter(|_| is_right).map(Arc::new).ok_or(AuthError::Invalid)
    }

    /// A key for the memory of good credentials: keyed, so that a dump of it is no list of password hashes.
    fn fingerprint(&self, parts: &[&str]) -> [u8; 32] {
        let mut mac = self.fingerprint.clone();
        for part in parts {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part.as_bytes());
        }
        mac.finalize().into_bytes().into()
    }
}

/// Postgres has no U+0000 in a text, so nothing that it knows is called so.
fn possible(name: &str) -> Result<(), AuthError> {
    if name.contains('\0') { Err(AuthError::Invalid) } else { Ok(()) }
}

/// What a till's password is checked as: its md5 in lower-case hex. What looks like one is taken as one.
#[must_use]
pub fn till_password(password: &SecretString) -> SecretString {
    let given = password.expose_secret();
    if given.len() == 32 && given.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return given.to_ascii_lowercase().into();
    }
    let mut hex = String::with_capacity(32);
    for byte in Md5::digest(given.as_bytes()) {
        // Writing to a String cannot fail.
        let _ = write!(hex, "{byte:02x}");
    }
    hex.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The check vector of contract 5.
    #[test]
    fn a_password_counts_as_its_md5() {
        let md5 = "8a16a6b70505eb1f1ff7cdc0cd5559a7";
        for given in ["server123", md5, "8A16A6B70505EB1F1FF7CDC0CD5559A7"] {
            assert_eq!(till_password(&given.into()).expose_secret(), md5, "{given}");
        }
    }
}
