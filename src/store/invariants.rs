//! What must hold among the rows whatever has happened: that no limit is overrun, that counters are what they count, that no
//! code is two coupons, that keyed requests can be finished.
//!
//! Only reads, from one snapshot, so that what is being issued meanwhile never looks half done. Nothing waits for it.

use jiff::Timestamp;
use jiff_sqlx::ToSqlx;
use sqlx::postgres::{PgConnectOptions, PgRow};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection, Row};

use super::StoreError;
use crate::model::{CustomerId, OrgId, SeriesId};

/// The most rows of one invariant that are named. All are counted.
const NAMED: i64 = 20;

/// For the transaction that asks. Indexes are left aside, since a damaged one is among what is looked for; so nothing may be
/// looked up row by row, either. Of the timeouts a server has those that it knows.
const SETTINGS: [(&str, &str); 9] = [
    ("statement_timeout", "0"),
    ("transaction_timeout", "0"),
    ("enable_indexscan", "off"),
    ("enable_indexonlyscan", "off"),
    ("enable_bitmapscan", "off"),
    ("enable_nestloop", "off"),
    ("jit", "off"),
    ("max_parallel_workers_per_gather", "0"),
    ("work_mem", "64MB"),
];

/// Something that must hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Invariant {
    /// No series has issued more than its cap.
    Caps,
    /// No customer has received more of a series than its maximum.
    Maxima,
    /// The numbers of a customer's coupons of a series are their places among all of them.
    Ordinals,
    /// The counter of a series with a cap is the number of its coupons, and other series have none.
    Counters,
    /// No code is that of two coupons, but for those that are shared.
    Codes,
    /// An uploaded code is in one place of one pool, ahead of its counter, or is a coupon; never both.
    Pools,
    /// What is recorded under a key is a coupon that its request asked for, and no attempt keeps a request from being finished.
    KeyedRequests,
    /// Nobody has coupons of two mutually exclusive series.
    Exclusions,
    /// A coupon names the till or the client that issued it.
    Callers,
}

/// A row that is not as it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offence {
    /// Of this organisation.
    pub org_id: OrgId,
    /// The series, if it is about one.
    pub series_id: Option<SeriesId>,
    /// The customer, if it is about one.
    pub customer_id: Option<CustomerId>,
    /// What else it takes to find it: the beginning of a code, or a request's key.
    pub subject: Option<String>,
    /// What was found.
    pub found: String,
    /// What must be.
    pub expected: String,
}

/// What became of the question whether an invariant holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The invariant.
    pub invariant: Invariant,
    /// How many rows it was asked of: series, coupons, uploaded codes, or keyed requests with their records.
    pub checked: i64,
    /// How many are not as they must be.
    pub wrong: i64,
    /// The first of them.
    pub offences: Vec<Offence>,
}

/// Asks whether each invariant holds, of all organisations or of this one, as of one moment; `now` is what attempts at keyed
/// requests are measured by. `None`: there is no such organisation.
///
/// # Errors
/// When the database cannot be asked.
pub async fn check(
    connect: &PgConnectOptions,
    org_id: Option<OrgId>,
    now: Timestamp,
) -> Result<Option<Vec<Finding>>, StoreError> {
    let mut connection = begin(connect).await?;
    if let Some(OrgId(id)) = org_id {
        let exists: bool = sqlx::query_scalar("select exists (select from organisation where org_id = $1)")
            .bind(id)
            .fetch_one(&mut connection)
            .await?;
        if !exists {
            return Ok(None);
        }
    }
    let mut findings = Vec::with_capacity(Invariant::ALL.len());
    for invariant in Invariant::ALL {
        findings.push(ask(&mut connection, invariant, org_id, now).await?);
    }
    connection.close().await?;
    Ok(Some(findings))
}

async fn begin(connect: &PgConnectOptions) -> Result<PgConnection, StoreError> {
    let mut connection = connect.connect().await?;
    sqlx::query("begin isolation level repeatable read, read only").execute(&mut connection).await?;
    let (names, values): (Vec<&str>, Vec<&str>) = SETTINGS.into_iter().unzip();
    sqlx::query(
        "select set_config(s.name, t.value, true) from unnest($1::text[], $2::text[]) as t (name, value)
           join pg_settings s using (name)",
    )
    .bind(names)
    .bind(values)
    .execute(&mut connection)
    .await?;
    Ok(connection)
}

