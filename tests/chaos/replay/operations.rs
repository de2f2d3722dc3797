//! The operations of a history: the calls of one entity up to and including the first answer that settles it.
//! After `issued` or `resent` there is no further operation: every later answer must show the same.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};

use crate::history::{Answer, History, Issue, Nanos};

/// An answer that settles its entity, and the start of its call.
pub struct Settled<'a> {
    pub call_start: Nanos,
    pub end: Nanos,
    pub answer: &'a Answer,
}

pub struct Operation<'a> {
    pub start: Nanos,
    /// `None`: the operation takes effect at any later moment, or never. Only the last operation of an entity may be unsettled.
    pub settled: Option<Settled<'a>>,
}

/// One series id of a request, with all of its calls.
pub struct Entity<'a> {
    pub key: &'a str,
    pub index: usize,
    pub customer: &'a str,
    pub series: i64,
    pub operations: Vec<Operation<'a>>,
    /// The answers after `issued` or `resent`.
    pub later: Vec<Settled<'a>>,
    /// The starts of the calls without an answer. Such a call may wait while a later one is refused.
    pub unanswered: Vec<Nanos>,
}

impl Display for Entity<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { key, index, customer, series, .. } = self;
        write!(f, "key {key}, entity {index} (customer {customer}, series {series})")
    }
}

impl<'a> Entity<'a> {
    /// The answer `issued` or `resent`, which every later answer must repeat, and its end.
    pub fn final_answer(&self) -> Option<(Nanos, &'a Answer)> {
        let settled = self.operations.last()?.settled.as_ref()?;
        matches!(settled.answer, Answer::Issued { .. } | Answer::Resent { .. }).then_some((settled.end, settled.answer))
    }

    fn begin(&mut self, start: Nanos) {
        if self.operations.last().is_none_or(|last| last.settled.is_some()) && self.final_answer().is_none() {
            self.operations.push(Operation { start, settled: None });
        }
    }

    fn end(&mut self, settled: Settled<'a>) {
        match self.operations.last_mut() {
            Some(open) if open.settled.is_none() => open.settled = Some(settled),
            _ => self.later.push(settled),
        }
    }
}

#[derive(Default)]
pub struct Entities<'a> {
    /// By key and index.
    pub all: BTreeMap<(&'a str, usize), Entity<'a>>,
    /// The start of the first call of each key.
    pub began: BTreeMap<&'a str, Nanos>,
    /// Calls that ask for something else under a known key, or whose answer has too many or too few entities.
    pub malformed: Vec<String>,
}

impl<'a> Entities<'a> {
    pub fn of(history: &'a History) -> Self {
        let mut entities = Self::default();
        // The calls are in the order of their starts.
        for call in &history.issues {
            entities.add(call);
        }
        entities
    }

    fn add(&mut self, call: &'a Issue) {
        let Issue { key, customer, series, start, .. } = call;
        if self.began.contains_key(key.as_str()) {
            let known = self.all.range((key.as_str(), 0)..=(key.as_str(), usize::MAX)).map(|(_, entity)| entity);
            if !known
                .map(|entity| (entity.customer, entity.series))
                .eq(series.iter().map(|id| (customer.as_str(), *id)))
            {
                self.malformed.push(format!("key {key}: the call that began at {start} asks for something else"));
                return;
            }
        }
        self.began.entry(key).or_insert(*start);
        let answer = call.answered();
        if answer.is_some_and(|(_, answer)| answer.len() != series.len()) {
            self.malformed.push(format!("key {key}: the answer to the call that began at {start} has other entities"));
        }
        for (index, series) in series.iter().enumerate() {
            let new = || Entity {
                key,
                index,
                customer,
                series: *series,
                operations: Vec::new(),
                later: Vec::new(),
                unanswered: Vec::new(),
            };
            let entity = self.all.entry((key, index)).or_insert_with(new);
            entity.begin(*start);
            if call.end.is_none() {
                entity.unanswered.push(*start);
            }
            let Some((end, answer)) = answer.and_then(|(end, answer)| Some((end, answer.get(index)?))) else {
                continue;
            };
            if answer.settles() {
                entity.end(Settled { call_start: *start, end, answer });
            }
        }
    }
}
