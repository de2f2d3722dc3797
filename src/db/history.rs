use std::collections::HashMap;
use std::sync::Arc;

use jiff::tz::TimeZone;
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::connection::Db;
use super::error::DbError;
use super::keyed_requests::{Claim, RequestName};
use super::settings_rows::{OrganisationRow, series_if_any, zone_from};
use crate::model::{CustomerId, HeldCoupon, IssuanceHistory, OrgId, Organisation, Revision, Series, SeriesId};

/// The settings of a series, and the revision of the organisation at which they were read.
#[derive(Debug, Clone)]
pub struct SeriesAtRevision {
    /// The settings of the series.
    pub series: Arc<Series>,
    /// The organisation's revision.
    pub revision: Revision,
    /// The version of the series that a new coupon shows.
    pub version: i32,
    /// The time zone of that version.
    pub zone: TimeZone,
    /// Whether the series excludes another, or another excludes it.
    pub is_exclusive: bool,
}

impl SeriesAtRevision {
    /// Whether the settings suffice to decide: the write guards the rest.
    #[must_use]
    pub fn needs_no_history(&self) -> bool {
        !self.is_exclusive && !self.series.depends_on_history()
    }
}

/// Everything that decides on one series for one customer, from one database snapshot.
#[derive(Debug, Clone)]
pub struct SeriesHistory {
    /// The settings.
    pub series: SeriesAtRevision,
    /// What the customer and the series have received.
    pub history: IssuanceHistory,
    /// The coupon that was issued under the request's natural key. It comes from the same snapshot as the rest, so that a request is
    /// never refused because of the coupon it asks for.
    pub issued_coupon_id: Option<i64>,
}

/// Everything that decides on the series of a request, from one database snapshot.
#[derive(Debug)]
pub struct HistorySnapshot {
    /// The organisation's revision.
    pub revision: Revision,
    /// Whether the claim still holds its key. It comes from the same snapshot as the rest: if another attempt has taken over, the
    /// customer's newest coupon may be the one that this request asks for.
    pub holds_claim: bool,
    /// The series that exist.
    pub series: HashMap<SeriesId, SeriesHistory>,
}

impl Db {
    /// The organisation's settings; `None` if there is none with this key.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn organisation(&self, org_id: OrgId) -> Result<Option<Organisation>, DbError> {
        let row: Option<OrganisationRow> = sqlx::query_as(
            "select org_id, revision, time_zone, customer_policy, natural_key from organisation where org_id = $1",
        )
        .bind(org_id.0)
        .fetch_optional(&mut *self.connection().await?)
        .await?;
        row.map(Organisation::try_from).transpose()
    }

    /// The history of each of these series. With a natural key, also the coupons issued under it; with a claim, also whether the claim
    /// still holds its key.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn history(
        &self,
        org_id: OrgId,
        customer_id: &CustomerId,
        series_ids: &[SeriesId],
        natural_key: Option<Uuid>,
        claim: Option<(RequestName, Claim)>,
    ) -> Result<HistorySnapshot, DbError> {
        let ids: Vec<i64> = series_ids.iter().map(|id| id.0).collect();
        let rows = sqlx::query(HISTORY)
            .bind(org_id.0)
            .bind(&customer_id.0)
            .bind(ids)
            .bind(natural_key)
            .bind(claim.map(|(request, _)| request.key_hash))
            .bind(claim.map(|(_, claim)| claim.first_coupon_id))
            .bind(claim.map(|(_, claim)| claim.attempt))
            .fetch_all(&mut *self.connection().await?)
            .await?;
        let mut histories = HashMap::with_capacity(rows.len());
        let (mut revision, mut holds_claim) = (Revision(0), true);
        for row in rows {
            revision = Revision(row.try_get("revision")?);
            holds_claim = row.try_get("holds_claim")?;
            if let Some(series) = series_if_any(&row)? {
                let id = series.id;
                let at_revision = SeriesAtRevision {
                    series: Arc::new(series),
                    revision,
                    version: row.try_get("version")?,
                    zone: zone_from(&row)?,
                    is_exclusive: row.try_get("is_exclusive")?,
                };
                let issued_coupon_id = row.try_get("issued_coupon_id")?;
                let history = history_from(&row)?;
                histories.insert(id, SeriesHistory { series: at_revision, history, issued_coupon_id });
            }
        }
        Ok(HistorySnapshot { revision, holds_claim, series: histories })
    }
}

