//! Keyed requests (contract 6): an attempt at one, what earlier attempts have issued, and the receipt.
//!
//! That an entity is issued once rests on the record that commits with its coupon; whose turn it is only spares callers an
//! answer made of two attempts at once.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::time::Instant;
use tracing::Instrument;

use super::{Entity, Granted, Issuance, IssueError, IssueRequest, Issuer, Refusal, within};
use crate::model::{Caller, CustomerId, Metadata, Organisation, Series, SeriesId};
use crate::seldom::Seldom;
use crate::store::writer::{Beginning, KeyedEntity, Work, Written};
use crate::store::{Begun, KeyedRequest, NewAttempt, RecordedCoupon, StoreError};
use crate::traces;

/// How much longer than its time an attempt is believed to be at work, where it does not say that it is over.
const HELD_LONGER: SignedDuration = SignedDuration::from_secs(5);

/// So often is a receipt read, where a connection breaks each time before it is known to be flushed.
const MOST_READINGS: u32 = 5;

/// How long the caller waits for the end of an attempt to be stored: its answer is known by then.
const END_WITHIN: Duration = Duration::from_secs(1);

static UNSTORED: Seldom = Seldom::new();

/// What names a request, so that trying it again finishes it.
#[derive(Debug, Clone)]
pub struct RequestKey {
    /// The caller's name for it.
    pub key: Arc<str>,
    /// What it asks for.
    pub fingerprint: Fingerprint,
}

/// A hash of all that a request asks for: another request under the same key is a mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fingerprint {
    /// All that it asks for.
    pub hash: [u8; 32],
    /// As version 1 took it, if that can be told from all others.
    pub of_version_1: Option<[u8; 32]>,
}

impl Fingerprint {
    /// Stands before the hash where it is stored. Version 1 had 32 bytes and no version before them.
    const VERSION: u8 = 2;

    fn stored(&self) -> Vec<u8> {
        [&[Self::VERSION], self.hash.as_slice()].concat()
    }
}

/// One attempt at a keyed request.
pub(super) struct Attempt {
    new: Arc<NewAttempt>,
    stage: Stage,
    /// What a request that version 1 has recorded would have as its fingerprint. `None` once it was looked for.
    of_version_1: Option<[u8; 32]>,
}

/// How far an attempt is.
#[derive(Clone, Copy)]
enum Stage {
    /// It may begin with its first coupon, in that coupon's transaction.
    Ahead,
    /// It did not begin so, or a crash has taken that back: it has to begin before anything is written.
    Unbegun,
    /// It begins with what is on its way.
    Beginning,
    /// It has begun.
    Begun,
}

impl Attempt {
    /// One that is to be begun.
    pub(super) fn new(issuer: &Issuer, request: &IssueRequest, key: &RequestKey) -> Result<Self, IssueError> {
        let now = issuer.clock.now();
        let time = SignedDuration::try_from(issuer.limits.timeout).unwrap_or(SignedDuration::MAX);
        let held_until = now.saturating_add(time).and_then(|end| end.saturating_add(HELD_LONGER)).unwrap_or(now);
        let new = NewAttempt {
            request: KeyedRequest { org_id: request.caller.org_id, key: Arc::clone(&key.key) },
            fingerprint: key.fingerprint.stored(),
            series_ids: request.series_ids.as_slice().into(),
            attempt: issuer.entropy.uuid()?,
            now,
            held_until,
        };
        Ok(Self { new: Arc::new(new), stage: Stage::Ahead, of_version_1: key.fingerprint.of_version_1 })
    }

    /// Begins it at once, unless another is at work. Whether the request was seen before: whatever was issued then counts.
    pub(super) async fn begin(&mut self, issuer: &Issuer) -> Result<bool, IssueError> {
        let begin = self.begun(issuer).instrument(traces::span!("begin a keyed request"));
        let was_seen = match begin.await? {
            Begun::Running => return Err(IssueError::StillRunning),
            Begun::Another => return Err(IssueError::KeyReused),
            Begun::New => false,
            Begun::Known => true,
        };
        self.stage = Stage::Begun;
        Ok(was_seen)
    }

