//! The console: what a person sees of the requests of their own organisation. The service adds counts a moment after its answers, so that
//! the tests wait for them.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use coupon_issuer::config::Settings;
use coupon_issuer::db::Db;
use coupon_issuer::db::activity::{Batch, Count, Failure, WHOLE_ORGANISATION};
use coupon_issuer::model::{Access, Caller, Credential, OrgId, SeriesId, StoreId};
use reqwest::header::HeaderMap;
use serde_json::json;
use sqlx::ConnectOptions;

use crate::support::{
    NOW, ORG, TestApp, close, default_series, eventually, failure, new_database, outcomes, repeatable_series,
};

/// The service adds counts every 20 ms.
fn flush_at_once(settings: &mut Settings) {
    settings.activity.flush = Duration::from_millis(20);
}

async fn start(all_series: &[String]) -> TestApp {
    TestApp::start_with(&format!("{ORG}{}", all_series.concat()), flush_at_once).await
}

/// The HTML of a page.
struct Page(String);

impl TestApp {
    async fn request_console(&self, query: &str, till: &str, password: &str) -> reqwest::Response {
        let url = self.url(&format!("/console{query}"));
        self.client().get(url).basic_auth(till, Some(password)).send().await.unwrap()
    }

    async fn console(&self, query: &str) -> Page {
        let answer = self.request_console(query, "office.desk", "office123").await;
        assert_eq!(answer.status(), 200);
        Page(answer.text().await.unwrap())
    }

    /// Waits until the page shows what is expected.
    async fn console_when(&self, query: &str, what: &str, expected: impl Fn(&Page) -> bool) -> Page {
        let last = Mutex::new(None);
        eventually(what, async || {
            let page = self.console(query).await;
            let shows = expected(&page);
            *last.lock().unwrap() = Some(page);
            shows
        })
        .await;
        last.into_inner().unwrap().unwrap()
    }
}

impl Page {
    /// The texts between `from` and `to`, with a bar between the elements.
    fn words(&self, from: &str, to: &str) -> String {
        let rest = &self.0[self.0.find(from).unwrap_or_else(|| panic!("no {from} in {}", self.0))..];
        let part = &rest[..rest.find(to).unwrap()];
        let texts = part.split('<').map(|piece| piece.split_once('>').map_or("", |(_, text)| text).trim());
        texts.filter(|text| !text.is_empty()).collect::<Vec<_>>().join("|")
    }

    fn series(&self, id: i64) -> String {
        self.words(&format!("<a id=\"series-{id}\""), "</tr>")
    }

    /// The ids of the series, from top to bottom.
    fn series_ids(&self) -> Vec<i64> {
        let ids = self.0.split("<a id=\"series-").skip(1);
        ids.map(|rest| rest.split('"').next().unwrap().parse().unwrap()).collect()
    }

    fn tiles(&self) -> String {
        self.words("<dl class=\"tiles\"", "</dl>")
    }

    fn refusals(&self) -> String {
        self.words("<h2 id=\"refusals\"", "</section>")
    }

    fn failures(&self) -> String {
        self.words("<h2 id=\"failures\"", "</section>")
    }

    fn link(&self, id: &str) -> Option<String> {
        let rest = self.0.split_once(&format!("<a id=\"{id}\" href=\"/console"))?.1;
        Some(rest.split('"').next().unwrap().replace("&amp;", "&"))
    }
}

