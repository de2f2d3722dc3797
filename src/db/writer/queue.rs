use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::Instrument;

use super::batch::{BatchWriter, SharedIdLease};
use super::connection::Connector;
use super::load::LoadEstimator;
use super::metrics::QueueMetrics;
use super::outcome::WriteOutcome;
use super::prober::Prober;
use super::work::Work;
use crate::config::WriterSettings;
use crate::db::batching::take_batch;
use crate::telemetry::metrics::ActiveCount;
use crate::telemetry::traces::{self, QueueSpan};

/// The queue is full: requests arrive faster than the database writes.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("too many coupons are waiting to be written")]
pub struct QueueFull;

/// How the writer is used at one moment.
#[derive(Debug, Clone, Copy)]
pub struct WriterUsage {
    /// Queued coupons.
    pub waiting: usize,
    /// The expected wait of another coupon.
    pub wait: Duration,
    /// Open connections.
    pub connections: usize,
    /// The most connections that the writer opens, apart from the probe's.
    pub max_connections: usize,
}

/// A handle on the queue. The tasks end when the last handle is dropped and the queue is empty.
#[derive(Debug, Clone)]
pub struct Writer {
    coupons: Queue,
    /// Flush barriers have a queue of their own, so that no lock of a coupon delays them.
    barriers: Queue,
    prober: Arc<Prober>,
    connections: ActiveCount,
    max_connections: usize,
}

#[derive(Debug, Clone)]
struct Queue {
    jobs: mpsc::Sender<Job>,
    load: Arc<LoadEstimator>,
}

#[derive(Debug)]
struct Job {
    works: Vec<Work>,
    queued_at: Instant,
    deadline: Instant,
    answer: oneshot::Sender<Vec<WriteOutcome>>,
    waiting: QueueSpan,
}

impl Writer {
    /// Starts the tasks: several for coupons, and one for flush barriers. They connect on first use.
    #[must_use]
    pub fn start(connect: &PgConnectOptions, settings: WriterSettings) -> (Self, Vec<JoinHandle<()>>) {
        let (connections, is_suspect) = (ActiveCount::default(), Arc::new(AtomicBool::new(true)));
        let start =
            |settings, metrics: &QueueMetrics| Queue::start(connect, settings, metrics, &connections, &is_suspect);
        let (coupons, mut tasks) = start(settings, &QueueMetrics::new("coupons"));
        let one_task = WriterSettings { tasks: 1, ..settings };
        let (barriers, barrier_tasks) = start(one_task, &QueueMetrics::new("confirmations"));
        tasks.extend(barrier_tasks);
        let prober = Prober::new(connect.clone(), settings.statement_timeout, is_suspect);
        let max_connections = settings.tasks + 1;
        (Self { coupons, barriers, prober: Arc::new(prober), connections, max_connections }, tasks)
    }

    /// Whether the database refuses every write, though it can be reached. Probed after the start, and after a task saw every write
    /// refused, so that readiness does not depend on a request for a coupon. No answer within `limit` counts as a refusal.
    pub async fn is_refused(&self, limit: Duration) -> bool {
        self.prober.is_refused(limit).await
    }

    /// How the writer is used now.
    #[must_use]
    pub fn usage(&self) -> WriterUsage {
        WriterUsage {
            waiting: self.coupons.load.queued(),
            wait: self.wait(),
            connections: self.connections.count(),
            max_connections: self.max_connections,
        }
    }

    /// The expected wait of another coupon in the queue.
    #[must_use]
    pub fn wait(&self) -> Duration {
        self.coupons.load.expected_wait(Instant::now())
    }

    /// Whether a batch is blocked. A claim should then not wait behind it.
    #[must_use]
    pub fn is_stalled(&self) -> bool {
        self.coupons.load.is_stalled(Instant::now())
    }

    /// Does all works and returns their outcomes in the same order. Always answers: at the latest `deadline` plus the time that the
    /// database may take for a batch.
    ///
    /// # Errors
    /// When a queue is full; then nothing is stored.
    pub async fn write(&self, works: Vec<Work>, deadline: Instant) -> Result<Vec<WriteOutcome>, QueueFull> {
        let is_coupon: Vec<bool> = works.iter().map(|work| work.coupon().is_some()).collect();
        if is_coupon.iter().all(|is_coupon| *is_coupon) {
            return Ok(self.coupons.send(works, deadline)?.await);
        }
        let (coupons, barriers): (Vec<Work>, Vec<Work>) = works.into_iter().partition(|work| work.coupon().is_some());
        // Barriers first: if their queue is full, no coupon was sent.
        let flushed = self.barriers.send(barriers, deadline)?;
        let written = self.coupons.send(coupons, deadline)?;
        let (flushed, written) = tokio::join!(flushed, written);
        let (mut flushed, mut written) = (flushed.into_iter(), written.into_iter());
        let next = |is_coupon| if is_coupon { written.next() } else { flushed.next() };
        Ok(is_coupon.into_iter().map(next).map(|outcome| outcome.unwrap_or(WriteOutcome::InDoubt)).collect())
    }
}

