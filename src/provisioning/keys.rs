//! Rotates and lists the keys that sign access tokens, where the database holds them.
//!
//! A new key is published a minute before it signs, and an old key verifies until its last token has expired, so that no call
//! fails during a rotation.

use std::fmt;

use jiff::{SignedDuration, Timestamp};
use sqlx::postgres::PgConnectOptions;

use super::commands::{Invocation, Outcome};
use crate::auth::{KeyError, generate_signing_key};
use crate::db::audit::AuditEntry;
use crate::db::{Db, SigningKeyRow, store_next_signing_key};

/// The time between the publication of a key and its first signature. A replica that misses the notification still reloads its
/// keys within seconds.
const PUBLICATION_LEAD: SignedDuration = SignedDuration::from_mins(1);
/// An old key verifies this much longer than its last token lives, since clocks differ.
const EXPIRY_MARGIN_SECONDS: i32 = 300;

/// Generates the key that signs from the next minute on.
///
/// # Errors
/// When no key can be generated, or a query fails.
pub async fn rotate(connect: &PgConnectOptions, invocation: Invocation) -> Result<Outcome, KeyError> {
    let signs_from = invocation.at.saturating_add(PUBLICATION_LEAD).unwrap_or(invocation.at);
    let key = generate_signing_key(signs_from).await?;
    let entry = AuditEntry {
        at: invocation.at,
        org_id: None,
        actor: invocation.actor,
        action: "keys rotate".to_owned(),
        subject: key.kid.clone(),
    };
    store_next_signing_key(connect, &key, EXPIRY_MARGIN_SECONDS, &entry).await?;
    Ok(Outcome::Done(entry))
}

/// The keys in the database, newest first. Displays as a table.
pub struct KeyList {
    keys: Vec<SigningKeyRow>,
    at: Timestamp,
}

/// Lists the keys and their states at this instant.
///
/// # Errors
/// When the query fails.
pub async fn list(db: &Db, at: Timestamp) -> Result<KeyList, KeyError> {
    Ok(KeyList { keys: db.signing_keys().await?, at })
}

impl fmt::Display for KeyList {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.keys.is_empty() {
            return formatter.write_str("no keys: the service generates one when it starts");
        }
        write!(formatter, "{:<18} {:<21} {:<21} state", "kid", "signs from", "verifies until")?;
        // The newest key whose time has come signs. If there is none yet, the oldest key signs.
        let signing = self.keys.iter().position(|key| key.signs_from <= self.at).unwrap_or(self.keys.len() - 1);
        for (index, key) in self.keys.iter().enumerate() {
            let until = key.verifies_until.map_or_else(|| "-".to_owned(), |until| format!("{until:.0}"));
            let state = match key.verifies_until {
                Some(until) if until <= self.at => "ended",
                _ if index == signing => "signs",
                _ if index < signing => "is published, signs later",
                _ => "verifies",
            };
            write!(formatter, "\n{:<18} {:<21} {until:<21} {state}", key.kid, format!("{:.0}", key.signs_from))?;
        }
        Ok(())
    }
}
