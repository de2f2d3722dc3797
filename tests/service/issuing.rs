//! What the endpoint answers, to the byte, and what it stores. Here one caller calls at a time; concurrent callers are in races.rs.

use std::time::Duration;

use serde_json::{Value, json};
use sqlx::{ConnectOptions, Row};

use crate::support::{ORG, TestApp, close, default_series, outcome, outcomes, repeatable_series};

/// Section 2 of the contract, including the order of the keys. Only the code may differ.
#[tokio::test]
async fn the_answer_matches_the_contract_to_the_byte() {
    let welcome = "discount_code = \"AUT10\"\ndiscount_upto = 0";
    let app = TestApp::start(&[repeatable_series(101, welcome)]).await;
    let answer = app.post(r#"{"seriesIds":[101,999],"customer":{"id":"566881933"}}"#).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["content-type"], "application/json");
    let text = answer.text().await.unwrap();
    let code = serde_json::from_str::<Value>(&text).unwrap()["response"][0]["result"]["code"].clone();
    let expected = format!(
        concat!(
            r#"{{"response":[{{"entityId":101,"result":{{"code":{code},"seriesId":101,"description":"Series 101","#,
            r#""discountCode":"AUT10","validTill":"2027-05-09T00:00:00Z","discountType":"ABS","discountValue":500,"#,
            r#""discountUpto":0,"discountOn":"BILL","detailedInfo":"Info 101","redemptionCount":0,"id":0,"#,
            r#""validTillDateTime":"2027-05-09T23:59:59Z"}},"errors":[],"warnings":[]}},"#,
            r#"{{"entityId":999,"errors":[{{"status":false,"code":707,"message":"Coupon Series ID is invalid","#,
            r#""retryable":false}}],"warnings":[]}}],"totalCount":2,"failureCount":1}}"#
        ),
        code = code
    );
    assert_eq!(text, expected);
}

#[tokio::test]
async fn of_a_good_an_unknown_and_an_exhausted_series_only_the_good_one_issues() {
    let app = TestApp::start(&[repeatable_series(101, ""), repeatable_series(104, "max_create = 0")]).await;
    let answer = app.issue("c", &[101, 999, 104]).await;
    assert_eq!(outcomes(&answer), ["issued", "707", "5001"]);
    assert_eq!((&answer["totalCount"], &answer["failureCount"]), (&json!(3), &json!(2)));
    assert_eq!(app.count("select from coupon").await, 1);
}

#[tokio::test]
async fn each_coupon_has_its_own_transaction() {
    let all: Vec<String> = (1..=10).map(|id| repeatable_series(id, "")).collect();
    let app = TestApp::start(&all).await;
    app.issue("c", &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]).await;
    assert_eq!(app.count("select distinct xmin::text from coupon").await, 10);
}

#[tokio::test]
async fn a_coupon_stores_its_till_source_account_metadata_and_request_id() {
    let app = TestApp::start(&[repeatable_series(101, "")]).await;
    let body = json!({
        "seriesIds": [101], "customer": {"id": 42}, "somethingNew": {"deep": [1, 2]},
        "metadata": {"sourceType": "CAMPAIGN", "notes": "naïve ☕", "unknownField": 1},
    });
    let url = app.url("/v2/coupon/bulk/issue?source=MOBILE_APP&accountId=acc%2F7&other=1");
    let answer = app.client().post(url).basic_auth("store.server", Some("server123")).json(&body);
    let answer = answer.header("X-CAP-REQUEST-ID", "till-7/000123").send().await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["x-cap-request-id"], "till-7/000123");
    assert_eq!(answer.headers()["x-request-id"], "till-7/000123");

    let row = sqlx::query(
        "select customer_id, till_id, store_id, source, account_id, metadata, request_id from issued_coupon",
    )
    .fetch_one(&app.pool)
    .await
    .unwrap();
    assert_eq!(row.get::<&str, _>("customer_id"), "42");
    assert_eq!(row.get::<&str, _>("till_id"), "store.server");
    assert_eq!(row.get::<i64, _>("store_id"), 10);
    assert_eq!(row.get::<&str, _>("source"), "MOBILE_APP");
    assert_eq!(row.get::<&str, _>("account_id"), "acc/7");
    assert_eq!(row.get::<Value, _>("metadata"), json!({"sourceType": "CAMPAIGN", "notes": "naïve ☕"}));
    assert_eq!(row.get::<&str, _>("request_id"), "till-7/000123");
}

