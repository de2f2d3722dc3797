//! Histories that are drawn: the model answers calls that overlap, each at one moment between its start and its end. Such a history
//! holds, and no longer does when something in it is changed.

use std::collections::HashMap;
use std::time::Instant;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::super::contract_model::{Asker, Expected, Model};
use super::super::{STORE, model_of};
use super::*;

/// From one moment to the next; calls reach over some of them.
const STEP: Nanos = 1000;
const REACH: Nanos = 20 * STEP;
const SERIES: [i64; 9] = [CAPPED, ONE_EACH, TWO_EACH, SENT_AGAIN, ONE_A_DAY, UPLOADED, GENERIC, TEA, COFFEE];
const TODAY: &str = "2026-11-22";

struct Drawn {
    history: History,
    model: Model,
    random: StdRng,
    moment: Nanos,
    cap: i64,
    /// Of a hundred calls, those for the series without a limit.
    plain: u32,
    /// What is sent again.
    held: HashMap<String, String>,
}

impl Drawn {
    fn history(seed: u64, steps: usize, plain: u32) -> Story {
        let (history, random) = (story().0, StdRng::seed_from_u64(seed));
        let model = model_of(&catalogue(2)).unwrap();
        let mut drawn = Self { history, model, random, moment: 2 * REACH, cap: 2, plain, held: HashMap::new() };
        for number in 0..steps {
            drawn.step(number);
        }
        Story(drawn.history)
    }

    /// The commit of this moment.
    const fn commit(&self) -> Lsn {
        self.moment * 2
    }

