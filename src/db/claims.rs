//! Claims idempotency keys that cannot be claimed together with a coupon. Claims that arrive while a statement runs share the next
//! statement and its commit. If that fails, each of its claims is retried alone under the same coupon ids, which shows whether the failed
//! statement took effect.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use sqlx::postgres::PgConnection;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::batching::take_batch;
use super::connection::Db;
use super::coupon_ids::CouponIdLease;
use super::error::{DbError, no_answer, unknown_value};
use super::keyed_requests::{Claim, RequestName, end_attempt};
use super::session::SessionOptions;

const QUEUE_SIZE: usize = 1024;
const BATCH_SIZE: usize = 256;
/// After this time each claim of a batch is retried alone.
const BATCH_TIMEOUT: Duration = Duration::from_secs(3);

/// A key to be claimed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewClaim {
    /// The request.
    pub request: RequestName,
    /// What the request asks for: see column `keyed_request.fingerprint`.
    pub fingerprint: i64,
    /// The number of its entities.
    pub entities: usize,
    /// The incarnation of this replica.
    pub incarnation: i32,
    /// The seconds after which the attempt ends in any case.
    pub lease_seconds: i32,
    /// Set by a call that broke: the claim that its coupons may have stored, even if none of them is stored.
    pub possible_claim: OnceLock<Claim>,
}

/// The outcome of a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClaimOutcome {
    /// The key is new: nothing was issued under it.
    Acquired(Claim),
    /// The request was seen before, and no attempt is at work on it.
    Resumed {
        /// How the earlier attempts ended.
        resumption: Resumption,
        /// The claim under which the remaining entities may be issued.
        claim: Claim,
        /// The stored answers.
        answers: String,
    },
    /// Another attempt is at work on the request.
    InProgress,
    /// The key belongs to another request.
    FingerprintMismatch,
}

/// How the earlier attempts of a resumed request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resumption {
    /// Each entity has its final answer.
    Complete,
    /// Entities remain, and the earlier attempts have ended.
    Incomplete,
    /// Entities remain, and an attempt of another replica has not ended: that replica is dead, or the lease of the attempt has run out.
    TakenOver,
}

struct Job {
    new: Arc<NewClaim>,
    answers: String,
    /// Receives the first coupon id instead of an outcome if the batch failed after that was leased.
    answer: oneshot::Sender<Result<ClaimOutcome, Option<i64>>>,
}

/// Claims keys. The task behind it ends with the last handle.
#[derive(Debug, Clone)]
pub struct Claims {
    db: Db,
    queue: mpsc::Sender<Job>,
}

impl Claims {
    /// Starts the task. It connects on first use.
    #[must_use]
    pub fn start(db: Db) -> Self {
        let (queue, jobs) = mpsc::channel(QUEUE_SIZE);
        tokio::spawn(run(db.session.clone().named("coupon-issuer claims"), jobs));
        Self { db, queue }
    }

    /// Claims a key. A new key is stored with these answers.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn claim(&self, new: &Arc<NewClaim>, answers: String) -> Result<ClaimOutcome, DbError> {
        let (answer, answered) = oneshot::channel();
        let mut first_id = None;
        if self.queue.try_send(Job { new: Arc::clone(new), answers: answers.clone(), answer }).is_ok()
            && let Ok(answer) = answered.await
        {
            match answer {
                Ok(outcome) => return Ok(outcome),
                Err(leased) => first_id = leased,
            }
        }
        let mut connection = self.db.connection().await?;
        let first_ids = match first_id {
            Some(first_id) => vec![first_id],
            None => lease_first_ids(&mut connection, &mut CouponIdLease::empty(), &[(new, &answers)]).await?,
        };
        let mut outcomes = claim(&mut connection, &[(new, &answers)], &first_ids).await?;
        outcomes.pop().ok_or(DbError::Failed(sqlx::Error::RowNotFound))
    }
}

async fn run(session: SessionOptions, mut jobs: mpsc::Receiver<Job>) {
    let mut current = None;
    while let Some(batch) = take_batch(&mut jobs, BATCH_SIZE, |_| 1).await {
        let new: Vec<(&NewClaim, &str)> = batch.iter().map(|job| (&*job.new, job.answers.as_str())).collect();
        let mut ids = Vec::new();
        let claimed = timeout(BATCH_TIMEOUT, claim_batch(&session, &mut current, &new, &mut ids)).await;
        let outcomes: Vec<Result<ClaimOutcome, Option<i64>>> =
            match claimed.unwrap_or_else(|_elapsed| Err(no_answer().into())) {
                Ok(outcomes) => outcomes.into_iter().map(Ok).collect(),
                Err(error) => {
                    tracing::debug!(%error, claims = batch.len(), "keys cannot be claimed together");
                    current = None;
                    (0..batch.len()).map(|index| Err(ids.get(index).copied())).collect()
                }
            };
        for (job, outcome) in batch.into_iter().zip(outcomes) {
            let Err(Ok(undelivered)) = job.answer.send(outcome) else { continue };
            // The request is gone, so only this task can end the attempt.
            if let Some((connection, _)) = &mut current {
                release(connection, &job.new, undelivered).await;
            }
        }
    }
}

