use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use tokio::time::timeout;

use super::recorder::Activity;
use crate::db::DbError;
use crate::db::activity::WHOLE_ORGANISATION;
use crate::db::overview::{
    COUNTED_CODES, FailureRow, MinuteRow, OverviewReader, PoolRow, SeriesCursor, SeriesRow, TotalRow,
};
use crate::model::{OrgId, SeriesId};

/// Series, and failures, on one page.
pub const PAGE: usize = 50;
/// Minutes in the chart.
pub const HOUR: usize = 60;
const READ_TIMEOUT: Duration = Duration::from_secs(5);

// The outcomes that are coupons; all others are refusals.
const ISSUED: &str = "issued";
const RESENT: &str = "resent";
const REPLAYED: &str = "replayed";

/// What to show.
#[derive(Debug, Clone)]
pub struct OverviewQuery {
    /// The caller's organisation.
    pub org_id: OrgId,
    /// Only these series, up to [`PAGE`]. If empty, a page of all series from `place` on.
    pub series_ids: Vec<SeriesId>,
    /// Where the page begins.
    pub place: SeriesCursor,
    /// Only the failures of this request.
    pub request_id: Option<String>,
}

/// The activity of an organisation.
#[derive(Debug)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Overview {
    pub organisation: String,
    pub zone: TimeZone,
    pub now: Timestamp,
    /// When counting began.
    pub since: Option<Timestamp>,
    /// The start of the first minute in `issued` and `refused`.
    pub first_minute: Timestamp,
    /// Coupons issued in each minute of the last hour. The last minute is the current one.
    pub issued: [i64; HOUR],
    /// Refusals in each of these minutes.
    pub refused: [i64; HOUR],
    pub outcomes: Vec<OutcomeCount>,
    /// One page of the series.
    pub series: Vec<SeriesActivity>,
    /// The requested series that do not exist.
    pub unknown: Vec<SeriesId>,
    /// Where the next page begins.
    pub next: Option<SeriesCursor>,
    /// The newest failures, at most [`PAGE`].
    pub failures: Vec<FailureRow>,
}

/// How often entities had an outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct OutcomeCount {
    pub outcome: String,
    pub last_hour: i64,
    /// Since counting began.
    pub total: i64,
}

/// The activity of a series.
#[derive(Debug)]
#[expect(missing_docs, reason = "the names say it")]
pub struct SeriesActivity {
    pub id: SeriesId,
    pub description: String,
    pub valid_till_date: Date,
    pub externally_managed: bool,
    pub cap: Option<i64>,
    /// All coupons issued if the series has a cap, otherwise those since counting began.
    pub issued: i64,
    /// `None` if the series does not give out uploaded codes.
    pub pool: Option<PoolRemaining>,
    /// When counting began. `None` if nobody has requested the series.
    pub since: Option<Timestamp>,
    /// Coupons shown again to customers who held them.
    pub resent: i64,
    /// Coupons shown again to callers who repeated a keyed request.
    pub replayed: i64,
    /// Refusals by name, the most frequent first.
    pub refused: Vec<(String, i64)>,
    /// Coupons issued in each minute of the last hour.
    pub per_minute: [i64; HOUR],
}

/// The remaining codes of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolRemaining {
    /// For any customer.
    pub remaining: i64,
    /// Whether `remaining` is an upper bound: a large pool is not counted.
    pub is_about: bool,
    /// Reserved for one customer each.
    pub remaining_for_one: i64,
    /// Whether more codes are reserved than `remaining_for_one`.
    pub are_more_for_one: bool,
}

impl SeriesActivity {
    /// Coupons that the series can still issue. `None` if it has no limit.
    #[must_use]
    pub fn remaining(&self) -> Option<i64> {
        let under_the_cap = self.cap.map(|cap| (cap - self.issued).max(0));
        let in_the_pool = self.pool.map(|pool| pool.remaining + pool.remaining_for_one);
        under_the_cap.into_iter().chain(in_the_pool).min()
    }

