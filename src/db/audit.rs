//! The record of what was done to credentials and keys from the command line.
//!
//! An entry is written in the transaction of what it tells, and never changed. Never a secret.

use std::fmt;

use jiff::Timestamp;
use jiff_sqlx::ToSqlx;
use sqlx::PgConnection;

use super::DbError;
use crate::model::OrgId;

/// Something that was done. Displays as the line that is told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditEntry {
    /// When.
    pub at: Timestamp,
    /// To which organisation. `None`: to the service as a whole.
    pub org_id: Option<OrgId>,
    /// The user and host of the command.
    pub actor: String,
    /// The command, such as `till disable`.
    pub action: String,
    /// The till, client or key.
    pub subject: String,
}

impl fmt::Display for AuditEntry {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, org_id, actor, action, subject } = self;
        write!(formatter, "{at:.0} audit: {action} {subject}")?;
        if let Some(org_id) = org_id {
            write!(formatter, " (org {})", org_id.0)?;
        }
        write!(formatter, " by {actor}")
    }
}

/// Records an entry, in the transaction that this connection is in.
///
/// # Errors
/// When the database cannot be asked.
pub async fn record(connection: &mut PgConnection, entry: &AuditEntry) -> Result<(), DbError> {
    sqlx::query("insert into audit_log (at, org_id, actor, action, subject) values ($1, $2, $3, $4, $5)")
        .bind(entry.at.to_sqlx())
        .bind(entry.org_id.map(|id| id.0))
        .bind(&entry.actor)
        .bind(&entry.action)
        .bind(&entry.subject)
        .execute(connection)
        .await?;
    Ok(())
}
