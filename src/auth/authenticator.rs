use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::credential_cache::{CredentialCache, Fingerprint};
use super::error::{AttributionError, AuthError, SetUpError};
use super::external_issuers::ExternalIssuers;
use super::failure_limits::{Attempt, FailureLimits};
use super::jwt;
use super::keys::SigningKeys;
use super::metrics::{AuthenticationMetrics, Scheme};
use super::names::check_name;
use super::passwords::{PasswordError, SecretVerifier, till_password};
use super::request_limits::RequestLimits;
use super::tokens::{SCOPE, Tokens};
use super::verified_credential::VerifiedCredential;
use crate::config::{AuthSettings, RateLimitSettings};
use crate::db::{Db, StoredClient};
use crate::model::{Access, Caller, Clock, Entropy, OrgId, RateLimit, Target, TargetType};

/// The pause before the service listens again after it lost the connection that notifies it.
const LISTEN_PAUSE: Duration = Duration::from_secs(1);
const NOT_LISTENING: &str =
    "not receiving notifications of credential changes; each credential is looked up again every second";
const KEY_RELOAD_INTERVAL: Duration = Duration::from_secs(5);
const KEY_RELOAD_TIMEOUT: Duration = Duration::from_secs(5);

/// An access token for a client.
pub struct AccessToken {
    /// The JWT.
    pub token: SecretString,
    /// The lifetime in seconds.
    pub ttl_seconds: i64,
    /// [`SCOPE`], if the client may issue coupons.
    pub scope: Option<&'static str>,
}

/// Verifies credentials, and limits requests and failures.
pub struct Authenticator {
    db: Db,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    keys: Arc<SigningKeys>,
    tokens: Tokens,
    external_issuers: ExternalIssuers,
    secret_verifier: SecretVerifier,
    failure_limits: Arc<FailureLimits>,
    request_limits: RequestLimits,
    cache: CredentialCache,
    metrics: AuthenticationMetrics,
    /// Wakes the task that reloads the signing keys.
    keys_changed: Notify,
}