    /// Whether [`SeriesActivity::remaining`] is an estimate.
    #[must_use]
    pub fn remaining_is_about(&self) -> bool {
        let Some(pool) = self.pool.filter(|pool| pool.is_about || pool.are_more_for_one) else { return false };
        self.cap.is_none_or(|cap| cap - self.issued >= pool.remaining + pool.remaining_for_one)
    }
}

/// Why the overview cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum OverviewError {
    /// The database is away.
    #[error("{0}")]
    Unavailable(String),
    /// The database took too long.
    #[error("the database does not answer in time")]
    TimedOut,
    /// A bug.
    #[error("{0}")]
    Internal(String),
}

impl From<DbError> for OverviewError {
    fn from(error: DbError) -> Self {
        match error {
            DbError::Unavailable(_) | DbError::ServerFault(_) => Self::Unavailable(error.to_string()),
            DbError::TookTooLong(_) => Self::TimedOut,
            DbError::Failed(_) => Self::Internal(error.to_string()),
        }
    }
}

impl Activity {
    /// Reads the activity of an organisation. Counts of the last seconds may not be flushed yet.
    ///
    /// # Errors
    /// See [`OverviewError`].
    pub async fn overview(&self, query: &OverviewQuery) -> Result<Overview, OverviewError> {
        let read = async {
            let _slot =
                self.overview_slots.acquire().await.map_err(|error| OverviewError::Internal(error.to_string()))?;
            read(&mut self.db.overview_reader(query.org_id).await?, query, self.clock.now()).await
        };
        timeout(READ_TIMEOUT, read).await.map_err(|_elapsed| OverviewError::TimedOut)?
    }
}

async fn read(reading: &mut OverviewReader, query: &OverviewQuery, now: Timestamp) -> Result<Overview, OverviewError> {
    let title = reading.title().await?;
    let title = title.ok_or_else(|| OverviewError::Internal("the caller's organisation is missing".to_owned()))?;
    let zone = TimeZone::get(&title.time_zone).map_err(|error| OverviewError::Internal(error.to_string()))?;
    let first_minute = first_minute(now);
    let minutes = reading.minutes(&[WHOLE_ORGANISATION], first_minute, None).await?;
    let totals = reading.totals(&[WHOLE_ORGANISATION]).await?;
    let is_refusal = |row: &&MinuteRow| is_refusal(&row.outcome);
    let (series_ids, next) = series_ids(reading, query).await?;
    let only_series = (!query.series_ids.is_empty()).then_some(&*query.series_ids);
    let limit = i64::try_from(PAGE).unwrap_or(i64::MAX);
    let series = series(reading, &series_ids, first_minute).await?;
    let found: HashSet<SeriesId> = series.iter().map(|series| series.id).collect();
    Ok(Overview {
        organisation: title.name,
        zone,
        now,
        since: reading.since().await?,
        first_minute,
        issued: by_minute(minutes.iter().filter(|row| row.outcome == ISSUED), first_minute),
        refused: by_minute(minutes.iter().filter(is_refusal), first_minute),
        outcomes: outcomes(&minutes, totals),
        series,
        unknown: query.series_ids.iter().filter(|id| !found.contains(id)).copied().collect(),
        next,
        failures: reading.failures(only_series, query.request_id.as_deref(), limit).await?,
    })
}

/// The start of the first minute of an hour that ends with the current minute.
fn first_minute(now: Timestamp) -> Timestamp {
    let running = now.as_second().div_euclid(60) * 60;
    let before = SignedDuration::from_mins(i64::try_from(HOUR).unwrap_or(0) - 1);
    Timestamp::from_second(running).unwrap_or(now).saturating_sub(before).unwrap_or(Timestamp::MIN)
}

fn is_refusal(outcome: &str) -> bool {
    ![ISSUED, RESENT, REPLAYED].contains(&outcome)
}

fn by_minute<'a>(rows: impl Iterator<Item = &'a MinuteRow>, first: Timestamp) -> [i64; HOUR] {
    let mut counts = [0; HOUR];
    for row in rows {
        let index = usize::try_from(row.minute.duration_since(first).as_mins()).ok();
        // A replica whose clock is ahead stores minutes after the current one.
        if let Some(count) = index.and_then(|index| counts.get_mut(index)) {
            *count += row.entities;
        }
    }
    counts
}

