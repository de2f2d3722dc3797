//! `verify` finds nothing wrong with a service that issues coupons of all kinds while limits go up and down, and it finds and names
//! every damage. Each damage is done to a copy of a clean database.

use coupon_issuer::provisioning;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use coupon_issuer::model::OrgId;
use coupon_issuer::verify::{self, Report};
use serde_json::{Value, json};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions};

use crate::lifecycle::{Running, serve};
use crate::support::{ORG, TestApp, close, empty_database, new_database, outcomes, repeatable_series};

/// When the limits of [`busy`] were last changed, and when coupons were issued after that.
const CHANGED: &str = "2026-11-22T11:30:00Z";
const LATER: &str = "2026-11-22T12:00:00Z";

/// Hashes by `key_hash_1` of the keys of [`busy`]. `verify` names a request by its hash.
const KEY_HASHES: [(&str, &str); 5] = [
    ("fe5b1406-8a91-4456-3a1d-65d43cec280b", "bill-1"),
    ("f122b8a7-6248-f5a6-26fe-ce7372391738", "bill-2"),
    ("9f9fc854-2df1-ebb3-4ea8-23860e96661b", "bill-3"),
    ("36a7cfcb-930d-85be-24bf-910037facd08", "bill-4"),
    ("2f186884-ee17-373d-e8ae-4c7116d7635c", "bill-5"),
];

/// A file for `apply` in which series 1 to 4 have these settings and the others never change.
fn file(settings: [&str; 4]) -> String {
    let fixed = [
        "client_handling_type = \"DISC_CODE_PIN\"",
        "client_handling_type = \"GENERIC\"\ngeneric_code = \"SAME\"",
        "mutual_exclusive_series_ids = [8]",
        "",
        "client_handling_type = \"DISC_CODE_PIN\"\nmax_create = 3",
        "is_multiple_vouchers_per_user_allowed = false\ndo_not_resend_existing_voucher = false",
    ];
    let all: Vec<String> =
        settings.iter().chain(&fixed).zip(1..).map(|(settings, id)| repeatable_series(id, settings)).collect();
    ORG.replace("customer_policy", "natural_key = true\ncustomer_policy") + &all.concat()
}

async fn execute(connect: &PgConnectOptions, sql: &str) {
    let mut connection = connect.connect().await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut connection).await.unwrap();
    close(connection).await;
}

/// Applies a file as if it were this instant, whatever the clock of Postgres says.
async fn apply_at(app: &TestApp, file: &str, instant: &str) {
    execute(&app.connect, "create table earlier as select org_id, series_id, limits_changed_at from series").await;
    provisioning::apply_text(&app.connect, file).await.unwrap();
    let changed = format!(
        "update series s set limits_changed_at = '{instant}' where not exists (
             select from earlier e
              where (e.org_id, e.series_id, e.limits_changed_at) = (s.org_id, s.series_id, s.limits_changed_at));
         drop table earlier"
    );
    execute(&app.connect, &changed).await;
}

async fn keyed(app: &TestApp, key: &str, customer: &str, ids: &[i64]) -> Vec<String> {
    let body = json!({"seriesIds": ids, "customer": {"id": customer}}).to_string();
    let answer = app.post(body).header("Idempotency-Key", key).send().await.unwrap();
    outcomes(&answer.json::<Value>().await.unwrap())
}

