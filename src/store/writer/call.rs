//! The call that writes a batch: coupons on their way into procedure `issue_coupons_2`, and what it says of them.
//! `migrations/0011_attribution.sql` has it; 0010 and 0003 say what its fields and outcomes mean. Sends nothing itself.

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
    sqlx::query("call issue_coupons_2($1, $2, null::smallint[], null::text[])").bind(values).bind(durability)
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
            unknown => return Err(Unclear::UnknownOutcome(unknown)),
        })
    }
}

/// What became of a coupon, by its outcome; and its code, if it came from the pool.
pub(super) fn meaning(coupon: &NewCoupon, outcome: i16, from_pool: Option<String>) -> Written {
    written(&coupon.code, outcome, from_pool).unwrap_or_else(|unclear| {
        let series_id = coupon.series_id.0;
        tracing::error!(error = %unclear, series_id, "the database's outcome leaves a coupon in doubt");
        Written::InDoubt
    })
}

fn written(code: &Code, outcome: i16, from_pool: Option<String>) -> Result<Written, Unclear> {
    Ok(match Outcome::try_from(outcome)? {
        Outcome::Issued => Written::Issued(match code {
            Code::Unique(code) | Code::Shared(code) => code.clone(),
            Code::FromPool => from_pool.ok_or(Unclear::NoCode)?,
        }),
        Outcome::CodeTaken => Written::Collision,
        Outcome::SettingsLocked => Written::Paused,
        Outcome::AlreadyIssued => Written::Recorded,
        Outcome::KeyNotClaimed => Written::Unbegun,
        Outcome::OtherRevision
        | Outcome::CapReached
        | Outcome::OrdinalTaken
        | Outcome::HoldsExcluded
        | Outcome::PoolEmpty => Written::Stale,
    })
}

/// A value of the type `new_coupon_2`: its fields, in order.
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
    till_id: Option<&'c str>,
    store_id: i64,
    client_key: Option<&'c str>,
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
        PgTypeInfo::with_name("new_coupon_2")
    }
}

impl PgHasArrayType for Value<'_> {
    fn array_type_info() -> PgTypeInfo {
        PgTypeInfo::array_of("new_coupon_2")
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
        till_id: coupon.caller.till_id.as_deref(),
        store_id: coupon.caller.store_id.0,
        client_key: coupon.caller.client_key(),
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever the procedure says: issued is what it says so of, with its code, and what is not known is not settled.
        #[test]
        fn no_outcome_is_taken_for_another(outcome in prop_oneof![-2_i16..14, any::<i16>()], kind in 0..3, returned in any::<bool>()) {
            let code = match kind {
                0 => Code::Unique("DRAWN".to_owned()),
                1 => Code::Shared("SHARED".to_owned()),
                _ => Code::FromPool,
            };
            let written = written(&code, outcome, returned.then(|| "POOL".to_owned()));
            match (outcome, &code) {
                (1, Code::Unique(_)) => prop_assert_eq!(written, Ok(Written::Issued("DRAWN".to_owned()))),
                (1, Code::Shared(_)) => prop_assert_eq!(written, Ok(Written::Issued("SHARED".to_owned()))),
                (1, Code::FromPool) if returned => prop_assert_eq!(written, Ok(Written::Issued("POOL".to_owned()))),
                (1, Code::FromPool) => prop_assert_eq!(written, Err(Unclear::NoCode)),
                (2..=10, _) => prop_assert!(matches!(
                    written,
                    Ok(Written::Stale | Written::Paused | Written::Collision | Written::Recorded | Written::Unbegun)
                )),
                _ => prop_assert_eq!(written, Err(Unclear::UnknownOutcome(outcome))),
            }
        }
    }
}
