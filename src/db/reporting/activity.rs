//! Writes and purges the activity that the console shows. Nothing of it is flushed, and no decision reads it.

use std::sync::Arc;

use jiff::Timestamp;
use jiff_sqlx::ToSqlx;
use uuid::Uuid;

use crate::db::connection::Db;
use crate::db::error::DbError;
use crate::model::{Caller, OrgId, SeriesId};

/// In place of a series: everything that the organisation was asked for.
pub const WHOLE_ORGANISATION: SeriesId = SeriesId(0);

/// The number of entities with one outcome in one minute.
#[derive(Debug, Clone)]
pub struct Count {
    /// The organisation.
    pub org_id: OrgId,
    /// The series, or [`WHOLE_ORGANISATION`].
    pub series_id: SeriesId,
    /// The start of the minute.
    pub minute: Timestamp,
    /// The name of the outcome.
    pub outcome: &'static str,
    /// The number of entities.
    pub entities: i64,
}

/// An entity that got no coupon.
#[derive(Debug, Clone)]
pub struct Failure {
    /// The caller.
    pub caller: Arc<Caller>,
    /// When it was answered.
    pub at: Timestamp,
    /// The request.
    pub request_id: Arc<str>,
    /// The series, as the request named it.
    pub series_id: SeriesId,
    /// The name of the refusal.
    pub outcome: &'static str,
}

/// What a replica adds in one transaction.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Identifies the replica since its start.
    pub writer: Uuid,
    /// The number of the batch. A retry after a lost answer has the same number, so that no batch is added twice.
    pub number: i64,
    /// When it is added.
    pub at: Timestamp,
    /// At most one for each organisation, series, minute and outcome.
    pub counts: Vec<Count>,
    /// The failures.
    pub failures: Vec<Failure>,
}

impl Db {
    /// Adds a batch, unless it was added before.
    ///
    /// # Errors
    /// When the database cannot be asked. The batch may have been added all the same: retry with the same number.
    pub async fn add_activity(&self, batch: &Batch) -> Result<(), DbError> {
        let counts = &batch.counts;
        let failures = &batch.failures;
        sqlx::query(ADD)
            .bind(batch.writer)
            .bind(batch.number)
            .bind(batch.at.to_sqlx())
            .bind(counts.iter().map(|count| count.org_id.0).collect::<Vec<_>>())
            .bind(counts.iter().map(|count| count.series_id.0).collect::<Vec<_>>())
            .bind(counts.iter().map(|count| count.minute.to_sqlx()).collect::<Vec<_>>())
            .bind(counts.iter().map(|count| count.outcome).collect::<Vec<_>>())
            .bind(counts.iter().map(|count| count.entities).collect::<Vec<_>>())
            .bind(failures.iter().map(|failure| failure.caller.org_id.0).collect::<Vec<_>>())
            .bind(failures.iter().map(|failure| failure.at.to_sqlx()).collect::<Vec<_>>())
            .bind(failures.iter().map(|failure| &*failure.request_id).collect::<Vec<_>>())
            .bind(failures.iter().map(|failure| failure.series_id.0).collect::<Vec<_>>())
            .bind(failures.iter().map(|failure| failure.outcome).collect::<Vec<_>>())
            .bind(failures.iter().map(|failure| failure.caller.till_id.as_deref()).collect::<Vec<_>>())
            .bind(failures.iter().map(|failure| failure.caller.store_id.0).collect::<Vec<_>>())
            .bind(failures.iter().map(|failure| failure.caller.client_key()).collect::<Vec<_>>())
            .execute(&mut *self.connection().await?)
            .await?;
        Ok(())
    }

