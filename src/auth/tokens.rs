//! Signs and verifies the service's own access tokens: RS256 JWTs by RFC 9068, valid on every replica.

use std::sync::Arc;

use jiff::Timestamp;
use jsonwebtoken::{Algorithm, Header};
use secrecy::SecretString;
use serde::Serialize;
use serde_json::Value;

use super::error::AuthError;
use super::jwt::{self, Expected};
use super::keys::SigningKeys;
use crate::model::{Caller, Entropy, OrgId};

/// The claim `aud`.
const AUDIENCE: &str = "coupon-issuer";
/// The only scope: issuing coupons.
pub const SCOPE: &str = "coupon:issue";
/// The claim `iss` where no public URL is configured.
const DEFAULT_ISSUER: &str = "coupon-issuer";

pub(super) struct Tokens {
    keys: Arc<SigningKeys>,
    issuer: String,
}

pub(super) struct OwnToken {
    pub(super) org_id: OrgId,
    pub(super) client_key: String,
    /// In seconds since 1970.
    pub(super) issued_at: i64,
    pub(super) expires_at: i64,
}

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    sub: &'a str,
    client_id: &'a str,
    org_id: i64,
    iat: i64,
    exp: i64,
    jti: String,
    aud: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<&'a str>,
}

impl Tokens {
    pub(super) fn new(keys: Arc<SigningKeys>, public_url: Option<String>) -> Self {
        Self { keys, issuer: public_url.unwrap_or_else(|| DEFAULT_ISSUER.to_owned()) }
    }

    /// Whether the service issues tokens under this name. The default stays valid after a public URL is configured.
    pub(super) fn is_own_issuer(&self, issuer: &str) -> bool {
        issuer == self.issuer || issuer == DEFAULT_ISSUER
    }

    pub(super) fn sign(
        &self,
        client_key: &str,
        caller: &Caller,
        scope: Option<&str>,
        lifetime: (Timestamp, i64),
        entropy: &dyn Entropy,
    ) -> Result<SecretString, AuthError> {
        let jti = entropy.uuid().map_err(|error| AuthError::Internal(error.to_string()))?;
        let iat = lifetime.0.as_second();
        let claims = Claims {
            iss: &self.issuer,
            sub: client_key,
            client_id: client_key,
            org_id: caller.org_id.0,
            iat,
            exp: iat.saturating_add(lifetime.1),
            jti: jti.to_string(),
            aud: AUDIENCE,
            scope,
        };
        let signed = self.keys.with_signing(|key| {
            let header =
                Header { typ: Some("at+jwt".to_owned()), kid: Some(key.kid.clone()), ..Header::new(Algorithm::RS256) };
            jsonwebtoken::encode(&header, &claims, &key.signing)
        });
        let signed = signed.ok_or_else(|| AuthError::Internal("there is no signing key".to_owned()))?;
        signed.map(SecretString::from).map_err(|error| AuthError::Internal(error.to_string()))
    }

    pub(super) fn verify(
        &self,
        token: &str,
        header: &Header,
        issuer: &str,
        now: Timestamp,
    ) -> Result<OwnToken, AuthError> {
        let kid = header.kid.as_deref().ok_or(AuthError::Invalid("the token has no kid"))?;
        let verified = self.keys.with_verifying(kid, |key| {
            let claims = &["client_id", "org_id"];
            let expected =
                Expected { algorithm: Algorithm::RS256, key: &key.verifying, issuer, audience: AUDIENCE, claims };
            jwt::verify(token, &expected, now)
        });
        let verified = verified.ok_or(AuthError::Invalid("the token's kid is not one of this service's keys"))??;
        let org_id = verified.claims.get("org_id").and_then(Value::as_i64);
        match (verified.claims.get("client_id"), org_id) {
            (Some(Value::String(client_key)), Some(org_id)) => Ok(OwnToken {
                org_id: OrgId(org_id),
                client_key: client_key.clone(),
                issued_at: verified.issued_at,
                expires_at: verified.expires_at,
            }),
            _ => Err(AuthError::Invalid("the token's client_id or org_id is not valid")),
        }
    }
}
