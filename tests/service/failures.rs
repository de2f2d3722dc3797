//! Failures in production: Postgres killed or down, connections cut, callers that hang up, coupons that the database rejects. The
//! database keeps every coupon that a caller got, and no request issues twice.

use coupon_issuer::db::migrations;
use std::collections::BTreeMap;
use std::io::Write;
use std::net::TcpStream;
use std::process::Command;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use coupon_issuer::config::Settings;
use coupon_issuer::demo::{Options, PrivatePostgres};
use serde_json::json;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Row};

use crate::support::{
    ORG, ReplacedWriter, TestApp, close, default_series, eventually, failure, fresh_dir, new_database, outcome,
    outcomes, repeatable_series, tally, wrap_writer,
};

/// Starts a Postgres that the test may kill, and a service on it. `name`: of the directory of its data.
pub async fn start_on_own_postgres(name: &str, series: &[String]) -> (PrivatePostgres, TestApp) {
    let options = Options { data_dir: fresh_dir(name), durable: false, settings: Vec::new() };
    let postgres = tokio::task::spawn_blocking(move || PrivatePostgres::start(&options)).await.unwrap().unwrap();
    let connect = PgConnectOptions::from_str(&postgres.url("crash")).unwrap();
    migrations::create_database(&connect).await.unwrap();
    migrations::migrate(&connect).await.unwrap();
    let app = TestApp::start_over(connect, &format!("{ORG}{}", series.concat()), |settings| {
        // Long enough for a machine that stalls for two seconds, and short enough for a test that waits for a time-out.
        settings.issuing.timeout = Duration::from_secs(15);
        settings.writer.statement_timeout = Duration::from_secs(5);
        settings.database.acquire_timeout = Duration::from_secs(4);
    })
    .await;
    (postgres, app)
}

/// Kills Postgres as a crash does: it flushes nothing more.
pub fn kill(postgres: &PrivatePostgres) {
    let pid = postgres.postmaster_pid().to_string();
    assert!(Command::new("kill").args(["-9", &pid]).status().unwrap().success());
}

pub async fn restart(postgres: PrivatePostgres) -> PrivatePostgres {
    let restarted = tokio::task::spawn_blocking(move || {
        let mut postgres = postgres;
        postgres.restart().map(|()| postgres)
    });
    restarted.await.unwrap().unwrap()
}

/// 16 callers. Each requests one coupon after the other until [`Load::stop`], which returns customer and code of every coupon they got.
struct Load {
    callers: Vec<tokio::task::JoinHandle<Vec<(String, String)>>>,
    stop: Arc<AtomicBool>,
}

impl Load {
    fn start(app: &Arc<TestApp>, run: &'static str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let callers = (0..16)
            .map(|caller| {
                let (app, stop) = (Arc::clone(app), Arc::clone(&stop));
                tokio::spawn(async move {
                    let mut answered = Vec::new();
                    for number in 0.. {
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                        let customer = format!("{run}-{caller}-{number}");
                        let (status, answer) = app.send(&json!({"seriesIds": [1], "customer": {"id": customer}})).await;
                        assert!(status == 200 || status == 503, "{status} {answer}");
                        if status == 200 && outcome(&answer["response"][0]) == "issued" {
                            let code = answer["response"][0]["result"]["code"].as_str().unwrap().to_owned();
                            answered.push((customer, code));
                        }
                    }
                    answered
                })
            })
            .collect();
        Self { callers, stop }
    }

    async fn stop(self) -> Vec<(String, String)> {
        self.stop.store(true, Ordering::Relaxed);
        let mut answered = Vec::new();
        for caller in self.callers {
            answered.extend(caller.await.unwrap());
        }
        answered
    }
}

async fn stored(app: &TestApp) -> BTreeMap<String, Vec<String>> {
    let mut stored: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for row in sqlx::query("select customer_id, code from coupon").fetch_all(&app.pool).await.unwrap() {
        stored.entry(row.get("customer_id")).or_default().push(row.get("code"));
    }
    stored
}

