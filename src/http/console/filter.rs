use jiff::Timestamp;

use crate::activity::{PAGE, SeriesCursor};
use crate::model::SeriesId;

/// The maximum length of a request id, in characters.
const MAX_REQUEST_ID_LENGTH: usize = 128;

/// The filter in the query of the page's address.
#[derive(Debug)]
pub(super) struct Filter {
    /// The text that the user typed for series ids.
    pub(super) series: String,
    /// The text that the user typed for a request id.
    pub(super) request: String,
    pub(super) series_ids: Vec<SeriesId>,
    /// Where the list of series goes on.
    pub(super) cursor: SeriesCursor,
    /// What is wrong with the filter.
    pub(super) mistake: Option<String>,
}

impl Filter {
    /// An invalid filter counts as none, and the page shows the mistake.
    pub(super) fn parse(query: &str) -> Self {
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
        let mut filter = Self {
            cursor: parse_cursor(&after),
            series_ids: Vec::new(),
            mistake: None,
            series: String::new(),
            request,
        };
        match ids.map(|id| id.map(SeriesId)).collect::<Option<Vec<_>>>() {
            None => filter.mistake = Some("A series id is a number, such as 101, or several: 101, 102.".to_owned()),
            Some(ids) if ids.len() > PAGE => filter.mistake = Some(format!("At most {PAGE} series ids at once.")),
            Some(mut ids) => {
                ids.sort_unstable();
                ids.dedup();
                filter.series_ids = ids;
            }
        }
        if filter.request.chars().count() > MAX_REQUEST_ID_LENGTH || filter.request.contains('\0') {
            filter.mistake = Some(format!("A request id has at most {MAX_REQUEST_ID_LENGTH} characters."));
            filter.request.clear();
        }
        filter.series = series.chars().take(1000).collect();
        filter
    }

    pub(super) const fn is_active(&self) -> bool {
        !self.series_ids.is_empty() || !self.request.is_empty()
    }
}

/// The earliest instant of Postgres (4714 BC), in seconds. `jiff` has earlier ones.
const MIN_SECOND: i64 = -210_866_803_200;

/// Parses a cursor of [`format_cursor`]. Any other text is the beginning of the list.
fn parse_cursor(after: &str) -> SeriesCursor {
    let mut parts = after.split('.');
    let (kind, mut next) = (parts.next(), || parts.next()?.parse::<i64>().ok());
    let cursor = match kind {
        Some("idle") => next().map(|id| SeriesCursor::AfterIdle(SeriesId(id))),
        Some("active") => {
            let minute =
                next().filter(|minute| *minute >= MIN_SECOND).and_then(|minute| Timestamp::from_second(minute).ok());
            minute.zip(next()).map(|(minute, id)| SeriesCursor::AfterActive(minute, SeriesId(id)))
        }
        _ => None,
    };
    cursor.unwrap_or(SeriesCursor::First)
}

/// A cursor, as the parameter `after` has it.
pub(super) fn format_cursor(cursor: SeriesCursor) -> String {
    match cursor {
        SeriesCursor::First => String::new(),
        SeriesCursor::AfterActive(minute, id) => format!("active.{}.{}", minute.as_second(), id.0),
        SeriesCursor::AfterIdle(id) => format!("idle.{}", id.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_formatted_cursor_parses() {
        let minute = Timestamp::from_second(1_763_805_600).unwrap();
        for at in [
            SeriesCursor::First,
            SeriesCursor::AfterActive(minute, SeriesId(7)),
            SeriesCursor::AfterIdle(SeriesId(i64::MAX)),
        ] {
            assert_eq!(parse_cursor(&format_cursor(at)), at);
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
            assert_eq!(parse_cursor(nonsense), SeriesCursor::First, "{nonsense}");
        }
    }

    #[test]
    fn a_filter_is_valid_or_a_mistake() {
        let ids = |query| Filter::parse(query).series_ids.iter().map(|id| id.0).collect::<Vec<_>>();
        assert_eq!(ids("series=102,+101++102"), [101, 102]);
        assert_eq!(ids("series=&request=+r-1+"), [0; 0]);
        assert_eq!(Filter::parse("request=+r-1+").request, "r-1");
        let many = format!("series={}", vec!["1"; 51].join(","));
        for mistake in ["series=x", "series=-1", "series=1,x", "series=99999999999999999999", &many, "request=%00"] {
            let filter = Filter::parse(mistake);
            assert!(filter.mistake.is_some() && !filter.is_active(), "{mistake}");
        }
    }
}
