use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use metrics::Histogram;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use sqlx::{Connection, Postgres};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use super::error::describe;
use super::session::{KEY_LOOKUP, READ_COMMITTED, SessionOptions};
use crate::config::DatabaseSettings;
use crate::telemetry::metrics::{self as metric, ActiveCount};

/// A connection that was idle for longer is pinged before use.
const PING_AFTER_IDLE: Duration = Duration::from_millis(500);
const DIAGNOSIS_TIMEOUT: Duration = Duration::from_millis(500);
const DIAGNOSIS_LIFETIME: Duration = Duration::from_secs(1);
const RELEASE_TIMEOUT: Duration = Duration::from_secs(2);

/// The connection pool of all reads, and of the few writes that do not go through the writer.
#[derive(Debug, Clone)]
pub struct Db {
    pub(super) pool: PgPool,
    /// How other sessions with the same settings are opened.
    pub(super) session: SessionOptions,
    diagnosis: Arc<Mutex<Option<Diagnosis>>>,
    waiting: ActiveCount,
    acquire: Histogram,
}

/// When we last tried to connect, and why that failed; `None`: it succeeded.
type Diagnosis = (Instant, Option<String>);

/// How the connection pool is used at one moment.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionPoolUsage {
    /// Connections in use.
    pub used: usize,
    /// Idle connections.
    pub idle: usize,
    /// The most connections that the pool may open.
    pub max: u32,
    /// Reads that wait for a connection.
    pub waiting: usize,
}

impl Db {
    /// Connects on first use: the service also starts while the database is unreachable, and its readiness reports that.
    #[must_use]
    pub fn new(connect: PgConnectOptions, settings: &DatabaseSettings) -> Self {
        let statement_timeout = format!("{}ms", settings.statement_timeout.as_millis());
        let session = SessionOptions::new(connect)
            .with([("statement_timeout", statement_timeout)])
            .with([READ_COMMITTED])
            .with(KEY_LOOKUP);
        let options = PgPoolOptions::new()
            .max_connections(settings.max_connections)
            .acquire_timeout(settings.acquire_timeout)
            // sqlx's own test pings before every use: one more round trip for each read.
            .test_before_acquire(false)
            .before_acquire(|connection, seen| {
                Box::pin(async move {
                    if seen.idle_for > PING_AFTER_IDLE {
                        connection.ping().await?;
                    }
                    Ok(true)
                })
            });
        let pool = session.clone().pool(options);
        let acquire = metrics::histogram!(metric::DATABASE_ACQUIRE.name);
        Self { pool, session, diagnosis: Arc::default(), waiting: ActiveCount::default(), acquire }
    }

    /// How the connection pool is used now.
    #[must_use]
    pub fn connection_pool_usage(&self) -> ConnectionPoolUsage {
        let (size, idle) = (self.pool.size() as usize, self.pool.num_idle());
        let max = self.pool.options().get_max_connections();
        ConnectionPoolUsage { used: size.saturating_sub(idle), idle, max, waiting: self.waiting.count() }
    }

    /// Takes a connection from the pool. Callers need a time-out of their own: `statement_timeout` does not help where the network
    /// swallows the answer. They may drop the connection in the middle of a statement.
    pub(super) async fn connection(&self) -> Result<PooledConnection, sqlx::Error> {
        let (_waits, since) = (self.waiting.enter(), Instant::now());
        // Boxed, because it takes 4 KB, which every future that awaits it would contain.
        let acquired = Box::pin(self.pool.acquire()).await;
        self.acquire.record(since.elapsed());
        match acquired {
            Ok(connection) => Ok(PooledConnection(connection)),
            // The pool does not say whether all connections were in use or none could be made.
            Err(sqlx::Error::PoolTimedOut) => {
                Err(Box::pin(self.diagnose()).await.map_or(sqlx::Error::PoolTimedOut, cannot_connect))
            }
            Err(error) => Err(error),
        }
    }

    /// Tries to connect once and returns why that failed; `None`: it succeeded. All callers within a second share one attempt.
    async fn diagnose(&self) -> Option<String> {
        let mut last = self.diagnosis.lock().await;
        if let Some((found_at, cause)) = &*last
            && found_at.elapsed() < DIAGNOSIS_LIFETIME
        {
            return cause.clone();
        }
        let cause = match timeout(DIAGNOSIS_TIMEOUT, self.session.open()).await {
            Ok(Ok(_connection)) => None,
            Ok(Err(sqlx::Error::Io(error))) => Some(error.to_string()),
            Ok(Err(error)) => Some(describe(&error)),
            Err(_elapsed) => Some("no answer to an attempt to connect".to_owned()),
        };
        *last = Some((Instant::now(), cause.clone()));
        cause
    }

    /// Closes the connections, after waiting for those in use.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}

fn cannot_connect(reason: String) -> sqlx::Error {
    sqlx::Error::Io(std::io::Error::other(reason))
}

pub(super) struct PooledConnection(PoolConnection<Postgres>);

impl Deref for PooledConnection {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.0
    }
}

impl DerefMut for PooledConnection {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.0
    }
}

impl Drop for PooledConnection {
    /// The pool waits for the end of the statement without a time-out. A connection that the network has swallowed would occupy
    /// the pool for a quarter of an hour.
    fn drop(&mut self) {
        let returned = self.0.return_to_pool();
        tokio::spawn(timeout(RELEASE_TIMEOUT, returned));
    }
}
