use jiff::Timestamp;
use sqlx::postgres::PgRow;
use sqlx::{FromRow, Row};

use super::connection::Db;
use super::error::{DbError, unknown_value};
use crate::model::{Access, Caller, Credential, OrgId, RateLimit, StoreId, Target, TargetType};

/// A stored till.
pub struct StoredTill {
    /// The caller that logs in.
    pub caller: Caller,
    /// argon2id over the MD5 that the till sends.
    pub password_hash: String,
    /// Whether the login is disabled.
    pub disabled: bool,
    /// Its own limit, else its organisation's; `None`: the service's default applies.
    pub rate_limit: Option<RateLimit>,
}

/// A stored OAuth client.
pub struct StoredClient {
    /// The caller that logs in.
    pub caller: Caller,
    /// argon2id over its secret; `None`: its tokens come from an external issuer.
    pub secret_hash: Option<String>,
    /// The external issuer of its tokens.
    pub issuer: Option<String>,
    /// The lifetime of its tokens in seconds.
    pub token_ttl_seconds: i32,
    /// Whether the login is disabled.
    pub disabled: bool,
    /// Tokens issued before this instant are void.
    pub tokens_from: Option<Timestamp>,
    /// Its own limit, else its organisation's; `None`: the service's default applies.
    pub rate_limit: Option<RateLimit>,
}

impl StoredClient {
    /// Whether a token of this organisation and issuer may name the client; `None`: a token of this service.
    #[must_use]
    pub fn is_bound_to(&self, org_id: OrgId, issuer: Option<&str>) -> bool {
        self.caller.org_id == org_id && self.issuer.as_deref() == issuer
    }
}

/// An external issuer whose tokens an organisation accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredTokenIssuer {
    /// The only organisation whose clients its tokens may name.
    pub org_id: OrgId,
    /// The claim `iss` of its tokens.
    pub issuer: String,
    /// The required audience of its tokens.
    pub audience: String,
    /// The address of its keys; `None`: taken from its discovery document.
    pub jwks_url: Option<String>,
    /// The claim that holds the client's key.
    pub client_claim: String,
    /// The accepted signature algorithms.
    pub algorithms: Vec<String>,
}

#[derive(FromRow)]
struct CallerRow {
    org_id: i64,
    till_id: String,
    store_id: i64,
    access: String,
}

impl CallerRow {
    fn into_caller(self, credential: Credential) -> Result<Caller, DbError> {
        Ok(Caller {
            org_id: OrgId(self.org_id),
            till_id: Some(self.till_id),
            store_id: StoreId(self.store_id),
            access: Access::parse(&self.access).ok_or_else(|| unknown_value("access"))?,
            credential,
            is_attributed: false,
        })
    }
}

