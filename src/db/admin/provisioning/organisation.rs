use sqlx::Row;

use super::columns::{access, rate_limit};
use super::transaction::Provisioning;
use crate::db::error::{DbError, unknown_value};
use crate::model::{CustomerPolicy, OrgId, OrganisationSettings, RateLimit};

impl Provisioning {
    pub(super) async fn settings(&mut self, org_id: OrgId) -> Result<Option<OrganisationSettings>, DbError> {
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

    /// Writes the organisation's own settings under a new revision: decisions under the earlier one become stale.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn put_organisation(&mut self, id: OrgId, settings: &OrganisationSettings) -> Result<(), DbError> {
        sqlx::query(PUT_ORGANISATION)
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
}

const PUT_ORGANISATION: &str = "
    with clock as (select (extract(epoch from clock_timestamp()) * 1000)::bigint as now)
    insert into organisation as o (
        org_id, name, time_zone, customer_policy, default_access, rate_limit_per_minute, natural_key, revision, recent_revisions)
    select $1, $2, $3, $4, $5, $6, $7, c.now, array[c.now] from clock c
    on conflict (org_id) do update
       set name = excluded.name, time_zone = excluded.time_zone, customer_policy = excluded.customer_policy,
           default_access = excluded.default_access, rate_limit_per_minute = excluded.rate_limit_per_minute,
           natural_key = excluded.natural_key, revision = greatest(excluded.revision, o.revision + 1),
           recent_revisions = (greatest(excluded.revision, o.revision + 1) || o.recent_revisions)[1:32]";
