//! Which customer a request means (contract 1): precedence, conflict, and first use.
//!
//! An identifier that names nobody yet is given to the customer that the others name; two that name different customers
//! are refused, since either answer could give one customer's coupon to another.

use super::IssueError;
use crate::db::{CustomerLookup, Db};
use crate::model::{CustomerId, CustomerPolicy, Entropy, Identifiers, Organisation};

/// Two requests may both be the first to name a customer; the loser looks again. More than this is no race.
const MOST_LOOKS: usize = 8;

/// What the customers found mean for the one asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Meaning {
    /// This one, as it is.
    Is(CustomerId),
    /// This one, which is to be known by the given identifiers too.
    Complete(CustomerId),
    /// One that is new, under the given id or a fresh one.
    New(Option<CustomerId>),
    /// Nobody who may receive a coupon.
    Unknown,
    /// More than one.
    Conflict,
}

/// The customer, where the given id is taken as it is and nothing needs to be looked up.
pub(super) fn as_given(policy: CustomerPolicy, given: &Identifiers) -> Option<CustomerId> {
    let id = given.id.as_ref().filter(|_| policy == CustomerPolicy::Open && given.is_only_id());
    id.cloned()
}

/// Finds the customer, or makes one where the organisation is open.
///
/// # Errors
/// [`IssueError::UnknownCustomer`], [`IssueError::ConflictingCustomer`], or a database that cannot be asked, or only too late.
pub async fn identify(
    db: &Db,
    entropy: &dyn Entropy,
    organisation: &Organisation,
    given: &Identifiers,
) -> Result<CustomerId, IssueError> {
    if let Some(id) = as_given(organisation.customer_policy, given) {
        return Ok(id);
    }
    for _ in 0..MOST_LOOKS {
        let found = db.customers_named(organisation.id, given).await?;
        let settled = match meaning(organisation.customer_policy, given, &found) {
            Meaning::Is(id) => Some(id),
            Meaning::Complete(id) => db.complete_customer(organisation.id, &id, given).await?.then_some(id),
            Meaning::New(id) => {
                // A customer who was not named by id gets one that nobody can have used.
                let id = id.map_or_else(|| entropy.uuid().map(|id| CustomerId(id.to_string())), Ok)?;
                db.add_customer(organisation.id, &id, given).await?.then_some(id)
            }
            Meaning::Unknown => return Err(IssueError::UnknownCustomer),
            Meaning::Conflict => return Err(IssueError::ConflictingCustomer),
        };
        if let Some(id) = settled {
            return Ok(id);
        }
    }
    // Who it is was not found out: that is no conflict, and it may be tried again.
    Err(IssueError::TimedOut)
}

fn meaning(policy: CustomerPolicy, given: &Identifiers, found: &[CustomerLookup]) -> Meaning {
    match policy {
        CustomerPolicy::Registered => among_registered(given, found),
        CustomerPolicy::Open => among_open(given, found),
    }
}

fn among_registered(given: &Identifiers, found: &[CustomerLookup]) -> Meaning {
    let listed: Vec<&CustomerLookup> = found.iter().filter(|customer| customer.registered).collect();
    let by_id = given.id.as_ref().map(|id| listed.iter().any(|customer| customer.id == *id));
    match (by_id, listed.as_slice()) {
        (Some(false), _) | (_, []) => Meaning::Unknown,
        (_, [one]) => Meaning::Is(one.id.clone()),
        (_, _) => Meaning::Conflict,
    }
}

fn among_open(given: &Identifiers, found: &[CustomerLookup]) -> Meaning {
    match (&given.id, found) {
        (id, []) => Meaning::New(id.clone()),
        (Some(id), [one]) if one.id != *id => Meaning::Conflict,
        (_, [one]) if adds_to(given, &one.identifiers) => Meaning::Complete(one.id.clone()),
        (_, [one]) => Meaning::Is(one.id.clone()),
        (_, _) => Meaning::Conflict,
    }
}

/// Whether an identifier is given that the customer has none of.
const fn adds_to(given: &Identifiers, known: &Identifiers) -> bool {
    (given.mobile.is_some() && known.mobile.is_none())
        || (given.external_id.is_some() && known.external_id.is_none())
        || (given.email.is_some() && known.email.is_none())
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
    fn in_an_open_organisation() {
        let open = |given: &Identifiers, found: &[CustomerLookup]| meaning(CustomerPolicy::Open, given, found);
        assert_eq!(open(&given(None, Some("1")), &[]), Meaning::New(None));
        assert_eq!(open(&given(Some("a"), Some("1")), &[]), Meaning::New(Some(id("a"))));
        assert_eq!(open(&given(None, Some("1")), &[found("a", Some("1"), false)]), Meaning::Is(id("a")));
        assert_eq!(open(&given(Some("a"), Some("1")), &[found("a", None, false)]), Meaning::Complete(id("a")));
        // What a customer is known by stays: another mobile is not taken over.
        assert_eq!(open(&given(Some("a"), Some("2")), &[found("a", Some("1"), false)]), Meaning::Is(id("a")));
        assert_eq!(open(&given(Some("b"), Some("1")), &[found("a", Some("1"), false)]), Meaning::Conflict);
        let two = [found("a", None, false), found("b", Some("1"), false)];
        assert_eq!(open(&given(Some("a"), Some("1")), &two), Meaning::Conflict);
    }

    #[test]
    fn in_an_organisation_of_registered_customers() {
        let registered =
            |given: &Identifiers, found: &[CustomerLookup]| meaning(CustomerPolicy::Registered, given, found);
        assert_eq!(registered(&given(Some("a"), None), &[]), Meaning::Unknown);
        assert_eq!(registered(&given(Some("a"), None), &[found("a", None, true)]), Meaning::Is(id("a")));
        assert_eq!(registered(&given(Some("a"), None), &[found("a", None, false)]), Meaning::Unknown);
        // The id decides: a known mobile does not make an unknown id good.
        assert_eq!(registered(&given(Some("b"), Some("1")), &[found("a", Some("1"), true)]), Meaning::Unknown);
        assert_eq!(registered(&given(Some("a"), Some("9")), &[found("a", Some("1"), true)]), Meaning::Is(id("a")));
        let two = [found("a", None, true), found("b", Some("1"), true)];
        assert_eq!(registered(&given(Some("a"), Some("1")), &two), Meaning::Conflict);
    }
}
