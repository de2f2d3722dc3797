use std::sync::Arc;

use super::{Clock, Entropy, OsEntropy, SystemClock};

/// Time and randomness. Tests replace them.
#[derive(Clone)]
pub struct Environment {
    /// The source of the time.
    pub clock: Arc<dyn Clock>,
    /// The source of codes and ids.
    pub entropy: Arc<dyn Entropy>,
}

impl Default for Environment {
    fn default() -> Self {
        Self { clock: Arc::new(SystemClock), entropy: Arc::new(OsEntropy) }
    }
}