#[tokio::test]
async fn a_customer_id_means_the_same_as_string_and_as_number() {
    let app = TestApp::start(&[default_series(103, "")]).await;
    for (id, expected) in [(json!("566881933"), "issued"), (json!(566_881_933), "709")] {
        let (status, answer) = app.send(&json!({"seriesIds": [103], "customer": {"id": id}})).await;
        assert_eq!((status, outcome(&answer["response"][0]).as_str()), (200, expected));
    }
}

#[tokio::test]
async fn a_series_listed_twice_is_processed_twice_in_order() {
    let app = TestApp::start(&[
        repeatable_series(101, ""),
        default_series(103, ""),
        repeatable_series(104, "max_create = 2"),
    ])
    .await;
    let answer = app.issue("c", &[103, 101, 103, 101, 104, 104, 104]).await;
    assert_eq!(outcomes(&answer), ["issued", "issued", "709", "issued", "issued", "issued", "5001"]);
    let codes: std::collections::BTreeSet<String> = answer["response"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|entity| entity["result"]["code"].as_str().map(str::to_owned))
        .collect();
    assert_eq!(codes.len(), 5);
}

/// An answer with every entity error of section 3 of the contract.
const EVERY_REFUSAL: &str = r#"{"response":[
{"entityId":99,"errors":[{"status":false,"code":707,"message":"Coupon Series ID is invalid","retryable":false}],"warnings":[]},
{"entityId":1,"errors":[{"status":false,"code":777,"message":"coupon source not valid for issue coupon","retryable":false}],"warnings":[]},
{"entityId":2,"errors":[{"status":false,"code":735,"message":"Invalid store","retryable":false}],"warnings":[]},
{"entityId":3,"errors":[{"status":false,"code":712,"message":"Coupon Series has expired","retryable":false}],"warnings":[]},
{"entityId":4,"errors":[{"status":false,"code":712,"message":"Coupon Series has expired","retryable":false}],"warnings":[]},
{"entityId":5,"errors":[{"status":false,"code":709,"message":"Coupon processing failed: user already has a coupon","retryable":false}],"warnings":[]},
{"entityId":6,"errors":[{"status":false,"code":730,"message":"Unknown error : MAX_COUPON_ISSUAL_PER_USER_EXCEEDED","retryable":false}],"warnings":[]},
{"entityId":7,"errors":[{"status":false,"code":709,"message":"Coupon processing failed: coupon present in mutually exclusive series","retryable":false}],"warnings":[]},
{"entityId":8,"errors":[{"status":false,"code":5001,"message":"Maximum number of series has been created","retryable":false,"remaining":0}],"warnings":[]},
{"entityId":9,"errors":[{"status":false,"code":5005,"message":"Queue is empty for series","retryable":false,"remaining":0}],"warnings":[]},
{"entityId":10,"errors":[{"status":false,"code":709,"message":"Coupon processing failed: days between consecutive issuals for a user less than min days between issuals","retryable":true,"nextEligibleAt":"2026-11-24T00:00:00Z"}],"warnings":[]},
{"entityId":11,"errors":[{"status":false,"code":748,"message":"Coupon service timed out","retryable":true}],"warnings":[]},
{"entityId":12,"errors":[{"status":false,"code":786,"message":"Coupon processing failed, Please try again later","retryable":true}],"warnings":[]}
],"totalCount":13,"failureCount":13}"#;

