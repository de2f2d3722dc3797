//! The only SQL: reads what the decisions need, and writes coupons through [`writer`].
//!
//! Nothing is decided here. A query names the organisation first, and returns the model's types.

pub mod activity;
pub mod audit;
mod changes;
mod claims;
pub mod commands;
mod coupon_ids;
mod credentials;
mod customers;
mod facts;
mod keyed_requests;

pub mod code_pool;
pub mod migrations;
mod origins;
pub mod overview;
mod presence;
pub mod provisioning;
mod remaining;
mod rows;
mod signing_keys;
pub mod verify;
mod waiting;
pub mod writer;

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

pub use changes::CredentialChanges;
pub use claims::{ClaimOutcome, Claims, Left, NewClaim};
pub use credentials::{StoredClient, StoredTill, StoredTokenIssuer};
pub use customers::CustomerLookup;
pub use facts::{FreshFacts, History, SeriesAtRevision};
pub use keyed_requests::{Claim, IssuedCoupon, Purge, RequestName, StoredRequest};
use metrics::Histogram;
pub use presence::Presence;
pub use remaining::{LimitKind, SeriesRemaining};
pub use signing_keys::{SigningKeyRow, store_next_signing_key};
use sqlx::error::DatabaseError;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgDatabaseError, PgPool, PgPoolOptions, PgSeverity};
use sqlx::{ConnectOptions, Connection, Postgres};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use crate::config::DatabaseSettings;
use crate::telemetry::metrics::{self as metric, Level};

