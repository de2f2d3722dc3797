//! Reads and writes an organisation's settings in one transaction of `apply`. It deletes only what derives from settings.

mod callers;
mod columns;
mod customers;
mod organisation;
mod series;
mod stored;
mod transaction;

pub use callers::{StoredClientSettings, StoredProof, StoredTillSettings};
pub use customers::is_overtaken;
pub use series::PersonalCode;
pub use stored::StoredOrganisation;
pub use transaction::Provisioning;
