//! The receipt of a keyed request: its result so far, without a retry (contract 6). All it shows is durable.

use std::sync::Arc;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use tokio::time::Instant;

use super::answers::EntityAnswer;
use super::error::IssueError;
use super::key_claim::request_name;
use super::outcome::{Entity, Granted};
use super::refusal::Refusal;
use super::resources::Resources;
use super::stored_outcomes::StoredOutcomes;
use crate::db::StoredRequest;
use crate::model::{Caller, OrgId};

/// How often a receipt is read at most. It is read again if the connection breaks before the flush is confirmed.
const MAX_READS: u32 = 5;

/// How far a keyed request has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// An attempt is running.
    Running,
    /// The last attempt has answered every entity.
    Answered,
    /// The last attempt was aborted, or could not store its end. A retry finishes the request.
    Interrupted,
}

/// The state of a keyed request. An entity with an unknown outcome is shown as [`Refusal::InDoubt`].
#[derive(Debug, Clone)]
pub struct Receipt {
    /// The organisation's time zone, for `received_at`.
    pub zone: TimeZone,
    /// The outcome of each entity.
    pub entities: Vec<Entity>,
    /// How far the request has come.
    pub progress: Progress,
    /// When the service first received the request.
    pub received_at: Timestamp,
}

/// `None`: the organisation has no such request.
pub(super) async fn load_receipt(
    resources: &Resources,
    caller: &Caller,
    key: &str,
    deadline: Instant,
) -> Result<Option<Receipt>, IssueError> {
    let Some((stored, loaded)) = read_flushed(resources, caller.org_id, key, deadline).await? else { return Ok(None) };
    let organisation = resources.current_organisation(caller).await?;
    let outcomes: Vec<Option<Result<Granted, Refusal>>> =
        (0..loaded.answers().len()).map(|index| loaded.outcome(index)).collect();
    let progress = if outcomes.iter().all(Option::is_some) {
        Progress::Answered
    } else if stored.is_in_progress {
        Progress::Running
    } else {
        Progress::Interrupted
    };
    let entity = |(entity, outcome): (&EntityAnswer, Option<_>)| Entity {
        series_id: entity.series_id,
        outcome: outcome.unwrap_or(Err(Refusal::InDoubt)).map(Arc::new),
    };
    Ok(Some(Receipt {
        zone: organisation.time_zone.clone(),
        entities: loaded.answers().iter().zip(outcomes).map(entity).collect(),
        progress,
        received_at: stored.received_at,
    }))
}

/// Reads the request and its coupons until what was read is flushed.
async fn read_flushed(
    resources: &Resources,
    org_id: OrgId,
    key: &str,
    deadline: Instant,
) -> Result<Option<(StoredRequest, StoredOutcomes)>, IssueError> {
    let request = request_name(org_id, key);
    for _ in 0..MAX_READS {
        let read_since = Instant::now();
        let stored = resources.db.keyed_request(request, resources.lease_seconds()).await?;
        let Some(stored) = stored else { return Ok(None) };
        let loaded = StoredOutcomes::load(resources, org_id, stored.claim, &stored.answers).await?;
        if resources.wait_for_flush(read_since, deadline).await? {
            return Ok(Some((stored, loaded)));
        }
    }
    Err(IssueError::Unavailable(None))
}
