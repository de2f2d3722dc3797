//! Rules for the schema as a whole (migrations/README.md), checked in the catalog of Postgres.

use sqlx::{ConnectOptions, Connection};

use crate::support::new_database;

/// Two tables keep names unique across organisations. The audit log belongs to the service as a whole.
const EXCEPT: [&str; 3] = ["till_name", "client_name", "audit_log"];

async fn names(query: &'static str) -> Vec<String> {
    let mut connection = new_database().await.connect().await.unwrap();
    let found = sqlx::query_scalar(query).fetch_all(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    found
}

/// This keeps tenants apart, and allows tables to be distributed by organisation.
#[tokio::test]
async fn every_key_begins_with_the_organisation() {
    let keys = names(
        "select c.relname || ' ' || k.name
           from pg_class c
           join pg_attribute o on o.attrelid = c.oid and o.attname = 'org_id' and not o.attisdropped
          cross join lateral (
                select i.indexrelid::regclass::text as name, i.indkey[0] as first from pg_index i
                 where i.indrelid = c.oid and i.indisunique
                union all
                select f.conname, f.conkey[1] from pg_constraint f where f.conrelid = c.oid and f.contype = 'f') k
          where c.relnamespace = 'public'::regnamespace and c.relkind = 'r' and k.first <> o.attnum",
    )
    .await;
    let violations: Vec<_> = keys.iter().filter(|key| !EXCEPT.iter().any(|table| key.starts_with(table))).collect();
    assert!(violations.is_empty(), "{violations:?}");
    assert_eq!(keys.len(), EXCEPT.len(), "{keys:?}");
}

#[tokio::test]
async fn there_are_no_triggers_but_those_of_foreign_keys() {
    let triggers = names("select tgrelid::regclass || ' ' || tgname from pg_trigger where not tgisinternal").await;
    assert!(triggers.iter().all(|trigger| trigger.contains("foreign")), "{triggers:?}");
}

#[tokio::test]
async fn every_table_column_and_function_has_a_comment() {
    let tables = names(
        "select format('%s.%s', c.relname, a.attname)
           from pg_class c
           join pg_attribute a on a.attrelid = c.oid and a.attnum >= 0 and not a.attisdropped
          where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'v', 'c') and c.relname <> '_sqlx_migrations'
            and col_description(c.oid, a.attnum) is null
         union all
         select c.relname from pg_class c
          where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'v') and c.relname <> '_sqlx_migrations'
            and obj_description(c.oid, 'pg_class') is null
         union all
         select p.proname from pg_proc p
          where p.pronamespace = 'public'::regnamespace and obj_description(p.oid, 'pg_proc') is null",
    )
    .await;
    assert_eq!(tables, [""; 0]);
}

/// Replicas of two versions can run side by side, each calling its own functions.
#[tokio::test]
async fn every_function_has_a_version_in_its_name() {
    let functions = names("select proname::text from pg_proc where pronamespace = 'public'::regnamespace").await;
    assert!(functions.len() > 10);
    let is_versioned = |name: &String| name.rsplit_once('_').is_some_and(|(_, version)| version.parse::<u32>().is_ok());
    let violations: Vec<_> = functions.iter().filter(|name| !is_versioned(name)).collect();
    assert!(violations.is_empty(), "{violations:?}");
}

/// Wider columns come first, so that rows have no padding. Text and arrays come last.
#[tokio::test]
async fn columns_are_ordered_by_alignment() {
    let disordered = names(
        "with columns as (
             select c.relname, a.attname, a.attnum,
                    case when a.attlen = -1 then 0 else case a.attalign when 'd' then 8 when 'i' then 4 when 's' then 2 else 1 end
                    end as alignment,
                    a.attlen
               from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
              where c.relnamespace = 'public'::regnamespace and c.relkind = 'r' and c.relname <> '_sqlx_migrations')
         select format('%s.%s', n.relname, n.attname)
           from columns n join columns p on p.relname = n.relname and p.attnum = n.attnum - 1
          where n.alignment > p.alignment and p.attlen % n.alignment <> 0",
    )
    .await;
    assert_eq!(disordered, [""; 0]);
}
