//! Changes one till or OAuth client.

use jiff::Timestamp;
use jiff_sqlx::ToSqlx;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, PgConnection, Row};

use super::audit::{AuditEntry, record};
use crate::db::credential_changes::notify;
use crate::db::error::DbError;
use crate::model::OrgId;

/// The holder of a credential. Names are unique over all organisations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// A till, by its name.
    Till(String),
    /// An OAuth client, by its key.
    Client(String),
}

impl Holder {
    /// The till's name, or the client's key.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Till(name) | Self::Client(name) => name,
        }
    }
}

/// A stored holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredHolder {
    /// Its organisation.
    pub org_id: OrgId,
    /// Whether the login is disabled.
    pub is_disabled: bool,
    /// The external issuer of a client that has no secret.
    pub issuer: Option<String>,
}

/// The transaction of one command, with its entry in the audit log. If it is dropped before the commit, nothing changes.
pub struct HolderChange<'a> {
    connection: PgConnection,
    holder: &'a Holder,
    org_id: OrgId,
}

impl<'a> HolderChange<'a> {
    /// Begins the transaction and locks the holder.
    ///
    /// # Errors
    /// When the database cannot be asked. `None`: there is no such till or client.
    pub async fn begin(
        connect: &PgConnectOptions,
        holder: &'a Holder,
    ) -> Result<Option<(Self, StoredHolder)>, DbError> {
        let mut connection = connect.connect().await?;
        sqlx::query("begin isolation level read committed").execute(&mut connection).await?;
        let statement = match holder {
            Holder::Till(_) => {
                "select t.org_id, t.disabled, null as issuer from till_name n
                   join till t on t.org_id = n.org_id and t.till_id = n.till_id
                  where n.till_id = $1 for update of t"
            }
            Holder::Client(_) => {
                "select c.org_id, c.disabled, c.issuer from client_name n
                   join oauth_client c on c.org_id = n.org_id and c.client_key = n.client_key
                  where n.client_key = $1 for update of c"
            }
        };
        let row = sqlx::query(statement).bind(holder.name()).fetch_optional(&mut connection).await?;
        let Some(row) = row else { return Ok(None) };
        let stored = StoredHolder {
            org_id: OrgId(row.try_get("org_id")?),
            is_disabled: row.try_get("disabled")?,
            issuer: row.try_get("issuer")?,
        };
        Ok(Some((Self { connection, holder, org_id: stored.org_id }, stored)))
    }

    /// Disables or enables the login.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn set_disabled(&mut self, disabled: bool) -> Result<(), DbError> {
        let statement = match self.holder {
            Holder::Till(_) => "update till set disabled = $3 where org_id = $1 and till_id = $2",
            Holder::Client(_) => "update oauth_client set disabled = $3 where org_id = $1 and client_key = $2",
        };
        self.update(statement, disabled).await
    }

    /// Replaces the password or secret.
    ///
    /// # Errors
    /// When the database cannot be asked, or the client authenticates by an external issuer.
    pub async fn set_secret_hash(&mut self, hash: &str) -> Result<(), DbError> {
        let statement = match self.holder {
            Holder::Till(_) => "update till set password_hash = $3 where org_id = $1 and till_id = $2",
            Holder::Client(_) => "update oauth_client set secret_hash = $3 where org_id = $1 and client_key = $2",
        };
        self.update(statement, hash).await
    }

    /// Voids the tokens of a client that were issued before this instant. A till has none.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn void_tokens_before(&mut self, instant: Timestamp) -> Result<(), DbError> {
        match self.holder {
            Holder::Till(_) => Ok(()),
            Holder::Client(_) => {
                let statement = "update oauth_client set tokens_from = $3 where org_id = $1 and client_key = $2";
                self.update(statement, instant.to_sqlx()).await
            }
        }
    }

    async fn update<'v, T>(&mut self, statement: &'static str, value: T) -> Result<(), DbError>
    where
        T: sqlx::Encode<'v, sqlx::Postgres> + sqlx::Type<sqlx::Postgres> + Send + 'v,
    {
        let query = sqlx::query(statement).bind(self.org_id.0).bind(self.holder.name()).bind(value);
        query.execute(&mut self.connection).await?;
        Ok(())
    }

    /// Adds the entry to the audit log, commits, and notifies every replica.
    ///
    /// # Errors
    /// When the database cannot be asked. Then nothing has changed, unless only the answer to the commit was lost.
    pub async fn commit(mut self, entry: &AuditEntry) -> Result<(), DbError> {
        record(&mut self.connection, entry).await?;
        notify(&mut self.connection).await?;
        sqlx::query("commit").execute(&mut self.connection).await?;
        self.connection.close().await?;
        Ok(())
    }
}
