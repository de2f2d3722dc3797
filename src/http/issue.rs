//! `POST /v2/coupon/bulk/issue`: the request as the contract's section 1 has it, and the answer of its section 2.
//! Parses and renders; what is issued is decided in `issuance`.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Extension, Path, Query, Request, State};
use axum::http::{HeaderName, HeaderValue, Uri};
use axum::response::{IntoResponse, Response};
use jiff::tz::TimeZone;
use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::Http;
use super::body::{json_bytes, parse, text_of};
use super::errors::{ApiError, Item};
use super::fingerprint::fingerprint;
use super::idempotency;
use super::ids::{IdNumber, IdText, MobileText};
use super::object::Object;
use super::openapi::{self, examples, failures, schemas};
use super::request_log::{Counts, RequestId};
use crate::issuance::{Entity, Granted, Issuance, IssueRequest, Progress, Refusal, RequestKey, validity};
use crate::model::{Caller, CustomerId, DiscountType, Identifiers, Metadata, SeriesId, Source};

/// On an answer some of which an earlier attempt has issued.
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// The longest `customer.id`, `customer.externalId` and `accountId`, in characters.
const LONGEST_ID: usize = 255;
/// The longest `customer.email`, in characters: what an address may have.
const LONGEST_EMAIL: usize = 254;
/// So many failures of a request are told in its log line, one by one; all of them are counted.
const MOST_REFUSED_TOLD: usize = 10;

/// One coupon of each series for one customer. Unknown fields are ignored.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = IssueRequest)]
pub(super) struct IssueBody {
    #[schema(schema_with = schemas::series_ids)]
    series_ids: Vec<IdNumber>,
    #[schema(value_type = CustomerBody)]
    customer: Object<CustomerBody>,
    #[schema(value_type = Option<Metadata>)]
    metadata: Option<Object<Metadata>>,
}

/// Who is to receive the coupons: at least one identifier that is not blank. Several: id, then mobile, externalId, email
/// decide; two that name different customers are refused with 721.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Customer)]
struct CustomerBody {
    #[schema(schema_with = schemas::customer_id)]
    id: Option<IdText>,
    #[schema(schema_with = schemas::mobile)]
    mobile: Option<MobileText>,
    #[schema(schema_with = schemas::email)]
    email: Option<String>,
    #[schema(schema_with = schemas::external_id)]
    external_id: Option<String>,
}

#[derive(Deserialize, IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
struct IssueQuery {
    #[param(schema_with = schemas::source, required = false)]
    source: Option<String>,
    #[param(schema_with = schemas::account_id, required = false)]
    account_id: Option<String>,
}

/// What became of each series that was asked for, in that order.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct IssueAnswer {
    response: Vec<EntityBody>,
    /// How many entities there are.
    total_count: usize,
    /// How many of them have an error.
    failure_count: usize,
}

/// What is known of a keyed request. An entity of which nothing is known is told as 748.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Receipt)]
pub(super) struct ReceiptBody {
    #[serde(flatten)]
    answer: IssueAnswer,
    state: ReceiptState,
    /// When the request was first seen, in the organisation's time zone.
    #[schema(format = DateTime)]
    received_at: String,
}

/// How far a keyed request has come. `INTERRUPTED`: try it again to finish it.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
#[schema(as = RequestState)]
enum ReceiptState {
    Running,
    Answered,
    Interrupted,
}

/// What became of one series.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Entity)]
pub(super) struct EntityBody {
    /// The id of the series.
    #[schema(value_type = i64)]
    entity_id: SeriesId,
    #[schema(nullable = false)]
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<ResultBody>,
    /// Why there is no coupon. Empty where there is one.
    errors: Vec<Item>,
    /// 700: a coupon that the customer has is shown again.
    warnings: Vec<Item>,
}

/// A coupon. Dates are in the organisation's time zone.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Coupon)]
struct ResultBody {
    /// What the customer shows.
    code: String,
    #[schema(value_type = i64)]
    series_id: SeriesId,
    description: String,
    /// `NO_VALUE` where the series has none.
    discount_code: String,
    /// The last day, at its beginning.
    #[schema(format = DateTime)]
    valid_till: String,
    #[schema(value_type = DiscountType)]
    discount_type: &'static str,
    discount_value: i64,
    discount_upto: i64,
    /// Always `BILL`.
    discount_on: &'static str,
    detailed_info: String,
    /// How often it was redeemed.
    redemption_count: i32,
    /// Zero in every published sample.
    id: u8,
    /// The last second of the last day.
    #[schema(format = DateTime)]
    valid_till_date_time: String,
}

