use std::collections::BTreeMap;

use jiff_sqlx::ToSqlx;

use super::transaction::Provisioning;
use crate::db::error::DbError;
use crate::db::settings_rows::series_from;
use crate::model::{ClientHandling, CodeShape, OrgId, Series, SeriesId};

/// A code that belongs, or will belong, to one coupon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PersonalCode {
    /// In its canonical form.
    pub code: String,
    /// The series that has issued it, or whose pool it is in.
    pub series_id: SeriesId,
    /// Whether a coupon has the code.
    pub is_issued: bool,
}

impl Provisioning {
    pub(super) async fn series(&mut self, org_id: OrgId) -> Result<BTreeMap<SeriesId, Series>, DbError> {
        let rows = sqlx::query("select * from series where org_id = $1")
            .bind(org_id.0)
            .fetch_all(&mut self.connection)
            .await?;
        rows.iter().map(|row| series_from(row).map(|series| (series.id, series))).collect()
    }

    /// Every generic code that a series of the organisation has or had: its coupons keep the old one.
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

    /// Those of these codes, in their canonical form, that are in a pool or belong to a coupon.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn personal_codes(&mut self, org_id: OrgId, codes: &[&str]) -> Result<Vec<PersonalCode>, DbError> {
        // One statement: a code moves from a pool to a coupon in one transaction, and two statements might miss it.
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

    /// An uploaded code that this shape could generate: its series and its first characters, for people. Reads all uploaded codes that
    /// begin with the prefix; without a prefix, all uploaded codes of the organisation.
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

    /// Writes a series, and when its limits last changed. Call [`pause_issuing`](Self::pause_issuing) first.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn put_series(&mut self, org_id: OrgId, series: &Series) -> Result<(), DbError> {
        let (shape, generic_code) = code_columns(&series.client_handling);
        sqlx::query(PUT_SERIES)
            .bind(org_id.0)
            .bind(series.id.0)
            .bind(&series.snapshot.description)
            .bind(&series.snapshot.info)
            .bind(&series.snapshot.discount_code)
            .bind(series.snapshot.discount_type.name())
            .bind(series.snapshot.discount_value)
            .bind(series.snapshot.discount_upto)
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

    /// Updates what derives from the settings: the exclusions of both sides, the counters of series that got or lost a cap, and a new
    /// version of each series whose snapshot changed. If a series gets a counter, its coupons are counted, which reads all coupons once.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn derive(&mut self, org_id: OrgId) -> Result<(), DbError> {
        for statement in DERIVE {
            sqlx::query(statement).bind(org_id.0).execute(&mut self.connection).await?;
        }
        Ok(())
    }
}

const DERIVE: [&str; 4] = [
    "with wanted as (
         select s.series_id, other as excluded_series_id
           from series s, unnest(s.mutual_exclusive_series_ids) other where s.org_id = $1
         union
         select other, s.series_id from series s, unnest(s.mutual_exclusive_series_ids) other where s.org_id = $1),
     dropped as (
         delete from series_exclusion x
          where x.org_id = $1 and (x.series_id, x.excluded_series_id) not in (select w.series_id, w.excluded_series_id from wanted w)
         returning x.series_id),
     added as (
         insert into series_exclusion (org_id, series_id, excluded_series_id)
         select $1, w.series_id, w.excluded_series_id from wanted w
         on conflict do nothing
         returning series_id)
     update series s set revision = o.revision from organisation o
      where o.org_id = $1 and s.org_id = $1
        and s.series_id in (select d.series_id from dropped d union select a.series_id from added a)",
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
     update series s set version = n.version, revision = o.revision from new n, organisation o
      where o.org_id = $1 and s.org_id = $1 and s.series_id = n.series_id",
];

const PUT_SERIES: &str = "
    insert into series as s (
        org_id, series_id, description, info, discount_code, discount_type, discount_value, discount_upto,
        valid_till_date, expiry_strategy_type, expiry_strategy_value, redemption_valid_from, client_handling_type,
        alpha_numeric, random_code_length, coupon_prefix, coupon_suffix, generic_code, max_create,
        is_multiple_vouchers_per_user_allowed, max_vouchers_per_user, do_not_resend_existing_voucher,
        min_days_between_vouchers, mutual_exclusive_series_ids, store_ids, externally_managed, revision)
    values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24,
            $25, $26, (select o.revision from organisation o where o.org_id = $1))
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
        externally_managed = excluded.externally_managed, revision = excluded.revision,
        limits_changed_at = case
            when (s.max_create, s.is_multiple_vouchers_per_user_allowed, s.max_vouchers_per_user,
                  s.do_not_resend_existing_voucher, s.min_days_between_vouchers, s.mutual_exclusive_series_ids)
                 is distinct from
                 (excluded.max_create, excluded.is_multiple_vouchers_per_user_allowed, excluded.max_vouchers_per_user,
                  excluded.do_not_resend_existing_voucher, excluded.min_days_between_vouchers,
                  excluded.mutual_exclusive_series_ids)
            then clock_timestamp() else s.limits_changed_at end";

/// The columns of the code shape and the generic code; empty where they do not apply.
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
