//! Verifies access tokens of any issuer by RFC 9068. The caller chooses the key and the algorithm, never the token. The times
//! are checked here and not by the library, which would read the system's clock instead of the service's.

use std::collections::BTreeMap;

use jiff::Timestamp;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, Header, Validation};
use serde_json::Value;

use super::error::AuthError;

const MAX_TOKEN_LENGTH: usize = 8 * 1024;
/// How far an issuer's clock may be ahead, in seconds. It does not extend a token's lifetime.
const CLOCK_SKEW: i64 = 30;

pub(super) type Claims = BTreeMap<String, Value>;

pub(super) struct Expected<'a> {
    pub(super) algorithm: Algorithm,
    pub(super) key: &'a DecodingKey,
    pub(super) issuer: &'a str,
    pub(super) audience: &'a str,
    /// Claims that the token must have in addition to those of RFC 9068.
    pub(super) claims: &'a [&'a str],
}

pub(super) struct VerifiedToken {
    pub(super) claims: Claims,
    /// In seconds since 1970.
    pub(super) issued_at: i64,
    pub(super) expires_at: i64,
}

/// Decodes a token without verifying its signature. The result may be used to choose a key, and for nothing else.
pub(super) fn decode_unverified(token: &str) -> Result<(Header, Claims), AuthError> {
    if token.len() > MAX_TOKEN_LENGTH {
        return Err(AuthError::Invalid("the token is too long"));
    }
    let header = jsonwebtoken::decode_header(token).map_err(|error| match error.kind() {
        ErrorKind::Json(_) => {
            AuthError::Invalid("the token's header cannot be read, or its algorithm is not supported")
        }
        _ => AuthError::Invalid("the token is not a JWT"),
    })?;
    if !header.typ.as_deref().is_some_and(is_access_token) {
        return Err(AuthError::Invalid("the token's typ is not at+jwt"));
    }
    if header.crit.is_some() {
        return Err(AuthError::Invalid("the token has a critical header"));
    }
    let claims: Claims = jsonwebtoken::dangerous::insecure_decode_claims(token)
        .map_err(|_| AuthError::Invalid("the token's claims are not a JSON object"))?;
    Ok((header, claims))
}

/// The claim `iss`.
pub(super) fn issuer(claims: &Claims) -> Result<&str, AuthError> {
    claims.get("iss").and_then(Value::as_str).ok_or(AuthError::Invalid("the token has no iss"))
}

/// RFC 9068, section 4: `at+jwt`, with or without the prefix `application/`.
fn is_access_token(typ: &str) -> bool {
    let typ = typ.to_ascii_lowercase();
    typ.strip_prefix("application/").unwrap_or(&typ) == "at+jwt"
}

pub(super) fn verify(token: &str, expected: &Expected<'_>, now: Timestamp) -> Result<VerifiedToken, AuthError> {
    let mut validation = Validation::new(expected.algorithm);
    validation.set_issuer(&[expected.issuer]);
    validation.set_audience(&[expected.audience]);
    validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
    validation.validate_exp = false;
    let claims: Claims =
        jsonwebtoken::decode(token, expected.key, &validation).map_err(|error| rejection(error.kind()))?.claims;
    // The library checks that "sub" is a string, but knows no "jti".
    let has_jti = claims.get("jti").is_some_and(Value::is_string);
    if !has_jti || expected.claims.iter().any(|name| claims.get(*name).is_none_or(Value::is_null)) {
        return Err(AuthError::Invalid("the token lacks a claim"));
    }
    let (expires_at, issued_at) = (seconds(&claims, "exp")?, seconds(&claims, "iat")?);
    let not_before = if claims.contains_key("nbf") { seconds(&claims, "nbf")? } else { issued_at };
    let now = now.as_second();
    if not_before.max(issued_at) > now.saturating_add(CLOCK_SKEW) {
        return Err(AuthError::Invalid("the token is not valid yet"));
    }
    if now >= expires_at {
        return Err(AuthError::Expired);
    }
    Ok(VerifiedToken { claims, issued_at, expires_at })
}

/// RFC 7519: a number of seconds, perhaps with a fraction. A time beyond the year 9999 is rejected: somebody has written
/// milliseconds, and the token would never expire.
fn seconds(claims: &Claims, name: &str) -> Result<i64, AuthError> {
    let number = claims.get(name).and_then(Value::as_number);
    let whole = number.and_then(|number| {
        #[expect(clippy::cast_possible_truncation, reason = "saturates, and the limits of i64 are not valid times")]
        number.as_i64().or_else(|| number.as_f64().map(|seconds| seconds.floor() as i64))
    });
    let instant = whole.filter(|second| Timestamp::from_second(*second).is_ok());
    instant.ok_or(AuthError::Invalid("the token's exp, iat or nbf is not a valid time"))
}

fn rejection(kind: &ErrorKind) -> AuthError {
    AuthError::Invalid(match kind {
        ErrorKind::InvalidSignature => "the token's signature is wrong",
        ErrorKind::InvalidAlgorithm => "the token's algorithm does not match its key",
        ErrorKind::InvalidIssuer => "the token is from another issuer",
        ErrorKind::InvalidAudience => "the token is for another audience",
        ErrorKind::MissingRequiredClaim(_) => "the token lacks a claim",
        _ => "the token cannot be read",
    })
}
