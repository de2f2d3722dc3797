//! Coupon ids, from ranges that are leased of the database.
//!
//! A lease is flushed before use, so that no id is used twice, whatever a crash takes back. It lives for seconds, so that the ids
//! of an idle service do not fall behind, and ends when a connection breaks: a server that took over may not know it.

use std::time::Duration;

use sqlx::postgres::PgConnection;
use tokio::time::Instant;

/// The ids of one lease.
const LEASE: i64 = 16_384;
/// Shorter, and an idle service would lease more often than it issues.
const LIFETIME: Duration = Duration::from_secs(5);

/// What is left of a lease.
#[derive(Debug)]
pub(super) struct CouponIds {
    next: i64,
    end: i64,
    until: Instant,
    breaks: u64,
}

impl CouponIds {
    /// Nothing is leased yet.
    pub(super) fn new() -> Self {
        Self { next: 0, end: 0, until: Instant::now(), breaks: 0 }
    }

    /// Leases a new range over this connection, unless so many ids are left. `breaks`: the number of connections that broke so far.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub(super) async fn ensure(
        &mut self,
        count: i64,
        breaks: u64,
        connection: &mut PgConnection,
    ) -> Result<(), sqlx::Error> {
        if self.end - self.next >= count && self.breaks == breaks && Instant::now() < self.until {
            return Ok(());
        }
        let size = LEASE.max(count);
        let first: i64 = sqlx::query_scalar("select lease_coupon_ids_1($1)").bind(size).fetch_one(connection).await?;
        *self = Self { next: first, end: first + size, until: Instant::now() + LIFETIME, breaks };
        Ok(())
    }

    /// Takes so many consecutive ids and returns the first. `None`: there are not so many ([`ensure`](Self::ensure) comes first).
    pub(super) const fn take(&mut self, count: i64) -> Option<i64> {
        if self.end - self.next < count {
            return None;
        }
        let first = self.next;
        self.next += count;
        Some(first)
    }
}
