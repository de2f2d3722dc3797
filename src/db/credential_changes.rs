//! A change to credentials notifies every replica (`notify` and `listen` of Postgres), so that the change takes effect at once.

use std::time::Duration;

use sqlx::PgConnection;
use sqlx::postgres::{PgListener, PgPool, PgPoolOptions};
use tokio::time::timeout;

use super::connection::Db;
use super::error::DbError;

const CHANNEL: &str = "coupon_issuer_credentials";
/// How often a silent connection is tested.
const TEST_INTERVAL: Duration = Duration::from_secs(1);
const TEST_TIMEOUT: Duration = Duration::from_secs(3);
/// A pooler may have reset the session. A notification to oneself would test the same, but it is a transaction that writes.
const IS_LISTENING: &str = "select exists (select from pg_listening_channels() as c where c = $1)";

/// Notifies every replica when the current transaction commits.
pub(super) async fn notify(connection: &mut PgConnection) -> Result<(), DbError> {
    sqlx::query("select pg_notify($1, '')").bind(CHANNEL).execute(connection).await?;
    Ok(())
}

/// A connection that receives the notifications.
pub struct CredentialChanges {
    listener: PgListener,
    /// A pool of one connection: all connections of the pool for reads may be in use.
    pool: PgPool,
}

impl Db {
    /// Starts to listen.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn credential_changes(&self) -> Result<CredentialChanges, DbError> {
        let pool = self.session.clone().named("coupon-issuer listener").pool(PgPoolOptions::new().max_connections(1));
        let mut listener = PgListener::connect_with(&pool).await?;
        listener.eager_reconnect(false);
        listener.listen(CHANNEL).await?;
        Ok(CredentialChanges { listener, pool })
    }
}

impl CredentialChanges {
    /// Waits a second for a change. `false`: there was none.
    ///
    /// # Errors
    /// When the connection is lost. Changes may have been missed.
    pub async fn next(&mut self) -> Result<bool, DbError> {
        match timeout(TEST_INTERVAL, self.listener.try_recv()).await {
            Ok(Ok(Some(_))) => Ok(true),
            Ok(Ok(None)) => Err(connection_lost()),
            Ok(Err(error)) => Err(error.into()),
            Err(_elapsed) => {
                let query = sqlx::query_scalar(IS_LISTENING).bind(CHANNEL).fetch_one(&mut self.listener);
                let is_listening: bool = timeout(TEST_TIMEOUT, query).await.map_err(|_| connection_lost())??;
                if is_listening { Ok(false) } else { Err(connection_lost()) }
            }
        }
    }

    /// Closes the connection.
    pub async fn close(self) {
        drop(self.listener);
        // The server also copes with a connection that is not closed.
        let _ = timeout(Duration::from_secs(1), self.pool.close()).await;
    }
}

fn connection_lost() -> DbError {
    DbError::Unavailable(sqlx::Error::Protocol("the listening connection was lost".to_owned()))
}
