use std::io;
use std::path::{Path, PathBuf};

/// The variable that names the directory of Postgres' programs.
pub(super) const BIN_DIR_VARIABLE: &str = "COUPON_ISSUER_PG_BIN";
pub(super) const OLDEST_VERSION: u32 = 14;

/// Why a private Postgres could not be started or stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PrivatePostgresError {
    /// There is no usable installation.
    #[error(
        "no PostgreSQL {OLDEST_VERSION} or later was found: install it (apt-get install \
         postgresql, dnf install postgresql-server or brew install postgresql), or set \
         {BIN_DIR_VARIABLE} to the directory of its initdb, pg_ctl and postgres"
    )]
    NoBinaries,
    /// The environment or the caller names a directory without a usable installation.
    #[error("there is no PostgreSQL {OLDEST_VERSION} or later in {0} (see {BIN_DIR_VARIABLE})")]
    WrongBinDir(PathBuf),
    /// There is no account to run the server.
    #[error("no account to run Postgres: it refuses root, and there is no user postgres or nobody")]
    NoAccount,
    /// The directory belongs to another user, is a link, or holds other files.
    #[error("{0} is not empty or belongs to another user: name a new or an empty directory of your own")]
    NotOurs(PathBuf),
    /// Another program holds the directory's lock.
    #[error("another program is already running a private Postgres in {0}")]
    InUse(PathBuf),
    /// A Postgres program failed: what happened, and the end of its output.
    #[error("{0}; the end of its output:\n{1}")]
    Failed(&'static str, String),
    /// The operating system refused an operation.
    #[error("cannot {0} {1}")]
    Io(&'static str, PathBuf, #[source] io::Error),
}

pub(super) type Result<T> = std::result::Result<T, PrivatePostgresError>;

/// For `map_err`: adds what was attempted, and on which path.
pub(super) fn cannot(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PrivatePostgresError {
    move |source| PrivatePostgresError::Io(action, path.to_owned(), source)
}
