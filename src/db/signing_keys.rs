//! All replicas share the signing keys through the database. Whoever can read the table can sign tokens; that role can issue coupons
//! anyway.

use jiff::Timestamp;
use jiff_sqlx::ToSqlx;
use secrecy::{ExposeSecret, SecretSlice};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, Row};

use super::admin::audit::{AuditEntry, record};
use super::connection::Db;
use super::credential_changes::notify;
use super::error::DbError;

/// A stored signing key.
pub struct SigningKeyRow {
    /// Its name in the header of a token.
    pub kid: String,
    /// PKCS#8, DER.
    pub private_key: SecretSlice<u8>,
    /// When it starts to sign.
    pub signs_from: Timestamp,
    /// When its last token ends; `None`: the key has no successor yet.
    pub verifies_until: Option<Timestamp>,
}

impl Db {
    /// All signing keys, the newest first.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn signing_keys(&self) -> Result<Vec<SigningKeyRow>, DbError> {
        let rows = sqlx::query(
            "select kid, private_key, signs_from, verifies_until from signing_key order by signs_from desc, kid",
        )
        .fetch_all(&mut *self.connection().await?)
        .await?;
        rows.iter()
            .map(|row| {
                let verifies_until: Option<jiff_sqlx::Timestamp> = row.try_get("verifies_until")?;
                Ok(SigningKeyRow {
                    kid: row.try_get("kid")?,
                    private_key: row.try_get::<Vec<u8>, _>("private_key")?.into(),
                    signs_from: row.try_get::<jiff_sqlx::Timestamp, _>("signs_from")?.to_jiff(),
                    verifies_until: verifies_until.map(jiff_sqlx::Timestamp::to_jiff),
                })
            })
            .collect()
    }

    /// Stores the key if there is none yet. Of several replicas that start at once, one prevails.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn store_first_signing_key(&self, key: &SigningKeyRow) -> Result<(), DbError> {
        let mut transaction = self.pool.begin().await?;
        sqlx::query("lock table signing_key in share row exclusive mode").execute(&mut *transaction).await?;
        let stored = sqlx::query(
            "insert into signing_key (kid, private_key, signs_from)
             select $1, $2, $3 where not exists (select from signing_key)",
        )
        .bind(&key.kid)
        .bind(key.private_key.expose_secret())
        .bind(key.signs_from.to_sqlx())
        .execute(&mut *transaction)
        .await?;
        if stored.rows_affected() > 0 {
            notify(&mut transaction).await?;
        }
        transaction.commit().await?;
        Ok(())
    }
}

/// Stores the next key, with its entry in the audit log. It starts to sign at its `signs_from`, or a minute after its predecessor if
/// that is later: the clock of another host may be ahead. Its predecessors verify until `margin_seconds` after the end of the last
/// token that they can have signed.
///
/// # Errors
/// When the database cannot be asked.
pub async fn store_next_signing_key(
    connect: &PgConnectOptions,
    key: &SigningKeyRow,
    margin_seconds: i32,
    entry: &AuditEntry,
) -> Result<(), DbError> {
    let mut connection = connect.connect().await?;
    let mut transaction = connection.begin().await?;
    sqlx::query("lock table signing_key in share row exclusive mode").execute(&mut *transaction).await?;
    let signs_from: jiff_sqlx::Timestamp =
        sqlx::query_scalar("select greatest($1, (select max(signs_from) + interval '1 minute' from signing_key))")
            .bind(key.signs_from.to_sqlx())
            .fetch_one(&mut *transaction)
            .await?;
    sqlx::query(
        "update signing_key
            set verifies_until = $1 + make_interval(secs => $2
                    + (select coalesce(max(token_ttl_seconds), 0) from oauth_client))
          where verifies_until is null",
    )
    .bind(signs_from)
    .bind(margin_seconds)
    .execute(&mut *transaction)
    .await?;
    sqlx::query("insert into signing_key (kid, private_key, signs_from) values ($1, $2, $3)")
        .bind(&key.kid)
        .bind(key.private_key.expose_secret())
        .bind(signs_from)
        .execute(&mut *transaction)
        .await?;
    record(&mut transaction, entry).await?;
    notify(&mut transaction).await?;
    transaction.commit().await?;
    connection.close().await?;
    Ok(())
}
