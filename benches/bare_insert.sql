\set customer random(1, 1000000000000)
insert into coupon (org_id, series_id, customer_id, ordinal, code, shared_code, expires_on, issued_at, issue_id,
                    till_id, store_id, source, account_id, metadata, request_id)
values (1, 1001, :customer::text, null, upper(substr(md5(random()::text), 1, 16)), false, '2099-12-31', now(),
        gen_random_uuid(), 'pgbench', 10, 'INSTORE', null, null, '1138068f-367f-4c18-b46b-6867c7cf417a');
