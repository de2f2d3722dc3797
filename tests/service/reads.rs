//! What a decision reads: settings are cached until they change, histories are read in batches, and a first coupon needs no read at all.

use std::sync::Arc;

use coupon_issuer::provisioning::apply_text;
use serde_json::json;

use crate::failures::start_on_own_postgres;
use crate::support::{ORG, TestApp, default_series, eventually, outcomes, repeatable_series};

async fn execute(app: &TestApp, change: &'static str) {
    sqlx::raw_sql(change).execute(&app.pool).await.unwrap();
}

/// Applies [`ORG`] with these series.
async fn apply(app: &TestApp, series: &[String]) {
    apply_text(&app.connect, &format!("{ORG}{}", series.concat())).await.unwrap();
}

/// Coupons of an unlimited series have no ordinal, so the first ordinal is free when the series gets a limit.
#[tokio::test]
async fn a_later_limit_counts_coupons_without_an_ordinal() {
    let app = TestApp::start(&[repeatable_series(1, ""), repeatable_series(2, ""), repeatable_series(3, "")]).await;
    for _ in 0..2 {
        assert_eq!(outcomes(&app.issue("old", &[1, 2, 3]).await), ["issued"; 3]);
    }
    let limited = [
        default_series(1, ""),
        repeatable_series(2, "max_vouchers_per_user = 3"),
        repeatable_series(3, "do_not_resend_existing_voucher = false"),
    ];
    apply(&app, &limited).await;
    for expected in [["709", "issued", "resent"], ["709", "730", "resent"]] {
        assert_eq!(outcomes(&app.issue("old", &[1, 2, 3]).await), expected);
    }
    for expected in [["issued", "issued", "issued"], ["709", "issued", "resent"]] {
        assert_eq!(outcomes(&app.issue("new", &[1, 2, 3]).await), expected);
    }
    assert_eq!(app.count("select from coupon where customer_id = 'old' and ordinal = 1").await, 1);
}

#[tokio::test]
async fn the_largest_maximum_per_customer_is_no_limit() {
    let app = TestApp::start(&[repeatable_series(1, "max_vouchers_per_user = 2147483647")]).await;
    assert_eq!(outcomes(&app.issue("a", &[1, 1, 1]).await), ["issued"; 3]);
    assert_eq!(app.count("select from coupon where ordinal between 1 and 3").await, 3);
}

/// A revoked coupon does not count, but its ordinal is taken.
#[tokio::test]
async fn after_a_revocation_the_next_coupon_gets_the_next_ordinal() {
    let app = TestApp::start(&[default_series(1, ""), repeatable_series(2, "max_vouchers_per_user = 2")]).await;
    assert_eq!(outcomes(&app.issue("a", &[1, 2, 2]).await), ["issued"; 3]);
    execute(&app, "update coupon set revoked_at = now() where ordinal = 1").await;
    assert_eq!(outcomes(&app.issue("a", &[1, 2, 2]).await), ["issued", "issued", "730"]);
    assert_eq!(app.count("select from coupon where series_id = 1 and ordinal = 2 and revoked_at is null").await, 1);
    assert_eq!(app.count("select from coupon where series_id = 2 and ordinal = 3 and revoked_at is null").await, 1);
}

/// Only the series that changed are read again. A renamed column makes each read of a series fail.
#[tokio::test]
async fn a_change_of_one_series_does_not_affect_others() {
    let app = TestApp::start(&[repeatable_series(1, ""), repeatable_series(2, "")]).await;
    assert_eq!(outcomes(&app.issue("a", &[1, 2]).await), ["issued"; 2]);
    apply(&app, &[repeatable_series(1, "max_create = 5"), repeatable_series(2, "")]).await;
    execute(&app, "alter table series rename column info to other").await;
    assert_eq!(app.issue_one("a", 2).await, "issued");
    assert_eq!(app.send(&json!({"seriesIds": [1], "customer": {"id": "a"}})).await.0, 500);
    execute(&app, "alter table series rename column other to info").await;
    assert_eq!(outcomes(&app.issue("a", &[1, 2]).await), ["issued"; 2]);
}

/// Each side of an exclusion affects the other, and the organisation's time zone all of its series.
#[tokio::test]
async fn a_change_affects_every_series_that_depends_on_it() {
    let app = TestApp::start(&[repeatable_series(1, ""), repeatable_series(2, "")]).await;
    assert_eq!(outcomes(&app.issue("a", &[1, 2]).await), ["issued"; 2]);
    apply(&app, &[repeatable_series(1, "mutual_exclusive_series_ids = [2]"), repeatable_series(2, "")]).await;
    assert_eq!(outcomes(&app.issue("b", &[2, 1]).await), ["issued", "709"]);
    assert_eq!(outcomes(&app.issue("c", &[1, 2]).await), ["issued", "709"]);
    apply(&app, &[repeatable_series(1, ""), repeatable_series(2, "")]).await;
    assert_eq!(outcomes(&app.issue("b", &[2, 1]).await), ["issued"; 2]);

    let zone = ORG.replace("time_zone = \"UTC\"", "time_zone = \"Asia/Kolkata\"");
    apply_text(&app.connect, &format!("{zone}{}{}", repeatable_series(1, ""), repeatable_series(2, ""))).await.unwrap();
    let answer = app.issue("d", &[1, 2]).await.to_string();
    assert!(answer.contains("+05:30") && !answer.contains("+00:00"), "{answer}");
}

