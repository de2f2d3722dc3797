//! Writes a batch as one call. If the call fails midway, the batch is settled: the coupons that it has committed are looked up by their
//! ids, and the others are sent again one by one, so that a coupon which the database cannot take fails alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use sqlx::error::DatabaseError;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};

use super::connection::Connector;
use super::coupon::NewCoupon;
use super::metrics::QueueMetrics;
use super::numbering::{IdDemand, NumberedCoupon};
use super::outcome::{Guard, WriteOutcome};
use super::procedure::Reported;
use super::session::{RECONNECT_PAUSE, Session};
use super::work::{AttemptEnd, Work};
use crate::db::coupon_ids::CouponIdLease;
use crate::db::error::{DbError, describe, is_cancelled};
use crate::telemetry::throttle::Throttle;

/// How long after its deadline a batch may still be settled.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(2);
const MAX_LEASE_ATTEMPTS: u32 = 3;

static BROKEN: Throttle = Throttle::new();
static INTERRUPTED: Throttle = Throttle::new();
static SERVER_FAULTS: Throttle = Throttle::new();
static REFUSED_COUPONS: Throttle = Throttle::new();

/// Writes the batches of one task.
pub(super) struct BatchWriter {
    session: Session,
    ids: SharedIdLease,
    metrics: QueueMetrics,
}

/// The coupon ids of all tasks of a queue. Taken from one lease they are nearly in order, which keeps the index on them dense.
#[derive(Debug, Clone)]
pub(super) struct SharedIdLease {
    lease: Arc<Mutex<CouponIdLease>>,
    broken_connections: Arc<AtomicU64>,
}

impl SharedIdLease {
    pub(super) fn new() -> Self {
        Self { lease: Arc::new(Mutex::new(CouponIdLease::empty())), broken_connections: Arc::default() }
    }
}

impl BatchWriter {
    pub(super) fn new(
        connector: Connector,
        is_suspect: Arc<AtomicBool>,
        ids: SharedIdLease,
        metrics: QueueMetrics,
    ) -> Self {
        let session = Session::new(connector, is_suspect, Arc::clone(&ids.broken_connections));
        Self { session, ids, metrics }
    }

    pub(super) const fn metrics(&self) -> &QueueMetrics {
        &self.metrics
    }

    pub(super) async fn close(self) {
        self.session.close().await;
    }

    /// Does all works and returns their outcomes in the same order.
    pub(super) async fn write(&mut self, works: &[Work], deadline: Instant) -> Vec<WriteOutcome> {
        let outcomes = self.send(works, deadline).await;
        self.metrics.coupons.add(works, &outcomes);
        outcomes
    }

    async fn send(&mut self, works: &[Work], deadline: Instant) -> Vec<WriteOutcome> {
        self.session.set_answer_by(deadline + SETTLE_TIMEOUT);
        if !self.session.ensure_connected(deadline).await {
            return vec![WriteOutcome::Unavailable; works.len()];
        }
        let coupons: Vec<&NewCoupon> = works.iter().filter_map(Work::coupon).collect();
        if coupons.is_empty() {
            return self.end_and_flush(works).await;
        }
        let coupons = match self.number(&coupons, deadline).await {
            Ok(numbered) => numbered,
            Err(outcome) => return vec![outcome; works.len()],
        };
        let began = Instant::now();
        let issued = self.session.issue(&coupons, Reported::Guarded).await;
        self.metrics.batch_duration.record(began.elapsed());
        match issued {
            Ok(outcomes) => outcomes,
            Err(error) => {
                let (error, coupon_count) = (describe(&error), coupons.len());
                BROKEN.log(|suppressed| {
                    tracing::warn!(
                        error,
                        coupons = coupon_count,
                        suppressed,
                        "a batch broke; settling it coupon by coupon"
                    );
                });
                self.metrics.broken_batches.increment(1);
                self.settle(&coupons, deadline).await
            }
        }
    }

