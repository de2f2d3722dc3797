use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use uuid::Uuid;

use super::counts::{Counts, Key};
use super::failures::Failures;
use crate::db::activity::{Batch, Count, Failure, WHOLE_ORGANISATION};
use crate::db::{Db, DbError};
use crate::model::{Clock, OrgId};

// At most 500 counts every 250 ms: the database gets two thousand a second.
const COUNT_BATCH_SIZE: usize = 500;
const FAILURE_BATCH_SIZE: usize = 200;
const BATCH_PAUSE: Duration = Duration::from_millis(250);
const MAX_PENDING_COUNTS: usize = 200_000;
const BATCH_TIMEOUT: Duration = Duration::from_secs(5);
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// A batch that the database has rejected this often, while it was reachable, is dropped: it would never succeed.
const MAX_REJECTIONS: u32 = 5;

/// Failures that are kept for each organisation.
const MAX_FAILURES: i64 = 1000;
const TRIM_INTERVAL: Duration = Duration::from_secs(30);

const PURGE_BATCH_SIZE: i64 = 2000;
const PURGE_PAUSE: Duration = Duration::from_millis(100);
const PURGE_TIMEOUT: Duration = Duration::from_secs(10);
const PURGE_INTERVAL: Duration = Duration::from_mins(1);

/// Flushes counts and failures to the database in bounded batches. While the database is away, the counts wait in bounded memory.
pub(super) struct Flusher {
    db: Db,
    clock: Arc<dyn Clock>,
    counts: Arc<Counts>,
    failures: Arc<Failures>,
    writer: Uuid,
    last_number: i64,
    pending: BTreeMap<Key, i64>,
    /// A batch that may or may not be stored. It is sent again unchanged: its number keeps it from being added twice.
    unsettled: Option<Batch>,
    rejections: u32,
    is_away: bool,
    /// Organisations with new failures since the last trim.
    to_trim: BTreeSet<OrgId>,
    trimmed_at: Instant,
}

impl Flusher {
    pub(super) fn new(
        db: Db,
        clock: Arc<dyn Clock>,
        counts: Arc<Counts>,
        failures: Arc<Failures>,
        writer: Uuid,
    ) -> Self {
        Self {
            db,
            clock,
            counts,
            failures,
            writer,
            last_number: 0,
            pending: BTreeMap::new(),
            unsettled: None,
            rejections: 0,
            is_away: false,
            to_trim: BTreeSet::new(),
            trimmed_at: Instant::now(),
        }
    }

