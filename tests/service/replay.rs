//! A retry and the receipt return the first answer to the byte, whatever has changed since: settings, the customer, or the customer's
//! coupons. Entities without a coupon are decided again.

use coupon_issuer::provisioning;
use reqwest::{RequestBuilder, Response};
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;
use sqlx::{AssertSqlSafe, Executor};

use crate::support::{ORG, TestApp, default_series, outcomes, repeatable_series};

fn keyed(app: &TestApp, key: &str, body: &str) -> RequestBuilder {
    app.post(body.to_owned()).header("Idempotency-Key", key)
}

/// The body of an answer, which must be a 200.
async fn body_of(request: RequestBuilder) -> String {
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status(), 200);
    answer.text().await.unwrap()
}

async fn receipt(app: &TestApp, key: &str) -> String {
    let url = app.url(&format!("/v2/coupon/bulk/issue/{key}"));
    body_of(app.client().get(url).basic_auth("store.server", Some("server123"))).await
}

/// The `response` of an answer or a receipt, as it was sent.
fn response(body: &str) -> String {
    #[derive(Deserialize)]
    struct Body {
        response: Box<RawValue>,
    }
    serde_json::from_str::<Body>(body).unwrap().response.get().to_owned()
}

/// Each entity of that, as it was sent.
fn entities(body: &str) -> Vec<String> {
    let entities: Vec<Box<RawValue>> = serde_json::from_str(&response(body)).unwrap();
    entities.iter().map(|entity| entity.get().to_owned()).collect()
}

fn outcomes_of(body: &str) -> Vec<String> {
    outcomes(&serde_json::from_str(body).unwrap())
}

async fn execute(app: &TestApp, statement: &str) {
    app.pool.execute(AssertSqlSafe(statement)).await.unwrap();
}

async fn apply(app: &TestApp, file: &str) {
    provisioning::apply_text(&app.connect, file).await.unwrap();
}

/// One series of each kind, the last two of which refuse.
fn every_kind() -> String {
    let kinds = [
        (101, ""),
        (102, "max_create = 9"),
        (103, "is_multiple_vouchers_per_user_allowed = false"),
        (104, "client_handling_type = \"GENERIC\"\ngeneric_code = \"SAME\""),
        (105, "client_handling_type = \"DISC_CODE_PIN\""),
        (106, "do_not_resend_existing_voucher = false"),
        (107, "min_days_between_vouchers = 3"),
    ];
    kinds.into_iter().map(|(id, settings)| repeatable_series(id, settings)).collect()
}

const EVERY_KIND: &str = r#"{"seriesIds":[101,102,103,104,105,106,107,999],"customer":{"id":"c"}}"#;

