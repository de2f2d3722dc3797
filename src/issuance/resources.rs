use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::error::IssueError;
use super::metrics::IssuanceMetrics;
use super::settings_cache::{CachedOrganisation, SettingsCache};
use crate::config::IssuingSettings;
use crate::db::writer::{AttemptEnd, Work, WriteOutcome, Writer};
use crate::db::{Claims, Db, HistoryReader, Presence};
use crate::model::{Caller, Clock, Entropy};

/// A lease outlasts the deadline of its request by this.
const LEASE_MARGIN: Duration = Duration::from_secs(6);

/// An end is repeated if the connection was replaced, which also happens on its first use.
const MAX_END_ATTEMPTS: u32 = 3;

/// Everything that processing a request uses.
pub(super) struct Resources {
    pub(super) db: Db,
    pub(super) writer: Writer,
    pub(super) history: HistoryReader,
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
    pub(super) async fn cached_organisation(&self, caller: &Caller) -> Result<Arc<CachedOrganisation>, IssueError> {
        self.settings_cache.organisation(caller.org_id).await?.ok_or_else(IssueError::missing_organisation)
    }

    /// The organisation's settings, read from the database.
    pub(super) async fn current_organisation(&self, caller: &Caller) -> Result<Arc<CachedOrganisation>, IssueError> {
        self.settings_cache.reload_organisation(caller.org_id).await?.ok_or_else(IssueError::missing_organisation)
    }

    /// Ends an attempt. `resent_ids`: the coupons that its answers send again. False: another attempt has taken over.
    ///
    /// # Errors
    /// [`IssueError::Unavailable`] if it is not known whether this is stored, or if one of the coupons is lost.
    /// [`IssueError::Overloaded`] if the queue is full.
    pub(super) async fn end_attempt(
        &self,
        mut end: AttemptEnd,
        resent_ids: &[i64],
        deadline: Instant,
    ) -> Result<bool, IssueError> {
        for _ in 0..MAX_END_ATTEMPTS {
            let works = vec![Work::EndAttempt(Box::new(end.clone()))];
            let outcomes = self.writer.write(works, deadline).await.map_err(|_| IssueError::Overloaded)?;
            match outcomes.first() {
                Some(WriteOutcome::Flushed) => return Ok(true),
                Some(WriteOutcome::KeyNotClaimed) => return Ok(false),
                Some(WriteOutcome::NotFlushed) => {}
                // Not in time, or not at all. The outcomes of coupons do not occur here.
                _ => break,
            }
            // The connection is new. Usually it is the first one, but a crash may have undone what was read.
            end.read_since = end.read_since.map(|_| Instant::now());
            let ids: Vec<(i64, Option<i32>)> = resent_ids.iter().map(|id| (*id, None)).collect();
            if self.db.coupons(end.request.org_id, &ids).await?.len() < ids.len() {
                break;
            }
        }
        Err(IssueError::Unavailable(None))
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
