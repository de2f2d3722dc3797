//! Holding an `Idempotency-Key` (contract 6): how an attempt claims the key, and how it may lose the claim.
//! `db::claims` stores the keys, or the writer together with a coupon.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::time::Instant;
use tracing::Instrument;
use uuid::Uuid;

use super::answers::{self, Answer, EntityAnswer};
use super::deadline::before_deadline;
use super::error::IssueError;
use super::request::{IssueRequest, RequestKey};
use super::resources::Resources;
use crate::db::writer::{AttemptEnd, KeyHold, KeyedEntity, WriteOutcome};
use crate::db::{Claim, ClaimOutcome, NewClaim, RequestName};
use crate::model::OrgId;
use crate::telemetry::throttle::Throttle;
use crate::telemetry::traces;

/// An answer waits at most this long until the end of its attempt is stored.
const END_TIMEOUT: Duration = Duration::from_secs(1);
/// The writer may store it later: an early deadline would be that of the whole batch.
const END_DEADLINE: Duration = Duration::from_secs(5);

static END_NOT_STORED: Throttle = Throttle::new();

/// The state of an attempt's claim to its key.
///
/// ```text
///              ┌─────── the queue is full ───────┐
///              ▼                                 │
///  new ──▶ Unclaimed ─── with the coupons ──▶ InFlight ─── none claimed, one in doubt ──▶ Uncertain
///              │                               │    │
///              │          none claimed the key │    └── one claimed the key ─────────┐
///              │                               ▼                                     ▼
///              │                             Lapsed ◀── not found under the key ─── Held
///              │                               │                                     ▲
///              └───────────────────────────────┴── by a statement: new or resumed ───┘
/// ```
///
/// A statement that fails (409, 422, database unavailable) leaves the state unchanged, and the request ends. At the end, `Held` stores
/// the answers if they changed, and `Lapsed` releases the claim that it lost. The other states store nothing.
///
/// An attempt loses its claim when a crash undoes it or another attempt takes over. The primary key of `coupon`, not the claim,
/// prevents a second coupon. The claim keeps two attempts from answering at once, and shows which entities are certainly not issued.
#[derive(Debug)]
pub(super) enum KeyClaim {
    /// Nothing was sent. The first coupons may claim the key, in the transaction of one of them.
    Unclaimed(Arc<NewClaim>),
    /// The writer has coupons that claim the key, with these answers.
    InFlight(Arc<NewClaim>, Arc<str>),
    /// The attempt holds the key.
    Held(HeldKey),
    /// A statement must claim the key before anything is written. Holds the claim that was lost, or that may be stored.
    Lapsed(Arc<NewClaim>, Option<Claim>),
    /// It is unknown whether the coupons that were to claim the key are stored.
    Uncertain(Arc<NewClaim>),
}

/// A key that the attempt holds.
#[derive(Debug)]
pub(super) struct HeldKey {
    new: Arc<NewClaim>,
    pub(super) claim: Claim,
    /// Whether nothing was issued under the key before.
    is_new: bool,
    /// The stored answers.
    pub(super) answers: Arc<str>,
}

/// The result of a claim by a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Claimed {
    /// Nothing was issued under the key before.
    New,
    /// Something may have been issued under the key.
    Resumed,
}

/// The first 16 bytes of the SHA-256, like the SQL function `key_hash_1`.
pub(super) fn hash16(hash: Sha256) -> Uuid {
    let digest = hash.finalize();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    Uuid::from_bytes(bytes)
}

pub(super) fn request_name(org_id: OrgId, key: &str) -> RequestName {
    RequestName { org_id, key_hash: hash16(Sha256::new_with_prefix(key.as_bytes())) }
}

impl HeldKey {
    pub(super) fn request_and_claim(&self) -> (RequestName, Claim) {
        (self.new.request, self.claim)
    }

    /// Whether nothing was issued under the key before.
    pub(super) const fn is_new(&self) -> bool {
        self.is_new
    }

    /// The answers to store at the end. `None`: the stored answers stay. `answers` is `None` if the request failed as a whole.
    fn final_answers(&self, answers: Option<&[EntityAnswer]>) -> Option<String> {
        let stored = answers::split(&self.answers);
        let Some(answers) = answers else {
            // The caller got none of the answers that a new claim has stored.
            let unanswered = stored.into_iter().map(|entity| EntityAnswer { answer: Answer::NewCoupon, ..entity });
            return self.is_new.then(|| answers::join(unanswered));
        };
        // A resend of an earlier attempt is final, even if this attempt could not show it.
        let is_final = |entity: &EntityAnswer| matches!(entity.answer, Answer::Resent(_)) && !self.is_new;
        let merged = answers.iter().enumerate().map(|(index, entity)| match stored.get(index) {
            Some(earlier) if is_final(earlier) && matches!(entity.answer, Answer::Refused(_)) => *earlier,
            _ => *entity,
        });
        Some(answers::join(merged))
    }
}

