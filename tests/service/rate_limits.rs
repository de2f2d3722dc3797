//! Rate limits: requests per credential, reported in headers, and wrong secrets, which cost more to check. The clock stands still
//! unless a test sets it, so no limit refills by itself.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use coupon_issuer::config::Settings;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::{ORG, TestApp, failure, repeatable_series, tally};

const BODY: &str = r#"{"seriesIds":[1],"customer":{"id":"c"}}"#;

async fn start(file: &str, change: impl FnOnce(&mut Settings)) -> TestApp {
    TestApp::start_with(&format!("{file}{}", repeatable_series(1, "")), |settings| {
        settings.rate_limit.per_minute = 5;
        change(settings);
    })
    .await
}

fn basic(till: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{till}:{password}")))
}

async fn answer(app: &TestApp, authorization: &str) -> reqwest::Response {
    let request = app.bare(BODY).header("Content-Type", "application/json");
    request.header("Authorization", authorization).send().await.unwrap()
}

async fn statuses(app: &TestApp, authorization: &str, count: usize) -> Vec<u16> {
    let mut statuses = Vec::new();
    for _ in 0..count {
        statuses.push(answer(app, authorization).await.status().as_u16());
    }
    statuses
}

async fn token(app: &TestApp) -> String {
    let body = json!({"key": "crm", "secret": "crm-secret"});
    let answer = app.client().post(app.url("/v3/oauth/token/generate")).json(&body).send().await.unwrap();
    let answer: Value = answer.json().await.unwrap();
    format!("Bearer {}", answer["data"]["accessToken"].as_str().unwrap())
}

#[tokio::test]
async fn a_request_beyond_the_limit_is_429_with_the_time_to_retry() {
    let app = start(ORG, |_| {}).await;
    let till = basic("store.server", "server123");
    assert_eq!(statuses(&app, &till, 5).await, [200; 5]);
    let refused = answer(&app, &till).await;
    assert_eq!(refused.headers()["retry-after"], "12");
    assert_eq!(refused.headers()["ratelimit-policy"], "\"requests\";q=5;w=60");
    assert_eq!(refused.headers()["ratelimit"], "\"requests\";r=0;t=12");
    assert_eq!(failure(refused).await, (429, 429, "Too many requests: 5 a minute are allowed".to_owned()));
    assert_eq!(app.count("select from coupon").await, 5);

    app.clock.set("2026-11-22T10:00:11Z");
    assert_eq!(statuses(&app, &till, 1).await, [429]);
    app.clock.set("2026-11-22T10:00:12Z");
    assert_eq!(statuses(&app, &till, 2).await, [200, 429]);
    app.clock.set("2026-11-22T10:05:00Z");
    assert_eq!(statuses(&app, &till, 6).await, [200, 200, 200, 200, 200, 429]);
}

#[tokio::test]
async fn a_limit_is_exact_for_concurrent_requests() {
    let app = start(ORG, |settings| settings.rate_limit.per_minute = 40).await;
    let till = basic("store.server", "server123");
    let mut requests = tokio::task::JoinSet::new();
    for _ in 0..64 {
        let request = app.bare(BODY).header("Content-Type", "application/json").header("Authorization", &till);
        requests.spawn(async move { request.send().await.unwrap().status().to_string() });
    }
    let tally = tally(requests.join_all().await);
    assert_eq!(tally, [("200 OK".to_owned(), 40), ("429 Too Many Requests".to_owned(), 24)].into());
}

#[tokio::test]
async fn each_credential_has_its_own_limit_and_all_tokens_of_a_client_share_one() {
    let app = start(ORG, |_| {}).await;
    let (till, desk) = (basic("store.server", "server123"), basic("office.desk", "office123"));
    assert_eq!(statuses(&app, &till, 6).await, [200, 200, 200, 200, 200, 429]);
    assert_eq!(statuses(&app, &desk, 6).await, [403, 403, 403, 403, 403, 429]);
    // A request for a token counts, too.
    let (one, other) = (token(&app).await, token(&app).await);
    assert_eq!(statuses(&app, &one, 2).await, [200, 200]);
    assert_eq!(statuses(&app, &other, 2).await, [200, 429]);
    assert_eq!(statuses(&app, &one, 1).await, [429]);
    let body = json!({"key": "crm", "secret": "crm-secret"});
    let refused = app.client().post(app.url("/v3/oauth/token/generate")).json(&body).send().await.unwrap();
    assert_eq!(refused.status(), 429);
    let form = [("grant_type", "client_credentials"), ("client_id", "crm"), ("client_secret", "crm-secret")];
    let body: String = form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish();
    let request = app.client().post(app.url("/oauth/token")).body(body);
    let refused = request.header("Content-Type", "application/x-www-form-urlencoded").send().await.unwrap();
    assert_eq!((refused.status().as_u16(), refused.headers()["retry-after"].to_str().unwrap()), (429, "12"));
}

#[tokio::test]
async fn an_organisation_a_till_and_a_client_may_set_their_own_limits() {
    let file = ORG
        .replace("default_access = \"write\"", "default_access = \"write\"\nrate_limit_per_minute = 3")
        .replace("password = \"office123\"", "password = \"office123\"\nrate_limit_per_minute = 1")
        .replace("secret = \"crm-secret\"", "secret = \"crm-secret\"\nrate_limit_per_minute = -1");
    let app = start(&file, |_| {}).await;
    assert_eq!(statuses(&app, &basic("store.server", "server123"), 4).await, [200, 200, 200, 429]);
    assert_eq!(statuses(&app, &basic("office.desk", "office123"), 2).await, [403, 429]);
    assert_eq!(statuses(&app, &token(&app).await, 20).await, [200; 20]);
}

