//! The writer: every request's coupons go through one bounded queue, and a few tasks, each with a connection of its own,
//! send whatever is waiting as one batch. Each coupon is a transaction; the round trip and the flush are shared.
//!
//! Nothing is answered before it is flushed; what only waits for that has a queue of its own. A batch belongs to its task: no
//! caller that goes away can cut it short.

mod backlog;
mod batch;
mod call;
mod connection;
mod counts;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::Date;
use metrics::{Counter, Histogram};
use sqlx::postgres::PgConnectOptions;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tracing::Instrument;
use uuid::Uuid;

use self::backlog::Backlog;
use self::counts::Counts;
use super::{Claim, NewClaim, waiting};
use crate::config::WriterSettings;
use crate::model::{CustomerId, Metadata, OrgId, Revision, SeriesId};
use crate::telemetry::metrics::{self as metric, Level};
use crate::telemetry::traces::{self, Waiting};

/// The code of a coupon to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Code {
    /// A generated one, which must be new in the organisation. Upper case.
    Unique(String),
    /// The one code of a `GENERIC` series.
    Generic(String),
    /// One from the series' uploaded pool.
    FromPool,
}

/// Under which name an entity is issued once.
#[derive(Debug, Clone)]
pub enum Scope {
    /// Under none: a retry issues again.
    None,
    /// Under the natural key: see column `natural_issuance.natural_key`.
    Natural(Uuid),
    /// Under the key of its request.
    Key(KeyedEntity),
}

/// The entity of a keyed request that a coupon is for.
#[derive(Debug, Clone)]
pub struct KeyedEntity {
    /// The key.
    pub key: Arc<NewClaim>,
    /// The entity's place in the request, from 0.
    pub place: usize,
    /// How its attempt holds the key.
    pub hold: KeyHold,
}

/// How the attempt of a coupon holds its key.
#[derive(Debug, Clone)]
pub enum KeyHold {
    /// One of the coupons of the same [`Writer::write`] claims it, in its transaction, with these answers.
    ClaimedWith(Arc<str>),
    /// It has claimed a new key: nothing was issued under it before.
    Acquired(Claim),
    /// It has claimed a key that was used before.
    Resumed(Claim),
}

/// A coupon as it was decided: what to store, and under which guards.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the columns of table coupon, whose comments say what each is")]
pub struct NewCoupon {
    pub org_id: OrgId,
    pub series_id: SeriesId,
    pub series_version: i32,
    pub origin_id: i32,
    pub customer_id: CustomerId,
    pub ordinal: Option<i32>,
    pub code: Code,
    pub expires_on: Date,
    pub issued_at: Timestamp,
    pub account_id: Option<String>,
    pub metadata: Option<Metadata>,
    pub request_id: Arc<str>,
    pub scope: Scope,
    /// Guard: the organisation must still be at this revision.
    pub revision: Revision,
    /// Guard: the series must have issued fewer than this.
    pub max_create: Option<i64>,
    /// Guard: the customer must hold no coupon of a mutually exclusive series.
    pub is_exclusive: bool,
    /// Whether it is to be expected that the code exists already. Where it is not, finding out costs more.
    pub may_collide: bool,
}

/// One thing for the writer to do.
#[derive(Debug, Clone)]
pub enum Work {
    /// Write this coupon.
    Issue(Box<NewCoupon>),
    /// Write nothing, but answer only once everything that was read since this instant is flushed: a coupon may have been
    /// committed a moment ago and not be safe yet.
    FlushBarrier(Instant),
}

