//! A page for people about the coupons of the caller's organisation. It only reads.
//!
//! The page is complete in itself, and its content security policy forbids to load anything else.

mod chart;
mod filter;
mod format;
mod page;

use std::sync::{Arc, LazyLock};

use axum::extract::{Extension, State};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderValue, Uri};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use self::filter::Filter;
use self::page::{SCRIPT, STYLE};
use super::errors::ApiError;
use super::state::Http;
use crate::activity::OverviewQuery;
use crate::model::Caller;

/// Allows the page's style and script by their hashes, and the script to load the page again.
static CONTENT_POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let hash = |text: &str| format!("'sha256-{}'", STANDARD.encode(Sha256::digest(text)));
    let policy = format!(
        "default-src 'none'; style-src {}; script-src {}; connect-src 'self'; img-src 'self' data:; form-action 'self'; \
         base-uri 'none'; frame-ancestors 'none'",
        hash(STYLE),
        hash(SCRIPT)
    );
    HeaderValue::try_from(policy).unwrap_or(HeaderValue::from_static("default-src 'none'"))
});

pub(super) async fn page(
    State(http): State<Arc<Http>>,
    Extension(caller): Extension<Arc<Caller>>,
    uri: Uri,
) -> Result<Response, ApiError> {
    let filter = Filter::parse(uri.query().unwrap_or_default());
    let query = OverviewQuery {
        org_id: caller.org_id,
        series_ids: filter.series_ids.clone(),
        place: filter.cursor,
        request_id: Some(filter.request.clone()).filter(|id| !id.is_empty()),
    };
    let overview = http.activity.overview(&query).await?;
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        (CONTENT_SECURITY_POLICY, CONTENT_POLICY.clone()),
        (CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    ];
    Ok((headers, page::page(&overview, &filter).into_string()).into_response())
}
