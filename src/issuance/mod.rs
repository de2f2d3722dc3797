//! The decisions: which customer, which series, under which rules, with which code and expiry.
//!
//! Knows neither HTTP nor SQL. [`rules`] decides, [`Issuer`] asks the store for facts and has decisions written.

pub mod codes;
mod counts;
mod customers;
mod directory;
mod keyed;
mod refusal;
mod request;
pub mod rules;
pub mod validity;

use std::sync::Arc;
use std::time::Duration;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
pub use keyed::{Fingerprint, Progress, Receipt, RequestKey};
pub use refusal::Refusal;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use self::counts::Counts;
use self::directory::Directory;
use crate::activity::{Activity, Kind, Told};
use crate::model::{Caller, Clock, Entropy, EntropyError, Face, Identifiers, Metadata, SeriesId, Source};
use crate::store::writer::{Writer, WriterUse};
use crate::store::{Beginnings, Store, StoreError};
use crate::traces::RequestTrace;

/// Keyed requests that are forgotten in one transaction, and the pause before the next.
const FORGET_AT_ONCE: i64 = 500;
const BETWEEN_STEPS: Duration = Duration::from_millis(100);
/// How long a step may take.
const FORGET_WITHIN: Duration = Duration::from_secs(10);

/// What a caller asks for: one coupon of each series for one customer.
#[derive(Debug, Clone)]
pub struct IssueRequest {
    /// Who asks.
    pub caller: Arc<Caller>,
    /// For whom.
    pub customer: Identifiers,
    /// Of which series, in the order in which they are answered.
    pub series_ids: Vec<SeriesId>,
    /// Stored with each coupon.
    pub source: Source,
    /// Stored with each coupon.
    pub account_id: Option<String>,
    /// Stored with each coupon.
    pub metadata: Option<Metadata>,
    /// Stored with each coupon.
    pub request_id: Arc<str>,
    /// Its name, where it has one: trying it again then finishes it.
    pub key: Option<RequestKey>,
}

/// What became of a request: one entity for each series asked for, in that order.
#[derive(Debug, Clone)]
pub struct Issuance {
    /// The organisation's time zone, in which dates are told.
    pub zone: TimeZone,
    /// What became of each.
    pub entities: Vec<Entity>,
}

impl Issuance {
    /// Whether any of it was issued by an earlier attempt at the same request.
    #[must_use]
    pub fn is_replayed(&self) -> bool {
        self.entities.iter().any(|entity| matches!(&entity.outcome, Ok(granted) if granted.replayed))
    }
}

/// What became of one series of a request.
#[derive(Debug, Clone)]
pub struct Entity {
    /// As it was asked for.
    pub series_id: SeriesId,
    /// The coupon, durably stored, or why there is none.
    pub outcome: Result<Granted, Refusal>,
}

impl Entity {
    /// The name under which it is counted: `issued`, `resent`, `replayed`, or that of a refusal.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match &self.outcome {
            Ok(Granted { replayed: true, .. }) => "replayed",
            Ok(Granted { resent: true, .. }) => "resent",
            Ok(_) => "issued",
            Err(refusal) => refusal.name(),
        }
    }

    /// What its caller is told, for the activity.
    fn told(&self) -> Told {
        let kind = match &self.outcome {
            Ok(_) => Kind::Granted,
            Err(Refusal::UnknownSeries) => Kind::NoSuchSeries,
            Err(_) => Kind::Refused,
        };
        Told { series_id: self.series_id, outcome: self.name(), kind }
    }
}

/// The coupon a customer has got.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Granted {
    /// What it shows of its series.
    pub face: Arc<Face>,
    /// Its code.
    pub code: String,
    /// Its last day.
    pub expires_on: Date,
    /// How often it was redeemed.
    pub redemption_count: i32,
    /// Whether it is one that the customer held already.
    #[serde(skip)]
    pub resent: bool,
    /// Whether an earlier attempt at the same keyed request has issued it.
    #[serde(skip)]
    pub replayed: bool,
}

/// Why a request as a whole was not processed. Nothing is stored then.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// The organisation requires registered customers, and this is none.
    #[error("the customer is not registered")]
    UnknownCustomer,
    /// The identifiers name different customers.
    #[error("the identifiers name different customers")]
    ConflictingCustomer,
    /// Another attempt at the same keyed request is at work.
    #[error("another attempt at this request is still running")]
    StillRunning,
    /// The key was used for something else.
    #[error("the key belongs to another request")]
    KeyReused,
    /// The database is away.
    #[error("the database is unavailable")]
    Unavailable(#[source] Option<StoreError>),
    /// The database server failed on a statement of this request, and takes others.
    #[error("the database server fails")]
    ServerFault(#[source] StoreError),
    /// The database has not answered by the end of the request's time.
    #[error("the database does not answer in time")]
    TimedOut,
    /// More is being asked for than the database takes.
    #[error("too many requests are waiting")]
    Overloaded,
    /// Our fault.
    #[error("internal error: {0}")]
    Internal(String),
}

impl From<StoreError> for IssueError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable(_) => Self::Unavailable(Some(error)),
            StoreError::TookTooLong(_) => Self::TimedOut,
            StoreError::ServerFault(_) => Self::ServerFault(error),
            StoreError::Failed(_) => Self::Internal(error.to_string()),
        }
    }
}

