//! The examples of the OpenAPI document. A test validates each against its schema.

use axum::http::StatusCode;
use jiff::Timestamp;
use jiff::tz::Offset;
use serde_json::{Value, json};
use strum::IntoEnumIterator;
use utoipa::openapi::example::ExampleBuilder;
use utoipa::openapi::{OpenApi, RefOr};

use crate::http::issue::IssueAnswer;
use crate::http::paths;
use crate::issuance::{Entity, Refusal, ShownInstant};
use crate::model::SeriesId;

pub(in crate::http) fn request_by_id() -> Value {
    json!({"seriesIds": [101, 999], "customer": {"id": "566881933"}})
}

pub(in crate::http) fn request_by_mobile() -> Value {
    json!({
        "seriesIds": [101, 102],
        "customer": {"mobile": "+91 99000 00001"},
        "metadata": {"sourceType": "BILL", "sourceId": "4711", "sourceActivity": "PURCHASE", "notes": "", "reason": "welcome"}
    })
}

fn coupon() -> Value {
    json!({
        "code": "VMRHNDXB48", "seriesId": 101, "description": "Autumn welcome", "discountCode": "AUT10",
        "validTill": "2099-12-31T00:00:00Z", "discountType": "ABS", "discountValue": 500, "discountUpto": 0,
        "discountOn": "BILL", "detailedInfo": "Valid on the whole bill", "redemptionCount": 0, "id": 0,
        "validTillDateTime": "2099-12-31T23:59:59Z"
    })
}

fn issued() -> Value {
    json!({"entityId": 101, "result": coupon(), "errors": [], "warnings": []})
}

fn unknown() -> Value {
    let error = json!({"status": false, "code": 707, "message": "Coupon Series ID is invalid", "retryable": false});
    json!({"entityId": 999, "errors": [error], "warnings": []})
}

/// The response to [`request_by_id`].
pub(in crate::http) fn answer() -> Value {
    json!({"response": [issued(), unknown()], "totalCount": 2, "failureCount": 1})
}

/// A response with a coupon that the customer already has.
pub(in crate::http) fn resent() -> Value {
    let warning = json!({"status": false, "code": 700, "message": "Coupon resent successfully"});
    let entity = json!({"entityId": 101, "result": coupon(), "errors": [], "warnings": [warning]});
    json!({"response": [entity], "totalCount": 1, "failureCount": 0})
}

pub(in crate::http) fn receipt() -> Value {
    json!({
        "response": [issued(), unknown()], "totalCount": 2, "failureCount": 1, "state": "ANSWERED",
        "receivedAt": "2026-11-22T10:00:00Z"
    })
}

pub(in crate::http) fn contract_token_request() -> Value {
    json!({"key": "crm", "secret": "crm-secret"})
}

pub(in crate::http) fn contract_token() -> Value {
    json!({"data": {"accessToken": "eyJ0eXAiOiJhdCtqd3QiLCJhbGciOiJSUzI1NiIs…", "ttlSeconds": 3600}, "errors": null})
}

pub(in crate::http) fn contract_token_refused() -> Value {
    json!({"data": null, "errors": [{"code": 320_001, "message": "Invalid client key and secret"}]})
}

pub(in crate::http) fn token_request() -> Value {
    json!({"grant_type": "client_credentials", "client_id": "crm", "client_secret": "crm-secret"})
}

pub(in crate::http) fn token() -> Value {
    json!({
        "access_token": "eyJ0eXAiOiJhdCtqd3QiLCJhbGciOiJSUzI1NiIs…", "token_type": "Bearer", "expires_in": 3600,
        "scope": "coupon:issue"
    })
}

pub(in crate::http) fn token_refused(error: &str, description: &str) -> Value {
    json!({"error": error, "error_description": description})
}

pub(in crate::http) fn metadata() -> Value {
    json!({
        "grant_types_supported": ["client_credentials"], "issuer": "https://coupons.example.com",
        "jwks_uri": "https://coupons.example.com/.well-known/jwks.json", "response_types_supported": [],
        "scopes_supported": ["coupon:issue"], "token_endpoint": "https://coupons.example.com/oauth/token",
        "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"]
    })
}

/// Every refusal with a code of its own, in the contract's order. Callers get the same code for `InDoubt` as for another.
pub(super) fn refusals() -> impl Iterator<Item = Refusal> {
    // 2026-12-01T00:00:00Z
    let instant = Timestamp::constant(1_796_083_200, 0);
    let next_eligible_at = ShownInstant { instant, offset: Offset::UTC };
    let has_own_code = |refusal: &Refusal| !matches!(refusal, Refusal::InDoubt);
    Refusal::iter().filter(has_own_code).map(move |refusal| match refusal {
        Refusal::Gap { .. } => Refusal::Gap { next_eligible_at },
        other => other,
    })
}

/// Adds an example of each refusal to the responses of `issueCoupons`.
pub(super) fn add_refusals(document: &mut OpenApi) {
    let issue = document.paths.paths.get_mut(paths::ISSUE).and_then(|path| path.post.as_mut());
    let response = issue.and_then(|issue| issue.responses.responses.get_mut(StatusCode::OK.as_str()));
    let Some(RefOr::T(response)) = response else { return };
    let Some(RefOr::T(content)) = response.content.get_mut("application/json") else { return };
    for refusal in refusals() {
        let entity = Entity { series_id: SeriesId(101), outcome: Err(refusal) };
        let answer = serde_json::to_value(IssueAnswer::of(&[entity])).ok();
        let summary = format!("{}: {}", refusal.code(), refusal.message());
        let example = ExampleBuilder::new().summary(summary).value(answer).build();
        content.examples.insert(refusal.name().to_owned(), example.into());
    }
}
