//! Request headers that may come once.
//! What it means that one comes twice is for whoever asks to say: of credentials it is a 401, of others a 400.

use axum::http::header::AsHeaderName;
use axum::http::{HeaderMap, HeaderValue};

/// A header that may come once comes twice.
pub(super) struct Twice;

/// The value of a header that may come once.
///
/// # Errors
/// [`Twice`].
pub(super) fn single(headers: &HeaderMap, name: impl AsHeaderName) -> Result<Option<&HeaderValue>, Twice> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    if values.next().is_some() { Err(Twice) } else { Ok(first) }
}