/// What became of one [`Work`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WriteOutcome {
    /// The coupon is stored and flushed.
    Issued {
        /// Its id.
        coupon_id: i64,
        /// Its code, as it is shown.
        code: String,
    },
    /// Everything before the barrier is flushed.
    Flushed,
    /// It may not be: the database may have crashed since and have lost it. It must be read again.
    NotFlushed,
    /// A guard refused: the decision has gone stale and must be made again on fresh facts. Nothing is stored.
    GuardFailed(Guard),
    /// The organisation's settings are being changed: it must be decided again, a moment later. Nothing is stored.
    SettingsLocked,
    /// The code exists already. Nothing is stored.
    CodeTaken,
    /// The entity is issued: by another attempt under its key, or under its natural key. Nothing more is stored.
    AlreadyIssued,
    /// Its attempt does not hold the key: the key was used before, another attempt took over, or a crash of the database lost the
    /// claim. Nothing is stored.
    KeyNotClaimed,
    /// Another coupon has its id. Nothing is stored.
    IdTaken,
    /// The database refused this coupon alone. Nothing is stored.
    Refused,
    /// The server failed on this coupon alone, for a reason of its own (classes 53, 58 and XX). Nothing is stored.
    ServerFault,
    /// The database could not be reached in time, or takes no writes at all. Nothing is stored.
    Unavailable,
    /// The deadline passed while it was waiting its turn, or for a lock. Nothing is stored.
    TimedOut,
    /// The connection broke midway, and the database could not be asked in time whether the coupon is stored.
    InDoubt,
}

/// The guard that refused a coupon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guard {
    /// The organisation's settings changed after the decision.
    OtherRevision,
    /// The series has issued all it may.
    CapReached,
    /// Another request issued this number of the customer's coupons.
    OrdinalTaken,
    /// The customer holds a coupon of a mutually exclusive series.
    HoldsExcluded,
    /// The pool has no code for this customer.
    PoolEmpty,
    /// Its transaction lost against another one: a deadlock or a serialization failure.
    Conflict,
}

/// The queue is full: more is being asked for than the database takes.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("too many coupons are waiting to be written")]
pub struct QueueFull;

/// What becomes of the writer.
#[derive(Debug, Clone, Copy)]
pub struct WriterUse {
    /// Coupons that wait.
    pub waiting: usize,
    /// How long another one would have to.
    pub wait: Duration,
    /// Connections that are up.
    pub connections: usize,
    /// Connections that it makes, as it needs them.
    pub most_connections: usize,
}

/// What is counted of one queue.
#[derive(Debug, Clone)]
struct Meters {
    wait: Histogram,
    size: Histogram,
    duration: Histogram,
    broken: Counter,
    coupons: Counts,
}

impl Meters {
    fn of(queue: &'static str) -> Self {
        Self {
            wait: metrics::histogram!(metric::QUEUE_WAIT.name, "queue" => queue),
            size: metrics::histogram!(metric::BATCH_SIZE.name, "queue" => queue),
            duration: metrics::histogram!(metric::BATCH_DURATION.name, "queue" => queue),
            broken: metrics::counter!(metric::BROKEN_BATCHES.name),
            coupons: Counts::new(),
        }
    }
}

/// How long it holds that a probe was refused.
const PROBE_HOLDS: Duration = Duration::from_secs(1);

/// A handle on the queue. The tasks end when the last handle is dropped and the queue is empty.
#[derive(Debug, Clone)]
pub struct Writer {
    coupons: Queue,
    /// Flush barriers have a queue of their own: no coupon's lock delays them.
    confirmations: Queue,
    prober: Arc<Prober>,
    up: Level,
    most_up: usize,
}

#[derive(Debug, Clone)]
struct Queue {
    jobs: mpsc::Sender<Job>,
    backlog: Arc<Backlog>,
}

#[derive(Debug)]
struct Job {
    works: Vec<Work>,
    queued_at: Instant,
    deadline: Instant,
    answer: oneshot::Sender<Vec<WriteOutcome>>,
    waiting: Waiting,
}

impl Writer {
    /// Starts the tasks: those that write, and one that confirms. They connect when there is something to do.
    #[must_use]
    pub fn start(connect: &PgConnectOptions, settings: WriterSettings) -> (Self, Vec<JoinHandle<()>>) {
        let (up, suspect) = (Level::default(), Arc::new(AtomicBool::new(true)));
        let (coupons, mut tasks) = Queue::start(connect, settings, &Meters::of("coupons"), &up, &suspect);
        let alone = WriterSettings { tasks: 1, ..settings };
        let confirmed = Meters::of("confirmations");
        let (confirmations, confirming) = Queue::start(connect, alone, &confirmed, &up, &suspect);
        tasks.extend(confirming);
        let prober =
            Arc::new(Prober { connect: connect.clone(), settings, meters: confirmed, suspect, last: Mutex::default() });
        (Self { coupons, confirmations, prober, up, most_up: settings.tasks + 1 }, tasks)
    }

