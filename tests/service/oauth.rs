//! Standard OAuth 2: client credentials (RFC 6749), metadata (RFC 8414), published keys (RFC 7517), and the rotation of keys while
//! tokens of the old one are in use.

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::{KeyPair, KeySize};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::process::Command;

use coupon_issuer::config::Settings;
use coupon_issuer::db::Db;
use coupon_issuer::model::Clock;
use coupon_issuer::provisioning::commands::Invocation;
use coupon_issuer::provisioning::keys;
use reqwest::{RequestBuilder, Response};
use serde_json::{Value, json};

use crate::support::{ORG, TestApp, eventually, outcomes, repeatable_series};

const FORM: &str = "application/x-www-form-urlencoded";

async fn start() -> TestApp {
    TestApp::start(&[repeatable_series(1, "")]).await
}

fn token_request(app: &TestApp, form: &str) -> RequestBuilder {
    app.client().post(app.url("/oauth/token")).header("Content-Type", FORM).body(form.to_owned())
}

fn token_request_of_crm(app: &TestApp, form: &str) -> RequestBuilder {
    token_request(app, form).basic_auth("crm", Some("crm-secret"))
}

/// Status and body. The answer must forbid caching, and have a challenge only with 401.
async fn answer(request: RequestBuilder) -> (u16, Value) {
    let answer = request.send().await.unwrap();
    assert_eq!(answer.headers()["cache-control"], "no-store");
    assert_eq!(answer.headers()["content-type"], "application/json");
    let challenges = answer.headers().get_all("www-authenticate").iter().count();
    let status = answer.status().as_u16();
    assert_eq!(challenges, usize::from(status == 401));
    (status, answer.json().await.unwrap())
}

/// Status and error code of a failure, whose form must be that of RFC 6749, section 5.2.
async fn refusal(request: RequestBuilder) -> (u16, String) {
    let (status, body) = answer(request).await;
    assert!(!body["error_description"].as_str().unwrap().is_empty());
    assert_eq!(body.as_object().unwrap().len(), 2, "{body}");
    (status, body["error"].as_str().unwrap().to_owned())
}

