//! Counting on the way of every request: each thread has a shard of its own, so that hardly anybody ever waits for a lock.
//! Bounded: what has no room is only counted as lost.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;

use crate::model::{OrgId, SeriesId};

/// More than there are threads, as a rule; else some share one.
const SHARDS: usize = 16;
/// What a shard has room for, until it is emptied.
const MOST_IN_A_SHARD: usize = 16_384;

/// What is counted apart. Ordered as the database adds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) org_id: OrgId,
    pub(super) series_id: SeriesId,
    /// Minutes since 1970.
    pub(super) minute: i64,
    pub(super) outcome: &'static str,
}

/// A cache line or two of its own, so that no thread slows down another by counting.
#[repr(align(128))]
#[derive(Debug, Default)]
struct Shard(Mutex<HashMap<Key, u32>>);

/// The counts of this replica that are not yet on their way to the database.
#[derive(Debug)]
pub(super) struct Counts {
    shards: [Shard; SHARDS],
    lost: AtomicU64,
}

/// The counting of one request.
pub(super) struct Counting<'a> {
    shard: MutexGuard<'a, HashMap<Key, u32>>,
    lost: &'a AtomicU64,
    org_id: OrgId,
    minute: i64,
}

impl Counts {
    pub(super) fn new() -> Self {
        Self { shards: Default::default(), lost: AtomicU64::new(0) }
    }

    pub(super) fn begin(&self, org_id: OrgId, now: Timestamp) -> Counting<'_> {
        let shard = self.shards[shard_of_this_thread()].0.lock().unwrap_or_else(PoisonError::into_inner);
        Counting { shard, lost: &self.lost, org_id, minute: now.as_second().div_euclid(60) }
    }

    /// Hands over all that was counted, and how much was not.
    pub(super) fn take(&self, mut each: impl FnMut(Key, u32)) -> u64 {
        for shard in &self.shards {
            let mut shard = shard.0.lock().unwrap_or_else(PoisonError::into_inner);
            let room = shard.len();
            let taken = std::mem::replace(&mut *shard, HashMap::with_capacity(room));
            drop(shard);
            for (key, entities) in taken {
                each(key, entities);
            }
        }
        self.lost.swap(0, Ordering::Relaxed)
    }
}

impl Counting<'_> {
    pub(super) fn add(&mut self, series_id: SeriesId, outcome: &'static str) {
        let key = Key { org_id: self.org_id, series_id, minute: self.minute, outcome };
        if let Some(entities) = self.shard.get_mut(&key) {
            *entities += 1;
        } else if self.shard.len() < MOST_IN_A_SHARD {
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
    fn what_all_threads_count_is_taken_once_and_no_more_than_there_is_room_for() {
        let counts = Counts::new();
        std::thread::scope(|scope| {
            for _ in 0..SHARDS + 3 {
                scope.spawn(|| {
                    for second in 0..120 {
                        let now = Timestamp::from_second(second).unwrap();
                        counts.begin(OrgId(1), now).add(SeriesId(7), "issued");
                    }
                });
            }
        });
        let mut by_minute = HashMap::new();
        let mut add = |key: Key, entities: u32| *by_minute.entry(key.minute).or_insert(0) += entities;
        assert_eq!((counts.take(&mut add), counts.take(&mut add)), (0, 0));
        assert_eq!(by_minute, HashMap::from([(0, 60 * 19), (1, 60 * 19)]));

        let mut counting = counts.begin(OrgId(1), Timestamp::UNIX_EPOCH);
        for series_id in 0..MOST_IN_A_SHARD + 5 {
            counting.add(SeriesId(i64::try_from(series_id).unwrap()), "issued");
        }
        counting.add(SeriesId(0), "issued");
        drop(counting);
        let mut entities = 0;
        assert_eq!(counts.take(|_, more| entities += more), 5);
        assert_eq!(entities, u32::try_from(MOST_IN_A_SHARD).unwrap() + 1);
    }
}
