use super::stores::SharedCode;
use super::toml::Mistake;
use crate::db::DbError;
use crate::model::OrgId;

/// Why a file was not applied. The database is unchanged then.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The file cannot be read.
    #[error("{0}: {1}")]
    File(String, #[source] std::io::Error),
    /// The file has mistakes.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Mistakes(Vec<Mistake>),
    /// Another organisation has a till of this name or a client with this key.
    #[error(
        "{0}: the name is taken by another organisation; tills log in by their name alone, clients by their key alone"
    )]
    Taken(String),
    /// During the comparison a request gave one of the file's identifiers to a customer.
    #[error("org {}: a request has just given one of the identifiers to a customer: apply the file again", .0.0)]
    Overtaken(OrgId),
    /// A store of the file and a store that the file does not list have the same code or external id.
    #[error("org {}: {}; one of the two is not in the file", .0.0, .1)]
    SharedCode(OrgId, SharedCode),
    /// A query failed.
    #[error(transparent)]
    Db(#[from] DbError),
    /// A secret cannot be hashed.
    #[error("a secret cannot be hashed: {0}")]
    Secret(String),
}

impl ApplyError {
    /// Refuses the file if it has mistakes.
    pub(super) fn if_any(mut mistakes: Vec<Mistake>) -> Result<(), Self> {
        mistakes.sort();
        if mistakes.is_empty() { Ok(()) } else { Err(Self::Mistakes(mistakes)) }
    }
}
