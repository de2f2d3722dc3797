//! Attribution: an OAuth client issues for the till or store that its request names. What is stored, what 735 goes by, who may,
//! and what every wrong header is told.

use coupon_issuer::provisioning;
use std::time::Duration;

use reqwest::header::HeaderValue;
use serde_json::{Value, json};
use sqlx::Row;

use crate::authentication::basic;
use crate::support::{ORG, TestApp, eventually, failure, outcomes, series};

const TYPE: &str = "X-CAP-API-ATTRIBUTION-ENTITY-TYPE";
const CODE: &str = "X-CAP-API-ATTRIBUTION-ENTITY-CODE";
const TILL_CODE: &str = "X-CAP-API-ATTRIBUTION-TILL-CODE";
type Headers<'a> = &'a [(&'a str, &'a str)];
const UNKNOWN: &str = "names no till or store of the organisation";

/// More stores and tills of [`ORG`], two of them of one name, and another organisation.
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
    let known = ORG.replace(
        "name = \"Downtown\"",
        "name = \"Downtown\"\ncode = \"DT\"\nexternal_ids = [\"sap-10\", \"\", \"erp 10\"]",
    );
    let all = [
        series(1, ""),
        series(2, "store_ids = [13]"),
        series(3, "max_vouchers_per_user = 1"),
        series(4, "max_create = 1000"),
    ];
    format!("{known}{MORE}{}{OTHER}", all.concat())
}

async fn start() -> TestApp {
    // Nothing but a notification ends what is remembered.
    TestApp::start_with(&file(), |settings| settings.auth.credential_cache = Duration::from_hours(1)).await
}

async fn token(app: &TestApp, key: &str) -> String {
    let body = json!({"key": key, "secret": format!("{key}-secret")});
    let answer = app.client().post(app.url("/v3/oauth/token/generate")).json(&body).send().await.unwrap();
    let answer: Value = answer.json().await.unwrap();
    format!("Bearer {}", answer["data"]["accessToken"].as_str().unwrap())
}

/// A client's request for a coupon of each of these series, with these headers besides.
async fn ask(app: &TestApp, token: &str, series: &[i64], headers: Headers<'_>) -> reqwest::Response {
    let body = json!({"seriesIds": series, "customer": {"id": "c"}}).to_string();
    let request = app.bare(body).header("Content-Type", "application/json").header("Authorization", token);
    let with = |request: reqwest::RequestBuilder, (name, value): &(&str, &str)| {
        request.header(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap())
    };
    headers.iter().fold(request, with).send().await.unwrap()
}

async fn status(app: &TestApp, token: &str, headers: Headers<'_>) -> u16 {
    ask(app, token, &[1], headers).await.status().as_u16()
}

/// Till, store and client of each coupon that is stored, and forgets them.
async fn stored(app: &TestApp) -> Vec<(Option<String>, i64, Option<String>)> {
    let rows = sqlx::query(
        "with forgotten as (delete from coupon returning org_id, origin_id)
         select o.till_id, o.store_id, o.client_key from forgotten join origin o using (org_id, origin_id)",
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
        // The newer header decides, and the older one is a till whatever the type says.
        (&[(TILL_CODE, "nobody"), (CODE, "kiosk")], kiosk),
        (&[(TILL_CODE, "kiosk"), (CODE, " \t "), (TYPE, "STORE_CODE")], kiosk),
        // Without a code nothing is attributed.
        (&[(CODE, ""), (TILL_CODE, "")], own),
        (&[(TYPE, "STORE_CODE")], own),
    ];
    for (headers, (till, store)) in cases {
        // Twice: what is remembered is the same.
        for _ in 0..2 {
            let answer = ask(&app, &crm, &[1], headers).await;
            assert_eq!(answer.status(), 200, "{headers:?}");
            assert_eq!(outcomes(&answer.json().await.unwrap()), ["issued"], "{headers:?}");
            let expected = (till.map(str::to_owned), *store, Some("crm".to_owned()));
            assert_eq!(stored(&app).await, [expected], "{headers:?}");
        }
    }
}

/// However a coupon is written: alone, numbered, counted, or with the record of its key.
#[tokio::test]
async fn every_way_of_writing_stores_the_client_and_the_store_decides_735() {
    let app = start().await;
    let crm = token(&app, "crm").await;
    let all = [1, 2, 3, 4];
    let answer = ask(&app, &crm, &all, &[]).await;
    assert_eq!(outcomes(&answer.json().await.unwrap()), ["issued", "735", "issued", "issued"], "its own store");
    assert_eq!(stored(&app).await, vec![(Some("store.server".to_owned()), 10, Some("crm".to_owned())); 3]);

    for headers in [vec![], vec![("Idempotency-Key", "k")]] {
        let store = [vec![(TYPE, "STORE_CODE"), (CODE, "13")], headers].concat();
        let answer = ask(&app, &crm, &all, &store).await;
        assert_eq!(outcomes(&answer.json().await.unwrap()), ["issued"; 4]);
        assert_eq!(stored(&app).await, vec![(None, 13, Some("crm".to_owned())); 4]);
    }
}

#[tokio::test]
async fn a_till_names_nobody_but_itself() {
    let app = start().await;
    let till = basic("store.server", "server123");
    for headers in
        [[(TYPE, "STORE_CODE"), (CODE, "13")], [(TYPE, "NOTHING"), (CODE, "kiosk")], [(CODE, "a"), (CODE, "b")]]
    {
        assert_eq!(status(&app, &till, &headers).await, 200, "{headers:?}");
        assert_eq!(stored(&app).await, [(Some("store.server".to_owned()), 10, None)]);
    }
}

