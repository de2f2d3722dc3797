//! The call that writes a batch: coupons on their way into procedure `issue_coupons_1`, and what it says of them.
//! `migrations/0002_procedures.sql` has the procedure and the meaning of its outcomes. Sends nothing itself.

use std::collections::HashSet;

use jiff_sqlx::ToSqlx;
use sqlx::postgres::{PgArguments, PgHasArrayType, PgTypeInfo};
use sqlx::query::Query;
use sqlx::types::Json;
use sqlx::{Postgres, Type};
use uuid::Uuid;

use super::{Code, Guard, KeyHold, NewCoupon, Scope, WriteOutcome};
use crate::db::Claim;
use crate::model::Metadata;

/// A coupon with the ids that it was given for a batch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Numbered<'c> {
    pub(super) coupon: &'c NewCoupon,
    pub(super) coupon_id: i64,
    /// The claim of its key; of one that is claimed together with it, the one to be stored.
    pub(super) claim: Option<Claim>,
}

/// Refusals that the call reports as outcomes. Any other raises an error, and the coupons are then sent one by one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Expect {
    Guarded,
    All,
}

/// The call, with these coupons in this order.
pub(super) fn issue_coupons<'q>(
    coupons: &[Numbered<'_>],
    expect: Expect,
    durability: &'q str,
) -> Query<'q, Postgres, PgArguments> {
    // The first coupon of a request claims its key.
    let mut claimed = HashSet::new();
    let values: Vec<Value<'_>> = (1..)
        .zip(coupons)
        .map(|(place, numbered)| {
            let claims = numbered.claim.is_none_or(|claim| claimed.insert(claim.first_coupon_id));
            value(place, numbered, claims, expect)
        })
        .collect();
    let incarnation = coupons.iter().find_map(|numbered| match &numbered.coupon.scope {
        Scope::Key(keyed) => Some(keyed.key.incarnation),
        Scope::None | Scope::Natural(_) => None,
    });
    sqlx::query("call issue_coupons_1($1, $2, $3, null::smallint[], null::text[])")
        .bind(values)
        .bind(incarnation)
        .bind(durability)
}

/// What the procedure says of a coupon, under the numbers that it lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Issued,
    OtherRevision,
    CapReached,
    OrdinalTaken,
    CodeTaken,
    HoldsExcluded,
    PoolEmpty,
    SettingsLocked,
    AlreadyIssued,
    KeyNotClaimed,
    IdTaken,
}

/// What the procedure says of a coupon tells neither that it is stored nor that it is not.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unclear {
    /// Of a newer schema, say.
    #[error("outcome {0} is not known")]
    UnknownOutcome(i16),
    #[error("it is issued from the pool, and its code was not returned")]
    NoCode,
}

impl TryFrom<i16> for Outcome {
    type Error = Unclear;

    fn try_from(number: i16) -> Result<Self, Unclear> {
        Ok(match number {
            1 => Self::Issued,
            2 => Self::OtherRevision,
            3 => Self::CapReached,
            4 => Self::OrdinalTaken,
            5 => Self::CodeTaken,
            6 => Self::HoldsExcluded,
            7 => Self::PoolEmpty,
            8 => Self::SettingsLocked,
            9 => Self::AlreadyIssued,
            10 => Self::KeyNotClaimed,
            11 => Self::IdTaken,
            unknown => return Err(Unclear::UnknownOutcome(unknown)),
        })
    }
}

/// What became of a coupon, by its outcome; and its code, if it came from the pool.
pub(super) fn meaning(numbered: &Numbered<'_>, outcome: i16, from_pool: Option<String>) -> WriteOutcome {
    let series_id = numbered.coupon.series_id.0;
    match Outcome::try_from(outcome).and_then(|outcome| of_outcome(numbered, outcome, from_pool)) {
        Ok(written) => {
            if written == WriteOutcome::IdTaken {
                tracing::error!(
                    series_id,
                    coupon_id = numbered.coupon_id,
                    "a leased coupon id is taken by another coupon"
                );
            }
            written
        }
        Err(unclear) => {
            tracing::error!(error = %unclear, series_id, "the database's outcome leaves a coupon in doubt");
            WriteOutcome::InDoubt
        }
    }
}

