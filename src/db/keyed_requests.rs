use std::sync::Arc;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use sqlx::Row;
use sqlx::postgres::{PgConnection, PgRow};
use uuid::Uuid;

use super::connection::Db;
use super::error::DbError;
use super::settings_rows::{snapshot_from, zone_from};
use crate::model::{CustomerId, OrgId, SeriesId, SeriesSnapshot};

/// Identifies a request with an `Idempotency-Key`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RequestName {
    /// The caller's organisation. Each organisation has keys of its own.
    pub org_id: OrgId,
    /// The first 16 bytes of the SHA-256 of the `Idempotency-Key`.
    pub key_hash: Uuid,
}

/// The claim of an attempt on its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// The first of the reserved coupon ids, one for each entity. No other claim has the same value.
    pub first_coupon_id: i64,
    /// The fencing number.
    pub attempt: i32,
}

impl Claim {
    /// The coupon id that is reserved for the entity at this index, from 0.
    #[must_use]
    pub fn coupon_id(self, index: usize) -> i64 {
        // A request has a few hundred entities at most.
        self.first_coupon_id.saturating_add(i64::try_from(index).unwrap_or(i64::MAX))
    }
}

/// An issued coupon.
#[derive(Debug, Clone)]
pub struct IssuedCoupon {
    /// Its id.
    pub coupon_id: i64,
    /// The series.
    pub series_id: SeriesId,
    /// The customer.
    pub customer_id: CustomerId,
    /// The code, as it is shown.
    pub code: String,
    /// The last day.
    pub expires_on: Date,
    /// The version of the series that was asked for; `None`: the version with which the coupon was issued.
    pub asked_version: Option<i32>,
    /// What that version shows.
    pub snapshot: Arc<SeriesSnapshot>,
    /// The time zone of its dates.
    pub zone: TimeZone,
}

/// A stored keyed request.
#[derive(Debug, Clone)]
pub struct StoredRequest {
    /// The latest claim.
    pub claim: Claim,
    /// When it was first seen, in whole seconds.
    pub received_at: Timestamp,
    /// The entities with their answers: see column `keyed_request.answers`.
    pub answers: String,
    /// Whether an attempt is at work on it.
    pub is_in_progress: bool,
}

/// What [`Db::purge`] deletes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purge {
    /// Keyed requests.
    Requests,
    /// Records of natural keys.
    NaturalKeys,
}

impl Db {
    /// Ends an attempt that stored no answers. False: another attempt has taken over.
    ///
    /// # Errors
    /// When the database cannot be asked. The attempt then ends with its lease.
    pub async fn end_attempt(&self, request: RequestName, claim: Claim) -> Result<bool, DbError> {
        Ok(end_attempt(&mut *self.connection().await?, request, claim).await?)
    }

    /// The existing ones among these coupons, each with a version of its series; `None`: the version with which it was issued. They are
    /// committed, but may not be flushed yet.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn coupons(&self, org_id: OrgId, asked: &[(i64, Option<i32>)]) -> Result<Vec<IssuedCoupon>, DbError> {
        let (ids, versions): (Vec<i64>, Vec<Option<i32>>) = asked.iter().copied().unzip();
        let rows = sqlx::query(COUPONS)
            .bind(org_id.0)
            .bind(ids)
            .bind(versions)
            .fetch_all(&mut *self.connection().await?)
            .await?;
        rows.iter().map(issued_from).collect()
    }

    /// The stored request; `None`: there is none. An attempt is over at the latest when its lease ends.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn keyed_request(
        &self,
        request: RequestName,
        lease_seconds: i32,
    ) -> Result<Option<StoredRequest>, DbError> {
        let row = sqlx::query(
            "select r.first_coupon_id, r.attempt, r.received_at, r.answers, is_in_progress_1(r, $3) as is_in_progress
               from keyed_request r where r.org_id = $1 and r.key_hash = $2",
        )
        .bind(request.org_id.0)
        .bind(request.key_hash)
        .bind(lease_seconds)
        .fetch_optional(&mut *self.connection().await?)
        .await?;
        let Some(row) = row else { return Ok(None) };
        Ok(Some(StoredRequest {
            claim: Claim { first_coupon_id: row.try_get("first_coupon_id")?, attempt: row.try_get("attempt")? },
            received_at: row.try_get::<jiff_sqlx::Timestamp, _>("received_at")?.to_jiff(),
            answers: row.try_get("answers")?,
            is_in_progress: row.try_get("is_in_progress")?,
        }))
    }

    /// Deletes up to `max` rows that are older than `retention_seconds`, and returns their number. A request that was retried since
    /// then stays.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn purge(&self, what: Purge, retention_seconds: f64, max: i64) -> Result<u64, DbError> {
        let statement = match what {
            Purge::Requests => PURGE_REQUESTS,
            Purge::NaturalKeys => PURGE_NATURAL_KEYS,
        };
        let query = sqlx::query(statement).bind(retention_seconds).bind(max);
        Ok(query.execute(&mut *self.connection().await?).await?.rows_affected())
    }
}

const COUPONS: &str = "
    select c.coupon_id, asked.version as asked_version, c.series_id, c.customer_id, coalesce(c.uploaded_code, c.code, own.generic_code) as code, c.expires_on,
           v.description, v.info, v.discount_code, v.discount_type, v.discount_value, v.discount_upto, v.time_zone
      from unnest($2::bigint[], $3::integer[]) as asked (coupon_id, version)
      join coupon c on c.org_id = $1 and c.coupon_id = asked.coupon_id
      join series_version own on own.org_id = c.org_id and own.series_id = c.series_id and own.version = c.series_version
      join series_version v on v.org_id = c.org_id and v.series_id = c.series_id
                           and v.version = coalesce(asked.version, c.series_version)";

// An array of row addresses: a join may be planned as a scan of the table. now() instead of clock_timestamp(): an index cannot be
// searched by a volatile value.
const PURGE_REQUESTS: &str = "
    delete from keyed_request where ctid = any (array(
        select r.ctid from keyed_request r
         where r.received_at < now() - make_interval(secs => $1)
           and r.received_at + make_interval(secs => r.attempt / 64.0) < now() - make_interval(secs => $1)
         order by r.received_at limit $2 for update skip locked))";
const PURGE_NATURAL_KEYS: &str = "
    delete from natural_issuance where ctid = any (array(
        select n.ctid from natural_issuance n where n.issued_at < now() - make_interval(secs => $1)
         order by n.issued_at limit $2 for update skip locked))";

/// [`Db::end_attempt`] over an existing connection.
pub(super) async fn end_attempt(
    connection: &mut PgConnection,
    request: RequestName,
    claim: Claim,
) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("select (end_attempts_1(array[$1], array[$2], array[$3], array[$4], array[null]))[1]")
        .bind(request.org_id.0)
        .bind(request.key_hash)
        .bind(claim.first_coupon_id)
        .bind(claim.attempt)
        .fetch_one(connection)
        .await
}

fn issued_from(row: &PgRow) -> Result<IssuedCoupon, DbError> {
    Ok(IssuedCoupon {
        coupon_id: row.try_get("coupon_id")?,
        series_id: SeriesId(row.try_get("series_id")?),
        customer_id: CustomerId(row.try_get("customer_id")?),
        code: row.try_get("code")?,
        expires_on: row.try_get::<jiff_sqlx::Date, _>("expires_on")?.to_jiff(),
        asked_version: row.try_get("asked_version")?,
        snapshot: Arc::new(snapshot_from(row)?),
        zone: zone_from(row)?,
    })
}