#[tokio::test]
async fn what_names_nothing_is_told_with_its_header() {
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
        // One that has a code of its own is no longer named by its id.
        (&[(TYPE, "STORE_CODE"), (CODE, "10")], unknown(CODE, "STORE_CODE")),
        (&[(TYPE, "STORE_EXTERNAL_ID_1"), (CODE, "sap-10")], unknown(CODE, "STORE_EXTERNAL_ID_1")),
        // Another organisation's.
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
        let answer = ask(&app, &crm, &[1], headers).await;
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
async fn what_it_is_attributed_to_must_have_access_besides_the_client() {
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
        let answer = ask(&app, &crm, &[1], &headers).await;
        assert_eq!(failure(answer).await, denied, "{headers:?}");
    }
    // A client that may not write gains nothing by it, and is told of no till.
    for code in ["kiosk", "nobody"] {
        let answer = ask(&app, &reports, &[1], &[(CODE, code)]).await;
        assert_eq!(failure(answer).await, denied, "{code}");
    }
    assert_eq!(app.count("select from coupon").await, 0);

    // Read access is enough to look.
    assert_eq!(ask(&app, &crm, &[1], &[("Idempotency-Key", "k")]).await.status(), 200);
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
async fn the_limit_on_requests_is_the_clients() {
    let app = TestApp::start_with(&file(), |settings| settings.rate_limit.per_minute = 5).await;
    let crm = token(&app, "crm").await;
    let mut statuses = Vec::new();
    for code in ["kiosk", "store.server", "nobody", "kiosk.off", "kiosk", "store.server"] {
        statuses.push(status(&app, &crm, &[(CODE, code)]).await);
    }
    // The token took one.
    assert_eq!(statuses, [200, 200, 400, 403, 429, 429]);
    assert_eq!(status(&app, &basic("kiosk", "kiosk-password"), &[]).await, 200, "the till has its own");
}

#[tokio::test]
async fn a_change_of_a_till_or_store_holds_at_once() {
    let app = start().await;
    let crm = token(&app, "crm").await;
    let set = async |change: &'static str| app.change_credentials(change).await;
    let turns = async |headers: &[(&str, &str)], expected: u16| {
        eventually("the change holds", async || status(&app, &crm, headers).await == expected).await;
    };
    let (kiosk, code, name) =
        ([(CODE, "kiosk")], [(TYPE, "STORE_CODE"), (CODE, "13")], [(TYPE, "STORE_NAME"), (CODE, "Downtown")]);
    for headers in [&kiosk[..], &code, &name] {
        assert_eq!(status(&app, &crm, headers).await, 200);
    }
    set("update till set disabled = true where till_id = 'kiosk'").await;
    turns(&kiosk, 403).await;
    set("update till set disabled = false where till_id = 'kiosk'").await;
    turns(&kiosk, 200).await;
    set("update store set access = 'none' where store_id = 13").await;
    turns(&code, 403).await;
    turns(&kiosk, 403).await;
    set("update store set access = null, code = 'new' where store_id = 13").await;
    turns(&code, 400).await;
    turns(&[(TYPE, "STORE_CODE"), (CODE, "new")], 200).await;
    // A name that named one store, and the next moment two.
    set("insert into store (org_id, store_id, name) values (1, 99, 'Downtown')").await;
    turns(&name, 400).await;
    set("delete from store where store_id = 99").await;
    turns(&name, 200).await;
    // What was not there is not remembered.
    assert_eq!(status(&app, &crm, &[(CODE, "kiosk.new")]).await, 400);
    provisioning::apply_text(&app.connect, &file().replace("\"kiosk.look\"", "\"kiosk.new\"")).await.unwrap();
    assert_eq!(status(&app, &crm, &[(CODE, "kiosk.new")]).await, 403, "it may only look");
}

#[tokio::test]
async fn the_console_shows_the_client_and_the_till_or_store() {
    let app = TestApp::start_with(&file(), |settings| settings.activity.flush = Duration::from_millis(20)).await;
    let crm = token(&app, "crm").await;
    ask(&app, &crm, &[999], &[("X-Request-Id", "r-till"), (CODE, "kiosk")]).await;
    ask(&app, &crm, &[999], &[("X-Request-Id", "r-store"), (TYPE, "STORE_CODE"), (CODE, "14b")]).await;
    ask(&app, &basic("kiosk", "kiosk-password"), &[999], &[("X-Request-Id", "r-own")]).await;
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

/// A retry in the name of another till or store is another request. How the same one is named does not count.
#[tokio::test]
async fn what_a_request_is_attributed_to_counts_for_its_key() {
    let app = start().await;
    let crm = token(&app, "crm").await;
    let keyed =
        async |headers: Headers<'_>| ask(&app, &crm, &[1], &[headers, &[("Idempotency-Key", "k")]].concat()).await;
    let first = keyed(&[(TYPE, "STORE_CODE"), (CODE, "DT")]).await.text().await.unwrap();
    assert_eq!(outcomes(&serde_json::from_str(&first).unwrap()), ["issued"]);
    assert_eq!(keyed(&[(TYPE, "STORE_EXTERNAL_ID"), (CODE, "sap-10")]).await.text().await.unwrap(), first);
    for other in [&[][..], &[(TYPE, "STORE_CODE"), (CODE, "14b")], &[(CODE, "store.server")], &[(TILL_CODE, "kiosk")]] {
        assert_eq!(keyed(other).await.status(), 422, "{other:?}");
    }
    assert_eq!(app.count("select from coupon").await, 1);
}
