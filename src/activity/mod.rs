//! Counts what callers are answered, for the console. No decision and no coupon depends on these counts: what a crash loses, or
//! memory has no room for, is missing in the console and nowhere else.

mod counts;
mod failures;
mod flusher;
mod overview;
mod recorder;

pub use overview::{HOUR, OutcomeCount, Overview, OverviewError, OverviewQuery, PAGE, PoolRemaining, SeriesActivity};
pub use recorder::{Activity, ActivityTasks, EntityOutcome, OutcomeKind};

pub use crate::db::overview::{FailureRow as RecentFailure, SeriesCursor};
