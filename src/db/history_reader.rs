use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::PgConnection;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::timeout;

use super::batching::FairReceiver;
use super::connection::Db;
use super::error::{DbError, no_answer};
use super::history::{HistoryLookup, HistorySnapshot, read_histories};
use super::session::{PLANNED_ONCE, SessionOptions};
use crate::model::OrgId;

/// Statements at once. While they run, further look-ups wait and share the next statement.
const TASKS: usize = 2;
const QUEUE_SIZE: usize = 4096;
/// The most series of one statement, which bounds its duration.
const BATCH_SIZE: usize = 128;
/// After this time the look-ups of a batch are repeated one by one.
const BATCH_TIMEOUT: Duration = Duration::from_secs(3);

/// Reads histories. Look-ups that arrive while a statement runs share the next one.
#[derive(Debug, Clone)]
pub struct HistoryReader {
    db: Db,
    queue: mpsc::Sender<(OrgId, Job)>,
}

#[derive(Debug)]
struct Job {
    lookup: HistoryLookup,
    /// Receives the look-up again if the batch failed.
    answer: oneshot::Sender<Result<HistorySnapshot, HistoryLookup>>,
}

impl HistoryReader {
    /// Starts the tasks, which end with the last handle.
    #[must_use]
    pub fn start(db: &Db) -> Self {
        let (queue, jobs) = mpsc::channel(QUEUE_SIZE);
        let jobs = Arc::new(Mutex::new(FairReceiver::new(jobs)));
        let session = db.session.clone().named("coupon-issuer histories").with([PLANNED_ONCE]);
        for _ in 0..TASKS {
            tokio::spawn(run(session.clone(), Arc::clone(&jobs)));
        }
        Self { db: db.clone(), queue }
    }

    /// Reads after the call, never before: a look-up does not join a statement that was sent already.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn read(&self, lookup: HistoryLookup) -> Result<HistorySnapshot, DbError> {
        let (answer, answered) = oneshot::channel();
        let lookup = match self.queue.try_send((lookup.org_id, Job { lookup, answer })) {
            Ok(()) => match answered.await {
                Ok(Ok(snapshot)) => return Ok(snapshot),
                Ok(Err(lookup)) => lookup,
                Err(_dropped) => return Err(no_answer().into()),
            },
            Err(mpsc::error::TrySendError::Full((_, job)) | mpsc::error::TrySendError::Closed((_, job))) => job.lookup,
        };
        // Alone, so that a look-up that fails does not fail others.
        let mut snapshots = read_histories(&mut *self.db.connection().await?, &[&lookup]).await?;
        snapshots.pop().ok_or(DbError::Failed(sqlx::Error::RowNotFound))
    }
}

async fn run(session: SessionOptions, jobs: Arc<Mutex<FairReceiver<Job>>>) {
    let mut current = None;
    loop {
        let Some(mut batch) = jobs.lock().await.take(BATCH_SIZE, |job| job.lookup.series.len()).await else { return };
        // A request whose time is over does not wait for its look-up.
        batch.retain(|job| !job.answer.is_closed());
        if batch.is_empty() {
            continue;
        }
        let lookups: Vec<&HistoryLookup> = batch.iter().map(|job| &job.lookup).collect();
        let read = timeout(BATCH_TIMEOUT, read_batch(&session, &mut current, &lookups)).await;
        match read.unwrap_or_else(|_elapsed| Err(no_answer().into())) {
            Ok(snapshots) => {
                for (job, snapshot) in batch.into_iter().zip(snapshots) {
                    reply(job.answer, Ok(snapshot));
                }
            }
            Err(error) => {
                tracing::debug!(%error, lookups = batch.len(), "histories cannot be read together");
                current = None;
                for job in batch {
                    reply(job.answer, Err(job.lookup));
                }
            }
        }
    }
}

async fn read_batch(
    session: &SessionOptions,
    current: &mut Option<PgConnection>,
    lookups: &[&HistoryLookup],
) -> Result<Vec<HistorySnapshot>, DbError> {
    let connection = match current {
        Some(connection) => connection,
        empty => empty.insert(session.open().await?),
    };
    read_histories(connection, lookups).await
}

/// Ignores that the request may be gone.
fn reply(
    answer: oneshot::Sender<Result<HistorySnapshot, HistoryLookup>>,
    result: Result<HistorySnapshot, HistoryLookup>,
) {
    let _ = answer.send(result);
}
