//! One batch: sent as one call, and, where the call breaks midway, settled item by item.
//!
//! What a broken call has committed is found again in the database by its issue id, never guessed; the rest is sent
//! again one by one, so that an item the database cannot take fails alone. Before that the probe, an empty call, shows whether
//! the database takes any write at all.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sqlx::Row;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use uuid::Uuid;

use super::call::{Expect, issue_coupons, meaning};
use super::connection::{Backend, Connector, WriterConnection};
use super::{Meters, NewCoupon, Work, Written};
use crate::seldom::Seldom;
use crate::store::{StoreError, is_fatal, no_answer, told};

const RECONNECT_PAUSE: Duration = Duration::from_millis(50);
/// After a deadline, the time that is left to find out what a broken call has committed.
const GRACE: Duration = Duration::from_secs(2);
/// What any question may take, however late it is.
const LEAST_PATIENCE: Duration = Duration::from_millis(200);

/// A writer tries again every moment while somebody waits.
static AWAY: Seldom = Seldom::new();
/// A server that fails may fail on every batch, and on every coupon.
static BROKEN: Seldom = Seldom::new();
static AGAIN: Seldom = Seldom::new();
static REFUSED: Seldom = Seldom::new();
static FAULTS: Seldom = Seldom::new();
static NOT_TAKEN: Seldom = Seldom::new();

/// Sends batches over one connection, which it makes and replaces as needed.
pub(super) struct Batches {
    connector: Connector,
    current: Option<WriterConnection>,
    /// Connections that broke and whose server process may still be at work.
    broken: Vec<Backend>,
    /// When the batch at hand must be answered, whatever is known of it by then.
    until: Instant,
    /// Whether a task has found that the database takes no writes: see [`super::Writer::is_refused`].
    suspect: Arc<AtomicBool>,
    meters: Meters,
}

impl Batches {
    pub(super) fn new(connector: Connector, suspect: Arc<AtomicBool>, meters: Meters) -> Self {
        Self { connector, current: None, broken: Vec::new(), until: Instant::now(), suspect, meters }
    }

    pub(super) const fn meters(&self) -> &Meters {
        &self.meters
    }

    /// How long to wait for an answer: as long as Postgres may take, and no longer than the callers may wait.
    fn patience(&self) -> Duration {
        let left = self.until.saturating_duration_since(Instant::now());
        self.connector.patience().min(left.max(LEAST_PATIENCE))
    }

    pub(super) async fn close(self) {
        if let Some(connection) = self.current {
            connection.close().await;
        }
    }

    /// Does all of these, and returns what became of each, in order.
    pub(super) async fn write(&mut self, works: &[Work], deadline: Instant) -> Vec<Written> {
        let written = self.send(works, deadline).await;
        let in_doubt = written.iter().filter(|outcome| **outcome == Written::InDoubt).count();
        self.meters.in_doubt.increment(in_doubt as u64);
        written
    }

    async fn send(&mut self, works: &[Work], deadline: Instant) -> Vec<Written> {
        self.until = deadline + GRACE;
        if !self.connected(deadline).await {
            return vec![Written::Unavailable; works.len()];
        }
        let coupons: Vec<&NewCoupon> = works.iter().filter_map(coupon).collect();
        let began = Instant::now();
        let called = self.call(&coupons, Expect::Guarded).await;
        self.meters.duration.record(began.elapsed());
        match called {
            Ok(written) => {
                let made_at = self.current.as_ref().map(|writer| writer.made_at);
                merge(works, written.into_iter(), |read_since| confirmed(made_at, read_since))
            }
            Err(error) if coupons.is_empty() => {
                self.meters.broken.increment(1);
                let unconfirmed = self.unconfirmed(error).await;
                merge(works, std::iter::empty(), |_| unconfirmed.clone())
            }
            Err(error) => {
                let (error, coupons_sent) = (told(&error), coupons.len());
                BROKEN.tell(|times| {
                    tracing::warn!(error, coupons = coupons_sent, times, "a batch broke; settling it coupon by coupon");
                });
                self.meters.broken.increment(1);
                merge(works, self.settle(&coupons, deadline).await.into_iter(), |_| Written::Unconfirmed)
            }
        }
    }

