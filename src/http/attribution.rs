//! The attribution headers (contract 5): an OAuth client acts for many tills and stores, and says for which one.
//!
//! A till's own request ignores them. What is wrong with one is told with its name; what they name is looked up in `auth`.

use std::sync::Arc;

use axum::http::HeaderMap;

use super::Http;
use super::errors::ApiError;
use super::headers::{Twice, single};
use crate::auth::AttributionError;
use crate::model::{Caller, Credential, TargetType};

/// The headers, as the contract spells them.
pub(super) const ENTITY_TYPE: &str = "X-CAP-API-ATTRIBUTION-ENTITY-TYPE";
pub(super) const ENTITY_CODE: &str = "X-CAP-API-ATTRIBUTION-ENTITY-CODE";
/// The older way to name a till.
pub(super) const TILL_CODE: &str = "X-CAP-API-ATTRIBUTION-TILL-CODE";

/// The till or store that a request names, and the header that names it.
#[derive(Debug, PartialEq, Eq)]
struct Named<'h> {
    header: &'static str,
    target_type: TargetType,
    code: &'h str,
}

/// The caller as its request is attributed; `None`: it is the caller's own.
pub(super) async fn attributed(
    http: &Http,
    caller: &Caller,
    headers: &HeaderMap,
) -> Result<Option<Arc<Caller>>, ApiError> {
    if caller.credential == Credential::Till {
        return Ok(None);
    }
    let Some(Named { header, target_type, code }) = named(headers)? else { return Ok(None) };
    match http.authenticator.attribute(caller, target_type, code).await {
        Ok(caller) => Ok(Some(caller)),
        Err(AttributionError::Unknown(error)) => Err(error.into()),
        Err(error @ (AttributionError::NoSuchTarget | AttributionError::SeveralTargets)) => {
            Err(ApiError::BadRequest(format!("{header}: {error} (as {})", target_type.name())))
        }
    }
}

fn named(headers: &HeaderMap) -> Result<Option<Named<'_>>, ApiError> {
    let target_type = match only(headers, ENTITY_TYPE)? {
        None => TargetType::Till,
        Some(name) => TargetType::parse(name).ok_or_else(|| {
            let names = TargetType::ALL.map(TargetType::name).join(", ");
            ApiError::BadRequest(format!("{ENTITY_TYPE}: must be one of {names}"))
        })?,
    };
    let newer = only(headers, ENTITY_CODE)?.map(|code| Named { header: ENTITY_CODE, target_type, code });
    let older = only(headers, TILL_CODE)?.map(|code| Named { header: TILL_CODE, target_type: TargetType::Till, code });
    Ok(newer.or(older))
}

/// A header that may come once, as text; `None`: it is blank or not there. Names of stores may have any letters, in UTF-8.
fn only<'h>(headers: &'h HeaderMap, name: &'static str) -> Result<Option<&'h str>, ApiError> {
    let twice = |_: Twice| ApiError::BadRequest(format!("{name}: must come once"));
    let Some(value) = single(headers, name).map_err(twice)? else { return Ok(None) };
    let text = std::str::from_utf8(value.as_bytes());
    let text = text.map_err(|_| ApiError::BadRequest(format!("{name}: must be plain text, in UTF-8")))?.trim();
    Ok(Some(text).filter(|text| !text.is_empty()))
}
