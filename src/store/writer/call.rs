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

/// What became of a coupon, by the outcomes that the procedure lists; and its code, if it came from the pool.
pub(super) fn meaning(coupon: &NewCoupon, outcome: i16, from_pool: Option<String>) -> Written {
    match (outcome, &coupon.code, from_pool) {
        (1, Code::Unique(code) | Code::Shared(code), _) => Written::Issued(code.clone()),
        (1, Code::FromPool, Some(code)) => Written::Issued(code),
        (5, ..) => Written::Collision,
        (8, ..) => Written::Paused,
        (9, ..) => Written::Recorded,
        (10, ..) => Written::Unbegun,
        (2..=4 | 6 | 7, ..) => Written::Stale,
        _ => Written::Failed,
    }
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