    /// A request that is recorded under another fingerprint may be this one, recorded by version 1: this attempt then goes on under
    /// the fingerprint of the record.
    async fn begun(&mut self, issuer: &Issuer) -> Result<Begun, StoreError> {
        let begun = issuer.beginnings.begin(&self.new).await?;
        let (Begun::Another, Some(of_version_1)) = (begun, self.of_version_1.take()) else { return Ok(begun) };
        let recorded = Arc::new(NewAttempt { fingerprint: of_version_1.to_vec(), ..(*self.new).clone() });
        let begun = issuer.beginnings.begin(&recorded).await?;
        if begun != Begun::Another {
            self.new = recorded;
        }
        Ok(begun)
    }

    /// Has it begin with the first of these coupons, which are all that the request asks for.
    pub(super) fn begin_with(&mut self, works: &mut [Work]) {
        let mut keyed = Vec::new();
        for work in works {
            if let Work::Issue(coupon) = work {
                keyed.extend(coupon.keyed.as_mut().map(|keyed| (coupon.series_id, keyed)));
            }
        }
        // As the writer goes through them, unless it has to settle a batch that broke.
        keyed.sort_by_key(|(series_id, _)| series_id.0);
        for (place, (_, keyed)) in keyed.into_iter().enumerate() {
            let begins = if place == 0 { Beginning::Here } else { Beginning::Elsewhere };
            keyed.attempt = Some((Arc::clone(&self.new), begins));
        }
        self.stage = Stage::Beginning;
    }

    /// Learns from what became of its coupons whether it has begun.
    pub(super) fn learn(&mut self, written: &[Written]) {
        self.stage = match self.stage {
            Stage::Beginning if written.iter().any(|one| matches!(one, Written::Issued(_))) => Stage::Begun,
            Stage::Beginning if written.contains(&Written::InDoubt) => Stage::Beginning,
            Stage::Beginning => Stage::Unbegun,
            // A crash has taken it back.
            Stage::Begun if written.contains(&Written::Unbegun) => Stage::Unbegun,
            stage => stage,
        };
    }

    /// Whether it may begin with what is written first.
    pub(super) const fn is_ahead(&self) -> bool {
        matches!(self.stage, Stage::Ahead)
    }

    /// Whether it is known to have begun: else the key may have been used before.
    pub(super) const fn is_begun(&self) -> bool {
        matches!(self.stage, Stage::Begun)
    }

    /// Whether it has to be begun before anything is written.
    pub(super) const fn is_unbegun(&self) -> bool {
        matches!(self.stage, Stage::Unbegun)
    }

    /// Under what its coupons are recorded.
    pub(super) fn ledger(&self) -> Ledger {
        Ledger { request: self.new.request.clone(), attempt: Some(Arc::clone(&self.new)) }
    }

    /// Ends it. Where that cannot be stored, it ends when its time is over.
    pub(super) async fn end(self, issuer: &Issuer, result: &Result<Issuance, IssueError>) {
        // A request that failed as a whole was told nothing of its entities: what is stored of them stays.
        let told = result.as_ref().ok().map(|issuance| untaken(&issuance.entities));
        // All of it is issued: the records say so themselves.
        if matches!(self.stage, Stage::Ahead) || told.as_ref().is_some_and(Vec::is_empty) {
            return;
        }
        let told = match told.map(serde_json::to_value).transpose() {
            Ok(told) => told,
            Err(error) => {
                tracing::error!(%error, "what an attempt at a keyed request was answered cannot be stored");
                None
            }
        };
        let stored = issuer.store.end_request(&self.new.request, self.new.attempt, told);
        if let Err(error) = within(Instant::now() + END_WITHIN, stored).await {
            UNSTORED.tell(
                |times| tracing::warn!(%error, times, "the end of an attempt at a keyed request cannot be stored"),
            );
        }
    }
}

/// Where the coupons of a request are recorded, so that none is issued twice.
#[derive(Clone)]
pub(super) struct Ledger {
    request: KeyedRequest,
    /// None: the key is a natural one.
    attempt: Option<Arc<NewAttempt>>,
}

