//! The syntax of the header `Idempotency-Key` (contract 6).

use std::sync::Arc;

use axum::http::{HeaderMap, HeaderName};

use super::errors::ApiError;
use super::headers::{Repeated, single};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const MAX_KEY_LENGTH: usize = 255;

pub(super) fn key(headers: &HeaderMap) -> Result<Option<Arc<str>>, ApiError> {
    let repeated = |_: Repeated| ApiError::BadRequest("Idempotency-Key: comes twice".to_owned());
    let Some(value) = single(headers, IDEMPOTENCY_KEY).map_err(repeated)? else { return Ok(None) };
    let text = value.to_str().map_err(|_| malformed())?.trim();
    let quoted = text.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
    match quoted {
        Some(quoted) => validate(&unescaped(quoted)?).map(Some),
        None => validate(text).map(Some),
    }
}

pub(super) fn validate(key: &str) -> Result<Arc<str>, ApiError> {
    let is_valid = (1..=MAX_KEY_LENGTH).contains(&key.len()) && key.bytes().all(|byte| (0x20..0x7f).contains(&byte));
    if is_valid { Ok(key.into()) } else { Err(malformed()) }
}

/// The content of an RFC 8941 string, where a backslash escapes only a quote and a backslash.
fn unescaped(quoted: &str) -> Result<String, ApiError> {
    let mut text = String::with_capacity(quoted.len());
    let mut characters = quoted.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => text.push(characters.next().filter(|next| matches!(next, '"' | '\\')).ok_or_else(malformed)?),
            '"' => return Err(malformed()),
            other => text.push(other),
        }
    }
    Ok(text)
}

pub(super) fn malformed() -> ApiError {
    ApiError::BadRequest(format!("Idempotency-Key: must be 1 to {MAX_KEY_LENGTH} printable ASCII characters"))
}
