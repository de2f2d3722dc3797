//! One batch: sent as one call, and, where the call breaks midway, settled item by item.
//!
//! What a broken call has committed is found again in the database by its coupon id, never guessed; the rest is sent
//! again one by one, so that an item the database cannot take fails alone. Before that the probe, an empty call, shows whether
//! the database takes any write at all.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::call::{Expect, Numbered, issue_coupons, meaning};
use super::connection::{Backend, Connector, WriterConnection};
use super::{Code, Guard, KeyHold, KeyedEntity, Meters, NewCoupon, Scope, Work, WriteOutcome};
use crate::db::coupon_ids::CouponIds;
use crate::db::{Claim, DbError, NewClaim, is_fatal, no_answer, told};
use crate::telemetry::throttle::Throttle;
use sqlx::Row;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout, timeout_at};

const RECONNECT_PAUSE: Duration = Duration::from_millis(50);
/// After a deadline, the time that is left to find out what a broken call has committed.
const GRACE: Duration = Duration::from_secs(2);
/// So often is a lease of coupon ids tried for one batch.
const MOST_LEASES: u32 = 3;
/// What any question may take, however late it is.
const LEAST_PATIENCE: Duration = Duration::from_millis(200);

/// A writer tries again every moment while somebody waits.
static AWAY: Throttle = Throttle::new();
/// A server that fails may fail on every batch, and on every coupon.
static BROKEN: Throttle = Throttle::new();
static AGAIN: Throttle = Throttle::new();
static REFUSED: Throttle = Throttle::new();
static FAULTS: Throttle = Throttle::new();
static NOT_TAKEN: Throttle = Throttle::new();

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
    leases: Leases,
    meters: Meters,
}

/// The coupon ids of all tasks of a queue: from one lease, they are nearly in order, and the index on them stays dense.
#[derive(Debug, Clone)]
pub(super) struct Leases {
    ids: Arc<Mutex<CouponIds>>,
    /// How many connections of these tasks broke.
    breaks: Arc<AtomicU64>,
}

impl Leases {
    pub(super) fn new() -> Self {
        Self { ids: Arc::new(Mutex::new(CouponIds::new())), breaks: Arc::default() }
    }
}

