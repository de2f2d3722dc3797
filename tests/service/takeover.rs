//! A replica dies with requests open: another one finishes them at once and issues nothing twice. And if both attempts are alive,
//! neither is refused because of a coupon that the other has issued.

use coupon_issuer::provisioning;
use coupon_issuer::verify;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::{ConnectOptions, Executor, PgConnection};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::lifecycle::{Running, serve};
use crate::support::{ORG, TestApp, close, default_series, eventually, new_database, outcomes, repeatable_series};

const RETRY_EVERY: Duration = Duration::from_millis(200);
/// The time-out of a request in seconds: far longer than a test, so that no lease ends during it.
const TIMEOUT: i32 = 300;

/// A process of the service, whose batches are too few and too small for all requests of a test.
fn replica(database: &PgConnectOptions, writers: &str) -> Running {
    let mut command = serve(database);
    for (name, value) in [
        ("RATE_LIMIT__PER_MINUTE", "-1"),
        ("ISSUING__TIMEOUT_SECONDS", &*TIMEOUT.to_string()),
        ("ISSUING__MAX_WAIT_SECONDS", "300"),
        ("WRITER__TASKS", writers),
        ("WRITER__BATCH", "40"),
    ] {
        command.env(format!("COUPON_ISSUER__{name}"), value);
    }
    Running::start(&mut command)
}

/// A caller of one replica.
#[derive(Clone)]
struct Caller {
    client: reqwest::Client,
    url: String,
}

impl Caller {
    fn of(replica: &Running) -> Self {
        let url = format!("http://{}/v2/coupon/bulk/issue", replica.address);
        Self { client: reqwest::Client::new(), url }
    }

    async fn send(&self, key: &str, ids: &[i64]) -> reqwest::Result<(u16, Value)> {
        let body = json!({"seriesIds": ids, "customer": {"id": format!("customer of {key}")}});
        let request = self.client.post(&self.url).basic_auth("store.server", Some("server123")).json(&body);
        let answer = request.header("Idempotency-Key", key).send().await?;
        Ok((answer.status().as_u16(), answer.json().await?))
    }

    /// Retries until there is an answer.
    async fn retry_until_answered(&self, key: &str, ids: &[i64]) -> Value {
        loop {
            match self.send(key, ids).await.unwrap() {
                (200, answer) => return answer,
                (409, _) => sleep(RETRY_EVERY).await,
                (status, answer) => panic!("{key}: {status} {answer}"),
            }
        }
    }

    async fn receipt(&self, key: &str) -> Value {
        let request = self.client.get(format!("{}/{key}", self.url)).basic_auth("store.server", Some("server123"));
        request.send().await.unwrap().json().await.unwrap()
    }
}

async fn count(pool: &PgPool, query: &'static str) -> usize {
    sqlx::query(query).fetch_all(pool).await.unwrap().len()
}

/// The number of sessions that wait for an advisory lock.
async fn waiting(pool: &PgPool) -> usize {
    let waiting = "select from pg_locks where locktype = 'advisory' and not granted
                                 and database = (select oid from pg_database where datname = current_database())";
    count(pool, waiting).await
}

/// A connection that keeps the locks that this statement takes.
async fn holder(database: &PgConnectOptions, lock: &'static str) -> PgConnection {
    let mut holder = database.connect().await.unwrap();
    holder.execute(lock).await.unwrap();
    holder
}

const LOCK_SETTINGS: &str = "begin; select lock_organisation_1(1)";
const LOCK_SERIES_2: &str = "select pg_advisory_lock(hashint8extended(2, 1))";

async fn assert_clean(database: &PgConnectOptions) {
    let report = verify::run(database, None).await.unwrap();
    assert_eq!(report.wrong(), 0, "{report}");
}

/// The number of requests that were taken over within half of their first lease, by the clock of the database.
async fn taken_over_in_time(pool: &PgPool) -> usize {
    let taken_over = "select from keyed_request
                       where attempt > 0 and clock_timestamp() < received_at + make_interval(secs => $1 / 2)";
    sqlx::query(taken_over).bind(TIMEOUT).fetch_all(pool).await.unwrap().len()
}

