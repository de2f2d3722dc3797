//! Bounds on the time of a commit, as docs/history.md defines them.
//! They are computed once and looked up in logarithmic time.

use std::collections::{HashMap, HashSet};

use super::operations::Entities;
use crate::history::{Answer, Apply, Commit, Coupon, History, Issue, Lsn, Mark, Nanos, Series};

/// Each pair says: by this instant, the log had reached this position. Sorted, and each position is the greatest so far.
#[derive(Debug, Default)]
struct LowerBounds(Vec<(Nanos, Lsn)>);

impl FromIterator<(Nanos, Lsn)> for LowerBounds {
    fn from_iter<I: IntoIterator<Item = (Nanos, Lsn)>>(facts: I) -> Self {
        let mut facts: Vec<_> = facts.into_iter().collect();
        facts.sort_unstable();
        let mut greatest = 0;
        for (_, position) in &mut facts {
            greatest = greatest.max(*position);
            *position = greatest;
        }
        Self(facts)
    }
}

impl LowerBounds {
    fn before(&self, instant: Nanos) -> Lsn {
        let count = self.0.partition_point(|(fact, _)| *fact < instant);
        count.checked_sub(1).map_or(0, |last| self.0[last].1)
    }
}

/// Each pair says: at this instant, the log had not passed this position. Sorted, and each position is the least from there on.
#[derive(Debug, Default)]
struct UpperBounds(Vec<(Nanos, Lsn)>);

impl FromIterator<(Nanos, Lsn)> for UpperBounds {
    fn from_iter<I: IntoIterator<Item = (Nanos, Lsn)>>(facts: I) -> Self {
        let mut facts: Vec<_> = facts.into_iter().collect();
        facts.sort_unstable();
        let mut least = Lsn::MAX;
        for (_, position) in facts.iter_mut().rev() {
            least = least.min(*position);
            *position = least;
        }
        Self(facts)
    }
}

impl UpperBounds {
    fn after(&self, instant: Nanos) -> Lsn {
        let count = self.0.partition_point(|(fact, _)| *fact <= instant);
        self.0.get(count).map_or(Lsn::MAX, |(_, position)| *position)
    }
}

/// The committed coupons, indexed by what an answer shows.
pub struct Committed<'a> {
    by_key: HashMap<&'a str, Vec<&'a Coupon>>,
    /// The first commit of a coupon with this customer, series and code.
    by_holder: HashMap<(&'a str, i64, &'a str), Lsn>,
}

impl<'a> Committed<'a> {
    pub fn of(history: &'a History) -> Self {
        let mut committed = Self { by_key: HashMap::new(), by_holder: HashMap::new() };
        for coupon in super::coupons_of(history) {
            if let Some(key) = &coupon.key {
                committed.by_key.entry(key).or_default().push(coupon);
            }
            committed.by_holder.entry((&coupon.customer, coupon.series, &coupon.code)).or_insert(coupon.commit);
        }
        committed
    }

    pub fn of_entity(&self, key: &str, index: usize) -> impl Iterator<Item = &'a Coupon> {
        let of_key = self.by_key.get(key).into_iter().flatten().copied();
        of_key.filter(move |coupon| coupon.entity == index)
    }

    /// The commit of the coupon that an answer shows.
    fn shown(&self, call: &Issue, index: usize, answer: &Answer) -> Option<Lsn> {
        if let Answer::Issued { code, .. } = answer {
            return Some(self.of_entity(&call.key, index).find(|coupon| coupon.code == *code)?.commit);
        }
        let Answer::Resent { code, .. } = answer else { return None };
        self.by_holder.get(&(&call.customer, *call.series.get(index)?, code)).copied()
    }
}

/// What an observation may depend on.
#[derive(Debug, PartialEq, Eq, Hash)]
enum Subject<'a> {
    /// The coupons of a customer and a series.
    Holding(&'a str, i64),
    /// The cap of a series, its uploaded codes, and how many coupons and codes are used.
    Series(i64),
}