fn of_outcome(numbered: &Numbered<'_>, outcome: Outcome, from_pool: Option<String>) -> Result<WriteOutcome, Unclear> {
    Ok(match outcome {
        Outcome::Issued => WriteOutcome::Issued {
            coupon_id: numbered.coupon_id,
            code: match &numbered.coupon.code {
                Code::Unique(code) | Code::Generic(code) => code.clone(),
                Code::FromPool => from_pool.ok_or(Unclear::NoCode)?,
            },
        },
        Outcome::CodeTaken => WriteOutcome::CodeTaken,
        Outcome::SettingsLocked => WriteOutcome::SettingsLocked,
        Outcome::AlreadyIssued => WriteOutcome::AlreadyIssued,
        Outcome::KeyNotClaimed => WriteOutcome::KeyNotClaimed,
        // Only if the database lost a lease that it had flushed: a restored backup, say.
        Outcome::IdTaken => WriteOutcome::IdTaken,
        Outcome::OtherRevision => WriteOutcome::GuardFailed(Guard::OtherRevision),
        Outcome::CapReached => WriteOutcome::GuardFailed(Guard::CapReached),
        Outcome::OrdinalTaken => WriteOutcome::GuardFailed(Guard::OrdinalTaken),
        Outcome::HoldsExcluded => WriteOutcome::GuardFailed(Guard::HoldsExcluded),
        Outcome::PoolEmpty => WriteOutcome::GuardFailed(Guard::PoolEmpty),
    })
}

/// A value of the type `new_coupon_1`: its fields, in order.
#[derive(sqlx::Encode)]
#[expect(clippy::struct_excessive_bools, reason = "the fields of the type")]
struct Value<'c> {
    place: i32,
    org_id: i64,
    revision: i64,
    coupon_id: i64,
    series_id: i64,
    series_version: i32,
    origin_id: i32,
    customer_id: &'c str,
    ordinal: Option<i32>,
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
    cap_or_key: bool,
    natural_key: Option<Uuid>,
    key_hash: Option<Uuid>,
    claim_id: Option<i64>,
    attempt: Option<i32>,
    fingerprint: Option<i64>,
    answers: Option<&'c str>,
}

impl Type<Postgres> for Value<'_> {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_name("new_coupon_1")
    }
}

impl PgHasArrayType for Value<'_> {
    fn array_type_info() -> PgTypeInfo {
        PgTypeInfo::array_of("new_coupon_1")
    }
}

/// `claims`: whether it claims the key, if one of the coupons does.
fn value<'c>(place: i32, numbered: &Numbered<'c>, claims: bool, expect: Expect) -> Value<'c> {
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
    let answers = keyed.and_then(|keyed| match &keyed.hold {
        KeyHold::ClaimedWith(answers) if claims => Some(&**answers),
        KeyHold::ClaimedWith(_) | KeyHold::Acquired(_) | KeyHold::Resumed(_) => None,
    });
    let is_issued_once_more = keyed.is_some_and(|keyed| matches!(keyed.hold, KeyHold::Resumed(_)));
    let cap_or_key = expect == Expect::Guarded
        && !coupon.is_exclusive
        && !coupon.may_collide
        && coupon.ordinal.is_none()
        && coupon.code != Code::FromPool
        && natural_key.is_none()
        && !is_issued_once_more;
    let request_uuid = uuid(&coupon.request_id);
    Value {
        place,
        org_id: coupon.org_id.0,
        revision: coupon.revision.0,
        coupon_id: numbered.coupon_id,
        series_id: coupon.series_id.0,
        series_version: coupon.series_version,
        origin_id: coupon.origin_id,
        customer_id: &coupon.customer_id.0,
        ordinal: coupon.ordinal,
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
        unguarded: cap_or_key && keyed.is_none() && coupon.max_create.is_none(),
        cap_or_key,
        natural_key,
        key_hash: keyed.map(|keyed| keyed.key.request.key_hash),
        claim_id: numbered.claim.map(|claim| claim.first_coupon_id),
        attempt: numbered.claim.map(|claim| claim.attempt),
        fingerprint: answers.and(keyed).map(|keyed| keyed.key.fingerprint),
        answers,
    }
}

/// The UUID that this is, if it is written as one is: it can be stored in less, and be shown again letter by letter.
fn uuid(request_id: &str) -> Option<Uuid> {
    let uuid = Uuid::try_parse(request_id).ok()?;
    (*uuid.hyphenated().encode_lower(&mut Uuid::encode_buffer()) == *request_id).then_some(uuid)
}
