//! Decides which customer gets which coupon, with which code and expiry date. Uses neither HTTP nor SQL.

mod answers;
pub mod codes;
mod customers;
mod deadline;
mod entity;
mod error;
pub mod expiry;
mod issuer;
mod key_claim;
mod metrics;
mod outcome;
mod receipt;
mod refusal;
mod request;
mod resources;
pub mod rules;
mod run;
mod settings_cache;
mod stored_outcomes;

pub use error::IssueError;
pub use issuer::Issuer;
pub use outcome::{Entity, Granted, Issuance, Resend};
pub use receipt::{Progress, Receipt};
pub use refusal::{Refusal, ShownInstant};
pub use request::{IssueRequest, RequestKey};