/// An answer that ended at this instant shows this commit.
struct Shown<'a> {
    by: Nanos,
    commit: Lsn,
    of: Subject<'a>,
}

pub struct Bounds<'a> {
    before: LowerBounds,
    /// The part of `before` that answers prove. Marks prove the rest.
    shown: LowerBounds,
    after: UpperBounds,
    seen: HashMap<Subject<'a>, LowerBounds>,
    /// Series whose coupons are counted, or whose codes are used up.
    counted: HashSet<i64>,
    /// By series: from the instant on, the codes of all commits up to this one are surely visible.
    imported: HashMap<i64, Vec<(Lsn, Nanos)>>,
}

impl<'a> Bounds<'a> {
    pub fn new(history: &'a History, entities: &Entities, committed: &Committed, first: &[Series]) -> Self {
        let series = history.applies.iter().flat_map(|apply| &apply.series);
        let is_counted = |series: &&Series| series.max_create >= 0 || series.client_handling_type == "DISC_CODE_PIN";
        let counted: HashSet<i64> = series.filter(is_counted).map(|series| series.id).collect();
        let mut shown = shown_caps(history, first);
        let codes = shown_codes(history);
        let mut imported: HashMap<i64, Vec<_>> = HashMap::new();
        for Shown { by, commit, of } in &codes {
            if let Subject::Series(series) = of {
                imported.entry(*series).or_default().push((*commit, *by));
            }
        }
        shown.extend(codes);
        shown.extend(
            history.issues.iter().chain(&history.receipts).flat_map(|call| shown_by(call, committed, &counted)),
        );
        let marks = history.marks.iter();
        let before = shown.iter().map(|shown| (shown.by, shown.commit));
        let of_answers = before.clone().collect();
        let before = before.chain(marks.clone().map(|mark| (mark.end, mark.flushed))).collect();
        let asked = asked(history, entities).map(|(start, commit)| (start, commit.saturating_sub(1)));
        let after = asked.chain(marks.map(|mark| (mark.start, mark.inserted))).collect();
        let mut seen: HashMap<Subject<'a>, Vec<_>> = HashMap::new();
        for Shown { by, commit, of } in shown {
            seen.entry(of).or_default().push((by, commit));
        }
        let seen = seen.into_iter().map(|(of, facts)| (of, facts.into_iter().collect())).collect();
        Self { before, shown: of_answers, after, seen, counted, imported }
    }

    pub fn counts(&self, series: i64) -> bool {
        self.counted.contains(&series)
    }

    /// The instant from which the codes of a commit are surely visible: after their flush. Coupons become visible without one.
    pub fn visible_from(&self, series: i64, commit: Lsn) -> Nanos {
        let imported = self.imported.get(&series).into_iter().flatten();
        imported.filter(|(shown, _)| *shown >= commit).map(|(_, by)| *by).min().unwrap_or(Nanos::MAX)
    }

    /// Every commit up to this position happened before the instant.
    pub fn committed_before(&self, instant: Nanos) -> Lsn {
        self.before.before(instant)
    }

    /// A commit that an answer showed before the mark, and that was not on disk at the mark.
    pub fn shown_unflushed(&self, mark: &Mark) -> Option<Lsn> {
        Some(self.shown.before(mark.start)).filter(|shown| *shown > mark.flushed)
    }

    /// No commit above this position happened before the instant.
    pub fn committed_at_most(&self, instant: Nanos) -> Lsn {
        self.after.after(instant)
    }

    /// The last relevant commit that a call which began at this instant has surely seen. The call asks for the first of these series;
    /// the others exclude it.
    ///
    /// Commits that do not concern the call do not count: unrelated commits may become visible in another order than that of the log.
    pub fn seen(&self, customer: &str, series: &[i64], instant: Nanos) -> Lsn {
        let holdings = series.iter().map(|id| Subject::Holding(customer, *id));
        let of_series = series.first().map(|id| Subject::Series(*id));
        let seen = |of| self.seen.get(&of).map_or(0, |seen| seen.before(instant));
        holdings.chain(of_series).map(seen).max().unwrap_or(0)
    }
}

