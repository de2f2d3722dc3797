//! One batch: sent as one call, and, where the call breaks midway, settled item by item.
//!
//! What a broken call has committed is found again in the database by its issue id, never guessed; the rest is sent
//! again one by one, so that an item the database cannot take fails alone. Before that an empty call, the probe, shows whether
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
use crate::store::{StoreError, no_answer};

const RECONNECT_PAUSE: Duration = Duration::from_millis(50);
/// After a deadline, the time that is left to find out what a broken call has committed.
const GRACE: Duration = Duration::from_secs(2);
/// What any question may take, however late it is.
const LEAST_PATIENCE: Duration = Duration::from_millis(200);

/// A writer tries again every moment while somebody waits.
static AWAY: Seldom = Seldom::new();
/// A server that fails may fail on every coupon.
static REFUSED: Seldom = Seldom::new();
static FAULTS: Seldom = Seldom::new();

/// Sends batches over one connection, which it makes and replaces as needed.
pub(super) struct Batches {
    connector: Connector,
    current: Option<WriterConnection>,
    /// Connections that broke and whose server process may still be at work.
    broken: Vec<Backend>,
    /// When the batch at hand must be answered, whatever is known of it by then.
    until: Instant,
    /// The database refuses every write, as far as the last call shows. All tasks share it.
    refused: Arc<AtomicBool>,
    meters: Meters,
}

impl Batches {
    pub(super) fn new(connector: Connector, refused: Arc<AtomicBool>, meters: Meters) -> Self {
        Self { connector, current: None, broken: Vec::new(), until: Instant::now(), refused, meters }
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
                let unconfirmed = self.unconfirmed(&error);
                merge(works, std::iter::empty(), |_| unconfirmed.clone())
            }
            Err(error) => {
                tracing::warn!(%error, coupons = coupons.len(), "a batch broke; settling it coupon by coupon");
                self.meters.broken.increment(1);
                merge(works, self.settle(&coupons, deadline).await.into_iter(), |_| Written::Unconfirmed)
            }
        }
    }

    /// What an empty call that broke leaves unconfirmed. Over a connection that is still there, reading again would find the same.
    fn unconfirmed(&self, error: &sqlx::Error) -> Written {
        if self.current.is_none() {
            tracing::warn!(%error, "a flush broke; what it was to confirm is read again");
            return Written::Unconfirmed;
        }
        if took_too_long(error) {
            tracing::warn!(%error, "a flush took too long");
            return Written::Expired;
        }
        self.refuses(error);
        Written::Unavailable
    }

    /// The probe failed over a connection that works: the database takes no writes.
    fn refuses(&self, error: &sqlx::Error) {
        self.refused.store(true, Ordering::Relaxed);
        REFUSED.tell(|times| tracing::error!(%error, times, "the database refuses every write"));
    }

    /// Settles the coupons of a call that broke.
    async fn settle(&mut self, coupons: &[&NewCoupon], deadline: Instant) -> Vec<Written> {
        if coupons.is_empty() {
            return Vec::new();
        }
        let mut written: Vec<Option<Written>> = vec![None; coupons.len()];
        while Instant::now() < deadline + GRACE && self.connected(deadline + GRACE).await {
            match self.settle_once(coupons, &mut written, deadline).await {
                Ok(()) => {
                    return written.into_iter().map(|outcome| outcome.unwrap_or(Written::InDoubt)).collect();
                }
                Err(error) => tracing::warn!(%error, "settling a broken batch was itself cut short; again"),
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
        if let Err(error) = self.call(&[], Expect::All).await {
            if self.current.is_none() || took_too_long(&error) {
                return Err(error);
            }
            self.refuses(&error);
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
                    AWAY.tell(|times| tracing::warn!(%error, times, "a writer cannot reach the database"));
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
            let mut written = vec![Written::InDoubt; coupons.len()];
            for (place, (outcome, code)) in places.into_iter().zip(outcomes.into_iter().zip(codes)) {
                written[place] = meaning(coupons[place], outcome, code);
            }
            Ok(written)
        });
        if result.is_ok() && self.refused.load(Ordering::Relaxed) {
            self.refused.store(false, Ordering::Relaxed);
            tracing::info!("the database takes writes again");
        }
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
            Err(StoreError::Unavailable(error)) => (error, false),
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
    let series_id = coupon.series_id.0;
    match StoreError::from(error) {
        error @ StoreError::ServerFault(_) => {
            FAULTS.tell(|times| tracing::error!(%error, series_id, times, "the database server failed on a coupon"));
            Written::ServerFault
        }
        error => {
            tracing::error!(%error, series_id, "the database cannot take this coupon");
            Written::Failed
        }
    }
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
