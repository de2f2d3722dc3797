//! What the console shows of an organisation at a moment, put together out of a handful of bounded reads.
//! How it looks is not decided here.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use tokio::time::timeout;

use super::{Activity, ToldFailure};
use crate::db::DbError;
use crate::db::activity::WHOLE_ORGANISATION;
use crate::db::overview::{COUNTED_CODES, MinuteRow, Place, PoolRow, Reading, SeriesRow, TotalRow};
use crate::model::{OrgId, SeriesId};

/// Series, and failures, that are shown at once.
pub const PAGE: usize = 50;
/// Minutes that are shown.
pub const HOUR: usize = 60;
/// How long an overview may take.
const READ_WITHIN: Duration = Duration::from_secs(5);

/// The outcomes that are coupons; all others are refusals.
const ISSUED: &str = "issued";
const RESENT: &str = "resent";
const REPLAYED: &str = "replayed";

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Ask {
    /// Of which organisation: the caller's, and no other.
    pub org_id: OrgId,
    /// These series alone, up to [`PAGE`] of them; empty: as many as fit, from `place` on.
    pub series_ids: Vec<SeriesId>,
    /// From where on.
    pub place: Place,
    /// The failures of this request alone.
    pub request_id: Option<String>,
}

/// What an organisation's coupons are about at a moment.
#[derive(Debug)]
pub struct Overview {
    /// Its name.
    pub organisation: String,
    /// In which times are told.
    pub zone: TimeZone,
    /// The moment.
    pub now: Timestamp,
    /// Since when it is counted.
    pub since: Option<Timestamp>,
    /// When the first of the minutes that are shown began.
    pub first_minute: Timestamp,
    /// Coupons issued in each minute of the last hour, the one that is not over last.
    pub issued: [i64; HOUR],
    /// Refusals in each.
    pub refused: [i64; HOUR],
    /// What was told of all entities.
    pub outcomes: Vec<OutcomeCount>,
    /// Some of the series.
    pub series: Vec<SeriesActivity>,
    /// Those that were asked for, and do not exist.
    pub unknown: Vec<SeriesId>,
    /// Where there are more.
    pub next: Option<Place>,
    /// The newest failures, [`PAGE`] at most.
    pub failures: Vec<ToldFailure>,
}

/// How often something was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutcomeCount {
    /// Its name.
    pub outcome: String,
    /// In the last hour.
    pub last_hour: i64,
    /// Since it is counted.
    pub total: i64,
}

/// A series, and what was told of it.
#[derive(Debug)]
pub struct SeriesActivity {
    /// Its id.
    pub id: SeriesId,
    /// What it is called.
    pub description: String,
    /// Its last day.
    pub valid_till_date: Date,
    /// Issued by another system.
    pub externally_managed: bool,
    /// Its cap.
    pub cap: Option<i64>,
    /// Coupons issued: all of them if it has a cap, else since it is counted.
    pub issued: i64,
    /// Its uploaded codes, if it gives out such.
    pub pool: Option<PoolRemaining>,
    /// Since when it is counted; `None`: nobody has asked for it.
    pub since: Option<Timestamp>,
    /// Coupons shown again to customers who held them.
    pub resent: i64,
    /// Coupons shown again to who tried the same request again.
    pub replayed: i64,
    /// Refusals by their names, the most frequent first.
    pub refused: Vec<(String, i64)>,
    /// Coupons issued in each minute of the last hour.
    pub per_minute: [i64; HOUR],
}

/// The codes that a pool has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolRemaining {
    /// For anyone.
    pub remaining: i64,
    /// Whether there may be fewer: a large pool is not counted.
    pub is_about: bool,
    /// For one customer each.
    pub remaining_for_one: i64,
    /// Whether there are more of those.
    pub are_more_for_one: bool,
}

impl SeriesActivity {
    /// Coupons it may still issue; `None`: nothing bounds them.
    #[must_use]
    pub fn remaining(&self) -> Option<i64> {
        let under_the_cap = self.cap.map(|cap| (cap - self.issued).max(0));
        let in_the_pool = self.pool.map(|pool| pool.remaining + pool.remaining_for_one);
        under_the_cap.into_iter().chain(in_the_pool).min()
    }

