use std::fmt;

use jiff::{SignedDuration, Timestamp};
use sqlx::postgres::PgConnectOptions;

use super::layout::escaped;
use crate::db::DbError;
use crate::db::code_pool::{self, PoolStatus};
use crate::model::{OrgId, SeriesId};

/// The period from which the rate is taken.
const RATE_PERIOD: SignedDuration = SignedDuration::from_hours(24);
/// The rate of a series that began to issue more recently is taken over this period, since minutes are too short for a rate.
const MIN_RATE_PERIOD: SignedDuration = SignedDuration::from_hours(1);

/// The pools at a point in time. Displays as a table.
#[derive(Debug)]
pub struct Pools {
    pools: Vec<PoolStatus>,
    now: Timestamp,
}

/// Counts the codes of all pools, of one organisation, or of one series.
///
/// # Errors
/// When the database cannot be asked.
pub async fn status(
    connect: &PgConnectOptions,
    org_id: Option<OrgId>,
    series_id: Option<SeriesId>,
    now: Timestamp,
) -> Result<Pools, DbError> {
    let since = now.checked_sub(RATE_PERIOD).unwrap_or(Timestamp::MIN);
    Ok(Pools { pools: code_pool::status(connect, org_id, series_id, since).await?, now })
}

impl Pools {
    /// Whether there are no pools.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.pools.is_empty()
    }
}

impl fmt::Display for Pools {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = ["org", "series", "total", "issued", "remaining", "for one", "last 24 h", "empty in", "description"];
        let mut rows = vec![head.map(str::to_owned)];
        rows.extend(self.pools.iter().map(|pool| {
            [
                pool.org_id.0.to_string(),
                pool.series_id.0.to_string(),
                (pool.issued + pool.remaining).to_string(),
                pool.issued.to_string(),
                pool.remaining.to_string(),
                pool.remaining_for_one.to_string(),
                pool.issued_lately.to_string(),
                empty_in(pool, self.now),
                escaped(pool.description.chars()),
            ]
        }));
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..head.len()).map(width).collect();
        for (number, row) in rows.iter().enumerate() {
            let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
            let separator = if number == 0 { "" } else { "\n" };
            write!(formatter, "{separator}{}", cells.join("  ").trim_end())?;
        }
        Ok(())
    }
}

/// How long the remaining codes last at the rate of the last 24 hours.
#[expect(clippy::cast_precision_loss, reason = "shown with two digits")]
fn empty_in(pool: &PoolStatus, now: Timestamp) -> String {
    let Some(first) = pool.first_lately.filter(|_| pool.remaining > 0) else {
        return if pool.remaining == 0 { "is empty" } else { "none issued lately" }.to_owned();
    };
    let observed =
        if pool.is_older { RATE_PERIOD } else { now.duration_since(first).clamp(MIN_RATE_PERIOD, RATE_PERIOD) };
    let hours = pool.remaining as f64 / pool.issued_lately as f64 * observed.as_secs_f64() / 3600.0;
    if hours < 48.0 { format!("about {hours:.1} hours") } else { format!("about {:.1} days", hours / 24.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-11-22T10:00:00Z";

    fn pool(remaining: i64, issued_lately: i64, first: Option<&str>, is_older: bool) -> PoolStatus {
        PoolStatus {
            org_id: OrgId(1),
            series_id: SeriesId(103),
            description: "Gift".to_owned(),
            issued: issued_lately,
            remaining,
            remaining_for_one: 0,
            issued_lately,
            first_lately: first.map(|first| first.parse().unwrap()),
            is_older,
        }
    }

    #[test]
    fn the_rate_is_taken_over_the_time_since_the_first_code() {
        let early = Some("2026-11-21T11:00:00Z");
        for (pool, expected) in [
            (pool(0, 5, early, true), "is empty"),
            (pool(0, 0, None, false), "is empty"),
            (pool(5, 0, None, true), "none issued lately"),
            (pool(100, 100, early, true), "about 24.0 hours"),
            (pool(1000, 100, early, true), "about 10.0 days"),
            // The first code was issued 23 hours, 6 hours and a minute ago.
            (pool(100, 100, early, false), "about 23.0 hours"),
            (pool(100, 100, Some("2026-11-22T04:00:00Z"), false), "about 6.0 hours"),
            (pool(100, 100, Some("2026-11-22T09:59:00Z"), false), "about 1.0 hours"),
            (pool(100, 100, Some("2026-11-22T10:59:00Z"), false), "about 1.0 hours"),
        ] {
            assert_eq!(empty_in(&pool, NOW.parse().unwrap()), expected, "{pool:?}");
        }
    }

    #[test]
    fn the_table_is_aligned() {
        let pools = Pools { pools: vec![pool(1000, 100, Some(NOW), true)], now: NOW.parse().unwrap() };
        let expected = "\
org  series  total  issued  remaining  for one  last 24 h  empty in         description
1    103     1100   100     1000       0        100        about 10.0 days  Gift";
        assert_eq!(pools.to_string(), expected);
    }
}
