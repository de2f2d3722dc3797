use std::sync::Arc;

use jiff::tz::TimeZone;
use sqlx::postgres::PgRow;
use sqlx::{FromRow, Row};

use super::error::{DbError, unknown_value};
use crate::model::{
    ClientHandling, CodeShape, CustomerPolicy, DiscountType, ExpiryStrategy, OrgId, Organisation, Revision, Series,
    SeriesId, SeriesSnapshot, StoreId,
};

#[derive(FromRow)]
pub(super) struct OrganisationRow {
    org_id: i64,
    revision: i64,
    time_zone: String,
    customer_policy: String,
    natural_key: bool,
}

impl TryFrom<OrganisationRow> for Organisation {
    type Error = DbError;

    fn try_from(row: OrganisationRow) -> Result<Self, DbError> {
        Ok(Self {
            id: OrgId(row.org_id),
            revision: Revision(row.revision),
            time_zone: TimeZone::get(&row.time_zone).map_err(|_| unknown_value("time_zone"))?,
            customer_policy: CustomerPolicy::parse(&row.customer_policy)
                .ok_or_else(|| unknown_value("customer_policy"))?,
            natural_key: row.natural_key,
        })
    }
}

#[derive(FromRow)]
#[expect(clippy::struct_excessive_bools, reason = "the columns of table series")]
struct SeriesRow {
    series_id: i64,
    valid_till_date: jiff_sqlx::Date,
    expiry_strategy_type: String,
    expiry_strategy_value: i32,
    redemption_valid_from: Option<jiff_sqlx::Date>,
    client_handling_type: String,
    alpha_numeric: bool,
    random_code_length: i32,
    coupon_prefix: String,
    coupon_suffix: String,
    generic_code: Option<String>,
    max_create: Option<i64>,
    is_multiple_vouchers_per_user_allowed: bool,
    max_vouchers_per_user: Option<i32>,
    do_not_resend_existing_voucher: bool,
    min_days_between_vouchers: Option<i32>,
    mutual_exclusive_series_ids: Vec<i64>,
    store_ids: Vec<i64>,
    externally_managed: bool,
}

impl SeriesRow {
    fn client_handling(&self) -> Result<ClientHandling, DbError> {
        match self.client_handling_type.as_str() {
            "DISC_CODE" => Ok(ClientHandling::Generated(CodeShape {
                alpha_numeric: self.alpha_numeric,
                random_code_length: u8::try_from(self.random_code_length)
                    .map_err(|_| unknown_value("random_code_length"))?,
                coupon_prefix: self.coupon_prefix.clone(),
                coupon_suffix: self.coupon_suffix.clone(),
            })),
            "GENERIC" => {
                self.generic_code.clone().map(ClientHandling::Generic).ok_or_else(|| unknown_value("generic_code"))
            }
            "DISC_CODE_PIN" => Ok(ClientHandling::Pool),
            _ => Err(unknown_value("client_handling_type")),
        }
    }
}

/// From a row of `series` or `series_version`.
pub(super) fn snapshot_from(row: &PgRow) -> Result<SeriesSnapshot, DbError> {
    Ok(SeriesSnapshot {
        discount_type: DiscountType::parse(row.try_get("discount_type")?)
            .ok_or_else(|| unknown_value("discount_type"))?,
        description: row.try_get("description")?,
        info: row.try_get("info")?,
        discount_code: row.try_get("discount_code")?,
        discount_value: row.try_get("discount_value")?,
        discount_upto: row.try_get("discount_upto")?,
    })
}

pub(super) fn zone_from(row: &PgRow) -> Result<TimeZone, DbError> {
    TimeZone::get(row.try_get("time_zone")?).map_err(|_| unknown_value("time_zone"))
}

/// From a row with all columns of `series`.
pub(super) fn series_from(row: &PgRow) -> Result<Series, DbError> {
    let snapshot = snapshot_from(row)?;
    let row = SeriesRow::from_row(row)?;
    Ok(Series {
        id: SeriesId(row.series_id),
        client_handling: row.client_handling()?,
        snapshot: Arc::new(snapshot),
        expiry_strategy: ExpiryStrategy::parse(&row.expiry_strategy_type, row.expiry_strategy_value)
            .ok_or_else(|| unknown_value("expiry_strategy_type"))?,
        valid_till_date: row.valid_till_date.to_jiff(),
        redemption_valid_from: row.redemption_valid_from.map(jiff_sqlx::Date::to_jiff),
        max_create: row.max_create,
        is_multiple_vouchers_per_user_allowed: row.is_multiple_vouchers_per_user_allowed,
        max_vouchers_per_user: row.max_vouchers_per_user,
        do_not_resend_existing_voucher: row.do_not_resend_existing_voucher,
        min_days_between_vouchers: row.min_days_between_vouchers,
        mutual_exclusive_series_ids: row.mutual_exclusive_series_ids.into_iter().map(SeriesId).collect(),
        store_ids: row.store_ids.into_iter().map(StoreId).collect(),
        externally_managed: row.externally_managed,
    })
}

/// From a row of an outer join.
pub(super) fn series_if_any(row: &PgRow) -> Result<Option<Series>, DbError> {
    match row.try_get::<Option<i64>, _>("series_id")? {
        Some(_) => series_from(row).map(Some),
        None => Ok(None),
    }
}