#[utoipa::path(
    post,
    path = "/v2/coupon/bulk/issue",
    operation_id = "issueCoupons",
    tag = openapi::ISSUING,
    summary = "Issue one coupon per series to one customer",
    description = openapi::issue(),
    params(
        IssueQuery,
        ("Idempotency-Key" = inline(schemas::RequestKey), Header, description = "Names the request; see above"),
        ("X-CAP-API-ATTRIBUTION-ENTITY-TYPE" = inline(schemas::EntityType), Header,
            description = "What `X-CAP-API-ATTRIBUTION-ENTITY-CODE` is, in any case; ignored with Basic"),
        ("X-CAP-API-ATTRIBUTION-ENTITY-CODE" = inline(schemas::EntityCode), Header,
            description = "The till or store of its organisation that an OAuth client acts for; ignored with Basic"),
        ("X-CAP-API-ATTRIBUTION-TILL-CODE" = inline(schemas::EntityCode), Header,
            description = "The older way to name a till, used where there is no `X-CAP-API-ATTRIBUTION-ENTITY-CODE`"),
    ),
    request_body(content = IssueBody, examples(
        ("Two series" = (summary = "Two series, one of which does not exist", value = json!(examples::by_id()))),
        ("With metadata" = (summary = "With what caused it", value = json!(examples::by_mobile())))
    )),
    responses(
        (status = 200, description = "The request was processed, even if every entity failed", body = IssueAnswer,
            headers(("Idempotent-Replayed" = inline(schemas::Replayed), description = "Something in the answer was issued before, under the same key")),
            links(("receipt" = (
                operation_id = "getReceipt",
                parameters(("key" = "$request.header.Idempotency-Key")),
                description = "The same again later, if the request had an Idempotency-Key"
            ))),
            examples(
                ("Issued" = (summary = "One issued, one refused", value = json!(examples::answer()))),
                ("Resent" = (summary = "700: a coupon that the customer has", value = json!(examples::resent())))
            )),
        failures::Issue,
    ),
    security(("basic" = []), ("oauth2" = ["coupon:issue"]), ("bearer" = []), ("capToken" = [])),
)]
pub(super) async fn issue_bulk(
    State(http): State<Arc<Http>>,
    Extension(caller): Extension<Arc<Caller>>,
    Extension(RequestId(request_id)): Extension<RequestId>,
    request: Request,
) -> Result<Response, ApiError> {
    if http.issuer.is_overloaded() {
        return Err(ApiError::Overloaded);
    }
    let request = read(&http, caller, request_id, request).await?;
    Ok(answer(&http.issuer.issue(request).await?))
}

/// What is asked for. Of the request as it came nothing is kept.
async fn read(
    http: &Http,
    caller: Arc<Caller>,
    request_id: Arc<str>,
    request: Request,
) -> Result<IssueRequest, ApiError> {
    let (head, body) = request.into_parts();
    let (source, account_id) = parse_query(&head.uri)?;
    let key = idempotency::key(&head.headers)?;
    let bytes = json_bytes(&head.headers, body, &http.settings).await?;
    let text = text_of(&bytes)?;
    let body: IssueBody = parse(text)?;
    Ok(IssueRequest {
        key: key.map(|key| RequestKey {
            key,
            fingerprint: fingerprint(text, source, account_id.as_deref(), caller.attribution()),
        }),
        caller,
        series_ids: series_ids(body.series_ids, http.settings.max_series_ids)?,
        customer: identifiers(body.customer.0)?,
        metadata: body.metadata.map(|metadata| checked_metadata(metadata.0)).transpose()?,
        source,
        account_id,
        request_id,
    })
}

