//! How much is waiting to be written, and how long it takes: what another request would have to wait.
//! An estimate that costs a few atomic operations; nothing but turning requests away depends on it.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// The queue has to have been waiting for so long before its length counts: the pace of small batches, before it filled up,
/// says nothing of what full ones do.
const SETTLED: Duration = Duration::from_millis(50);
/// What was the pace before counts a part of so many less with each batch that was slower. A fast one counts at once: a batch
/// that had to connect, or to wait for a moment, says little of the next.
const FORGOTTEN: u64 = 16;
/// A batch that takes longer than any that waits for nobody but a disk.
const HELD_UP_MICROS: u64 = 100_000;

/// What is waiting.
#[derive(Debug)]
pub(super) struct Backlog {
    tasks: u64,
    start: Instant,
    works: AtomicUsize,
    /// Whatever was queued before is taken; in microseconds since the start.
    taken_up_to: AtomicU64,
    /// What one task writes in a second, lately; 0: nothing is known of it.
    pace: AtomicU64,
    /// Since when each task is at work on a batch, in microseconds since the start; 0: it is not.
    at_work_since: Box<[AtomicU64]>,
}

impl Backlog {
    pub(super) fn new(tasks: usize) -> Self {
        Self {
            tasks: tasks as u64,
            start: Instant::now(),
            works: AtomicUsize::new(0),
            taken_up_to: AtomicU64::new(0),
            pace: AtomicU64::new(0),
            at_work_since: (0..tasks).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    fn micros(&self, at: Instant) -> u64 {
        u64::try_from((at - self.start).as_micros()).unwrap_or(u64::MAX)
    }

    /// This task begins a batch.
    pub(super) fn begins(&self, task: usize, at: Instant) {
        if let Some(since) = self.at_work_since.get(task) {
            since.store(self.micros(at).max(1), Ordering::Relaxed);
        }
    }

    /// This task has ended its batch.
    pub(super) fn ends(&self, task: usize) {
        if let Some(since) = self.at_work_since.get(task) {
            since.store(0, Ordering::Relaxed);
        }
    }

    /// Whether a task has been at work on one batch for so long that it must be waiting for something.
    pub(super) fn is_held_up(&self, now: Instant) -> bool {
        let held_up_since = self.micros(now).saturating_sub(HELD_UP_MICROS);
        self.at_work_since.iter().any(|since| (1..held_up_since).contains(&since.load(Ordering::Relaxed)))
    }

    /// So many are about to be queued.
    pub(super) fn queued(&self, works: usize, at: Instant) {
        if self.works.load(Ordering::Relaxed) == 0 {
            self.taken_up_to(at);
        }
        self.works.fetch_add(works, Ordering::Relaxed);
    }

    /// So many were not queued after all.
    pub(super) fn refused(&self, works: usize) {
        self.works.fetch_sub(works, Ordering::Relaxed);
    }

    /// So many were taken off the queue, the last of them queued at this instant.
    pub(super) fn taken(&self, works: usize, queued_at: Instant) {
        self.works.fetch_sub(works, Ordering::Relaxed);
        self.taken_up_to(queued_at);
    }

    fn taken_up_to(&self, at: Instant) {
        self.taken_up_to.fetch_max(self.micros(at), Ordering::Relaxed);
    }

    /// A task has written so many, in this time.
    pub(super) fn written(&self, works: usize, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1);
        let now = works as u64 * 1_000_000 / micros;
        let known = self.pace.load(Ordering::Relaxed);
        // Two tasks that meet here lose one batch of the estimate.
        self.pace.store(now.max(known - known / FORGOTTEN), Ordering::Relaxed);
    }

    /// How many are waiting.
    pub(super) fn waiting(&self) -> usize {
        self.works.load(Ordering::Relaxed)
    }

    /// How long one that came now would wait.
    pub(super) fn wait(&self, now: Instant) -> Duration {
        let works = self.works.load(Ordering::Relaxed) as u64;
        if works == 0 {
            return Duration::ZERO;
        }
        let taken_up_to = Duration::from_micros(self.taken_up_to.load(Ordering::Relaxed));
        let waiting = (now - self.start).saturating_sub(taken_up_to);
        match self.pace.load(Ordering::Relaxed) * self.tasks {
            pace if waiting >= SETTLED && pace > 0 => waiting.max(Duration::from_micros(works * 1_000_000 / pace)),
            _ => waiting,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn an_empty_queue_waits_for_nothing() {
        let backlog = Backlog::new(2);
        let start = backlog.start;
        assert_eq!(backlog.wait(start + 5000 * MS), Duration::ZERO);
        backlog.queued(10, start + 5000 * MS);
        assert_eq!(backlog.wait(start + 5001 * MS), MS, "since it was queued, not since the start");
        backlog.taken(10, start + 5000 * MS);
        assert_eq!(backlog.wait(start + 9000 * MS), Duration::ZERO);
    }

    #[test]
    fn a_batch_that_takes_a_tenth_of_a_second_is_held_up() {
        let backlog = Backlog::new(2);
        let start = backlog.start;
        backlog.begins(1, start + MS);
        assert!(!backlog.is_held_up(start + 101 * MS));
        assert!(backlog.is_held_up(start + 102 * MS));
        backlog.ends(1);
        backlog.begins(0, start + 1000 * MS);
        assert!(!backlog.is_held_up(start + 1050 * MS));
    }

    #[test]
    fn a_queue_that_stands_still_waits_as_long_as_its_oldest() {
        let backlog = Backlog::new(2);
        let start = backlog.start;
        backlog.written(100, 10 * MS);
        backlog.queued(1, start);
        assert_eq!(backlog.wait(start + 700 * MS), 700 * MS);
    }

    #[test]
    fn a_slow_batch_among_fast_ones_counts_for_little() {
        let backlog = Backlog::new(1);
        let start = backlog.start;
        backlog.written(50, 150 * MS); // it had to connect
        backlog.written(100, 10 * MS);
        backlog.written(1, 300 * MS);
        backlog.queued(1000, start);
        let wait = backlog.wait(start + 60 * MS);
        assert!((100 * MS..120 * MS).contains(&wait), "{wait:?}");
        for _ in 0..100 {
            backlog.written(1, 300 * MS);
        }
        assert!(backlog.wait(start + 60 * MS) > 5000 * MS, "but many of them do");
    }

    #[test]
    fn a_long_queue_waits_for_its_length() {
        let backlog = Backlog::new(2);
        let start = backlog.start;
        for _ in 0..50 {
            backlog.written(100, 20 * MS); // 5,000 a second, each of the two
        }
        backlog.queued(20_000, start);
        assert_eq!(backlog.wait(start + 20 * MS), 20 * MS, "a burst is not judged before it has been seen to go");
        backlog.taken(10_000, start);
        let wait = backlog.wait(start + 60 * MS);
        assert!((990 * MS..1100 * MS).contains(&wait), "{wait:?}");
    }
}
