use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use super::connection::Connector;
use super::session::Session;
use crate::telemetry::metrics::ActiveCount;

const REFUSAL_LIFETIME: Duration = Duration::from_secs(1);

/// Finds out over a connection of its own whether the database takes writes. A refusal is cached for a second.
#[derive(Debug)]
pub(super) struct Prober {
    connect: PgConnectOptions,
    statement_timeout: Duration,
    /// Whether the database may be refusing writes: true until a probe succeeds, and again after a task saw every write refused.
    is_suspect: Arc<AtomicBool>,
    last: Mutex<Option<(Instant, bool)>>,
}

impl Prober {
    pub(super) fn new(connect: PgConnectOptions, statement_timeout: Duration, is_suspect: Arc<AtomicBool>) -> Self {
        Self { connect, statement_timeout, is_suspect, last: Mutex::default() }
    }

    /// Whether the database refuses every write. No answer within `limit` counts as a refusal.
    pub(super) async fn is_refused(&self, limit: Duration) -> bool {
        if !self.is_suspect.load(Ordering::Relaxed) {
            return false;
        }
        match timeout(limit, self.probe(Instant::now() + limit)).await {
            Ok(Some(is_refused)) => is_refused,
            // The readiness check tests separately whether the database can be reached.
            Ok(None) => false,
            Err(_elapsed) => true,
        }
    }

    async fn probe(&self, deadline: Instant) -> Option<bool> {
        let mut last = self.last.lock().await;
        // Only a refusal is cached: an old success proves nothing after a new suspicion.
        if let Some((found_at, true)) = *last
            && found_at.elapsed() < REFUSAL_LIFETIME
        {
            return Some(true);
        }
        let connector = Connector::new(self.connect.clone(), self.statement_timeout, ActiveCount::default());
        let session = Session::new(connector, Arc::clone(&self.is_suspect), Arc::default());
        let is_refused = session.probe_once(deadline).await?;
        let was_refused = last.replace((Instant::now(), is_refused)).is_some_and(|(_, was_refused)| was_refused);
        if !is_refused {
            self.is_suspect.store(false, Ordering::Relaxed);
            if was_refused {
                tracing::info!("the database takes writes again");
            }
        }
        Some(is_refused)
    }
}
