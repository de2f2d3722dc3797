//! `GET /console`: a page for people about the coupons of the caller's organisation. It only looks.
//!
//! Complete in itself, and told to the browser to be so: nothing else is loaded from anywhere. How it looks is in `page`.

mod chart;
mod page;
mod words;

use std::sync::{Arc, LazyLock};

use axum::extract::{Extension, State};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderValue, Uri};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::Http;
use super::errors::ApiError;
use crate::activity::{Ask, PAGE, Place};
use crate::model::{Caller, SeriesId};

pub(super) const PATH: &str = "/console";

const STYLE: &str = include_str!("console.css");
const SCRIPT: &str = include_str!("console.js");

/// The one style and the one script by their hashes, its own address for the script to ask again, and nothing else at all.
static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let hash = |text: &str| format!("'sha256-{}'", STANDARD.encode(Sha256::digest(text)));
    let policy = format!(
        "default-src 'none'; style-src {}; script-src {}; connect-src 'self'; img-src 'self' data:; form-action 'self'; \
         base-uri 'none'; frame-ancestors 'none'",
        hash(STYLE),
        hash(SCRIPT)
    );
    HeaderValue::try_from(policy).unwrap_or(HeaderValue::from_static("default-src 'none'"))
});

/// The longest request id that there is.
const LONGEST_REQUEST_ID: usize = 128;

/// What the address asks for.
#[derive(Debug)]
struct Asked {
    /// As it was typed.
    series: String,
    /// As it was typed.
    request: String,
    series_ids: Vec<SeriesId>,
    place: Place,
    /// What is wrong with it.
    mistake: Option<String>,
}

pub(super) async fn page(
    State(http): State<Arc<Http>>,
    Extension(caller): Extension<Arc<Caller>>,
    uri: Uri,
) -> Result<Response, ApiError> {
    let asked = Asked::of(uri.query().unwrap_or_default());
    let ask = Ask {
        org_id: caller.org_id,
        series_ids: asked.series_ids.clone(),
        place: asked.place,
        request_id: Some(asked.request.clone()).filter(|id| !id.is_empty()),
    };
    let overview = http.activity.overview(&ask).await?;
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        (CONTENT_SECURITY_POLICY, POLICY.clone()),
        (CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    ];
    Ok((headers, page::page(&overview, &asked).into_string()).into_response())
}

impl Asked {
    /// What makes no sense is told on the page, which then shows all there is.
    fn of(query: &str) -> Self {
        let (mut series, mut request, mut after) = (String::new(), String::new(), String::new());
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*name {
                "series" => value.trim().clone_into(&mut series),
                "request" => value.trim().clone_into(&mut request),
                "after" => after = value.into_owned(),
                _ => {}
            }
        }
        let ids = series.split([',', ' ']).filter(|id| !id.is_empty()).map(|id| id.parse().ok().filter(|id| *id > 0));
        let mut asked =
            Self { place: place(&after), series_ids: Vec::new(), mistake: None, series: String::new(), request };
        match ids.map(|id| id.map(SeriesId)).collect::<Option<Vec<_>>>() {
            None => asked.mistake = Some("A series id is a number, such as 101, or several: 101, 102.".to_owned()),
            Some(ids) if ids.len() > PAGE => asked.mistake = Some(format!("At most {PAGE} series ids at once.")),
            Some(mut ids) => {
                ids.sort_unstable();
                ids.dedup();
                asked.series_ids = ids;
            }
        }
        if asked.request.chars().count() > LONGEST_REQUEST_ID || asked.request.contains('\0') {
            asked.mistake = Some(format!("A request id has at most {LONGEST_REQUEST_ID} characters."));
            asked.request.clear();
        }
        asked.series = series.chars().take(1000).collect();
        asked
    }

    /// Whether it asks for anything in particular.
    const fn is_narrow(&self) -> bool {
        !self.series_ids.is_empty() || !self.request.is_empty()
    }
}

/// Postgres has no earlier instant (4714 BC); this library has.
const EARLIEST: i64 = -210_866_803_200;

/// The place that [`told`] tells; anything else is the beginning.
fn place(after: &str) -> Place {
    let mut parts = after.split('.');
    let (kind, mut next) = (parts.next(), || parts.next()?.parse::<i64>().ok());
    let place = match kind {
        Some("idle") => next().map(|id| Place::AfterIdle(SeriesId(id))),
        Some("active") => {
            let minute =
                next().filter(|minute| *minute >= EARLIEST).and_then(|minute| Timestamp::from_second(minute).ok());
            minute.zip(next()).map(|(minute, id)| Place::AfterActive(minute, SeriesId(id)))
        }
        _ => None,
    };
    place.unwrap_or(Place::First)
}

/// A place as the address names it.
fn told(place: Place) -> String {
    match place {
        Place::First => String::new(),
        Place::AfterActive(minute, id) => format!("active.{}.{}", minute.as_second(), id.0),
        Place::AfterIdle(id) => format!("idle.{}", id.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_comes_back_as_it_was_told() {
        let minute = Timestamp::from_second(1_763_805_600).unwrap();
        for at in [Place::First, Place::AfterActive(minute, SeriesId(7)), Place::AfterIdle(SeriesId(i64::MAX))] {
            assert_eq!(place(&told(at)), at);
        }
        for nonsense in [
            "",
            ".",
            "idle",
            "idle.x",
            "active.1",
            "active.99999999999999999.1",
            "active..",
            "nothing.1",
            "active.-300000000000.1",
        ] {
            assert_eq!(place(nonsense), Place::First, "{nonsense}");
        }
    }

    #[test]
    fn what_is_asked_for_makes_sense_or_is_a_mistake() {
        let ids = |query| Asked::of(query).series_ids.iter().map(|id| id.0).collect::<Vec<_>>();
        assert_eq!(ids("series=102,+101++102"), [101, 102]);
        assert_eq!(ids("series=&request=+r-1+"), [0; 0]);
        assert_eq!(Asked::of("request=+r-1+").request, "r-1");
        let many = format!("series={}", vec!["1"; 51].join(","));
        for mistake in ["series=x", "series=-1", "series=1,x", "series=99999999999999999999", &many, "request=%00"] {
            let asked = Asked::of(mistake);
            assert!(asked.mistake.is_some() && !asked.is_narrow(), "{mistake}");
        }
    }
}
