//! Configuration as code: `apply` makes the database match a file, in one transaction. Single commands about a till, a client or
//! the signing keys are in [`commands`] and [`keys`].
//!
//! `apply` never deletes what the file does not list, because coupons refer to it.

mod access;
mod apply;
mod callers;
mod changes;
mod code_conflicts;
pub mod commands;
mod customers;
mod difference;
mod error;
mod file;
pub mod keys;
mod report;
mod secrets;
mod series;
mod stores;
mod toml;
mod unique_values;

pub use apply::{apply, apply_text};
pub use error::ApplyError;
pub use file::{parse, read};
pub use report::Report;
pub use secrets::Secrets;
pub use stores::SharedCode;
pub use toml::Mistake;
