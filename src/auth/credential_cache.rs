//! Caches verified credentials for a short time, so that a busy till costs one argon2 hash and one read in that time, and not
//! one for each request.
//!
//! A change of credentials in the database invalidates all entries at once. The pairs of a secret and its stored hash stay
//! valid, since no change of credentials can affect them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hmac::{Hmac, KeyInit, Mac};
use moka::future::Cache;
use sha2::Sha256;
use tokio::time::timeout;
use tracing::Instrument;

use super::error::{AttributionError, AuthError};
use super::verified_credential::VerifiedCredential;
use crate::model::{Entropy, EntropyError, Target};
use crate::telemetry::traces;

/// The capacity of each cache. An entry takes about 500 bytes.
const MAX_ENTRIES: u64 = 100_000;
/// How long an entry stays valid while the service receives no notifications of changes.
const MAX_AGE_WITHOUT_NOTIFICATIONS: Duration = Duration::from_secs(1);
/// An entry is loaded again when the credentials change during the load, up to this number of loads.
const MAX_LOADS: u32 = 5;
const LOAD_TIMEOUT: Duration = Duration::from_secs(5);

/// A keyed hash of a credential, or of the name of a target.
pub(super) type Fingerprint = [u8; 32];

struct Entry<T> {
    value: Arc<T>,
    epoch: u64,
    loaded_at: Instant,
}

type Entries<T> = Cache<Fingerprint, Arc<Entry<T>>>;

/// Caches verified credentials, and the targets that requests are attributed to.
pub(super) struct CredentialCache {
    credentials: Entries<VerifiedCredential>,
    targets: Entries<Target>,
    /// The stored hash that each secret was verified against.
    verified_hashes: Cache<Fingerprint, Arc<str>>,
    fingerprint_key: Hmac<Sha256>,
    /// Counts the notified changes. An entry is valid only in the epoch in which it was loaded.
    epoch: AtomicU64,
    is_listening: AtomicBool,
}

impl CredentialCache {
    /// An entry expires after `time_to_live`; a verified hash when its secret was not used for `hash_time_to_idle`.
    pub(super) fn new(
        entropy: &dyn Entropy,
        time_to_live: Duration,
        hash_time_to_idle: Duration,
    ) -> Result<Self, EntropyError> {
        let mut key = [0; 64];
        entropy.fill(&mut key)?;
        let fingerprint_key = Hmac::new(&key.into());
        secrecy::zeroize::Zeroize::zeroize(&mut key);
        Ok(Self {
            credentials: Cache::builder().max_capacity(MAX_ENTRIES).time_to_live(time_to_live).build(),
            targets: Cache::builder().max_capacity(MAX_ENTRIES).time_to_live(time_to_live).build(),
            verified_hashes: Cache::builder().max_capacity(MAX_ENTRIES).time_to_idle(hash_time_to_idle).build(),
            fingerprint_key,
            epoch: AtomicU64::new(0),
            is_listening: AtomicBool::new(false),
        })
    }

    /// Invalidates all credentials and targets, because one of them has changed or may have changed.
    pub(super) fn invalidate_all(&self) {
        self.epoch.fetch_add(1, Ordering::SeqCst);
    }

    /// Sets whether the service receives notifications of changes. Earlier notifications may be lost, so this invalidates all.
    pub(super) fn set_listening(&self, is_listening: bool) {
        self.invalidate_all();
        self.is_listening.store(is_listening, Ordering::SeqCst);
    }

    /// Returns the cached credential, or else the result of `verify`, which is cached if it is valid. Of concurrent calls for
    /// the same key, one verifies and the others wait for its result.
    pub(super) async fn get_or_verify<F: Future<Output = Result<VerifiedCredential, AuthError>>>(
        &self,
        key: Fingerprint,
        verify: impl Fn() -> F,
    ) -> Result<Arc<VerifiedCredential>, AuthError> {
        self.get_or_load(&self.credentials, key, verify).await
    }

    /// As [`CredentialCache::get_or_verify`], for a target. A target that does not exist is not cached: it may be created any
    /// moment.
    pub(super) async fn get_or_find_target<F: Future<Output = Result<Target, AttributionError>>>(
        &self,
        key: Fingerprint,
        find: impl Fn() -> F,
    ) -> Result<Arc<Target>, AttributionError> {
        self.get_or_load(&self.targets, key, find).await
    }

    async fn get_or_load<T, E, F>(
        &self,
        entries: &Entries<T>,
        key: Fingerprint,
        load: impl Fn() -> F,
    ) -> Result<Arc<T>, E>
    where
        T: Send + Sync + 'static,
        E: From<AuthError> + Clone + Send + Sync + 'static,
        F: Future<Output = Result<T, E>>,
    {
        match entries.get(&key).await {
            Some(entry) if self.is_valid(&entry) => Ok(Arc::clone(&entry.value)),
            // Boxed, so that the futures of the many cache hits stay small.
            _ => {
                let loaded = timeout(LOAD_TIMEOUT, self.load(entries, key, load));
                let loaded = loaded.instrument(traces::span!("authenticate"));
                Box::pin(loaded).await.unwrap_or_else(|_elapsed| Err(AuthError::TimedOut.into()))
            }
        }
    }

    async fn load<T, E, F>(&self, entries: &Entries<T>, key: Fingerprint, load: impl Fn() -> F) -> Result<Arc<T>, E>
    where
        T: Send + Sync + 'static,
        E: From<AuthError> + Clone + Send + Sync + 'static,
        F: Future<Output = Result<T, E>>,
    {
        if entries.get(&key).await.is_some_and(|entry| !self.is_valid(&entry)) {
            entries.invalidate(&key).await;
        }
        for _ in 0..MAX_LOADS {
            // Read the epoch before the load begins: a change during the load must make its result invalid.
            let (epoch, loaded_at) = (self.epoch.load(Ordering::SeqCst), Instant::now());
            let loaded = async {
                let value = Arc::new(load().await?);
                Ok(Arc::new(Entry { value, epoch, loaded_at }))
            };
            let entry = entries.try_get_with(key, loaded).await.map_err(|shared: Arc<E>| (*shared).clone())?;
            // The entry may come from another caller's load that began before this request and before a change.
            if entry.epoch >= epoch {
                return Ok(Arc::clone(&entry.value));
            }
            entries.invalidate(&key).await;
        }
        Err(AuthError::TimedOut.into())
    }

    fn is_valid<T>(&self, entry: &Entry<T>) -> bool {
        entry.epoch == self.epoch.load(Ordering::SeqCst)
            && (self.is_listening.load(Ordering::SeqCst) || entry.loaded_at.elapsed() < MAX_AGE_WITHOUT_NOTIFICATIONS)
    }

    /// Whether this secret was verified against any stored hash.
    pub(super) fn was_verified(&self, key: &Fingerprint) -> bool {
        self.verified_hashes.contains_key(key)
    }

    /// Whether this secret was verified against this stored hash.
    pub(super) async fn is_verified(&self, key: &Fingerprint, hash: &str) -> bool {
        self.verified_hashes.get(key).await.is_some_and(|verified| *verified == *hash)
    }

    pub(super) async fn mark_verified(&self, key: Fingerprint, hash: &str) {
        self.verified_hashes.insert(key, hash.into()).await;
    }

    /// The cache key of a credential. The hash has a secret key, so that a memory dump is not a list of fast password hashes.
    pub(super) fn fingerprint(&self, parts: &[&str]) -> Fingerprint {
        let mut mac = self.fingerprint_key.clone();
        for part in parts {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part.as_bytes());
        }
        mac.finalize().into_bytes().into()
    }
}