    /// What an empty call that broke leaves unconfirmed.
    async fn unconfirmed(&mut self, error: sqlx::Error) -> Written {
        let reason = told(&error);
        if self.current.is_some() && took_too_long(&error) {
            BROKEN.tell(|times| tracing::warn!(error = reason, times, "a flush took too long"));
            return Written::Expired;
        }
        if matches!(self.is_refused(Err(error)).await, Ok(true)) {
            return Written::Unavailable;
        }
        BROKEN.tell(|times| {
            tracing::warn!(error = reason, times, "a flush broke; what it was to confirm is read again");
        });
        Written::Unconfirmed
    }

    /// Whether the database takes no writes at all, by what the probe has found. Where it failed over a session that is still
    /// there, a new one is asked: a session may be ill, because a type that it knows was made anew, and others be well.
    ///
    /// An error: the connection broke, or the probe took too long.
    async fn is_refused(&mut self, probed: Result<(), sqlx::Error>) -> Result<bool, sqlx::Error> {
        let Err(error) = probed else { return Ok(false) };
        if took_too_long(&error) {
            return Err(error);
        }
        let Some(ill) = self.current.take() else { return Err(error) };
        // It has nothing to do any more; if it does not go, the server sees to it.
        drop(timeout(LEAST_PATIENCE, ill.close()).await);
        timeout(self.patience(), self.reconnect()).await.unwrap_or_else(|_| Err(no_answer()))?;
        let Err(error) = self.probe().await else { return Ok(false) };
        if took_too_long(&error) || self.current.is_none() {
            return Err(error);
        }
        self.suspect.store(true, Ordering::Relaxed);
        let error = told(&error);
        REFUSED.tell(|times| tracing::error!(error, times, "the database refuses every write"));
        Ok(true)
    }