#[tokio::test]
async fn the_console_shows_what_was_issued_resent_and_refused() {
    let app = start(&[
        repeatable_series(1, ""),
        repeatable_series(2, "max_create = 3"),
        default_series(3, "do_not_resend_existing_voucher = false"),
        repeatable_series(4, "client_handling_type = \"DISC_CODE_PIN\""),
        repeatable_series(5, ""),
    ])
    .await;
    sqlx::raw_sql(
        "insert into pool_code (org_id, series_id, code, position, customer_id)
         values (1, 4, 'P-1', 1, null), (1, 4, 'P-2', 2, null), (1, 4, 'P-3', null, 'c')",
    )
    .execute(&app.pool)
    .await
    .unwrap();
    for _ in 0..4 {
        app.issue("c", &[1, 2, 3, 4, 999]).await;
    }

    let page = app.console_when("", "the page shows all coupons", |page| page.tiles().starts_with("Issued|11|")).await;
    assert_eq!(page.series(1), "1|Series 1|4|since 2026-11-22|no limit|0|4|0");
    assert_eq!(page.series(2), "2|Series 2|3|of 3|none left|0|3|1|5001|the cap is reached|× 1");
    assert_eq!(page.series(3), "3|Series 3|1|since 2026-11-22|no limit|3|1|0");
    let pool = "4|Series 4|3|since 2026-11-22|none left|uploaded codes|0|3|1|5005|no uploaded code is left|× 1";
    assert_eq!(page.series(4), pool);
    assert_eq!(page.series(5), "5|Series 5|0|no limit|0|0|0");
    assert_eq!(page.series_ids(), [4, 3, 2, 1, 5], "the series that were requested come first");
    let tiles = "Issued|11|in the last hour|Issued|0|in the last full minute|Refused|6|in the last hour|Resent|3|held \
                 already, shown again|Replayed|0|the same request again";
    assert_eq!(page.tiles(), tiles);
    let reasons = page.refusals();
    assert!(reasons.contains("707|no such series|Coupon Series ID is invalid|4|4|"), "{reasons}");
    assert!(reasons.contains("5001|the cap is reached|Maximum number of series has been created|1|1"), "{reasons}");
    assert!(page.0.contains("11 coupons issued, most of them at 10:00 (11); 6 refused."));
}

#[tokio::test]
async fn the_console_counts_replays() {
    let app = start(&[repeatable_series(1, "")]).await;
    for _ in 0..3 {
        let body = json!({"seriesIds": [1], "customer": {"id": "c"}}).to_string();
        let answer = app.post(body).header("Idempotency-Key", "k").send().await.unwrap();
        assert_eq!(outcomes(&answer.json().await.unwrap()), ["issued"]);
    }
    let page = app.console_when("", "the page shows the replays", |page| page.tiles().contains("Replayed|2|")).await;
    assert_eq!(page.series(1), "1|Series 1|1|since 2026-11-22|no limit|0|and 2 replayed|1|0");
}

#[tokio::test]
async fn a_failure_is_found_by_request_and_by_series_and_shows_nothing_of_the_customer() {
    let app = start(&[
        repeatable_series(1, "client_handling_type = \"GENERIC\"\ngeneric_code = \"THE-ONE-CODE\""),
        repeatable_series(2, ""),
    ])
    .await;
    let request = async |request_id: &str, series_ids: &[i64]| {
        let customer = json!({"mobile": "919900000001", "email": "somebody@example.com"});
        let body = json!({"seriesIds": series_ids, "customer": customer}).to_string();
        app.post(body).header("X-Request-Id", request_id).send().await.unwrap();
    };
    request("first", &[2, 1, 98]).await;
    app.clock.set("2026-11-22T10:01:00Z");
    request("second", &[2, 99, 98]).await;

    let page = app.console_when("", "the page shows both failures", |page| page.failures().contains("second")).await;
    let none = "Coupon Series ID is invalid";
    let (first, second) = (
        "2026-11-22 10:00:00|first|CALLER|98|707",
        "2026-11-22 10:01:00|second|CALLER|99|707|Coupon Series ID is invalid|98|707",
    );
    let [first, second] = [first, second].map(|failure| failure.replace("CALLER", "till store.server, store 10"));
    let failures = page.failures();
    assert!(failures.contains(&format!("{second}|{none}|{first}|{none}")), "{failures}");
    let found = app.console("?request=first").await.failures();
    assert!(found.contains(&first) && !found.contains("second"), "{found}");
    let found = app.console("?series=99").await;
    assert!(found.0.contains("There is no series 99.") && found.failures().contains("99|707"));
    assert!(!found.failures().contains("98") && found.series_ids().is_empty());
    assert!(app.console("?request=third").await.failures().contains("None in the list of recent failures"));
    for secret in ["THE-ONE-CODE", "9900000001", "somebody"] {
        assert!(!page.0.contains(secret), "{secret}");
    }
}

