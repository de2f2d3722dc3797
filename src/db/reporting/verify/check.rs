use strum::EnumIter;

/// An invariant. The checks run in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumIter)]
pub enum Check {
    /// No series has issued more than its cap.
    Caps,
    /// No customer has received more of a series than its maximum.
    Maxima,
    /// The numbered coupons of a customer and a series have the numbers 1, 2, 3 … once each.
    Ordinals,
    /// The counter of a series with a cap is the number of its coupons, and other series have none.
    Counters,
    /// A code is that of one coupon, or the generic code of one series.
    Codes,
    /// An uploaded code is in one pool only, at a position of its own above the counter, and is neither a coupon's code nor generic.
    Pools,
    /// The coupons under a key are those that its request asked for, and no attempt blocks a request for ever.
    KeyedRequests,
    /// No customer has coupons of two mutually exclusive series.
    Exclusions,
    /// A coupon names the till or the client that issued it.
    Callers,
    /// The series version of each coupon exists, and the newest version equals the series.
    Versions,
    /// Coupon ids are unique, and each was leased.
    Ids,
    /// The tables `till_name` and `client_name` have exactly the names of the tills and clients.
    Names,
}

/// `checked` counts the rows, and `wrong` selects those that violate the invariant, with the columns of `Offence`. `$1` is the
/// organisation, or null.
pub(super) struct CheckQuery {
    pub(super) checked: &'static str,
    pub(super) wrong: &'static str,
}

impl Check {
    pub(super) const fn query(self) -> CheckQuery {
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
            Self::Versions => VERSIONS,
            Self::Ids => IDS,
            Self::Names => NAMES,
        }
    }
}

/// A cap may be lowered below the number issued. Only a coupon issued after that violates it. Revoked coupons count.
const CAPS: CheckQuery = CheckQuery {
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
         where i.coupons > s.max_create and i.last_at > s.limits_changed_at",
};

/// Counts like `issuance::rules`: all coupons of the customer, expired or not, and at most one where several are not allowed.
const MAXIMA: CheckQuery = CheckQuery {
    checked: "
        select count(*) from coupon c
          join series s on s.org_id = c.org_id and s.series_id = c.series_id
         where c.revoked_at is null
           and (s.max_vouchers_per_user is not null or not s.is_multiple_vouchers_per_user_allowed)
           and ($1::bigint is null or c.org_id = $1)",
    wrong: r#"
        with limited as (
            select s.org_id, s.series_id, s.limits_changed_at as since,
                   least(s.max_vouchers_per_user, case when not s.is_multiple_vouchers_per_user_allowed then 1 end) as most
              from series s
             where s.max_vouchers_per_user is not null or not s.is_multiple_vouchers_per_user_allowed)
        select c.org_id, c.series_id, c.customer_id collate "C" as customer_id, null::text as subject,
               format('%s received', count(*)) as found, format('at most %s', min(s.most)) as expected
          from coupon c join limited s using (org_id, series_id)
         where c.revoked_at is null and ($1::bigint is null or c.org_id = $1)
         group by c.customer_id collate "C", c.org_id, c.series_id
        having count(*) > min(s.most) and max(c.issued_at) > min(s.since)"#,
};

/// A coupon has no ordinal where earlier coupons did not decide. Does not rely on the unique index.
const ORDINALS: CheckQuery = CheckQuery {
    checked: "select count(*) from coupon c where c.ordinal is not null and ($1::bigint is null or c.org_id = $1)",
    wrong: r#"
        select c.org_id, c.series_id, c.customer_id collate "C" as customer_id, null::text as subject,
               format('numbers %s (%s different, %s to %s)', count(*), count(distinct c.ordinal),
                      min(c.ordinal), max(c.ordinal)) as found,
               format('each number once, from 1 to %s', count(*)) as expected
          from coupon c
         where c.ordinal is not null and ($1::bigint is null or c.org_id = $1)
         group by c.customer_id collate "C", c.org_id, c.series_id
        having min(c.ordinal) < 1 or max(c.ordinal) > count(*) or count(distinct c.ordinal) < count(*)"#,
};