/// A read or a write that did not succeed. The message has what the source says, with its code: whoever prints the chain leaves a
/// `sqlx::Error` out.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// The database is away, starting, stopping or out of connections: trying again later may succeed.
    #[error("the database is unavailable: {}", told(.0))]
    Unavailable(#[source] sqlx::Error),
    /// The database gave it up by its own clock: it waited for a lock, or is too busy.
    #[error("the database took too long: {}", told(.0))]
    TookTooLong(#[source] sqlx::Error),
    /// The server failed on a statement for a reason of its own: a full disk, no memory, a broken file or library (classes 53,
    /// 58 and XX). Whether it fails on all of them is found out by the writer.
    #[error("the database server failed: {}", told(.0))]
    ServerFault(#[source] sqlx::Error),
    /// The database answered with an error.
    #[error("the database refused a statement: {}", told(.0))]
    Failed(#[source] sqlx::Error),
}

impl From<sqlx::Error> for DbError {
    fn from(error: sqlx::Error) -> Self {
        let code = error.as_database_error().and_then(DatabaseError::code);
        if matches!(code.as_deref(), Some("57014" | "55P03")) {
            return Self::TookTooLong(error);
        }
        let is_server_fault = code.as_deref().is_some_and(is_server_fault);
        let away = match &error {
            // One that only reads: a standby that has not taken over yet, or a primary that no longer is one. And too many
            // connections, a server that shuts down or starts up, or fails as it makes a session: there is none afterwards.
            // What is not fatal is the statement's, whatever its class: a trigger may speak to other servers.
            sqlx::Error::Database(database) => {
                let is_away = |code: &str| is_server_fault || code.starts_with("57P0");
                code.is_some_and(|code| code == "25006" || (is_fatal(&**database) && is_away(&code)))
            }
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed => true,
            // What is wrong with a statement or with its result, not with the database.
            _ => false,
        };
        match (away, is_server_fault) {
            (true, _) => Self::Unavailable(error),
            (false, true) => Self::ServerFault(error),
            (false, false) => Self::Failed(error),
        }
    }
}

/// Insufficient resources, errors of the system, and internal ones; and connections that a statement makes itself.
fn is_server_fault(code: &str) -> bool {
    ["08", "53", "58", "XX"].iter().any(|class| code.starts_with(class))
}

/// What went wrong, for the log: with the code that says whose fault it is, and without the line of Postgres' source.
fn told(error: &sqlx::Error) -> String {
    let Some(database) = error.as_database_error() else { return error.to_string() };
    format!("{} ({})", database.message(), database.code().as_deref().unwrap_or("no code"))
}

fn is_fatal(error: &dyn DatabaseError) -> bool {
    let severity = error.try_downcast_ref::<PgDatabaseError>().map(PgDatabaseError::severity);
    matches!(severity, Some(PgSeverity::Fatal | PgSeverity::Panic))
}

/// Settings of sessions that work by key. With stale statistics the planner would scan tables that have grown. With sequential scans
/// made expensive it would also use JIT, at 50 ms a statement, so JIT is off.
const LOOK_UPS_ONLY: [(&str, &str); 2] = [("enable_seqscan", "off"), ("jit", "off")];

/// What is read after a lock was waited for must be what holds by then, whatever the database's default.
const READ_COMMITTED: &str = "set session characteristics as transaction isolation level read committed";

/// A connection that was in use so shortly ago is not asked whether it still works.
const SURELY_FIT: Duration = Duration::from_millis(500);
/// How long it may take to find out why no connection can be made, and how long that holds.
const CAUSE_WITHIN: Duration = Duration::from_millis(500);
const CAUSE_HOLDS: Duration = Duration::from_secs(1);
/// How long a connection may take to be fit for the next reader.
const GIVE_BACK: Duration = Duration::from_secs(2);

/// Everything that is read, and the few things besides coupons that are written.
#[derive(Debug, Clone)]
pub struct Db {
    pool: PgPool,
    connect: PgConnectOptions,
    cause: Arc<Mutex<Option<Cause>>>,
    waiting: Level,
    acquire: Histogram,
}

/// Why no connection could be made, if none could, and when that was found.
type Cause = (Instant, Option<String>);

/// What becomes of the connections for reads.
#[derive(Debug, Clone, Copy)]
pub struct PoolUse {
    /// Those at work.
    pub used: usize,
    /// Those that wait for work.
    pub idle: usize,
    /// Those that there may be.
    pub most: u32,
    /// Reads that wait for one.
    pub waiting: usize,
}

impl Db {
    /// A store over a pool that connects when first used: the service starts while the database is away, and says so in
    /// its readiness.
    #[must_use]
    pub fn new(connect: PgConnectOptions, settings: &DatabaseSettings) -> Self {
        let statement_timeout = format!("{}ms", settings.statement_timeout.as_millis());
        let isolation = ("default_transaction_isolation", "read committed");
        let timeout = ("statement_timeout", statement_timeout.as_str());
        let connect = connect.options([timeout, isolation]).options(LOOK_UPS_ONLY);
        let pool = PgPoolOptions::new()
            .max_connections(settings.max_connections)
            .acquire_timeout(settings.acquire_timeout)
            // The pool asks every connection on its way out whether it still works: a round trip more for each read.
            .test_before_acquire(false)
            .before_acquire(|connection, seen| {
                Box::pin(async move {
                    if seen.idle_for > SURELY_FIT {
                        connection.ping().await?;
                    }
                    Ok(true)
                })
            })
            .connect_lazy_with(connect.clone());
        let acquire = metrics::histogram!(metric::DATABASE_ACQUIRE.name);
        Self { pool, connect, cause: Arc::default(), waiting: Level::default(), acquire }
    }

    /// What becomes of the connections at this moment.
    #[must_use]
    pub fn pool_use(&self) -> PoolUse {
        let (size, idle) = (self.pool.size() as usize, self.pool.num_idle());
        let most = self.pool.options().get_max_connections();
        PoolUse { used: size.saturating_sub(idle), idle, most, waiting: self.waiting.count() }
    }

    /// A connection to read by. A read may be given up at any moment, and has to be by whoever asks for it: Postgres keeps its own
    /// time, but not where the network swallows it.
    async fn lease(&self) -> Result<Lease, sqlx::Error> {
        let (_waits, since) = (self.waiting.hold(), Instant::now());
        let acquired = self.pool.acquire().await;
        self.acquire.record(since.elapsed());
        match acquired {
            Ok(connection) => Ok(Lease(connection)),
            // The pool tried until its time was over, and does not say whether all were in use or none could be made.
            Err(sqlx::Error::PoolTimedOut) => Err(self.cause().await.map_or(sqlx::Error::PoolTimedOut, no_connection)),
            Err(error) => Err(error),
        }
    }

    /// Why no connection can be made, found out by trying once; `None`: one can. Those who ask within a second share what the first
    /// one finds.
    async fn cause(&self) -> Option<String> {
        let mut last = self.cause.lock().await;
        if let Some((found_at, cause)) = &*last
            && found_at.elapsed() < CAUSE_HOLDS
        {
            return cause.clone();
        }
        let cause = match timeout(CAUSE_WITHIN, self.connect.connect()).await {
            Ok(Ok(_connection)) => None,
            Ok(Err(sqlx::Error::Io(error))) => Some(error.to_string()),
            Ok(Err(error)) => Some(told(&error)),
            Err(_elapsed) => Some("no answer to an attempt to connect".to_owned()),
        };
        *last = Some((Instant::now(), cause.clone()));
        cause
    }

    /// Closes the connections, waiting for those in use.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}

/// A connection of the pool. It may be given back in the middle of a statement.
struct Lease(PoolConnection<Postgres>);

impl Deref for Lease {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.0
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.0
    }
}

impl Drop for Lease {
    /// As the pool does it, which waits for the statement's end, but not for ever: a connection that the network has swallowed
    /// would keep its place in the pool for a quarter of an hour.
    fn drop(&mut self) {
        let given_back = self.0.return_to_pool();
        tokio::spawn(timeout(GIVE_BACK, given_back));
    }
}

fn no_connection(reason: String) -> sqlx::Error {
    sqlx::Error::Io(std::io::Error::other(reason))
}

/// The database took longer than its own timeout allows: as good as a connection that broke.
fn no_answer() -> sqlx::Error {
    sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, "the database does not answer"))
}
