-- Everything the service needs to issue coupons.
--
-- Every key starts with org_id: that is the wall between tenants, and it lets the schema be distributed by
-- organisation without a change. Settings are named as in the contract (README, "The contract", section 4).
-- A setting that is unlimited is null, never -1.

create table organisation (
    org_id          bigint not null,
    name            text   not null,
    time_zone       text   not null,
    customer_policy text   not null,
    default_access  text   not null,
    -- Counts the changes to anything below that decides an issuance. A coupon is written only if the revision it was
    -- decided under is still the current one, so a decision made on cached settings can be late but never wrong.
    revision        bigint not null default 1,
    constraint organisation_pkey primary key (org_id),
    constraint organisation_customer_policy check (customer_policy in ('open', 'registered')),
    constraint organisation_default_access check (default_access in ('none', 'read', 'write'))
);

create table store (
    org_id   bigint not null,
    store_id bigint not null,
    name     text   not null,
    access   text,                          -- null: the organisation's default
    constraint store_pkey primary key (org_id, store_id),
    constraint store_organisation foreign key (org_id) references organisation,
    constraint store_access check (access in ('none', 'read', 'write'))
);

create table till (
    org_id        bigint not null,
    till_id       text   not null,
    store_id      bigint not null,
    password_hash text   not null,          -- argon2id over the md5 that the till protocol sends
    constraint till_pkey primary key (org_id, till_id),
    -- A till logs in by its name alone, before any organisation is known: the name is unique over all of them.
    constraint till_name unique (till_id),
    constraint till_store foreign key (org_id, store_id) references store
);

create table oauth_client (
    org_id            bigint not null,
    client_key        text   not null,
    secret_hash       text   not null,      -- argon2id
    till_id           text   not null,      -- gives the client its store
    access            text   not null,
    token_ttl_seconds integer not null,
    constraint oauth_client_pkey primary key (org_id, client_key),
    constraint oauth_client_name unique (client_key),
    constraint oauth_client_till foreign key (org_id, till_id) references till,
    constraint oauth_client_access check (access in ('none', 'read', 'write'))
);

-- The keys that sign access tokens. Made by the first replica that starts, shared by all of them.
create table signing_key (
    kid         text        not null,
    private_key bytea       not null,       -- PKCS#8, DER
    created_at  timestamptz not null default now(),
    constraint signing_key_pkey primary key (kid)
);

-- Who a mobile, an e-mail or an external id belongs to. A customer known only by an id, in an organisation that is
-- open, needs no row here.
create table customer (
    org_id      bigint  not null,
    customer_id text    not null,
    mobile      text,                       -- digits only
    email       text,                       -- lower case
    external_id text,
    registered  boolean not null,           -- listed by `apply`; false: made on first use
    constraint customer_pkey primary key (org_id, customer_id),
    constraint customer_organisation foreign key (org_id) references organisation,
    constraint customer_mobile unique (org_id, mobile),
    constraint customer_email unique (org_id, email),
    constraint customer_external_id unique (org_id, external_id)
);

create table series (
    org_id                                bigint  not null,
    series_id                             bigint  not null,
    description                           text    not null,
    info                                  text    not null,
    discount_code                         text,
    discount_type                         text    not null,
    discount_value                        bigint  not null,
    discount_upto                         bigint  not null,
    valid_till_date                       date    not null,
    expiry_strategy_type                  text    not null,
    expiry_strategy_value                 integer not null,
    redemption_valid_from                 date,
    client_handling_type                  text    not null,
    alpha_numeric                         boolean not null,
    random_code_length                    integer not null,
    coupon_prefix                         text    not null,
    coupon_suffix                         text    not null,
    generic_code                          text,
    max_create                            bigint,
    is_multiple_vouchers_per_user_allowed boolean not null,
    max_vouchers_per_user                 integer,
    do_not_resend_existing_voucher        boolean not null,
    min_days_between_vouchers             integer,
    mutual_exclusive_series_ids           bigint[] not null,
    store_ids                             bigint[] not null,
    externally_managed                    boolean not null,
    constraint series_pkey primary key (org_id, series_id),
    constraint series_organisation foreign key (org_id) references organisation,
    constraint series_discount_type check (discount_type in ('ABS', 'PERC')),
    constraint series_expiry_strategy check (expiry_strategy_type in ('SERIES_EXPIRY', 'DAYS', 'MONTHS_END')),
    constraint series_client_handling check (client_handling_type in ('DISC_CODE', 'GENERIC', 'DISC_CODE_PIN')),
    constraint series_generic_code check ((client_handling_type = 'GENERIC') = (generic_code is not null))
);