#[tokio::test]
async fn wrong_passwords_are_limited_by_till_and_a_cached_password_still_works() {
    let app = start(ORG, |settings| {
        settings.rate_limit.per_minute = -1;
        settings.rate_limit.failures_per_minute = 3;
    })
    .await;
    let (right, desk) = (basic("store.server", "server123"), basic("office.desk", "office123"));
    assert_eq!(statuses(&app, &right, 1).await, [200]);
    assert_eq!(statuses(&app, &basic("store.server", "wrong"), 5).await, [401, 401, 401, 429, 429]);
    let refused = answer(&app, &basic("store.server", "another")).await;
    let wait: u64 = refused.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=60).contains(&wait), "{wait}");
    let message = "Too many failed attempts to authenticate; try again later".to_owned();
    assert_eq!(failure(refused).await, (429, 429, message));
    assert_eq!(statuses(&app, &right, 2).await, [200, 200], "its password is cached");
    assert_eq!(statuses(&app, &desk, 1).await, [403], "the password of another till is verified");
    // An unknown name is limited like any other, or a caller could find out which names exist.
    assert_eq!(statuses(&app, &basic("nobody", "wrong"), 4).await, [401, 401, 401, 429]);
}

#[tokio::test]
async fn wrong_passwords_are_limited_by_address_across_names() {
    let app = start(ORG, |settings| {
        settings.rate_limit.failures_per_minute_by_address = 4;
        settings.http.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
    })
    .await;
    let status_from = async |address: &str, till: &str| {
        let request = app.bare(BODY).header("Content-Type", "application/json").header("X-Forwarded-For", address);
        // A header that the caller makes up and the proxy passes on.
        let request = request.header("Forwarded", format!("for=\"[2001:db8::{till}]\""));
        request.basic_auth(till, Some("wrong")).send().await.unwrap().status().as_u16()
    };
    let mut statuses = Vec::new();
    for till in ["a", "b", "c", "d", "e", "f"] {
        statuses.push(status_from("203.0.113.9", till).await);
    }
    assert_eq!(statuses, [401, 401, 401, 401, 429, 429]);
    assert_eq!(status_from("203.0.113.10", "e").await, 401);
}

#[tokio::test]
async fn guesses_at_a_name_do_not_lock_out_those_who_know_its_password() {
    let app = start(ORG, |settings| {
        settings.rate_limit.failures_per_minute = 2;
        settings.rate_limit.failures_per_minute_by_name = 5;
        settings.http.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
    })
    .await;
    let status_from = async |address: &str, password: &str| {
        let request = app.bare(BODY).header("Content-Type", "application/json").header("X-Forwarded-For", address);
        request.basic_auth("store.server", Some(password)).send().await.unwrap().status().as_u16()
    };
    for expected in [401, 401, 429] {
        assert_eq!(status_from("203.0.113.1", "wrong").await, expected);
    }
    assert_eq!(status_from("203.0.113.2", "server123").await, 200);
    // The limit by name also stops guesses from many addresses. The cached password still works.
    for (address, expected) in [("3", 401), ("4", 401), ("5", 401), ("6", 429)] {
        assert_eq!(status_from(&format!("203.0.113.{address}"), "wrong").await, expected, "{address}");
    }
    assert_eq!(status_from("203.0.113.7", "server123").await, 200);
}

#[tokio::test]
async fn a_wrong_password_counts_even_if_the_caller_hangs_up() {
    let app = start(ORG, |settings| settings.rate_limit.failures_per_minute = 3).await;
    // A busy machine may be slow to count, so there are three attempts. The request that checks counts as well, but three of those
    // alone are not refused.
    for attempt in 0..3 {
        hang_up_fifty_times(&app, attempt).await;
        if statuses(&app, &basic("store.server", "wrong"), 1).await == [429] {
            return;
        }
    }
    panic!("no caller that hung up was counted");
}

async fn hang_up_fifty_times(app: &TestApp, attempt: usize) {
    for number in 0..50 {
        let head = format!(
            "POST /v2/coupon/bulk/issue HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nAuthorization: {}\r\n\r\n",
            basic("store.server", &format!("wrong-{attempt}-{number}"))
        );
        let mut stream = TcpStream::connect(app.address).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        // In some cases long enough for the check of the password to begin, and always too short for it to end.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
}

#[tokio::test]
async fn bad_tokens_from_an_address_do_not_limit_its_good_ones() {
    let app = start(ORG, |settings| {
        settings.rate_limit.per_minute = -1;
        settings.rate_limit.failures_per_minute_by_address = 3;
    })
    .await;
    let good = token(&app).await;
    assert_eq!(statuses(&app, "Bearer no.such.token", 6).await, [401; 6]);
    assert_eq!(statuses(&app, &basic("nobody", "wrong"), 1).await, [429], "the bad tokens count against the address");
    assert_eq!(statuses(&app, &good, 1).await, [200]);
}

/// Few passwords are verified, however many requests arrive before the first has failed.
#[tokio::test]
async fn few_of_many_concurrent_wrong_passwords_are_verified() {
    let app = start(ORG, |settings| settings.rate_limit.failures_per_minute = 3).await;
    let mut requests = tokio::task::JoinSet::new();
    for number in 0..64 {
        let request = app.bare(BODY).header("Content-Type", "application/json");
        let request = request.basic_auth("store.server", Some(format!("wrong-{number}")));
        requests.spawn(async move { request.send().await.unwrap().status().as_u16() });
    }
    let statuses = requests.join_all().await;
    let verified = statuses.iter().filter(|status| **status == 401).count();
    assert!((3..=5).contains(&verified), "{verified}");
    assert!(statuses.iter().all(|status| [401, 429].contains(status)));
}
