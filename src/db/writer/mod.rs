//! All coupons go through one bounded queue, and flush barriers and the ends of attempts through another. A few tasks, each with a
//! connection of its own, write whatever is waiting as one batch: each coupon is a transaction, and the batch shares the round trip and
//! the flush. No request is answered before the flush.

mod batch;
mod connection;
mod coupon;
mod load;
mod metrics;
mod numbering;
mod outcome;
mod prober;
mod procedure;
mod queue;
mod session;
mod work;

pub use coupon::{Code, KeyHold, KeyedEntity, NewCoupon, Numbering, Scope};
pub use outcome::{Guard, WriteOutcome};
pub use queue::{QueueFull, Writer, WriterUsage};
pub use work::{AttemptEnd, Work};