/// Revoked coupons count.
const COUNTERS: CheckQuery = CheckQuery {
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
               case when s.max_create is null then 'no counter, since the series has no cap'
                    else format('a counter at %s, the number of coupons', coalesce(i.coupons, 0)) end as expected
          from capped s
          full join counted n using (org_id, series_id)
          left join issued i using (org_id, series_id)
         where s.max_create is null or n.counter is distinct from coalesce(i.coupons, 0)",
};

/// Codes that differ only in case are the same. Does not rely on the unique index, which assumes upper case. The versions of one series
/// may share a generic code. [`POOLS`] checks the codes in pools.
const CODES: CheckQuery = CheckQuery {
    checked: "select count(*) from coupon c where $1::bigint is null or c.org_id = $1",
    wrong: r#"
        with generic as (
            select distinct v.org_id, v.series_id, upper(v.generic_code collate "C") as code from series_version v
             where v.generic_code is not null and ($1::bigint is null or v.org_id = $1)),
        used as (
            select upper(c.code collate "C") as code, c.org_id, true as by_coupon from coupon c
             where c.code is not null and ($1::bigint is null or c.org_id = $1)
            union all
            select g.code, g.org_id, false from generic g),
        twice as (
            select u.code, u.org_id,
                   case when bool_and(u.by_coupon) then format('%s coupons have this code', count(*))
                        else format('the code of %s coupons and the generic code of %s series',
                                    count(*) filter (where u.by_coupon), count(*) filter (where not u.by_coupon)) end as found
              from used u group by u.code, u.org_id having count(*) > 1),
        wrong as (
            select c.org_id, c.series_id, c.customer_id, c.code, t.found, 'one' as expected
              from coupon c join twice t on t.org_id = c.org_id and t.code = upper(c.code collate "C")
            union all
            select g.org_id, g.series_id, null, g.code, t.found, 'one'
              from generic g join twice t on t.org_id = g.org_id and t.code = g.code
            union all
            select c.org_id, c.series_id, c.customer_id, c.code, 'not in upper case', 'in upper case'
              from coupon c
             where c.code collate "C" <> upper(c.code collate "C") and ($1::bigint is null or c.org_id = $1)
            union all
            select c.org_id, c.series_id, c.customer_id, c.code,
                   format('shown as %s…', left(c.uploaded_code, least(4, length(c.uploaded_code) / 2))),
                   'the code in another case'
              from coupon c
             where c.uploaded_code is not null and ($1::bigint is null or c.org_id = $1)
               and (c.code is null or c.code collate "C" = c.uploaded_code
                    or upper(c.code collate "C") <> upper(c.uploaded_code collate "C"))
            union all
            select c.org_id, c.series_id, c.customer_id, c.code,
                   case when c.code is null then 'no code' else 'a code of its own, beside the generic one' end,
                   case when c.code is null then 'a code' else 'none' end
              from coupon c
              join series_version v on v.org_id = c.org_id and v.series_id = c.series_id and v.version = c.series_version
             where (c.code is null) <> (v.generic_code is not null) and ($1::bigint is null or c.org_id = $1))
        select w.org_id, w.series_id, w.customer_id, w.found, w.expected,
               'code ' || left(w.code, least(4, length(w.code) / 2)) || '…' as subject
          from wrong w"#,
};

