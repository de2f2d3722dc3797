//! Who is calling: checks a till's password, a client's secret or a token, and names the caller.
//!
//! Knows no HTTP: the tower middleware in `http` takes the credentials out of the headers and puts the caller in.

mod attempts;
mod counts;
mod jwt;
mod keys;
mod memory;
mod outside;
mod passwords;
mod rate_limits;
mod tokens;

use std::fmt::Write;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use attempts::{Attempt, Attempts};
use counts::{Counts, Scheme};
use jiff::Timestamp;
pub use keys::{KeyError, KeySource, SigningKeys, generate as generate_signing_key};
use md5::{Digest, Md5};
use memory::{Fingerprint, Memory, Remembered};
use outside::OutsideIssuers;
use passwords::{PasswordError, Passwords};
pub use passwords::{hash_secret, verify_secret};
use rate_limits::RateLimits;
use secrecy::{ExposeSecret, SecretString};
pub use tokens::SCOPE;
use tokens::Tokens;
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::config::{AuthSettings, RateLimitSettings};
use crate::db::{Db, DbError, StoredClient};
use crate::model::{Access, Caller, Clock, Entropy, OrgId, RateLimit, Target, TargetType};

/// How long to wait before listening for changes again.
const LISTEN_AGAIN: Duration = Duration::from_secs(1);
const UNHEARD: &str = "changes of credentials are not heard of; looking each credential up again every second";
/// How often the signing keys are read again, and how long that may take.
const READ_KEYS_EVERY: Duration = Duration::from_secs(5);
/// The longest name of a till or a client, in characters.
pub const LONGEST_NAME: usize = 255;

