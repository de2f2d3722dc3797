//! The task that adds what was counted to the database, a bounded batch at a time; and the one that takes away what is old.
//! While the database is away the counts wait here, in bounded memory. A batch whose answer was lost is sent again as it was.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use uuid::Uuid;

use super::Activity;
use super::counts::Key;
use crate::db::activity::{Batch, Count, Failure, WHOLE_ORGANISATION};
use crate::db::{Db, DbError};
use crate::model::{Clock, OrgId};

/// Counts in one batch, and the pause before the next: two thousand a second is what the database is asked for at most.
const COUNTS_AT_ONCE: usize = 500;
const FAILURES_AT_ONCE: usize = 200;
const BETWEEN_BATCHES: Duration = Duration::from_millis(250);
/// Counts that may wait.
const MOST_WAITING: usize = 200_000;
/// How long the database may take for one batch, and for all that is left at a stop.
const BATCH_WITHIN: Duration = Duration::from_secs(5);
const STOP_WITHIN: Duration = Duration::from_secs(5);
/// What the database refuses so often, while it is there, it will never take.
const MOST_REFUSED: u32 = 5;

/// Failures of an organisation that are kept, and how often the others are taken away.
const MOST_FAILURES: i64 = 1000;
const TRIM_EVERY: Duration = Duration::from_secs(30);

/// What is taken away in one step, the pause before the next, how long one may take, and how often it is looked for.
const FORGET_AT_ONCE: i64 = 2000;
const BETWEEN_STEPS: Duration = Duration::from_millis(100);
const FORGET_WITHIN: Duration = Duration::from_secs(10);
const FORGET_EVERY: Duration = Duration::from_mins(1);

/// Adds counts to the database.
pub(super) struct Keeper {
    activity: Arc<Activity>,
    writer: Uuid,
    last_number: i64,
    waiting: BTreeMap<Key, i64>,
    /// What was sent, and perhaps not added.
    unsettled: Option<Batch>,
    times_refused: u32,
    is_away: bool,
    /// Those whose list of failures has grown.
    to_trim: BTreeSet<OrgId>,
    trimmed_at: Instant,
}

impl Keeper {
    pub(super) fn new(activity: Arc<Activity>, writer: Uuid) -> Self {
        Self {
            activity,
            writer,
            last_number: 0,
            waiting: BTreeMap::new(),
            unsettled: None,
            times_refused: 0,
            is_away: false,
            to_trim: BTreeSet::new(),
            trimmed_at: Instant::now(),
        }
    }

    /// Goes on until it is told to stop; then adds what is left.
    pub(super) async fn run(mut self, every: Duration, mut stopped: watch::Receiver<bool>) {
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                // Nobody who could stop it is left: as good as stopped.
                _ = stopped.wait_for(|stopped| *stopped) => break,
            }
            self.collect();
            while self.add_some().await && !*stopped.borrow() {
                let _ = timeout(BETWEEN_BATCHES, stopped.wait_for(|stopped| *stopped)).await;
            }
            self.trim().await;
        }
        self.collect();
        let added = timeout(STOP_WITHIN, async { while self.add_some().await {} }).await;
        if added.is_err() || self.unsettled.is_some() {
            tracing::warn!(counts = self.waiting.len(), "stopped before all activity was added; the console misses it");
        }
    }

    /// Takes what was counted, for the series and for their organisation.
    fn collect(&mut self) {
        let Self { activity, waiting, .. } = self;
        let mut lost = 0;
        lost += activity.counts.take(|key, entities| {
            let whole = Key { series_id: WHOLE_ORGANISATION, ..key };
            let both = [Some(whole), (key != whole).then_some(key)];
            for key in both.into_iter().flatten() {
                if waiting.len() < MOST_WAITING || waiting.contains_key(&key) {
                    *waiting.entry(key).or_default() += i64::from(entities);
                } else {
                    lost += u64::from(entities);
                }
            }
        });
        if lost > 0 {
            tracing::warn!(lost, "activity was not counted: there is no room for more that waits to be added");
        }
    }

    /// Adds a batch; whether there is another to be added right away.
    async fn add_some(&mut self) -> bool {
        let Some(batch) = self.unsettled.take().or_else(|| self.next_batch()) else { return false };
        let added = timeout(BATCH_WITHIN, self.activity.db.add_activity(&batch)).await;
        let error = match added {
            Ok(Ok(())) => {
                self.to_trim.extend(batch.failures.iter().map(|failure| failure.caller.org_id));
                self.times_refused = 0;
                if std::mem::take(&mut self.is_away) {
                    tracing::info!("activity is added again");
                }
                return true;
            }
            Ok(Err(error)) => {
                self.times_refused += u32::from(matches!(error, DbError::Failed(_)));
                error.to_string()
            }
            Err(_elapsed) => "the database does not answer in time".to_owned(),
        };
        if self.times_refused >= MOST_REFUSED {
            tracing::error!(error, counts = batch.counts.len(), "activity cannot be added, and is given up");
            self.times_refused = 0;
            return false;
        }
        if !std::mem::replace(&mut self.is_away, true) {
            tracing::warn!(error, "activity cannot be added now; it waits");
        }
        self.unsettled = Some(batch);
        false
    }

    fn next_batch(&mut self) -> Option<Batch> {
        let mut counts = Vec::new();
        while counts.len() < COUNTS_AT_ONCE
            && let Some((key, entities)) = self.waiting.pop_first()
        {
            counts.push(Count {
                org_id: key.org_id,
                series_id: key.series_id,
                minute: Timestamp::from_second(key.minute.saturating_mul(60)).unwrap_or(Timestamp::MIN),
                outcome: key.outcome,
                entities,
            });
        }
        let failures: Vec<Failure> = self.activity.failures.take(FAILURES_AT_ONCE);
        if counts.is_empty() && failures.is_empty() {
            return None;
        }
        self.last_number += 1;
        Some(Batch { writer: self.writer, number: self.last_number, at: self.activity.clock.now(), counts, failures })
    }

    async fn trim(&mut self) {
        if self.to_trim.is_empty() || self.trimmed_at.elapsed() < TRIM_EVERY {
            return;
        }
        self.trimmed_at = Instant::now();
        let of: Vec<OrgId> = std::mem::take(&mut self.to_trim).into_iter().collect();
        match timeout(BATCH_WITHIN, self.activity.db.trim_failures(&of, MOST_FAILURES)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "old failures cannot be taken away now"),
            Err(_elapsed) => tracing::debug!("old failures were not taken away in time"),
        }
    }
}

/// Takes away what is older, now and then, in small steps. Several replicas that do it at once are not in each other's way.
pub(super) async fn forget(db: Db, clock: Arc<dyn Clock>, keep: Duration) {
    let keep = SignedDuration::try_from(keep).unwrap_or(SignedDuration::MAX);
    loop {
        let before = clock.now().saturating_sub(keep).unwrap_or(Timestamp::MIN);
        loop {
            match timeout(FORGET_WITHIN, db.forget_activity(before, FORGET_AT_ONCE)).await {
                Ok(Ok(forgotten)) if forgotten >= FORGET_AT_ONCE.unsigned_abs() => sleep(BETWEEN_STEPS).await,
                Ok(Ok(_)) => break,
                Ok(Err(error)) => {
                    tracing::warn!(%error, "old activity cannot be taken away now");
                    break;
                }
                Err(_elapsed) => {
                    tracing::warn!("old activity was not taken away in time");
                    break;
                }
            }
        }
        sleep(FORGET_EVERY).await;
    }
}