    /// An empty call, over a session that may write.
    async fn probe(&mut self) -> Result<(), sqlx::Error> {
        self.call(&[], Expect::All).await?;
        let patience = self.patience();
        let Some(writer) = &mut self.current else { return Err(sqlx::Error::PoolClosed) };
        // An empty call is taken where only reading is allowed.
        let query = sqlx::query_scalar("select current_setting('transaction_read_only') = 'on'");
        let only_reads = timeout(patience, query.fetch_one(&mut writer.connection)).await;
        match self.checked(only_reads.unwrap_or_else(|_| Err(no_answer()))).await {
            Ok(true) => Err(sqlx::Error::Protocol("transactions are read-only".to_owned())),
            Ok(false) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Whether the database takes no writes at all, as a connection of its own finds. `None`: that cannot be found out by then.
    pub(super) async fn find_out(mut self, deadline: Instant) -> Option<bool> {
        self.until = deadline;
        if !self.connected(deadline).await {
            return None;
        }
        let probed = self.probe().await;
        let is_refused = match &probed {
            Ok(()) => Some(false),
            Err(error) if took_too_long(error) || self.current.is_none() => None,
            Err(_) => Some(true),
        };
        self.close().await;
        is_refused
    }

    /// Settles the coupons of a call that broke.
    async fn settle(&mut self, coupons: &[&NewCoupon], deadline: Instant) -> Vec<Written> {
        let mut written: Vec<Option<Written>> = vec![None; coupons.len()];
        while Instant::now() < deadline + GRACE && self.connected(deadline + GRACE).await {
            match self.settle_once(coupons, &mut written, deadline).await {
                Ok(()) => {
                    return written.into_iter().map(|outcome| outcome.unwrap_or(Written::InDoubt)).collect();
                }
                Err(error) => {
                    let error = told(&error);
                    AGAIN.tell(|times| {
                        tracing::warn!(error, times, "settling a broken batch was itself cut short; again");
                    });
                }
            }
            sleep(RECONNECT_PAUSE).await;
        }
        // A coupon that was found, but perhaps not flushed, is as much in doubt as one that was not.
        let certain = |outcome: Option<Written>| outcome.filter(|known| !matches!(known, Written::Issued(_)));
        let written: Vec<Written> = written.into_iter().map(|one| certain(one).unwrap_or(Written::InDoubt)).collect();
        let in_doubt = written.iter().filter(|outcome| **outcome == Written::InDoubt).count();
        tracing::error!(in_doubt, "the database did not come back in time to settle a broken batch");
        written
    }

    /// Finds what is committed, sends the rest one by one, and flushes. An error: the connection broke again, or a flush took
    /// too long.
    async fn settle_once(
        &mut self,
        coupons: &[&NewCoupon],
        written: &mut [Option<Written>],
        deadline: Instant,
    ) -> Result<(), sqlx::Error> {
        let found = self.find_committed(coupons).await?;
        let probed = self.probe().await;
        if self.is_refused(probed).await? {
            // What is found may not be flushed.
            for (coupon, outcome) in coupons.iter().zip(written.iter_mut()) {
                let is_found = found.contains_key(&coupon.issue_id);
                *outcome = Some(if is_found { Written::InDoubt } else { Written::Unavailable });
            }
            return Ok(());
        }
        for (coupon, outcome) in coupons.iter().zip(written.iter_mut()) {
            *outcome = match (found.get(&coupon.issue_id), outcome.take()) {
                (Some(code), _) => Some(Written::Issued(code.clone())),
                // Issued in an earlier pass and not there: a crash has taken it back before it was flushed.
                (None, Some(decided)) if !matches!(decided, Written::Issued(_)) => Some(decided),
                (None, _) if Instant::now() >= deadline => Some(Written::Expired),
                (None, _) => Some(self.send_alone(coupon).await?),
            };
        }
        self.call(&[], Expect::All).await.map(drop)
    }

    /// Sends one coupon. An error: the connection broke.
    async fn send_alone(&mut self, coupon: &NewCoupon) -> Result<Written, sqlx::Error> {
        match self.call(&[coupon], Expect::All).await {
            Ok(one) => Ok(one.into_iter().next().unwrap_or(Written::InDoubt)),
            Err(error) if self.current.is_none() => Err(error),
            Err(error) => {
                // It may be committed, and only what came after it have failed.
                if let Some(code) = self.find_committed(&[coupon]).await?.remove(&coupon.issue_id) {
                    return Ok(Written::Issued(code));
                }
                if took_too_long(&error) {
                    return Ok(Written::Expired);
                }
                Ok(refusal(coupon, error))
            }
        }
    }

    /// Whether there is a connection, made before the deadline if need be, and no broken one is still at work.
    async fn connected(&mut self, deadline: Instant) -> bool {
        while self.current.is_none() || !self.broken.is_empty() {
            match timeout_at(deadline, self.reconnect()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    let error = told(&error);
                    AWAY.tell(|times| tracing::warn!(error, times, "a writer cannot reach the database"));
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
            connection.end(broken).await?;
            self.broken.pop();
        }
        self.current = Some(connection);
        Ok(())
    }

    /// Sends these as one call, in order of the series, so that a hot one is locked once. After an error that leaves the
    /// connection's state unknown there is no connection.
    async fn call(&mut self, coupons: &[&NewCoupon], expect: Expect) -> Result<Vec<Written>, sqlx::Error> {
        let patience = self.patience();
        let Some(writer) = &mut self.current else { return Err(sqlx::Error::PoolClosed) };
        let mut places: Vec<usize> = (0..coupons.len()).collect();
        places.sort_by_key(|place| (coupons[*place].org_id.0, coupons[*place].series_id.0));
        let sorted: Vec<&NewCoupon> = places.iter().map(|place| coupons[*place]).collect();
        let called =
            timeout(patience, issue_coupons(&sorted, expect, &writer.durability).fetch_one(&mut writer.connection))
                .await;
        let result = called.unwrap_or_else(|_| Err(no_answer())).and_then(|row| {
            let outcomes: Vec<i16> = row.try_get("outcomes")?;
            let codes: Vec<Option<String>> = row.try_get("issued_codes")?;
            if [outcomes.len(), codes.len()] != [coupons.len(); 2] {
                let (outcomes, codes, coupons) = (outcomes.len(), codes.len(), coupons.len());
                tracing::error!(outcomes, codes, coupons, "the database's outcomes leave coupons in doubt");
            }
            let mut written = vec![Written::InDoubt; coupons.len()];
            for (place, (outcome, code)) in places.into_iter().zip(outcomes.into_iter().zip(codes)) {
                written[place] = meaning(coupons[place], outcome, code);
            }
            Ok(written)
        });
        self.checked(result).await
    }

    async fn find_committed(&mut self, coupons: &[&NewCoupon]) -> Result<HashMap<Uuid, String>, sqlx::Error> {
        let patience = self.patience();
        let Some(writer) = &mut self.current else { return Err(sqlx::Error::PoolClosed) };
        let query = sqlx::query_as(
            "select c.issue_id, c.code
               from unnest($1::bigint[], $2::text[], $3::bigint[], $4::uuid[]) as sent (org_id, customer_id, series_id, issue_id)
               join coupon c using (org_id, customer_id, series_id, issue_id)",
        )
        .bind(column(coupons, |c| c.org_id.0))
        .bind(column(coupons, |c| c.customer_id.0.as_str()))
        .bind(column(coupons, |c| c.series_id.0))
        .bind(column(coupons, |c| c.issue_id));
        let found = timeout(patience, query.fetch_all(&mut writer.connection)).await;
        let result =
            found.unwrap_or_else(|_| Err(no_answer())).map(|rows: Vec<(Uuid, String)>| rows.into_iter().collect());
        self.checked(result).await
    }

    /// After an error, gives the connection up, unless it was only the statement that failed: its server process is then
    /// ended before anything is counted.
    async fn checked<T>(&mut self, result: Result<T, sqlx::Error>) -> Result<T, sqlx::Error> {
        let (error, is_statements) = match result.map_err(StoreError::from) {
            Ok(done) => return Ok(done),
            Err(StoreError::Failed(error) | StoreError::ServerFault(error) | StoreError::TookTooLong(error)) => {
                (error, true)
            }
            // The session of a database that only reads is still there; the probe looks whether a new one may write.
            Err(StoreError::Unavailable(error)) => {
                let is_statements = error.as_database_error().is_some_and(|error| !is_fatal(error));
                (error, is_statements)
            }
        };
        if !(is_statements && self.unlock().await) {
            self.broken.extend(self.current.take().map(|broken| broken.backend));
        }
        Err(error)
    }

    /// Gives back the locks that a failed call leaves with its session (migrations/0011, `issue_coupons_2`).
    async fn unlock(&mut self) -> bool {
        let patience = self.patience();
        let Some(writer) = &mut self.current else { return false };
        let unlock = sqlx::query("select pg_advisory_unlock_all()").execute(&mut writer.connection);
        matches!(timeout(patience, unlock).await, Ok(Ok(_)))
    }
}

/// What it means that the database cannot take a coupon that was sent alone, and that is not stored.
fn refusal(coupon: &NewCoupon, error: sqlx::Error) -> Written {
    let (series_id, reason) = (coupon.series_id.0, told(&error));
    if matches!(StoreError::from(error), StoreError::Failed(_)) {
        NOT_TAKEN.tell(|times| {
            tracing::error!(error = reason, series_id, times, "the database cannot take this coupon");
        });
        return Written::Failed;
    }
    FAULTS.tell(|times| {
        tracing::error!(error = reason, series_id, times, "the database server failed on a coupon");
    });
    Written::ServerFault
}

/// Whether what was read since then is flushed by now. Of what was read before the connection was made that has flushed it, a
/// crash may have taken something back.
fn confirmed(made_at: Option<Instant>, read_since: Instant) -> Written {
    if made_at.is_some_and(|made_at| made_at <= read_since) { Written::Confirmed } else { Written::Unconfirmed }
}

/// Whether Postgres gave a statement up by its own clock: the statement's, or that of a lock it waited for.
fn took_too_long(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    matches!(code.as_deref(), Some("57014" | "55P03"))
}

const fn coupon(work: &Work) -> Option<&NewCoupon> {
    match work {
        Work::Issue(coupon) => Some(coupon),
        Work::Confirm(_) => None,
    }
}

/// Puts what became of the coupons back between the works that were none.
fn merge(
    works: &[Work],
    mut written: impl Iterator<Item = Written>,
    confirmed: impl Fn(Instant) -> Written,
) -> Vec<Written> {
    works
        .iter()
        .map(|work| match work {
            Work::Issue(_) => written.next().unwrap_or(Written::InDoubt),
            Work::Confirm(read_since) => confirmed(*read_since),
        })
        .collect()
}

fn column<'c, T: 'c>(coupons: &[&'c NewCoupon], value: impl Fn(&'c NewCoupon) -> T) -> Vec<T> {
    coupons.iter().map(|coupon| value(coupon)).collect()
}