fn codes(answer: &Value) -> Vec<String> {
    let code = |entity: &Value| entity["result"]["code"].as_str().unwrap().to_owned();
    answer["response"].as_array().unwrap().iter().map(code).collect()
}

/// Some requests have their first coupon but not their second, the others have none. The test ends the calls of the dead replica, as
/// Postgres does by itself if `client_connection_check_interval` is set.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_requests_of_a_killed_replica_are_finished_by_another_long_before_their_leases_end() {
    const KEYS: usize = 100;
    let database = new_database().await;
    let all = [repeatable_series(1, ""), repeatable_series(2, "max_create = 1000"), repeatable_series(3, "")];
    provisioning::apply_text(&database, &format!("{ORG}{}", all.concat())).await.unwrap();
    let pool = PgPoolOptions::new().max_connections(2).connect_lazy_with(database.clone());
    let (first, second) = (replica(&database, "2"), replica(&database, "2"));
    let (at_first, at_second) = (Caller::of(&first), Caller::of(&second));
    // Both replicas have issued before.
    for (caller, key) in [(&at_first, "before"), (&at_second, "also before")] {
        assert_eq!(outcomes(&caller.send(key, &[3]).await.unwrap().1), ["issued"]);
    }

    let settings = holder(&database, LOCK_SETTINGS).await;
    let mut requests = JoinSet::new();
    for number in 0..KEYS {
        let (at_first, at_second) = (at_first.clone(), at_second.clone());
        requests.spawn(async move {
            let key = format!("k-{number}");
            let interrupted = at_first.send(&key, &[1, 2]).await;
            assert!(interrupted.is_err(), "{key} was open when its replica died: {interrupted:?}");
            let answer = at_second.retry_until_answered(&key, &[1, 2]).await;
            (answer, Instant::now())
        });
    }
    eventually("each request has claimed its key", async || {
        count(&pool, "select from keyed_request").await == KEYS + 2
    })
    .await;
    let series = holder(&database, LOCK_SERIES_2).await;
    close(settings).await;
    eventually("second coupons wait for the lock", async || waiting(&pool).await > 0).await;
    let half_done = count(&pool, "select from coupon where series_id = 1").await;
    assert!((1..KEYS).contains(&half_done), "{half_done}");
    assert_eq!(count(&pool, "select from coupon where series_id = 2").await, 0);

    first.signal("-KILL");
    let killed = Instant::now();
    count(
        &pool,
        "select pg_terminate_backend(pid, 10000) from pg_stat_activity
          where datname = current_database() and application_name = 'coupon-issuer writer' and wait_event_type = 'Lock'",
    )
    .await;
    close(series).await;
    first.wait();

    let answers = requests.join_all().await;
    let took = answers.iter().map(|(_, at)| at.duration_since(killed)).max().unwrap();
    println!("{KEYS} requests, {half_done} of them half done, were finished {took:?} after the kill");
    let mut all = HashSet::new();
    for (answer, _) in &answers {
        assert_eq!((&answer["failureCount"], outcomes(answer)), (&json!(0), vec!["issued".to_owned(); 2]));
        all.extend(codes(answer));
    }
    assert_eq!(all.len(), 2 * KEYS);
    for query in ["select from coupon where series_id = 1", "select from coupon where series_id = 2"] {
        assert_eq!(count(&pool, query).await, KEYS, "{query}");
    }
    assert_eq!(taken_over_in_time(&pool).await, KEYS);
    assert_clean(&database).await;
}

