//! Rotating the keys that sign access tokens, where they are kept in the database, and telling what there is.
//!
//! A new key is published a minute before it signs, and an old one verifies until its last token has ended: no call fails.

use std::fmt;

use jiff::{SignedDuration, Timestamp};
use sqlx::postgres::PgConnectOptions;

use super::commands::{Order, Outcome};
use crate::auth::{KeyError, generate_signing_key};
use crate::db::audit::AuditEntry;
use crate::db::{Db, SigningKeyRow, store_next_signing_key};

/// How long a key is published before it signs. A replica that hears of no change reads its keys again within seconds.
const PUBLISHED_AHEAD: SignedDuration = SignedDuration::from_mins(1);
/// How much longer than its tokens an old key verifies: clocks differ.
const MARGIN_SECONDS: i32 = 300;

/// Makes a key that is to take over in a minute.
///
/// # Errors
/// When the database cannot be asked, or no key can be made.
pub async fn rotate(connect: &PgConnectOptions, order: Order) -> Result<Outcome, KeyError> {
    let signs_from = order.at.saturating_add(PUBLISHED_AHEAD).unwrap_or(order.at);
    let key = generate_signing_key(signs_from).await?;
    let entry = AuditEntry {
        at: order.at,
        org_id: None,
        actor: order.actor,
        action: "keys rotate".to_owned(),
        subject: key.kid.clone(),
    };
    store_next_signing_key(connect, &key, MARGIN_SECONDS, &entry).await?;
    Ok(Outcome::Done(entry))
}

/// The keys in the database, the newest first. Displays as a table.
pub struct KeyList {
    keys: Vec<SigningKeyRow>,
    at: Timestamp,
}

/// Lists the keys as they are at this instant.
///
/// # Errors
/// When the database cannot be asked.
pub async fn list(db: &Db, at: Timestamp) -> Result<KeyList, KeyError> {
    Ok(KeyList { keys: db.signing_keys().await?, at })
}

impl fmt::Display for KeyList {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.keys.is_empty() {
            return formatter.write_str("no keys: the service makes one when it starts");
        }
        write!(formatter, "{:<18} {:<21} {:<21} state", "kid", "signs from", "verifies until")?;
        // The list begins with the newest: the first whose time has come signs, or the oldest if none's has.
        let signing = self.keys.iter().position(|key| key.signs_from <= self.at).unwrap_or(self.keys.len() - 1);
        for (place, key) in self.keys.iter().enumerate() {
            let until = key.verifies_until.map_or_else(|| "-".to_owned(), |until| format!("{until:.0}"));
            let state = match key.verifies_until {
                Some(until) if until <= self.at => "ended",
                _ if place == signing => "signs",
                _ if place < signing => "is published, signs later",
                _ => "verifies",
            };
            write!(formatter, "\n{:<18} {:<21} {until:<21} {state}", key.kid, format!("{:.0}", key.signs_from))?;
        }
        Ok(())
    }
}