-- mutual_exclusive_series_ids of both sides, so that the exclusion holds whichever of the two names the other.
create table series_exclusion (
    org_id             bigint not null,
    series_id          bigint not null,
    excluded_series_id bigint not null,
    constraint series_exclusion_pkey primary key (org_id, series_id, excluded_series_id)
);

-- How many coupons a series with a cap has issued: the highest value counts; a series without a cap has none. A step adds a
-- row, and every hundredth takes the lower ones away. No row is ever updated: while a long transaction keeps vacuum
-- from them, dead versions would pile up in front of the living one, and every coupon would climb over all of them. Here what
-- is dead lies below, where nobody looks. Steps are taken under a lock on the series (issue_coupons, below).
create table series_counter (
    org_id    bigint not null,
    series_id bigint not null,
    issued    bigint not null,
    constraint series_counter_pkey primary key (org_id, series_id, issued)
);

-- Codes uploaded beforehand and not given out yet. Giving one out deletes it in the coupon's own transaction. A code is
-- in one pool of its organisation only, as it can be one coupon only.
create table pool_code (
    org_id      bigint not null,
    series_id   bigint not null,
    code        text   not null,
    place       bigint,                     -- 1, 2, 3 …: the order in which codes for anyone are given out
    customer_id text,                       -- or the only customer who may receive it
    constraint pool_code_pkey primary key (org_id, code),
    constraint pool_code_place unique (org_id, series_id, place),
    constraint pool_code_for check ((place is null) = (customer_id is not null))
);
create index pool_code_customer on pool_code (org_id, series_id, customer_id) where customer_id is not null;

-- The place of the code that a pool gave out last, kept like series_counter: whoever looks for the next one begins behind it,
-- and not at all those that were deleted.
create table pool_counter (
    org_id    bigint not null,
    series_id bigint not null,
    given     bigint not null,
    constraint pool_counter_pkey primary key (org_id, series_id, given)
);

-- How far the upload of a file has come: after a break it goes on from there. The file is known by its content.
create table code_import (
    org_id      bigint      not null,
    series_id   bigint      not null,
    file_sha256 bytea       not null,
    bytes_done  bigint      not null default 0,
    lines_done  bigint      not null default 0,
    accepted    bigint      not null default 0,
    duplicates  bigint      not null default 0,
    malformed   bigint      not null default 0,
    started_at  timestamptz not null default now(),
    finished_at timestamptz,
    constraint code_import_pkey primary key (org_id, series_id, file_sha256)
);

-- The coupons. No foreign key to series: it would lock the series' row once for each coupon, and the insert below
-- already refuses a series that is not as it was when the coupon was decided.
create table coupon (
    org_id           bigint      not null,
    series_id        bigint      not null,
    customer_id      text        not null,
    ordinal          integer,               -- 1, 2, 3 … where the customer's earlier coupons decide; else null
    code             text        not null,
    shared_code      boolean     not null,  -- the one code of a GENERIC series
    expires_on       date        not null,
    issued_at        timestamptz not null,
    issue_id         uuid        not null,  -- names this one issuance: how it is found again after a broken call
    till_id          text        not null,
    store_id         bigint      not null,
    source           text        not null,
    account_id       text,
    metadata         jsonb,
    request_id       text        not null,
    redemption_count integer     not null default 0
);
create unique index coupon_code on coupon (org_id, code) where not shared_code;
-- The arbiter of every per-customer rule: of two requests that both mean to issue number 2, one is refused.
create unique index coupon_ordinal on coupon (org_id, customer_id, series_id, ordinal);

-- Taken by `apply`, until its end: while an organisation's settings change, none of its coupons is half way. Each batch
-- holds the same lock shared (issue_coupons, below). Advisory, since a lock on a table would also queue behind vacuum.
create function lock_organisation(org_id bigint) returns void language sql volatile as
    'select pg_advisory_xact_lock(20191, hashint8(org_id))';

