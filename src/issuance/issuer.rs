use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use super::deadline::before_deadline;
use super::error::IssueError;
use super::metrics::IssuanceMetrics;
use super::outcome::{Entity, Issuance};
use super::receipt::{Receipt, load_receipt};
use super::request::IssueRequest;
use super::resources::Resources;
use super::run;
use super::settings_cache::SettingsCache;
use crate::activity::Activity;
use crate::config::IssuingSettings;
use crate::db::writer::{Writer, WriterUsage};
use crate::db::{Claims, Db, HistoryReader, Presence, Purge};
use crate::model::{Caller, Clock, Entropy};
use crate::telemetry::traces::RequestTrace;

const PURGE_BATCH_SIZE: i64 = 1000;
const PURGE_PAUSE: Duration = Duration::from_millis(100);
const PURGE_TIMEOUT: Duration = Duration::from_secs(10);

/// Issues coupons.
pub struct Issuer {
    resources: Resources,
    activity: Arc<Activity>,
    running: TaskTracker,
}

impl Issuer {
    /// Needs a runtime. `presence` announces this replica to the others.
    #[must_use]
    pub fn new(
        db: Db,
        writer: Writer,
        presence: Presence,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
        activity: Arc<Activity>,
        settings: IssuingSettings,
    ) -> Self {
        let resources = Resources {
            history: HistoryReader::start(&db),
            claims: Claims::start(db.clone()),
            settings_cache: SettingsCache::new(db.clone(), settings.settings_cache_bytes),
            db,
            writer,
            presence,
            clock,
            entropy,
            settings,
            metrics: IssuanceMetrics::new(),
        };
        Self { resources, activity, running: TaskTracker::new() }
    }

    /// Whether another request would have to wait too long. The check is cheap, so that rejected requests take little capacity from
    /// accepted ones.
    #[must_use]
    pub fn is_overloaded(&self) -> bool {
        let Resources { settings, writer, .. } = &self.resources;
        self.running.len() >= settings.max_running || writer.wait() > settings.max_wait
    }

    /// Whether the database refuses every write, though it can be reached.
    pub async fn is_refused(&self, timeout: Duration) -> bool {
        self.resources.writer.is_refused(timeout).await
    }

    /// The number of running requests, and the usage of the writer.
    #[must_use]
    pub fn usage(&self) -> (usize, WriterUsage) {
        (self.running.len(), self.resources.writer.usage())
    }

    /// Processes a request. It runs to its end even if the caller hangs up, so that nothing stays half done.
    ///
    /// # Errors
    /// When the request as a whole could not be processed; nothing is stored then, unless the error is [`IssueError::Internal`].
    pub async fn issue(self: &Arc<Self>, request: IssueRequest) -> Result<Issuance, IssueError> {
        let issuer = Arc::clone(self);
        let deadline = Instant::now() + self.resources.settings.timeout;
        let task = async move {
            let result = run::process(&issuer.resources, &request, deadline).await;
            if let Ok(issuance) = &result {
                issuer.resources.metrics.record_entities(&issuance.entities);
                let entries = issuance.entities.iter().map(Entity::activity_entry);
                issuer.activity.record(&request.caller, &request.request_id, entries);
            }
            result
        };
        let running = match RequestTrace::current() {
            None => self.running.spawn(task.in_current_span()),
            Some(trace) => self.running.spawn(async move { trace.run(task).await }.in_current_span()),
        };
        match running.await {
            Ok(result) => result,
            Err(error) => Err(IssueError::Internal(format!("the task of an issuance failed: {error}"))),
        }
    }

    /// The receipt of a keyed request. `None`: the caller's organisation has no request with this key.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn receipt(&self, caller: &Caller, key: &str) -> Result<Option<Receipt>, IssueError> {
        let deadline = Instant::now() + self.resources.settings.timeout;
        before_deadline(deadline, load_receipt(&self.resources, caller, key, deadline)).await
    }

    /// Purges keyed requests and natural keys that are older than `kept_for` by the database's clock, and returns their number.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn purge_requests(&self, kept_for: Duration) -> Result<u64, IssueError> {
        Ok(self.purge(Purge::Requests, kept_for).await? + self.purge(Purge::NaturalKeys, kept_for).await?)
    }

    async fn purge(&self, what: Purge, kept_for: Duration) -> Result<u64, IssueError> {
        let Resources { db, metrics, .. } = &self.resources;
        let mut total = 0;
        loop {
            let batch = timeout(PURGE_TIMEOUT, db.purge(what, kept_for.as_secs_f64(), PURGE_BATCH_SIZE)).await;
            let purged = batch.map_err(|_elapsed| IssueError::TimedOut)??;
            total += purged;
            metrics.purged.increment(purged);
            if purged < PURGE_BATCH_SIZE.unsigned_abs() {
                return Ok(total);
            }
            sleep(PURGE_PAUSE).await;
        }
    }

    /// Waits for all running requests. The caller must start no request afterwards.
    pub async fn finish(&self) {
        self.running.close();
        self.running.wait().await;
    }
}
