//! Checks a history against the model of the contract: the model is fed the commits in their order, and must give each answer at some
//! moment while its call ran. docs/history.md defines what must hold.
//!
//! The replay is linear in the length of the history: an answer is checked again only when a commit changes what it depends on.

mod bounds;
#[path = "../model/mod.rs"]
mod contract_model;
mod observations;
mod operations;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;

use self::bounds::{Bounds, Committed};
use self::contract_model::{Codes, Expected, IssueContext, Model};
use self::observations::{Observation, Observations, Upload};
use self::operations::{Entities, Entity, Operation, Settled};
use crate::history::{
    Answer, Codes as UploadedCodes, Commit, Coupon, History, Issue, Lsn, Mark, Nanos, Series, Settings,
};

/// The model needs a store. The series of a history allow every store.
const STORE: i64 = 0;

/// The result of a replay. A correct history has neither duplicates nor divergences.
#[derive(Debug, Default)]
pub struct Replayed {
    pub duplicates: Vec<String>,
    pub divergences: Vec<String>,
    /// Committed coupons.
    pub coupons: usize,
    pub operations: usize,
    /// Checked answers, those of receipts included. An answer that settles nothing is not checked.
    pub answers: usize,
}

pub fn replay(history: &History) -> Replayed {
    let mut replayed = Replayed { duplicates: duplicates(history), ..Replayed::default() };
    match Replay::new(history) {
        Ok(replay) => replay.run(&mut replayed),
        Err(why) => replayed.divergences.push(why),
    }
    replayed
}

/// Coupons that share an id, an entity or a code.
fn duplicates(history: &History) -> Vec<String> {
    let rules = history.applies.iter().flat_map(|apply| &apply.series);
    let generic: HashMap<i64, &str> =
        rules.filter_map(|series| Some((series.id, series.generic_code.as_deref()?))).collect();
    let (mut ids, mut entities, mut codes) = (HashMap::new(), HashMap::new(), HashMap::new());
    let mut wrong = Vec::new();
    for coupon in coupons_of(history) {
        let mut twice = |before: Option<&Coupon>, what: &str| {
            if let Some(before) = before {
                wrong.push(format!("{what}: {} and {}", describe_coupon(before), describe_coupon(coupon)));
            }
        };
        twice(ids.insert(coupon.id, coupon), "one id");
        if let Some(key) = &coupon.key {
            twice(entities.insert((key, coupon.entity), coupon), "one entity has two coupons");
        }
        let is_shared = |before: &&Coupon| {
            before.series == coupon.series && generic.get(&coupon.series) == Some(&coupon.code.as_str())
        };
        twice(codes.insert(&coupon.code, coupon).filter(|before| !is_shared(before)), "one code");
    }
    wrong
}

fn coupons_of(history: &History) -> impl Iterator<Item = &Coupon> {
    history.commits.iter().filter_map(|commit| if let Commit::Coupon(coupon) = commit { Some(coupon) } else { None })
}

fn describe_coupon(coupon: &Coupon) -> String {
    let Coupon { commit, id, key, entity, customer, series, code, .. } = coupon;
    let key = key.as_deref().unwrap_or("none");
    format!(
        "coupon {id} (key {key}, entity {entity}, customer {customer}, series {series}, code {code}, commit {commit})"
    )
}

fn model_of(series: &[Series]) -> Result<Model, String> {
    Ok(Model::new(series.iter().map(rules).collect::<Result<Vec<_>, _>>()?))
}

fn rules(series: &Series) -> Result<contract_model::Series, String> {
    let codes = match (series.client_handling_type.as_str(), &series.generic_code) {
        ("DISC_CODE", None) => Codes::Drawn(None),
        ("DISC_CODE_PIN", None) => Codes::Uploaded,
        ("GENERIC", Some(code)) => Codes::Common(code.clone()),
        (other, code) => return Err(format!("series {}: {other} with the generic code {code:?}", series.id)),
    };
    Ok(contract_model::Series {
        id: series.id,
        codes,
        valid_till: series.valid_till_date,
        days: None,
        months: None,
        redemption_from: None,
        cap: series.max_create,
        allows_several: series.is_multiple_vouchers_per_user_allowed,
        max_per_customer: series.max_vouchers_per_user,
        resend: !series.do_not_resend_existing_voucher,
        gap: series.min_days_between_vouchers,
        excludes: series.mutual_exclusive_series_ids.clone(),
        stores: Vec::new(),
        external: false,
    })
}

/// A history with its indexes, and the model.
struct Replay<'a> {
    history: &'a History,
    zone: TimeZone,
    entities: Entities<'a>,
    committed: Committed<'a>,
    bounds: Bounds<'a>,
    /// Every pair of a series and its cap in a call of `apply`.
    caps: HashSet<(i64, i64)>,
    model: Model,
}