impl Authenticator {
    /// Makes an authenticator. Its tokens name the public URL as their issuer.
    ///
    /// # Errors
    /// When there is no randomness, or the HTTP client cannot be made.
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
            external_issuers: ExternalIssuers::new(db.clone(), Arc::clone(&clock))?,
            secret_verifier: SecretVerifier::new(),
            failure_limits: Arc::new(FailureLimits::new(limits)),
            request_limits: RequestLimits::new(RateLimit::from_per_minute(limits.per_minute), Arc::clone(&clock)),
            cache: CredentialCache::new(&*entropy, settings.credential_cache, settings.secret_cache)?,
            metrics: AuthenticationMetrics::new(),
            keys_changed: Notify::new(),
            db,
            clock,
            entropy,
        })
    }

    /// The signing keys, whose public halves are published.
    #[must_use]
    pub fn keys(&self) -> &SigningKeys {
        &self.keys
    }

    /// Follows changes of credentials and signing keys. Never returns.
    pub async fn follow_changes(&self) {
        // Two tasks, since reloading the keys must not delay the next notification.
        tokio::join!(self.listen(), self.reload_keys());
    }

    async fn listen(&self) {
        let mut was_listening = true;
        loop {
            match self.db.credential_changes().await {
                Ok(mut changes) => {
                    self.cache.set_listening(true);
                    self.keys_changed.notify_one();
                    let lost = loop {
                        match changes.next().await {
                            Ok(true) => self.cache.invalidate_all(),
                            Ok(false) => continue,
                            Err(error) => break error,
                        }
                        self.keys_changed.notify_one();
                    };
                    self.cache.set_listening(false);
                    changes.close().await;
                    was_listening = false;
                    tracing::warn!(error = %lost, "{NOT_LISTENING}");
                }
                Err(error) if was_listening => {
                    was_listening = false;
                    tracing::warn!(%error, "{NOT_LISTENING}");
                }
                Err(error) => tracing::debug!(%error, "still cannot listen for changes of credentials"),
            }
            tokio::time::sleep(LISTEN_PAUSE).await;
        }
    }

    async fn reload_keys(&self) {
        loop {
            // Reload after a notification as well as after the interval.
            let _ = timeout(KEY_RELOAD_INTERVAL, self.keys_changed.notified()).await;
            match timeout(KEY_RELOAD_TIMEOUT, self.keys.refresh()).await {
                // The cache may hold tokens of a key that was removed.
                Ok(Ok(true)) => self.cache.invalidate_all(),
                Ok(Ok(false)) => {}
                Ok(Err(error)) if error.is_unavailable() => {
                    tracing::warn!(%error, "cannot reload the signing keys while the database is unavailable");
                }
                Ok(Err(error)) => {
                    tracing::error!(%error, "cannot reload the signing keys; continuing with the loaded keys");
                }
                Err(_elapsed) => {
                    tracing::warn!("reloading the signing keys timed out; continuing with the loaded keys");
                }
            }
        }
    }

    /// Authenticates a till by its password, which is plain or its md5.
    ///
    /// # Errors
    /// [`AuthError`], except `Expired`.
    pub async fn till(
        &self,
        till_id: &str,
        password: &SecretString,
        address: IpAddr,
    ) -> Result<Arc<Caller>, AuthError> {
        let result = self.authenticate_till(till_id, password, address).await;
        self.metrics.record(Scheme::Basic, &result);
        result
    }

    async fn authenticate_till(
        &self,
        till_id: &str,
        password: &SecretString,
        address: IpAddr,
    ) -> Result<Arc<Caller>, AuthError> {
        check_name(till_id)?;
        let md5 = till_password(password);
        let key = self.cache.fingerprint(&["till", till_id, md5.expose_secret()]);
        let verified = self.cache.get_or_verify(key, || self.verify_till(till_id, key, &md5, address)).await?;
        self.request_limits.admit(&verified)?;
        Ok(Arc::clone(&verified.caller))
    }

    async fn verify_till(
        &self,
        till_id: &str,
        key: Fingerprint,
        md5: &SecretString,
        address: IpAddr,
    ) -> Result<VerifiedCredential, AuthError> {
        let attempt = Attempt::new("till", till_id, address);
        self.check_failure_limits(key, &attempt)?;
        let till = self.db.till(till_id).await?;
        let hash = till.as_ref().map(|till| till.password_hash.clone());
        self.verify_secret(key, hash, md5, attempt).await?;
        let till = till.filter(|till| !till.disabled).ok_or(AuthError::Invalid("the till is disabled"))?;
        Ok(VerifiedCredential {
            caller: Arc::new(till.caller),
            name: format!("till:{till_id}").into(),
            rate_limit: till.rate_limit,
            seconds: 0,
        })
    }

    /// Authenticates a client by an access token, of this service or of an external issuer.
    ///
    /// # Errors
    /// [`AuthError`].
    pub async fn token(&self, token: &SecretString, address: IpAddr) -> Result<Arc<Caller>, AuthError> {
        let result = self.authenticate_token(token, address).await;
        self.metrics.record(Scheme::Token, &result);
        result
    }

    async fn authenticate_token(&self, token: &SecretString, address: IpAddr) -> Result<Arc<Caller>, AuthError> {
        let key = self.cache.fingerprint(&["token", token.expose_secret()]);
        let verified = self.cache.get_or_verify(key, || self.verify_token(token.expose_secret(), address)).await?;
        if self.clock.now().as_second() >= verified.seconds {
            return Err(AuthError::Expired);
        }
        self.request_limits.admit(&verified)?;
        Ok(Arc::clone(&verified.caller))
    }

    async fn verify_token(&self, token: &str, address: IpAddr) -> Result<VerifiedCredential, AuthError> {
        let record_failure = |error| {
            // An invalid token counts towards its sender's address only: anyone could send one in the name of somebody else.
            if let AuthError::Invalid(_) = error {
                self.failure_limits.record_failure_from_address(address);
            }
            error
        };
        let (header, claims) = jwt::decode_unverified(token).map_err(record_failure)?;
        let issuer = jwt::issuer(&claims).map_err(record_failure)?;
        if self.tokens.is_own_issuer(issuer) {
            let token = self.tokens.verify(token, &header, issuer, self.clock.now()).map_err(record_failure)?;
            let client = self.client(&token.client_key).await?;
            let client = client.filter(|client| client.is_bound_to(token.org_id, None));
            return credential_of_token(&token.client_key, client, token.issued_at, token.expires_at);
        }
        // Only for external tokens: they cost reads before their signature is verified.
        if let Some(retry_after) = self.failure_limits.retry_after_for_address(address) {
            return Err(AuthError::TooManyFailures { retry_after });
        }
        let token = self.external_issuers.verify(token, &header, &claims).await.map_err(record_failure)?;
        let client = self.client(&token.client_key).await?;
        let client = client.filter(|client| client.is_bound_to(token.org_id, Some(&token.issuer)));
        credential_of_token(&token.client_key, client, token.issued_at, token.expires_at)
    }

    async fn client(&self, client_key: &str) -> Result<Option<StoredClient>, AuthError> {
        check_name(client_key)?;
        Ok(self.db.oauth_client(client_key).await?)
    }

    /// Attributes a request to the till or store of the caller's organisation that the request names.
    ///
    /// # Errors
    /// [`AttributionError`].
    pub async fn attribute(
        &self,
        caller: &Caller,
        target_type: TargetType,
        code: &str,
    ) -> Result<Arc<Caller>, AttributionError> {
        check_name(code).map_err(|_invalid| AttributionError::NoSuchTarget)?;
        let org_id = caller.org_id;
        let key = self.cache.fingerprint(&["target", &org_id.0.to_string(), target_type.name(), code]);
        let target = self.cache.get_or_find_target(key, || self.find_target(org_id, target_type, code)).await?;
        Ok(Arc::new(caller.attributed_to(&target)))
    }

    async fn find_target(
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

    /// Issues an access token to a client that sends its key and secret.
    ///
    /// # Errors
    /// [`AuthError`], except `Expired`.
    pub async fn grant(
        &self,
        client_key: &str,
        secret: &SecretString,
        address: IpAddr,
    ) -> Result<AccessToken, AuthError> {
        let result = self.issue_token(client_key, secret, address).await;
        self.metrics.record(Scheme::ClientSecret, &result);
        result
    }

    async fn issue_token(
        &self,
        client_key: &str,
        secret: &SecretString,
        address: IpAddr,
    ) -> Result<AccessToken, AuthError> {
        check_name(client_key)?;
        let key = self.cache.fingerprint(&["client", client_key, secret.expose_secret()]);
        let verified = self.cache.get_or_verify(key, || self.verify_client(client_key, key, secret, address)).await?;
        self.request_limits.admit(&verified)?;
        let scope = (verified.caller.access >= Access::Write).then_some(SCOPE);
        let lifetime = (self.clock.now(), verified.seconds);
        let token = self.tokens.sign(client_key, &verified.caller, scope, lifetime, &*self.entropy)?;
        Ok(AccessToken { token, ttl_seconds: verified.seconds, scope })
    }

    async fn verify_client(
        &self,
        client_key: &str,
        key: Fingerprint,
        secret: &SecretString,
        address: IpAddr,
    ) -> Result<VerifiedCredential, AuthError> {
        let attempt = Attempt::new("client", client_key, address);
        self.check_failure_limits(key, &attempt)?;
        let client = self.db.oauth_client(client_key).await?;
        let hash = client.as_ref().and_then(|client| client.secret_hash.clone());
        self.verify_secret(key, hash, secret, attempt).await?;
        let client = client.filter(|client| !client.disabled).ok_or(AuthError::Invalid("the client is disabled"))?;
        Ok(VerifiedCredential {
            seconds: i64::from(client.token_ttl_seconds),
            name: format!("client:{client_key}").into(),
            rate_limit: client.rate_limit,
            caller: Arc::new(client.caller),
        })
    }

    /// Refuses a blocked caller before the lookup in the database, unless its secret was verified before.
    fn check_failure_limits(&self, key: Fingerprint, attempt: &Attempt) -> Result<(), AuthError> {
        match self.failure_limits.retry_after(attempt) {
            Some(retry_after) if !self.cache.was_verified(&key) => Err(AuthError::TooManyFailures { retry_after }),
            _ => Ok(()),
        }
    }

    /// Verifies that the secret belongs to the hash. Without a hash it fails, after the same time.
    async fn verify_secret(
        &self,
        key: Fingerprint,
        hash: Option<String>,
        secret: &SecretString,
        attempt: Attempt,
    ) -> Result<(), AuthError> {
        if let Some(hash) = &hash
            && self.cache.is_verified(&key, hash).await
        {
            return Ok(());
        }
        let permit = self.secret_verifier.acquire().await?;
        // Check again: other secrets may have failed while this one waited. A secret that was valid for an earlier hash gets no
        // exception here.
        if let Some(retry_after) = self.failure_limits.retry_after(&attempt) {
            return Err(AuthError::TooManyFailures { retry_after });
        }
        let (is_known, stored) = (hash.is_some(), hash.clone());
        let (failure_limits, secret) = (Arc::clone(&self.failure_limits), secret.clone());
        // In a task of its own: a caller that hangs up before the answer must not escape the count.
        let verified = tokio::spawn(async move {
            let is_right = permit.verify(hash, secret).await;
            if !matches!(is_right, Ok(true)) {
                failure_limits.record_failure(&attempt);
            }
            is_right
        });
        if verified.await.map_err(|_| PasswordError::TaskFailed)?? {
            if let Some(stored) = stored {
                self.cache.mark_verified(key, &stored).await;
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

/// The credential of a verified token, unless its client is disabled or the token was revoked.
fn credential_of_token(
    client_key: &str,
    client: Option<StoredClient>,
    issued_at: i64,
    expires_at: i64,
) -> Result<VerifiedCredential, AuthError> {
    let client = client.ok_or(AuthError::Invalid("the token's client does not belong to its issuer"))?;
    if client.disabled {
        return Err(AuthError::Invalid("the token's client is disabled"));
    }
    // `iat` has whole seconds: a token from the second of the revocation counts as revoked.
    if client.tokens_from.is_some_and(|from| Timestamp::from_second(issued_at).is_ok_and(|issued| issued < from)) {
        return Err(AuthError::Invalid("the token was revoked"));
    }
    Ok(VerifiedCredential {
        name: format!("client:{client_key}").into(),
        rate_limit: client.rate_limit,
        caller: Arc::new(client.caller),
        seconds: expires_at,
    })
}