    /// The works of a batch without coupons: ends the attempts, and flushes that and everything that was read, if somebody waits for it.
    async fn end_and_flush(&mut self, works: &[Work]) -> Vec<WriteOutcome> {
        let began = Instant::now();
        let done = self.try_end_and_flush(works).await;
        self.metrics.batch_duration.record(began.elapsed());
        let ended = match done {
            Ok(ended) => ended,
            Err(error) => {
                self.metrics.broken_batches.increment(1);
                return vec![self.failed_flush(error).await; works.len()];
            }
        };
        // If the connection is newer than the read, a crash in between may have undone what was read.
        let connected_at = self.session.connected_at();
        let mut ended = ended.into_iter();
        let outcome = |work: &Work| {
            let is_certain =
                work.read_since().is_none_or(|since| connected_at.is_some_and(|connected| connected <= since));
            match work.attempt_end().map(|_| ended.next().unwrap_or(WriteOutcome::NotFlushed)) {
                None | Some(WriteOutcome::Flushed) if !is_certain => WriteOutcome::NotFlushed,
                None => WriteOutcome::Flushed,
                Some(outcome) => outcome,
            }
        };
        works.iter().map(outcome).collect()
    }

    /// The outcome of each end. If only they fail, everything else is flushed all the same.
    async fn try_end_and_flush(&mut self, works: &[Work]) -> Result<Vec<WriteOutcome>, sqlx::Error> {
        let ends: Vec<&AttemptEnd> = works.iter().filter_map(Work::attempt_end).collect();
        let outcome = |has_ended| if has_ended { WriteOutcome::Flushed } else { WriteOutcome::KeyNotClaimed };
        let ended = if ends.is_empty() { Ok(Vec::new()) } else { self.session.end_attempts(&ends).await };
        let ended = match ended {
            Ok(ended) => ended.into_iter().map(outcome).collect(),
            Err(error) if self.session.is_connected() => vec![self.failed_flush(error).await; ends.len()],
            Err(error) => return Err(error),
        };
        if works.iter().any(|work| work.read_since().is_some()) {
            self.session.flush().await?;
        }
        Ok(ended)
    }

