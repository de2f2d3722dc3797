//! Attempts at keyed requests that cannot begin with their first coupon ([`Beginning::Here`](super::writer::Beginning)) begin
//! together: those who ask while a statement is on its way share the next one, and its commit.
//!
//! Like the writer, but nothing depends on it: whose statement fails asks again alone.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use jiff_sqlx::ToSqlx;
use sqlx::postgres::PgConnection;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use uuid::Uuid;

use super::keyed_requests::{Begun, KeyedRequest, begun};
use super::{Store, StoreError, waiting};
use crate::model::SeriesId;

/// Attempts that wait, and that one statement begins.
const QUEUE: usize = 1024;
const AT_ONCE: usize = 256;
/// How long they wait for a statement, before each asks for itself.
const PATIENCE: Duration = Duration::from_secs(3);

/// An attempt at a keyed request.
#[derive(Debug, Clone)]
pub struct NewAttempt {
    /// The request.
    pub request: KeyedRequest,
    /// A hash of all that it asks for, with the version of how it is taken.
    pub fingerprint: Vec<u8>,
    /// Its entities.
    pub series_ids: Arc<[SeriesId]>,
    /// Names the attempt.
    pub attempt: Uuid,
    /// When it begins.
    pub now: Timestamp,
    /// Until when it is believed to be at work.
    pub held_until: Timestamp,
}

impl NewAttempt {
    /// Its entities as Postgres writes an array: several of different lengths are no array of arrays.
    fn series_array(&self) -> String {
        let ids: Vec<String> = self.series_ids.iter().map(|id| id.0.to_string()).collect();
        format!("{{{}}}", ids.join(","))
    }
}

struct Ask {
    new: Arc<NewAttempt>,
    answer: oneshot::Sender<Begun>,
}

/// Begins attempts. The task behind it ends with the last handle.
#[derive(Debug, Clone)]
pub struct Beginnings {
    store: Store,
    queue: mpsc::Sender<Ask>,
}

impl Beginnings {
    /// Starts the task.
    #[must_use]
    pub fn start(store: Store) -> Self {
        let (queue, asks) = mpsc::channel(QUEUE);
        tokio::spawn(run(store.clone(), asks));
        Self { store, queue }
    }

    /// Begins an attempt, and says what it has found.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn begin(&self, new: &Arc<NewAttempt>) -> Result<Begun, StoreError> {
        let (answer, answered) = oneshot::channel();
        if self.queue.try_send(Ask { new: Arc::clone(new), answer }).is_ok()
            && let Ok(begun) = answered.await
        {
            return Ok(begun);
        }
        let begun = self.store.begin_requests(&[new]).await?;
        begun.first().copied().ok_or(StoreError::Failed(sqlx::Error::RowNotFound))
    }
}

async fn run(store: Store, mut asks: mpsc::Receiver<Ask>) {
    while let Some(taken) = waiting::take(&mut asks, AT_ONCE, |_| 1).await {
        let new: Vec<&NewAttempt> = taken.iter().map(|ask| &*ask.new).collect();
        match timeout(PATIENCE, store.begin_requests(&new)).await {
            Ok(Ok(begun)) => {
                for (ask, begun) in taken.into_iter().zip(begun) {
                    // Nobody may be waiting any more.
                    let _ = ask.answer.send(begun);
                }
            }
            Ok(Err(error)) => tracing::debug!(%error, attempts = taken.len(), "attempts cannot begin together"),
            Err(_elapsed) => tracing::debug!(attempts = taken.len(), "attempts were not begun together in time"),
        }
    }
}

impl Store {
    /// Begins attempts, and says of each, in order, what it has found. Most requests are new: those are stored as one set.
    async fn begin_requests(&self, new: &[&NewAttempt]) -> Result<Vec<Begun>, StoreError> {
        let mut connection = self.lease().await?;
        let mut found = begin(&mut connection, STORE_NEW, new).await?;
        let known: Vec<&NewAttempt> = new.iter().copied().filter(|one| !found.contains_key(&one.attempt)).collect();
        if !known.is_empty() {
            found.extend(begin(&mut connection, BEGIN_KNOWN, &known).await?);
        }
        let of = |one: &&NewAttempt| found.get(&one.attempt).copied().ok_or(sqlx::Error::RowNotFound);
        new.iter().map(|one| begun(of(one)?)).collect()
    }
}

// Both in one order, so that nobody waits in a circle. What a join adds here only sets a setting, for this transaction: a beginning
// needs no flush, since a coupon that is recorded under it is flushed, and the log is flushed in order.
const STORE_NEW: &str = "
    insert into keyed_request (org_id, request_key, fingerprint, series_ids, started_at, attempt, held_until)
    select t.org_id, t.key, t.fingerprint, t.series_ids::bigint[], t.now, t.attempt, t.until
      from unnest($1::bigint[], $2::text[], $3::bytea[], $4::text[], $5::uuid[], $6::timestamptz[], $7::timestamptz[])
        as t (org_id, key, fingerprint, series_ids, attempt, now, until)
     cross join (select set_config('synchronous_commit', 'off', true)) unflushed
     order by t.org_id, t.key
        on conflict do nothing
 returning attempt, 1::smallint";
const BEGIN_KNOWN: &str = "
    select t.attempt,
           begin_keyed_request(t.org_id, t.key, t.fingerprint, t.series_ids::bigint[], t.attempt, t.now, t.until)
      from (select * from unnest($1::bigint[], $2::text[], $3::bytea[], $4::text[], $5::uuid[], $6::timestamptz[],
                                 $7::timestamptz[])
                       as t (org_id, key, fingerprint, series_ids, attempt, now, until)
             order by org_id, key) t";

/// By the attempts: what was found, of those that this statement says anything about.
async fn begin(
    connection: &mut PgConnection,
    statement: &'static str,
    new: &[&NewAttempt],
) -> Result<HashMap<Uuid, i16>, sqlx::Error> {
    let rows: Vec<(Uuid, i16)> = sqlx::query_as(statement)
        .bind(new.iter().map(|one| one.request.org_id.0).collect::<Vec<_>>())
        .bind(new.iter().map(|one| &*one.request.key).collect::<Vec<_>>())
        .bind(new.iter().map(|one| one.fingerprint.as_slice()).collect::<Vec<_>>())
        .bind(new.iter().map(|one| one.series_array()).collect::<Vec<_>>())
        .bind(new.iter().map(|one| one.attempt).collect::<Vec<_>>())
        .bind(new.iter().map(|one| one.now.to_sqlx()).collect::<Vec<_>>())
        .bind(new.iter().map(|one| one.held_until.to_sqlx()).collect::<Vec<_>>())
        .fetch_all(connection)
        .await?;
    Ok(rows.into_iter().collect())
}