    fn step(&mut self, number: usize) {
        self.moment += STEP;
        let [before, after] = [0, 1].map(|_| self.random.random_range(1..REACH));
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

    /// An operator raises the cap or uploads codes, and may not know whether that ended well.
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
            0 => refused(FAILED),
            _ => self.answer(&customer, &key, series),
        };
        let ask = |start: Nanos, end: Option<Nanos>| call(&key, start, end, &[series], std::slice::from_ref(&answer));
        let issued = matches!(answer, Answer::Issued { .. });
        let calls = match self.random.random_range(0..20) {
            // Cut off, and asked again before or after the moment; or never.
            0 => vec![ask(start - 10, None), ask(start, Some(end))],
            1 if issued => vec![ask(start, None), ask(self.moment + 1, Some(self.moment + REACH))],
            2 => vec![ask(start, None)],
            // Asked again later.
            3 if issued => vec![ask(start, Some(end)), ask(end + 10, Some(end + 20))],
            _ => vec![ask(start, Some(end))],
        };
        self.history.issues.extend(calls);
        if self.random.random_ratio(1, 20) {
            self.history.receipts.push(ask(end + 30, Some(end + 40)));
        }
    }

    /// What the model gives at this moment.
    fn answer(&mut self, customer: &str, key: &str, series: i64) -> Answer {
        let asker = Asker { customer: customer.to_owned(), store: STORE, today: TODAY.parse().unwrap() };
        match self.model.expected(&asker, series) {
            Expected::New(last_day) => self.issue(&asker, key, series, last_day),
            Expected::Again(_) => resent(&self.held[customer]),
            Expected::Error(text, None) => refused(text),
            Expected::Error(text, Some(from)) => {
                refused_until(text, &from.to_zoned(TimeZone::UTC).unwrap().timestamp().to_string())
            }
        }
    }

    fn issue(&mut self, asker: &Asker, key: &str, series: i64, last_day: Date) -> Answer {
        let code = match series {
            GENERIC => "FORALL".to_owned(),
            UPLOADED => self.model.pools()[&UPLOADED].codes().keys().next().unwrap().clone(),
            _ => format!("C{key}"),
        };
        assert!(self.model.issue(asker, series, &code, last_day).is_some());
        if series == SENT_AGAIN {
            self.held.insert(asker.customer.clone(), code.clone());
        }
        self.history.commits.push(Commit::Coupon(Coupon {
            commit: self.commit(),
            id: i64::try_from(self.moment).unwrap(),
            key: Some(key.to_owned()),
            entity: 0,
            customer: asker.customer.clone(),
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
fn drawn_histories_are_acquitted() {
    for seed in 0..20 {
        println!("seed {seed}");
        Drawn::history(seed, 3000, 20).acquitted();
    }
}

/// The places in a list that fit, of which one is drawn.
fn one_of<T>(list: &[T], random: &mut StdRng, fits: impl Fn(&T) -> bool) -> usize {
    let places: Vec<_> = (0..list.len()).filter(|place| fits(&list[*place])).collect();
    places[random.random_range(0..places.len())]
}

/// One that is the only answer under its key.
fn one_answer<'a>(history: &'a mut History, random: &mut StdRng, fits: impl Fn(&Answer) -> bool) -> &'a mut Answer {
    let mut calls: HashMap<String, usize> = HashMap::new();
    for call in &history.issues {
        *calls.entry(call.key.clone()).or_default() += 1;
    }
    let fits = |call: &Issue| call.answer.as_ref().is_some_and(|answers| fits(&answers[0]));
    let is_answered = |call: &Issue| calls[&call.key] == 1 && fits(call);
    let place = one_of(&history.issues, random, is_answered);
    &mut history.issues[place].answer.as_mut().unwrap()[0]
}

const fn is_issued(answer: &Answer) -> bool {
    matches!(answer, Answer::Issued { .. })
}

fn is_refused(answer: &Answer) -> bool {
    matches!(answer, Answer::Refused { error, .. } if *error != 786)
}

/// Changes a history so that it no longer holds.
type Tamper = fn(&mut History, &mut StdRng);

const TAMPERS: [(&str, Tamper); 7] = [
    ("another code is answered", |history, random| {
        let Answer::Issued { code, .. } = one_answer(history, random, is_issued) else { return };
        code.push('X');
    }),
    ("an issued coupon is answered as refused", |history, random| {
        *one_answer(history, random, is_issued) = refused(FAILED);
    }),
    ("another reason is answered", |history, random| {
        *one_answer(history, random, is_refused) = refused("712 Coupon Series has expired");
    }),
    ("a resent coupon is another's", |history, random| {
        let answer = one_answer(history, random, |answer| matches!(answer, Answer::Resent { .. }));
        let Answer::Resent { code, .. } = answer else { return };
        code.push('X');
    }),
    ("an answered coupon is lost", |history, random| {
        let Answer::Issued { code, .. } = one_answer(history, random, is_issued).clone() else { return };
        let of = |commit: &Commit| matches!(commit, Commit::Coupon(coupon) if coupon.code == code);
        history.commits.retain(|commit| !of(commit));
    }),
    ("a coupon is there twice", |history, random| {
        let place = one_of(&history.commits, random, |commit| matches!(commit, Commit::Coupon(_)));
        let Commit::Coupon(coupon) = &history.commits[place] else { return };
        let twin = Coupon { id: -1, commit: coupon.commit + 1, ..coupon.clone() };
        history.commits.push(Commit::Coupon(twin));
    }),
    ("a coupon came too early", |history, random| {
        // Earlier: one that nobody saw might well have come later.
        let away = 10 * REACH;
        let is_late = |commit: &Commit| matches!(commit, Commit::Coupon(coupon) if coupon.commit > 20 * REACH);
        let place = one_of(&history.commits, random, is_late);
        let Commit::Coupon(coupon) = &mut history.commits[place] else { return };
        coupon.commit -= away + 1;
    }),
];

#[test]
fn drawn_histories_that_were_changed_are_convicted() {
    let mut random = StdRng::seed_from_u64(20_261_129);
    for (what, tamper) in TAMPERS {
        for seed in 0..10 {
            let mut drawn = Drawn::history(seed, 2000, 20);
            tamper(&mut drawn.0, &mut random);
            let replayed = drawn.replayed();
            let wrong = replayed.duplicates.len() + replayed.divergences.len();
            assert!(wrong > 0, "{what}, and nobody minds: seed {seed}");
        }
    }
}

/// For the eye: how long it takes is printed, and asserted nowhere.
#[test]
fn a_hundred_thousand_coupons_are_replayed() {
    let mut drawn = Drawn::history(1, 138_000, 70);
    let refused = drawn.history_answers(is_refused);
    let began = Instant::now();
    let replayed = drawn.replayed();
    println!("{} coupons, {refused} refusals: {:.2} s", replayed.coupons, began.elapsed().as_secs_f32());
    assert!(replayed.coupons > 100_000 && refused > 10_000, "{} coupons, {refused} refusals", replayed.coupons);
    assert_eq!(replayed.duplicates.len() + replayed.divergences.len(), 0, "{replayed:#?}");
}

impl Story {
    fn history_answers(&self, fits: fn(&Answer) -> bool) -> usize {
        self.0.issues.iter().filter_map(|call| call.answer.as_ref()).flatten().filter(|answer| fits(answer)).count()
    }
}
