//! Tokens of outside issuers: whose they are, and the keys they are verified with, which are fetched and kept.
//!
//! An issuer that is down keeps being verified from what was fetched before, and holds up nobody but those whose token needs
//! a key that was never seen. An issuer speaks for one organisation's clients, and only for those that are bound to it.

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

use super::jwt::{self, Claims, Expected};
use super::{AuthError, possible};
use crate::db::{Db, StoredTokenIssuer};
use crate::model::{Clock, OrgId};
use crate::telemetry::traces;

/// Keys are fetched again at this age, while those at hand go on verifying.
const FRESH_FOR: SignedDuration = SignedDuration::from_mins(10);
/// Keys of an issuer that stays away are believed for so long.
const KEPT_FOR: SignedDuration = SignedDuration::from_hours(24);
/// A key that is not known is looked for at most so often.
const BETWEEN_FETCHES: SignedDuration = SignedDuration::from_mins(1);
/// Where nothing has ever been fetched, it is tried more often.
const BETWEEN_FIRST_TRIES: SignedDuration = SignedDuration::from_secs(5);
/// Where nobody has asked an issuer for so long, it is asked before its old keys are believed, and has this long to answer.
const FORGOTTEN_AFTER: SignedDuration = SignedDuration::from_mins(20);
const MOMENT: Duration = Duration::from_secs(1);
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
const LARGEST_ANSWER: usize = 1024 * 1024;
const MOST_KEYS: usize = 100;

/// A good token of an outside issuer.
pub(super) struct OutsideToken {
    pub(super) org_id: OrgId,
    pub(super) issuer: String,
    pub(super) client_key: String,
    /// In seconds since 1970.
    pub(super) issued_at: i64,
    pub(super) expires_at: i64,
}

/// The outside issuers that organisations accept.
pub(super) struct OutsideIssuers {
    db: Db,
    clock: Arc<dyn Clock>,
    web: reqwest::Client,
    /// By where the keys come from.
    key_sets: RwLock<HashMap<String, Arc<KeySet>>>,
}

