//! What the console shows of an organisation, as it is read: bounded statements, each of them by key.
//! What is written of it is in `activity`; what caps and pools have left is the writer's.

use jiff::Timestamp;
use jiff::civil::Date;
use jiff_sqlx::ToSqlx;
use sqlx::Row;
use sqlx::postgres::PgRow;

use super::activity::WHOLE_ORGANISATION;
use super::rows::unknown_value;
use super::{Db, DbError, Lease};
use crate::model::{OrgId, SeriesId, StoreId};

/// Codes of a pool that are counted one by one; of a larger one only about how many there are is told.
pub const COUNTED_CODES: i64 = 1000;

/// Which part of the series is shown: those that were asked for lately first, then the others by their ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// From the beginning.
    First,
    /// Behind this series, which was asked for last in this minute.
    AfterActive(Timestamp, SeriesId),
    /// Behind this series, which was never asked for.
    AfterIdle(SeriesId),
}

/// What an organisation is called, and where its days begin.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the columns of table organisation")]
pub struct Title {
    pub name: String,
    pub time_zone: String,
}

/// A series and what it has left.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the columns of table series")]
pub struct SeriesRow {
    pub series_id: SeriesId,
    pub description: String,
    pub valid_till_date: Date,
    pub externally_managed: bool,
    pub max_create: Option<i64>,
    /// What its counter says; `None`: it has none, as no cap was ever set.
    pub issued: Option<i64>,
    /// If it gives out uploaded codes.
    pub pool: Option<PoolRow>,
    /// Since when its activity is counted, and the last minute of it.
    pub active: Option<(Timestamp, Timestamp)>,
}

/// What a pool holds.
#[derive(Debug, Clone, Copy)]
pub struct PoolRow {
    /// Codes for anyone, counted up to one more than [`COUNTED_CODES`].
    pub remaining: i64,
    /// Positions from the last code that was given out to the last of all: no fewer than the codes that are left.
    pub positions: i64,
    /// Codes for one customer each, counted up to one more than [`COUNTED_CODES`].
    pub remaining_for_one: i64,
}

/// How many entities of a series were told an outcome.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the columns of table activity_total")]
pub struct TotalRow {
    pub series_id: SeriesId,
    pub outcome: String,
    pub entities: i64,
}

/// The same in one minute.
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

/// Reads over one connection.
pub struct Reading {
    connection: Lease,
    org_id: OrgId,
}

impl Db {
    /// Begins to read about an organisation.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn reading(&self, org_id: OrgId) -> Result<Reading, DbError> {
        Ok(Reading { connection: self.lease().await?, org_id })
    }
}

impl Reading {
    /// Name and zone; `None`: there is no such organisation.
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

    /// Since when anything of the organisation is counted.
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

    /// So many series at this place, with where to go on behind each.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn series_ids(&mut self, place: Place, most: i64) -> Result<Vec<(SeriesId, Place)>, DbError> {
        let mut found = match place {
            Place::First => self.active(Timestamp::MAX, SeriesId(i64::MAX), most).await?,
            Place::AfterActive(minute, series_id) => self.active(minute, series_id, most).await?,
            Place::AfterIdle(_) => Vec::new(),
        };
        let missing = most - i64::try_from(found.len()).unwrap_or(i64::MAX);
        if missing > 0 {
            let after = if let Place::AfterIdle(series_id) = place { series_id } else { SeriesId(0) };
            found.extend(self.idle(after, missing).await?);
        }
        Ok(found)
    }

    async fn active(
        &mut self,
        minute: Timestamp,
        series_id: SeriesId,
        most: i64,
    ) -> Result<Vec<(SeriesId, Place)>, DbError> {
        let rows: Vec<(i64, jiff_sqlx::Timestamp)> = sqlx::query_as(
            "select series_id, last_minute from activity_series
              where org_id = $1 and series_id <> $2 and (last_minute, series_id) < ($3, $4)
              order by last_minute desc, series_id desc limit $5",
        )
        .bind(self.org_id.0)
        .bind(WHOLE_ORGANISATION.0)
        .bind(minute.to_sqlx())
        .bind(series_id.0)
        .bind(most)
        .fetch_all(&mut *self.connection)
        .await?;
        let behind = |(id, minute): (i64, jiff_sqlx::Timestamp)| {
            (SeriesId(id), Place::AfterActive(minute.to_jiff(), SeriesId(id)))
        };
        Ok(rows.into_iter().map(behind).collect())
    }

    async fn idle(&mut self, after: SeriesId, most: i64) -> Result<Vec<(SeriesId, Place)>, DbError> {
        let rows: Vec<i64> = sqlx::query_scalar(
            "select s.series_id from series s
              where s.org_id = $1 and s.series_id > $2
                and not exists (select from activity_series a where a.org_id = s.org_id and a.series_id = s.series_id)
              order by s.series_id limit $3",
        )
        .bind(self.org_id.0)
        .bind(after.0)
        .bind(most)
        .fetch_all(&mut *self.connection)
        .await?;
        Ok(rows.into_iter().map(|id| (SeriesId(id), Place::AfterIdle(SeriesId(id)))).collect())
    }

    /// Those of these series that there are, in no order.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn series(&mut self, series_ids: &[SeriesId]) -> Result<Vec<SeriesRow>, DbError> {
        let rows = sqlx::query(SERIES)
            .bind(self.org_id.0)
            .bind(bare(series_ids))
            .bind(COUNTED_CODES + 1)
            .fetch_all(&mut *self.connection)
            .await?;
        rows.iter().map(series_from).collect()
    }

    /// What was told of these series since they are counted.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn totals(&mut self, series_ids: &[SeriesId]) -> Result<Vec<TotalRow>, DbError> {
        let rows = sqlx::query(
            "select series_id, outcome, entities from activity_total where org_id = $1 and series_id = any ($2)",
        )
        .bind(self.org_id.0)
        .bind(bare(series_ids))
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

    /// What was told of these series minute by minute, from this one on; of one outcome or all.
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
        .bind(bare(series_ids))
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
        most: i64,
    ) -> Result<Vec<FailureRow>, DbError> {
        let rows = sqlx::query(
            "select at, request_id, series_id, outcome, till_id, store_id, client_key from activity_failure
              where org_id = $1 and ($2::bigint[] is null or series_id = any ($2)) and ($3::text is null or request_id = $3)
              order by at desc, failure_id desc limit $4",
        )
        .bind(self.org_id.0)
        .bind(series_ids.map(bare))
        .bind(request_id)
        .bind(most)
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

fn bare(series_ids: &[SeriesId]) -> Vec<i64> {
    series_ids.iter().map(|id| id.0).collect()
}

// A pool of millions is not counted at each look.
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
                             order by p.position desc limit 1) - last.position, 0) as positions,
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
