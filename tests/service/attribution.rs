//! Attribution: an OAuth client issues for the till or store that the headers of its request name. Covers what is stored, which store
//! decides about 735, who may issue, and every error of the headers.

use coupon_issuer::provisioning;
use std::time::Duration;

use reqwest::header::HeaderValue;
use serde_json::{Value, json};
use sqlx::Row;

use crate::authentication::basic;
use crate::support::{ORG, TestApp, eventually, failure, outcomes, repeatable_series};

const TYPE: &str = "X-CAP-API-ATTRIBUTION-ENTITY-TYPE";
const CODE: &str = "X-CAP-API-ATTRIBUTION-ENTITY-CODE";
const TILL_CODE: &str = "X-CAP-API-ATTRIBUTION-TILL-CODE";
type Headers<'a> = &'a [(&'a str, &'a str)];
const UNKNOWN: &str = "names no till or store of the organisation";

/// More stores and tills of [`ORG`]. Two of the stores share a name.
const MORE: &str = r#"
[[orgs.stores]]
id = 13
name = "Outlet"
[[orgs.stores]]
id = 14
name = "Outlet"
code = "14b"
[[orgs.stores]]
id = 15
name = "Zürich 4"
external_ids = ["", "x/15"]
[[orgs.tills]]
id = "kiosk"
store_id = 13
password = "kiosk-password"
[[orgs.tills]]
id = "kiosk.off"
store_id = 13
password = "off-password"
disabled = true
[[orgs.tills]]
id = "kiosk.look"
store_id = 13
password = "look-password"
access = "read"
"#;
/// Another organisation.
const OTHER: &str = r#"
[[orgs]]
id = 2
name = "Other Retail"
default_access = "write"
[[orgs.stores]]
id = 20
name = "Elsewhere"
code = "EW"
external_ids = ["e", "e1", "e2"]
[[orgs.tills]]
id = "elsewhere"
store_id = 20
password = "elsewhere-password"
"#;

fn file() -> String {
    let with_codes = ORG.replace(
        "name = \"Downtown\"",
        "name = \"Downtown\"\ncode = \"DT\"\nexternal_ids = [\"sap-10\", \"\", \"erp 10\"]",
    );
    let all = [
        repeatable_series(1, ""),
        repeatable_series(2, "store_ids = [13]"),
        repeatable_series(3, "max_vouchers_per_user = 1"),
        repeatable_series(4, "max_create = 1000"),
    ];
    format!("{with_codes}{MORE}{}{OTHER}", all.concat())
}

async fn start() -> TestApp {
    // The cache lasts longer than a test, so that only a notification can evict an entry.
    TestApp::start_with(&file(), |settings| settings.auth.credential_cache = Duration::from_hours(1)).await
}

async fn token(app: &TestApp, key: &str) -> String {
    let body = json!({"key": key, "secret": format!("{key}-secret")});
    let answer = app.client().post(app.url("/v3/oauth/token/generate")).json(&body).send().await.unwrap();
    let answer: Value = answer.json().await.unwrap();
    format!("Bearer {}", answer["data"]["accessToken"].as_str().unwrap())
}

/// Requests a coupon of each of these series with a client's token and these headers.
async fn request(app: &TestApp, token: &str, series: &[i64], headers: Headers<'_>) -> reqwest::Response {
    let body = json!({"seriesIds": series, "customer": {"id": "c"}}).to_string();
    let without_headers = app.bare(body).header("Content-Type", "application/json").header("Authorization", token);
    let with = |request: reqwest::RequestBuilder, (name, value): &(&str, &str)| {
        request.header(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap())
    };
    headers.iter().fold(without_headers, with).send().await.unwrap()
}

async fn status(app: &TestApp, token: &str, headers: Headers<'_>) -> u16 {
    request(app, token, &[1], headers).await.status().as_u16()
}