async fn ask(
    connection: &mut PgConnection,
    invariant: Invariant,
    org_id: Option<OrgId>,
    now: Timestamp,
) -> Result<Finding, StoreError> {
    let Question { checked, wrong } = invariant.question();
    let statement = format!(
        "with asked as (select $2::timestamptz as now),
              wrong as materialized ({wrong})
         select ({checked}) as checked, (select count(*) from wrong) as wrong, w.*
           from (values (true)) as always (holds)
           left join (select * from wrong order by org_id, series_id, customer_id, subject limit {NAMED}) w on true"
    );
    let rows = sqlx::query(AssertSqlSafe(statement))
        .bind(org_id.map(|id| id.0))
        .bind(now.to_sqlx())
        .fetch_all(connection)
        .await?;
    // There is a row for the counts even if nothing is wrong.
    let counts = rows.first().ok_or(StoreError::Failed(sqlx::Error::RowNotFound))?;
    Ok(Finding {
        invariant,
        checked: counts.try_get("checked")?,
        wrong: counts.try_get("wrong")?,
        offences: rows.iter().filter_map(|row| offence_if_any(row).transpose()).collect::<Result<_, _>>()?,
    })
}

fn offence_if_any(row: &PgRow) -> Result<Option<Offence>, StoreError> {
    let Some(org_id) = row.try_get("org_id")? else { return Ok(None) };
    Ok(Some(Offence {
        org_id: OrgId(org_id),
        series_id: row.try_get::<Option<i64>, _>("series_id")?.map(SeriesId),
        customer_id: row.try_get::<Option<String>, _>("customer_id")?.map(CustomerId),
        subject: row.try_get("subject")?,
        found: row.try_get("found")?,
        expected: row.try_get("expected")?,
    }))
}

/// How an invariant is asked for: how many rows there are to ask, and which are wrong, with the columns of [`Offence`]. `$1` is
/// the organisation, or null.
struct Question {
    checked: &'static str,
    wrong: &'static str,
}

impl Invariant {
    /// All of them, in the order in which they are asked.
    pub const ALL: [Self; 9] = [
        Self::Caps,
        Self::Maxima,
        Self::Ordinals,
        Self::Counters,
        Self::Codes,
        Self::Pools,
        Self::KeyedRequests,
        Self::Exclusions,
        Self::Callers,
    ];

    const fn question(self) -> Question {
        match self {
            Self::Caps => CAPS,
            Self::Maxima => MAXIMA,
            Self::Ordinals => ORDINALS,
            Self::Counters => COUNTERS,
            Self::Codes => CODES,
            Self::Pools => POOLS,
            Self::KeyedRequests => KEYED_REQUESTS,
            Self::Exclusions => EXCLUSIONS,
            Self::Callers => CALLERS,
        }
    }
}

/// A limit may be lowered below what was issued; it is overrun by a coupon that was issued afterwards.
const CAPS: Question = Question {
    checked: "select count(*) from series s where s.max_create is not null and ($1::bigint is null or s.org_id = $1)",
    wrong: "
        with issued as (
            select c.org_id, c.series_id, count(*) as coupons, max(c.issued_at) as last_at from coupon c
             where $1::bigint is null or c.org_id = $1
             group by c.org_id, c.series_id)
        select i.org_id, i.series_id, null::text as customer_id, null::text as subject,
               format('%s issued', i.coupons) as found, format('at most %s', s.max_create) as expected
          from issued i
          join series s using (org_id, series_id)
          left join series_limits l using (org_id, series_id)
         where i.coupons > s.max_create and i.last_at > coalesce(l.changed_at, '-infinity')",
};

/// As `issuance::rules` counts: all that the customer has received, run out or not; one where several are not allowed.
const MAXIMA: Question = Question {
    checked: "
        select count(*) from coupon c
          join series s on s.org_id = c.org_id and s.series_id = c.series_id
         where (s.max_vouchers_per_user is not null or not s.is_multiple_vouchers_per_user_allowed)
           and ($1::bigint is null or c.org_id = $1)",
    wrong: r#"
        with limited as (
            select s.org_id, s.series_id, coalesce(l.changed_at, '-infinity') as since,
                   least(s.max_vouchers_per_user, case when not s.is_multiple_vouchers_per_user_allowed then 1 end) as most
              from series s left join series_limits l using (org_id, series_id)
             where s.max_vouchers_per_user is not null or not s.is_multiple_vouchers_per_user_allowed)
        select c.org_id, c.series_id, c.customer_id collate "C" as customer_id, null::text as subject,
               format('%s received', count(*)) as found, format('at most %s', min(s.most)) as expected
          from coupon c join limited s using (org_id, series_id)
         where $1::bigint is null or c.org_id = $1
         group by c.customer_id collate "C", c.org_id, c.series_id
        having count(*) > min(s.most) and max(c.issued_at) > min(s.since)"#,
};

