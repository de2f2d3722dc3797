use axum::body::{Body, Bytes};
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::{DeserializeOwned, IgnoredAny};

use super::errors::ApiError;
use super::object::Object;
use crate::config::HttpSettings;

/// The error message for a JSON string like `"\ud83d"`, which UTF-8 cannot represent.
pub(super) const HALF_SURROGATE_PAIR: &str = "holds half of a surrogate pair, which is no character";

/// An error message may quote the request, so its length is limited, in characters.
const MAX_MESSAGE_LENGTH: usize = 240;

pub(super) async fn read_json<T: DeserializeOwned>(
    headers: &HeaderMap,
    body: Body,
    settings: &HttpSettings,
) -> Result<T, ApiError> {
    parse(utf8(&json_bytes(headers, body, settings).await?)?)
}

/// Reads a body that must be uncompressed `application/json`.
pub(super) async fn json_bytes(headers: &HeaderMap, body: Body, settings: &HttpSettings) -> Result<Bytes, ApiError> {
    if !has_media_type(headers, "application/json") {
        return Err(ApiError::NotJson);
    }
    if headers.get_all(CONTENT_ENCODING).iter().any(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity")) {
        return Err(ApiError::EncodedBody);
    }
    read(body, settings).await
}

/// Whether `Content-Type` is this media type, with any parameters.
pub(super) fn has_media_type(headers: &HeaderMap, wanted: &str) -> bool {
    let mut types = headers.get_all(CONTENT_TYPE).iter();
    let (Some(given), None) = (types.next(), types.next()) else { return false };
    let media_type = given.to_str().unwrap_or_default().split(';').next().unwrap_or_default();
    media_type.trim().eq_ignore_ascii_case(wanted)
}

/// Reads a body of at most `max_body_bytes` within `body_timeout`.
pub(super) async fn read(body: Body, settings: &HttpSettings) -> Result<Bytes, ApiError> {
    let max_bytes = settings.max_body_bytes;
    match tokio::time::timeout(settings.body_timeout, Limited::new(body, max_bytes).collect()).await {
        Err(_elapsed) => Err(ApiError::BodyTooSlow),
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(ApiError::BodyTooLarge { max_bytes }),
        Ok(Err(_)) => Err(ApiError::BadRequest("the body broke off or is not well-formed HTTP".to_owned())),
    }
}

/// The body as UTF-8. This also checks the ignored fields, which the JSON parser skips.
pub(super) fn utf8(bytes: &[u8]) -> Result<&str, ApiError> {
    match bytes {
        [0xef, 0xbb, 0xbf, ..] => {
            Err(bad_request("the body is not JSON: it begins with a byte order mark (U+FEFF); send UTF-8 without one"))
        }
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] | [0, ..] | [_, 0, ..] => {
            Err(bad_request("the body is not JSON: it looks like UTF-16 or UTF-32; send UTF-8"))
        }
        _ => std::str::from_utf8(bytes)
            .map_err(|error| bad_request(&format!("the body is not JSON: it is no UTF-8: {error}"))),
    }
}

pub(super) fn parse<T: DeserializeOwned>(text: &str) -> Result<T, ApiError> {
    let mut json = serde_json::Deserializer::from_str(text);
    let parsed: Object<T> = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let reason = error.into_inner();
        if !reason.is_data() && serde_json::from_str::<IgnoredAny>(text).is_err() {
            return bad_request(&format!("the body is not JSON: {reason}"));
        }
        // The text is well-formed JSON, so a syntax error means one of two things: a number is out of range, or a string has half
        // of a surrogate pair. Data errors are excluded first, as their messages may quote the caller's text.
        let is_half_pair = !reason.is_data() && !reason.to_string().starts_with("number out of range");
        let reason = if is_half_pair { HALF_SURROGATE_PAIR.to_owned() } else { reason.to_string() };
        bad_request(&if path == "." { reason } else { format!("{path}: {reason}") })
    })?;
    json.end().map_err(|error| bad_request(&format!("the body goes on after its JSON object: {error}")))?;
    Ok(parsed.0)
}

fn bad_request(message: &str) -> ApiError {
    let mut short: String = message.chars().take(MAX_MESSAGE_LENGTH).collect();
    if short.len() < message.len() {
        short.push('…');
    }
    ApiError::BadRequest(short)
}
