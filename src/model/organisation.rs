//! The tenant: an organisation with its time zone and its policy for customers.
//! Every other key starts with its id.

use jiff::tz::TimeZone;

use super::CustomerPolicy;

/// An organisation: the tenant that every other key starts with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OrgId(pub i64);

/// A store of an organisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StoreId(pub i64);

/// Counts the changes to an organisation's settings. A decision names the revision it was made under.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Revision(pub i64);

/// What issuing needs to know of an organisation.
#[derive(Debug, Clone)]
pub struct Organisation {
    /// Its key.
    pub id: OrgId,
    /// The revision these settings belong to.
    pub revision: Revision,
    /// Where its days begin and end.
    pub time_zone: TimeZone,
    /// Who may receive its coupons.
    pub customer_policy: CustomerPolicy,
    /// Whether a customer, a series and what caused the issuance (`sourceType`, `sourceId`) identify it.
    pub natural_key: bool,
}
