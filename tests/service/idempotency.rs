//! Requests with an Idempotency-Key or a natural key (contract 6): a retry finishes the first attempt, however that ended.

use std::sync::Mutex;
use std::time::Duration;

use coupon_issuer::model::{Clock, SystemClock};
use coupon_issuer::provisioning;
use jiff::{SignedDuration, Timestamp};
use reqwest::{RequestBuilder, Response};
use serde_json::{Value, json};
use sqlx::{ConnectOptions, Executor};

use crate::failures::{kill, restart, start_on_own_postgres};
use crate::support::{ORG, TestApp, close, default_series, eventually, failure, outcomes, repeatable_series, tally};

const BODY: &str = r#"{"seriesIds":[1,2],"customer":{"id":"c"}}"#;

fn keyed(app: &TestApp, key: &str, body: &str) -> RequestBuilder {
    app.post(body.to_owned()).header("Idempotency-Key", key)
}

async fn send(app: &TestApp, key: &str, body: &str) -> Response {
    keyed(app, key, body).send().await.unwrap()
}

fn is_replayed(answer: &Response) -> bool {
    answer.headers().get("idempotent-replayed").is_some_and(|value| value == "true")
}

async fn json_of(answer: Response) -> Value {
    assert_eq!(answer.status(), 200);
    answer.json().await.unwrap()
}

async fn get_receipt(app: &TestApp, key: &str) -> Response {
    let url = app.url(&format!("/v2/coupon/bulk/issue/{key}"));
    app.client().get(url).basic_auth("store.server", Some("server123")).send().await.unwrap()
}

#[tokio::test]
async fn a_retry_gets_the_same_response_and_issues_nothing() {
    let app = TestApp::start(&[repeatable_series(1, ""), repeatable_series(2, "max_create = 5")]).await;
    let first = send(&app, "k-1", BODY).await;
    assert!(!is_replayed(&first));
    let first = first.text().await.unwrap();
    app.clock.set("2026-11-23T09:00:00Z");
    for body in [BODY, "{ \"customer\" : {\"id\":\"c\"},\n\"seriesIds\":[1, 2] }"] {
        let again = send(&app, "k-1", body).await;
        assert!(is_replayed(&again));
        assert_eq!(again.text().await.unwrap(), first);
    }
    let quoted = send(&app, "\"k-1\"", BODY).await;
    assert_eq!(quoted.text().await.unwrap(), first);
    assert_eq!(app.count("select from coupon").await, 2);
    assert_eq!(json_of(send(&app, "k-2", BODY).await).await["failureCount"], 0);
    assert_eq!(app.count("select from coupon").await, 4);
}

#[tokio::test]
async fn a_retry_shows_the_series_as_it_was_when_the_coupon_was_issued() {
    let file = |description: &str| {
        let series = default_series(1, "");
        format!("{ORG}{}", series.replace("Series 1", description))
    };
    let app = TestApp::start_with(&file("Old name"), |_| {}).await;
    let body = r#"{"seriesIds":[1],"customer":{"id":"c"}}"#;
    let first = send(&app, "k", body).await.text().await.unwrap();
    assert!(first.contains("Old name"), "{first}");
    provisioning::apply_text(
        &app.connect,
        &file("New name").replace("valid_till_date = \"2027", "valid_till_date = \"2026"),
    )
    .await
    .unwrap();
    assert_eq!(send(&app, "k", body).await.text().await.unwrap(), first);
}

#[tokio::test]
async fn another_body_under_the_same_key_is_422() {
    let app = TestApp::start(&[repeatable_series(1, ""), repeatable_series(2, "")]).await;
    assert_eq!(send(&app, "k", BODY).await.status(), 200);
    for body in [
        r#"{"seriesIds":[2,1],"customer":{"id":"c"}}"#,
        r#"{"seriesIds":[1,2],"customer":{"id":"d"}}"#,
        r#"{"seriesIds":[1,2],"customer":{"id":"c"},"metadata":{"sourceId":"1"}}"#,
    ] {
        let expected = (422, 422, "Idempotency-Key: was used for another request".to_owned());
        assert_eq!(failure(send(&app, "k", body).await).await, expected, "{body}");
    }
    let from_web = app.client().post(app.url("/v2/coupon/bulk/issue?source=WEBSITE")).body(BODY);
    let from_web = from_web.header("Content-Type", "application/json").header("Idempotency-Key", "k");
    assert_eq!(from_web.basic_auth("store.server", Some("server123")).send().await.unwrap().status(), 422);
    assert_eq!(app.count("select from coupon").await, 2);
}

