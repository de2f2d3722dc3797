//! Judges the answers of a history alone, without the commits. They must be those of one register for each customer and each group of
//! series that exclude each other, and of one counter for each series with a cap. A published checker searches for an order of the
//! operations. docs/history.md defines the operations.

mod cap;
mod customer;
mod operations;
mod rules;
mod search;
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::rc::Rc;
use std::time::{Duration, Instant};

use self::cap::Cap;
use self::customer::{Customer, Group, Holding};
use self::operations::{Operation, Outcome};
use self::rules::Settings;
use self::search::{LIMITS, Object, Timed, Verdict, judge};
use crate::history::{Answer, History};

#[derive(Debug)]
pub struct Checked {
    pub partitions: usize,
    /// An operation that concerns both a customer and a cap counts once.
    pub operations: usize,
    /// Each begins with the name of its partition, or with "not checked": that proves no fault, but does not acquit.
    pub violations: Vec<String>,
    pub checker: &'static str,
    pub took: Duration,
}

pub fn check(history: &History) -> Checked {
    let began = Instant::now();
    let mut checked = Checked {
        partitions: 0,
        operations: 0,
        violations: Vec::new(),
        // The version is pinned in Cargo.toml.
        checker: "todc-utils 0.1.1 WGLChecker",
        took: Duration::ZERO,
    };
    if let Err(why) = checked.judge_all(history) {
        checked.violations.push(format!("not checked: {why}"));
    }
    checked.took = began.elapsed();
    checked
}

impl Checked {
    fn judge_all(&mut self, history: &History) -> Result<(), String> {
        let settings = rules::settings(history)?;
        let (operations, malformed) = operations::of(history);
        self.violations.extend(malformed);
        self.operations = operations.len();
        self.judge_customers(history, &settings, &operations)?;
        self.judge_caps(&settings, &operations);
        Ok(())
    }

    fn judge_customers(
        &mut self,
        history: &History,
        settings: &[Settings],
        operations: &[Operation],
    ) -> Result<(), String> {
        let codes = Codes::of(operations);
        let group_of = rules::groups(settings);
        let mut partitions: BTreeMap<i64, BTreeMap<&str, Vec<&Operation>>> = BTreeMap::new();
        for operation in operations {
            let group = *group_of.get(&operation.series).unwrap_or(&operation.series);
            partitions.entry(group).or_default().entry(&operation.customer).or_default().push(operation);
        }
        let last = customer::last_instant(operations);
        for (group, customers) in partitions {
            let others = group_of.iter().filter(|(id, of)| **of == group && **id != group).map(|(id, _)| *id);
            // The key of a group is its smallest series.
            let ids: Vec<i64> = std::iter::once(group).chain(others).collect();
            let group = Rc::new(Group::new(&history.run, settings, &ids, last)?);
            for (customer, operations) in customers {
                let is_known = |operation: &Operation, code: &str| codes.is_known(operation, code);
                let (name, steps) = group.history(customer, &operations, &is_known);
                self.judge::<Customer>(&name, Holding::default(), steps);
            }
        }
        Ok(())
    }

    fn judge_caps(&mut self, settings: &[Settings], operations: &[Operation]) {
        let all = settings.iter().flat_map(|settings| settings.series.values());
        let capped: BTreeSet<i64> = all.filter(|series| series.max_create >= 0).map(|series| series.id).collect();
        let mut steps: BTreeMap<i64, Vec<Timed<cap::Step>>> = capped.iter().map(|id| (*id, Vec::new())).collect();
        for operation in operations {
            if let (Some(steps), Some(step)) = (steps.get_mut(&operation.series), cap::step(operation)) {
                let Operation { start, end, .. } = *operation;
                steps.push(Timed { start, end, step, label: operation.label() });
            }
        }
        for (series, mut steps) in steps {
            let (initial, changes) = cap::caps(settings, series);
            steps.extend(changes);
            self.judge::<Cap>(&format!("cap of series {series}"), initial, steps);
        }
    }

    fn judge<O: Object>(&mut self, name: &str, initial: O::State, steps: Vec<Timed<O::Step>>) {
        self.partitions += 1;
        match judge::<O>(initial, steps, LIMITS) {
            Verdict::Linearizable => {}
            Verdict::NotLinearizable(lines) => {
                self.violations.push(format!("{name}: not linearizable\n  {}", lines.join("\n  ")));
            }
            Verdict::TooLong(length) => self.violations.push(format!(
                "{name}: not checked: too long, {length} operations without a moment at which none is in flight"
            )),
        }
    }
}

/// The receivers of each code, according to the answers.
struct Codes<'a> {
    issued: HashSet<&'a str>,
    /// The customer and series. `None`: several of them.
    shown_to: HashMap<&'a str, Option<(&'a str, i64)>>,
}

impl<'a> Codes<'a> {
    fn of(operations: &'a [Operation]) -> Self {
        let mut codes = Self { issued: HashSet::new(), shown_to: HashMap::new() };
        for one in operations {
            let Outcome::Answered(Answer::Issued { code, .. } | Answer::Resent { code, .. }) = &one.outcome else {
                continue;
            };
            if matches!(one.outcome, Outcome::Answered(Answer::Issued { .. })) {
                codes.issued.insert(code);
            }
            let receiver = Some((one.customer.as_str(), one.series));
            let shown_to = codes.shown_to.entry(code).or_insert(receiver);
            if *shown_to != receiver {
                *shown_to = None;
            }
        }
        codes
    }

    /// Whether an answer has issued the code, or has shown it for another customer or series. Otherwise an unsettled operation may have
    /// issued it to this customer.
    fn is_known(&self, operation: &Operation, code: &str) -> bool {
        let receiver = Some((operation.customer.as_str(), operation.series));
        self.issued.contains(code) || self.shown_to.get(code).is_some_and(|shown_to| *shown_to != receiver)
    }
}
