//! Generated histories: the model answers overlapping calls, each at one moment between its start and its end. The replay must acquit
//! such a history, and convict it once it is tampered with.

use std::collections::HashMap;
use std::time::Instant;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::super::contract_model::{Expected, IssueContext, Model};
use super::super::{STORE, model_of};
use super::*;

/// The time between two moments, and the greatest time between a moment and the start or end of its call.
const STEP: Nanos = 1000;
const MAX_OVERLAP: Nanos = 20 * STEP;
const SERIES: [i64; 9] = [CAPPED, ONE_EACH, TWO_EACH, RESENT, ONE_A_DAY, UPLOADED, GENERIC, TEA, COFFEE];
const TODAY: &str = "2026-11-22";

struct Generator {
    history: History,
    model: Model,
    random: StdRng,
    moment: Nanos,
    cap: i64,
    /// The percentage of calls for the series without a limit.
    plain: u32,
    /// The code that is resent to each customer.
    held: HashMap<String, String>,
}

impl Generator {
    fn history(seed: u64, steps: usize, plain: u32) -> HistoryBuilder {
        let (history, random) = (builder().0, StdRng::seed_from_u64(seed));
        let model = model_of(&catalogue(2)).unwrap();
        let mut generated =
            Self { history, model, random, moment: 2 * MAX_OVERLAP, cap: 2, plain, held: HashMap::new() };
        for number in 0..steps {
            generated.step(number);
        }
        HistoryBuilder(generated.history)
    }

    /// The commit at this moment.
    const fn commit(&self) -> Lsn {
        self.moment * 2
    }

    fn step(&mut self, number: usize) {
        self.moment += STEP;
        let [before, after] = [0, 1].map(|_| self.random.random_range(1..MAX_OVERLAP));
        let (start, end) = (self.moment - before, self.moment + after);
        if number.is_multiple_of(50) {
            self.change(number, start, end);
        } else if number.is_multiple_of(49) {
            let at = self.commit();
            self.history.marks.push(Mark { start: self.moment, end, inserted: at, flushed: at });
        } else {
            self.call(number, start, end);
        }
    }

    /// An operator raises the cap or uploads codes, and may not get the answer.
    fn change(&mut self, number: usize, start: Nanos, end: Nanos) {
        let (end, commit) = (self.random.random_ratio(1, 2).then_some(end), self.commit());
        let process = "operator".to_owned();
        if number.is_multiple_of(100) {
            self.cap += 3;
            assert!(self.model.set_cap(CAPPED, self.cap));
            self.history.applies.push(Apply { process, start, end, series: catalogue(self.cap) });
            self.history.commits.push(Commit::Settings(Settings { commit, series: CAPPED, max_create: self.cap }));
        } else {
            let codes = vec![format!("U{number}"), format!("V{number}")];
            assert!(codes.iter().all(|code| self.model.upload(UPLOADED, code.clone(), None)));
            self.history.imports.push(Import { process, start, end, series: UPLOADED, count: 2 });
            self.history.commits.push(Commit::Codes(Codes { commit, series: UPLOADED, codes }));
        }
    }

    fn call(&mut self, number: usize, start: Nanos, end: Nanos) {
        let customer = letters(number / 100 + self.random.random_range(0..40));
        let key = format!("{customer}{number}");
        let is_plain = self.random.random_ratio(self.plain, 100);
        let series = if is_plain { PLAIN } else { SERIES[self.random.random_range(0..SERIES.len())] };
        let answer = match self.random.random_range(0..30) {
            0 => refused(NOT_STORED),
            _ => self.answer(&customer, &key, series),
        };
        let ask = |start: Nanos, end: Option<Nanos>| call(&key, start, end, &[series], std::slice::from_ref(&answer));
        let issued = matches!(answer, Answer::Issued { .. });
        let calls = match self.random.random_range(0..20) {
            // No answer, and a retry before or after the moment, or none.
            0 => vec![ask(start - 10, None), ask(start, Some(end))],
            1 if issued => vec![ask(start, None), ask(self.moment + 1, Some(self.moment + MAX_OVERLAP))],
            2 => vec![ask(start, None)],
            // Repeated later.
            3 if issued => vec![ask(start, Some(end)), ask(end + 10, Some(end + 20))],
            _ => vec![ask(start, Some(end))],
        };
        self.history.issues.extend(calls);
        if self.random.random_ratio(1, 20) {
            self.history.receipts.push(ask(end + 30, Some(end + 40)));
        }
    }

    /// The answer of the model at this moment.
    fn answer(&mut self, customer: &str, key: &str, series: i64) -> Answer {
        let context = IssueContext { customer: customer.to_owned(), store: STORE, today: TODAY.parse().unwrap() };
        match self.model.expected(&context, series) {
            Expected::New(last_day) => self.issue(&context, key, series, last_day),
            Expected::Resent(_) => resent(&self.held[customer]),
            Expected::Error(text, None) => refused(text),
            Expected::Error(text, Some(from)) => {
                refused_until(text, &from.to_zoned(TimeZone::UTC).unwrap().timestamp().to_string())
            }
        }
    }

