use std::collections::{BTreeMap, HashMap};

/// An uploaded code. Without an owner, any customer may get it.
#[derive(Debug)]
pub struct Uploaded {
    pub code: String,
    pub owner: Option<String>,
}

/// The uploaded codes of one series that remain, with their owners.
/// The counts save a walk through all codes at each decision.
#[derive(Debug, Default)]
pub struct Pool {
    codes: BTreeMap<String, Option<String>>,
    shared: usize,
    reserved: HashMap<String, usize>,
}

impl Pool {
    pub const fn codes(&self) -> &BTreeMap<String, Option<String>> {
        &self.codes
    }

    fn count_mut(&mut self, owner: Option<&String>) -> &mut usize {
        match owner {
            Some(owner) => self.reserved.entry(owner.clone()).or_default(),
            None => &mut self.shared,
        }
    }

    /// False: the pool has the code already.
    pub(super) fn add(&mut self, Uploaded { code, owner }: Uploaded) -> bool {
        if self.codes.contains_key(&code) {
            return false;
        }
        *self.count_mut(owner.as_ref()) += 1;
        self.codes.insert(code, owner);
        true
    }

    /// How many codes without an owner remain.
    pub(super) const fn shared_remaining(&self) -> usize {
        self.shared
    }

    fn has_reserved(&self, customer: &str) -> bool {
        self.reserved.get(customer).is_some_and(|count| *count > 0)
    }

    pub(super) fn has_code_for(&self, customer: &str) -> bool {
        self.shared > 0 || self.has_reserved(customer)
    }

    /// Takes a code for a customer. `None`: the customer may not get this code. A customer's reserved codes come before shared ones.
    pub(super) fn take(&mut self, code: &str, customer: &str) -> Option<Uploaded> {
        let next_owner = self.has_reserved(customer).then_some(customer);
        (self.codes.get(code)?.as_deref() == next_owner).then(|| self.remove(code)).flatten()
    }

    pub(super) fn remove(&mut self, code: &str) -> Option<Uploaded> {
        let (code, owner) = self.codes.remove_entry(code)?;
        *self.count_mut(owner.as_ref()) -= 1;
        Some(Uploaded { code, owner })
    }
}
