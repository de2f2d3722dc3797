use std::sync::Arc;

use tokio::sync::{Semaphore, watch};
use tokio::task::{AbortHandle, JoinHandle};
use uuid::Uuid;

use super::counts::Counts;
use super::failures::Failures;
use super::flusher::{Flusher, purge};
use crate::config::ActivitySettings;
use crate::db::Db;
use crate::db::activity::{Failure, WHOLE_ORGANISATION};
use crate::model::{Caller, Clock, SeriesId};

/// Overviews that may be read at the same time: they take connections that issuing needs, too.
const MAX_OVERVIEWS: usize = 2;

/// The outcome of one entity of a request.
#[derive(Debug, Clone, Copy)]
pub struct EntityOutcome {
    /// As in the request.
    pub series_id: SeriesId,
    /// The name it is counted under.
    pub outcome: &'static str,
    /// Whether the caller got a coupon.
    pub kind: OutcomeKind,
}

/// Whether an entity got a coupon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutcomeKind {
    /// A coupon, new or not.
    Granted,
    /// No coupon.
    Refused,
    /// No coupon, because the series does not exist. Counted for the organisation only: callers could otherwise fill the memory
    /// with invented ids.
    NoSuchSeries,
}

/// Records outcomes in memory, and reads the overview from the database.
pub struct Activity {
    pub(super) db: Db,
    pub(super) clock: Arc<dyn Clock>,
    counts: Arc<Counts>,
    failures: Arc<Failures>,
    is_enabled: bool,
    pub(super) overview_slots: Semaphore,
}

/// The tasks that write to the database in the background.
pub struct ActivityTasks {
    stop: watch::Sender<bool>,
    flush: Option<JoinHandle<()>>,
    purge: Option<AbortHandle>,
}

impl Activity {
    /// Starts recording. Needs a runtime. `writer` identifies this process.
    #[must_use]
    pub fn start(
        db: Db,
        clock: Arc<dyn Clock>,
        writer: Uuid,
        settings: ActivitySettings,
    ) -> (Arc<Self>, ActivityTasks) {
        let activity = Arc::new(Self {
            db: db.clone(),
            clock: Arc::clone(&clock),
            counts: Arc::new(Counts::new()),
            failures: Arc::new(Failures::new()),
            is_enabled: !settings.flush.is_zero(),
            overview_slots: Semaphore::new(MAX_OVERVIEWS),
        });
        let (stop, stopped) = watch::channel(false);
        let mut tasks = ActivityTasks { stop, flush: None, purge: None };
        if activity.is_enabled {
            let counts = Arc::clone(&activity.counts);
            let failures = Arc::clone(&activity.failures);
            let flusher = Flusher::new(db.clone(), Arc::clone(&clock), counts, failures, writer);
            tasks.flush = Some(tokio::spawn(flusher.run(settings.flush, stopped)));
            tasks.purge = Some(tokio::spawn(purge(db, clock, settings.keep)).abort_handle());
        }
        (activity, tasks)
    }

    /// Records the outcomes of a request. Takes a fraction of a microsecond, and never waits for the database.
    pub fn record(&self, caller: &Arc<Caller>, request_id: &Arc<str>, outcomes: impl Iterator<Item = EntityOutcome>) {
        if !self.is_enabled {
            return;
        }
        let (now, org_id) = (self.clock.now(), caller.org_id);
        let mut counter = self.counts.lock_shard(org_id, now);
        for EntityOutcome { series_id, outcome, kind } in outcomes {
            let counted_id = if kind == OutcomeKind::NoSuchSeries { WHOLE_ORGANISATION } else { series_id };
            counter.increment(counted_id, outcome);
            if kind != OutcomeKind::Granted {
                self.failures.add(now, org_id, || Failure {
                    caller: Arc::clone(caller),
                    at: now,
                    request_id: Arc::clone(request_id),
                    series_id,
                    outcome,
                });
            }
        }
    }
}

impl ActivityTasks {
    /// Flushes the counts one last time.
    pub async fn finish(self) {
        if let Some(purge) = self.purge {
            purge.abort();
        }
        self.stop.send_replace(true);
        let Some(flush) = self.flush else { return };
        if let Err(error) = flush.await {
            tracing::error!(%error, "the task that flushes activity broke off");
        }
    }
}
