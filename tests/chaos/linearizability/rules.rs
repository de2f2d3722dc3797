//! The rules of the series and their changes, as the lines of `apply` have them.
//! And the refusals of the contract that these rules can cause.

use std::collections::BTreeMap;

use super::search::NEVER;
use crate::history::{Answer, History, Nanos, Series};

/// The refusals that the rules of a line of `apply` can cause.
pub type Refusal = (u64, &'static str);
pub const UNKNOWN_SERIES: Refusal = (707, "Coupon Series ID is invalid");
pub const EXPIRED: Refusal = (712, "Coupon Series has expired");
pub const HAS_ONE: Refusal = (709, "Coupon processing failed: user already has a coupon");
pub const MAXIMUM: Refusal = (730, "Unknown error : MAX_COUPON_ISSUAL_PER_USER_EXCEEDED");
pub const EXCLUSIVE: Refusal = (709, "Coupon processing failed: coupon present in mutually exclusive series");
pub const FULL: Refusal = (5001, "Maximum number of series has been created");
pub const EMPTY: Refusal = (5005, "Queue is empty for series");
pub const GAP: Refusal =
    (709, "Coupon processing failed: days between consecutive issuals for a user less than min days between issuals");

pub fn is(answer: &Answer, refusal: Refusal) -> bool {
    matches!(answer, Answer::Refused { error, message, .. } if (*error, message.as_str()) == refusal)
}

/// One version of the settings. The first is in force before the first call.
#[derive(Debug, Clone)]
pub struct Settings {
    pub version: usize,
    pub start: Nanos,
    /// [`NEVER`]: nothing bounds when it takes effect.
    pub end: Nanos,
    pub series: BTreeMap<i64, Series>,
}

/// All versions in order. Changes of settings come one after the other, each holds a lock until its commit, and nothing is sent for
/// one that was given up. So a failed one takes effect before the next successful one ends, or never: its end
/// is the end of that one, and a version that is older than the one in force changes nothing. Otherwise each one that fails would
/// leave all later caps in doubt.
pub fn settings(history: &History) -> Result<Vec<Settings>, String> {
    let mut applies: Vec<_> = history.applies.iter().collect();
    applies.sort_by_key(|apply| apply.start);
    if applies.is_empty() {
        return Err("no line of type apply: the rules are unknown".to_owned());
    }
    let mut last_end = 0;
    for apply in &applies {
        if apply.end.is_some() && apply.start < last_end {
            return Err(format!("changes of the settings overlap: {} starts before {last_end}", apply.start));
        }
        last_end = last_end.max(apply.end.unwrap_or_default());
    }
    let end = |from: usize| applies[from..].iter().find_map(|apply| apply.end).unwrap_or(NEVER);
    let one = |(version, apply): (usize, &&crate::history::Apply)| Settings {
        version,
        start: apply.start,
        end: end(version).max(apply.start),
        series: apply.series.iter().map(|series| (series.id, series.clone())).collect(),
    };
    Ok(applies.iter().enumerate().map(one).collect())
}

pub fn excludes(one: &Series, other: &Series) -> bool {
    one.mutual_exclusive_series_ids.contains(&other.id) || other.mutual_exclusive_series_ids.contains(&one.id)
}

/// For each series the smallest one that it is connected with by exclusions, over all versions.
pub fn groups(settings: &[Settings]) -> BTreeMap<i64, i64> {
    let mut group: BTreeMap<i64, i64> = BTreeMap::new();
    for series in settings.iter().flat_map(|settings| settings.series.values()) {
        let mut ids = series.mutual_exclusive_series_ids.clone();
        ids.push(series.id);
        let joined: Vec<i64> = ids.iter().map(|id| *group.entry(*id).or_insert(*id)).collect();
        let smallest = joined.iter().copied().min().unwrap_or(series.id);
        group.values_mut().filter(|of| joined.contains(of)).for_each(|of| *of = smallest);
    }
    group
}
