-- Exactly once: a request that names itself by an idempotency key (README, "The contract", section 6) is remembered, and each
-- coupon of it is recorded in the coupon's own transaction, so that a retry finishes what an earlier attempt began.

-- A keyed request: what it asked for, who is at work on it, and what became of the entities that got no coupon.
create table keyed_request (
    org_id      bigint      not null,
    request_key text        not null,       -- the Idempotency-Key
    fingerprint bytea       not null,       -- of its body and query: another body under the same key is a mistake
    series_ids  bigint[]    not null,       -- the entities, in order
    started_at  timestamptz not null,
    -- The attempt that is at work on it, and until when it is believed to be. Null: none. That two attempts never issue the same
    -- entity does not rest on this, but on the key of keyed_coupon.
    attempt     uuid,
    held_until  timestamptz,
    -- Of the last attempt that came to its end: for each entity without a coupon, why.
    refusals    jsonb,
    constraint keyed_request_pkey primary key (org_id, request_key)
);
create index keyed_request_started on keyed_request (started_at);

-- Whether (customer, series, metadata.sourceType, metadata.sourceId) identifies an issuance, for tills that send no key.
alter table organisation add column natural_key boolean not null default false;

-- The coupons of keyed requests. A row commits with its coupon or not at all.
create table keyed_coupon (
    org_id      bigint  not null,
    request_key text    not null,           -- or, where it begins with a line feed, the hash of a natural key without the series
    entity      bigint  not null,           -- its place in the request, from 0; of a natural key, the series
    series_id   bigint  not null,
    customer_id text    not null,
    issue_id    uuid    not null,           -- of the coupon
    face        jsonb   not null,           -- what was shown of its series
    natural_at  timestamptz,                -- of a natural key: when it was issued
    -- The arbiter: of two attempts at one entity, one is refused.
    constraint keyed_coupon_pkey primary key (org_id, request_key, entity)
);
create index keyed_coupon_natural on keyed_coupon (natural_at) where natural_at is not null;

-- Begins an attempt at a keyed request, and says what is known of it:
--
--   1 new          it was never seen
--   2 known        it was, and nobody is at work on it, or all of it is issued
--   3 running      an attempt is at work on it
--   4 another      its key was used for something else
--
-- Not flushed: a coupon that is recorded under it is, and the log is flushed in order.
create function begin_keyed_request(
    of_org bigint, of_key text, of_fingerprint bytea, of_series bigint[], by_attempt uuid, now timestamptz, until timestamptz)
returns smallint language plpgsql as $$
declare
    known keyed_request;
    ignored text;
begin
    ignored := set_config('synchronous_commit', 'off', true);
    insert into keyed_request (org_id, request_key, fingerprint, series_ids, started_at, attempt, held_until)
    values (of_org, of_key, of_fingerprint, of_series, now, by_attempt, until)
    on conflict do nothing;
    if found then return 1; end if;

    select * into known from keyed_request k where k.org_id = of_org and k.request_key = of_key for update;
    if known.fingerprint <> of_fingerprint then return 4; end if;
    if (select count(*) from keyed_coupon c where c.org_id = of_org and c.request_key = of_key) < cardinality(known.series_ids) then
        -- One that did not hear of its own beginning asks again.
        if known.held_until > now and known.attempt is distinct from by_attempt then return 3; end if;
        update keyed_request k set attempt = by_attempt, held_until = until where k.org_id = of_org and k.request_key = of_key;
    end if;
    return 2;
end
$$;

-- Ends an attempt, if it is still the one at work.
create function end_keyed_request(of_org bigint, of_key text, of_attempt uuid, of_refusals jsonb)
returns void language plpgsql as $$
declare
    ignored text;
begin
    ignored := set_config('synchronous_commit', 'off', true);
    update keyed_request k set attempt = null, held_until = null, refusals = coalesce(of_refusals, k.refusals)
     where k.org_id = of_org and k.request_key = of_key and k.attempt = of_attempt;
end
$$;

-- As in 0001, which the version before this one goes on calling during an upgrade, and with keyed requests.
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
--   9 recorded     another attempt at the same keyed request has issued this entity
--
-- request_keys[i], entities[i] and faces[i] are null where the request has no idempotency key: nothing is recorded then.
-- codes[i] is null where the code comes from the pool, caps[i] where the series has no cap. guarded[i] says whether any of 3 to
-- 7 is to be expected: where it is not, and the code exists all the same, the call fails with a unique violation, with the
-- coupons before it committed. All arrays have one length, but for the three of keyed requests, which are empty where there is none.
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
    request_keys text[], entities bigint[], faces jsonb[],
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
                      guarded, caps, exclusive, till_ids, store_ids, sources, account_ids, metadatas, request_ids,
                      request_keys, entities, faces)
               with ordinality
            as t (org_id, revision, series_id, customer_id, ordinal, code, shared_code, expires_on, issued_at, issue_id,
                  guarded, cap, exclusive, till_id, store_id, source, account_id, metadata, request_id,
                  request_key, entity, face, i)
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
        if item.request_key is not null and item.revision is not distinct from this_revision then
            -- Before anything else of this coupon: whatever the other attempt has issued counts.
            insert into keyed_coupon (org_id, request_key, entity, series_id, customer_id, issue_id, face, natural_at)
            values (item.org_id, item.request_key, item.entity, item.series_id, item.customer_id, item.issue_id, item.face,
                    case when item.request_key like E'\n%' then item.issued_at end)
            on conflict do nothing;
            if not found then outcome := 9; end if;
        end if;
        if outcome = 9 then
            null;
        elsif item.revision is distinct from this_revision then
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

