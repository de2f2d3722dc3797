//! What happens thousands of times a second when something is wrong is told once a second, with how often it was.
//! The metrics count each.

use std::sync::Mutex;
use std::time::{Duration, Instant};

/// A line of the log that is told at most once a second.
#[derive(Debug)]
pub struct Seldom(Mutex<State>);

#[derive(Debug)]
struct State {
    told_at: Option<Instant>,
    /// How often it happened since then.
    times: u64,
}

impl Default for Seldom {
    fn default() -> Self {
        Self::new()
    }
}

impl Seldom {
    /// One that was not told yet.
    #[must_use]
    pub const fn new() -> Self {
        Self(Mutex::new(State { told_at: None, times: 0 }))
    }

    /// Tells it, with how often it happened since it was told last, unless that was within a second.
    pub fn tell(&self, line: impl FnOnce(u64)) {
        let Ok(mut state) = self.0.lock() else { return };
        state.times += 1;
        if state.told_at.is_none_or(|told_at| told_at.elapsed() >= Duration::from_secs(1)) {
            state.told_at = Some(Instant::now());
            let times = std::mem::take(&mut state.times);
            drop(state);
            line(times);
        }
    }
}
