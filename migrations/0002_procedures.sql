-- The functions. Names end in a version: from 0.2.0 on, a changed function gets the next number in a new migration, so that replicas
-- of two versions can run side by side.
--
-- OUTCOMES of a coupon in a batch (Rust: `Outcome` in src/db/writer/procedure.rs)
--
--    1 issued           issued_codes[place] is its code, if it came from the pool
--    2 other_revision   the settings of the organisation changed after the decision
--    3 cap_reached      the series has issued all it may
--    4 ordinal_taken    another request issued this number of the customer's coupons
--    5 code_taken       the code exists
--    6 holds_excluded   the customer holds a coupon of a mutually exclusive series
--    7 pool_empty       the pool has no code for this customer
--    8 settings_locked  the settings of the organisation are being changed
--    9 already_issued   the entity is issued already: by another attempt under its key, or under its natural key
--   10 key_not_claimed  the attempt does not hold the key: the key was used before, another attempt took over, or a crash of the
--                       database lost the claim
--   11 id_taken         another coupon has its id
--   12 has_received     the customer has received coupons of the series, so that the history must decide. The key stays claimed
--
-- Outcomes 2 to 12 store no coupon. A pool code that turns out to be useless is deleted all the same (5).
--
-- DURABILITY. Sessions of the writer have synchronous_commit off: the coupons of a batch commit without a flush. If a batch issued a
-- coupon, its last transaction writes something and commits with `durability`. This flushes the log, and with it every coupon of the
-- batch. A call without coupons does so, too. A coupon is durable when its call has returned, and no request is answered before that. Claims are not flushed: a crash that
-- loses a claim also loses its coupons. A lease of coupon ids is flushed before its first id is used, so that no id is used twice.
--
-- LOCKS, in the order in which a coupon takes them, and what else takes them
--
--    incarnation   advisory (20193, incarnation), shared, of the session, until the batch ends, if the batch has keyed coupons. A
--                  replica holds it while it lives, and is_alive_1 tries it exclusive for a moment
--    organisation  advisory (20191, hashint8(org_id)), shared, of the session, until the batch ends. `apply` takes it exclusive. A
--                  batch only tries the locks, those of all its organisations at its start, so that no coupon waits for `apply`
--    series        advisory, hashint8extended(series_id, org_id), of the session, kept from coupon to coupon of the batch and
--                  released before the flush. It serialises the coupons that count, or take codes of, a series
--    key           the row of keyed_request: inserted by the coupon that claims the key, else locked `for key share` until the
--                  coupon's commit. claim_keys_1 locks it `for update`, without waiting, so that no takeover can happen between the
--                  check of the claim and the insert of the coupon
--    natural key   the row of natural_issuance: a second insert waits for the first
--    customer      advisory, hashtextextended(customer_id, org_id), of the transaction, for a coupon of an exclusive series. Such a
--                  coupon locks its series after its customer, for its own transaction only: a transaction that holds a series lock
--                  never waits for a customer lock
--
-- ALL ADVISORY LOCKS
--
--    (20190, 0)                                  `apply`, exclusive: one at a time
--    (20191, hashint8(org_id))                   settings of an organisation: `apply` exclusive, batches shared
--    (20192, hashint8(org_id))                   codes of an organisation: `apply` and uploads, one at a time
--    (20193, incarnation)                        a live replica
--    hashint8extended(series_id, org_id)         the counter and the pool of a series
--    hashtextextended(customer_id, org_id)       the exclusions of a customer
--    hashtextextended(customer_id, -1 - series_id)   the next ordinal of a customer and a series: only tried, never waited for
--    hashtextextended('org_id series_id', -1)    the upload into a pool: one at a time. (No org_id is negative.)
--
-- Two names with the same hash share a lock. They wait for each other, or one is refused and decided again. Neither does harm.

create function lock_organisation_1(of_org bigint) returns void language sql volatile as
    'select pg_advisory_xact_lock(20191, hashint8(of_org))';
comment on function lock_organisation_1(bigint) is 'Waits for the running batches of the organisation, and blocks new ones until the end of the transaction.';

create function lock_codes_1(of_org bigint) returns void language sql volatile as
    'select pg_advisory_xact_lock(20192, hashint8(of_org))';
comment on function lock_codes_1(bigint) is 'Locks the codes of the organisation until the end of the transaction. `apply` takes the lock, and an upload for each chunk of its file. Under the lock new codes come only from the existing shapes and pools.';

create function key_hash_1(idempotency_key text) returns uuid language sql immutable as
    $$select encode(substring(sha256(convert_to(idempotency_key, 'UTF8')) for 16), 'hex')::uuid$$;
