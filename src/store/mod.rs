//! The only SQL: reads what the decisions need, and writes coupons through [`writer`].
//!
//! Nothing is decided here. A query names the organisation first, and returns the model's types.

pub mod audit;
mod beginnings;
mod changes;
pub mod commands;
mod credentials;
mod customers;
mod facts;
pub mod invariants;
mod keyed_requests;
pub mod migrations;
pub mod pool;
pub mod provisioning;
mod rows;
mod signing_keys;
mod waiting;
pub mod writer;

use std::time::Duration;

pub use beginnings::{Beginnings, NewAttempt};
pub use changes::CredentialChanges;
pub use credentials::{StoredClient, StoredTill, StoredTokenIssuer};
pub use customers::CustomerLookup;
pub use facts::{FreshFacts, SeriesAtRevision};
pub use keyed_requests::{Begun, KeyedRequest, Receipt, RecordedCoupon};
pub use signing_keys::{SigningKeyRow, store_next_signing_key};
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};

/// A read or a write that did not succeed. The message tells the cause; there is no `source`, or it would be told twice.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database is away, starting, stopping or out of connections: trying again later may succeed.
    #[error("the database is unavailable: {0}")]
    Unavailable(sqlx::Error),
    /// The database answered with an error.
    #[error("the database refused a statement: {0}")]
    Failed(sqlx::Error),
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        let away = match &error {
            sqlx::Error::Database(database) => database.code().is_some_and(|code| {
                // Connection exceptions, too many connections, and the server shutting down or starting up.
                code.starts_with("08") || matches!(&*code, "53300" | "57P01" | "57P02" | "57P03")
            }),
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed => true,
            _ => false,
        };
        if away { Self::Unavailable(error) } else { Self::Failed(error) }
    }
}

/// A setting for sessions that read and write by key: a table that has filled up since it was last analysed would else be
/// read as a whole.
const LOOK_UPS_ONLY: (&str, &str) = ("enable_seqscan", "off");

/// What is read after a lock was waited for must be what holds by then, whatever the database's default.
const READ_COMMITTED: &str = "set session characteristics as transaction isolation level read committed";

/// The bounds on reads.
#[derive(Debug, Clone, Copy)]
pub struct ReadLimits {
    /// Connections for reads.
    pub max_connections: u32,
    /// How long a read waits for a connection.
    pub acquire_timeout: Duration,
    /// How long Postgres may work on one statement.
    pub statement_timeout: Duration,
}

/// Everything that is read, and the few things besides coupons that are written.
#[derive(Debug, Clone)]
pub struct Store {
    pool: PgPool,
}

impl Store {
    /// A store over a pool that connects when first used: the service starts while the database is away, and says so in
    /// its readiness.
    #[must_use]
    pub fn new(connect: PgConnectOptions, limits: ReadLimits) -> Self {
        let statement_timeout = format!("{}ms", limits.statement_timeout.as_millis());
        let connect = connect.options([("statement_timeout", statement_timeout.as_str()), LOOK_UPS_ONLY]);
        let pool = PgPoolOptions::new()
            .max_connections(limits.max_connections)
            .acquire_timeout(limits.acquire_timeout)
            .connect_lazy_with(connect);
        Self { pool }
    }

    /// Whether the database answers.
    ///
    /// # Errors
    /// When it does not.
    pub async fn ping(&self) -> Result<(), StoreError> {
        sqlx::query("select 1").execute(&self.pool).await?;
        Ok(())
    }

    /// Closes the connections, waiting for those in use.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}