#[tokio::test]
async fn whatever_apply_changes_a_retry_returns_the_same_bytes() {
    let before = format!("{ORG}{}", every_kind());
    let app = TestApp::start_with(&before.replace("Series 106", "The first name of 106"), |_| {}).await;
    execute(
        &app,
        "insert into pool_code (org_id, series_id, code, uploaded_code, position) values (1, 105, 'P1', 'p1', 1)",
    )
    .await;
    // The coupon to be resent was issued under an earlier name of its series, and is redeemed once.
    assert_eq!(outcomes(&app.issue("c", &[106, 107]).await), ["issued", "issued"]);
    execute(&app, "update coupon set redemption_count = 1").await;
    apply(&app, &before).await;
    let first = body_of(keyed(&app, "k", EVERY_KIND)).await;
    assert_eq!(outcomes_of(&first), ["issued", "issued", "issued", "issued", "issued", "resent", "709", "707"]);
    assert!(entities(&first)[5].contains("\"Series 106\"") && entities(&first)[5].contains("\"redemptionCount\":1"));
    assert_eq!(response(&receipt(&app, "k").await), response(&first));

    let after = before
        .replace("time_zone = \"UTC\"", "time_zone = \"Asia/Kolkata\"")
        .replace("customer_policy = \"open\"", "customer_policy = \"registered\"")
        .replace("\"Series ", "\"Renamed ")
        .replace("\"Info ", "\"New info ")
        .replace("discount_type = \"ABS\"", "discount_type = \"PERC\"\ndiscount_code = \"NEW\"\ndiscount_upto = 90")
        .replace("discount_value = 500", "discount_value = 7")
        .replace("\"SAME\"", "\"OTHER\"")
        .replace("2027-05-09", "2027-04-01");
    apply(&app, &after).await;
    execute(&app, "update coupon set redemption_count = redemption_count + 3").await;
    assert_eq!(keyed(&app, "new", EVERY_KIND).send().await.unwrap().status(), 400, "the customer is not registered");

    assert_eq!(response(&receipt(&app, "k").await), response(&first));
    // The other replica has never cached the old settings, and has not cached the new ones yet.
    let other = TestApp::start_over(app.connect.clone(), &after, |_| {}).await;
    for replica in [&app, &other] {
        assert_eq!(entities(&receipt(replica, "k").await)[..6], entities(&first)[..6]);
        let again = body_of(keyed(replica, "k", EVERY_KIND)).await;
        assert_eq!(entities(&again)[..6], entities(&first)[..6]);
        assert_eq!(outcomes_of(&again), outcomes_of(&first));
        // The refusal is decided again, in the present time zone.
        assert!(entities(&first)[6].contains("2026-11-25T00:00:00Z"), "{first}");
        assert!(entities(&again)[6].contains("2026-11-25T00:00:00+05:30"), "{again}");
        assert_eq!(response(&receipt(replica, "k").await), response(&again));
    }

    let after = format!("{}{}", after.replace("min_days_between_vouchers = 3", ""), repeatable_series(999, ""));
    apply(&app, &after).await;
    let finished = body_of(keyed(&app, "k", EVERY_KIND)).await;
    assert_eq!(entities(&finished)[..6], entities(&first)[..6]);
    assert_eq!(outcomes_of(&finished)[6..], ["issued", "issued"]);
    assert!(entities(&finished)[6].contains("\"Renamed 107\""), "{finished}");
    for replica in [&app, &other] {
        assert_eq!(response(&receipt(replica, "k").await), response(&finished));
        assert_eq!(body_of(keyed(replica, "k", EVERY_KIND)).await, finished);
    }
    assert_eq!(app.count("select from coupon where customer_id = 'c'").await, 9);
    assert_eq!(app.count("select from coupon").await, 9);
}

