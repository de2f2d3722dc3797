//! Telling replicas of changes to credentials, and hearing of them, at the moment they take effect: by a notification of Postgres.
//! What to do about them is decided in `auth`.

use std::time::Duration;

use sqlx::PgConnection;
use sqlx::postgres::{PgListener, PgPool, PgPoolOptions};
use tokio::time::timeout;

use super::{Db, DbError};

const CHANNEL: &str = "coupon_issuer_credentials";
/// How often a connection on which nothing comes is asked whether it is still there, and how long it may take to say so.
const LIVENESS: Duration = Duration::from_secs(5);

/// Tells every replica that credentials change: at the commit of the transaction that this connection is in, and not if it fails.
pub(super) async fn notify(connection: &mut PgConnection) -> Result<(), DbError> {
    sqlx::query("select pg_notify($1, '')").bind(CHANNEL).execute(connection).await?;
    Ok(())
}

/// A connection on which changes to credentials are told.
pub struct CredentialChanges {
    listener: PgListener,
    /// The listener's own, of one connection: those for reads may all be in use.
    pool: PgPool,
}

impl Db {
    /// Begins to listen.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn credential_changes(&self) -> Result<CredentialChanges, DbError> {
        let options = (*self.pool.connect_options()).clone().application_name("coupon-issuer listener");
        let pool = PgPoolOptions::new().max_connections(1).connect_lazy_with(options);
        let mut listener = PgListener::connect_with(&pool).await?;
        listener.eager_reconnect(false);
        listener.listen(CHANNEL).await?;
        Ok(CredentialChanges { listener, pool })
    }
}

impl CredentialChanges {
    /// Waits for a change, for a few seconds: `true` if there was one.
    ///
    /// # Errors
    /// When the connection is lost: changes may have been missed.
    pub async fn next(&mut self) -> Result<bool, DbError> {
        match timeout(LIVENESS, self.listener.try_recv()).await {
            Ok(Ok(Some(_))) => Ok(true),
            Ok(Ok(None)) => Err(lost()),
            Ok(Err(error)) => Err(error.into()),
            Err(_elapsed) => {
                let answered = timeout(LIVENESS, sqlx::query("select 1").execute(&mut self.listener)).await;
                answered.map_err(|_| lost())??;
                Ok(false)
            }
        }
    }

    /// Closes the connection.
    pub async fn close(self) {
        drop(self.listener);
        // It is at most a courtesy to the server.
        let _ = timeout(Duration::from_secs(1), self.pool.close()).await;
    }
}

fn lost() -> DbError {
    DbError::Unavailable(sqlx::Error::Protocol("the listening connection was lost".to_owned()))
}
