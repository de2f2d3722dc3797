//! Keyed requests: whose turn it is, which of their coupons are recorded, and what else is known of them.
//! Their coupons are recorded by the writer, each in its own transaction; here they are only read.

use std::sync::Arc;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff_sqlx::ToSqlx;
use serde_json::Value;
use sqlx::Row;
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use uuid::Uuid;

use super::rows::unknown_value;
use super::{Store, StoreError};
use crate::model::{Face, OrgId, SeriesId};

/// Names a keyed request.
#[derive(Debug, Clone)]
pub struct KeyedRequest {
    /// The caller's organisation: keys of one have nothing to do with another's.
    pub org_id: OrgId,
    /// The key. One that begins with a line feed is natural: the hash of what identifies an issuance but for its series.
    pub key: Arc<str>,
}

/// What the beginning of an attempt has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begun {
    /// A request that was never seen.
    New,
    /// One that was: its coupons are recorded, and nobody is at work on the rest.
    Known,
    /// Another attempt is at work on it.
    Running,
    /// The key belongs to another request.
    Another,
}

/// A coupon that a keyed request was answered with, or would have been.
#[derive(Debug, Clone)]
pub struct RecordedCoupon {
    /// Its entity's place in the request; of a natural key, its series.
    pub entity: i64,
    /// Its code.
    pub code: String,
    /// Its last day.
    pub expires_on: Date,
    /// What it showed of its series.
    pub face: Arc<Face>,
}

/// All that is known of a keyed request.
#[derive(Debug, Clone)]
pub struct Receipt {
    /// Its entities.
    pub series_ids: Vec<SeriesId>,
    /// When it was first seen.
    pub started_at: Timestamp,
    /// Until when an attempt is believed to be at work on it.
    pub held_until: Option<Timestamp>,
    /// Why the last attempt issued none for some entities, as [`Store::end_request`] was told.
    pub refusals: Option<Value>,
    /// Its coupons.
    pub coupons: Vec<RecordedCoupon>,
}

impl Store {
    /// Ends an attempt, with what is to be told of the entities that got no coupon; `None`: nothing new.
    ///
    /// # Errors
    /// When the database cannot be asked: the attempt then ends when its time is over.
    pub async fn end_request(
        &self,
        request: &KeyedRequest,
        attempt: Uuid,
        refusals: Option<Value>,
    ) -> Result<(), StoreError> {
        sqlx::query("select end_keyed_request($1, $2, $3, $4)")
            .bind(request.org_id.0)
            .bind(&*request.key)
            .bind(attempt)
            .bind(refusals.map(Json))
            .execute(&mut *self.lease().await?)
            .await?;
        Ok(())
    }

    /// The coupons of a keyed request. They are committed, and may not be flushed yet.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn recorded(&self, request: &KeyedRequest) -> Result<Vec<RecordedCoupon>, StoreError> {
        let rows = sqlx::query(
            "select k.entity, k.face, c.code, c.expires_on
               from keyed_coupon k join coupon c using (org_id, customer_id, series_id, issue_id)
              where k.org_id = $1 and k.request_key = $2",
        )
        .bind(request.org_id.0)
        .bind(&*request.key)
        .fetch_all(&mut *self.lease().await?)
        .await?;
        rows.iter().map(recorded_from).collect()
    }

    /// What is known of a keyed request; `None`: nothing.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn receipt(&self, request: &KeyedRequest) -> Result<Option<Receipt>, StoreError> {
        let row = sqlx::query(
            "select series_ids, started_at, held_until, refusals from keyed_request where org_id = $1 and request_key = $2",
        )
        .bind(request.org_id.0)
        .bind(&*request.key)
        .fetch_optional(&mut *self.lease().await?)
        .await?;
        let Some(row) = row else { return Ok(None) };
        let instant = |column| row.try_get::<Option<jiff_sqlx::Timestamp>, _>(column);
        Ok(Some(Receipt {
            series_ids: row.try_get::<Vec<i64>, _>("series_ids")?.into_iter().map(SeriesId).collect(),
            started_at: row.try_get::<jiff_sqlx::Timestamp, _>("started_at")?.to_jiff(),
            held_until: instant("held_until")?.map(jiff_sqlx::Timestamp::to_jiff),
            refusals: row.try_get("refusals")?,
            coupons: self.recorded(request).await?,
        }))
    }

    /// Forgets some of the keyed requests, and some of the natural keys, that were first seen before this instant, and says
    /// how many of the one or the other, whichever is more. A request that somebody has just begun to try again stays.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn forget_requests(&self, before: Timestamp, most: i64) -> Result<u64, StoreError> {
        let forgotten = sqlx::query(
            "with old as (
                 select org_id, request_key from keyed_request
                  where started_at < $1 and (held_until is null or held_until < $1)
                  order by started_at limit $2 for update skip locked),
             coupons as (delete from keyed_coupon k using old where k.org_id = old.org_id and k.request_key = old.request_key)
             delete from keyed_request k using old where k.org_id = old.org_id and k.request_key = old.request_key",
        )
        .bind(before.to_sqlx())
        .bind(most)
        .execute(&mut *self.lease().await?)
        .await?;
        let natural = sqlx::query(
            "delete from keyed_coupon where ctid = any (array(
                 select ctid from keyed_coupon where natural_at < $1 order by natural_at limit $2 for update skip locked))",
        )
        .bind(before.to_sqlx())
        .bind(most)
        .execute(&mut *self.lease().await?)
        .await?;
        Ok(forgotten.rows_affected().max(natural.rows_affected()))
    }
}

/// What `begin_keyed_request` says.
pub(super) fn begun(found: i16) -> Result<Begun, StoreError> {
    match found {
        1 => Ok(Begun::New),
        2 => Ok(Begun::Known),
        3 => Ok(Begun::Running),
        4 => Ok(Begun::Another),
        _ => Err(unknown_value("begin_keyed_request")),
    }
}

fn recorded_from(row: &PgRow) -> Result<RecordedCoupon, StoreError> {
    let Json(face) = row.try_get("face")?;
    Ok(RecordedCoupon {
        entity: row.try_get("entity")?,
        code: row.try_get("code")?,
        expires_on: row.try_get::<jiff_sqlx::Date, _>("expires_on")?.to_jiff(),
        face: Arc::new(face),
    })
}