impl OutsideIssuers {
    pub(super) fn new(db: Db, clock: Arc<dyn Clock>) -> Result<Self, reqwest::Error> {
        let web = reqwest::Client::builder()
            .timeout(FETCH_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("coupon-issuer/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(Self { db, clock, web, key_sets: RwLock::default() })
    }

    /// Verifies a token that says it is an outside issuer's.
    pub(super) async fn verify(
        &self,
        token: &str,
        header: &Header,
        claims: &Claims,
    ) -> Result<OutsideToken, AuthError> {
        let issuer = jwt::issuer(claims)?;
        if issuer.contains('\0') {
            return Err(AuthError::Invalid("the token's issuer is not accepted"));
        }
        let accepted = self.db.token_issuers(issuer).await?;
        let meant = self.meant(accepted, claims).await?;
        let accepted = meant.ok_or(AuthError::Invalid("the token's issuer is not accepted"))?;
        self.verify_for(token, header, &accepted).await
    }

    /// Several organisations may accept one issuer: that of the client that the token names is meant. What it names is not
    /// believed here, only looked up. Where it names nobody's client it is verified all the same, for the reason in the log.
    async fn meant(
        &self,
        accepted: Vec<StoredTokenIssuer>,
        claims: &Claims,
    ) -> Result<Option<StoredTokenIssuer>, AuthError> {
        if accepted.len() > 1 {
            for one in &accepted {
                let Some(Value::String(client_key)) = claims.get(&one.client_claim) else { continue };
                possible(client_key)?;
                let client = self.db.oauth_client(client_key).await?;
                if client.is_some_and(|client| client.is_bound_to(one.org_id, Some(&one.issuer))) {
                    return Ok(Some(one.clone()));
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
    ) -> Result<OutsideToken, AuthError> {
        let key = self.key_set(accepted).key(header.kid.as_deref(), &self.web, self.clock.now()).await?;
        if !accepted.algorithms.iter().any(|name| *name == format!("{:?}", key.algorithm)) {
            return Err(AuthError::Invalid("the token's algorithm is not accepted from its issuer"));
        }
        let expected = Expected {
            algorithm: key.algorithm,
            key: &key.verifying,
            issuer: &accepted.issuer,
            audience: &accepted.audience,
            claims: &[&accepted.client_claim],
        };
        let verified = jwt::verify(token, &expected, self.clock.now())?;
        let Some(Value::String(client_key)) = verified.claims.get(&accepted.client_claim) else {
            return Err(AuthError::Invalid("the token names no client"));
        };
        Ok(OutsideToken {
            org_id: accepted.org_id,
            issuer: accepted.issuer.clone(),
            client_key: client_key.clone(),
            issued_at: verified.issued_at,
            expires_at: verified.expires_at,
        })
    }

    fn key_set(&self, accepted: &StoredTokenIssuer) -> Arc<KeySet> {
        let place = match &accepted.jwks_url {
            Some(url) => KeyPlace::At(url.clone()),
            None => KeyPlace::Discovered(accepted.issuer.clone()),
        };
        let name = format!("{place:?}");
        if let Some(known) = self.key_sets.read().unwrap_or_else(PoisonError::into_inner).get(&name) {
            return Arc::clone(known);
        }
        let mut sets = self.key_sets.write().unwrap_or_else(PoisonError::into_inner);
        let new = || {
            Arc::new(KeySet { place, kept: RwLock::default(), last_try: RwLock::default(), fetching: Arc::default() })
        };
        Arc::clone(sets.entry(name).or_insert_with(new))
    }
}

#[derive(Debug)]
enum KeyPlace {
    At(String),
    Discovered(String),
}

/// The keys of one issuer.
struct KeySet {
    place: KeyPlace,
    kept: RwLock<Option<Kept>>,
    last_try: RwLock<Option<Timestamp>>,
    /// Held while fetching.
    fetching: Arc<Mutex<()>>,
}

struct Kept {
    keys: Vec<(Option<String>, Arc<OutsideKey>)>,
    fetched_at: Timestamp,
}

struct OutsideKey {
    algorithm: Algorithm,
    verifying: DecodingKey,
}

impl KeySet {
    /// The key of this name, from what is kept or else from the issuer.
    async fn key(
        self: &Arc<Self>,
        kid: Option<&str>,
        web: &reqwest::Client,
        now: Timestamp,
    ) -> Result<Arc<OutsideKey>, AuthError> {
        if let Some(key) = self.kept_key(kid, now) {
            return self.unless_withdrawn(key, kid, web, now).await;
        }
        let guard = Arc::clone(&self.fetching).lock_owned().await;
        // Whoever held the lock may have fetched it.
        if let Some(key) = self.kept_key(kid, now) {
            return Ok(key);
        }
        let pause = if self.age(now).is_some() { BETWEEN_FETCHES } else { BETWEEN_FIRST_TRIES };
        if self.not_tried_for(pause, now) {
            // A fetch that breaks off has fetched nothing.
            let _ = self.start_fetch(guard, web, now).await;
        }
        if self.age(now).is_none() {
            return Err(AuthError::IssuerAway);
        }
        self.kept_key(kid, now).ok_or(AuthError::Invalid("the token's key is none of its issuer's"))
    }

    /// This key, which is kept. Where the keys are old they are fetched again meanwhile; where nobody has asked for long, the
    /// issuer first gets a moment to say that it has withdrawn the key.
    async fn unless_withdrawn(
        self: &Arc<Self>,
        key: Arc<OutsideKey>,
        kid: Option<&str>,
        web: &reqwest::Client,
        now: Timestamp,
    ) -> Result<Arc<OutsideKey>, AuthError> {
        if self.age(now).is_none_or(|age| age < FRESH_FOR) {
            return Ok(key);
        }
        let is_forgotten = self.not_tried_for(FORGOTTEN_AFTER, now);
        if self.not_tried_for(BETWEEN_FETCHES, now)
            && let Ok(guard) = Arc::clone(&self.fetching).try_lock_owned()
        {
            let fetch = self.start_fetch(guard, web, now);
            if is_forgotten {
                let _ = timeout(MOMENT, fetch).await;
                return self.kept_key(kid, now).ok_or(AuthError::Invalid("the token's key is none of its issuer's"));
            }
        }
        Ok(key)
    }

    fn not_tried_for(&self, pause: SignedDuration, now: Timestamp) -> bool {
        let last = *self.last_try.read().unwrap_or_else(PoisonError::into_inner);
        last.is_none_or(|last| now.duration_since(last) >= pause)
    }

    /// Fetches the keys, apart from the request: who hangs up does not cut it short.
    fn start_fetch(
        self: &Arc<Self>,
        guard: OwnedMutexGuard<()>,
        web: &reqwest::Client,
        now: Timestamp,
    ) -> JoinHandle<()> {
        *self.last_try.write().unwrap_or_else(PoisonError::into_inner) = Some(now);
        let span = traces::span!("fetch an issuer's keys", otel.kind = "client");
        // The request whose token needs them is the one that they are fetched for.
        let web = Web { client: web.clone(), trace: span.in_scope(traces::handed_on) };
        let set = Arc::clone(self);
        let fetch = async move {
            set.fetch(&web, now).await;
            drop(guard);
        };
        tokio::spawn(fetch.instrument(span))
    }

    fn kept_key(&self, kid: Option<&str>, now: Timestamp) -> Option<Arc<OutsideKey>> {
        let kept = self.kept.read().unwrap_or_else(PoisonError::into_inner);
        let kept = kept.as_ref().filter(|kept| now.duration_since(kept.fetched_at) < KEPT_FOR)?;
        let key = match (kid, kept.keys.as_slice()) {
            (Some(kid), keys) => keys.iter().find(|(name, _)| name.as_deref() == Some(kid)),
            // Without a name it can only be the only one.
            (None, [only]) => Some(only),
            (None, _) => None,
        };
        key.map(|(_, key)| Arc::clone(key))
    }

    /// How old the keys are; `None`: there are none, or they are too old to be believed.
    fn age(&self, now: Timestamp) -> Option<SignedDuration> {
        let kept = self.kept.read().unwrap_or_else(PoisonError::into_inner);
        kept.as_ref().map(|kept| now.duration_since(kept.fetched_at)).filter(|age| *age < KEPT_FOR)
    }

    async fn fetch(&self, web: &Web, now: Timestamp) {
        match self.fetched(web).await {
            Ok(keys) => {
                tracing::debug!(place = ?self.place, keys = keys.len(), "fetched an outside issuer's keys");
                *self.kept.write().unwrap_or_else(PoisonError::into_inner) = Some(Kept { keys, fetched_at: now });
            }
            Err(error) => tracing::warn!(place = ?self.place, error, "an outside issuer's keys cannot be fetched"),
        }
    }

    async fn fetched(&self, web: &Web) -> Result<Vec<(Option<String>, Arc<OutsideKey>)>, String> {
        #[derive(Deserialize)]
        struct Keys {
            keys: Vec<Value>,
        }
        let url = match &self.place {
            KeyPlace::At(url) => url.clone(),
            KeyPlace::Discovered(issuer) => discover(web, issuer).await?,
        };
        let set: Keys = get_json(web, &url).await?;
        // A key of a kind that is not known here is no reason to refuse the others.
        let keys =
            set.keys.into_iter().filter_map(|key| serde_json::from_value(key).ok()).filter_map(|key| usable(&key));
        Ok(keys.take(MOST_KEYS).collect())
    }
}

/// A key that verifies signatures by an algorithm that is accepted here: which one follows from the key.
fn usable(jwk: &Jwk) -> Option<(Option<String>, Arc<OutsideKey>)> {
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
    let verifying = DecodingKey::from_jwk(jwk).ok()?;
    Some((jwk.common.key_id.clone(), Arc::new(OutsideKey { algorithm, verifying })))
}

/// Where an issuer's keys are: by `OpenID` Connect Discovery, or else by RFC 8414.
async fn discover(web: &Web, issuer: &str) -> Result<String, String> {
    #[derive(Deserialize)]
    struct Metadata {
        issuer: String,
        jwks_uri: String,
    }
    let mut url = reqwest::Url::parse(issuer).map_err(|error| error.to_string())?;
    let path = url.path().trim_end_matches('/').to_owned();
    let openid = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
    let metadata: Metadata = match get_json(web, &openid).await {
        Ok(metadata) => metadata,
        Err(first) => {
            url.set_path(&format!("/.well-known/oauth-authorization-server{path}"));
            let second = get_json(web, url.as_str()).await;
            second.map_err(|second: String| format!("{openid}: {first}; {url}: {second}"))?
        }
    };
    if metadata.issuer != issuer {
        return Err("its discovery document is another issuer's".to_owned());
    }
    let keys = reqwest::Url::parse(&metadata.jwks_uri).map_err(|error| error.to_string())?;
    // Only an issuer on this machine may name one that is, or anything that is not behind https.
    let is_local = |url: &reqwest::Url| matches!(url.host_str(), Some("127.0.0.1" | "[::1]" | "localhost"));
    if is_local(&url) && is_local(&keys) || keys.scheme() == "https" && !is_local(&keys) {
        Ok(metadata.jwks_uri)
    } else {
        Err("its discovery document names keys that are not behind https".to_owned())
    }
}

/// What is asked of others, and the headers that say for which trace.
struct Web {
    client: reqwest::Client,
    trace: HeaderMap,
}

async fn get_json<T: DeserializeOwned>(web: &Web, url: &str) -> Result<T, String> {
    let told = |error: reqwest::Error| error.without_url().to_string();
    let asked = web.client.get(url).headers(web.trace.clone()).send().await;
    let mut answer = asked.and_then(reqwest::Response::error_for_status).map_err(told)?;
    if !answer.status().is_success() {
        return Err(format!("answered {}", answer.status()));
    }
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(told)? {
        body.extend_from_slice(&chunk);
        if body.len() > LARGEST_ANSWER {
            return Err(format!("answered more than {LARGEST_ANSWER} bytes"));
        }
    }
    serde_json::from_slice(&body).map_err(|error| format!("answered no such JSON: {error}"))
}
