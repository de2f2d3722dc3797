//! The rules of the series and their changes, from the lines of type `apply`, and the refusals that these rules can cause.

use std::collections::BTreeMap;

use super::search::NEVER;
use crate::history::{Answer, History, Nanos, Series};

/// The code and the message of an error.
pub type Refusal = (u64, &'static str);
pub const UNKNOWN_SERIES: Refusal = (707, "Coupon Series ID is invalid");
pub const EXPIRED: Refusal = (712, "Coupon Series has expired");
pub const HAS_ONE: Refusal = (709, "Coupon processing failed: user already has a coupon");
pub const MAX_REACHED: Refusal = (730, "Unknown error : MAX_COUPON_ISSUAL_PER_USER_EXCEEDED");
pub const HOLDS_EXCLUDED: Refusal = (709, "Coupon processing failed: coupon present in mutually exclusive series");
pub const CAP_REACHED: Refusal = (5001, "Maximum number of series has been created");
pub const POOL_EMPTY: Refusal = (5005, "Queue is empty for series");
pub const GAP: Refusal =
    (709, "Coupon processing failed: days between consecutive issuals for a user less than min days between issuals");

pub fn is(answer: &Answer, refusal: Refusal) -> bool {
    matches!(answer, Answer::Refused { error, message, .. } if (*error, message.as_str()) == refusal)
}

/// A version of the settings. The first one is in force before the first call.
#[derive(Debug, Clone)]
pub struct Settings {
    pub version: usize,
    pub start: Nanos,
    /// [`NEVER`]: the change may take effect at any later moment.
    pub end: Nanos,
    pub series: BTreeMap<i64, Series>,
}

/// All versions in order. Changes of settings come one after the other, each holds a lock until its commit, and a change that was given
/// up sends nothing more. So a failed change takes effect before the next successful one ends, or never. Its end is therefore the end
/// of that one, and a version older than the one in force changes nothing. Without this bound, every failed change would leave all
/// later caps in doubt.
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
    let settings_of = |(version, apply): (usize, &&crate::history::Apply)| Settings {
        version,
        start: apply.start,
        end: end(version).max(apply.start),
        series: apply.series.iter().map(|series| (series.id, series.clone())).collect(),
    };
    Ok(applies.iter().enumerate().map(settings_of).collect())
}

pub fn excludes(one: &Series, other: &Series) -> bool {
    one.mutual_exclusive_series_ids.contains(&other.id) || other.mutual_exclusive_series_ids.contains(&one.id)
}

/// For each series the smallest of the series that exclusions connect with it, over all versions.
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
