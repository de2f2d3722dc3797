//! The operations of a history, as docs/history.md defines them: the calls of one entity up to the first answer that settles it.
//! Each answer for an entity that has its coupon is an operation of its own, which must show the same.

use std::collections::BTreeMap;

use super::search::NEVER;
use crate::history::{Answer, History, Issue, Nanos};

#[derive(Debug)]
pub struct Operation {
    pub key: String,
    pub entity: usize,
    pub customer: String,
    pub series: i64,
    pub start: Nanos,
    /// [`NEVER`]: the operation is not settled.
    pub end: Nanos,
    pub outcome: Outcome,
}

#[derive(Debug)]
pub enum Outcome {
    Answered(Answer),
    Unknown,
    /// An answer for an entity that is settled already. `None`: no attempt can have caused the answer.
    Again {
        first: Option<Answer>,
        now: Answer,
    },
}

impl Operation {
    /// The text in findings.
    pub fn label(&self) -> String {
        let Self { key, entity, customer, series, outcome, .. } = self;
        let outcome = match outcome {
            Outcome::Answered(answer) => answer.to_string(),
            Outcome::Unknown => "not settled".to_owned(),
            Outcome::Again { first: Some(first), now } => format!("again {now}, first {first}"),
            Outcome::Again { first: None, now } => format!("{now} without an attempt"),
        };
        format!("{key}/{entity} {customer} series {series}: {outcome}")
    }
}

/// All operations, and the calls whose answer does not fit their key.
pub fn of(history: &History) -> (Vec<Operation>, Vec<String>) {
    let mut keys: BTreeMap<&str, Vec<Call>> = BTreeMap::new();
    for (calls, is_receipt) in [(&history.issues, false), (&history.receipts, true)] {
        for call in calls {
            keys.entry(&call.key).or_default().push(Call { is_receipt, call });
        }
    }
    let (mut operations, mut malformed) = (Vec::new(), Vec::new());
    for (key, mut calls) in keys {
        calls.sort_by_key(|attempt| attempt.call.start);
        let asked = calls[0].call;
        for Call { call, .. } in &calls {
            let answered = call.answer.as_ref().map_or(call.series.len(), Vec::len);
            if (&call.customer, &call.series) != (&asked.customer, &asked.series) || answered != asked.series.len() {
                malformed.push(format!("{key}: not answered what the key asks for: {call:?}"));
            }
        }
        for entity in 0..asked.series.len() {
            operations.append(&mut of_entity(&calls, entity, history.run.longest_call));
        }
    }
    (operations, malformed)
}

struct Call<'a> {
    is_receipt: bool,
    call: &'a Issue,
}

impl Call<'_> {
    /// The end of the call and its answer for the entity. `None`: the call does not settle the entity.
    fn settled(&self, entity: usize) -> Option<(Nanos, &Answer)> {
        let (end, answers) = self.call.answered()?;
        answers.get(entity).filter(|answer| answer.settles()).map(|answer| (end, answer))
    }
}

fn of_entity(calls: &[Call], entity: usize, longest_call: Nanos) -> Vec<Operation> {
    let asked = calls[0].call;
    let operation = |start, end: Nanos, outcome| Operation {
        key: asked.key.clone(),
        entity,
        customer: asked.customer.clone(),
        series: asked.series[entity],
        start,
        end: end.max(start),
        outcome,
    };
    let mut operations = Vec::new();
    // The start of the first unsettled attempt, and the answer that shows the coupon.
    let (mut began, mut coupon): (Option<Nanos>, Option<&Answer>) = (None, None);
    let mut unanswered: Option<Nanos> = None;
    for attempt in calls {
        let settled = attempt.settled(entity);
        if let Some(first) = coupon {
            let again = |now: &Answer| Outcome::Again { first: Some(first.clone()), now: now.clone() };
            operations.extend(settled.map(|(end, now)| operation(attempt.call.start, end, again(now))));
            continue;
        }
        if !attempt.is_receipt {
            // A call without an answer may have waited while a later one was refused.
            let late = unanswered.filter(|start| attempt.call.start <= start.saturating_add(longest_call));
            began.get_or_insert(late.unwrap_or(attempt.call.start));
            if attempt.call.end.is_none() {
                unanswered = Some(attempt.call.start);
            }
        }
        let Some((end, answer)) = settled else { continue };
        let has_coupon = !matches!(answer, Answer::Refused { .. });
        // A receipt may repeat the refusal of any earlier attempt, so it settles none.
        if attempt.is_receipt && !has_coupon {
            continue;
        }
        let outcome = Outcome::Answered(answer.clone());
        match (began.take(), answer) {
            // The attempt had no effect, and no limit has to explain that.
            (_, answer) if answer.is_not_stored() => {}
            (Some(start), _) => operations.push(operation(start, end, outcome)),
            (None, now) => {
                let outcome = Outcome::Again { first: None, now: now.clone() };
                operations.push(operation(attempt.call.start, end, outcome));
            }
        }
        coupon = has_coupon.then_some(answer);
    }
    operations.extend(began.map(|start| operation(start, NEVER, Outcome::Unknown)));
    operations
}
