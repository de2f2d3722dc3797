//! All code gets the time from a [`Clock`], so that tests can set it. clippy.toml bans other calls that read the time, except
//! `tokio::time::Instant`, which measures durations.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use jiff::Timestamp;

/// A source of the current time.
pub trait Clock: Send + Sync {
    /// The current time in whole microseconds, the resolution of Postgres.
    fn now(&self) -> Timestamp;

    /// The time since a fixed moment in the past. It is monotonic, even if the system's clock is changed.
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
