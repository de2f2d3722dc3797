//! The audit: a service that has been busy in every way, its limits lowered and raised, is found clean, also while it is at
//! work; and every damage is found and named. Each damage is done to a copy of a database that was clean.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use coupon_issuer::app;
use coupon_issuer::audit::{self, Report};
use coupon_issuer::model::OrgId;
use serde_json::{Value, json};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions};

use crate::lifecycle::{Running, serve};
use crate::support::{ORG, TestApp, close, empty_database, new_database, outcomes, series};

/// When the limits of [`busy`] were last changed, and when coupons were issued after that.
const CHANGED: &str = "2026-11-22T11:30:00Z";
const LATER: &str = "2026-11-22T12:00:00Z";

/// Limits that can be changed: of series 1, 2, 3 and 4.
fn file(settings: [&str; 4]) -> String {
    let fixed = [
        "client_handling_type = \"DISC_CODE_PIN\"",
        "client_handling_type = \"GENERIC\"\ngeneric_code = \"SAME\"",
        "mutual_exclusive_series_ids = [8]",
        "",
        "client_handling_type = \"DISC_CODE_PIN\"\nmax_create = 3",
    ];
    let all: Vec<String> = settings.iter().chain(&fixed).zip(1..).map(|(settings, id)| series(id, settings)).collect();
    ORG.replace("customer_policy", "natural_key = true\ncustomer_policy") + &all.concat()
}

async fn execute(connect: &PgConnectOptions, sql: &str) {
    let mut connection = connect.connect().await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut connection).await.unwrap();
    close(connection).await;
}

/// Applies a file as if it were this instant, whatever the time is where Postgres runs.
async fn apply_at(app: &TestApp, file: &str, instant: &str) {
    execute(&app.connect, "create table earlier as table series_limits").await;
    app::apply_text(&app.connect, file).await.unwrap();
    let changed = format!(
        "update series_limits l set changed_at = '{instant}' where not exists (
             select from earlier e where (e.org_id, e.series_id, e.changed_at) = (l.org_id, l.series_id, l.changed_at));
         drop table earlier"
    );
    execute(&app.connect, &changed).await;
}

async fn keyed(app: &TestApp, key: &str, customer: &str, ids: &[i64]) -> Vec<String> {
    let body = json!({"seriesIds": ids, "customer": {"id": customer}}).to_string();
    let answer = app.post(body).header("Idempotency-Key", key).send().await.unwrap();
    outcomes(&answer.json::<Value>().await.unwrap())
}

/// A service that has issued coupons of all kinds, under three sets of limits: the second one is below what the first let pass.
async fn busy() -> TestApp {
    let [open, capped, once, most] =
        ["", "max_create = 4", "is_multiple_vouchers_per_user_allowed = false", "max_vouchers_per_user = 3"];
    let app = TestApp::start_with(&file([open, capped, once, most]), |_| {}).await;
    execute(&app.connect, "update series_limits set changed_at = '2026-11-22T09:00:00Z'").await;
    let pools = "insert into pool_code (org_id, series_id, code, place)
                 select 1, s, 'GIFT-' || s || '-' || n, n from unnest(array[5, 9]) s, generate_series(1, 20) n";
    execute(&app.connect, pools).await;
    execute(&app.connect, "insert into pool_code (org_id, series_id, code, customer_id) values (1, 5, 'OWN-A', 'a')")
        .await;
    let all: Vec<i64> = (1..=9).collect();
    for customer in ["a", "a", "b", "b", "c"] {
        app.issue(customer, &all).await;
    }
    assert_eq!(keyed(&app, "bill-1", "d", &[1, 5, 5, 2]).await, ["issued", "issued", "issued", "5001"]);
    assert_eq!(keyed(&app, "bill-2", "d", &[5, 3]).await, ["issued", "issued"]);
    let caused =
        json!({"seriesIds": [5, 4], "customer": {"id": "e"}, "metadata": {"sourceType": "BILL", "sourceId": "7"}});
    assert_eq!(outcomes(&app.send(&caused).await.1), ["issued", "issued"]);

    // Less than was issued, numbers where there were none, and an exclusion between what some have both.
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

    apply_at(&app, &file(["", "max_create = 6", "max_vouchers_per_user = 9", "max_create = 99"]), CHANGED).await;
    app.clock.set(LATER);
    assert_eq!(outcomes(&app.issue("a", &[1, 2, 3, 4]).await), ["issued"; 4]);
    assert_eq!(keyed(&app, "bill-1", "d", &[1, 5, 5, 2]).await, ["issued"; 4]);
    assert_eq!(keyed(&app, "bill-3", "g", &[2, 5]).await, ["5001", "issued"]);
    app
}

