//! Loads the keys that sign the service's own access tokens, and chooses the key that signs.
//!
//! The service reloads the keys every few seconds and after each notification from the database, so that a rotation needs no
//! restart.

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::KeyPair as _;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jiff::Timestamp;
use jsonwebtoken::jwk::{Jwk, JwkSet, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey};
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject;
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};

use crate::config::AuthSettings;
use crate::db::{Db, DbError, SigningKeyRow};
use crate::model::Clock;

/// Why a signing key could not be generated or read.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The query failed.
    #[error(transparent)]
    Db(#[from] DbError),
    /// The cryptographic library failed.
    #[error("no signing key could be generated")]
    Generate,
    /// A stored key is not an RSA private key.
    #[error("the signing key {0} cannot be read")]
    Unreadable(String),
    /// The file of `auth.signing_keys_file` cannot be read.
    #[error("auth.signing_keys_file: {0}: {1}")]
    File(String, #[source] std::io::Error),
    /// The file or the setting contains no usable key.
    #[error("{0} holds no RSA private key of at least 2048 bits as PKCS#8 PEM (\"BEGIN PRIVATE KEY\")")]
    NoKey(&'static str),
}

impl KeyError {
    /// Whether the database is unavailable, so that a retry may succeed.
    #[must_use]
    pub const fn is_unavailable(&self) -> bool {
        matches!(self, Self::Db(DbError::Unavailable(_) | DbError::TookTooLong(_) | DbError::ServerFault(_)))
    }
}

/// Where the keys are configured. In a file or a setting the first key signs, and all of them verify.
#[derive(Clone)]
pub enum KeySource {
    /// In the database, shared by all replicas. The first replica to start generates a key.
    Database,
    /// In a PEM file.
    File(PathBuf),
    /// In a setting, in PEM format.
    Value(SecretString),
}

impl KeySource {
    /// The source that these settings choose.
    #[must_use]
    pub fn from_settings(settings: &AuthSettings) -> Self {
        if !settings.signing_keys_file.is_empty() {
            Self::File(settings.signing_keys_file.clone().into())
        } else if !settings.signing_keys.expose_secret().is_empty() {
            Self::Value(settings.signing_keys.clone())
        } else {
            Self::Database
        }
    }

    /// Checks that the keys of a file or a setting can be read.
    ///
    /// # Errors
    /// The error that [`SigningKeys::load`] would return.
    pub fn check(&self) -> Result<(), KeyError> {
        self.configured()?.iter().flatten().try_for_each(|row| read(row).map(drop))
    }

    /// The keys of the file or the setting; `None`: the keys are in the database.
    fn configured(&self) -> Result<Option<Vec<SigningKeyRow>>, KeyError> {
        match self {
            Self::Database => Ok(None),
            Self::File(path) => {
                let text =
                    fs::read_to_string(path).map_err(|error| KeyError::File(path.display().to_string(), error))?;
                rows_of(&SecretString::from(text), "the file of auth.signing_keys_file").map(Some)
            }
            Self::Value(text) => rows_of(text, "auth.signing_keys").map(Some),
        }
    }
}

/// The loaded keys.
pub struct SigningKeys {
    source: KeySource,
    db: Db,
    clock: Arc<dyn Clock>,
    current: RwLock<Arc<Vec<SigningKey>>>,
}

pub(super) struct SigningKey {
    pub(super) kid: String,
    pub(super) signing: EncodingKey,
    pub(super) verifying: DecodingKey,
    public: Jwk,
    signs_from: Timestamp,
    verifies_until: Option<Timestamp>,
}

impl SigningKeys {
    /// Loads the keys.
    ///
    /// # Errors
    /// When a key cannot be read, or the query fails.
    pub async fn load(db: Db, source: KeySource, clock: Arc<dyn Clock>) -> Result<Self, KeyError> {
        let keys = Self { source, db, clock, current: RwLock::default() };
        keys.refresh().await?;
        Ok(keys)
    }

    /// Reloads the keys. Returns whether a key was removed or its expiry has changed, so that cached tokens must be verified again.
    pub(super) async fn refresh(&self) -> Result<bool, KeyError> {
        let rows = match self.source.configured()? {
            Some(rows) => rows,
            None => self.stored().await?,
        };
        let keys = rows.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        let is_unchanged =
            |old: &SigningKey| keys.iter().any(|new| new.kid == old.kid && new.verifies_until == old.verifies_until);
        let is_changed = !self.all().iter().all(is_unchanged);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
        Ok(is_changed)
    }

    async fn stored(&self) -> Result<Vec<SigningKeyRow>, KeyError> {
        let rows = self.db.signing_keys().await?;
        if !rows.is_empty() {
            return Ok(rows);
        }
        let generated = generate(self.clock.now()).await?;
        self.db.store_first_signing_key(&generated).await?;
        Ok(self.db.signing_keys().await?)
    }

    /// Calls `use_key` with the key that signs at present: the newest whose time has come, or else the first to come.
    pub(super) fn with_signing<T>(&self, use_key: impl FnOnce(&SigningKey) -> T) -> Option<T> {
        let (keys, now) = (self.all(), self.clock.now());
        let valid = || keys.iter().filter(|key| key.verifies_at(now));
        let newest = valid().filter(|key| key.signs_from <= now).max_by_key(|key| key.signs_from);
        newest.or_else(|| valid().min_by_key(|key| key.signs_from)).map(use_key)
    }

    /// Calls `use_key` with the key of this name, if it still verifies tokens.
    pub(super) fn with_verifying<T>(&self, kid: &str, use_key: impl FnOnce(&SigningKey) -> T) -> Option<T> {
        let now = self.clock.now();
        self.all().iter().find(|key| key.kid == kid && key.verifies_at(now)).map(use_key)
    }

    /// The public keys as a JWK set (RFC 7517), for other services that verify the tokens.
    pub fn published(&self) -> JwkSet {
        let now = self.clock.now();
        JwkSet { keys: self.all().iter().filter(|key| key.verifies_at(now)).map(|key| key.public.clone()).collect() }
    }

    fn all(&self) -> Arc<Vec<SigningKey>> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl SigningKey {
    fn verifies_at(&self, now: Timestamp) -> bool {
        self.verifies_until.is_none_or(|until| now < until)
    }
}

/// Generates a key that signs from this instant on.
///
/// # Errors
/// When the cryptographic library fails.
pub async fn generate(signs_from: Timestamp) -> Result<SigningKeyRow, KeyError> {
    let generated = tokio::task::spawn_blocking(|| {
        let pair = KeyPair::generate(KeySize::Rsa2048).map_err(|_| KeyError::Generate)?;
        let der: Pkcs8V1Der = pair.as_der().map_err(|_| KeyError::Generate)?;
        Ok::<_, KeyError>((kid(&pair), der.as_ref().to_vec().into()))
    });
    let (kid, private_key) = generated.await.map_err(|_| KeyError::Generate)??;
    Ok(SigningKeyRow { kid, private_key, signs_from, verifies_until: None })
}

/// Derives the key's name from the key, so that all replicas use the same name.
fn kid(pair: &KeyPair) -> String {
    URL_SAFE_NO_PAD.encode(&Sha256::digest(pair.public_key().as_ref())[..12])
}

/// Parses PEM: the first key signs, the others only verify.
fn rows_of(pem: &SecretString, source: &'static str) -> Result<Vec<SigningKeyRow>, KeyError> {
    let mut rows = Vec::new();
    // Trap: with a byte order mark before it the parser would skip the first key, and the second would sign.
    let pem = pem.expose_secret().trim_start_matches('\u{feff}');
    for key in PrivatePkcs8KeyDer::pem_slice_iter(pem.as_bytes()) {
        let key = key.map_err(|_| KeyError::NoKey(source))?;
        let pair = KeyPair::from_pkcs8(key.secret_pkcs8_der()).map_err(|_| KeyError::NoKey(source))?;
        let signs_from = if rows.is_empty() { Timestamp::MIN } else { Timestamp::MAX };
        let private_key = key.secret_pkcs8_der().to_vec().into();
        rows.push(SigningKeyRow { kid: kid(&pair), private_key, signs_from, verifies_until: None });
    }
    if rows.is_empty() { Err(KeyError::NoKey(source)) } else { Ok(rows) }
}

fn read(row: &SigningKeyRow) -> Result<SigningKey, KeyError> {
    let unreadable = || KeyError::Unreadable(row.kid.clone());
    let body = SecretString::from(STANDARD.encode(row.private_key.expose_secret()));
    let pem = format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", body.expose_secret());
    let pem = SecretString::from(pem);
    let signing = EncodingKey::from_rsa_pem(pem.expose_secret().as_bytes()).map_err(|_| unreadable())?;
    let pair = KeyPair::from_pkcs8(row.private_key.expose_secret()).map_err(|_| unreadable())?;
    let verifying = DecodingKey::from_rsa_der(pair.public_key().as_ref());
    let mut public = Jwk::from_encoding_key(&signing, Algorithm::RS256).map_err(|_| unreadable())?;
    public.common.key_id = Some(row.kid.clone());
    public.common.public_key_use = Some(PublicKeyUse::Signature);
    Ok(SigningKey {
        kid: row.kid.clone(),
        signing,
        verifying,
        public,
        signs_from: row.signs_from,
        verifies_until: row.verifies_until,
    })
}
