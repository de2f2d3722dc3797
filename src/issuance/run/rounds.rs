use std::pin::pin;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tracing::Instrument;

use super::idempotency::Idempotency;
use super::state::{Customer, IssueRun};
use super::view::Views;
use crate::issuance::customers;
use crate::issuance::deadline::before_deadline;
use crate::issuance::entity::EntityRun;
use crate::issuance::error::IssueError;
use crate::issuance::refusal::Refusal;
use crate::telemetry::throttle::Throttle;
use crate::telemetry::traces;

/// The unit of the pause before the next round, while settings change and after rounds without progress.
const ROUND_PAUSE: Duration = Duration::from_millis(20);
/// The pause grows by one unit after this many rounds without progress.
const ROUNDS_PER_PAUSE: u32 = 10;
/// The longest pause, in units.
const MAX_PAUSES: u32 = 10;
/// After this many rounds without progress, the request ends as if its time were over.
const MAX_ROUNDS_WITHOUT_PROGRESS: u32 = 500;

static STOPPED_EARLY: Throttle = Throttle::new();

impl IssueRun<'_> {
    /// Runs rounds until no entity is pending.
    pub(super) async fn rounds(&mut self) -> Result<(), IssueError> {
        if let Some(id) = customers::without_look_up(self.organisation.customer_policy, &self.request.customer) {
            self.set_customer(id);
        }
        let (mut pending, mut without_progress) = (self.pending_count(), 0);
        while pending > 0 {
            if Instant::now() >= self.deadline || without_progress == MAX_ROUNDS_WITHOUT_PROGRESS {
                self.close(Refusal::TimedOut);
            } else if let Err(error) = self.round().await {
                self.stop_early(error, without_progress > 0)?;
            }
            let still_pending = self.pending_count();
            without_progress = if still_pending < pending { 0 } else { without_progress + 1 };
            pending = still_pending;
            let pauses = without_progress / ROUNDS_PER_PAUSE;
            if std::mem::take(&mut self.is_paused) || pauses > 0 {
                sleep_until(self.deadline.min(Instant::now() + ROUND_PAUSE * pauses.clamp(1, MAX_PAUSES))).await;
            }
        }
        Ok(())
    }

    async fn round(&mut self) -> Result<(), IssueError> {
        let deadline = self.deadline;
        // What was found in an earlier round keeps its time: it may not be flushed yet.
        if !self.entities.iter().any(EntityRun::is_found) {
            self.read_since = Instant::now();
        }
        if self.needs_claim() {
            self.reopen_if_lapsed();
            Box::pin(self.claim(self.answers_so_far())).await?;
        }
        if self.must_load_issued && matches!(self.idempotency, Idempotency::RequestKey(_)) {
            let load = self.load_issued().instrument(traces::span!("load what was issued under the key"));
            Box::pin(before_deadline(deadline, load)).await?;
        }
        if matches!(self.customer, Customer::Unknown) && self.entities.iter().any(EntityRun::is_open) {
            // Only the current settings allow to create or to refuse a customer.
            Box::pin(before_deadline(deadline, self.identify())).await?;
        }
        let Some(views) = before_deadline(deadline, pin!(self.load_views())).await? else { return Ok(()) };
        let origin_id = self.origin(&views).await?;
        let mut plan = self.decide(&views, origin_id);
        if !self.claim_for(&mut plan).await? || plan.is_empty() {
            return Ok(());
        }
        self.write(plan).await
    }

    /// The id of the origin of new coupons, or 0 if nothing can be issued.
    async fn origin(&self, views: &Views) -> Result<i32, IssueError> {
        if views.is_empty() {
            return Ok(0);
        }
        let origin = self.resources.settings_cache.origin(&self.request.caller, self.request.source);
        before_deadline(self.deadline, pin!(origin)).await
    }

    /// Handles a failed round. Entities that are stored must still be answered.
    fn stop_early(&mut self, error: IssueError, after_idle_round: bool) -> Result<(), IssueError> {
        if after_idle_round && matches!(error, IssueError::TimedOut) {
            // The round before made no progress, so the database answers. Only the time is over.
            self.close(Refusal::TimedOut);
            return Ok(());
        }
        if !self.entities.iter().any(EntityRun::is_issued_or_in_doubt) {
            return Err(error);
        }
        STOPPED_EARLY.log(|suppressed| {
            tracing::warn!(%error, suppressed, "a request stopped early; some of its coupons are or may be stored");
        });
        let is_slow = matches!(error, IssueError::TimedOut | IssueError::ServerFault(_));
        self.close(if is_slow { Refusal::TimedOut } else { Refusal::Failed });
        Ok(())
    }
}
