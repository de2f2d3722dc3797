//! What every access token must be, whoever has signed it: RFC 9068, with the algorithm and the key chosen here and never by
//! the token. Time is passed in, so it is checked here and not by the library.

use std::collections::BTreeMap;

use jiff::Timestamp;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, Header, Validation};
use serde_json::Value;

use super::AuthError;

/// A longer one is nobody's.
const LONGEST_TOKEN: usize = 8 * 1024;
/// How far another's clock may be ahead, in seconds. Nothing is added to a token's end.
const CLOCK_SKEW: i64 = 30;

/// The claims of a token.
pub(super) type Claims = BTreeMap<String, Value>;

/// What a token must be to be good.
pub(super) struct Expected<'a> {
    pub(super) algorithm: Algorithm,
    pub(super) key: &'a DecodingKey,
    pub(super) issuer: &'a str,
    pub(super) audience: &'a str,
    /// Claims that it must have, besides those that everyone's have.
    pub(super) claims: &'a [&'a str],
}

/// A good token, as far as this service looks.
pub(super) struct Verified {
    pub(super) claims: Claims,
    /// In seconds since 1970.
    pub(super) issued_at: i64,
    pub(super) expires_at: i64,
}

/// The header and the claims of a token that nobody has verified yet: good for choosing a key, for nothing else.
pub(super) fn peek(token: &str) -> Result<(Header, Claims), AuthError> {
    if token.len() > LONGEST_TOKEN {
        return Err(AuthError::Invalid("the token is too long"));
    }
    let header = jsonwebtoken::decode_header(token).map_err(|error| match error.kind() {
        ErrorKind::Json(_) => {
            AuthError::Invalid("the token's header is not understood, or its algorithm is none of ours")
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
        .map_err(|_| AuthError::Invalid("the token's claims are no JSON object"))?;
    Ok((header, claims))
}

/// Who a token says has made it.
pub(super) fn issuer(claims: &Claims) -> Result<&str, AuthError> {
    claims.get("iss").and_then(Value::as_str).ok_or(AuthError::Invalid("the token has no iss"))
}

/// RFC 9068, section 4: `at+jwt`, with or without its `application/`.
fn is_access_token(typ: &str) -> bool {
    let typ = typ.to_ascii_lowercase();
    typ.strip_prefix("application/").unwrap_or(&typ) == "at+jwt"
}

/// Verifies a token.
pub(super) fn verify(token: &str, expected: &Expected<'_>, now: Timestamp) -> Result<Verified, AuthError> {
    let mut validation = Validation::new(expected.algorithm);
    validation.set_issuer(&[expected.issuer]);
    validation.set_audience(&[expected.audience]);
    validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
    validation.validate_exp = false;
    let claims: Claims =
        jsonwebtoken::decode(token, expected.key, &validation).map_err(|error| refused(error.kind()))?.claims;
    // That "sub" is a text is what the library looks at.
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
    Ok(Verified { claims, issued_at, expires_at })
}

/// RFC 7519: a number of seconds, perhaps with a fraction. One beyond the year 9999 is a mistake, such as milliseconds, and
/// would make a token that never ends.
fn seconds(claims: &Claims, name: &str) -> Result<i64, AuthError> {
    let number = claims.get(name).and_then(Value::as_number);
    let whole = number.and_then(|number| {
        #[expect(clippy::cast_possible_truncation, reason = "saturates, which is no instant either")]
        number.as_i64().or_else(|| number.as_f64().map(|seconds| seconds.floor() as i64))
    });
    let instant = whole.filter(|second| Timestamp::from_second(*second).is_ok());
    instant.ok_or(AuthError::Invalid("the token's exp, iat or nbf is no instant"))
}

fn refused(kind: &ErrorKind) -> AuthError {
    AuthError::Invalid(match kind {
        ErrorKind::InvalidSignature => "the token's signature is wrong",
        ErrorKind::InvalidAlgorithm => "the token's algorithm is not its key's",
        ErrorKind::InvalidIssuer => "the token is another issuer's",
        ErrorKind::InvalidAudience => "the token is for another audience",
        ErrorKind::MissingRequiredClaim(_) => "the token lacks a claim",
        _ => "the token cannot be read",
    })
}
