//! Time and randomness, which tests pass in.

use std::sync::Arc;

use super::{Clock, Entropy, OsEntropy, SystemClock};

/// What the service takes from outside itself.
#[derive(Clone)]
pub struct Environment {
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// Where codes and ids come from.
    pub entropy: Arc<dyn Entropy>,
}

impl Default for Environment {
    fn default() -> Self {
        Self { clock: Arc::new(SystemClock), entropy: Arc::new(OsEntropy) }
    }
}
