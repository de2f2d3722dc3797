//! The uploaded codes of one series that are left.

use std::collections::{BTreeMap, HashMap};

/// An uploaded code, and whom it is for.
#[derive(Debug)]
pub struct Uploaded {
    pub series: i64,
    pub code: String,
    pub owner: Option<String>,
}

/// Codes that are left, with whom each is for.
#[derive(Debug, Default)]
pub struct Pool {
    codes: BTreeMap<String, Option<String>>,
    /// How many are for each customer, and (`None`) for anybody.
    left: HashMap<Option<String>, usize>,
}

impl Pool {
    pub const fn codes(&self) -> &BTreeMap<String, Option<String>> {
        &self.codes
    }

    /// False: it is there already.
    pub(super) fn add(&mut self, code: String, owner: Option<String>) -> bool {
        if self.codes.contains_key(&code) {
            return false;
        }
        *self.left.entry(owner.clone()).or_default() += 1;
        self.codes.insert(code, owner);
        true
    }

    fn has_left(&self, owner: &Option<String>) -> bool {
        self.left.get(owner).is_some_and(|left| *left > 0)
    }

    pub(super) fn has_code_for(&self, customer: &str) -> bool {
        self.has_left(&None) || self.has_left(&Some(customer.to_owned()))
    }

    /// Gives a code out, and returns whom it is for. `None`: the customer may not have it. A code of the customer's own goes first.
    pub(super) fn take(&mut self, code: &str, customer: &str) -> Option<Option<String>> {
        let own = Some(customer.to_owned());
        let next = if self.has_left(&own) { own } else { None };
        (*self.codes.get(code)? == next).then(|| self.remove(code)).flatten()
    }

    pub(super) fn remove(&mut self, code: &str) -> Option<Option<String>> {
        let owner = self.codes.remove(code)?;
        *self.left.entry(owner.clone()).or_default() -= 1;
        Some(owner)
    }
}
