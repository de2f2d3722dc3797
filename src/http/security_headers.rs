//! The headers of every response that limit what a browser does with it. A header that a handler has set stays: a page needs
//! another policy than the API, and keys may be cached.

use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, REFERRER_POLICY, STRICT_TRANSPORT_SECURITY, X_CONTENT_TYPE_OPTIONS,
    X_FRAME_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue};

const DEFAULTS: [(HeaderName, HeaderValue); 5] = [
    (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
    // A response of the API is not a page: it may load nothing, and no page may frame it.
    (CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'")),
    // Nobody may cache coupons, tokens or the readiness.
    (CACHE_CONTROL, HeaderValue::from_static("no-store")),
];
/// One year, without subdomains.
const HSTS: HeaderValue = HeaderValue::from_static("max-age=31536000");

/// Adds the headers that are missing. One function does it, as one tower layer per header took three times as long.
pub(super) fn add(headers: &mut HeaderMap, public_url: Option<&str>) {
    headers.reserve(DEFAULTS.len() + 1);
    for (name, value) in DEFAULTS {
        headers.entry(name).or_insert(value);
    }
    // A browser ignores the header over http.
    if public_url.is_some_and(|url| url.starts_with("https://")) {
        headers.entry(STRICT_TRANSPORT_SECURITY).or_insert(HSTS);
    }
}
