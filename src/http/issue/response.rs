use axum::Json;
use axum::http::{HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use jiff::tz::TimeZone;
use serde::Serialize;
use utoipa::ToSchema;

use crate::http::errors::Problem;
use crate::http::request_log::EntityCounts;
use crate::issuance::{Entity, Granted, Issuance, Progress, Receipt, Refusal, expiry};
use crate::model::{DiscountType, SeriesId};

/// Set when an earlier attempt issued some of the coupons.
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// The log line of a request has its first failures one by one. The metrics have all of them.
const MAX_LOGGED_REFUSALS: usize = 10;

/// The outcome of each series of the request, in the same order.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(in crate::http) struct IssueAnswer {
    response: Vec<EntityBody>,
    /// The number of entities.
    total_count: usize,
    /// The number of entities with an error.
    failure_count: usize,
}

/// What is known of a keyed request. An entity whose outcome is unknown is answered 748.
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

/// The state of a keyed request. `INTERRUPTED`: retry it to finish it.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
#[schema(as = RequestState)]
enum ReceiptState {
    Running,
    Answered,
    Interrupted,
}

/// The outcome of one series.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Entity)]
struct EntityBody {
    /// The id of the series.
    #[schema(value_type = i64)]
    entity_id: SeriesId,
    #[schema(nullable = false)]
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<ResultBody>,
    /// The reason if there is no coupon; otherwise empty.
    errors: Vec<Problem>,
    /// 700: the answer shows a coupon that the customer already has.
    warnings: Vec<Problem>,
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
    /// `NO_VALUE` if the series has none.
    discount_code: String,
    /// The start of the last day.
    #[schema(format = DateTime)]
    valid_till: String,
    #[schema(value_type = DiscountType)]
    discount_type: &'static str,
    discount_value: i64,
    discount_upto: i64,
    /// Always `BILL`.
    discount_on: &'static str,
    detailed_info: String,
    /// The number of redemptions.
    redemption_count: i32,
    /// Zero in every published sample.
    id: u8,
    /// The last second of the last day.
    #[schema(format = DateTime)]
    valid_till_date_time: String,
}

impl IssueAnswer {
    pub(in crate::http) fn of(entities: &[Entity]) -> Self {
        let response: Vec<EntityBody> = entities.iter().map(entity_body).collect();
        let failure_count = response.iter().filter(|entity| !entity.errors.is_empty()).count();
        Self { total_count: response.len(), failure_count, response }
    }
}

impl From<&Receipt> for ReceiptBody {
    fn from(receipt: &Receipt) -> Self {
        let state = match receipt.progress {
            Progress::Running => ReceiptState::Running,
            Progress::Answered => ReceiptState::Answered,
            Progress::Interrupted => ReceiptState::Interrupted,
        };
        let received_at = expiry::format_instant(receipt.received_at, &receipt.zone);
        Self { answer: IssueAnswer::of(&receipt.entities), state, received_at }
    }
}

pub(super) fn respond(issuance: &Issuance) -> Response {
    let answer = IssueAnswer::of(&issuance.entities);
    let failures = answer.failure_count;
    let refused = (failures > 0).then(|| refusals(&answer.response));
    let count = |outcome| issuance.entities.iter().filter(|entity| entity.name() == outcome).count();
    let counts = EntityCounts {
        total: answer.total_count,
        issued: count("issued"),
        resent: count("resent"),
        replayed: count("replayed"),
        failures,
        refused,
    };
    let mut response = Json(answer).into_response();
    if issuance.is_replayed() {
        response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
    }
    response.extensions_mut().insert(counts);
    response
}

/// The failures, as the log line has them: `104:5001 999:707`.
fn refusals(entities: &[EntityBody]) -> String {
    let refused = entities.iter().filter_map(|entity| Some((entity.entity_id.0, entity.errors.first()?.code)));
    refused.take(MAX_LOGGED_REFUSALS).map(|(series, code)| format!("{series}:{code}")).collect::<Vec<_>>().join(" ")
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
            EntityBody { entity_id, result: None, errors: vec![refusal_problem(*refusal)], warnings: Vec::new() }
        }
    }
}

fn result_body(series_id: SeriesId, granted: &Granted) -> ResultBody {
    let (series, zone) = (&granted.snapshot, &granted.zone);
    ResultBody {
        code: granted.code.clone(),
        series_id,
        description: series.description.clone(),
        discount_code: series.discount_code.clone().unwrap_or_else(|| "NO_VALUE".to_owned()),
        valid_till: expiry::valid_till(granted.expires_on, zone),
        discount_type: series.discount_type.name(),
        discount_value: series.discount_value,
        discount_upto: series.discount_upto,
        discount_on: "BILL",
        detailed_info: series.info.clone(),
        redemption_count: granted.redemption_count,
        id: 0,
        valid_till_date_time: expiry::valid_till_date_time(granted.expires_on, zone),
    }
}

fn refusal_problem(refusal: Refusal) -> Problem {
    Problem {
        next_eligible_at: refusal
            .next_eligible_at()
            .map(|at| expiry::format_instant(at.instant, &TimeZone::fixed(at.offset))),
        remaining: refusal.remaining(),
        ..Problem::new(refusal.code(), refusal.message().to_owned(), Some(refusal.is_retryable()))
    }
}

fn resent_warning() -> Problem {
    Problem::new(700, "Coupon resent successfully".to_owned(), None)
}
