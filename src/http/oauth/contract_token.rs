//! Tokens as of the published contract (contract 5), which has its own form of requests and responses.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::CACHE_CONTROL;
use axum::http::{Extensions, HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::auth::AuthError;
use crate::http::body::read_json;
use crate::http::client_ip::ClientIp;
use crate::http::errors::{ApiError, Denied};
use crate::http::openapi::{TOKENS, examples, failures};
use crate::http::state::Http;

/// An OAuth client and its secret.
#[derive(Deserialize, ToSchema)]
#[schema(as = ContractTokenRequest)]
struct TokenRequest {
    key: String,
    #[schema(value_type = String, format = Password)]
    secret: SecretString,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = ContractToken)]
struct TokenData<'a> {
    /// A JWT.
    access_token: &'a str,
    /// The lifetime of the token.
    ttl_seconds: i64,
}

#[derive(Serialize, ToSchema)]
#[schema(as = ContractTokenError)]
struct TokenError {
    code: u32,
    message: &'static str,
}

/// Either `data` or `errors`; the other is null.
#[derive(Serialize, ToSchema)]
#[schema(as = ContractTokenAnswer)]
struct TokenAnswer<'a> {
    #[schema(required)]
    data: Option<TokenData<'a>>,
    #[schema(required, value_type = Option<Vec<TokenError>>)]
    errors: Option<[TokenError; 1]>,
}

#[utoipa::path(
    post,
    path = "/v3/oauth/token/generate",
    operation_id = "generateToken",
    tag = TOKENS,
    summary = "A token, by the published contract",
    description = "The token goes into `X-CAP-API-OAUTH-TOKEN`, or into `Authorization: Bearer`.",
    request_body(content = TokenRequest, example = json!(examples::contract_token_request())),
    responses(
        (status = 200, description = "A token", body = TokenAnswer, example = json!(examples::contract_token())),
        (status = 401, description = "Unknown client, or wrong secret", body = TokenAnswer,
            headers(("WWW-Authenticate" = String, description = "A challenge for each scheme")),
            example = json!(examples::contract_token_refused())),
        failures::ContractToken,
    ),
    security(),
)]
pub(in crate::http) async fn generate(
    State(http): State<Arc<Http>>,
    headers: HeaderMap,
    extensions: Extensions,
    body: Body,
) -> Result<Response, ApiError> {
    let request: TokenRequest = read_json(&headers, body, &http.settings).await?;
    match http.authenticator.grant(&request.key, &request.secret, ClientIp::of(&extensions)).await {
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
