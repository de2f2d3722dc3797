use std::collections::HashMap;

use sqlx::postgres::{PgArguments, PgConnection, PgRow};
use sqlx::query::Query;
use sqlx::{Postgres, Row};
use uuid::Uuid;

use super::error::{DbError, unknown_value};
use super::keyed_requests::{Claim, RequestName};
use super::series_settings::SeriesAtRevision;
use crate::model::{ClientHandling, CustomerId, HeldCoupon, IssuanceHistory, OrgId, Revision, SeriesId};

/// A question about the history of one customer.
#[derive(Debug, Clone)]
pub struct HistoryLookup {
    /// The organisation.
    pub org_id: OrgId,
    /// The customer.
    pub customer_id: CustomerId,
    /// The series, each once.
    pub series: Vec<SeriesRules>,
    /// If given, the coupons that were issued under this natural key are looked up as well.
    pub natural_key: Option<Uuid>,
    /// If given, the answer says whether the claim still holds its key.
    pub claim: Option<(RequestName, Claim)>,
}

/// What the rules of a series need to know.
#[derive(Debug, Clone, Copy)]
#[expect(clippy::struct_excessive_bools, reason = "each saves a look-up of its own")]
pub struct SeriesRules {
    series_id: SeriesId,
    /// More coupons than this need not be counted.
    max_count: i32,
    is_exclusive: bool,
    has_cap: bool,
    has_pool: bool,
    has_gap: bool,
    may_resend: bool,
}

impl From<&SeriesAtRevision> for SeriesRules {
    fn from(at: &SeriesAtRevision) -> Self {
        let series = &at.series;
        Self {
            series_id: series.id,
            // One is enough to tell a first coupon from another one.
            max_count: series.max_vouchers_per_user.unwrap_or(1).max(1),
            is_exclusive: at.is_exclusive,
            has_cap: series.max_create.is_some(),
            has_pool: series.client_handling == ClientHandling::Pool,
            has_gap: series.min_days_between_vouchers.is_some(),
            may_resend: !series.do_not_resend_existing_voucher,
        }
    }
}

/// The history of a customer and a series.
#[derive(Debug, Clone)]
pub struct SeriesHistory {
    /// What the customer and the series have received.
    pub history: IssuanceHistory,
    /// The coupon that was issued under the request's natural key. It comes from the same snapshot as the rest, so that a request is
    /// never refused because of the coupon it asks for.
    pub issued_coupon_id: Option<i64>,
}

/// The answer to a [`HistoryLookup`], from one database snapshot.
#[derive(Debug)]
pub struct HistorySnapshot {
    /// The organisation's revision.
    pub revision: Revision,
    /// Whether the claim still holds its key. It comes from the same snapshot as the rest: if another attempt has taken over, the
    /// customer's newest coupon may be the one that this request asks for.
    pub holds_claim: bool,
    /// Whether everything in the snapshot was flushed already. If not, a coupon in it may be shown only after a flush.
    pub is_flushed: bool,
    /// The history of each series.
    pub series: HashMap<SeriesId, SeriesHistory>,
}

/// Answers the look-ups in one statement, in the same order.
pub(super) async fn read_histories(
    connection: &mut PgConnection,
    lookups: &[&HistoryLookup],
) -> Result<Vec<HistorySnapshot>, DbError> {
    let rows = query(lookups).fetch_all(connection).await?;
    let mut rows = rows.iter();
    let snapshot = |lookup: &&HistoryLookup| {
        let (mut revision, mut holds_claim, mut is_flushed) = (Revision(0), true, true);
        let mut series = HashMap::with_capacity(lookup.series.len());
        for (rules, row) in lookup.series.iter().zip(rows.by_ref()) {
            revision = Revision(row.try_get("revision")?);
            holds_claim = row.try_get("holds_claim")?;
            is_flushed = row.try_get("is_flushed")?;
            let history =
                SeriesHistory { history: history_from(row)?, issued_coupon_id: row.try_get("issued_coupon_id")? };
            series.insert(rules.series_id, history);
        }
        if series.len() < lookup.series.len() {
            return Err(unknown_value("history"));
        }
        Ok(HistorySnapshot { revision, holds_claim, is_flushed, series })
    };
    lookups.iter().map(snapshot).collect()
}

