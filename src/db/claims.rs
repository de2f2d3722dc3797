//! Claims keys that cannot be claimed together with a coupon. Claims that wait while a statement is on its way share the next one,
//! and its commit.
//!
//! The task has a connection of its own, with a lease of coupon ids. If a statement fails, each of its claims is asked for alone,
//! under the same id: whether the failed statement took effect is found out.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use sqlx::ConnectOptions;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::coupon_ids::CouponIds;
use super::keyed_requests::{Claim, RequestName, end_attempt};
use super::rows::unknown_value;
use super::{Db, DbError, READ_COMMITTED, no_answer, waiting};

/// Claims that wait, and that share a statement.
const QUEUE: usize = 1024;
const AT_ONCE: usize = 256;
/// How long the claims of one statement wait for it, before each asks alone.
const PATIENCE: Duration = Duration::from_secs(3);

/// A key to be claimed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewClaim {
    /// The request.
    pub request: RequestName,
    /// What it asks for: see column `keyed_request.fingerprint`.
    pub fingerprint: i64,
    /// The number of its entities.
    pub entities: usize,
    /// This replica.
    pub incarnation: i32,
    /// The seconds after which an attempt is over in any case.
    pub lease_seconds: i32,
}

/// What a claim has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClaimOutcome {
    /// The key is new: nothing was issued under it.
    Acquired(Claim),
    /// The request was seen before, and no attempt is at work on it.
    Resumed {
        /// What the attempts before have left.
        left: Left,
        /// The claim, under which what is left may be issued.
        claim: Claim,
        /// The answers that are stored.
        answers: String,
    },
    /// Another attempt is at work on it.
    InProgress,
    /// The key belongs to another request.
    FingerprintMismatch,
}

/// What the attempts before have left of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// Nothing: each entity has its answer for good.
    Nothing,
    /// Something. None of them is at work any more.
    Something,
    /// What an attempt of another replica has not ended: that replica is dead, or the lease of the attempt has run out.
    Unended,
}

struct Ask {
    new: Arc<NewClaim>,
    answers: String,
    answer: oneshot::Sender<Result<ClaimOutcome, Option<i64>>>,
}

/// Claims keys. The task behind it ends with the last handle.
#[derive(Debug, Clone)]
pub struct Claims {
    db: Db,
    queue: mpsc::Sender<Ask>,
}

impl Claims {
    /// Starts the task. It connects when there is something to do.
    #[must_use]
    pub fn start(db: Db) -> Self {
        let (queue, asks) = mpsc::channel(QUEUE);
        tokio::spawn(run(db.connect.clone().application_name("coupon-issuer claims"), asks));
        Self { db, queue }
    }

    /// Claims a key; a new one is stored with these answers.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn claim(&self, new: &Arc<NewClaim>, answers: String) -> Result<ClaimOutcome, DbError> {
        let (answer, answered) = oneshot::channel();
        let mut first_id = None;
        if self.queue.try_send(Ask { new: Arc::clone(new), answers: answers.clone(), answer }).is_ok()
            && let Ok(asked) = answered.await
        {
            match asked {
                Ok(outcome) => return Ok(outcome),
                Err(asked_with) => first_id = asked_with,
            }
        }
        let mut connection = self.db.lease().await?;
        let first_ids = match first_id {
            Some(first_id) => vec![first_id],
            None => first_ids(&mut connection, &mut CouponIds::new(), &[(new, &answers)]).await?,
        };
        let mut found = claim(&mut connection, &[(new, &answers)], &first_ids).await?;
        found.pop().ok_or(DbError::Failed(sqlx::Error::RowNotFound))
    }
}

async fn run(connect: PgConnectOptions, mut asks: mpsc::Receiver<Ask>) {
    let mut current = None;
    while let Some(taken) = waiting::take(&mut asks, AT_ONCE, |_| 1).await {
        let new: Vec<(&NewClaim, &str)> = taken.iter().map(|ask| (&*ask.new, ask.answers.as_str())).collect();
        let mut ids = Vec::new();
        let together = claim_together(&connect, &mut current, &new, &mut ids);
        let found = timeout(PATIENCE, together).await.unwrap_or_else(|_elapsed| Err(no_answer().into()));
        let outcomes: Vec<Result<ClaimOutcome, Option<i64>>> = match found {
            Ok(found) => found.into_iter().map(Ok).collect(),
            Err(error) => {
                tracing::debug!(%error, claims = taken.len(), "keys cannot be claimed together");
                current = None;
                (0..taken.len()).map(|place| Err(ids.get(place).copied())).collect()
            }
        };
        for (ask, outcome) in taken.into_iter().zip(outcomes) {
            let Err(Ok(unheard)) = ask.answer.send(outcome) else { continue };
            // Its request ended meanwhile: nobody else ends the attempt.
            if let Some((connection, _)) = &mut current {
                give_back(connection, &ask.new, unheard).await;
            }
        }
    }
}