    /// Flushes at every interval until `stopped` is true, then flushes the rest.
    pub(super) async fn run(mut self, flush_interval: Duration, mut stopped: watch::Receiver<bool>) {
        let mut ticks = interval(flush_interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                // An error means that the sender is gone: treat it as a stop.
                _ = stopped.wait_for(|stopped| *stopped) => break,
            }
            self.collect();
            while self.flush_batch().await && !*stopped.borrow() {
                let _ = timeout(BATCH_PAUSE, stopped.wait_for(|stopped| *stopped)).await;
            }
            self.trim().await;
        }
        self.collect();
        let flushed = timeout(STOP_TIMEOUT, async { while self.flush_batch().await {} }).await;
        if flushed.is_err() || self.unsettled.is_some() {
            tracing::warn!(
                counts = self.pending.len(),
                "stopped before all activity was flushed: it is missing in the console"
            );
        }
    }

    /// Takes the new counts, and adds them to the series and to their organisation.
    fn collect(&mut self) {
        let Self { counts, pending, .. } = self;
        let mut lost = 0;
        lost += counts.take(|key, entities| {
            let organisation = Key { series_id: WHOLE_ORGANISATION, ..key };
            let keys = [Some(organisation), (key != organisation).then_some(key)];
            for key in keys.into_iter().flatten() {
                if pending.len() < MAX_PENDING_COUNTS || pending.contains_key(&key) {
                    *pending.entry(key).or_default() += i64::from(entities);
                } else {
                    lost += u64::from(entities);
                }
            }
        });
        if lost > 0 {
            tracing::warn!(lost, "activity was lost: too many counts wait for the database");
        }
    }

    /// Returns whether to flush another batch right away.
    async fn flush_batch(&mut self) -> bool {
        let Some(batch) = self.unsettled.take().or_else(|| self.next_batch()) else { return false };
        let added = timeout(BATCH_TIMEOUT, self.db.add_activity(&batch)).await;
        let error = match added {
            Ok(Ok(())) => {
                self.to_trim.extend(batch.failures.iter().map(|failure| failure.caller.org_id));
                self.rejections = 0;
                if std::mem::take(&mut self.is_away) {
                    tracing::info!("activity is flushed again");
                }
                return true;
            }
            Ok(Err(error)) => {
                self.rejections += u32::from(matches!(error, DbError::Failed(_)));
                error.to_string()
            }
            Err(_elapsed) => "the database does not answer in time".to_owned(),
        };
        if self.rejections >= MAX_REJECTIONS {
            tracing::error!(
                error,
                counts = batch.counts.len(),
                "a batch of activity is dropped: the database rejects it repeatedly"
            );
            self.rejections = 0;
            return false;
        }
        if !std::mem::replace(&mut self.is_away, true) {
            tracing::warn!(error, "activity cannot be flushed: it stays in memory until the database accepts it");
        }
        self.unsettled = Some(batch);
        false
    }

    fn next_batch(&mut self) -> Option<Batch> {
        let mut counts = Vec::new();
        while counts.len() < COUNT_BATCH_SIZE
            && let Some((key, entities)) = self.pending.pop_first()
        {
            counts.push(Count {
                org_id: key.org_id,
                series_id: key.series_id,
                minute: Timestamp::from_second(key.minute.saturating_mul(60)).unwrap_or(Timestamp::MIN),
                outcome: key.outcome,
                entities,
            });
        }
        let failures: Vec<Failure> = self.failures.take(FAILURE_BATCH_SIZE);
        if counts.is_empty() && failures.is_empty() {
            return None;
        }
        self.last_number += 1;
        Some(Batch { writer: self.writer, number: self.last_number, at: self.clock.now(), counts, failures })
    }

    async fn trim(&mut self) {
        if self.to_trim.is_empty() || self.trimmed_at.elapsed() < TRIM_INTERVAL {
            return;
        }
        self.trimmed_at = Instant::now();
        let org_ids: Vec<OrgId> = std::mem::take(&mut self.to_trim).into_iter().collect();
        match timeout(BATCH_TIMEOUT, self.db.trim_failures(&org_ids, MAX_FAILURES)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "old failures cannot be deleted now"),
            Err(_elapsed) => tracing::debug!("old failures were not deleted in time"),
        }
    }
}

/// Deletes activity older than `keep`, in small batches, for as long as it is polled. Several replicas may do it at the same time.
pub(super) async fn purge(db: Db, clock: Arc<dyn Clock>, keep: Duration) {
    let keep = SignedDuration::try_from(keep).unwrap_or(SignedDuration::MAX);
    loop {
        let before = clock.now().saturating_sub(keep).unwrap_or(Timestamp::MIN);
        loop {
            match timeout(PURGE_TIMEOUT, db.purge_activity(before, PURGE_BATCH_SIZE)).await {
                Ok(Ok(purged)) if purged >= PURGE_BATCH_SIZE.unsigned_abs() => sleep(PURGE_PAUSE).await,
                Ok(Ok(_)) => break,
                Ok(Err(error)) => {
                    tracing::warn!(%error, "old activity cannot be purged now");
                    break;
                }
                Err(_elapsed) => {
                    tracing::warn!("old activity was not purged in time");
                    break;
                }
            }
        }
        sleep(PURGE_INTERVAL).await;
    }
}
