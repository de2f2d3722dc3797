//! The coupons of one customer in a group of series that exclude each other. Most groups are one series.
//! The checks follow the order of the contract (docs/contract.md).

use std::collections::BTreeMap;
use std::rc::Rc;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};

use super::operations::{Operation, Outcome};
use super::rules::{
    CAP_REACHED, EXPIRED, GAP, HAS_ONE, HOLDS_EXCLUDED, MAX_REACHED, POOL_EMPTY, Refusal, Settings, UNKNOWN_SERIES,
    excludes, is,
};
use super::search::{NEVER, Object, Timed};
use crate::history::{Answer, Nanos, Run, Series};

/// The first and the last possible day of an event. They differ only around midnight, or for an unsettled operation.
type Days = (Date, Date);

/// Whether other answers explain a code. See `Codes::is_known`.
type IsKnown<'a> = &'a dyn Fn(&Operation, &str) -> bool;

#[derive(Debug)]
pub struct Customer;

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Holding {
    /// The version of the settings in force.
    version: usize,
    /// Sorted, so that equal holdings compare as equal.
    coupons: Vec<HeldCoupon>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct HeldCoupon {
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
    /// The changes of these rules. Empty if they are the same in all versions.
    changes: Vec<(usize, Nanos, Nanos)>,
    /// Whether any rule depends on the customer's coupons. If not, they are not kept: a customer may hold thousands.
    tracks_coupons: bool,
    last: Nanos,
}

#[derive(Debug)]
pub struct Step {
    group: Rc<Group>,
    series: i64,
    days: Days,
    effect: Effect,
}

#[derive(Debug)]
enum Effect {
    Answer(Answer),
    /// A resent coupon that no answer has issued. An unsettled operation may have issued it.
    ResentUnknown {
        code: Rc<str>,
        valid_till: Date,
    },
    /// An unsettled operation. It issues a coupon if it can: to place it last is the same as no effect.
    Unknown,
    /// A later answer for a settled entity.
    Again {
        is_same: bool,
    },
    Apply(usize),
}

/// The result of the checks that depend on this customer's coupons only.
enum OwnCheck {
    Refusal(Refusal),
    /// A coupon with this last day is resent.
    Resend(Date),
    /// The cap, the codes and the gap decide.
    Passed,
}

impl Group {
    /// `ids` are all series of the group.
    pub fn new(run: &Run, settings: &[Settings], ids: &[i64], last: Nanos) -> Result<Self, String> {
        let zone = TimeZone::get(&run.time_zone).map_err(|error| format!("{}: {error}", run.time_zone))?;
        let rules = |version: &Settings| -> BTreeMap<i64, Series> {
            let known = ids.iter().filter_map(|id| version.series.get(id));
            // Only whether there is a cap matters here, not how high it is.
            known
                .map(|series| (series.id, Series { max_create: series.max_create.clamp(-1, 0), ..series.clone() }))
                .collect()
        };
        let versions: Vec<_> = settings.iter().map(rules).collect();
        let all_equal = versions.iter().all(|version| *version == versions[0]);
        let times = settings.iter().skip(1).map(|version| (version.version, version.start, version.end));
        let changes = if all_equal { Vec::new() } else { times.collect() };
        let tracks_coupons = versions.iter().flat_map(BTreeMap::values).any(depends_on_coupons);
        let ids: Vec<String> = ids.iter().map(i64::to_string).collect();
        Ok(Self { name: ids.join(", "), zone, run: run.clone(), versions, changes, tracks_coupons, last })
    }

    fn day(&self, instant: Timestamp) -> Date {
        instant.to_zoned(self.zone.clone()).date()
    }

    fn days(&self, start: Nanos, end: Nanos) -> Days {
        self.run.days(&self.zone, start, end.min(self.last.max(start)))
    }

    /// The name of a customer's partition, and its steps. `is_known`: see `Codes::is_known`.
    pub fn history(
        self: &Rc<Self>,
        customer: &str,
        operations: &[&Operation],
        is_known: IsKnown,
    ) -> (String, Vec<Timed<Step>>) {
        let step = |series, start, end, effect| {
            let step = Step { group: Rc::clone(self), series, days: self.days(start, end), effect };
            move |label| Timed { start, end, step, label }
        };
        let of_calls = operations.iter().map(|operation| {
            step(operation.series, operation.start, operation.end, effect(operation, is_known))(operation.label())
        });
        let of_changes = self.changes.iter().map(|(version, start, end)| {
            step(0, *start, *end, Effect::Apply(*version))(format!("apply {version}: other rules"))
        });
        (format!("{customer}, series {}", self.name), of_calls.chain(of_changes).collect())
    }
}

fn depends_on_coupons(series: &Series) -> bool {
    !series.is_multiple_vouchers_per_user_allowed
        || series.max_vouchers_per_user >= 0
        || !series.do_not_resend_existing_voucher
        || series.min_days_between_vouchers > 0
        || !series.mutual_exclusive_series_ids.is_empty()
}

fn effect(operation: &Operation, is_known: IsKnown) -> Effect {
    match &operation.outcome {
        Outcome::Answered(Answer::Resent { code, valid_till }) if !is_known(operation, code) => {
            Effect::ResentUnknown { code: code.as_str().into(), valid_till: *valid_till }
        }
        Outcome::Answered(answer) => Effect::Answer(answer.clone()),
        Outcome::Unknown => Effect::Unknown,
        Outcome::Again { first, now } => Effect::Again { is_same: first.as_ref() == Some(now) },
    }
}

impl Object for Customer {
    type State = Holding;
    type Step = Step;

    fn apply(step: &Step, holding: &Holding) -> Option<Holding> {
        let unchanged = |is_valid: bool| is_valid.then(|| holding.clone());
        match &step.effect {
            Effect::Answer(Answer::Issued { code, valid_till, .. }) => {
                let rules = step.rules(holding)?;
                let is_allowed = step.may_issue(holding) && step.is_new(holding, rules, code);
                (is_allowed && *valid_till == rules.valid_till_date)
                    .then(|| step.issued(holding, Some(code), *valid_till))
            }
            Effect::Answer(Answer::Resent { code, valid_till }) => {
                let is_held = step.own(holding).any(|held| held.is(code) && held.valid_till == *valid_till);
                unchanged(is_held && step.may_resend(holding, *valid_till))
            }
            Effect::Answer(refused) => unchanged(step.may_refuse(holding, refused)),
            Effect::ResentUnknown { code, valid_till } => {
                step.may_resend(holding, *valid_till).then(|| step.with_code(holding, code, *valid_till))?
            }
            Effect::Unknown => match step.rules(holding) {
                Some(rules) if step.may_issue(holding) => {
                    // Generic codes are shown in upper case.
                    let generic = rules.generic_code.as_deref().map(str::to_ascii_uppercase);
                    Some(step.issued(holding, generic.as_deref(), rules.valid_till_date))
                }
                _ => unchanged(true),
            },
            Effect::Again { is_same } => unchanged(*is_same),
            Effect::Apply(version) if *version > holding.version => {
                Some(Holding { version: *version, coupons: holding.coupons.clone() })
            }
            Effect::Apply(_) => unchanged(true),
        }
    }

    fn only_reads(step: &Step) -> bool {
        match &step.effect {
            Effect::Answer(Answer::Issued { .. }) | Effect::Unknown => !step.group.tracks_coupons,
            Effect::Answer(_) | Effect::Again { .. } => true,
            Effect::ResentUnknown { .. } | Effect::Apply(_) => false,
        }
    }

    fn is_unsettled(step: &Step) -> bool {
        matches!(step.effect, Effect::Unknown)
    }

    fn may_need_a_coupon(step: &Step) -> bool {
        match &step.effect {
            Effect::Answer(answer) => !matches!(answer, Answer::Issued { .. }),
            Effect::ResentUnknown { .. } => true,
            Effect::Unknown | Effect::Again { .. } | Effect::Apply(_) => false,
        }
    }

    fn are_interchangeable(one: &Step, other: &Step) -> bool {
        let are_unknown = matches!((&one.effect, &other.effect), (Effect::Unknown, Effect::Unknown));
        are_unknown && (one.series, one.days) == (other.series, other.days)
    }

    fn settle(step: &Step, holding: &mut Holding) {
        match &step.effect {
            Effect::Answer(Answer::Issued { code, valid_till, .. }) => {
                *holding = step.issued(holding, Some(code), *valid_till);
            }
            Effect::Apply(version) => holding.version = holding.version.max(*version),
            _ => {}
        }
    }
}

impl HeldCoupon {
    fn is(&self, code: &str) -> bool {
        self.code.as_deref() == Some(code)
    }
}

impl Step {
    fn rules<'a>(&'a self, holding: &Holding) -> Option<&'a Series> {
        self.group.versions[holding.version].get(&self.series)
    }

    fn own<'a>(&self, holding: &'a Holding) -> impl Iterator<Item = &'a HeldCoupon> + use<'a> {
        let series = self.series;
        holding.coupons.iter().filter(move |held| held.series == series)
    }

    /// The result on each possible day of the operation.
    fn own_checks(&self, holding: &Holding) -> impl Iterator<Item = OwnCheck> {
        let (from, to) = self.days;
        [Some(from), (to > from).then_some(to)].into_iter().flatten().map(|today| self.own_check_on(holding, today))
    }

    fn own_check_on(&self, holding: &Holding, today: Date) -> OwnCheck {
        let all = &self.group.versions[holding.version];
        let Some(rules) = all.get(&self.series) else { return OwnCheck::Refusal(UNKNOWN_SERIES) };
        if rules.valid_till_date < today {
            return OwnCheck::Refusal(EXPIRED);
        }
        let held = self.own(holding).count();
        if let Some(longest) = self.own(holding).map(|held| held.valid_till).max()
            && !rules.do_not_resend_existing_voucher
            && longest >= today
        {
            return OwnCheck::Resend(longest);
        }
        if held > 0 && !rules.is_multiple_vouchers_per_user_allowed {
            return OwnCheck::Refusal(HAS_ONE);
        }
        if usize::try_from(rules.max_vouchers_per_user).is_ok_and(|most| held >= most) {
            return OwnCheck::Refusal(MAX_REACHED);
        }
        let others = holding.coupons.iter().filter_map(|held| all.get(&held.series));
        if others.into_iter().any(|other| excludes(rules, other)) {
            return OwnCheck::Refusal(HOLDS_EXCLUDED);
        }
        OwnCheck::Passed
    }

    fn passes_own_checks(&self, holding: &Holding) -> bool {
        self.own_checks(holding).any(|first| matches!(first, OwnCheck::Passed))
    }

    /// The earliest and the latest possible day on which the gap ends. `None`: there is no gap, or no coupon.
    fn gap_ends(&self, holding: &Holding) -> Option<Days> {
        let gap = self.rules(holding)?.min_days_between_vouchers;
        let earliest = self.own(holding).map(|held| held.issued_on.0).max()?;
        let latest = self.own(holding).map(|held| held.issued_on.1).max()?;
        (gap > 0).then(|| (earliest + gap.days(), latest + gap.days()))
    }

    fn may_issue(&self, holding: &Holding) -> bool {
        self.passes_own_checks(holding) && self.gap_ends(holding).is_none_or(|(from, _)| self.days.1 >= from)
    }

    fn may_resend(&self, holding: &Holding, valid_till: Date) -> bool {
        self.own_checks(holding).any(|first| matches!(first, OwnCheck::Resend(longest) if longest == valid_till))
    }

    fn may_refuse(&self, holding: &Holding, answer: &Answer) -> bool {
        let Answer::Refused { next_eligible_at, .. } = answer else { return false };
        let rules = self.rules(holding);
        if is(answer, GAP) {
            let Some(((from, to), next)) = self.gap_ends(holding).zip(*next_eligible_at) else { return false };
            let next = self.group.day(next);
            return self.passes_own_checks(holding) && self.days.0 < next && from <= next && next <= to;
        }
        // Coupons of other customers cause these refusals. The partition of the cap judges the cap. The answers alone cannot judge the pool.
        let is_others = (is(answer, CAP_REACHED) && rules.is_some_and(|rules| rules.max_create >= 0))
            || (is(answer, POOL_EMPTY) && rules.is_some_and(|rules| rules.client_handling_type == "DISC_CODE_PIN"));
        let is_own = |first: OwnCheck| matches!(first, OwnCheck::Refusal(refusal) if is(answer, refusal));
        next_eligible_at.is_none()
            && (self.own_checks(holding).any(is_own) || (is_others && self.passes_own_checks(holding)))
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
        if self.group.tracks_coupons {
            let held = HeldCoupon { series: self.series, code: code.map(Into::into), valid_till, issued_on: self.days };
            coupons.insert(coupons.partition_point(|other| *other < held), held);
        }
        Holding { version, coupons }
    }

    /// For a resent code that no answer has issued: gives the code to a coupon whose code is unknown.
    fn with_code(&self, holding: &Holding, code: &Rc<str>, valid_till: Date) -> Option<Holding> {
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

/// The last start or end of an operation.
pub fn last_instant(operations: &[Operation]) -> Nanos {
    operations
        .iter()
        .map(|operation| if operation.end == NEVER { operation.start } else { operation.end })
        .max()
        .unwrap_or_default()
}
