//! Limits the requests a minute of each credential. This process counts alone: three replicas behind a load balancer together
//! admit up to three times the limit.
//!
//! A shared counter would cost a database write for each request; an operator with three replicas sets a third of the limit.

use std::sync::Arc;
use std::time::Duration;

use governor::clock::Clock as GovernorClock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use moka::sync::Cache;

use super::error::AuthError;
use super::verified_credential::{CredentialName, VerifiedCredential};
use crate::model::{Clock, RateLimit};

const MAX_COUNTED: u64 = 100_000;
/// After two idle minutes a credential has its full quota again, so its counter can be evicted.
const IDLE_TIMEOUT: Duration = Duration::from_mins(2);

/// Adapts the service's clock to the rate limiter's interface.
#[derive(Clone)]
struct ServiceClock(Arc<dyn Clock>);

impl GovernorClock for ServiceClock {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        Nanos::from(self.0.elapsed())
    }
}

type Limiter = RateLimiter<NotKeyed, InMemoryState, ServiceClock, NoOpMiddleware<Nanos>>;

pub(super) struct RequestLimits {
    /// Applies where neither the credential nor its organisation has a limit.
    default: RateLimit,
    limiters: Cache<(CredentialName, u32), Arc<Limiter>>,
    clock: ServiceClock,
}

impl RequestLimits {
    pub(super) fn new(default: RateLimit, clock: Arc<dyn Clock>) -> Self {
        Self {
            default,
            limiters: Cache::builder().max_capacity(MAX_COUNTED).time_to_idle(IDLE_TIMEOUT).build(),
            clock: ServiceClock(clock),
        }
    }

    /// Counts a request, and refuses it if it exceeds the limit.
    pub(super) fn admit(&self, credential: &VerifiedCredential) -> Result<(), AuthError> {
        let RateLimit::PerMinute(limit) = credential.rate_limit.unwrap_or(self.default) else { return Ok(()) };
        let limiter = self.limiters.get_with((Arc::clone(&credential.name), limit.get()), || {
            Arc::new(Limiter::direct_with_clock(Quota::per_minute(limit), self.clock.clone()))
        });
        limiter.check().map_err(|refused| AuthError::TooManyRequests {
            limit: limit.get(),
            retry_after: refused.wait_time_from(self.clock.now()),
        })
    }
}