comment on function key_hash_1(text) is 'The key_hash of an Idempotency-Key, to look up a request by hand.';

create function lease_coupon_ids_1(ids bigint) returns bigint language plpgsql as $$
declare
    first_id bigint;
begin
    -- Without waiting for a standby: one that takes over without the lease has no coupons of it either.
    perform set_config('synchronous_commit', 'local', true);
    update coupon_id_lease l set next_id = l.next_id + ids returning l.next_id - ids into first_id;
    return first_id;
end
$$;
comment on function lease_coupon_ids_1(bigint) is 'Leases this number of coupon ids and returns the first. Run it in a transaction of its own, whose commit flushes the lease.';

create function next_incarnation_1() returns integer language plpgsql as $$
declare
    number integer;
begin
    perform set_config('synchronous_commit', 'local', true);
    update incarnation i set latest = case when i.latest < 32767 then i.latest + 1 else 1 end returning i.latest into number;
    return number;
end
$$;
comment on function next_incarnation_1() is 'The incarnation number for a replica that starts.';

create function is_alive_1(of_incarnation integer) returns boolean language sql volatile as $$
    select not case when pg_try_advisory_lock(20193, of_incarnation) then pg_advisory_unlock(20193, of_incarnation) else false end
$$;
comment on function is_alive_1(integer) is 'Whether the replica is alive, or one of its calls still runs.';

create function origin_1(of_org bigint, of_store bigint, of_source text, of_till text, of_client text) returns integer
language plpgsql as $$
declare
    -- Derived from the columns: if a failover loses the row, it gets the same number again, and its coupons stay right.
    candidate integer := hashtext(format('%s %L %L %L', of_store, of_source, of_till, of_client));
    found_id integer;
begin
    loop
        select o.origin_id into found_id from origin o
         where o.org_id = of_org and o.store_id = of_store and o.source = of_source
           and coalesce(o.till_id, '') = coalesce(of_till, '') and coalesce(o.client_key, '') = coalesce(of_client, '');
        if found then return found_id; end if;
        insert into origin (org_id, store_id, origin_id, source, till_id, client_key)
        values (of_org, of_store, candidate, of_source, of_till, of_client)
        on conflict do nothing;
        if found then return candidate; end if;
        -- Another transaction stored the same origin, or another origin has this number.
        candidate := hashint4(candidate);
    end loop;
end
$$;
comment on function origin_1(bigint, bigint, text, text, text) is 'The origin_id of this origin. Stores a new origin.';

create function holds_excluded_1(of_org bigint, of_series bigint, of_customer text) returns boolean language plpgsql as $$
begin
    -- Of two concurrent requests the second sees the coupon of the first.
    perform pg_advisory_xact_lock(hashtextextended(of_customer, of_org));
    return exists (
        select from series_exclusion x
          join coupon c on c.org_id = x.org_id and c.customer_id = of_customer and c.series_id = x.excluded_series_id
         where x.org_id = of_org and x.series_id = of_series and c.revoked_at is null);
end
$$;
comment on function holds_excluded_1(bigint, bigint, text) is 'Whether the customer holds a coupon of a series that excludes this one. Locks the customer.';

