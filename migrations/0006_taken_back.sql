-- A crash may take back the beginning of an attempt, which is not flushed (begin_keyed_request), while the attempt itself goes on
-- in a service that is still there. Its coupons must not be recorded under a request that nobody knows.

-- As in 0003, which says how it works; the version before this one knows nothing of outcome 10, and takes it for a failure that may
-- be tried again.
--
--  10 unbegun      the request is not known: its beginning was taken back, it must begin again
--
-- And a series is locked before a coupon of it is recorded. The other way round, two who issue under one natural key at once could
-- wait for each other, until Postgres ended one of them.
create or replace procedure issue_coupons(
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
        -- The series first: whoever has recorded a coupon waits for nobody who may be waiting for that record.
        if item.guarded and item.revision is not distinct from this_revision then
            series_key := null;
            if item.cap is not null or item.code is null then
                series_key := hashint8extended(item.series_id, this_org);
            end if;
            if locked_key is not null and (item.exclusive or locked_key is distinct from series_key) then
                perform pg_advisory_unlock(locked_key);
                locked_key := null;
            end if;
            if series_key is not null and not item.exclusive and locked_key is null then
                perform pg_advisory_lock(series_key);
                locked_key := series_key;
            end if;
        end if;
        if item.request_key is not null and item.revision is not distinct from this_revision then
            -- Before anything else of this coupon: whatever the other attempt has issued counts.
            if item.request_key like E'\n%' then
                insert into keyed_coupon (org_id, request_key, entity, series_id, customer_id, issue_id, face, natural_at)
                values (item.org_id, item.request_key, item.entity, item.series_id, item.customer_id, item.issue_id, item.face,
                        item.issued_at)
                on conflict do nothing;
                if not found then outcome := 9; end if;
            else
                insert into keyed_coupon (org_id, request_key, entity, series_id, customer_id, issue_id, face)
                select item.org_id, item.request_key, item.entity, item.series_id, item.customer_id, item.issue_id, item.face
                  from keyed_request r
                 where r.org_id = item.org_id and r.request_key = item.request_key
                   and r.series_ids[(item.entity + 1)::integer] = item.series_id
                on conflict do nothing;
                if not found then
                    outcome := case when exists (
                        select from keyed_request r where r.org_id = item.org_id and r.request_key = item.request_key) then 9 else 10 end;
                end if;
            end if;
        end if;
        if outcome >= 9 then
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
            if item.exclusive then
                -- The customer first, and the series for this coupon only: whoever holds a series waits for no customer.
                if holds_excluded(this_org, item.series_id, item.customer_id) then
                    outcome := 6;
                elsif series_key is not null then
                    perform pg_advisory_xact_lock(series_key);
                end if;
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

