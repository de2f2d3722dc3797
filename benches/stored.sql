-- For growth.sh: inserts :millions million coupons as the service would have stored them. Their customers and codes are scattered among
-- those of the load, without being equal to any. Indexes are created afterwards, which saves minutes, with the fill factor of indexes
-- that grew; the index of the ids grows in order anyway.
set synchronous_commit = off;
set maintenance_work_mem = '1GB';
create temporary table index_of_coupon as
select indexrelid::regclass::text as name, pg_get_indexdef(indexrelid) as definition
  from pg_index where indrelid = 'coupon'::regclass and not indisprimary;
select format('drop index %s', name) from index_of_coupon \gexec

-- Spreads the customers over the indexes as issue.lua does. Their numbers begin at 2^33, where those of issue.lua end.
create function pg_temp.mixed(v bigint) returns bigint immutable language sql as
    'select (v * 648395 % 1048576) * (v * 648395 % 1048576) / 1024';

select lease_coupon_ids_1(:millions * 1000000) as first_id, origin_1(1, 10, 'INSTORE', 'stored', null) as origin \gset

-- A code has ten characters of the service's alphabet; nine of them encode a number below 2^40.
insert into coupon (org_id, coupon_id, series_id, issued_at, request_uuid, series_version, origin_id, expires_on, customer_id, code)
select 1, :first_id + i - 1, 1001 + i % 10, now() - (:millions * 1000000 - i) * interval '1 second', gen_random_uuid(), 1, :origin,
       '2099-12-31', lpad(x::text, 13, '0'),
       (select string_agg(substr('23456789ABCDEFGHJKMNPQRSTUVWXYZ', 1 + (x / p % 31)::integer, 1), '')
          from unnest(array[1, 31, 961, 29791, 923521, 28629151, 887503681, 27512614111, 852891037441, 1]) as p)
  from generate_series(1::bigint, :millions * 1000000) as i
 cross join lateral (select (8589934592 + i) % 1048576 as low) as a
 cross join lateral (select ((8589934592 + i) / 1048576 + pg_temp.mixed(low)) % 1048576 as high offset 0) as b
 cross join lateral (select (low + pg_temp.mixed(high)) % 1048576 as low2 offset 0) as c
 cross join lateral (select (high + pg_temp.mixed(low2)) % 1048576 * 1048576 + low2 as x offset 0) as d;

select regexp_replace(definition, '( WHERE .*)?$', ' WITH (fillfactor = 70)\1') from index_of_coupon \gexec
select format('alter index %s reset (fillfactor)', name) from index_of_coupon \gexec
vacuum analyze coupon;
checkpoint;
