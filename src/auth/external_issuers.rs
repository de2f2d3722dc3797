//! Verifies tokens of external issuers with keys that are fetched from the issuer and cached.
//!
//! While an issuer is down, its tokens are verified with the cached keys; only tokens that need an unknown key wait. An issuer
//! may name the clients of one organisation, and of these only the ones that are bound to it.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::http::HeaderMap;
use jiff::{SignedDuration, Timestamp};
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Header};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::Instrument;

use super::error::AuthError;
use super::jwt::{self, Claims, Expected};
use super::names::check_name;
use crate::db::{Db, StoredTokenIssuer};
use crate::model::{Clock, OrgId};
use crate::telemetry::traces;

/// At this age the cached keys are fetched again, while they go on verifying.
const REFRESH_AGE: SignedDuration = SignedDuration::from_mins(10);
/// At this age the cached keys of an unreachable issuer stop verifying.
const MAX_KEY_AGE: SignedDuration = SignedDuration::from_hours(24);
/// The shortest time between two fetches. Without it, tokens with unknown keys would flood the issuer with requests.
const FETCH_PAUSE: SignedDuration = SignedDuration::from_mins(1);
/// The shortest time between two fetches while there are no keys at all.
const FIRST_FETCH_PAUSE: SignedDuration = SignedDuration::from_secs(5);
/// After this time without a fetch, the next token waits for fresh keys, up to [`REVALIDATION_TIMEOUT`].
const IDLE_AGE: SignedDuration = SignedDuration::from_mins(20);
const REVALIDATION_TIMEOUT: Duration = Duration::from_secs(1);
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
const MAX_RESPONSE_BYTES: usize = 1024 * 1024;
const MAX_KEYS: usize = 100;

/// A verified token of an external issuer.
pub(super) struct ExternalToken {
    pub(super) org_id: OrgId,
    pub(super) issuer: String,
    pub(super) client_key: String,
    /// In seconds since 1970.
    pub(super) issued_at: i64,
    pub(super) expires_at: i64,
}

/// The external issuers that organisations accept.
pub(super) struct ExternalIssuers {
    db: Db,
    clock: Arc<dyn Clock>,
    http: reqwest::Client,
    /// By the location of the keys.
    key_sets: RwLock<HashMap<String, Arc<KeySet>>>,
}

