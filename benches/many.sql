-- For growth.sh and kinds.sh: copies series 1001 :series times, to the ids from 1000001, and the organisation :organisations times, to
-- the ids from 1001, each with a store, a till and series 1001. The tills have the demo's password, hashed with the cheapest parameters
-- of argon2id: checking a thousand normal hashes takes a minute.
insert into series
select (jsonb_populate_record(s, jsonb_build_object('series_id', 1000000 + i))).*
  from series s, generate_series(1, :series) i where s.org_id = 1 and s.series_id = 1001;
insert into organisation
select (jsonb_populate_record(o, jsonb_build_object('org_id', 1000 + i, 'name', 'Retail ' || i))).*
  from organisation o, generate_series(1, :organisations) i where o.org_id = 1;
insert into store (org_id, store_id, name)
select 1000 + i, s.store_id, s.name from store s, generate_series(1, :organisations) i where s.org_id = 1 and s.store_id = 10;
insert into till
select (jsonb_populate_record(t, jsonb_build_object('org_id', 1000 + i, 'till_id', 'till.' || i,
           'password_hash', '$argon2id$v=19$m=8,t=1,p=1$YmVuY2htYXJr$rCAOu+296eyr25Scjw3RtFUGF1F1els9PuyjOUxE5qY'))).*
  from till t, generate_series(1, :organisations) i where t.till_id = 'store.server';
insert into till_name select org_id, till_id from till where org_id > 1000;
insert into series
select (jsonb_populate_record(s, jsonb_build_object('org_id', 1000 + i))).*
  from series s, generate_series(1, :organisations) i where s.org_id = 1 and s.series_id = 1001;
insert into series_version
select (jsonb_populate_record(v, jsonb_build_object('org_id', s.org_id, 'series_id', s.series_id))).*
  from series_version v, series s
 where v.org_id = 1 and v.series_id = 1001 and v.version = s.version and (s.org_id > 1000 or s.series_id > 1000000);
analyze;
