//! Commands about one till or client: disable, enable, change the secret, revoke tokens.
//!
//! Each takes effect at once and leaves an entry in the audit log. None prints a secret.

use std::fmt;

use jiff::Timestamp;
use secrecy::SecretString;
use sqlx::postgres::PgConnectOptions;

use crate::auth::{hash_secret, till_password};
use crate::db::DbError;
use crate::db::audit::AuditEntry;
pub use crate::db::commands::Holder;
use crate::db::commands::{HolderChange, StoredHolder};
use crate::model::Clock;

/// Why a command failed. The database is unchanged then.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum CommandError {
    #[error("there is no {} {}", kind(.0), .0.name())]
    NoSuchHolder(Holder),
    #[error("client {key} has no secret here: its tokens come from {issuer}")]
    TokensFromIssuer { key: String, issuer: String },
    #[error(transparent)]
    Db(#[from] DbError),
    #[error("a secret cannot be hashed: {0}")]
    Secret(String),
}

/// The result of a command. Displays as the line that the command prints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The command made the change, and recorded it in the audit log.
    Done(AuditEntry),
    /// There was nothing to change, and nothing was recorded.
    Unchanged(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done(entry) => entry.fmt(formatter),
            Self::Unchanged(line) => formatter.write_str(line),
        }
    }
}

/// Who runs a command, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invocation {
    /// The user and the host.
    pub actor: String,
    /// The instant.
    pub at: Timestamp,
}

impl Invocation {
    /// A command of the user of this process, run now.
    #[must_use]
    pub fn now(clock: &dyn Clock) -> Self {
        Self { actor: actor(), at: clock.now() }
    }
}

/// Disables or enables a till or client.
///
/// # Errors
/// When there is no such till or client, or a query fails.
pub async fn set_disabled(
    connect: &PgConnectOptions,
    holder: &Holder,
    disabled: bool,
    invocation: Invocation,
) -> Result<Outcome, CommandError> {
    let (mut change, stored) = begin(connect, holder).await?;
    if stored.is_disabled == disabled {
        let state = if disabled { "disabled" } else { "enabled" };
        return Ok(Outcome::Unchanged(format!("{} {} was {state} already", kind(holder), holder.name())));
    }
    change.set_disabled(disabled).await?;
    commit(change, holder, if disabled { "disable" } else { "enable" }, &stored, invocation).await
}

/// Changes the password of a till or the secret of a client. Tokens that the client already has stay valid.
///
/// # Errors
/// When there is no such till or client, the client's tokens come from an external issuer, or a query fails.
pub async fn set_secret(
    connect: &PgConnectOptions,
    holder: &Holder,
    secret: SecretString,
    invocation: Invocation,
) -> Result<Outcome, CommandError> {
    let (secret, word) = match holder {
        Holder::Till(_) => (till_password(&secret), "set-password"),
        Holder::Client(_) => (secret, "set-secret"),
    };
    // Hashing is slow on purpose, so hash before the transaction locks the row.
    let hashed = tokio::task::spawn_blocking(move || hash_secret(&secret)).await;
    let hash = hashed.map_err(|error| CommandError::Secret(error.to_string()))?;
    let hash = hash.map_err(|error| CommandError::Secret(error.to_string()))?;
    let (mut change, stored) = begin(connect, holder).await?;
    if let Some(issuer) = stored.issuer {
        return Err(CommandError::TokensFromIssuer { key: holder.name().to_owned(), issuer });
    }
    change.set_secret_hash(&hash).await?;
    commit(change, holder, word, &stored, invocation).await
}

/// Revokes all tokens that a client has been given so far.
///
/// # Errors
/// When there is no such client, or a query fails.
pub async fn revoke_tokens(
    connect: &PgConnectOptions,
    key: &str,
    invocation: Invocation,
) -> Result<Outcome, CommandError> {
    let holder = Holder::Client(key.to_owned());
    let (mut change, stored) = begin(connect, &holder).await?;
    change.void_tokens_before(invocation.at).await?;
    commit(change, &holder, "revoke-tokens", &stored, invocation).await
}

/// The user (the one behind `sudo`, if the command runs under it) and the host.
fn actor() -> String {
    let sudo_user = std::env::var("SUDO_USER").ok().and_then(|name| word(&name));
    let user = sudo_user.or_else(|| word(&whoami::username().ok()?));
    let host = whoami::hostname().ok().and_then(|name| word(&name));
    let unknown = || "unknown".to_owned();
    format!("{}@{}", user.unwrap_or_else(unknown), host.unwrap_or_else(unknown))
}

/// Removes white space and control characters: an environment variable must not add a line to the audit log or make one long.
fn word(text: &str) -> Option<String> {
    let word: String = text.chars().filter(|c| !c.is_whitespace() && !c.is_control()).take(100).collect();
    (!word.is_empty()).then_some(word)
}

async fn begin<'a>(
    connect: &PgConnectOptions,
    holder: &'a Holder,
) -> Result<(HolderChange<'a>, StoredHolder), CommandError> {
    let begun = HolderChange::begin(connect, holder).await?;
    begun.ok_or_else(|| CommandError::NoSuchHolder(holder.clone()))
}

async fn commit(
    change: HolderChange<'_>,
    holder: &Holder,
    word: &str,
    stored: &StoredHolder,
    invocation: Invocation,
) -> Result<Outcome, CommandError> {
    let entry = AuditEntry {
        at: invocation.at,
        org_id: Some(stored.org_id),
        actor: invocation.actor,
        action: format!("{} {word}", kind(holder)),
        subject: holder.name().to_owned(),
    };
    change.commit(&entry).await?;
    Ok(Outcome::Done(entry))
}

const fn kind(holder: &Holder) -> &'static str {
    match holder {
        Holder::Till(_) => "till",
        Holder::Client(_) => "client",
    }
}
