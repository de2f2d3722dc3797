//! The time, passed in: production reads the system's clock, a test holds it still.
//!
//! Nothing else in the crate may ask what time it is (clippy.toml bans the calls). Durations on the way to an answer
//! are measured with `tokio::time::Instant`, which is not a date.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use jiff::Timestamp;

/// Tells the current instant.
pub trait Clock: Send + Sync {
    /// The current instant, in whole microseconds: what Postgres can store.
    fn now(&self) -> Timestamp;

    /// The time since some moment in the past, which never goes back, whatever becomes of the clock on the wall.
    fn elapsed(&self) -> Duration;
}

/// The system's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the system's clock")]
    fn now(&self) -> Timestamp {
        let now = Timestamp::now();
        Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now)
    }

    fn elapsed(&self) -> Duration {
        static START: OnceLock<Instant> = OnceLock::new();
        START.get_or_init(Instant::now).elapsed()
    }
}