impl Db {
    /// Finds a till by its name alone: at login the organisation is unknown.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn till(&self, till_id: &str) -> Result<Option<StoredTill>, DbError> {
        let row = sqlx::query(
            "select t.org_id, t.till_id, t.store_id, coalesce(t.access, s.access, o.default_access) as access,
                    t.password_hash, t.disabled,
                    coalesce(t.rate_limit_per_minute, o.rate_limit_per_minute) as rate_limit_per_minute
               from till_name n
               join till t on t.org_id = n.org_id and t.till_id = n.till_id
               join store s on s.org_id = t.org_id and s.store_id = t.store_id
               join organisation o on o.org_id = t.org_id
              where n.till_id = $1",
        )
        .bind(till_id)
        .fetch_optional(&mut *self.connection().await?)
        .await?;
        let Some(row) = row else { return Ok(None) };
        Ok(Some(StoredTill {
            caller: CallerRow::from_row(&row)?.into_caller(Credential::Till)?,
            password_hash: row.try_get("password_hash")?,
            disabled: row.try_get("disabled")?,
            rate_limit: rate_limit(&row)?,
        }))
    }

    /// Finds an OAuth client by its key alone: at login the organisation is unknown.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn oauth_client(&self, client_key: &str) -> Result<Option<StoredClient>, DbError> {
        let row = sqlx::query(
            "select c.org_id, c.till_id, t.store_id, c.access, c.secret_hash, c.issuer, c.token_ttl_seconds, c.disabled,
                    c.tokens_from, coalesce(c.rate_limit_per_minute, o.rate_limit_per_minute) as rate_limit_per_minute
               from client_name n
               join oauth_client c on c.org_id = n.org_id and c.client_key = n.client_key
               join till t on t.org_id = c.org_id and t.till_id = c.till_id
               join organisation o on o.org_id = c.org_id
              where n.client_key = $1",
        )
        .bind(client_key)
        .fetch_optional(&mut *self.connection().await?)
        .await?;
        let Some(row) = row else { return Ok(None) };
        Ok(Some(StoredClient {
            caller: CallerRow::from_row(&row)?.into_caller(Credential::OAuthClient(client_key.to_owned()))?,
            secret_hash: row.try_get("secret_hash")?,
            issuer: row.try_get("issuer")?,
            token_ttl_seconds: row.try_get("token_ttl_seconds")?,
            disabled: row.try_get("disabled")?,
            tokens_from: row
                .try_get::<Option<jiff_sqlx::Timestamp>, _>("tokens_from")?
                .map(jiff_sqlx::Timestamp::to_jiff),
            rate_limit: rate_limit(&row)?,
        }))
    }

    /// The tills or stores of this name or code in the organisation. Two at most: two are as ambiguous as more.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn targets(&self, org_id: OrgId, target_type: TargetType, code: &str) -> Result<Vec<Target>, DbError> {
        let rows = sqlx::query(target_query(target_type))
            .bind(org_id.0)
            .bind(code)
            .fetch_all(&mut *self.connection().await?)
            .await?;
        rows.iter()
            .map(|row| {
                let access = Access::parse(row.try_get("access")?).ok_or_else(|| unknown_value("access"))?;
                Ok(Target {
                    till_id: row.try_get("till_id")?,
                    store_id: StoreId(row.try_get("store_id")?),
                    access: if row.try_get("disabled")? { Access::None } else { access },
                })
            })
            .collect()
    }

    /// The external issuers of this name: one row for each organisation that accepts it.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn token_issuers(&self, issuer: &str) -> Result<Vec<StoredTokenIssuer>, DbError> {
        let rows = sqlx::query(
            "select org_id, issuer, audience, jwks_url, client_claim, algorithms from token_issuer
              where issuer = $1 order by org_id",
        )
        .bind(issuer)
        .fetch_all(&mut *self.connection().await?)
        .await?;
        rows.iter()
            .map(|row| {
                Ok(StoredTokenIssuer {
                    org_id: OrgId(row.try_get("org_id")?),
                    issuer: row.try_get("issuer")?,
                    audience: row.try_get("audience")?,
                    jwks_url: row.try_get("jwks_url")?,
                    client_claim: row.try_get("client_claim")?,
                    algorithms: row.try_get("algorithms")?,
                })
            })
            .collect()
    }
}

/// Selects stores by the text in this column.
macro_rules! stores_by {
    ($column:literal) => {
        concat!(
            "select null::text as till_id, s.store_id, coalesce(s.access, o.default_access) as access, false as disabled
               from store s
               join organisation o on o.org_id = s.org_id
              where s.org_id = $1 and s.",
            $column,
            " = $2 limit 2"
        )
    };
}

/// Selects the targets by the text in the column of this type. Each of the columns has an index.
const fn target_query(target_type: TargetType) -> &'static str {
    match target_type {
        TargetType::Till => {
            "select t.till_id, t.store_id, coalesce(t.access, s.access, o.default_access) as access, t.disabled
               from till t
               join store s on s.org_id = t.org_id and s.store_id = t.store_id
               join organisation o on o.org_id = t.org_id
              where t.org_id = $1 and t.till_id = $2"
        }
        TargetType::StoreCode => stores_by!("effective_code"),
        TargetType::StoreName => stores_by!("name"),
        TargetType::StoreExternalId => stores_by!("external_id"),
        TargetType::StoreExternalId1 => stores_by!("external_id_1"),
        TargetType::StoreExternalId2 => stores_by!("external_id_2"),
    }
}

fn rate_limit(row: &PgRow) -> Result<Option<RateLimit>, DbError> {
    Ok(row.try_get::<Option<i32>, _>("rate_limit_per_minute")?.map(RateLimit::from_per_minute))
}
