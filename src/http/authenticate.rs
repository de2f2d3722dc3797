use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use secrecy::{ExposeSecret, SecretString};

use super::attribution;
use super::client_ip::ClientIp;
use super::errors::ApiError;
use super::headers::{Repeated, single};
use super::state::Http;
use crate::model::{Access, Caller};

const OAUTH_TOKEN: HeaderName = HeaderName::from_static("x-cap-api-oauth-token");

/// Base64 with or without its padding: some clients omit it.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

enum Credentials {
    Basic { till_id: String, password: SecretString },
    Token(SecretString),
}

/// The state of [`authenticate`].
#[derive(Clone)]
pub(super) struct AccessGuard {
    pub(super) http: Arc<Http>,
    pub(super) needed: Access,
}

/// The middleware of every route that is not public: authenticates the caller and checks its access (contract 5).
pub(super) async fn authenticate(
    State(AccessGuard { http, needed }): State<AccessGuard>,
    mut request: Request,
    next: Next,
) -> Response {
    let client_ip = ClientIp::of(request.extensions());
    let mut caller = match identify(&http, request.headers(), client_ip).await {
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

/// Checks the caller's access, before and after its request is attributed to a till or store. The first check keeps callers
/// without access from learning which tills and stores exist.
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

async fn identify(http: &Http, headers: &HeaderMap, client_ip: IpAddr) -> Result<Arc<Caller>, ApiError> {
    match credentials(headers)?.ok_or(ApiError::NoCredentials)? {
        Credentials::Basic { till_id, password } => Ok(http.authenticator.till(&till_id, &password, client_ip).await?),
        Credentials::Token(token) => Ok(http.authenticator.token(&token, client_ip).await?),
    }
}

/// The credentials of a request: a token in the contract's own header takes precedence over `Authorization`.
fn credentials(headers: &HeaderMap) -> Result<Option<Credentials>, ApiError> {
    let authorization = header_text(headers, &AUTHORIZATION)?;
    if let Some(token) = header_text(headers, &OAUTH_TOKEN)?.map(without_bearer).filter(|token| !token.is_empty()) {
        return Ok(Some(token_credentials(token)));
    }
    let Some(authorization) = authorization else { return Ok(None) };
    match authorization.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Ok(Some(token_credentials(token))),
        Some((scheme, pair)) if scheme.eq_ignore_ascii_case("basic") => {
            let (till_id, password) =
                decode_basic(pair).ok_or(ApiError::BadCredentials("the Basic credentials cannot be read"))?;
            Ok(Some(Credentials::Basic { till_id, password }))
        }
        _ => Ok(None),
    }
}

/// Some clients write `Bearer` into the contract's own header, too.
fn without_bearer(token: &str) -> &str {
    let (scheme, rest) = token.split_once([' ', '\t']).unwrap_or((token, ""));
    if scheme.eq_ignore_ascii_case("bearer") { rest.trim() } else { token }
}

fn header_text<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Result<Option<&'h str>, ApiError> {
    let repeated = |_: Repeated| ApiError::BadCredentials("the header with the credentials comes twice");
    let text = single(headers, name).map_err(repeated)?.map(HeaderValue::to_str).transpose();
    text.map_err(|_| ApiError::BadCredentials("the header with the credentials is no plain text"))
}

fn token_credentials(token: &str) -> Credentials {
    Credentials::Token(token.trim().into())
}

/// Name and secret of Basic credentials (RFC 7617).
pub(super) fn decode_basic(pair: &str) -> Option<(String, SecretString)> {
    let pair = SecretString::from(String::from_utf8(BASE64.decode(pair.trim()).ok()?).ok()?);
    let (name, secret) = pair.expose_secret().split_once(':')?;
    Some((name.to_owned(), secret.into()))
}
