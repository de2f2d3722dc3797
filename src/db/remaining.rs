//! What caps and pools have left, for the metrics: of the series that are nearest to their end, and how many there are.
//! Looks up the end of each counter; counts no coupon and no code.

use jiff::civil::Date;
use jiff_sqlx::ToSqlx;
use sqlx::Row;

use super::{Db, DbError};
use crate::model::{OrgId, SeriesId};

/// What limits a series.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitKind {
    /// Its cap.
    Cap,
    /// The codes that were uploaded for it.
    Pool,
}

impl LimitKind {
    /// The name under which it is counted.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cap => "cap",
            Self::Pool => "pool",
        }
    }
}

/// What one series has left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeriesRemaining {
    /// What limits it.
    pub kind: LimitKind,
    /// Of this organisation.
    pub org_id: OrgId,
    /// This series.
    pub series_id: SeriesId,
    /// Coupons that it can still issue; of a pool, to anyone.
    pub remaining: i64,
    /// Out of so many.
    pub of: i64,
    /// How many series are as it is: limited by the same, and with or without something left.
    pub series: i64,
    /// Of how many organisations.
    pub organisations: i64,
}

impl Db {
    /// The series that have the least left in proportion: up to `most` of each kind that have something left, and as many that have
    /// nothing, the latest ids first. A series whose time is over before `today` is none.
    ///
    /// # Errors
    /// When the database cannot be asked, or takes too long.
    pub async fn series_remaining(&self, today: Date, most: u32) -> Result<Vec<SeriesRemaining>, DbError> {
        let query = sqlx::query(REMAINING).bind(today.to_sqlx()).bind(i64::from(most));
        let rows = query.fetch_all(&mut *self.lease().await?).await?;
        rows.iter()
            .map(|row| {
                let is_cap: bool = row.try_get("is_cap")?;
                Ok(SeriesRemaining {
                    kind: if is_cap { LimitKind::Cap } else { LimitKind::Pool },
                    org_id: OrgId(row.try_get("org_id")?),
                    series_id: SeriesId(row.try_get("series_id")?),
                    remaining: row.try_get("remaining")?,
                    of: row.try_get("of")?,
                    series: row.try_get("series")?,
                    organisations: row.try_get("organisations")?,
                })
            })
            .collect()
    }
}

// A pool's codes for anyone have positions, given out in order: what is left lies between the last given and the last there is. A pool
// of codes that are one customer's each has no end that is the same for all, and is left out.
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
        select n.org_id, n.series_id, n.given,
               -- Only behind what was given: before it lie those that were deleted.
               coalesce((select p.position from pool_code p
                          where p.org_id = n.org_id and p.series_id = n.series_id and p.position > n.given
                          order by p.position desc limit 1), n.given) as last
          from given n),
    limited as materialized (
        select true as is_cap, l.org_id, l.series_id, l.max_create as of,
               greatest(l.max_create - coalesce((select c.issued from series_counter c
                                                  where c.org_id = l.org_id and c.series_id = l.series_id
                                                  order by c.issued desc limit 1), 0), 0) as remaining
          from living l where l.max_create is not null
         union all
        select false, p.org_id, p.series_id, p.last, p.last - p.given
          from pool p
         where p.last > 0
            -- By a scalar query: a join may be planned as a walk over all codes.
            or (select c.code from pool_code c
                 where c.org_id = p.org_id and c.series_id = p.series_id and c.customer_id is not null limit 1) is null),
    counted as (
        select is_cap, remaining = 0 as is_used_up, count(*) as series, count(distinct org_id) as organisations
          from limited group by 1, 2),
    ranked as (
        select l.*, l.remaining = 0 as is_used_up,
               row_number() over (partition by l.is_cap, l.remaining = 0
                                  order by l.remaining::float8 / nullif(l.of, 0), l.remaining, l.series_id desc) as rank
          from limited l)
    select r.is_cap, r.org_id, r.series_id, r.remaining, r.of, c.series, c.organisations
      from ranked r join counted c using (is_cap, is_used_up)
     where r.rank <= $2";
