//! The keys that sign access tokens, shared by all replicas through the database.
//! Whoever can read this table can make tokens; the same role can issue coupons anyway.

use secrecy::{ExposeSecret, SecretSlice};
use sqlx::Row;

use super::{Store, StoreError};

/// A signing key as it is stored.
pub struct SigningKeyRow {
    /// Its name, as it stands in a token's header.
    pub kid: String,
    /// PKCS#8, DER.
    pub private_key: SecretSlice<u8>,
}

impl Store {
    /// Every signing key, the newest first.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn signing_keys(&self) -> Result<Vec<SigningKeyRow>, StoreError> {
        let rows = sqlx::query("select kid, private_key from signing_key order by created_at desc, kid")
            .fetch_all(&self.pool)
            .await?;
        rows.iter()
            .map(|row| {
                Ok(SigningKeyRow {
                    kid: row.try_get("kid")?,
                    private_key: row.try_get::<Vec<u8>, _>("private_key")?.into(),
                })
            })
            .collect()
    }

    /// Stores this key if there is none yet: of several replicas that start at once, one prevails.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn store_first_signing_key(&self, key: &SigningKeyRow) -> Result<(), StoreError> {
        let mut transaction = self.pool.begin().await?;
        sqlx::query("lock table signing_key in share row exclusive mode").execute(&mut *transaction).await?;
        sqlx::query(
            "insert into signing_key (kid, private_key) select $1, $2 where not exists (select from signing_key)",
        )
        .bind(&key.kid)
        .bind(key.private_key.expose_secret())
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(())
    }
}
