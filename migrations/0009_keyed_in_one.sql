-- A keyed request needs no journey of its own to begin: its beginning is stored with its first coupon, in that coupon's transaction.
-- And a series that a batch has locked is counted once for the batch.

-- As in 0007, whose procedure the version before this one goes on calling during an upgrade. What is new:
--
-- key_series[i] and held_untils[i] are null but for the coupon that begins its request, which then is recorded as one that was
-- first seen at issued_ats[i] (begin_keyed_request); if there is one of this key, the outcome is 10, and the caller has to begin
-- in the other way, which tells what it has found. The other coupons of such an attempt come after it, if they are in order of
-- their series. attempts[i] is null where the request has begun before; else the coupon is recorded only under a beginning of
-- this attempt. In either case, only under one with fingerprints[i]. Where there is none, the outcome is 10.
-- The seven arrays of keyed requests may be empty.
--
-- What count_up (0001) does is done here: the count is looked up once for as long as the series stays locked, and is known then.
create procedure issue_coupons(
    org_ids bigint[], revisions bigint[], series_ids bigint[], customer_ids text[], ordinals integer[],
    codes text[], shared boolean[], expiries date[], issued_ats timestamptz[], issue_ids uuid[],
    guarded boolean[], caps bigint[], exclusive boolean[],
    till_ids text[], store_ids bigint[], sources text[], account_ids text[], metadatas jsonb[],
    request_ids text[], request_uuids uuid[],
    request_keys text[], entities bigint[], faces jsonb[],
    attempts uuid[], fingerprints bytea[], key_series text[], held_untils timestamptz[],
    durability text,
    inout outcomes smallint[], inout issued_codes text[])
language plpgsql as $$
declare
    this_org bigint;
    this_revision bigint;                   -- null while the organisation is being changed
    series_key bigint;
    locked_key bigint;
    counted_series bigint;                  -- whose count is known: it has stayed locked since
    so_far bigint;
    -- In conditions, plain variables: a plan is kept for those, and made anew each time for an element of an array.
    this_key text;
    this_series bigint;
    this_entity bigint;
    this_attempt uuid;
    this_fingerprint bytea;
    is_begun boolean;
    given text;
    outcome smallint;
    ignored text;
