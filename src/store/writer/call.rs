//! The call that writes a batch: coupons on their way into procedure `issue_coupons`, and what it says of them.
//! `migrations/0010_one_value_a_coupon.sql` says what each field is for. Sends nothing itself.

use jiff_sqlx::ToSqlx;
use sqlx::postgres::{PgArguments, PgHasArrayType, PgTypeInfo};
use sqlx::query::Query;
use sqlx::types::Json;
use sqlx::{Postgres, Type};
use uuid::Uuid;

use super::{Beginning, Code, NewCoupon, Written};
use crate::model::{Face, Metadata};

/// Which coupons a call is prepared to see refused. Any other that is breaks the call, and is then sent again alone.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Expect {
    Guarded,
    All,
}

/// The call, with these coupons in this order.
pub(super) fn issue_coupons<'q>(
    coupons: &[&NewCoupon],
    expect: Expect,
    durability: &'q str,
) -> Query<'q, Postgres, PgArguments> {
    let values: Vec<Value<'_>> = (1..).zip(coupons).map(|(place, coupon)| value(place, coupon, expect)).collect();
    sqlx::query("call issue_coupons($1, $2, null::smallint[], null::text[])").bind(values).bind(durability)
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
}

/// A number that is none of a procedure's outcomes: that of a newer schema, say.
#[derive(Debug, thiserror::Error)]
#[error("outcome {0} is not known")]
pub(super) struct UnknownOutcome(i16);

impl TryFrom<i16> for Outcome {
    type Error = UnknownOutcome;

    fn try_from(number: i16) -> Result<Self, UnknownOutcome> {
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
            unknown => return Err(UnknownOutcome(unknown)),
        })
    }
}

/// What became of a coupon, by its outcome; and its code, if it came from the pool. What says neither that it is stored nor that
/// it is not leaves it in doubt.
pub(super) fn meaning(coupon: &NewCoupon, outcome: i16, from_pool: Option<String>) -> Written {
    let series_id = coupon.series_id.0;
    let outcome = match Outcome::try_from(outcome) {
        Ok(outcome) => outcome,
        Err(error) => {
            tracing::error!(%error, series_id, "the database says of a coupon what this version does not know");
            return Written::InDoubt;
        }
    };
    match (outcome, &coupon.code, from_pool) {
        (Outcome::Issued, Code::Unique(code) | Code::Shared(code), _) => Written::Issued(code.clone()),
        (Outcome::Issued, Code::FromPool, Some(code)) => Written::Issued(code),
        (Outcome::Issued, Code::FromPool, None) => {
            tracing::error!(series_id, "a coupon was issued from the pool, and its code was not returned");
            Written::InDoubt
        }
        (Outcome::CodeTaken, ..) => Written::Collision,
        (Outcome::SettingsLocked, ..) => Written::Paused,
        (Outcome::AlreadyIssued, ..) => Written::Recorded,
        (Outcome::KeyNotClaimed, ..) => Written::Unbegun,
        (
            Outcome::OtherRevision
            | Outcome::CapReached
            | Outcome::OrdinalTaken
            | Outcome::HoldsExcluded
            | Outcome::PoolEmpty,
            ..,
        ) => Written::Stale,
    }
}

/// A value of the type `new_coupon`: its fields, in order.
#[derive(sqlx::Encode)]
#[expect(clippy::struct_excessive_bools, reason = "the fields of the type")]
struct Value<'c> {
    place: i32,
    org_id: i64,
    revision: i64,
    series_id: i64,
    customer_id: &'c str,
    ordinal: Option<i32>,
    code: Option<&'c str>,
    shared_code: bool,
    expires_on: jiff_sqlx::Date,
    issued_at: jiff_sqlx::Timestamp,
    issue_id: Uuid,
    till_id: &'c str,
    store_id: i64,
    source: &'c str,
    account_id: Option<&'c str>,
    metadata: Option<Json<&'c Metadata>>,
    request_id: Option<&'c str>,
    request_uuid: Option<Uuid>,
    cap: Option<i64>,
    exclusive: bool,
    plain: bool,
    swift: bool,
    request_key: Option<&'c str>,
    entity: Option<i64>,
    face: Option<Json<&'c Face>>,
    attempt: Option<Uuid>,
    fingerprint: Option<&'c [u8]>,
    entities: Option<Vec<i64>>,
    held_until: Option<jiff_sqlx::Timestamp>,
}

impl Type<Postgres> for Value<'_> {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_name("new_coupon")
    }
}

impl PgHasArrayType for Value<'_> {
    fn array_type_info() -> PgTypeInfo {
        PgTypeInfo::array_of("new_coupon")
    }
}

fn value(place: i32, coupon: &NewCoupon, expect: Expect) -> Value<'_> {
    let keyed = coupon.keyed.as_ref();
    let attempt = keyed.and_then(|keyed| keyed.attempt.as_ref());
    let beginning = attempt.filter(|(_, beginning)| *beginning != Beginning::Before).map(|(new, _)| &**new);
    let begins_here = attempt.filter(|(_, beginning)| *beginning == Beginning::Here).map(|(new, _)| &**new);

    let code = match &coupon.code {
        Code::Unique(code) | Code::Shared(code) => Some(code.as_str()),
        Code::FromPool => None,
    };
    let is_swift = expect == Expect::Guarded
        && !coupon.is_exclusive
        && !coupon.may_collide
        && coupon.ordinal.is_none()
        && code.is_some()
        && (keyed.is_none() || beginning.is_some());
    let request_uuid = uuid(&coupon.request_id);
    Value {
        place,
        org_id: coupon.org_id.0,
        revision: coupon.revision.0,
        series_id: coupon.series_id.0,
        customer_id: &coupon.customer_id.0,
        ordinal: coupon.ordinal,
        code,
        shared_code: matches!(coupon.code, Code::Shared(_)),
        expires_on: coupon.expires_on.to_sqlx(),
        issued_at: coupon.issued_at.to_sqlx(),
        issue_id: coupon.issue_id,
        till_id: &coupon.caller.till_id,
        store_id: coupon.caller.store_id.0,
        source: coupon.source.name(),
        account_id: coupon.account_id.as_deref(),
        metadata: coupon.metadata.as_ref().map(Json),
        request_id: request_uuid.is_none().then_some(&*coupon.request_id),
        request_uuid,
        cap: coupon.max_create,
        exclusive: coupon.is_exclusive,
        plain: is_swift && keyed.is_none() && coupon.max_create.is_none(),
        swift: is_swift,
        request_key: keyed.map(|keyed| &*keyed.request_key),
        entity: keyed.map(|keyed| keyed.entity),
        face: keyed.map(|keyed| Json(&*keyed.face)),
        attempt: beginning.map(|new| new.attempt),
        fingerprint: attempt.map(|(new, _)| new.fingerprint.as_slice()),
        entities: begins_here.map(|new| new.series_ids.iter().map(|id| id.0).collect()),
        held_until: begins_here.map(|new| new.held_until.to_sqlx()),
    }
}

/// The UUID that this is, if it is written as one is: it can be stored in less, and be told again letter by letter.
fn uuid(request_id: &str) -> Option<Uuid> {
    let uuid = Uuid::try_parse(request_id).ok()?;
    (*uuid.hyphenated().encode_lower(&mut Uuid::encode_buffer()) == *request_id).then_some(uuid)
}
