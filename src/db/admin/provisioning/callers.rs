use std::collections::BTreeMap;

use sqlx::Row;
use sqlx::postgres::PgRow;

use super::columns::{access, access_if_any, rate_limit};
use super::transaction::Provisioning;
use crate::db::error::{DbError, unknown_value};
use crate::model::{Access, OrgId, RateLimit, StoreId, StorePlan, TokenAlgorithm, TokenIssuerPlan};

/// A stored till.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the columns of table till")]
pub struct StoredTillSettings {
    pub store_id: StoreId,
    pub access: Option<Access>,
    /// `None`: a write keeps the stored value.
    pub disabled: Option<bool>,
    pub rate_limit: Option<RateLimit>,
    pub password_hash: String,
}

/// A stored OAuth client.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the columns of table oauth_client")]
pub struct StoredClientSettings {
    pub till_id: String,
    pub access: Access,
    /// `None`: a write keeps the stored value.
    pub disabled: Option<bool>,
    pub rate_limit: Option<RateLimit>,
    pub proof: StoredProof,
}

/// How a client authenticates.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the columns of table oauth_client")]
pub enum StoredProof {
    Secret {
        secret_hash: String,
        token_ttl_seconds: i32,
    },
    /// By tokens of this external issuer.
    Issuer(String),
}