impl Queue {
    fn start(
        connect: &PgConnectOptions,
        settings: WriterSettings,
        metrics: &QueueMetrics,
        connections: &ActiveCount,
        is_suspect: &Arc<AtomicBool>,
    ) -> (Self, Vec<JoinHandle<()>>) {
        let (sender, jobs) = mpsc::channel(settings.queue);
        let jobs = Arc::new(Mutex::new(jobs));
        let load = Arc::new(LoadEstimator::new(settings.tasks));
        let ids = SharedIdLease::new();
        let tasks = (0..settings.tasks)
            .map(|number| {
                let connector = Connector::new(connect.clone(), settings.statement_timeout, connections.clone());
                let writer = BatchWriter::new(connector, Arc::clone(is_suspect), ids.clone(), metrics.clone());
                let jobs = JobReceiver { jobs: Arc::clone(&jobs), batch_size: settings.batch };
                tokio::spawn(run(number, jobs, Arc::clone(&load), writer))
            })
            .collect();
        (Self { jobs: sender, load }, tasks)
    }

    /// Queues the works as one job. The job is done even if the caller drops the future.
    fn send(
        &self,
        works: Vec<Work>,
        deadline: Instant,
    ) -> Result<impl Future<Output = Vec<WriteOutcome>> + use<>, QueueFull> {
        let count = works.len();
        let (answer, answered) = oneshot::channel();
        if count > 0 {
            let queued_at = Instant::now();
            self.load.add(count, queued_at);
            let job = Job { works, queued_at, deadline, answer, waiting: QueueSpan::begin(count) };
            if self.jobs.try_send(job).is_err() {
                self.load.cancel(count);
                return Err(QueueFull);
            }
        }
        // A task drops an answer only if it panicked. Its coupons are in doubt.
        Ok(async move {
            if count > 0 { answered.await.unwrap_or_else(|_| vec![WriteOutcome::InDoubt; count]) } else { Vec::new() }
        })
    }
}

/// The queue's end that all tasks share. One task at a time waits for a batch.
struct JobReceiver {
    jobs: Arc<Mutex<mpsc::Receiver<Job>>>,
    batch_size: usize,
}

impl JobReceiver {
    async fn batch(&self) -> Option<VecDeque<Job>> {
        take_batch(&mut *self.jobs.lock().await, self.batch_size, |job| job.works.len()).await
    }
}

async fn run(task: usize, jobs: JobReceiver, load: Arc<LoadEstimator>, mut writer: BatchWriter) {
    // The first batch also connects, so its duration does not predict others.
    let mut is_warm = false;
    while let Some(mut batch) = jobs.batch().await {
        let now = Instant::now();
        if let (Some(first), Some(last)) = (batch.front(), batch.back()) {
            writer.metrics().wait.record(now - first.queued_at);
            load.take(work_count(&batch), last.queued_at);
        }
        refuse_late_jobs(&mut batch, now, &writer);
        let Some(deadline) = batch.iter().map(|job| job.deadline).min() else { continue };

        let span = traces::batch_span(batch.iter().map(|job| &job.waiting), work_count(&batch));
        let mut works = Vec::new();
        let mut answers = Vec::new();
        for job in batch {
            answers.push((job.answer, job.works.len()));
            works.extend(job.works);
        }
        writer.metrics().batch_size.record(f64::from(u32::try_from(works.len()).unwrap_or(u32::MAX)));
        load.begin_batch(task, now);
        let mut outcomes = writer.write(&works, deadline).instrument(span).await.into_iter();
        load.end_batch(task);
        if std::mem::replace(&mut is_warm, true) {
            load.record_batch(works.len(), now.elapsed());
        }
        for (answer, count) in answers {
            reply(answer, outcomes.by_ref().take(count).collect());
        }
    }
    writer.close().await;
}

fn work_count(batch: &VecDeque<Job>) -> usize {
    batch.iter().map(|job| job.works.len()).sum()
}

fn refuse_late_jobs(batch: &mut VecDeque<Job>, now: Instant, writer: &BatchWriter) {
    while let Some(late) = batch.iter().position(|job| job.deadline <= now) {
        if let Some(job) = batch.remove(late) {
            let outcomes = vec![WriteOutcome::TimedOut; job.works.len()];
            writer.metrics().coupons.add(&job.works, &outcomes);
            reply(job.answer, outcomes);
        }
    }
}

/// Ignores that the caller may be gone: its coupons are stored all the same.
fn reply(answer: oneshot::Sender<Vec<WriteOutcome>>, outcomes: Vec<WriteOutcome>) {
    let _ = answer.send(outcomes);
}
