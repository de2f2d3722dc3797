//! The headers that every answer has, so that a browser does as little as possible with it.
//! What a handler has set itself stays: a page has another policy than the API, and keys may be cached.

use axum::http::HeaderValue;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, REFERRER_POLICY, STRICT_TRANSPORT_SECURITY, X_CONTENT_TYPE_OPTIONS,
    X_FRAME_OPTIONS,
};
use tower_http::set_header::SetResponseHeaderLayer;

/// An answer of the API is no page: it may load nothing, and stand in none.
const NO_PAGE: HeaderValue = HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'");
/// A year, for this host alone.
const HSTS: HeaderValue = HeaderValue::from_static("max-age=31536000");

type Fixed = SetResponseHeaderLayer<HeaderValue>;

/// Adds them, where they are not there yet. `Strict-Transport-Security` only where callers use https.
pub(super) fn layer(
    public_url: Option<&str>,
) -> (Fixed, Fixed, Fixed, Fixed, Fixed, SetResponseHeaderLayer<Option<HeaderValue>>) {
    let is_https = public_url.is_some_and(|url| url.starts_with("https://"));
    (
        Fixed::if_not_present(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        Fixed::if_not_present(REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        Fixed::if_not_present(X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
        Fixed::if_not_present(CONTENT_SECURITY_POLICY, NO_PAGE),
        // Coupons, tokens, and whether the service is ready: nothing to be kept.
        Fixed::if_not_present(CACHE_CONTROL, HeaderValue::from_static("no-store")),
        SetResponseHeaderLayer::if_not_present(STRICT_TRANSPORT_SECURITY, is_https.then_some(HSTS)),
    )
}
