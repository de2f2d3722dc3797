-- What `coupon-issuer audit` needs to tell an overrun from a limit that was lowered below what had been issued, which is legal.

-- When what limits a series was last changed, by the database's clock and under the organisation's lock: coupons from before were
-- issued under other limits. Without a row: never. A table of its own, since a column more of `series` would break the
-- statements that running services of the version before have prepared. (Their `apply` notes nothing here.)
create table series_limits (
    org_id     bigint      not null,
    series_id  bigint      not null,
    changed_at timestamptz not null,
    constraint series_limits_pkey primary key (org_id, series_id)
);

-- Nobody knows when those that are here were changed last: all that was issued so far may have been issued under others.
insert into series_limits (org_id, series_id, changed_at)
select s.org_id, s.series_id, clock_timestamp() from series s;
