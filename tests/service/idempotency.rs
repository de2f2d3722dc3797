//! Requests with an Idempotency-Key, or a natural one (contract 6).
//! A retry finishes what an earlier attempt began, whatever became of it.

use coupon_issuer::provisioning;
use std::time::Duration;

use coupon_issuer::model::{Clock, SystemClock};
use jiff::{SignedDuration, Timestamp};
use reqwest::{RequestBuilder, Response};
use serde_json::{Value, json};
use sqlx::{ConnectOptions, Executor};

use crate::support::{ORG, TestApp, close, eventually, failure, outcomes, series, tally};

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

async fn receipt(app: &TestApp, key: &str) -> Response {
    let url = app.url(&format!("/v2/coupon/bulk/issue/{key}"));
    app.client().get(url).basic_auth("store.server", Some("server123")).send().await.unwrap()
}

#[tokio::test]
async fn a_retry_is_answered_as_the_first_time_and_issues_nothing() {
    let app = TestApp::start(&[series(1, ""), series(2, "max_create = 5")]).await;
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
async fn a_coupon_comes_back_as_it_was_though_its_series_has_changed() {
    let file = |description: &str| {
        let series = series(1, "is_multiple_vouchers_per_user_allowed = false");
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
    let app = TestApp::start(&[series(1, ""), series(2, "")]).await;
    assert_eq!(send(&app, "k", BODY).await.status(), 200);
    for body in [
        r#"{"seriesIds":[2,1],"customer":{"id":"c"}}"#,
        r#"{"seriesIds":[1,2],"customer":{"id":"d"}}"#,
        r#"{"seriesIds":[1,2],"customer":{"id":"c"},"metadata":{"sourceId":"1"}}"#,
    ] {
        let told = (422, 422, "Idempotency-Key: was used for another request".to_owned());
        assert_eq!(failure(send(&app, "k", body).await).await, told, "{body}");
    }
    let from_web = app.client().post(app.url("/v2/coupon/bulk/issue?source=WEBSITE")).body(BODY);
    let from_web = from_web.header("Content-Type", "application/json").header("Idempotency-Key", "k");
    assert_eq!(from_web.basic_auth("store.server", Some("server123")).send().await.unwrap().status(), 422);
    assert_eq!(app.count("select from coupon").await, 2);
}

/// What a field that is ignored may hold, and a stricter parser does not read.
#[tokio::test]
async fn whatever_a_body_holds_it_is_told_from_another() {
    let app = TestApp::start(&[series(1, ""), series(2, "")]).await;
    let nested = format!("{}1{}", "[".repeat(200), "]".repeat(200));
    let held = [
        r#""Zoe \ud83d""#,
        r#""\udc00\ud83d\n""#,
        "1e999",
        "-1e-999",
        "18446744073709551617",
        &nested,
        r#"{"a":1,"a":2}"#,
        r#"{"\ud83d":1}"#,
    ];
    for (number, held) in held.into_iter().enumerate() {
        let body = |ids: &str, customer: &str, held: &str| {
            format!(r#"{{"seriesIds":{ids},"customer":{{"id":"{customer}"}},"customerName":{held}}}"#)
        };
        let key = format!("k-{number}");
        let first = send(&app, &key, &body("[1]", "aa", held)).await.text().await.unwrap();
        assert_eq!(outcomes(&serde_json::from_str(&first).unwrap()), ["issued"], "{held}");
        for other in [
            body("[1]", "bb", held),
            body("[1,2,1]", "aa", held),
            body("[1]", "aa", "18446744073709551616"),
            body("[1]", "aa", "[[[[[[[[[[[[2]]]]]]]]]]]]"),
            body("[1]", "aa", "null"),
        ] {
            let told = (422, 422, "Idempotency-Key: was used for another request".to_owned());
            assert_eq!(failure(send(&app, &key, &other).await).await, told, "{held}: {other}");
        }
        let spaced = body("[ 1 ]", "aa", held).replace(",\"customerName\"", " , \"customerName\" ");
        for again in [body("[1]", "aa", held), body(r#"["1"]"#, "aa", held), spaced] {
            assert_eq!(send(&app, &key, &again).await.text().await.unwrap(), first, "{held}: {again}");
        }
    }
    assert_eq!(app.count("select from coupon").await, held.len());
}

/// What another version has stored of a refusal is not known; that is not the same as nothing.
#[tokio::test]
async fn a_receipt_tells_what_it_can_read() {
    let app = TestApp::start(&[series(1, "max_create = 0"), series(2, "max_create = 0")]).await;
    assert_eq!(outcomes(&json_of(send(&app, "k", BODY).await).await), ["5001", "5001"]);
    for (answers, told) in [("1!cap_reached 2!blocked", ["5001", "748"]), ("1?x 2~y", ["748", "748"])] {
        sqlx::query("update keyed_request set answers = $1, incarnation = 0")
            .bind(answers)
            .execute(&app.pool)
            .await
            .unwrap();
        let known: Value = receipt(&app, "k").await.json().await.unwrap();
        assert_eq!((outcomes(&known), &known["state"]), (told.map(str::to_owned).to_vec(), &json!("INTERRUPTED")));
        assert_eq!([&known["response"][0]["entityId"], &known["response"][1]["entityId"]], [1, 2]);
    }
}

#[tokio::test]
async fn a_retry_issues_what_was_refused_before_and_nothing_else() {
    let file = |cap: &str| format!("{ORG}{}{}", series(1, ""), series(2, cap));
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
async fn every_kind_of_series_comes_back_as_it_was() {
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
    let all: Vec<String> = kinds.iter().zip(1..).map(|(settings, id)| series(id, settings)).collect();
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
async fn a_coupon_that_was_sent_again_is_tried_again() {
    let app = TestApp::start(&[series(1, "do_not_resend_existing_voucher = false")]).await;
    let body = r#"{"seriesIds":[1],"customer":{"id":"c"}}"#;
    assert_eq!(outcomes(&json_of(send(&app, "a", body).await).await), ["issued"]);
    let resent = json_of(send(&app, "b", body).await).await;
    assert_eq!(outcomes(&resent), ["resent"]);
    assert_eq!(json_of(send(&app, "b", body).await).await, resent);
    assert_eq!(outcomes(&json_of(send(&app, "a", body).await).await), ["issued"], "it is what that request has issued");
    assert_eq!(app.count("select from coupon").await, 1);
    let told: Value = receipt(&app, "b").await.json().await.unwrap();
    assert_eq!((&told["response"], &told["state"]), (&resent["response"], &json!("ANSWERED")));
}

#[tokio::test]
async fn while_it_is_running_it_is_409_and_its_receipt_says_so() {
    let app = TestApp::start(&[series(1, ""), series(2, "")]).await;
    let mut apply = app.connect.connect().await.unwrap();
    apply.execute("begin; select lock_organisation_1(1)").await.unwrap();
    let running = tokio::spawn(keyed(&app, "k", BODY).send());
    eventually("it has begun", async || app.count("select from keyed_request").await == 1).await;
    let refused = send(&app, "k", BODY).await;
    assert_eq!(refused.headers()["retry-after"], "1");
    let told = "Idempotency-Key: this request is still being processed; try again later".to_owned();
    assert_eq!(failure(refused).await, (409, 409, told));
    let known: Value = receipt(&app, "k").await.json().await.unwrap();
    assert_eq!((&known["state"], &known["failureCount"]), (&json!("RUNNING"), &json!(2)));
    assert_eq!(outcomes(&known), ["748", "748"]);

    close(apply).await;
    let answer = running.await.unwrap().unwrap().text().await.unwrap();
    assert_eq!(send(&app, "k", BODY).await.text().await.unwrap(), answer);
    assert_eq!(app.count("select from coupon").await, 2);
}

/// The beginning is not flushed: a crash of the database can take it back while the attempt goes on.
#[tokio::test]
async fn a_beginning_that_a_crash_takes_back_is_made_again() {
    let app = TestApp::start(&[series(1, ""), series(2, "")]).await;
    let mut apply = app.connect.connect().await.unwrap();
    apply.execute("begin; select lock_organisation_1(1)").await.unwrap();
    let running = tokio::spawn(keyed(&app, "k", BODY).send());
    eventually("it has begun", async || app.count("select from keyed_request").await == 1).await;
    app.pool.execute("delete from keyed_request").await.unwrap();
    close(apply).await;
    let first = running.await.unwrap().unwrap().text().await.unwrap();
    assert!(first.contains("\"failureCount\":0"), "{first}");
    assert_eq!(receipt(&app, "k").await.status(), 200);
    assert_eq!(send(&app, "k", r#"{"seriesIds":[1,2,2],"customer":{"id":"c"}}"#).await.status(), 422);
    assert_eq!(send(&app, "k", BODY).await.text().await.unwrap(), first);
    assert_eq!(app.count("select from coupon").await, 2);
}

/// What was issued is shown again, whatever the coupons of others wait for.
#[tokio::test]
async fn a_retry_of_what_is_issued_waits_for_nobody() {
    let app = TestApp::start(&[series(1, ""), series(2, "max_create = 50")]).await;
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
    // Every writer does, and has for as long as to be known for it.
    tokio::time::sleep(Duration::from_millis(150)).await;
    let again = send(&app, "k", body).await;
    assert_eq!(again.text().await.unwrap(), first);
    assert!(stuck.iter().all(|request| !request.is_finished()));
    close(holder).await;
    for request in stuck {
        assert_eq!(request.await.unwrap().unwrap().status(), 200);
    }
}

/// The crash of a replica leaves an attempt that never ends, and coupons that it has issued.
#[tokio::test]
async fn a_retry_finishes_what_a_crash_has_cut_short() {
    let app = TestApp::start(&[series(1, ""), series(2, "")]).await;
    let first = json_of(send(&app, "k", BODY).await).await;
    let mut replica = app.connect.connect().await.unwrap();
    replica.execute("select pg_advisory_lock_shared(20193, 99)").await.unwrap();
    for statement in ["delete from coupon where series_id = 2", "update keyed_request set incarnation = 99"] {
        app.pool.execute(statement).await.unwrap();
    }
    assert_eq!(send(&app, "k", BODY).await.status(), 409, "its replica lives");
    let known: Value = receipt(&app, "k").await.json().await.unwrap();
    assert_eq!(known["state"], "RUNNING");
    close(replica).await;
    eventually("it is known to be dead", async || {
        receipt(&app, "k").await.json::<Value>().await.unwrap()["state"] != "RUNNING"
    })
    .await;
    let known: Value = receipt(&app, "k").await.json().await.unwrap();
    assert_eq!(
        (known["state"].as_str().unwrap(), outcomes(&known)),
        ("INTERRUPTED", vec!["issued".into(), "748".into()])
    );
    let finished = json_of(send(&app, "k", BODY).await).await;
    assert_eq!(finished["response"][0], first["response"][0]);
    assert_eq!(outcomes(&finished), ["issued", "issued"]);
    assert_eq!(app.count("select from coupon").await, 2);
    let known: Value = receipt(&app, "k").await.json().await.unwrap();
    assert_eq!((&known["state"], &known["response"]), (&json!("ANSWERED"), &finished["response"]));
}

/// A replica that lives, but ended an attempt and could not store that: its lease ends it.
#[tokio::test]
async fn a_lease_ends_an_attempt_whose_end_is_not_stored() {
    let app = TestApp::start(&[series(1, ""), series(2, "")]).await;
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

/// An attempt that was believed to be over, and was not: what it has not issued yet, the other issues.
#[tokio::test]
async fn two_attempts_at_once_issue_once() {
    let app = TestApp::start(&[series(1, ""), series(2, "max_create = 100")]).await;
    for round in 0..10 {
        let key = format!("k-{round}");
        let mut apply = app.connect.connect().await.unwrap();
        apply.execute("begin; select lock_organisation_1(1)").await.unwrap();
        let first = tokio::spawn(keyed(&app, &key, BODY).send());
        eventually("it has begun", async || app.count("select from keyed_request").await == round + 1).await;
        app.pool.execute("update keyed_request set incarnation = 32767 where attempt = 0").await.unwrap();
        let second = tokio::spawn(keyed(&app, &key, BODY).send());
        eventually("the second has taken it over", async || {
            app.count("select from keyed_request where attempt > 0").await == round + 1
        })
        .await;
        close(apply).await;
        let second = second.await.unwrap().unwrap();
        let second = json_of(second).await;
        assert_eq!(outcomes(&second), ["issued", "issued"]);
        let first = first.await.unwrap().unwrap();
        // It finds that another attempt is at work, or what that has issued.
        if first.status() != 409 {
            assert_eq!(json_of(first).await, second);
        }
    }
    assert_eq!(app.count("select from coupon").await, 20);
    assert_eq!(app.count("select from series_counter where series_id = 2 and issued = 10").await, 1);
}

#[tokio::test]
async fn of_64_who_send_the_same_at_once_one_issues_and_the_others_learn_of_it() {
    let app = TestApp::start(&[series(1, ""), series(2, "max_create = 100")]).await;
    for round in 0..20 {
        let key = format!("k-{round}");
        let mut asking = tokio::task::JoinSet::new();
        for _ in 0..64 {
            asking.spawn(keyed(&app, &key, BODY).send());
        }
        let mut told = Vec::new();
        for answer in asking.join_all().await {
            let answer = answer.unwrap();
            told.push(if answer.status() == 200 { answer.text().await.unwrap() } else { answer.status().to_string() });
        }
        let told = tally(told);
        let bodies = told.keys().filter(|told| told.starts_with('{')).count();
        assert_eq!(bodies, 1, "{told:?}");
        assert!(told.keys().all(|told| told.starts_with('{') || told == "409 Conflict"), "{told:?}");
    }
    assert_eq!(app.count("select from coupon").await, 40);
}

/// Nobody has looked which of them was there first: the key's first coupon decides.
#[tokio::test]
async fn of_two_bodies_under_one_key_at_once_one_is_issued_and_the_other_is_422() {
    let app = TestApp::start(&[series(1, ""), series(2, "")]).await;
    let another = BODY.replace("\"c\"", "\"d\"");
    for round in 0..20 {
        let key = format!("k-{round}");
        let mut asking = tokio::task::JoinSet::new();
        for number in 0..32 {
            asking.spawn(keyed(&app, &key, if number % 2 == 0 { BODY } else { &another }).send());
        }
        let mut told = Vec::new();
        for answer in asking.join_all().await {
            let answer = answer.unwrap();
            told.push(if answer.status() == 200 { answer.text().await.unwrap() } else { answer.status().to_string() });
        }
        let told = tally(told);
        assert_eq!(told.keys().filter(|told| told.starts_with('{')).count(), 1, "{told:?}");
        assert_eq!(told.get("422 Unprocessable Entity"), Some(&16), "{told:?}");
        assert_eq!(app.count("select from coupon").await, 2 * (round + 1));
        assert_eq!(app.count("select from coupon group by issued_at, customer_id, request_uuid").await, round + 1);
    }
}

/// The series that goes first runs out under them: the others are issued all the same, each under its own key.
#[tokio::test]
async fn a_first_coupon_that_is_refused_as_it_is_written_takes_no_other_with_it() {
    let app = TestApp::start(&[series(1, "max_create = 5"), series(2, "")]).await;
    let mut asking = tokio::task::JoinSet::new();
    for number in 0..64 {
        asking.spawn(keyed(&app, &format!("k-{number}"), BODY).send());
    }
    let mut told = Vec::new();
    for answer in asking.join_all().await {
        told.push(format!("{:?}", outcomes(&json_of(answer.unwrap()).await)));
    }
    let told = tally(told);
    assert_eq!(
        told.into_iter().collect::<Vec<_>>(),
        [("[\"5001\", \"issued\"]".to_owned(), 59), ("[\"issued\", \"issued\"]".to_owned(), 5)]
    );
    assert_eq!(app.count("select from keyed_request").await, 64);
    for number in 0..64 {
        assert!(is_replayed(&send(&app, &format!("k-{number}"), BODY).await));
    }
    assert_eq!(app.count("select from coupon").await, 69);
}

#[tokio::test]
async fn a_key_that_was_used_for_something_else_makes_no_customer() {
    let app = TestApp::start(&[series(1, "")]).await;
    let body = |mobile: &str| format!(r#"{{"seriesIds":[1],"customer":{{"mobile":"{mobile}"}}}}"#);
    let first = send(&app, "k", &body("919876543210")).await.text().await.unwrap();
    assert_eq!(send(&app, "k", &body("919876543211")).await.status(), 422);
    assert_eq!(send(&app, "k", &body("919876543210")).await.text().await.unwrap(), first);
    assert_eq!((app.count("select from customer").await, app.count("select from coupon").await), (1, 1));
}

/// It claimed its key before its customer was looked for.
#[tokio::test]
async fn a_request_that_is_refused_as_a_whole_gives_its_key_back() {
    let file = format!("{}{}", ORG.replace("\"open\"", "\"registered\""), series(1, ""));
    let app = TestApp::start_with(&file, |_| {}).await;
    let body = r#"{"seriesIds":[1],"customer":{"id":"nobody"}}"#;
    for _ in 0..3 {
        assert_eq!(failure(send(&app, "k", body).await).await.1, 701);
    }
    let known: Value = receipt(&app, "k").await.json().await.unwrap();
    assert_eq!((outcomes(&known), &known["state"]), (vec!["748".to_owned()], &json!("INTERRUPTED")));
}

#[tokio::test]
async fn keys_belong_to_their_organisation() {
    let other = "[[orgs]]\nid = 2\nname = \"Other\"\ntime_zone = \"UTC\"\ncustomer_policy = \"open\"\ndefault_access = \"write\"\n\
                 [[orgs.stores]]\nid = 20\nname = \"Uptown\"\n[[orgs.tills]]\nid = \"other.till\"\nstore_id = 20\npassword = \"x\"\n";
    let app = TestApp::start_with(&format!("{ORG}{}{other}{}", series(1, ""), series(1, "")), |_| {}).await;
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
async fn a_receipt_needs_read_access_and_tells_what_the_answer_told() {
    let app = TestApp::start(&[series(1, ""), series(2, "max_create = 0")]).await;
    let answer = json_of(send(&app, "order 7/a", BODY).await).await;
    let url = app.url("/v2/coupon/bulk/issue/order%207%2Fa");
    let by = |till: &str, password: &str| app.client().get(&url).basic_auth(till, Some(password.to_owned())).send();
    let known = json_of(by("office.desk", "office123").await.unwrap()).await;
    assert_eq!(known["response"], answer["response"]);
    assert_eq!((&known["totalCount"], &known["failureCount"]), (&json!(2), &json!(1)));
    assert_eq!(known["state"], "ANSWERED");
    // By the database's clock.
    let received_at: Timestamp = known["receivedAt"].as_str().unwrap().parse().unwrap();
    assert!(received_at.duration_until(SystemClock.now()).abs() < SignedDuration::from_mins(5), "{received_at}");
    assert_eq!(by("office.desk", "wrong").await.unwrap().status(), 401);
    assert_eq!(by("warehouse.gate", "gate123").await.unwrap().status(), 403);
    assert_eq!(receipt(&app, "unknown").await.status(), 404);
}

#[tokio::test]
async fn a_key_that_cannot_be_one_is_400() {
    let app = TestApp::start(&[series(1, "")]).await;
    let long = "k".repeat(256);
    for key in ["", "\"\"", "\"a\"b\"", "\"a\\n\"", "sch\u{e4}n", &long] {
        let request = app.post(BODY).header("Idempotency-Key", key.as_bytes());
        let told = "Idempotency-Key: must be 1 to 255 printable ASCII characters".to_owned();
        assert_eq!(failure(request.send().await.unwrap()).await, (400, 400, told), "{key}");
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
async fn what_is_older_than_two_days_is_purged() {
    let app = TestApp::start(&[series(1, ""), series(2, "")]).await;
    let kept = send(&app, "kept", BODY).await.text().await.unwrap();
    app.pool
        .execute(
            "insert into keyed_request (org_id, first_coupon_id, fingerprint, received_at, incarnation, attempt, key_hash, answers)
             select 1, 1000000 + n, 0, now() - interval '2 days 1 second', 0, 0, gen_random_uuid(), '1'
               from generate_series(1, 1200) n;
             -- Somebody is just trying it again.
             insert into keyed_request (org_id, first_coupon_id, fingerprint, received_at, incarnation, attempt, key_hash, answers)
             values (1, 2000000, 0, now() - interval '3 days', 0, 64 * 3 * 86400, gen_random_uuid(), '1');
             insert into natural_issuance (org_id, series_id, coupon_id, issued_at, natural_key)
             select 1, 1, n, now() - interval '2 days 1 second', gen_random_uuid() from generate_series(1, 1200) n;
             insert into natural_issuance (org_id, series_id, coupon_id, issued_at, natural_key)
             values (1, 1, 5000, now(), gen_random_uuid())",
        )
        .await
        .unwrap();
    let other =
        TestApp::start_over(app.connect.clone(), &format!("{ORG}{}{}", series(1, ""), series(2, "")), |_| {}).await;
    eventually("they are gone", async || {
        other.count("select from keyed_request").await == 2 && other.count("select from natural_issuance").await == 1
    })
    .await;
    assert_eq!(send(&other, "kept", BODY).await.text().await.unwrap(), kept);
}

/// The connection breaks in the middle: the answer does not know, the retry finds out.
#[tokio::test]
async fn a_retry_finds_out_what_an_answer_did_not_know() {
    let app = TestApp::start_with(&format!("{ORG}{}{}", series(1, ""), series(2, "")), |settings| {
        // A coupon that waits is tried twice: both end before the request does.
        settings.issuing.timeout = Duration::from_secs(15);
        settings.writer.statement_timeout = Duration::from_secs(4);
    })
    .await;
    // The second entity's coupon waits, the first one's is committed by then.
    let mut holder = app.connect.connect().await.unwrap();
    holder.execute("begin; lock table coupon in exclusive mode").await.unwrap();
    let unknown = json_of(send(&app, "k", BODY).await).await;
    assert_eq!(outcomes(&unknown), ["748", "748"]);
    close(holder).await;
    eventually("it is finished", async || {
        let answer = send(&app, "k", BODY).await;
        answer.status() == 200 && outcomes(&answer.json().await.unwrap()) == ["issued", "issued"]
    })
    .await;
    assert_eq!(app.count("select from coupon").await, 2);
}

/// An organisation where what caused an issuance identifies it.
async fn natural(settings: &str) -> TestApp {
    let org = ORG.replace("customer_policy", "natural_key = true\ncustomer_policy");
    TestApp::start_with(&format!("{org}{}{}", series(1, settings), series(2, "")), |_| {}).await
}

fn caused_by(customer: &str, kind: &str, id: &str) -> String {
    json!({"seriesIds": [1, 2], "customer": {"id": customer}, "metadata": {"sourceType": kind, "sourceId": id}})
        .to_string()
}

#[tokio::test]
async fn where_the_cause_identifies_an_issuance_it_comes_back_without_a_key() {
    for settings in ["", "is_multiple_vouchers_per_user_allowed = false", "max_create = 5"] {
        let app = natural(settings).await;
        let send = async |body: String| app.post(body).send().await.unwrap();
        let first = send(caused_by("c", "BILL", "7")).await;
        assert!(!is_replayed(&first));
        let first = first.text().await.unwrap();
        assert_eq!(outcomes(&serde_json::from_str(&first).unwrap()), ["issued", "issued"]);
        let again = send(caused_by("c", "BILL", "7")).await;
        assert!(is_replayed(&again));
        assert_eq!(again.text().await.unwrap(), first);
        // In any order, and with others: each is an issuance of its own.
        let mixed = json!({"seriesIds": [2, 1, 2], "customer": {"id": "c"}, "metadata": {"sourceType": "BILL", "sourceId": "7"}});
        let mixed = json_of(send(mixed.to_string()).await).await;
        let codes = |answer: &Value, at: usize| answer["response"][at]["result"]["code"].clone();
        let first: Value = serde_json::from_str(&first).unwrap();
        assert_eq!(
            [codes(&mixed, 0), codes(&mixed, 1), codes(&mixed, 2)],
            [codes(&first, 1), codes(&first, 0), codes(&first, 1)]
        );
        assert_eq!(app.count("select from coupon").await, 2);
        for (other, (customer, kind, id)) in
            [("d", "BILL", "7"), ("e", "GAME", "7"), ("f", "BILL", "8")].into_iter().enumerate()
        {
            assert!(!is_replayed(&send(caused_by(customer, kind, id)).await));
            assert_eq!(app.count("select from coupon").await, 4 + 2 * other);
        }
        // With nothing that tells the cause, and with a key of its own, it is as everywhere else.
        let unnamed =
            json!({"seriesIds": [2], "customer": {"id": "c"}, "metadata": {"sourceType": "BILL", "sourceId": " "}});
        for _ in 0..2 {
            assert!(!is_replayed(&send(unnamed.to_string()).await));
        }
        assert_eq!(app.count("select from coupon").await, 10);
    }
}

#[tokio::test]
async fn of_64_with_the_same_cause_at_once_all_learn_of_one_issuance() {
    let app = natural("max_create = 100").await;
    for round in 0..10 {
        let mut asking = tokio::task::JoinSet::new();
        for _ in 0..64 {
            asking.spawn(app.post(caused_by("c", "BILL", &round.to_string())).send());
        }
        let mut told = Vec::new();
        for answer in asking.join_all().await {
            told.push(answer.unwrap().text().await.unwrap());
        }
        assert_eq!(tally(told).into_values().collect::<Vec<_>>(), [64]);
    }
    assert_eq!(app.count("select from coupon").await, 20);
    assert_eq!(app.count("select from series_counter where series_id = 1 and issued = 10").await, 1);
}

#[tokio::test]
async fn a_natural_key_holds_from_the_moment_that_it_is_declared() {
    let file = |natural: &str| {
        let org = ORG.replace("customer_policy", &format!("{natural}customer_policy"));
        format!("{org}{}{}", series(1, ""), series(2, ""))
    };
    let app = TestApp::start_with(&file(""), |_| {}).await;
    let send = async || app.post(caused_by("c", "BILL", "7")).send().await.unwrap();
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
