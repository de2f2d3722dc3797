-- Rolling upgrades: versions side by side on one schema, the older of them while it is being replaced.
--
-- A migration leaves the version before it working: it adds, and what it no longer needs is taken away by a later one, which
-- then raises this floor in the same transaction. A version starts, and stays ready, on a schema that is ahead of it if the
-- newest migration it knows is not below the floor.
create table schema_floor (
    only_row boolean not null default true,
    version  bigint  not null,              -- of a migration
    constraint schema_floor_pkey primary key (only_row),
    constraint schema_floor_only_row check (only_row)
);
insert into schema_floor (version) values (4);

-- The procedure of 0001, which 0003 replaced.
drop procedure issue_coupons(
    bigint[], bigint[], bigint[], text[], integer[], text[], boolean[], date[], timestamptz[], uuid[],
    boolean[], bigint[], boolean[], text[], bigint[], text[], text[], jsonb[], text[], text, smallint[], text[]);
