//! The receipt of a keyed request: what became of it, without trying it again (contract 6).
//! What it shows is durable.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use tokio::time::Instant;

use super::answers::{self, Answer, Word};
use super::key_claim::{self, lease_seconds};
use super::{Entity, Granted, IssueError, Issuer, Refusal, missing};
use crate::db::writer::{Work, WriteOutcome};
use crate::db::{Claim, DbError, IssuedCoupon};
use crate::model::{Caller, CustomerId, OrgId};

/// How often a receipt is read again when the connection breaks before the flush is confirmed.
const MOST_READINGS: u32 = 5;

/// How far a keyed request has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// An attempt is at work on it.
    Running,
    /// The last attempt came to its end.
    Answered,
    /// The last attempt broke off, or could not store its end: a retry finishes it.
    Interrupted,
}

/// What is known of a keyed request. An entity of which nothing is known is shown as [`Refusal::InDoubt`].
#[derive(Debug, Clone)]
pub struct Receipt {
    /// The organisation's time zone, for `received_at`.
    pub zone: TimeZone,
    /// What became of each entity.
    pub entities: Vec<Entity>,
    /// How far it has come.
    pub progress: Progress,
    /// When it was first seen.
    pub received_at: Timestamp,
}

/// Looks a keyed request up. `None`: the organisation has no such request.
pub(super) async fn receipt(issuer: &Issuer, caller: &Caller, key: &str) -> Result<Option<Receipt>, IssueError> {
    let request = key_claim::name(caller.org_id, key);
    let deadline = Instant::now() + issuer.settings.timeout;
    let mut readings = 0;
    let (stored, known) = loop {
        let read_since = Instant::now();
        let Some(stored) = issuer.db.keyed_request(request, lease_seconds(issuer)).await? else { return Ok(None) };
        let known = Known::load(issuer, caller.org_id, stored.claim, &stored.answers).await?;
        if flushed(issuer, read_since, deadline).await? {
            break (stored, known);
        }
        readings += 1;
        if readings == MOST_READINGS {
            return Err(IssueError::Unavailable(None));
        }
    };
    let organisation = issuer.directory.organisation(caller.org_id).await?.ok_or_else(missing)?;
    let outcomes: Vec<Option<Result<Granted, Refusal>>> =
        (0..known.words.len()).map(|place| known.outcome(place)).collect();
    let progress = if outcomes.iter().all(Option::is_some) {
        Progress::Answered
    } else if stored.is_in_progress {
        Progress::Running
    } else {
        Progress::Interrupted
    };
    let entity = |(word, outcome): (&Word, Option<_>)| Entity {
        series_id: word.series_id,
        outcome: outcome.unwrap_or(Err(Refusal::InDoubt)).map(Arc::new),
    };
    Ok(Some(Receipt {
        zone: organisation.time_zone.clone(),
        entities: known.words.iter().zip(outcomes).map(entity).collect(),
        progress,
        received_at: stored.received_at,
    }))
}

/// The stored answers of a keyed request, with the coupons that they name.
#[derive(Debug)]
pub(super) struct Known {
    claim: Claim,
    pub(super) words: Vec<Word>,
    /// By the id and the version that were asked for.
    coupons: HashMap<(i64, Option<i32>), IssuedCoupon>,
}

impl Known {
    /// Loads the coupons of these answers. They are committed, and may not be flushed yet.
    pub(super) async fn load(issuer: &Issuer, org_id: OrgId, claim: Claim, answers: &str) -> Result<Self, DbError> {
        let words = answers::split(answers);
        let reserved = (0..words.len()).map(|place| (claim.coupon_id(place), None));
        let resent = words.iter().filter_map(|word| match word.answer {
            Answer::Resent(resend) => Some((resend.coupon_id, resend.series_version)),
            Answer::NewCoupon | Answer::Refused(_) => None,
        });
        let asked: Vec<_> = reserved.chain(resent).collect();
        let coupons = issuer.db.coupons(org_id, &asked).await?;
        let coupons = coupons.into_iter().map(|coupon| ((coupon.coupon_id, coupon.asked_version), coupon)).collect();
        Ok(Self { claim, words, coupons })
    }

    /// What the entity in this place was answered. A new coupon counts more than what an earlier attempt said. `None`: nothing yet.
    pub(super) fn outcome(&self, place: usize) -> Option<Result<Granted, Refusal>> {
        if let Some(granted) = self.granted(place) {
            return Some(Ok(granted));
        }
        match self.words.get(place)?.answer {
            Answer::Refused(refusal) => Some(Err(refusal)),
            Answer::NewCoupon | Answer::Resent(_) => None,
        }
    }

    /// The coupon that the entity in this place was answered with, as it was shown.
    pub(super) fn granted(&self, place: usize) -> Option<Granted> {
        let word = self.words.get(place)?;
        let of_series = |coupon: &&IssuedCoupon| {
            let is_same = coupon.series_id == word.series_id;
            if !is_same {
                let (coupon_id, series_id) = (coupon.coupon_id, word.series_id.0);
                tracing::error!(coupon_id, series_id, "a coupon that a keyed request names is of another series");
            }
            is_same
        };
        if let Some(coupon) = self.coupons.get(&(self.claim.coupon_id(place), None)).filter(of_series) {
            return Some(Granted::replay(coupon));
        }
        let Answer::Resent(resend) = word.answer else { return None };
        let coupon = self.coupons.get(&(resend.coupon_id, resend.series_version)).filter(of_series)?;
        Some(Granted { redemption_count: resend.redemption_count, resent: Some(resend), ..Granted::replay(coupon) })
    }

    /// Whose the coupons are that were issued and shown under the key.
    pub(super) fn customer(&self) -> Option<&CustomerId> {
        self.coupons.values().next().map(|coupon| &coupon.customer_id)
    }
}

/// Waits until everything that was read since then is flushed. False: a crash may have taken it back, it must be read again.
///
/// # Errors
/// [`IssueError::Unavailable`] if that cannot be found out: the database is away, or takes no writes.
pub(super) async fn flushed(issuer: &Issuer, read_since: Instant, deadline: Instant) -> Result<bool, IssueError> {
    let works = vec![Work::FlushBarrier(read_since)];
    let written = issuer.writer.write(works, deadline).await.map_err(|_| IssueError::Overloaded)?;
    match written.first() {
        Some(WriteOutcome::Flushed) => Ok(true),
        Some(WriteOutcome::NotFlushed) => Ok(false),
        // Not in time, or not at all. What only coupons can become does not come here.
        _ => Err(IssueError::Unavailable(None)),
    }
}