async fn issue(app: &TestApp, token: &str) -> Response {
    let request = app.bare(r#"{"seriesIds":[1],"customer":{"id":"c"}}"#).header("Content-Type", "application/json");
    request.bearer_auth(token).send().await.unwrap()
}

async fn token(app: &TestApp) -> String {
    let (status, body) = answer(token_request_of_crm(app, "grant_type=client_credentials")).await;
    assert_eq!(status, 200, "{body}");
    body["access_token"].as_str().unwrap().to_owned()
}

async fn kids(app: &TestApp) -> Vec<String> {
    let set: Value = app.client().get(app.url("/.well-known/jwks.json")).send().await.unwrap().json().await.unwrap();
    let kid = |key: &Value| key["kid"].as_str().unwrap().to_owned();
    set["keys"].as_array().unwrap().iter().map(kid).collect()
}

fn kid(token: &str) -> String {
    jsonwebtoken::decode_header(token).unwrap().kid.unwrap()
}

pub fn pem() -> String {
    let key: Pkcs8V1Der = KeyPair::generate(KeySize::Rsa2048).unwrap().as_der().unwrap();
    format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", STANDARD.encode(key.as_ref()))
}

#[tokio::test]
async fn a_client_authenticates_in_the_header_or_the_body_and_issues_with_its_token() {
    let app = start().await;
    for request in [
        token_request_of_crm(&app, "grant_type=client_credentials"),
        token_request_of_crm(&app, "grant_type=client_credentials&scope=coupon%3Aissue&resource=ignored"),
        token_request_of_crm(&app, "grant_type=client_credentials&client_id=crm"),
        token_request(&app, "grant_type=client_credentials&client_id=crm&client_secret=crm-secret"),
        token_request(&app, "grant_type=client_credentials").basic_auth("c%72m", Some("crm%2Dsecret")),
    ] {
        let (status, body) = answer(request).await;
        assert_eq!(status, 200, "{body}");
        let expected = json!({
            "access_token": body["access_token"], "token_type": "Bearer", "expires_in": 3600, "scope": "coupon:issue",
        });
        assert_eq!(body, expected);
        let issued = issue(&app, body["access_token"].as_str().unwrap()).await;
        assert_eq!(outcomes(&issued.json().await.unwrap()), ["issued"]);
    }
}

#[tokio::test]
async fn a_secret_may_have_characters_that_a_form_must_encode() {
    let secret = "a b+c%d&e=f:é";
    let file = ORG.replace("\"crm-secret\"", &format!("{secret:?}")) + &repeatable_series(1, "");
    let app = TestApp::start_with(&file, |_| {}).await;
    let encoded: String = form_urlencoded::byte_serialize(secret.as_bytes()).collect();
    let form = "grant_type=client_credentials";
    assert_eq!(answer(token_request(&app, form).basic_auth("crm", Some(&encoded))).await.0, 200);
    let post = format!("{form}&client_id=crm&client_secret={encoded}");
    assert_eq!(answer(token_request(&app, &post)).await.0, 200);
}

#[tokio::test]
async fn a_bad_token_request_gets_the_error_code_of_the_standard() {
    let app = start().await;
    let good = "grant_type=client_credentials";
    let long = format!("{good}&scope={}", "x".repeat(2 * 1024 * 1024));
    assert_eq!(token_request_of_crm(&app, &long).send().await.unwrap().status(), 413);
    for (request, status, error) in [
        (token_request_of_crm(&app, ""), 400, "invalid_request"),
        (token_request_of_crm(&app, "grant_type="), 400, "invalid_request"),
        (token_request_of_crm(&app, "grant_type=password"), 400, "unsupported_grant_type"),
        (token_request_of_crm(&app, &format!("{good}&{good}")), 400, "invalid_request"),
        (token_request_of_crm(&app, &format!("{good}&scope=admin")), 400, "invalid_scope"),
        (token_request_of_crm(&app, &format!("{good}&scope=coupon:issue+admin")), 400, "invalid_scope"),
        (token_request_of_crm(&app, &format!("{good}&client_id=reports")), 400, "invalid_request"),
        (token_request_of_crm(&app, &format!("{good}&client_id=crm&client_secret=crm-secret")), 400, "invalid_request"),
        (
            token_request_of_crm(&app, good).header("Authorization", "Basic Y3JtOmNybS1zZWNyZXQ="),
            400,
            "invalid_request",
        ),
        (token_request_of_crm(&app, good).header("Content-Type", "application/json"), 400, "invalid_request"),
        (token_request(&app, good), 401, "invalid_client"),
        (token_request(&app, &format!("{good}&client_id=crm")), 401, "invalid_client"),
        (token_request(&app, &format!("{good}&client_id=crm&client_secret=wrong")), 401, "invalid_client"),
        (token_request(&app, good).basic_auth("crm", Some("wrong")), 401, "invalid_client"),
        (token_request(&app, good).basic_auth("nobody", Some("crm-secret")), 401, "invalid_client"),
        (token_request(&app, good).basic_auth("cr\0m", Some("crm-secret")), 401, "invalid_client"),
        (token_request(&app, &format!("{good}&client_id=crm&client_secret=")), 401, "invalid_client"),
        (token_request(&app, good).bearer_auth("crm-secret"), 401, "invalid_client"),
        (token_request(&app, good).header("Authorization", "Basic ???"), 401, "invalid_client"),
    ] {
        let sent = format!("{request:?}");
        assert_eq!(refusal(request).await, (status, error.to_owned()), "{sent}");
    }
    let get = app.client().get(app.url("/oauth/token")).send().await.unwrap();
    assert_eq!((get.status().as_u16(), get.headers()["allow"].to_str().unwrap()), (405, "POST"));
}

#[tokio::test]
async fn a_client_that_may_not_issue_gets_no_scope() {
    let app = start().await;
    let form = "grant_type=client_credentials";
    let (status, body) = answer(token_request(&app, form).basic_auth("reports", Some("reports-secret"))).await;
    assert_eq!((status, body.get("scope")), (200, None));
    assert_eq!(issue(&app, body["access_token"].as_str().unwrap()).await.status(), 403);
    let request =
        token_request(&app, &format!("{form}&scope=coupon:issue")).basic_auth("reports", Some("reports-secret"));
    assert_eq!(refusal(request).await, (400, "invalid_scope".to_owned()));
}

#[tokio::test]
async fn the_metadata_names_every_endpoint_under_the_public_url() {
    let app = start().await;
    let path = "/.well-known/oauth-authorization-server";
    let metadata: Value = app.client().get(app.url(path)).send().await.unwrap().json().await.unwrap();
    let issuer = app.url("");
    assert_eq!(metadata["issuer"], issuer);
    assert_eq!(metadata["token_endpoint"], format!("{issuer}/oauth/token"));
    assert_eq!(metadata["jwks_uri"], format!("{issuer}/.well-known/jwks.json"));
    assert_eq!(metadata["grant_types_supported"], json!(["client_credentials"]));
    assert_eq!(metadata["scopes_supported"], json!(["coupon:issue"]));

    let file = format!("{ORG}{}", repeatable_series(1, ""));
    let public = |settings: &mut Settings| {
        settings.http.public_url = Some("https://coupons.example.com".to_owned());
    };
    let app = TestApp::start_with(&file, public).await;
    let metadata: Value = app.client().get(app.url(path)).send().await.unwrap().json().await.unwrap();
    assert_eq!(metadata["issuer"], "https://coupons.example.com");
    assert_eq!(metadata["token_endpoint"], "https://coupons.example.com/oauth/token");
    let token = token(&app).await;
    let claims: Value = jsonwebtoken::dangerous::insecure_decode_claims(&token).unwrap();
    assert_eq!(claims["iss"], "https://coupons.example.com");
    assert_eq!(issue(&app, &token).await.status(), 200);
}

#[tokio::test]
async fn the_published_keys_verify_tokens_and_contain_nothing_private() {
    let app = start().await;
    let answer = app.client().get(app.url("/.well-known/jwks.json")).send().await.unwrap();
    assert_eq!(answer.headers()["cache-control"], "public, max-age=30");
    let text = answer.text().await.unwrap();
    let raw: Value = serde_json::from_str(&text).unwrap();
    let mut names: Vec<_> = raw["keys"][0].as_object().unwrap().keys().cloned().collect();
    names.sort();
    assert_eq!(names, ["alg", "e", "kid", "kty", "n", "use"]);

    let set: jsonwebtoken::jwk::JwkSet = serde_json::from_str(&text).unwrap();
    let token = token(&app).await;
    let key = jsonwebtoken::DecodingKey::from_jwk(set.find(&kid(&token)).unwrap()).unwrap();
    let mut validation = jsonwebtoken::Validation::new(jsonwebtoken::Algorithm::RS256);
    validation.set_audience(&["coupon-issuer"]);
    validation.validate_exp = false;
    let claims: Value = jsonwebtoken::decode(&token, &key, &validation).unwrap().claims;
    assert_eq!(claims["client_id"], "crm");
}

/// The new key comes second in the file at first, so that every replica knows it before it signs. The old key is removed last.
#[tokio::test]
async fn keys_in_a_file_rotate_without_a_restart_and_without_a_failed_call() {
    let path = std::path::PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("rotating-keys.pem");
    let (old, new) = (pem(), pem());
    std::fs::write(&path, &old).unwrap();
    let file = format!("{ORG}{}", repeatable_series(1, ""));
    let app = TestApp::start_with(&file, |settings| settings.auth.signing_keys_file = path.display().to_string()).await;
    let before = token(&app).await;
    assert_eq!(kids(&app).await, [kid(&before)]);

    std::fs::write(&path, format!("{old}{new}")).unwrap();
    eventually("the new key is published", async || kids(&app).await.len() == 2).await;
    assert_eq!(kid(&token(&app).await), kid(&before));
    std::fs::write(&path, format!("\u{feff}{new}{old}")).unwrap();
    eventually("the new key signs", async || kid(&token(&app).await) != kid(&before)).await;
    let after = token(&app).await;
    for token in [&before, &after] {
        assert_eq!(issue(&app, token).await.status(), 200);
    }
    // A file without a key changes nothing.
    std::fs::write(&path, "no key").unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(6)).await;
    assert_eq!(issue(&app, &token(&app).await).await.status(), 200);

    std::fs::write(&path, &new).unwrap();
    eventually("the old key is no longer published", async || kids(&app).await == [kid(&after)]).await;
    assert_eq!(issue(&app, &after).await.status(), 200);
    assert_eq!(app.count("select from signing_key").await, 0);
}

