//! The endpoints that issue coupons and show receipts: their requests (contract 1) and responses (contract 2).

mod request;
mod response;

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Extension, Path, Request, State};
use axum::response::{IntoResponse, Response};

pub(super) use response::IssueAnswer;

use self::request::{IssueBody, IssueQuery, read};
use self::response::{ReceiptBody, respond};
use super::errors::ApiError;
use super::openapi::{ISSUING, RECEIPT, examples, failures, issue_description, schemas};
use super::request_log::RequestId;
use super::state::Http;
use super::{idempotency, paths};
use crate::model::Caller;

#[utoipa::path(
    post,
    path = paths::ISSUE,
    operation_id = "issueCoupons",
    tag = ISSUING,
    summary = "Issue one coupon per series to one customer",
    description = issue_description(),
    params(
        IssueQuery,
        ("Idempotency-Key" = inline(schemas::RequestKey), Header, description = "Names the request; see above"),
        ("X-CAP-API-ATTRIBUTION-ENTITY-TYPE" = inline(schemas::EntityType), Header,
            description = "The kind of name in `X-CAP-API-ATTRIBUTION-ENTITY-CODE`, in upper or lower case; ignored with Basic"),
        ("X-CAP-API-ATTRIBUTION-ENTITY-CODE" = inline(schemas::EntityCode), Header,
            description = "The till or store of its organisation that an OAuth client acts for; ignored with Basic"),
        ("X-CAP-API-ATTRIBUTION-TILL-CODE" = inline(schemas::EntityCode), Header,
            description = "The older header for a till; used if `X-CAP-API-ATTRIBUTION-ENTITY-CODE` is absent"),
    ),
    request_body(content = IssueBody, examples(
        ("Two series" = (summary = "Two series, one of which does not exist", value = json!(examples::request_by_id()))),
        ("With metadata" = (summary = "With the cause of the issue", value = json!(examples::request_by_mobile())))
    )),
    responses(
        (status = 200, description = "The request was processed, even if every entity failed", body = IssueAnswer,
            headers(("Idempotent-Replayed" = inline(schemas::Replayed), description = "An earlier attempt under the same key issued a coupon of this answer")),
            links(("receipt" = (
                operation_id = "getReceipt",
                parameters(("key" = "$request.header.Idempotency-Key")),
                description = "The same request later, if it had an Idempotency-Key"
            ))),
            examples(
                ("Issued" = (summary = "One issued, one refused", value = json!(examples::answer()))),
                ("Resent" = (summary = "700: a coupon that the customer has", value = json!(examples::resent())))
            )),
        failures::Issue,
    ),
    security(("basic" = []), ("oauth2" = ["coupon:issue"]), ("bearer" = []), ("capToken" = [])),
)]
pub(super) async fn issue_coupons(
    State(http): State<Arc<Http>>,
    Extension(caller): Extension<Arc<Caller>>,
    Extension(RequestId(request_id)): Extension<RequestId>,
    request: Request,
) -> Result<Response, ApiError> {
    if http.issuer.is_overloaded() {
        return Err(ApiError::Overloaded);
    }
    let request = read(request, &http.settings, caller, request_id).await?;
    Ok(respond(&http.issuer.issue(request).await?))
}

#[utoipa::path(
    get,
    path = "/v2/coupon/bulk/issue/{key}",
    operation_id = "getReceipt",
    tag = ISSUING,
    summary = "The outcome of a keyed request",
    description = RECEIPT,
    params(
        ("key" = inline(schemas::PathKey), Path, description = "The `Idempotency-Key`, without quotes around it"),
        ("X-CAP-API-ATTRIBUTION-ENTITY-TYPE" = inline(schemas::EntityType), Header,
            description = "The kind of name in `X-CAP-API-ATTRIBUTION-ENTITY-CODE`, in upper or lower case; ignored with Basic"),
        ("X-CAP-API-ATTRIBUTION-ENTITY-CODE" = inline(schemas::EntityCode), Header,
            description = "The till or store of its organisation that an OAuth client acts for; ignored with Basic"),
        ("X-CAP-API-ATTRIBUTION-TILL-CODE" = inline(schemas::EntityCode), Header,
            description = "The older header for a till; used if `X-CAP-API-ATTRIBUTION-ENTITY-CODE` is absent"),
    ),
    responses(
        (status = 200, description = "The outcome so far", body = ReceiptBody, example = json!(examples::receipt())),
        failures::Receipt,
    ),
    security(("basic" = []), ("oauth2" = []), ("bearer" = []), ("capToken" = [])),
)]
pub(super) async fn receipt(
    State(http): State<Arc<Http>>,
    Extension(caller): Extension<Arc<Caller>>,
    key: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let Path(key) = key.map_err(|_not_utf8| idempotency::malformed())?;
    let receipt = http.issuer.receipt(&caller, &idempotency::validate(&key)?).await?.ok_or(ApiError::NoSuchRequest)?;
    Ok(Json(ReceiptBody::from(&receipt)).into_response())
}