    /// Whether [`SeriesActivity::remaining`] is no more than an estimate.
    #[must_use]
    pub fn remaining_is_about(&self) -> bool {
        let Some(pool) = self.pool.filter(|pool| pool.is_about || pool.are_more_for_one) else { return false };
        self.cap.is_none_or(|cap| cap - self.issued >= pool.remaining + pool.remaining_for_one)
    }
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub enum OverviewError {
    /// The database is away.
    #[error("{0}")]
    Unavailable(String),
    /// It took too long.
    #[error("the database does not answer in time")]
    TimedOut,
    /// Our fault.
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
    /// What an organisation's coupons are about now. What was counted within the last seconds may not be in it.
    ///
    /// # Errors
    /// See [`OverviewError`].
    pub async fn overview(&self, ask: &Ask) -> Result<Overview, OverviewError> {
        let read = async {
            let _place = self.reading.acquire().await.map_err(|error| OverviewError::Internal(error.to_string()))?;
            read(&mut self.db.reading(ask.org_id).await?, ask, self.clock.now()).await
        };
        timeout(READ_WITHIN, read).await.map_err(|_elapsed| OverviewError::TimedOut)?
    }
}

async fn read(reading: &mut Reading, ask: &Ask, now: Timestamp) -> Result<Overview, OverviewError> {
    let title = reading.title().await?;
    let title = title.ok_or_else(|| OverviewError::Internal("the caller's organisation is missing".to_owned()))?;
    let zone = TimeZone::get(&title.time_zone).map_err(|error| OverviewError::Internal(error.to_string()))?;
    let first_minute = first_minute(now);
    let minutes = reading.minutes(&[WHOLE_ORGANISATION], first_minute, None).await?;
    let totals = reading.totals(&[WHOLE_ORGANISATION]).await?;
    let is_refusal = |row: &&MinuteRow| is_refusal(&row.outcome);
    let (series_ids, next) = series_ids(reading, ask).await?;
    let of_these = (!ask.series_ids.is_empty()).then_some(&*ask.series_ids);
    let most = i64::try_from(PAGE).unwrap_or(i64::MAX);
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
        unknown: ask.series_ids.iter().filter(|id| !found.contains(id)).copied().collect(),
        next,
        failures: reading.failures(of_these, ask.request_id.as_deref(), most).await?,
    })
}

/// When the minute began that is the first of an hour which ends with the one that is running.
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
        let place = usize::try_from(row.minute.duration_since(first).as_mins()).ok();
        // A clock that is ahead of ours has minutes that have not come yet.
        if let Some(count) = place.and_then(|place| counts.get_mut(place)) {
            *count += row.entities;
        }
    }
    counts
}

/// By name, those that are most frequent first.
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
    all.sort_by(|one, other| {
        (other.last_hour, other.total, &one.outcome).cmp(&(one.last_hour, one.total, &other.outcome))
    });
    all
}

async fn series_ids(reading: &mut Reading, ask: &Ask) -> Result<(Vec<SeriesId>, Option<Place>), OverviewError> {
    if !ask.series_ids.is_empty() {
        return Ok((ask.series_ids.iter().copied().take(PAGE).collect(), None));
    }
    let mut found = reading.series_ids(ask.place, i64::try_from(PAGE + 1).unwrap_or(i64::MAX)).await?;
    let are_more = found.len() > PAGE;
    found.truncate(PAGE);
    let next = found.last().map(|(_, behind)| *behind).filter(|_| are_more);
    Ok((found.into_iter().map(|(id, _)| id).collect(), next))
}

/// In the order of the ids.
async fn series(
    reading: &mut Reading,
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
    let of = |id: &SeriesId| {
        let minutes = minutes.remove(id).unwrap_or_default();
        Some(one_series(rows.remove(id)?, totals.remove(id).unwrap_or_default(), &minutes, first_minute))
    };
    Ok(series_ids.iter().filter_map(of).collect())
}

fn one_series(
    row: SeriesRow,
    mut totals: BTreeMap<String, i64>,
    issued_by_minute: &[MinuteRow],
    first_minute: Timestamp,
) -> SeriesActivity {
    let mut of = |outcome| totals.remove(outcome).unwrap_or(0);
    let (issued, resent, replayed) = (of(ISSUED), of(RESENT), of(REPLAYED));
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