impl ExternalIssuers {
    pub(super) fn new(db: Db, clock: Arc<dyn Clock>) -> Result<Self, reqwest::Error> {
        let http = reqwest::Client::builder()
            .timeout(FETCH_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("coupon-issuer/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(Self { db, clock, http, key_sets: RwLock::default() })
    }

    pub(super) async fn verify(
        &self,
        token: &str,
        header: &Header,
        claims: &Claims,
    ) -> Result<ExternalToken, AuthError> {
        let issuer = jwt::issuer(claims)?;
        if issuer.contains('\0') {
            return Err(AuthError::Invalid("the token's issuer is not accepted"));
        }
        let accepted = self.db.token_issuers(issuer).await?;
        let accepted = self.choose(accepted, claims).await?;
        let accepted = accepted.ok_or(AuthError::Invalid("the token's issuer is not accepted"))?;
        self.verify_for(token, header, &accepted).await
    }

    /// Chooses among the organisations that accept this issuer the one whose client the token names. The claims are not verified
    /// yet, so they serve for the lookup only. If no organisation has such a client, the token is verified for the first of
    /// them, so that the log shows the reason of the refusal.
    async fn choose(
        &self,
        accepted: Vec<StoredTokenIssuer>,
        claims: &Claims,
    ) -> Result<Option<StoredTokenIssuer>, AuthError> {
        if accepted.len() > 1 {
            for issuer in &accepted {
                let Some(Value::String(client_key)) = claims.get(&issuer.client_claim) else { continue };
                check_name(client_key)?;
                let client = self.db.oauth_client(client_key).await?;
                if client.is_some_and(|client| client.is_bound_to(issuer.org_id, Some(&issuer.issuer))) {
                    return Ok(Some(issuer.clone()));
                }
            }
        }
        Ok(accepted.into_iter().next())
    }

    async fn verify_for(
        &self,
        token: &str,
        header: &Header,
        accepted: &StoredTokenIssuer,
    ) -> Result<ExternalToken, AuthError> {
        let key = self.key_set(accepted).key(header.kid.as_deref(), &self.http, self.clock.now()).await?;
        if !accepted.algorithms.iter().any(|name| *name == format!("{:?}", key.algorithm)) {
            return Err(AuthError::Invalid("the token's algorithm is not accepted from its issuer"));
        }
        let expected = Expected {
            algorithm: key.algorithm,
            key: &key.decoding_key,
            issuer: &accepted.issuer,
            audience: &accepted.audience,
            claims: &[&accepted.client_claim],
        };
        let verified = jwt::verify(token, &expected, self.clock.now())?;
        let Some(Value::String(client_key)) = verified.claims.get(&accepted.client_claim) else {
            return Err(AuthError::Invalid("the token names no client"));
        };
        Ok(ExternalToken {
            org_id: accepted.org_id,
            issuer: accepted.issuer.clone(),
            client_key: client_key.clone(),
            issued_at: verified.issued_at,
            expires_at: verified.expires_at,
        })
    }

    fn key_set(&self, accepted: &StoredTokenIssuer) -> Arc<KeySet> {
        let location = match &accepted.jwks_url {
            Some(url) => KeyLocation::Url(url.clone()),
            None => KeyLocation::Discovery(accepted.issuer.clone()),
        };
        let name = format!("{location:?}");
        if let Some(known) = self.key_sets.read().unwrap_or_else(PoisonError::into_inner).get(&name) {
            return Arc::clone(known);
        }
        let mut sets = self.key_sets.write().unwrap_or_else(PoisonError::into_inner);
        let new = || {
            Arc::new(KeySet {
                location,
                cached: RwLock::default(),
                last_fetch: RwLock::default(),
                fetching: Arc::default(),
            })
        };
        Arc::clone(sets.entry(name).or_insert_with(new))
    }
}

#[derive(Debug)]
enum KeyLocation {
    /// The URL of the key set.
    Url(String),
    /// The issuer, whose discovery document names the URL.
    Discovery(String),
}

/// The keys of one issuer.
struct KeySet {
    location: KeyLocation,
    cached: RwLock<Option<CachedKeys>>,
    /// The start of the last fetch, successful or not.
    last_fetch: RwLock<Option<Timestamp>>,
    /// Locked during a fetch.
    fetching: Arc<Mutex<()>>,
}

struct CachedKeys {
    keys: Vec<(Option<String>, Arc<VerificationKey>)>,
    fetched_at: Timestamp,
}

struct VerificationKey {
    algorithm: Algorithm,
    decoding_key: DecodingKey,
}

impl KeySet {
    /// Returns the key of this name from the cache, or else fetches it from the issuer.
    async fn key(
        self: &Arc<Self>,
        kid: Option<&str>,
        http: &reqwest::Client,
        now: Timestamp,
    ) -> Result<Arc<VerificationKey>, AuthError> {
        if let Some(key) = self.cached_key(kid, now) {
            return self.revalidate(key, kid, http, now).await;
        }
        let guard = Arc::clone(&self.fetching).lock_owned().await;
        // Another request may have fetched the key meanwhile.
        if let Some(key) = self.cached_key(kid, now) {
            return Ok(key);
        }
        let pause = if self.age(now).is_some() { FETCH_PAUSE } else { FIRST_FETCH_PAUSE };
        if self.not_fetched_for(pause, now) {
            // Ignore a panic of the fetch: it is a fetch without a result.
            let _ = self.start_fetch(guard, http, now).await;
        }
        if self.age(now).is_none() {
            return Err(AuthError::IssuerAway);
        }
        self.cached_key(kid, now).ok_or(AuthError::Invalid("the token's kid is not one of its issuer's keys"))
    }

    /// Returns a cached key, and fetches old keys again in the background. If the last fetch is long ago, waits for the new keys
    /// up to [`REVALIDATION_TIMEOUT`], since the issuer may have withdrawn the key.
    async fn revalidate(
        self: &Arc<Self>,
        key: Arc<VerificationKey>,
        kid: Option<&str>,
        http: &reqwest::Client,
        now: Timestamp,
    ) -> Result<Arc<VerificationKey>, AuthError> {
        if self.age(now).is_none_or(|age| age < REFRESH_AGE) {
            return Ok(key);
        }
        let was_idle = self.not_fetched_for(IDLE_AGE, now);
        if self.not_fetched_for(FETCH_PAUSE, now)
            && let Ok(guard) = Arc::clone(&self.fetching).try_lock_owned()
        {
            let fetch = self.start_fetch(guard, http, now);
            if was_idle {
                let _ = timeout(REVALIDATION_TIMEOUT, fetch).await;
                return self
                    .cached_key(kid, now)
                    .ok_or(AuthError::Invalid("the token's kid is not one of its issuer's keys"));
            }
        }
        Ok(key)
    }

    fn not_fetched_for(&self, pause: SignedDuration, now: Timestamp) -> bool {
        let last = *self.last_fetch.read().unwrap_or_else(PoisonError::into_inner);
        last.is_none_or(|last| now.duration_since(last) >= pause)
    }

    /// Fetches the keys in a task of its own, which a caller that hangs up does not cancel.
    fn start_fetch(
        self: &Arc<Self>,
        guard: OwnedMutexGuard<()>,
        http: &reqwest::Client,
        now: Timestamp,
    ) -> JoinHandle<()> {
        *self.last_fetch.write().unwrap_or_else(PoisonError::into_inner) = Some(now);
        let span = traces::span!("fetch an issuer's keys", otel.kind = "client");
        // The fetch belongs to the trace of the request that needs the keys.
        let http = TracedClient { client: http.clone(), trace: span.in_scope(traces::outgoing_headers) };
        let set = Arc::clone(self);
        let fetch = async move {
            set.fetch(&http, now).await;
            drop(guard);
        };
        tokio::spawn(fetch.instrument(span))
    }

    fn cached_key(&self, kid: Option<&str>, now: Timestamp) -> Option<Arc<VerificationKey>> {
        let cached = self.cached.read().unwrap_or_else(PoisonError::into_inner);
        let cached = cached.as_ref().filter(|cached| now.duration_since(cached.fetched_at) < MAX_KEY_AGE)?;
        let key = match (kid, cached.keys.as_slice()) {
            (Some(kid), keys) => keys.iter().find(|(name, _)| name.as_deref() == Some(kid)),
            // A token without a kid is accepted if its issuer has one key only.
            (None, [only]) => Some(only),
            (None, _) => None,
        };
        key.map(|(_, key)| Arc::clone(key))
    }

    /// The age of the cached keys; `None`: there are none, or they are too old to verify.
    fn age(&self, now: Timestamp) -> Option<SignedDuration> {
        let cached = self.cached.read().unwrap_or_else(PoisonError::into_inner);
        cached.as_ref().map(|cached| now.duration_since(cached.fetched_at)).filter(|age| *age < MAX_KEY_AGE)
    }

    async fn fetch(&self, http: &TracedClient, now: Timestamp) {
        match self.request_keys(http).await {
            Ok(keys) => {
                tracing::debug!(location = ?self.location, keys = keys.len(), "fetched an external issuer's keys");
                *self.cached.write().unwrap_or_else(PoisonError::into_inner) =
                    Some(CachedKeys { keys, fetched_at: now });
            }
            Err(error) => tracing::warn!(location = ?self.location, error, "cannot fetch an external issuer's keys"),
        }
    }

    async fn request_keys(&self, http: &TracedClient) -> Result<Vec<(Option<String>, Arc<VerificationKey>)>, String> {
        #[derive(Deserialize)]
        struct Keys {
            keys: Vec<Value>,
        }
        let url = match &self.location {
            KeyLocation::Url(url) => url.clone(),
            KeyLocation::Discovery(issuer) => discover(http, issuer).await?,
        };
        let set: Keys = get_json(http, &url).await?;
        // Skip a key of an unknown type, but accept the others.
        let keys = set
            .keys
            .into_iter()
            .filter_map(|key| serde_json::from_value(key).ok())
            .filter_map(|key| verification_key(&key));
        Ok(keys.take(MAX_KEYS).collect())
    }
}

/// Converts a JWK; `None`: it is not for signatures, or its algorithm is not supported. The type of the key determines the
/// algorithm.
fn verification_key(jwk: &Jwk) -> Option<(Option<String>, Arc<VerificationKey>)> {
    if jwk.common.public_key_use.as_ref().is_some_and(|purpose| *purpose != PublicKeyUse::Signature) {
        return None;
    }
    let algorithm = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => Algorithm::RS256,
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => Algorithm::ES256,
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => Algorithm::EdDSA,
        _ => return None,
    };
    if jwk.common.key_algorithm.is_some_and(|named| named != algorithm.into()) {
        return None;
    }
    let decoding_key = DecodingKey::from_jwk(jwk).ok()?;
    Some((jwk.common.key_id.clone(), Arc::new(VerificationKey { algorithm, decoding_key })))
}

/// Finds the URL of an issuer's keys by `OpenID` Connect Discovery, or else by RFC 8414.
async fn discover(http: &TracedClient, issuer: &str) -> Result<String, String> {
    #[derive(Deserialize)]
    struct Metadata {
        issuer: String,
        jwks_uri: String,
    }
    let mut url = reqwest::Url::parse(issuer).map_err(|error| error.to_string())?;
    let path = url.path().trim_end_matches('/').to_owned();
    let openid = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
    let metadata: Metadata = match get_json(http, &openid).await {
        Ok(metadata) => metadata,
        Err(first) => {
            url.set_path(&format!("/.well-known/oauth-authorization-server{path}"));
            let second = get_json(http, url.as_str()).await;
            second.map_err(|second: String| format!("{openid}: {first}; {url}: {second}"))?
        }
    };
    if metadata.issuer != issuer {
        return Err("the discovery document is from another issuer".to_owned());
    }
    let keys = reqwest::Url::parse(&metadata.jwks_uri).map_err(|error| error.to_string())?;
    // Only a local issuer may name a local URL, and every other URL must be https: a discovery document must not make the service
    // send requests to its own host.
    let is_local = |url: &reqwest::Url| matches!(url.host_str(), Some("127.0.0.1" | "[::1]" | "localhost"));
    if is_local(&url) && is_local(&keys) || keys.scheme() == "https" && !is_local(&keys) {
        Ok(metadata.jwks_uri)
    } else {
        Err("the discovery document names a URL for the keys that is local or not https".to_owned())
    }
}

/// An HTTP client with the trace headers of its requests.
struct TracedClient {
    client: reqwest::Client,
    trace: HeaderMap,
}

async fn get_json<T: DeserializeOwned>(http: &TracedClient, url: &str) -> Result<T, String> {
    let describe = |error: reqwest::Error| error.without_url().to_string();
    let response = http.client.get(url).headers(http.trace.clone()).send().await;
    let mut response = response.and_then(reqwest::Response::error_for_status).map_err(describe)?;
    if !response.status().is_success() {
        return Err(format!("the response has the status {}", response.status()));
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(describe)? {
        body.extend_from_slice(&chunk);
        if body.len() > MAX_RESPONSE_BYTES {
            return Err(format!("the response has more than {MAX_RESPONSE_BYTES} bytes"));
        }
    }
    serde_json::from_slice(&body).map_err(|error| format!("the response is not the expected JSON: {error}"))
}