/// The most frequent outcome first.
fn outcomes(minutes: &[MinuteRow], totals: Vec<TotalRow>) -> Vec<OutcomeCount> {
    let mut last_hour: HashMap<&str, i64> = HashMap::new();
    for row in minutes {
        *last_hour.entry(&row.outcome).or_default() += row.entities;
    }
    let mut all: Vec<OutcomeCount> = totals
        .into_iter()
        .map(|row| OutcomeCount {
            last_hour: last_hour.get(&*row.outcome).copied().unwrap_or(0),
            outcome: row.outcome,
            total: row.entities,
        })
        .collect();
    all.sort_by(|a, b| (b.last_hour, b.total, &a.outcome).cmp(&(a.last_hour, a.total, &b.outcome)));
    all
}

async fn series_ids(
    reading: &mut OverviewReader,
    query: &OverviewQuery,
) -> Result<(Vec<SeriesId>, Option<SeriesCursor>), OverviewError> {
    if !query.series_ids.is_empty() {
        return Ok((query.series_ids.iter().copied().take(PAGE).collect(), None));
    }
    let mut found = reading.series_ids(query.place, i64::try_from(PAGE + 1).unwrap_or(i64::MAX)).await?;
    let are_more = found.len() > PAGE;
    found.truncate(PAGE);
    let next = found.last().map(|(_, behind)| *behind).filter(|_| are_more);
    Ok((found.into_iter().map(|(id, _)| id).collect(), next))
}

/// Returns the series in the order of `series_ids`.
async fn series(
    reading: &mut OverviewReader,
    series_ids: &[SeriesId],
    first_minute: Timestamp,
) -> Result<Vec<SeriesActivity>, OverviewError> {
    let rows = reading.series(series_ids).await?;
    let mut totals: HashMap<SeriesId, BTreeMap<String, i64>> = HashMap::new();
    for row in reading.totals(series_ids).await? {
        totals.entry(row.series_id).or_default().insert(row.outcome, row.entities);
    }
    let mut minutes: HashMap<SeriesId, Vec<MinuteRow>> = HashMap::new();
    for row in reading.minutes(series_ids, first_minute, Some(ISSUED)).await? {
        minutes.entry(row.series_id).or_default().push(row);
    }
    let mut rows: HashMap<SeriesId, SeriesRow> = rows.into_iter().map(|row| (row.series_id, row)).collect();
    let activity = |id: &SeriesId| {
        let minutes = minutes.remove(id).unwrap_or_default();
        Some(series_activity(rows.remove(id)?, totals.remove(id).unwrap_or_default(), &minutes, first_minute))
    };
    Ok(series_ids.iter().filter_map(activity).collect())
}

fn series_activity(
    row: SeriesRow,
    mut totals: BTreeMap<String, i64>,
    issued_by_minute: &[MinuteRow],
    first_minute: Timestamp,
) -> SeriesActivity {
    let mut take = |outcome| totals.remove(outcome).unwrap_or(0);
    let (issued, resent, replayed) = (take(ISSUED), take(RESENT), take(REPLAYED));
    let mut refused: Vec<(String, i64)> = totals.into_iter().collect();
    refused.sort_by_key(|(_, entities)| std::cmp::Reverse(*entities));
    SeriesActivity {
        id: row.series_id,
        description: row.description,
        valid_till_date: row.valid_till_date,
        externally_managed: row.externally_managed,
        cap: row.max_create,
        issued: row.max_create.and(row.issued).unwrap_or(issued),
        pool: row.pool.map(pool_remaining),
        since: row.active.map(|(since, _)| since),
        resent,
        replayed,
        refused,
        per_minute: by_minute(issued_by_minute.iter(), first_minute),
    }
}

fn pool_remaining(row: PoolRow) -> PoolRemaining {
    let is_about = row.remaining > COUNTED_CODES;
    PoolRemaining {
        remaining: if is_about { row.positions } else { row.remaining },
        is_about,
        remaining_for_one: row.remaining_for_one.min(COUNTED_CODES),
        are_more_for_one: row.remaining_for_one > COUNTED_CODES,
    }
}
