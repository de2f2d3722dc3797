//! A lease is flushed before use, so that no id is used twice, whatever a crash takes back.

use std::time::Duration;

use sqlx::postgres::PgConnection;
use tokio::time::Instant;

const LEASE_SIZE: i64 = 16_384;
/// Short enough that the ids of an idle service do not fall behind those of a busy one. Shorter still, an idle service would lease
/// more often than it issues.
const LEASE_LIFETIME: Duration = Duration::from_secs(5);

/// The remaining ids of a lease.
#[derive(Debug)]
pub(super) struct CouponIdLease {
    next: i64,
    end: i64,
    expires_at: Instant,
    broken_connections: u64,
}

impl CouponIdLease {
    pub(super) fn empty() -> Self {
        Self { next: 0, end: 0, expires_at: Instant::now(), broken_connections: 0 }
    }

    /// Leases a new range unless `count` ids remain. `broken_connections` is the number so far: a lease ends when a connection
    /// breaks, since a server that took over may not know it.
    pub(super) async fn ensure(
        &mut self,
        count: i64,
        broken_connections: u64,
        connection: &mut PgConnection,
    ) -> Result<(), sqlx::Error> {
        let is_valid = self.broken_connections == broken_connections && Instant::now() < self.expires_at;
        if is_valid && self.end - self.next >= count {
            return Ok(());
        }
        let size = LEASE_SIZE.max(count);
        let first: i64 = sqlx::query_scalar("select lease_coupon_ids_1($1)").bind(size).fetch_one(connection).await?;
        let expires_at = Instant::now() + LEASE_LIFETIME;
        *self = Self { next: first, end: first + size, expires_at, broken_connections };
        Ok(())
    }

    /// Takes `count` consecutive ids and returns the first. `None`: fewer remain (call [`ensure`](Self::ensure) first).
    pub(super) const fn take(&mut self, count: i64) -> Option<i64> {
        if self.end - self.next < count {
            return None;
        }
        let first = self.next;
        self.next += count;
        Some(first)
    }
}
