use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};

/// Checks whether the database can be used. `Err` has the reason why not.
pub type ReadinessCheck = Box<dyn Fn() -> Pin<Box<dyn Future<Output = Result<(), String>> + Send>> + Send + Sync>;

/// Whether the service can take requests.
pub struct Readiness {
    check: ReadinessCheck,
    draining: AtomicBool,
}

impl Readiness {
    /// Ready whenever `check` succeeds, until [`Readiness::drain`].
    #[must_use]
    pub const fn new(check: ReadinessCheck) -> Self {
        Self { check, draining: AtomicBool::new(false) }
    }

    /// Marks the service as stopping: it is not ready from now on.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Whether the service is stopping.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    pub(super) async fn check(&self) -> Result<(), String> {
        (self.check)().await
    }
}