impl Ledger {
    /// That of a request without a key, in an organisation where what caused an issuance identifies it.
    pub(super) fn natural(organisation: &Organisation, customer_id: &CustomerId, metadata: &Metadata) -> Option<Self> {
        if !organisation.natural_key {
            return None;
        }
        let source_type = metadata.source_type.as_deref().filter(|text| !text.trim().is_empty())?;
        let source_id = metadata.source_id.as_deref().filter(|text| !text.trim().is_empty())?;
        let mut hash = Sha256::new();
        for part in [customer_id.0.as_str(), source_type, source_id] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part.as_bytes());
        }
        // No key of a request begins so: a header holds no line feed.
        let key = format!("\n{}", URL_SAFE_NO_PAD.encode(hash.finalize()));
        Some(Self { request: KeyedRequest { org_id: organisation.id, key: key.into() }, attempt: None })
    }

    /// Whether the key is a natural one.
    pub(super) const fn is_natural(&self) -> bool {
        self.attempt.is_none()
    }

    /// What was issued before, by the entities' numbers. Committed, and not to be told before it is flushed.
    pub(super) async fn issued(&self, issuer: &Issuer) -> Result<HashMap<i64, Granted>, IssueError> {
        let recorded = issuer.store.recorded(&self.request).await?;
        Ok(recorded.into_iter().map(|coupon| (coupon.entity, granted(coupon))).collect())
    }

    /// Under which number an entity is recorded.
    pub(super) fn number(&self, place: usize, series_id: SeriesId) -> i64 {
        // A request has a few hundred entities at most.
        if self.is_natural() { series_id.0 } else { i64::try_from(place).unwrap_or(i64::MAX) }
    }

    /// Names an entity, to be recorded with its coupon.
    pub(super) fn entity(&self, place: usize, series: &Series) -> KeyedEntity {
        let (request_key, face) = (Arc::clone(&self.request.key), Arc::clone(&series.face));
        let attempt = self.attempt.clone().map(|attempt| (attempt, Beginning::Before));
        KeyedEntity { request_key, entity: self.number(place, series.id), face, attempt }
    }
}

fn granted(coupon: RecordedCoupon) -> Granted {
    Granted {
        face: coupon.face,
        code: coupon.code,
        expires_on: coupon.expires_on,
        redemption_count: 0,
        resent: false,
        replayed: true,
    }
}

/// What is stored of an entity that an attempt has issued no coupon for.
#[derive(Serialize, Deserialize)]
struct Untaken {
    entity: usize,
    #[serde(flatten)]
    instead: Instead,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Instead {
    Refused(Refusal),
    Resent(Granted),
}

fn untaken(entities: &[Entity]) -> Vec<Untaken> {
    let instead = |one: &Entity| match &one.outcome {
        Ok(granted) => granted.resent.then(|| Instead::Resent(granted.clone())),
        Err(refusal) => Some(Instead::Refused(*refusal)),
    };
    let untaken = |(entity, one)| Some(Untaken { entity, instead: instead(one)? });
    entities.iter().enumerate().filter_map(untaken).collect()
}

impl From<Instead> for Result<Granted, Refusal> {
    fn from(instead: Instead) -> Self {
        match instead {
            Instead::Refused(refusal) => Err(refusal),
            Instead::Resent(granted) => Ok(Granted { resent: true, ..granted }),
        }
    }
}

/// How far a keyed request has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// An attempt is at work on it.
    Running,
    /// The last attempt came to its end.
    Answered,
    /// The last attempt broke off, or could not be told: trying again finishes it.
    Interrupted,
}

/// What is known of a keyed request. An entity of which nothing is known is told as [`Refusal::TimedOut`].
#[derive(Debug, Clone)]
pub struct Receipt {
    /// The organisation's time zone, in which dates are told.
    pub zone: TimeZone,
    /// What became of each entity.
    pub entities: Vec<Entity>,
    /// How far it has come.
    pub progress: Progress,
    /// When it was first seen.
    pub started_at: Timestamp,
}