impl Batches {
    pub(super) fn new(connector: Connector, suspect: Arc<AtomicBool>, leases: Leases, meters: Meters) -> Self {
        Self { connector, current: None, broken: Vec::new(), until: Instant::now(), suspect, leases, meters }
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
    pub(super) async fn write(&mut self, works: &[Work], deadline: Instant) -> Vec<WriteOutcome> {
        let written = self.send(works, deadline).await;
        self.meters.coupons.written(works, &written);
        written
    }

    async fn send(&mut self, works: &[Work], deadline: Instant) -> Vec<WriteOutcome> {
        self.until = deadline + GRACE;
        if !self.connected(deadline).await {
            return vec![WriteOutcome::Unavailable; works.len()];
        }
        let coupons: Vec<&NewCoupon> = works.iter().filter_map(coupon).collect();
        let coupons = match self.number(&coupons, deadline).await {
            Ok(numbered) => numbered,
            Err(outcome) => {
                return merge(works, std::iter::repeat_n(outcome, coupons.len()), |_| WriteOutcome::NotFlushed);
            }
        };
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
                BROKEN.log(|suppressed| {
                    tracing::warn!(
                        error,
                        coupons = coupons_sent,
                        suppressed,
                        "a batch broke; settling it coupon by coupon"
                    );
                });
                self.meters.broken.increment(1);
                merge(works, self.settle(&coupons, deadline).await.into_iter(), |_| WriteOutcome::NotFlushed)
            }
        }
    }

    /// Gives each coupon its id. An error: what becomes of all of them, since no ids are to be had. Nothing is stored then.
    async fn number<'c>(
        &mut self,
        coupons: &[&'c NewCoupon],
        deadline: Instant,
    ) -> Result<Vec<Numbered<'c>>, WriteOutcome> {
        let reserved = reserved_by_claims(coupons);
        let count = coupons.iter().filter(|coupon| !matches!(coupon.scope, Scope::Key(_))).count()
            + reserved.values().sum::<usize>();
        let leases = self.leases.clone();
        for _ in 0..MOST_LEASES {
            let mut ids = leases.ids.lock().await;
            let Err(error) = self.lease_ids(&mut ids, count).await else {
                let take = |count| ids.take(i64::try_from(count).ok()?);
                return numbered(coupons, &reserved, take).ok_or(WriteOutcome::Unavailable);
            };
            drop(ids);
            let reason = told(&error);
            BROKEN.log(|suppressed| tracing::warn!(error = reason, suppressed, "a lease of coupon ids failed"));
            if self.current.is_some() && took_too_long(&error) {
                return Err(WriteOutcome::TimedOut);
            }
            if matches!(self.is_refused(Err(error)).await, Ok(true)) || !self.connected(deadline).await {
                return Err(WriteOutcome::Unavailable);
            }
        }
        Err(WriteOutcome::Unavailable)
    }

    async fn lease_ids(&mut self, ids: &mut CouponIds, count: usize) -> Result<(), sqlx::Error> {
        if count == 0 {
            return Ok(());
        }
        let patience = self.patience();
        let Some(writer) = &mut self.current else { return Err(sqlx::Error::PoolClosed) };
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        let breaks = self.leases.breaks.load(Ordering::Relaxed);
        let leased = timeout(patience, ids.ensure(count, breaks, &mut writer.connection)).await;
        self.checked(leased.unwrap_or_else(|_| Err(no_answer()))).await
    }

    /// The outcome of barriers whose flush failed.
    async fn unconfirmed(&mut self, error: sqlx::Error) -> WriteOutcome {
        let reason = told(&error);
        if self.current.is_some() && took_too_long(&error) {
            BROKEN.log(|suppressed| tracing::warn!(error = reason, suppressed, "a flush took too long"));
            return WriteOutcome::TimedOut;
        }
        if matches!(self.is_refused(Err(error)).await, Ok(true)) {
            return WriteOutcome::Unavailable;
        }
        BROKEN.log(|suppressed| {
            tracing::warn!(error = reason, suppressed, "a flush broke; what it was to confirm is read again");
        });
        WriteOutcome::NotFlushed
    }

    /// Whether the database refuses every write. If the probe failed over a living session, a new one is probed: the old session may
    /// hold a stale type.
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
        REFUSED.log(|suppressed| tracing::error!(error, suppressed, "the database refuses every write"));
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
    async fn settle(&mut self, coupons: &[Numbered<'_>], deadline: Instant) -> Vec<WriteOutcome> {
        let mut written: Vec<Option<WriteOutcome>> = vec![None; coupons.len()];
        while Instant::now() < deadline + GRACE && self.connected(deadline + GRACE).await {
            match self.settle_once(coupons, &mut written, deadline).await {
                Ok(()) => {
                    return written.into_iter().map(|outcome| outcome.unwrap_or(WriteOutcome::InDoubt)).collect();
                }
                Err(error) => {
                    let error = told(&error);
                    AGAIN.log(|suppressed| {
                        tracing::warn!(error, suppressed, "settling a broken batch was itself cut short; again");
                    });
                }
            }
            sleep(RECONNECT_PAUSE).await;
        }
        // A coupon that was found, but perhaps not flushed, is as much in doubt as one that was not.
        let certain = |outcome: Option<WriteOutcome>| outcome.filter(|known| !is_issued(known));
        let written: Vec<WriteOutcome> =
            written.into_iter().map(|one| certain(one).unwrap_or(WriteOutcome::InDoubt)).collect();
        let in_doubt = written.iter().filter(|outcome| **outcome == WriteOutcome::InDoubt).count();
        tracing::error!(in_doubt, "the database did not come back in time to settle a broken batch");
        written
    }

    /// Finds what is committed, sends the rest one by one, and flushes. An error: the connection broke again, or a flush took
    /// too long.
    async fn settle_once(
        &mut self,
        coupons: &[Numbered<'_>],
        written: &mut [Option<WriteOutcome>],
        deadline: Instant,
    ) -> Result<(), sqlx::Error> {
        let found = self.find_committed(coupons).await?;
        let probed = self.probe().await;
        if self.is_refused(probed).await? {
            // What is found may not be flushed.
            for (coupon, outcome) in coupons.iter().zip(written.iter_mut()) {
                let is_found = found.contains_key(&coupon.coupon_id);
                *outcome = Some(if is_found { WriteOutcome::InDoubt } else { WriteOutcome::Unavailable });
            }
            return Ok(());
        }
        for (coupon, outcome) in coupons.iter().zip(written.iter_mut()) {
            *outcome = match (found.get(&coupon.coupon_id), outcome.take()) {
                (Some(found), _) => Some(found.clone()),
                // Issued in an earlier pass and not there: a crash has taken it back before it was flushed.
                (None, Some(decided)) if !is_issued(&decided) => Some(decided),
                (None, _) if Instant::now() >= deadline => Some(WriteOutcome::TimedOut),
                (None, _) => Some(self.send_alone(*coupon).await?),
            };
        }
        self.call(&[], Expect::All).await.map(drop)
    }

    /// Sends one coupon. An error: the connection broke.
    async fn send_alone(&mut self, coupon: Numbered<'_>) -> Result<WriteOutcome, sqlx::Error> {
        match self.call(&[coupon], Expect::All).await {
            Ok(one) => Ok(one.into_iter().next().unwrap_or(WriteOutcome::InDoubt)),
            Err(error) if self.current.is_none() => Err(error),
            Err(error) => {
                // It may be committed, and only what came after it have failed.
                if let Some(found) = self.find_committed(&[coupon]).await?.remove(&coupon.coupon_id) {
                    return Ok(found);
                }
                if took_too_long(&error) {
                    return Ok(WriteOutcome::TimedOut);
                }
                Ok(refusal(coupon.coupon, error))
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
                    AWAY.log(|suppressed| tracing::warn!(error, suppressed, "a writer cannot reach the database"));
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
    async fn call(&mut self, coupons: &[Numbered<'_>], expect: Expect) -> Result<Vec<WriteOutcome>, sqlx::Error> {
        let patience = self.patience();
        let Some(writer) = &mut self.current else { return Err(sqlx::Error::PoolClosed) };
        let mut places: Vec<usize> = (0..coupons.len()).collect();
        places.sort_by_key(|place| {
            let coupon = coupons[*place].coupon;
            (coupon.org_id.0, coupon.series_id.0)
        });
        let sorted: Vec<Numbered<'_>> = places.iter().map(|place| coupons[*place]).collect();
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
            let mut written = vec![WriteOutcome::InDoubt; coupons.len()];
            for (place, (outcome, code)) in places.into_iter().zip(outcomes.into_iter().zip(codes)) {
                written[place] = meaning(&coupons[place], outcome, code);
            }
            Ok(written)
        });
        self.checked(result).await
    }

    /// What the database has under the ids of these coupons, by id: each of them as it was sent, or what was issued in its place.
    async fn find_committed(&mut self, coupons: &[Numbered<'_>]) -> Result<HashMap<i64, WriteOutcome>, sqlx::Error> {
        let patience = self.patience();
        let Some(writer) = &mut self.current else { return Err(sqlx::Error::PoolClosed) };
        let query = sqlx::query_as(
            "select c.coupon_id, c.series_id, c.customer_id, c.issued_at, c.code, coalesce(c.uploaded_code, c.code)
               from unnest($1::bigint[], $2::bigint[]) as sent (org_id, coupon_id)
               join coupon c using (org_id, coupon_id)",
        )
        .bind(coupons.iter().map(|numbered| numbered.coupon.org_id.0).collect::<Vec<_>>())
        .bind(coupons.iter().map(|numbered| numbered.coupon_id).collect::<Vec<_>>());
        let found = timeout(patience, query.fetch_all(&mut writer.connection)).await;
        let rows: Vec<Committed> = self.checked(found.unwrap_or_else(|_| Err(no_answer()))).await?;
        let mut rows: HashMap<i64, Committed> = rows.into_iter().map(|row| (row.0, row)).collect();
        let outcome = |numbered: &Numbered<'_>| {
            let row = rows.remove(&numbered.coupon_id)?;
            Some((numbered.coupon_id, found_as(numbered, row)))
        };
        Ok(coupons.iter().filter_map(outcome).collect())
    }

    /// After an error, gives the connection up, unless it was only the statement that failed: its server process is then
    /// ended before anything is counted.
    async fn checked<T>(&mut self, result: Result<T, sqlx::Error>) -> Result<T, sqlx::Error> {
        let (error, is_statements) = match result.map_err(DbError::from) {
            Ok(done) => return Ok(done),
            Err(DbError::Failed(error) | DbError::ServerFault(error) | DbError::TookTooLong(error)) => (error, true),
            // The session of a database that only reads is still there; the probe looks whether a new one may write.
            Err(DbError::Unavailable(error)) => {
                let is_statements = error.as_database_error().is_some_and(|error| !is_fatal(error));
                (error, is_statements)
            }
        };
        if !(is_statements && self.unlock().await) {
            self.leases.breaks.fetch_add(1, Ordering::Relaxed);
            self.broken.extend(self.current.take().map(|broken| broken.backend));
        }
        Err(error)
    }

    /// Gives back the locks that a failed call leaves with its session (`issue_coupons_1`).
    async fn unlock(&mut self) -> bool {
        let patience = self.patience();
        let Some(writer) = &mut self.current else { return false };
        let unlock = sqlx::query("select pg_advisory_unlock_all()").execute(&mut writer.connection);
        matches!(timeout(patience, unlock).await, Ok(Ok(_)))
    }
}

/// A coupon under an id that was looked for: the id, the series, the customer, the instant, the code as it is compared and as it is
/// shown.
type Committed = (i64, i64, String, jiff_sqlx::Timestamp, Option<String>, Option<String>);

/// Whether what is under a coupon's id is that coupon. It is compared in full: another attempt under the same key issues under the
/// same id, and a server that took over may have lost a lease.
fn found_as(numbered: &Numbered<'_>, row: Committed) -> WriteOutcome {
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

/// The claims that are stored together with these coupons, each with the number of its entities: by the address of its key, since
/// all coupons of one attempt share that.
fn reserved_by_claims(coupons: &[&NewCoupon]) -> HashMap<usize, usize> {
    let claimed_here = |coupon: &&NewCoupon| match &coupon.scope {
        Scope::Key(KeyedEntity { key, hold: KeyHold::ClaimedWith(_), .. }) => Some((address(key), key.entities)),
        Scope::Key(_) | Scope::Natural(_) | Scope::None => None,
    };
    coupons.iter().filter_map(claimed_here).collect()
}

/// The coupons with their ids. `None`: `take` has not enough of them.
fn numbered<'c>(
    coupons: &[&'c NewCoupon],
    reserved: &HashMap<usize, usize>,
    mut take: impl FnMut(usize) -> Option<i64>,
) -> Option<Vec<Numbered<'c>>> {
    let mut claims = HashMap::with_capacity(reserved.len());
    for (key, entities) in reserved {
        let entities = *entities;
        claims.insert(*key, Claim { first_coupon_id: take(entities)?, attempt: 0 });
    }
    let number = |coupon: &&'c NewCoupon| {
        let (coupon_id, claim) = match &coupon.scope {
            Scope::Key(KeyedEntity { key, place, hold }) => {
                let claim = match hold {
                    KeyHold::ClaimedWith(_) => *claims.get(&address(key))?,
                    KeyHold::Acquired(claim) | KeyHold::Resumed(claim) => *claim,
                };
                (claim.coupon_id(*place), Some(claim))
            }
            Scope::None | Scope::Natural(_) => (take(1)?, None),
        };
        Some(Numbered { coupon, coupon_id, claim })
    };
    coupons.iter().map(number).collect()
}

fn address(key: &Arc<NewClaim>) -> usize {
    Arc::as_ptr(key).addr()
}

const fn is_issued(outcome: &WriteOutcome) -> bool {
    matches!(outcome, WriteOutcome::Issued { .. })
}

/// What it means that the database cannot take a coupon that was sent alone, and that is not stored.
fn refusal(coupon: &NewCoupon, error: sqlx::Error) -> WriteOutcome {
    let (series_id, reason) = (coupon.series_id.0, told(&error));
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    if matches!(code.as_deref(), Some("40P01" | "40001")) {
        return WriteOutcome::GuardFailed(Guard::Conflict);
    }
    if matches!(DbError::from(error), DbError::Failed(_)) {
        NOT_TAKEN.log(|suppressed| {
            tracing::error!(error = reason, series_id, suppressed, "the database cannot take this coupon");
        });
        return WriteOutcome::Refused;
    }
    FAULTS.log(|suppressed| {
        tracing::error!(error = reason, series_id, suppressed, "the database server failed on a coupon");
    });
    WriteOutcome::ServerFault
}

/// Flushed if the connection is older than the read. Otherwise a crash in between may have undone what was read.
fn confirmed(made_at: Option<Instant>, read_since: Instant) -> WriteOutcome {
    if made_at.is_some_and(|made_at| made_at <= read_since) { WriteOutcome::Flushed } else { WriteOutcome::NotFlushed }
}

/// Whether Postgres gave a statement up by its own clock: the statement's, or that of a lock it waited for.
fn took_too_long(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    matches!(code.as_deref(), Some("57014" | "55P03"))
}

const fn coupon(work: &Work) -> Option<&NewCoupon> {
    match work {
        Work::Issue(coupon) => Some(coupon),
        Work::FlushBarrier(_) => None,
    }
}

/// Puts what became of the coupons back between the works that were none.
fn merge(
    works: &[Work],
    mut written: impl Iterator<Item = WriteOutcome>,
    confirmed: impl Fn(Instant) -> WriteOutcome,
) -> Vec<WriteOutcome> {
    works
        .iter()
        .map(|work| match work {
            Work::Issue(_) => written.next().unwrap_or(WriteOutcome::InDoubt),
            Work::FlushBarrier(read_since) => confirmed(*read_since),
        })
        .collect()
}
