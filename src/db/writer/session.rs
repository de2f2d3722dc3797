//! The statements of one writer task, over one connection that is replaced as needed.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use sqlx::Row;
use sqlx::postgres::PgRow;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::connection::{Backend, Connector, WriterConnection};
use super::coupon::{Code, Scope};
use super::numbering::NumberedCoupon;
use super::outcome::WriteOutcome;
use super::procedure::{Reported, issue_coupons, write_outcome};
use super::work::AttemptEnd;
use crate::db::coupon_ids::CouponIdLease;
use crate::db::error::{DbError, describe, is_cancelled, is_fatal, no_answer};
use crate::telemetry::throttle::Throttle;

pub(super) const RECONNECT_PAUSE: Duration = Duration::from_millis(50);
/// Every statement may take this long, even if the answer to the batch is late already.
const MIN_STATEMENT_TIMEOUT: Duration = Duration::from_millis(200);

static UNREACHABLE: Throttle = Throttle::new();
static REFUSED: Throttle = Throttle::new();

pub(super) struct Session {
    connector: Connector,
    current: Option<WriterConnection>,
    /// Server processes of broken connections that may still be writing.
    broken: Vec<Backend>,
    /// When the current batch must be answered.
    answer_by: Instant,
    /// Set when the database refuses every write: see [`super::Writer::is_refused`].
    is_suspect: Arc<AtomicBool>,
    /// The number of connections that broke, over all tasks that share a lease of coupon ids.
    broken_connections: Arc<AtomicU64>,
}

impl Session {
    pub(super) fn new(connector: Connector, is_suspect: Arc<AtomicBool>, broken_connections: Arc<AtomicU64>) -> Self {
        let (current, broken, answer_by) = (None, Vec::new(), Instant::now());
        Self { connector, current, broken, answer_by, is_suspect, broken_connections }
    }

    pub(super) const fn set_answer_by(&mut self, answer_by: Instant) {
        self.answer_by = answer_by;
    }

    pub(super) const fn is_connected(&self) -> bool {
        self.current.is_some()
    }

    pub(super) fn connected_at(&self) -> Option<Instant> {
        self.current.as_ref().map(|writer| writer.connected_at)
    }

    pub(super) async fn close(self) {
        if let Some(connection) = self.current {
            connection.close().await;
        }
    }

    /// How long to wait for an answer: Postgres' own time-out and a second, or the time until the batch must be answered if that is
    /// shorter.
    fn statement_timeout(&self) -> Duration {
        let remaining = self.answer_by.saturating_duration_since(Instant::now());
        self.connector.answer_timeout().min(remaining.max(MIN_STATEMENT_TIMEOUT))
    }

