//! A history against the model of the contract: the commits are fed to the model in their order, and each answer must be one that
//! the model gives while its call ran. `docs/history.md` says what must hold.
//!
//! It is linear in the length of the history: an answer is looked at again only when a commit touches what it depends on.

mod bounds;
#[path = "../model/mod.rs"]
mod contract_model;
mod operations;
mod readers;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;

use self::bounds::{Bounds, Committed};
use self::contract_model::{Asker, Codes, Expected, Model};
use self::operations::{Entities, Entity, Operation, Settled};
use self::readers::{Reader, Readers, Upload};
use crate::history::{Answer, Commit, Coupon, History, Issue, Lsn, Mark, Nanos, Series, Settings};

/// The model wants a store; the series of a history do not care.
const STORE: i64 = 0;

/// What came of a replay. A history that holds has neither duplicates nor divergences.
#[derive(Debug, Default)]
pub struct Replayed {
    pub duplicates: Vec<String>,
    pub divergences: Vec<String>,
    /// Commits of coupons that the model was fed.
    pub coupons: usize,
    pub operations: usize,
    /// Answers of entities, receipts included, that were checked: all that settle something.
    pub answers: usize,
}

/// Checks a whole history.
pub fn replay(history: &History) -> Replayed {
    let mut replayed = Replayed { duplicates: duplicates(history), ..Replayed::default() };
    match Replay::new(history) {
        Ok(replay) => replay.run(&mut replayed),
        Err(why) => replayed.divergences.push(why),
    }
    replayed
}

