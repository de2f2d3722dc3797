use super::connection::Db;
use super::error::DbError;
use crate::model::{Caller, Source};

impl Db {
    /// The number that stands for who issues, where and by which channel, in every coupon. Stores a new origin. The number of an
    /// origin never changes, so it can be cached.
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
            .fetch_one(&mut *self.connection().await?)
            .await?)
    }
}
