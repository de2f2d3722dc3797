//! The customers in the file of `apply`: their identifiers, who has which afterwards, and what changes.
//!
//! No two customers of an organisation ever share an identifier. Customers are looked at as a whole: what one of them gives up
//! another may have, whatever their order in the file.

use std::collections::BTreeMap;

use super::file::{Lines, unique};
use super::toml::{Mistake, Section};
use crate::auth::LONGEST_NAME;
use crate::db::CustomerLookup;
use crate::model::{CustomerId, CustomerPlan, IdentifierPlan, Identifiers, OrganisationPlan, Place};

/// The identifiers that the file gives, each with the first customer that has it.
#[derive(Default)]
pub(super) struct Given(BTreeMap<(&'static str, String), Holder>);

struct Holder {
    id: String,
    line: usize,
}

pub(super) fn customer(section: &Section<'_>, ids: &mut Lines<String>, given: &mut Given) -> Option<CustomerPlan> {
    let id = section.required("id", section.name("id", LONGEST_NAME));
    if let Some(id) = &id {
        unique(section, "id", ids, id.clone());
    }
    let identifiers = IdentifierPlan::NAMES.map(|name| identifier(section, name));
    let id = id?;
    for (name, identifier) in IdentifierPlan::NAMES.into_iter().zip(&identifiers) {
        let IdentifierPlan::Given { value, place } = identifier else { continue };
        let holder = Holder { id: id.clone(), line: place.line };
        let first = given.0.entry((name, value.clone())).or_insert(holder);
        // A customer that is listed twice is a mistake of its own.
        if first.id != id {
            section.mistake(name, format!("{value:?} is also that of customer {:?}, in line {}", first.id, first.line));
        }
    }
    Some(CustomerPlan { id: CustomerId(id), place: section.place(), identifiers })
}

/// What the file says of an identifier. Where it is wrong it is noted, and the file refused.
fn identifier(section: &Section<'_>, name: &'static str) -> IdentifierPlan {
    let value = match section.text(name) {
        None => None,
        Some(text) if text.is_empty() => return IdentifierPlan::Withdrawn,
        Some(text) if name == "mobile" => {
            Identifiers::mobile_digits(&text).map_err(|reason| section.mistake(name, reason)).ok()
        }
        Some(_) => section.name(name, LONGEST_NAME),
    };
    match value {
        None => IdentifierPlan::Kept,
        Some(email) if name == "email" => given(section, name, Identifiers::email_folded(&email)),
        Some(value) => given(section, name, value),
    }
}

fn given(section: &Section<'_>, name: &'static str, value: String) -> IdentifierPlan {
    IdentifierPlan::Given { value, place: section.place_of(name) }
}

/// What a customer that is stored has afterwards.
pub(super) fn wanted(plan: &CustomerPlan, stored: Option<&CustomerLookup>) -> Identifiers {
    let stored = stored.map_or([&None; 3], |stored| stored.identifiers.beside_the_id());
    let [mobile, email, external_id] =
        std::array::from_fn(|index| plan.identifiers[index].applied_to(stored[index].as_ref()));
    Identifiers { id: Some(plan.id.clone()), mobile, external_id, email }
}

/// The identifiers of the file that a stored customer has and keeps.
pub(super) fn taken(plan: &OrganisationPlan, stored: &BTreeMap<CustomerId, CustomerLookup>) -> Vec<Mistake> {
    let listed: BTreeMap<&CustomerId, &CustomerPlan> = plan.customers.iter().map(|one| (&one.id, one)).collect();
    let mut mistakes = Vec::new();
    for (index, name) in IdentifierPlan::NAMES.into_iter().enumerate() {
        let holders: BTreeMap<&str, &CustomerLookup> =
            stored.values().filter_map(|one| Some((one.identifiers.beside_the_id()[index].as_deref()?, one))).collect();
        for customer in &plan.customers {
            let IdentifierPlan::Given { value, place } = &customer.identifiers[index] else { continue };
            let holder = holders.get(value.as_str()).filter(|holder| holder.id != customer.id);
            let Some(holder) = holder else { continue };
            let told = match listed.get(&holder.id) {
                None => unlisted(name, customer, holder),
                // Of two that are given it the second is a mistake already, and one that gives it up is in nobody's way.
                Some(other) if other.identifiers[index] != IdentifierPlan::Kept => continue,
                Some(other) => keeps_it(name, &other.place, holder),
            };
            mistakes.push(Mistake::at(place, format!("{value:?} is also that of {told}")));
        }
    }
    mistakes
}

fn keeps_it(name: &str, other: &Place, holder: &CustomerLookup) -> String {
    format!(
        "customer {:?}, in line {}, who keeps it because the file leaves {name} out there: give that one another, or {name} = \"\"",
        holder.id.0, other.line
    )
}

fn unlisted(name: &str, customer: &CustomerPlan, holder: &CustomerLookup) -> String {
    let (id, own) = (&holder.id.0, &customer.id.0);
    if holder.registered {
        return format!(
            "customer {id:?}, who is stored and not in this file: list that one with {name} = \"\", or another"
        );
    }
    format!(
        "customer {id:?}, who was made by a request on first use (registered = false), and may have coupons. Either list the \
         customer with id = {id:?} instead of {own:?}, which keeps the coupons. Or list {id:?} as well, with {name} = \"\": \
         {own:?} begins without them"
    )
}