#[tokio::test]
async fn every_refusal_has_its_code_and_message() {
    let all = [
        repeatable_series(1, "externally_managed = true"),
        repeatable_series(2, "store_ids = [11]"),
        repeatable_series(3, "valid_till_date = \"2026-11-21\""),
        repeatable_series(4, "redemption_valid_from = \"2027-05-10\""),
        default_series(5, ""),
        repeatable_series(6, "max_vouchers_per_user = 1"),
        repeatable_series(7, "mutual_exclusive_series_ids = [5]"),
        repeatable_series(8, "max_create = 0"),
        repeatable_series(9, "client_handling_type = \"DISC_CODE_PIN\""),
        repeatable_series(10, "min_days_between_vouchers = 2"),
        repeatable_series(11, "max_create = 100"),
        repeatable_series(12, ""),
    ];
    let file = format!("{ORG}{}", all.concat());
    let app = TestApp::start_with(&file, |settings| settings.writer.statement_timeout = Duration::from_secs(4)).await;
    app.issue("c", &[5, 6, 10]).await;
    sqlx::query("alter table coupon add constraint none_of_12 check (series_id <> 12)")
        .execute(&app.pool)
        .await
        .unwrap();
    let mut holder = app.connect.connect().await.unwrap();
    sqlx::raw_sql("select pg_advisory_lock(hashint8extended(11, 1))").execute(&mut holder).await.unwrap();

    let ids = [99, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
    let body = json!({"seriesIds": ids, "customer": {"id": "c"}}).to_string();
    let answer = app.post(body).send().await.unwrap().text().await.unwrap();
    assert_eq!(
        answer.replace(r#"{"entityId""#, "\n{\"entityId\"").replace("}],\"totalCount", "}\n],\"totalCount"),
        EVERY_REFUSAL
    );
    close(holder).await;
    assert_eq!(app.issue_one("c", 11).await, "issued");
    assert_eq!(app.count("select from coupon").await, 4);
}

#[tokio::test]
async fn a_resent_coupon_keeps_its_expiry() {
    let resend = "do_not_resend_existing_voucher = false\nexpiry_strategy_type = \"DAYS\"\nexpiry_strategy_value = 2";
    let app = TestApp::start(&[repeatable_series(1, resend)]).await;
    let first = app.issue("c", &[1]).await;
    app.clock.set("2026-11-24T23:59:59Z");
    let again = app.issue("c", &[1]).await;
    assert_eq!(first["response"][0]["result"], again["response"][0]["result"]);
    assert_eq!(
        again["response"][0]["warnings"],
        json!([{"status": false, "code": 700, "message": "Coupon resent successfully"}])
    );
    assert_eq!((&again["failureCount"], app.count("select from coupon").await), (&json!(0), 1));

    // The first coupon has expired, and the series allows another one.
    app.clock.set("2026-11-25T00:00:00Z");
    assert_eq!(app.issue_one("c", 1).await, "issued");
    assert_eq!(app.count("select from coupon").await, 2);
}

#[tokio::test]
async fn dates_are_in_the_organisations_time_zone() {
    let file = crate::support::ORG.replace("time_zone = \"UTC\"", "time_zone = \"Asia/Kolkata\"");
    let today = "expiry_strategy_type = \"DAYS\"\nexpiry_strategy_value = 0";
    let app = TestApp::start_with(&format!("{file}{}", repeatable_series(1, today)), |_| {}).await;
    // 23:59:59 and 00:00:00 in Kolkata.
    for (now, day) in [("2026-11-22T18:29:59Z", "2026-11-22"), ("2026-11-22T18:30:00Z", "2026-11-23")] {
        app.clock.set(now);
        let result = &app.issue("c", &[1]).await["response"][0]["result"];
        assert_eq!(result["validTill"], format!("{day}T00:00:00+05:30"));
        assert_eq!(result["validTillDateTime"], format!("{day}T23:59:59+05:30"));
    }
}
