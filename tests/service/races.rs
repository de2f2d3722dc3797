//! Limits are exact, to the coupon, while many callers compete. No test depends on which caller wins.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::support::{TestApp, default_series, outcomes, repeatable_series, tally};

const CALLERS: usize = 64;
/// How often the races for cap, maximum, pool and generic code are run: there, an error costs money.
const ROUNDS: i64 = 200;

/// One series for each round, all with these settings.
async fn start_rounds(settings: &str) -> Arc<TestApp> {
    let all: Vec<String> = (1..=ROUNDS).map(|id| repeatable_series(id, settings)).collect();
    Arc::new(TestApp::start(&all).await)
}

/// Requests these series as all callers at once, each for the customer that `customer` names.
async fn at_once(app: &Arc<TestApp>, series: &[i64], customer: impl Fn(usize) -> String) -> Vec<Vec<String>> {
    send_at_once(app, |caller| json!({"seriesIds": series, "customer": {"id": customer(caller)}})).await
}

/// Sends one body for each of the callers, all at once.
async fn send_at_once(app: &Arc<TestApp>, body: impl Fn(usize) -> Value) -> Vec<Vec<String>> {
    let calls: Vec<_> = (0..CALLERS)
        .map(|caller| {
            let (app, body) = (Arc::clone(app), body(caller));
            tokio::spawn(async move {
                let (status, answer) = app.send(&body).await;
                assert_eq!(status, 200, "{answer}");
                outcomes(&answer)
            })
        })
        .collect();
    let mut answers = Vec::new();
    for call in calls {
        answers.push(call.await.unwrap());
    }
    answers
}

