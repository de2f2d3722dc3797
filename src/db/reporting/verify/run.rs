use sqlx::postgres::{PgConnectOptions, PgRow};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection, Row};
use strum::IntoEnumIterator;

use super::check::{Check, CheckQuery};
use crate::db::error::DbError;
use crate::model::{CustomerId, OrgId, SeriesId};

/// The most rows that one check reports. It counts all.
const MAX_REPORTED: i64 = 20;

/// Settings of the transaction. The checks do not trust indexes, since they also look for damaged ones; without indexes a nested loop
/// would scan a table for each row. A server ignores the time-outs that its version does not know.
const SETTINGS: [(&str, &str); 9] = [
    ("statement_timeout", "0"),
    ("transaction_timeout", "0"),
    ("enable_indexscan", "off"),
    ("enable_indexonlyscan", "off"),
    ("enable_bitmapscan", "off"),
    ("enable_nestloop", "off"),
    ("jit", "off"),
    ("max_parallel_workers_per_gather", "0"),
    ("work_mem", "64MB"),
];

/// A row that violates an invariant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offence {
    /// The organisation.
    pub org_id: OrgId,
    /// The series, if the row belongs to one.
    pub series_id: Option<SeriesId>,
    /// The customer, if the row belongs to one.
    pub customer_id: Option<CustomerId>,
    /// What else identifies the row: a coupon id, the beginning of a code, the hash of a key, or a name.
    pub subject: Option<String>,
    /// What was found.
    pub found: String,
    /// What was expected.
    pub expected: String,
}

/// The result of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The check.
    pub check: Check,
    /// The number of rows checked.
    pub checked: i64,
    /// The number of rows that violate the invariant.
    pub wrong: i64,
    /// The first of these rows.
    pub offences: Vec<Offence>,
}

/// Runs all checks on one organisation, or on all. `None`: there is no such organisation.
///
/// # Errors
/// When the database cannot be asked.
pub async fn verify(connect: &PgConnectOptions, org_id: Option<OrgId>) -> Result<Option<Vec<Finding>>, DbError> {
    let mut connection = begin(connect).await?;
    if let Some(OrgId(id)) = org_id {
        let exists: bool = sqlx::query_scalar("select exists (select from organisation where org_id = $1)")
            .bind(id)
            .fetch_one(&mut connection)
            .await?;
        if !exists {
            return Ok(None);
        }
    }
    let mut findings = Vec::new();
    for check in Check::iter() {
        findings.push(run(&mut connection, check, org_id).await?);
    }
    connection.close().await?;
    Ok(Some(findings))
}

async fn begin(connect: &PgConnectOptions) -> Result<PgConnection, DbError> {
    let mut connection = connect.connect().await?;
    sqlx::query("begin isolation level repeatable read, read only").execute(&mut connection).await?;
    let (names, values): (Vec<&str>, Vec<&str>) = SETTINGS.into_iter().unzip();
    sqlx::query(
        "select set_config(s.name, t.value, true) from unnest($1::text[], $2::text[]) as t (name, value)
           join pg_settings s using (name)",
    )
    .bind(names)
    .bind(values)
    .execute(&mut connection)
    .await?;
    Ok(connection)
}

async fn run(connection: &mut PgConnection, check: Check, org_id: Option<OrgId>) -> Result<Finding, DbError> {
    let CheckQuery { checked, wrong } = check.query();
    let statement = format!(
        "with wrong as materialized ({wrong})
         select ({checked}) as checked, (select count(*) from wrong) as wrong, w.*
           from (values (true)) as always (holds)
           left join (select * from wrong order by org_id, series_id, customer_id, subject, found limit {MAX_REPORTED}) w on true"
    );
    let rows = sqlx::query(AssertSqlSafe(statement)).bind(org_id.map(|id| id.0)).fetch_all(connection).await?;
    // The outer join yields a row with the counts even if nothing is wrong.
    let counts = rows.first().ok_or(DbError::Failed(sqlx::Error::RowNotFound))?;
    Ok(Finding {
        check,
        checked: counts.try_get("checked")?,
        wrong: counts.try_get("wrong")?,
        offences: rows.iter().filter_map(|row| offence_if_any(row).transpose()).collect::<Result<_, _>>()?,
    })
}

fn offence_if_any(row: &PgRow) -> Result<Option<Offence>, DbError> {
    let Some(org_id) = row.try_get("org_id")? else { return Ok(None) };
    Ok(Some(Offence {
        org_id: OrgId(org_id),
        series_id: row.try_get::<Option<i64>, _>("series_id")?.map(SeriesId),
        customer_id: row.try_get::<Option<String>, _>("customer_id")?.map(CustomerId),
        subject: row.try_get("subject")?,
        found: row.try_get("found")?,
        expected: row.try_get("expected")?,
    }))
}
