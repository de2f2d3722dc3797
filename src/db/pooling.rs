//! Detects a pooler in transaction mode. It runs each transaction in whatever session is free, but this service relies on its sessions:
//! they hold advisory locks, time-outs and settings of durability, and listen for changes.

use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Row};
use tokio::time::timeout;

use super::error::no_answer;

const TEST_TIMEOUT: Duration = Duration::from_secs(4);
const NAME: &str = "set_config('coupon_issuer.session', gen_random_uuid()::text, false)";
const NAME_IN_SESSION: &str = "current_setting('coupon_issuer.session', true)";

/// Whether each connection has a session of its own.
pub(super) async fn has_sessions(connect: &PgConnectOptions) -> Result<bool, sqlx::Error> {
    timeout(TEST_TIMEOUT, test(connect)).await.unwrap_or_else(|_elapsed| Err(no_answer()))
}

/// The first connection names its session. Then a second one begins a transaction: a pooler in transaction mode gives it the session that
/// is free again, the named one, and the next statement of the first connection runs in another.
async fn test(connect: &PgConnectOptions) -> Result<bool, sqlx::Error> {
    let (mut first, mut second) = (connect.connect().await?, connect.connect().await?);
    let named = ask(&mut first, NAME).await?;
    sqlx::raw_sql("begin").execute(&mut second).await?;
    // In this order: if the pooler has one session only, the first connection would wait for the second.
    let has_sessions =
        ask(&mut second, NAME_IN_SESSION).await? != named && ask(&mut first, NAME_IN_SESSION).await? == named;
    first.close().await?;
    second.close().await?;
    Ok(has_sessions)
}

/// By a simple statement: a pooler may not know prepared ones.
async fn ask(connection: &mut PgConnection, expression: &'static str) -> Result<Option<String>, sqlx::Error> {
    let row = sqlx::raw_sql(AssertSqlSafe(format!("select {expression} as name"))).fetch_one(connection).await?;
    row.try_get("name")
}
