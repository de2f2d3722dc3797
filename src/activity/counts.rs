//! Every request counts here, so each thread has a shard of its own and rarely waits for a lock. A full shard counts the rest as
//! lost.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;

use crate::model::{OrgId, SeriesId};

/// Usually more than there are threads. Otherwise threads share a shard.
const SHARDS: usize = 16;
/// Keys in a shard between two flushes.
const MAX_SHARD_KEYS: usize = 16_384;

/// Each key has a count of its own. The order is the one in which the database adds them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) org_id: OrgId,
    pub(super) series_id: SeriesId,
    /// Minutes since 1970.
    pub(super) minute: i64,
    pub(super) outcome: &'static str,
}

/// Aligned to cache lines, so that the counting of one thread does not slow down another.
#[repr(align(128))]
#[derive(Debug, Default)]
struct Shard(Mutex<HashMap<Key, u32>>);

/// The counts of this replica since the last flush.
#[derive(Debug)]
pub(super) struct Counts {
    shards: [Shard; SHARDS],
    lost: AtomicU64,
}

/// The locked shard of one request.
pub(super) struct Counter<'a> {
    shard: MutexGuard<'a, HashMap<Key, u32>>,
    lost: &'a AtomicU64,
    org_id: OrgId,
    minute: i64,
}

impl Counts {
    pub(super) fn new() -> Self {
        Self { shards: Default::default(), lost: AtomicU64::new(0) }
    }

    pub(super) fn lock_shard(&self, org_id: OrgId, now: Timestamp) -> Counter<'_> {
        let shard = self.shards[shard_of_this_thread()].0.lock().unwrap_or_else(PoisonError::into_inner);
        Counter { shard, lost: &self.lost, org_id, minute: now.as_second().div_euclid(60) }
    }

    /// Passes all counts to `each`, resets them, and returns the number lost.
    pub(super) fn take(&self, mut each: impl FnMut(Key, u32)) -> u64 {
        for shard in &self.shards {
            let mut shard = shard.0.lock().unwrap_or_else(PoisonError::into_inner);
            let capacity = shard.len();
            let taken = std::mem::replace(&mut *shard, HashMap::with_capacity(capacity));
            drop(shard);
            for (key, entities) in taken {
                each(key, entities);
            }
        }
        self.lost.swap(0, Ordering::Relaxed)
    }
}

impl Counter<'_> {
    pub(super) fn increment(&mut self, series_id: SeriesId, outcome: &'static str) {
        let key = Key { org_id: self.org_id, series_id, minute: self.minute, outcome };
        if let Some(entities) = self.shard.get_mut(&key) {
            *entities += 1;
        } else if self.shard.len() < MAX_SHARD_KEYS {
            self.shard.insert(key, 1);
        } else {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn shard_of_this_thread() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static OWN: Cell<usize> = Cell::new(NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS);
    }
    OWN.get()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_all_threads_are_taken_once_and_a_full_shard_loses_the_rest() {
        let counts = Counts::new();
        std::thread::scope(|scope| {
            for _ in 0..SHARDS + 3 {
                scope.spawn(|| {
                    for second in 0..120 {
                        let now = Timestamp::from_second(second).unwrap();
                        counts.lock_shard(OrgId(1), now).increment(SeriesId(7), "issued");
                    }
                });
            }
        });
        let mut by_minute = HashMap::new();
        let mut add = |key: Key, entities: u32| *by_minute.entry(key.minute).or_insert(0) += entities;
        assert_eq!((counts.take(&mut add), counts.take(&mut add)), (0, 0));
        assert_eq!(by_minute, HashMap::from([(0, 60 * 19), (1, 60 * 19)]));

        let mut counter = counts.lock_shard(OrgId(1), Timestamp::UNIX_EPOCH);
        for series_id in 0..MAX_SHARD_KEYS + 5 {
            counter.increment(SeriesId(i64::try_from(series_id).unwrap()), "issued");
        }
        counter.increment(SeriesId(0), "issued");
        drop(counter);
        let mut entities = 0;
        assert_eq!(counts.take(|_, more| entities += more), 5);
        assert_eq!(entities, u32::try_from(MAX_SHARD_KEYS).unwrap() + 1);
    }
}