create type new_coupon_1 as (
    place          integer,
    org_id         bigint,
    revision       bigint,
    coupon_id      bigint,
    series_id      bigint,
    series_version integer,
    origin_id      integer,
    customer_id    text,
    ordinal        integer,
    received_below integer,
    code           text,
    from_pool      boolean,
    expires_on     date,
    issued_at      timestamptz,
    account_id     text,
    metadata       jsonb,
    request_id     text,
    request_uuid   uuid,
    cap            bigint,
    exclusive      boolean,
    unguarded      boolean,
    simple         boolean,
    natural_key    uuid,
    key_hash       uuid,
    claim_id       bigint,
    attempt        integer,
    fingerprint    bigint,
    claimed_by     integer,
    answers        text
);
comment on type new_coupon_1 is 'A decided coupon, with its guards.';
comment on column new_coupon_1.place is 'Its position in the batch, from 1: its outcome is outcomes[place].';
comment on column new_coupon_1.org_id is 'coupon.org_id.';
comment on column new_coupon_1.revision is 'Guard: the organisation must be at this revision.';
comment on column new_coupon_1.coupon_id is 'coupon.coupon_id.';
comment on column new_coupon_1.series_id is 'coupon.series_id.';
comment on column new_coupon_1.series_version is 'coupon.series_version.';
comment on column new_coupon_1.origin_id is 'coupon.origin_id.';
comment on column new_coupon_1.customer_id is 'coupon.customer_id.';
comment on column new_coupon_1.ordinal is 'coupon.ordinal. It also guards a decision that rests on the history: nothing was issued since.';
comment on column new_coupon_1.received_below is 'Guard: the customer must have received fewer coupons of the series. The coupon gets the next ordinal. Null: no such guard.';
comment on column new_coupon_1.code is 'coupon.code. Null: the code comes from the pool or is generic.';
comment on column new_coupon_1.from_pool is 'Whether the code comes from the pool.';
comment on column new_coupon_1.expires_on is 'coupon.expires_on.';
comment on column new_coupon_1.issued_at is 'coupon.issued_at.';
comment on column new_coupon_1.account_id is 'coupon.account_id.';
comment on column new_coupon_1.metadata is 'coupon.metadata.';
comment on column new_coupon_1.request_id is 'coupon.request_id.';
comment on column new_coupon_1.request_uuid is 'coupon.request_uuid.';
comment on column new_coupon_1.cap is 'Guard: the series must have issued fewer coupons. Null: it has no cap.';
comment on column new_coupon_1.exclusive is 'Guard: the customer must hold no coupon of a mutually exclusive series.';
comment on column new_coupon_1.unguarded is 'True: only a change of settings is reported as an outcome. Any other refusal raises an error; the coupons before it stay committed.';
comment on column new_coupon_1.simple is 'As unguarded, but a refusal by the cap, the claim or received_below is reported as an outcome as well.';
comment on column new_coupon_1.natural_key is 'The natural key under which the coupon is issued once. Null: none.';
comment on column new_coupon_1.key_hash is 'keyed_request.key_hash of its request. Null: the request has no key.';
comment on column new_coupon_1.claim_id is 'keyed_request.first_coupon_id of its attempt.';
comment on column new_coupon_1.attempt is 'keyed_request.attempt of its attempt.';
comment on column new_coupon_1.fingerprint is 'keyed_request.fingerprint, for the coupon that claims the key.';
comment on column new_coupon_1.claimed_by is 'The place of the first coupon of its request in the batch. That coupon claims the key; if it is refused, the next one does. Null: the key is claimed already.';
comment on column new_coupon_1.answers is 'keyed_request.answers, if a coupon of the batch claims the key. If the first one is refused, its claim is undone, and the next one claims the key. Null: the key is claimed already.';

create procedure issue_coupons_1(
    coupons new_coupon_1[], org_ids bigint[], of_incarnation integer, durability text, of_session text,
    inout outcomes smallint[], inout issued_codes text[])
language plpgsql as $$
declare
    item new_coupon_1;
    received constant timestamptz := date_trunc('second', statement_timestamp());
    is_locked boolean[];                    -- of each organisation: whether its settings are locked against changes
    revisions bigint[];                     -- of each organisation; null while its settings are being changed
    org_index integer := 0;
    this_org bigint;
    this_revision bigint;
    series_key bigint;
    locked_key bigint;
    counted_series bigint;                  -- the series of so_far. Null once its lock is released
    so_far bigint;
    is_claimed boolean;                     -- by this coupon
    late constant timestamptz := statement_timestamp() + interval '2 seconds'; -- a lease may end, but not before this
    has_received boolean;                   -- too many for a decision without the history
    next_ordinal integer;
    pool_series bigint;                     -- the series of the codes below. Null once its lock is released
    pool_has_personal boolean;              -- whether the pool has codes for one customer
    pool_position bigint;                   -- the last position that was given out
    pool_rows tid[];
    pool_positions bigint[];
    pool_codes text[];
    pool_uploaded_codes text[];
    pool_index integer;
    next_position bigint;                   -- the position that this coupon gives out
    is_counted boolean;                     -- whether pool_counter has a position of this call
    pool_fetch integer;                     -- the number of codes to read at once
    given text;
    given_as text;                          -- the code as it was uploaded, if that differs
    outcome smallint;
    ignored text;