/// Ends an attempt whose claim nobody waited for. If that fails, it ends with its lease.
async fn give_back(connection: &mut PgConnection, new: &NewClaim, outcome: ClaimOutcome) {
    let (ClaimOutcome::Acquired(claim) | ClaimOutcome::Resumed { claim, .. }) = outcome else { return };
    let end = timeout(PATIENCE, end_attempt(connection, new.request, claim, None)).await;
    if let Err(error) = end.unwrap_or_else(|_elapsed| Err(no_answer())) {
        tracing::debug!(%error, "a claim that nobody waited for is not given back");
    }
}

async fn claim_together(
    connect: &PgConnectOptions,
    current: &mut Option<(PgConnection, CouponIds)>,
    new: &[(&NewClaim, &str)],
    ids: &mut Vec<i64>,
) -> Result<Vec<ClaimOutcome>, DbError> {
    if current.is_none() {
        let mut connection = connect.connect().await?;
        sqlx::query(READ_COMMITTED).execute(&mut connection).await?;
        *current = Some((connection, CouponIds::new()));
    }
    let Some((connection, lease)) = current else { return Err(no_answer().into()) };
    *ids = first_ids(connection, lease, new).await?;
    claim(connection, new, ids).await
}

/// Reserves coupon ids for each of these, and returns the first of each.
async fn first_ids(
    connection: &mut PgConnection,
    lease: &mut CouponIds,
    new: &[(&NewClaim, &str)],
) -> Result<Vec<i64>, DbError> {
    let sizes: Vec<i64> = new.iter().map(|(one, _)| i64::try_from(one.entities).unwrap_or(i64::MAX)).collect();
    // A lease does not outlive this connection.
    lease.ensure(sizes.iter().sum(), 0, connection).await?;
    let taken: Option<Vec<i64>> = sizes.into_iter().map(|size| lease.take(size)).collect();
    taken.ok_or_else(|| unknown_value("lease_coupon_ids_1"))
}

/// Claims these in one statement, and says of each, in order, what it has found.
async fn claim(
    connection: &mut PgConnection,
    new: &[(&NewClaim, &str)],
    first_ids: &[i64],
) -> Result<Vec<ClaimOutcome>, DbError> {
    let Some((first, _)) = new.first() else { return Ok(Vec::new()) };
    let rows: Vec<(i64, i16, i64, i32, String)> = sqlx::query_as(
        "select first_id, outcome, claim_id, attempt, answers from claim_keys_1($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(new.iter().map(|(one, _)| one.request.org_id.0).collect::<Vec<_>>())
    .bind(new.iter().map(|(one, _)| one.request.key_hash).collect::<Vec<_>>())
    .bind(new.iter().map(|(one, _)| one.fingerprint).collect::<Vec<_>>())
    .bind(new.iter().map(|(_, answers)| *answers).collect::<Vec<_>>())
    .bind(first_ids)
    .bind(first.incarnation)
    .bind(first.lease_seconds)
    .fetch_all(connection)
    .await?;
    let mut found = HashMap::with_capacity(rows.len());
    for (first_id, outcome, first_coupon_id, attempt, answers) in rows {
        found.insert(first_id, outcome_of(outcome, Claim { first_coupon_id, attempt }, answers)?);
    }
    first_ids.iter().map(|id| found.remove(id).ok_or(DbError::Failed(sqlx::Error::RowNotFound))).collect()
}

fn outcome_of(outcome: i16, claim: Claim, answers: String) -> Result<ClaimOutcome, DbError> {
    match outcome {
        1 => Ok(ClaimOutcome::Acquired(claim)),
        2 => Ok(ClaimOutcome::Resumed { left: Left::Something, claim, answers }),
        3 => Ok(ClaimOutcome::InProgress),
        4 => Ok(ClaimOutcome::FingerprintMismatch),
        5 => Ok(ClaimOutcome::Resumed { left: Left::Unended, claim, answers }),
        6 => Ok(ClaimOutcome::Resumed { left: Left::Nothing, claim, answers }),
        _ => Err(unknown_value("claim_keys_1")),
    }
}
