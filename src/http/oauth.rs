//! Standard OAuth 2: tokens by client credentials (RFC 6749), the metadata that tells clients how (RFC 8414), and the keys
//! that verify our tokens (RFC 7517). The same clients, keys and tokens as `/v3/oauth/token/generate`.

use std::sync::Arc;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, HOST, PRAGMA, WWW_AUTHENTICATE};
use axum::http::uri::Authority;
use axum::http::{Extensions, HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use utoipa::ToSchema;

use super::Http;
use super::address::ClientAddress;
use super::authenticate::basic_of;
use super::body;
use super::errors::{ApiError, Denied};
use super::openapi::{self, examples, failures, schemas};
use crate::auth::{AuthError, SCOPE};

pub(super) const METADATA_PATH: &str = "/.well-known/oauth-authorization-server";
pub(super) const KEYS_PATH: &str = "/.well-known/jwks.json";

/// As RFC 6749, section 5.1.
#[derive(Serialize, ToSchema)]
#[schema(as = AccessToken)]
struct TokenAnswer<'a> {
    /// A JWT as of RFC 9068.
    access_token: &'a str,
    token_type: &'static str,
    /// In seconds.
    expires_in: i64,
    /// Absent where the client has no write access.
    #[schema(nullable = false)]
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<&'static str>,
}

/// As RFC 6749, section 5.2.
#[derive(Serialize, ToSchema)]
#[schema(as = OauthError)]
struct ErrorAnswer {
    /// `invalid_request`, `invalid_client`, `unsupported_grant_type` or `invalid_scope`.
    error: &'static str,
    error_description: &'static str,
}

