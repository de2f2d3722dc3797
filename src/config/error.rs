use std::fmt;
use std::path::PathBuf;

/// Where the value of a setting comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// `config/default.toml`, which is built in.
    Default,
    /// The file given with `--config`.
    File(PathBuf),
    /// This environment variable.
    Environment(String),
    /// This command-line argument.
    Argument(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => write!(formatter, "default"),
            Self::File(path) => write!(formatter, "file {}", path.display()),
            Self::Environment(name) => write!(formatter, "environment {name}"),
            Self::Argument(name) => write!(formatter, "argument {name}"),
        }
    }
}

/// Settings that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A file cannot be read, or is not TOML.
    #[error("file {path}: {reason}", path = path.display())]
    #[expect(missing_docs, reason = "the message says it")]
    File { path: PathBuf, reason: String },
    /// The key does not exist, or its value is invalid.
    #[error("{key} ({origin}): {reason}")]
    #[expect(missing_docs, reason = "the message says it")]
    Value { key: String, origin: Origin, reason: String },
    /// A variable that looks like a setting and is not one.
    #[error("environment {0}: a setting's variable begins with COUPON_ISSUER__, with two underscores")]
    Misnamed(String),
    /// Signing keys from two sources.
    #[error("auth.signing_keys_file and auth.signing_keys are both set: one of them is enough")]
    TwoKeySources,
    /// No database is configured.
    #[error("no database: set DATABASE_URL, or database.url or database.url_file in the configuration")]
    NoDatabase,
    /// The file with the URL cannot be read.
    #[error("database.url_file: {0}: {1}")]
    UrlFile(String, #[source] std::io::Error),
    /// The URL is invalid. It may hold a password, so the message does not quote it.
    #[error("the database URL is not valid; it looks like postgres://user:password@host:5432/database")]
    Url,
}