-- Writes a batch of coupons, each in its own transaction, and returns what became of each:
--
--   1 issued       issued_codes[i] is its code
--   2 stale        the organisation's settings have changed since the decision
--   3 cap          the series' cap is reached
--   4 ordinal      another request has issued this number of the customer's coupons
--   5 collision    the code exists already
--   6 excluded     the customer holds a coupon of a mutually exclusive series
--   7 empty        no code in the pool is left for this customer
--   8 paused       the organisation's settings are being changed
--
-- codes[i] is null where the code comes from the pool, caps[i] where the series has no cap. guarded[i] says whether any of 3 to
-- 7 is to be expected: where it is not, and the code exists all the same, the call fails with a unique violation, with the
-- coupons before it committed. All arrays have one length.
--
-- The batch holds a lock on its organisations, so that the revision it has read stays the current one. It is the session's,
-- to outlive the commits; after a call that failed it is still held, and the caller gives it back with
-- pg_advisory_unlock_all. Nobody waits for it: an organisation that `apply` has locked, or waits to lock, holds up no other's.
--
-- Of those who count a series' coupons or take its codes, one goes at a time: a batch locks the series for all of its coupons
-- that are to be had of it, so that it is handed on once a batch and not once a coupon, and has given it back before the flush.
--
-- The caller's session has synchronous_commit off, so that the commits share one flush: the last transaction always
-- writes something and commits with `durability`, which flushes everything before it. Nothing may be answered earlier.
-- (If the session has it on, all of this holds as well, only slower.)
create procedure issue_coupons(
    org_ids bigint[], revisions bigint[], series_ids bigint[], customer_ids text[], ordinals integer[],
    codes text[], shared boolean[], expiries date[], issued_ats timestamptz[], issue_ids uuid[],
    guarded boolean[], caps bigint[], exclusive boolean[],
    till_ids text[], store_ids bigint[], sources text[], account_ids text[], metadatas jsonb[], request_ids text[],
    durability text,
    inout outcomes smallint[], inout issued_codes text[])
language plpgsql as $$
declare
    item record;
    this_org bigint;
    this_revision bigint;                   -- null while the organisation is being changed
    series_key bigint;
    locked_key bigint;
    given text;
    outcome smallint;
    ignored text;
begin
    -- What is written in few statements here is so for speed: each costs a coupon about a microsecond.
    outcomes := array_fill(1::smallint, array[cardinality(org_ids)]);
    issued_codes := codes;

    -- In order of the series, so that a hot one is locked once. No coupon of a batch depends on another of the same batch.
    for item in
        select *
          from unnest(org_ids, revisions, series_ids, customer_ids, ordinals, codes, shared, expiries, issued_ats, issue_ids,
                      guarded, caps, exclusive, till_ids, store_ids, sources, account_ids, metadatas, request_ids)
               with ordinality
            as t (org_id, revision, series_id, customer_id, ordinal, code, shared_code, expires_on, issued_at, issue_id,
                  guarded, cap, exclusive, till_id, store_id, source, account_id, metadata, request_id, i)
         order by t.org_id, t.series_id
    loop
        if item.org_id is distinct from this_org then
            this_org := item.org_id;
            this_revision := null;
            if pg_try_advisory_lock_shared(20191, hashint8(this_org)) then
                select o.revision into this_revision from organisation o where o.org_id = this_org;
            end if;
        end if;

        outcome := 1;
        given := item.code;
        if item.revision is distinct from this_revision then
            outcome := case when this_revision is null then 8 else 2 end;
        elsif not item.guarded then
            insert into coupon (org_id, series_id, customer_id, ordinal, code, shared_code, expires_on, issued_at, issue_id,
                                till_id, store_id, source, account_id, metadata, request_id)
            values (item.org_id, item.series_id, item.customer_id, null, item.code, item.shared_code, item.expires_on,
                    item.issued_at, item.issue_id, item.till_id, item.store_id, item.source, item.account_id, item.metadata,
                    item.request_id);
            commit;
            continue;
        else
            series_key := null;
            if item.cap is not null or item.code is null then
                series_key := hashint8extended(item.series_id, this_org);
            end if;
            if locked_key is not null and (item.exclusive or locked_key is distinct from series_key) then
                perform pg_advisory_unlock(locked_key);
                locked_key := null;
            end if;
            if item.exclusive then
                -- The customer first, and the series for this coupon only: whoever holds a series waits for no customer.
                if holds_excluded(this_org, item.series_id, item.customer_id) then
                    outcome := 6;
                elsif series_key is not null then
                    perform pg_advisory_xact_lock(series_key);
                end if;
            elsif series_key is not null and locked_key is null then
                perform pg_advisory_lock(series_key);
                locked_key := series_key;
            end if;
            if outcome = 1 and item.cap is not null and not count_up(this_org, item.series_id, item.cap) then
                outcome := 3;
            elsif outcome = 1 and given is null then
                given := take_pool_code(this_org, item.series_id, item.customer_id);
                issued_codes[item.i] := given;
                if given is null then outcome := 7; end if;
            end if;
        end if;

        if outcome = 1 then
            insert into coupon (org_id, series_id, customer_id, ordinal, code, shared_code, expires_on, issued_at, issue_id,
                                till_id, store_id, source, account_id, metadata, request_id)
            values (item.org_id, item.series_id, item.customer_id, item.ordinal, given, item.shared_code, item.expires_on,
                    item.issued_at, item.issue_id, item.till_id, item.store_id, item.source, item.account_id, item.metadata,
                    item.request_id)
            on conflict do nothing;
            if found then
                commit;
                continue;
            end if;
            outcome := case when exists (
                select from coupon c
                 where c.org_id = this_org and c.customer_id = item.customer_id and c.series_id = item.series_id
                   and c.ordinal = item.ordinal) then 4 else 5 end;
        end if;

        outcomes[item.i] := outcome;
        rollback;
        if outcome = 5 and item.code is null then
            -- An uploaded code that is a coupon already can never be given out: take it off the pool.
            delete from pool_code p where p.org_id = this_org and p.code = given;
            commit;
        end if;
    end loop;
    if locked_key is not null then
        perform pg_advisory_unlock(locked_key);
    end if;

    ignored := set_config('synchronous_commit', durability, true);
    ignored := pg_logical_emit_message(true, 'coupon-issuer', '');
    commit;
    -- A timeout that strikes while a commit waits for a standby makes it succeed with no more than a warning.
    if clock_timestamp() - statement_timestamp() >= nullif(current_setting('statement_timeout'), '0')::interval then
        raise exception 'the flush took too long to be sure of' using errcode = 'query_canceled';
    end if;
    ignored := pg_advisory_unlock_all();
