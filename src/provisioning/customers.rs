//! The customers in the file of `apply` and their identifiers.
//!
//! No two customers of an organisation may share an identifier. The check looks at all customers together, so that an identifier
//! can move from one customer to another in either order.

use std::collections::BTreeMap;

use super::toml::{Mistake, Section};
use super::unique_values::{FirstLines, check_unique};
use crate::auth::MAX_NAME_LENGTH;
use crate::db::CustomerLookup;
use crate::model::{CustomerId, CustomerPlan, FilePosition, IdentifierPlan, Identifiers, OrganisationPlan};

/// The identifiers in the file, each with the first customer that has it.
#[derive(Default)]
pub(super) struct IdentifierOwners(BTreeMap<(&'static str, String), Owner>);

struct Owner {
    id: String,
    line: usize,
}

pub(super) fn customer(
    section: &Section<'_>,
    ids: &mut FirstLines<String>,
    owners: &mut IdentifierOwners,
) -> Option<CustomerPlan> {
    let id = section.required("id", section.name("id", MAX_NAME_LENGTH));
    if let Some(id) = &id {
        check_unique(section, "id", ids, id.clone());
    }
    let identifiers = IdentifierPlan::NAMES.map(|name| identifier(section, name));
    let id = id?;
    for (name, identifier) in IdentifierPlan::NAMES.into_iter().zip(&identifiers) {
        let IdentifierPlan::Given { value, position } = identifier else { continue };
        let owner = Owner { id: id.clone(), line: position.line };
        let first = owners.0.entry((name, value.clone())).or_insert(owner);
        // A customer that is listed twice is already a mistake.
        if first.id != id {
            section.mistake(name, format!("{value:?} also belongs to customer {:?}, in line {}", first.id, first.line));
        }
    }
    Some(CustomerPlan { id: CustomerId(id), position: section.position(), identifiers })
}

/// Reads an identifier. A wrong one counts as absent: it is reported as a mistake, which refuses the file.
fn identifier(section: &Section<'_>, name: &'static str) -> IdentifierPlan {
    let value = match section.text(name) {
        None => None,
        Some(text) if text.is_empty() => return IdentifierPlan::Withdrawn,
        Some(text) if name == "mobile" => {
            Identifiers::mobile_digits(&text).map_err(|reason| section.mistake(name, reason)).ok()
        }
        Some(_) => section.name(name, MAX_NAME_LENGTH),
    };
    match value {
        None => IdentifierPlan::Kept,
        Some(email) if name == "email" => given(section, name, Identifiers::email_folded(&email)),
        Some(value) => given(section, name, value),
    }
}

fn given(section: &Section<'_>, name: &'static str, value: String) -> IdentifierPlan {
    IdentifierPlan::Given { value, position: section.position_of(name) }
}

/// The identifiers that a customer will have.
pub(super) fn wanted(plan: &CustomerPlan, stored: Option<&CustomerLookup>) -> Identifiers {
    let stored = stored.map_or([&None; 3], |stored| stored.identifiers.except_id());
    let [mobile, email, external_id] =
        std::array::from_fn(|index| plan.identifiers[index].applied_to(stored[index].as_ref()));
    Identifiers { id: Some(plan.id.clone()), mobile, external_id, email }
}

/// Checks the identifiers of the file against those that other stored customers keep.
pub(super) fn conflicts_with_stored(
    plan: &OrganisationPlan,
    stored: &BTreeMap<CustomerId, CustomerLookup>,
) -> Vec<Mistake> {
    let listed: BTreeMap<&CustomerId, &CustomerPlan> =
        plan.customers.iter().map(|customer| (&customer.id, customer)).collect();
    let mut mistakes = Vec::new();
    for (index, name) in IdentifierPlan::NAMES.into_iter().enumerate() {
        let owners: BTreeMap<&str, &CustomerLookup> = (stored.values())
            .filter_map(|owner| Some((owner.identifiers.except_id()[index].as_deref()?, owner)))
            .collect();
        for customer in &plan.customers {
            let IdentifierPlan::Given { value, position } = &customer.identifiers[index] else { continue };
            let owner = owners.get(value.as_str()).filter(|owner| owner.id != customer.id);
            let Some(owner) = owner else { continue };
            let owner = match listed.get(&owner.id) {
                None => unlisted_owner(name, customer, owner),
                // The file takes the identifier from its owner, or gives it to both, which is already a mistake.
                Some(other) if other.identifiers[index] != IdentifierPlan::Kept => continue,
                Some(other) => listed_owner(name, &other.position, owner),
            };
            mistakes.push(Mistake::at(position, format!("{value:?} also belongs to {owner}")));
        }
    }
    mistakes
}

fn listed_owner(name: &str, position: &FilePosition, owner: &CustomerLookup) -> String {
    format!(
        "customer {:?}, in line {}, who keeps it because the file does not \
         set {name} there: set it there to another value or to \"\"",
        owner.id.0, position.line
    )
}

fn unlisted_owner(name: &str, customer: &CustomerPlan, owner: &CustomerLookup) -> String {
    let (id, own) = (&owner.id.0, &customer.id.0);
    if owner.registered {
        return format!(
            "customer {id:?}, who is stored but not in this file: list that customer with {name} = \"\" or another value"
        );
    }
    format!(
        "customer {id:?}, whom a request has created (registered = false), and who may have coupons. Either list the \
         customer with id = {id:?} instead of {own:?}, which keeps the coupons. Or list {id:?} as well, with {name} = \"\": \
         {own:?} then starts without coupons"
    )
}
