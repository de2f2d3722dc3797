use sqlx::error::DatabaseError;
use sqlx::postgres::{PgDatabaseError, PgSeverity};

/// A failed read or write. The message quotes the source and its SQLSTATE: when the chain of causes is printed, a `sqlx::Error` is
/// omitted.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// The database is unreachable, starting, stopping or out of connections. A retry may succeed.
    #[error("the database is unavailable: {}", describe(.0))]
    Unavailable(#[source] sqlx::Error),
    /// Postgres cancelled the statement: it ran too long, or waited too long for a lock.
    #[error("the database took too long: {}", describe(.0))]
    TookTooLong(#[source] sqlx::Error),
    /// The server failed on a statement for a reason of its own: a full disk, no memory, a broken file or library (classes 53,
    /// 58 and XX). The writer finds out whether every statement fails so.
    #[error("the database server failed: {}", describe(.0))]
    ServerFault(#[source] sqlx::Error),
    /// The database answered with an error.
    #[error("the database refused a statement: {}", describe(.0))]
    Failed(#[source] sqlx::Error),
}

impl From<sqlx::Error> for DbError {
    fn from(error: sqlx::Error) -> Self {
        if is_cancelled(&error) {
            return Self::TookTooLong(error);
        }
        let code = error.as_database_error().and_then(DatabaseError::code);
        let is_server_fault = code.as_deref().is_some_and(is_server_fault);
        let is_unavailable = match &error {
            // 25006, a read-only server: a standby that has not been promoted yet, or a primary that was demoted. A fatal error:
            // too many connections, a shutdown or a start, or a session that could not be set up, also because the password has
            // changed (class 28) or the database is gone (3D000). An error that is not fatal concerns the statement alone,
            // whatever its class: a trigger may talk to other servers.
            sqlx::Error::Database(database) => {
                let is_down =
                    |code: &str| is_server_fault || ["57P0", "28", "3D"].iter().any(|class| code.starts_with(class));
                code.is_some_and(|code| code == "25006" || (is_fatal(&**database) && is_down(&code)))
            }
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed => true,
            // The fault of the statement or of its result, not of the database.
            _ => false,
        };
        match (is_unavailable, is_server_fault) {
            (true, _) => Self::Unavailable(error),
            (false, true) => Self::ServerFault(error),
            (false, false) => Self::Failed(error),
        }
    }
}

/// Whether Postgres cancelled a statement by `statement_timeout` or `lock_timeout`.
pub(super) fn is_cancelled(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(DatabaseError::code);
    matches!(code.as_deref(), Some("57014" | "55P03"))
}

/// Insufficient resources, system errors, internal errors; and class 08, connections that a statement makes itself.
fn is_server_fault(code: &str) -> bool {
    ["08", "53", "58", "XX"].iter().any(|class| code.starts_with(class))
}

pub(super) fn is_fatal(error: &dyn DatabaseError) -> bool {
    let severity = error.try_downcast_ref::<PgDatabaseError>().map(PgDatabaseError::severity);
    matches!(severity, Some(PgSeverity::Fatal | PgSeverity::Panic))
}

/// The message for the log, with the SQLSTATE, which says whose fault it is. The line in Postgres' source is omitted.
pub(super) fn describe(error: &sqlx::Error) -> String {
    let Some(database) = error.as_database_error() else { return error.to_string() };
    format!("{} ({})", database.message(), database.code().as_deref().unwrap_or("no code"))
}

/// The time-out on our side passed. Handled like a broken connection.
pub(super) fn no_answer() -> sqlx::Error {
    sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, "the database does not answer"))
}

/// The database holds a value that the model does not know: an older or newer schema, or a change by hand.
pub(super) fn unknown_value(column: &'static str) -> DbError {
    DbError::Failed(sqlx::Error::ColumnDecode { index: column.to_owned(), source: "a value that is not known".into() })
}