// Names each column: a prepared `select *` fails once the migration of a newer replica adds a column.
const HISTORY: &str = "
    select s.series_id, s.description, s.info, s.discount_code, s.discount_type, s.discount_value, s.discount_upto,
           s.valid_till_date, s.expiry_strategy_type, s.expiry_strategy_value, s.redemption_valid_from,
           s.client_handling_type, s.alpha_numeric, s.random_code_length, s.coupon_prefix, s.coupon_suffix,
           s.generic_code, s.max_create, s.is_multiple_vouchers_per_user_allowed, s.max_vouchers_per_user,
           s.do_not_resend_existing_voucher, s.min_days_between_vouchers, s.mutual_exclusive_series_ids, s.store_ids,
           s.externally_managed, s.version, o.time_zone, o.revision,
           exists (select from series_exclusion x
                    where x.org_id = s.org_id and x.series_id = s.series_id) as is_exclusive,
           exists (select from series_exclusion x
                     join coupon c on c.org_id = x.org_id and c.customer_id = $2 and c.series_id = x.excluded_series_id
                    where x.org_id = s.org_id and x.series_id = s.series_id and c.revoked_at is null) as holds_excluded,
           coalesce(n.issued, 0) as issued,
           s.client_handling_type = 'DISC_CODE_PIN' and (
               exists (select from pool_code p
                        where p.org_id = s.org_id and p.series_id = s.series_id and p.customer_id = $2)
            or exists (select from pool_code p
                        where p.org_id = s.org_id and p.series_id = s.series_id
                          and p.position > coalesce((select g.position from pool_counter g
                                                      where g.org_id = s.org_id and g.series_id = s.series_id
                                                      order by g.position desc limit 1), 0))) as pool_has_code,
           received.count, received.last_ordinal, received.last_issued_at,
           held.coupon_id, held.series_version, held.code, held.expires_on, held.redemption_count,
           (select i.coupon_id from natural_issuance i
             where i.org_id = s.org_id and i.natural_key = $4 and i.series_id = s.series_id) as issued_coupon_id,
           $5::uuid is null or exists (
               select from keyed_request r
                where r.org_id = $1 and r.key_hash = $5 and r.first_coupon_id = $6::bigint and r.attempt = $7::integer) as holds_claim
      from organisation o
      -- An outer join: the revision is returned even if none of the series exists.
      left join series s on s.org_id = o.org_id and s.series_id = any ($3)
      left join lateral (
           select n.issued from series_counter n
            where n.org_id = s.org_id and n.series_id = s.series_id
            order by n.issued desc limit 1) n on true
     cross join lateral (
           -- Revoked coupons count only towards the next ordinal.
           select count(*) filter (where c.revoked_at is null)::integer as count, coalesce(max(c.ordinal), 0) as last_ordinal,
                  max(c.issued_at) filter (where c.revoked_at is null) as last_issued_at
             from coupon c
            where c.org_id = s.org_id and c.customer_id = $2 and c.series_id = s.series_id) received
      left join lateral (
           select c.coupon_id, c.series_version, coalesce(c.uploaded_code, c.code, v.generic_code) as code, c.expires_on,
                  coalesce(c.redemption_count, 0) as redemption_count
             from coupon c
             join series_version v on v.org_id = c.org_id and v.series_id = c.series_id and v.version = c.series_version
            where c.org_id = s.org_id and c.customer_id = $2 and c.series_id = s.series_id and c.revoked_at is null
            order by c.expires_on desc, c.issued_at desc
            limit 1) held on true
     where o.org_id = $1";

fn history_from(row: &PgRow) -> Result<IssuanceHistory, DbError> {
    Ok(IssuanceHistory {
        received: row.try_get("count")?,
        last_ordinal: row.try_get("last_ordinal")?,
        last_issued_at: row
            .try_get::<Option<jiff_sqlx::Timestamp>, _>("last_issued_at")?
            .map(jiff_sqlx::Timestamp::to_jiff),
        longest_valid: held_from(row)?,
        holds_excluded: row.try_get("holds_excluded")?,
        issued: row.try_get("issued")?,
        pool_has_code: row.try_get("pool_has_code")?,
    })
}

fn held_from(row: &PgRow) -> Result<Option<HeldCoupon>, DbError> {
    let Some(code) = row.try_get::<Option<String>, _>("code")? else { return Ok(None) };
    Ok(Some(HeldCoupon {
        coupon_id: row.try_get("coupon_id")?,
        series_version: row.try_get("series_version")?,
        code,
        expires_on: row.try_get::<jiff_sqlx::Date, _>("expires_on")?.to_jiff(),
        redemption_count: row.try_get("redemption_count")?,
    }))
}
