//! What callers were told: counted in memory, added to the database every few seconds, and read again for the console.
//!
//! Nothing is decided by it, and no coupon depends on it: what a crash takes back of it, or what memory has no room for, is
//! missing in what people see and nowhere else.

mod counts;
mod failures;
mod keeper;
mod overview;

use std::sync::Arc;

pub use overview::{Ask, HOUR, OutcomeCount, Overview, OverviewError, PAGE, PoolRemaining, SeriesActivity};
use tokio::sync::{Semaphore, watch};
use tokio::task::{AbortHandle, JoinHandle};
use uuid::Uuid;

use self::counts::Counts;
use self::failures::Failures;
use self::keeper::Keeper;
use crate::config::ActivitySettings;
use crate::db::Db;
use crate::db::activity::{Failure, WHOLE_ORGANISATION};
pub use crate::db::overview::{FailureRow as ToldFailure, Place};
use crate::model::{Caller, Clock, SeriesId};

/// Overviews that are read at once: they take connections that issuing needs, too.
const MOST_READING: usize = 2;

/// What a caller was told of one entity.
#[derive(Debug, Clone, Copy)]
pub struct Told {
    /// As it was asked for.
    pub series_id: SeriesId,
    /// The name it is counted under.
    pub outcome: &'static str,
    /// Whether there is a coupon.
    pub kind: Kind,
}

/// What an outcome is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A coupon, new or not.
    Granted,
    /// No coupon.
    Refused,
    /// No coupon, since there is no such series: whatever is asked for, it takes no room of its own.
    NoSuchSeries,
}

/// Counts, and reads what was counted.
pub struct Activity {
    db: Db,
    clock: Arc<dyn Clock>,
    counts: Counts,
    failures: Failures,
    is_counting: bool,
    reading: Semaphore,
}

/// What adds to the database in the background.
pub struct ActivityTasks {
    stop: watch::Sender<bool>,
    keeping: Option<JoinHandle<()>>,
    forgetting: Option<AbortHandle>,
}

impl Activity {
    /// Begins to count. Needs a runtime. `writer` names this replica since its start.
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
            counts: Counts::new(),
            failures: Failures::new(),
            is_counting: !settings.flush.is_zero(),
            reading: Semaphore::new(MOST_READING),
        });
        let (stop, stopped) = watch::channel(false);
        let mut tasks = ActivityTasks { stop, keeping: None, forgetting: None };
        if activity.is_counting {
            let keeper = Keeper::new(Arc::clone(&activity), writer);
            tasks.keeping = Some(tokio::spawn(keeper.run(settings.flush, stopped)));
            tasks.forgetting = Some(tokio::spawn(keeper::forget(db, clock, settings.keep)).abort_handle());
        }
        (activity, tasks)
    }

    /// Counts what a caller was told. Takes a fraction of a microsecond, and never waits for the database.
    pub fn note(&self, caller: &Arc<Caller>, request_id: &Arc<str>, told: impl Iterator<Item = Told>) {
        if !self.is_counting {
            return;
        }
        let (now, org_id) = (self.clock.now(), caller.org_id);
        let mut counting = self.counts.begin(org_id, now);
        for Told { series_id, outcome, kind } in told {
            counting.add(if kind == Kind::NoSuchSeries { WHOLE_ORGANISATION } else { series_id }, outcome);
            if kind != Kind::Granted {
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
    /// Adds what was counted so far to the database, for the last time.
    pub async fn finish(self) {
        if let Some(forgetting) = self.forgetting {
            forgetting.abort();
        }
        self.stop.send_replace(true);
        let Some(keeping) = self.keeping else { return };
        if let Err(error) = keeping.await {
            tracing::error!(%error, "what adds the activity broke off");
        }
    }
}
