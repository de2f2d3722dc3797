use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, PgConnection};

use crate::db::credential_changes::notify;
use crate::db::error::DbError;
use crate::model::OrgId;

/// The transaction of one `apply`.
pub struct Provisioning {
    pub(super) connection: PgConnection,
}

impl Provisioning {
    /// Begins the transaction.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn begin(connect: &PgConnectOptions) -> Result<Self, DbError> {
        let mut connection = connect.connect().await?;
        sqlx::query("begin isolation level read committed").execute(&mut connection).await?;
        // Two concurrent applies would each see the other's organisations half written.
        sqlx::query("select pg_advisory_xact_lock(20190, 0)").execute(&mut connection).await?;
        Ok(Self { connection })
    }

    /// Commits all changes at once.
    ///
    /// # Errors
    /// When the database cannot be asked. Then nothing has changed, unless only the answer to the commit was lost.
    pub async fn commit(mut self) -> Result<(), DbError> {
        sqlx::query("commit").execute(&mut self.connection).await?;
        self.connection.close().await?;
        Ok(())
    }

    /// Waits for the running batches of the organisation, and blocks new ones until the end of the transaction.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn pause_issuing(&mut self, org_id: OrgId) -> Result<(), DbError> {
        sqlx::query("select lock_organisation_1($1)").bind(org_id.0).execute(&mut self.connection).await?;
        Ok(())
    }

    /// Waits for a running upload into the organisation's pools, and blocks uploads until the end of the transaction, so that checks of
    /// codes stay true.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn pause_uploads(&mut self, org_id: OrgId) -> Result<(), DbError> {
        sqlx::query("select lock_codes_1($1)").bind(org_id.0).execute(&mut self.connection).await?;
        Ok(())
    }

    /// Notifies every replica at the commit that credentials have changed.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn notify_credentials(&mut self) -> Result<(), DbError> {
        notify(&mut self.connection).await
    }

    /// All stored organisations.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn organisations(&mut self) -> Result<Vec<OrgId>, DbError> {
        let ids: Vec<i64> = sqlx::query_scalar("select org_id from organisation order by org_id")
            .fetch_all(&mut self.connection)
            .await?;
        Ok(ids.into_iter().map(OrgId).collect())
    }
}
