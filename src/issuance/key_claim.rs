//! Holding an `Idempotency-Key` (contract 6): how an attempt comes to hold it, and may lose it.
//! The keys are stored by `store::claims`, or by the writer together with a coupon.

use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::time::{Instant, timeout_at};
use tracing::Instrument;
use uuid::Uuid;

use super::answers::{self, Answer, Word};
use super::{IssueError, IssueRequest, Issuer, RequestKey, within};
use crate::db::writer::{KeyHold, KeyedEntity, WriteOutcome};
use crate::db::{Claim, ClaimOutcome, NewClaim, RequestName};
use crate::model::OrgId;
use crate::telemetry::throttle::Throttle;
use crate::telemetry::traces;

/// The lease outlasts the request's time by this.
const LEASE_MARGIN: Duration = Duration::from_secs(6);
/// How long an answer waits for the end of its attempt to be stored.
const END_WITHIN: Duration = Duration::from_secs(1);

static NOT_ENDED: Throttle = Throttle::new();

/// An attempt's way to its key.
///
/// ```text
///              ┌─────── the queue is full ───────┐
///              ▼                                 │
///  new ──▶ Unclaimed ─── with the coupons ──▶ InFlight ─── none issued, one in doubt ───▶ Uncertain
///              │                               │    │
///              │                   none issued │    └────────── one issued ──────────┐
///              │                               ▼                                     ▼
///              │                             Lapsed ◀── not found under the key ─── Held
///              │                               │                                     ▲
///              └───────────────────────────────┴── by a statement: new or resumed ───┘
/// ```
///
/// A statement that fails (409, 422, database away) leaves the state as it is, and the request ends. At the end `Held` stores the
/// answers if they changed, and `Lapsed` gives back the claim that it lost. The rest store nothing.
///
/// An attempt loses its claim when a crash undoes it or another attempt takes over. The primary key of `coupon`, not the claim,
/// prevents a second coupon. The claim keeps two attempts from answering at once, and tells which entities are certainly not issued.
#[derive(Debug)]
pub(super) enum KeyClaim {
    /// Nothing was sent: the key may be claimed with the first coupons, in the transaction of one of them.
    Unclaimed(Arc<NewClaim>),
    /// Coupons that claim it are on their way, with these answers.
    InFlight(Arc<NewClaim>, Arc<str>),
    /// The attempt holds it.
    Held(Held),
    /// It must be claimed by a statement before anything is written. The claim that was lost, if there was one.
    Lapsed(Arc<NewClaim>, Option<Claim>),
    /// Whether the coupons that were to claim it are stored is not known.
    Uncertain(Arc<NewClaim>),
}

/// A key that the attempt holds.
#[derive(Debug)]
pub(super) struct Held {
    new: Arc<NewClaim>,
    pub(super) claim: Claim,
    /// Whether nothing was issued under the key before.
    is_new: bool,
    /// The answers that are stored.
    pub(super) answers: Arc<str>,
}

/// What a claim by a statement means for the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Claimed {
    /// Nothing was issued under the key.
    New,
    /// Something may have been.
    Resumed,
}

/// The first 16 bytes of the SHA-256: as function `key_hash_1`.
pub(super) fn hash16(hash: Sha256) -> Uuid {
    let digest = hash.finalize();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    Uuid::from_bytes(bytes)
}

pub(super) fn name(org_id: OrgId, key: &str) -> RequestName {
    RequestName { org_id, key_hash: hash16(Sha256::new_with_prefix(key.as_bytes())) }
}

/// The lease of an attempt, in seconds.
pub(super) fn lease_seconds(issuer: &Issuer) -> i32 {
    i32::try_from((issuer.settings.timeout + LEASE_MARGIN).as_secs()).unwrap_or(i32::MAX)
}

impl Held {
    /// The request and its claim.
    pub(super) fn named(&self) -> (RequestName, Claim) {
        (self.new.request, self.claim)
    }