/// A coupon has no number where the earlier ones did not decide, but takes a place: the next one that has a number counts it.
const ORDINALS: Question = Question {
    checked: "select count(*) from coupon c where c.ordinal is not null and ($1::bigint is null or c.org_id = $1)",
    wrong: r#"
        select c.org_id, c.series_id, c.customer_id collate "C" as customer_id, null::text as subject,
               format('coupons %s, numbers %s (%s different, %s to %s)', count(*), count(c.ordinal),
                      count(distinct c.ordinal), min(c.ordinal), max(c.ordinal)) as found,
               format('each number once, from 1 to %s', count(*)) as expected
          from coupon c
         where $1::bigint is null or c.org_id = $1
         group by c.customer_id collate "C", c.org_id, c.series_id
        having min(c.ordinal) < 1 or max(c.ordinal) > count(*) or count(distinct c.ordinal) < count(c.ordinal)"#,
};

const COUNTERS: Question = Question {
    checked: "select count(*) from series s where s.max_create is not null and ($1::bigint is null or s.org_id = $1)",
    wrong: "
        with issued as (
            select c.org_id, c.series_id, count(*) as coupons from coupon c
             where $1::bigint is null or c.org_id = $1
             group by c.org_id, c.series_id),
        counted as (
            select n.org_id, n.series_id, max(n.issued) as counter from series_counter n
             where $1::bigint is null or n.org_id = $1
             group by n.org_id, n.series_id),
        capped as (
            select s.org_id, s.series_id, s.max_create from series s
             where s.max_create is not null and ($1::bigint is null or s.org_id = $1))
        select org_id, series_id, null::text as customer_id, null::text as subject,
               case when n.counter is null then 'no counter' else format('a counter at %s', n.counter) end as found,
               case when s.max_create is null then 'none, for want of a cap'
                    else format('one at %s, as there are coupons', coalesce(i.coupons, 0)) end as expected
          from capped s
          full join counted n using (org_id, series_id)
          left join issued i using (org_id, series_id)
         where s.max_create is null or n.counter is distinct from coalesce(i.coupons, 0)",
};

/// Not by the index that is to prevent it.
const CODES: Question = Question {
    checked: "select count(*) from coupon c where not c.shared_code and ($1::bigint is null or c.org_id = $1)",
    wrong: r#"
        with twice as (
            select c.code collate "C" as code, c.org_id, count(*) as coupons from coupon c
             where not c.shared_code and ($1::bigint is null or c.org_id = $1)
             group by c.code collate "C", c.org_id having count(*) > 1)
        select c.org_id, c.series_id, c.customer_id,
               'code ' || left(c.code, least(4, length(c.code) / 2)) || '…' as subject,
               format('%s coupons have this code', t.coupons) as found, 'one' as expected
          from coupon c join twice t on t.org_id = c.org_id and t.code = c.code collate "C"
         where not c.shared_code"#,
};

/// A code that is drawn may be one that is in a pool, and the pool then loses it when its turn comes; but what a pool gave out
/// has left it. A place below the counter never has its turn, and of two codes on one place one is lost.
const POOLS: Question = Question {
    checked: "select count(*) from pool_code p where $1::bigint is null or p.org_id = $1",
    wrong: r#"
        with pool as not materialized (
            select * from pool_code p where $1::bigint is null or p.org_id = $1),
        given as (
            select c.org_id, c.code, c.series_id as by_series from coupon c join series s using (org_id, series_id)
             where not c.shared_code and s.client_handling_type = 'DISC_CODE_PIN'),
        twice as (
            select p.code collate "C" as code, p.org_id from pool p
             group by p.code collate "C", p.org_id having count(*) > 1),
        crowded as (
            select p.org_id, p.series_id, p.place from pool p where p.place is not null
             group by p.org_id, p.series_id, p.place having count(*) > 1),
        counter as (
            select g.org_id, g.series_id, max(g.given) as given from pool_counter g group by g.org_id, g.series_id),
        wrong as (
            select p.*, format('in the pool, and a coupon of series %s', g.by_series) as found, 'one of the two' as expected
              from pool p join given g on g.org_id = p.org_id and g.code = p.code
            union all
            select p.*, 'uploaded twice', 'once'
              from pool p join twice t on t.org_id = p.org_id and t.code = p.code collate "C"
            union all
            select p.*, format('place %s, with another code', p.place), 'a place of its own'
              from pool p join crowded o on o.org_id = p.org_id and o.series_id = p.series_id and o.place = p.place
            union all
            select p.*, format('place %s', p.place), format('above %s, the place that was given out last', g.given)
              from pool p join counter g on g.org_id = p.org_id and g.series_id = p.series_id and p.place <= g.given)
        select w.org_id, w.series_id, w.customer_id, w.found, w.expected,
               'code ' || left(w.code, least(4, length(w.code) / 2)) || '…' as subject
          from wrong w"#,
};

