-- The row that the service writes, for pgbench: as many customers and codes, spread over the same range of the indexes.
\set customer random(1, 1099511627776)
insert into coupon (org_id, series_id, customer_id, ordinal, code, shared_code, expires_on, issued_at, issue_id,
                    till_id, store_id, source, account_id, metadata, request_uuid)
values (1, 1001, lpad(:customer::text, 13, '0'), null,
        translate(substr(md5(random()::text), 1, 16), '0123456789abcdef', '2468ACEGJMPRTVXZ'), false, '2099-12-31', now(),
        gen_random_uuid(), 'pgbench', 10, 'INSTORE', null, null, '1138068f-367f-4c18-b46b-6867c7cf417a');
