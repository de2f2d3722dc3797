-- Activity: what callers were told, for the console. Each replica counts in memory and adds its counts here every few seconds.
--
-- Nothing that decides an issuance reads these tables, and no coupon depends on them. What is written here is not flushed: a crash
-- may take back the last seconds. New tables only: the version before this one knows nothing of them, and goes on.

-- What was told of how many entities, by the minute, for some hours. Series 0 is the organisation as a whole (a series' own id is
-- 1 or more): all of its series, and those asked for that it does not have.
create table activity_minute (
    org_id    bigint      not null,
    series_id bigint      not null,
    minute    timestamptz not null,
    outcome   text        not null,         -- issued, resent, replayed, or the name of a refusal
    entities  bigint      not null,
    constraint activity_minute_pkey primary key (org_id, series_id, minute, outcome)
) with (fillfactor = 80);
create index activity_minute_age on activity_minute (minute);

-- The same since counting began, and kept: the minutes are added here as they come, and may be taken away later.
create table activity_total (
    org_id    bigint not null,
    series_id bigint not null,
    outcome   text   not null,
    entities  bigint not null,
    constraint activity_total_pkey primary key (org_id, series_id, outcome)
) with (fillfactor = 80);

-- Which series were asked for lately, and since when they are counted.
create table activity_series (
    org_id      bigint      not null,
    series_id   bigint      not null,
    since       timestamptz not null,
    last_minute timestamptz not null,
    constraint activity_series_pkey primary key (org_id, series_id)
) with (fillfactor = 80);
create index activity_series_latest on activity_series (org_id, last_minute, series_id);

-- Entities that got no coupon lately: the newest of each organisation. Never a code, nor anything of the customer.
create table activity_failure (
    org_id     bigint      not null,
    at         timestamptz not null,
    failure_id bigint      generated always as identity,
    request_id text        not null,
    series_id  bigint      not null,        -- as it was asked for
    outcome    text        not null,
    constraint activity_failure_pkey primary key (org_id, at, failure_id)
);
create index activity_failure_age on activity_failure (at);

-- The last batch of counts that each replica has added, so that one whose answer was lost is not added twice. Of a replica, not of
-- an organisation.
create table activity_writer (
    writer uuid        not null,
    batch  bigint      not null,
    at     timestamptz not null,
    constraint activity_writer_pkey primary key (writer)
);