/// A key that begins with a line feed is natural, and has no request.
const KEYED_REQUESTS: Question = Question {
    checked: "
        select (select count(*) from keyed_coupon k where $1::bigint is null or k.org_id = $1)
             + (select count(*) from keyed_request r where $1::bigint is null or r.org_id = $1)",
    wrong: r"
        with record as not materialized (
            select k.org_id, k.request_key, k.entity, k.series_id, k.customer_id, k.issue_id,
                   k.request_key like E'\n%' as is_natural, least(greatest(k.entity, -1), 2147483646)::integer + 1 as place
              from keyed_coupon k where $1::bigint is null or k.org_id = $1),
        kept as materialized (
            select k.org_id, k.request_key, k.entity
              from coupon c join record k using (org_id, customer_id, series_id, issue_id)),
        twice as (
            select k.org_id, k.issue_id from record k group by k.org_id, k.issue_id having count(*) > 1),
        progress as (
            select k.org_id, k.request_key, count(*) as issued from record k group by k.org_id, k.request_key),
        wrong as (
            select k.*, 'no such coupon' as found, 'the coupon that is recorded' as expected
              from record k left join kept c using (org_id, request_key, entity) where c.org_id is null
            union all
            select k.*, 'its coupon is recorded twice', 'once'
              from record k join twice t using (org_id, issue_id)
            union all
            select k.*, 'no such request', 'its request'
              from record k left join keyed_request r using (org_id, request_key)
             where not k.is_natural and r.org_id is null
            union all
            select k.*, 'another series',
                   coalesce('series ' || r.series_ids[k.place], format('an entity below %s', cardinality(r.series_ids)))
              from record k join keyed_request r using (org_id, request_key)
             where not k.is_natural and r.series_ids[k.place] is distinct from k.series_id
            union all
            select k.*, 'another series', format('series %s', k.entity)
              from record k where k.is_natural and k.entity <> k.series_id
            union all
            select r.org_id, r.request_key, null, null, null, null, false, null,
                   format('an attempt is at work on it until %s', r.held_until), 'for an hour at most'
              from keyed_request r left join progress p using (org_id, request_key)
             where ($1::bigint is null or r.org_id = $1) and r.held_until > (select now from asked) + interval '1 hour'
               and coalesce(p.issued, 0) < cardinality(r.series_ids))
        select w.org_id, w.series_id, w.customer_id, w.found, w.expected,
               case when w.is_natural then 'natural key'
                    when w.entity is null then format('request %s', w.request_key)
                    else format('request %s entity %s', w.request_key, w.entity) end as subject
          from wrong w",
};

/// By the settings, not by the table that derives from them. An exclusion holds for whoever comes second; it may be declared
/// when somebody has both.
const EXCLUSIONS: Question = Question {
    checked: "
        with exclusive as (
            select s.org_id, s.series_id from series s where s.mutual_exclusive_series_ids <> '{}'
            union
            select s.org_id, other from series s, unnest(s.mutual_exclusive_series_ids) other)
        select count(*) from coupon c join exclusive x using (org_id, series_id) where $1::bigint is null or c.org_id = $1",
    wrong: r#"
        with listed as (
            select s.org_id, s.series_id, other from series s, unnest(s.mutual_exclusive_series_ids) other
             where $1::bigint is null or s.org_id = $1),
        excludes as (
            select org_id, series_id, other from listed union select org_id, other, series_id from listed),
        held as materialized (
            select c.org_id, c.customer_id collate "C" as customer_id, c.series_id, max(c.issued_at) as last_at,
                   coalesce(max(l.changed_at), '-infinity') as since
              from coupon c
              join (select distinct org_id, series_id from excludes) x using (org_id, series_id)
              left join series_limits l using (org_id, series_id)
             group by c.customer_id collate "C", c.org_id, c.series_id),
        -- First of all, since hardly anybody has coupons of several.
        several as materialized (
            select h.* from held h
              join (select org_id, customer_id from held group by customer_id, org_id having count(*) > 1) m
                   using (org_id, customer_id))
        select a.org_id, a.series_id, a.customer_id, null::text as subject,
               format('a coupon of series %s as well', b.series_id) as found, 'of one of the two' as expected
          from several a
          join several b on b.org_id = a.org_id and b.customer_id = a.customer_id and b.series_id > a.series_id
          join excludes x on x.org_id = a.org_id and x.series_id = a.series_id and x.other = b.series_id
         where greatest(a.last_at, b.last_at) > greatest(a.since, b.since)"#,
};

/// A constraint would say the same, and be evaluated for every coupon.
const CALLERS: Question = Question {
    checked: "select count(*) from coupon c where $1::bigint is null or c.org_id = $1",
    wrong: "
        select c.org_id, c.series_id, c.customer_id,
               'code ' || left(c.code, least(4, length(c.code) / 2)) || '…' as subject,
               'neither a till nor a client' as found, 'one of them' as expected
          from coupon c
         where c.till_id is null and c.client_key is null and ($1::bigint is null or c.org_id = $1)",
};