begin
    if current_setting('coupon_issuer.session', true) is distinct from of_session then
        raise exception 'the call has reached another session than the one that its writer has opened'
            using errcode = 'connection_exception',
                  hint = 'A pooler must be in session mode: its transaction mode gives every transaction to another session.';
    end if;
    outcomes := array_fill(1::smallint, array[cardinality(coupons)]);
    issued_codes := array_fill(null::text, array[cardinality(coupons)]);
    if of_incarnation is not null then
        perform pg_advisory_lock_shared(20193, of_incarnation);
    end if;
    -- Two statements: the second one sees what was committed before the locks.
    select array_agg(pg_try_advisory_lock_shared(20191, hashint8(t.org_id)) order by t.n) into is_locked
      from unnest(org_ids) with ordinality as t (org_id, n);
    select array_agg(case when t.is_locked then (select o.revision from organisation o where o.org_id = t.org_id) end order by t.n)
      into revisions
      from unnest(org_ids, is_locked) with ordinality as t (org_id, is_locked, n);

    -- The usual coupons come first, and their inserts are written out: `on conflict` costs five microseconds, and each expression 0.2
    -- microseconds, because PL/pgSQL initialises it anew in every transaction.
    foreach item in array coupons loop
        if item.org_id is distinct from this_org then
            loop
                org_index := org_index + 1;
                exit when org_ids[org_index] = item.org_id;
                if org_index > cardinality(org_ids) then
                    raise exception 'org_ids does not list the organisations of the coupons in their order';
                end if;
            end loop;
            this_org := item.org_id;
            this_revision := revisions[org_index];
            counted_series := null;
            pool_series := null;
        end if;
        if item.revision is distinct from this_revision then
            outcomes[item.place] := case when this_revision is null then 8 else 2 end;
            rollback;
            continue;
        end if;

        if item.unguarded then
            insert into coupon (org_id, coupon_id, series_id, issued_at, request_uuid, series_version, origin_id, expires_on,
                                customer_id, code, request_id, account_id, metadata)
            values (item.org_id, item.coupon_id, item.series_id, item.issued_at, item.request_uuid, item.series_version,
                    item.origin_id, item.expires_on, item.customer_id, item.code, item.request_id, item.account_id, item.metadata);
            commit;
            continue;
        end if;

        if item.simple
           and (case when item.from_pool
                     then locked_key is not null and item.series_id = pool_series and is_counted and not pool_has_personal and pool_rows[pool_index] is not null
                     -- A coupon without a cap may wait for its key, so it first releases the series lock, below.
                     else item.cap is not null or locked_key is null end)
           and (item.cap is null or (item.series_id = counted_series and so_far < item.cap)) then
            -- A key that this call has claimed cannot be taken over: its lease has just begun, and this replica is alive
            -- (is_in_progress_1).
            if item.key_hash is not null and (item.claimed_by = item.place or outcomes[item.claimed_by] not in (1, 12)
                                              or item.claimed_by is null or clock_timestamp() > late) then
                if item.claimed_by is distinct from item.place then
                    perform from keyed_request r
                      where r.org_id = item.org_id and r.key_hash = item.key_hash and r.first_coupon_id = item.claim_id
                        and r.attempt = item.attempt
                        for key share;
                end if;
                if item.claimed_by = item.place or (not found and item.claimed_by is not null) then
                    insert into keyed_request (org_id, first_coupon_id, fingerprint, received_at, incarnation, attempt, key_hash,
                                               answers)
                    values (item.org_id, item.claim_id, item.fingerprint, received, of_incarnation, item.attempt, item.key_hash,
                            item.answers)
                    on conflict do nothing;
                end if;
                if not found then
                    outcomes[item.place] := 10;
                    rollback;
                    continue;
                end if;
            end if;
            next_ordinal := null;
            if item.received_below is not null then
                -- Of two coupons that would get the same ordinal, one is refused here: an error of the index would break the batch.
                if not pg_try_advisory_xact_lock(hashtextextended(item.customer_id, -1 - item.series_id)) then
                    outcomes[item.place] := 4;
                    rollback;
                    continue;
                end if;
                if item.received_below = 1 then
                    perform from coupon c
                      where c.org_id = item.org_id and c.customer_id = item.customer_id and c.series_id = item.series_id
                      limit 1;
                    has_received := found;
                    next_ordinal := 1;
                else
                    -- Looks at no more rows than it needs. Unnumbered coupons, of a time when the series had no limit, come first.
                    select count(*) > item.received_below or count(*) filter (where r.revoked_at is null) >= item.received_below,
                           coalesce(max(r.ordinal), 0) + 1
                      into has_received, next_ordinal
                      from (select c.ordinal, c.revoked_at from coupon c
                             where c.org_id = item.org_id and c.customer_id = item.customer_id and c.series_id = item.series_id
                             order by c.ordinal desc limit item.received_below + 1::bigint) r;
                end if;
                if has_received then
                    outcomes[item.place] := 12;
                    commit;
                    continue;
                end if;
            end if;
            if item.cap is not null then
                so_far := so_far + 1;
                insert into series_counter (org_id, series_id, issued) values (item.org_id, item.series_id, so_far);
                if so_far % 100 = 1 then
                    delete from series_counter c
                     where c.org_id = this_org and c.series_id = counted_series and c.issued between so_far - 101 and so_far - 1;
                end if;
            end if;
            if item.from_pool then
                delete from pool_code p
                 where p.ctid = pool_rows[pool_index] and p.org_id = item.org_id and p.code = pool_codes[pool_index];
                if not found then
                    raise exception 'a code of the pool of series % moved while the series was locked', item.series_id;
                end if;
                insert into coupon (org_id, coupon_id, series_id, issued_at, request_uuid, series_version, origin_id, expires_on,
                                    ordinal, customer_id, code, uploaded_code, request_id, account_id, metadata)
                values (item.org_id, item.coupon_id, item.series_id, item.issued_at, item.request_uuid, item.series_version,
                        item.origin_id, item.expires_on, next_ordinal, item.customer_id, pool_codes[pool_index],
                        pool_uploaded_codes[pool_index], item.request_id, item.account_id, item.metadata);
                commit;
                issued_codes[item.place] := coalesce(pool_uploaded_codes[pool_index], pool_codes[pool_index]);
                pool_position := pool_positions[pool_index];
                pool_index := pool_index + 1;
                continue;
            end if;
            insert into coupon (org_id, coupon_id, series_id, issued_at, request_uuid, series_version, origin_id, expires_on,
                                ordinal, customer_id, code, request_id, account_id, metadata)
            values (item.org_id, item.coupon_id, item.series_id, item.issued_at, item.request_uuid, item.series_version,
                    item.origin_id, item.expires_on, next_ordinal, item.customer_id, item.code, item.request_id, item.account_id,
                    item.metadata);
            commit;
            continue;
        end if;

        outcome := 1;
        series_key := null;
        next_position := null;
        if item.cap is not null or item.from_pool then
            series_key := hashint8extended(item.series_id, this_org);
        end if;
        if locked_key is not null and (item.exclusive or locked_key is distinct from series_key) then
            perform pg_advisory_unlock(locked_key);
            locked_key := null;
            counted_series := null;
            pool_series := null;
        end if;
        if series_key is not null and locked_key is null and not item.exclusive then
            if not pg_try_advisory_lock(series_key) then
                -- If another attempt uses the key, refuse the coupon instead of waiting for the series lock.
                if item.key_hash is not null and (
                    item.answers is null or exists (
                        select from keyed_request r where r.org_id = this_org and r.key_hash = item.key_hash))
                   and not exists (
                        select from keyed_request r
                         where r.org_id = this_org and r.key_hash = item.key_hash and r.first_coupon_id = item.claim_id
                           and r.attempt = item.attempt) then
                    outcomes[item.place] := 10;
                    rollback;
                    continue;
                end if;
                perform pg_advisory_lock(series_key);
            end if;
            locked_key := series_key;
        end if;

        -- The key is checked before the guards: for an entity that is issued already, a guard would report a refusal. A coupon that
        -- is sent again alone finds the claim that it stored itself.
        if item.key_hash is not null then
            is_claimed := false;
            if item.claimed_by = item.place then
                insert into keyed_request (org_id, first_coupon_id, fingerprint, received_at, incarnation, attempt, key_hash, answers)
                values (this_org, item.claim_id, item.fingerprint, received, of_incarnation, item.attempt, item.key_hash, item.answers)
                on conflict do nothing;
                is_claimed := found;
            end if;
            if not is_claimed then
                perform from keyed_request r
                  where r.org_id = this_org and r.key_hash = item.key_hash and r.first_coupon_id = item.claim_id
                    and r.attempt = item.attempt
                    for key share;
                if found then
                    if exists (select from coupon c where c.org_id = this_org and c.coupon_id = item.coupon_id) then
                        outcome := 9;
                    end if;
                elsif item.claimed_by <> item.place then
                    insert into keyed_request (org_id, first_coupon_id, fingerprint, received_at, incarnation, attempt, key_hash,
                                               answers)
                    values (this_org, item.claim_id, item.fingerprint, received, of_incarnation, item.attempt, item.key_hash,
                            item.answers)
                    on conflict do nothing;
                    if not found then outcome := 10; end if;
                else
                    outcome := 10;
                end if;
            end if;
        end if;
        if item.natural_key is not null then
            insert into natural_issuance (org_id, series_id, coupon_id, issued_at, natural_key)
            values (this_org, item.series_id, item.coupon_id, item.issued_at, item.natural_key)
            on conflict do nothing;
            if not found then outcome := 9; end if;
        end if;
        next_ordinal := item.ordinal;
        if outcome = 1 and (item.ordinal is not null or item.received_below is not null)
           and not pg_try_advisory_xact_lock(hashtextextended(item.customer_id, -1 - item.series_id)) then
            outcome := 4;
        end if;
        if outcome = 1 and item.received_below is not null then
            select count(*) > item.received_below or count(*) filter (where r.revoked_at is null) >= item.received_below,
                   coalesce(max(r.ordinal), 0) + 1
              into has_received, next_ordinal
              from (select c.ordinal, c.revoked_at from coupon c
                     where c.org_id = this_org and c.customer_id = item.customer_id and c.series_id = item.series_id
                     order by c.ordinal desc limit item.received_below + 1::bigint) r;
            if has_received then outcome := 12; end if;
        end if;
        if outcome = 1 and item.exclusive then
            if holds_excluded_1(this_org, item.series_id, item.customer_id) then
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
        given := item.code;
        given_as := null;
        if outcome = 1 and item.from_pool then
            if pool_series is distinct from item.series_id or item.exclusive then
                pool_series := item.series_id;
                pool_has_personal := exists (
                    select from pool_code p where p.org_id = this_org and p.series_id = item.series_id and p.customer_id is not null);
                select g.position into pool_position from pool_counter g
                 where g.org_id = this_org and g.series_id = item.series_id order by g.position desc limit 1;
                pool_position := coalesce(pool_position, 0);
                pool_fetch := 4;
                pool_index := 1;
                pool_rows := null;
                is_counted := false;
            end if;
            if pool_has_personal then
                delete from pool_code where ctid = (
                    select p.ctid from pool_code p
                     where p.org_id = this_org and p.series_id = item.series_id and p.customer_id = item.customer_id
                     limit 1)
                returning pool_code.code, pool_code.uploaded_code into given, given_as;
            end if;
            if given is null then
                if pool_rows[pool_index] is null then
                    -- Few at first: most batches need few codes of a pool.
                    pool_fetch := least(4 * pool_fetch, 128);
                    pool_index := 1;
                    select array_agg(n.ctid), array_agg(n.position), array_agg(n.code), array_agg(n.uploaded_code)
                      into pool_rows, pool_positions, pool_codes, pool_uploaded_codes
                      from (select p.ctid, p.position, p.code, p.uploaded_code from pool_code p
                             where p.org_id = this_org and p.series_id = item.series_id and p.position > pool_position
                             order by p.position limit pool_fetch) n;
                end if;
                given := pool_codes[pool_index];
                given_as := pool_uploaded_codes[pool_index];
                if given is not null then
                    delete from pool_code p
                     where p.ctid = pool_rows[pool_index] and p.org_id = this_org and p.code = given;
                    if not found then
                        raise exception 'a code of the pool of series % moved while the series was locked', item.series_id;
                    end if;
                    -- Only the first code of a call is counted. The next call skips the others of this call, at most a batch.
                    if not is_counted then
                        insert into pool_counter (org_id, series_id, position)
                        values (this_org, item.series_id, pool_positions[pool_index]);
                        if pool_positions[pool_index] / 100 > pool_position / 100 then
                            delete from pool_counter g
                             where g.org_id = this_org and g.series_id = item.series_id
                               and g.position between pool_position / 100 * 100 and pool_position;
                        end if;
                    end if;
                    next_position := pool_positions[pool_index];
                end if;
            end if;
            issued_codes[item.place] := coalesce(given_as, given);
            if given is null then outcome := 7; end if;
        end if;

        if outcome = 1 then
            if item.simple and item.received_below is null then
                insert into coupon (org_id, coupon_id, series_id, issued_at, request_uuid, series_version, origin_id, expires_on,
                                    customer_id, code, uploaded_code, request_id, account_id, metadata)
                values (this_org, item.coupon_id, item.series_id, item.issued_at, item.request_uuid, item.series_version,
                        item.origin_id, item.expires_on, item.customer_id, given, given_as, item.request_id, item.account_id,
                        item.metadata);
            else
                insert into coupon (org_id, coupon_id, series_id, issued_at, request_uuid, series_version, origin_id, expires_on,
                                    ordinal, customer_id, code, uploaded_code, request_id, account_id, metadata)
                values (this_org, item.coupon_id, item.series_id, item.issued_at, item.request_uuid, item.series_version,
                        item.origin_id, item.expires_on, next_ordinal, item.customer_id, given, given_as, item.request_id,
                        item.account_id, item.metadata)
                on conflict do nothing;
            end if;
            if found then
                commit;
                if locked_key is not null and item.cap is not null then counted_series := item.series_id; end if;
                if next_position is not null then
                    pool_position := next_position;
                    pool_index := pool_index + 1;
                    is_counted := true;
                end if;
                continue;
            end if;
            outcome := case
                when exists (
                    select from coupon c
                     where c.org_id = this_org and c.customer_id = item.customer_id and c.series_id = item.series_id
                       and c.ordinal = next_ordinal) then 4
                when exists (select from coupon c where c.org_id = this_org and c.code = given) then 5
                else 11 end;
        end if;

        outcomes[item.place] := outcome;
        if outcome = 12 then
            commit; -- The key stays claimed.
            continue;
        end if;
        rollback;
        if outcome = 5 and item.from_pool then
            -- A coupon has this uploaded code already, so the pool can never give it out. `apply` and uploads prevent this; a change by
            -- hand does not.
            delete from pool_code p where p.org_id = this_org and p.code = given;
            commit;
            pool_series := null;
        end if;
    end loop;
    if locked_key is not null then
        perform pg_advisory_unlock(locked_key);
    end if;

    -- A call that issued nothing has stored at most claims, which are not flushed, and deletions of useless codes. A call without
    -- coupons asks for a flush.
    if cardinality(coupons) = 0 or 1 = any (outcomes) then
        ignored := set_config('synchronous_commit', durability, true);
        ignored := pg_logical_emit_message(true, 'coupon-issuer', '');
        commit;
        -- If a time-out cancels the wait of a commit for a standby, the commit succeeds with only a warning.
        if clock_timestamp() - statement_timestamp() >= nullif(current_setting('statement_timeout'), '0')::interval then
            raise exception 'the flush took too long to be sure of' using errcode = 'query_canceled';
        end if;
    end if;
    ignored := pg_advisory_unlock_all();