/// A code that was given out is no longer in the pool. A code at or below the counter is never found, and of two codes at one
/// position one is lost.
const POOLS: CheckQuery = CheckQuery {
    checked: "select count(*) from pool_code p where $1::bigint is null or p.org_id = $1",
    wrong: r#"
        with pool as not materialized (
            select p.*, upper(p.code collate "C") as canonical from pool_code p
             where $1::bigint is null or p.org_id = $1),
        used as (
            select c.org_id, upper(c.code collate "C") as code, format('a coupon of series %s', c.series_id) as by
              from coupon c
             where c.code is not null and ($1::bigint is null or c.org_id = $1)
            union all
            select distinct v.org_id, upper(v.generic_code collate "C"), format('the generic code of series %s', v.series_id)
              from series_version v
             where v.generic_code is not null and ($1::bigint is null or v.org_id = $1)),
        twice as (
            select p.canonical as code, p.org_id from pool p group by p.canonical, p.org_id having count(*) > 1),
        crowded as (
            select p.org_id, p.series_id, p.position from pool p where p.position is not null
             group by p.org_id, p.series_id, p.position having count(*) > 1),
        counter as (
            select g.org_id, g.series_id, max(g.position) as position from pool_counter g group by g.org_id, g.series_id),
        wrong as (
            select p.*, format('in the pool, and %s', u.by) as found, 'one of the two' as expected
              from pool p join used u on u.org_id = p.org_id and u.code = p.canonical
            union all
            select p.*, 'uploaded twice', 'once'
              from pool p join twice t on t.org_id = p.org_id and t.code = p.canonical
            union all
            select p.*, 'not in upper case', 'in upper case' from pool p where p.code collate "C" <> p.canonical
            union all
            select p.*, format('shown as %s…', left(p.uploaded_code, least(4, length(p.uploaded_code) / 2))),
                   'the code in another case'
              from pool p
             where p.uploaded_code is not null
               and (p.code collate "C" = p.uploaded_code or p.canonical <> upper(p.uploaded_code collate "C"))
            union all
            select p.*, format('position %s, with another code', p.position), 'a position of its own'
              from pool p join crowded o on o.org_id = p.org_id and o.series_id = p.series_id and o.position = p.position
            union all
            select p.*, format('position %s', p.position),
                   format('above %s, where the search for codes begins', coalesce(g.position, 0))
              from pool p left join counter g on g.org_id = p.org_id and g.series_id = p.series_id
             where p.position <= coalesce(g.position, 0))
        select w.org_id, w.series_id, w.customer_id, w.found, w.expected,
               'code ' || left(w.code, least(4, length(w.code) / 2)) || '…' as subject
          from wrong w"#,
};