    /// Gives each coupon its id. An error: no ids could be leased; it is the outcome of every coupon, and nothing is stored.
    async fn number<'c>(
        &mut self,
        coupons: &[&'c NewCoupon],
        deadline: Instant,
    ) -> Result<Vec<NumberedCoupon<'c>>, WriteOutcome> {
        let demand = IdDemand::of(coupons);
        let ids = self.ids.clone();
        for _ in 0..MAX_LEASE_ATTEMPTS {
            let mut lease = ids.lease.lock().await;
            let Err(error) = self.session.lease_ids(&mut lease, demand.count()).await else {
                let take = |count| lease.take(i64::try_from(count).ok()?);
                return demand.number(coupons, take).ok_or(WriteOutcome::Unavailable);
            };
            drop(lease);
            let reason = describe(&error);
            BROKEN.log(|suppressed| tracing::warn!(error = reason, suppressed, "a lease of coupon ids failed"));
            if self.session.is_connected() && is_cancelled(&error) {
                return Err(WriteOutcome::TimedOut);
            }
            let is_refused = matches!(self.session.is_refused(Err(error)).await, Ok(true));
            if is_refused || !self.session.ensure_connected(deadline).await {
                return Err(WriteOutcome::Unavailable);
            }
        }
        Err(WriteOutcome::Unavailable)
    }

    /// The outcome of works whose flush failed.
    async fn failed_flush(&mut self, error: sqlx::Error) -> WriteOutcome {
        let reason = describe(&error);
        if self.session.is_connected() && is_cancelled(&error) {
            BROKEN.log(|suppressed| tracing::warn!(error = reason, suppressed, "a flush took too long"));
            return WriteOutcome::TimedOut;
        }
        if matches!(self.session.is_refused(Err(error)).await, Ok(true)) {
            return WriteOutcome::Unavailable;
        }
        BROKEN.log(|suppressed| {
            tracing::warn!(error = reason, suppressed, "a flush failed; reading again what it was to confirm");
        });
        WriteOutcome::NotFlushed
    }

    /// Settles the coupons of a failed call.
    async fn settle(&mut self, coupons: &[NumberedCoupon<'_>], deadline: Instant) -> Vec<WriteOutcome> {
        let settle_by = deadline + SETTLE_TIMEOUT;
        for numbered in coupons {
            if let (Some(key), Some(claim)) = (numbered.coupon.claims_key(), numbered.claim) {
                key.possible_claim.get_or_init(|| claim);
            }
        }
        let mut outcomes: Vec<Option<WriteOutcome>> = vec![None; coupons.len()];
        while Instant::now() < settle_by && self.session.ensure_connected(settle_by).await {
            match self.settle_once(coupons, &mut outcomes, deadline).await {
                Ok(()) => {
                    return outcomes.into_iter().map(|outcome| outcome.unwrap_or(WriteOutcome::InDoubt)).collect();
                }
                Err(error) => {
                    let error = describe(&error);
                    INTERRUPTED.log(|suppressed| {
                        tracing::warn!(error, suppressed, "settling a broken batch was interrupted; trying again");
                    });
                }
            }
            sleep(RECONNECT_PAUSE).await;
        }
        // A coupon that was found may not be flushed: it is in doubt like one that was not found.
        let certain = |outcome: Option<WriteOutcome>| outcome.filter(|outcome| !is_issued(outcome));
        let outcomes: Vec<WriteOutcome> =
            outcomes.into_iter().map(|outcome| certain(outcome).unwrap_or(WriteOutcome::InDoubt)).collect();
        let in_doubt = outcomes.iter().filter(|outcome| **outcome == WriteOutcome::InDoubt).count();
        tracing::error!(in_doubt, "the database did not come back in time to settle a broken batch");
        outcomes
    }

    /// Looks up what is committed, sends the rest one by one, and flushes. An error: the connection broke again, or a flush was
    /// cancelled.
    async fn settle_once(
        &mut self,
        coupons: &[NumberedCoupon<'_>],
        outcomes: &mut [Option<WriteOutcome>],
        deadline: Instant,
    ) -> Result<(), sqlx::Error> {
        let committed = self.session.find_committed(coupons).await?;
        let probed = self.session.probe().await;
        if self.session.is_refused(probed).await? {
            // Committed coupons may not be flushed.
            for (coupon, outcome) in coupons.iter().zip(outcomes.iter_mut()) {
                let is_committed = committed.contains_key(&coupon.coupon_id);
                *outcome = Some(if is_committed { WriteOutcome::InDoubt } else { WriteOutcome::Unavailable });
            }
            return Ok(());
        }
        for (coupon, outcome) in coupons.iter().zip(outcomes.iter_mut()) {
            *outcome = match (committed.get(&coupon.coupon_id), outcome.take()) {
                (Some(found), _) => Some(found.clone()),
                // If an earlier pass issued the coupon and it is gone, a crash undid it before the flush: it is sent again.
                (None, Some(decided)) if !is_issued(&decided) => Some(decided),
                (None, _) if Instant::now() >= deadline => Some(WriteOutcome::TimedOut),
                (None, _) => Some(self.send_alone(*coupon).await?),
            };
        }
        self.session.flush().await
    }

    /// Sends one coupon. An error: the connection broke.
    async fn send_alone(&mut self, coupon: NumberedCoupon<'_>) -> Result<WriteOutcome, sqlx::Error> {
        match self.session.issue(&[coupon], Reported::All).await {
            Ok(outcomes) => Ok(outcomes.into_iter().next().unwrap_or(WriteOutcome::InDoubt)),
            Err(error) if !self.session.is_connected() => Err(error),
            Err(error) => {
                // The coupon may be committed although the call failed: the flush comes after the commit.
                if let Some(found) = self.session.find_committed(&[coupon]).await?.remove(&coupon.coupon_id) {
                    return Ok(found);
                }
                if is_cancelled(&error) {
                    return Ok(WriteOutcome::TimedOut);
                }
                Ok(refusal(coupon.coupon, error))
            }
        }
    }
}

const fn is_issued(outcome: &WriteOutcome) -> bool {
    matches!(outcome, WriteOutcome::Issued { .. })
}

/// The outcome of a coupon that was sent alone, caused this error and is not stored.
fn refusal(coupon: &NewCoupon, error: sqlx::Error) -> WriteOutcome {
    let (series_id, reason) = (coupon.series_id.0, describe(&error));
    let code = error.as_database_error().and_then(DatabaseError::code);
    if matches!(code.as_deref(), Some("40P01" | "40001")) {
        return WriteOutcome::GuardFailed(Guard::Conflict);
    }
    if matches!(DbError::from(error), DbError::Failed(_)) {
        REFUSED_COUPONS.log(|suppressed| {
            tracing::error!(error = reason, series_id, suppressed, "the database cannot take this coupon");
        });
        return WriteOutcome::Refused;
    }
    SERVER_FAULTS.log(|suppressed| {
        tracing::error!(error = reason, series_id, suppressed, "the database server failed on a coupon");
    });
    WriteOutcome::ServerFault
}