/// `GET /v2/coupon/bulk/issue/{key}` (contract 6).
#[utoipa::path(
    get,
    path = "/v2/coupon/bulk/issue/{key}",
    operation_id = "getReceipt",
    tag = openapi::ISSUING,
    summary = "What became of a keyed request",
    description = openapi::RECEIPT,
    params(
        ("key" = inline(schemas::PathKey), Path, description = "The `Idempotency-Key`, without quotes around it"),
        ("X-CAP-API-ATTRIBUTION-ENTITY-TYPE" = inline(schemas::EntityType), Header,
            description = "What `X-CAP-API-ATTRIBUTION-ENTITY-CODE` is, in any case; ignored with Basic"),
        ("X-CAP-API-ATTRIBUTION-ENTITY-CODE" = inline(schemas::EntityCode), Header,
            description = "The till or store of its organisation that an OAuth client acts for; ignored with Basic"),
        ("X-CAP-API-ATTRIBUTION-TILL-CODE" = inline(schemas::EntityCode), Header,
            description = "The older way to name a till, used where there is no `X-CAP-API-ATTRIBUTION-ENTITY-CODE`"),
    ),
    responses(
        (status = 200, description = "What is known of it", body = ReceiptBody, example = json!(examples::receipt())),
        failures::Receipt,
    ),
    security(("basic" = []), ("oauth2" = []), ("bearer" = []), ("capToken" = [])),
)]
pub(super) async fn receipt(
    State(http): State<Arc<Http>>,
    Extension(caller): Extension<Arc<Caller>>,
    key: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let Path(key) = key.map_err(|_not_utf8| idempotency::bad())?;
    let receipt = http.issuer.receipt(&caller, &idempotency::checked(&key)?).await?.ok_or(ApiError::NoSuchRequest)?;
    let answer = IssueAnswer::of(&receipt.entities);
    let state = match receipt.progress {
        Progress::Running => ReceiptState::Running,
        Progress::Answered => ReceiptState::Answered,
        Progress::Interrupted => ReceiptState::Interrupted,
    };
    let received_at = validity::instant(receipt.received_at, &receipt.zone);
    Ok(Json(ReceiptBody { answer, state, received_at }).into_response())
}

fn parse_query(uri: &Uri) -> Result<(Source, Option<String>), ApiError> {
    for (name, value) in uri.query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('=')) {
        // It would be read with U+FFFD in place of what is no text.
        if matches!(name, "source" | "accountId") && percent_decode_str(value).decode_utf8().is_err() {
            return Err(ApiError::BadRequest(format!("{name}: is no UTF-8 when it is percent-decoded")));
        }
    }
    let Query(query) = Query::<IssueQuery>::try_from_uri(uri)
        .map_err(|error| ApiError::BadRequest(format!("query: {}", error.body_text())))?;
    let source = match query.source.as_deref() {
        None | Some("") => Source::default(),
        Some(name) => {
            Source::ALL.into_iter().find(|source| source.name().eq_ignore_ascii_case(name)).ok_or_else(|| {
                ApiError::BadRequest(format!("source: must be one of {}", Source::ALL.map(Source::name).join(", ")))
            })?
        }
    };
    Ok((source, text("accountId", query.account_id, LONGEST_ID)?))
}

fn series_ids(given: Vec<IdNumber>, most: usize) -> Result<Vec<SeriesId>, ApiError> {
    match given.len() {
        0 => Err(ApiError::BadRequest("seriesIds: at least one id is required".to_owned())),
        count if count > most => Err(ApiError::TooManyIds { given: count, most }),
        _ => Ok(given.into_iter().map(|id| SeriesId(id.0)).collect()),
    }
}

fn identifiers(customer: CustomerBody) -> Result<Identifiers, ApiError> {
    let mobile = text("customer.mobile", customer.mobile.map(|mobile| mobile.0), LONGEST_ID)?;
    let no_mobile = |reason: String| ApiError::BadRequest(format!("customer.mobile: {reason}"));
    let identifiers = Identifiers {
        id: text("customer.id", customer.id.map(|id| id.0), LONGEST_ID)?.map(CustomerId),
        mobile: mobile.map(|mobile| Identifiers::mobile_digits(&mobile).map_err(no_mobile)).transpose()?,
        external_id: text("customer.externalId", customer.external_id, LONGEST_ID)?,
        email: text("customer.email", customer.email, LONGEST_EMAIL)?.map(|email| Identifiers::email_folded(&email)),
    };
    if identifiers.is_empty() { Err(ApiError::NoCustomer) } else { Ok(identifiers) }
}