#[tokio::test]
async fn html_in_names_and_queries_is_escaped() {
    let hostile = "</title><script>alert(1)</script>\\\" onmouseover=x <img src=//evil.example>&amp;";
    let file = ORG.replace("Test Retail", hostile);
    let file = format!("{file}{}", repeatable_series(1, "").replace("Series 1", hostile));
    let app = TestApp::start_with(&file, flush_at_once).await;
    let query = "?series=%3Cscript%3E&request=%22%3E%3Cscript%3Ealert(1)%3C/script%3E";
    for query in ["", query, "?series=1"] {
        let page = app.console(query).await;
        let escaped = "&lt;/title&gt;&lt;script&gt;alert(1)&lt;/script&gt;&quot; onmouseover=x &lt;img src=//evil.example&gt;&amp;amp;";
        assert_eq!(page.0.matches(escaped).count(), 3, "{}", page.0);
        assert_eq!((page.0.matches("<script").count(), page.0.matches("<img").count()), (1, 0));
        assert!(!page.0.contains("\" onmouseover"));
    }
    let page = app.console(query).await;
    assert!(page.0.contains("A series id is a number") && page.0.contains("value=\"&lt;script&gt;\""));
}

#[tokio::test]
async fn the_console_needs_read_access() {
    let app = start(&[repeatable_series(1, "")]).await;
    for (till, password) in [("store.server", "server123"), ("office.desk", "office123")] {
        assert_eq!(app.request_console("", till, password).await.status(), 200);
    }
    let refused = app.request_console("", "warehouse.gate", "gate123").await;
    assert_eq!(failure(refused).await, (403, 4000, "Not authorized. Access is denied!".to_owned()));
    let wrong = app.request_console("", "office.desk", "wrong").await;
    let asks_for_basic = |headers: &HeaderMap| {
        headers.get_all("www-authenticate").iter().any(|one| one.to_str().unwrap().starts_with("Basic realm="))
    };
    assert!(asks_for_basic(wrong.headers()));
    assert_eq!(failure(wrong).await, (401, 401, "Invalid credentials".to_owned()));
    let anonymous = app.client().get(app.url("/console")).send().await.unwrap();
    assert!(asks_for_basic(anonymous.headers()));
    assert_eq!(failure(anonymous).await.0, 401);

    let grant = json!({"key": "reports", "secret": "reports-secret"});
    let token = app.client().post(app.url("/v3/oauth/token/generate")).json(&grant).send().await.unwrap();
    let token: serde_json::Value = token.json().await.unwrap();
    let token = token["data"]["accessToken"].as_str().unwrap();
    let by_token = app.client().get(app.url("/console")).bearer_auth(token).send().await.unwrap();
    assert_eq!(by_token.status(), 200);
    let posted = app.client().post(app.url("/console")).bearer_auth(token).send().await.unwrap();
    assert_eq!(posted.status(), 405);
}

#[tokio::test]
async fn the_console_counts_against_the_rate_limit() {
    let file = ORG.replace("id = \"office.desk\"", "id = \"office.desk\"\nrate_limit_per_minute = 2");
    let app = TestApp::start_with(&file, flush_at_once).await;
    let mut statuses = Vec::new();
    for _ in 0..3 {
        statuses.push(app.request_console("", "office.desk", "office123").await.status().as_u16());
    }
    assert_eq!(statuses, [200, 200, 429]);
}

/// The Content-Security-Policy allows no other file and no other script, and Cache-Control no copy.
#[tokio::test]
async fn the_page_loads_nothing_and_is_not_stored() {
    let app = start(&[repeatable_series(1, "")]).await;
    let answer = app.request_console("", "office.desk", "office123").await;
    let headers = answer.headers().clone();
    let policy = headers["content-security-policy"].to_str().unwrap();
    for part in [
        "default-src 'none'; ",
        "style-src 'sha256-",
        "script-src 'sha256-",
        "form-action 'self'",
        "frame-ancestors 'none'",
    ] {
        assert!(policy.contains(part), "{policy}");
    }
    assert!(!policy.contains("unsafe"), "{policy}");
    assert_eq!(headers["cache-control"], "no-store");
    assert_eq!(headers["content-type"], "text/html; charset=utf-8");
    let page = answer.text().await.unwrap();
    assert!(!page.contains(" style=") && !page.contains(" onclick"));
    let addresses = page.split("href=\"").skip(1).chain(page.split("src=\"").skip(1));
    for address in addresses.map(|rest| rest.split('"').next().unwrap()) {
        assert!(["/console", "#", "data:"].iter().any(|start| address.starts_with(start)), "{address}");
    }
}