    /// What is to be stored at the end; `None`: what is stored stays.
    fn answers_after(&self, words: Option<&[Word]>) -> Option<String> {
        let stored = answers::split(&self.answers);
        let Some(words) = words else {
            // Nobody was told what a new claim has stored.
            let untold = stored.into_iter().map(|word| Word { answer: Answer::NewCoupon, ..word });
            return self.is_new.then(|| answers::join(untold));
        };
        // A resend is final, though this attempt could not show it.
        let is_final = |word: &Word| matches!(word.answer, Answer::Resent(_)) && !self.is_new;
        let merged = words.iter().enumerate().map(|(place, word)| match stored.get(place) {
            Some(kept) if is_final(kept) && matches!(word.answer, Answer::Refused(_)) => *kept,
            _ => *word,
        });
        Some(answers::join(merged))
    }

    /// Whether nothing was issued under the key before.
    pub(super) const fn is_new(&self) -> bool {
        self.is_new
    }
}

impl KeyClaim {
    /// A claim that is still to be made, by this incarnation.
    pub(super) fn new(issuer: &Issuer, request: &IssueRequest, key: &RequestKey, incarnation: i32) -> Self {
        Self::Unclaimed(Arc::new(NewClaim {
            request: name(request.caller.org_id, &key.key),
            fingerprint: key.fingerprint,
            entities: request.series_ids.len(),
            incarnation,
            lease_seconds: lease_seconds(issuer),
        }))
    }

    const fn new_claim(&self) -> &Arc<NewClaim> {
        match self {
            Self::Unclaimed(new)
            | Self::InFlight(new, _)
            | Self::Held(Held { new, .. })
            | Self::Lapsed(new, _)
            | Self::Uncertain(new) => new,
        }
    }

    /// The claim, if the attempt holds the key.
    pub(super) const fn held(&self) -> Option<&Held> {
        match self {
            Self::Held(held) => Some(held),
            Self::Unclaimed(_) | Self::InFlight(..) | Self::Lapsed(..) | Self::Uncertain(_) => None,
        }
    }

    /// Claims it by a statement; a key that is new is stored with these answers.
    ///
    /// # Errors
    /// [`IssueError::StillRunning`], [`IssueError::KeyReused`], or a database that cannot be asked.
    pub(super) async fn claim(
        self,
        issuer: &Issuer,
        answers: String,
        deadline: Instant,
    ) -> Result<(Self, Claimed), (Self, IssueError)> {
        let new = Arc::clone(self.new_claim());
        let stored: Arc<str> = answers.as_str().into();
        let asked = async {
            if let Self::Lapsed(_, Some(lost)) = &self {
                // Should it be there after all, it is not in this attempt's own way.
                issuer.db.end_attempt(new.request, *lost, None).await?;
            }
            issuer.claims.claim(&new, answers).await
        };
        let found = within(deadline, asked.instrument(traces::span!("claim the key"))).await;
        if let Ok(outcome) = &found {
            issuer.counts.claims.found(outcome);
        }
        match found {
            Ok(ClaimOutcome::Acquired(claim)) => {
                Ok((Self::Held(Held { new, claim, is_new: true, answers: stored }), Claimed::New))
            }
            Ok(ClaimOutcome::Resumed { claim, answers, .. }) => {
                Ok((Self::Held(Held { new, claim, is_new: false, answers: answers.into() }), Claimed::Resumed))
            }
            Ok(ClaimOutcome::InProgress) => Err((self, IssueError::StillRunning)),
            Ok(ClaimOutcome::FingerprintMismatch) => Err((self, IssueError::KeyReused)),
            Err(error) => Err((self, error)),
        }
    }

    /// Lets coupons that are about to be written claim it, with these answers, if nothing was sent before.
    pub(super) fn claim_with(self, answers: impl FnOnce() -> String) -> Self {
        match self {
            Self::Unclaimed(new) => Self::InFlight(new, answers().into()),
            other => other,
        }
    }

