//! What one customer holds of a group of series that exclude each other; most groups are one series.
//! The checks follow the order of section 4 of the contract.

use std::collections::BTreeMap;
use std::rc::Rc;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};

use super::operations::{Operation, Outcome};
use super::rules::{
    EMPTY, EXCLUSIVE, EXPIRED, FULL, GAP, HAS_ONE, MAXIMUM, Refusal, Settings, UNKNOWN_SERIES, excludes, is,
};
use super::search::{NEVER, Object, Timed};
use crate::history::{Answer, Nanos, Run, Series};

/// The first and the last day on which something may have been. They differ only around midnight, and where nothing is known.
type Days = (Date, Date);

type IsKnown<'a> = &'a dyn Fn(&Operation, &str) -> bool;

#[derive(Debug)]
pub struct Customer;

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Holding {
    /// The place of the settings in force.
    version: usize,
    /// In order, so that equal holdings are equal.
    coupons: Vec<Held>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Held {
    series: i64,
    /// `None`: no answer has shown it.
    code: Option<Rc<str>>,
    valid_till: Date,
    issued_on: Days,
}

/// The rules of a group of series.
#[derive(Debug)]
pub struct Group {
    name: String,
    zone: TimeZone,
    run: Run,
    versions: Vec<BTreeMap<i64, Series>>,
    /// Changes of these rules; empty if all versions have the same.
    changes: Vec<(usize, Nanos, Nanos)>,
    /// Whether any rule asks what a customer holds. If not, it need not be kept: one customer may hold thousands.
    keeps: bool,
    last: Nanos,
}

#[derive(Debug)]
pub struct Step {
    group: Rc<Group>,
    series: i64,
    days: Days,
    does: Does,
}

#[derive(Debug)]
enum Does {
    Answer(Answer),
    /// A coupon that is sent again and that no answer has issued: it may be one of an operation that nothing settled.
    ResentUnknown {
        code: Rc<str>,
        valid_till: Date,
    },
    /// Nothing says what it did. It issues a coupon if it can. To have no effect is the same as to come last.
    Unknown,
    /// Whether an entity that has its answer is shown the same.
    Again {
        is_same: bool,
    },
    Apply(usize),
}

/// What the contract says first, before it looks at others' coupons.
enum First {
    Refusal(Refusal),
    /// A coupon is sent again: one that is valid until then.
    Resend(Date),
    /// Only the cap, the codes and the gap are left.
    Others,
}

impl Group {
    /// `ids` are all series of the group.
    pub fn new(run: &Run, settings: &[Settings], ids: &[i64], last: Nanos) -> Result<Self, String> {
        let zone = TimeZone::get(&run.time_zone).map_err(|error| format!("{}: {error}", run.time_zone))?;
        let rules = |one: &Settings| -> BTreeMap<i64, Series> {
            let known = ids.iter().filter_map(|id| one.series.get(id));
            // Whether there is a cap matters here; how high it is does not.
            known
                .map(|series| (series.id, Series { max_create: series.max_create.clamp(-1, 0), ..series.clone() }))
                .collect()
        };
        let versions: Vec<_> = settings.iter().map(rules).collect();
        let all_equal = versions.iter().all(|one| *one == versions[0]);
        let times = settings.iter().skip(1).map(|one| (one.version, one.start, one.end));
        let changes = if all_equal { Vec::new() } else { times.collect() };
        let keeps = versions.iter().flat_map(BTreeMap::values).any(asks_what_is_held);
        let ids: Vec<String> = ids.iter().map(i64::to_string).collect();
        Ok(Self { name: ids.join(", "), zone, run: run.clone(), versions, changes, keeps, last })
    }

    fn day(&self, instant: Timestamp) -> Date {
        instant.to_zoned(self.zone.clone()).date()
    }

    fn days(&self, start: Nanos, end: Nanos) -> Days {
        self.run.days(&self.zone, start, end.min(self.last.max(start)))
    }

    /// The steps of one customer, with the name of the partition. `is_known`: whether an answer has issued the code that an operation
    /// shows, or has shown it to another customer.
    pub fn history(
        self: &Rc<Self>,
        customer: &str,
        operations: &[&Operation],
        is_known: IsKnown,
    ) -> (String, Vec<Timed<Step>>) {
        let step = |series, start, end, does| {
            let step = Step { group: Rc::clone(self), series, days: self.days(start, end), does };
            move |label| Timed { start, end, step, label }
        };
        let of_calls =
            operations.iter().map(|one| step(one.series, one.start, one.end, does(one, is_known))(one.label()));
        let of_changes = self.changes.iter().map(|(version, start, end)| {
            step(0, *start, *end, Does::Apply(*version))(format!("apply {version}: other rules"))
        });
        (format!("{customer}, series {}", self.name), of_calls.chain(of_changes).collect())
    }
}

fn asks_what_is_held(series: &Series) -> bool {
    !series.is_multiple_vouchers_per_user_allowed
        || series.max_vouchers_per_user >= 0
        || !series.do_not_resend_existing_voucher
        || series.min_days_between_vouchers > 0
        || !series.mutual_exclusive_series_ids.is_empty()
}

fn does(one: &Operation, is_known: IsKnown) -> Does {
    match &one.outcome {
        Outcome::Answered(Answer::Resent { code, valid_till }) if !is_known(one, code) => {
            Does::ResentUnknown { code: code.as_str().into(), valid_till: *valid_till }
        }
        Outcome::Answered(answer) => Does::Answer(answer.clone()),
        Outcome::Unknown => Does::Unknown,
        Outcome::Again { first, now } => Does::Again { is_same: first.as_ref() == Some(now) },
    }
}

impl Object for Customer {
    type State = Holding;
    type Step = Step;

    fn apply(step: &Step, holding: &Holding) -> Option<Holding> {
        let unchanged = |is_valid: bool| is_valid.then(|| holding.clone());
        match &step.does {
            Does::Answer(Answer::Issued { code, valid_till, .. }) => {
                let rules = step.rules(holding)?;
                let is_fine = step.may_issue(holding) && step.is_new(holding, rules, code);
                (is_fine && *valid_till == rules.valid_till_date).then(|| step.issued(holding, Some(code), *valid_till))
            }
            Does::Answer(Answer::Resent { code, valid_till }) => {
                let is_held = step.own(holding).any(|held| held.is(code) && held.valid_till == *valid_till);
                unchanged(is_held && step.may_resend(holding, *valid_till))
            }
            Does::Answer(refused) => unchanged(step.may_refuse(holding, refused)),
            Does::ResentUnknown { code, valid_till } => {
                step.may_resend(holding, *valid_till).then(|| step.named(holding, code, *valid_till))?
            }
            Does::Unknown => match step.rules(holding) {
                Some(rules) if step.may_issue(holding) => {
                    // Generic codes are shown in upper case.
                    let generic = rules.generic_code.as_deref().map(str::to_ascii_uppercase);
                    Some(step.issued(holding, generic.as_deref(), rules.valid_till_date))
                }
                _ => unchanged(true),
            },
            Does::Again { is_same } => unchanged(*is_same),
            Does::Apply(version) if *version > holding.version => {
                Some(Holding { version: *version, coupons: holding.coupons.clone() })
            }
            Does::Apply(_) => unchanged(true),
        }
    }

    fn only_reads(step: &Step) -> bool {
        match &step.does {
            Does::Answer(Answer::Issued { .. }) | Does::Unknown => !step.group.keeps,
            Does::Answer(_) | Does::Again { .. } => true,
            Does::ResentUnknown { .. } | Does::Apply(_) => false,
        }
    }

    fn is_unsettled(step: &Step) -> bool {
        matches!(step.does, Does::Unknown)
    }

    fn may_need_a_coupon(step: &Step) -> bool {
        match &step.does {
            Does::Answer(answer) => !matches!(answer, Answer::Issued { .. }),
            Does::ResentUnknown { .. } => true,
            Does::Unknown | Does::Again { .. } | Does::Apply(_) => false,
        }
    }

    fn are_alike(one: &Step, other: &Step) -> bool {
        let are_unknown = matches!((&one.does, &other.does), (Does::Unknown, Does::Unknown));
        are_unknown && (one.series, one.days) == (other.series, other.days)
    }

    fn settle(step: &Step, holding: &mut Holding) {
        match &step.does {
            Does::Answer(Answer::Issued { code, valid_till, .. }) => {
                *holding = step.issued(holding, Some(code), *valid_till);
            }
            Does::Apply(version) => holding.version = holding.version.max(*version),
            _ => {}
        }
    }
}

impl Held {
    fn is(&self, code: &str) -> bool {
        self.code.as_deref() == Some(code)
    }
}

impl Step {
    fn rules<'a>(&'a self, holding: &Holding) -> Option<&'a Series> {
        self.group.versions[holding.version].get(&self.series)
    }

    fn own<'a>(&self, holding: &'a Holding) -> impl Iterator<Item = &'a Held> + use<'a> {
        let series = self.series;
        holding.coupons.iter().filter(move |held| held.series == series)
    }

    /// What the contract says on each day on which the operation may have been.
    fn first(&self, holding: &Holding) -> impl Iterator<Item = First> {
        let (from, to) = self.days;
        [Some(from), (to > from).then_some(to)].into_iter().flatten().map(|today| self.first_on(holding, today))
    }

    /// Section 4 of the contract, from top to bottom.
    fn first_on(&self, holding: &Holding, today: Date) -> First {
        let all = &self.group.versions[holding.version];
        let Some(rules) = all.get(&self.series) else { return First::Refusal(UNKNOWN_SERIES) };
        if rules.valid_till_date < today {
            return First::Refusal(EXPIRED);
        }
        let held = self.own(holding).count();
        if let Some(longest) = self.own(holding).map(|held| held.valid_till).max()
            && !rules.do_not_resend_existing_voucher
            && longest >= today
        {
            return First::Resend(longest);
        }
        if held > 0 && !rules.is_multiple_vouchers_per_user_allowed {
            return First::Refusal(HAS_ONE);
        }
        if usize::try_from(rules.max_vouchers_per_user).is_ok_and(|most| held >= most) {
            return First::Refusal(MAXIMUM);
        }
        let others = holding.coupons.iter().filter_map(|held| all.get(&held.series));
        if others.into_iter().any(|other| excludes(rules, other)) {
            return First::Refusal(EXCLUSIVE);
        }
        First::Others
    }

    fn is_left_to_others(&self, holding: &Holding) -> bool {
        self.first(holding).any(|first| matches!(first, First::Others))
    }

    /// The earliest and the latest day on which the gap ends. `None`: the series has no gap, or the customer no coupon.
    fn gap_ends(&self, holding: &Holding) -> Option<Days> {
        let gap = self.rules(holding)?.min_days_between_vouchers;
        let earliest = self.own(holding).map(|held| held.issued_on.0).max()?;
        let latest = self.own(holding).map(|held| held.issued_on.1).max()?;
        (gap > 0).then(|| (earliest + gap.days(), latest + gap.days()))
    }

    fn may_issue(&self, holding: &Holding) -> bool {
        self.is_left_to_others(holding) && self.gap_ends(holding).is_none_or(|(from, _)| self.days.1 >= from)
    }

    fn may_resend(&self, holding: &Holding, valid_till: Date) -> bool {
        self.first(holding).any(|first| matches!(first, First::Resend(longest) if longest == valid_till))
    }

    fn may_refuse(&self, holding: &Holding, answer: &Answer) -> bool {
        let Answer::Refused { next_eligible_at, .. } = answer else { return false };
        let rules = self.rules(holding);
        if is(answer, GAP) {
            let Some(((from, to), next)) = self.gap_ends(holding).zip(*next_eligible_at) else { return false };
            let next = self.group.day(next);
            return self.is_left_to_others(holding) && self.days.0 < next && from <= next && next <= to;
        }
        // Other customers' coupons decide these. The partition of the cap judges the cap; the answers alone cannot judge the pool.
        let is_others = (is(answer, FULL) && rules.is_some_and(|rules| rules.max_create >= 0))
            || (is(answer, EMPTY) && rules.is_some_and(|rules| rules.client_handling_type == "DISC_CODE_PIN"));
        let is_own = |first: First| matches!(first, First::Refusal(refusal) if is(answer, refusal));
        next_eligible_at.is_none()
            && (self.first(holding).any(is_own) || (is_others && self.is_left_to_others(holding)))
    }

    /// Whether a new coupon may have this code.
    fn is_new(&self, holding: &Holding, rules: &Series, code: &str) -> bool {
        match &rules.generic_code {
            Some(generic) => generic.eq_ignore_ascii_case(code),
            None => !self.own(holding).any(|held| held.is(code)),
        }
    }

    fn issued(&self, holding: &Holding, code: Option<&str>, valid_till: Date) -> Holding {
        let Holding { version, mut coupons } = holding.clone();
        if self.group.keeps {
            let held = Held { series: self.series, code: code.map(Into::into), valid_till, issued_on: self.days };
            coupons.insert(coupons.partition_point(|other| *other < held), held);
        }
        Holding { version, coupons }
    }

    /// A resend shows a code that no answer has issued. The first such resend names one of the coupons without a known code.
    fn named(&self, holding: &Holding, code: &Rc<str>, valid_till: Date) -> Option<Holding> {
        if self.own(holding).any(|held| held.is(code)) {
            return Some(holding.clone());
        }
        let mut coupons = holding.coupons.clone();
        let mut unknown = coupons.iter_mut().filter(|held| held.series == self.series && held.code.is_none());
        unknown.find(|held| held.valid_till == valid_till)?.code = Some(Rc::clone(code));
        coupons.sort_unstable();
        Some(Holding { version: holding.version, coupons })
    }
}

/// The end of a history: the last instant that it names.
pub fn last_instant(operations: &[Operation]) -> Nanos {
    operations.iter().map(|one| if one.end == NEVER { one.start } else { one.end }).max().unwrap_or_default()
}
