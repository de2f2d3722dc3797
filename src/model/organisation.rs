use jiff::tz::TimeZone;

use super::CustomerPolicy;

/// The id of an organisation, which is a tenant. All other keys begin with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OrgId(pub i64);

/// The id of a store in its organisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StoreId(pub i64);

/// Identifies a state of an organisation's settings; a later state has a higher one. The write of a coupon is guarded by the revision of its
/// decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Revision(pub i64);

/// The settings of an organisation that issuing needs.
#[derive(Debug, Clone)]
pub struct Organisation {
    /// The id.
    pub id: OrgId,
    /// The revision of these settings.
    pub revision: Revision,
    /// The time zone of its dates.
    pub time_zone: TimeZone,
    /// Who may receive its coupons.
    pub customer_policy: CustomerPolicy,
    /// Whether the customer, the series, `sourceType` and `sourceId` together identify an issuance.
    pub natural_key: bool,
}
