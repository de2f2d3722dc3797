use axum::http::header::AsHeaderName;
use axum::http::{HeaderMap, HeaderValue};

/// A request repeats a header that it may have once. The status is up to the caller of [`single`]: 401 for credentials,
/// 400 for others.
pub(super) struct Repeated;

/// The value of a header that a request may have once.
pub(super) fn single(headers: &HeaderMap, name: impl AsHeaderName) -> Result<Option<&HeaderValue>, Repeated> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    if values.next().is_some() { Err(Repeated) } else { Ok(first) }
}
