//! Shows the other replicas that this one is alive. Each replica has a number, its incarnation, and holds the advisory lock of that number
//! over a connection of its own. When the process dies, Postgres ends the connection and releases the lock, and other replicas take
//! its attempts over at once.
//!
//! The alternative, a heartbeat row, costs each replica a write a second, and shows a death a second later.

use std::sync::Arc;
use std::time::Duration;

use sqlx::Connection;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use tokio::sync::OnceCell;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use super::error::{DbError, no_answer};
use super::session::{SessionOptions, Setting};
use crate::telemetry::throttle::Throttle;

/// Regular traffic lets both ends notice when the other one is gone.
const PING_INTERVAL: Duration = Duration::from_secs(1);
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(3);
/// A host that vanishes does not close its connections. With these settings the server notices after a few seconds.
const KEEPALIVE: [Setting; 4] = [
    ("tcp_keepalives_idle", "1"),
    ("tcp_keepalives_interval", "1"),
    ("tcp_keepalives_count", "3"),
    ("tcp_user_timeout", "4000"),
];

static LOST: Throttle = Throttle::new();

/// The number of this replica, and the task that holds its lock. Dropping the last handle releases the lock.
#[derive(Debug, Clone)]
pub struct Presence(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    session: SessionOptions,
    incarnation: OnceCell<(i32, LockTask)>,
}

#[derive(Debug)]
struct LockTask(AbortHandle);

impl Drop for LockTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Presence {
    /// Does not take a number yet: that needs the database.
    #[must_use]
    pub fn new(connect: &PgConnectOptions) -> Self {
        let session = SessionOptions::new(connect.clone()).named("coupon-issuer presence").with(KEEPALIVE);
        Self(Arc::new(Inner { session, incarnation: OnceCell::new() }))
    }

    /// The number of this replica, if it has taken one.
    #[must_use]
    pub fn known(&self) -> Option<i32> {
        self.0.incarnation.get().map(|(incarnation, _)| *incarnation)
    }

    /// The number of this replica. The first call takes the number and its lock; the number never changes afterwards.
    ///
    /// # Errors
    /// When the replica has no number yet and the database cannot be asked.
    pub async fn incarnation(&self) -> Result<i32, DbError> {
        let take = || async {
            let (connection, incarnation) =
                timeout(STATEMENT_TIMEOUT, take(&self.0.session)).await.unwrap_or_else(|_elapsed| Err(no_answer()))?;
            let lock_task = tokio::spawn(hold_lock(self.0.session.clone(), connection, incarnation));
            tracing::debug!(incarnation, "this replica has taken its incarnation number");
            Ok::<_, DbError>((incarnation, LockTask(lock_task.abort_handle())))
        };
        Ok(self.0.incarnation.get_or_try_init(take).await?.0)
    }
}

async fn take(session: &SessionOptions) -> Result<(PgConnection, i32), sqlx::Error> {
    let mut connection = session.open().await?;
    let incarnation: i32 = sqlx::query_scalar("select next_incarnation_1()").fetch_one(&mut connection).await?;
    lock(&mut connection, incarnation).await?;
    Ok((connection, incarnation))
}

/// A shared lock, since the calls of this replica hold it as well (procedure `issue_coupons_1`).
async fn lock(connection: &mut PgConnection, incarnation: i32) -> Result<(), sqlx::Error> {
    sqlx::query("select pg_advisory_lock_shared(20193, $1)").bind(incarnation).execute(connection).await.map(drop)
}

/// Keeps the lock, and reconnects when the connection breaks. While the lock is not held, another replica may take attempts over.
/// They are fenced, so a takeover costs only a retry.
async fn hold_lock(session: SessionOptions, mut connection: PgConnection, incarnation: i32) {
    loop {
        sleep(PING_INTERVAL).await;
        let pinged = timeout(STATEMENT_TIMEOUT, connection.ping()).await;
        let Err(error) = pinged.unwrap_or_else(|_elapsed| Err(no_answer())) else { continue };
        LOST.log(|suppressed| {
            tracing::warn!(
                %error,
                suppressed,
                incarnation,
                "lost the connection that shows other replicas that this one is alive"
            );
        });
        connection = loop {
            let relocked = async {
                let mut connection = session.open().await?;
                lock(&mut connection, incarnation).await?;
                Ok::<_, sqlx::Error>(connection)
            };
            match timeout(STATEMENT_TIMEOUT, relocked).await.unwrap_or_else(|_elapsed| Err(no_answer())) {
                Ok(connection) => break connection,
                Err(error) => tracing::debug!(%error, "cannot reopen the presence connection"),
            }
            sleep(PING_INTERVAL).await;
        };
    }
}
