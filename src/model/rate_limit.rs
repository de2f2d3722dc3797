//! How many requests a minute a credential may make.
//! Counting them is the business of `auth`.

use std::num::NonZeroU32;

/// A limit on a credential's requests. Where a till or a client has none of its own the organisation's holds, and where
/// that has none the service's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RateLimit {
    /// As many as it likes.
    Unlimited,
    /// So many requests a minute.
    PerMinute(NonZeroU32),
}

impl RateLimit {
    /// The limit that a number stands for: of requests a minute, or none if it is not positive.
    #[must_use]
    pub fn of(per_minute: i32) -> Self {
        u32::try_from(per_minute).ok().and_then(NonZeroU32::new).map_or(Self::Unlimited, Self::PerMinute)
    }

    /// The number that the database holds, which [`RateLimit::of`] reads: 0 is no limit.
    #[must_use]
    pub fn stored(self) -> i32 {
        match self {
            Self::Unlimited => 0,
            Self::PerMinute(count) => i32::try_from(count.get()).unwrap_or(i32::MAX),
        }
    }
}
