//! Reading and writing an organisation's settings, all of it within one transaction of `apply`.
//!
//! What is to be changed is decided in `provisioning`. Nothing is ever deleted but what derives from settings.

use std::collections::BTreeMap;

use jiff_sqlx::ToSqlx;
use sqlx::postgres::{PgConnectOptions, PgRow};
use sqlx::{ConnectOptions, Connection, PgConnection, Row};

use super::DbError;
use super::changes::notify;
use super::customers::{CustomerLookup, CustomerRow};
use super::rows::{series_from, unknown_value};
use crate::model::{
    Access, ClientHandling, CodeShape, CustomerId, CustomerPlan, CustomerPolicy, IdentifierPlan, OrgId,
    OrganisationPlan, RateLimit, Series, SeriesId, StoreId, StorePlan, TokenAlgorithm, TokenIssuerPlan,
};

/// An organisation's own settings, without what is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrganisationSettings {
    /// For people.
    pub name: String,
    /// An IANA name.
    pub time_zone: String,
    /// Who may receive coupons.
    pub customer_policy: CustomerPolicy,
    /// What a store's tills may do where the store says nothing.
    pub default_access: Access,
    /// Of each till and client that has none of its own. `None`: the service's.
    pub rate_limit: Option<RateLimit>,
    /// Whether a customer, a series and what caused the issuance identify it.
    pub natural_key: bool,
}

impl From<&OrganisationPlan> for OrganisationSettings {
    fn from(plan: &OrganisationPlan) -> Self {
        Self {
            name: plan.name.clone(),
            time_zone: plan.time_zone.clone(),
            customer_policy: plan.customer_policy,
            default_access: plan.default_access,
            rate_limit: plan.rate_limit,
            natural_key: plan.natural_key,
        }
    }
}

/// A till as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the columns of table till")]
pub struct StoredTillSettings {
    pub store_id: StoreId,
    pub access: Option<Access>,
    /// `None`, to be written: whatever is stored by then.
    pub disabled: Option<bool>,
    pub rate_limit: Option<RateLimit>,
    pub password_hash: String,
}

/// An OAuth client as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the columns of table oauth_client")]
pub struct StoredClientSettings {
    pub till_id: String,
    pub access: Access,
    /// `None`, to be written: whatever is stored by then.
    pub disabled: Option<bool>,
    pub rate_limit: Option<RateLimit>,
    pub proof: StoredProof,
}

/// How a client proves that it is itself, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the columns of table oauth_client")]
pub enum StoredProof {
    Secret {
        secret_hash: String,
        token_ttl_seconds: i32,
    },
    /// By the tokens of this issuer.
    Issuer(String),
}

/// A code that is one customer's, or will be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PersonalCode {
    /// In its canonical form.
    pub code: String,
    /// The series that has issued it, or whose pool it is in.
    pub series_id: SeriesId,
    /// Whether it is a coupon's.
    pub is_issued: bool,
}

/// What is stored of an organisation.
#[derive(Debug, Default)]
#[expect(missing_docs, reason = "the tables of the same names")]
pub struct StoredOrganisation {
    pub settings: Option<OrganisationSettings>,
    pub stores: BTreeMap<StoreId, StorePlan>,
    pub tills: BTreeMap<String, StoredTillSettings>,
    pub token_issuers: BTreeMap<String, TokenIssuerPlan>,
    pub oauth_clients: BTreeMap<String, StoredClientSettings>,
    /// Only those that the file lists, and those that have an identifier which it gives.
    pub customers: BTreeMap<CustomerId, CustomerLookup>,
    pub series: BTreeMap<SeriesId, Series>,
}

/// Stores a name in the table of its kind, and says whether the organisation holds it.
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

/// The transaction of one `apply`.
pub struct Provisioning {
    connection: PgConnection,
}

