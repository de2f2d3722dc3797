//! The header `Idempotency-Key`, and what makes two bodies the same request (contract 6).
//! What a key does is decided in `issuance::keyed`.

use std::sync::Arc;

use axum::http::{HeaderMap, HeaderName};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::errors::ApiError;
use crate::model::Source;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const LONGEST_KEY: usize = 255;

/// The key of a request, if it has one.
pub(super) fn key(headers: &HeaderMap) -> Result<Option<Arc<str>>, ApiError> {
    let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(ApiError::BadRequest("Idempotency-Key: comes twice".to_owned()));
    }
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

/// A hash of all that a request asks for, whatever the order of its keys and the space between them.
pub(super) fn fingerprint(body: &[u8], source: Source, account_id: Option<&str>) -> [u8; 32] {
    let mut hash = Sha256::new();
    // It has been parsed before, so it is JSON.
    add(&mut hash, &serde_json::from_slice(body).unwrap_or_default());
    add_text(&mut hash, b'q', source.name());
    add_text(&mut hash, b'q', account_id.unwrap_or_default());
    hash.finalize().into()
}

/// Each value with its kind and its length, so that no two read alike.
fn add(hash: &mut Sha256, value: &Value) {
    match value {
        Value::Null => hash.update(b"n"),
        Value::Bool(true) => hash.update(b"t"),
        Value::Bool(false) => hash.update(b"f"),
        Value::Number(number) => add_text(hash, b'#', &number.to_string()),
        Value::String(text) => add_text(hash, b'"', text),
        Value::Array(values) => {
            add_length(hash, b'[', values.len());
            for value in values {
                add(hash, value);
            }
        }
        Value::Object(members) => {
            let mut members: Vec<_> = members.iter().collect();
            members.sort_unstable_by_key(|(name, _)| *name);
            add_length(hash, b'{', members.len());
            for (name, value) in members {
                add_text(hash, b':', name);
                add(hash, value);
            }
        }
    }
}

fn add_text(hash: &mut Sha256, kind: u8, text: &str) {
    add_length(hash, kind, text.len());
    hash.update(text.as_bytes());
}

fn add_length(hash: &mut Sha256, kind: u8, length: usize) {
    hash.update([kind]);
    hash.update((length as u64).to_be_bytes());
}