/// A copy of a database that nobody is connected to.
async fn copy(of: &PgConnectOptions) -> PgConnectOptions {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let original = of.get_database().unwrap();
    let name = format!("{original}_copy_{}", NEXT.fetch_add(1, Ordering::Relaxed));
    execute(&of.clone().database("postgres"), &format!("create database {name} template {original}")).await;
    of.clone().database(&name)
}

async fn report(connect: &PgConnectOptions, org: Option<i64>) -> Report {
    audit::run(connect, org.map(OrgId), LATER.parse().unwrap()).await.unwrap()
}

/// What a report says below its table.
fn told(report: &Report) -> Vec<String> {
    let text = report.to_string();
    text.lines().skip(10).map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

/// Does each damage to a copy of what [`busy`] leaves; the audit must say this of it, and nothing if it is no damage.
async fn assert_found(holds: &str, damages: &[(&str, &[&str])]) {
    let app = busy().await;
    let connect = app.connect.clone();
    app.pool.close().await;
    app.stop().await;
    assert_eq!(told(&report(&connect, None).await), ["nothing is wrong"]);
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
        assert_eq!(told(&report(&other, None).await), expected, "{damage}");
        let name = other.get_database().unwrap();
        execute(&connect, &format!("drop database {name} with (force)")).await;
    }
}

#[tokio::test]
async fn a_busy_service_is_clean() {
    let app = busy().await;
    let report = app.audit().await;
    assert_eq!(told(&report), ["nothing is wrong"]);
    let checked: Vec<i64> = report.findings.iter().map(|finding| finding.checked).collect();
    assert!(checked.iter().all(|count| *count > 0), "{report}");
    assert_eq!(
        app.count("select from coupon").await,
        usize::try_from(checked[4]).unwrap() + 5,
        "all but those of one code"
    );
}