    /// Under which name the entity in this place is written. `None`: the key is to be claimed first.
    pub(super) fn entity(&self, place: usize) -> Option<KeyedEntity> {
        let hold = match self {
            Self::InFlight(_, answers) => KeyHold::ClaimedWith(Arc::clone(answers)),
            Self::Held(Held { claim, is_new: true, .. }) => KeyHold::Acquired(*claim),
            Self::Held(Held { claim, is_new: false, .. }) => KeyHold::Resumed(*claim),
            Self::Unclaimed(_) | Self::Lapsed(..) | Self::Uncertain(_) => return None,
        };
        Some(KeyedEntity { key: Arc::clone(self.new_claim()), place, hold })
    }

    /// Nothing was written after all.
    pub(super) fn take_back(self) -> Self {
        match self {
            Self::InFlight(new, _) => Self::Unclaimed(new),
            other => other,
        }
    }

    /// Another attempt has taken over, or a crash took the claim back.
    pub(super) fn lost(self) -> Self {
        match self {
            Self::Held(held) => Self::Lapsed(held.new, Some(held.claim)),
            other => other,
        }
    }

    /// Learns from what became of the coupons in these places.
    pub(super) fn after_write(self, outcomes: &[(usize, &WriteOutcome)]) -> Self {
        let claim = outcomes.iter().find_map(|(place, outcome)| match outcome {
            WriteOutcome::Issued { coupon_id, .. } => i64::try_from(*place).ok().map(|place| coupon_id - place),
            _ => None,
        });
        let is_any = |wanted: &WriteOutcome| outcomes.iter().any(|(_, outcome)| *outcome == wanted);
        match self {
            Self::InFlight(new, answers) => match claim {
                Some(first_coupon_id) => {
                    Self::Held(Held { new, claim: Claim { first_coupon_id, attempt: 0 }, is_new: true, answers })
                }
                None if is_any(&WriteOutcome::InDoubt) => Self::Uncertain(new),
                None => Self::Lapsed(new, None),
            },
            held if is_any(&WriteOutcome::KeyNotClaimed) => held.lost(),
            other => other,
        }
    }

    /// Ends the attempt and stores its answers. `None`: the request failed as a whole, and was answered nothing of its entities. If
    /// this fails, the lease ends the attempt. Returns the places of resends that are not stored.
    pub(super) async fn end(self, issuer: &Issuer, words: Option<Vec<Word>>) -> Vec<usize> {
        let (new, claim, answers, stored) = match self {
            Self::Held(held) => {
                let answers = held.answers_after(words.as_deref());
                // Every entity is answered as it was stored with the claim: no write.
                if words.is_some() && answers.as_deref() == Some(&*held.answers) {
                    return Vec::new();
                }
                (held.new, held.claim, answers, Some(held.answers))
            }
            Self::Lapsed(new, Some(lost)) => (new, lost, None, None),
            Self::Unclaimed(_) | Self::InFlight(..) | Self::Lapsed(_, None) | Self::Uncertain(_) => {
                return not_stored(words, None);
            }
        };
        let end = issuer.db.end_attempt(new.request, claim, answers.as_deref());
        let error = match timeout_at(Instant::now() + END_WITHIN, end).await {
            Ok(Ok(true)) if stored.is_some() => return Vec::new(),
            Ok(Ok(_)) => return not_stored(words, stored.as_deref()),
            Ok(Err(error)) => error.to_string(),
            Err(_elapsed) => "it took too long".to_owned(),
        };
        NOT_ENDED.log(|suppressed| {
            tracing::warn!(
                error,
                suppressed,
                "the end of a keyed attempt was not stored; retries get 409 until its lease ends"
            );
        });
        not_stored(words, stored.as_deref())
    }
}

/// The places of the resends among these words that are not among the stored ones.
fn not_stored(words: Option<Vec<Word>>, stored: Option<&str>) -> Vec<usize> {
    let stored: Vec<String> = stored.map_or_else(Vec::new, |stored| stored.split(' ').map(str::to_owned).collect());
    let is_lost = |(place, word): &(usize, Word)| {
        matches!(word.answer, Answer::Resent(_)) && stored.get(*place) != Some(&word.to_string())
    };
    words.into_iter().flatten().enumerate().filter(is_lost).map(|(place, _)| place).collect()
}