/// Why a caller is not let in. Cheap to clone: callers that wait for the same check share its result.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AuthError {
    /// No such till or client, or not its secret; or a token that is not good. The reason is for the log alone.
    #[error("the credentials are not valid: {0}")]
    Invalid(&'static str),
    /// The token was good, and its time is over.
    #[error("the token has expired")]
    Expired,
    /// The credential has made all the requests that it may make.
    #[error("more than {limit} requests a minute")]
    TooManyRequests {
        /// Requests a minute.
        limit: u32,
        /// When the next one is let through.
        retry_after: Duration,
    },
    /// Too many secrets of this name, or from this address, were wrong.
    #[error("too many wrong secrets")]
    TooManyFailures {
        /// When the next one is verified.
        retry_after: Duration,
    },
    /// Too many secrets are waiting to be verified.
    #[error("too many secrets are waiting to be verified")]
    Busy,
    /// The token's issuer has never been reached.
    #[error("the token's issuer cannot be reached")]
    IssuerAway,
    /// The credentials cannot be checked now.
    #[error("the credentials cannot be checked: {0}")]
    Unavailable(#[source] Arc<DbError>),
    /// They were not looked up in time.
    #[error("the credentials cannot be looked up in time")]
    TimedOut,
    /// Our fault.
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

/// Why a request is not attributed to what it names. Cheap to clone, as [`AuthError`] is.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AttributionError {
    /// The caller's organisation has no such till or store.
    #[error("names no till or store of the organisation")]
    NoSuchTarget,
    /// Several stores of the organisation are called so.
    #[error("names more than one store of the organisation")]
    SeveralTargets,
    /// It cannot be looked up now.
    #[error(transparent)]
    Unknown(#[from] AuthError),
}

/// An authenticator cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum SetUpError {
    /// There is no randomness for the process's key.
    #[error(transparent)]
    Entropy(#[from] crate::model::EntropyError),
    /// There is no client for fetching the keys of outside issuers.
    #[error("fetching the keys of outside issuers: {0}")]
    Web(#[from] reqwest::Error),
}

/// A token as it is handed out.
pub struct AccessToken {
    /// The JWT.
    pub token: SecretString,
    /// How long it lives, in seconds.
    pub ttl_seconds: i64,
    /// What it may be used for: [`SCOPE`], or nothing.
    pub scope: Option<&'static str>,
}

/// Checks credentials. What was found good is remembered for a short time, under a hash with a key of this process, so
/// that a busy till costs one argon2 and one read in that time.
pub struct Authenticator {
    db: Db,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    keys: Arc<SigningKeys>,
    tokens: Tokens,
    outside: OutsideIssuers,
    passwords: Passwords,
    attempts: Arc<Attempts>,
    rate_limits: RateLimits,
    memory: Memory,
    counts: Counts,
    /// Wakes whoever reads the signing keys again.
    keys_changed: Notify,
}

impl Authenticator {
    /// An authenticator whose tokens name this public URL as their issuer.
    ///
    /// # Errors
    /// When there is no randomness for the process's key, or no client for the web.
    pub fn new(
        db: Db,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
        keys: SigningKeys,
        public_url: Option<String>,
        settings: &AuthSettings,
        limits: RateLimitSettings,
    ) -> Result<Self, SetUpError> {
        let keys = Arc::new(keys);
        Ok(Self {
            tokens: Tokens::new(Arc::clone(&keys), public_url),
            keys,
            outside: OutsideIssuers::new(db.clone(), Arc::clone(&clock))?,
            passwords: Passwords::new(),
            attempts: Arc::new(Attempts::new(limits)),
            rate_limits: RateLimits::new(RateLimit::of(limits.per_minute), Arc::clone(&clock)),
            memory: Memory::new(&*entropy, settings.credential_cache, settings.secret_cache)?,
            counts: Counts::new(),
            keys_changed: Notify::new(),
            db,
            clock,
            entropy,
        })
    }

    /// The keys that sign, for publishing.
    #[must_use]
    pub fn keys(&self) -> &SigningKeys {
        &self.keys
    }

    /// Follows the changes of credentials and keys, for as long as it is polled.
    pub async fn follow_changes(&self) {
        tokio::join!(self.listen(), self.keep_keys());
    }

    async fn listen(&self) {
        let mut is_told = true;
        loop {
            match self.db.credential_changes().await {
                Ok(mut changes) => {
                    self.memory.listening(true);
                    self.keys_changed.notify_one();
                    let lost = loop {
                        match changes.next().await {
                            Ok(true) => self.memory.forget(),
                            Ok(false) => continue,
                            Err(error) => break error,
                        }
                        self.keys_changed.notify_one();
                    };
                    self.memory.listening(false);
                    changes.close().await;
                    is_told = false;
                    tracing::warn!(error = %lost, "{UNHEARD}");
                }
                Err(error) if is_told => {
                    is_told = false;
                    tracing::warn!(%error, "{UNHEARD}");
                }
                Err(error) => tracing::debug!(%error, "still cannot listen for changes of credentials"),
            }
            tokio::time::sleep(LISTEN_AGAIN).await;
        }
    }

    /// Reads the signing keys again whenever something may have changed, and every few seconds. Apart from listening, which
    /// must not wait for it.
    async fn keep_keys(&self) {
        loop {
            // Whether it was woken or the time is over is all the same.
            let _ = timeout(READ_KEYS_EVERY, self.keys_changed.notified()).await;
            match timeout(READ_KEYS_EVERY, self.keys.refresh()).await {
                // A token that was verified by a key that is gone is not to be remembered.
                Ok(Ok(true)) => self.memory.forget(),
                Ok(Ok(false)) => {}
                Ok(Err(error)) if error.is_away() => {
                    tracing::warn!(%error, "the signing keys are not read again while the database is away");
                }
                Ok(Err(error)) => {
                    tracing::error!(%error, "the signing keys cannot be read again; going on with those at hand");
                }
                Err(_elapsed) => tracing::warn!("the signing keys were not read in time; going on with those at hand"),
            }
        }
    }

    /// The till that sends this password, plain or as its md5 (contract 5).
    ///
    /// # Errors
    /// [`AuthError`], except `Expired`.
    pub async fn till(&self, till_id: &str, password: &SecretString, from: IpAddr) -> Result<Arc<Caller>, AuthError> {
        self.counts.counted(Scheme::Basic, self.till_of(till_id, password, from).await)
    }

    async fn till_of(&self, till_id: &str, password: &SecretString, from: IpAddr) -> Result<Arc<Caller>, AuthError> {
        possible(till_id)?;
        let md5 = till_password(password);
        let key = self.memory.fingerprint(&["till", till_id, md5.expose_secret()]);
        let known = self.memory.recall(key, || self.look_up_till(till_id, key, &md5, from)).await?;
        self.rate_limits.admit(&known)?;
        Ok(Arc::clone(&known.caller))
    }

    async fn look_up_till(
        &self,
        till_id: &str,
        key: Fingerprint,
        md5: &SecretString,
        from: IpAddr,
    ) -> Result<Remembered, AuthError> {
        let attempt = Attempt::at("till", till_id, from);
        self.may_try(key, &attempt)?;
        let till = self.db.till(till_id).await?;
        let hash = till.as_ref().map(|till| till.password_hash.clone());
        self.prove(key, hash, md5, attempt).await?;
        let till = till.filter(|till| !till.disabled).ok_or(AuthError::Invalid("the till is disabled"))?;
        Ok(Remembered {
            caller: Arc::new(till.caller),
            name: format!("till:{till_id}").into(),
            rate_limit: till.rate_limit,
            seconds: 0,
        })
    }

    /// The caller behind a token (contract 5), of this service or of an outside issuer.
    ///
    /// # Errors
    /// [`AuthError`].
    pub async fn token(&self, token: &SecretString, from: IpAddr) -> Result<Arc<Caller>, AuthError> {
        self.counts.counted(Scheme::Token, self.token_of(token, from).await)
    }

    async fn token_of(&self, token: &SecretString, from: IpAddr) -> Result<Arc<Caller>, AuthError> {
        let key = self.memory.fingerprint(&["token", token.expose_secret()]);
        let known = self.memory.recall(key, || self.look_up_token(token.expose_secret(), from)).await?;
        if self.clock.now().as_second() >= known.seconds {
            return Err(AuthError::Expired);
        }
        self.rate_limits.admit(&known)?;
        Ok(Arc::clone(&known.caller))
    }

    async fn look_up_token(&self, token: &str, from: IpAddr) -> Result<Remembered, AuthError> {
        let counted = |error| {
            // What is not signed by whom it says counts towards its sender's address: it may name anyone.
            if let AuthError::Invalid(_) = error {
                self.attempts.failed_from(from);
            }
            error
        };
        let (header, claims) = jwt::peek(token).map_err(counted)?;
        let issuer = jwt::issuer(&claims).map_err(counted)?;
        if self.tokens.are_ours(issuer) {
            let token = self.tokens.verify(token, &header, issuer, self.clock.now()).map_err(counted)?;
            let client = self.client(&token.client_key).await?;
            let client = client.filter(|client| client.is_bound_to(token.org_id, None));
            return known_by_token(&token.client_key, client, token.issued_at, token.expires_at);
        }
        // Unlike our own, another's token costs reads before its signature is looked at.
        if let Some(retry_after) = self.attempts.blocked_from(from) {
            return Err(AuthError::TooManyFailures { retry_after });
        }
        let token = self.outside.verify(token, &header, &claims).await.map_err(counted)?;
        let client = self.client(&token.client_key).await?;
        let client = client.filter(|client| client.is_bound_to(token.org_id, Some(&token.issuer)));
        known_by_token(&token.client_key, client, token.issued_at, token.expires_at)
    }

    async fn client(&self, client_key: &str) -> Result<Option<StoredClient>, AuthError> {
        possible(client_key)?;
        Ok(self.db.oauth_client(client_key).await?)
    }

    /// The caller of a request that names a till or store of the caller's organisation (contract 5).
    ///
    /// # Errors
    /// [`AttributionError`].
    pub async fn attribute(
        &self,
        caller: &Caller,
        target_type: TargetType,
        code: &str,
    ) -> Result<Arc<Caller>, AttributionError> {
        possible(code).map_err(|_impossible| AttributionError::NoSuchTarget)?;
        let org_id = caller.org_id;
        let key = self.memory.fingerprint(&["target", &org_id.0.to_string(), target_type.name(), code]);
        let target = self.memory.recall_target(key, || self.look_up_target(org_id, target_type, code)).await?;
        Ok(Arc::new(caller.attributed_to(&target)))
    }

    async fn look_up_target(
        &self,
        org_id: OrgId,
        target_type: TargetType,
        code: &str,
    ) -> Result<Target, AttributionError> {
        let mut targets = self.db.targets(org_id, target_type, code).await.map_err(AuthError::from)?;
        match (targets.pop(), targets.is_empty()) {
            (Some(target), true) => Ok(target),
            (Some(_), false) => Err(AttributionError::SeveralTargets),
            (None, _) => Err(AttributionError::NoSuchTarget),
        }
    }

    /// A token for the client with this key and secret (contract 5).
    ///
    /// # Errors
    /// [`AuthError`], except `Expired`.
    pub async fn grant(&self, client_key: &str, secret: &SecretString, from: IpAddr) -> Result<AccessToken, AuthError> {
        self.counts.counted(Scheme::ClientSecret, self.token_for(client_key, secret, from).await)
    }

    async fn token_for(&self, client_key: &str, secret: &SecretString, from: IpAddr) -> Result<AccessToken, AuthError> {
        possible(client_key)?;
        let key = self.memory.fingerprint(&["client", client_key, secret.expose_secret()]);
        let known = self.memory.recall(key, || self.look_up_client(client_key, key, secret, from)).await?;
        self.rate_limits.admit(&known)?;
        let scope = (known.caller.access >= Access::Write).then_some(SCOPE);
        let lifetime = (self.clock.now(), known.seconds);
        let token = self.tokens.sign(client_key, &known.caller, scope, lifetime, &*self.entropy)?;
        Ok(AccessToken { token, ttl_seconds: known.seconds, scope })
    }

    async fn look_up_client(
        &self,
        client_key: &str,
        key: Fingerprint,
        secret: &SecretString,
        from: IpAddr,
    ) -> Result<Remembered, AuthError> {
        let attempt = Attempt::at("client", client_key, from);
        self.may_try(key, &attempt)?;
        let client = self.db.oauth_client(client_key).await?;
        let hash = client.as_ref().and_then(|client| client.secret_hash.clone());
        self.prove(key, hash, secret, attempt).await?;
        let client = client.filter(|client| !client.disabled).ok_or(AuthError::Invalid("the client is disabled"))?;
        Ok(Remembered {
            seconds: i64::from(client.token_ttl_seconds),
            name: format!("client:{client_key}").into(),
            rate_limit: client.rate_limit,
            caller: Arc::new(client.caller),
        })
    }

    /// Whether this secret may be looked at, which costs a read. One that was right before always may.
    fn may_try(&self, key: Fingerprint, attempt: &Attempt) -> Result<(), AuthError> {
        match self.attempts.blocked(attempt) {
            Some(retry_after) if !self.memory.was_proven(&key) => Err(AuthError::TooManyFailures { retry_after }),
            _ => Ok(()),
        }
    }

    /// Whether the secret belongs to the hash. Without a hash it does not, after the same time.
    async fn prove(
        &self,
        key: Fingerprint,
        hash: Option<String>,
        secret: &SecretString,
        attempt: Attempt,
    ) -> Result<(), AuthError> {
        if let Some(hash) = &hash
            && self.memory.is_proven(&key, hash).await
        {
            return Ok(());
        }
        let turn = self.passwords.turn().await?;
        // Those who were verified meanwhile count. And a secret that was right, and is no longer, is as good as any other.
        if let Some(retry_after) = self.attempts.blocked(&attempt) {
            return Err(AuthError::TooManyFailures { retry_after });
        }
        let (is_known, stored) = (hash.is_some(), hash.clone());
        let (attempts, secret) = (Arc::clone(&self.attempts), secret.clone());
        // Apart from the request: who hangs up before the answer is counted all the same.
        let verified = tokio::spawn(async move {
            let is_right = turn.verify(hash, secret).await;
            if !matches!(is_right, Ok(true)) {
                attempts.failed(&attempt);
            }
            is_right
        });
        if verified.await.map_err(|_| PasswordError::BrokeOff)?? {
            if let Some(stored) = stored {
                self.memory.prove(key, &stored).await;
            }
            return Ok(());
        }
        Err(AuthError::Invalid(if is_known {
            "the secret is wrong"
        } else {
            "there is no such till or client with a secret"
        }))
    }
}

/// What is remembered of a good token, if its client may still use it.
fn known_by_token(
    client_key: &str,
    client: Option<StoredClient>,
    issued_at: i64,
    expires_at: i64,
) -> Result<Remembered, AuthError> {
    let client = client.ok_or(AuthError::Invalid("the token's client is none of its issuer's"))?;
    if client.disabled {
        return Err(AuthError::Invalid("the token's client is disabled"));
    }
    // In doubt, a token of the second in which they were revoked was made before.
    if client.tokens_from.is_some_and(|from| Timestamp::from_second(issued_at).is_ok_and(|issued| issued < from)) {
        return Err(AuthError::Invalid("the token was revoked"));
    }
    Ok(Remembered {
        name: format!("client:{client_key}").into(),
        rate_limit: client.rate_limit,
        caller: Arc::new(client.caller),
        seconds: expires_at,
    })
}

/// Nothing that Postgres knows is called so: it has no U+0000 in a text, and `apply` takes no longer names.
fn possible(name: &str) -> Result<(), AuthError> {
    if name.contains('\0') {
        return Err(AuthError::Invalid("the name holds U+0000"));
    }
    if name.chars().count() > LONGEST_NAME {
        return Err(AuthError::Invalid("the name is too long"));
    }
    Ok(())
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
