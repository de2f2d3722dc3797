//! `POST /v3/oauth/token/generate`: a client's key and secret for an access token (contract 5). It has an answer form of
//! its own, which the published contract fixes.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::CACHE_CONTROL;
use axum::http::{Extensions, HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use super::Http;
use super::address::ClientAddress;
use super::body::read_json;
use super::errors::{ApiError, Denied};
use crate::auth::AuthError;

#[derive(Deserialize)]
struct TokenRequest {
    key: String,
    secret: SecretString,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct TokenData<'a> {
    access_token: &'a str,
    ttl_seconds: i64,
}

#[derive(Serialize)]
struct TokenError {
    code: u32,
    message: &'static str,
}

#[derive(Serialize)]
struct TokenAnswer<'a> {
    data: Option<TokenData<'a>>,
    errors: Option<[TokenError; 1]>,
}

pub(super) async fn generate(
    State(http): State<Arc<Http>>,
    headers: HeaderMap,
    extensions: Extensions,
    body: Body,
) -> Result<Response, ApiError> {
    let request: TokenRequest = read_json(&headers, body, &http.limits).await?;
    match http.authenticator.grant(&request.key, &request.secret, ClientAddress::of(&extensions)).await {
        Ok(granted) => {
            let data = TokenData { access_token: granted.token.expose_secret(), ttl_seconds: granted.ttl_seconds };
            Ok(answer(StatusCode::OK, &TokenAnswer { data: Some(data), errors: None }))
        }
        Err(AuthError::Invalid(reason)) => {
            let error = TokenError { code: 320_001, message: "Invalid client key and secret" };
            let body = answer(StatusCode::UNAUTHORIZED, &TokenAnswer { data: None, errors: Some([error]) });
            let mut response = (ApiError::NoCredentials.headers(), body).into_response();
            response.extensions_mut().insert(Denied(reason));
            Ok(response)
        }
        Err(error) => Err(error.into()),
    }
}

fn answer(status: StatusCode, body: &TokenAnswer<'_>) -> Response {
    (status, [(CACHE_CONTROL, "no-store")], Json(body)).into_response()
}
