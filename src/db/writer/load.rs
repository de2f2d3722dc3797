use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// The length of the queue counts only after the queue has waited for this long: the rate of the small batches before it filled up
/// does not predict the rate of full ones.
const MIN_WAIT_TO_EXTRAPOLATE: Duration = Duration::from_millis(50);
/// Each slower batch lowers the rate by one part in this many. A faster batch raises it at once: a batch that had to connect, or that
/// waited for a moment, does not predict the next one.
const RATE_DECAY: u64 = 16;
/// A batch that waits for nothing but the disk takes less than this.
const STALL_MICROS: u64 = 100_000;

/// Estimates how long another request would wait in the queue, at the cost of a few atomic operations. Only load shedding depends on
/// the estimate.
#[derive(Debug)]
pub(super) struct LoadEstimator {
    tasks: u64,
    start: Instant,
    queued: AtomicUsize,
    /// Everything queued before this time, in microseconds since the start, has been taken.
    taken_up_to: AtomicU64,
    /// What one task writes in a second; 0: unknown.
    rate: AtomicU64,
    /// When each task began its batch, in microseconds since the start; 0: it is idle.
    batch_began: Box<[AtomicU64]>,
}

impl LoadEstimator {
    pub(super) fn new(tasks: usize) -> Self {
        Self {
            tasks: tasks as u64,
            start: Instant::now(),
            queued: AtomicUsize::new(0),
            taken_up_to: AtomicU64::new(0),
            rate: AtomicU64::new(0),
            batch_began: (0..tasks).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    fn micros(&self, at: Instant) -> u64 {
        u64::try_from((at - self.start).as_micros()).unwrap_or(u64::MAX)
    }

    pub(super) fn begin_batch(&self, task: usize, at: Instant) {
        if let Some(began) = self.batch_began.get(task) {
            began.store(self.micros(at).max(1), Ordering::Relaxed);
        }
    }

    pub(super) fn end_batch(&self, task: usize) {
        if let Some(began) = self.batch_began.get(task) {
            began.store(0, Ordering::Relaxed);
        }
    }

    /// Whether a task has worked on one batch for so long that it must be waiting for a lock or for the server.
    pub(super) fn is_stalled(&self, now: Instant) -> bool {
        let stalled_before = self.micros(now).saturating_sub(STALL_MICROS);
        self.batch_began.iter().any(|began| (1..stalled_before).contains(&began.load(Ordering::Relaxed)))
    }

    /// Call before queueing.
    pub(super) fn add(&self, count: usize, at: Instant) {
        if self.queued.load(Ordering::Relaxed) == 0 {
            self.mark_taken_up_to(at);
        }
        self.queued.fetch_add(count, Ordering::Relaxed);
    }

    /// Undoes [`add`](Self::add): the queue was full.
    pub(super) fn cancel(&self, count: usize) {
        self.queued.fetch_sub(count, Ordering::Relaxed);
    }

    /// `queued_at`: when the last of the batch was queued.
    pub(super) fn take(&self, count: usize, queued_at: Instant) {
        self.queued.fetch_sub(count, Ordering::Relaxed);
        self.mark_taken_up_to(queued_at);
    }

    fn mark_taken_up_to(&self, at: Instant) {
        self.taken_up_to.fetch_max(self.micros(at), Ordering::Relaxed);
    }

    pub(super) fn record_batch(&self, count: usize, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1);
        let measured = count as u64 * 1_000_000 / micros;
        let known = self.rate.load(Ordering::Relaxed);
        // If two tasks race here, the estimate misses one batch.
        self.rate.store(measured.max(known - known / RATE_DECAY), Ordering::Relaxed);
    }

    pub(super) fn queued(&self) -> usize {
        self.queued.load(Ordering::Relaxed)
    }

    pub(super) fn expected_wait(&self, now: Instant) -> Duration {
        let queued = self.queued.load(Ordering::Relaxed) as u64;
        if queued == 0 {
            return Duration::ZERO;
        }
        let taken_up_to = Duration::from_micros(self.taken_up_to.load(Ordering::Relaxed));
        let oldest = (now - self.start).saturating_sub(taken_up_to);
        match self.rate.load(Ordering::Relaxed) * self.tasks {
            rate if oldest >= MIN_WAIT_TO_EXTRAPOLATE && rate > 0 => {
                oldest.max(Duration::from_micros(queued * 1_000_000 / rate))
            }
            _ => oldest,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn an_empty_queue_has_no_wait() {
        let load = LoadEstimator::new(2);
        let start = load.start;
        assert_eq!(load.expected_wait(start + 5000 * MS), Duration::ZERO);
        load.add(10, start + 5000 * MS);
        assert_eq!(load.expected_wait(start + 5001 * MS), MS, "counted from the time of queueing, not from the start");
        load.take(10, start + 5000 * MS);
        assert_eq!(load.expected_wait(start + 9000 * MS), Duration::ZERO);
    }

    #[test]
    fn a_batch_that_takes_over_100_ms_is_stalled() {
        let load = LoadEstimator::new(2);
        let start = load.start;
        load.begin_batch(1, start + MS);
        assert!(!load.is_stalled(start + 101 * MS));
        assert!(load.is_stalled(start + 102 * MS));
        load.end_batch(1);
        load.begin_batch(0, start + 1000 * MS);
        assert!(!load.is_stalled(start + 1050 * MS));
    }

    #[test]
    fn a_queue_that_does_not_move_waits_as_long_as_its_oldest_item() {
        let load = LoadEstimator::new(2);
        let start = load.start;
        load.record_batch(100, 10 * MS);
        load.add(1, start);
        assert_eq!(load.expected_wait(start + 700 * MS), 700 * MS);
    }

    #[test]
    fn a_slow_batch_among_fast_ones_barely_lowers_the_rate() {
        let load = LoadEstimator::new(1);
        let start = load.start;
        load.record_batch(50, 150 * MS); // it had to connect
        load.record_batch(100, 10 * MS);
        load.record_batch(1, 300 * MS);
        load.add(1000, start);
        let wait = load.expected_wait(start + 60 * MS);
        assert!((100 * MS..120 * MS).contains(&wait), "{wait:?}");
        for _ in 0..100 {
            load.record_batch(1, 300 * MS);
        }
        assert!(load.expected_wait(start + 60 * MS) > 5000 * MS, "many slow batches lower the rate");
    }

    #[test]
    fn a_long_queue_waits_in_proportion_to_its_length() {
        let load = LoadEstimator::new(2);
        let start = load.start;
        for _ in 0..50 {
            load.record_batch(100, 20 * MS); // 5,000 a second for each of the two tasks
        }
        load.add(20_000, start);
        assert_eq!(load.expected_wait(start + 20 * MS), 20 * MS, "too early to extrapolate from a burst");
        load.take(10_000, start);
        let wait = load.expected_wait(start + 60 * MS);
        assert!((990 * MS..1100 * MS).contains(&wait), "{wait:?}");
    }
}