fn checked_metadata(given: Metadata) -> Result<Metadata, ApiError> {
    for (field, value, most) in [
        ("metadata.sourceType", &given.source_type, 50),
        ("metadata.sourceId", &given.source_id, 50),
        ("metadata.sourceActivity", &given.source_activity, 50),
        ("metadata.notes", &given.notes, 250),
        ("metadata.reason", &given.reason, 250),
    ] {
        check_text(field, value.as_deref().unwrap_or_default(), most)?;
    }
    Ok(given)
}

/// A field that is absent when it is empty.
fn text(field: &str, value: Option<String>, most: usize) -> Result<Option<String>, ApiError> {
    let Some(value) = value.filter(|value| !value.trim().is_empty()) else { return Ok(None) };
    check_text(field, &value, most)?;
    Ok(Some(value))
}

fn check_text(field: &str, value: &str, most: usize) -> Result<(), ApiError> {
    if value.chars().count() > most {
        return Err(ApiError::BadRequest(format!("{field}: longer than {most} characters")));
    }
    if value.contains('\0') {
        return Err(ApiError::BadRequest(format!("{field}: must not contain the character U+0000")));
    }
    Ok(())
}

impl IssueAnswer {
    /// The answer of these entities.
    pub(super) fn of(entities: &[Entity]) -> Self {
        let response: Vec<EntityBody> = entities.iter().map(entity_body).collect();
        let failure_count = response.iter().filter(|entity| !entity.errors.is_empty()).count();
        Self { total_count: response.len(), failure_count, response }
    }
}

fn answer(issuance: &Issuance) -> Response {
    let answer = IssueAnswer::of(&issuance.entities);
    let failures = answer.failure_count;
    let refused = (failures > 0).then(|| refused(&answer.response));
    let of = |name| issuance.entities.iter().filter(|entity| entity.name() == name).count();
    let (issued, resent, replayed) = (of("issued"), of("resent"), of("replayed"));
    let counts = Counts { total: answer.total_count, issued, resent, replayed, failures, refused };
    let mut answer = Json(answer).into_response();
    if issuance.is_replayed() {
        answer.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
    }
    answer.extensions_mut().insert(counts);
    answer
}

/// What the log line says of the failures: `104:5001 999:707`.
fn refused(response: &[EntityBody]) -> String {
    let told = response.iter().filter_map(|entity| Some((entity.entity_id.0, entity.errors.first()?.code)));
    told.take(MOST_REFUSED_TOLD).map(|(series, code)| format!("{series}:{code}")).collect::<Vec<_>>().join(" ")
}

fn entity_body(entity: &Entity) -> EntityBody {
    let entity_id = entity.series_id;
    match &entity.outcome {
        Ok(granted) => EntityBody {
            entity_id,
            result: Some(result_body(entity_id, granted)),
            errors: Vec::new(),
            warnings: granted.resent.map(|_| resent_warning()).into_iter().collect(),
        },
        Err(refusal) => {
            EntityBody { entity_id, result: None, errors: vec![error_item(*refusal)], warnings: Vec::new() }
        }
    }
}

fn result_body(series_id: SeriesId, granted: &Granted) -> ResultBody {
    let (face, zone) = (&granted.face, &granted.zone);
    ResultBody {
        code: granted.code.clone(),
        series_id,
        description: face.description.clone(),
        discount_code: face.discount_code.clone().unwrap_or_else(|| "NO_VALUE".to_owned()),
        valid_till: validity::valid_till(granted.expires_on, zone),
        discount_type: face.discount_type.name(),
        discount_value: face.discount_value,
        discount_upto: face.discount_upto,
        discount_on: "BILL",
        detailed_info: face.info.clone(),
        redemption_count: granted.redemption_count,
        id: 0,
        valid_till_date_time: validity::valid_till_date_time(granted.expires_on, zone),
    }
}

fn error_item(refusal: Refusal) -> Item {
    Item {
        next_eligible_at: refusal
            .next_eligible_at()
            .map(|at| validity::instant(at.instant, &TimeZone::fixed(at.offset))),
        remaining: refusal.remaining(),
        ..Item::new(refusal.code(), refusal.message().to_owned(), Some(refusal.is_retryable()))
    }
}

fn resent_warning() -> Item {
    Item::new(700, "Coupon resent successfully".to_owned(), None)
}
