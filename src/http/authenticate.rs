//! The tower middleware that stands before every handler: who is calling, and may they (contract 5).
//!
//! Denies by default: only the routes that the route table lists as public pass without a caller who may write.

use std::sync::Arc;

use axum::extract::{MatchedPath, Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, HeaderName};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use secrecy::SecretString;

use super::errors::ApiError;
use super::{Http, PUBLIC};
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
    if path.is_some_and(|path| PUBLIC.contains(&path.as_str())) {
        return next.run(request).await;
    }
    let caller = match caller(&http, request.headers()).await {
        Ok(caller) => caller,
        Err(error) => return error.into_response(),
    };
    let mut response = if caller.access < Access::Write {
        ApiError::Forbidden.into_response()
    } else {
        request.extensions_mut().insert(Arc::clone(&caller));
        next.run(request).await
    };
    response.extensions_mut().insert(caller);
    response
}

async fn caller(http: &Http, headers: &HeaderMap) -> Result<Arc<Caller>, ApiError> {
    match credentials(headers).ok_or(ApiError::NoCredentials)?? {
        Credentials::Basic { till_id, password } => Ok(http.authenticator.till(&till_id, &password).await?),
        Credentials::Token(token) => Ok(http.authenticator.token(&token).await?),
    }
}

/// The credentials that decide: a token wherever there is one, else Basic.
fn credentials(headers: &HeaderMap) -> Option<Result<Credentials, ApiError>> {
    if let Some(token) = headers.get(OAUTH_TOKEN).filter(|token| !token.is_empty()) {
        return Some(token.to_str().map(token_of).map_err(|_| ApiError::BadCredentials));
    }
    let mut basic = None;
    for authorization in headers.get_all(AUTHORIZATION) {
        let Ok(text) = authorization.to_str() else { return Some(Err(ApiError::BadCredentials)) };
        match text.split_once(' ') {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => return Some(Ok(token_of(token))),
            Some((scheme, pair)) if scheme.eq_ignore_ascii_case("basic") => {
                basic = Some(basic_of(pair).ok_or(ApiError::BadCredentials));
            }
            _ => {}
        }
    }
    basic
}

fn token_of(token: &str) -> Credentials {
    Credentials::Token(token.trim().into())
}

fn basic_of(pair: &str) -> Option<Credentials> {
    let pair = String::from_utf8(BASE64.decode(pair.trim()).ok()?).ok()?;
    let (till_id, password) = pair.split_once(':')?;
    Some(Credentials::Basic { till_id: till_id.to_owned(), password: password.into() })
}