/// A service that has issued coupons of all kinds under three sets of limits. The second set is below what was issued under the first.
async fn busy() -> TestApp {
    let [unlimited, capped, once, three] =
        ["", "max_create = 4", "is_multiple_vouchers_per_user_allowed = false", "max_vouchers_per_user = 3"];
    let app = TestApp::start_with(&file([unlimited, capped, once, three]), |_| {}).await;
    execute(&app.connect, "update series set limits_changed_at = '2026-11-22T09:00:00Z'").await;
    let pools = "insert into pool_code (org_id, series_id, code, position)
                 select 1, s, 'GIFT-' || s || '-' || n, n from unnest(array[5, 9]) s, generate_series(1, 20) n;
                 insert into pool_code (org_id, series_id, code, uploaded_code, customer_id)
                 values (1, 5, 'OWN-A', 'Own-a', 'a')";
    execute(&app.connect, pools).await;
    let all: Vec<i64> = (1..=9).collect();
    for customer in ["a", "a", "b", "b", "c"] {
        app.issue(customer, &all).await;
    }
    assert_eq!(app.issue_one("i", 1).await, "issued");
    assert_eq!(keyed(&app, "bill-1", "d", &[1, 5, 5, 2]).await, ["issued", "issued", "issued", "5001"]);
    assert_eq!(keyed(&app, "bill-2", "d", &[5, 3]).await, ["issued", "issued"]);
    assert_eq!(keyed(&app, "bill-4", "d", &[10]).await, ["issued"]);
    assert_eq!(keyed(&app, "bill-5", "d", &[99, 10]).await, ["707", "resent"]);
    let caused =
        json!({"seriesIds": [5, 4], "customer": {"id": "e"}, "metadata": {"sourceType": "BILL", "sourceId": "7"}});
    assert_eq!(outcomes(&app.send(&caused).await.1), ["issued", "issued"]);

    // A cap and a maximum below what was issued, ordinals in a series that had none, and an exclusion between two series of which
    // some customers have both.
    let [numbered, fewer, exclusive, single] = [
        "min_days_between_vouchers = 0\ndo_not_resend_existing_voucher = true\nmax_vouchers_per_user = 9",
        "max_create = 2",
        "mutual_exclusive_series_ids = [1]",
        "max_vouchers_per_user = 1",
    ];
    apply_at(&app, &file([numbered, fewer, exclusive, single]), "2026-11-22T10:30:00Z").await;
    app.clock.set("2026-11-22T11:00:00Z");
    assert_eq!(outcomes(&app.issue("a", &[1, 2, 3, 4]).await), ["709", "5001", "709", "730"]);
    assert_eq!(outcomes(&app.issue("f", &[1, 2, 3, 4]).await), ["issued", "5001", "709", "issued"]);
    assert_eq!(app.issue_one("i", 1).await, "issued");

    apply_at(&app, &file(["", "max_create = 6", "max_vouchers_per_user = 9", "max_create = 99"]), CHANGED).await;
    app.clock.set(LATER);
    assert_eq!(outcomes(&app.issue("a", &[1, 2, 3, 4]).await), ["issued"; 4]);
    assert_eq!(keyed(&app, "bill-1", "d", &[1, 5, 5, 2]).await, ["issued"; 4]);
    assert_eq!(keyed(&app, "bill-3", "g", &[2, 5]).await, ["5001", "issued"]);
    app
}

/// Copies a database, which must have no connections.
async fn copy(of: &PgConnectOptions) -> PgConnectOptions {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let original = of.get_database().unwrap();
    let name = format!("{original}_copy_{}", NEXT.fetch_add(1, Ordering::Relaxed));
    execute(&of.clone().database("postgres"), &format!("create database {name} template {original}")).await;
    of.clone().database(&name)
}

async fn report(connect: &PgConnectOptions, org: Option<i64>) -> Report {
    verify::run(connect, org.map(OrgId)).await.unwrap()
}

/// The lines of a report below its table.
fn lines_below_table(report: &Report) -> Vec<String> {
    let mut text = report.to_string();
    for (hash, key) in KEY_HASHES {
        text = text.replace(hash, key);
    }
    text.lines()
        .skip(1 + report.findings.len())
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .map(str::to_owned)
        .collect()
}

/// Does each damage to a copy of the database of [`busy`]. `verify` must report these lines; without lines, it must find nothing.
async fn assert_found(holds: &str, damages: &[(&str, &[&str])]) {
    let app = busy().await;
    let connect = app.connect.clone();
    app.pool.close().await;
    app.stop().await;
    assert_eq!(lines_below_table(&report(&connect, None).await), ["nothing is wrong"]);
    for (damage, lines) in damages {
        let other = copy(&connect).await;
        execute(&other, damage).await;
        let mut expected = vec!["nothing is wrong".to_owned()];
        if !lines.is_empty() {
            let rows = if lines.len() == 1 { "row" } else { "rows" };
            expected = vec![format!("{holds}, but:")];
            expected.extend(lines.iter().map(|line| (*line).to_owned()));
            expected.push(format!("drift: {} {rows}", lines.len()));
        }
        assert_eq!(lines_below_table(&report(&other, None).await), expected, "{damage}");
        let name = other.get_database().unwrap();
        execute(&connect, &format!("drop database {name} with (force)")).await;
    }
}

#[tokio::test]
async fn a_busy_service_is_clean() {
    let app = busy().await;
    let report = app.verify().await;
    assert_eq!(lines_below_table(&report), ["nothing is wrong"]);
    let checked: Vec<i64> = report.findings.iter().map(|finding| finding.checked).collect();
    assert!(checked.iter().all(|count| *count > 0), "{report}");
    assert_eq!(app.count("select from coupon").await, usize::try_from(checked[4]).unwrap());
}

#[tokio::test]
async fn a_series_beyond_its_cap_is_found() {
    let found = "org 1 series 2: 6 issued; must be: at most 5";
    assert_found(
        "no series has issued more than its cap",
        &[
            ("update series set max_create = 5 where series_id = 2", &[found]),
            ("update series set max_create = 5, limits_changed_at = '-infinity' where series_id = 2", &[found]),
            // Revoked coupons count as issued.
            ("update series set max_create = 5 where series_id = 2; update coupon set revoked_at = now()", &[found]),
            // The cap was lowered after the coupons were issued.
            ("update series set max_create = 5, limits_changed_at = '2026-11-22T12:00:00Z' where series_id = 2", &[]),
        ],
    )
    .await;
}

/// Coupon ids above all that the service has leased.
const FREE_IDS: &str = "update coupon_id_lease set next_id = 9000000;";

