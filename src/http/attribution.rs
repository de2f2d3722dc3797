//! The attribution headers (contract 5): an OAuth client acts for many tills and stores, and names one of them per request.
//! A till's own requests ignore the headers.

use std::sync::Arc;

use axum::http::HeaderMap;

use super::errors::ApiError;
use super::headers::{Repeated, single};
use super::state::Http;
use crate::auth::AttributionError;
use crate::model::{Caller, Credential, TargetType};

const ENTITY_TYPE: &str = "X-CAP-API-ATTRIBUTION-ENTITY-TYPE";
const ENTITY_CODE: &str = "X-CAP-API-ATTRIBUTION-ENTITY-CODE";
/// The older header that names a till.
const TILL_CODE: &str = "X-CAP-API-ATTRIBUTION-TILL-CODE";

/// The till or store that a request names, and the header that names it.
#[derive(Debug, PartialEq, Eq)]
struct Target<'h> {
    header: &'static str,
    kind: TargetType,
    code: &'h str,
}

/// The caller with the till or store that its request names. `None`: the request names none.
pub(super) async fn attributed(
    http: &Http,
    caller: &Caller,
    headers: &HeaderMap,
) -> Result<Option<Arc<Caller>>, ApiError> {
    if caller.credential == Credential::Till {
        return Ok(None);
    }
    let Some(Target { header, kind, code }) = target(headers)? else { return Ok(None) };
    match http.authenticator.attribute(caller, kind, code).await {
        Ok(caller) => Ok(Some(caller)),
        Err(AttributionError::Unknown(error)) => Err(error.into()),
        Err(error @ (AttributionError::NoSuchTarget | AttributionError::SeveralTargets)) => {
            Err(ApiError::BadRequest(format!("{header}: {error} (as {})", kind.name())))
        }
    }
}

fn target(headers: &HeaderMap) -> Result<Option<Target<'_>>, ApiError> {
    let kind = match header_text(headers, ENTITY_TYPE)? {
        None => TargetType::Till,
        Some(name) => TargetType::parse(name).ok_or_else(|| {
            let names = TargetType::NAMES.join(", ");
            ApiError::BadRequest(format!("{ENTITY_TYPE}: must be one of {names}"))
        })?,
    };
    let entity = header_text(headers, ENTITY_CODE)?;
    let entity = entity.map(|code| Target { header: ENTITY_CODE, kind, code });
    let till = header_text(headers, TILL_CODE)?;
    let till = till.map(|code| Target { header: TILL_CODE, kind: TargetType::Till, code });
    Ok(entity.or(till))
}

/// The text of a header; `None` if it is missing or blank. It is read as UTF-8, as a store's name may have any letters.
fn header_text<'h>(headers: &'h HeaderMap, name: &'static str) -> Result<Option<&'h str>, ApiError> {
    let repeated = |_: Repeated| ApiError::BadRequest(format!("{name}: must come once"));
    let Some(value) = single(headers, name).map_err(repeated)? else { return Ok(None) };
    let text = std::str::from_utf8(value.as_bytes());
    let text = text.map_err(|_| ApiError::BadRequest(format!("{name}: must be plain text, in UTF-8")))?.trim();
    Ok(Some(text).filter(|text| !text.is_empty()))
}