    /// Deletes minutes, failures and replicas that are older than `before`, up to `max` rows of each, and returns the largest of the
    /// three counts. Totals stay.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn purge_activity(&self, before: Timestamp, max: i64) -> Result<u64, DbError> {
        let mut connection = self.connection().await?;
        let mut purged = 0;
        for old in [OLD_MINUTES, OLD_FAILURES, OLD_WRITERS] {
            let done = sqlx::query(old).bind(before.to_sqlx()).bind(max).execute(&mut *connection).await?;
            purged = purged.max(done.rows_affected());
        }
        Ok(purged)
    }

    /// Deletes all but the newest `max` failures of each of these organisations.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn trim_failures(&self, org_ids: &[OrgId], max: i64) -> Result<(), DbError> {
        sqlx::query(TRIM)
            .bind(org_ids.iter().map(|org_id| org_id.0).collect::<Vec<_>>())
            .bind(max)
            .execute(&mut *self.connection().await?)
            .await?;
        Ok(())
    }
}

// All replicas write rows in the same order, which rules out deadlocks. The number of the batch is in the transaction of its rows: a
// crash undoes both or neither.
const ADD: &str = "
    with fresh as (
        insert into activity_writer as w (writer, batch, at)
        select $1, $2, $3 from (select set_config('synchronous_commit', 'off', true)) unflushed
            on conflict (writer) do update set batch = excluded.batch, at = excluded.at where w.batch < excluded.batch
     returning writer),
    given as materialized (
        select t.org_id, t.series_id, t.minute, t.outcome, t.entities
          from unnest($4::bigint[], $5::bigint[], $6::timestamptz[], $7::text[], $8::bigint[])
            as t (org_id, series_id, minute, outcome, entities)
         cross join fresh),
    minutes as (
        insert into activity_minute as m (org_id, series_id, minute, outcome, entities)
        select g.org_id, g.series_id, g.minute, g.outcome, g.entities from given g
         order by g.org_id, g.series_id, g.minute, g.outcome
            on conflict (org_id, series_id, minute, outcome) do update set entities = m.entities + excluded.entities),
    totals as (
        insert into activity_total as t (org_id, series_id, outcome, entities)
        select g.org_id, g.series_id, g.outcome, sum(g.entities)::bigint from given g
         group by g.org_id, g.series_id, g.outcome
         order by g.org_id, g.series_id, g.outcome
            on conflict (org_id, series_id, outcome) do update set entities = t.entities + excluded.entities),
    latest as (
        insert into activity_series as s (org_id, series_id, since, last_minute)
        select g.org_id, g.series_id, min(g.minute), max(g.minute) from given g
         group by g.org_id, g.series_id
         order by g.org_id, g.series_id
            on conflict (org_id, series_id) do update set last_minute = excluded.last_minute
                 where s.last_minute < excluded.last_minute)
    insert into activity_failure (org_id, at, request_id, series_id, outcome, till_id, store_id, client_key)
    select f.org_id, f.at, f.request_id, f.series_id, f.outcome, f.till_id, f.store_id, f.client_key
      from unnest($9::bigint[], $10::timestamptz[], $11::text[], $12::bigint[], $13::text[], $14::text[], $15::bigint[],
                  $16::text[])
        as f (org_id, at, request_id, series_id, outcome, till_id, store_id, client_key)
     cross join fresh";

const OLD_MINUTES: &str = "
    delete from activity_minute where ctid = any (array(
        select ctid from activity_minute where minute < $1 order by minute limit $2 for update skip locked))";
const OLD_FAILURES: &str = "
    delete from activity_failure where ctid = any (array(
        select ctid from activity_failure where at < $1 order by at limit $2 for update skip locked))";
const OLD_WRITERS: &str = "
    delete from activity_writer where writer = any (array(
        select writer from activity_writer where at < $1 limit $2 for update skip locked))";

const TRIM: &str = "
    delete from activity_failure f
     using unnest($1::bigint[]) as o (org_id)
     cross join lateral (
           select n.at, n.failure_id from activity_failure n
            where n.org_id = o.org_id order by n.at desc, n.failure_id desc offset $2 limit 1) newest_too_old
     where f.org_id = o.org_id and (f.at, f.failure_id) <= (newest_too_old.at, newest_too_old.failure_id)";
