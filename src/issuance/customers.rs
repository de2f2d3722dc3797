//! Finds or creates the customer of a request (contract 1).
//!
//! An identifier that is new is added to the customer that the other identifiers name. Identifiers that name different customers are
//! refused, since either choice could give one customer's coupon to another.

use super::error::IssueError;
use crate::db::{CustomerLookup, Db};
use crate::model::{CustomerId, CustomerPolicy, Entropy, Identifiers, Organisation};

/// If two requests create the same customer at once, the loser looks it up again. More look-ups than this are not a race.
const MAX_LOOK_UPS: usize = 8;

/// The conclusion from the customers that the identifiers name.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Match {
    /// An existing customer.
    Existing(CustomerId),
    /// An existing customer who gets the new identifiers as well.
    Complete(CustomerId),
    /// A new customer, with the given id or a generated one.
    New(Option<CustomerId>),
    /// No customer who may receive a coupon.
    Unknown,
    /// More than one customer.
    Conflict,
}

/// The customer, if the given id needs no look-up.
pub(super) fn without_look_up(policy: CustomerPolicy, given: &Identifiers) -> Option<CustomerId> {
    let id = given.id.as_ref().filter(|_| policy == CustomerPolicy::Open && given.is_only_id());
    id.cloned()
}

/// Finds the customer, or creates one if the organisation's policy is open.
///
/// # Errors
/// [`IssueError::UnknownCustomer`], [`IssueError::ConflictingCustomer`], or an error of the database.
pub(super) async fn identify(
    db: &Db,
    entropy: &dyn Entropy,
    organisation: &Organisation,
    given: &Identifiers,
) -> Result<CustomerId, IssueError> {
    if let Some(id) = without_look_up(organisation.customer_policy, given) {
        return Ok(id);
    }
    for _ in 0..MAX_LOOK_UPS {
        let found = db.customers_named(organisation.id, given).await?;
        let customer = match match_customers(organisation.customer_policy, given, &found) {
            Match::Existing(id) => Some(id),
            Match::Complete(id) => db.complete_customer(organisation.id, &id, given).await?.then_some(id),
            Match::New(id) => {
                // Nobody can have used a generated id before.
                let id = id.map_or_else(|| entropy.uuid().map(|id| CustomerId(id.to_string())), Ok)?;
                db.add_customer(organisation.id, &id, given).await?.then_some(id)
            }
            Match::Unknown => return Err(IssueError::UnknownCustomer),
            Match::Conflict => return Err(IssueError::ConflictingCustomer),
        };
        if let Some(id) = customer {
            return Ok(id);
        }
    }
    // This is not a conflict: the caller may retry.
    Err(IssueError::TimedOut)
}

fn match_customers(policy: CustomerPolicy, given: &Identifiers, found: &[CustomerLookup]) -> Match {
    match policy {
        CustomerPolicy::Registered => match_registered(given, found),
        CustomerPolicy::Open => match_open(given, found),
    }
}

fn match_registered(given: &Identifiers, found: &[CustomerLookup]) -> Match {
    let registered: Vec<&CustomerLookup> = found.iter().filter(|customer| customer.registered).collect();
    let by_id = given.id.as_ref().map(|id| registered.iter().any(|customer| customer.id == *id));
    match (by_id, registered.as_slice()) {
        (Some(false), _) | (_, []) => Match::Unknown,
        (_, [customer]) => Match::Existing(customer.id.clone()),
        (_, _) => Match::Conflict,
    }
}

fn match_open(given: &Identifiers, found: &[CustomerLookup]) -> Match {
    match (&given.id, found) {
        (id, []) => Match::New(id.clone()),
        (Some(id), [customer]) if customer.id != *id => Match::Conflict,
        (_, [customer]) if adds_identifier(given, &customer.identifiers) => Match::Complete(customer.id.clone()),
        (_, [customer]) => Match::Existing(customer.id.clone()),
        (_, _) => Match::Conflict,
    }
}

/// Whether the request has a kind of identifier that the customer lacks.
const fn adds_identifier(given: &Identifiers, stored: &Identifiers) -> bool {
    (given.mobile.is_some() && stored.mobile.is_none())
        || (given.external_id.is_some() && stored.external_id.is_none())
        || (given.email.is_some() && stored.email.is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(id: &str) -> CustomerId {
        CustomerId(id.to_owned())
    }

    fn given(id_: Option<&str>, mobile: Option<&str>) -> Identifiers {
        Identifiers { id: id_.map(id), mobile: mobile.map(str::to_owned), ..Identifiers::default() }
    }

    fn found(id_: &str, mobile: Option<&str>, registered: bool) -> CustomerLookup {
        CustomerLookup { id: id(id_), registered, identifiers: given(Some(id_), mobile) }
    }

    #[test]
    fn an_open_organisation_creates_and_completes_customers() {
        let open = |given: &Identifiers, found: &[CustomerLookup]| match_customers(CustomerPolicy::Open, given, found);
        assert_eq!(open(&given(None, Some("1")), &[]), Match::New(None));
        assert_eq!(open(&given(Some("a"), Some("1")), &[]), Match::New(Some(id("a"))));
        assert_eq!(open(&given(None, Some("1")), &[found("a", Some("1"), false)]), Match::Existing(id("a")));
        assert_eq!(open(&given(Some("a"), Some("1")), &[found("a", None, false)]), Match::Complete(id("a")));
        // The stored mobile stays.
        assert_eq!(open(&given(Some("a"), Some("2")), &[found("a", Some("1"), false)]), Match::Existing(id("a")));
        assert_eq!(open(&given(Some("b"), Some("1")), &[found("a", Some("1"), false)]), Match::Conflict);
        let two = [found("a", None, false), found("b", Some("1"), false)];
        assert_eq!(open(&given(Some("a"), Some("1")), &two), Match::Conflict);
    }

    #[test]
    fn an_organisation_of_registered_customers_refuses_others() {
        let registered =
            |given: &Identifiers, found: &[CustomerLookup]| match_customers(CustomerPolicy::Registered, given, found);
        assert_eq!(registered(&given(Some("a"), None), &[]), Match::Unknown);
        assert_eq!(registered(&given(Some("a"), None), &[found("a", None, true)]), Match::Existing(id("a")));
        assert_eq!(registered(&given(Some("a"), None), &[found("a", None, false)]), Match::Unknown);
        // The id takes precedence over the mobile.
        assert_eq!(registered(&given(Some("b"), Some("1")), &[found("a", Some("1"), true)]), Match::Unknown);
        assert_eq!(registered(&given(Some("a"), Some("9")), &[found("a", Some("1"), true)]), Match::Existing(id("a")));
        let two = [found("a", None, true), found("b", Some("1"), true)];
        assert_eq!(registered(&given(Some("a"), Some("1")), &two), Match::Conflict);
    }
}
