//! Answers that show a state: refusals, and coupons that were sent again. Each must be what the model gives at some moment between
//! the first state that its reader may have seen and the last.

use std::collections::HashMap;

use jiff::Timestamp;
use jiff::civil::Date;

use super::contract_model::{Asker, Model, Said};
use crate::history::{Answer, Lsn, Nanos};

/// A complaint names at most so many answers of the model.
const SAID_OF_GIVEN: usize = 4;

/// What an answer says, in the words of the model.
pub fn said(answer: &Answer, day: impl Fn(Timestamp) -> Date) -> Option<Said> {
    if let Answer::Resent { code, valid_till } = answer {
        return Some(Said::Again { code: code.clone(), last_day: *valid_till });
    }
    let Answer::Refused { error, message, next_eligible_at } = answer else { return None };
    Some(Said::Error(format!("{error} {message}"), next_eligible_at.map(day)))
}

/// An answer that waits until the model gives the same.
pub struct Reader<'a> {
    pub key: &'a str,
    pub place: usize,
    pub customer: &'a str,
    pub series: i64,
    pub answer: &'a Answer,
    pub said: Said,
    /// The customer on each day that it may have been.
    pub askers: Vec<Asker>,
    /// Between which instants the answer was right.
    pub times: (Nanos, Nanos),
    /// After the first of these commits, after the last, and after each in between, the model is asked.
    pub window: (Lsn, Lsn),
    /// What the model has given instead.
    pub given: Vec<String>,
}

impl Reader<'_> {
    /// Whether the model gives the same now, or would without some of the uploads that the reader may have missed.
    fn is_explained(&mut self, model: &Model, uploads: &[Upload]) -> bool {
        let missed = uploads.iter().filter(|upload| upload.visible_from > self.times.0).map(|upload| upload.codes);
        let missed = missed.sum();
        for asker in &self.askers {
            let expected = model.expected(asker, self.series);
            if model.is_allowed(&expected, asker, self.series, &self.said)
                || model.is_empty_without(missed, &expected, self.series, &self.said)
            {
                return true;
            }
            let given = expected.to_string();
            if self.given.last() != Some(&given) && self.given.len() < SAID_OF_GIVEN {
                self.given.push(given);
            }
        }
        false
    }

    fn complaint(&self) -> String {
        let Self { key, place, customer, series, answer, times: (start, end), window: (from, to), given, .. } = self;
        let to = if *to == Lsn::MAX { "the last".to_owned() } else { to.to_string() };
        format!(
            "key {key}, entity {place} (customer {customer}, series {series}): {answer}, asked from {start} to {end}; from commit {from} to \
             {to} the model gives {}",
            given.join(", then "),
        )
    }
}

/// Codes that were uploaded, and when they were sure to be visible.
pub struct Upload {
    pub codes: usize,
    pub visible_from: Nanos,
}

/// All readers of a history. Those that wait are found by what they wait for, so that a commit costs no more than those it concerns.
pub struct Readers<'a> {
    /// In the order of the first state that they may have seen.
    all: Vec<Reader<'a>>,
    /// How many have begun.
    begun: usize,
    waiting: Vec<bool>,
    of_customer: HashMap<&'a str, Vec<usize>>,
    of_series: HashMap<i64, Vec<usize>>,
    uploads: HashMap<i64, Vec<Upload>>,
    unexplained: Vec<usize>,
}

impl<'a> Readers<'a> {
    pub fn new(mut all: Vec<Reader<'a>>) -> Self {
        all.sort_by_key(|reader| reader.window.0);
        let waiting = vec![false; all.len()];
        let (of_customer, of_series, uploads) = (HashMap::new(), HashMap::new(), HashMap::new());
        Self { all, begun: 0, waiting, of_customer, of_series, uploads, unexplained: Vec::new() }
    }

    /// Codes were committed, which become visible later: after their flush.
    pub fn upload(&mut self, series: i64, upload: Upload) {
        self.uploads.entry(series).or_default().push(upload);
    }

    /// Readers whose window opens before this commit begin here. The model has taken in all commits before it.
    pub fn begin_before(&mut self, commit: Lsn, model: &Model) {
        while let Some(reader) = self.all.get_mut(self.begun).filter(|reader| reader.window.0 < commit) {
            let uploads = self.uploads.get(&reader.series).map_or(&[][..], Vec::as_slice);
            if !reader.is_explained(model, uploads) {
                self.waiting[self.begun] = true;
                self.of_customer.entry(reader.customer).or_default().push(self.begun);
                self.of_series.entry(reader.series).or_default().push(self.begun);
            }
            self.begun += 1;
        }
    }

    /// A commit has changed what the customer holds.
    pub fn look_again_for(&mut self, customer: &str, commit: Lsn, model: &Model) {
        if let Some(waiting) = self.of_customer.get_mut(customer) {
            let mut list = std::mem::take(waiting);
            list.retain(|place| self.still_waits(*place, commit, model));
            if let Some(waiting) = self.of_customer.get_mut(customer) {
                *waiting = list;
            }
        }
    }

    /// A commit has changed how many coupons of the series there are, or may be.
    pub fn look_again_at(&mut self, series: i64, commit: Lsn, model: &Model) {
        if let Some(waiting) = self.of_series.get_mut(&series) {
            let mut list = std::mem::take(waiting);
            list.retain(|place| self.still_waits(*place, commit, model));
            self.of_series.insert(series, list);
        }
    }

    fn still_waits(&mut self, place: usize, commit: Lsn, model: &Model) -> bool {
        if !self.waiting[place] {
            return false;
        }
        let reader = &mut self.all[place];
        let uploads = self.uploads.get(&reader.series).map_or(&[][..], Vec::as_slice);
        if reader.window.1 < commit {
            self.unexplained.push(place);
            self.waiting[place] = false;
        } else if reader.is_explained(model, uploads) {
            self.waiting[place] = false;
        }
        self.waiting[place]
    }

    /// Every answer that the model gave at no moment. It has taken in all commits.
    pub fn unexplained(mut self, model: &Model) -> Vec<String> {
        self.begin_before(Lsn::MAX, model);
        let waiting = self.waiting.iter().enumerate().filter(|(_, waiting)| **waiting).map(|(place, _)| place);
        self.unexplained.extend(waiting);
        self.unexplained.sort_unstable();
        self.unexplained.iter().map(|place| self.all[*place].complaint()).collect()
    }
}
