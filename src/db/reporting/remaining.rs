use jiff::civil::Date;
use jiff_sqlx::ToSqlx;
use sqlx::Row;
use strum::IntoStaticStr;

use crate::db::connection::Db;
use crate::db::error::DbError;
use crate::model::{OrgId, SeriesId};

/// What limits a series.
#[derive(Debug, Clone, Copy, PartialEq, Eq, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum LimitKind {
    /// Its cap.
    Cap,
    /// Its uploaded codes.
    Pool,
}

impl LimitKind {
    /// The label of the metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// What remains of one series.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeriesRemaining {
    /// What limits it.
    pub kind: LimitKind,
    /// The organisation.
    pub org_id: OrgId,
    /// The series.
    pub series_id: SeriesId,
    /// The coupons that it can still issue; of a pool, to any customer.
    pub remaining: i64,
    /// The cap, or the number of codes that the pool ever held; of a used-up pool, it may be a batch less.
    pub total: i64,
    /// The number of series of the same kind in the same state (used up or not).
    pub series: i64,
    /// The number of organisations of those series.
    pub organisations: i64,
}

impl Db {
    /// The series with the smallest remaining part: of each kind up to `max` series with a remainder, and up to `max` that are used up,
    /// the latest ids first. Skips series that expired before `today`. Looks up the end of each counter instead of counting coupons or
    /// codes.
    ///
    /// # Errors
    /// When the database cannot be asked, or takes too long.
    pub async fn series_remaining(&self, today: Date, max: u32) -> Result<Vec<SeriesRemaining>, DbError> {
        let query = sqlx::query(REMAINING).bind(today.to_sqlx()).bind(i64::from(max));
        let rows = query.fetch_all(&mut *self.connection().await?).await?;
        rows.iter()
            .map(|row| {
                let is_cap: bool = row.try_get("is_cap")?;
                Ok(SeriesRemaining {
                    kind: if is_cap { LimitKind::Cap } else { LimitKind::Pool },
                    org_id: OrgId(row.try_get("org_id")?),
                    series_id: SeriesId(row.try_get("series_id")?),
                    remaining: row.try_get("remaining")?,
                    total: row.try_get("total")?,
                    series: row.try_get("series")?,
                    organisations: row.try_get("organisations")?,
                })
            })
            .collect()
    }
}

// The codes of a pool that are for any customer have positions and are given out in order: the remaining ones lie between the first and
// the last position. Pools whose codes are for one customer each are skipped: what remains of them differs
// from customer to customer.
const REMAINING: &str = "
    with living as (
        select s.org_id, s.series_id, s.max_create, s.client_handling_type = 'DISC_CODE_PIN' as is_pool
          from series s where s.valid_till_date >= $1 and not s.externally_managed),
    given as materialized (
        select l.org_id, l.series_id,
               coalesce((select g.position from pool_counter g
                          where g.org_id = l.org_id and g.series_id = l.series_id
                          order by g.position desc limit 1), 0) as given
          from living l where l.is_pool),
    pool as materialized (
        select n.org_id, n.series_id,
               -- Starts behind the counter: the rows before it were deleted. The counter may be a batch behind.
               coalesce((select p.position from pool_code p
                          where p.org_id = n.org_id and p.series_id = n.series_id and p.position > n.given
                          order by p.position limit 1) - 1, n.given) as given,
               coalesce((select p.position from pool_code p
                          where p.org_id = n.org_id and p.series_id = n.series_id and p.position > n.given
                          order by p.position desc limit 1), n.given) as last
          from given n),
    limited as materialized (
        select true as is_cap, l.org_id, l.series_id, l.max_create as total,
               greatest(l.max_create - coalesce((select c.issued from series_counter c
                                                  where c.org_id = l.org_id and c.series_id = l.series_id
                                                  order by c.issued desc limit 1), 0), 0) as remaining
          from living l where l.max_create is not null
         union all
        select false, p.org_id, p.series_id, p.last, p.last - p.given
          from pool p
         where p.last > 0
            -- A scalar query: a join may be planned as a scan of all codes.
            or (select c.code from pool_code c
                 where c.org_id = p.org_id and c.series_id = p.series_id and c.customer_id is not null limit 1) is null),
    counted as (
        select is_cap, remaining = 0 as is_used_up, count(*) as series, count(distinct org_id) as organisations
          from limited group by 1, 2),
    ranked as (
        select l.*, l.remaining = 0 as is_used_up,
               row_number() over (partition by l.is_cap, l.remaining = 0
                                  order by l.remaining::float8 / nullif(l.total, 0), l.remaining, l.series_id desc) as rank
          from limited l)
    select r.is_cap, r.org_id, r.series_id, r.remaining, r.total, c.series, c.organisations
      from ranked r join counted c using (is_cap, is_used_up)
     where r.rank <= $2";
