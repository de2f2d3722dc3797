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

/// Asks until it is turned away; those before stay on their way.
async fn until_turned_away(app: &Arc<TestApp>) -> Vec<tokio::task::JoinHandle<reqwest::Response>> {
    let mut taken_on = Vec::new();
    for customer in 0..5000 {
        let mut asked = ask(app, customer);
        match tokio::time::timeout(Duration::from_millis(100), &mut asked).await {
            Err(_elapsed) => taken_on.push(asked),
            Ok(answer) => {
                let answer = answer.unwrap();
                assert_eq!(answer.headers()["retry-after"], "1");
                let told = failure(answer).await;
                assert_eq!((told.0, told.1), (503, 503), "{told:?}");
                return taken_on;
            }
        }
    }
    panic!("nobody was turned away");
}

async fn all_is_well_again(app: Arc<TestApp>, taken_on: Vec<tokio::task::JoinHandle<reqwest::Response>>) {
    let count = taken_on.len();
    for answer in taken_on {
        assert_eq!(outcomes(&answer.await.unwrap().json().await.unwrap()), ["issued"]);
    }
    eventually("another is taken on", async || ask(&app, 9999).await.unwrap().status() == 200).await;
    assert_eq!(app.count("select from coupon").await, count + 1, "nobody who was turned away has a coupon");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_would_wait_too_long_is_turned_away_at_once() {
    let app = start(|settings| settings.issuing.max_wait = Duration::from_millis(500)).await;
    let holder = locked(&app).await;
    let taken_on = until_turned_away(&app).await;
    // Readiness is the database's, and a balancer must not take a busy replica away.
    assert_eq!(app.client().get(app.url("/readyz")).send().await.unwrap().status(), 200);
    close(holder).await;
    all_is_well_again(app, taken_on).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beyond_the_most_requests_another_is_turned_away() {
    let app = start(|settings| {
        settings.issuing.max_wait = Duration::from_mins(1);
        settings.issuing.max_running = 10;
    })
    .await;
    let holder = locked(&app).await;
    let taken_on = until_turned_away(&app).await;
    assert_eq!(taken_on.len(), 10);
    close(holder).await;
    all_is_well_again(app, taken_on).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_that_is_full_turns_away_as_well() {
    let app = start(|settings| {
        settings.issuing.max_wait = Duration::from_mins(1);
        settings.writer.queue = 5;
    })
    .await;
    let holder = locked(&app).await;
    let taken_on = until_turned_away(&app).await;
    close(holder).await;
    all_is_well_again(app, taken_on).await;
}