impl<'a> Replay<'a> {
    fn new(history: &'a History) -> Result<Self, String> {
        let zone = TimeZone::get(&history.run.time_zone).map_err(|error| error.to_string())?;
        let first = history.applies.iter().min_by_key(|apply| apply.start).ok_or("no line of type apply")?;
        let (model, entities) = (model_of(&first.series)?, Entities::of(history));
        let committed = Committed::of(history);
        let bounds = Bounds::new(history, &entities, &committed, &first.series);
        let asked = history.applies.iter().flat_map(|apply| &apply.series);
        let caps = asked.map(|series| (series.id, series.max_create)).collect();
        Ok(Self { history, zone, entities, committed, bounds, caps, model })
    }

    fn run(mut self, replayed: &mut Replayed) {
        replayed.divergences.append(&mut self.entities.malformed);
        replayed.operations = self.entities.all.values().map(|entity| entity.operations.len()).sum();
        self.check_transactions(replayed);
        self.check_flushes(replayed);
        let observations = self.observations();
        replayed.answers += observations.len();
        self.feed(Observations::new(observations), replayed);
        for coupon in coupons_of(self.history) {
            replayed.coupons += 1;
            replayed
                .divergences
                .extend(self.check_operation(coupon).err().map(|why| format!("{}: {why}", describe_coupon(coupon))));
        }
        for entity in self.entities.all.values() {
            self.check_issued(entity, replayed);
            check_repeats(entity, replayed);
        }
        for receipt in &self.history.receipts {
            self.check_receipt(receipt, replayed);
        }
    }

    fn check_transactions(&self, replayed: &mut Replayed) {
        for pair in self.history.commits.windows(2) {
            let one_is_coupon = pair.iter().any(|commit| matches!(commit, Commit::Coupon(_)));
            if one_is_coupon && pair[0].lsn() == pair[1].lsn() {
                let [one, other] = [0, 1].map(|index| format!("{:?}", pair[index]));
                replayed
                    .divergences
                    .push(format!("one transaction has a coupon and something else: {one} and {other}"));
            }
        }
    }

    /// No answer may show a coupon before it is on disk. Reports each commit once, not once for each mark that proves it.
    fn check_flushes(&self, replayed: &mut Replayed) {
        let mut last = None;
        for mark in &self.history.marks {
            let unflushed = self.bounds.shown_unflushed(mark);
            if let Some(commit) = unflushed.filter(|_| unflushed != last) {
                let Mark { start, flushed, .. } = mark;
                replayed.divergences.push(format!(
                    "commit {commit} was shown before {start}, and the log was on disk only up to {flushed} after that"
                ));
            }
            last = unflushed;
        }
    }

    /// Feeds all commits to the model, and checks the observations again that a commit concerns.
    fn feed(&mut self, mut observations: Observations<'a>, replayed: &mut Replayed) {
        for commit in &self.history.commits {
            let lsn = commit.lsn();
            observations.start_before(lsn, &self.model);
            match commit {
                Commit::Coupon(coupon) => {
                    replayed.divergences.extend(self.issue(coupon).err());
                    observations.recheck_customer(&coupon.customer, lsn, &self.model);
                    if self.bounds.counts(coupon.series) {
                        observations.recheck_series(coupon.series, lsn, &self.model);
                    }
                }
                Commit::Settings(settings) => {
                    replayed.divergences.extend(self.set_cap(settings).err());
                    observations.recheck_series(settings.series, lsn, &self.model);
                }
                Commit::Codes(codes) => {
                    self.upload(codes, replayed);
                    let visible_from = self.bounds.visible_from(codes.series, lsn);
                    observations.upload(codes.series, Upload { codes: codes.codes.len(), visible_from });
                    observations.recheck_series(codes.series, lsn, &self.model);
                }
            }
        }
        replayed.divergences.extend(observations.unexplained(&self.model));
    }

    fn upload(&mut self, codes: &UploadedCodes, replayed: &mut Replayed) {
        let UploadedCodes { commit, series, codes } = codes;
        for code in codes {
            if !self.model.upload(*series, code.clone(), None) {
                replayed.divergences.push(format!(
                    "series {series}: the code {code} was uploaded at commit {commit} and was there before"
                ));
            }
        }
    }

    fn set_cap(&mut self, settings: &Settings) -> Result<(), String> {
        let Settings { commit, series, max_create } = settings;
        if !self.model.set_cap(*series, *max_create) {
            return Err(format!("commit {commit} sets the cap of series {series}, which is unknown"));
        }
        if !self.caps.contains(&(*series, *max_create)) {
            return Err(format!(
                "commit {commit} sets the cap of series {series} to {max_create}: no apply has asked for that"
            ));
        }
        Ok(())
    }

