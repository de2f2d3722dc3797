use tokio::time::Instant;

use super::coupon::NewCoupon;

/// One item for the writer.
#[derive(Debug, Clone)]
pub enum Work {
    /// Write this coupon.
    Issue(Box<NewCoupon>),
    /// Write nothing, but answer only after everything that was read since this instant is flushed: a coupon that was committed a
    /// moment ago may not be flushed yet.
    FlushBarrier(Instant),
}

impl Work {
    pub(super) const fn coupon(&self) -> Option<&NewCoupon> {
        match self {
            Self::Issue(coupon) => Some(coupon),
            Self::FlushBarrier(_) => None,
        }
    }
}
