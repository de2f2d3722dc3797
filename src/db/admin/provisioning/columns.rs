use sqlx::Row;
use sqlx::postgres::PgRow;

use crate::db::error::{DbError, unknown_value};
use crate::model::{Access, RateLimit};

pub(super) fn access(name: &str) -> Result<Access, DbError> {
    Access::parse(name).ok_or_else(|| unknown_value("access"))
}

pub(super) fn access_if_any(row: &PgRow) -> Result<Option<Access>, DbError> {
    row.try_get::<Option<&str>, _>("access")?.map(access).transpose()
}

pub(super) fn rate_limit(row: &PgRow) -> Result<Option<RateLimit>, DbError> {
    Ok(row.try_get::<Option<i32>, _>("rate_limit_per_minute")?.map(RateLimit::from_per_minute))
}