end
$$;
comment on procedure issue_coupons_1(new_coupon_1[], bigint[], integer, text, text, smallint[], text[]) is
    'Writes a batch of coupons, each in a transaction of its own, and returns their outcomes. The caller orders the batch by organisation and series, so that a hot series is locked once; org_ids are the organisations in this order. After a failed call the session still holds its locks: the caller releases them with pg_advisory_unlock_all. of_incarnation: the incarnation of the caller, if the batch has keyed coupons. durability: the synchronous_commit of the flush. of_session: the setting coupon_issuer.session of the session that the caller has opened; in any other session the call fails, since it relies on the settings and the locks of its own.';

create function is_in_progress_1(of_request keyed_request, lease_seconds integer) returns boolean language plpgsql as $$
begin
    -- The lease also ends attempts of live replicas whose end could not be stored.
    return of_request.incarnation <> 0
       and of_request.received_at + make_interval(secs => of_request.attempt / 64.0 + lease_seconds) > clock_timestamp()
       and is_alive_1(of_request.incarnation);
end
$$;
comment on function is_in_progress_1(keyed_request, integer) is 'Whether an attempt is at work on the request: its replica is alive and its lease has not ended.';

create function claim_keys_1(
    org_ids bigint[], key_hashes uuid[], fingerprints bigint[], entities text[], first_ids bigint[], of_incarnation integer,
    lease_seconds integer)