#[tokio::test]
async fn a_disabled_console_is_404() {
    let app = TestApp::start_with(ORG, |settings| settings.http.console = false).await;
    let answer = app.request_console("", "office.desk", "office123").await;
    assert_eq!(failure(answer).await, (404, 404, "No such path".to_owned()));
    assert_eq!(app.client().get(app.url("/console")).send().await.unwrap().status(), 404);
}

#[tokio::test]
async fn without_activity_counts_the_console_shows_the_coupons_in_the_database() {
    let file = format!("{ORG}{}", repeatable_series(1, "max_create = 10"));
    let app = TestApp::start_with(&file, |settings| settings.activity.flush = Duration::ZERO).await;
    app.issue("c", &[1]).await;
    let page = app.console("").await;
    assert_eq!(page.series(1), "1|Series 1|1|of 10|9|0|0|0");
    app.stop().await;
}

#[tokio::test]
async fn the_counts_of_two_replicas_add_up_and_survive_a_restart() {
    let database = new_database().await;
    let file = format!("{ORG}{}", repeatable_series(1, ""));
    // Only the stop of this replica adds its counts.
    let flush_at_stop = |settings: &mut Settings| settings.activity.flush = Duration::from_hours(1);
    let one = TestApp::start_over(database.clone(), &file, flush_at_stop).await;
    let other = TestApp::start_over(database.clone(), &file, flush_at_once).await;
    for customer in ["a", "b", "c"] {
        one.issue(customer, &[1, 999]).await;
        other.issue(customer, &[1, 1]).await;
    }
    one.stop().await;
    other
        .console_when("", "the page shows the counts of both replicas", |page| page.tiles().starts_with("Issued|9|"))
        .await;
    other.stop().await;

    let again = TestApp::start_over(database, &file, flush_at_once).await;
    let page = again.console("").await;
    assert!(page.series(1).starts_with("1|Series 1|9|"), "{}", page.series(1));
    assert!(page.tiles().contains("Refused|3|"), "{}", page.tiles());
}

/// The service purges old minutes and failures, and keeps their totals.
#[tokio::test]
async fn totals_outlive_the_minutes_and_failures_that_are_purged() {
    let database = new_database().await;
    let file = format!("{ORG}{}", default_series(1, ""));
    let app = TestApp::start_over(database.clone(), &file, flush_at_once).await;
    for customer in ["a", "b", "b", "c"] {
        app.issue(customer, &[1]).await;
    }
    app.console_when("", "the page shows all coupons", |page| page.tiles().starts_with("Issued|3|")).await;
    app.stop().await;

    let too_young_to_purge = "update activity_minute set minute = minute - interval '47 hours';
                   update activity_failure set at = at - interval '47 hours'";
    let old_enough = "update activity_minute set minute = minute - interval '2 hours';
                    update activity_failure set at = at - interval '2 hours'";
    for (make_older, kept) in [(too_young_to_purge, true), (old_enough, false)] {
        let mut connection = database.connect().await.unwrap();
        sqlx::raw_sql(make_older).execute(&mut connection).await.unwrap();
        close(connection).await;
        // The service purges when it starts.
        let app = TestApp::start_over(database.clone(), &file, flush_at_once).await;
        let page = if kept {
            app.console("").await
        } else {
            app.console_when("", "the page shows no failure", |page| page.failures().contains("None.")).await
        };
        assert_eq!(page.failures().contains("1|709"), kept);
        assert_eq!(app.count("select from activity_minute").await > 0, kept);
        assert!(page.tiles().starts_with("Issued|0|"), "{}", page.tiles());
        let series = "1|Series 1|3|since 2026-11-22|no limit|0|0|1|709|the customer has one|× 1";
        assert_eq!(page.series(1), series);
        assert!(page.refusals().ends_with("|0|1"), "{}", page.refusals());
        app.stop().await;
    }
}