/// migrations/README.md has the grammar of answers. A word of another form is not parsed, so that no number overflows. A coupon may
/// exist although the stored answer is a refusal: the attempt that issued it may not have stored its answer.
const KEYED_REQUESTS: CheckQuery = CheckQuery {
    checked: "
        select (select count(*) from keyed_request r where $1::bigint is null or r.org_id = $1)
             + (select count(*) from natural_issuance n where $1::bigint is null or n.org_id = $1)",
    wrong: r"
        with lease as (select coalesce(max(l.next_id), 1) as next_id from coupon_id_lease l),
        request as materialized (
            select r.org_id, r.key_hash, r.first_coupon_id, r.received_at, r.incarnation, r.attempt, r.answers,
                   r.first_coupon_id between 1 and 9007199254740992 as has_ids,
                   length(r.answers) - length(replace(r.answers, ' ', '')) + 1 as entities
              from keyed_request r where $1::bigint is null or r.org_id = $1),
        written as materialized (
            select r.org_id, r.key_hash, w.place - 1 as entity, r.first_coupon_id + w.place - 1 as reserved_id, w.word,
                   w.word ~ ('^-?[0-9]{1,19}(=[0-9]{1,16}(@[0-9]{1,10})?([*][0-9]{1,10})?|![a-z_]+|!gap@'
                             || '[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}([.][0-9]{1,9})?(Z|[-+][0-9]{2}:[0-9]{2}))?$')
                       as is_word
              from request r, string_to_table(r.answers, ' ') with ordinality as w (word, place)
             where r.has_ids),
        word as materialized (
            select w.org_id, w.key_hash, w.entity, w.reserved_id, substring(w.word from '^-?[0-9]+') as series_id,
                   case when w.is_word then substring(w.word from '=([0-9]+)')::bigint end as resent_id,
                   substring(w.word from '=[0-9]+@([0-9]+)') as resent_version
              from written w where w.is_word),
        issued_new as materialized (
            select w.*, c.coupon_id, c.series_id as issued_series, c.customer_id
              from word w join coupon c on c.org_id = w.org_id and c.coupon_id = w.reserved_id),
        resent as materialized (
            select w.*, c.coupon_id, c.series_id as issued_series, c.customer_id
              from word w left join coupon c on c.org_id = w.org_id and c.coupon_id = w.resent_id
             where w.resent_id is not null),
        customers as (
            select t.org_id, t.key_hash, count(distinct t.customer_id) as customers
              from (select org_id, key_hash, customer_id from issued_new union all select org_id, key_hash, customer_id from resent) t
             group by t.org_id, t.key_hash having count(distinct t.customer_id) > 1),
        ranges as (
            select r.*, max(r.first_coupon_id + r.entities) over (
                            partition by r.org_id order by r.first_coupon_id, r.key_hash
                            rows between unbounded preceding and 1 preceding) as reserved_to
              from request r where r.has_ids),
        named as materialized (
            select n.org_id, n.natural_key, n.series_id, n.coupon_id, n.issued_at,
                   c.series_id as issued_series, c.issued_at as coupon_issued_at, c.customer_id
              from natural_issuance n left join coupon c on c.org_id = n.org_id and c.coupon_id = n.coupon_id
             where $1::bigint is null or n.org_id = $1),
        named_twice as (
            select n.org_id, n.coupon_id from named n group by n.org_id, n.coupon_id having count(*) > 1),
        wrong as (
            select w.org_id, null::bigint as series_id, null::text as customer_id,
                   format('request %s entity %s', w.key_hash, w.entity) as subject,
                   'an answer of unknown form' as found, 'a known form' as expected
              from written w where not w.is_word
            union all
            select r.org_id, null, null, format('request %s', r.key_hash), 'no entities', 'one or more'
              from request r where r.answers = ''
            union all
            select r.org_id, null, null, format('request %s', r.key_hash),
                   format('coupon ids %s to %s', r.first_coupon_id, r.first_coupon_id::numeric + r.entities - 1),
                   format('leased ids, from 1 to %s', (select next_id - 1 from lease))
              from request r where not r.has_ids or r.first_coupon_id + r.entities > (select next_id from lease)
            union all
            select r.org_id, null, null, format('request %s', r.key_hash),
                   format('coupon ids from %s on', r.first_coupon_id),
                   format('from %s on, after the ids of another request', r.reserved_to)
              from ranges r where r.reserved_to > r.first_coupon_id
            union all
            select t.org_id, t.issued_series, t.customer_id, format('request %s entity %s', t.key_hash, t.entity),
                   format('a coupon of series %s', t.issued_series), format('one of series %s', t.series_id)
              from issued_new t where t.series_id <> t.issued_series::text
            union all
            select t.org_id, t.issued_series, t.customer_id, format('request %s entity %s', t.key_hash, t.entity),
                   'a new coupon and a resent one', 'one of the two'
              from issued_new t where t.resent_id is not null
            union all
            select s.org_id, s.issued_series, s.customer_id, format('request %s entity %s', s.key_hash, s.entity),
                   format('no coupon %s', s.resent_id), 'the resent coupon'
              from resent s where s.coupon_id is null
            union all
            select s.org_id, s.issued_series, s.customer_id, format('request %s entity %s', s.key_hash, s.entity),
                   format('a resent coupon of series %s', s.issued_series), format('one of series %s', s.series_id)
              from resent s where s.series_id <> s.issued_series::text
            union all
            select s.org_id, s.issued_series, s.customer_id, format('request %s entity %s', s.key_hash, s.entity),
                   format('no version %s of the series', s.resent_version), 'the version that was shown'
              from resent s
              left join series_version v
                     on v.org_id = s.org_id and v.series_id::text = s.series_id and v.version::text = s.resent_version
             where s.resent_version is not null and v.org_id is null
            union all
            select m.org_id, null, null, format('request %s', m.key_hash),
                   format('coupons of %s customers', m.customers), 'of one'
              from customers m
            union all
            select r.org_id, null, null, format('request %s', r.key_hash),
                   format('an attempt that began at %s', r.received_at + make_interval(secs => r.attempt / 64.0)), 'an instant in the past'
              from request r
             where r.incarnation <> 0 and r.received_at + make_interval(secs => r.attempt / 64.0) > now() + interval '1 hour'
            union all
            select n.org_id, n.series_id, n.customer_id, format('natural key %s', n.natural_key),
                   format('no coupon %s', n.coupon_id), 'the coupon that is recorded'
              from named n where n.issued_series is null
            union all
            select n.org_id, n.series_id, n.customer_id, format('natural key %s', n.natural_key),
                   format('a coupon of series %s', n.issued_series), format('one of series %s', n.series_id)
              from named n where n.issued_series <> n.series_id
            union all
            select n.org_id, n.series_id, n.customer_id, format('natural key %s', n.natural_key),
                   format('issued at %s', n.issued_at), format('at %s, as its coupon', n.coupon_issued_at)
              from named n where n.issued_at <> n.coupon_issued_at
            union all
            select n.org_id, n.series_id, n.customer_id, format('natural key %s', n.natural_key),
                   'its coupon is recorded twice', 'once'
              from named n join named_twice t using (org_id, coupon_id))
        select w.* from wrong w",
};

