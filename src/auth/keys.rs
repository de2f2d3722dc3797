//! The keys that sign this service's own access tokens: where they come from, and which one signs when.
//!
//! They are read again every few seconds and whenever the database tells of a change, so that rotating them needs no restart.

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

/// A signing key could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The database cannot be asked.
    #[error(transparent)]
    Db(#[from] DbError),
    /// No key could be made.
    #[error("no signing key could be made")]
    Generate,
    /// A stored key is none.
    #[error("the signing key {0} cannot be read")]
    Unreadable(String),
    /// The file with the keys cannot be read.
    #[error("auth.signing_keys_file: {0}: {1}")]
    File(String, #[source] std::io::Error),
    /// There is no key where keys should be.
    #[error("{0} holds no RSA private key of at least 2048 bits as PKCS#8 PEM (\"BEGIN PRIVATE KEY\")")]
    None(&'static str),
}

impl KeyError {
    /// Whether trying again later may succeed.
    #[must_use]
    pub const fn is_away(&self) -> bool {
        matches!(self, Self::Db(DbError::Unavailable(_) | DbError::TookTooLong(_) | DbError::ServerFault(_)))
    }
}

/// Where the keys are. Of a file and a value the first key signs and all of them verify.
#[derive(Clone)]
pub enum KeySource {
    /// In the database, shared by all replicas; the first start of all makes one.
    Database,
    /// In a file of PEM.
    File(PathBuf),
    /// In a setting, as PEM.
    Value(SecretString),
}

impl KeySource {
    /// Where these settings keep the keys.
    #[must_use]
    pub fn of(settings: &AuthSettings) -> Self {
        if !settings.signing_keys_file.is_empty() {
            Self::File(settings.signing_keys_file.clone().into())
        } else if !settings.signing_keys.expose_secret().is_empty() {
            Self::Value(settings.signing_keys.clone())
        } else {
            Self::Database
        }
    }

    /// Checks that the keys can be read and are keys, where they are not in the database.
    ///
    /// # Errors
    /// What [`SigningKeys::load`] would fail on.
    pub fn check(&self) -> Result<(), KeyError> {
        self.outside()?.iter().flatten().try_for_each(|row| read(row).map(drop))
    }

    /// `None`: they are in the database.
    fn outside(&self) -> Result<Option<Vec<SigningKeyRow>>, KeyError> {
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

/// The keys as they are at present.
pub struct SigningKeys {
    source: KeySource,
    db: Db,
    clock: Arc<dyn Clock>,
    current: RwLock<Arc<Vec<SigningKey>>>,
}

/// One key.
pub(super) struct SigningKey {
    pub(super) kid: String,
    pub(super) signing: EncodingKey,
    pub(super) verifying: DecodingKey,
    public: Jwk,
    signs_from: Timestamp,
    verifies_until: Option<Timestamp>,
}

impl SigningKeys {
    /// The keys at present.
    ///
    /// # Errors
    /// When the database cannot be asked, or a key is unreadable.
    pub async fn load(db: Db, source: KeySource, clock: Arc<dyn Clock>) -> Result<Self, KeyError> {
        let keys = Self { source, db, clock, current: RwLock::default() };
        keys.refresh().await?;
        Ok(keys)
    }

    /// Reads them again, and says whether one is gone or ends at another time than before.
    pub(super) async fn refresh(&self) -> Result<bool, KeyError> {
        let rows = match self.source.outside()? {
            Some(rows) => rows,
            None => self.stored().await?,
        };
        let keys = rows.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        let stays =
            |old: &SigningKey| keys.iter().any(|new| new.kid == old.kid && new.verifies_until == old.verifies_until);
        let is_changed = !self.all().iter().all(stays);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
        Ok(is_changed)
    }

    async fn stored(&self) -> Result<Vec<SigningKeyRow>, KeyError> {
        let rows = self.db.signing_keys().await?;
        if !rows.is_empty() {
            return Ok(rows);
        }
        let made = generate(self.clock.now()).await?;
        self.db.store_first_signing_key(&made).await?;
        Ok(self.db.signing_keys().await?)
    }

    /// Does something with the key that signs at present.
    pub(super) fn with_signing<T>(&self, then: impl FnOnce(&SigningKey) -> T) -> Option<T> {
        let (keys, now) = (self.all(), self.clock.now());
        let good = || keys.iter().filter(|key| key.verifies_at(now));
        let newest = good().filter(|key| key.signs_from <= now).max_by_key(|key| key.signs_from);
        newest.or_else(|| good().min_by_key(|key| key.signs_from)).map(then)
    }

    /// Does something with the key of this name, if its tokens are still good.
    pub(super) fn with_verifying<T>(&self, kid: &str, then: impl FnOnce(&SigningKey) -> T) -> Option<T> {
        let now = self.clock.now();
        self.all().iter().find(|key| key.kid == kid && key.verifies_at(now)).map(then)
    }

    /// The public halves, for whoever verifies tokens elsewhere (RFC 7517).
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

/// Makes a key that signs from then on.
///
/// # Errors
/// When the library cannot.
pub async fn generate(signs_from: Timestamp) -> Result<SigningKeyRow, KeyError> {
    let made = tokio::task::spawn_blocking(|| {
        let pair = KeyPair::generate(KeySize::Rsa2048).map_err(|_| KeyError::Generate)?;
        let der: Pkcs8V1Der = pair.as_der().map_err(|_| KeyError::Generate)?;
        Ok::<_, KeyError>((kid(&pair), der.as_ref().to_vec().into()))
    });
    let (kid, private_key) = made.await.map_err(|_| KeyError::Generate)??;
    Ok(SigningKeyRow { kid, private_key, signs_from, verifies_until: None })
}

/// A key's name follows from the key: it is the same wherever the key is read.
fn kid(pair: &KeyPair) -> String {
    URL_SAFE_NO_PAD.encode(&Sha256::digest(pair.public_key().as_ref())[..12])
}

/// The keys of a PEM text: the first signs, the others only verify.
fn rows_of(pem: &SecretString, place: &'static str) -> Result<Vec<SigningKeyRow>, KeyError> {
    let mut rows = Vec::new();
    // Behind a byte order mark the first key would not be seen, and the second would sign.
    let pem = pem.expose_secret().trim_start_matches('\u{feff}');
    for key in PrivatePkcs8KeyDer::pem_slice_iter(pem.as_bytes()) {
        let key = key.map_err(|_| KeyError::None(place))?;
        let pair = KeyPair::from_pkcs8(key.secret_pkcs8_der()).map_err(|_| KeyError::None(place))?;
        let signs_from = if rows.is_empty() { Timestamp::MIN } else { Timestamp::MAX };
        let private_key = key.secret_pkcs8_der().to_vec().into();
        rows.push(SigningKeyRow { kid: kid(&pair), private_key, signs_from, verifies_until: None });
    }
    if rows.is_empty() { Err(KeyError::None(place)) } else { Ok(rows) }
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
