use crate::db::DbError;
use crate::model::EntropyError;

/// Why a request as a whole was not processed. Nothing is stored then.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// The organisation requires registered customers, and the request names none.
    #[error("the customer is not registered")]
    UnknownCustomer,
    /// The identifiers name different customers.
    #[error("the identifiers name different customers")]
    ConflictingCustomer,
    /// Another attempt at the same keyed request is running.
    #[error("another attempt at this request is still running")]
    StillRunning,
    /// The key was used for a different request.
    #[error("the key belongs to another request")]
    KeyReused,
    /// The database cannot be reached.
    #[error("the database is unavailable")]
    Unavailable(#[source] Option<DbError>),
    /// The database server failed on a statement of this request, but still accepts others.
    #[error("the database server fails")]
    ServerFault(#[source] DbError),
    /// The database did not answer before the request's deadline.
    #[error("the database does not answer in time")]
    TimedOut,
    /// The service sheds load: it accepts no more requests than the database can process.
    #[error("too many requests are waiting")]
    Overloaded,
    /// The database refused a statement.
    #[error("the database refused a statement")]
    Refused(#[source] DbError),
    /// A bug, or a failure of the operating system.
    #[error("internal error: {0}")]
    Internal(String),
}

impl IssueError {
    pub(super) fn missing_organisation() -> Self {
        Self::Internal("the caller's organisation is missing".to_owned())
    }
}

impl From<DbError> for IssueError {
    fn from(error: DbError) -> Self {
        match error {
            DbError::Unavailable(_) => Self::Unavailable(Some(error)),
            DbError::TookTooLong(_) => Self::TimedOut,
            DbError::ServerFault(_) => Self::ServerFault(error),
            DbError::Failed(_) => Self::Refused(error),
        }
    }
}

impl From<EntropyError> for IssueError {
    fn from(error: EntropyError) -> Self {
        Self::Internal(error.to_string())
    }
}
