use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::error::IssueError;
use super::metrics::IssuanceMetrics;
use super::settings_cache::SettingsCache;
use crate::config::IssuingSettings;
use crate::db::writer::{Work, WriteOutcome, Writer};
use crate::db::{Claims, Db, Presence};
use crate::model::{Caller, Clock, Entropy, Organisation};

/// A lease outlasts the deadline of its request by this.
const LEASE_MARGIN: Duration = Duration::from_secs(6);

/// Everything that processing a request uses.
pub(super) struct Resources {
    pub(super) db: Db,
    pub(super) writer: Writer,
    pub(super) claims: Claims,
    pub(super) presence: Presence,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) entropy: Arc<dyn Entropy>,
    pub(super) settings_cache: SettingsCache,
    pub(super) settings: IssuingSettings,
    pub(super) metrics: IssuanceMetrics,
}

impl Resources {
    /// The lease of an attempt, in seconds.
    pub(super) fn lease_seconds(&self) -> i32 {
        i32::try_from((self.settings.timeout + LEASE_MARGIN).as_secs()).unwrap_or(i32::MAX)
    }

    /// The organisation's settings, possibly from the cache. The cache is good enough for a customer who needs no look-up.
    pub(super) async fn cached_organisation(&self, caller: &Caller) -> Result<Arc<Organisation>, IssueError> {
        self.settings_cache.organisation(caller.org_id).await?.ok_or_else(IssueError::missing_organisation)
    }

    /// The organisation's settings, read from the database.
    pub(super) async fn current_organisation(&self, caller: &Caller) -> Result<Arc<Organisation>, IssueError> {
        self.settings_cache.reload_organisation(caller.org_id).await?.ok_or_else(IssueError::missing_organisation)
    }

    /// Waits until everything that was read since `read_since` is flushed. False: a crash may have undone it, read it again.
    ///
    /// # Errors
    /// [`IssueError::Unavailable`] if the database cannot be reached or accepts no writes, [`IssueError::Overloaded`] if the queue is full.
    pub(super) async fn wait_for_flush(&self, read_since: Instant, deadline: Instant) -> Result<bool, IssueError> {
        let works = vec![Work::FlushBarrier(read_since)];
        let outcomes = self.writer.write(works, deadline).await.map_err(|_| IssueError::Overloaded)?;
        match outcomes.first() {
            Some(WriteOutcome::Flushed) => Ok(true),
            Some(WriteOutcome::NotFlushed) => Ok(false),
            // Not in time, or not at all. The outcomes of coupons do not occur here.
            _ => Err(IssueError::Unavailable(None)),
        }
    }
}
