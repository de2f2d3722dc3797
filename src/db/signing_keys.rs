//! The keys that sign access tokens, shared by all replicas through the database.
//! Whoever can read this table can make tokens; the same role can issue coupons anyway.

use jiff::Timestamp;
use jiff_sqlx::ToSqlx;
use secrecy::{ExposeSecret, SecretSlice};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, Row};

use super::audit::{AuditEntry, record};
use super::changes::notify;
use super::{Db, DbError};

/// A signing key as it is stored.
pub struct SigningKeyRow {
    /// Its name, as it stands in a token's header.
    pub kid: String,
    /// PKCS#8, DER.
    pub private_key: SecretSlice<u8>,
    /// When it begins to sign.
    pub signs_from: Timestamp,
    /// When the last of its tokens has ended; `None`: it has no successor yet.
    pub verifies_until: Option<Timestamp>,
}

impl Db {
    /// Every signing key, the newest first.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn signing_keys(&self) -> Result<Vec<SigningKeyRow>, DbError> {
        let rows = sqlx::query(
            "select kid, private_key, signs_from, verifies_until from signing_key order by signs_from desc, kid",
        )
        .fetch_all(&mut *self.lease().await?)
        .await?;
        rows.iter()
            .map(|row| {
                let until: Option<jiff_sqlx::Timestamp> = row.try_get("verifies_until")?;
                Ok(SigningKeyRow {
                    kid: row.try_get("kid")?,
                    private_key: row.try_get::<Vec<u8>, _>("private_key")?.into(),
                    signs_from: row.try_get::<jiff_sqlx::Timestamp, _>("signs_from")?.to_jiff(),
                    verifies_until: until.map(jiff_sqlx::Timestamp::to_jiff),
                })
            })
            .collect()
    }

    /// Stores this key if there is none yet: of several replicas that start at once, one prevails.
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

/// Stores a key that is to take over at its time, or a minute after the one before it if that is later (another host's clock may
/// be ahead), with the entry in the audit record. Its predecessors verify until the last token that they can have signed by then
/// has ended, and a margin longer.
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
