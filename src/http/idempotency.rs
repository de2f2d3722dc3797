//! The header `Idempotency-Key` (contract 6): its syntax.
//! What a key does is decided in `issuance::key_claim`.

use std::sync::Arc;

use axum::http::{HeaderMap, HeaderName};

use super::errors::ApiError;
use super::headers::{Twice, single};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const LONGEST_KEY: usize = 255;

/// The key of a request, if it has one.
pub(super) fn key(headers: &HeaderMap) -> Result<Option<Arc<str>>, ApiError> {
    let twice = |_: Twice| ApiError::BadRequest("Idempotency-Key: comes twice".to_owned());
    let Some(value) = single(headers, IDEMPOTENCY_KEY).map_err(twice)? else { return Ok(None) };
    let text = value.to_str().map_err(|_| bad())?.trim();
    let quoted = text.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
    match quoted {
        Some(quoted) => checked(&unescaped(quoted)?).map(Some),
        None => checked(text).map(Some),
    }
}

/// A key that can be one.
pub(super) fn checked(key: &str) -> Result<Arc<str>, ApiError> {
    let is_good = (1..=LONGEST_KEY).contains(&key.len()) && key.bytes().all(|byte| (0x20..0x7f).contains(&byte));
    if is_good { Ok(key.into()) } else { Err(bad()) }
}

/// A string of RFC 8941: only the quote and the backslash are escaped.
fn unescaped(quoted: &str) -> Result<String, ApiError> {
    let mut text = String::with_capacity(quoted.len());
    let mut characters = quoted.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => text.push(characters.next().filter(|next| matches!(next, '"' | '\\')).ok_or_else(bad)?),
            '"' => return Err(bad()),
            other => text.push(other),
        }
    }
    Ok(text)
}

/// What is no key.
pub(super) fn bad() -> ApiError {
    ApiError::BadRequest(format!("Idempotency-Key: must be 1 to {LONGEST_KEY} printable ASCII characters"))
}
