//! Describes the API. Handlers import this module, and it imports no handler: `routes` puts the two together.

mod document;
pub(super) mod examples;
pub(super) mod failures;
pub(super) mod schemas;
mod security;
mod texts;

pub(super) use document::{Description, complete};
pub(super) use texts::{ISSUING, RECEIPT, SERVICE, TOKEN, TOKENS, issue_description};