#[tokio::test]
async fn a_series_beyond_its_cap_is_found() {
    let found = "org 1 series 2: 6 issued; must be: at most 5";
    assert_found(
        "no series has issued more than its cap",
        &[
            ("update series set max_create = 5 where series_id = 2", &[found]),
            ("update series set max_create = 5 where series_id = 2; delete from series_limits", &[found]),
            // Lowered when they were issued.
            (
                "update series set max_create = 5 where series_id = 2;
                 update series_limits set changed_at = '2026-11-22T12:00:00Z'",
                &[],
            ),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_coupon_that_nobody_issued_is_found() {
    assert_found(
        "a coupon names the till or the client that issued it",
        &[
            (
                "update coupon set till_id = null, code = 'NOBODYS' where series_id = 1 and customer_id = 'c'",
                &["org 1 series 1 customer c code NOB…: neither a till nor a client; must be: one of them"],
            ),
            ("update coupon set till_id = null, client_key = 'crm'", &[]),
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
            // Whoever received more than one did so before it was said.
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
async fn a_gap_in_the_numbers_is_found() {
    assert_found(
        "a customer's coupons of a series are numbered without a gap",
        &[
            (
                "delete from coupon where series_id = 3 and customer_id = 'a' and ordinal = 1",
                &["org 1 series 3 customer a: coupons 1, numbers 1 (1 different, 2 to 2); \
                   must be: each number once, from 1 to 1"],
            ),
            (
                "drop index coupon_ordinal; update coupon set ordinal = 1 where series_id = 4 and customer_id = 'a'",
                &["org 1 series 4 customer a: coupons 3, numbers 3 (1 different, 1 to 1); \
                   must be: each number once, from 1 to 3"],
            ),
            (
                "update coupon set ordinal = 0 where series_id = 3 and customer_id = 'b'",
                &["org 1 series 3 customer b: coupons 1, numbers 1 (1 different, 0 to 0); \
                   must be: each number once, from 1 to 1"],
            ),
            // The only one is gone: no number tells of it.
            ("delete from coupon where series_id = 1 and customer_id = 'f'", &[]),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_counter_that_is_not_the_number_of_coupons_is_found() {
    assert_found(
        "the counter of a capped series is the number of its coupons",
        &[
            (
                "insert into series_counter values (1, 2, 8)",
                &["org 1 series 2: a counter at 8; must be: one at 6, as there are coupons"],
            ),
            (
                "delete from coupon where series_id = 9 and customer_id = 'b'",
                &["org 1 series 9: a counter at 3; must be: one at 2, as there are coupons"],
            ),
            (
                "delete from series_counter where series_id = 9",
                &["org 1 series 9: no counter; must be: one at 3, as there are coupons"],
            ),
            (
                "insert into series_counter values (1, 6, 5), (1, 99, 1)",
                &[
                    "org 1 series 6: a counter at 5; must be: none, for want of a cap",
                    "org 1 series 99: a counter at 1; must be: none, for want of a cap",
                ],
            ),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_code_of_two_coupons_is_found_without_its_index() {
    let twice = "code GIFT…: 2 coupons have this code; must be: one";
    let (first, second) = (format!("org 1 series 1 customer f {twice}"), format!("org 1 series 5 customer b {twice}"));
    let another = "code OW…: 2 coupons have this code; must be: one";
    assert_found(
        "no code is that of two coupons",
        &[
            (
                "drop index coupon_code;
                 update coupon set code = 'GIFT-5-2' where series_id = 1 and customer_id = 'f'",
                &[&first, &second],
            ),
            // The index is there, and does not have the row.
            (
                "update pg_index set indisready = false, indisvalid = false where indexrelid = 'coupon_code'::regclass;
                 update coupon set code = 'OWN-A' where series_id = 3 and customer_id = 'b';
                 update pg_index set indisready = true, indisvalid = true where indexrelid = 'coupon_code'::regclass",
                &[&format!("org 1 series 3 customer b {another}"), &format!("org 1 series 5 customer a {another}")],
            ),
            ("update coupon set shared_code = true, code = 'GIFT-5-2' where series_id = 1 and customer_id = 'f'", &[]),
        ],
    )
    .await;
}

#[tokio::test]
async fn an_uploaded_code_in_a_wrong_place_is_found() {
    assert_found(
        "an uploaded code is yet to come, or given out once",
        &[
            (
                "insert into pool_code (org_id, series_id, code, place) values (1, 9, 'GIFT-5-1', 99)",
                &["org 1 series 9 code GIFT…: in the pool, and a coupon of series 5; must be: one of the two"],
            ),
            // It was drawn for another series: the pool loses it when its turn comes.
            (
                "insert into pool_code (org_id, series_id, code, place)
                 select 1, 9, code, 99 from coupon where series_id = 1 and customer_id = 'f'",
                &[],
            ),
            (
                "alter table pool_code drop constraint pool_code_pkey;
                 insert into pool_code (org_id, series_id, code, customer_id) values (1, 9, 'GIFT-5-20', 'a')",
                &[
                    "org 1 series 5 code GIFT…: uploaded twice; must be: once",
                    "org 1 series 9 customer a code GIFT…: uploaded twice; must be: once",
                ],
            ),
            (
                "insert into pool_code (org_id, series_id, code, place) values (1, 9, 'OLD-1', 3), (1, 9, 'OLD-2', 21)",
                &["org 1 series 9 code OL…: place 3; must be: above 3, the place that was given out last"],
            ),
            (
                "alter table pool_code drop constraint pool_code_place; update pool_code set place = 20 where code = 'GIFT-9-19'",
                &["org 1 series 9 code GIFT…: place 20, with another code; must be: a place of its own"; 2],
            ),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_record_of_a_keyed_request_that_cannot_be_shown_is_found() {
    assert_found(
        "a keyed request shows its coupons, and can be finished",
        &[
            (
                "delete from coupon where series_id = 5 and customer_id = 'g'",
                &["org 1 series 5 customer g request bill-3 entity 1: no such coupon; must be: the coupon that is recorded"],
            ),
            (
                "update keyed_coupon set customer_id = 'x' where request_key = 'bill-3'",
                &["org 1 series 5 customer x request bill-3 entity 1: no such coupon; must be: the coupon that is recorded"],
            ),
            (
                "update keyed_coupon set issue_id = (select issue_id from keyed_coupon where request_key = 'bill-1' and entity = 1)
                  where request_key = 'bill-1' and entity = 2",
                &[
                    "org 1 series 5 customer d request bill-1 entity 1: its coupon is recorded twice; must be: once",
                    "org 1 series 5 customer d request bill-1 entity 2: its coupon is recorded twice; must be: once",
                ],
            ),
            (
                "delete from keyed_request where request_key = 'bill-3'",
                &["org 1 series 5 customer g request bill-3 entity 1: no such request; must be: its request"],
            ),
            (
                "update keyed_request set series_ids = '{5,4}' where request_key = 'bill-2'",
                &["org 1 series 3 customer d request bill-2 entity 1: another series; must be: series 4"],
            ),
            (
                "update keyed_coupon set entity = 3000000000 where request_key = 'bill-3'",
                &["org 1 series 5 customer g request bill-3 entity 3000000000: another series; must be: an entity below 2"],
            ),
            (
                "update keyed_coupon set entity = 77 where natural_at is not null and series_id = 5",
                &["org 1 series 5 customer e natural key: another series; must be: series 77"],
            ),
            (
                "update keyed_request set attempt = gen_random_uuid(), held_until = '2026-11-22T13:00:01Z'",
                &["org 1 request bill-3: an attempt is at work on it until 2026-11-22 13:00:01+00; must be: for an hour at most"],
            ),
            ("update keyed_request set attempt = gen_random_uuid(), held_until = '2026-11-22T13:00:00Z'", &[]),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_holder_of_exclusive_series_is_found() {
    assert_found(
        "nobody has coupons of mutually exclusive series",
        &[
            (
                "update series set mutual_exclusive_series_ids = '{6}' where series_id = 9",
                &[
                    "org 1 series 6 customer a: a coupon of series 9 as well; must be: of one of the two",
                    "org 1 series 6 customer b: a coupon of series 9 as well; must be: of one of the two",
                ],
            ),
            (
                "update coupon set series_id = 8 where series_id = 5 and customer_id = 'a'",
                &["org 1 series 7 customer a: a coupon of series 8 as well; must be: of one of the two"],
            ),
            // Declared when they had both.
            (
                "update series set mutual_exclusive_series_ids = '{6}' where series_id = 9;
                 update series_limits set changed_at = '2026-11-22T10:30:00Z' where series_id = 6",
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
    insert into pool_code (org_id, series_id, code, place) values (1, 9, 'GIFT-5-1', 99);
    delete from keyed_request where request_key = 'bill-3';
    update series set mutual_exclusive_series_ids = '{6}' where series_id = 9;
    update coupon set till_id = null where series_id = 1 and customer_id = 'f'";

#[tokio::test]
async fn an_audit_of_one_organisation_is_of_no_other() {
    let app = busy().await;
    let other = "[[orgs]]\nid = 2\nname = \"Other\"\n";
    app::apply_text(&app.connect, &format!("{other}{}", series(2, "max_create = 5"))).await.unwrap();
    execute(&app.connect, ALL_DAMAGES).await;
    let (all, one) = (report(&app.connect, None).await, report(&app.connect, Some(1)).await);
    assert!(one.findings.iter().all(|finding| finding.wrong > 0), "{one}");
    assert_eq!(told(&one), told(&all));
    assert_eq!(told(&report(&app.connect, Some(2)).await), ["nothing is wrong"]);
    let unknown = audit::run(&app.connect, Some(OrgId(3)), LATER.parse().unwrap()).await.unwrap_err();
    assert_eq!(unknown.to_string(), "--org 3: there is no such organisation");
}

#[tokio::test]
async fn of_many_rows_twenty_are_named_and_no_code_is_told() {
    let app = busy().await;
    execute(&app.connect, ALL_DAMAGES).await;
    let report = report(&app.connect, None).await;
    let counters = &report.findings[3];
    assert_eq!((counters.wrong, counters.offences.len()), (25, 20));
    assert!(told(&report).contains(&"and 5 more".to_owned()), "{report}");
    assert!(!report.to_string().contains("GIFT-"), "{report}");
}

/// Exit code, standard output and standard error.
fn run(url: &str, arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_coupon-issuer"));
    let done = command.arg("audit").args(arguments).env("DATABASE_URL", url).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (done.status.code().unwrap(), text(done.stdout), text(done.stderr))
}

#[tokio::test]
async fn the_exit_code_says_whether_all_is_well() {
    let app = busy().await;
    let url = app.connect.to_url_lossy().to_string();
    let (code, printed, error) = run(&url, &["--org", "1"]);
    assert_eq!((code, error.as_str(), printed.lines().last()), (0, "", Some("nothing is wrong")));

    execute(&app.connect, "update series set max_create = 5 where series_id = 2").await;
    let (code, printed, error) = run(&url, &[]);
    assert_eq!((code, printed.lines().last()), (1, Some("drift: 1 row")));
    assert_eq!(error, "coupon-issuer: not everything is as it must be\n");

    let unasked = "coupon-issuer: --org 9: there is no such organisation\n";
    assert_eq!(run(&url, &["--org", "9"]), (1, String::new(), unasked.to_owned()));
    let (code, printed, error) = run(empty_database().await.to_url_lossy().as_str(), &[]);
    assert!(code == 1 && printed.is_empty() && error.contains("coupon-issuer migrate"), "{printed}{error}");
    let (code, printed, error) = run("postgres://nobody@127.0.0.1:1/none", &[]);
    assert!(code == 1 && printed.is_empty() && error.starts_with("coupon-issuer: "), "{printed}{error}");
}

/// Coupons of all kinds, and limits that go up and down under them, by the clocks that the service and Postgres have.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_at_work_is_clean_at_every_moment() {
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
    app::apply_text(&database, &higher).await.unwrap();
    let pool = "insert into pool_code (org_id, series_id, code, place) select 1, 5, 'P-' || n, n from generate_series(1, 5000) n";
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
    let mut audits = 0;
    while audits < 4 || callers.iter().any(|caller| !caller.is_finished()) {
        app::apply_text(&database, if audits % 2 == 0 { &lower } else { &higher }).await.unwrap();
        let report = audit::run(&database, None, LATER.parse().unwrap()).await.unwrap();
        assert_eq!(report.wrong(), 0, "{report}");
        audits += 1;
    }
    for caller in callers {
        caller.await.unwrap();
    }
    let report = audit::run(&database, None, LATER.parse().unwrap()).await.unwrap();
    assert!(report.wrong() == 0 && report.findings.iter().all(|finding| finding.checked > 1), "{report}");
}