fn query(lookups: &[&HistoryLookup]) -> Query<'static, Postgres, PgArguments> {
    let wanted = || lookups.iter().flat_map(|lookup| lookup.series.iter().map(move |rules| (*lookup, rules)));
    let claim = |lookup: &HistoryLookup| lookup.claim.map(|(_, claim)| claim);
    sqlx::query(HISTORY)
        .bind(wanted().map(|(lookup, _)| lookup.org_id.0).collect::<Vec<_>>())
        .bind(wanted().map(|(lookup, _)| lookup.customer_id.0.clone()).collect::<Vec<_>>())
        .bind(wanted().map(|(_, rules)| rules.series_id.0).collect::<Vec<_>>())
        .bind(wanted().map(|(_, rules)| rules.max_count).collect::<Vec<_>>())
        .bind(wanted().map(|(_, rules)| rules.is_exclusive).collect::<Vec<_>>())
        .bind(wanted().map(|(_, rules)| rules.has_cap).collect::<Vec<_>>())
        .bind(wanted().map(|(_, rules)| rules.has_pool).collect::<Vec<_>>())
        .bind(wanted().map(|(_, rules)| rules.has_gap).collect::<Vec<_>>())
        .bind(wanted().map(|(_, rules)| rules.may_resend).collect::<Vec<_>>())
        .bind(wanted().map(|(lookup, _)| lookup.natural_key).collect::<Vec<_>>())
        .bind(wanted().map(|(lookup, _)| lookup.claim.map(|(request, _)| request.key_hash)).collect::<Vec<_>>())
        .bind(wanted().map(|(lookup, _)| claim(lookup).map(|claim| claim.first_coupon_id)).collect::<Vec<_>>())
        .bind(wanted().map(|(lookup, _)| claim(lookup).map(|claim| claim.attempt)).collect::<Vec<_>>())
}

// Scalar subqueries instead of joins: each is an index look-up for each row, whatever the planner thinks of the tables.
const HISTORY: &str = "
    select coalesce((select o.revision from organisation o where o.org_id = w.org_id), 0) as revision,
           w.key_hash is null or exists (
               select from keyed_request r
                where r.org_id = w.org_id and r.key_hash = w.key_hash and r.first_coupon_id = w.claim_id
                  and r.attempt = w.attempt) as holds_claim,
           -- Read after the snapshot was taken, so all of the snapshot lies before it. A standby may still lack what is flushed here.
           case when pg_is_in_recovery() or current_setting('synchronous_standby_names') <> '' then false
                else pg_current_wal_insert_lsn() <= pg_current_wal_flush_lsn() end as is_flushed,
           w.is_exclusive and exists (
               select from series_exclusion x
                 join coupon c on c.org_id = x.org_id and c.customer_id = w.customer_id and c.series_id = x.excluded_series_id
                where x.org_id = w.org_id and x.series_id = w.series_id and c.revoked_at is null) as holds_excluded,
           case when w.has_cap then coalesce((select n.issued from series_counter n
                                               where n.org_id = w.org_id and n.series_id = w.series_id
                                               order by n.issued desc limit 1), 0) else 0 end as issued,
           w.has_pool and (
               exists (select from pool_code p
                        where p.org_id = w.org_id and p.series_id = w.series_id and p.customer_id = w.customer_id)
            or exists (select from pool_code p
                        where p.org_id = w.org_id and p.series_id = w.series_id
                          and p.position > coalesce((select g.position from pool_counter g
                                                      where g.org_id = w.org_id and g.series_id = w.series_id
                                                      order by g.position desc limit 1), 0))) as pool_has_code,
           -- Revoked coupons count only towards the next ordinal.
           (select count(*)::integer
              from (select from coupon c
                     where c.org_id = w.org_id and c.customer_id = w.customer_id and c.series_id = w.series_id
                       and c.revoked_at is null
                     limit w.max_count) c) as received,
           coalesce((select max(c.ordinal) from coupon c
                      where c.org_id = w.org_id and c.customer_id = w.customer_id and c.series_id = w.series_id), 0) as last_ordinal,
           case when w.has_gap then (select max(c.issued_at) from coupon c
                                      where c.org_id = w.org_id and c.customer_id = w.customer_id
                                        and c.series_id = w.series_id and c.revoked_at is null) end as last_issued_at,
           held.coupon_id, held.series_version, held.code, held.expires_on, held.redemption_count,
           case when w.natural_key is not null then (
               select i.coupon_id from natural_issuance i
                where i.org_id = w.org_id and i.natural_key = w.natural_key and i.series_id = w.series_id) end as issued_coupon_id
      from unnest($1::bigint[], $2::text[], $3::bigint[], $4::integer[], $5::boolean[], $6::boolean[], $7::boolean[],
                  $8::boolean[], $9::boolean[], $10::uuid[], $11::uuid[], $12::bigint[], $13::integer[]) with ordinality
           as w (org_id, customer_id, series_id, max_count, is_exclusive, has_cap, has_pool, has_gap, may_resend, natural_key,
                 key_hash, claim_id, attempt, position)
      left join lateral (
           select c.coupon_id, c.series_version, c.expires_on, coalesce(c.redemption_count, 0) as redemption_count,
                  coalesce(c.uploaded_code, c.code, (
                      select v.generic_code from series_version v
                       where v.org_id = c.org_id and v.series_id = c.series_id and v.version = c.series_version)) as code
             from coupon c
            where w.may_resend and c.org_id = w.org_id and c.customer_id = w.customer_id and c.series_id = w.series_id
              and c.revoked_at is null
            order by c.expires_on desc, c.issued_at desc
            limit 1) held on true
     order by w.position";

fn history_from(row: &PgRow) -> Result<IssuanceHistory, DbError> {
    Ok(IssuanceHistory {
        received: row.try_get("received")?,
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
