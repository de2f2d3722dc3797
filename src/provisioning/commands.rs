//! Commands about one till or client: switch it off and on, give it another password or secret, make its tokens void.
//!
//! Each takes effect at once and leaves an entry in the audit record. A password or secret is never told.

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

/// Why a command was not carried out. Nothing is changed then.
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

/// What a command has done. Displays as the line that is told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It was carried out, and recorded.
    Done(AuditEntry),
    /// It was so before: nothing was changed, nor recorded.
    WasSo(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done(entry) => entry.fmt(formatter),
            Self::WasSo(line) => formatter.write_str(line),
        }
    }
}

/// Who gives a command, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// A user and host.
    pub actor: String,
    /// The instant.
    pub at: Timestamp,
}

impl Order {
    /// A command of whoever runs this process, given now.
    #[must_use]
    pub fn now(clock: &dyn Clock) -> Self {
        Self { actor: actor(), at: clock.now() }
    }
}

/// Disables a till or client, or enables it.
///
/// # Errors
/// When there is no such till or client, or the database cannot be asked.
pub async fn set_disabled(
    connect: &PgConnectOptions,
    holder: &Holder,
    disabled: bool,
    order: Order,
) -> Result<Outcome, CommandError> {
    let (mut change, stored) = begin(connect, holder).await?;
    if stored.is_disabled == disabled {
        let state = if disabled { "disabled" } else { "enabled" };
        return Ok(Outcome::WasSo(format!("{} {} was {state} already", kind(holder), holder.name())));
    }
    change.set_disabled(disabled).await?;
    commit(change, holder, if disabled { "disable" } else { "enable" }, &stored, order).await
}

/// Gives a till another password, or a client another secret. Tokens that the client has stay good.
///
/// # Errors
/// When there is no such till or client, the client's tokens come from an outside issuer, or the database cannot be asked.
pub async fn set_secret(
    connect: &PgConnectOptions,
    holder: &Holder,
    secret: SecretString,
    order: Order,
) -> Result<Outcome, CommandError> {
    let (secret, word) = match holder {
        Holder::Till(_) => (till_password(&secret), "set-password"),
        Holder::Client(_) => (secret, "set-secret"),
    };
    // Slow on purpose; nothing is locked yet.
    let hashed = tokio::task::spawn_blocking(move || hash_secret(&secret)).await;
    let hash = hashed.map_err(|error| CommandError::Secret(error.to_string()))?;
    let hash = hash.map_err(|error| CommandError::Secret(error.to_string()))?;
    let (mut change, stored) = begin(connect, holder).await?;
    if let Some(issuer) = stored.issuer {
        return Err(CommandError::TokensFromIssuer { key: holder.name().to_owned(), issuer });
    }
    change.set_secret_hash(&hash).await?;
    commit(change, holder, word, &stored, order).await
}

/// Makes every token that a client has been given so far void.
///
/// # Errors
/// When there is no such client, or the database cannot be asked.
pub async fn revoke_tokens(connect: &PgConnectOptions, key: &str, order: Order) -> Result<Outcome, CommandError> {
    let holder = Holder::Client(key.to_owned());
    let (mut change, stored) = begin(connect, &holder).await?;
    change.void_tokens_before(order.at).await?;
    commit(change, &holder, "revoke-tokens", &stored, order).await
}

/// Who gives a command: a user (the one behind `sudo`, if that was used) and a host.
fn actor() -> String {
    let sudo_user = std::env::var("SUDO_USER").ok().and_then(|name| word(&name));
    let user = sudo_user.or_else(|| word(&whoami::username().ok()?));
    let host = whoami::hostname().ok().and_then(|name| word(&name));
    let unknown = || "unknown".to_owned();
    format!("{}@{}", user.unwrap_or_else(unknown), host.unwrap_or_else(unknown))
}

/// What may stand in a line of the record: nobody can write a second line, or a long one, by way of the environment.
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
    order: Order,
) -> Result<Outcome, CommandError> {
    let entry = AuditEntry {
        at: order.at,
        org_id: Some(stored.org_id),
        actor: order.actor,
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