/// Inserts a name unless it exists, and returns whether the organisation holds it.
macro_rules! claim_name {
    ($table:literal, $column:literal) => {
        concat!(
            "with new as (
                 insert into ",
            $table,
            " (org_id, ",
            $column,
            ") values ($1, $2) on conflict do nothing returning org_id)
             select org_id = $1 from (
                 select org_id from new union all select org_id from ",
            $table,
            " where ",
            $column,
            " = $2) as holder"
        )
    };
}

impl Provisioning {
    pub(super) async fn stores(&mut self, org_id: OrgId) -> Result<BTreeMap<StoreId, StorePlan>, DbError> {
        let rows = sqlx::query(
            "select store_id, name, access, code, external_id, external_id_1, external_id_2 from store where org_id = $1",
        )
        .bind(org_id.0)
        .fetch_all(&mut self.connection)
        .await?;
        rows.iter()
            .map(|row| {
                let id = StoreId(row.try_get("store_id")?);
                let store = StorePlan {
                    id,
                    name: row.try_get("name")?,
                    access: access_if_any(row)?,
                    code: row.try_get("code")?,
                    external_ids: [
                        row.try_get("external_id")?,
                        row.try_get("external_id_1")?,
                        row.try_get("external_id_2")?,
                    ],
                };
                Ok((id, store))
            })
            .collect()
    }

    pub(super) async fn tills(&mut self, org_id: OrgId) -> Result<BTreeMap<String, StoredTillSettings>, DbError> {
        let rows = sqlx::query(
            "select till_id, store_id, access, disabled, rate_limit_per_minute, password_hash
               from till where org_id = $1",
        )
        .bind(org_id.0)
        .fetch_all(&mut self.connection)
        .await?;
        rows.iter()
            .map(|row| {
                let settings = StoredTillSettings {
                    store_id: StoreId(row.try_get("store_id")?),
                    access: access_if_any(row)?,
                    disabled: Some(row.try_get("disabled")?),
                    rate_limit: rate_limit(row)?,
                    password_hash: row.try_get("password_hash")?,
                };
                Ok((row.try_get("till_id")?, settings))
            })
            .collect()
    }

    pub(super) async fn token_issuers(&mut self, org_id: OrgId) -> Result<BTreeMap<String, TokenIssuerPlan>, DbError> {
        let rows = sqlx::query(
            "select issuer, audience, jwks_url, client_claim, algorithms from token_issuer where org_id = $1",
        )
        .bind(org_id.0)
        .fetch_all(&mut self.connection)
        .await?;
        rows.iter()
            .map(|row| {
                let algorithms: Option<_> = row
                    .try_get::<Vec<String>, _>("algorithms")?
                    .iter()
                    .map(|algorithm| TokenAlgorithm::parse(algorithm))
                    .collect();
                let issuer: String = row.try_get("issuer")?;
                let settings = TokenIssuerPlan {
                    issuer: issuer.clone(),
                    audience: row.try_get("audience")?,
                    jwks_url: row.try_get("jwks_url")?,
                    client_claim: row.try_get("client_claim")?,
                    algorithms: algorithms.ok_or_else(|| unknown_value("algorithms"))?,
                };
                Ok((issuer, settings))
            })
            .collect()
    }

    pub(super) async fn oauth_clients(
        &mut self,
        org_id: OrgId,
    ) -> Result<BTreeMap<String, StoredClientSettings>, DbError> {
        let rows = sqlx::query(
            "select client_key, till_id, access, disabled, rate_limit_per_minute, token_ttl_seconds, secret_hash, issuer
               from oauth_client where org_id = $1",
        )
        .bind(org_id.0)
        .fetch_all(&mut self.connection)
        .await?;
        rows.iter()
            .map(|row| {
                let settings = StoredClientSettings {
                    till_id: row.try_get("till_id")?,
                    access: access(row.try_get("access")?)?,
                    disabled: Some(row.try_get("disabled")?),
                    rate_limit: rate_limit(row)?,
                    proof: proof(row)?,
                };
                Ok((row.try_get("client_key")?, settings))
            })
            .collect()
    }

    /// Writes a store.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn put_store(&mut self, org_id: OrgId, store: &StorePlan) -> Result<(), DbError> {
        let [external_id, external_id_1, external_id_2] = &store.external_ids;
        sqlx::query(
            "insert into store (org_id, store_id, name, access, code, external_id, external_id_1, external_id_2)
             values ($1, $2, $3, $4, $5, $6, $7, $8)
             on conflict (org_id, store_id) do update
                set name = excluded.name, access = excluded.access, code = excluded.code,
                    external_id = excluded.external_id, external_id_1 = excluded.external_id_1,
                    external_id_2 = excluded.external_id_2",
        )
        .bind(org_id.0)
        .bind(store.id.0)
        .bind(&store.name)
        .bind(store.access.map(Access::name))
        .bind(&store.code)
        .bind(external_id)
        .bind(external_id_1)
        .bind(external_id_2)
        .execute(&mut self.connection)
        .await?;
        Ok(())
    }

    /// Claims the name of a till for the organisation. False: another organisation has it.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn claim_till_name(&mut self, org_id: OrgId, id: &str) -> Result<bool, DbError> {
        self.claim_name(claim_name!("till_name", "till_id"), org_id, id).await
    }

    /// Claims the key of an OAuth client for the organisation. False: another organisation has it.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn claim_client_key(&mut self, org_id: OrgId, key: &str) -> Result<bool, DbError> {
        self.claim_name(claim_name!("client_name", "client_key"), org_id, key).await
    }

    /// Only `apply` writes names, and one runs at a time: either the insert or the select finds the holder.
    async fn claim_name(&mut self, statement: &'static str, org_id: OrgId, name: &str) -> Result<bool, DbError> {
        let is_mine = sqlx::query_scalar(statement).bind(org_id.0).bind(name).fetch_one(&mut self.connection).await?;
        Ok(is_mine)
    }

    /// Writes a till. Call [`claim_till_name`](Self::claim_till_name) first.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn put_till(&mut self, org_id: OrgId, id: &str, till: &StoredTillSettings) -> Result<(), DbError> {
        sqlx::query(
            "insert into till as t (
                 org_id, till_id, store_id, access, disabled, rate_limit_per_minute, password_hash)
             values ($1, $2, $3, $4, coalesce($5, false), $6, $7)
             on conflict (org_id, till_id) do update
                set store_id = excluded.store_id, access = excluded.access, disabled = coalesce($5, t.disabled),
                    rate_limit_per_minute = excluded.rate_limit_per_minute, password_hash = excluded.password_hash",
        )
        .bind(org_id.0)
        .bind(id)
        .bind(till.store_id.0)
        .bind(till.access.map(Access::name))
        .bind(till.disabled)
        .bind(till.rate_limit.map(RateLimit::stored))
        .bind(&till.password_hash)
        .execute(&mut self.connection)
        .await?;
        Ok(())
    }

    /// Writes an external issuer.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn put_token_issuer(&mut self, org_id: OrgId, issuer: &TokenIssuerPlan) -> Result<(), DbError> {
        sqlx::query(
            "insert into token_issuer (org_id, issuer, audience, jwks_url, client_claim, algorithms)
             values ($1, $2, $3, $4, $5, $6)
             on conflict (org_id, issuer) do update
                set audience = excluded.audience, jwks_url = excluded.jwks_url, client_claim = excluded.client_claim,
                    algorithms = excluded.algorithms",
        )
        .bind(org_id.0)
        .bind(&issuer.issuer)
        .bind(&issuer.audience)
        .bind(&issuer.jwks_url)
        .bind(&issuer.client_claim)
        .bind(issuer.algorithms.iter().map(|algorithm| algorithm.name()).collect::<Vec<_>>())
        .execute(&mut self.connection)
        .await?;
        Ok(())
    }

    /// Writes an OAuth client. Call [`claim_client_key`](Self::claim_client_key) first, and write its external issuer, if it has one.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn put_oauth_client(
        &mut self,
        org_id: OrgId,
        key: &str,
        client: &StoredClientSettings,
    ) -> Result<(), DbError> {
        let (secret_hash, ttl, issuer) = match &client.proof {
            StoredProof::Secret { secret_hash, token_ttl_seconds } => {
                (Some(secret_hash), Some(*token_ttl_seconds), None)
            }
            StoredProof::Issuer(issuer) => (None, None, Some(issuer)),
        };
        // Without a secret the lifetime of tokens has no effect.
        sqlx::query(
            "insert into oauth_client as c (
                 org_id, client_key, secret_hash, issuer, till_id, access, disabled, rate_limit_per_minute,
                 token_ttl_seconds)
             values ($1, $2, $3, $4, $5, $6, coalesce($7, false), $8, coalesce($9, 3600))
             on conflict (org_id, client_key) do update
                set secret_hash = excluded.secret_hash, issuer = excluded.issuer, till_id = excluded.till_id,
                    access = excluded.access, disabled = coalesce($7, c.disabled),
                    rate_limit_per_minute = excluded.rate_limit_per_minute,
                    token_ttl_seconds = excluded.token_ttl_seconds",
        )
        .bind(org_id.0)
        .bind(key)
        .bind(secret_hash)
        .bind(issuer)
        .bind(&client.till_id)
        .bind(client.access.name())
        .bind(client.disabled)
        .bind(client.rate_limit.map(RateLimit::stored))
        .bind(ttl)
        .execute(&mut self.connection)
        .await?;
        Ok(())
    }
}

fn proof(row: &PgRow) -> Result<StoredProof, DbError> {
    if let Some(issuer) = row.try_get("issuer")? {
        return Ok(StoredProof::Issuer(issuer));
    }
    Ok(StoredProof::Secret {
        secret_hash: row.try_get("secret_hash")?,
        token_ttl_seconds: row.try_get("token_ttl_seconds")?,
    })
}
