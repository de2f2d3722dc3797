//! Judges the answers of a history alone: they must be those of one register for each customer and each group of series that exclude
//! each other, and of one counter for each series with a cap. A published checker searches for the order; `docs/history.md`
//! says what an operation is. What Postgres committed is not looked at.

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

/// What the check has found.
#[derive(Debug)]
pub struct Checked {
    pub partitions: usize,
    /// Of entities. One that concerns a customer and a cap counts once.
    pub operations: usize,
    /// Each begins with the name of the partition. One that says "not checked" is no proof of a fault, and no acquittal.
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
    if let Err(wrong) = checked.judge_all(history) {
        checked.violations.push(format!("not checked: {wrong}"));
    }
    checked.took = began.elapsed();
    checked
}

impl Checked {
    fn judge_all(&mut self, history: &History) -> Result<(), String> {
        let settings = rules::settings(history)?;
        let (operations, wrong) = operations::of(history);
        self.violations.extend(wrong);
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
            // A group is named after its smallest series.
            let ids: Vec<i64> = std::iter::once(group).chain(others).collect();
            let group = Rc::new(Group::new(&history.run, settings, &ids, last)?);
            for (customer, operations) in customers {
                let is_known = |one: &Operation, code: &str| codes.is_known(one, code);
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
        for one in operations {
            if let (Some(steps), Some(step)) = (steps.get_mut(&one.series), cap::step(one)) {
                steps.push(Timed { start: one.start, end: one.end, step, label: one.label() });
            }
        }
        for (series, mut steps) in steps {
            let (begin, changes) = cap::caps(settings, series);
            steps.extend(changes);
            self.judge::<Cap>(&format!("cap of series {series}"), begin, steps);
        }
    }

    fn judge<O: Object>(&mut self, name: &str, begin: O::State, steps: Vec<Timed<O::Step>>) {
        self.partitions += 1;
        match judge::<O>(begin, steps, LIMITS) {
            Verdict::Linearizable => {}
            Verdict::Not(lines) => self.violations.push(format!("{name}: not linearizable\n  {}", lines.join("\n  "))),
            Verdict::TooLong(length) => self.violations.push(format!(
                "{name}: not checked: too long, {length} operations without a moment at which none is in flight"
            )),
        }
    }
}

/// Who received each code, according to the answers.
struct Codes<'a> {
    issued: HashSet<&'a str>,
    /// Customer and series; `None`: several.
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

    /// Whether an answer has issued the code, or another customer or series was shown it. If not, an operation that nothing
    /// settled may have issued it to this customer.
    fn is_known(&self, one: &Operation, code: &str) -> bool {
        let receiver = Some((one.customer.as_str(), one.series));
        self.issued.contains(code) || self.shown_to.get(code).is_some_and(|shown_to| *shown_to != receiver)
    }
}
