//! The decisions: which customer, which series, under which rules, with which code and expiry.
//!
//! Knows neither HTTP nor SQL. [`rules`] decides, [`Issuer`] asks `db` for facts and has decisions written.

mod answers;
pub mod codes;
mod counts;
mod customers;
mod directory;
mod entity;
mod key_claim;
mod receipt;
mod refusal;
pub mod rules;
mod run;
pub mod validity;

use std::sync::Arc;
use std::time::Duration;

pub use answers::Resend;
use jiff::civil::Date;
use jiff::tz::TimeZone;
pub use receipt::{Progress, Receipt};
pub use refusal::{Refusal, ShownInstant};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use self::counts::Counts;
use self::directory::Directory;
use crate::activity::{Activity, Kind, Told};
use crate::config::IssuingSettings;
use crate::db::writer::{Writer, WriterUse};
use crate::db::{Claims, Db, DbError, IssuedCoupon, Presence, Purge};
use crate::model::{Caller, Clock, Entropy, EntropyError, Face, Identifiers, Metadata, SeriesId, Source};
use crate::telemetry::traces::RequestTrace;

/// Keyed requests that are purged in one transaction, and the pause before the next.
const PURGE_AT_ONCE: i64 = 1000;
const BETWEEN_STEPS: Duration = Duration::from_millis(100);
/// How long a step may take.
const PURGE_WITHIN: Duration = Duration::from_secs(10);

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

impl IssueRequest {
    /// Whether another attempt may have issued what it asks for: it has a key, its own or what a natural one is made of.
    fn is_keyed(&self) -> bool {
        let has_source = |metadata: &Metadata| metadata.source_type.is_some() && metadata.source_id.is_some();
        self.key.is_some() || self.metadata.as_ref().is_some_and(has_source)
    }
}

/// What names a request, so that trying it again finishes it.
#[derive(Debug, Clone)]
pub struct RequestKey {
    /// The caller's name for it.
    pub key: Arc<str>,
    /// A version and a hash of all that it asks for: another request under the same key is a mistake.
    pub fingerprint: i64,
}

/// What became of a request: one entity for each series asked for, in that order.
#[derive(Debug, Clone)]
pub struct Issuance {
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
    pub outcome: Result<Arc<Granted>, Refusal>,
}

impl Entity {
    /// The name under which it is counted: `issued`, `resent`, `replayed`, or that of a refusal.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match &self.outcome {
            Ok(granted) if granted.replayed => "replayed",
            Ok(granted) if granted.resent.is_some() => "resent",
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
#[derive(Debug, Clone)]
pub struct Granted {
    /// What it shows of its series.
    pub face: Arc<Face>,
    /// The time zone of its dates.
    pub zone: TimeZone,
    /// Its code.
    pub code: String,
    /// Its last day.
    pub expires_on: Date,
    /// How often it was redeemed.
    pub redemption_count: i32,
    /// One that the customer held already.
    pub resent: Option<Resend>,
    /// Whether an earlier attempt at the same request was answered with it.
    pub replayed: bool,
}

impl Granted {
    /// As it was answered when it was issued.
    fn replay(coupon: &IssuedCoupon) -> Self {
        Self {
            face: Arc::clone(&coupon.face),
            zone: coupon.zone.clone(),
            code: coupon.code.clone(),
            expires_on: coupon.expires_on,
            redemption_count: 0,
            resent: None,
            replayed: true,
        }
    }
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
    Unavailable(#[source] Option<DbError>),
    /// The database server failed on a statement of this request, and takes others.
    #[error("the database server fails")]
    ServerFault(#[source] DbError),
    /// The database has not answered by the end of the request's time.
    #[error("the database does not answer in time")]
    TimedOut,
    /// More is being asked for than the database takes.
    #[error("too many requests are waiting")]
    Overloaded,
    /// The database refused a statement.
    #[error("the database refused a statement")]
    Refused(#[source] DbError),
    /// Our fault.
    #[error("internal error: {0}")]
    Internal(String),
}

impl From<DbError> for IssueError {
    fn from(error: DbError) -> Self {
        match error {
            DbError::Unavailable(_) => Self::Unavailable(Some(error)),
            DbError::TookTooLong(_) => Self::TimedOut,
            DbError::ServerFault(_) => Self::ServerFault(error),
            DbError::Failed(_) => Self::Refused(error),
        }
    }
}

impl From<EntropyError> for IssueError {
    fn from(error: EntropyError) -> Self {
        Self::Internal(error.to_string())
    }
}

fn missing() -> IssueError {
    IssueError::Internal("the caller's organisation is missing".to_owned())
}

/// What a read finds, if that is by the deadline. A large one is handed over pinned: what is handed over as it is takes its room twice.
async fn within<T, E: Into<IssueError>>(
    deadline: Instant,
    read: impl Future<Output = Result<T, E>>,
) -> Result<T, IssueError> {
    timeout_at(deadline, read).await.map_err(|_elapsed| IssueError::TimedOut)?.map_err(Into::into)
}

/// Issues coupons.
pub struct Issuer {
    db: Db,
    writer: Writer,
    claims: Claims,
    presence: Presence,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    directory: Directory,
    activity: Arc<Activity>,
    settings: IssuingSettings,
    running: TaskTracker,
    counts: Counts,
}

impl Issuer {
    /// An issuer over this store, writing through this writer, that other replicas know by this presence. Needs a runtime.
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
        let directory = Directory::new(db.clone(), settings.settings_cache);
        let claims = Claims::start(db.clone());
        Self {
            db,
            writer,
            claims,
            presence,
            clock,
            entropy,
            directory,
            activity,
            settings,
            running: TaskTracker::new(),
            counts: Counts::new(),
        }
    }

    /// Whether another request would have to wait too long. Asking costs nearly nothing, so that those who are turned away
    /// take little from those who are not.
    #[must_use]
    pub fn is_overloaded(&self) -> bool {
        self.running.len() >= self.settings.max_running || self.writer.wait() > self.settings.max_wait
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
        let deadline = Instant::now() + self.settings.timeout;
        let task = async move {
            let result = run::process(&issuer, &request, deadline).await;
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
        within(Instant::now() + self.settings.timeout, receipt::receipt(self, caller, key)).await
    }

    /// Purges keyed requests and natural keys first seen so long ago, by the database's clock and in small steps, and returns their
    /// number.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn purge_requests(&self, kept_for: Duration) -> Result<u64, IssueError> {
        Ok(self.purge(Purge::Requests, kept_for).await? + self.purge(Purge::NaturalKeys, kept_for).await?)
    }

    async fn purge(&self, what: Purge, kept_for: Duration) -> Result<u64, IssueError> {
        let mut total = 0;
        loop {
            let step = timeout(PURGE_WITHIN, self.db.purge(what, kept_for.as_secs_f64(), PURGE_AT_ONCE)).await;
            let purged = step.map_err(|_elapsed| IssueError::TimedOut)??;
            total += purged;
            self.counts.purged.increment(purged);
            if purged < PURGE_AT_ONCE.unsigned_abs() {
                return Ok(total);
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
