//! Processes one request in rounds: load what decides, decide, write. If a guard of the database refuses a coupon because another
//! request was faster, the next round decides again on fresh history. The deadline and a maximum number of rounds end the loop.
//!
//! Rare paths are boxed, which keeps the common future small.

mod claim;
mod decide;
mod idempotency;
mod load;
mod plan;
mod precedence;
mod process;
mod rounds;
mod state;
mod view;
mod write;

pub(super) use process::process;