#[tokio::test]
async fn a_retry_returns_the_same_answer_after_its_mobile_moved_to_another_customer() {
    let file = |cap: &str| {
        let one_each = default_series(103, "");
        let resent = repeatable_series(106, "do_not_resend_existing_voucher = false");
        format!("{ORG}{}{one_each}{resent}{}", repeatable_series(101, ""), repeatable_series(108, cap))
    };
    let app = TestApp::start_with(&file("max_create = 0"), |_| {}).await;
    let by_mobile = |ids: &str| format!(r#"{{"seriesIds":{ids},"customer":{{"mobile":"919876543210"}}}}"#);
    body_of(app.post(by_mobile("[106]"))).await;
    assert_eq!(outcomes(&app.issue("other", &[103]).await), ["issued"]);
    let body = by_mobile("[101,103,106,108]");
    let first = body_of(keyed(&app, "k", &body)).await;
    assert_eq!(outcomes_of(&first), ["issued", "issued", "resent", "5001"]);

    execute(
        &app,
        "update customer set mobile = null;
         insert into customer (org_id, registered, customer_id, mobile) values (1, true, 'other', '919876543210')",
    )
    .await;
    assert_eq!(
        outcomes_of(&body_of(app.post(by_mobile("[103]"))).await),
        ["709"],
        "the mobile is the other customer's"
    );
    assert_eq!(response(&receipt(&app, "k").await), response(&first));
    let again = body_of(keyed(&app, "k", &body)).await;
    assert_eq!(response(&again), response(&first));
    // The retry issues the missing coupon to the customer of the first answer.
    apply(&app, &file("max_create = 5")).await;
    let finished = body_of(keyed(&app, "k", &body)).await;
    assert_eq!(entities(&finished)[..3], entities(&first)[..3]);
    assert_eq!(outcomes_of(&finished)[3], "issued");
    assert_eq!(app.count("select from coupon where customer_id = 'other'").await, 1);
    assert_eq!(app.count("select from coupon where customer_id <> 'other' group by customer_id").await, 1);
    assert_eq!(app.count("select from coupon").await, 5);
    assert_eq!(response(&receipt(&app, "k").await), response(&finished));
}

/// Meanwhile the customer gets a coupon that is valid longer, and the resent one is redeemed and expires.
#[tokio::test]
async fn a_retry_returns_the_same_coupon_that_was_resent() {
    let file = |resends: bool| {
        let settings = format!(
            "expiry_strategy_type = \"DAYS\"\nexpiry_strategy_value = 10\ndo_not_resend_existing_voucher = {}",
            !resends
        );
        format!("{ORG}{}", repeatable_series(1, &settings))
    };
    let app = TestApp::start_with(&file(true), |_| {}).await;
    let body = r#"{"seriesIds":[1],"customer":{"id":"c"}}"#;
    let mut answers = Vec::new();
    let assert_unchanged = async |answers: &[(&str, String)]| {
        for (key, first) in answers {
            assert_eq!(response(&receipt(&app, key).await), response(first), "{key}");
            let again = body_of(keyed(&app, key, body)).await;
            assert_eq!(&again, first, "{key}");
            assert_eq!(response(&receipt(&app, key).await), response(first), "{key}");
        }
    };
    let ask = async |key, expected: &str| {
        let answer = body_of(keyed(&app, key, body)).await;
        assert_eq!(outcomes_of(&answer), [expected], "{key}");
        (key, answer)
    };
    answers.push(ask("issued", "issued").await);
    answers.push(ask("resent", "resent").await);
    assert_unchanged(&answers).await;

    app.clock.set("2026-11-27T10:00:00Z");
    apply(&app, &file(false)).await;
    answers.push(ask("longer", "issued").await);
    apply(&app, &file(true)).await;
    answers.push(ask("the longer one resent", "resent").await);
    assert_ne!(response(&answers[3].1), response(&answers[1].1));
    assert_unchanged(&answers).await;

    execute(&app, "update coupon set redemption_count = 2").await;
    answers.push(ask("redeemed", "resent").await);
    assert_ne!(response(&answers[4].1), response(&answers[3].1));
    execute(&app, "update coupon set redemption_count = 3").await;
    assert_unchanged(&answers).await;

    app.clock.set("2026-12-30T10:00:00Z");
    assert_unchanged(&answers).await;
    answers.push(ask("expired", "issued").await);
    assert_unchanged(&answers).await;
    assert_eq!(app.count("select from coupon").await, 3);
}

/// The cause of an earlier request, and its series.
type Before<'a> = (&'a str, &'a [i64]);

/// A natural key names one issuance of a series, however often the series is listed.
#[tokio::test]
async fn a_series_listed_twice_under_a_natural_key_issues_one_coupon() {
    let org = ORG.replace("customer_policy", "natural_key = true\ncustomer_policy");
    let all = [
        repeatable_series(101, ""),
        repeatable_series(102, "do_not_resend_existing_voucher = false"),
        default_series(103, ""),
        repeatable_series(104, "max_create = 100"),
    ];
    let app = TestApp::start_with(&format!("{org}{}", all.concat()), |_| {}).await;
    let send = async |customer: &str, cause: &str, ids: &[i64]| {
        let metadata = json!({"sourceType": "BILL", "sourceId": cause});
        let body = json!({"seriesIds": ids, "customer": {"id": customer}, "metadata": metadata});
        let answer: Response = app.post(body.to_string()).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        answer.text().await.unwrap()
    };
    // An earlier request of the customer, the series of the request with cause 7, and its outcomes.
    let cases: [(Option<Before<'_>>, &[i64], &[&str]); 9] = [
        (None, &[101, 101, 102], &["issued"; 3]),
        (None, &[102, 101, 102, 101, 102], &["issued"; 5]),
        (None, &[103, 103, 104, 104], &["issued"; 4]),
        (Some(("7", &[101])), &[101, 101, 102], &["issued"; 3]),
        (Some(("7", &[102])), &[101, 101, 102, 102], &["issued"; 4]),
        (Some(("7", &[104, 103])), &[103, 104, 103, 104], &["issued"; 4]),
        (Some(("6", &[102])), &[101, 101, 102], &["issued", "issued", "resent"]),
        (Some(("6", &[102])), &[102, 102, 101], &["resent", "resent", "issued"]),
        (Some(("6", &[103])), &[103, 101, 103, 101], &["709", "issued", "709", "issued"]),
    ];
    for (number, (before, ids, expected)) in cases.into_iter().enumerate() {
        let customer = format!("c-{number}");
        let earlier = match before {
            Some((cause, ids)) => ids.iter().copied().zip(entities(&send(&customer, cause, ids).await)).collect(),
            None => Vec::new(),
        };
        let first = send(&customer, "7", ids).await;
        assert_eq!(outcomes_of(&first), expected, "{number}");
        for again in [send(&customer, "7", ids).await, send(&customer, "7", ids).await] {
            assert_eq!(response(&again), response(&first), "{number}");
        }
        let shown: Vec<(i64, String)> = ids.iter().copied().zip(entities(&first)).collect();
        for (id, entity) in &shown {
            assert!(shown.iter().all(|(other, same)| other != id || same == entity), "{number}: {first}");
            let is_earlier = |(earlier, coupon): &(i64, String)| earlier != id || coupon == entity;
            assert!(
                before.is_none_or(|(cause, _)| cause != "7") || earlier.iter().all(is_earlier),
                "{number}: {first}"
            );
        }
    }
    let twice = "select customer_id, series_id from coupon group by customer_id, series_id having count(*) > 1";
    assert_eq!(app.count(twice).await, 0);
    // Each customer has one coupon of each series that was listed.
    assert_eq!(app.count("select from coupon").await, 18);
}

/// The replica has cached the open policy. It learns of the change while it decides on the retry.
#[tokio::test]
async fn a_retry_is_not_refused_by_a_customer_policy_that_has_just_changed() {
    let open = format!("{ORG}{}{}", repeatable_series(1, ""), default_series(2, ""));
    let app = TestApp::start_with(&open, |_| {}).await;
    let body = r#"{"seriesIds":[1,2],"customer":{"id":"c"}}"#;
    let first = body_of(keyed(&app, "k", body)).await;
    assert_eq!(outcomes_of(&first), ["issued", "issued"]);
    apply(&app, &open.replace("customer_policy = \"open\"", "customer_policy = \"registered\"")).await;
    for _ in 0..2 {
        assert_eq!(body_of(keyed(&app, "k", body)).await, first);
    }
    assert_eq!(keyed(&app, "new", body).send().await.unwrap().status(), 400, "a new request is refused");
}

/// Unless the answer is stored, a retry could get another one.
#[tokio::test]
async fn a_resend_that_cannot_be_stored_is_748() {
    let again = "max_vouchers_per_user = 2\ndo_not_resend_existing_voucher = false";
    let file = |resend: &str| format!("{ORG}{}", repeatable_series(1, &again.replace("false", resend)));
    let app = TestApp::start_with(&file("false"), |_| {}).await;
    execute(
        &app,
        "create function refuse() returns trigger language plpgsql as $$ begin raise exception 'no'; end $$;
         create trigger refuse before update on keyed_request for each row execute function refuse()",
    )
    .await;
    // The second entity waits for the first, so its answer cannot be stored together with the claim of the key.
    let body = r#"{"seriesIds":[1,1],"customer":{"id":"c"}}"#;
    let first = body_of(keyed(&app, "k", body)).await;
    assert_eq!(outcomes_of(&first), ["issued", "748"]);
    execute(&app, "drop trigger refuse on keyed_request").await;
    execute(&app, "update keyed_request set received_at = received_at - interval '1 hour'").await;
    let second = body_of(keyed(&app, "k", body)).await;
    assert_eq!(outcomes_of(&second), ["issued", "resent"]);
    assert_eq!(entities(&second)[0], entities(&first)[0]);
    apply(&app, &file("true")).await;
    assert_eq!(response(&body_of(keyed(&app, "k", body)).await), response(&second));
    assert_eq!(app.count("select from coupon").await, 1);
}