/// Deletes all coupons. Returns till, store and client of each.
async fn take_stored(app: &TestApp) -> Vec<(Option<String>, i64, Option<String>)> {
    let rows = sqlx::query(
        "with deleted as (delete from coupon returning org_id, origin_id)
         select o.till_id, o.store_id, o.client_key from deleted join origin o using (org_id, origin_id)",
    )
    .fetch_all(&app.pool)
    .await;
    rows.unwrap().iter().map(|row| (row.get("till_id"), row.get("store_id"), row.get("client_key"))).collect()
}

#[tokio::test]
async fn a_coupon_is_stored_under_the_till_or_store_that_the_request_names() {
    let app = start().await;
    let crm = token(&app, "crm").await;
    let (own, kiosk) = ((Some("store.server"), 10), (Some("kiosk"), 13));
    let cases: &[(Headers<'_>, (Option<&str>, i64))] = &[
        (&[], own),
        (&[(CODE, "kiosk")], kiosk),
        (&[(TYPE, "TILL"), (CODE, "kiosk")], kiosk),
        (&[(TYPE, ""), (CODE, " kiosk ")], kiosk),
        (&[(TYPE, "STORE_CODE"), (CODE, "DT")], (None, 10)),
        (&[(TYPE, "store_Code"), (CODE, "13")], (None, 13)),
        (&[(TYPE, "STORE_CODE"), (CODE, "14b")], (None, 14)),
        (&[(TYPE, "STORE_NAME"), (CODE, "Downtown")], (None, 10)),
        (&[(TYPE, "STORE_NAME"), (CODE, "Zürich 4")], (None, 15)),
        (&[(TYPE, "STORE_EXTERNAL_ID"), (CODE, "sap-10")], (None, 10)),
        (&[(TYPE, "STORE_EXTERNAL_ID_1"), (CODE, "x/15")], (None, 15)),
        (&[(TYPE, "STORE_EXTERNAL_ID_2"), (CODE, "erp 10")], (None, 10)),
        (&[(TILL_CODE, "kiosk")], kiosk),
        // The newer header decides. The older one names a till, and ignores the type.
        (&[(TILL_CODE, "nobody"), (CODE, "kiosk")], kiosk),
        (&[(TILL_CODE, "kiosk"), (CODE, " \t "), (TYPE, "STORE_CODE")], kiosk),
        // Without a code, the client's own till counts.
        (&[(CODE, ""), (TILL_CODE, "")], own),
        (&[(TYPE, "STORE_CODE")], own),
    ];
    for (headers, (till, store)) in cases {
        // The second time from the cache.
        for _ in 0..2 {
            let answer = request(&app, &crm, &[1], headers).await;
            assert_eq!(answer.status(), 200, "{headers:?}");
            assert_eq!(outcomes(&answer.json().await.unwrap()), ["issued"], "{headers:?}");
            let expected = (till.map(str::to_owned), *store, Some("crm".to_owned()));
            assert_eq!(take_stored(&app).await, [expected], "{headers:?}");
        }
    }
}

/// The writer takes another way for each of the four series: without a limit, for one store, with a maximum per customer, with a cap.
#[tokio::test]
async fn every_kind_of_series_stores_the_client_and_checks_the_store_named() {
    let app = start().await;
    let crm = token(&app, "crm").await;
    let all = [1, 2, 3, 4];
    let answer = request(&app, &crm, &all, &[]).await;
    assert_eq!(
        outcomes(&answer.json().await.unwrap()),
        ["issued", "735", "issued", "issued"],
        "series 2 is for store 13, and the client's own store is 10"
    );
    assert_eq!(take_stored(&app).await, vec![(Some("store.server".to_owned()), 10, Some("crm".to_owned())); 3]);

    for headers in [vec![], vec![("Idempotency-Key", "k")]] {
        let store = [vec![(TYPE, "STORE_CODE"), (CODE, "13")], headers].concat();
        let answer = request(&app, &crm, &all, &store).await;
        assert_eq!(outcomes(&answer.json().await.unwrap()), ["issued"; 4]);
        assert_eq!(take_stored(&app).await, vec![(None, 13, Some("crm".to_owned())); 4]);
    }
}

#[tokio::test]
async fn attribution_headers_of_a_till_are_ignored() {
    let app = start().await;
    let till = basic("store.server", "server123");
    for headers in
        [[(TYPE, "STORE_CODE"), (CODE, "13")], [(TYPE, "NOTHING"), (CODE, "kiosk")], [(CODE, "a"), (CODE, "b")]]
    {
        assert_eq!(status(&app, &till, &headers).await, 200, "{headers:?}");
        assert_eq!(take_stored(&app).await, [(Some("store.server".to_owned()), 10, None)]);
    }
}

#[tokio::test]
async fn a_header_that_names_nothing_is_400_with_its_name() {
    let app = start().await;
    let crm = token(&app, "crm").await;
    let types =
        "must be one of TILL, STORE_CODE, STORE_NAME, STORE_EXTERNAL_ID, STORE_EXTERNAL_ID_1, STORE_EXTERNAL_ID_2";
    let long = "x".repeat(5000);
    let unknown = |header, target_type| format!("{header}: {UNKNOWN} (as {target_type})");
    let cases: &[(Headers<'_>, String)] = &[
        (&[(TYPE, "SHOP"), (CODE, "kiosk")], format!("{TYPE}: {types}")),
        (&[(TYPE, "STORE CODE")], format!("{TYPE}: {types}")),
        (&[(CODE, "nobody")], unknown(CODE, "TILL")),
        (&[(CODE, "KIOSK")], unknown(CODE, "TILL")),
        (&[(CODE, "' or till_id = 'kiosk")], unknown(CODE, "TILL")),
        (&[(CODE, &long)], unknown(CODE, "TILL")),
        (&[(TILL_CODE, "nobody")], unknown(TILL_CODE, "TILL")),
        (&[(TYPE, "STORE_CODE"), (CODE, "kiosk")], unknown(CODE, "STORE_CODE")),
        // The id of a store is its code only until it gets another one.
        (&[(TYPE, "STORE_CODE"), (CODE, "10")], unknown(CODE, "STORE_CODE")),
        (&[(TYPE, "STORE_EXTERNAL_ID_1"), (CODE, "sap-10")], unknown(CODE, "STORE_EXTERNAL_ID_1")),
        // Tills and stores of another organisation.
        (&[(CODE, "elsewhere")], unknown(CODE, "TILL")),
        (&[(TYPE, "STORE_CODE"), (CODE, "EW")], unknown(CODE, "STORE_CODE")),
        (&[(TYPE, "STORE_NAME"), (CODE, "Elsewhere")], unknown(CODE, "STORE_NAME")),
        (&[(TYPE, "STORE_EXTERNAL_ID"), (CODE, "e")], unknown(CODE, "STORE_EXTERNAL_ID")),
        (&[(TYPE, "STORE_EXTERNAL_ID_1"), (CODE, "e1")], unknown(CODE, "STORE_EXTERNAL_ID_1")),
        (&[(TYPE, "STORE_EXTERNAL_ID_2"), (CODE, "e2")], unknown(CODE, "STORE_EXTERNAL_ID_2")),
        (
            &[(TYPE, "STORE_NAME"), (CODE, "Outlet")],
            format!("{CODE}: names more than one store of the organisation (as STORE_NAME)"),
        ),
        (&[(CODE, "kiosk"), (CODE, "kiosk")], format!("{CODE}: must come once")),
        (&[(TYPE, "TILL"), (TYPE, "TILL")], format!("{TYPE}: must come once")),
        (&[(CODE, "kiosk"), (TILL_CODE, "a"), (TILL_CODE, "b")], format!("{TILL_CODE}: must come once")),
    ];
    for (headers, message) in cases {
        let answer = request(&app, &crm, &[1], headers).await;
        assert_eq!(failure(answer).await, (400, 400, message.clone()), "{headers:?}");
    }
    for header in [TYPE, CODE, TILL_CODE] {
        let request = app.post("{}").header("X-CAP-API-OAUTH-TOKEN", crm.trim_start_matches("Bearer "));
        let answer = request.header(header, HeaderValue::from_bytes(b"Z\xfcrich").unwrap()).send().await.unwrap();
        assert_eq!(failure(answer).await, (400, 400, format!("{header}: must be plain text, in UTF-8")));
    }
    assert_eq!(app.count("select from coupon").await, 0);
}

#[tokio::test]
async fn both_the_client_and_the_till_or_store_need_access() {
    let app = start().await;
    let (crm, reports) = (token(&app, "crm").await, token(&app, "reports").await);
    let denied = (403, 4000, "Not authorized. Access is denied!".to_owned());
    for headers in [
        [(TYPE, "TILL"), (CODE, "kiosk.off")],
        [(TYPE, "TILL"), (CODE, "kiosk.look")],
        [(TYPE, "TILL"), (CODE, "office.desk")],
        [(TYPE, "TILL"), (CODE, "warehouse.gate")],
        [(TYPE, "STORE_CODE"), (CODE, "11")],
        [(TYPE, "STORE_NAME"), (CODE, "Warehouse")],
    ] {
        let answer = request(&app, &crm, &[1], &headers).await;
        assert_eq!(failure(answer).await, denied, "{headers:?}");
    }
    // A client without write access gets the same 403, and does not learn whether the till exists.
    for code in ["kiosk", "nobody"] {
        let answer = request(&app, &reports, &[1], &[(CODE, code)]).await;
        assert_eq!(failure(answer).await, denied, "{code}");
    }
    assert_eq!(app.count("select from coupon").await, 0);

    // Reading needs only read access.
    assert_eq!(request(&app, &crm, &[1], &[("Idempotency-Key", "k")]).await.status(), 200);
    for path in ["/v2/coupon/bulk/issue/k", "/console"] {
        for (code, expected) in [
            ("kiosk", 200),
            ("kiosk.look", 200),
            ("office.desk", 200),
            ("warehouse.gate", 403),
            ("kiosk.off", 403),
            ("nobody", 400),
        ] {
            let request = app.client().get(app.url(path)).header("Authorization", &reports).header(CODE, code);
            assert_eq!(request.send().await.unwrap().status(), expected, "{path} {code}");
        }
    }
}

#[tokio::test]
async fn a_store_inherits_its_access_from_its_organisation() {
    let file = file().replacen("default_access = \"write\"", "default_access = \"read\"", 1);
    let app = TestApp::start_with(&file, |_| {}).await;
    let crm = token(&app, "crm").await;
    let store = [(TYPE, "STORE_CODE"), (CODE, "13")];
    assert_eq!(status(&app, &crm, &store).await, 403);
    app.change_credentials("update organisation set default_access = 'write'").await;
    eventually("the default changes", async || status(&app, &crm, &store).await == 200).await;
}

#[tokio::test]
async fn an_attributed_request_counts_against_the_clients_rate_limit() {
    let app = TestApp::start_with(&file(), |settings| settings.rate_limit.per_minute = 5).await;
    let crm = token(&app, "crm").await;
    let mut statuses = Vec::new();
    for code in ["kiosk", "store.server", "nobody", "kiosk.off", "kiosk", "store.server"] {
        statuses.push(status(&app, &crm, &[(CODE, code)]).await);
    }
    // The request for the token was the first of five.
    assert_eq!(statuses, [200, 200, 400, 403, 429, 429]);
    assert_eq!(status(&app, &basic("kiosk", "kiosk-password"), &[]).await, 200, "the till has a limit of its own");
}

#[tokio::test]
async fn a_change_of_a_till_or_store_takes_effect_at_once() {
    let app = start().await;
    let crm = token(&app, "crm").await;
    let change = async |sql: &'static str| app.change_credentials(sql).await;
    let becomes = async |headers: &[(&str, &str)], expected: u16| {
        eventually("the service follows the change", async || status(&app, &crm, headers).await == expected).await;
    };
    let (kiosk, code, name) =
        ([(CODE, "kiosk")], [(TYPE, "STORE_CODE"), (CODE, "13")], [(TYPE, "STORE_NAME"), (CODE, "Downtown")]);
    for headers in [&kiosk[..], &code, &name] {
        assert_eq!(status(&app, &crm, headers).await, 200);
    }
    change("update till set disabled = true where till_id = 'kiosk'").await;
    becomes(&kiosk, 403).await;
    change("update till set disabled = false where till_id = 'kiosk'").await;
    becomes(&kiosk, 200).await;
    change("update store set access = 'none' where store_id = 13").await;
    becomes(&code, 403).await;
    becomes(&kiosk, 403).await;
    change("update store set access = null, code = 'new' where store_id = 13").await;
    becomes(&code, 400).await;
    becomes(&[(TYPE, "STORE_CODE"), (CODE, "new")], 200).await;
    // The name of one store becomes the name of two.
    change("insert into store (org_id, store_id, name) values (1, 99, 'Downtown')").await;
    becomes(&name, 400).await;
    change("delete from store where store_id = 99").await;
    becomes(&name, 200).await;
    // The cache does not keep that a till is unknown.
    assert_eq!(status(&app, &crm, &[(CODE, "kiosk.new")]).await, 400);
    provisioning::apply_text(&app.connect, &file().replace("\"kiosk.look\"", "\"kiosk.new\"")).await.unwrap();
    assert_eq!(status(&app, &crm, &[(CODE, "kiosk.new")]).await, 403, "the new till has read access");
}

#[tokio::test]
async fn the_console_shows_the_client_and_the_till_or_store() {
    let app = TestApp::start_with(&file(), |settings| settings.activity.flush = Duration::from_millis(20)).await;
    let crm = token(&app, "crm").await;
    request(&app, &crm, &[999], &[("X-Request-Id", "r-till"), (CODE, "kiosk")]).await;
    request(&app, &crm, &[999], &[("X-Request-Id", "r-store"), (TYPE, "STORE_CODE"), (CODE, "14b")]).await;
    request(&app, &basic("kiosk", "kiosk-password"), &[999], &[("X-Request-Id", "r-own")]).await;
    for (request, caller) in [
        ("r-till", ">client crm, till kiosk, store 13<"),
        ("r-store", ">client crm, store 14<"),
        ("r-own", ">till kiosk, store 13<"),
    ] {
        eventually(caller, async || {
            let page = app.client().get(app.url(&format!("/console?request={request}")));
            let page = page.basic_auth("store.server", Some("server123")).send().await.unwrap();
            page.text().await.unwrap().contains(caller)
        })
        .await;
    }
}

/// A retry for another till or store is another request. A retry may name the same store in another way.
#[tokio::test]
async fn a_retry_for_another_till_or_store_is_422() {
    let app = start().await;
    let crm = token(&app, "crm").await;
    let keyed =
        async |headers: Headers<'_>| request(&app, &crm, &[1], &[headers, &[("Idempotency-Key", "k")]].concat()).await;
    let first = keyed(&[(TYPE, "STORE_CODE"), (CODE, "DT")]).await.text().await.unwrap();
    assert_eq!(outcomes(&serde_json::from_str(&first).unwrap()), ["issued"]);
    assert_eq!(keyed(&[(TYPE, "STORE_EXTERNAL_ID"), (CODE, "sap-10")]).await.text().await.unwrap(), first);
    for other in [&[][..], &[(TYPE, "STORE_CODE"), (CODE, "14b")], &[(CODE, "store.server")], &[(TILL_CODE, "kiosk")]] {
        assert_eq!(keyed(other).await.status(), 422, "{other:?}");
    }
    assert_eq!(app.count("select from coupon").await, 1);
}
