//! The console lists a sample of the failures, limited per second. The counts include every failure.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;

use crate::db::activity::Failure;
use crate::model::OrgId;

const MAX_PER_SECOND: u32 = 20;
/// Leaves room for other organisations when one fails all the time.
const MAX_PER_SECOND_AND_ORGANISATION: u32 = 10;
/// While the database is away, the newest failures replace the oldest.
const MAX_PENDING: usize = 1000;

/// The failures that wait for a flush.
#[derive(Debug)]
pub(super) struct Failures(Mutex<Recent>);

#[derive(Debug, Default)]
struct Recent {
    second: i64,
    in_second: u32,
    by_organisation: HashMap<OrgId, u32>,
    pending: VecDeque<Failure>,
}

impl Failures {
    pub(super) fn new() -> Self {
        Self(Mutex::default())
    }

    /// Adds a failure, unless a limit of the current second is reached.
    pub(super) fn add(&self, now: Timestamp, org_id: OrgId, failure: impl FnOnce() -> Failure) {
        let mut recent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.second != now.as_second() {
            recent.second = now.as_second();
            recent.in_second = 0;
            recent.by_organisation.clear();
        }
        if recent.in_second >= MAX_PER_SECOND {
            return;
        }
        let in_organisation = recent.by_organisation.entry(org_id).or_default();
        if *in_organisation >= MAX_PER_SECOND_AND_ORGANISATION {
            return;
        }
        *in_organisation += 1;
        recent.in_second += 1;
        recent.pending.push_back(failure());
        if recent.pending.len() > MAX_PENDING {
            recent.pending.pop_front();
        }
    }

    /// Takes up to `limit` failures, the oldest first.
    pub(super) fn take(&self, limit: usize) -> Vec<Failure> {
        let mut recent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = limit.min(recent.pending.len());
        recent.pending.drain(..taken).collect()
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
    fn an_organisation_that_fails_all_the_time_leaves_room_for_others() {
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
    fn the_newest_failures_stay() {
        let failures = Failures::new();
        for second in 0..5000 {
            fail(&failures, second, Timestamp::from_second(second).unwrap());
        }
        assert_eq!(listed(&failures), (4000..5000).collect::<Vec<_>>());
    }
}