/// The coupons that the answer to a call shows.
fn shown_by<'a>(call: &'a Issue, committed: &Committed, counted: &HashSet<i64>) -> Vec<Shown<'a>> {
    let Some((by, answers)) = call.answered() else { return Vec::new() };
    let mut shown = Vec::new();
    for ((index, answer), series) in answers.iter().enumerate().zip(&call.series) {
        let Some(commit) = committed.shown(call, index, answer) else { continue };
        shown.push(Shown { by, commit, of: Subject::Holding(&call.customer, *series) });
        if counted.contains(series) {
            shown.push(Shown { by, commit, of: Subject::Series(*series) });
        }
    }
    shown
}

/// An `apply` that succeeded shows that its caps are committed. It is unknown which commits are its own. But a cap that differs from
/// the initial one came with the first commit of that cap, or a later one.
fn shown_caps<'a>(history: &History, first: &[Series]) -> Vec<Shown<'a>> {
    let mut commits = HashMap::new();
    for commit in &history.commits {
        if let Commit::Settings(settings) = commit {
            commits.entry((settings.series, settings.max_create)).or_insert(settings.commit);
        }
    }
    let is_first = |of: &Series| first.iter().any(|one| (one.id, one.max_create) == (of.id, of.max_create));
    let shown = |apply: &Apply| {
        let by = apply.end;
        let changed = apply.series.iter().filter(|series| !is_first(series));
        let shown = |of: &Series| {
            let commit = *commits.get(&(of.id, of.max_create))?;
            Some(Shown { by: by?, commit, of: Subject::Series(of.id) })
        };
        changed.filter_map(shown).collect::<Vec<_>>()
    };
    history.applies.iter().flat_map(shown).collect()
}

/// Imports that succeeded show that all of their codes together are committed.
fn shown_codes<'a>(history: &History) -> Vec<Shown<'a>> {
    let mut commits: HashMap<i64, Vec<(usize, Lsn)>> = HashMap::new();
    for commit in &history.commits {
        if let Commit::Codes(codes) = commit {
            let commits = commits.entry(codes.series).or_default();
            let before = commits.last().map_or(0, |(count, _)| *count);
            commits.push((before + codes.codes.len(), codes.commit));
        }
    }
    let mut imports: Vec<_> = history.imports.iter().filter_map(|import| Some((import.end?, import))).collect();
    imports.sort_by_key(|(end, _)| *end);
    let mut uploaded: HashMap<i64, usize> = HashMap::new();
    let shown = |(by, import): (Nanos, &crate::history::Import)| {
        let uploaded = uploaded.entry(import.series).or_default();
        *uploaded += usize::try_from(import.count).unwrap();
        let commits = commits.get(&import.series)?;
        let commit = commits.get(commits.partition_point(|(count, _)| count < uploaded))?.1;
        Some(Shown { by, commit, of: Subject::Series(import.series) })
    };
    imports.into_iter().filter_map(shown).collect()
}

/// The first call that may have caused each commit, if it is known.
fn asked(history: &History, entities: &Entities) -> impl Iterator<Item = (Nanos, Lsn)> {
    let mut caps: HashMap<(i64, i64), Nanos> = HashMap::new();
    for apply in &history.applies {
        for series in &apply.series {
            let start = caps.entry((series.id, series.max_create)).or_insert(apply.start);
            *start = apply.start.min(*start);
        }
    }
    history.commits.iter().filter_map(move |commit| match commit {
        Commit::Coupon(coupon) => Some((*entities.began.get(coupon.key.as_deref()?)?, coupon.commit)),
        Commit::Settings(settings) => Some((*caps.get(&(settings.series, settings.max_create))?, settings.commit)),
        Commit::Codes(_) => None,
    })
}
