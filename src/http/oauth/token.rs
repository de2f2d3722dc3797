//! Tokens by client credentials as of RFC 6749, for the same clients and of the same kind as in `contract_token`.

use std::sync::Arc;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header::{AUTHORIZATION, CACHE_CONTROL, PRAGMA, WWW_AUTHENTICATE};
use axum::http::{Extensions, HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use utoipa::ToSchema;

use crate::auth::{AuthError, SCOPE};
use crate::http::authenticate::decode_basic;
use crate::http::client_ip::ClientIp;
use crate::http::errors::{ApiError, Denied};
use crate::http::openapi::{TOKEN, TOKENS, examples, failures, schemas};
use crate::http::state::Http;
use crate::http::{body, paths};

/// As RFC 6749, section 5.1.
#[derive(Serialize, ToSchema)]
#[schema(as = AccessToken)]
struct TokenAnswer<'a> {
    /// A JWT as of RFC 9068.
    access_token: &'a str,
    token_type: &'static str,
    /// In seconds.
    expires_in: i64,
    /// Absent if the client has no write access.
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

/// The errors of RFC 6749, section 5.2, and others.
#[derive(Debug)]
enum TokenError {
    InvalidRequest(&'static str),
    /// Only the log has the reason.
    InvalidClient(&'static str),
    UnsupportedGrantType,
    InvalidScope,
    /// An error that the RFC does not define.
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
    path = paths::TOKEN,
    operation_id = "token",
    tag = TOKENS,
    summary = "A token, by standard OAuth 2",
    description = TOKEN,
    request_body(content = Form, content_type = "application/x-www-form-urlencoded", example = json!(examples::token_request())),
    responses(
        (status = 200, description = "A token", body = TokenAnswer, example = json!(examples::token())),
        (status = 400, description = "The request is not a token request, or not allowed for this client", body = ErrorAnswer,
            example = json!(examples::token_refused("invalid_request", "grant_type is missing"))),
        (status = 401, description = "Unknown client, or wrong secret", body = ErrorAnswer,
            headers(("WWW-Authenticate" = String, description = "A challenge for Basic")),
            example = json!(examples::token_refused("invalid_client", "the client or its secret is not valid"))),
        failures::Token,
    ),
    security(("oauthClient" = []), ()),
)]
pub(in crate::http) async fn token(
    State(http): State<Arc<Http>>,
    headers: HeaderMap,
    extensions: Extensions,
    body: Body,
) -> Response {
    let mut response = match grant(&http, &headers, &extensions, body).await {
        Ok(response) => response,
        Err(error) => error.into_response(),
    };
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response.headers_mut().insert(PRAGMA, HeaderValue::from_static("no-cache"));
    response
}

async fn grant(http: &Http, headers: &HeaderMap, extensions: &Extensions, body: Body) -> Result<Response, TokenError> {
    if !body::has_media_type(headers, "application/x-www-form-urlencoded") {
        return Err(TokenError::InvalidRequest("the body must be application/x-www-form-urlencoded"));
    }
    let form = Form::parse(&body::read(body, &http.settings).await.map_err(TokenError::Api)?)?;
    match form.grant_type.as_deref() {
        Some("client_credentials") => {}
        Some(_) => return Err(TokenError::UnsupportedGrantType),
        None => return Err(TokenError::InvalidRequest("grant_type is missing")),
    }
    let mut requested_scopes = form.scope.as_deref().unwrap_or_default().split_ascii_whitespace().peekable();
    let requests_scope = requested_scopes.peek().is_some();
    if requested_scopes.any(|scope| scope != SCOPE) {
        return Err(TokenError::InvalidScope);
    }
    let (client_key, secret) = client_credentials(headers, form)?;
    let granted = http.authenticator.grant(&client_key, &secret, ClientIp::of(extensions)).await?;
    if requests_scope && granted.scope.is_none() {
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
                // RFC 6749, section 3.2: unknown parameters are ignored.
                _ => true,
            };
            if !is_new {
                return Err(TokenError::InvalidRequest("a parameter comes twice"));
            }
        }
        Ok(form)
    }
}

/// The client's key and secret, from `client_secret_basic` or `client_secret_post`; both at once are an error.
fn client_credentials(headers: &HeaderMap, form: Form) -> Result<(String, SecretString), TokenError> {
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

/// RFC 6749, section 2.3.1: the client form-encodes key and secret before it joins them.
fn basic_client(authorization: &HeaderValue) -> Option<(String, SecretString)> {
    let (scheme, pair) = authorization.to_str().ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let (name, secret) = decode_basic(pair)?;
    Some((form_decoded(&name), form_decoded(secret.expose_secret()).into()))
}

fn form_decoded(text: &str) -> String {
    // `form_urlencoded` parses whole forms, so the two separators are quoted first. Only an empty text has no pair.
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
        let (status, error, error_description, denied) = match self {
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
        let body = ErrorAnswer { error, error_description };
        let mut response = (status, Json(body)).into_response();
        response.extensions_mut().insert(Denied(denied));
        if status == StatusCode::UNAUTHORIZED {
            let challenge = HeaderValue::from_static("Basic realm=\"coupon-issuer\", charset=\"UTF-8\"");
            response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
        }
        response
    }
}
