//! Checks the invariants of the data that no constraint enforces; most tables have no foreign keys. All checks read one snapshot, so
//! that a batch that is being written never looks half done. They take no locks.

mod check;
mod run;

pub use check::Check;
pub use run::{Finding, Offence, verify};
