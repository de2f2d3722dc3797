//! The uploaded codes of one series that are left.
//! How many there are for whom is counted, so that no question goes through them.

use std::collections::{BTreeMap, HashMap};

/// An uploaded code, and whom it is for.
#[derive(Debug)]
pub struct Uploaded {
    pub code: String,
    pub owner: Option<String>,
}

/// Codes that are left, with whom each is for.
#[derive(Debug, Default)]
pub struct Pool {
    codes: BTreeMap<String, Option<String>>,
    for_anybody: usize,
    for_customer: HashMap<String, usize>,
}

impl Pool {
    pub const fn codes(&self) -> &BTreeMap<String, Option<String>> {
        &self.codes
    }

    fn left(&mut self, owner: Option<&String>) -> &mut usize {
        match owner {
            Some(owner) => self.for_customer.entry(owner.clone()).or_default(),
            None => &mut self.for_anybody,
        }
    }

    /// False: it is there already.
    pub(super) fn add(&mut self, Uploaded { code, owner }: Uploaded) -> bool {
        if self.codes.contains_key(&code) {
            return false;
        }
        *self.left(owner.as_ref()) += 1;
        self.codes.insert(code, owner);
        true
    }

    pub(super) const fn left_for_anybody(&self) -> usize {
        self.for_anybody
    }

    fn has_own(&self, customer: &str) -> bool {
        self.for_customer.get(customer).is_some_and(|left| *left > 0)
    }

    pub(super) fn has_code_for(&self, customer: &str) -> bool {
        self.for_anybody > 0 || self.has_own(customer)
    }

    /// Gives a code out. `None`: the customer may not have it. One of the customer's own goes first.
    pub(super) fn take(&mut self, code: &str, customer: &str) -> Option<Uploaded> {
        let next = self.has_own(customer).then_some(customer);
        (self.codes.get(code)?.as_deref() == next).then(|| self.remove(code)).flatten()
    }

    pub(super) fn remove(&mut self, code: &str) -> Option<Uploaded> {
        let (code, owner) = self.codes.remove_entry(code)?;
        *self.left(owner.as_ref()) -= 1;
        Some(Uploaded { code, owner })
    }
}
