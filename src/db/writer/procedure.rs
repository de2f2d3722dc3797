//! Encodes and decodes the call of procedure `issue_coupons_1`. `migrations/0002_procedures.sql` says what the outcomes mean.

use std::collections::HashMap;

use jiff_sqlx::ToSqlx;
use sqlx::postgres::{PgArguments, PgHasArrayType, PgTypeInfo};
use sqlx::query::Query;
use sqlx::types::Json;
use sqlx::{Postgres, Type};
use strum::FromRepr;
use uuid::Uuid;

use super::coupon::{Code, KeyHold, Numbering, Scope};
use super::numbering::NumberedCoupon;
use super::outcome::{Guard, WriteOutcome};
use crate::model::Metadata;

/// The refusals that the call reports as outcomes. Any other refusal raises an error, and the coupons are then sent one by one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Reported {
    Guarded,
    All,
}

/// The call with these coupons, in this order.
pub(super) fn issue_coupons<'q>(
    coupons: &[NumberedCoupon<'_>],
    reported: Reported,
    (durability, session): (&'q str, &'q str),
) -> Query<'q, Postgres, PgArguments> {
    // The first coupon of a request claims its key.
    let mut claiming = HashMap::new();
    let values: Vec<NewCouponValue<'_>> = (1..)
        .zip(coupons)
        .map(|(position, numbered)| {
            let claimed_by = numbered.claim.map(|claim| *claiming.entry(claim.first_coupon_id).or_insert(position));
            value(position, numbered, claimed_by, reported)
        })
        .collect();
    let incarnation = coupons.iter().find_map(|numbered| match &numbered.coupon.scope {
        Scope::Key(keyed) => Some(keyed.key.incarnation),
        Scope::None | Scope::Natural(_) => None,
    });
    let mut org_ids: Vec<i64> = coupons.iter().map(|numbered| numbered.coupon.org_id.0).collect();
    org_ids.dedup();
    sqlx::query("call issue_coupons_1($1, $2, $3, $4, $5, null::smallint[], null::text[])")
        .bind(values)
        .bind(org_ids)
        .bind(incarnation)
        .bind(durability)
        .bind(session)
}

/// The outcomes of the procedure, by its numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromRepr)]
#[repr(i16)]
pub(super) enum Outcome {
    Issued = 1,
    OtherRevision = 2,
    CapReached = 3,
    OrdinalTaken = 4,
    CodeTaken = 5,
    HoldsExcluded = 6,
    PoolEmpty = 7,
    SettingsLocked = 8,
    AlreadyIssued = 9,
    KeyNotClaimed = 10,
    IdTaken = 11,
    HasReceived = 12,
}

/// The outcome does not say whether the coupon is stored.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum UnclearOutcome {
    /// For example of a newer schema.
    #[error("outcome {0} is not known")]
    Unknown(i16),
    #[error("it is issued from the pool, and its code was not returned")]
    NoCode,
}

/// Decodes the outcome of a coupon, with its code if that came from the pool.
pub(super) fn write_outcome(
    numbered: &NumberedCoupon<'_>,
    outcome: i16,
    code_from_pool: Option<String>,
) -> WriteOutcome {
    let series_id = numbered.coupon.series_id.0;
    match decode(numbered, outcome, code_from_pool) {
        Ok(outcome) => {
            // Happens only if the database lost a flushed lease, for example by the restore of a backup.
            if outcome == WriteOutcome::IdTaken {
                let coupon_id = numbered.coupon_id;
                tracing::error!(series_id, coupon_id, "a leased coupon id is taken by another coupon");
            }
            outcome
        }
        Err(unclear) => {
            tracing::error!(error = %unclear, series_id, "the database's outcome leaves a coupon in doubt");
            WriteOutcome::InDoubt
        }
    }
}

fn decode(
    numbered: &NumberedCoupon<'_>,
    outcome: i16,
    code_from_pool: Option<String>,
) -> Result<WriteOutcome, UnclearOutcome> {
    Ok(match Outcome::from_repr(outcome).ok_or(UnclearOutcome::Unknown(outcome))? {
        Outcome::Issued => WriteOutcome::Issued {
            coupon_id: numbered.coupon_id,
            code: match &numbered.coupon.code {
                Code::Unique(code) | Code::Generic(code) => code.clone(),
                Code::FromPool => code_from_pool.ok_or(UnclearOutcome::NoCode)?,
            },
        },
        Outcome::CodeTaken => WriteOutcome::CodeTaken,
        Outcome::SettingsLocked => WriteOutcome::SettingsLocked,
        Outcome::AlreadyIssued => WriteOutcome::AlreadyIssued,
        Outcome::KeyNotClaimed => WriteOutcome::KeyNotClaimed,
        Outcome::IdTaken => WriteOutcome::IdTaken,
        Outcome::OtherRevision => WriteOutcome::GuardFailed(Guard::OtherRevision),
        Outcome::CapReached => WriteOutcome::GuardFailed(Guard::CapReached),
        Outcome::OrdinalTaken => WriteOutcome::GuardFailed(Guard::OrdinalTaken),
        Outcome::HasReceived => WriteOutcome::HasReceived { coupon_id: numbered.coupon_id },
        Outcome::HoldsExcluded => WriteOutcome::GuardFailed(Guard::HoldsExcluded),
        Outcome::PoolEmpty => WriteOutcome::GuardFailed(Guard::PoolEmpty),
    })
}

