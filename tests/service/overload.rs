//! More is asked for than the database takes: what would have to wait too long is turned away at once, what was taken on is
//! answered, and all is well as soon as the load is gone.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use sqlx::ConnectOptions;

use crate::support::{ORG, TestApp, close, eventually, failure, outcomes, series};

async fn start(change: impl FnOnce(&mut coupon_issuer::config::Settings)) -> Arc<TestApp> {
    let file = format!("{ORG}{}", series(1, "max_create = 100000"));
    Arc::new(
        TestApp::start_with(&file, |settings| {
            settings.issuing.timeout = Duration::from_mins(1);
            settings.writer.statement_timeout = Duration::from_secs(50);
            change(settings);
        })
        .await,
    )
}

/// While the series is locked, nothing that was sent to the database comes back.
async fn locked(app: &TestApp) -> sqlx::PgConnection {
    let mut holder = app.connect.connect().await.unwrap();
    sqlx::raw_sql("select pg_advisory_lock(hashint8extended(1, 1))").execute(&mut holder).await.unwrap();
    holder
}

fn ask(app: &Arc<TestApp>, customer: usize) -> tokio::task::JoinHandle<reqwest::Response> {
    let app = Arc::clone(app);
    tokio::spawn(async move {
        let body = json!({"seriesIds": [1], "customer": {"id": customer.to_string()}});
        app.post(body.to_string()).send().await.unwrap()
    })
}

/// Asks until one is turned away; those before stay on their way. One that a busy machine is slow to turn away is among them.
async fn until_turned_away(app: &Arc<TestApp>) -> Vec<tokio::task::JoinHandle<reqwest::Response>> {
    let mut on_their_way = Vec::new();
    for customer in 0..5000 {
        let mut asked = ask(app, customer);
        match tokio::time::timeout(Duration::from_millis(100), &mut asked).await {
            Err(_elapsed) => on_their_way.push(asked),
            Ok(answer) => {
                let answer = answer.unwrap();
                assert_eq!(answer.headers()["retry-after"], "1");
                let told = failure(answer).await;
                assert_eq!((told.0, told.1), (503, 503), "{told:?}");
                return on_their_way;
            }
        }
    }
    panic!("nobody was turned away");
}

/// Returns how many were taken on: all of those got a coupon, and nobody else.
async fn all_is_well_again(app: Arc<TestApp>, on_their_way: Vec<tokio::task::JoinHandle<reqwest::Response>>) -> usize {
    let mut issued = 0;
    for answer in on_their_way {
        let answer = answer.await.unwrap();
        if answer.status() == 200 {
            assert_eq!(outcomes(&answer.json().await.unwrap()), ["issued"]);
            issued += 1;
        } else {
            assert_eq!(failure(answer).await.0, 503);
        }
    }
    eventually("another is taken on", async || ask(&app, 9999).await.unwrap().status() == 200).await;
    assert_eq!(app.count("select from coupon").await, issued + 1, "nobody who was turned away has a coupon");
    issued
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_would_wait_too_long_is_turned_away_at_once() {
    let app = start(|settings| settings.issuing.max_wait = Duration::from_millis(500)).await;
    let holder = locked(&app).await;
    let on_their_way = until_turned_away(&app).await;
    // Readiness is the database's, and a balancer must not take a busy replica away.
    assert_eq!(app.client().get(app.url("/readyz")).send().await.unwrap().status(), 200);
    close(holder).await;
    assert!(all_is_well_again(app, on_their_way).await > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beyond_the_most_requests_another_is_turned_away() {
    let app = start(|settings| {
        settings.issuing.max_wait = Duration::from_mins(1);
        settings.issuing.max_running = 10;
    })
    .await;
    let holder = locked(&app).await;
    let on_their_way = until_turned_away(&app).await;
    close(holder).await;
    assert_eq!(all_is_well_again(app, on_their_way).await, 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_that_is_full_turns_away_as_well() {
    let app = start(|settings| {
        settings.issuing.max_wait = Duration::from_mins(1);
        settings.writer.queue = 5;
    })
    .await;
    let holder = locked(&app).await;
    let on_their_way = until_turned_away(&app).await;
    close(holder).await;
    assert!(all_is_well_again(app, on_their_way).await > 0);
}