returns table (first_id bigint, outcome smallint, claim_id bigint, attempt integer, answers text)
language plpgsql as $$
declare
    asked record;
    known keyed_request;
    is_locked boolean;                      -- a coupon is being written under the key
    is_complete boolean;                    -- each entity has its final answer
    is_answered boolean;                    -- each entity has an answer, so the earlier attempt has ended
begin
    perform set_config('synchronous_commit', 'off', true);
    -- Ordered by key, here and below, which rules out deadlocks between the claims of several replicas.
    return query
    insert into keyed_request as r (org_id, first_coupon_id, fingerprint, received_at, incarnation, attempt, key_hash, answers)
    select t.org_id, t.first_id, t.fingerprint, date_trunc('second', statement_timestamp()), of_incarnation, 0, t.key_hash, t.entities
      from unnest(org_ids, key_hashes, fingerprints, entities, first_ids) as t (org_id, key_hash, fingerprint, entities, first_id)
     order by t.org_id, t.key_hash
        on conflict do nothing
    returning r.first_coupon_id, 1::smallint, r.first_coupon_id, r.attempt, r.answers;

    for asked in
        select t.* from unnest(org_ids, key_hashes, fingerprints, entities, first_ids)
                          as t (org_id, key_hash, fingerprint, entities, first_id)
         where not exists (
             select from keyed_request r
              where r.org_id = t.org_id and r.key_hash = t.key_hash and r.first_coupon_id = t.first_id)
         order by t.org_id, t.key_hash
    loop
        first_id := asked.first_id;
        is_locked := false;
        loop
            select * into known from keyed_request r
             where r.org_id = asked.org_id and r.key_hash = asked.key_hash for update skip locked;
            exit when found;
            -- A coupon is being written under the key. Waiting would delay the other claims of this statement.
            select * into known from keyed_request r where r.org_id = asked.org_id and r.key_hash = asked.key_hash;
            is_locked := found;
            exit when found;
            -- Purged between the two statements.
            insert into keyed_request as r (org_id, first_coupon_id, fingerprint, received_at, incarnation, attempt, key_hash, answers)
            values (asked.org_id, asked.first_id, asked.fingerprint, date_trunc('second', statement_timestamp()), of_incarnation, 0,
                    asked.key_hash, asked.entities)
            on conflict do nothing;
        end loop;
        claim_id := known.first_coupon_id;
        attempt := known.attempt;
        answers := known.answers;
        if known.first_coupon_id = asked.first_id then
            outcome := 1;
        elsif known.fingerprint <> asked.fingerprint then
            outcome := 4;
        elsif is_locked then
            outcome := 3;
        else
            select bool_and(t.word like '%=%' or t.is_issued), bool_and(t.word ~ '[=!]' or t.is_issued) into is_complete, is_answered
              from (select w.word, exists (
                               select from coupon c
                                where c.org_id = known.org_id and c.coupon_id = known.first_coupon_id + w.place - 1) as is_issued
                      from string_to_table(known.answers, ' ') with ordinality as w (word, place)) t;
            if is_complete then
                outcome := 6;
            elsif not is_answered and is_in_progress_1(known, lease_seconds) then
                outcome := 3;
            else
                outcome := case when is_answered or known.incarnation in (0, of_incarnation) then 2 else 5 end;
                attempt := greatest(known.attempt + 1,
                                    ceil(64 * extract(epoch from clock_timestamp() - known.received_at))::integer);
                -- Refused entities are decided again.
                answers := regexp_replace(known.answers, '![^ ]*', '', 'g');
                update keyed_request r
                   set incarnation = of_incarnation, attempt = claim_keys_1.attempt, answers = claim_keys_1.answers
                 where r.org_id = known.org_id and r.key_hash = known.key_hash;
            end if;
        end if;
        return next;
    end loop;
