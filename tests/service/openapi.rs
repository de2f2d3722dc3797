//! The OpenAPI document equals its snapshot and has every route and every error code of the contract. Its examples match its
//! schemas, and so do requests and answers. The page that shows it loads nothing from other hosts.

use std::collections::BTreeSet;
use std::process::Command;

use coupon_issuer::config::Settings;
use serde_json::{Value, json};

use crate::support::{ORG, TestApp, failure, repeatable_series};
use crate::tenants::undocumented_routes;

const CONTRACT: &str = include_str!("../../docs/contract.md");
const SNAPSHOT: &str = include_str!("../openapi.json");
const RENEW: &str = "if this is intended: cargo run -- openapi > tests/openapi.json";

fn document_with(change: impl FnOnce(&mut Settings)) -> Value {
    let mut settings = Settings::load(None).unwrap();
    change(&mut settings);
    serde_json::from_str(&coupon_issuer::http::document(&settings.http).unwrap()).unwrap()
}

fn document() -> Value {
    document_with(|_| {})
}

#[tokio::test]
async fn the_served_document_is_the_snapshot() {
    let app = TestApp::start(&[]).await;
    let answer = app.client().get(app.url("/openapi.json")).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["content-type"], "application/json");
    assert_eq!(answer.headers()["cache-control"], "no-cache");
    let served = answer.text().await.unwrap();
    let difference = served.lines().zip(SNAPSHOT.lines()).find(|(now, then)| now != then);
    assert!(served == SNAPSHOT, "the document is not tests/openapi.json ({difference:?}); {RENEW}");
}

#[test]
fn the_openapi_command_prints_the_snapshot() {
    let printed = Command::new(env!("CARGO_BIN_EXE_coupon-issuer")).arg("openapi").output().unwrap();
    assert!(printed.status.success());
    assert!(String::from_utf8(printed.stdout).unwrap() == SNAPSHOT, "the output is not tests/openapi.json; {RENEW}");
}

#[test]
fn the_document_follows_the_settings() {
    let document = document_with(|settings| {
        settings.http.public_url = Some("https://coupons.example.com/v".to_owned());
        settings.http.max_series_ids = 7;
        settings.http.docs = false;
    });
    assert_eq!(document["servers"], json!([{"url": "https://coupons.example.com/v"}]));
    let flow = &document["components"]["securitySchemes"]["oauth2"]["flows"]["clientCredentials"];
    assert_eq!(flow["tokenUrl"], "https://coupons.example.com/v/oauth/token");
    assert_eq!(document["components"]["schemas"]["IssueRequest"]["properties"]["seriesIds"]["maxItems"], 7);
    assert!(document["paths"]["/docs"].is_null());
}

/// Method and path, as the document spells them.
fn documented(document: &Value) -> BTreeSet<(String, String)> {
    let methods = |(path, item): (&String, &Value)| {
        let methods: Vec<String> = item.as_object().unwrap().keys().cloned().collect();
        methods.into_iter().map(|method| (method, path.clone())).collect::<Vec<_>>()
    };
    document["paths"].as_object().unwrap().iter().flat_map(methods).collect()
}

/// The methods of each path are those that a 405 names. The console is not in the document: a page for people, which no client
/// calls.
#[tokio::test]
async fn the_document_has_exactly_the_routes_of_the_router() {
    assert_eq!(undocumented_routes(), [("get".to_owned(), "paths::CONSOLE".to_owned())]);
    let app = TestApp::start(&[]).await;
    let documented = documented(&document());
    let mut routes = BTreeSet::new();
    for path in documented.iter().map(|(_, path)| path) {
        let answer = app.client().patch(app.url(path)).send().await.unwrap();
        assert_eq!(answer.status(), 405, "{path}");
        let methods = answer.headers()["allow"].to_str().unwrap().split(',').map(str::trim);
        let methods = methods.filter(|method| *method != "HEAD").map(str::to_ascii_lowercase);
        routes.extend(methods.map(|method| (method, path.clone())));
    }
    assert_eq!(documented, routes, "the router has other routes than the OpenAPI document");
}

/// The rows of the first table after this text in docs/contract.md.
fn rows(text: &str) -> Vec<Vec<&'static str>> {
    let table = CONTRACT.split_once(text).unwrap().1.split_once("|---|").unwrap().1;
    let rows = table.lines().skip(1).take_while(|line| line.starts_with('|'));
    rows.map(|row| row.split('|').map(str::trim).collect()).collect()
}

#[test]
fn every_error_code_of_the_contract_is_documented() {
    let document = document();
    let description = document["paths"]["/v2/coupon/bulk/issue"]["post"]["description"].as_str().unwrap();
    for row in rows("A request that fails as a whole") {
        for status in row[1].split(", ") {
            assert!(description.contains(&format!("\n| {status} | ")), "{status}");
            let codes = if row[2] == "the same" { status } else { row[2] };
            for code in codes.split(", ") {
                assert!(description.contains(&format!(" | {code} | ")), "{status} {code}");
            }
        }
    }
    let entities = rows("## 3. Entity errors");
    assert_eq!(entities.len(), 12);
    for row in entities {
        let retryable = if row[4] == "yes" { "yes" } else { "" };
        assert!(description.contains(&format!("\n| {} | {} | {retryable} |", row[1], row[2])), "{row:?}");
    }
    assert!(SNAPSHOT.contains("Coupon resent successfully"));
}

