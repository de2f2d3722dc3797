//! The operations of a history: the calls of one entity, up to and including the first answer that settles it.
//! After a coupon, issued or resent, there is no further operation: every later answer must show the same.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};

use crate::history::{Answer, History, Issue, Nanos};

/// An answer that settles its entity, and the call that it was given to.
pub struct Settled<'a> {
    pub call_start: Nanos,
    pub end: Nanos,
    pub answer: &'a Answer,
}

pub struct Operation<'a> {
    pub start: Nanos,
    /// `None`: it may take effect at any later moment, or never. Only the last operation of an entity can be so.
    pub settled: Option<Settled<'a>>,
}

/// One series id of a key, with all of its calls.
pub struct Entity<'a> {
    pub key: &'a str,
    pub place: usize,
    pub customer: &'a str,
    pub series: i64,
    pub operations: Vec<Operation<'a>>,
    /// What was answered after `issued` or `resent`, which ended the last operation.
    pub later: Vec<Settled<'a>>,
    /// When the calls began that got no answer. Such a call may wait for its turn while a later one is refused.
    pub unanswered: Vec<Nanos>,
}

impl Display for Entity<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { key, place, customer, series, .. } = self;
        write!(f, "key {key}, entity {place} (customer {customer}, series {series})")
    }
}

impl<'a> Entity<'a> {
    /// The answer that every later one must show, and when it ended.
    pub fn last_word(&self) -> Option<(Nanos, &'a Answer)> {
        let settled = self.operations.last()?.settled.as_ref()?;
        matches!(settled.answer, Answer::Issued { .. } | Answer::Resent { .. }).then_some((settled.end, settled.answer))
    }

    fn begin(&mut self, start: Nanos) {
        if self.operations.last().is_none_or(|last| last.settled.is_some()) && self.last_word().is_none() {
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

/// All entities by key and place.
#[derive(Default)]
pub struct Entities<'a> {
    pub all: BTreeMap<(&'a str, usize), Entity<'a>>,
    /// When the first call of a key began.
    pub began: BTreeMap<&'a str, Nanos>,
    /// Calls that cannot be: they ask for something else under a known key, or their answer has too many or too few entities.
    pub malformed: Vec<String>,
}

impl<'a> Entities<'a> {
    pub fn of(history: &'a History) -> Self {
        let mut entities = Self::default();
        // In order of their start, which is the order of the calls of one key.
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
        for (place, series) in series.iter().enumerate() {
            let new = || Entity {
                key,
                place,
                customer,
                series: *series,
                operations: Vec::new(),
                later: Vec::new(),
                unanswered: Vec::new(),
            };
            let entity = self.all.entry((key, place)).or_insert_with(new);
            entity.begin(*start);
            if call.end.is_none() {
                entity.unanswered.push(*start);
            }
            let Some((end, answer)) = answer.and_then(|(end, answer)| Some((end, answer.get(place)?))) else {
                continue;
            };
            if answer.settles() {
                entity.end(Settled { call_start: *start, end, answer });
            }
        }
    }
}
