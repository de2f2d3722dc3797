//! The tower middleware that stands before every handler: who is calling, and may they (contract 5).
//!
//! Denies by default: only the routes that the route table lists as public pass without a caller who may write.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{MatchedPath, Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use secrecy::{ExposeSecret, SecretString};

use super::address::ClientAddress;
use super::errors::ApiError;
use super::headers::{Twice, single};
use super::{Http, PUBLIC, READING, attribution};
use crate::model::{Access, Caller};

const OAUTH_TOKEN: HeaderName = HeaderName::from_static("x-cap-api-oauth-token");

/// Base64 with or without its padding: there are clients that leave it out.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What a request says of its caller.
enum Credentials {
    Basic { till_id: String, password: SecretString },
    Token(SecretString),
}

pub(super) async fn authenticate(
    State(http): State<Arc<Http>>,
    path: Option<MatchedPath>,
    mut request: Request,
    next: Next,
) -> Response {
    let is_in = |routes: &[&str]| path.as_ref().is_some_and(|path| routes.contains(&path.as_str()));
    if is_in(&PUBLIC) {
        return next.run(request).await;
    }
    let needed = if is_in(&READING) { Access::Read } else { Access::Write };
    let from = ClientAddress::of(request.extensions());
    let mut caller = match caller(&http, request.headers(), from).await {
        Ok(caller) => caller,
        Err(error) => return error.into_response(),
    };
    let mut response = if let Err(error) = admit(&http, &mut caller, request.headers(), needed).await {
        error.into_response()
    } else {
        request.extensions_mut().insert(Arc::clone(&caller));
        next.run(request).await
    };
    response.extensions_mut().insert(caller);
    response
}

/// Whether the caller may go on, once its request is attributed. Who may not is told nothing of tills and stores.
async fn admit(http: &Http, caller: &mut Arc<Caller>, headers: &HeaderMap, needed: Access) -> Result<(), ApiError> {
    if caller.access < needed {
        return Err(ApiError::Forbidden("the access level is too low"));
    }
    if let Some(attributed) = attribution::attributed(http, caller, headers).await? {
        *caller = attributed;
        if caller.access < needed {
            return Err(ApiError::Forbidden("what it is attributed to is disabled, or its access level too low"));
        }
    }
    Ok(())
}

async fn caller(http: &Http, headers: &HeaderMap, from: IpAddr) -> Result<Arc<Caller>, ApiError> {
    match credentials(headers)?.ok_or(ApiError::NoCredentials)? {
        Credentials::Basic { till_id, password } => Ok(http.authenticator.till(&till_id, &password, from).await?),
        Credentials::Token(token) => Ok(http.authenticator.token(&token, from).await?),
    }
}

/// The credentials that decide: a token of the contract's own header wherever there is one, else those of `Authorization`.
fn credentials(headers: &HeaderMap) -> Result<Option<Credentials>, ApiError> {
    let authorization = only(headers, &AUTHORIZATION)?;
    if let Some(token) = only(headers, &OAUTH_TOKEN)?.map(without_bearer).filter(|token| !token.is_empty()) {
        return Ok(Some(token_of(token)));
    }
    let Some(authorization) = authorization else { return Ok(None) };
    match authorization.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Ok(Some(token_of(token))),
        Some((scheme, pair)) if scheme.eq_ignore_ascii_case("basic") => {
            let (till_id, password) =
                basic_of(pair).ok_or(ApiError::BadCredentials("the Basic credentials cannot be read"))?;
            Ok(Some(Credentials::Basic { till_id, password }))
        }
        _ => Ok(None),
    }
}

/// There are clients that write this header as if it were `Authorization`.
fn without_bearer(token: &str) -> &str {
    let (scheme, rest) = token.split_once([' ', '\t']).unwrap_or((token, ""));
    if scheme.eq_ignore_ascii_case("bearer") { rest.trim() } else { token }
}

/// A header that may come once, as text.
fn only<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Result<Option<&'h str>, ApiError> {
    let twice = |_: Twice| ApiError::BadCredentials("the header with the credentials comes twice");
    let text = single(headers, name).map_err(twice)?.map(HeaderValue::to_str).transpose();
    text.map_err(|_| ApiError::BadCredentials("the header with the credentials is no plain text"))
}

fn token_of(token: &str) -> Credentials {
    Credentials::Token(token.trim().into())
}

/// Name and secret of Basic credentials (RFC 7617).
pub(super) fn basic_of(pair: &str) -> Option<(String, SecretString)> {
    let pair = SecretString::from(String::from_utf8(BASE64.decode(pair.trim()).ok()?).ok()?);
    let (name, secret) = pair.expose_secret().split_once(':')?;
    Some((name.to_owned(), secret.into()))
}
