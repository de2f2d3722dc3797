//! How many requests a minute each credential makes. Counted by this process alone: with several replicas behind a balancer
//! each sees its share, so all of them together let through up to their number times the limit.
//!
//! Shared counting would cost a write to the database for each request; a retailer that runs three replicas sets a third.

use std::sync::Arc;
use std::time::Duration;

use governor::clock::Clock as Ticks;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use moka::sync::Cache;

use super::AuthError;
use super::memory::Remembered;
use crate::model::{Clock, RateLimit};

/// The till or client that requests are counted for: a client's tokens count together.
pub(super) type CredentialName = Arc<str>;

/// Credentials counted at once, at most. One that was idle for two minutes has its whole limit again, and is forgotten.
const MOST_COUNTED: u64 = 100_000;
const IDLE: Duration = Duration::from_mins(2);

/// The service's clock, as the limiter asks it.
#[derive(Clone)]
struct Since(Arc<dyn Clock>);

impl Ticks for Since {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        Nanos::from(self.0.elapsed())
    }
}

type Limiter = RateLimiter<NotKeyed, InMemoryState, Since, NoOpMiddleware<Nanos>>;

/// The limits on requests.
pub(super) struct RateLimits {
    /// Where neither the credential nor its organisation has one.
    default: RateLimit,
    limiters: Cache<(CredentialName, u32), Arc<Limiter>>,
    since: Since,
}

impl RateLimits {
    pub(super) fn new(default: RateLimit, clock: Arc<dyn Clock>) -> Self {
        Self {
            default,
            limiters: Cache::builder().max_capacity(MOST_COUNTED).time_to_idle(IDLE).build(),
            since: Since(clock),
        }
    }

    /// Counts a request.
    pub(super) fn admit(&self, who: &Remembered) -> Result<(), AuthError> {
        let RateLimit::PerMinute(limit) = who.rate_limit.unwrap_or(self.default) else { return Ok(()) };
        let limiter = self.limiters.get_with((Arc::clone(&who.name), limit.get()), || {
            Arc::new(Limiter::direct_with_clock(Quota::per_minute(limit), self.since.clone()))
        });
        limiter.check().map_err(|refused| AuthError::TooManyRequests {
            limit: limit.get(),
            retry_after: refused.wait_time_from(self.since.now()),
        })
    }
}