/// A restore or a failover may lose changes. The next change then has another revision, and the service forgets what it knew.
#[tokio::test]
async fn settings_that_a_failover_lost_are_forgotten() {
    let app = TestApp::start(&[repeatable_series(1, ""), repeatable_series(2, "")]).await;
    execute(
        &app,
        "create table lost as select * from series; create table lost_organisation as select * from organisation",
    )
    .await;
    apply(&app, &[repeatable_series(1, "max_create = 1"), repeatable_series(2, "")]).await;
    assert_eq!(outcomes(&app.issue("a", &[1, 2]).await), ["issued"; 2]);
    // The change is lost before the service sees it, and then the other series changes.
    execute(
        &app,
        "update series s set max_create = l.max_create, revision = l.revision from lost l where l.series_id = s.series_id;
         delete from series_counter;
         update organisation o set revision = l.revision, recent_revisions = l.recent_revisions
           from lost_organisation l where l.org_id = o.org_id",
    )
    .await;
    apply(&app, &[repeatable_series(1, ""), repeatable_series(2, "max_create = 9")]).await;
    assert_eq!(outcomes(&app.issue("b", &[1, 2]).await), ["issued"; 2]);
    assert_eq!(app.count("select from series_counter where series_id = 1").await, 0);
    assert_eq!(app.count("select from series_counter where series_id = 2 and issued = 2").await, 1);
}

/// What one look-up runs into does not affect those that share its statement.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_look_up_that_fails_fails_alone() {
    let app = Arc::new(TestApp::start(&[repeatable_series(1, "do_not_resend_existing_voucher = false")]).await);
    for customer in 0..20 {
        assert_eq!(app.issue_one(&customer.to_string(), 1).await, "issued");
    }
    execute(
        &app,
        "alter table coupon rename to stored_coupon;
         create function checked(customer text, code text) returns text language plpgsql stable as $$ begin
             if customer = '7' then raise exception 'a damaged row'; end if;
             return code;
         end $$;
         create view coupon as
         select org_id, coupon_id, series_id, issued_at, revoked_at, request_uuid, series_version, origin_id, expires_on, ordinal,
                redemption_count, customer_id, checked(customer_id, code) as code, uploaded_code, request_id, account_id, metadata
           from stored_coupon",
    )
    .await;
    for _ in 0..5 {
        let calls: Vec<_> = (0..20)
            .map(|customer| {
                let app = Arc::clone(&app);
                let body = json!({"seriesIds": [1], "customer": {"id": customer.to_string()}});
                tokio::spawn(async move { app.send(&body).await })
            })
            .collect();
        for (customer, call) in calls.into_iter().enumerate() {
            let (status, answer) = call.await.unwrap();
            if customer == 7 {
                assert_eq!(status, 500, "{answer}");
            } else {
                assert_eq!(outcomes(&answer), ["resent"], "customer {customer}");
            }
        }
    }
}

/// With nothing to flush, a resend needs no flush of its own. With a synchronous standby it always does: what is flushed here may be
/// missing there.
#[tokio::test]
async fn a_resend_waits_for_a_standby_but_not_for_a_flush_that_was_done() {
    // The history decides on an exclusive series without an attempt to write.
    let exclusive = "do_not_resend_existing_voucher = false\nmutual_exclusive_series_ids = [2]";
    let series = [repeatable_series(1, exclusive), repeatable_series(2, "")];
    let (postgres, app) = start_on_own_postgres("resends", &series).await;
    assert_eq!(app.issue_one("a", 1).await, "issued");
    let set = |value: &'static str| {
        let app = &app;
        async move {
            execute(app, value).await;
            execute(app, "select pg_reload_conf()").await;
        }
    };
    set("alter system set synchronous_standby_names = 'nobody'").await;
    eventually("the setting holds", async || {
        app.count("select where current_setting('synchronous_standby_names') = 'nobody'").await == 1
    })
    .await;
    assert_eq!(app.issue_one("a", 1).await, "748");
    set("alter system reset synchronous_standby_names").await;
    eventually("the service has recovered", async || app.issue_one("a", 1).await == "resent").await;
    let last_call = async || -> Option<String> {
        let query =
            "select max(state_change)::text from pg_stat_activity where application_name = 'coupon-issuer writer'";
        sqlx::query_scalar(query).fetch_one(&app.pool).await.unwrap()
    };
    // What the service writes for the console is not flushed at once.
    eventually("resends need no call of the writer", async || {
        let before = last_call().await;
        assert_eq!([app.issue_one("a", 1).await, app.issue_one("a", 1).await], ["resent"; 2]);
        last_call().await == before
    })
    .await;
    app.stop().await;
    tokio::task::spawn_blocking(move || postgres.stop()).await.unwrap().unwrap();
}