/// Postgres does not notice that its client is gone while it runs the client's call.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_call_of_a_dead_replica_runs_its_requests_are_409() {
    const KEYS: usize = 30;
    const IDS: [i64; 3] = [1, 2, 3];
    let database = new_database().await;
    let all = [
        repeatable_series(1, ""),
        repeatable_series(2, "max_create = 1000"),
        repeatable_series(3, "client_handling_type = \"DISC_CODE_PIN\""),
    ];
    provisioning::apply_text(&database, &format!("{ORG}{}", all.concat())).await.unwrap();
    let pool = PgPoolOptions::new().max_connections(2).connect_lazy_with(database.clone());
    pool.execute("insert into pool_code (org_id, series_id, code, position) select 1, 3, 'P' || n, n from generate_series(1, 40) n")
        .await
        .unwrap();
    let (first, second) = (replica(&database, "1"), replica(&database, "1"));
    let (at_first, at_second) = (Caller::of(&first), Caller::of(&second));
    let settings = holder(&database, LOCK_SETTINGS).await;
    let mut requests = JoinSet::new();
    for number in 0..KEYS {
        let at_first = at_first.clone();
        requests.spawn(async move { assert!(at_first.send(&format!("k-{number}"), &IDS).await.is_err()) });
    }
    eventually("each request has claimed its key", async || count(&pool, "select from keyed_request").await == KEYS)
        .await;
    let series = holder(&database, LOCK_SERIES_2).await;
    close(settings).await;
    eventually("the call waits for the lock", async || waiting(&pool).await == 1).await;
    first.signal("-KILL");
    first.wait();
    requests.join_all().await;

    let half_done = count(&pool, "select from coupon").await;
    assert!((1..KEYS).contains(&half_done), "{half_done}");
    // While the call runs, this holds for the requests in it, and for those that the replica never sent.
    for _ in 0..3 {
        for number in 0..KEYS {
            let key = format!("k-{number}");
            let (status, answer) = at_second.send(&key, &IDS).await.unwrap();
            assert_eq!(status, 409, "{answer}");
            let receipt = at_second.receipt(&key).await;
            assert_eq!(receipt["state"], "RUNNING", "{receipt}");
        }
        sleep(RETRY_EVERY).await;
    }
    assert_eq!(count(&pool, "select from coupon").await, half_done);
    assert_eq!(waiting(&pool).await, 1);

    close(series).await;
    let mut requests = JoinSet::new();
    for number in 0..KEYS {
        let at_second = at_second.clone();
        requests.spawn(async move { at_second.retry_until_answered(&format!("k-{number}"), &IDS).await });
    }
    let answers = requests.join_all().await;
    let mut all = HashSet::new();
    for answer in &answers {
        assert_eq!(outcomes(answer), ["issued"; 3]);
        all.extend(codes(answer));
    }
    assert_eq!(all.len(), 3 * KEYS);
    assert_eq!(count(&pool, "select from coupon").await, 3 * KEYS);
    assert_eq!(count(&pool, "select from pool_code").await, 40 - KEYS);
    // The requests that the dead replica's call has finished are not taken over.
    assert_eq!(taken_over_in_time(&pool).await, KEYS - half_done);
    for number in 0..KEYS {
        assert_eq!(at_second.receipt(&format!("k-{number}")).await["state"], "ANSWERED");
    }
}