/// Reads the settings, not the table that derives from them. An exclusion may be declared when a customer already has coupons of both
/// series. Only a coupon issued after that violates it.
const EXCLUSIONS: CheckQuery = CheckQuery {
    checked: "
        with exclusive as (
            select s.org_id, s.series_id from series s where s.mutual_exclusive_series_ids <> '{}'
            union
            select s.org_id, other from series s, unnest(s.mutual_exclusive_series_ids) other)
        select count(*) from coupon c join exclusive x using (org_id, series_id)
         where c.revoked_at is null and ($1::bigint is null or c.org_id = $1)",
    wrong: r#"
        with listed as (
            select s.org_id, s.series_id, other from series s, unnest(s.mutual_exclusive_series_ids) other
             where $1::bigint is null or s.org_id = $1),
        excludes as (
            select org_id, series_id, other from listed union select org_id, other, series_id from listed),
        held as materialized (
            select c.org_id, c.customer_id collate "C" as customer_id, c.series_id, max(c.issued_at) as last_at,
                   coalesce(max(s.limits_changed_at), '-infinity') as since
              from coupon c
              join (select distinct org_id, series_id from excludes) x using (org_id, series_id)
              left join series s using (org_id, series_id)
             where c.revoked_at is null
             group by c.customer_id collate "C", c.org_id, c.series_id),
        -- Materialized first, since few customers have coupons of several.
        several as materialized (
            select h.* from held h
              join (select org_id, customer_id from held group by customer_id, org_id having count(*) > 1) m
                   using (org_id, customer_id))
        select a.org_id, a.series_id, a.customer_id, null::text as subject,
               format('also a coupon of series %s', b.series_id) as found, 'coupons of only one of the two' as expected
          from several a
          join several b on b.org_id = a.org_id and b.customer_id = a.customer_id and b.series_id > a.series_id
          join excludes x on x.org_id = a.org_id and x.series_id = a.series_id and x.other = b.series_id
         where greatest(a.last_at, b.last_at) > greatest(a.since, b.since)"#,
};

const CALLERS: CheckQuery = CheckQuery {
    checked: "select count(*) from coupon c where $1::bigint is null or c.org_id = $1",
    wrong: "
        select c.org_id, c.series_id, c.customer_id, format('coupon %s', c.coupon_id) as subject,
               case when o.origin_id is null then format('no origin %s', c.origin_id) else 'neither a till nor a client' end
                   as found,
               case when o.origin_id is null then 'its origin' else 'a till or a client' end as expected
          from coupon c left join origin o on o.org_id = c.org_id and o.origin_id = c.origin_id
         where o.till_id is null and o.client_key is null and ($1::bigint is null or c.org_id = $1)",
};

