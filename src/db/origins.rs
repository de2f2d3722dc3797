//! Who issues, where and by which channel: stored once, and named by every coupon in four bytes.
//! `issuance::directory` caches the numbers.

use super::{Db, DbError};
use crate::model::{Caller, Source};

impl Db {
    /// The number of this origin, which is stored if it is new. It never changes.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn origin(&self, caller: &Caller, source: Source) -> Result<i32, DbError> {
        Ok(sqlx::query_scalar("select origin_1($1, $2, $3, $4, $5)")
            .bind(caller.org_id.0)
            .bind(caller.store_id.0)
            .bind(source.name())
            .bind(caller.till_id.as_deref())
            .bind(caller.client_key())
            .fetch_one(&mut *self.lease().await?)
            .await?)
    }
}