    fn day(&self, instant: Timestamp) -> Date {
        self.zone.to_datetime(instant).date()
    }

    /// The model must allow a coupon at its position in the order.
    fn issue(&mut self, coupon: &Coupon) -> Result<(), String> {
        let context =
            IssueContext { customer: coupon.customer.clone(), store: STORE, today: self.day(coupon.issued_at) };
        let expected = self.model.expected(&context, coupon.series);
        let why = match expected {
            Expected::New(last_day) => {
                if self.model.issue(&context, coupon.series, &coupon.code, last_day).is_some() {
                    return Ok(());
                }
                "a code that it may not have".to_owned()
            }
            other => format!("committed, and the model gives {other}"),
        };
        self.model.force_issue(&context, coupon.series, &coupon.code);
        Err(format!("{}: {why}", describe_coupon(coupon)))
    }

    /// Every answer that shows a state: the model must give it while the call ran.
    fn observations(&self) -> Vec<Observation<'a>> {
        let mut observations = Vec::new();
        for entity in self.entities.all.values() {
            for operation in &entity.operations {
                observations.extend(
                    operation.settled.as_ref().and_then(|settled| self.observation(entity, operation, settled)),
                );
            }
        }
        observations
    }

    /// `None`: the answer is not an observation.
    fn observation(
        &self,
        entity: &Entity<'a>,
        operation: &Operation,
        settled: &Settled<'a>,
    ) -> Option<Observation<'a>> {
        let Entity { key, index, customer, series, .. } = *entity;
        let (answer, end) = (settled.answer, settled.end);
        if answer.is_not_stored() {
            return None;
        }
        let outcome = observations::outcome_of(answer, |instant| self.day(instant))?;
        // Each attempt may be refused anew. Once an attempt has stored a resend, the later ones repeat it.
        let start = if matches!(answer, Answer::Resent { .. }) { operation.start } else { settled.call_start };
        let context = |today| IssueContext { customer: customer.to_owned(), store: STORE, today };
        let contexts = self.days(start, end).map(context).collect();
        let window = (self.bounds.seen(customer, &self.related(series), start), self.bounds.committed_at_most(end));
        let span = (start, end);
        Some(Observation {
            key,
            index,
            customer,
            series,
            answer,
            outcome,
            contexts,
            span,
            window,
            model_answers: Vec::new(),
        })
    }

    /// A series, and all series that exclude each other with it.
    fn related(&self, id: i64) -> Vec<i64> {
        let all = self.model.series();
        let excludes = |other: &&contract_model::Series| all.get(&id).is_some_and(|series| series.excludes(other));
        std::iter::once(id).chain(all.values().filter(excludes).map(|other| other.id)).collect()
    }

    /// The days that a service's clock may have shown between two instants.
    fn days(&self, start: Nanos, end: Nanos) -> impl Iterator<Item = Date> + use<> {
        let (first, last) = self.history.run.days(&self.zone, start, end);
        std::iter::successors(Some(first), |day| day.tomorrow().ok()).take_while(move |day| *day <= last)
    }

    /// A coupon must belong to an operation of its entity, and its commit must lie between the start and the end of it.
    ///
    /// Only the last operation can have issued it, since the earlier ones were refused. The exception is a call without an answer: it
    /// may issue a coupon for as long as the service may have worked on it.
    fn check_operation(&self, coupon: &Coupon) -> Result<(), String> {
        let key = coupon.key.as_deref().ok_or("no call has asked for it")?;
        let entity = self.entities.all.get(&(key, coupon.entity)).ok_or("no call has asked for it")?;
        if (entity.customer, entity.series) != (&coupon.customer, coupon.series) {
            return Err(format!("the calls ask for customer {} and series {}", entity.customer, entity.series));
        }
        let may_issue = |operation: &&Operation| {
            operation.settled.as_ref().is_none_or(|settled| matches!(settled.answer, Answer::Issued { .. }))
        };
        let contains = |operation: &&Operation| self.window(operation).contains(coupon.commit);
        if entity.operations.last().filter(may_issue).is_some_and(|last| contains(&last)) {
            return Ok(());
        }
        let late = |start: &Nanos| {
            let end = start.saturating_add(self.history.run.longest_call);
            Window { above: self.bounds.committed_before(*start), to: self.bounds.committed_at_most(end) }
        };
        let is_resent = matches!(entity.final_answer(), Some((_, Answer::Resent { .. })));
        if !is_resent && entity.unanswered.iter().any(|start| late(start).contains(coupon.commit)) {
            return Ok(());
        }
        let windows = entity.operations.iter().map(|operation| {
            let answer = operation.settled.as_ref().map_or("nothing".to_owned(), |settled| settled.answer.to_string());
            format!("{} answered {answer}", self.window(operation))
        });
        let windows = windows.collect::<Vec<_>>().join("; ");
        Err(format!("its commit lies in no operation of its entity that may have issued it: {windows}"))
    }

    fn window(&self, operation: &Operation) -> Window {
        let to = operation.settled.as_ref().map_or(Lsn::MAX, |settled| self.bounds.committed_at_most(settled.end));
        Window { above: self.bounds.committed_before(operation.start), to }
    }

    /// Finds the coupon that an answer `issued` shows. It must be the entity's own, with the same last day.
    fn check_shown(&self, key: &str, index: usize, code: &str, valid_till: Date) -> Result<&'a Coupon, String> {
        let Some(coupon) = self.committed.of_entity(key, index).find(|coupon| coupon.code == code) else {
            let own: Vec<String> = self.committed.of_entity(key, index).map(describe_coupon).collect();
            return Err(format!("was not committed for it, but {own:?}"));
        };
        let series = self.model.series().get(&coupon.series);
        let last_day = series.and_then(|series| series.last_day(self.day(coupon.issued_at)));
        if last_day != Some(valid_till) {
            return Err(format!("has another last day than in the model: {last_day:?}"));
        }
        Ok(coupon)
    }

    /// Each answer `issued` must show the coupon of its entity.
    fn check_issued(&self, entity: &Entity, replayed: &mut Replayed) {
        let Some(settled) = entity.operations.last().and_then(|operation| operation.settled.as_ref()) else { return };
        for answer in std::iter::once(settled).chain(&entity.later).map(|settled| settled.answer) {
            // `check_operation` checks that the coupon was committed before the end of the answer.
            if let Answer::Issued { code, valid_till, .. } = answer {
                replayed.answers += 1;
                let shown = self.check_shown(entity.key, entity.index, code, *valid_till);
                replayed.divergences.extend(shown.err().map(|why| format!("{entity}: {answer} {why}")));
            }
        }
    }

    /// A receipt may repeat an old resend or refusal. After an answer `issued` or `resent`, it must show the same.
    fn check_receipt(&self, receipt: &Issue, replayed: &mut Replayed) {
        let Some((end, answers)) = receipt.answered() else { return };
        for (index, answer) in answers.iter().enumerate().filter(|(_, answer)| answer.settles()) {
            replayed.answers += 1;
            let name = || format!("receipt of key {}, entity {index}, from {} to {end}", receipt.key, receipt.start);
            if let Answer::Issued { code, valid_till, .. } = answer {
                let shown = self.check_shown(&receipt.key, index, code, *valid_till).and_then(|coupon| {
                    let last = self.bounds.committed_at_most(end);
                    let late =
                        || format!("is commit {}, but by then only commits up to {last} are possible", coupon.commit);
                    (coupon.commit <= last).then_some(()).ok_or_else(late)
                });
                replayed.divergences.extend(shown.err().map(|why| format!("{}: {answer} {why}", name())));
            }
            let entity = self.entities.all.get(&(receipt.key.as_str(), index));
            let Some((settled_end, last)) = entity.and_then(Entity::final_answer) else { continue };
            let both_issued = [last, answer].iter().all(|answer| matches!(answer, Answer::Issued { .. }));
            if *answer != *last && (both_issued || settled_end < receipt.start) {
                replayed.divergences.push(format!("{}: {answer:?}, and its call was answered {last:?}", name()));
            }
        }
    }
}

/// Every answer after `issued` or `resent` must show the same.
fn check_repeats(entity: &Entity, replayed: &mut Replayed) {
    let Some((_, last)) = entity.final_answer() else { return };
    for later in &entity.later {
        // `check_issued` counts the answers `issued`.
        replayed.answers += usize::from(!matches!(later.answer, Answer::Issued { .. }));
        if later.answer != last {
            let (start, end, answer) = (later.call_start, later.end, later.answer);
            replayed
                .divergences
                .push(format!("{entity}: answered {last:?}, and later (from {start} to {end}) {answer:?}"));
        }
    }
}

/// The commits that an operation may have caused.
struct Window {
    above: Lsn,
    to: Lsn,
}

impl Window {
    const fn contains(&self, commit: Lsn) -> bool {
        self.above < commit && commit <= self.to
    }
}

impl std::fmt::Display for Window {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self { above, to: Lsn::MAX } => write!(f, "above {above}"),
            Self { above, to } => write!(f, "above {above} up to {to}"),
        }
    }
}