impl From<EntropyError> for IssueError {
    fn from(error: EntropyError) -> Self {
        Self::Internal(error.to_string())
    }
}

/// What a read finds, if that is by the deadline. A large one is handed over pinned: what is handed over as it is takes its room twice.
async fn within<T, E: Into<IssueError>>(
    deadline: Instant,
    read: impl Future<Output = Result<T, E>>,
) -> Result<T, IssueError> {
    timeout_at(deadline, read).await.map_err(|_elapsed| IssueError::TimedOut)?.map_err(Into::into)
}

/// The bounds on issuing.
#[derive(Debug, Clone, Copy)]
pub struct IssueLimits {
    /// How long a request may take before what is undecided is answered 748.
    pub timeout: Duration,
    /// How long settings are remembered.
    pub settings_time_to_live: Duration,
    /// Requests that may be at work at once.
    pub most_running: usize,
    /// How long coupons may have been waiting to be written when another request is taken on.
    pub longest_wait: Duration,
}

/// Issues coupons.
pub struct Issuer {
    store: Store,
    writer: Writer,
    beginnings: Beginnings,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    directory: Directory,
    activity: Arc<Activity>,
    limits: IssueLimits,
    running: TaskTracker,
    counts: Counts,
}

impl Issuer {
    /// An issuer over this store, writing through this writer. Needs a runtime.
    #[must_use]
    pub fn new(
        store: Store,
        writer: Writer,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
        activity: Arc<Activity>,
        limits: IssueLimits,
    ) -> Self {
        let directory = Directory::new(store.clone(), limits.settings_time_to_live);
        let beginnings = Beginnings::start(store.clone());
        Self {
            store,
            writer,
            beginnings,
            clock,
            entropy,
            directory,
            activity,
            limits,
            running: TaskTracker::new(),
            counts: Counts::new(),
        }
    }

    /// Whether another request would have to wait too long. Asking costs nearly nothing, so that those who are turned away
    /// take little from those who are not.
    #[must_use]
    pub fn is_overloaded(&self) -> bool {
        self.running.len() >= self.limits.most_running || self.writer.wait() > self.limits.longest_wait
    }

    /// Whether the database refuses every write, though it can be reached.
    pub async fn is_refused(&self, within: Duration) -> bool {
        self.writer.is_refused(within).await
    }

    /// Requests that are at work, and what becomes of the writer.
    #[must_use]
    pub fn use_now(&self) -> (usize, WriterUse) {
        (self.running.len(), self.writer.use_now())
    }

    /// Issues what is asked for.
    ///
    /// It runs to its end even if the caller stops waiting: a client that hangs up leaves nothing half done.
    ///
    /// # Errors
    /// When the request as a whole could not be processed; nothing is stored then.
    pub async fn issue(self: &Arc<Self>, request: IssueRequest) -> Result<Issuance, IssueError> {
        let issuer = Arc::clone(self);
        let deadline = Instant::now() + self.limits.timeout;
        let task = async move {
            let result = request::process(&issuer, &request, deadline).await;
            if let Ok(issuance) = &result {
                issuer.counts.answered(&issuance.entities);
                let told = issuance.entities.iter().map(Entity::told);
                issuer.activity.note(&request.caller, &request.request_id, told);
            }
            result
        };
        let running = match RequestTrace::at_hand() {
            None => self.running.spawn(task.in_current_span()),
            Some(trace) => self.running.spawn(async move { trace.of(task).await }.in_current_span()),
        };
        match running.await {
            Ok(issuance) => issuance,
            Err(error) => Err(IssueError::Internal(format!("an issuance broke off: {error}"))),
        }
    }

    /// What is known of a keyed request; `None`: the caller's organisation has none of this key.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn receipt(&self, caller: &Caller, key: &str) -> Result<Option<Receipt>, IssueError> {
        within(Instant::now() + self.limits.timeout, keyed::receipt(self, caller, key)).await
    }

    /// Forgets keyed requests first seen so long ago, in small steps, and says how many.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn forget_requests(&self, kept_for: Duration) -> Result<u64, IssueError> {
        let kept_for = SignedDuration::try_from(kept_for).unwrap_or(SignedDuration::MAX);
        let before = self.clock.now().saturating_sub(kept_for).unwrap_or(Timestamp::MIN);
        let mut forgotten = 0;
        loop {
            let step = timeout(FORGET_WITHIN, self.store.forget_requests(before, FORGET_AT_ONCE)).await;
            let step = step.map_err(|_elapsed| IssueError::TimedOut)??;
            forgotten += step;
            self.counts.forgotten.increment(step);
            if step < FORGET_AT_ONCE.unsigned_abs() {
                return Ok(forgotten);
            }
            sleep(BETWEEN_STEPS).await;
        }
    }

    /// Waits until nothing is running any more. Nothing may be started afterwards.
    pub async fn finish(&self) {
        self.running.close();
        self.running.wait().await;
    }
}