begin
    -- What is written in few statements here is so for speed: each costs a coupon about a microsecond.
    outcomes := array_fill(1::smallint, array[cardinality(org_ids)]);
    issued_codes := codes;

    for i in 1 .. cardinality(org_ids) loop
        if org_ids[i] is distinct from this_org then
            this_org := org_ids[i];
            this_revision := null;
            counted_series := null;
            if pg_try_advisory_lock_shared(20191, hashint8(this_org)) then
                select o.revision into this_revision from organisation o where o.org_id = this_org;
            end if;
        end if;

        -- Most of them, in as few statements as can be.
        if not guarded[i] and revisions[i] = this_revision and request_keys[i] is null then
            insert into coupon (org_id, series_id, customer_id, ordinal, code, shared_code, expires_on, issued_at, issue_id,
                                till_id, store_id, source, account_id, metadata, request_id, request_uuid)
            values (org_ids[i], series_ids[i], customer_ids[i], null, codes[i], shared[i], expiries[i], issued_ats[i],
                    issue_ids[i], till_ids[i], store_ids[i], sources[i], account_ids[i], metadatas[i], request_ids[i],
                    request_uuids[i]);
            commit;
            continue;
        end if;

        outcome := 1;
        given := codes[i];
        -- The series first: whoever has recorded a coupon waits for nobody who may be waiting for that record.
        if guarded[i] and revisions[i] is not distinct from this_revision then
            series_key := null;
            if caps[i] is not null or codes[i] is null then
                series_key := hashint8extended(series_ids[i], this_org);
            end if;
            if locked_key is not null and (exclusive[i] or locked_key is distinct from series_key) then
                perform pg_advisory_unlock(locked_key);
                locked_key := null;
                counted_series := null;
            end if;
            if series_key is not null and not exclusive[i] and locked_key is null then
                perform pg_advisory_lock(series_key);
                locked_key := series_key;
            end if;
        end if;
        this_key := request_keys[i];
        if this_key is not null and revisions[i] is not distinct from this_revision then
            -- Before anything else of this coupon: whatever the other attempt has issued counts.
            this_series := series_ids[i];
            this_entity := entities[i];
            if this_key like E'\n%' then
                insert into keyed_coupon (org_id, request_key, entity, series_id, customer_id, issue_id, face, natural_at)
                values (this_org, this_key, this_entity, this_series, customer_ids[i], issue_ids[i], faces[i], issued_ats[i])
                on conflict do nothing;
                if not found then outcome := 9; end if;
            else
                this_attempt := attempts[i];
                this_fingerprint := fingerprints[i];
                if held_untils[i] is not null then
                    insert into keyed_request (org_id, request_key, fingerprint, series_ids, started_at, attempt, held_until)
                    values (this_org, this_key, this_fingerprint, key_series[i]::bigint[], issued_ats[i], this_attempt, held_untils[i])
                    on conflict do nothing;
                    is_begun := found;
                else
                    is_begun := exists (
                        select from keyed_request r
                         where r.org_id = this_org and r.request_key = this_key and r.fingerprint = this_fingerprint
                           and r.series_ids[(this_entity + 1)::integer] = this_series
                           and (this_attempt is null or r.attempt = this_attempt));
                end if;
                if is_begun then
                    insert into keyed_coupon (org_id, request_key, entity, series_id, customer_id, issue_id, face)
                    values (this_org, this_key, this_entity, this_series, customer_ids[i], issue_ids[i], faces[i])
                    on conflict do nothing;
                    if not found then outcome := 9; end if;
                else
                    outcome := 10;
                end if;
            end if;
        end if;
        if outcome >= 9 then
            null;
        elsif revisions[i] is distinct from this_revision then
            outcome := case when this_revision is null then 8 else 2 end;
        elsif not guarded[i] then
            insert into coupon (org_id, series_id, customer_id, ordinal, code, shared_code, expires_on, issued_at, issue_id,
                                till_id, store_id, source, account_id, metadata, request_id, request_uuid)
            values (org_ids[i], series_ids[i], customer_ids[i], null, codes[i], shared[i], expiries[i],
                    issued_ats[i], issue_ids[i], till_ids[i], store_ids[i], sources[i], account_ids[i], metadatas[i],
                    request_ids[i], request_uuids[i]);
            commit;
            continue;
        else
            if exclusive[i] then
                -- The customer first, and the series for this coupon only: whoever holds a series waits for no customer.
                if holds_excluded(this_org, series_ids[i], customer_ids[i]) then
                    outcome := 6;
                elsif series_key is not null then
                    perform pg_advisory_xact_lock(series_key);
                end if;
            end if;
            if outcome = 1 and caps[i] is not null then
                this_series := series_ids[i];
                if counted_series is distinct from this_series then
                    select c.issued into so_far from series_counter c
                     where c.org_id = this_org and c.series_id = this_series order by c.issued desc limit 1;
                end if;
                counted_series := null;
                if so_far is null or so_far >= caps[i] then
                    outcome := 3;
                else
                    insert into series_counter (org_id, series_id, issued) values (this_org, this_series, so_far + 1);
                    if so_far % 100 = 0 then
                        delete from series_counter c
                         where c.org_id = this_org and c.series_id = this_series and c.issued between so_far - 100 and so_far;
                    end if;
                end if;
            end if;
            if outcome = 1 and given is null then
                given := take_pool_code(this_org, series_ids[i], customer_ids[i]);
                issued_codes[i] := given;
                if given is null then outcome := 7; end if;
            end if;
        end if;

        if outcome = 1 then
            insert into coupon (org_id, series_id, customer_id, ordinal, code, shared_code, expires_on, issued_at, issue_id,
                                till_id, store_id, source, account_id, metadata, request_id, request_uuid)
            values (org_ids[i], series_ids[i], customer_ids[i], ordinals[i], given, shared[i], expiries[i],
                    issued_ats[i], issue_ids[i], till_ids[i], store_ids[i], sources[i], account_ids[i], metadatas[i],
                    request_ids[i], request_uuids[i])
            on conflict do nothing;
            if found then
                commit;
                if locked_key is not null and caps[i] is not null then
                    counted_series := this_series;
                    so_far := so_far + 1;
                end if;
                continue;
            end if;
            outcome := case when exists (
                select from coupon c
                 where c.org_id = this_org and c.customer_id = customer_ids[i] and c.series_id = series_ids[i]
                   and c.ordinal = ordinals[i]) then 4 else 5 end;
        end if;

        outcomes[i] := outcome;
        rollback;
        if outcome = 5 and codes[i] is null then
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

