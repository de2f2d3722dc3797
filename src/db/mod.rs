//! The only SQL. A statement names the organisation first.

mod admin;
mod batching;
mod claims;
pub mod code_pool;
mod connection;
mod coupon_ids;
mod credential_changes;
mod credentials;
mod customers;
mod error;
mod history;
mod keyed_requests;
pub mod migrations;
mod origins;
mod presence;
mod reporting;
mod session;
mod settings_rows;
mod signing_keys;
pub mod writer;

pub use admin::{audit, commands, provisioning};
pub use claims::{ClaimOutcome, Claims, NewClaim, Resumption};
pub use connection::Db;
pub use credential_changes::CredentialChanges;
pub use credentials::{StoredClient, StoredTill, StoredTokenIssuer};
pub use customers::CustomerLookup;
pub use error::DbError;
pub use history::{HistorySnapshot, SeriesAtRevision, SeriesHistory};
pub use keyed_requests::{Claim, IssuedCoupon, Purge, RequestName, StoredRequest};
pub use presence::Presence;
pub use reporting::remaining::{LimitKind, SeriesRemaining};
pub use reporting::{activity, overview, verify};
pub use signing_keys::{SigningKeyRow, store_next_signing_key};