const VERSIONS: CheckQuery = CheckQuery {
    checked: "
        select (select count(*) from coupon c where $1::bigint is null or c.org_id = $1)
             + (select count(*) from series s where $1::bigint is null or s.org_id = $1)",
    wrong: "
        with newest as (
            select v.org_id, v.series_id, max(v.version) as version from series_version v group by v.org_id, v.series_id)
        select c.org_id, c.series_id, c.customer_id, format('coupon %s', c.coupon_id) as subject,
               format('no version %s of the series', c.series_version) as found, 'the version that was shown' as expected
          from coupon c
          left join series_version v on v.org_id = c.org_id and v.series_id = c.series_id and v.version = c.series_version
         where v.org_id is null and ($1::bigint is null or c.org_id = $1)
        union all
        select v.org_id, v.series_id, null, format('version %s', v.version), 'no such series', 'its series'
          from newest v left join series s using (org_id, series_id)
         where s.org_id is null and ($1::bigint is null or v.org_id = $1)
        union all
        select s.org_id, s.series_id, null, null, format('version %s', s.version),
               case when n.version is null then 'one that exists' else format('%s, the newest', n.version) end
          from series s left join newest n using (org_id, series_id)
         where s.version is distinct from n.version and ($1::bigint is null or s.org_id = $1)
        union all
        select s.org_id, s.series_id, null, format('version %s', v.version), 'other settings than those of the series',
               'the same'
          from series s
          join organisation o using (org_id)
          join series_version v on v.org_id = s.org_id and v.series_id = s.series_id and v.version = s.version
         where (v.description, v.info, v.discount_code, v.discount_type, v.discount_value, v.discount_upto, v.generic_code,
                v.time_zone)
               is distinct from
               (s.description, s.info, s.discount_code, s.discount_type, s.discount_value, s.discount_upto, s.generic_code,
                o.time_zone)
           and ($1::bigint is null or s.org_id = $1)",
};

/// Does not rely on the primary key.
const IDS: CheckQuery = CheckQuery {
    checked: "select count(*) from coupon c where $1::bigint is null or c.org_id = $1",
    wrong: "
        with lease as (select coalesce(max(l.next_id), 1) as next_id from coupon_id_lease l),
        twice as (
            select c.org_id, c.coupon_id, count(*) as coupons from coupon c
             where $1::bigint is null or c.org_id = $1
             group by c.org_id, c.coupon_id having count(*) > 1)
        select c.org_id, c.series_id, c.customer_id, format('coupon %s', c.coupon_id) as subject,
               format('%s coupons have this id', t.coupons) as found, 'one' as expected
          from coupon c join twice t using (org_id, coupon_id)
        union all
        select c.org_id, c.series_id, c.customer_id, format('coupon %s', c.coupon_id), 'an id that was never leased',
               format('a leased one, from 1 to %s', (select next_id - 1 from lease))
          from coupon c
         where (c.coupon_id < 1 or c.coupon_id >= (select next_id from lease)) and ($1::bigint is null or c.org_id = $1)",
};

/// A till or client whose name is missing may exist in another organisation as well.
const NAMES: CheckQuery = CheckQuery {
    checked: "
        select (select count(*) from till t where $1::bigint is null or t.org_id = $1)
             + (select count(*) from oauth_client c where $1::bigint is null or c.org_id = $1)",
    wrong: "
        with wrong as (
            select coalesce(t.org_id, n.org_id) as org_id, format('till %s', coalesce(t.till_id, n.till_id)) as subject,
                   case when t.org_id is null then 'no such till, and its name in till_name'
                        else 'its name is not in till_name' end as found
              from till t full join till_name n on n.org_id = t.org_id and n.till_id = t.till_id
             where t.org_id is null or n.org_id is null
            union all
            select coalesce(c.org_id, n.org_id), format('client %s', coalesce(c.client_key, n.client_key)),
                   case when c.org_id is null then 'no such client, and its key in client_name'
                        else 'its key is not in client_name' end
              from oauth_client c full join client_name n on n.org_id = c.org_id and n.client_key = c.client_key
             where c.org_id is null or n.org_id is null)
        select w.org_id, null::bigint as series_id, null::text as customer_id, w.subject, w.found, 'both or neither' as expected
          from wrong w where $1::bigint is null or w.org_id = $1",
};
