//! The words of the trade as plain types: organisations, series, coupons, customers, callers, time and randomness.
//!
//! Types and the invariants they hold by themselves. Nothing here knows HTTP, SQL or any other room.

mod caller;
mod clock;
mod code;
mod coupon;
mod customer;
mod entropy;
mod environment;
mod facts;
mod organisation;
mod plan;
mod rate_limit;
mod secret;
mod series;
mod text;

pub use caller::{Access, Attribution, Caller, Credential, Target, TargetType};
pub use clock::{Clock, SystemClock};
pub use code::{
    CODE_ALPHABET, Character, CodeError, LONGEST_CODE, canonical, check_code, is_invisible, may_be_in_code,
};
pub use coupon::{HeldCoupon, Metadata, Source};
pub use customer::{CustomerId, CustomerPolicy, Identifiers, MOBILE_MARKS};
pub use entropy::{Entropy, EntropyError, OsEntropy};
pub use environment::Environment;
pub use facts::Facts;
pub use organisation::{OrgId, Organisation, Revision, StoreId};
pub use plan::{
    ClientProof, CustomerPlan, IdentifierPlan, OAuthClientPlan, OrganisationPlan, Place, Settings, StorePlan, TillPlan,
    TokenAlgorithm, TokenIssuerPlan,
};
pub use rate_limit::RateLimit;
pub use secret::{SecretError, secret_in, secret_line};
pub use series::{ClientHandling, CodeShape, DiscountType, ExpiryStrategy, Face, Series, SeriesId};
pub use text::{TextError, text_in};
