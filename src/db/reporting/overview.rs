//! What the console shows of an organisation. Each statement reads a bounded number of rows by key.

use jiff::Timestamp;
use jiff::civil::Date;
use jiff_sqlx::ToSqlx;
use sqlx::Row;
use sqlx::postgres::PgRow;

use super::activity::WHOLE_ORGANISATION;
use crate::db::connection::{Db, PooledConnection};
use crate::db::error::{DbError, unknown_value};
use crate::model::{OrgId, SeriesId, StoreId};

/// The codes of a pool are counted one by one up to this number. The size of a larger pool is estimated.
pub const COUNTED_CODES: i64 = 1000;

/// Where a page of series begins. Series that were asked for come first, the latest at the top; then the others by their ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeriesCursor {
    /// At the first series.
    First,
    /// After this series, which was last asked for in this minute.
    AfterActive(Timestamp, SeriesId),
    /// After this series, which was never asked for.
    AfterIdle(SeriesId),
}

/// The heading of the page.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the columns of table organisation")]
pub struct Title {
    pub name: String,
    pub time_zone: String,
}

/// A series and what remains of it.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the columns of table series")]
pub struct SeriesRow {
    pub series_id: SeriesId,
    pub description: String,
    pub valid_till_date: Date,
    pub externally_managed: bool,
    pub max_create: Option<i64>,
    /// Its counter; `None`: it has none, since it has no cap.
    pub issued: Option<i64>,
    /// Its pool, if its codes are uploaded.
    pub pool: Option<PoolRow>,
    /// When counting of its activity began, and its last active minute.
    pub active: Option<(Timestamp, Timestamp)>,
}

/// What a pool holds.
#[derive(Debug, Clone, Copy)]
pub struct PoolRow {
    /// Codes for any customer, counted up to one more than [`COUNTED_CODES`].
    pub remaining: i64,
    /// Positions from the first remaining code to the last: an upper bound of the remaining codes.
    pub positions: i64,
    /// Codes for one customer each, counted up to one more than [`COUNTED_CODES`].
    pub remaining_for_one: i64,
}

/// The number of entities of a series with one outcome.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the columns of table activity_total")]
pub struct TotalRow {
    pub series_id: SeriesId,
    pub outcome: String,
    pub entities: i64,
}

/// The number of entities of a series with one outcome in one minute.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the columns of table activity_minute")]
pub struct MinuteRow {
    pub series_id: SeriesId,
    pub minute: Timestamp,
    pub outcome: String,
    pub entities: i64,
}

/// An entity that got no coupon.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the columns of table activity_failure")]
pub struct FailureRow {
    pub at: Timestamp,
    pub request_id: String,
    pub series_id: SeriesId,
    pub outcome: String,
    pub till_id: Option<String>,
    pub store_id: StoreId,
    pub client_key: Option<String>,
}

/// Reads about one organisation over one connection.
pub struct OverviewReader {
    connection: PooledConnection,
    org_id: OrgId,
}

impl Db {
    /// Takes a connection for the reads about an organisation.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn overview_reader(&self, org_id: OrgId) -> Result<OverviewReader, DbError> {
        Ok(OverviewReader { connection: self.connection().await?, org_id })
    }
}

