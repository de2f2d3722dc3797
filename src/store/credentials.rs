//! Tills and OAuth clients as they log in: by name alone, before any organisation is known.
//! Whether a secret is right is checked in `auth`.

use sqlx::{FromRow, Row};

use super::rows::unknown_value;
use super::{Store, StoreError};
use crate::model::{Access, Caller, Credential, OrgId, StoreId};

/// A till as it is stored.
pub struct StoredTill {
    /// The caller it makes.
    pub caller: Caller,
    /// argon2id over the md5 that it sends.
    pub password_hash: String,
}

/// An OAuth client as it is stored.
pub struct StoredClient {
    /// The caller it makes.
    pub caller: Caller,
    /// argon2id over its secret.
    pub secret_hash: String,
    /// How long its tokens live, in seconds.
    pub token_ttl_seconds: i32,
}

#[derive(FromRow)]
struct CallerRow {
    org_id: i64,
    till_id: String,
    store_id: i64,
    access: String,
}

impl CallerRow {
    fn into_caller(self, credential: Credential) -> Result<Caller, StoreError> {
        Ok(Caller {
            org_id: OrgId(self.org_id),
            till_id: self.till_id,
            store_id: StoreId(self.store_id),
            access: Access::parse(&self.access).ok_or_else(|| unknown_value("access"))?,
            credential,
        })
    }
}

impl Store {
    /// The till of this name.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn till(&self, till_id: &str) -> Result<Option<StoredTill>, StoreError> {
        let row = sqlx::query(
            "select t.org_id, t.till_id, t.store_id, coalesce(s.access, o.default_access) as access, t.password_hash
               from till t
               join store s on s.org_id = t.org_id and s.store_id = t.store_id
               join organisation o on o.org_id = t.org_id
              where t.till_id = $1",
        )
        .bind(till_id)
        .fetch_optional(&self.pool)
        .await?;
        let Some(row) = row else { return Ok(None) };
        Ok(Some(StoredTill {
            caller: CallerRow::from_row(&row)?.into_caller(Credential::Till)?,
            password_hash: row.try_get("password_hash")?,
        }))
    }

    /// The OAuth client with this key.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn oauth_client(&self, client_key: &str) -> Result<Option<StoredClient>, StoreError> {
        let row = sqlx::query(
            "select c.org_id, c.till_id, t.store_id, c.access, c.secret_hash, c.token_ttl_seconds
               from oauth_client c
               join till t on t.org_id = c.org_id and t.till_id = c.till_id
              where c.client_key = $1",
        )
        .bind(client_key)
        .fetch_optional(&self.pool)
        .await?;
        let Some(row) = row else { return Ok(None) };
        Ok(Some(StoredClient {
            caller: CallerRow::from_row(&row)?.into_caller(Credential::OAuthClient(client_key.to_owned()))?,
            secret_hash: row.try_get("secret_hash")?,
            token_ttl_seconds: row.try_get("token_ttl_seconds")?,
        }))
    }
}
