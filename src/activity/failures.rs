//! Failures on their way into the list of recent ones: so many a second and no more, whatever callers do.
//! The counts hold each of them; this is the sample that people look at.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;

use crate::db::activity::Failure;
use crate::model::OrgId;

/// Listed in a second, of all organisations; and of one, so that one that fails all the time leaves room for the others.
pub(super) const MOST_IN_A_SECOND: u32 = 20;
const MOST_OF_ONE: u32 = 10;
/// Those that wait to be added: the newest, while the database is away.
const MOST_WAITING: usize = 1000;

/// The failures that wait to be added.
#[derive(Debug)]
pub(super) struct Failures(Mutex<Recent>);

#[derive(Debug, Default)]
struct Recent {
    second: i64,
    in_second: u32,
    of_one: HashMap<OrgId, u32>,
    waiting: VecDeque<Failure>,
}

impl Failures {
    pub(super) fn new() -> Self {
        Self(Mutex::default())
    }

    /// Lists a failure, if its second has room for it.
    pub(super) fn add(&self, now: Timestamp, org_id: OrgId, failure: impl FnOnce() -> Failure) {
        let mut recent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.second != now.as_second() {
            recent.second = now.as_second();
            recent.in_second = 0;
            recent.of_one.clear();
        }
        if recent.in_second >= MOST_IN_A_SECOND {
            return;
        }
        let of_this = recent.of_one.entry(org_id).or_default();
        if *of_this >= MOST_OF_ONE {
            return;
        }
        *of_this += 1;
        recent.in_second += 1;
        recent.waiting.push_back(failure());
        if recent.waiting.len() > MOST_WAITING {
            recent.waiting.pop_front();
        }
    }

    /// Takes the oldest of those that wait.
    pub(super) fn take(&self, most: usize) -> Vec<Failure> {
        let mut recent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = most.min(recent.waiting.len());
        recent.waiting.drain(..taken).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::{Access, Caller, Credential, SeriesId, StoreId};

    fn listed(failures: &Failures) -> Vec<i64> {
        failures.take(usize::MAX).iter().map(|failure| failure.caller.org_id.0).collect()
    }

    fn fail(failures: &Failures, org: i64, at: Timestamp) {
        let org_id = OrgId(org);
        let caller = Arc::new(Caller {
            org_id,
            till_id: None,
            store_id: StoreId(1),
            access: Access::Write,
            credential: Credential::Till,
            is_attributed: false,
        });
        let failure = || Failure { caller, at, request_id: "r".into(), series_id: SeriesId(1), outcome: "gap" };
        failures.add(at, org_id, failure);
    }

    #[test]
    fn one_that_fails_all_the_time_leaves_room_for_the_others() {
        let failures = Failures::new();
        let at = |second| Timestamp::from_second(second).unwrap();
        for org in [1, 2, 3] {
            (0..1000).for_each(|_| fail(&failures, org, at(1)));
        }
        assert_eq!(listed(&failures), [[1; 10], [2; 10]].concat());
        fail(&failures, 3, at(2));
        assert_eq!(listed(&failures), [3]);
    }

    #[test]
    fn the_newest_wait() {
        let failures = Failures::new();
        for second in 0..5000 {
            fail(&failures, second, Timestamp::from_second(second).unwrap());
        }
        assert_eq!(listed(&failures), (4000..5000).collect::<Vec<_>>());
    }
}