impl OverviewReader {
    /// The name and time zone; `None`: there is no such organisation.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn title(&mut self) -> Result<Option<Title>, DbError> {
        let row = sqlx::query("select name, time_zone from organisation where org_id = $1")
            .bind(self.org_id.0)
            .fetch_optional(&mut *self.connection)
            .await?;
        let title = |row: PgRow| Ok(Title { name: row.try_get("name")?, time_zone: row.try_get("time_zone")? });
        row.map(title).transpose()
    }

    /// When counting of the organisation's activity began.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn since(&mut self) -> Result<Option<Timestamp>, DbError> {
        let since: Option<jiff_sqlx::Timestamp> =
            sqlx::query_scalar("select since from activity_series where org_id = $1 and series_id = $2")
                .bind(self.org_id.0)
                .bind(WHOLE_ORGANISATION.0)
                .fetch_optional(&mut *self.connection)
                .await?;
        Ok(since.map(jiff_sqlx::Timestamp::to_jiff))
    }

    /// Up to `max` series from this cursor on, each with the cursor behind it.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn series_ids(
        &mut self,
        cursor: SeriesCursor,
        max: i64,
    ) -> Result<Vec<(SeriesId, SeriesCursor)>, DbError> {
        let mut found = match cursor {
            SeriesCursor::First => self.active(Timestamp::MAX, SeriesId(i64::MAX), max).await?,
            SeriesCursor::AfterActive(minute, series_id) => self.active(minute, series_id, max).await?,
            SeriesCursor::AfterIdle(_) => Vec::new(),
        };
        let missing = max - i64::try_from(found.len()).unwrap_or(i64::MAX);
        if missing > 0 {
            let after = if let SeriesCursor::AfterIdle(series_id) = cursor { series_id } else { SeriesId(0) };
            found.extend(self.idle(after, missing).await?);
        }
        Ok(found)
    }

    async fn active(
        &mut self,
        minute: Timestamp,
        series_id: SeriesId,
        max: i64,
    ) -> Result<Vec<(SeriesId, SeriesCursor)>, DbError> {
        let rows: Vec<(i64, jiff_sqlx::Timestamp)> = sqlx::query_as(
            "select series_id, last_minute from activity_series
              where org_id = $1 and series_id <> $2 and (last_minute, series_id) < ($3, $4)
              order by last_minute desc, series_id desc limit $5",
        )
        .bind(self.org_id.0)
        .bind(WHOLE_ORGANISATION.0)
        .bind(minute.to_sqlx())
        .bind(series_id.0)
        .bind(max)
        .fetch_all(&mut *self.connection)
        .await?;
        let behind = |(id, minute): (i64, jiff_sqlx::Timestamp)| {
            (SeriesId(id), SeriesCursor::AfterActive(minute.to_jiff(), SeriesId(id)))
        };
        Ok(rows.into_iter().map(behind).collect())
    }

    async fn idle(&mut self, after: SeriesId, max: i64) -> Result<Vec<(SeriesId, SeriesCursor)>, DbError> {
        let rows: Vec<i64> = sqlx::query_scalar(
            "select s.series_id from series s
              where s.org_id = $1 and s.series_id > $2
                and not exists (select from activity_series a where a.org_id = s.org_id and a.series_id = s.series_id)
              order by s.series_id limit $3",
        )
        .bind(self.org_id.0)
        .bind(after.0)
        .bind(max)
        .fetch_all(&mut *self.connection)
        .await?;
        Ok(rows.into_iter().map(|id| (SeriesId(id), SeriesCursor::AfterIdle(SeriesId(id)))).collect())
    }

    /// The existing ones among these series, in no order.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn series(&mut self, series_ids: &[SeriesId]) -> Result<Vec<SeriesRow>, DbError> {
        let rows = sqlx::query(SERIES)
            .bind(self.org_id.0)
            .bind(plain_ids(series_ids))
            .bind(COUNTED_CODES + 1)
            .fetch_all(&mut *self.connection)
            .await?;
        rows.iter().map(series_from).collect()
    }

    /// The outcomes of these series since counting began.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn totals(&mut self, series_ids: &[SeriesId]) -> Result<Vec<TotalRow>, DbError> {
        let rows = sqlx::query(
            "select series_id, outcome, entities from activity_total where org_id = $1 and series_id = any ($2)",
        )
        .bind(self.org_id.0)
        .bind(plain_ids(series_ids))
        .fetch_all(&mut *self.connection)
        .await?;
        let total = |row: &PgRow| {
            Ok(TotalRow {
                series_id: SeriesId(row.try_get("series_id")?),
                outcome: row.try_get("outcome")?,
                entities: row.try_get("entities")?,
            })
        };
        rows.iter().map(total).collect()
    }

    /// The outcomes of these series by minute, from this one on; of one outcome or of all.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn minutes(
        &mut self,
        series_ids: &[SeriesId],
        from: Timestamp,
        outcome: Option<&str>,
    ) -> Result<Vec<MinuteRow>, DbError> {
        let rows = sqlx::query(
            "select series_id, minute, outcome, entities from activity_minute
              where org_id = $1 and series_id = any ($2) and minute >= $3 and ($4::text is null or outcome = $4)",
        )
        .bind(self.org_id.0)
        .bind(plain_ids(series_ids))
        .bind(from.to_sqlx())
        .bind(outcome)
        .fetch_all(&mut *self.connection)
        .await?;
        let minute = |row: &PgRow| {
            Ok(MinuteRow {
                series_id: SeriesId(row.try_get("series_id")?),
                minute: row.try_get::<jiff_sqlx::Timestamp, _>("minute")?.to_jiff(),
                outcome: row.try_get("outcome")?,
                entities: row.try_get("entities")?,
            })
        };
        rows.iter().map(minute).collect()
    }

    /// The newest failures: of all series or of these, of all requests or of this one.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn failures(
        &mut self,
        series_ids: Option<&[SeriesId]>,
        request_id: Option<&str>,
        max: i64,
    ) -> Result<Vec<FailureRow>, DbError> {
        let rows = sqlx::query(
            "select at, request_id, series_id, outcome, till_id, store_id, client_key from activity_failure
              where org_id = $1 and ($2::bigint[] is null or series_id = any ($2)) and ($3::text is null or request_id = $3)
              order by at desc, failure_id desc limit $4",
        )
        .bind(self.org_id.0)
        .bind(series_ids.map(plain_ids))
        .bind(request_id)
        .bind(max)
        .fetch_all(&mut *self.connection)
        .await?;
        let failure = |row: &PgRow| {
            Ok(FailureRow {
                at: row.try_get::<jiff_sqlx::Timestamp, _>("at")?.to_jiff(),
                request_id: row.try_get("request_id")?,
                series_id: SeriesId(row.try_get("series_id")?),
                outcome: row.try_get("outcome")?,
                till_id: row.try_get("till_id")?,
                store_id: StoreId(row.try_get("store_id")?),
                client_key: row.try_get("client_key")?,
            })
        };
        rows.iter().map(failure).collect()
    }
}

