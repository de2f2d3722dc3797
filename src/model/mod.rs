//! The domain types, with the invariants that need no other room: no HTTP, no SQL.

mod caller;
mod clock;
mod code;
mod coupon;
mod customer;
mod entropy;
mod environment;
mod history;
mod organisation;
mod plan;
mod rate_limit;
mod secret;
mod series;
mod text;

pub use caller::{Access, Attribution, Caller, Credential, Target, TargetType};
pub use clock::{Clock, SystemClock};
pub use code::{
    CODE_ALPHABET, Character, CodeError, MAX_CODE_LENGTH, canonical, check_code, is_invisible, may_be_in_code,
};
pub use coupon::{HeldCoupon, Metadata, Source};
pub use customer::{CustomerId, CustomerPolicy, Identifiers, MOBILE_MARKS};
pub use entropy::{Entropy, EntropyError, OsEntropy};
pub use environment::Environment;
pub use history::IssuanceHistory;
pub use organisation::{OrgId, Organisation, Revision, StoreId};
pub use plan::{
    ClientProof, CustomerPlan, FilePosition, IdentifierPlan, OAuthClientPlan, OrganisationPlan, OrganisationSettings,
    Settings, StorePlan, TillPlan, TokenAlgorithm, TokenIssuerPlan,
};
pub use rate_limit::RateLimit;
pub use secret::{SecretError, secret_in, secret_line};
pub use series::{ClientHandling, CodeShape, DiscountType, ExpiryStrategy, Series, SeriesId, SeriesSnapshot};
pub use text::{TextError, text_in};
