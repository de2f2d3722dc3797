//! More load than the database can take: the service sheds requests that would wait too long, answers those that it accepted, and
//! recovers when the load ends.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use sqlx::ConnectOptions;

use crate::support::{ORG, TestApp, close, eventually, failure, outcomes, repeatable_series};

async fn start(change: impl FnOnce(&mut coupon_issuer::config::Settings)) -> Arc<TestApp> {
    let file = format!("{ORG}{}", repeatable_series(1, "max_create = 100000"));
    Arc::new(
        TestApp::start_with(&file, |settings| {
            settings.issuing.timeout = Duration::from_mins(1);
            settings.writer.statement_timeout = Duration::from_secs(50);
            change(settings);
        })
        .await,
    )
}

/// Locks the series. Until the connection closes, the database writes no coupon of it.
async fn locked(app: &TestApp) -> sqlx::PgConnection {
    let mut holder = app.connect.connect().await.unwrap();
    sqlx::raw_sql("select pg_advisory_lock(hashint8extended(1, 1))").execute(&mut holder).await.unwrap();
    holder
}

fn send(app: &Arc<TestApp>, customer: usize) -> tokio::task::JoinHandle<reqwest::Response> {
    let app = Arc::clone(app);
    tokio::spawn(async move {
        let body = json!({"seriesIds": [1], "customer": {"id": customer.to_string()}});
        app.post(body.to_string()).send().await.unwrap()
    })
}

/// Sends requests until one is shed, and returns the pending ones. On a busy machine, these may include some that are shed late.
async fn send_until_shed(app: &Arc<TestApp>) -> Vec<tokio::task::JoinHandle<reqwest::Response>> {
    let mut pending = Vec::new();
    for customer in 0..5000 {
        let mut request = send(app, customer);
        match tokio::time::timeout(Duration::from_millis(100), &mut request).await {
            Err(_elapsed) => pending.push(request),
            Ok(answer) => {
                let answer = answer.unwrap();
                assert_eq!(answer.headers()["retry-after"], "1");
                let refused = failure(answer).await;
                assert_eq!((refused.0, refused.1), (503, 503), "{refused:?}");
                return pending;
            }
        }
    }
    panic!("no request was shed");
}

/// Returns how many requests were accepted. All of those got a coupon, and no others.
async fn assert_recovers(app: Arc<TestApp>, pending: Vec<tokio::task::JoinHandle<reqwest::Response>>) -> usize {
    let mut issued = 0;
    for answer in pending {
        let answer = answer.await.unwrap();
        if answer.status() == 200 {
            assert_eq!(outcomes(&answer.json().await.unwrap()), ["issued"]);
            issued += 1;
        } else {
            assert_eq!(failure(answer).await.0, 503);
        }
    }
    eventually("a new request is accepted", async || send(&app, 9999).await.unwrap().status() == 200).await;
    assert_eq!(app.count("select from coupon").await, issued + 1, "a request that was shed got no coupon");
    issued
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_would_wait_too_long_is_shed_at_once() {
    let app = start(|settings| settings.issuing.max_wait = Duration::from_millis(500)).await;
    let holder = locked(&app).await;
    let pending = send_until_shed(&app).await;
    // Load does not make a replica unready: a load balancer must not remove a busy one.
    assert_eq!(app.client().get(app.url("/readyz")).send().await.unwrap().status(), 200);
    close(holder).await;
    assert!(assert_recovers(app, pending).await > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_beyond_max_running_is_shed() {
    let app = start(|settings| {
        settings.issuing.max_wait = Duration::from_mins(1);
        settings.issuing.max_running = 10;
    })
    .await;
    let holder = locked(&app).await;
    let pending = send_until_shed(&app).await;
    close(holder).await;
    assert_eq!(assert_recovers(app, pending).await, 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_sheds_requests() {
    let app = start(|settings| {
        settings.issuing.max_wait = Duration::from_mins(1);
        settings.writer.queue = 5;
    })
    .await;
    let holder = locked(&app).await;
    let pending = send_until_shed(&app).await;
    close(holder).await;
    assert!(assert_recovers(app, pending).await > 0);
}
