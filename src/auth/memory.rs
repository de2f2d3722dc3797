//! What was found good is remembered for a short time, so that a busy till costs no argon2, no signature check and no read.
//!
//! A change of credentials in the database ends all of it at once: the next request of each caller is looked up again. Only
//! that a secret belongs to a stored hash is known for longer, since that does not change.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hmac::{Hmac, KeyInit, Mac};
use moka::future::Cache;
use sha2::Sha256;
use tokio::time::timeout;

use tracing::Instrument;

use super::rate_limits::CredentialName;
use super::{AttributionError, AuthError};
use crate::model::{Caller, Entropy, EntropyError, RateLimit, Target};
use crate::telemetry::traces;

/// Credentials remembered at once, at most, and targets. One takes about 500 bytes.
const MOST_REMEMBERED: u64 = 100_000;
/// How long a credential is trusted while nobody could tell of a change.
const UNTOLD: Duration = Duration::from_secs(1);
/// So often is a credential checked that changes while it is checked.
const MOST_CHECKS: u32 = 5;
/// How long finding a credential good may take, or finding a target.
const LOOK_UP: Duration = Duration::from_secs(5);

/// A keyed hash of a credential, or of what names a target.
pub(super) type Fingerprint = [u8; 32];

/// A credential that was found good.
pub(super) struct Remembered {
    pub(super) caller: Arc<Caller>,
    pub(super) name: CredentialName,
    pub(super) rate_limit: Option<RateLimit>,
    /// For a client's secret: how long its tokens live. For a token: when it ends, in seconds since 1970.
    pub(super) seconds: i64,
}

struct Entry<T> {
    remembered: Arc<T>,
    epoch: u64,
    read_at: Instant,
}

type Entries<T> = Cache<Fingerprint, Arc<Entry<T>>>;

/// The memory of good credentials, and of the targets that requests are attributed to.
pub(super) struct Memory {
    remembered: Entries<Remembered>,
    targets: Entries<Target>,
    /// The stored hash that a secret was found to belong to.
    proven: Cache<Fingerprint, Arc<str>>,
    fingerprint: Hmac<Sha256>,
    /// Counts the changes that were told.
    epoch: AtomicU64,
    told: AtomicBool,
}

impl Memory {
    /// A memory under a key of its own: a credential is looked up again after `time_to_live`, and its secret is verified
    /// again when it was not used for `proven_for`.
    pub(super) fn new(
        entropy: &dyn Entropy,
        time_to_live: Duration,
        proven_for: Duration,
    ) -> Result<Self, EntropyError> {
        let mut key = [0; 64];
        entropy.fill(&mut key)?;
        let fingerprint = Hmac::new(&key.into());
        secrecy::zeroize::Zeroize::zeroize(&mut key);
        Ok(Self {
            remembered: Cache::builder().max_capacity(MOST_REMEMBERED).time_to_live(time_to_live).build(),
            targets: Cache::builder().max_capacity(MOST_REMEMBERED).time_to_live(time_to_live).build(),
            proven: Cache::builder().max_capacity(MOST_REMEMBERED).time_to_idle(proven_for).build(),
            fingerprint,
            epoch: AtomicU64::new(0),
            told: AtomicBool::new(false),
        })
    }

    /// Something has changed, or may have: every credential and target is to be looked up again.
    pub(super) fn forget(&self) {
        self.epoch.fetch_add(1, Ordering::SeqCst);
    }

    /// Whether changes are being told from now on. What happened before may not have been.
    pub(super) fn listening(&self, told: bool) {
        self.forget();
        self.told.store(told, Ordering::SeqCst);
    }

    /// The credential that is remembered under this key, or else what the check finds, which is remembered if it is good. Of
    /// those who ask for the same at once, one checks.
    pub(super) async fn recall<F: Future<Output = Result<Remembered, AuthError>>>(
        &self,
        key: Fingerprint,
        check: impl Fn() -> F,
    ) -> Result<Arc<Remembered>, AuthError> {
        self.recall_from(&self.remembered, key, check).await
    }

    /// As [`Memory::recall`], for a target. One that is not found is not remembered: it may be there a moment later.
    pub(super) async fn recall_target<F: Future<Output = Result<Target, AttributionError>>>(
        &self,
        key: Fingerprint,
        find: impl Fn() -> F,
    ) -> Result<Arc<Target>, AttributionError> {
        self.recall_from(&self.targets, key, find).await
    }

    async fn recall_from<T, E, F>(
        &self,
        entries: &Entries<T>,
        key: Fingerprint,
        check: impl Fn() -> F,
    ) -> Result<Arc<T>, E>
    where
        T: Send + Sync + 'static,
        E: From<AuthError> + Clone + Send + Sync + 'static,
        F: Future<Output = Result<T, E>>,
    {
        match entries.get(&key).await {
            Some(entry) if self.is_current(&entry) => Ok(Arc::clone(&entry.remembered)),
            // Boxed, so that the many who are remembered do not carry its state about.
            _ => {
                let checked = timeout(LOOK_UP, self.check(entries, key, check));
                let checked = checked.instrument(traces::span!("authenticate"));
                Box::pin(checked).await.unwrap_or_else(|_elapsed| Err(AuthError::TimedOut.into()))
            }
        }
    }

    async fn check<T, E, F>(&self, entries: &Entries<T>, key: Fingerprint, check: impl Fn() -> F) -> Result<Arc<T>, E>
    where
        T: Send + Sync + 'static,
        E: From<AuthError> + Clone + Send + Sync + 'static,
        F: Future<Output = Result<T, E>>,
    {
        if entries.get(&key).await.is_some_and(|entry| !self.is_current(&entry)) {
            entries.invalidate(&key).await;
        }
        for _ in 0..MOST_CHECKS {
            // Read before the check begins: a change during it makes its result an old one.
            let (epoch, read_at) = (self.epoch.load(Ordering::SeqCst), Instant::now());
            let checked = async {
                let remembered = Arc::new(check().await?);
                Ok(Arc::new(Entry { remembered, epoch, read_at }))
            };
            let entry = entries.try_get_with(key, checked).await.map_err(|shared: Arc<E>| (*shared).clone())?;
            // It may be one that another caller's check began before this request came, and before a change.
            if entry.epoch >= epoch {
                return Ok(Arc::clone(&entry.remembered));
            }
            entries.invalidate(&key).await;
        }
        Err(AuthError::TimedOut.into())
    }

    fn is_current<T>(&self, entry: &Entry<T>) -> bool {
        entry.epoch == self.epoch.load(Ordering::SeqCst)
            && (self.told.load(Ordering::SeqCst) || entry.read_at.elapsed() < UNTOLD)
    }

    /// Whether this secret was found to belong to some stored hash.
    pub(super) fn was_proven(&self, key: &Fingerprint) -> bool {
        self.proven.contains_key(key)
    }

    /// Whether this secret was found to belong to this stored hash.
    pub(super) async fn is_proven(&self, key: &Fingerprint, hash: &str) -> bool {
        self.proven.get(key).await.is_some_and(|proven| *proven == *hash)
    }

    /// Remembers that it does.
    pub(super) async fn prove(&self, key: Fingerprint, hash: &str) {
        self.proven.insert(key, hash.into()).await;
    }

    /// A key for a credential: keyed itself, so that a dump of the memory is no list of password hashes.
    pub(super) fn fingerprint(&self, parts: &[&str]) -> Fingerprint {
        let mut mac = self.fingerprint.clone();
        for part in parts {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part.as_bytes());
        }
        mac.finalize().into_bytes().into()
    }
}