impl Provisioning {
    /// Begins the transaction.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn begin(connect: &PgConnectOptions) -> Result<Self, DbError> {
        let mut connection = connect.connect().await?;
        sqlx::query("begin isolation level read committed").execute(&mut connection).await?;
        // Two applies at once would each see the other's organisations half way.
        sqlx::query("select pg_advisory_xact_lock(20190, 0)").execute(&mut connection).await?;
        Ok(Self { connection })
    }

    /// Makes all of it take effect at once.
    ///
    /// # Errors
    /// When the database cannot be asked; nothing is changed then, unless the answer itself was lost.
    pub async fn commit(mut self) -> Result<(), DbError> {
        sqlx::query("commit").execute(&mut self.connection).await?;
        self.connection.close().await?;
        Ok(())
    }

    /// Waits until none of the organisation's coupons is half way, and keeps new ones waiting until the end.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn pause_issuing(&mut self, org_id: OrgId) -> Result<(), DbError> {
        sqlx::query("select lock_organisation_1($1)").bind(org_id.0).execute(&mut self.connection).await?;
        Ok(())
    }

    /// Waits until nothing is being uploaded into the organisation's pools, and keeps uploads waiting until the end: what is checked of
    /// codes from here on holds until then.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn pause_uploads(&mut self, org_id: OrgId) -> Result<(), DbError> {
        sqlx::query("select lock_codes_1($1)").bind(org_id.0).execute(&mut self.connection).await?;
        Ok(())
    }

    /// Tells every replica that credentials change, once all of it takes effect.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn notify_credentials(&mut self) -> Result<(), DbError> {
        notify(&mut self.connection).await
    }

    /// Every organisation that is stored.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn organisations(&mut self) -> Result<Vec<OrgId>, DbError> {
        let ids: Vec<i64> = sqlx::query_scalar("select org_id from organisation order by org_id")
            .fetch_all(&mut self.connection)
            .await?;
        Ok(ids.into_iter().map(OrgId).collect())
    }

    /// All that is stored, and of the customers those that the plan is about.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn stored(&mut self, plan: &OrganisationPlan) -> Result<StoredOrganisation, DbError> {
        let org_id = plan.id;
        Ok(StoredOrganisation {
            settings: self.settings(org_id).await?,
            stores: self.stores(org_id).await?,
            tills: self.tills(org_id).await?,
            token_issuers: self.token_issuers(org_id).await?,
            oauth_clients: self.oauth_clients(org_id).await?,
            customers: self.customers(org_id, &plan.customers).await?,
            series: self.series(org_id).await?,
        })
    }

    async fn settings(&mut self, org_id: OrgId) -> Result<Option<OrganisationSettings>, DbError> {
        let row = sqlx::query(
            "select name, time_zone, customer_policy, default_access, rate_limit_per_minute, natural_key
               from organisation where org_id = $1",
        )
        .bind(org_id.0)
        .fetch_optional(&mut self.connection)
        .await?;
        let Some(row) = row else { return Ok(None) };
        Ok(Some(OrganisationSettings {
            name: row.try_get("name")?,
            time_zone: row.try_get("time_zone")?,
            customer_policy: CustomerPolicy::parse(row.try_get("customer_policy")?)
                .ok_or_else(|| unknown_value("customer_policy"))?,
            default_access: access(row.try_get("default_access")?)?,
            rate_limit: rate_limit(&row)?,
            natural_key: row.try_get("natural_key")?,
        }))
    }

    async fn stores(&mut self, org_id: OrgId) -> Result<BTreeMap<StoreId, StorePlan>, DbError> {
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

    async fn tills(&mut self, org_id: OrgId) -> Result<BTreeMap<String, StoredTillSettings>, DbError> {
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

    async fn token_issuers(&mut self, org_id: OrgId) -> Result<BTreeMap<String, TokenIssuerPlan>, DbError> {
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

    async fn oauth_clients(&mut self, org_id: OrgId) -> Result<BTreeMap<String, StoredClientSettings>, DbError> {
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

    /// Those that are listed, registered or made on first use, and those who have an identifier that is given to another.
    async fn customers(
        &mut self,
        org_id: OrgId,
        listed: &[CustomerPlan],
    ) -> Result<BTreeMap<CustomerId, CustomerLookup>, DbError> {
        let ids: Vec<&str> = listed.iter().map(|customer| customer.id.0.as_str()).collect();
        let [mobiles, emails, external_ids] = given(|| listed.iter());
        let rows: Vec<CustomerRow> = sqlx::query_as(
            "select customer_id, mobile, email, external_id, registered from customer
              where org_id = $1
                and (customer_id = any ($2) or mobile = any ($3) or email = any ($4) or external_id = any ($5))",
        )
        .bind(org_id.0)
        .bind(ids)
        .bind(mobiles)
        .bind(emails)
        .bind(external_ids)
        .fetch_all(&mut self.connection)
        .await?;
        Ok(rows.into_iter().map(CustomerLookup::from).map(|customer| (customer.id.clone(), customer)).collect())
    }

    async fn series(&mut self, org_id: OrgId) -> Result<BTreeMap<SeriesId, Series>, DbError> {
        let rows = sqlx::query("select * from series where org_id = $1")
            .bind(org_id.0)
            .fetch_all(&mut self.connection)
            .await?;
        rows.iter().map(|row| series_from(row).map(|series| (series.id, series))).collect()
    }

    /// Every generic code that a series of the organisation has, or had: its coupons have it still.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn generic_codes(&mut self, org_id: OrgId) -> Result<Vec<(SeriesId, String)>, DbError> {
        let rows: Vec<(i64, String)> = sqlx::query_as(
            "select distinct series_id, generic_code from series_version
              where org_id = $1 and generic_code is not null order by series_id, generic_code",
        )
        .bind(org_id.0)
        .fetch_all(&mut self.connection)
        .await?;
        Ok(rows.into_iter().map(|(id, code)| (SeriesId(id), code)).collect())
    }

    /// Those of these codes, in their canonical form, that one customer has or will have.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn personal_codes(&mut self, org_id: OrgId, codes: &[&str]) -> Result<Vec<PersonalCode>, DbError> {
        // In one statement: a code goes from a pool to a coupon in one transaction, and is never seen in neither.
        let rows: Vec<(String, i64, bool)> = sqlx::query_as(
            "select p.code, p.series_id, false from pool_code p where p.org_id = $1 and p.code = any ($2)
              union all
             select c.code, c.series_id, true from coupon c where c.org_id = $1 and c.code = any ($2)",
        )
        .bind(org_id.0)
        .bind(codes)
        .fetch_all(&mut self.connection)
        .await?;
        let personal = |(code, series_id, is_issued)| PersonalCode { code, series_id: SeriesId(series_id), is_issued };
        Ok(rows.into_iter().map(personal).collect())
    }

    /// An uploaded code that a draw of this shape could give: its series, and its first characters, for people. Reads all uploaded
    /// codes that begin with the prefix, so all of the organisation's if there is none.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn drawable_pool_code(
        &mut self,
        org_id: OrgId,
        shape: &CodeShape,
    ) -> Result<Option<(SeriesId, String)>, DbError> {
        let length = shape.coupon_prefix.len() + usize::from(shape.random_code_length) + shape.coupon_suffix.len();
        let found: Option<(i64, String)> = sqlx::query_as(
            "select p.series_id, left(p.code, least(4, length(p.code) / 2)) || '…' from pool_code p
              where p.org_id = $1 and p.code ^@ $2 and length(p.code) = $3 and right(p.code, length($4)) = $4
                and translate(substr(p.code, length($2) + 1, $5), $6, '') = ''
              limit 1",
        )
        .bind(org_id.0)
        .bind(&shape.coupon_prefix)
        .bind(i32::try_from(length).unwrap_or(i32::MAX))
        .bind(&shape.coupon_suffix)
        .bind(i32::from(shape.random_code_length))
        .bind(shape.alphabet())
        .fetch_optional(&mut self.connection)
        .await?;
        Ok(found.map(|(series_id, code)| (SeriesId(series_id), code)))
    }

    /// Writes the organisation's own settings, and makes every decision under the earlier ones stale.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn put_organisation(&mut self, id: OrgId, settings: &OrganisationSettings) -> Result<(), DbError> {
        sqlx::query(
            "insert into organisation as o (
                 org_id, name, time_zone, customer_policy, default_access, rate_limit_per_minute, natural_key)
             values ($1, $2, $3, $4, $5, $6, $7)
             on conflict (org_id) do update
                set name = excluded.name, time_zone = excluded.time_zone, customer_policy = excluded.customer_policy,
                    default_access = excluded.default_access, rate_limit_per_minute = excluded.rate_limit_per_minute,
                    natural_key = excluded.natural_key, revision = o.revision + 1",
        )
        .bind(id.0)
        .bind(&settings.name)
        .bind(&settings.time_zone)
        .bind(settings.customer_policy.name())
        .bind(settings.default_access.name())
        .bind(settings.rate_limit.map(RateLimit::stored))
        .bind(settings.natural_key)
        .execute(&mut self.connection)
        .await?;
        Ok(())
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

    /// Makes the name of a till the organisation's; false: it is another's.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn claim_till_name(&mut self, org_id: OrgId, id: &str) -> Result<bool, DbError> {
        self.claim_name(claim_name!("till_name", "till_id"), org_id, id).await
    }

    /// Makes the key of an OAuth client the organisation's; false: it is another's.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn claim_client_key(&mut self, org_id: OrgId, key: &str) -> Result<bool, DbError> {
        self.claim_name(claim_name!("client_name", "client_key"), org_id, key).await
    }

    /// Only `apply` writes names, and one runs at a time: the holder is in one of the two places.
    async fn claim_name(&mut self, statement: &'static str, org_id: OrgId, name: &str) -> Result<bool, DbError> {
        let is_mine = sqlx::query_scalar(statement).bind(org_id.0).bind(name).fetch_one(&mut self.connection).await?;
        Ok(is_mine)
    }

    /// Writes a till, whose name is the organisation's ([`claim_till_name`](Self::claim_till_name)).
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

    /// Writes an issuer of tokens.
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

    /// Writes an OAuth client, whose key is the organisation's ([`claim_client_key`](Self::claim_client_key)). Its issuer, if it has
    /// one, must be there.
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
        // Without a secret the time to live means nothing.
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

    /// Registers customers, and writes their identifiers as a set: one may have what another gives up.
    ///
    /// # Errors
    /// When the database cannot be asked, or an identifier is another customer's (see [`is_overtaken`]).
    pub async fn put_customers(&mut self, org_id: OrgId, customers: &[&CustomerPlan]) -> Result<(), DbError> {
        if customers.is_empty() {
            return Ok(());
        }
        let ids: Vec<&str> = customers.iter().map(|customer| customer.id.0.as_str()).collect();
        // Locks each of them: no request completes one between the statements below.
        sqlx::query(
            "insert into customer (org_id, customer_id, registered) select $1, unnest($2::text[]), true
             on conflict (org_id, customer_id) do update set registered = true",
        )
        .bind(org_id.0)
        .bind(&ids)
        .execute(&mut self.connection)
        .await?;
        self.release_identifiers(org_id, &ids, customers).await?;
        self.give_identifiers(org_id, &ids, customers).await
    }

    /// Takes from each customer what it does not keep, before any is given another's. Deferred constraints would do with one
    /// statement, but `on conflict do nothing`, by which requests make customers, fails on a table that has one.
    async fn release_identifiers(
        &mut self,
        org_id: OrgId,
        ids: &[&str],
        customers: &[&CustomerPlan],
    ) -> Result<(), DbError> {
        let is_kept = |index: usize| -> Vec<bool> {
            customers.iter().map(|customer| customer.identifiers[index] == IdentifierPlan::Kept).collect()
        };
        sqlx::query(
            "update customer c
                set mobile = case when t.keeps_mobile then c.mobile end, email = case when t.keeps_email then c.email end,
                    external_id = case when t.keeps_external_id then c.external_id end
               from unnest($2::text[], $3::boolean[], $4::boolean[], $5::boolean[])
                    as t (customer_id, keeps_mobile, keeps_email, keeps_external_id)
              where c.org_id = $1 and c.customer_id = t.customer_id
                and (c.mobile is not null and not t.keeps_mobile or c.email is not null and not t.keeps_email
                     or c.external_id is not null and not t.keeps_external_id)",
        )
        .bind(org_id.0)
        .bind(ids)
        .bind(is_kept(0))
        .bind(is_kept(1))
        .bind(is_kept(2))
        .execute(&mut self.connection)
        .await?;
        Ok(())
    }

    async fn give_identifiers(
        &mut self,
        org_id: OrgId,
        ids: &[&str],
        customers: &[&CustomerPlan],
    ) -> Result<(), DbError> {
        let [mobiles, emails, external_ids] = given(|| customers.iter().copied());
        sqlx::query(
            "update customer c
                set mobile = coalesce(t.mobile, c.mobile), email = coalesce(t.email, c.email),
                    external_id = coalesce(t.external_id, c.external_id)
               from unnest($2::text[], $3::text[], $4::text[], $5::text[]) as t (customer_id, mobile, email, external_id)
              where c.org_id = $1 and c.customer_id = t.customer_id
                and (t.mobile is not null or t.email is not null or t.external_id is not null)",
        )
        .bind(org_id.0)
        .bind(ids)
        .bind(mobiles)
        .bind(emails)
        .bind(external_ids)
        .execute(&mut self.connection)
        .await?;
        Ok(())
    }

    /// Writes a series, and when what limits it changed last: [`pause_issuing`](Self::pause_issuing) comes first.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn put_series(&mut self, org_id: OrgId, series: &Series) -> Result<(), DbError> {
        let (shape, generic_code) = code_columns(&series.client_handling);
        sqlx::query(PUT_SERIES)
            .bind(org_id.0)
            .bind(series.id.0)
            .bind(&series.face.description)
            .bind(&series.face.info)
            .bind(&series.face.discount_code)
            .bind(series.face.discount_type.name())
            .bind(series.face.discount_value)
            .bind(series.face.discount_upto)
            .bind(series.valid_till_date.to_sqlx())
            .bind(series.expiry_strategy.name())
            .bind(series.expiry_strategy.value())
            .bind(series.redemption_valid_from.map(ToSqlx::to_sqlx))
            .bind(series.client_handling.name())
            .bind(shape.alpha_numeric)
            .bind(i32::from(shape.random_code_length))
            .bind(shape.coupon_prefix)
            .bind(shape.coupon_suffix)
            .bind(generic_code)
            .bind(series.max_create)
            .bind(series.is_multiple_vouchers_per_user_allowed)
            .bind(series.max_vouchers_per_user)
            .bind(series.do_not_resend_existing_voucher)
            .bind(series.min_days_between_vouchers)
            .bind(series.mutual_exclusive_series_ids.iter().map(|id| id.0).collect::<Vec<_>>())
            .bind(series.store_ids.iter().map(|id| id.0).collect::<Vec<_>>())
            .bind(series.externally_managed)
            .execute(&mut self.connection)
            .await?;
        Ok(())
    }

    /// Brings what derives from the settings up to them: the exclusions of both sides, a counter for each series that has a cap and
    /// none yet, and a version for each series of which answers now show something else. The coupons of a series that gets a counter
    /// are counted, which reads all coupons once.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn derive(&mut self, org_id: OrgId) -> Result<(), DbError> {
        for statement in [
            "delete from series_exclusion where org_id = $1",
            "insert into series_exclusion (org_id, series_id, excluded_series_id)
             select s.org_id, s.series_id, other from series s, unnest(s.mutual_exclusive_series_ids) other where s.org_id = $1
             union
             select s.org_id, other, s.series_id from series s, unnest(s.mutual_exclusive_series_ids) other where s.org_id = $1",
            "delete from series_counter n using series s
              where n.org_id = $1 and s.org_id = n.org_id and s.series_id = n.series_id and s.max_create is null",
            "with new as (
                 select s.series_id from series s where s.org_id = $1 and s.max_create is not null
                 except
                 select n.series_id from series_counter n where n.org_id = $1),
             counted as (
                 select c.series_id, count(*) as issued from coupon c
                  where c.org_id = $1 and c.series_id in (select series_id from new) group by c.series_id)
             insert into series_counter (org_id, series_id, issued)
             select $1, n.series_id, coalesce(c.issued, 0) from new n left join counted c using (series_id)",
            "with new as (
                 insert into series_version (
                     org_id, series_id, version, description, info, discount_code, discount_type, discount_value, discount_upto,
                     generic_code, time_zone)
                 select s.org_id, s.series_id, s.version + 1, s.description, s.info, s.discount_code, s.discount_type,
                        s.discount_value, s.discount_upto, s.generic_code, o.time_zone
                   from organisation o
                   join series s on s.org_id = o.org_id
                   left join series_version v
                     on v.org_id = s.org_id and v.series_id = s.series_id and v.version = s.version
                  where o.org_id = $1
                    and (v.description, v.info, v.discount_code, v.discount_type, v.discount_value, v.discount_upto,
                         v.generic_code, v.time_zone)
                        is distinct from
                        (s.description, s.info, s.discount_code, s.discount_type, s.discount_value, s.discount_upto,
                         s.generic_code, o.time_zone)
                 returning series_id, version)
             update series s set version = n.version from new n where s.org_id = $1 and s.series_id = n.series_id",
        ] {
            sqlx::query(statement).bind(org_id.0).execute(&mut self.connection).await?;
        }
        Ok(())
    }
}

