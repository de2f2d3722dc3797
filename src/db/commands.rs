//! What a command changes of one till or client, in one transaction with its entry in the audit record.
//!
//! What is to be changed is decided in `provisioning`.

use jiff::Timestamp;
use jiff_sqlx::ToSqlx;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, PgConnection, Row};

use super::DbError;
use super::audit::{AuditEntry, record};
use super::changes::notify;
use crate::model::OrgId;

/// Whom a command is about. Their names are unique over all organisations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// The till of this name.
    Till(String),
    /// The OAuth client with this key.
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

/// What is stored of a holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredHolder {
    /// Its organisation.
    pub org_id: OrgId,
    /// Whether it may do nothing.
    pub is_disabled: bool,
    /// Where a client's tokens come from, if it has no secret.
    pub issuer: Option<String>,
}

/// The transaction of one command. Dropped before its commit, it has changed nothing.
pub struct HolderChange<'a> {
    connection: PgConnection,
    holder: &'a Holder,
    org_id: OrgId,
}

impl<'a> HolderChange<'a> {
    /// Begins the transaction, and keeps others from changing this holder until its end.
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

    /// Keeps the holder from doing anything, or lets it again.
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

    /// Gives it another password or secret.
    ///
    /// # Errors
    /// When the database cannot be asked, or the client has an issuer of tokens instead.
    pub async fn set_secret_hash(&mut self, hash: &str) -> Result<(), DbError> {
        let statement = match self.holder {
            Holder::Till(_) => "update till set password_hash = $3 where org_id = $1 and till_id = $2",
            Holder::Client(_) => "update oauth_client set secret_hash = $3 where org_id = $1 and client_key = $2",
        };
        self.update(statement, hash).await
    }

    /// Makes a client's tokens from before this instant void. A till has none.
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

    /// Writes a value into the holder's row.
    async fn update<'v, T>(&mut self, statement: &'static str, value: T) -> Result<(), DbError>
    where
        T: sqlx::Encode<'v, sqlx::Postgres> + sqlx::Type<sqlx::Postgres> + Send + 'v,
    {
        let query = sqlx::query(statement).bind(self.org_id.0).bind(self.holder.name()).bind(value);
        query.execute(&mut self.connection).await?;
        Ok(())
    }

    /// Records the entry, and makes all of it take effect, of which every replica is notified.
    ///
    /// # Errors
    /// When the database cannot be asked; nothing is changed then, unless the answer itself was lost.
    pub async fn commit(mut self, entry: &AuditEntry) -> Result<(), DbError> {
        record(&mut self.connection, entry).await?;
        notify(&mut self.connection).await?;
        sqlx::query("commit").execute(&mut self.connection).await?;
        self.connection.close().await?;
        Ok(())
    }
}