    /// Connects if necessary, and ends the server processes of broken connections. False: not possible before the deadline.
    pub(super) async fn ensure_connected(&mut self, deadline: Instant) -> bool {
        while self.current.is_none() || !self.broken.is_empty() {
            match timeout_at(deadline, self.reconnect()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    let error = describe(&error);
                    UNREACHABLE
                        .log(|suppressed| tracing::warn!(error, suppressed, "a writer cannot reach the database"));
                    self.current = None;
                    if timeout_at(deadline, sleep(RECONNECT_PAUSE)).await.is_err() {
                        return false;
                    }
                }
                Err(_elapsed) => return false,
            }
        }
        true
    }

    async fn reconnect(&mut self) -> Result<(), sqlx::Error> {
        let mut connection = match self.current.take() {
            Some(connection) => connection,
            None => self.connector.connect().await?,
        };
        while let Some(broken) = self.broken.last() {
            connection.terminate(broken).await?;
            self.broken.pop();
        }
        self.current = Some(connection);
        Ok(())
    }

    pub(super) async fn lease_ids(&mut self, lease: &mut CouponIdLease, count: usize) -> Result<(), sqlx::Error> {
        if count == 0 {
            return Ok(());
        }
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        let broken_connections = self.broken_connections.load(Ordering::Relaxed);
        self.run(async |writer| lease.ensure(count, broken_connections, &mut writer.connection).await).await
    }

    /// Sends the coupons as one call, ordered by series, so that a hot series is locked once. After an error that leaves the state of
    /// the connection unknown, the session is disconnected.
    pub(super) async fn issue(
        &mut self,
        coupons: &[NumberedCoupon<'_>],
        reported: Reported,
    ) -> Result<Vec<WriteOutcome>, sqlx::Error> {
        let mut order: Vec<usize> = (0..coupons.len()).collect();
        order.sort_by_key(|index| {
            let coupon = coupons[*index].coupon;
            (coupon.org_id.0, coupon.series_id.0)
        });
        let sorted: Vec<NumberedCoupon<'_>> = order.iter().map(|index| coupons[*index]).collect();
        self.run(async |WriterConnection { connection, durability, session, .. }| {
            let row = issue_coupons(&sorted, reported, (durability, session)).fetch_one(connection).await?;
            write_outcomes(&row, coupons, order)
        })
        .await
    }

    /// Ends the attempts, without a flush. Returns for each whether it still held its key.
    pub(super) async fn end_attempts(&mut self, ends: &[&AttemptEnd]) -> Result<Vec<bool>, sqlx::Error> {
        let query = sqlx::query_scalar("select end_attempts_1($1, $2, $3, $4, $5)")
            .bind(ends.iter().map(|end| end.request.org_id.0).collect::<Vec<_>>())
            .bind(ends.iter().map(|end| end.request.key_hash).collect::<Vec<_>>())
            .bind(ends.iter().map(|end| end.claim.first_coupon_id).collect::<Vec<_>>())
            .bind(ends.iter().map(|end| end.claim.attempt).collect::<Vec<_>>())
            .bind(ends.iter().map(|end| end.answers.as_deref()).collect::<Vec<_>>());
        self.run(async |writer| query.fetch_one(&mut writer.connection).await).await
    }

    /// Finds what is stored under the ids of these coupons, by id: the coupon that was sent, or another one.
    pub(super) async fn find_committed(
        &mut self,
        coupons: &[NumberedCoupon<'_>],
    ) -> Result<HashMap<i64, WriteOutcome>, sqlx::Error> {
        let query = sqlx::query_as(
            "select c.coupon_id, c.series_id, c.customer_id, c.issued_at, c.code, coalesce(c.uploaded_code, c.code)
               from unnest($1::bigint[], $2::bigint[]) as sent (org_id, coupon_id)
               join coupon c using (org_id, coupon_id)",
        )
        .bind(coupons.iter().map(|numbered| numbered.coupon.org_id.0).collect::<Vec<_>>())
        .bind(coupons.iter().map(|numbered| numbered.coupon_id).collect::<Vec<_>>());
        let rows: Vec<CommittedRow> = self.run(async |writer| query.fetch_all(&mut writer.connection).await).await?;
        let mut rows: HashMap<i64, CommittedRow> = rows.into_iter().map(|row| (row.0, row)).collect();
        let outcome = |numbered: &NumberedCoupon<'_>| {
            let row = rows.remove(&numbered.coupon_id)?;
            Some((numbered.coupon_id, committed_outcome(numbered, row)))
        };
        Ok(coupons.iter().filter_map(outcome).collect())
    }

    /// Flushes what was committed before.
    pub(super) async fn flush(&mut self) -> Result<(), sqlx::Error> {
        self.issue(&[], Reported::All).await.map(drop)
    }

    /// Succeeds if the database takes writes.
    pub(super) async fn probe(&mut self) -> Result<(), sqlx::Error> {
        self.flush().await?;
        // An empty call also succeeds where transactions are read-only.
        let query = sqlx::query_scalar("select current_setting('transaction_read_only') = 'on'");
        match self.run(async |writer| query.fetch_one(&mut writer.connection).await).await {
            Ok(true) => Err(sqlx::Error::Protocol("transactions are read-only".to_owned())),
            Ok(false) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Whether the database refuses every write, after a probe or another statement ended so. If it failed and the connection
    /// survived, a new connection is probed as well: the old one may hold a stale type.
    ///
    /// An error: the connection broke, or the probe was cancelled.
    pub(super) async fn is_refused(&mut self, probed: Result<(), sqlx::Error>) -> Result<bool, sqlx::Error> {
        let Err(error) = probed else { return Ok(false) };
        if is_cancelled(&error) {
            return Err(error);
        }
        let Some(failed) = self.current.take() else { return Err(error) };
        // If it does not close in time, the server ends it: it has nothing to do.
        drop(timeout(MIN_STATEMENT_TIMEOUT, failed.close()).await);
        timeout(self.statement_timeout(), self.reconnect()).await.unwrap_or_else(|_| Err(no_answer()))?;
        let Err(error) = self.probe().await else { return Ok(false) };
        if is_cancelled(&error) || !self.is_connected() {
            return Err(error);
        }
        self.is_suspect.store(true, Ordering::Relaxed);
        let error = describe(&error);
        REFUSED.log(|suppressed| tracing::error!(error, suppressed, "the database refuses every write"));
        Ok(true)
    }

    /// Connects, probes and closes. Whether the database refuses every write; `None`: that could not be found out by the deadline.
    pub(super) async fn probe_once(mut self, deadline: Instant) -> Option<bool> {
        self.answer_by = deadline;
        if !self.ensure_connected(deadline).await {
            return None;
        }
        let is_refused = match &self.probe().await {
            Ok(()) => Some(false),
            Err(error) if is_cancelled(error) || !self.is_connected() => None,
            Err(_) => Some(true),
        };
        self.close().await;
        is_refused
    }

    /// Runs a statement within its time-out. An error may end the connection: see [`Session::drop_if_broken`].
    async fn run<T>(
        &mut self,
        statement: impl AsyncFnOnce(&mut WriterConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, sqlx::Error> {
        let limit = self.statement_timeout();
        let Some(writer) = &mut self.current else { return Err(sqlx::Error::PoolClosed) };
        let result = timeout(limit, statement(writer)).await.unwrap_or_else(|_| Err(no_answer()));
        self.drop_if_broken(result).await
    }

    /// After an error, disconnects unless only the statement failed. The server process is then ended before anything else is done.
    async fn drop_if_broken<T>(&mut self, result: Result<T, sqlx::Error>) -> Result<T, sqlx::Error> {
        let (error, is_statement_error) = match result.map_err(DbError::from) {
            Ok(done) => return Ok(done),
            Err(DbError::Failed(error) | DbError::ServerFault(error) | DbError::TookTooLong(error)) => (error, true),
            // The connection to a read-only database is intact. The probe tests whether a new one may write.
            Err(DbError::Unavailable(error)) => {
                let is_statement_error = error.as_database_error().is_some_and(|error| !is_fatal(error));
                (error, is_statement_error)
            }
        };
        if !(is_statement_error && self.unlock().await) {
            self.broken_connections.fetch_add(1, Ordering::Relaxed);
            self.broken.extend(self.current.take().map(|broken| broken.backend));
        }
        Err(error)
    }

    /// Releases the locks that a failed call leaves with its session (`issue_coupons_1`).
    async fn unlock(&mut self) -> bool {
        let limit = self.statement_timeout();
        let Some(writer) = &mut self.current else { return false };
        let unlock = sqlx::query("select pg_advisory_unlock_all()").execute(&mut writer.connection);
        matches!(timeout(limit, unlock).await, Ok(Ok(_)))
    }
}

/// The outcomes in the order of `coupons`, which were sent in this `order`.
fn write_outcomes(
    row: &PgRow,
    coupons: &[NumberedCoupon<'_>],
    order: Vec<usize>,
) -> Result<Vec<WriteOutcome>, sqlx::Error> {
    let outcomes: Vec<i16> = row.try_get("outcomes")?;
    let codes: Vec<Option<String>> = row.try_get("issued_codes")?;
    if [outcomes.len(), codes.len()] != [coupons.len(); 2] {
        let (outcomes, codes, coupons) = (outcomes.len(), codes.len(), coupons.len());
        tracing::error!(outcomes, codes, coupons, "the database's outcomes leave coupons in doubt");
    }
    let mut written = vec![WriteOutcome::InDoubt; coupons.len()];
    for (index, (outcome, code)) in order.into_iter().zip(outcomes.into_iter().zip(codes)) {
        written[index] = write_outcome(&coupons[index], outcome, code);
    }
    Ok(written)
}

/// Coupon id, series, customer, instant, code as it is compared, and code as it is shown.
type CommittedRow = (i64, i64, String, jiff_sqlx::Timestamp, Option<String>, Option<String>);

/// Compares the stored coupon in full: another attempt under the same key issues under the same id, and a server that took over may
/// have lost a lease.
fn committed_outcome(numbered: &NumberedCoupon<'_>, row: CommittedRow) -> WriteOutcome {
    let (coupon_id, series_id, customer_id, issued_at, code, shown) = row;
    let coupon = numbered.coupon;
    // Postgres keeps microseconds.
    let is_same_instant = issued_at.to_jiff().as_microsecond().abs_diff(coupon.issued_at.as_microsecond()) <= 1;
    let shown = match &coupon.code {
        Code::Unique(sent) => code.filter(|code| code == sent),
        Code::Generic(sent) => code.is_none().then(|| sent.clone()),
        Code::FromPool => shown,
    };
    match shown.filter(|_| is_same_instant && series_id == coupon.series_id.0 && customer_id == coupon.customer_id.0) {
        Some(code) => WriteOutcome::Issued { coupon_id, code },
        None if matches!(coupon.scope, Scope::Key(_)) => WriteOutcome::AlreadyIssued,
        None => WriteOutcome::IdTaken,
    }
}
