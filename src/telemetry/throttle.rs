//! Limits how often a log line repeats.

use std::sync::Mutex;
use std::time::{Duration, Instant};

const INTERVAL: Duration = Duration::from_secs(1);

/// Logs a repeated event at most once a second, with the number suppressed. Metrics count every event.
#[derive(Debug, Default)]
pub struct Throttle(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    logged_at: Option<Instant>,
    suppressed: u64,
}

impl Throttle {
    /// A throttle for one log line.
    #[must_use]
    pub const fn new() -> Self {
        Self(Mutex::new(State { logged_at: None, suppressed: 0 }))
    }

    /// Calls `line` with the number of events suppressed since the last line, unless that was within a second.
    pub fn log(&self, line: impl FnOnce(u64)) {
        // A poisoned lock costs log lines, never a request.
        let Ok(mut state) = self.0.lock() else { return };
        if state.logged_at.is_some_and(|logged_at| logged_at.elapsed() < INTERVAL) {
            state.suppressed += 1;
            return;
        }
        state.logged_at = Some(Instant::now());
        let suppressed = std::mem::take(&mut state.suppressed);
        drop(state);
        line(suppressed);
    }
}