/// The service sends a batch of counts again if its answer is lost. The database may have added it.
#[tokio::test]
async fn a_batch_of_counts_that_is_sent_again_is_added_once() {
    let app = start(&[repeatable_series(1, "")]).await;
    let db = Db::new(app.connect.clone(), &Settings::load(None).unwrap().database);
    let minute = NOW.parse().unwrap();
    let (org_id, series_id, outcome) = (OrgId(1), SeriesId(1), "issued");
    let caller = Arc::new(Caller {
        org_id,
        till_id: Some("store.server".to_owned()),
        store_id: StoreId(10),
        access: Access::Write,
        credential: Credential::Till,
        is_attributed: false,
    });
    let batch = |number| Batch {
        writer: uuid::Uuid::from_u128(7),
        number,
        at: minute,
        counts: [SeriesId(1), WHOLE_ORGANISATION]
            .map(|series_id| Count { org_id, series_id, minute, outcome, entities: 5 })
            .to_vec(),
        failures: vec![Failure {
            caller: Arc::clone(&caller),
            at: minute,
            request_id: "r".into(),
            series_id,
            outcome: "gap",
        }],
    };
    for number in [1, 1, 2, 2, 1] {
        db.add_activity(&batch(number)).await.unwrap();
    }
    let page = app.console("").await;
    assert_eq!(page.series(1), "1|Series 1|10|since 2026-11-22|no limit|0|10|0");
    assert_eq!(app.count("select from activity_failure").await, 2);

    // The database keeps the newest failures.
    db.trim_failures(&[OrgId(1), OrgId(2)], 1).await.unwrap();
    assert_eq!(app.count("select from activity_failure").await, 1);
}

#[tokio::test]
async fn counts_wait_for_a_locked_table_and_requests_do_not() {
    let app = start(&[repeatable_series(1, "")]).await;
    let mut holder = app.connect.connect().await.unwrap();
    sqlx::raw_sql("begin; lock table activity_total").execute(&mut holder).await.unwrap();
    for _ in 0..5 {
        assert_eq!(app.issue_one("c", 1).await, "issued");
    }
    close(holder).await;
    app.console_when("", "the page shows all coupons", |page| page.tiles().starts_with("Issued|5|")).await;
}

#[tokio::test]
async fn a_page_shows_at_most_50_series_and_the_pages_show_all() {
    let app = start(&[]).await;
    let more = "insert into series (org_id, series_id, version, description, info, discount_type, discount_value, discount_upto,
                    valid_till_date, expiry_strategy_type, expiry_strategy_value, client_handling_type, alpha_numeric,
                    random_code_length, coupon_prefix, coupon_suffix, is_multiple_vouchers_per_user_allowed,
                    do_not_resend_existing_voucher, mutual_exclusive_series_ids, store_ids, externally_managed)
                select 1, n, 1, 'Series ' || n, '', 'ABS', 500, 0, '2027-05-09', 'SERIES_EXPIRY', 0, 'DISC_CODE', true, 10, '', '',
                       true, true, '{}', '{}', false
                  from generate_series(1, 2000) n;
                insert into series_version (org_id, series_id, version, description, info, discount_type, discount_value,
                    discount_upto, time_zone)
                select org_id, series_id, version, description, info, discount_type, discount_value, discount_upto, time_zone
                  from series join organisation using (org_id);
                analyze series";
    sqlx::raw_sql(more).execute(&app.pool).await.unwrap();
    for first in [1001, 1101] {
        let hundred: Vec<i64> = (first..first + 100).collect();
        app.issue("c", &hundred).await;
    }
    app.clock.set("2026-11-22T10:01:00Z");
    app.issue("c", &[1500]).await;
    app.console_when("", "the page shows all coupons", |page| page.tiles().starts_with("Issued|201|")).await;

    let (mut query, mut seen, mut pages) = (String::new(), Vec::new(), 0);
    loop {
        let page = app.console(&query).await;
        assert!(page.series_ids().len() <= 50 && page.0.len() < 300_000);
        seen.extend(page.series_ids());
        pages += 1;
        match page.link("next") {
            Some(next) => query = next,
            None => break,
        }
    }
    assert_eq!(pages, 40);
    assert_eq!(seen[0], 1500, "the series of the last request comes first");
    let mut active = seen[1..201].to_vec();
    active.sort_unstable();
    assert_eq!(active, (1001..1201).collect::<Vec<_>>());
    assert!(seen[201..].is_sorted());
    seen.sort_unstable();
    assert_eq!(seen, (1..=2000).collect::<Vec<_>>());

    assert_eq!(app.console("?series=7,+1500").await.series_ids(), [7, 1500]);
}
