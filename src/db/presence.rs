//! Whether this replica lives, for the others: it has a number, its incarnation, and holds an advisory lock of that number over a
//! connection of its own. When the process dies the connection ends, and with it the lock: attempts of a dead replica are taken
//! over at once.
//!
//! A heartbeat row was the alternative: it costs a write a second for each replica, and tells a second later.

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection};
use tokio::sync::OnceCell;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use super::{DbError, no_answer};
use crate::telemetry::throttle::Throttle;

/// How often the connection is used, so that both ends notice when the other is gone.
const PING_EVERY: Duration = Duration::from_secs(1);
/// How long a statement may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// A replica whose host vanished closes no connection. The server notices after this many seconds of silence, and as many probes.
const KEEPALIVE: [(&str, &str); 4] = [
    ("tcp_keepalives_idle", "1"),
    ("tcp_keepalives_interval", "1"),
    ("tcp_keepalives_count", "3"),
    ("tcp_user_timeout", "4000"),
];

static LOST: Throttle = Throttle::new();

/// This replica's number, and the task that holds its lock. The lock is given back with the last handle.
#[derive(Debug, Clone)]
pub struct Presence(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    connect: PgConnectOptions,
    incarnation: OnceCell<(i32, Holding)>,
}

/// Ends the task.
#[derive(Debug)]
struct Holding(AbortHandle);

impl Drop for Holding {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Presence {
    /// Takes no number yet: that needs the database.
    #[must_use]
    pub fn new(connect: &PgConnectOptions) -> Self {
        let connect = connect.clone().application_name("coupon-issuer presence").options(KEEPALIVE);
        Self(Arc::new(Inner { connect, incarnation: OnceCell::new() }))
    }

    /// This replica's number, if it has one by now.
    #[must_use]
    pub fn known(&self) -> Option<i32> {
        self.0.incarnation.get().map(|(incarnation, _)| *incarnation)
    }

    /// This replica's number, whose lock is held. It is taken when it is first asked for, and stays the same.
    ///
    /// # Errors
    /// When there is none yet and the database cannot be asked.
    pub async fn incarnation(&self) -> Result<i32, DbError> {
        let take = || async {
            let (connection, incarnation) =
                timeout(PATIENCE, take(&self.0.connect)).await.unwrap_or_else(|_elapsed| Err(no_answer()))?;
            let holding = tokio::spawn(hold(self.0.connect.clone(), connection, incarnation));
            tracing::debug!(incarnation, "this replica has its incarnation");
            Ok::<_, DbError>((incarnation, Holding(holding.abort_handle())))
        };
        Ok(self.0.incarnation.get_or_try_init(take).await?.0)
    }
}

async fn take(connect: &PgConnectOptions) -> Result<(PgConnection, i32), sqlx::Error> {
    let mut connection = connect.connect().await?;
    let incarnation: i32 = sqlx::query_scalar("select next_incarnation_1()").fetch_one(&mut connection).await?;
    lock(&mut connection, incarnation).await?;
    Ok((connection, incarnation))
}

/// Shared, since calls of this replica hold it as well (procedure `issue_coupons_1`).
async fn lock(connection: &mut PgConnection, incarnation: i32) -> Result<(), sqlx::Error> {
    sqlx::query("select pg_advisory_lock_shared(20193, $1)").bind(incarnation).execute(connection).await.map(drop)
}

/// Keeps the lock, over one connection after another. While it is not held, another replica may take attempts over: they are
/// fenced, so that costs a retry.
async fn hold(connect: PgConnectOptions, mut connection: PgConnection, incarnation: i32) {
    loop {
        sleep(PING_EVERY).await;
        let pinged = timeout(PATIENCE, connection.ping()).await;
        let Err(error) = pinged.unwrap_or_else(|_elapsed| Err(no_answer())) else { continue };
        LOST.log(|suppressed| tracing::warn!(%error, suppressed, incarnation, "lost the connection that tells other replicas that this one lives"));
        connection = loop {
            let again = async {
                let mut connection = connect.connect().await?;
                lock(&mut connection, incarnation).await?;
                Ok::<_, sqlx::Error>(connection)
            };
            match timeout(PATIENCE, again).await.unwrap_or_else(|_elapsed| Err(no_answer())) {
                Ok(connection) => break connection,
                Err(error) => tracing::debug!(%error, "the presence connection cannot be made"),
            }
            sleep(PING_EVERY).await;
        };
    }
}
