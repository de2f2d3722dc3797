//! Parses requests into the types of `issuance` and `auth`, and renders their results. It decides nothing and has no SQL.

mod attribution;
mod authenticate;
mod body;
mod client_ip;
mod console;
mod docs;
mod errors;
mod fingerprint;
mod headers;
mod health;
mod idempotency;
mod ids;
mod issue;
mod metrics;
mod oauth;
mod object;
mod openapi;
mod paths;
mod readiness;
mod request_log;
mod routes;
mod security_headers;
mod state;

pub use readiness::{Readiness, ReadinessCheck};
pub use routes::{document, router};
pub use state::Http;