/// Collects each example with its position in the document and its schema.
fn examples(at: &str, value: &Value, found: &mut Vec<(String, Value, Value)>) {
    if let (Some(schema), false) = (value.get("schema"), at.ends_with("/properties")) {
        let named = value.get("examples").and_then(Value::as_object).into_iter().flatten();
        for (name, example) in named {
            found.push((format!("{at}/{name}"), schema.clone(), example["value"].clone()));
        }
        if let Some(example) = value.get("example") {
            found.push((at.to_owned(), schema.clone(), example.clone()));
        }
    }
    if let Some(list) = value.get("examples").and_then(Value::as_array) {
        found.extend(list.iter().map(|example| (at.to_owned(), value.clone(), example.clone())));
    }
    match value {
        Value::Object(members) => {
            for (key, value) in members {
                examples(&format!("{at}/{key}"), value, found);
            }
        }
        Value::Array(items) => items.iter().for_each(|value| examples(at, value, found)),
        _ => {}
    }
}

#[test]
fn every_example_matches_its_schema() {
    let document = document();
    let mut found = Vec::new();
    examples("", &document, &mut found);
    assert!(found.len() > 40, "{}", found.len());
    for (at, schema, example) in found {
        let schema = json!({"components": document["components"], "allOf": [schema]});
        let validator = jsonschema::draft202012::new(&schema).unwrap();
        if let Err(error) = validator.validate(&example) {
            panic!("{at}: {error} ({example})");
        }
    }
}

/// Whether the schema of this name allows a value.
fn allows(document: &Value, name: &str, value: &Value) -> bool {
    let schema = json!({"components": document["components"], "$ref": format!("#/components/schemas/{name}")});
    jsonschema::draft202012::new(&schema).unwrap().is_valid(value)
}

#[tokio::test]
async fn the_service_accepts_what_the_request_schema_allows_and_nothing_else() {
    let app = TestApp::start(&[repeatable_series(1, "")]).await;
    let document = document();
    let of = |customer: Value| json!({"seriesIds": [1], "customer": customer});
    let long = "x".repeat(256);
    for (request, is_good) in [
        (of(json!({"id": 17})), true),
        (of(json!({"id": "17", "mobile": null, "email": "", "other": []})), true),
        (of(json!({"mobile": "+91 (99) 000-000.01"})), true),
        (of(json!({"mobile": "\u{2003}", "externalId": "x"})), true),
        (of(json!({"email": "  someone@example.com"})), true),
        (of(json!({})), false),
        (of(json!({"id": "", "mobile": null, "email": " \t\u{a0}"})), false),
        (of(json!({"id": true})), false),
        (of(json!({"id": 1.5})), false),
        (of(json!({"id": 17.0})), true),
        (of(json!({"id": 2_251_799_813_685_247.0_f64})), true),
        (json!({"seriesIds": [1.0, -4.0], "customer": {"id": "c"}}), true),
        (of(json!({"id": long})), false),
        (of(json!({"id": "a\u{0}"})), false),
        (of(json!({"mobile": "123456789012345678901"})), false),
        (of(json!({"mobile": "12a"})), false),
        (of(json!([])), false),
        (json!({"seriesIds": [1], "customer": {"id": "c"}, "metadata": null, "more": 1}), true),
        (json!({"seriesIds": [i64::MIN, i64::MAX], "customer": {"id": "c"}}), true),
        (json!({"seriesIds": [9_223_372_036_854_775_808_u64], "customer": {"id": "c"}}), false),
        (json!({"seriesIds": [], "customer": {"id": "c"}}), false),
        (json!({"seriesIds": vec![1; 100], "customer": {"id": "c"}}), true),
        (json!({"seriesIds": vec![1; 101], "customer": {"id": "c"}}), false),
        (json!({"customer": {"id": "c"}}), false),
        (json!({"seriesIds": [1], "customer": {"id": "c"}, "metadata": {"sourceType": "x".repeat(51)}}), false),
        (json!({"seriesIds": [1], "customer": {"id": "c"}, "metadata": {"notes": "x".repeat(250)}}), true),
    ] {
        let (status, answer) = app.send(&request).await;
        assert_eq!(status, if is_good { 200 } else { 400 }, "{request} {answer}");
        assert_eq!(allows(&document, "IssueRequest", &request), is_good, "{request}");
        let form = if is_good { "IssueAnswer" } else { "Failure" };
        assert!(allows(&document, form, &answer), "{answer}");
    }
}