/// Ends an attempt whose request is gone. If that fails, the attempt ends with its lease.
async fn release(connection: &mut PgConnection, new: &NewClaim, outcome: ClaimOutcome) {
    let (ClaimOutcome::Acquired(claim) | ClaimOutcome::Resumed { claim, .. }) = outcome else { return };
    let ended = timeout(BATCH_TIMEOUT, end_attempt(connection, new.request, claim)).await;
    if let Err(error) = ended.unwrap_or_else(|_elapsed| Err(no_answer())) {
        tracing::debug!(%error, "cannot end the attempt of a request that is gone");
    }
}

async fn claim_batch(
    session: &SessionOptions,
    current: &mut Option<(PgConnection, CouponIdLease)>,
    new: &[(&NewClaim, &str)],
    ids: &mut Vec<i64>,
) -> Result<Vec<ClaimOutcome>, DbError> {
    if current.is_none() {
        *current = Some((session.open().await?, CouponIdLease::empty()));
    }
    let Some((connection, lease)) = current else { return Err(no_answer().into()) };
    *ids = lease_first_ids(connection, lease, new).await?;
    claim(connection, new, ids).await
}

/// Reserves the coupon ids of each claim, and returns the first id of each.
async fn lease_first_ids(
    connection: &mut PgConnection,
    lease: &mut CouponIdLease,
    new: &[(&NewClaim, &str)],
) -> Result<Vec<i64>, DbError> {
    let sizes: Vec<i64> = new.iter().map(|(claim, _)| i64::try_from(claim.entities).unwrap_or(i64::MAX)).collect();
    // 0: the lease is used over this connection only, and ends with it.
    lease.ensure(sizes.iter().sum(), 0, connection).await?;
    let first_ids: Option<Vec<i64>> = sizes.into_iter().map(|size| lease.take(size)).collect();
    first_ids.ok_or_else(|| unknown_value("lease_coupon_ids_1"))
}

/// Claims the keys in one statement, and returns the outcomes in the same order.
async fn claim(
    connection: &mut PgConnection,
    new: &[(&NewClaim, &str)],
    first_ids: &[i64],
) -> Result<Vec<ClaimOutcome>, DbError> {
    let Some((first, _)) = new.first() else { return Ok(Vec::new()) };
    let rows: Vec<(i64, i16, i64, i32, String)> = sqlx::query_as(
        "select first_id, outcome, claim_id, attempt, answers from claim_keys_1($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(new.iter().map(|(claim, _)| claim.request.org_id.0).collect::<Vec<_>>())
    .bind(new.iter().map(|(claim, _)| claim.request.key_hash).collect::<Vec<_>>())
    .bind(new.iter().map(|(claim, _)| claim.fingerprint).collect::<Vec<_>>())
    .bind(new.iter().map(|(_, answers)| *answers).collect::<Vec<_>>())
    .bind(first_ids)
    .bind(first.incarnation)
    .bind(first.lease_seconds)
    .fetch_all(connection)
    .await?;
    let mut outcomes = HashMap::with_capacity(rows.len());
    for (first_id, outcome, first_coupon_id, attempt, answers) in rows {
        outcomes.insert(first_id, decode(outcome, Claim { first_coupon_id, attempt }, answers)?);
    }
    first_ids.iter().map(|id| outcomes.remove(id).ok_or(DbError::Failed(sqlx::Error::RowNotFound))).collect()
}

/// The outcomes by the numbers of function `claim_keys_1`.
fn decode(outcome: i16, claim: Claim, answers: String) -> Result<ClaimOutcome, DbError> {
    let resumed = |resumption| ClaimOutcome::Resumed { resumption, claim, answers };
    match outcome {
        1 => Ok(ClaimOutcome::Acquired(claim)),
        2 => Ok(resumed(Resumption::Incomplete)),
        3 => Ok(ClaimOutcome::InProgress),
        4 => Ok(ClaimOutcome::FingerprintMismatch),
        5 => Ok(resumed(Resumption::TakenOver)),
        6 => Ok(resumed(Resumption::Complete)),
        _ => Err(unknown_value("claim_keys_1")),
    }
}
