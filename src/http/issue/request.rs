use std::sync::Arc;

use axum::extract::{Query, Request};
use axum::http::Uri;
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use crate::config::HttpSettings;
use crate::http::body::{json_bytes, parse, utf8};
use crate::http::errors::ApiError;
use crate::http::fingerprint::fingerprint;
use crate::http::idempotency;
use crate::http::ids::{IdNumber, IdText, MobileText};
use crate::http::object::Object;
use crate::http::openapi::schemas;
use crate::issuance::{IssueRequest, RequestKey};
use crate::model::{Caller, CustomerId, Identifiers, Metadata, SeriesId, Source};

/// The maximum length of `customer.id`, `customer.externalId` and `accountId`, in characters.
const MAX_ID_LENGTH: usize = 255;
/// The maximum length of `customer.email`, in characters: that of an e-mail address.
const MAX_EMAIL_LENGTH: usize = 254;

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

/// The customer who receives the coupons: at least one identifier that is not blank. Several: id, then mobile, externalId, email
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
pub(super) struct IssueQuery {
    #[param(schema_with = schemas::source, required = false)]
    source: Option<String>,
    #[param(schema_with = schemas::account_id, required = false)]
    account_id: Option<String>,
}

/// Reads and validates a request.
pub(super) async fn read(
    request: Request,
    settings: &HttpSettings,
    caller: Arc<Caller>,
    request_id: Arc<str>,
) -> Result<IssueRequest, ApiError> {
    let (head, body) = request.into_parts();
    let (source, account_id) = parse_query(&head.uri)?;
    let key = idempotency::key(&head.headers)?;
    let bytes = json_bytes(&head.headers, body, settings).await?;
    let text = utf8(&bytes)?;
    let body: IssueBody = parse(text)?;
    Ok(IssueRequest {
        key: key.map(|key| RequestKey {
            key,
            fingerprint: fingerprint(text, source, account_id.as_deref(), caller.attribution()),
        }),
        caller,
        series_ids: series_ids(body.series_ids, settings.max_series_ids)?,
        customer: identifiers(body.customer.0)?,
        metadata: body.metadata.map(|metadata| validate_metadata(metadata.0)).transpose()?,
        source,
        account_id,
        request_id,
    })
}

fn parse_query(uri: &Uri) -> Result<(Source, Option<String>), ApiError> {
    for (name, value) in uri.query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('=')) {
        // The query parser would put U+FFFD in place of invalid bytes.
        if matches!(name, "source" | "accountId") && percent_decode_str(value).decode_utf8().is_err() {
            return Err(ApiError::BadRequest(format!("{name}: is no UTF-8 when it is percent-decoded")));
        }
    }
    let Query(query) = Query::<IssueQuery>::try_from_uri(uri)
        .map_err(|error| ApiError::BadRequest(format!("query: {}", error.body_text())))?;
    let source = match query.source.as_deref() {
        None | Some("") => Source::default(),
        Some(name) => Source::parse(name)
            .ok_or_else(|| ApiError::BadRequest(format!("source: must be one of {}", Source::NAMES.join(", "))))?,
    };
    Ok((source, text("accountId", query.account_id, MAX_ID_LENGTH)?))
}

fn series_ids(given: Vec<IdNumber>, max: usize) -> Result<Vec<SeriesId>, ApiError> {
    match given.len() {
        0 => Err(ApiError::BadRequest("seriesIds: at least one id is required".to_owned())),
        count if count > max => Err(ApiError::TooManyIds { given: count, max }),
        _ => Ok(given.into_iter().map(|id| SeriesId(id.0)).collect()),
    }
}

fn identifiers(customer: CustomerBody) -> Result<Identifiers, ApiError> {
    let mobile = text("customer.mobile", customer.mobile.map(|mobile| mobile.0), MAX_ID_LENGTH)?;
    let no_mobile = |reason: String| ApiError::BadRequest(format!("customer.mobile: {reason}"));
    let identifiers = Identifiers {
        id: text("customer.id", customer.id.map(|id| id.0), MAX_ID_LENGTH)?.map(CustomerId),
        mobile: mobile.map(|mobile| Identifiers::mobile_digits(&mobile).map_err(no_mobile)).transpose()?,
        external_id: text("customer.externalId", customer.external_id, MAX_ID_LENGTH)?,
        email: text("customer.email", customer.email, MAX_EMAIL_LENGTH)?.map(|email| Identifiers::email_folded(&email)),
    };
    if identifiers.is_empty() { Err(ApiError::NoCustomer) } else { Ok(identifiers) }
}

fn validate_metadata(metadata: Metadata) -> Result<Metadata, ApiError> {
    for (field, value, max_length) in [
        ("metadata.sourceType", &metadata.source_type, 50),
        ("metadata.sourceId", &metadata.source_id, 50),
        ("metadata.sourceActivity", &metadata.source_activity, 50),
        ("metadata.notes", &metadata.notes, 250),
        ("metadata.reason", &metadata.reason, 250),
    ] {
        check_text(field, value.as_deref().unwrap_or_default(), max_length)?;
    }
    Ok(metadata)
}

/// The text of a field; a blank one counts as absent.
fn text(field: &str, value: Option<String>, max_length: usize) -> Result<Option<String>, ApiError> {
    let Some(value) = value.filter(|value| !value.trim().is_empty()) else { return Ok(None) };
    check_text(field, &value, max_length)?;
    Ok(Some(value))
}

fn check_text(field: &str, value: &str, max_length: usize) -> Result<(), ApiError> {
    if value.chars().count() > max_length {
        return Err(ApiError::BadRequest(format!("{field}: longer than {max_length} characters")));
    }
    if value.contains('\0') {
        return Err(ApiError::BadRequest(format!("{field}: must not contain the character U+0000")));
    }
    Ok(())
}
