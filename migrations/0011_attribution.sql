-- Attribution: an OAuth client may issue for a till or a store that its request names. Stores get the names by which other systems
-- know them, and coupons the client that issued them.

-- As in 0002: in the order in which other statements take them, and not for long.
set local lock_timeout = '5s';
lock table store, coupon, activity_failure in access exclusive mode;

-- Each names one store of its organisation. Deferred: one `apply` may swap them between two stores.
alter table store
    add column code          text,                      -- null: the id
    add column external_id   text,
    add column external_id_1 text,
    add column external_id_2 text,
    -- The version before this one knows nothing of codes: a store that it adds has its id.
    add column effective_code text not null generated always as (coalesce(code, store_id::text)) stored,
    add constraint store_code unique (org_id, effective_code) deferrable initially deferred,
    add constraint store_external_id unique (org_id, external_id) deferrable initially deferred,
    add constraint store_external_id_1 unique (org_id, external_id_1) deferrable initially deferred,
    add constraint store_external_id_2 unique (org_id, external_id_2) deferrable initially deferred;
-- Several stores may have one name.
create index store_name on store (org_id, name);

-- A new store counts, too, now: its name may be one that named a single store before.
create or replace trigger credentials_changed after insert or update or delete on store
    for each statement execute function tell_credentials_changed();

alter table coupon
    alter column till_id drop not null,                 -- null: attributed to the store, by a client
    add column client_key text;                         -- the OAuth client that issued it; null: the till itself did

-- Who made the request. Null in rows of the version before this one.
alter table activity_failure
    add column till_id    text,
    add column store_id   bigint,
    add column client_key text;

-- As in 0010, with the client. The version before this one goes on calling issue_coupons with new_coupon during an upgrade.
create type new_coupon_2 as (
    place        integer,                   -- in the batch, from 1: where what became of it is told
    org_id       bigint,
    revision     bigint,                    -- guard: of the organisation
    series_id    bigint,
    customer_id  text,
    ordinal      integer,
    code         text,                      -- null: one from the pool
    shared_code  boolean,
    expires_on   date,
    issued_at    timestamptz,
    issue_id     uuid,
    till_id      text,                      -- null: attributed to the store, by a client
    store_id     bigint,
    client_key   text,                      -- null: a till's own request
    source       text,
    account_id   text,
    metadata     jsonb,
    request_id   text,
    request_uuid uuid,
    cap          bigint,                    -- guard: the series must have issued fewer; null: no matter how many
    exclusive    boolean,                   -- guard: the customer must hold no coupon of a mutually exclusive series
    -- What is to be expected to refuse it: nothing but another revision; or that, its cap, or its key.
    plain        boolean,
    swift        boolean,
    -- Of a keyed request; null where it has no key.
    request_key  text,
    entity       bigint,
    face         jsonb,
    attempt      uuid,                      -- null: the request has begun before
    fingerprint  bytea,
    entities     bigint[],                  -- not null: the request begins with this coupon, and these are its series
    held_until   timestamptz
);

-- As issue_coupons in 0010, with the client: nothing else is new.
create procedure issue_coupons_2(
    coupons new_coupon_2[], durability text, inout outcomes smallint[], inout issued_codes text[])
language plpgsql as $$
declare
    item new_coupon_2;
    this_org bigint;
    this_revision bigint;                   -- null while the organisation is being changed
    series_key bigint;
    locked_key bigint;
    counted_series bigint;                  -- whose count is known: it has stayed locked since
    so_far bigint;
    begun uuid[] := '{}';                   -- attempts that have begun in this batch
    is_begun boolean;
    given text;
    outcome smallint;
    ignored text;
