//! Observations: answers that show a state, which are refusals and resent coupons. The model must give each of them at some moment
//! between the first and the last state that the call may have seen.

use std::collections::HashMap;

use jiff::Timestamp;
use jiff::civil::Date;

use super::contract_model::{IssueContext, Model, Outcome};
use crate::history::{Answer, Lsn, Nanos};

/// How many answers of the model a divergence shows.
const MAX_SHOWN_MODEL_ANSWERS: usize = 4;

/// Converts an answer for the model. `None`: it shows no state.
pub fn outcome_of(answer: &Answer, day: impl Fn(Timestamp) -> Date) -> Option<Outcome> {
    if let Answer::Resent { code, valid_till } = answer {
        return Some(Outcome::Resent { code: code.clone(), last_day: *valid_till });
    }
    let Answer::Refused { error, message, next_eligible_at } = answer else { return None };
    Some(Outcome::Error(format!("{error} {message}"), next_eligible_at.map(day)))
}

pub struct Observation<'a> {
    pub key: &'a str,
    pub index: usize,
    pub customer: &'a str,
    pub series: i64,
    pub answer: &'a Answer,
    pub outcome: Outcome,
    /// One for each day that the service's clock may have shown.
    pub contexts: Vec<IssueContext>,
    /// The start and the end of the call or the operation.
    pub span: (Nanos, Nanos),
    /// The first and the last of the commits after which the answer may have been decided.
    pub window: (Lsn, Lsn),
    /// The answers that the model gave instead.
    pub model_answers: Vec<String>,
}

impl Observation<'_> {
    /// Whether the model gives the same answer now, or would give it without the uploads that the call may not have seen yet.
    fn is_explained(&mut self, model: &Model, uploads: &[Upload]) -> bool {
        let missed = uploads.iter().filter(|upload| upload.visible_from > self.span.0).map(|upload| upload.codes);
        let missed = missed.sum();
        for context in &self.contexts {
            let expected = model.expected(context, self.series);
            if model.is_allowed(&expected, context, self.series, &self.outcome)
                || model.is_pool_empty_without(missed, &expected, self.series, &self.outcome)
            {
                return true;
            }
            let model_answer = expected.to_string();
            if self.model_answers.last() != Some(&model_answer) && self.model_answers.len() < MAX_SHOWN_MODEL_ANSWERS {
                self.model_answers.push(model_answer);
            }
        }
        false
    }

    fn describe(&self) -> String {
        let Self {
            key, index, customer, series, answer, span: (start, end), window: (from, to), model_answers, ..
        } = self;
        let to = if *to == Lsn::MAX { "the last".to_owned() } else { to.to_string() };
        format!(
            "key {key}, entity {index} (customer {customer}, series {series}): {answer}, asked from {start} to {end}; from commit {from} to \
             {to} the model gives {}",
            model_answers.join(", then "),
        )
    }
}

/// The number of uploaded codes, and the instant from which they were surely visible.
pub struct Upload {
    pub codes: usize,
    pub visible_from: Nanos,
}

/// All observations of a history. The unexplained ones are indexed by customer and series, so that a commit costs only as much as the
/// observations that it concerns.
pub struct Observations<'a> {
    /// In the order of the first commit of their windows.
    all: Vec<Observation<'a>>,
    /// How many windows have started.
    started: usize,
    waiting: Vec<bool>,
    by_customer: HashMap<&'a str, Vec<usize>>,
    by_series: HashMap<i64, Vec<usize>>,
    uploads: HashMap<i64, Vec<Upload>>,
    unexplained: Vec<usize>,
}

impl<'a> Observations<'a> {
    pub fn new(mut all: Vec<Observation<'a>>) -> Self {
        all.sort_by_key(|observation| observation.window.0);
        let waiting = vec![false; all.len()];
        let (by_customer, by_series, uploads) = (HashMap::new(), HashMap::new(), HashMap::new());
        Self { all, started: 0, waiting, by_customer, by_series, uploads, unexplained: Vec::new() }
    }

    /// Committed codes become visible later: after their flush.
    pub fn upload(&mut self, series: i64, upload: Upload) {
        self.uploads.entry(series).or_default().push(upload);
    }

    /// Starts the observations whose window begins before this commit. The model must have all commits before it.
    pub fn start_before(&mut self, commit: Lsn, model: &Model) {
        while let Some(observation) = self.all.get_mut(self.started).filter(|observation| observation.window.0 < commit)
        {
            let uploads = self.uploads.get(&observation.series).map_or(&[][..], Vec::as_slice);
            if !observation.is_explained(model, uploads) {
                self.waiting[self.started] = true;
                self.by_customer.entry(observation.customer).or_default().push(self.started);
                self.by_series.entry(observation.series).or_default().push(self.started);
            }
            self.started += 1;
        }
    }

    /// Called after a commit that changes what a customer holds.
    pub fn recheck_customer(&mut self, customer: &str, commit: Lsn, model: &Model) {
        if let Some(waiting) = self.by_customer.get_mut(customer) {
            let mut list = std::mem::take(waiting);
            list.retain(|index| self.recheck(*index, commit, model));
            if let Some(waiting) = self.by_customer.get_mut(customer) {
                *waiting = list;
            }
        }
    }

    /// Called after a commit that changes the coupons, the cap or the pool of a series.
    pub fn recheck_series(&mut self, series: i64, commit: Lsn, model: &Model) {
        if let Some(waiting) = self.by_series.get_mut(&series) {
            let mut list = std::mem::take(waiting);
            list.retain(|index| self.recheck(*index, commit, model));
            self.by_series.insert(series, list);
        }
    }

    /// Whether the observation still waits for the model to give its answer.
    fn recheck(&mut self, index: usize, commit: Lsn, model: &Model) -> bool {
        if !self.waiting[index] {
            return false;
        }
        let observation = &mut self.all[index];
        let uploads = self.uploads.get(&observation.series).map_or(&[][..], Vec::as_slice);
        if observation.window.1 < commit {
            self.unexplained.push(index);
            self.waiting[index] = false;
        } else if observation.is_explained(model, uploads) {
            self.waiting[index] = false;
        }
        self.waiting[index]
    }

    /// Every answer that the model never gave. The model must have all commits.
    pub fn unexplained(mut self, model: &Model) -> Vec<String> {
        self.start_before(Lsn::MAX, model);
        let waiting = self.waiting.iter().enumerate().filter(|(_, waiting)| **waiting).map(|(index, _)| index);
        self.unexplained.extend(waiting);
        self.unexplained.sort_unstable();
        self.unexplained.iter().map(|index| self.all[*index].describe()).collect()
    }
}
