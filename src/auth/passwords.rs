//! Secrets at rest: argon2id, with the parameters that the library recommends.
//!
//! Slow by design, so it never runs on the async threads and never on all of the cores.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use argon2::Argon2;
use argon2::password_hash::{self, PasswordHasher, PasswordVerifier, phc::PasswordHash};
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// A secret could not be hashed or checked; a wrong secret is not an error.
#[derive(Debug, thiserror::Error)]
pub enum PasswordError {
    /// A stored hash is none, or there is no randomness for a salt.
    #[error("hashing failed: {0}")]
    Hash(#[from] password_hash::Error),
    /// A stored hash is none.
    #[error("a stored hash cannot be read: {0}")]
    Stored(#[from] password_hash::phc::Error),
    /// The check itself broke off.
    #[error("the check broke off")]
    BrokeOff,
    /// Too many others are waiting for theirs.
    #[error("too many secrets are waiting to be checked")]
    Busy,
}

/// Hashes a secret for storage. Takes tens of milliseconds.
///
/// # Errors
/// When there is no randomness for a salt.
pub fn hash_secret(secret: &SecretString) -> Result<String, PasswordError> {
    Ok(Argon2::default().hash_password(secret.expose_secret().as_bytes())?.to_string())
}

/// Whether this is the secret behind a stored hash. Takes tens of milliseconds.
///
/// # Errors
/// When the stored hash is none.
pub fn verify_secret(hash: &str, secret: &SecretString) -> Result<bool, PasswordError> {
    let hash = PasswordHash::new(hash)?;
    match Argon2::default().verify_password(secret.expose_secret().as_bytes(), &hash) {
        Ok(()) => Ok(true),
        Err(password_hash::Error::PasswordInvalid) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// How long a caller waits for its turn.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Checks secrets beside the async threads, on half of the cores at most: who floods the service with secrets cannot keep it
/// from serving those whose secrets it knows.
pub(super) struct Passwords {
    permits: Arc<Semaphore>,
}

/// Leave to check one secret.
pub(super) struct Turn(#[expect(dead_code, reason = "given back when dropped")] OwnedSemaphorePermit);

impl Passwords {
    pub(super) fn new() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self { permits: Arc::new(Semaphore::new(cores.div_ceil(2))) }
    }

    /// Waits for a turn, and not for ever.
    pub(super) async fn turn(&self) -> Result<Turn, PasswordError> {
        let turn = timeout(LONGEST_WAIT, Arc::clone(&self.permits).acquire_owned()).await;
        Ok(Turn(turn.map_err(|_| PasswordError::Busy)?.map_err(|_| PasswordError::BrokeOff)?))
    }
}

impl Turn {
    /// Whether the secret is the one behind the hash. Without a hash the answer is no, after the same time: how long it
    /// takes does not tell whether there is such a till.
    pub(super) async fn verify(self, hash: Option<String>, secret: SecretString) -> Result<bool, PasswordError> {
        let checked = tokio::task::spawn_blocking(move || {
            let _turn = self;
            match hash {
                Some(hash) => verify_secret(&hash, &secret),
                None => verify_secret(nobodys_hash()?, &secret).map(|_| false),
            }
        });
        checked.await.map_err(|_| PasswordError::BrokeOff)?
    }
}

fn nobodys_hash() -> Result<&'static str, PasswordError> {
    static HASH: OnceLock<String> = OnceLock::new();
    if let Some(hash) = HASH.get() {
        return Ok(hash);
    }
    let hash = hash_secret(&"nobody's".into())?;
    Ok(HASH.get_or_init(|| hash))
}
