//! Access tokens: RS256 JWTs of this service (contract 5), signed with a key that all replicas share.
//!
//! Time is passed in, so expiry is checked here and not by the library.

use std::collections::HashMap;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::KeyPair as _;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jiff::Timestamp;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::model::{Caller, Entropy};
use crate::store::{SigningKeyRow, Store, StoreError};

const ISSUER: &str = "coupon-issuer";
const AUDIENCE: &str = "coupon-issuer";

/// A signing key could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The database cannot be asked.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No key could be made.
    #[error("no signing key could be made")]
    Generate,
    /// A stored key is none.
    #[error("the stored signing key {0} cannot be read")]
    Unreadable(String),
}

#[derive(Debug)]
pub(super) enum TokenError {
    Invalid,
    Expired,
    Unsigned(String),
}

/// The keys: the newest signs, all of them verify.
pub struct TokenKeys {
    kid: String,
    signing: EncodingKey,
    verifying: HashMap<String, DecodingKey>,
}

/// What a good token says.
pub(super) struct VerifiedToken {
    pub(super) client_key: String,
    /// In seconds since 1970.
    pub(super) expires_at: i64,
}

#[derive(Serialize, Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    client_id: String,
    org_id: i64,
    iat: i64,
    exp: i64,
    jti: String,
    aud: String,
}

impl TokenKeys {
    /// The keys in the database; the first start of all makes one.
    ///
    /// # Errors
    /// When the database cannot be asked, or a key is unreadable.
    pub async fn load(store: &Store) -> Result<Self, KeyError> {
        let mut rows = store.signing_keys().await?;
        if rows.is_empty() {
            let made = tokio::task::spawn_blocking(generate).await.map_err(|_| KeyError::Generate)??;
            store.store_first_signing_key(&made).await?;
            rows = store.signing_keys().await?;
        }
        let newest = rows.first().ok_or(KeyError::Generate)?;
        let (kid, signing) = (newest.kid.clone(), signing_key(newest)?);
        let verifying = rows.iter().map(verifying_key).collect::<Result<_, _>>()?;
        Ok(Self { kid, signing, verifying })
    }

    pub(super) fn sign(
        &self,
        client_key: &str,
        caller: &Caller,
        now: Timestamp,
        ttl_seconds: i64,
        entropy: &dyn Entropy,
    ) -> Result<SecretString, TokenError> {
        let jti = entropy.uuid().map_err(|error| TokenError::Unsigned(error.to_string()))?;
        let claims = Claims {
            iss: ISSUER.to_owned(),
            sub: client_key.to_owned(),
            client_id: client_key.to_owned(),
            org_id: caller.org_id.0,
            iat: now.as_second(),
            exp: now.as_second() + ttl_seconds,
            jti: jti.to_string(),
            aud: AUDIENCE.to_owned(),
        };
        let header = Header { kid: Some(self.kid.clone()), ..Header::new(Algorithm::RS256) };
        jsonwebtoken::encode(&header, &claims, &self.signing)
            .map(SecretString::from)
            .map_err(|error| TokenError::Unsigned(error.to_string()))
    }

    pub(super) fn verify(&self, token: &SecretString, now: Timestamp) -> Result<VerifiedToken, TokenError> {
        let token = token.expose_secret();
        let header = jsonwebtoken::decode_header(token).map_err(|_| TokenError::Invalid)?;
        let key = header.kid.and_then(|kid| self.verifying.get(&kid)).ok_or(TokenError::Invalid)?;
        let mut validation = Validation::new(Algorithm::RS256);
        validation.set_issuer(&[ISSUER]);
        validation.set_audience(&[AUDIENCE]);
        validation.set_required_spec_claims(&["exp", "iss", "aud"]);
        validation.validate_exp = false;
        let claims: Claims = jsonwebtoken::decode(token, key, &validation).map_err(|_| TokenError::Invalid)?.claims;
        if now.as_second() >= claims.exp {
            return Err(TokenError::Expired);
        }
        Ok(VerifiedToken { client_key: claims.client_id, expires_at: claims.exp })
    }
}

fn generate() -> Result<SigningKeyRow, KeyError> {
    let pair = KeyPair::generate(KeySize::Rsa2048).map_err(|_| KeyError::Generate)?;
    let der: Pkcs8V1Der = pair.as_der().map_err(|_| KeyError::Generate)?;
    let kid = URL_SAFE_NO_PAD.encode(&Sha256::digest(pair.public_key().as_ref())[..12]);
    Ok(SigningKeyRow { kid, private_key: der.as_ref().to_vec().into() })
}

fn signing_key(row: &SigningKeyRow) -> Result<EncodingKey, KeyError> {
    let body = STANDARD.encode(row.private_key.expose_secret());
    let pem = SecretString::from(format!("-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----\n"));
    EncodingKey::from_rsa_pem(pem.expose_secret().as_bytes()).map_err(|_| KeyError::Unreadable(row.kid.clone()))
}

fn verifying_key(row: &SigningKeyRow) -> Result<(String, DecodingKey), KeyError> {
    let pair =
        KeyPair::from_pkcs8(row.private_key.expose_secret()).map_err(|_| KeyError::Unreadable(row.kid.clone()))?;
    Ok((row.kid.clone(), DecodingKey::from_rsa_der(pair.public_key().as_ref())))
}
