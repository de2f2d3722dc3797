use std::num::NonZeroU32;

/// The rate limit of a credential. If a till or a client has no limit of its own, the limit of the organisation applies, and after that
/// the limit of the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RateLimit {
    /// No limit.
    Unlimited,
    /// Requests per minute.
    PerMinute(NonZeroU32),
}

impl RateLimit {
    /// The limit for a number of requests per minute. There is no limit if the number is not positive.
    #[must_use]
    pub fn from_per_minute(per_minute: i32) -> Self {
        u32::try_from(per_minute).ok().and_then(NonZeroU32::new).map_or(Self::Unlimited, Self::PerMinute)
    }

    /// The number in the database, the inverse of [`RateLimit::from_per_minute`]: 0 means no limit.
    #[must_use]
    pub fn stored(self) -> i32 {
        match self {
            Self::Unlimited => 0,
            Self::PerMinute(count) => i32::try_from(count.get()).unwrap_or(i32::MAX),
        }
    }
}