/// The identifiers that each of these customers is given, in the order of [`IdentifierPlan::NAMES`].
fn given<'a, I: Iterator<Item = &'a CustomerPlan>>(customers: impl Fn() -> I) -> [Vec<Option<&'a str>>; 3] {
    std::array::from_fn(|index| {
        let value = |customer: &'a CustomerPlan| match &customer.identifiers[index] {
            IdentifierPlan::Given { value, .. } => Some(value.as_str()),
            IdentifierPlan::Kept | IdentifierPlan::Withdrawn => None,
        };
        customers().map(value).collect()
    })
}

/// Whether customers could not be written because a request gave one of the identifiers to somebody meanwhile: it has it, or the two
/// waited for each other.
#[must_use]
pub fn is_overtaken(error: &DbError) -> bool {
    let DbError::Failed(sqlx::Error::Database(database)) = error else { return false };
    let is_deadlock = database.code().is_some_and(|code| code == "40P01");
    is_deadlock || matches!(database.constraint(), Some("customer_mobile" | "customer_email" | "customer_external_id"))
}

const PUT_SERIES: &str = "
    insert into series as s (
        org_id, series_id, description, info, discount_code, discount_type, discount_value, discount_upto,
        valid_till_date, expiry_strategy_type, expiry_strategy_value, redemption_valid_from, client_handling_type,
        alpha_numeric, random_code_length, coupon_prefix, coupon_suffix, generic_code, max_create,
        is_multiple_vouchers_per_user_allowed, max_vouchers_per_user, do_not_resend_existing_voucher,
        min_days_between_vouchers, mutual_exclusive_series_ids, store_ids, externally_managed)
    values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24,
            $25, $26)
    on conflict (org_id, series_id) do update set
        description = excluded.description, info = excluded.info, discount_code = excluded.discount_code,
        discount_type = excluded.discount_type, discount_value = excluded.discount_value,
        discount_upto = excluded.discount_upto, valid_till_date = excluded.valid_till_date,
        expiry_strategy_type = excluded.expiry_strategy_type, expiry_strategy_value = excluded.expiry_strategy_value,
        redemption_valid_from = excluded.redemption_valid_from, client_handling_type = excluded.client_handling_type,
        alpha_numeric = excluded.alpha_numeric, random_code_length = excluded.random_code_length,
        coupon_prefix = excluded.coupon_prefix, coupon_suffix = excluded.coupon_suffix,
        generic_code = excluded.generic_code, max_create = excluded.max_create,
        is_multiple_vouchers_per_user_allowed = excluded.is_multiple_vouchers_per_user_allowed,
        max_vouchers_per_user = excluded.max_vouchers_per_user,
        do_not_resend_existing_voucher = excluded.do_not_resend_existing_voucher,
        min_days_between_vouchers = excluded.min_days_between_vouchers,
        mutual_exclusive_series_ids = excluded.mutual_exclusive_series_ids, store_ids = excluded.store_ids,
        externally_managed = excluded.externally_managed,
        limits_changed_at = case
            when (s.max_create, s.is_multiple_vouchers_per_user_allowed, s.max_vouchers_per_user,
                  s.do_not_resend_existing_voucher, s.min_days_between_vouchers, s.mutual_exclusive_series_ids)
                 is distinct from
                 (excluded.max_create, excluded.is_multiple_vouchers_per_user_allowed, excluded.max_vouchers_per_user,
                  excluded.do_not_resend_existing_voucher, excluded.min_days_between_vouchers,
                  excluded.mutual_exclusive_series_ids)
            then clock_timestamp() else s.limits_changed_at end";

/// The columns that say where codes come from; those that do not apply hold what means nothing.
fn code_columns(handling: &ClientHandling) -> (CodeShape, Option<String>) {
    let nothing = CodeShape {
        alpha_numeric: true,
        random_code_length: 0,
        coupon_prefix: String::new(),
        coupon_suffix: String::new(),
    };
    match handling {
        ClientHandling::Generated(shape) => (shape.clone(), None),
        ClientHandling::Generic(code) => (nothing, Some(code.clone())),
        ClientHandling::Pool => (nothing, None),
    }
}

fn access(name: &str) -> Result<Access, DbError> {
    Access::parse(name).ok_or_else(|| unknown_value("access"))
}

fn access_if_any(row: &PgRow) -> Result<Option<Access>, DbError> {
    row.try_get::<Option<&str>, _>("access")?.map(access).transpose()
}

fn rate_limit(row: &PgRow) -> Result<Option<RateLimit>, DbError> {
    Ok(row.try_get::<Option<i32>, _>("rate_limit_per_minute")?.map(RateLimit::of))
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
