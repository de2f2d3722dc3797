//! Hashes and verifies secrets with argon2id, with the library's default parameters.

use std::fmt::Write;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use argon2::Argon2;
use argon2::password_hash::{self, PasswordHasher, PasswordVerifier, phc::PasswordHash};
use md5::{Digest, Md5};
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// How long a request waits for a permit to verify its secret.
const PERMIT_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a secret could not be hashed or verified. A wrong secret is not an error.
#[derive(Debug, thiserror::Error)]
pub enum PasswordError {
    /// There is no randomness for a salt, or the parameters of a stored hash are invalid.
    #[error("hashing failed: {0}")]
    Hash(#[from] password_hash::Error),
    /// A stored hash is not in the PHC format.
    #[error("a stored hash cannot be read: {0}")]
    Stored(#[from] password_hash::phc::Error),
    /// The task that hashes has panicked or was cancelled.
    #[error("the hashing task failed")]
    TaskFailed,
    /// Waiting for a permit timed out.
    #[error("too many secrets are waiting to be verified")]
    Busy,
}

/// Hashes a secret for storage. Takes tens of milliseconds.
///
/// # Errors
/// When there is no randomness for a salt.
pub fn hash_secret(secret: &SecretString) -> Result<String, PasswordError> {
    Ok(Argon2::default().hash_password(secret.expose_secret().as_bytes())?.to_string())
}

/// Whether a stored hash belongs to this secret. Takes tens of milliseconds.
///
/// # Errors
/// When the stored hash cannot be read.
pub fn verify_secret(hash: &str, secret: &SecretString) -> Result<bool, PasswordError> {
    let hash = PasswordHash::new(hash)?;
    match Argon2::default().verify_password(secret.expose_secret().as_bytes(), &hash) {
        Ok(()) => Ok(true),
        Err(password_hash::Error::PasswordInvalid) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The md5 of a till's password in lower-case hex, which is what the service hashes and verifies. A password that looks like an
/// md5 is taken as one: tills may send either (docs/contract.md).
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

/// Verifies secrets on blocking threads, and on at most half of the cores: a flood of secrets must not keep the service from
/// serving callers whose credentials are cached.
pub(super) struct SecretVerifier {
    permits: Arc<Semaphore>,
}

/// Permits the verification of one secret.
pub(super) struct Permit(#[expect(dead_code, reason = "released when dropped")] OwnedSemaphorePermit);

impl SecretVerifier {
    pub(super) fn new() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self { permits: Arc::new(Semaphore::new(cores.div_ceil(2))) }
    }

    pub(super) async fn acquire(&self) -> Result<Permit, PasswordError> {
        let permit = timeout(PERMIT_TIMEOUT, Arc::clone(&self.permits).acquire_owned()).await;
        Ok(Permit(permit.map_err(|_| PasswordError::Busy)?.map_err(|_| PasswordError::TaskFailed)?))
    }
}

impl Permit {
    /// Whether the hash belongs to the secret. Without a hash the answer is no, after the same time: the duration must not
    /// reveal whether the till exists.
    pub(super) async fn verify(self, hash: Option<String>, secret: SecretString) -> Result<bool, PasswordError> {
        let verified = tokio::task::spawn_blocking(move || {
            let _permit = self;
            match hash {
                Some(hash) => verify_secret(&hash, &secret),
                None => verify_secret(dummy_hash()?, &secret).map(|_| false),
            }
        });
        verified.await.map_err(|_| PasswordError::TaskFailed)?
    }
}

fn dummy_hash() -> Result<&'static str, PasswordError> {
    static HASH: OnceLock<String> = OnceLock::new();
    if let Some(hash) = HASH.get() {
        return Ok(hash);
    }
    let hash = hash_secret(&"nobody's".into())?;
    Ok(HASH.get_or_init(|| hash))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The check vector of docs/contract.md.
    #[test]
    fn a_plain_password_and_its_md5_are_the_same() {
        let md5 = "8a16a6b70505eb1f1ff7cdc0cd5559a7";
        for given in ["server123", md5, "8A16A6B70505EB1F1FF7CDC0CD5559A7"] {
            assert_eq!(till_password(&given.into()).expose_secret(), md5, "{given}");
        }
    }
}