    /// Whether the database refuses every write, though it can be reached. At the start, and after a task has found so, a
    /// connection of its own finds out, so that nobody has to ask for a coupon first.
    /// What does not answer within this time counts as refusing.
    pub async fn is_refused(&self, within: Duration) -> bool {
        if !self.prober.suspect.load(Ordering::Relaxed) {
            return false;
        }
        match timeout(within, self.prober.is_refused(Instant::now() + within)).await {
            Ok(Some(is_refused)) => is_refused,
            // That the database cannot be reached is found by whoever asks whether it is there.
            Ok(None) => false,
            Err(_elapsed) => true,
        }
    }

    /// What is waiting, and what it is written over.
    #[must_use]
    pub fn use_now(&self) -> WriterUse {
        let waiting = self.coupons.backlog.waiting();
        WriterUse { waiting, wait: self.wait(), connections: self.up.count(), most_connections: self.most_up }
    }

    /// How long another coupon would have to wait for its turn, as far as can be told.
    #[must_use]
    pub fn wait(&self) -> Duration {
        self.coupons.backlog.wait(Instant::now())
    }

    /// Whether a batch is blocked. A claim should not wait behind it.
    #[must_use]
    pub fn is_held_up(&self) -> bool {
        self.coupons.backlog.is_held_up(Instant::now())
    }

    /// Has these done, and returns what became of each.
    ///
    /// It always answers: within `deadline` and the time the database may take for a batch.
    ///
    /// # Errors
    /// When a queue is full; nothing is stored then.
    pub async fn write(&self, works: Vec<Work>, deadline: Instant) -> Result<Vec<WriteOutcome>, QueueFull> {
        if works.iter().all(|work| matches!(work, Work::Issue(_))) {
            return Ok(self.coupons.send(works, deadline)?.await);
        }
        let is_coupon: Vec<bool> = works.iter().map(|work| matches!(work, Work::Issue(_))).collect();
        let (coupons, confirmations): (Vec<Work>, Vec<Work>) =
            works.into_iter().partition(|work| matches!(work, Work::Issue(_)));
        // Barriers first: if their queue is full, no coupon was sent.
        let confirmed = self.confirmations.send(confirmations, deadline)?;
        let written = self.coupons.send(coupons, deadline)?;
        let (confirmed, written) = tokio::join!(confirmed, written);
        let (mut confirmed, mut written) = (confirmed.into_iter(), written.into_iter());
        let next = |is_coupon| if is_coupon { written.next() } else { confirmed.next() };
        Ok(is_coupon.into_iter().map(next).map(|one| one.unwrap_or(WriteOutcome::InDoubt)).collect())
    }
}

/// Finds out whether the database takes writes, over a connection of its own, for all who ask within a second.
#[derive(Debug)]
struct Prober {
    connect: PgConnectOptions,
    settings: WriterSettings,
    meters: Meters,
    /// Set until a write is known to succeed, and again after a refused one.
    suspect: Arc<AtomicBool>,
    last: Mutex<Option<(Instant, bool)>>,
}

impl Prober {
    async fn is_refused(&self, deadline: Instant) -> Option<bool> {
        let mut last = self.last.lock().await;
        // Only a refusal is remembered: an old success proves nothing after a new doubt.
        if let Some((found_at, true)) = *last
            && found_at.elapsed() < PROBE_HOLDS
        {
            return Some(true);
        }
        let connector =
            connection::Connector::new(self.connect.clone(), self.settings.statement_timeout, Level::default());
        let batches =
            batch::Batches::new(connector, Arc::clone(&self.suspect), batch::Leases::new(), self.meters.clone());
        let is_refused = batches.find_out(deadline).await?;
        let was_refused = last.replace((Instant::now(), is_refused)).is_some_and(|(_, was_refused)| was_refused);
        if !is_refused {
            self.suspect.store(false, Ordering::Relaxed);
            if was_refused {
                tracing::info!("the database takes writes again");
            }
        }
        Some(is_refused)
    }
}