impl KeyClaim {
    pub(super) fn new(resources: &Resources, request: &IssueRequest, key: &RequestKey, incarnation: i32) -> Self {
        Self::Unclaimed(Arc::new(NewClaim {
            request: request_name(request.caller.org_id, &key.key),
            fingerprint: key.fingerprint,
            entities: request.series_ids.len(),
            incarnation,
            lease_seconds: resources.lease_seconds(),
            possible_claim: OnceLock::new(),
        }))
    }

    const fn new_claim(&self) -> &Arc<NewClaim> {
        match self {
            Self::Unclaimed(new)
            | Self::InFlight(new, _)
            | Self::Held(HeldKey { new, .. })
            | Self::Lapsed(new, _)
            | Self::Uncertain(new) => new,
        }
    }

    /// The key, if the attempt holds it.
    pub(super) const fn held(&self) -> Option<&HeldKey> {
        match self {
            Self::Held(held) => Some(held),
            Self::Unclaimed(_) | Self::InFlight(..) | Self::Lapsed(..) | Self::Uncertain(_) => None,
        }
    }

    /// Claims the key by a statement. If the key is new, the statement stores these answers with it.
    ///
    /// # Errors
    /// [`IssueError::StillRunning`], [`IssueError::KeyReused`], or an error of the database.
    pub(super) async fn claim(
        self,
        resources: &Resources,
        answers: String,
        deadline: Instant,
    ) -> Result<(Self, Claimed), (Self, IssueError)> {
        let new = Arc::clone(self.new_claim());
        let stored: Arc<str> = answers.as_str().into();
        let claim = async {
            if let Self::Lapsed(_, Some(lost)) = &self {
                // Should the lost claim still exist, it must not block this attempt.
                resources.db.end_attempt(new.request, *lost).await?;
            }
            resources.claims.claim(&new, answers).await
        };
        let outcome = before_deadline(deadline, claim.instrument(traces::span!("claim the key"))).await;
        if let Ok(outcome) = &outcome {
            resources.metrics.claims.record(outcome);
        }
        match outcome {
            Ok(ClaimOutcome::Acquired(claim)) => {
                Ok((Self::Held(HeldKey { new, claim, is_new: true, answers: stored }), Claimed::New))
            }
            Ok(ClaimOutcome::Resumed { claim, answers, .. }) => {
                Ok((Self::Held(HeldKey { new, claim, is_new: false, answers: answers.into() }), Claimed::Resumed))
            }
            Ok(ClaimOutcome::InProgress) => Err((self, IssueError::StillRunning)),
            Ok(ClaimOutcome::FingerprintMismatch) => Err((self, IssueError::KeyReused)),
            Err(error) => Err((self, error)),
        }
    }

    /// Lets the coupons of the next write claim the key, with these answers, if nothing was sent before.
    pub(super) fn claim_with_coupons(self, answers: String) -> Self {
        match self {
            Self::Unclaimed(new) => Self::InFlight(new, answers.into()),
            other => other,
        }
    }

    /// The key under which the writer stores the entity at this index. `None`: the key must be claimed first.
    pub(super) fn keyed_entity(&self, index: usize) -> Option<KeyedEntity> {
        let hold = match self {
            Self::InFlight(_, answers) => KeyHold::ClaimedWith(Arc::clone(answers)),
            Self::Held(HeldKey { claim, is_new: true, .. }) => KeyHold::Acquired(*claim),
            Self::Held(HeldKey { claim, is_new: false, .. }) => KeyHold::Resumed(*claim),
            Self::Unclaimed(_) | Self::Lapsed(..) | Self::Uncertain(_) => return None,
        };
        Some(KeyedEntity { key: Arc::clone(self.new_claim()), index, hold })
    }

    /// The state after the writer's queue rejected the coupons.
    pub(super) fn after_rejection(self) -> Self {
        match self {
            Self::InFlight(new, _) => Self::Unclaimed(new),
            other => other,
        }
    }