#[tokio::test]
async fn keys_in_the_database_rotate_without_a_restart_and_without_a_failed_call() {
    let app = start().await;
    let settings = Settings::load(None).unwrap();
    let before = token(&app).await;
    let report = keys::rotate(&app.connect, Invocation::now(&*app.clock)).await.unwrap().to_string();
    assert!(report.starts_with("2026-11-22T10:00:00Z audit: keys rotate "), "{report}");
    eventually("the new key is published", async || kids(&app).await.len() == 2).await;
    assert_eq!(kid(&token(&app).await), kid(&before), "a new key is published before it signs");
    app.clock.set("2026-11-22T10:01:00Z");
    let after = token(&app).await;
    assert_ne!(kid(&after), kid(&before));
    assert!(report.contains(&kid(&after)), "{report}");
    for token in [&before, &after] {
        assert_eq!(issue(&app, token).await.status(), 200);
    }
    let list =
        keys::list(&Db::new(app.connect.clone(), &settings.database), app.clock.now()).await.unwrap().to_string();
    let lines: Vec<&str> = list.lines().collect();
    assert!(lines[1].starts_with(&kid(&after)) && lines[1].ends_with("signs"), "{list}");
    assert!(lines[2].starts_with(&kid(&before)) && lines[2].ends_with("verifies"), "{list}");

    // The old key stays for the hour that its last tokens may live, and five minutes for clocks that differ.
    app.clock.set("2026-11-22T11:05:59Z");
    assert_eq!(kids(&app).await.len(), 2);
    app.clock.set("2026-11-22T11:06:00Z");
    assert_eq!(kids(&app).await, [kid(&after)]);
    assert_eq!(app.count("select from audit_log where action = 'keys rotate' and org_id is null").await, 1);
    let mut rotate = Command::new(env!("CARGO_BIN_EXE_coupon-issuer"));
    rotate.args(["keys", "rotate"]).env("COUPON_ISSUER__AUTH__SIGNING_KEYS_FILE", "keys.pem");
    let refused = rotate.output().unwrap();
    assert!(!refused.status.success());
    let error = String::from_utf8(refused.stderr).unwrap();
    assert!(error.starts_with("coupon-issuer: the keys are in auth.signing_keys_file"), "{error}");
}

#[tokio::test]
async fn a_key_of_a_host_with_a_fast_clock_can_be_rotated() {
    let app = start().await;
    app.clock.set("2026-11-22T10:05:00Z");
    keys::rotate(&app.connect, Invocation::now(&*app.clock)).await.unwrap();
    app.clock.set("2026-11-22T10:00:00Z");
    let last = keys::rotate(&app.connect, Invocation::now(&*app.clock)).await.unwrap().to_string();
    eventually("the keys are published", async || kids(&app).await.len() == 3).await;
    // Long after the key of the first rotation has ended.
    app.clock.set("2026-11-29T10:00:00Z");
    let token = token(&app).await;
    assert!(last.contains(&kid(&token)), "{last}");
    assert_eq!(issue(&app, &token).await.status(), 200);
}
