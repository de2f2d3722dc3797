//! A request body: its type, its size, its time to arrive, and its JSON.
//! Every complaint names what is wrong, and quotes little of it.

use axum::body::{Body, Bytes};
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::{DeserializeOwned, IgnoredAny};

use super::errors::ApiError;
use super::object::Object;
use crate::config::HttpSettings;

/// What is wrong with a JSON string like `"\ud83d"`, which no text in UTF-8 can be.
pub(super) const HALF_A_PAIR: &str = "holds half of a surrogate pair, which is no character";

/// A message may quote the request; this much of it.
const LONGEST_MESSAGE: usize = 240;

/// The JSON object in a body.
///
/// # Errors
/// Those of [`json_bytes`], [`text_of`] and [`parse`].
pub(super) async fn read_json<T: DeserializeOwned>(
    headers: &HeaderMap,
    body: Body,
    settings: &HttpSettings,
) -> Result<T, ApiError> {
    parse(text_of(&json_bytes(headers, body, settings).await?)?)
}

/// All of a body that is said to be JSON.
///
/// # Errors
/// 415 unless it is uncompressed `application/json`, 413 and 408 beyond the settings.
pub(super) async fn json_bytes(headers: &HeaderMap, body: Body, settings: &HttpSettings) -> Result<Bytes, ApiError> {
    if !is_of_type(headers, "application/json") {
        return Err(ApiError::NotJson);
    }
    if headers.get_all(CONTENT_ENCODING).iter().any(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity")) {
        return Err(ApiError::EncodedBody);
    }
    read(body, settings).await
}

/// Whether the body is said to be of this media type, whatever its parameters.
pub(super) fn is_of_type(headers: &HeaderMap, wanted: &str) -> bool {
    let mut types = headers.get_all(CONTENT_TYPE).iter();
    let (Some(given), None) = (types.next(), types.next()) else { return false };
    // What is no text is no media type, and none that is wanted.
    let media_type = given.to_str().unwrap_or_default().split(';').next().unwrap_or_default();
    media_type.trim().eq_ignore_ascii_case(wanted)
}

/// All of a body.
///
/// # Errors
/// 413 and 408 beyond the settings, 400 if it breaks off.
pub(super) async fn read(body: Body, settings: &HttpSettings) -> Result<Bytes, ApiError> {
    let most = settings.max_body_bytes;
    match tokio::time::timeout(settings.body_timeout, Limited::new(body, most).collect()).await {
        Err(_elapsed) => Err(ApiError::BodyTooSlow),
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(ApiError::BodyTooLarge { most }),
        Ok(Err(_)) => Err(ApiError::BadRequest("the body broke off or is not well-formed HTTP".to_owned())),
    }
}

/// These bytes as text: all of them, also what is in fields that are ignored.
///
/// # Errors
/// 400 unless they are UTF-8, without a byte order mark.
pub(super) fn text_of(bytes: &[u8]) -> Result<&str, ApiError> {
    match bytes {
        [0xef, 0xbb, 0xbf, ..] => {
            Err(bad("the body is not JSON: it begins with a byte order mark (U+FEFF); send UTF-8 without one"))
        }
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] | [0, ..] | [_, 0, ..] => {
            Err(bad("the body is not JSON: it looks like UTF-16 or UTF-32; send UTF-8"))
        }
        _ => std::str::from_utf8(bytes).map_err(|error| bad(&format!("the body is not JSON: it is no UTF-8: {error}"))),
    }
}

/// The JSON object in this text.
///
/// # Errors
/// 400 for anything that is not `T`.
pub(super) fn parse<T: DeserializeOwned>(text: &str) -> Result<T, ApiError> {
    let mut json = serde_json::Deserializer::from_str(text);
    let parsed: Object<T> = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let reason = error.into_inner();
        if !reason.is_data() && serde_json::from_str::<IgnoredAny>(text).is_err() {
            return bad(&format!("the body is not JSON: {reason}"));
        }
        // Two things are well-formed JSON, and no value all the same. A message about a value may quote the caller's own words,
        // so only the parser's are looked at.
        let is_half = !reason.is_data() && !reason.to_string().starts_with("number out of range");
        let reason = if is_half { HALF_A_PAIR.to_owned() } else { reason.to_string() };
        bad(&if path == "." { reason } else { format!("{path}: {reason}") })
    })?;
    json.end().map_err(|error| bad(&format!("the body goes on after its JSON object: {error}")))?;
    Ok(parsed.0)
}

fn bad(message: &str) -> ApiError {
    let mut short: String = message.chars().take(LONGEST_MESSAGE).collect();
    if short.len() < message.len() {
        short.push('…');
    }
    ApiError::BadRequest(short)
}
