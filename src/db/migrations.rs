//! Migrates the database, and refuses a schema that this version cannot work on.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection};

use super::connection::Db;
use super::pooling::has_sessions;

static MIGRATOR: LazyLock<Migrator> = LazyLock::new(|| {
    let mut migrator = sqlx::migrate!();
    // `check` decides whether unknown migrations are compatible, by the table schema_floor.
    migrator.set_ignore_missing(true);
    migrator
});

/// Why the database cannot be used. The message quotes the source.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// The database cannot be asked.
    #[error("the database cannot be asked for its schema: {0}")]
    Unavailable(#[source] sqlx::Error),
    /// The statements of one connection run in several sessions.
    #[error(
        "a pooler in transaction mode is in front of the database, where coupons could be stored twice: connect to Postgres itself, \
         or put the pooler into session mode (PgBouncer: pool_mode = session)"
    )]
    NoSessions,
    /// Migrations are missing.
    #[error(
        "the schema is behind this version by {0} migration(s): run `coupon-issuer migrate`, or serve with --migrate"
    )]
    Behind(usize),
    /// A newer version has migrated the schema, and this version cannot work on it.
    #[error(
        "the schema is too far ahead of this version, which does not know migration {0}: run a newer coupon-issuer"
    )]
    Ahead(i64),
    /// The database's encoding does not have all characters.
    #[error(
        "the database's encoding is {0}, and must be UTF8: create another one, with \
         `create database … encoding 'UTF8' template template0`"
    )]
    Encoding(String),
    /// A version before 0.2.0 made the database.
    #[error(
        "the database was made by a version before 0.2.0, whose schema cannot be upgraded: create another database, run \
         `coupon-issuer migrate` and `coupon-issuer apply` there, and upload the remaining codes again"
    )]
    BeforeRelease,
    /// A migration was changed after it ran.
    #[error(
        "migration {0} in the database is not the one of this version: the schema cannot be trusted. It was changed after it ran, \
         or made by a version that was never released: then create another database, and run `coupon-issuer migrate` there"
    )]
    Changed(i64),
    /// A migration failed and was rolled back.
    #[error("a migration failed: {0}")]
    Failed(#[source] MigrateError),
}

impl SchemaError {
    /// Whether a retry may succeed.
    #[must_use]
    pub const fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }
}

impl From<sqlx::Error> for SchemaError {
    fn from(error: sqlx::Error) -> Self {
        Self::Unavailable(error)
    }
}

/// Migrates the database to the schema of this version. Several processes may do so at once. A newer schema that this version can work
/// on stays as it is.
///
/// # Errors
/// When the database is unreachable, or its schema is too new.
pub async fn migrate(connect: &PgConnectOptions) -> Result<(), SchemaError> {
    require_sessions(connect).await?;
    let mut connection = connect.connect().await?;
    check_encoding(&mut connection).await?;
    if let Err(error @ SchemaError::BeforeRelease) = check(&mut connection).await {
        return Err(error);
    }
    MIGRATOR.run(&mut connection).await.map_err(|error| match error {
        MigrateError::VersionMismatch(version) => SchemaError::Changed(version),
        other => SchemaError::Failed(other),
    })?;
    check(&mut connection).await?;
    connection.close().await?;
    Ok(())
}

/// Fails unless this version can work on the database and its schema.
///
/// # Errors
/// When it cannot, or when the database cannot be asked.
pub async fn require(connect: &PgConnectOptions) -> Result<(), SchemaError> {
    require_sessions(connect).await?;
    let mut connection = connect.connect().await?;
    check(&mut connection).await?;
    connection.close().await?;
    Ok(())
}

/// Creates the database that these options name, if it does not exist.
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

/// Fails unless each connection to the database has a session of its own.
///
/// # Errors
/// When they have none, or when the database cannot be asked.
pub async fn require_sessions(connect: &PgConnectOptions) -> Result<(), SchemaError> {
    if has_sessions(connect).await? { Ok(()) } else { Err(SchemaError::NoSessions) }
}

impl Db {
    /// Fails unless this version can work on the schema.
    ///
    /// # Errors
    /// When it cannot, or when the database cannot be asked.
    pub async fn check_schema(&self) -> Result<(), SchemaError> {
        check(&mut *self.connection().await?).await
    }
}

async fn check_encoding(connection: &mut PgConnection) -> Result<(), SchemaError> {
    let encoding: String =
        sqlx::query_scalar("select current_setting('server_encoding')").fetch_one(connection).await?;
    if encoding == "UTF8" { Ok(()) } else { Err(SchemaError::Encoding(encoding)) }
}

async fn check(connection: &mut PgConnection) -> Result<(), SchemaError> {
    let exists: bool =
        sqlx::query_scalar("select to_regclass('_sqlx_migrations') is not null").fetch_one(&mut *connection).await?;
    if !exists {
        check_encoding(connection).await?;
        return Err(SchemaError::Behind(MIGRATOR.iter().count()));
    }
    let is_before_release: bool = sqlx::query_scalar(
        "select exists (select from _sqlx_migrations where version = 1 and description = 'issuing')",
    )
    .fetch_one(&mut *connection)
    .await?;
    if is_before_release {
        return Err(SchemaError::BeforeRelease);
    }
    let applied: Vec<(i64, Vec<u8>)> = sqlx::query_as("select version, checksum from _sqlx_migrations where success")
        .fetch_all(&mut *connection)
        .await?;
    match compare(&applied.into_iter().collect()) {
        Err(SchemaError::Ahead(_)) if floor(connection).await? <= newest() => Ok(()),
        compared => compared,
    }
}

/// The newest migration that a version must know to work on the schema (table `schema_floor`).
async fn floor(connection: &mut PgConnection) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("select version from schema_floor").fetch_one(connection).await
}

fn newest() -> i64 {
    MIGRATOR.iter().map(|migration| migration.version).max().unwrap_or_default()
}

/// Whether exactly the migrations of this version were applied. `Ahead`: unknown migrations were applied as well.
fn compare(applied: &BTreeMap<i64, Vec<u8>>) -> Result<(), SchemaError> {
    for known in MIGRATOR.iter() {
        if applied.get(&known.version).is_some_and(|checksum| *checksum != *known.checksum) {
            return Err(SchemaError::Changed(known.version));
        }
    }
    match MIGRATOR.iter().filter(|known| !applied.contains_key(&known.version)).count() {
        0 => {}
        missing => return Err(SchemaError::Behind(missing)),
    }
    match applied.keys().find(|version| MIGRATOR.iter().all(|known| known.version != **version)) {
        Some(version) => Err(SchemaError::Ahead(*version)),
        None => Ok(()),
    }
}