    /// The state after another attempt took over or a crash undid the claim.
    pub(super) fn after_loss(self) -> Self {
        match self {
            Self::Held(held) => Self::Lapsed(held.new, Some(held.claim)),
            other => other,
        }
    }

    /// The state after the writer reported the outcomes of the entities with these indices.
    pub(super) fn after_write(self, outcomes: &[(usize, &WriteOutcome)]) -> Self {
        let first_coupon_id = outcomes.iter().find_map(|(index, outcome)| match outcome {
            WriteOutcome::Issued { coupon_id, .. } | WriteOutcome::HasReceived { coupon_id } => {
                i64::try_from(*index).ok().map(|index| coupon_id - index)
            }
            _ => None,
        });
        let is_any = |wanted: &WriteOutcome| outcomes.iter().any(|(_, outcome)| *outcome == wanted);
        match self {
            Self::InFlight(new, answers) => match first_coupon_id {
                Some(first_coupon_id) => {
                    Self::Held(HeldKey { new, claim: Claim { first_coupon_id, attempt: 0 }, is_new: true, answers })
                }
                None if is_any(&WriteOutcome::InDoubt) => Self::Uncertain(new),
                None => {
                    let may_be_stored = new.possible_claim.get().copied();
                    Self::Lapsed(new, may_be_stored)
                }
            },
            held if is_any(&WriteOutcome::KeyNotClaimed) => held.after_loss(),
            other => other,
        }
    }

    /// Ends the attempt and stores its answers. `answers` is `None` if the request failed as a whole. `resent_since`: when the oldest
    /// resend was read that has not waited for a flush. If storing fails, the lease ends the attempt. Returns the indices of the resends
    /// that are not stored.
    pub(super) async fn end(
        self,
        resources: &Resources,
        answers: Option<Vec<EntityAnswer>>,
        resent_since: Option<Instant>,
    ) -> Vec<usize> {
        let (new, claim, final_answers, stored) = match self {
            Self::Held(held) => {
                let final_answers = held.final_answers(answers.as_deref());
                // The claim already stored these answers: no write.
                if answers.is_some() && final_answers.as_deref() == Some(&*held.answers) && resent_since.is_none() {
                    return Vec::new();
                }
                (held.new, held.claim, final_answers, Some(held.answers))
            }
            Self::Lapsed(new, Some(lost)) => (new, lost, None, None),
            Self::Unclaimed(_) | Self::InFlight(..) | Self::Lapsed(_, None) | Self::Uncertain(_) => {
                return resends_not_stored(answers, None);
            }
        };
        let resent_id = |entity: &EntityAnswer| match entity.answer {
            Answer::Resent(resend) => Some(resend.coupon_id),
            Answer::NewCoupon | Answer::Refused(_) => None,
        };
        let resent_ids: Vec<i64> = answers.iter().flatten().filter_map(resent_id).collect();
        let end = AttemptEnd {
            request: new.request,
            claim,
            answers: final_answers,
            // A resend is final under its key, so it must not be lost once it was answered.
            read_since: resent_since.or_else(|| (!resent_ids.is_empty()).then(Instant::now)),
        };
        // A resend that has not waited for its flush is not confirmed by its claim: a crash may have undone both.
        let confirmed = stored.clone().filter(|_| resent_since.is_none());
        let now = Instant::now();
        let ended = resources.end_attempt(end, &resent_ids, now + END_DEADLINE);
        let error = match before_deadline(now + END_TIMEOUT, ended).await {
            Ok(true) if stored.is_some() => return Vec::new(),
            Ok(_) => return resends_not_stored(answers, confirmed.as_deref()),
            Err(error) => error.to_string(),
        };
        END_NOT_STORED.log(|suppressed| {
            tracing::warn!(
                error,
                suppressed,
                "the end of a keyed attempt was not stored; retries get 409 until its lease ends"
            );
        });
        resends_not_stored(answers, confirmed.as_deref())
    }
}

/// The indices of the resends that are not among the stored answers.
fn resends_not_stored(answers: Option<Vec<EntityAnswer>>, stored: Option<&str>) -> Vec<usize> {
    let stored: Vec<String> = stored.map_or_else(Vec::new, |stored| stored.split(' ').map(str::to_owned).collect());
    let is_lost = |(index, entity): &(usize, EntityAnswer)| {
        matches!(entity.answer, Answer::Resent(_)) && stored.get(*index) != Some(&entity.to_string())
    };
    answers.into_iter().flatten().enumerate().filter(is_lost).map(|(index, _)| index).collect()
}