end
$$;
comment on function claim_keys_1(bigint[], uuid[], bigint[], text[], bigint[], integer, integer) is
    'Claims keys for attempts. The first reserved coupon id identifies each claim. Outcomes (Rust: ClaimOutcome and Resumption in src/db/claims.rs): 1 acquired: the key is new; 2 incomplete: the key was used before, entities remain, and the earlier attempts have ended; 3 in_progress: another attempt is at work; 4 fingerprint_mismatch: the key belongs to another request; 5 taken_over: entities remain, and an attempt of another replica has not ended, but that replica is dead or the lease has run out; 6 complete: each entity has its final answer. claim_id, attempt and answers are those of the stored request. Not flushed.';

create function end_attempts_1(org_ids bigint[], key_hashes uuid[], claim_ids bigint[], attempts integer[], new_answers text[])
returns boolean[]
language plpgsql as $$
declare
    item record;
    has_ended boolean[] := array_fill(false, array[cardinality(org_ids)]);
begin
    perform set_config('synchronous_commit', 'off', true);
    -- Ordered by key, like claims, which rules out deadlocks.
    for item in
        select t.* from unnest(org_ids, key_hashes, claim_ids, attempts, new_answers)
                          with ordinality as t (org_id, key_hash, claim_id, attempt, answers, place)
         order by t.org_id, t.key_hash
    loop
        update keyed_request r set incarnation = 0, answers = coalesce(item.answers, r.answers)
         where r.org_id = item.org_id and r.key_hash = item.key_hash and r.first_coupon_id = item.claim_id
           and r.attempt = item.attempt;
        has_ended[item.place] := found;
    end loop;
    return has_ended;
end
$$;
comment on function end_attempts_1(bigint[], uuid[], bigint[], integer[], text[]) is 'Ends attempts and stores their answers (null: the stored answers stay). False: another attempt has taken over, and nothing is stored. Not flushed.';