fn assert_all_stored_once(answered: &[(String, String)], stored: &BTreeMap<String, Vec<String>>) {
    for (customer, code) in answered {
        assert_eq!(stored.get(customer), Some(&vec![code.clone()]), "the coupon that {customer} got");
    }
    assert!(stored.values().all(|codes| codes.len() == 1), "a customer has two coupons");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_postgres_loses_no_coupon_that_a_caller_got() {
    let (mut postgres, app) = start_on_own_postgres("killed", &[repeatable_series(1, "")]).await;
    let app = Arc::new(app);
    let load = Load::start(&app, "r");
    for _ in 0..3 {
        let issued = app.count("select from coupon").await;
        eventually("the load issues", || async { app.count("select from coupon").await > issued + 150 }).await;
        kill(&postgres);
        postgres = restart(postgres).await;
        eventually("the service recovers", || async {
            let (status, answer) = app.send(&json!({"seriesIds": [1], "customer": {"id": "probe"}})).await;
            status == 200 && outcome(&answer["response"][0]) == "issued"
        })
        .await;
        sqlx::query("delete from coupon where customer_id = 'probe'").execute(&app.pool).await.unwrap();
    }
    let answered = load.stop().await;
    assert!(answered.len() > 300, "{}", answered.len());
    assert_all_stored_once(&answered, &stored(&app).await);
    Arc::into_inner(app).unwrap().stop().await;
    tokio::task::spawn_blocking(|| postgres.stop()).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_postgres_is_down_requests_get_503_with_retry_after() {
    let (postgres, app) = start_on_own_postgres("away", &[repeatable_series(1, "")]).await;
    assert_eq!(app.issue_one("before", 1).await, "issued");
    kill(&postgres);
    let answer = app.post(r#"{"seriesIds":[1],"customer":{"id":"during"}}"#).send().await.unwrap();
    // The batch that finds its connection cut is in doubt: nobody knows yet whether Postgres committed it.
    let in_doubt = answer.status() == 200;
    if in_doubt {
        assert_eq!(outcomes(&answer.json().await.unwrap()), ["748"]);
        let answer = app.post(r#"{"seriesIds":[1],"customer":{"id":"during"}}"#).send().await.unwrap();
        assert_eq!((answer.status().as_u16(), &answer.headers()["retry-after"]), (503, &"1".parse().unwrap()));
    } else {
        assert_eq!((answer.status().as_u16(), &answer.headers()["retry-after"]), (503, &"1".parse().unwrap()));
    }
    let ready = app.client().get(app.url("/readyz")).send().await.unwrap();
    assert_eq!(ready.status(), 503);
    let healthy = app.client().get(app.url("/healthz")).send().await.unwrap();
    assert_eq!(healthy.status(), 200);

    let postgres = restart(postgres).await;
    eventually("ready", || async { app.client().get(app.url("/readyz")).send().await.unwrap().status() == 200 }).await;
    assert_eq!(app.issue_one("after", 1).await, "issued");
    assert_eq!(app.count("select from coupon where customer_id = 'during'").await, 0);
    app.stop().await;
    tokio::task::spawn_blocking(|| postgres.stop()).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_connection_loses_nothing_and_issues_nothing_twice() {
    let app = Arc::new(TestApp::start(&[repeatable_series(1, "")]).await);
    let load = Load::start(&app, "r");
    let mut cut = 0;
    for _ in 0..20 {
        let issued = app.count("select from coupon").await;
        eventually("the load goes on", || async { app.count("select from coupon").await > issued + 20 }).await;
        cut += app
            .count(
                "select pg_terminate_backend(pid) from pg_stat_activity
                  where datname = current_database() and application_name = 'coupon-issuer writer'",
            )
            .await;
    }
    let answered = load.stop().await;
    assert!(cut >= 20 && answered.len() > 400, "{cut} connections cut, {} answered", answered.len());
    let stored = stored(&app).await;
    assert_all_stored_once(&answered, &stored);
    assert_eq!(stored.len(), answered.len(), "each request that lost its connection recovered its coupon");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_whose_client_hangs_up_issues_all_of_its_coupons_or_none() {
    let app = Arc::new(
        TestApp::start(&[
            repeatable_series(1, ""),
            repeatable_series(2, "max_create = 1000000"),
            repeatable_series(3, "max_vouchers_per_user = 5"),
        ])
        .await,
    );
    assert_eq!(outcomes(&app.issue("warm", &[1, 2, 3]).await), ["issued"; 3]);
    let address = app.address;
    let callers: Vec<_> = (0..4)
        .map(|caller| {
            tokio::task::spawn_blocking(move || {
                for number in 0..500 {
                    let body = format!(r#"{{"seriesIds":[1,2,3],"customer":{{"id":"gone-{caller}-{number}"}}}}"#);
                    let request = format!(
                        "POST /v2/coupon/bulk/issue HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\
                         Authorization: Basic c3RvcmUuc2VydmVyOnNlcnZlcjEyMw==\r\nContent-Length: {}\r\n\r\n{body}",
                        body.len()
                    );
                    let mut stream = TcpStream::connect(address).unwrap();
                    // Every fourth request ends in the middle of its body.
                    let sent = if number % 4 == 0 { request.len() - 10 } else { request.len() };
                    stream.write_all(&request.as_bytes()[..sent]).unwrap();
                    std::thread::sleep(Duration::from_micros(100 * (number % 20)));
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap();
    }

    let calls: Vec<_> = (0..50)
        .map(|caller| {
            let app = Arc::clone(&app);
            tokio::spawn(async move {
                for number in 0..40 {
                    let answer = app.issue(&format!("here-{caller}-{number}"), &[1, 2, 3]).await;
                    assert_eq!(outcomes(&answer), ["issued"; 3]);
                }
            })
        })
        .collect();
    for call in calls {
        call.await.unwrap();
    }
    let pool = app.pool.clone();
    Arc::into_inner(app).unwrap().stop().await;
    let halves = sqlx::query("select customer_id from coupon group by customer_id having count(*) <> 3");
    assert_eq!(halves.fetch_all(&pool).await.unwrap().len(), 0, "customers with one or two of their three coupons");
    let counted: i64 = sqlx::query_scalar(
        "select max(issued) - (select count(*) from coupon where series_id = 2) from series_counter where series_id = 2",
    )
    .fetch_one(&pool)
    .await
    .unwrap();
    assert_eq!(counted, 0, "the counter differs from the coupons that are stored");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coupon_that_the_database_rejects_fails_alone() {
    let app = Arc::new(TestApp::start(&[repeatable_series(1, "")]).await);
    sqlx::raw_sql(
        "create function refuse() returns trigger language plpgsql as $$ begin raise exception 'no'; end $$;
         create trigger refuse before insert on coupon for each row when (new.customer_id = 'poison')
         execute function refuse()",
    )
    .execute(&app.pool)
    .await
    .unwrap();
    let calls: Vec<_> = (0..32)
        .map(|caller| {
            let app = Arc::clone(&app);
            let customer = if caller % 8 == 0 { "poison".to_owned() } else { caller.to_string() };
            tokio::spawn(async move { (customer.clone(), app.issue_one(&customer, 1).await) })
        })
        .collect();
    for call in calls {
        let (customer, outcome) = call.await.unwrap();
        assert_eq!(outcome, if customer == "poison" { "786" } else { "issued" }, "{customer}");
    }
    assert_eq!(app.count("select from coupon").await, 28);
}

/// A trigger that fails on a coupon if its customer is one of these error codes, with that error.
async fn fail_on(app: &TestApp, errors: &[&str]) {
    sqlx::raw_sql(
        "create function fail() returns trigger language plpgsql as
             $$ begin raise exception 'on purpose' using errcode = new.customer_id; end $$",
    )
    .execute(&app.pool)
    .await
    .unwrap();
    let errors = errors.join("', '");
    let trigger = format!(
        "create trigger fail before insert on coupon for each row when (new.customer_id in ('{errors}')) execute function fail()"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(trigger)).execute(&app.pool).await.unwrap();
}

/// A full disk, too little memory, or a damaged file may be temporary: 748, which callers may retry.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_error_on_one_coupon_fails_that_coupon_alone() {
    let app = Arc::new(
        TestApp::start_with(&format!("{ORG}{}", repeatable_series(1, "")), |settings| settings.writer.tasks = 1).await,
    );
    // A trigger that connects to another server, or that may not write, raises the last three.
    let faults = ["53100", "53200", "58030", "58P01", "XX000", "XX001", "53300", "08001", "25006"];
    fail_on(&app, &faults).await;
    assert_eq!(app.issue_one("warm", 1).await, "issued");
    let writers = "select pid, backend_start::text from pg_stat_activity
                    where datname = current_database() and application_name = 'coupon-issuer writer' order by pid";
    let before: Vec<(i32, String)> = sqlx::query_as(writers).fetch_all(&app.pool).await.unwrap();
    for fault in faults {
        // The lock holds the 64 requests back until they form one batch.
        let mut holder = app.connect.connect().await.unwrap();
        sqlx::raw_sql("begin; select lock_organisation_1(1)").execute(&mut holder).await.unwrap();
        let calls: Vec<_> = (0..64)
            .map(|caller| {
                let (app, customer) =
                    (Arc::clone(&app), if caller == 32 { fault.to_owned() } else { format!("{fault}-{caller}") });
                tokio::spawn(async move { (customer.clone(), app.issue_one(&customer, 1).await) })
            })
            .collect();
        close(holder).await;
        for call in calls {
            let (customer, outcome) = call.await.unwrap();
            assert_eq!(outcome, if customer == fault { "748" } else { "issued" }, "{customer}");
        }
        let answer = app.post(format!(r#"{{"seriesIds":[1],"customer":{{"id":"{fault}"}}}}"#));
        let answer = answer.header("Idempotency-Key", fault).send().await.unwrap();
        assert_eq!(outcomes(&answer.json().await.unwrap()), ["748"]);
    }
    assert_eq!(app.count("select from coupon").await, 1 + faults.len() * 63);
    let after: Vec<(i32, String)> = sqlx::query_as(writers).fetch_all(&app.pool).await.unwrap();
    assert!(before.iter().all(|writer| after.contains(writer)), "{before:?} {after:?}");
    let ready = app.client().get(app.url("/readyz")).send().await.unwrap();
    assert_eq!(ready.status(), 200);
}

/// As after an upgrade of the Postgres packages under a running server, which then fails to load its libraries.
#[tokio::test]
async fn while_every_write_fails_requests_get_503() {
    let app = TestApp::start(&[repeatable_series(1, ""), repeatable_series(2, "max_create = 5")]).await;
    let keyed = |key: &str| {
        app.post(r#"{"seriesIds":[1,2],"customer":{"id":"c"}}"#).header("Idempotency-Key", key.to_owned()).send()
    };
    let first = keyed("k").await.unwrap().text().await.unwrap();
    let ready = async || app.client().get(app.url("/readyz")).send().await.unwrap().status().as_u16();
    assert_eq!(ready().await, 200);
    for error in ["XX000", "58P01", "53100", "P0001", "42883"] {
        let body = format!("begin raise exception 'could not load library' using errcode = '{error}'; end");
        let replaced = ReplacedWriter::with(&app, &body).await;
        for key in ["k", "new"] {
            let answer = keyed(key).await.unwrap();
            assert_eq!(answer.headers()["retry-after"], "1", "{error} {key}");
            assert_eq!(failure(answer).await.0, 503, "{error} {key}");
        }
        let (status, _) = app.send(&json!({"seriesIds": [1], "customer": {"id": "unkeyed"}})).await;
        assert_eq!((status, ready().await), (503, 503), "{error}");
        replaced.put_back().await;
        // The service recovers without a request.
        eventually("ready again", async || ready().await == 200).await;
        assert_eq!(keyed("k").await.unwrap().text().await.unwrap(), first, "{error}");
    }
    assert_eq!(app.count("select from coupon").await, 2);
}

/// A session may keep a stale cache, of a type that was created anew, for example. A new session works.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_session_is_replaced() {
    let app =
        TestApp::start(&[repeatable_series(1, ""), repeatable_series(2, "do_not_resend_existing_voucher = false")])
            .await;
    let app = Arc::new(app);
    for _ in 0..4 {
        let answers = issue_all(&app, (0..16).map(|caller| caller.to_string())).await;
        assert!(answers.iter().all(|answer| answer["failureCount"] == 0), "{answers:?}");
    }
    let writers = "select pid from pg_stat_activity
                    where datname = current_database() and application_name = 'coupon-issuer writer'";
    let broken: Vec<i32> = sqlx::query_scalar(writers).fetch_all(&app.pool).await.unwrap();
    assert!(!broken.is_empty());
    let body = format!(
        "begin
             if pg_backend_pid() = any ('{{{}}}') then raise exception 'cache lookup failed' using errcode = 'XX000'; end if;
             ORIGINAL;
         end",
        broken.iter().map(i32::to_string).collect::<Vec<_>>().join(",")
    );
    wrap_writer(&app.connect, &body).await;
    for round in 0..4 {
        let answers = issue_all(&app, (0..16).map(|caller| format!("{round}-{caller}"))).await;
        assert!(answers.iter().all(|answer| answer["failureCount"] == 0), "{answers:?}");
        assert_eq!(outcomes(&app.issue(&format!("{round}-0"), &[2]).await), ["resent"]);
    }
    let ready = app.client().get(app.url("/readyz")).send().await.unwrap();
    assert_eq!(ready.status(), 200);
}

/// The call has claimed the key, although it issued nothing, and then it breaks. The request must not take its own claim for that of
/// another attempt.
#[tokio::test]
async fn a_claim_of_a_broken_call_does_not_block_its_own_request() {
    let app = TestApp::start(&[default_series(1, "")]).await;
    assert_eq!(app.issue_one("c", 1).await, "issued");
    let body = json!({"seriesIds": [1], "customer": {"id": "c"}});
    let keyed = async |key: &str| {
        let answer = app.post(body.to_string()).header("Idempotency-Key", key).send().await.unwrap();
        (answer.status().as_u16(), outcomes(&answer.json().await.unwrap()))
    };
    sqlx::raw_sql("create sequence calls").execute(&app.pool).await.unwrap();
    let body = "declare
             call_number integer := case when cardinality(coupons) > 0 then nextval('calls') end;
         begin
             if call_number = 2 then -- Sent alone: the settings are locked.
                 outcomes := array[8::smallint];
                 issued_codes := array[null::text];
                 return;
             end if;
             ORIGINAL;
             if call_number = 1 then raise exception 'broken'; end if;
         end";
    wrap_writer(&app.connect, body).await;
    assert_eq!(keyed("k").await, (200, vec!["709".to_owned()]));
    assert_eq!(keyed("k").await, (200, vec!["709".to_owned()]));
    assert_eq!(app.count("select from keyed_request where incarnation = 0").await, 1);
    assert_eq!(app.count("select where (select last_value from calls) >= 2").await, 1);
}

/// A pooler that changes to transaction mode while the service runs. A call in another session than its writer's writes nothing.
#[tokio::test]
async fn a_call_in_another_session_issues_nothing() {
    let app = TestApp::start(&[repeatable_series(1, "")]).await;
    assert_eq!(app.issue_one("before", 1).await, "issued");
    let body = "begin perform set_config('coupon_issuer.session', 'of another writer', false); ORIGINAL; end";
    wrap_writer(&app.connect, body).await;
    let (status, answer) = app.send(&json!({"seriesIds": [1], "customer": {"id": "c"}})).await;
    assert_eq!(status, 503, "{answer}");
    assert_eq!(app.count("select from coupon").await, 1);
    let ready = app.client().get(app.url("/readyz")).send().await.unwrap();
    assert_eq!(ready.status(), 503);
}

/// Some hosts of Postgres make a database read-only when its disk is nearly full. Sessions stay open.
#[tokio::test]
async fn while_the_database_is_read_only_requests_get_503() {
    let app = TestApp::start(&[repeatable_series(1, "")]).await;
    assert_eq!(app.issue_one("before", 1).await, "issued");
    let set = async |value: &str| {
        let database = app.connect.get_database().unwrap();
        let statement = format!("alter database {database} set default_transaction_read_only = {value}");
        let mut connection = app.connect.clone().database("postgres").connect().await.unwrap();
        sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).execute(&mut connection).await.unwrap();
        close(connection).await;
    };
    let ready = async || app.client().get(app.url("/readyz")).send().await.unwrap().status().as_u16();
    set("on").await;
    // The setting holds for new sessions only.
    app.count(
        "select pg_terminate_backend(pid) from pg_stat_activity
          where datname = current_database() and application_name = 'coupon-issuer writer'",
    )
    .await;
    eventually("the service finds the database read-only", async || {
        app.send(&json!({"seriesIds": [1], "customer": {"id": "during"}})).await.0 == 503
    })
    .await;
    assert_eq!(ready().await, 503);
    set("off").await;
    eventually("ready", async || ready().await == 200).await;
    assert_eq!(app.issue_one("after", 1).await, "issued");
    assert_eq!(app.count("select from coupon where customer_id = 'during'").await, 0);
}

#[tokio::test]
async fn a_service_is_not_ready_until_the_database_takes_writes() {
    let app = TestApp::start(&[repeatable_series(1, "")]).await;
    let replaced = ReplacedWriter::with(&app, "begin raise exception 'no' using errcode = 'XX000'; end").await;
    let other = TestApp::start_over(app.connect.clone(), &format!("{ORG}{}", repeatable_series(1, "")), |_| {}).await;
    let ready = async || other.client().get(other.url("/readyz")).send().await.unwrap().status().as_u16();
    assert_eq!(ready().await, 503);
    replaced.put_back().await;
    eventually("ready", async || ready().await == 200).await;
}

/// The database fails during the retry, so that it cannot show the coupons. A 786 would say that they are not stored.
#[tokio::test]
async fn a_retry_never_answers_786_for_a_coupon_that_the_first_attempt_issued() {
    let app =
        TestApp::start(&[repeatable_series(1, ""), repeatable_series(2, ""), repeatable_series(3, "max_create = 9")])
            .await;
    for (number, error) in ["XX000", "53100", "P0001", "22012"].into_iter().enumerate() {
        let (ids, key) = (["[1]", "[1,2]", "[3]", "[1,1,3]"][number], format!("k-{number}"));
        let body = format!(r#"{{"seriesIds":{ids},"customer":{{"id":"c"}}}}"#);
        let keyed = async || {
            let answer = app.post(body.clone()).header("Idempotency-Key", &key).send().await.unwrap();
            (answer.status().as_u16(), answer.json::<serde_json::Value>().await.unwrap())
        };
        let (_, first) = keyed().await;
        // The empty call of the probe succeeds, so that the database counts as up and each coupon fails.
        let body = format!(
            "begin
                 if cardinality(coupons) > 0 then raise exception 'no' using errcode = '{error}'; end if;
                 outcomes := '{{}}'; issued_codes := '{{}}';
             end"
        );
        let replaced = ReplacedWriter::with(&app, &body).await;
        let (status, answer) = keyed().await;
        assert_eq!(status, 200, "{answer}");
        for (entity, before) in outcomes(&answer).into_iter().zip(outcomes(&first)) {
            assert!(entity == "748" || entity == before, "{error} {answer}");
        }
        replaced.put_back().await;
        assert_eq!(keyed().await.1, first);
    }
}

/// Requests coupons of series 1 and 2 for each of these customers, at once.
async fn issue_all(app: &Arc<TestApp>, customers: impl Iterator<Item = String>) -> Vec<serde_json::Value> {
    let mut requests = tokio::task::JoinSet::new();
    for customer in customers {
        let app = Arc::clone(app);
        requests.spawn(async move { app.issue(&customer, &[1, 2]).await });
    }
    requests.join_all().await
}

/// A newer procedure may return an outcome that this version does not know: the coupon may be stored or not.
#[tokio::test]
async fn an_unknown_outcome_is_748() {
    let app = TestApp::start(&[repeatable_series(1, ""), repeatable_series(2, "max_create = 5")]).await;
    for outcomes_are in ["array[99, 99]", "array[0, 1]", "array[99]"] {
        let body = format!(
            "begin
                 outcomes := ({outcomes_are}::smallint[])[1:cardinality(coupons)];
                 issued_codes := array_fill(null::text, array[cardinality(coupons)]);
             end"
        );
        let replaced = ReplacedWriter::with(&app, &body).await;
        let answer = app.issue("c", &[1, 2]).await;
        assert_eq!(outcomes(&answer)[0], "748", "{outcomes_are}: {answer}");
        assert!(["748", "issued"].contains(&&*outcomes(&answer)[1]), "{outcomes_are}: {answer}");
        replaced.put_back().await;
    }
}

/// The database returns the same refusal to every call.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_gives_up_after_a_bounded_number_of_calls() {
    let all = [
        repeatable_series(1, ""),
        repeatable_series(2, "max_create = 5"),
        repeatable_series(3, "do_not_resend_existing_voucher = false"),
    ];
    let shorter = |settings: &mut Settings| settings.issuing.timeout = Duration::from_secs(1);
    let app = TestApp::start_with(&format!("{ORG}{}", all.concat()), shorter).await;
    assert_eq!(outcomes(&app.issue("c", &[3]).await), ["issued"]);
    sqlx::query("create sequence calls").execute(&app.pool).await.unwrap();
    for outcome in 2..=11 {
        let body = format!(
            "begin
                 perform nextval('calls');
                 outcomes := array_fill({outcome}::smallint, array[cardinality(coupons)]);
                 issued_codes := array_fill(null::text, array[cardinality(coupons)]);
             end"
        );
        let replaced = ReplacedWriter::with(&app, &body).await;
        for key in [None, Some(format!("k-{outcome}"))] {
            let mut request = app.post(r#"{"seriesIds":[1,2,1],"customer":{"id":"c"}}"#);
            if let Some(key) = &key {
                request = request.header("Idempotency-Key", key);
            }
            let answer = request.send().await.unwrap();
            let status = answer.status().as_u16();
            if status == 200 {
                let codes = outcomes(&answer.json().await.unwrap());
                assert!(
                    codes.iter().all(|code| code == "748" || (code == "786" && (outcome == 5 || outcome == 11))),
                    "{outcome} {codes:?}"
                );
            } else {
                assert_eq!((status, outcome), (500, 10), "only a claim that is lost each time is a 500");
            }
            let count = "select case when is_called then last_value else 0 end from calls";
            let calls: i64 = sqlx::query_scalar(count).fetch_one(&app.pool).await.unwrap();
            sqlx::query("alter sequence calls restart").execute(&app.pool).await.unwrap();
            assert!(calls < 100, "{outcome} {key:?}: {calls} calls");
        }
        replaced.put_back().await;
    }
    assert_eq!(app.count("select from coupon").await, 1);
    // The failed requests have released their keys.
    let retried = app.post(r#"{"seriesIds":[1,2,1],"customer":{"id":"c"}}"#).header("Idempotency-Key", "k-10");
    let answer = retried.send().await.unwrap().json().await.unwrap();
    assert_eq!(outcomes(&answer), ["issued"; 3]);
}

#[tokio::test]
async fn a_transaction_that_times_out_is_748_and_stores_nothing() {
    let app = TestApp::start_over(new_database().await, &format!("{ORG}{}", repeatable_series(1, "")), |settings| {
        // The service sends a coupon twice before it gives up: both statements time out before the request does.
        settings.issuing.timeout = Duration::from_secs(15);
        settings.writer.statement_timeout = Duration::from_secs(4);
    })
    .await;
    let mut holder = app.connect.connect().await.unwrap();
    sqlx::raw_sql("begin; select lock_organisation_1(1)").execute(&mut holder).await.unwrap();
    let answer = app.issue("c", &[1]).await;
    let error = &answer["response"][0]["errors"][0];
    assert_eq!((&error["code"], &error["message"]), (&json!(748), &json!("Coupon service timed out")));
    assert_eq!(error["retryable"], true);
    close(holder).await;
    assert_eq!(app.issue_one("c", 1).await, "issued");
    assert_eq!(app.count("select from coupon").await, 1);
}

#[tokio::test]
async fn a_full_code_space_is_786() {
    let app = TestApp::start(&[repeatable_series(1, "alpha_numeric = false\nrandom_code_length = 5")]).await;
    sqlx::query(
        "insert into coupon (org_id, coupon_id, series_id, series_version, origin_id, customer_id, code, expires_on, issued_at,
                             request_id)
         select 1, -n, 1, 1, 1, 'full', lpad(n::text, 5, '0'), '2027-05-09', now(), 'r' from generate_series(0, 99999) n",
    )
    .execute(&app.pool)
    .await
    .unwrap();
    assert_eq!(app.issue_one("c", 1).await, "786");
}

/// The service draws codes from so large a space that it expects no collision. An index forces one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unexpected_code_collision_fails_that_coupon_alone() {
    let app = Arc::new(TestApp::start(&[repeatable_series(1, ""), repeatable_series(2, "")]).await);
    sqlx::query("create unique index collision on coupon (org_id) where series_id = 1")
        .execute(&app.pool)
        .await
        .unwrap();
    let calls: Vec<_> = (0..32)
        .map(|caller| {
            let app = Arc::clone(&app);
            tokio::spawn(async move { app.issue(&caller.to_string(), &[1, 2]).await })
        })
        .collect();
    let mut all = Vec::new();
    for call in calls {
        let answer = call.await.unwrap();
        let [first, second] = <[String; 2]>::try_from(outcomes(&answer)).unwrap();
        assert_eq!(second, "issued");
        all.push(first);
    }
    assert_eq!(tally(all), [("786".to_owned(), 31), ("issued".to_owned(), 1)].into());
    assert_eq!(app.count("select from coupon").await, 33);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_locked_organisation_does_not_delay_another() {
    let other = "[[orgs]]\nid = 2\nname = \"O\"\ndefault_access = \"write\"\n[[orgs.stores]]\nid = 10\nname = \"S\"\n\
                 [[orgs.tills]]\nid = \"other\"\nstore_id = 10\npassword = \"p\"\n";
    let file = format!("{ORG}{}{other}{}", repeatable_series(1, ""), repeatable_series(1, ""));
    let app = Arc::new(TestApp::start_with(&file, |_| {}).await);
    let mut holder = app.connect.connect().await.unwrap();
    sqlx::raw_sql("begin; select lock_organisation_1(1)").execute(&mut holder).await.unwrap();
    let waiting: Vec<_> = (0..16)
        .map(|caller| {
            let app = Arc::clone(&app);
            tokio::spawn(async move { app.issue_one(&caller.to_string(), 1).await })
        })
        .collect();
    for _ in 0..40 {
        let body = json!({"seriesIds": [1], "customer": {"id": "c"}});
        let request = app.client().post(app.url("/v2/coupon/bulk/issue")).basic_auth("other", Some("p")).json(&body);
        let answer = request.send().await.unwrap().json().await.unwrap();
        assert_eq!(outcomes(&answer), ["issued"]);
    }
    assert_eq!(app.count("select from coupon where org_id = 1").await, 0);
    close(holder).await;
    for call in waiting {
        assert_eq!(call.await.unwrap(), "issued");
    }
}

/// If a time-out ends a commit that waits for a standby, the commit succeeds with only a warning. The standby does not have it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coupon_that_no_standby_has_is_748() {
    let (postgres, app) = start_on_own_postgres("standby", &[repeatable_series(1, "")]).await;
    let setting = |value: &'static str| {
        let pool = app.pool.clone();
        async move {
            for statement in [value, "select pg_reload_conf()"] {
                sqlx::raw_sql(statement).execute(&pool).await.unwrap();
            }
        }
    };
    assert_eq!(app.issue_one("before", 1).await, "issued");
    setting("alter system set synchronous_standby_names = 'nobody'").await;
    eventually("the setting holds", async || {
        app.count("select where current_setting('synchronous_standby_names') = 'nobody'").await == 1
    })
    .await;
    assert_eq!(app.issue_one("meanwhile", 1).await, "748");
    setting("alter system reset synchronous_standby_names").await;
    eventually("the service has recovered", async || app.issue_one("after", 1).await == "issued").await;
    app.stop().await;
    tokio::task::spawn_blocking(move || postgres.stop()).await.unwrap().unwrap();
}