    fn issue(&mut self, context: &IssueContext, key: &str, series: i64, last_day: Date) -> Answer {
        let code = match series {
            GENERIC => "FORALL".to_owned(),
            UPLOADED => self.model.pools()[&UPLOADED].codes().keys().next().unwrap().clone(),
            _ => format!("C{key}"),
        };
        assert!(self.model.issue(context, series, &code, last_day).is_some());
        if series == RESENT {
            self.held.insert(context.customer.clone(), code.clone());
        }
        self.history.commits.push(Commit::Coupon(Coupon {
            commit: self.commit(),
            id: i64::try_from(self.moment).unwrap(),
            key: Some(key.to_owned()),
            entity: 0,
            customer: context.customer.clone(),
            series,
            code: code.clone(),
            issued_at: BEGAN.parse().unwrap(),
        }));
        issued(&code)
    }
}

/// A name without digits.
fn letters(number: usize) -> String {
    number.to_string().bytes().map(|digit| char::from(digit - b'0' + b'a')).collect()
}

#[test]
fn generated_histories_are_acquitted() {
    for seed in 0..20 {
        println!("seed {seed}");
        Generator::history(seed, 3000, 20).acquitted();
    }
}

/// A random index among the items that fit.
fn pick<T>(list: &[T], random: &mut StdRng, fits: impl Fn(&T) -> bool) -> usize {
    let indices: Vec<_> = (0..list.len()).filter(|index| fits(&list[*index])).collect();
    indices[random.random_range(0..indices.len())]
}

/// A random answer among those that fit and are the only one under their key.
fn pick_answer<'a>(history: &'a mut History, random: &mut StdRng, fits: impl Fn(&Answer) -> bool) -> &'a mut Answer {
    let mut calls: HashMap<String, usize> = HashMap::new();
    for call in &history.issues {
        *calls.entry(call.key.clone()).or_default() += 1;
    }
    let fits = |call: &Issue| call.answer.as_ref().is_some_and(|answers| fits(&answers[0]));
    let is_answered = |call: &Issue| calls[&call.key] == 1 && fits(call);
    let index = pick(&history.issues, random, is_answered);
    &mut history.issues[index].answer.as_mut().unwrap()[0]
}

const fn is_issued(answer: &Answer) -> bool {
    matches!(answer, Answer::Issued { .. })
}

fn is_refused(answer: &Answer) -> bool {
    matches!(answer, Answer::Refused { error, .. } if *error != 786)
}

/// Changes a correct history so that it is wrong.
type Tamper = fn(&mut History, &mut StdRng);

const TAMPERS: [(&str, Tamper); 7] = [
    ("another code is answered", |history, random| {
        let Answer::Issued { code, .. } = pick_answer(history, random, is_issued) else { return };
        code.push('X');
    }),
    ("an issued coupon is answered as refused", |history, random| {
        *pick_answer(history, random, is_issued) = refused(NOT_STORED);
    }),
    ("another reason is answered", |history, random| {
        *pick_answer(history, random, is_refused) = refused("712 Coupon Series has expired");
    }),
    ("a resent coupon is another's", |history, random| {
        let answer = pick_answer(history, random, |answer| matches!(answer, Answer::Resent { .. }));
        let Answer::Resent { code, .. } = answer else { return };
        code.push('X');
    }),
    ("an answered coupon is lost", |history, random| {
        let Answer::Issued { code, .. } = pick_answer(history, random, is_issued).clone() else { return };
        let of = |commit: &Commit| matches!(commit, Commit::Coupon(coupon) if coupon.code == code);
        history.commits.retain(|commit| !of(commit));
    }),
    ("a coupon is there twice", |history, random| {
        let index = pick(&history.commits, random, |commit| matches!(commit, Commit::Coupon(_)));
        let Commit::Coupon(coupon) = &history.commits[index] else { return };
        let twin = Coupon { id: -1, commit: coupon.commit + 1, ..coupon.clone() };
        history.commits.push(Commit::Coupon(twin));
    }),
    ("a coupon came too early", |history, random| {
        // Moved to an earlier position. At a later one it might be right, if no answer has shown it.
        let away = 10 * MAX_OVERLAP;
        let is_late = |commit: &Commit| matches!(commit, Commit::Coupon(coupon) if coupon.commit > 20 * MAX_OVERLAP);
        let index = pick(&history.commits, random, is_late);
        let Commit::Coupon(coupon) = &mut history.commits[index] else { return };
        coupon.commit -= away + 1;
    }),
];

#[test]
fn tampered_histories_are_convicted() {
    let mut random = StdRng::seed_from_u64(20_261_129);
    for (what, tamper) in TAMPERS {
        for seed in 0..10 {
            let mut generated = Generator::history(seed, 2000, 20);
            tamper(&mut generated.0, &mut random);
            let replayed = generated.replayed();
            let wrong = replayed.duplicates.len() + replayed.divergences.len();
            assert!(wrong > 0, "acquitted although {what}: seed {seed}");
        }
    }
}

/// Prints the time of the replay for the reader, and asserts nothing about it.
#[test]
fn a_hundred_thousand_coupons_are_replayed() {
    let mut generated = Generator::history(1, 138_000, 70);
    let refused = generated.history_answers(is_refused);
    let began = Instant::now();
    let replayed = generated.replayed();
    println!("{} coupons, {refused} refusals: {:.2} s", replayed.coupons, began.elapsed().as_secs_f32());
    assert!(replayed.coupons > 100_000 && refused > 10_000, "{} coupons, {refused} refusals", replayed.coupons);
    assert_eq!(replayed.duplicates.len() + replayed.divergences.len(), 0, "{replayed:#?}");
}

impl HistoryBuilder {
    fn history_answers(&self, fits: fn(&Answer) -> bool) -> usize {
        self.0.issues.iter().filter_map(|call| call.answer.as_ref()).flatten().filter(|answer| fits(answer)).count()
    }
}