fn plain_ids(series_ids: &[SeriesId]) -> Vec<i64> {
    series_ids.iter().map(|id| id.0).collect()
}

// Stops counting at a limit: a pool may hold millions of codes.
const SERIES: &str = "
    select s.series_id, s.description, s.valid_till_date, s.client_handling_type, s.externally_managed, s.max_create,
           (select n.issued from series_counter n
             where n.org_id = s.org_id and n.series_id = s.series_id order by n.issued desc limit 1) as issued,
           pool.near, pool.positions, pool.for_one, a.since, a.last_minute
      from series s
      left join activity_series a on a.org_id = s.org_id and a.series_id = s.series_id
      left join lateral (
           select coalesce((select g.position from pool_counter g
                             where g.org_id = s.org_id and g.series_id = s.series_id
                             order by g.position desc limit 1), 0) as position
            where s.client_handling_type = 'DISC_CODE_PIN') last on true
      left join lateral (
           select (select count(*) from (select from pool_code p
                                          where p.org_id = s.org_id and p.series_id = s.series_id and p.position > last.position
                                          limit $3) n) as near,
                  coalesce((select p.position from pool_code p
                             where p.org_id = s.org_id and p.series_id = s.series_id and p.position > last.position
                             order by p.position desc limit 1) - (
                            select p.position - 1 from pool_code p
                             where p.org_id = s.org_id and p.series_id = s.series_id and p.position > last.position
                             order by p.position limit 1), 0) as positions,
                  (select count(*) from (select from pool_code p
                                          where p.org_id = s.org_id and p.series_id = s.series_id
                                            and p.customer_id is not null
                                          limit $3) n) as for_one
            where s.client_handling_type = 'DISC_CODE_PIN') pool on true
     where s.org_id = $1 and s.series_id = any ($2)";

fn series_from(row: &PgRow) -> Result<SeriesRow, DbError> {
    let instant = |column| row.try_get::<Option<jiff_sqlx::Timestamp>, _>(column);
    let pool = match row.try_get::<&str, _>("client_handling_type")? {
        "DISC_CODE_PIN" => Some(PoolRow {
            remaining: row.try_get("near")?,
            positions: row.try_get("positions")?,
            remaining_for_one: row.try_get("for_one")?,
        }),
        "DISC_CODE" | "GENERIC" => None,
        _ => return Err(unknown_value("client_handling_type")),
    };
    let active = instant("since")?.zip(instant("last_minute")?);
    Ok(SeriesRow {
        series_id: SeriesId(row.try_get("series_id")?),
        description: row.try_get("description")?,
        valid_till_date: row.try_get::<jiff_sqlx::Date, _>("valid_till_date")?.to_jiff(),
        externally_managed: row.try_get("externally_managed")?,
        max_create: row.try_get("max_create")?,
        issued: row.try_get("issued")?,
        pool,
        active: active.map(|(since, last)| (since.to_jiff(), last.to_jiff())),
    })
}