/// The service ignores `customerName`, but not when it compares two bodies. A strict JSON parser rejects or changes these values.
#[tokio::test]
async fn another_body_is_422_even_if_an_ignored_field_holds_odd_json() {
    let app = TestApp::start(&[repeatable_series(1, ""), repeatable_series(2, "")]).await;
    let nested = format!("{}1{}", "[".repeat(200), "]".repeat(200));
    let values = [
        r#""Zoe \ud83d""#,
        r#""\udc00\ud83d\n""#,
        "1e999",
        "-1e-999",
        "18446744073709551617",
        &nested,
        r#"{"a":1,"a":2}"#,
        r#"{"\ud83d":1}"#,
    ];
    for (number, value) in values.into_iter().enumerate() {
        let body = |ids: &str, customer: &str, value: &str| {
            format!(r#"{{"seriesIds":{ids},"customer":{{"id":"{customer}"}},"customerName":{value}}}"#)
        };
        let key = format!("k-{number}");
        let first = send(&app, &key, &body("[1]", "aa", value)).await.text().await.unwrap();
        assert_eq!(outcomes(&serde_json::from_str(&first).unwrap()), ["issued"], "{value}");
        for other in [
            body("[1]", "bb", value),
            body("[1,2,1]", "aa", value),
            body("[1]", "aa", "18446744073709551616"),
            body("[1]", "aa", "[[[[[[[[[[[[2]]]]]]]]]]]]"),
            body("[1]", "aa", "null"),
        ] {
            let expected = (422, 422, "Idempotency-Key: was used for another request".to_owned());
            assert_eq!(failure(send(&app, &key, &other).await).await, expected, "{value}: {other}");
        }
        let spaced = body("[ 1 ]", "aa", value).replace(",\"customerName\"", " , \"customerName\" ");
        for again in [body("[1]", "aa", value), body(r#"["1"]"#, "aa", value), spaced] {
            assert_eq!(send(&app, &key, &again).await.text().await.unwrap(), first, "{value}: {again}");
        }
    }
    assert_eq!(app.count("select from coupon").await, values.len());
}

/// Another version of the service may have stored a refusal that this version cannot read.
#[tokio::test]
async fn a_receipt_shows_an_unreadable_refusal_as_748() {
    let app = TestApp::start(&[repeatable_series(1, "max_create = 0"), repeatable_series(2, "max_create = 0")]).await;
    assert_eq!(outcomes(&json_of(send(&app, "k", BODY).await).await), ["5001", "5001"]);
    for (answers, expected) in [("1!cap_reached 2!blocked", ["5001", "748"]), ("1?x 2~y", ["748", "748"])] {
        sqlx::query("update keyed_request set answers = $1, incarnation = 0")
            .bind(answers)
            .execute(&app.pool)
            .await
            .unwrap();
        let receipt: Value = get_receipt(&app, "k").await.json().await.unwrap();
        assert_eq!(
            (outcomes(&receipt), &receipt["state"]),
            (expected.map(str::to_owned).to_vec(), &json!("INTERRUPTED"))
        );
        assert_eq!([&receipt["response"][0]["entityId"], &receipt["response"][1]["entityId"]], [1, 2]);
    }
}

#[tokio::test]
async fn a_retry_issues_what_was_refused_and_nothing_twice() {
    let file = |cap: &str| format!("{ORG}{}{}", repeatable_series(1, ""), repeatable_series(2, cap));
    let app = TestApp::start_with(&file("max_create = 0"), |_| {}).await;
    let first = json_of(send(&app, "k", BODY).await).await;
    assert_eq!(outcomes(&first), ["issued", "5001"]);
    let again = send(&app, "k", BODY).await;
    assert!(is_replayed(&again));
    assert_eq!(json_of(again).await, first);
    provisioning::apply_text(&app.connect, &file("max_create = 1")).await.unwrap();
    let finished = json_of(send(&app, "k", BODY).await).await;
    assert_eq!(outcomes(&finished), ["issued", "issued"]);
    assert_eq!(finished["response"][0], first["response"][0]);
    assert_eq!(json_of(send(&app, "k", BODY).await).await, finished);
    assert_eq!(app.count("select from coupon").await, 2);
}

#[tokio::test]
async fn a_retry_gets_the_same_coupons_of_every_kind_of_series() {
    let kinds = [
        "",
        "max_create = 9",
        "is_multiple_vouchers_per_user_allowed = false",
        "min_days_between_vouchers = 3",
        "client_handling_type = \"GENERIC\"\ngeneric_code = \"SAME\"",
        "mutual_exclusive_series_ids = [7]",
        "max_vouchers_per_user = 2",
        "client_handling_type = \"DISC_CODE_PIN\"",
    ];
    let all: Vec<String> = kinds.iter().zip(1..).map(|(settings, id)| repeatable_series(id, settings)).collect();
    let app = TestApp::start(&all).await;
    app.pool
        .execute("insert into pool_code (org_id, series_id, code, position) values (1, 8, 'P1', 1), (1, 8, 'P2', 2)")
        .await
        .unwrap();
    let body = r#"{"seriesIds":[1,2,3,4,5,6,8,1],"customer":{"id":"c"}}"#;
    let first = send(&app, "k", body).await.text().await.unwrap();
    assert_eq!(outcomes(&serde_json::from_str(&first).unwrap()), ["issued"; 8]);
    assert_eq!(send(&app, "k", body).await.text().await.unwrap(), first);
    assert_eq!(app.count("select from coupon").await, 8);
}

#[tokio::test]
async fn a_retry_of_a_resend_is_a_resend_and_a_retry_of_an_issuance_is_an_issuance() {
    let app = TestApp::start(&[repeatable_series(1, "do_not_resend_existing_voucher = false")]).await;
    let body = r#"{"seriesIds":[1],"customer":{"id":"c"}}"#;
    assert_eq!(outcomes(&json_of(send(&app, "a", body).await).await), ["issued"]);
    let resent = json_of(send(&app, "b", body).await).await;
    assert_eq!(outcomes(&resent), ["resent"]);
    assert_eq!(json_of(send(&app, "b", body).await).await, resent);
    assert_eq!(outcomes(&json_of(send(&app, "a", body).await).await), ["issued"], "the request that issued it");
    assert_eq!(app.count("select from coupon").await, 1);
    let receipt: Value = get_receipt(&app, "b").await.json().await.unwrap();
    assert_eq!((&receipt["response"], &receipt["state"]), (&resent["response"], &json!("ANSWERED")));
}

#[tokio::test]
async fn a_retry_during_the_first_attempt_is_409_and_the_receipt_says_running() {
    let app = TestApp::start(&[repeatable_series(1, ""), repeatable_series(2, "")]).await;
    let mut apply = app.connect.connect().await.unwrap();
    apply.execute("begin; select lock_organisation_1(1)").await.unwrap();
    let running = tokio::spawn(keyed(&app, "k", BODY).send());
    eventually("the first attempt has claimed its key", async || app.count("select from keyed_request").await == 1)
        .await;
    let refused = send(&app, "k", BODY).await;
    assert_eq!(refused.headers()["retry-after"], "1");
    let message = "Idempotency-Key: this request is still being processed; try again later".to_owned();
    assert_eq!(failure(refused).await, (409, 409, message));
    let receipt: Value = get_receipt(&app, "k").await.json().await.unwrap();
    assert_eq!((&receipt["state"], &receipt["failureCount"]), (&json!("RUNNING"), &json!(2)));
    assert_eq!(outcomes(&receipt), ["748", "748"]);

    close(apply).await;
    let answer = running.await.unwrap().unwrap().text().await.unwrap();
    assert_eq!(send(&app, "k", BODY).await.text().await.unwrap(), answer);
    assert_eq!(app.count("select from coupon").await, 2);
}

/// The claim of a key is not flushed: a crash of the database can lose it while the attempt goes on.
#[tokio::test]
async fn a_claim_that_a_database_crash_loses_is_made_again() {
    let app = TestApp::start(&[repeatable_series(1, ""), repeatable_series(2, "")]).await;
    let mut apply = app.connect.connect().await.unwrap();
    apply.execute("begin; select lock_organisation_1(1)").await.unwrap();
    let running = tokio::spawn(keyed(&app, "k", BODY).send());
    eventually("the first attempt has claimed its key", async || app.count("select from keyed_request").await == 1)
        .await;
    app.pool.execute("delete from keyed_request").await.unwrap();
    close(apply).await;
    let first = running.await.unwrap().unwrap().text().await.unwrap();
    assert!(first.contains("\"failureCount\":0"), "{first}");
    assert_eq!(get_receipt(&app, "k").await.status(), 200);
    assert_eq!(send(&app, "k", r#"{"seriesIds":[1,2,2],"customer":{"id":"c"}}"#).await.status(), 422);
    assert_eq!(send(&app, "k", BODY).await.text().await.unwrap(), first);
    assert_eq!(app.count("select from coupon").await, 2);
}

#[tokio::test]
async fn a_retry_of_an_issued_coupon_does_not_wait_for_stuck_writers() {
    let app = TestApp::start(&[repeatable_series(1, ""), repeatable_series(2, "max_create = 50")]).await;
    let body = r#"{"seriesIds":[1],"customer":{"id":"c"}}"#;
    let first = send(&app, "k", body).await.text().await.unwrap();
    let mut holder = app.connect.connect().await.unwrap();
    holder.execute("select pg_advisory_lock(hashint8extended(2, 1))").await.unwrap();
    let mut stuck = Vec::new();
    for number in 1..=4 {
        let request = keyed(&app, &format!("stuck-{number}"), &body.replace("[1]", "[2]"));
        stuck.push(tokio::spawn(request.send()));
        eventually("another writer waits for the series", async || {
            app.count(
                "select from pg_locks where locktype = 'advisory' and not granted
                                    and database = (select oid from pg_database where datname = current_database())",
            )
            .await
                == number
        })
        .await;
    }
    // Every writer waits, and has waited long enough to count as stuck.
    tokio::time::sleep(Duration::from_millis(150)).await;
    let again = send(&app, "k", body).await;
    assert_eq!(again.text().await.unwrap(), first);
    assert!(stuck.iter().all(|request| !request.is_finished()));
    close(holder).await;
    for request in stuck {
        assert_eq!(request.await.unwrap().unwrap().status(), 200);
    }
}

/// A replica that crashes leaves its coupons, and an attempt without an end.
#[tokio::test]
async fn a_retry_after_a_replica_crash_issues_the_missing_coupon() {
    let app = TestApp::start(&[repeatable_series(1, ""), repeatable_series(2, "")]).await;
    let first = json_of(send(&app, "k", BODY).await).await;
    let mut replica = app.connect.connect().await.unwrap();
    replica.execute("select pg_advisory_lock_shared(20193, 99)").await.unwrap();
    for statement in ["delete from coupon where series_id = 2", "update keyed_request set incarnation = 99"] {
        app.pool.execute(statement).await.unwrap();
    }
    assert_eq!(send(&app, "k", BODY).await.status(), 409, "its replica still runs");
    let receipt: Value = get_receipt(&app, "k").await.json().await.unwrap();
    assert_eq!(receipt["state"], "RUNNING");
    close(replica).await;
    eventually("the replica counts as dead", async || {
        get_receipt(&app, "k").await.json::<Value>().await.unwrap()["state"] != "RUNNING"
    })
    .await;
    let receipt: Value = get_receipt(&app, "k").await.json().await.unwrap();
    assert_eq!(
        (receipt["state"].as_str().unwrap(), outcomes(&receipt)),
        ("INTERRUPTED", vec!["issued".into(), "748".into()])
    );
    let finished = json_of(send(&app, "k", BODY).await).await;
    assert_eq!(finished["response"][0], first["response"][0]);
    assert_eq!(outcomes(&finished), ["issued", "issued"]);
    assert_eq!(app.count("select from coupon").await, 2);
    let receipt: Value = get_receipt(&app, "k").await.json().await.unwrap();
    assert_eq!((&receipt["state"], &receipt["response"]), (&json!("ANSWERED"), &finished["response"]));
}

/// A replica may end an attempt and fail to store that. It still runs, so that only the lease frees the key.
#[tokio::test]
async fn the_lease_ends_an_attempt_whose_end_was_not_stored() {
    let app = TestApp::start(&[repeatable_series(1, ""), repeatable_series(2, "")]).await;
    send(&app, "k", BODY).await;
    let mut replica = app.connect.connect().await.unwrap();
    replica.execute("select pg_advisory_lock_shared(20193, 99)").await.unwrap();
    app.pool
        .execute("delete from coupon where series_id = 2; update keyed_request set incarnation = 99")
        .await
        .unwrap();
    assert_eq!(send(&app, "k", BODY).await.status(), 409);
    app.pool.execute("update keyed_request set received_at = received_at - interval '1 hour'").await.unwrap();
    assert_eq!(outcomes(&json_of(send(&app, "k", BODY).await).await), ["issued", "issued"]);
    assert_eq!(app.count("select from keyed_request where attempt between 64 * 3600 and 64 * 3700").await, 1);
    assert_eq!(app.count("select from coupon").await, 2);
}

/// The first attempt is still at work when a second one takes its key over.
#[tokio::test]
async fn two_attempts_at_once_issue_once() {
    let app = TestApp::start(&[repeatable_series(1, ""), repeatable_series(2, "max_create = 100")]).await;
    for round in 0..10 {
        let key = format!("k-{round}");
        let mut apply = app.connect.connect().await.unwrap();
        apply.execute("begin; select lock_organisation_1(1)").await.unwrap();
        let first = tokio::spawn(keyed(&app, &key, BODY).send());
        eventually("the first attempt has claimed its key", async || {
            app.count("select from keyed_request").await == round + 1
        })
        .await;
        app.pool.execute("update keyed_request set incarnation = 32767 where attempt = 0").await.unwrap();
        let second = tokio::spawn(keyed(&app, &key, BODY).send());
        eventually("the second attempt has taken over", async || {
            app.count("select from keyed_request where attempt > 0").await == round + 1
        })
        .await;
        close(apply).await;
        let second = second.await.unwrap().unwrap();
        let second = json_of(second).await;
        assert_eq!(outcomes(&second), ["issued", "issued"]);
        let first = first.await.unwrap().unwrap();
        // It gets a 409 while the second attempt is at work, and the coupons of the second attempt after that.
        if first.status() != 409 {
            assert_eq!(json_of(first).await, second);
        }
    }
    assert_eq!(app.count("select from coupon").await, 20);
    assert_eq!(app.count("select from series_counter where series_id = 2 and issued = 10").await, 1);
}

#[tokio::test]
async fn of_64_equal_requests_at_once_one_issues_and_the_others_get_its_response_or_409() {
    let app = TestApp::start(&[repeatable_series(1, ""), repeatable_series(2, "max_create = 100")]).await;
    for round in 0..20 {
        let key = format!("k-{round}");
        let mut requests = tokio::task::JoinSet::new();
        for _ in 0..64 {
            requests.spawn(keyed(&app, &key, BODY).send());
        }
        let mut responses = Vec::new();
        for answer in requests.join_all().await {
            let answer = answer.unwrap();
            responses.push(if answer.status() == 200 {
                answer.text().await.unwrap()
            } else {
                answer.status().to_string()
            });
        }
        let responses = tally(responses);
        let bodies = responses.keys().filter(|response| response.starts_with('{')).count();
        assert_eq!(bodies, 1, "{responses:?}");
        assert!(
            responses.keys().all(|response| response.starts_with('{') || response == "409 Conflict"),
            "{responses:?}"
        );
    }
    assert_eq!(app.count("select from coupon").await, 40);
}

/// No claim precedes the coupons here: the first coupon under the key decides which body wins.
#[tokio::test]
async fn of_two_bodies_under_one_key_at_once_one_is_issued_and_the_other_is_422() {
    let app = TestApp::start(&[repeatable_series(1, ""), repeatable_series(2, "")]).await;
    let another = BODY.replace("\"c\"", "\"d\"");
    for round in 0..20 {
        let key = format!("k-{round}");
        let mut requests = tokio::task::JoinSet::new();
        for number in 0..32 {
            requests.spawn(keyed(&app, &key, if number % 2 == 0 { BODY } else { &another }).send());
        }
        let mut responses = Vec::new();
        for answer in requests.join_all().await {
            let answer = answer.unwrap();
            responses.push(if answer.status() == 200 {
                answer.text().await.unwrap()
            } else {
                answer.status().to_string()
            });
        }
        let responses = tally(responses);
        assert_eq!(responses.keys().filter(|response| response.starts_with('{')).count(), 1, "{responses:?}");
        assert_eq!(responses.get("422 Unprocessable Entity"), Some(&16), "{responses:?}");
        assert_eq!(app.count("select from coupon").await, 2 * (round + 1));
        assert_eq!(app.count("select from coupon group by issued_at, customer_id, request_uuid").await, round + 1);
    }
}

/// The first coupon of a request also claims its key. Here the cap of its series refuses most of these coupons.
#[tokio::test]
async fn a_refusal_of_the_first_coupon_leaves_the_second_issued() {
    let app = TestApp::start(&[repeatable_series(1, "max_create = 5"), repeatable_series(2, "")]).await;
    let mut requests = tokio::task::JoinSet::new();
    for number in 0..64 {
        requests.spawn(keyed(&app, &format!("k-{number}"), BODY).send());
    }
    let mut responses = Vec::new();
    for answer in requests.join_all().await {
        responses.push(format!("{:?}", outcomes(&json_of(answer.unwrap()).await)));
    }
    let responses = tally(responses);
    assert_eq!(
        responses.into_iter().collect::<Vec<_>>(),
        [("[\"5001\", \"issued\"]".to_owned(), 59), ("[\"issued\", \"issued\"]".to_owned(), 5)]
    );
    assert_eq!(app.count("select from keyed_request").await, 64);
    for number in 0..64 {
        assert!(is_replayed(&send(&app, &format!("k-{number}"), BODY).await));
    }
    assert_eq!(app.count("select from coupon").await, 69);
}

#[tokio::test]
async fn a_request_with_a_used_key_creates_no_customer() {
    let app = TestApp::start(&[repeatable_series(1, "")]).await;
    let body = |mobile: &str| format!(r#"{{"seriesIds":[1],"customer":{{"mobile":"{mobile}"}}}}"#);
    let first = send(&app, "k", &body("919876543210")).await.text().await.unwrap();
    assert_eq!(send(&app, "k", &body("919876543211")).await.status(), 422);
    assert_eq!(send(&app, "k", &body("919876543210")).await.text().await.unwrap(), first);
    assert_eq!((app.count("select from customer").await, app.count("select from coupon").await), (1, 1));
}

/// A request claims its key before it looks its customer up.
#[tokio::test]
async fn a_request_that_fails_as_a_whole_releases_its_key() {
    let file = format!("{}{}", ORG.replace("\"open\"", "\"registered\""), repeatable_series(1, ""));
    let app = TestApp::start_with(&file, |_| {}).await;
    let body = r#"{"seriesIds":[1],"customer":{"id":"nobody"}}"#;
    for _ in 0..3 {
        assert_eq!(failure(send(&app, "k", body).await).await.1, 701);
    }
    let receipt: Value = get_receipt(&app, "k").await.json().await.unwrap();
    assert_eq!((outcomes(&receipt), &receipt["state"]), (vec!["748".to_owned()], &json!("INTERRUPTED")));
}

#[tokio::test]
async fn keys_belong_to_their_organisation() {
    let other = "[[orgs]]\nid = 2\nname = \"Other\"\ntime_zone = \"UTC\"\ncustomer_policy = \"open\"\ndefault_access = \"write\"\n\
                 [[orgs.stores]]\nid = 20\nname = \"Uptown\"\n[[orgs.tills]]\nid = \"other.till\"\nstore_id = 20\npassword = \"x\"\n";
    let app =
        TestApp::start_with(&format!("{ORG}{}{other}{}", repeatable_series(1, ""), repeatable_series(1, "")), |_| {})
            .await;
    let body = r#"{"seriesIds":[1],"customer":{"id":"c"}}"#;
    let ours = send(&app, "k", body).await.text().await.unwrap();
    let by_other = || app.bare(body).basic_auth("other.till", Some("x")).header("Content-Type", "application/json");
    let get = |key: &str| {
        app.client().get(app.url(&format!("/v2/coupon/bulk/issue/{key}"))).basic_auth("other.till", Some("x"))
    };
    let missing = (404, 404, "No request with this Idempotency-Key is known".to_owned());
    assert_eq!(failure(get("k").send().await.unwrap()).await, missing);
    let theirs = by_other().header("Idempotency-Key", "k").send().await.unwrap();
    assert!(!is_replayed(&theirs));
    assert_ne!(theirs.text().await.unwrap(), ours);
    assert_eq!(app.count("select from coupon").await, 2);
}

#[tokio::test]
async fn a_receipt_needs_read_access_and_shows_the_response() {
    let app = TestApp::start(&[repeatable_series(1, ""), repeatable_series(2, "max_create = 0")]).await;
    let answer = json_of(send(&app, "order 7/a", BODY).await).await;
    let url = app.url("/v2/coupon/bulk/issue/order%207%2Fa");
    let by = |till: &str, password: &str| app.client().get(&url).basic_auth(till, Some(password.to_owned())).send();
    let receipt = json_of(by("office.desk", "office123").await.unwrap()).await;
    assert_eq!(receipt["response"], answer["response"]);
    assert_eq!((&receipt["totalCount"], &receipt["failureCount"]), (&json!(2), &json!(1)));
    assert_eq!(receipt["state"], "ANSWERED");
    // The database sets it, from its own clock.
    let received_at: Timestamp = receipt["receivedAt"].as_str().unwrap().parse().unwrap();
    assert!(received_at.duration_until(SystemClock.now()).abs() < SignedDuration::from_mins(5), "{received_at}");
    assert_eq!(by("office.desk", "wrong").await.unwrap().status(), 401);
    assert_eq!(by("warehouse.gate", "gate123").await.unwrap().status(), 403);
    assert_eq!(get_receipt(&app, "unknown").await.status(), 404);
}

#[tokio::test]
async fn an_invalid_key_is_400() {
    let app = TestApp::start(&[repeatable_series(1, "")]).await;
    let long = "k".repeat(256);
    for key in ["", "\"\"", "\"a\"b\"", "\"a\\n\"", "sch\u{e4}n", &long] {
        let request = app.post(BODY).header("Idempotency-Key", key.as_bytes());
        let message = "Idempotency-Key: must be 1 to 255 printable ASCII characters".to_owned();
        assert_eq!(failure(request.send().await.unwrap()).await, (400, 400, message), "{key}");
    }
    let twice = keyed(&app, "a", BODY).header("Idempotency-Key", "a").send().await.unwrap();
    assert_eq!(failure(twice).await, (400, 400, "Idempotency-Key: comes twice".to_owned()));
    assert_eq!(app.count("select from keyed_request").await, 0);
    let longest = "k".repeat(255);
    assert_eq!(send(&app, &longest, BODY).await.status(), 200);
    assert_eq!(send(&app, "\"a\\\"b\\\\\"", BODY).await.status(), 200);
    assert_eq!(app.count("select from keyed_request where key_hash = key_hash_1('a\"b\\')").await, 1);
}

#[tokio::test]
async fn requests_older_than_two_days_are_purged() {
    let app = TestApp::start(&[repeatable_series(1, ""), repeatable_series(2, "")]).await;
    let kept = send(&app, "kept", BODY).await.text().await.unwrap();
    app.pool
        .execute(
            "insert into keyed_request (org_id, first_coupon_id, fingerprint, received_at, incarnation, attempt, key_hash, answers)
             select 1, 1000000 + n, 0, now() - interval '2 days 1 second', 0, 0, gen_random_uuid(), '1'
               from generate_series(1, 1200) n;
             -- An old request with a recent attempt.
             insert into keyed_request (org_id, first_coupon_id, fingerprint, received_at, incarnation, attempt, key_hash, answers)
             values (1, 2000000, 0, now() - interval '3 days', 0, 64 * 3 * 86400, gen_random_uuid(), '1');
             insert into natural_issuance (org_id, series_id, coupon_id, issued_at, natural_key)
             select 1, 1, n, now() - interval '2 days 1 second', gen_random_uuid() from generate_series(1, 1200) n;
             insert into natural_issuance (org_id, series_id, coupon_id, issued_at, natural_key)
             values (1, 1, 5000, now(), gen_random_uuid())",
        )
        .await
        .unwrap();
    let other = TestApp::start_over(
        app.connect.clone(),
        &format!("{ORG}{}{}", repeatable_series(1, ""), repeatable_series(2, "")),
        |_| {},
    )
    .await;
    eventually("the old ones are purged", async || {
        other.count("select from keyed_request").await == 2 && other.count("select from natural_issuance").await == 1
    })
    .await;
    assert_eq!(send(&other, "kept", BODY).await.text().await.unwrap(), kept);
}

/// The lock of the second series stops its coupon after the first one is committed. Then Postgres is killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_after_a_database_crash_shows_the_first_coupon_and_issues_the_second() {
    let all = [repeatable_series(1, ""), repeatable_series(2, "max_create = 5")];
    let (postgres, app) = start_on_own_postgres("crash-between-coupons", &all).await;
    let mut holder = app.connect.connect().await.unwrap();
    holder.execute("select pg_advisory_lock(hashint8extended(2, 1))").await.unwrap();
    let request = tokio::spawn(keyed(&app, "k", BODY).send());
    eventually("the second coupon waits for its series", async || {
        app.count(
            "select from pg_locks where locktype = 'advisory' and not granted
                                    and database = (select oid from pg_database where datname = current_database())",
        )
        .await
            == 1
    })
    .await;
    let committed: Vec<(i64, String)> =
        sqlx::query_as("select series_id, code from coupon").fetch_all(&app.pool).await.unwrap();
    let [(1, first_code)] = &committed[..] else { panic!("only the first coupon is committed: {committed:?}") };
    // The commit of a coupon does not flush: a flush of the whole log saves the coupon from the crash.
    app.pool.execute("create table flushed ()").await.unwrap();
    kill(&postgres);
    let in_doubt = json_of(request.await.unwrap().unwrap()).await;
    assert_eq!(outcomes(&in_doubt), ["748", "748"]);

    let postgres = restart(postgres).await;
    drop(holder);
    assert_eq!(app.count("select from coupon").await, 1, "the crash lost the first coupon");
    let finished = Mutex::new(Value::Null);
    eventually("a retry issues the second coupon", async || {
        let answer = send(&app, "k", BODY).await;
        if answer.status() != 200 {
            return false;
        }
        let answer: Value = answer.json().await.unwrap();
        let is_finished = outcomes(&answer) == ["issued", "issued"];
        *finished.lock().unwrap() = answer;
        is_finished
    })
    .await;
    let finished = finished.into_inner().unwrap();
    assert_eq!(finished["response"][0]["result"]["code"], first_code.as_str());
    assert_eq!(app.count("select from coupon").await, 2);
    app.stop().await;
    tokio::task::spawn_blocking(|| postgres.stop()).await.unwrap().unwrap();
}

/// A lock on the table stops both coupons until their statements time out.
#[tokio::test]
async fn a_retry_after_a_statement_time_out_issues_both_coupons() {
    let app =
        TestApp::start_with(&format!("{ORG}{}{}", repeatable_series(1, ""), repeatable_series(2, "")), |settings| {
            // The service sends a coupon twice before it gives up: both statements time out before the request does.
            settings.issuing.timeout = Duration::from_secs(15);
            settings.writer.statement_timeout = Duration::from_secs(4);
        })
        .await;
    let mut holder = app.connect.connect().await.unwrap();
    holder.execute("begin; lock table coupon in exclusive mode").await.unwrap();
    let in_doubt = json_of(send(&app, "k", BODY).await).await;
    assert_eq!(outcomes(&in_doubt), ["748", "748"]);
    close(holder).await;
    eventually("a retry issues both", async || {
        let answer = send(&app, "k", BODY).await;
        answer.status() == 200 && outcomes(&answer.json().await.unwrap()) == ["issued", "issued"]
    })
    .await;
    assert_eq!(app.count("select from coupon").await, 2);
}

/// A service whose organisation has natural keys.
async fn start_with_natural_keys(settings: &str) -> TestApp {
    let org = ORG.replace("customer_policy", "natural_key = true\ncustomer_policy");
    TestApp::start_with(&format!("{org}{}{}", repeatable_series(1, settings), repeatable_series(2, "")), |_| {}).await
}

fn with_source(customer: &str, kind: &str, id: &str) -> String {
    json!({"seriesIds": [1, 2], "customer": {"id": customer}, "metadata": {"sourceType": kind, "sourceId": id}})
        .to_string()
}

#[tokio::test]
async fn a_natural_key_replays_an_issuance_without_an_idempotency_key() {
    for settings in ["", "is_multiple_vouchers_per_user_allowed = false", "max_create = 5"] {
        let app = start_with_natural_keys(settings).await;
        let send = async |body: String| app.post(body).send().await.unwrap();
        let first = send(with_source("c", "BILL", "7")).await;
        assert!(!is_replayed(&first));
        let first = first.text().await.unwrap();
        assert_eq!(outcomes(&serde_json::from_str(&first).unwrap()), ["issued", "issued"]);
        let again = send(with_source("c", "BILL", "7")).await;
        assert!(is_replayed(&again));
        assert_eq!(again.text().await.unwrap(), first);
        // The key belongs to each coupon: another order of the series, or a repeated one, finds the same coupons.
        let mixed = json!({"seriesIds": [2, 1, 2], "customer": {"id": "c"}, "metadata": {"sourceType": "BILL", "sourceId": "7"}});
        let mixed = json_of(send(mixed.to_string()).await).await;
        let code = |answer: &Value, index: usize| answer["response"][index]["result"]["code"].clone();
        let first: Value = serde_json::from_str(&first).unwrap();
        assert_eq!(
            [code(&mixed, 0), code(&mixed, 1), code(&mixed, 2)],
            [code(&first, 1), code(&first, 0), code(&first, 1)]
        );
        assert_eq!(app.count("select from coupon").await, 2);
        for (other, (customer, kind, id)) in
            [("d", "BILL", "7"), ("e", "GAME", "7"), ("f", "BILL", "8")].into_iter().enumerate()
        {
            assert!(!is_replayed(&send(with_source(customer, kind, id)).await));
            assert_eq!(app.count("select from coupon").await, 4 + 2 * other);
        }
        // A blank source id makes no natural key.
        let without_source =
            json!({"seriesIds": [2], "customer": {"id": "c"}, "metadata": {"sourceType": "BILL", "sourceId": " "}});
        for _ in 0..2 {
            assert!(!is_replayed(&send(without_source.to_string()).await));
        }
        assert_eq!(app.count("select from coupon").await, 10);
    }
}

#[tokio::test]
async fn of_64_requests_at_once_with_one_natural_key_all_get_the_same_coupons() {
    let app = start_with_natural_keys("max_create = 100").await;
    for round in 0..10 {
        let mut requests = tokio::task::JoinSet::new();
        for _ in 0..64 {
            requests.spawn(app.post(with_source("c", "BILL", &round.to_string())).send());
        }
        let mut responses = Vec::new();
        for answer in requests.join_all().await {
            responses.push(answer.unwrap().text().await.unwrap());
        }
        assert_eq!(tally(responses).into_values().collect::<Vec<_>>(), [64]);
    }
    assert_eq!(app.count("select from coupon").await, 20);
    assert_eq!(app.count("select from series_counter where series_id = 1 and issued = 10").await, 1);
}

#[tokio::test]
async fn natural_keys_count_from_the_apply_that_enables_them() {
    let file = |natural_key: &str| {
        let org = ORG.replace("customer_policy", &format!("{natural_key}customer_policy"));
        format!("{org}{}{}", repeatable_series(1, ""), repeatable_series(2, ""))
    };
    let app = TestApp::start_with(&file(""), |_| {}).await;
    let send = async || app.post(with_source("c", "BILL", "7")).send().await.unwrap();
    for _ in 0..2 {
        assert!(!is_replayed(&send().await));
    }
    let report = provisioning::apply_text(&app.connect, &file("natural_key = true\n")).await.unwrap().to_string();
    assert!(report.starts_with("org 1: natural_key \"false\" -> \"true\""), "{report}");
    assert_eq!([is_replayed(&send().await), is_replayed(&send().await)], [false, true]);
    provisioning::apply_text(&app.connect, &file("")).await.unwrap();
    assert!(!is_replayed(&send().await));
    assert_eq!(app.count("select from coupon").await, 8);
}