fn counted(pairs: &[(&str, usize)]) -> std::collections::BTreeMap<String, usize> {
    pairs.iter().map(|(outcome, count)| ((*outcome).to_owned(), *count)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_requests_of_a_customer_issue_one_coupon() {
    let app = Arc::new(TestApp::start(&[default_series(1, "")]).await);
    let answers = at_once(&app, &[1], |_| "c".to_owned()).await.concat();
    assert_eq!(tally(answers), counted(&[("issued", 1), ("709", 63)]));
    assert_eq!(app.count("select from coupon").await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cap_of_ten_issues_exactly_ten_coupons() {
    let app = start_rounds("max_create = 10").await;
    for round in 1..=ROUNDS {
        let answers = at_once(&app, &[round], |caller| caller.to_string()).await.concat();
        assert_eq!(tally(answers), counted(&[("issued", 10), ("5001", 54)]), "round {round}");
    }
    assert_eq!(app.count("select series_id from coupon group by 1 having count(*) = 10").await, 200);
    assert_eq!(app.count("select from series_counter where issued = 10").await, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_maximum_per_customer_is_exact() {
    let app = start_rounds("max_vouchers_per_user = 7").await;
    for round in 1..=ROUNDS {
        let answers = at_once(&app, &[round], |_| "c".to_owned()).await.concat();
        assert_eq!(tally(answers), counted(&[("issued", 7), ("730", 57)]), "round {round}");
    }
    assert_eq!(app.count("select from coupon where ordinal between 1 and 7").await, 1400);
    assert_eq!(app.count("select from coupon").await, 1400);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_requests_for_a_resend_series_get_the_same_coupon() {
    let app = Arc::new(TestApp::start(&[repeatable_series(1, "do_not_resend_existing_voucher = false")]).await);
    let answers = at_once(&app, &[1], |_| "c".to_owned()).await.concat();
    assert_eq!(tally(answers), counted(&[("issued", 1), ("resent", 63)]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gap_lets_one_of_many_concurrent_requests_through() {
    let app = Arc::new(TestApp::start(&[repeatable_series(1, "min_days_between_vouchers = 1")]).await);
    let answers = at_once(&app, &[1], |_| "c".to_owned()).await.concat();
    assert_eq!(tally(answers), counted(&[("issued", 1), ("709", 63)]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_exclusive_series_only_the_first_listed_is_issued() {
    let app = Arc::new(
        TestApp::start(&[repeatable_series(1, "mutual_exclusive_series_ids = [2]"), repeatable_series(2, "")]).await,
    );
    let answers = at_once(&app, &[1, 2], |_| "c".to_owned()).await;
    // Series 1 is first in every request, so it wins in all of them.
    assert!(answers.iter().all(|answer| answer == &["issued", "709"]), "{answers:?}");
    assert_eq!(app.count("select from coupon where series_id = 2").await, 0);
}

/// Gives each of the first series forty codes.
async fn upload(app: &TestApp, series: i64) {
    sqlx::query(
        "insert into pool_code (org_id, series_id, code, position)
         select 1, s, s || '-' || n, n from generate_series(1, $1) s, generate_series(1, 40) n",
    )
    .bind(series)
    .execute(&app.pool)
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_uploaded_code_is_issued_once() {
    let app = start_rounds("client_handling_type = \"DISC_CODE_PIN\"").await;
    upload(&app, ROUNDS).await;
    for round in 1..=ROUNDS {
        let answers = at_once(&app, &[round], |caller| caller.to_string()).await.concat();
        assert_eq!(tally(answers), counted(&[("issued", 40), ("5005", 24)]), "round {round}");
    }
    assert_eq!(app.count("select distinct code from coupon").await, 8000);
    assert_eq!(app.count("select from coupon where code not like series_id || '-%'").await, 0);
    assert_eq!(app.count("select from pool_code").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploaded_codes_are_given_out_in_order_within_all_limits() {
    let settings = "client_handling_type = \"DISC_CODE_PIN\"\nmax_create = 30";
    let all: Vec<String> = (1..=20).map(|id| default_series(id, settings)).collect();
    let app = Arc::new(TestApp::start(&all).await);
    upload(&app, 20).await;
    for round in 1..=20 {
        let answers = at_once(&app, &[round], |caller| (caller / 2).to_string()).await.concat();
        let issued = answers.iter().filter(|outcome| *outcome == "issued").count();
        assert_eq!(issued, 30, "round {round}: {answers:?}");
    }
    assert_eq!(app.count("select distinct series_id, customer_id from coupon").await, 600);
    assert_eq!(app.count("select from pool_code where position > 30").await, 200);
    assert_eq!(app.count("select from pool_code").await, 200);
}

/// A change by hand. It makes the call of a batch fail, which must not fail the batch's coupons.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_uploaded_code_that_a_coupon_has_already_is_skipped() {
    let all: Vec<String> =
        (1..=20).map(|id| repeatable_series(id, "client_handling_type = \"DISC_CODE_PIN\"")).collect();
    let app = Arc::new(TestApp::start(&all).await);
    upload(&app, 20).await;
    sqlx::query(
        "insert into coupon (org_id, coupon_id, series_id, issued_at, series_version, origin_id, expires_on, customer_id, code)
         select 1, 1000000000 + row_number() over (), p.series_id, now(), 1, 1, '2099-12-31', 'by hand', p.code
           from pool_code p where p.position in (1, 20, 21)",
    )
    .execute(&app.pool)
    .await
    .unwrap();
    for round in 1..=20 {
        let answers = at_once(&app, &[round], |caller| caller.to_string()).await.concat();
        assert_eq!(tally(answers), counted(&[("issued", 37), ("5005", 27)]), "round {round}");
    }
    assert_eq!(app.count("select from pool_code").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_generic_code_counts_against_each_customers_maximum() {
    let generic = |id: i64| {
        let settings = "client_handling_type = \"GENERIC\"\nmax_vouchers_per_user = 2";
        repeatable_series(id, &format!("{settings}\ngeneric_code = \"spring-{id}\""))
    };
    let app = Arc::new(TestApp::start(&(1..=ROUNDS).map(generic).collect::<Vec<_>>()).await);
    for round in 1..=ROUNDS {
        let answers = at_once(&app, &[round], |caller| (caller % 2).to_string()).await.concat();
        assert_eq!(tally(answers), counted(&[("issued", 4), ("730", 60)]), "round {round}");
    }
    assert_eq!(app.count("select from issued_coupon where code = 'SPRING-' || series_id").await, 800);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_first_uses_of_a_mobile_create_one_customer() {
    let app = Arc::new(TestApp::start(&[default_series(1, "")]).await);
    let body = json!({"seriesIds": [1], "customer": {"mobile": "+91 99000 00001"}});
    let answers = send_at_once(&app, |_| body.clone()).await.concat();
    assert_eq!(tally(answers), counted(&[("issued", 1), ("709", 63)]));
    assert_eq!(app.count("select from customer").await, 1);
}