end
$$;

-- Whether the customer holds a coupon of a series that excludes this one. Takes a lock on the customer first, so that of two
-- requests that ask at once the second sees what the first has issued.
create function holds_excluded(of_org bigint, of_series bigint, of_customer text) returns boolean language plpgsql as $$
begin
    perform pg_advisory_xact_lock(hashtextextended(of_customer, of_org));
    return exists (
        select from series_exclusion x
          join coupon c on c.org_id = x.org_id and c.customer_id = of_customer and c.series_id = x.excluded_series_id
         where x.org_id = of_org and x.series_id = of_series);
end
$$;

-- Counts one more coupon of a series, unless that is beyond its cap. The series is locked.
create function count_up(of_org bigint, of_series bigint, cap bigint) returns boolean language plpgsql as $$
declare
    so_far bigint;
begin
    select c.issued into so_far from series_counter c
     where c.org_id = of_org and c.series_id = of_series order by c.issued desc limit 1;
    if so_far is null or so_far >= cap then
        return false;
    end if;
    insert into series_counter (org_id, series_id, issued) values (of_org, of_series, so_far + 1);
    if so_far % 100 = 0 then
        delete from series_counter c
         where c.org_id = of_org and c.series_id = of_series and c.issued between so_far - 100 and so_far;
    end if;
    return true;
end
$$;

-- Takes a code off the pool: the customer's own first, then the next that is for anyone. The series is locked.
create function take_pool_code(of_org bigint, of_series bigint, for_customer text) returns text language plpgsql as $$
declare
    taken text;
    last bigint;
    next bigint;
begin
    delete from pool_code where ctid = (
        select p.ctid from pool_code p
         where p.org_id = of_org and p.series_id = of_series and p.customer_id = for_customer
         limit 1)
    returning code into taken;
    if taken is not null then
        return taken;
    end if;

    select g.given into last from pool_counter g
     where g.org_id = of_org and g.series_id = of_series order by g.given desc limit 1;
    last := coalesce(last, 0);
    select p.place into next from pool_code p
     where p.org_id = of_org and p.series_id = of_series and p.place > last order by p.place limit 1;
    if next is null then
        return null;
    end if;
    delete from pool_code p where p.org_id = of_org and p.series_id = of_series and p.place = next returning p.code into taken;
    insert into pool_counter (org_id, series_id, given) values (of_org, of_series, next);
    if next / 100 > last / 100 then
        delete from pool_counter g
         where g.org_id = of_org and g.series_id = of_series and g.given between last / 100 * 100 and last;
    end if;
    return taken;
end
$$;
