//! The audit log of administrative commands.

use std::fmt;

use jiff::Timestamp;
use jiff_sqlx::ToSqlx;
use sqlx::PgConnection;

use crate::db::error::DbError;
use crate::model::OrgId;

/// An administrative command in the audit log. It never holds a secret. Displays as the line that the command prints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditEntry {
    /// When the command ran.
    pub at: Timestamp,
    /// The organisation; `None`: the service as a whole.
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

/// Adds an entry to the audit log. Call it in the transaction of the change.
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