/// A value of the composite type `new_coupon_1`: its fields, in order.
#[derive(sqlx::Encode)]
#[expect(clippy::struct_excessive_bools, reason = "the fields of the type")]
struct NewCouponValue<'c> {
    position: i32,
    org_id: i64,
    revision: i64,
    coupon_id: i64,
    series_id: i64,
    series_version: i32,
    origin_id: i32,
    customer_id: &'c str,
    ordinal: Option<i32>,
    received_below: Option<i32>,
    code: Option<&'c str>,
    from_pool: bool,
    expires_on: jiff_sqlx::Date,
    issued_at: jiff_sqlx::Timestamp,
    account_id: Option<&'c str>,
    metadata: Option<Json<&'c Metadata>>,
    request_id: Option<&'c str>,
    request_uuid: Option<Uuid>,
    cap: Option<i64>,
    exclusive: bool,
    unguarded: bool,
    simple: bool,
    natural_key: Option<Uuid>,
    key_hash: Option<Uuid>,
    claim_id: Option<i64>,
    attempt: Option<i32>,
    fingerprint: Option<i64>,
    claimed_by: Option<i32>,
    answers: Option<&'c str>,
}

impl Type<Postgres> for NewCouponValue<'_> {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_name("new_coupon_1")
    }
}

impl PgHasArrayType for NewCouponValue<'_> {
    fn array_type_info() -> PgTypeInfo {
        PgTypeInfo::array_of("new_coupon_1")
    }
}

/// `claimed_by`: the position of the first coupon of its request.
fn value<'c>(
    position: i32,
    numbered: &NumberedCoupon<'c>,
    claimed_by: Option<i32>,
    reported: Reported,
) -> NewCouponValue<'c> {
    let coupon = numbered.coupon;
    let code = match &coupon.code {
        Code::Unique(code) => Some(code.as_str()),
        Code::Generic(_) | Code::FromPool => None,
    };
    let (natural_key, keyed) = match &coupon.scope {
        Scope::None => (None, None),
        Scope::Natural(natural_key) => (Some(*natural_key), None),
        Scope::Key(keyed) => (None, Some(keyed)),
    };
    let (ordinal, received_below) = match coupon.numbering {
        Numbering::None => (None, None),
        Numbering::Ordinal(ordinal) => (Some(ordinal), None),
        Numbering::Next { received_below } => (None, Some(received_below)),
    };
    let answers = keyed.and_then(|keyed| match &keyed.hold {
        KeyHold::ClaimedWith(answers) => Some(&**answers),
        KeyHold::Acquired(_) | KeyHold::Resumed(_) => None,
    });
    let may_be_issued = keyed.is_some_and(|keyed| matches!(keyed.hold, KeyHold::Resumed(_)));
    let simple = reported == Reported::Guarded
        && !coupon.is_exclusive
        && !coupon.may_collide
        && !matches!(coupon.numbering, Numbering::Ordinal(_))
        && natural_key.is_none()
        && !may_be_issued;
    let request_uuid = uuid(&coupon.request_id);
    NewCouponValue {
        position,
        org_id: coupon.org_id.0,
        revision: coupon.revision.0,
        coupon_id: numbered.coupon_id,
        series_id: coupon.series_id.0,
        series_version: coupon.series_version,
        origin_id: coupon.origin_id,
        customer_id: &coupon.customer_id.0,
        ordinal,
        received_below,
        code,
        from_pool: coupon.code == Code::FromPool,
        expires_on: coupon.expires_on.to_sqlx(),
        issued_at: coupon.issued_at.to_sqlx(),
        account_id: coupon.account_id.as_deref(),
        metadata: coupon.metadata.as_ref().map(Json),
        request_id: request_uuid.is_none().then_some(&*coupon.request_id),
        request_uuid,
        cap: coupon.max_create,
        exclusive: coupon.is_exclusive,
        unguarded: simple
            && keyed.is_none()
            && coupon.max_create.is_none()
            && received_below.is_none()
            && coupon.code != Code::FromPool,
        simple,
        natural_key,
        key_hash: keyed.map(|keyed| keyed.key.request.key_hash),
        claim_id: numbered.claim.map(|claim| claim.first_coupon_id),
        attempt: numbered.claim.map(|claim| claim.attempt),
        fingerprint: answers.and(keyed).map(|keyed| keyed.key.fingerprint),
        claimed_by: answers.and(claimed_by),
        answers,
    }
}

/// The request id as a UUID, which takes less space, if it can be shown again letter by letter.
fn uuid(request_id: &str) -> Option<Uuid> {
    let uuid = Uuid::try_parse(request_id).ok()?;
    (*uuid.hyphenated().encode_lower(&mut Uuid::encode_buffer()) == *request_id).then_some(uuid)
}