/// What is there twice and may be there only once.
fn duplicates(history: &History) -> Vec<String> {
    let rules = history.applies.iter().flat_map(|apply| &apply.series);
    let generic: HashMap<i64, &str> =
        rules.filter_map(|series| Some((series.id, series.generic_code.as_deref()?))).collect();
    let (mut ids, mut entities, mut codes) = (HashMap::new(), HashMap::new(), HashMap::new());
    let mut wrong = Vec::new();
    for coupon in coupons_of(history) {
        let mut twice = |before: Option<&Coupon>, what: &str| {
            if let Some(before) = before {
                wrong.push(format!("{what}: {} and {}", of_coupon(before), of_coupon(coupon)));
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

fn of_coupon(coupon: &Coupon) -> String {
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
        several: series.is_multiple_vouchers_per_user_allowed,
        maximum: series.max_vouchers_per_user,
        resend: !series.do_not_resend_existing_voucher,
        gap: series.min_days_between_vouchers,
        excludes: series.mutual_exclusive_series_ids.clone(),
        stores: Vec::new(),
        external: false,
    })
}

/// A history, and what follows from it before anything is fed to the model.
struct Replay<'a> {
    history: &'a History,
    zone: TimeZone,
    entities: Entities<'a>,
    committed: Committed<'a>,
    bounds: Bounds<'a>,
    /// Every cap of a series that an `apply` has asked for.
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
        self.own_transactions(replayed);
        self.flushed(replayed);
        let readers = self.readers();
        replayed.answers += readers.len();
        self.feed(Readers::new(readers), replayed);
        for coupon in coupons_of(self.history) {
            replayed.coupons += 1;
            replayed.divergences.extend(self.belongs(coupon).err().map(|why| format!("{}: {why}", of_coupon(coupon))));
        }
        for entity in self.entities.all.values() {
            self.issued(entity, replayed);
            later(entity, replayed);
        }
        for receipt in &self.history.receipts {
            self.receipt(receipt, replayed);
        }
    }

    fn own_transactions(&self, replayed: &mut Replayed) {
        for pair in self.history.commits.windows(2) {
            let one_is_coupon = pair.iter().any(|commit| matches!(commit, Commit::Coupon(_)));
            if one_is_coupon && pair[0].lsn() == pair[1].lsn() {
                let [one, other] = [0, 1].map(|place| format!("{:?}", pair[place]));
                replayed
                    .divergences
                    .push(format!("one transaction has a coupon and something else: {one} and {other}"));
            }
        }
    }

    /// Nothing is shown before it is on disk. One finding for each commit, not for each mark that shows it.
    fn flushed(&self, replayed: &mut Replayed) {
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

    /// Feeds all commits to the model, and looks at the readers when something has changed for them.
    fn feed(&mut self, mut readers: Readers<'a>, replayed: &mut Replayed) {
        for commit in &self.history.commits {
            let lsn = commit.lsn();
            readers.begin_before(lsn, &self.model);
            match commit {
                Commit::Coupon(coupon) => {
                    replayed.divergences.extend(self.issue(coupon).err());
                    readers.look_again_for(&coupon.customer, lsn, &self.model);
                    if self.bounds.counts(coupon.series) {
                        readers.look_again_at(coupon.series, lsn, &self.model);
                    }
                }
                Commit::Settings(settings) => {
                    replayed.divergences.extend(self.set_cap(settings).err());
                    readers.look_again_at(settings.series, lsn, &self.model);
                }
                Commit::Codes(codes) => {
                    for code in &codes.codes {
                        if !self.model.upload(codes.series, code.clone(), None) {
                            replayed.divergences.push(format!(
                                "series {}: the code {code} was uploaded at commit {lsn} and was there before",
                                codes.series
                            ));
                        }
                    }
                    let visible_from = self.bounds.visible_from(codes.series, lsn);
                    readers.upload(codes.series, Upload { codes: codes.codes.len(), visible_from });
                    readers.look_again_at(codes.series, lsn, &self.model);
                }
            }
        }
        replayed.divergences.extend(readers.unexplained(&self.model));
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

    /// The model allows a coupon at its place.
    fn issue(&mut self, coupon: &Coupon) -> Result<(), String> {
        let asker = Asker { customer: coupon.customer.clone(), store: STORE, today: self.day(coupon.issued_at) };
        let expected = self.model.expected(&asker, coupon.series);
        let why = match expected {
            Expected::New(last_day) => {
                if self.model.issue(&asker, coupon.series, &coupon.code, last_day).is_some() {
                    return Ok(());
                }
                "a code that it may not have".to_owned()
            }
            other => format!("committed, and the model gives {other}"),
        };
        self.model.issue_anyway(&asker, coupon.series, &coupon.code);
        Err(format!("{}: {why}", of_coupon(coupon)))
    }

    /// Every answer that the model must give while its call ran.
    fn readers(&self) -> Vec<Reader<'a>> {
        let mut readers = Vec::new();
        for entity in self.entities.all.values() {
            for operation in &entity.operations {
                readers.extend(operation.settled.as_ref().and_then(|settled| self.reader(entity, operation, settled)));
            }
        }
        readers
    }

    /// `None`: the answer does not depend on what others did.
    fn reader(&self, entity: &Entity<'a>, operation: &Operation, settled: &Settled<'a>) -> Option<Reader<'a>> {
        let Entity { key, place, customer, series, .. } = *entity;
        let (answer, end) = (settled.answer, settled.end);
        if answer.is_not_stored() {
            return None;
        }
        let said = readers::said(answer, |instant| self.day(instant))?;
        // A refusal is of its own attempt. A coupon that is sent again stays so once an attempt of the operation has stored that.
        let start = if matches!(answer, Answer::Resent { .. }) { operation.start } else { settled.call_start };
        let asker = |today| Asker { customer: customer.to_owned(), store: STORE, today };
        let askers = self.days(start, end).map(asker).collect();
        let window = (self.bounds.seen(customer, &self.related(series), start), self.bounds.possible(end));
        let times = (start, end);
        Some(Reader { key, place, customer, series, answer, said, askers, times, window, given: Vec::new() })
    }

    /// A series, and those that exclude each other with it.
    fn related(&self, id: i64) -> Vec<i64> {
        let all = self.model.series();
        let excludes = |other: &&contract_model::Series| all.get(&id).is_some_and(|series| series.excludes(other));
        std::iter::once(id).chain(all.values().filter(excludes).map(|other| other.id)).collect()
    }

    /// The days that it may have been for the service between two instants.
    fn days(&self, start: Nanos, end: Nanos) -> impl Iterator<Item = Date> + use<> {
        let (first, last) = self.history.run.days(&self.zone, start, end);
        std::iter::successors(Some(first), |day| day.tomorrow().ok()).take_while(move |day| *day <= last)
    }

    /// Whether a coupon belongs to an operation, and its commit lies between the start and the end of it.
    ///
    /// Only the last operation of an entity can have issued: those before it have ended otherwise. Or else a call that got no
    /// answer, for as long as it may have been at work.
    fn belongs(&self, coupon: &Coupon) -> Result<(), String> {
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
            Window { above: self.bounds.surely_before(*start), to: self.bounds.possible(end) }
        };
        let is_resent = matches!(entity.last_word(), Some((_, Answer::Resent { .. })));
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
        let to = operation.settled.as_ref().map_or(Lsn::MAX, |settled| self.bounds.possible(settled.end));
        Window { above: self.bounds.surely_before(operation.start), to }
    }

    /// The coupon of the entity, which an answer `issued` must show.
    fn shows_own(&self, key: &str, place: usize, code: &str, valid_till: Date) -> Result<&'a Coupon, String> {
        let Some(coupon) = self.committed.of_entity(key, place).find(|coupon| coupon.code == code) else {
            let own: Vec<String> = self.committed.of_entity(key, place).map(of_coupon).collect();
            return Err(format!("was not committed for it, but {own:?}"));
        };
        let series = self.model.series().get(&coupon.series);
        let last_day = series.and_then(|series| series.last_day(self.day(coupon.issued_at)));
        if last_day != Some(valid_till) {
            return Err(format!("has another last day than in the model: {last_day:?}"));
        }
        Ok(coupon)
    }

    /// The answers `issued` of an entity to its calls.
    fn issued(&self, entity: &Entity, replayed: &mut Replayed) {
        let Some(settled) = entity.operations.last().and_then(|operation| operation.settled.as_ref()) else { return };
        for answer in std::iter::once(settled).chain(&entity.later).map(|settled| settled.answer) {
            // `belongs` has checked that the coupon was committed before the answer ended.
            if let Answer::Issued { code, valid_till, .. } = answer {
                replayed.answers += 1;
                let shown = self.shows_own(entity.key, entity.place, code, *valid_till);
                replayed.divergences.extend(shown.err().map(|why| format!("{entity}: {answer} {why}")));
            }
        }
    }

    /// Checks a receipt. A resend or a refusal in it may be an old one. Once an answer has issued or resent the entity, the receipt
    /// must show the same.
    fn receipt(&self, receipt: &Issue, replayed: &mut Replayed) {
        let Some((end, said)) = receipt.answered() else { return };
        for (place, answer) in said.iter().enumerate().filter(|(_, answer)| answer.settles()) {
            replayed.answers += 1;
            let of = || format!("receipt of key {}, entity {place}, from {} to {end}", receipt.key, receipt.start);
            if let Answer::Issued { code, valid_till, .. } = answer {
                let shown = self.shows_own(&receipt.key, place, code, *valid_till).and_then(|coupon| {
                    let possible = self.bounds.possible(end);
                    let late = || format!("is commit {}, and up to {possible} was committed by then", coupon.commit);
                    (coupon.commit <= possible).then_some(()).ok_or_else(late)
                });
                replayed.divergences.extend(shown.err().map(|why| format!("{}: {answer} {why}", of())));
            }
            let entity = self.entities.all.get(&(receipt.key.as_str(), place));
            let Some((settled_end, last)) = entity.and_then(Entity::last_word) else { continue };
            let both_issued = [last, answer].iter().all(|answer| matches!(answer, Answer::Issued { .. }));
            if *answer != *last && (both_issued || settled_end < receipt.start) {
                replayed.divergences.push(format!("{}: {answer:?}, and its call was answered {last:?}", of()));
            }
        }
    }
}

/// What was answered after an entity was issued or resent shows the same.
fn later(entity: &Entity, replayed: &mut Replayed) {
    let Some((_, last)) = entity.last_word() else { return };
    for later in &entity.later {
        // Those that are issued are counted where they are compared with their coupon.
        replayed.answers += usize::from(!matches!(later.answer, Answer::Issued { .. }));
        if later.answer != last {
            let (start, end, answer) = (later.call_start, later.end, later.answer);
            replayed
                .divergences
                .push(format!("{entity}: answered {last:?}, and later (from {start} to {end}) {answer:?}"));
        }
    }
}

/// The commits that an operation may have made.
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
