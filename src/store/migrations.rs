//! The schema: bringing a database up to it, and refusing one that this binary does not know.
//!
//! Migrations are embedded in the binary, run under an advisory lock, and only ever go forward.

use std::collections::BTreeMap;

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Row};

use super::Store;

static MIGRATOR: Migrator = sqlx::migrate!();

/// Why a schema cannot be used. The message tells the cause; there is no `source`, or it would be told twice.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// The database cannot be asked.
    #[error("the database cannot be asked for its schema: {0}")]
    Unavailable(sqlx::Error),
    /// Migrations are missing.
    #[error(
        "the schema is behind this version by {0} migration(s): run `coupon-issuer migrate`, or serve with --migrate"
    )]
    Behind(usize),
    /// There are migrations of a newer version.
    #[error("the schema is ahead of this version (migration {0} is not known here): run a newer coupon-issuer")]
    Ahead(i64),
    /// A migration was changed after it ran.
    #[error("migration {0} in the database is not the one of this version: the schema cannot be trusted")]
    Changed(i64),
    /// A migration failed and was rolled back.
    #[error("a migration failed: {0}")]
    Failed(MigrateError),
}

impl From<sqlx::Error> for SchemaError {
    fn from(error: sqlx::Error) -> Self {
        Self::Unavailable(error)
    }
}

/// Brings the database up to this version's schema; safe when several processes do it at once.
///
/// # Errors
/// When the database is away, or its schema is a newer version's.
pub async fn migrate(connect: &PgConnectOptions) -> Result<(), SchemaError> {
    let mut connection = connect.connect().await?;
    MIGRATOR.run(&mut connection).await.map_err(|error| match error {
        MigrateError::VersionMissing(version) => SchemaError::Ahead(version),
        MigrateError::VersionMismatch(version) => SchemaError::Changed(version),
        other => SchemaError::Failed(other),
    })?;
    connection.close().await?;
    Ok(())
}

/// Creates the database of these options on its server, if it does not exist.
///
/// # Errors
/// When the server cannot be reached or refuses.
pub async fn create_database(connect: &PgConnectOptions) -> Result<(), sqlx::Error> {
    let name = connect.get_database().unwrap_or("postgres");
    let mut connection = connect.clone().database("postgres").connect().await?;
    let exists: bool = sqlx::query_scalar("select exists (select from pg_database where datname = $1)")
        .bind(name)
        .fetch_one(&mut connection)
        .await?;
    if !exists {
        let quoted = name.replace('"', "\"\"");
        sqlx::raw_sql(AssertSqlSafe(format!("create database \"{quoted}\""))).execute(&mut connection).await?;
    }
    connection.close().await
}

impl Store {
    /// Whether the schema is exactly this version's.
    ///
    /// # Errors
    /// When it is not, or when the database cannot be asked.
    pub async fn check_schema(&self) -> Result<(), SchemaError> {
        let exists: bool =
            sqlx::query_scalar("select to_regclass('_sqlx_migrations') is not null").fetch_one(&self.pool).await?;
        let rows = if exists {
            sqlx::query("select version, checksum from _sqlx_migrations where success").fetch_all(&self.pool).await?
        } else {
            Vec::new()
        };
        let mut applied = BTreeMap::new();
        for row in rows {
            applied.insert(row.try_get::<i64, _>("version")?, row.try_get::<Vec<u8>, _>("checksum")?);
        }
        compare(&applied)
    }
}

fn compare(applied: &BTreeMap<i64, Vec<u8>>) -> Result<(), SchemaError> {
    let known: BTreeMap<i64, &[u8]> = MIGRATOR.iter().map(|m| (m.version, &*m.checksum)).collect();
    if let Some(version) = applied.keys().find(|version| !known.contains_key(version)) {
        return Err(SchemaError::Ahead(*version));
    }
    if let Some((version, _)) = applied.iter().find(|(version, checksum)| known[version] != checksum.as_slice()) {
        return Err(SchemaError::Changed(*version));
    }
    match known.len() - applied.len() {
        0 => Ok(()),
        missing => Err(SchemaError::Behind(missing)),
    }
}