/// As RFC 8414, section 2.
#[derive(Serialize, ToSchema)]
#[schema(as = AuthorizationServer)]
struct Metadata {
    grant_types_supported: [&'static str; 1],
    issuer: String,
    jwks_uri: String,
    response_types_supported: [&'static str; 0],
    scopes_supported: [&'static str; 1],
    token_endpoint: String,
    token_endpoint_auth_methods_supported: [&'static str; 2],
}

/// Why there is no token: the errors of RFC 6749, section 5.2, and those that are not the client's.
#[derive(Debug)]
enum TokenError {
    InvalidRequest(&'static str),
    /// The reason is for the log alone.
    InvalidClient(&'static str),
    UnsupportedGrantType,
    InvalidScope,
    /// Of HTTP, or ours.
    Api(ApiError),
}

/// The parameters of a token request that mean something here.
#[derive(Default, ToSchema)]
#[schema(as = TokenRequest)]
struct Form {
    #[schema(schema_with = schemas::grant_type, required)]
    grant_type: Option<String>,
    #[schema(schema_with = schemas::scope)]
    scope: Option<String>,
    /// Unless the client authenticates by Basic.
    #[schema(nullable = false)]
    client_id: Option<String>,
    /// Unless the client authenticates by Basic.
    #[schema(value_type = String, required = false, format = Password)]
    client_secret: Option<SecretString>,
}

#[utoipa::path(
    post,
    path = "/oauth/token",
    operation_id = "token",
    tag = openapi::TOKENS,
    summary = "A token, by standard OAuth 2",
    description = openapi::TOKEN,
    request_body(content = Form, content_type = "application/x-www-form-urlencoded", example = json!(examples::token_request())),
    responses(
        (status = 200, description = "A token", body = TokenAnswer, example = json!(examples::token())),
        (status = 400, description = "The request is none for a token, or not for this client", body = ErrorAnswer,
            example = json!(examples::token_refused("invalid_request", "grant_type is missing"))),
        (status = 401, description = "No such client, or another secret", body = ErrorAnswer,
            headers(("WWW-Authenticate" = String, description = "A challenge for Basic")),
            example = json!(examples::token_refused("invalid_client", "the client or its secret is not valid"))),
        failures::Token,
    ),
    security(("oauthClient" = []), ()),
)]
pub(super) async fn token(
    State(http): State<Arc<Http>>,
    headers: HeaderMap,
    extensions: Extensions,
    body: Body,
) -> Response {
    let mut response = match granted(&http, &headers, &extensions, body).await {
        Ok(response) => response,
        Err(error) => error.into_response(),
    };
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response.headers_mut().insert(PRAGMA, HeaderValue::from_static("no-cache"));
    response
}

async fn granted(
    http: &Http,
    headers: &HeaderMap,
    extensions: &Extensions,
    body: Body,
) -> Result<Response, TokenError> {
    if !body::is_of_type(headers, "application/x-www-form-urlencoded") {
        return Err(TokenError::InvalidRequest("the body must be application/x-www-form-urlencoded"));
    }
    let form = Form::parse(&body::read(body, &http.settings).await.map_err(TokenError::Api)?)?;
    match form.grant_type.as_deref() {
        Some("client_credentials") => {}
        Some(_) => return Err(TokenError::UnsupportedGrantType),
        None => return Err(TokenError::InvalidRequest("grant_type is missing")),
    }
    let asked = form.scope.as_deref().unwrap_or_default().split_ascii_whitespace();
    if asked.clone().any(|scope| scope != SCOPE) {
        return Err(TokenError::InvalidScope);
    }
    let is_asked = asked.count() > 0;
    let (client_key, secret) = client_of(headers, form)?;
    let granted = http.authenticator.grant(&client_key, &secret, ClientAddress::of(extensions)).await?;
    if is_asked && granted.scope.is_none() {
        return Err(TokenError::InvalidScope);
    }
    let answer = TokenAnswer {
        access_token: granted.token.expose_secret(),
        token_type: "Bearer",
        expires_in: granted.ttl_seconds,
        scope: granted.scope,
    };
    Ok(Json(answer).into_response())
}

impl Form {
    fn parse(body: &Bytes) -> Result<Self, TokenError> {
        let mut form = Self::default();
        // RFC 6749, section 3.2: a parameter without a value counts as omitted.
        for (name, value) in form_urlencoded::parse(body).filter(|(_, value)| !value.is_empty()) {
            let is_new = match &*name {
                "grant_type" => form.grant_type.replace(value.into_owned()).is_none(),
                "scope" => form.scope.replace(value.into_owned()).is_none(),
                "client_id" => form.client_id.replace(value.into_owned()).is_none(),
                "client_secret" => form.client_secret.replace(value.into_owned().into()).is_none(),
                // RFC 6749, section 3.2: a parameter that is not known is ignored.
                _ => true,
            };
            if !is_new {
                return Err(TokenError::InvalidRequest("a parameter comes twice"));
            }
        }
        Ok(form)
    }
}

/// The client and its secret, by `client_secret_basic` or `client_secret_post`, and never by both.
fn client_of(headers: &HeaderMap, form: Form) -> Result<(String, SecretString), TokenError> {
    let mut authorizations = headers.get_all(AUTHORIZATION).iter();
    match (authorizations.next(), form.client_id, form.client_secret) {
        (None, Some(client_id), Some(secret)) => Ok((client_id, secret)),
        (None, _, _) => Err(TokenError::InvalidClient("no client credentials")),
        (Some(_), _, Some(_)) => Err(TokenError::InvalidRequest("the client authenticates in two ways")),
        (Some(_), _, None) if authorizations.next().is_some() => {
            Err(TokenError::InvalidRequest("the client authenticates twice"))
        }
        (Some(authorization), client_id, None) => {
            let pair =
                basic_client(authorization).ok_or(TokenError::InvalidClient("the Basic credentials cannot be read"))?;
            if client_id.is_some_and(|client_id| client_id != pair.0) {
                return Err(TokenError::InvalidRequest("client_id is not the client that authenticates"));
            }
            Ok(pair)
        }
    }
}

/// RFC 6749, section 2.3.1: name and secret are form-encoded before they are put together.
fn basic_client(authorization: &HeaderValue) -> Option<(String, SecretString)> {
    let (scheme, pair) = authorization.to_str().ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let (name, secret) = basic_of(pair)?;
    Some((form_decoded(&name), form_decoded(secret.expose_secret()).into()))
}

fn form_decoded(text: &str) -> String {
    // As the value of a form; what stands for itself in one is quoted first. An empty text is the only one without a pair.
    let quoted = text.replace('&', "%26").replace('=', "%3D");
    form_urlencoded::parse(quoted.as_bytes()).next().map(|(name, _)| name.into_owned()).unwrap_or_default()
}

impl From<AuthError> for TokenError {
    fn from(error: AuthError) -> Self {
        match error {
            AuthError::Invalid(reason) => Self::InvalidClient(reason),
            other => Self::Api(other.into()),
        }
    }
}

impl IntoResponse for TokenError {
    fn into_response(self) -> Response {
        let (status, error, description, denied) = match self {
            Self::InvalidRequest(what) => (StatusCode::BAD_REQUEST, "invalid_request", what, what),
            Self::InvalidClient(reason) => {
                (StatusCode::UNAUTHORIZED, "invalid_client", "the client or its secret is not valid", reason)
            }
            Self::UnsupportedGrantType => {
                let what = "only client_credentials is supported";
                (StatusCode::BAD_REQUEST, "unsupported_grant_type", what, what)
            }
            Self::InvalidScope => {
                let what = "the client may not have this scope";
                (StatusCode::BAD_REQUEST, "invalid_scope", what, what)
            }
            Self::Api(error) => return error.into_response(),
        };
        let body = ErrorAnswer { error, error_description: description };
        let mut response = (status, Json(body)).into_response();
        response.extensions_mut().insert(Denied(denied));
        if status == StatusCode::UNAUTHORIZED {
            let challenge = HeaderValue::from_static("Basic realm=\"coupon-issuer\", charset=\"UTF-8\"");
            response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
        }
        response
    }
}

#[utoipa::path(
    get,
    path = "/.well-known/oauth-authorization-server",
    operation_id = "authorizationServer",
    tag = openapi::TOKENS,
    summary = "The metadata that OAuth 2 clients configure themselves by",
    responses(
        (status = 200, description = "As RFC 8414; under `http.public_url`, or else the host that was asked", body = Metadata,
            example = json!(examples::metadata())),
        failures::Metadata,
    ),
    security(),
)]
pub(super) async fn metadata(State(http): State<Arc<Http>>, headers: HeaderMap) -> Result<Response, ApiError> {
    let issuer = match &http.settings.public_url {
        Some(url) => url.clone(),
        None => format!("http://{}", host(&headers)?),
    };
    let document = Metadata {
        grant_types_supported: ["client_credentials"],
        jwks_uri: format!("{issuer}{KEYS_PATH}"),
        response_types_supported: [],
        scopes_supported: [SCOPE],
        token_endpoint: format!("{issuer}/oauth/token"),
        token_endpoint_auth_methods_supported: ["client_secret_basic", "client_secret_post"],
        issuer,
    };
    Ok(Json(document).into_response())
}

/// The name that a caller has reached us by.
fn host(headers: &HeaderMap) -> Result<Authority, ApiError> {
    let host = headers.get(HOST).and_then(|host| host.to_str().ok()).and_then(|host| host.parse().ok());
    host.ok_or_else(|| ApiError::BadRequest("the Host header is missing or no host".to_owned()))
}

#[utoipa::path(
    get,
    path = "/.well-known/jwks.json",
    operation_id = "keys",
    tag = openapi::TOKENS,
    summary = "The keys that verify tokens",
    responses(
        (status = 200, description = "As RFC 7517, section 5", body = schemas::KeySet, content_type = "application/jwk-set+json"),
        failures::Any,
    ),
    security(),
)]
pub(super) async fn keys(State(http): State<Arc<Http>>) -> Response {
    let cached = (CACHE_CONTROL, HeaderValue::from_static("public, max-age=30"));
    let kind = (CONTENT_TYPE, HeaderValue::from_static("application/jwk-set+json"));
    ([cached], [kind], axum::Json(http.authenticator.keys().published())).into_response()
}