#[tokio::test]
async fn a_coupon_without_a_till_or_a_client_is_found() {
    let changed = |change: &str| {
        format!("{FREE_IDS} update coupon set coupon_id = 8000000, {change} where series_id = 1 and customer_id = 'c'")
    };
    let empty_origin = "insert into origin values (1, 10, 77, 'INSTORE', null, null);";
    assert_found(
        "a coupon names the till or the client that issued it",
        &[
            (
                &changed("origin_id = 77"),
                &["org 1 series 1 customer c coupon 8000000: no origin 77; must be: its origin"],
            ),
            (
                &format!("{empty_origin} {}", changed("origin_id = 77")),
                &["org 1 series 1 customer c coupon 8000000: neither a till nor a client; must be: a till or a client"],
            ),
            ("update origin set till_id = null, client_key = 'crm'", &[]),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_missing_or_wrong_version_of_a_series_is_found() {
    let settings =
        |id: i64| format!("org 1 series {id} version 1: other settings than those of the series; must be: the same");
    let all: Vec<String> = (1..=10).map(settings).collect();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    assert_found(
        "the series snapshot of each coupon is stored",
        &[
            (
                &format!(
                    "{FREE_IDS} update coupon set coupon_id = 8000000, series_version = 7
                                 where series_id = 1 and customer_id = 'c'"
                ),
                &["org 1 series 1 customer c coupon 8000000: no version 7 of the series; \
                   must be: the version that was shown"],
            ),
            (
                "update series_version set series_id = 99 where series_id = 8; update series set version = 0 where series_id = 8",
                &[
                    "org 1 series 8: version 0; must be: one that exists",
                    "org 1 series 99 version 1: no such series; must be: its series",
                ],
            ),
            ("update series set version = 5 where series_id = 8", &["org 1 series 8: version 5; must be: 1, the newest"]),
            ("update series_version set discount_code = 'X' where series_id = 8", &[&settings(8)]),
            ("update series set info = 'By hand' where series_id = 8", &[&settings(8)]),
            ("update organisation set time_zone = 'Asia/Kolkata'", &all),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_duplicate_or_unleased_coupon_id_is_found_without_its_index() {
    let [c, f] = ["c", "f"].map(|customer| {
        format!("org 1 series 1 customer {customer} coupon 8000000: 2 coupons have this id; must be: one")
    });
    assert_found(
        "each coupon has a leased id of its own",
        &[
            (
                &format!(
                    "{FREE_IDS} alter table coupon drop constraint coupon_pkey;
                     update coupon set coupon_id = 8000000 where series_id = 1 and customer_id in ('c', 'f')"
                ),
                &[&c, &f],
            ),
            (
                &format!("{FREE_IDS} update coupon set coupon_id = 9000000 where series_id = 1 and customer_id = 'c'"),
                &["org 1 series 1 customer c coupon 9000000: an id that was never leased; \
                   must be: a leased one, from 1 to 8999999"],
            ),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_name_that_is_not_reserved_for_its_organisation_is_found() {
    assert_found(
        "the name of each till and client is reserved",
        &[
            (
                "delete from till_name where till_id = 'office.desk'; delete from client_name where client_key = 'crm'",
                &[
                    "org 1 client crm: its key is not in client_name; must be: both or neither",
                    "org 1 till office.desk: its name is not in till_name; must be: both or neither",
                ],
            ),
            (
                "update till_name set org_id = 2 where till_id = 'office.desk'; insert into client_name values (1, 'ghost')",
                &[
                    "org 1 client ghost: no such client, and its key in client_name; must be: both or neither",
                    "org 1 till office.desk: its name is not in till_name; must be: both or neither",
                    "org 2 till office.desk: no such till, and its name in till_name; must be: both or neither",
                ],
            ),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_customer_beyond_the_maximum_is_found() {
    let [a, b] =
        ["a", "b"].map(|customer| format!("org 1 series 6 customer {customer}: 2 received; must be: at most 1"));
    assert_found(
        "no customer has received more of a series than the maximum",
        &[
            (
                "update series set max_vouchers_per_user = 2 where series_id = 4",
                &["org 1 series 4 customer a: 3 received; must be: at most 2"],
            ),
            ("update series set is_multiple_vouchers_per_user_allowed = false where series_id = 6", &[&a, &b]),
            (
                "update series set is_multiple_vouchers_per_user_allowed = false, max_vouchers_per_user = 0 where series_id = 9;
                 delete from coupon where series_id = 9 and customer_id <> 'b';
                 delete from series_counter where series_id = 9 and issued > 1",
                &["org 1 series 9 customer b: 1 received; must be: at most 0"],
            ),
            // One of the three was revoked.
            (
                "update series set max_vouchers_per_user = 2 where series_id = 4;
                 update coupon set revoked_at = now() where series_id = 4 and customer_id = 'a' and ordinal = 1",
                &[],
            ),
            // The customer received the coupons before the maximum was set.
            (
                "update series set max_vouchers_per_user = 1 where series_id = 4;
                 update coupon set issued_at = '2026-11-22T11:29:00Z' where series_id = 4 and customer_id = 'a'",
                &[],
            ),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_missing_or_duplicate_ordinal_is_found() {
    assert_found(
        "a customer's coupons of a series are numbered without a gap",
        &[
            (
                "delete from coupon where series_id = 3 and customer_id = 'a' and ordinal = 1",
                &["org 1 series 3 customer a: numbers 1 (1 different, 2 to 2); must be: each number once, from 1 to 1"],
            ),
            (
                "drop index coupon_ordinal; update coupon set ordinal = 1 where series_id = 4 and customer_id = 'a'",
                &["org 1 series 4 customer a: numbers 3 (1 different, 1 to 1); must be: each number once, from 1 to 3"],
            ),
            (
                "update coupon set ordinal = 0 where series_id = 3 and customer_id = 'b'",
                &["org 1 series 3 customer b: numbers 1 (1 different, 0 to 0); must be: each number once, from 1 to 1"],
            ),
            // A coupon without an ordinal does not make up for a missing one.
            (
                "update coupon set ordinal = 2 where series_id = 1 and customer_id = 'i' and ordinal is not null",
                &["org 1 series 1 customer i: numbers 1 (1 different, 2 to 2); must be: each number once, from 1 to 1"],
            ),
            // The only coupon is gone, so no ordinal is missing.
            ("delete from coupon where series_id = 1 and customer_id = 'f'", &[]),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_wrong_counter_of_a_series_is_found() {
    assert_found(
        "the counter of a capped series is the number of its coupons",
        &[
            (
                "insert into series_counter values (1, 2, 8)",
                &["org 1 series 2: a counter at 8; must be: a counter at 6, the number of coupons"],
            ),
            (
                "delete from coupon where series_id = 9 and customer_id = 'b'",
                &["org 1 series 9: a counter at 3; must be: a counter at 2, the number of coupons"],
            ),
            (
                "delete from series_counter where series_id = 9",
                &["org 1 series 9: no counter; must be: a counter at 3, the number of coupons"],
            ),
            (
                "insert into series_counter values (1, 6, 5), (1, 99, 1)",
                &[
                    "org 1 series 6: a counter at 5; must be: no counter, since the series has no cap",
                    "org 1 series 99: a counter at 1; must be: no counter, since the series has no cap",
                ],
            ),
            // Revoked coupons count as issued.
            ("update coupon set revoked_at = now()", &[]),
        ],
    )
    .await;
}

/// Turns a series into one with a generic code. Its coupons keep the snapshot of the series that they showed.
fn generic(series_id: i64, code: &str) -> String {
    format!(
        "insert into series_version
         select org_id, series_id, discount_value, discount_upto, version + 1, description, info, discount_code, discount_type,
                '{code}', time_zone
           from series_version where series_id = {series_id};
         update series set version = version + 1, client_handling_type = 'GENERIC', generic_code = '{code}'
          where series_id = {series_id};"
    )
}

#[tokio::test]
async fn a_code_with_two_meanings_is_found_without_its_index() {
    let twice = "code GIFT…: 2 coupons have this code; must be: one";
    let (first, second) = (format!("org 1 series 1 customer f {twice}"), format!("org 1 series 5 customer b {twice}"));
    let another = "code OW…: 2 coupons have this code; must be: one";
    assert_found(
        "a code belongs to one coupon or to one series",
        &[
            (
                "drop index coupon_code;
                 update coupon set code = 'GIFT-5-2' where series_id = 1 and customer_id = 'f'",
                &[&first, &second],
            ),
            // The index exists, but lacks the row.
            (
                "update pg_index set indisready = false, indisvalid = false where indexrelid = 'coupon_code'::regclass;
                 update coupon set code = 'OWN-A' where series_id = 3 and customer_id = 'b';
                 update pg_index set indisready = true, indisvalid = true where indexrelid = 'coupon_code'::regclass",
                &[&format!("org 1 series 3 customer b {another}"), &format!("org 1 series 5 customer a {another}")],
            ),
            // The index distinguishes upper and lower case.
            (
                "update coupon set code = 'GIFT-5-2x' where code = 'GIFT-5-2';
                 update coupon set code = 'gift-5-2X' where series_id = 1 and customer_id = 'f'",
                &[
                    "org 1 series 1 customer f code gift…: 2 coupons have this code; must be: one",
                    "org 1 series 1 customer f code gift…: not in upper case; must be: in upper case",
                    "org 1 series 5 customer b code GIFT…: 2 coupons have this code; must be: one",
                    "org 1 series 5 customer b code GIFT…: not in upper case; must be: in upper case",
                ],
            ),
            (
                &generic(8, "Gift-5-2"),
                &[
                    "org 1 series 5 customer b code GIFT…: the code of 1 coupons and the generic code of 1 series; must be: one",
                    "org 1 series 8 code GIFT…: the code of 1 coupons and the generic code of 1 series; must be: one",
                ],
            ),
            (
                &generic(8, "Same"),
                &[
                    "org 1 series 6 code SA…: the code of 0 coupons and the generic code of 2 series; must be: one",
                    "org 1 series 8 code SA…: the code of 0 coupons and the generic code of 2 series; must be: one",
                ],
            ),
            (&generic(6, "same"), &[]),
            (
                "update coupon set code = null where series_id = 1 and customer_id = 'f'",
                &["org 1 series 1 customer f: no code; must be: a code"],
            ),
            (
                "update coupon set code = 'BESIDE' where series_id = 6 and customer_id = 'c'",
                &["org 1 series 6 customer c code BES…: a code of its own, beside the generic one; must be: none"],
            ),
            (
                "update coupon set uploaded_code = 'Gift-5-3' where code = 'GIFT-5-2'",
                &["org 1 series 5 customer b code GIFT…: shown as Gift…; must be: the code in another case"],
            ),
            (
                "update coupon set uploaded_code = 'GIFT-5-2' where code = 'GIFT-5-2'",
                &["org 1 series 5 customer b code GIFT…: shown as GIFT…; must be: the code in another case"],
            ),
            ("update coupon set uploaded_code = 'Gift-5-2' where code = 'GIFT-5-2'", &[]),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_wrong_code_in_a_pool_is_found() {
    let pooled =
        |code: &str| format!("insert into pool_code (org_id, series_id, code, position) values (1, 9, '{code}', 99)");
    assert_found(
        "an uploaded code is in its pool or was given out once",
        &[
            (
                &pooled("GIFT-5-1"),
                &["org 1 series 9 code GIFT…: in the pool, and a coupon of series 5; must be: one of the two"],
            ),
            // The code was drawn for another series.
            (
                &format!("update coupon set code = 'DRAWN-1' where series_id = 1 and customer_id = 'f'; {}", pooled("DRAWN-1")),
                &["org 1 series 9 code DRA…: in the pool, and a coupon of series 1; must be: one of the two"],
            ),
            (
                &pooled("SAME"),
                &["org 1 series 9 code SA…: in the pool, and the generic code of series 6; must be: one of the two"],
            ),
            (
                &pooled("gift-5-1"),
                &[
                    "org 1 series 9 code gift…: in the pool, and a coupon of series 5; must be: one of the two",
                    "org 1 series 9 code gift…: not in upper case; must be: in upper case",
                ],
            ),
            (
                "update pool_code set uploaded_code = 'Gift-9-18' where code = 'GIFT-9-19'",
                &["org 1 series 9 code GIFT…: shown as Gift…; must be: the code in another case"],
            ),
            ("update pool_code set uploaded_code = 'Gift-9-19' where code = 'GIFT-9-19'", &[]),
            (
                "alter table pool_code drop constraint pool_code_pkey;
                 insert into pool_code (org_id, series_id, code, customer_id) values (1, 9, 'GIFT-5-20', 'a')",
                &[
                    "org 1 series 5 code GIFT…: uploaded twice; must be: once",
                    "org 1 series 9 customer a code GIFT…: uploaded twice; must be: once",
                ],
            ),
            (
                "insert into pool_code (org_id, series_id, code, position) values (1, 9, 'OLD-1', 3), (1, 9, 'OLD-2', 21)",
                &["org 1 series 9 code OL…: position 3; must be: above 3, where the search for codes begins"],
            ),
            (
                "insert into pool_code (org_id, series_id, code, position) values (1, 6, 'OLD-1', 0)",
                &["org 1 series 6 code OL…: position 0; must be: above 0, where the search for codes begins"],
            ),
            (
                "alter table pool_code drop constraint pool_code_position;
                 update pool_code set position = 20 where code = 'GIFT-9-19'",
                &["org 1 series 9 code GIFT…: position 20, with another code; must be: a position of its own"; 2],
            ),
        ],
    )
    .await;
}

const KEYED_REQUESTS_HOLD: &str = "a keyed request lists its coupons and can be completed";

#[tokio::test]
async fn a_keyed_request_that_cannot_be_answered_is_found() {
    let answers = |key: &str, answers: &str| {
        format!("update keyed_request set answers = {answers} where key_hash = key_hash_1('{key}')")
    };
    let coupon_of = |series: i64, customer: &str| {
        format!("(select min(coupon_id) from coupon where series_id = {series} and customer_id = '{customer}')")
    };
    assert_found(
        KEYED_REQUESTS_HOLD,
        &[
            // This request only becomes open again.
            ("delete from coupon where series_id = 5 and customer_id = 'g'", &[]),
            (
                &answers("bill-2", "'5 4'"),
                &["org 1 series 3 customer d request bill-2 entity 1: a coupon of series 3; must be: one of series 4"],
            ),
            (
                "update coupon set customer_id = 'x' where series_id = 3 and customer_id = 'd'",
                &["org 1 request bill-2: coupons of 2 customers; must be: of one"],
            ),
            (
                "delete from coupon where series_id = 10 and customer_id = 'd';
                 update keyed_request set answers = '99!unknown_series 10=8000000' where key_hash = key_hash_1('bill-5')",
                &["org 1 request bill-5 entity 1: no coupon 8000000; must be: the resent coupon"],
            ),
            (
                &answers("bill-5", &format!("'99!unknown_series 10=' || {}", coupon_of(6, "a"))),
                &["org 1 series 6 customer a request bill-5 entity 1: a resent coupon of series 6; must be: one of series 10"],
            ),
            (
                &answers("bill-5", &format!("'99!unknown_series 10=' || {} || '@3*1'", coupon_of(10, "d"))),
                &["org 1 series 10 customer d request bill-5 entity 1: no version 3 of the series; \
                   must be: the version that was shown"],
            ),
            (
                &answers("bill-2", &format!("'5 3=' || {}", coupon_of(3, "d"))),
                &["org 1 series 3 customer d request bill-2 entity 1: a new coupon and a resent one; \
                   must be: one of the two"],
            ),
            (
                &answers("bill-5", &format!("'6=' || {} || ' 6=' || {}", coupon_of(6, "a"), coupon_of(6, "b"))),
                &["org 1 request bill-5: coupons of 2 customers; must be: of one"],
            ),
            (
                "update keyed_request set incarnation = 7, received_at = '2999-01-01T00:00:00Z', attempt = 3840",
                &[
                    "org 1 request bill-5: an attempt that began at 2999-01-01 00:01:00+00; must be: an instant in the past",
                    "org 1 request bill-4: an attempt that began at 2999-01-01 00:01:00+00; must be: an instant in the past",
                    "org 1 request bill-3: an attempt that began at 2999-01-01 00:01:00+00; must be: an instant in the past",
                    "org 1 request bill-2: an attempt that began at 2999-01-01 00:01:00+00; must be: an instant in the past",
                    "org 1 request bill-1: an attempt that began at 2999-01-01 00:01:00+00; must be: an instant in the past",
                ],
            ),
            ("update keyed_request set incarnation = 7, attempt = 115200", &[]),
            ("update keyed_request set incarnation = 0, received_at = '2999-01-01T00:00:00Z'", &[]),
        ],
    )
    .await;
}

/// Adds requests without coupons, with these first coupon ids and these answers.
fn requests(all: &[(i64, &str)]) -> String {
    let row = |(number, (first_id, answers)): (usize, &(i64, &str))| {
        format!("(1, {first_id}, 5, now(), 0, 0, '00000000-0000-0000-0000-{number:012}', '{answers}')")
    };
    let rows: Vec<String> = all.iter().enumerate().map(row).collect();
    format!("{FREE_IDS} insert into keyed_request values {}", rows.join(", "))
}

#[tokio::test]
async fn an_unreadable_answer_of_a_keyed_request_is_found() {
    let request = "org 1 request 00000000-0000-0000-0000-0000000000";
    let malformed = [
        "x",
        "1=",
        "1=x",
        "1=2@",
        "1=2@x",
        "1=2*",
        "1=2*1@1",
        "1@2",
        "1*2",
        "1!",
        "1!Gap",
        "1!cap_reached!gap",
        "1!gap@2026-12-01",
        "1!cap_reached@2026-12-01T00:00:00Z",
        "1!gap@2026-12-01T00:00:00",
        "1=2!gap",
        "1=99999999999999999999",
        "99999999999999999999",
        "1,2",
    ];
    let unreadable: Vec<(i64, &str)> = (8_000_000..).zip(malformed).collect();
    let expected: Vec<String> = (0..malformed.len())
        .map(|number| format!("{request}{number:02} entity 0: an answer of unknown form; must be: a known form"))
        .collect();
    let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
    assert_found(
        KEYED_REQUESTS_HOLD,
        &[
            (&requests(&unreadable), &expected),
            (
                &requests(&[(8_000_000, "1  1"), (8_000_010, "1 "), (8_000_020, "")]),
                &[
                    &format!("{request}00 entity 1: an answer of unknown form; must be: a known form"),
                    &format!("{request}01 entity 1: an answer of unknown form; must be: a known form"),
                    &format!("{request}02: no entities; must be: one or more"),
                ],
            ),
            (
                &requests(&[
                    (8_000_000, "1"),
                    (8_000_010, "1 99!unknown_series -5!unknown_series 9223372036854775807!unknown_series 1 1"),
                    (8_000_020, "3!gap@2026-12-01T00:00:00+05:30 3!gap@2026-12-01T00:00:00Z 3!gap 4!cap_reached"),
                ]),
                &[],
            ),
        ],
    )
    .await;
}

#[tokio::test]
async fn coupon_ids_reserved_by_two_requests_or_never_leased_are_found() {
    let request = "org 1 request 00000000-0000-0000-0000-0000000000";
    let leased = "must be: leased ids, from 1 to 8999999";
    assert_found(
        KEYED_REQUESTS_HOLD,
        &[
            (
                &requests(&[(8_000_000, "1 1 1 1 1"), (8_000_004, "1"), (8_000_002, "1 1"), (8_000_005, "1")]),
                &[
                    &format!(
                        "{request}01: coupon ids from 8000004 on; must be: from 8000005 on, after the ids of another request"
                    ),
                    &format!(
                        "{request}02: coupon ids from 8000002 on; must be: from 8000005 on, after the ids of another request"
                    ),
                ],
            ),
            (
                &requests(&[(0, "1 1"), (8_999_999, "1 1"), (8_999_998, "1"), (i64::MAX, "1 1"), (i64::MIN, "1")]),
                &[
                    &format!("{request}00: coupon ids 0 to 1; {leased}"),
                    &format!("{request}01: coupon ids 8999999 to 9000000; {leased}"),
                    &format!("{request}03: coupon ids 9223372036854775807 to 9223372036854775808; {leased}"),
                    &format!("{request}04: coupon ids -9223372036854775808 to -9223372036854775808; {leased}"),
                ],
            ),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_natural_key_of_a_wrong_coupon_is_found() {
    // `verify` names this key.
    let named = "update natural_issuance set natural_key = '00000000-0000-0000-0000-000000000007' where series_id = 5;";
    let name = "natural key 00000000-0000-0000-0000-000000000007";
    assert_found(
        KEYED_REQUESTS_HOLD,
        &[
            (
                &format!("{named} update natural_issuance set coupon_id = 8000000 where series_id = 5"),
                &[&format!("org 1 series 5 {name}: no coupon 8000000; must be: the coupon that is recorded")],
            ),
            (
                &format!("{named} update natural_issuance set series_id = 77 where series_id = 5"),
                &[&format!("org 1 series 77 customer e {name}: a coupon of series 5; must be: one of series 77")],
            ),
            (
                &format!("{named} update natural_issuance set issued_at = '2026-11-22T09:00:00Z' where series_id = 5"),
                &[&format!(
                    "org 1 series 5 customer e {name}: issued at 2026-11-22 09:00:00+00; must be: \
                     at 2026-11-22 10:00:00+00, as its coupon"
                )],
            ),
            (
                &format!(
                    "{named} insert into natural_issuance
                             select org_id, series_id, coupon_id, issued_at, '00000000-0000-0000-0000-000000000008'
                               from natural_issuance where series_id = 5"
                ),
                &[
                    &format!("org 1 series 5 customer e {name}: its coupon is recorded twice; must be: once"),
                    "org 1 series 5 customer e natural key 00000000-0000-0000-0000-000000000008: \
                     its coupon is recorded twice; must be: once",
                ],
            ),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_customer_with_coupons_of_exclusive_series_is_found() {
    assert_found(
        "no customer has coupons of mutually exclusive series",
        &[
            (
                "update series set mutual_exclusive_series_ids = '{6}' where series_id = 9",
                &[
                    "org 1 series 6 customer a: also a coupon of series 9; must be: coupons of only one of the two",
                    "org 1 series 6 customer b: also a coupon of series 9; must be: coupons of only one of the two",
                ],
            ),
            (
                "update coupon set series_id = 8 where series_id = 5 and customer_id = 'a'",
                &["org 1 series 7 customer a: also a coupon of series 8; must be: coupons of only one of the two"],
            ),
            // One of the two was revoked.
            (
                "update series set mutual_exclusive_series_ids = '{6}' where series_id = 9;
                 update coupon set revoked_at = now() where series_id = 6",
                &[],
            ),
            // The exclusion was declared when they had both.
            (
                "update series set mutual_exclusive_series_ids = '{6}' where series_id = 9;
                 update series set limits_changed_at = '2026-11-22T10:30:00Z' where series_id = 6",
                &[],
            ),
        ],
    )
    .await;
}

const ALL_DAMAGES: &str = "
    update series set max_create = 5 where series_id = 2;
    update series set max_vouchers_per_user = 2 where series_id = 4;
    delete from coupon where series_id = 3 and customer_id = 'a' and ordinal = 1;
    insert into series_counter select 1, n, 1 from generate_series(101, 125) n;
    drop index coupon_code;
    update coupon set code = 'GIFT-5-2' where series_id = 1 and customer_id = 'f';
    insert into pool_code (org_id, series_id, code, position) values (1, 9, 'GIFT-5-1', 99);
    update keyed_request set answers = '5 4' where key_hash = key_hash_1('bill-2');
    update series set mutual_exclusive_series_ids = '{6}' where series_id = 9;
    update coupon set origin_id = 77, series_version = 7 where series_id = 1 and customer_id = 'f';
    update coupon set coupon_id = -1 where series_id = 1 and customer_id = 'c';
    delete from till_name";

#[tokio::test]
async fn verify_of_one_organisation_reports_no_other() {
    let app = busy().await;
    let other = "[[orgs]]\nid = 2\nname = \"Other\"\n";
    provisioning::apply_text(&app.connect, &format!("{other}{}", repeatable_series(2, "max_create = 5")))
        .await
        .unwrap();
    execute(&app.connect, ALL_DAMAGES).await;
    let (all, one) = (report(&app.connect, None).await, report(&app.connect, Some(1)).await);
    assert!(one.findings.iter().all(|finding| finding.wrong > 0), "{one}");
    assert_eq!(lines_below_table(&one), lines_below_table(&all));
    assert_eq!(lines_below_table(&report(&app.connect, Some(2)).await), ["nothing is wrong"]);
    let unknown = verify::run(&app.connect, Some(OrgId(3))).await.unwrap_err();
    assert_eq!(unknown.to_string(), "--org 3: there is no such organisation");
}

#[tokio::test]
async fn verify_names_at_most_twenty_rows_and_no_whole_code() {
    let app = busy().await;
    execute(&app.connect, ALL_DAMAGES).await;
    let report = report(&app.connect, None).await;
    let counters = &report.findings[3];
    assert_eq!((counters.wrong, counters.offences.len()), (25, 20));
    assert!(lines_below_table(&report).contains(&"and 5 more".to_owned()), "{report}");
    assert!(!report.to_string().contains("GIFT-"), "{report}");
}

/// Exit code, standard output and standard error.
fn run(url: &str, arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_coupon-issuer"));
    let done = command.arg("verify").args(arguments).env("DATABASE_URL", url).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (done.status.code().unwrap(), text(done.stdout), text(done.stderr))
}

#[tokio::test]
async fn the_exit_code_is_1_if_anything_is_wrong() {
    let app = busy().await;
    let url = app.connect.to_url_lossy().to_string();
    let (code, printed, error) = run(&url, &["--org", "1"]);
    assert_eq!((code, error.as_str(), printed.lines().last()), (0, "", Some("nothing is wrong")));

    execute(&app.connect, "update series set max_create = 5 where series_id = 2").await;
    let (code, printed, error) = run(&url, &[]);
    assert_eq!((code, printed.lines().last()), (1, Some("drift: 1 row")));
    assert_eq!(error, "coupon-issuer: some invariants are violated\n");

    let unknown = "coupon-issuer: --org 9: there is no such organisation\n";
    assert_eq!(run(&url, &["--org", "9"]), (1, String::new(), unknown.to_owned()));
    let (code, printed, error) = run(empty_database().await.to_url_lossy().as_str(), &[]);
    assert!(code == 1 && printed.is_empty() && error.contains("coupon-issuer migrate"), "{printed}{error}");
    let (code, printed, error) = run("postgres://nobody@127.0.0.1:1/none", &[]);
    assert!(code == 1 && printed.is_empty() && error.starts_with("coupon-issuer: "), "{printed}{error}");
}

/// Callers get coupons of all kinds while limits go up and down, by the real clocks of the service and of Postgres.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_service_is_clean_at_every_moment() {
    let database = new_database().await;
    let file = |settings| file(settings).replace("valid_till_date = \"2027", "valid_till_date = \"2999");
    let lower =
        file(["", "max_create = 20", "is_multiple_vouchers_per_user_allowed = false", "max_vouchers_per_user = 2"]);
    let higher = file([
        "max_create = 900",
        "max_create = 900",
        "mutual_exclusive_series_ids = [1]",
        "max_vouchers_per_user = 9",
    ]);
    provisioning::apply_text(&database, &higher).await.unwrap();
    let pool = "insert into pool_code (org_id, series_id, code, position) select 1, 5, 'P-' || n, n from generate_series(1, 5000) n";
    execute(&database, pool).await;
    let service = std::sync::Arc::new(Running::start(&mut serve(&database)));
    let callers: Vec<_> = (0..6)
        .map(|caller| {
            let service = std::sync::Arc::clone(&service);
            tokio::spawn(async move {
                for round in 0..30 {
                    let cause = json!({"sourceType": "BILL", "sourceId": format!("{caller} {}", round / 3)});
                    let customer = format!("c{}", round % 5);
                    let body =
                        json!({"seriesIds": [1, 2, 3, 4, 5, 6, 7, 8], "customer": {"id": customer}, "metadata": cause});
                    service.post(body).await.unwrap();
                }
            })
        })
        .collect();
    let mut runs = 0;
    while runs < 4 || callers.iter().any(|caller| !caller.is_finished()) {
        provisioning::apply_text(&database, if runs % 2 == 0 { &lower } else { &higher }).await.unwrap();
        let report = verify::run(&database, None).await.unwrap();
        assert_eq!(report.wrong(), 0, "{report}");
        runs += 1;
    }
    for caller in callers {
        caller.await.unwrap();
    }
    let report = verify::run(&database, None).await.unwrap();
    assert!(report.wrong() == 0 && report.findings.iter().all(|finding| finding.checked > 1), "{report}");
}
