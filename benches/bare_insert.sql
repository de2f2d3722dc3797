-- Inserts the row that the service writes, for pgbench: customers and codes spread over the same range of the indexes, and ids in
-- order. start.sh creates the sequence and sets the origin.
\set customer random(1, 1099511627776)
insert into coupon (org_id, coupon_id, series_id, issued_at, request_uuid, series_version, origin_id, expires_on, customer_id, code,
                    request_id, account_id, metadata)
values (1, nextval('bare_insert_id'), 1001, now(), '1138068f-367f-4c18-b46b-6867c7cf417a', 1, :origin, '2099-12-31',
        lpad(:customer::text, 13, '0'), translate(substr(md5(random()::text), 1, 16), '0123456789abcdef', '2468ACEGJMPRTVXZ'),
        null, null, null);