/// Each series would refuse the customer a second coupon, for a different reason.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_is_never_refused_because_of_its_own_coupon() {
    const ROUNDS: usize = 100;
    const IDS: [i64; 4] = [1, 2, 3, 4];
    let all = [
        default_series(1, ""),
        repeatable_series(2, "max_vouchers_per_user = 1"),
        repeatable_series(3, "min_days_between_vouchers = 1"),
        default_series(4, "max_create = 100000"),
    ];
    for is_natural in [false, true] {
        let org = if is_natural {
            ORG.replace("customer_policy", "natural_key = true\ncustomer_policy")
        } else {
            ORG.to_owned()
        };
        let file = format!("{org}{}", all.concat());
        let first = TestApp::start_with(&file, |_| {}).await;
        let second = TestApp::start_over(first.connect.clone(), &file, |_| {}).await;
        let replicas = Arc::new([first, second]);
        let mut statuses = HashMap::<u16, usize>::new();
        for round in 0..ROUNDS {
            let customer = format!("c-{round}");
            let mut racing = JoinSet::new();
            let mut send = |replica: usize| {
                let (replicas, customer) = (Arc::clone(&replicas), customer.clone());
                racing.spawn(async move {
                    sleep(Duration::from_micros(rand::random_range(0..3000))).await;
                    issue(&replicas[replica], is_natural, &customer, &IDS).await
                });
            };
            if is_natural || round % 4 > 0 {
                send(0);
                send(1);
            } else {
                // The first attempt is marked dead although it lives, so both attempts work on the request.
                let app = &replicas[0];
                let settings = holder(&app.connect, LOCK_SETTINGS).await;
                send(0);
                let mark_dead =
                    "update keyed_request set incarnation = 0 where key_hash = key_hash_1($1) and attempt = 0";
                eventually("the first attempt has claimed its key", async || {
                    let marked = sqlx::query(mark_dead).bind(&customer).execute(&app.pool).await.unwrap();
                    marked.rows_affected() == 1
                })
                .await;
                send(1);
                eventually("the second attempt has taken over", async || {
                    app.count("select from keyed_request where attempt > 0").await == round / 4 + 1
                })
                .await;
                close(settings).await;
            }
            let mut issued = HashSet::new();
            for (status, answer) in racing.join_all().await {
                *statuses.entry(status).or_default() += 1;
                match status {
                    200 => {
                        assert_eq!(outcomes(&answer), ["issued"; 4], "{answer}");
                        issued.insert(codes(&answer));
                    }
                    409 if !is_natural => {}
                    _ => panic!("{status} {answer}"),
                }
            }
            let (status, answer) = issue(&replicas[1], is_natural, &customer, &IDS).await;
            assert_eq!((status, outcomes(&answer)), (200, vec!["issued".to_owned(); 4]), "{answer}");
            issued.insert(codes(&answer));
            assert_eq!(issued.len(), 1, "{issued:?}");
        }
        assert!(statuses[&200] >= ROUNDS, "{statuses:?}");
        assert_eq!(replicas[0].count("select from coupon").await, IDS.len() * ROUNDS);
        assert_clean(&replicas[0].connect).await;
    }
}

/// The clock of the second replica is four days ahead, so there the gap is over. The first attempt had refused by its own clock.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_that_was_taken_over_never_answers_with_its_own_refusal() {
    let file = format!("{ORG}{}{}", repeatable_series(1, ""), repeatable_series(2, "min_days_between_vouchers = 3"));
    let first = TestApp::start_with(&file, |_| {}).await;
    let second = TestApp::start_over(first.connect.clone(), &file, |_| {}).await;
    second.clock.set("2026-11-26T10:00:00Z");
    let (first, second) = (Arc::new(first), Arc::new(second));
    let mut complete = 0;
    for round in 0..20 {
        let customer = format!("c-{round}");
        assert_eq!(first.issue_one(&customer, 2).await, "issued");
        let send = |app: &Arc<TestApp>| {
            let (app, customer) = (Arc::clone(app), customer.clone());
            tokio::spawn(async move { issue(&app, false, &customer, &[1, 2]).await })
        };
        let settings = holder(&first.connect, LOCK_SETTINGS).await;
        let taken_over = send(&first);
        let mark_dead = "update keyed_request set incarnation = 0 where key_hash = key_hash_1($1) and attempt = 0";
        eventually("the first attempt has claimed its key", async || {
            let marked = sqlx::query(mark_dead).bind(&customer).execute(&first.pool).await.unwrap();
            marked.rows_affected() == 1
        })
        .await;
        let answered = send(&second);
        eventually("the second attempt has taken over", async || {
            first.count("select from keyed_request where attempt > 0").await == round + 1
        })
        .await;
        close(settings).await;
        let (status, answer) = answered.await.unwrap();
        assert_eq!((status, outcomes(&answer)), (200, vec!["issued".to_owned(); 2]));
        match taken_over.await.unwrap() {
            (409, _) => {}
            (200, late) => {
                complete += 1;
                assert_eq!(late, answer);
            }
            (status, late) => panic!("{status} {late}"),
        }
    }
    println!("{complete} of 20 attempts that were taken over returned the complete answer");
    assert_clean(&first.connect).await;
}

/// Status and body. The name of the customer is also the key of the request.
async fn issue(app: &TestApp, is_natural: bool, customer: &str, ids: &[i64]) -> (u16, Value) {
    let mut body = json!({"seriesIds": ids, "customer": {"id": customer}});
    if is_natural {
        body["metadata"] = json!({"sourceType": "BILL", "sourceId": customer});
    }
    let mut request = app.post(body.to_string());
    if !is_natural {
        request = request.header("Idempotency-Key", customer);
    }
    let answer = request.send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}