#[tokio::test]
async fn an_invalid_key_in_a_receipt_path_gets_the_documented_error() {
    let app = TestApp::start(&[]).await;
    for key in ["%FF", "a%0Ab", &"x".repeat(256)] {
        let url = app.url(&format!("/v2/coupon/bulk/issue/{key}"));
        let answer = app.client().get(url).basic_auth("store.server", Some("server123")).send().await.unwrap();
        let (status, code, message) = failure(answer).await;
        assert_eq!((status, code), (400, 400), "{key}");
        assert!(message.starts_with("Idempotency-Key: "), "{message}");
    }
}

#[tokio::test]
async fn the_docs_page_loads_only_files_that_the_service_serves() {
    let app = TestApp::start(&[]).await;
    let answer = app.client().get(app.url("/docs")).send().await.unwrap();
    assert_eq!(answer.headers()["content-type"], "text/html; charset=utf-8");
    let policy = answer.headers()["content-security-policy"].to_str().unwrap().to_owned();
    assert!(policy.starts_with("default-src 'none'; script-src 'self'; "), "{policy}");
    assert!(!policy.contains("unsafe") && !policy.contains("http"), "{policy}");
    let page = answer.text().await.unwrap();
    assert!(!page.contains("//"), "{page}");
    let names: Vec<&str> = page.split("\"docs/").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
    assert_eq!(names.len(), 5);
    for (name, kind) in names.iter().zip(["image/png", "text/css", "text/css", "text/javascript", "text/javascript"]) {
        let answer = app.client().get(app.url(&format!("/docs/{name}"))).send().await.unwrap();
        assert_eq!(
            (answer.status().as_u16(), answer.headers()["content-type"].to_str().unwrap()),
            (200, kind),
            "{name}"
        );
        assert_eq!(answer.headers()["cache-control"], "public, max-age=3600");
    }
    for name in ["index.html", "..%2FCargo.toml", "%FF"] {
        let answer = app.client().get(app.url(&format!("/docs/{name}"))).send().await.unwrap();
        assert_eq!(failure(answer).await, (404, 404, "No such path".to_owned()), "{name}");
    }
    app.stop().await;

    let app = TestApp::start_with(ORG, |settings| settings.http.docs = false).await;
    for path in ["/docs", "/docs/docs.js"] {
        let answer = app.client().get(app.url(path)).send().await.unwrap();
        assert_eq!(failure(answer).await, (404, 404, "No such path".to_owned()), "{path}");
    }
    assert_eq!(app.client().get(app.url("/openapi.json")).send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn every_answer_has_the_security_headers() {
    let app = TestApp::start(&[repeatable_series(1, "")]).await;
    let request = |method: &str, path: &str| app.client().request(method.parse().unwrap(), app.url(path));
    let issue = r#"{"seriesIds":[1],"customer":{"id":"c"}}"#;
    for (request, status, cached) in [
        (app.post(issue).header("Idempotency-Key", "k"), 200, "no-store"),
        (request("GET", "/v2/coupon/bulk/issue/k").basic_auth("store.server", Some("server123")), 200, "no-store"),
        (app.bare(issue), 401, "no-store"),
        (app.post("{"), 400, "no-store"),
        (
            request("POST", "/v3/oauth/token/generate").json(&json!({"key": "crm", "secret": "crm-secret"})),
            200,
            "no-store",
        ),
        (request("GET", "/nothing"), 404, "no-store"),
        (request("DELETE", "/healthz"), 405, "no-store"),
        (request("GET", "/readyz"), 200, "no-store"),
        (request("GET", "/docs"), 200, "no-store"),
        (request("GET", "/docs/docs.js"), 200, "public, max-age=3600"),
        (request("GET", "/.well-known/jwks.json"), 200, "public, max-age=30"),
    ] {
        let answer = request.send().await.unwrap();
        let url = answer.url().path().to_owned();
        assert_eq!(answer.status(), status, "{url}");
        let headers = answer.headers();
        let single = |name: &str| {
            assert_eq!(headers.get_all(name).iter().count(), 1, "{url} {name}");
            headers[name].to_str().unwrap()
        };
        assert_eq!(single("x-content-type-options"), "nosniff");
        assert_eq!(single("referrer-policy"), "no-referrer");
        assert_eq!(single("x-frame-options"), "DENY");
        assert_eq!(single("cache-control"), cached, "{url}");
        let policy = single("content-security-policy");
        assert_eq!(policy == "default-src 'none'; frame-ancestors 'none'", url != "/docs", "{url} {policy}");
        assert!(headers.get("strict-transport-security").is_none());
    }
    app.stop().await;

    let app = TestApp::start_with(ORG, |settings| {
        settings.http.public_url = Some("https://coupons.example.com".to_owned());
    })
    .await;
    for path in ["/healthz", "/nothing"] {
        let answer = app.client().get(app.url(path)).send().await.unwrap();
        assert_eq!(answer.headers()["strict-transport-security"], "max-age=31536000");
    }
}