/// Looks a keyed request up. `None`: the organisation has no such request. What it tells is durable.
pub(super) async fn receipt(issuer: &Issuer, caller: &Caller, key: &str) -> Result<Option<Receipt>, IssueError> {
    let request = KeyedRequest { org_id: caller.org_id, key: key.into() };
    let deadline = Instant::now() + issuer.limits.timeout;
    let mut readings = 0;
    let stored = loop {
        let read_since = Instant::now();
        let Some(stored) = issuer.store.receipt(&request).await? else { return Ok(None) };
        if flushed(issuer, read_since, deadline).await? {
            break stored;
        }
        readings += 1;
        if readings == MOST_READINGS {
            return Err(IssueError::Unavailable(None));
        }
    };
    let organisation = issuer.directory.organisation(caller.org_id).await?;
    let organisation =
        organisation.ok_or_else(|| IssueError::Internal("the caller's organisation is missing".to_owned()))?;

    let mut outcomes: Vec<Option<Result<Granted, Refusal>>> = vec![None; stored.series_ids.len()];
    let told = stored.refusals.map_or_else(Vec::new, |refusals| readable(&request, refusals));
    let told = told.into_iter().map(|untaken| (untaken.entity, Some(untaken.instead.into())));
    // A place that the request does not have belongs to none of its entities.
    let place = |coupon: &RecordedCoupon| usize::try_from(coupon.entity).unwrap_or(usize::MAX);
    let recorded = stored.coupons.into_iter().map(|coupon| (place(&coupon), Some(Ok(granted(coupon)))));
    for (entity, outcome) in told.chain(recorded) {
        if let Some(slot) = outcomes.get_mut(entity) {
            *slot = outcome;
        }
    }
    let is_issued =
        |outcome: &Option<Result<Granted, Refusal>>| matches!(outcome, Some(Ok(granted)) if !granted.resent);
    let progress = match stored.held_until {
        _ if outcomes.iter().all(is_issued) => Progress::Answered,
        Some(until) if until > issuer.clock.now() => Progress::Running,
        None if outcomes.iter().all(Option::is_some) => Progress::Answered,
        Some(_) | None => Progress::Interrupted,
    };
    let entity =
        |(series_id, outcome): (_, Option<_>)| Entity { series_id, outcome: outcome.unwrap_or(Err(Refusal::TimedOut)) };
    Ok(Some(Receipt {
        zone: organisation.time_zone.clone(),
        entities: stored.series_ids.into_iter().zip(outcomes).map(entity).collect(),
        progress,
        started_at: stored.started_at,
    }))
}

/// What is stored of the entities without a coupon. What this version cannot read, because a newer one has stored it, is left
/// out: nothing is known of such an entity, and trying again finishes it.
fn readable(request: &KeyedRequest, refusals: Value) -> Vec<Untaken> {
    let (org_id, request_key) = (request.org_id.0, &*request.key);
    let unreadable = |error: &serde_json::Error| {
        tracing::error!(%error, org_id, request_key, "what is stored of a keyed request cannot be read");
    };
    let stored: Vec<Value> = match serde_json::from_value(refusals) {
        Ok(stored) => stored,
        Err(error) => {
            unreadable(&error);
            return Vec::new();
        }
    };
    stored.into_iter().filter_map(|one| serde_json::from_value(one).inspect_err(unreadable).ok()).collect()
}

/// Waits until everything that was read since then is flushed. False: a crash may have taken it back, it must be read again.
///
/// # Errors
/// [`IssueError::Unavailable`] where that cannot be found out: the database is away, or takes no writes.
pub(super) async fn flushed(issuer: &Issuer, read_since: Instant, deadline: Instant) -> Result<bool, IssueError> {
    let works = vec![Work::Confirm(read_since)];
    let written = issuer.writer.write(works, deadline).await.map_err(|_| IssueError::Overloaded)?;
    match written.first() {
        Some(Written::Confirmed) => Ok(true),
        Some(Written::Unconfirmed) => Ok(false),
        // Not in time, or not at all. What only coupons can become does not come here.
        _ => Err(IssueError::Unavailable(None)),
    }
}
