//! The headers that every answer has, so that a browser does as little as possible with it.
//! What a handler has set itself stays: a page has another policy than the API, and keys may be cached.

use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, REFERRER_POLICY, STRICT_TRANSPORT_SECURITY, X_CONTENT_TYPE_OPTIONS,
    X_FRAME_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue};

const OF_ALL: [(HeaderName, HeaderValue); 5] = [
    (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
    // An answer of the API is no page: it may load nothing, and stand in none.
    (CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'")),
    // Coupons, tokens, and whether the service is ready: nothing to be kept.
    (CACHE_CONTROL, HeaderValue::from_static("no-store")),
];
/// A year, for this host alone.
const HSTS: HeaderValue = HeaderValue::from_static("max-age=31536000");

/// Adds them, where they are not there yet, all in one step: a layer for each would cost a request three times as much.
pub(super) fn add(headers: &mut HeaderMap, public_url: Option<&str>) {
    headers.reserve(OF_ALL.len() + 1);
    for (name, value) in OF_ALL {
        headers.entry(name).or_insert(value);
    }
    // Over http a browser would ignore it.
    if public_url.is_some_and(|url| url.starts_with("https://")) {
        headers.entry(STRICT_TRANSPORT_SECURITY).or_insert(HSTS);
    }
}