impl Queue {
    fn start(
        connect: &PgConnectOptions,
        settings: WriterSettings,
        meters: &Meters,
        up: &Level,
        suspect: &Arc<AtomicBool>,
    ) -> (Self, Vec<JoinHandle<()>>) {
        let (sender, jobs) = mpsc::channel(settings.queue);
        let jobs = Arc::new(Mutex::new(jobs));
        let backlog = Arc::new(Backlog::new(settings.tasks));
        let leases = batch::Leases::new();
        let tasks = (0..settings.tasks)
            .map(|task| {
                let connector = connection::Connector::new(connect.clone(), settings.statement_timeout, up.clone());
                let batches = batch::Batches::new(connector, Arc::clone(suspect), leases.clone(), meters.clone());
                let taking = Taking { jobs: Arc::clone(&jobs), limit: settings.batch };
                tokio::spawn(run(task, taking, Arc::clone(&backlog), batches))
            })
            .collect();
        (Self { jobs: sender, backlog }, tasks)
    }

    /// Queues these as one job, which is done even if nobody waits for what comes back.
    fn send(
        &self,
        works: Vec<Work>,
        deadline: Instant,
    ) -> Result<impl Future<Output = Vec<WriteOutcome>> + use<>, QueueFull> {
        let count = works.len();
        let (answer, answered) = oneshot::channel();
        if count > 0 {
            let queued_at = Instant::now();
            self.backlog.queued(count, queued_at);
            let job = Job { works, queued_at, deadline, answer, waiting: Waiting::begin(count) };
            if self.jobs.try_send(job).is_err() {
                self.backlog.refused(count);
                return Err(QueueFull);
            }
        }
        // A task drops an answer only if it panicked. Its coupons are in doubt.
        Ok(async move {
            if count > 0 { answered.await.unwrap_or_else(|_| vec![WriteOutcome::InDoubt; count]) } else { Vec::new() }
        })
    }
}

/// How a task takes a batch off the queue: one task at a time waits there.
struct Taking {
    jobs: Arc<Mutex<mpsc::Receiver<Job>>>,
    limit: usize,
}

impl Taking {
    async fn batch(&self) -> Option<VecDeque<Job>> {
        waiting::take(&mut *self.jobs.lock().await, self.limit, |job| job.works.len()).await
    }
}

async fn run(task: usize, taking: Taking, backlog: Arc<Backlog>, mut batches: batch::Batches) {
    // The first batch connects: that says nothing of how long another would take.
    let mut is_warm = false;
    while let Some(mut taken) = taking.batch().await {
        let now = Instant::now();
        if let (Some(first), Some(last)) = (taken.front(), taken.back()) {
            batches.meters().wait.record(now - first.queued_at);
            backlog.taken(taken.iter().map(|job| job.works.len()).sum(), last.queued_at);
        }
        while let Some(late) = taken.iter().position(|job| job.deadline <= now) {
            if let Some(job) = taken.remove(late) {
                let written = vec![WriteOutcome::TimedOut; job.works.len()];
                batches.meters().coupons.written(&job.works, &written);
                reply(job.answer, written);
            }
        }
        let Some(deadline) = taken.iter().map(|job| job.deadline).min() else { continue };

        let count = taken.iter().map(|job| job.works.len()).sum();
        let span = traces::together(taken.iter().map(|job| &job.waiting), count);
        let mut works = Vec::new();
        let mut answers = Vec::new();
        for job in taken {
            answers.push((job.answer, job.works.len()));
            works.extend(job.works);
        }
        batches.meters().size.record(f64::from(u32::try_from(works.len()).unwrap_or(u32::MAX)));
        backlog.begins(task, now);
        let mut written = batches.write(&works, deadline).instrument(span).await.into_iter();
        backlog.ends(task);
        if std::mem::replace(&mut is_warm, true) {
            backlog.written(works.len(), now.elapsed());
        }
        for (answer, count) in answers {
            reply(answer, written.by_ref().take(count).collect());
        }
    }
    batches.close().await;
}

/// Nobody may be waiting any more; the coupons are stored all the same.
fn reply(answer: oneshot::Sender<Vec<WriteOutcome>>, written: Vec<WriteOutcome>) {
    let _ = answer.send(written);
}