begin
    outcomes := array_fill(1::smallint, array[cardinality(coupons)]);
    issued_codes := array_fill(null::text, array[cardinality(coupons)]);

    foreach item in array coupons loop
        -- Most of them.
        if item.plain and item.org_id = this_org and item.revision = this_revision then
            insert into coupon (org_id, series_id, customer_id, code, shared_code, expires_on, issued_at, issue_id,
                                till_id, store_id, client_key, source, account_id, metadata, request_id, request_uuid)
            values (item.org_id, item.series_id, item.customer_id, item.code, item.shared_code, item.expires_on, item.issued_at,
                    item.issue_id, item.till_id, item.store_id, item.client_key, item.source, item.account_id, item.metadata, item.request_id,
                    item.request_uuid);
            commit;
            continue;
        end if;

        -- Most of the others: of an attempt that begins with it, or has begun here; or one more of a series that is locked and
        -- counted; or both.
        if item.swift and item.org_id = this_org and item.revision = this_revision
           and (item.cap is null or (item.series_id = counted_series and so_far < item.cap))
           and (item.request_key is null or item.entities is not null or item.attempt = any (begun)) then
            if item.entities is not null then
                insert into keyed_request (org_id, request_key, fingerprint, series_ids, started_at, attempt, held_until)
                values (item.org_id, item.request_key, item.fingerprint, item.entities, item.issued_at, item.attempt, item.held_until)
                on conflict do nothing;
                if not found then
                    outcomes[item.place] := 10;
                    rollback;
                    continue;
                end if;
                begun := begun || item.attempt;
            end if;
            if item.request_key is not null then
                insert into keyed_coupon (org_id, request_key, entity, series_id, customer_id, issue_id, face)
                values (item.org_id, item.request_key, item.entity, item.series_id, item.customer_id, item.issue_id, item.face);
            end if;
            if item.cap is not null then
                so_far := so_far + 1;
                insert into series_counter (org_id, series_id, issued) values (item.org_id, item.series_id, so_far);
                if so_far % 100 = 1 then
                    delete from series_counter c
                     where c.org_id = this_org and c.series_id = counted_series and c.issued between so_far - 101 and so_far - 1;
                end if;
            end if;
            insert into coupon (org_id, series_id, customer_id, code, shared_code, expires_on, issued_at, issue_id,
                                till_id, store_id, client_key, source, account_id, metadata, request_id, request_uuid)
            values (item.org_id, item.series_id, item.customer_id, item.code, item.shared_code, item.expires_on, item.issued_at,
                    item.issue_id, item.till_id, item.store_id, item.client_key, item.source, item.account_id, item.metadata, item.request_id,
                    item.request_uuid);
            commit;
            continue;
        end if;

        if item.org_id is distinct from this_org then
            this_org := item.org_id;
            this_revision := null;
            counted_series := null;
            if pg_try_advisory_lock_shared(20191, hashint8(this_org)) then
                select o.revision into this_revision from organisation o where o.org_id = this_org;
            end if;
        end if;
        if item.revision is distinct from this_revision then
            outcomes[item.place] := case when this_revision is null then 8 else 2 end;
            rollback;
            continue;
        end if;

        outcome := 1;
        given := item.code;
        -- The series first: whoever has recorded a coupon waits for nobody who may be waiting for that record.
        series_key := null;
        if item.cap is not null or given is null then
            series_key := hashint8extended(item.series_id, this_org);
        end if;
        if locked_key is not null and (item.exclusive or locked_key is distinct from series_key) then
            perform pg_advisory_unlock(locked_key);
            locked_key := null;
            counted_series := null;
        end if;
        if series_key is not null and locked_key is null and not item.exclusive then
            perform pg_advisory_lock(series_key);
            locked_key := series_key;
        end if;
        if item.request_key is not null then
            -- Before anything else of this coupon: whatever the other attempt has issued counts.
            if item.request_key like E'\n%' then
                insert into keyed_coupon (org_id, request_key, entity, series_id, customer_id, issue_id, face, natural_at)
                values (this_org, item.request_key, item.entity, item.series_id, item.customer_id, item.issue_id, item.face,
                        item.issued_at)
                on conflict do nothing;
                if not found then outcome := 9; end if;
            else
                if item.entities is not null then
                    insert into keyed_request (org_id, request_key, fingerprint, series_ids, started_at, attempt, held_until)
                    values (this_org, item.request_key, item.fingerprint, item.entities, item.issued_at, item.attempt, item.held_until)
                    on conflict do nothing;
                    is_begun := found;
                else
                    is_begun := exists (
                        select from keyed_request r
                         where r.org_id = this_org and r.request_key = item.request_key and r.fingerprint = item.fingerprint
                           and r.series_ids[(item.entity + 1)::integer] = item.series_id
                           and (item.attempt is null or r.attempt = item.attempt));
                end if;
                if is_begun then
                    insert into keyed_coupon (org_id, request_key, entity, series_id, customer_id, issue_id, face)
                    values (this_org, item.request_key, item.entity, item.series_id, item.customer_id, item.issue_id, item.face)
                    on conflict do nothing;
                    if not found then outcome := 9; end if;
                else
                    outcome := 10;
                end if;
            end if;
        end if;
        if outcome = 1 and item.exclusive then
            -- The customer first, and the series for this coupon only: whoever holds a series waits for no customer.
            if holds_excluded(this_org, item.series_id, item.customer_id) then
                outcome := 6;
            elsif series_key is not null then
                perform pg_advisory_xact_lock(series_key);
            end if;
        end if;
        if outcome = 1 and item.cap is not null then
            if counted_series is distinct from item.series_id then
                select c.issued into so_far from series_counter c
                 where c.org_id = this_org and c.series_id = item.series_id order by c.issued desc limit 1;
            end if;
            counted_series := null;
            if so_far is null or so_far >= item.cap then
                outcome := 3;
            else
                so_far := so_far + 1;
                insert into series_counter (org_id, series_id, issued) values (this_org, item.series_id, so_far);
                if so_far % 100 = 1 then
                    delete from series_counter c
                     where c.org_id = this_org and c.series_id = item.series_id and c.issued between so_far - 101 and so_far - 1;
                end if;
            end if;
        end if;
        if outcome = 1 and given is null then
            given := take_pool_code(this_org, item.series_id, item.customer_id);
            issued_codes[item.place] := given;
            if given is null then outcome := 7; end if;
        end if;

        if outcome = 1 then
            insert into coupon (org_id, series_id, customer_id, ordinal, code, shared_code, expires_on, issued_at, issue_id,
                                till_id, store_id, client_key, source, account_id, metadata, request_id, request_uuid)
            values (this_org, item.series_id, item.customer_id, item.ordinal, given, item.shared_code, item.expires_on,
                    item.issued_at, item.issue_id, item.till_id, item.store_id, item.client_key, item.source, item.account_id, item.metadata,
                    item.request_id, item.request_uuid)
            on conflict do nothing;
            if found then
                commit;
                if locked_key is not null and item.cap is not null then counted_series := item.series_id; end if;
                if item.entities is not null then begun := begun || item.attempt; end if;
                continue;
            end if;
            outcome := case when exists (
                select from coupon c
                 where c.org_id = this_org and c.customer_id = item.customer_id and c.series_id = item.series_id
                   and c.ordinal = item.ordinal) then 4 else 5 end;
        end if;

        outcomes[item.place] := outcome;
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
