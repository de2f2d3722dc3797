//! Who may issue: tills with Basic, OAuth clients with a token, each for its own organisation and with its own access. The service
//! refuses forged, expired and foreign credentials, and stores secrets as argon2id only.

use coupon_issuer::provisioning;
use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeyPair;
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_SHA256};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use reqwest::RequestBuilder;
use reqwest::header::HeaderValue;
use serde_json::{Value, json};
use sha2::Sha256;

use crate::support::{ORG, TestApp, default_series, eventually, failure, outcomes, repeatable_series};

const BODY: &str = r#"{"seriesIds":[1],"customer":{"id":"c"}}"#;
const MD5: &str = "8a16a6b70505eb1f1ff7cdc0cd5559a7";
const TOKEN_HEADER: &str = "X-CAP-API-OAUTH-TOKEN";
/// [`NOW`](crate::support::NOW) in seconds since 1970.
const NOW_SECONDS: i64 = 1_795_341_600;

async fn start() -> TestApp {
    TestApp::start(&[repeatable_series(1, "")]).await
}

/// A request for one coupon, without credentials.
fn anonymous(app: &TestApp) -> RequestBuilder {
    app.bare(BODY).header("Content-Type", "application/json")
}

/// A request for one coupon with these headers.
fn with(app: &TestApp, headers: &[(&str, &str)]) -> RequestBuilder {
    headers.iter().fold(anonymous(app), |request, (name, value)| request.header(*name, *value))
}

pub fn basic(till: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{till}:{password}")))
}

async fn status(request: RequestBuilder) -> u16 {
    request.send().await.unwrap().status().as_u16()
}

/// Status and code of a refusal. Asserts that a 401 challenges for both schemes.
async fn refusal(request: RequestBuilder) -> (u16, u64) {
    let answer = request.send().await.unwrap();
    let challenges: Vec<_> =
        answer.headers().get_all("www-authenticate").iter().map(|value| value.to_str().unwrap().to_owned()).collect();
    let (status, code, message) = failure(answer).await;
    if status == 401 {
        let schemes: Vec<_> = challenges.iter().map(|challenge| challenge.split(' ').next().unwrap()).collect();
        assert_eq!(schemes, ["Basic", "Bearer"], "{message}");
        assert!(challenges.iter().all(|challenge| challenge.contains("realm=\"")), "{challenges:?}");
    }
    (status, code)
}

async fn generate(app: &TestApp, key: &str, secret: &str) -> reqwest::Response {
    let body = json!({"key": key, "secret": secret});
    app.client().post(app.url("/v3/oauth/token/generate")).json(&body).send().await.unwrap()
}

/// A new token of the client `crm`.
async fn token(app: &TestApp) -> String {
    let answer: Value = generate(app, "crm", "crm-secret").await.json().await.unwrap();
    answer["data"]["accessToken"].as_str().unwrap().to_owned()
}

/// Header and claims of a token.
pub fn parts(token: &str) -> (Value, Value) {
    let mut parts =
        token.split('.').map(|part| serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap_or_default()));
    (parts.next().unwrap().unwrap(), parts.next().unwrap().unwrap())
}

/// Header and claims as the signature covers them.
pub fn unsigned(header: &Value, claims: &Value) -> String {
    let part = |json: &Value| URL_SAFE_NO_PAD.encode(json.to_string());
    format!("{}.{}", part(header), part(claims))
}

/// The key with which the service signs.
pub async fn own_key(app: &TestApp) -> KeyPair {
    let der: Vec<u8> = sqlx::query_scalar("select private_key from signing_key").fetch_one(&app.pool).await.unwrap();
    KeyPair::from_pkcs8(&der).unwrap()
}

pub fn signed(key: &KeyPair, header: &Value, claims: &Value) -> String {
    let unsigned = unsigned(header, claims);
    let mut signature = vec![0; key.public_modulus_len()];
    key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), unsigned.as_bytes(), &mut signature).unwrap();
    format!("{unsigned}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// The JSON object with these changes. Null removes a field.
pub fn but(object: &Value, changes: &Value) -> Value {
    let mut other = object.clone();
    for (key, value) in changes.as_object().unwrap() {
        other[key] = value.clone();
    }
    other.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    other
}

#[tokio::test]
async fn a_till_may_send_its_password_or_the_md5_of_it() {
    let app = start().await;
    // The check vector of contract 5.
    let vector = "Basic c3RvcmUuc2VydmVyOjhhMTZhNmI3MDUwNWViMWYxZmY3Y2RjMGNkNTU1OWE3";
    assert_eq!(basic("store.server", MD5), vector);
    let unpadded = format!("Basic {}", STANDARD_NO_PAD.encode("store.server:server123"));
    assert_ne!(unpadded, basic("store.server", "server123"));
    for authorization in [
        vector.to_owned(),
        basic("store.server", "server123"),
        basic("store.server", &MD5.to_uppercase()),
        unpadded,
        vector.replacen("Basic", "basic", 1),
    ] {
        let answer = with(&app, &[("Authorization", &authorization)]).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{authorization}");
        assert_eq!(outcomes(&answer.json().await.unwrap()), ["issued"]);
    }
    assert_eq!(app.count("select from issued_coupon where till_id = 'store.server' and store_id = 10").await, 5);
}

#[tokio::test]
async fn a_password_may_hold_colons_and_any_letters() {
    let file = ORG.replace("\"server123\"", "\"pass:wörd: ☕\"") + &repeatable_series(1, "");
    let app = TestApp::start_with(&file, |_| {}).await;
    assert_eq!(status(with(&app, &[("Authorization", &basic("store.server", "pass:wörd: ☕"))])).await, 200);
    assert_eq!(status(with(&app, &[("Authorization", &basic("store.server", "pass"))])).await, 401);
}

#[tokio::test]
async fn wrong_credentials_are_401_with_both_challenges() {
    let app = start().await;
    let encoded = |bytes: &[u8]| format!("Basic {}", STANDARD.encode(bytes));
    for authorization in [
        basic("store.server", "server124"),
        basic("store.server", "Server123"),
        basic("store.server", ""),
        basic("store.server", &MD5.replace('8', "9")),
        basic("Store.Server", "server123"),
        basic("nobody", "server123"),
        basic("", "server123"),
        basic("", ""),
        basic("office.desk", "server123"),
        basic("crm", "crm-secret"),
        basic("store.server\0", "server123"),
        basic("store.server", "server123\0"),
        basic("' or true --", "' or true --"),
        encoded(b"store.server"),
        encoded(b"\xff\xfe:server123"),
        "Basic store.server:server123".to_owned(),
        "Basic !!!!".to_owned(),
        "Basic".to_owned(),
        "Basic ".to_owned(),
        String::new(),
        "Digest username=\"store.server\"".to_owned(),
        "Basic Basic Basic".to_owned(),
        format!("Bearer {MD5}"),
        format!("Bearer{}", "x".repeat(4096)),
    ] {
        assert_eq!(refusal(with(&app, &[("Authorization", &authorization)])).await, (401, 401), "{authorization}");
    }
    let unprintable = HeaderValue::from_bytes(b"Basic \xff\xfe").unwrap();
    assert_eq!(refusal(anonymous(&app).header("Authorization", unprintable)).await, (401, 401));
    assert_eq!(app.count("select from coupon").await, 0);
}

#[tokio::test]
async fn only_health_checks_and_tokens_need_no_credentials() {
    let app = start().await;
    assert_eq!(refusal(anonymous(&app)).await, (401, 401));
    assert_eq!(refusal(app.bare("not even JSON")).await, (401, 401));
    for (path, body) in [("/healthz", "ok\n"), ("/readyz", "ready\n")] {
        for authorization in [None, Some(basic("nobody", "wrong"))] {
            let request = app.client().get(app.url(path));
            let request = authorization.iter().fold(request, |request, basic| request.header("Authorization", basic));
            let answer = request.send().await.unwrap();
            assert_eq!(answer.status(), 200);
            assert_eq!(answer.headers()["x-cap-request-id"], answer.headers()["x-request-id"]);
            assert_eq!(answer.text().await.unwrap(), body);
        }
    }
    assert_eq!(generate(&app, "crm", "crm-secret").await.status(), 200);
}

/// The paths and methods are public: the OpenAPI document lists them.
#[tokio::test]
async fn an_unknown_path_is_404_and_a_wrong_method_405_even_without_credentials() {
    let app = start().await;
    let url = app.url("/v2/coupon/bulk/issue");
    for request in [app.client().get(&url), app.client().get(&url).basic_auth("store.server", Some("wrong"))] {
        assert_eq!(refusal(request).await, (405, 405));
    }
    assert_eq!(refusal(app.client().get(&url).basic_auth("store.server", Some("server123"))).await, (405, 405));
    assert_eq!(refusal(app.client().get(app.url("/nowhere"))).await, (404, 404));
}

#[tokio::test]
async fn the_token_response_has_the_form_of_the_contract() {
    let app = start().await;
    let answer = generate(&app, "crm", "crm-secret").await;
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["content-type"], "application/json");
    assert_eq!(answer.headers()["cache-control"], "no-store");
    assert_eq!(answer.headers()["x-cap-request-id"], answer.headers()["x-request-id"]);
    let text = answer.text().await.unwrap();
    let token = serde_json::from_str::<Value>(&text).unwrap()["data"]["accessToken"].clone();
    assert_eq!(text, format!(r#"{{"data":{{"accessToken":{token},"ttlSeconds":3600}},"errors":null}}"#));
}

#[tokio::test]
async fn a_token_names_its_client_its_issuer_and_its_time() {
    let app = start().await;
    let (first, second) = (token(&app).await, token(&app).await);
    let (header, claims) = parts(&first);
    assert_eq!((&header["typ"], &header["alg"]), (&json!("at+jwt"), &json!("RS256")));
    assert!(!header["kid"].as_str().unwrap().is_empty());
    let named = json!({
        "iss": claims["iss"], "sub": "crm", "client_id": "crm", "org_id": 1,
        "iat": NOW_SECONDS, "exp": NOW_SECONDS + 3600, "jti": claims["jti"], "aud": claims["aud"],
        "scope": "coupon:issue",
    });
    assert_eq!(claims, named);
    for text in ["iss", "aud", "jti"] {
        assert!(!claims[text].as_str().unwrap().is_empty(), "{text}");
    }
    assert_ne!(claims["jti"], parts(&second).1["jti"]);
}

#[tokio::test]
async fn a_wrong_key_or_secret_gets_no_token() {
    let app = start().await;
    for (key, secret) in [
        ("crm", "wrong"),
        ("crm", ""),
        ("crm", "CRM-SECRET"),
        ("nobody", "crm-secret"),
        ("", ""),
        ("crm\0", "crm-secret"),
        ("reports", "crm-secret"),
        ("store.server", "server123"),
    ] {
        let answer = generate(&app, key, secret).await;
        assert_eq!(answer.status(), 401, "{key} {secret}");
        assert_eq!(answer.headers()["cache-control"], "no-store");
        assert_eq!(
            answer.text().await.unwrap(),
            r#"{"data":null,"errors":[{"code":320001,"message":"Invalid client key and secret"}]}"#
        );
    }
}

#[tokio::test]
async fn a_malformed_token_request_is_400_with_the_mistake() {
    let app = start().await;
    for (body, words) in [
        (r#"{"key":"crm"}"#, "secret"),
        (r#"{"secret":"crm-secret"}"#, "key"),
        (r#"{"key":"crm","secret":null}"#, "secret"),
        (r#"{"key":7,"secret":"crm-secret"}"#, "key"),
        (r#"["crm","crm-secret"]"#, "object"),
        ("", "not JSON"),
    ] {
        let request = app.client().post(app.url("/v3/oauth/token/generate"));
        let answer = request.header("Content-Type", "application/json").body(body).send().await.unwrap();
        let (status, code, message) = failure(answer).await;
        assert_eq!((status, code), (400, 400), "{body}: {message}");
        assert!(message.contains(words) && !message.contains("crm-secret"), "{body}: {message}");
    }
    let form = app.client().post(app.url("/v3/oauth/token/generate")).body("key=crm&secret=crm-secret");
    assert_eq!(failure(form.send().await.unwrap()).await.0, 415);
}

#[tokio::test]
async fn a_token_issues_for_the_till_of_its_client() {
    let app = start().await;
    let token = token(&app).await;
    for header in [
        (TOKEN_HEADER, token.clone()),
        ("Authorization", format!("Bearer {token}")),
        ("Authorization", format!("bearer {token}")),
    ] {
        let answer = with(&app, &[(header.0, &header.1)]).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{}", header.0);
        assert_eq!(outcomes(&answer.json().await.unwrap()), ["issued"]);
    }
    assert_eq!(app.count("select from issued_coupon where till_id = 'store.server' and store_id = 10").await, 3);
}

#[tokio::test]
async fn a_token_takes_precedence_over_basic() {
    let app = start().await;
    let token = token(&app).await;
    let (bearer, no_bearer) = (format!("Bearer {token}"), "Bearer no.such.token".to_owned());
    let (till, no_till) = (basic("store.server", "server123"), basic("store.server", "wrong"));
    let authorization = "Authorization";
    for (headers, expected) in [
        ([(TOKEN_HEADER, &token), (authorization, &no_till)], 200),
        ([(TOKEN_HEADER, &no_till), (authorization, &till)], 401),
        ([(TOKEN_HEADER, &"no.such.token".to_owned()), (authorization, &till)], 401),
        ([(TOKEN_HEADER, &token), (authorization, &no_bearer)], 200),
        // A header that may come only once counts for nothing if it comes twice (RFC 9110, 5.3).
        ([(authorization, &bearer), (authorization, &till)], 401),
        ([(authorization, &till), (authorization, &bearer)], 401),
        ([(TOKEN_HEADER, &token), (TOKEN_HEADER, &token)], 401),
    ] {
        let headers = headers.map(|(name, value)| (name, value.as_str()));
        assert_eq!(status(with(&app, &headers)).await, expected, "{headers:?}");
    }
}

#[tokio::test]
async fn an_expired_token_is_498() {
    let app = start().await;
    let (used, unused) = (token(&app).await, token(&app).await);
    app.clock.set("2026-11-22T10:59:59Z");
    assert_eq!(status(with(&app, &[(TOKEN_HEADER, &used)])).await, 200);
    app.clock.set("2026-11-22T11:00:00Z");
    for token in [&used, &unused] {
        assert_eq!(refusal(with(&app, &[(TOKEN_HEADER, token)])).await, (401, 498));
        assert_eq!(refusal(with(&app, &[("Authorization", &format!("Bearer {token}"))])).await, (401, 498));
    }
    let fresh = token(&app).await;
    for scheme in ["Bearer ", "bearer  ", "BEARER "] {
        assert_eq!(status(with(&app, &[(TOKEN_HEADER, &format!("{scheme}{fresh}"))])).await, 200, "{scheme}");
    }
    let tampered = used.replacen('.', "x.", 1);
    assert_eq!(refusal(with(&app, &[(TOKEN_HEADER, &tampered)])).await, (401, 401));
    assert_eq!(status(with(&app, &[(TOKEN_HEADER, &token(&app).await)])).await, 200);
}

#[tokio::test]
async fn a_tampered_token_is_refused() {
    let app = start().await;
    let token = token(&app).await;
    let (header, claims) = parts(&token);
    let [head, body, signature] = token.split('.').collect::<Vec<_>>()[..] else { panic!("{token}") };
    let other_claims = |changes| format!("{}.{signature}", unsigned(&header, &but(&claims, &changes)));
    let flipped = if signature.starts_with('A') { "B" } else { "A" };
    for tampered in [
        format!("{head}.{body}.{flipped}{}", &signature[1..]),
        format!("{head}.{body}."),
        format!("{head}.{body}"),
        format!("{head}..{signature}"),
        format!("{token}.{signature}"),
        format!("{token}="),
        format!("{token}, {token}"),
        format!("Bearer {token} {token}"),
        format!("Basic {token}"),
        other_claims(json!({"org_id": 2})),
        other_claims(json!({"exp": NOW_SECONDS + 7200})),
        other_claims(json!({"client_id": "reports"})),
        "..".to_owned(),
        ".".repeat(4096),
    ] {
        assert_eq!(refusal(with(&app, &[(TOKEN_HEADER, &tampered)])).await, (401, 401), "{tampered}");
    }
    assert_eq!(app.count("select from coupon").await, 0);
}

#[tokio::test]
async fn a_token_of_another_algorithm_is_refused() {
    let app = start().await;
    let (header, claims) = parts(&token(&app).await);
    let key = own_key(&app).await;
    let public = key.public_key().as_ref();
    let none = unsigned(&but(&header, &json!({"alg": "none"})), &claims);
    let symmetric = |secret: &[u8]| {
        let unsigned = unsigned(&but(&header, &json!({"alg": "HS256"})), &claims);
        let mut mac = Hmac::<Sha256>::new_from_slice(secret).unwrap();
        mac.update(unsigned.as_bytes());
        format!("{unsigned}.{}", URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes()))
    };
    let pem = format!("-----BEGIN RSA PUBLIC KEY-----\n{}\n-----END RSA PUBLIC KEY-----\n", STANDARD.encode(public));
    for forged in [
        format!("{none}."),
        none,
        symmetric(b""),
        symmetric(public),
        symmetric(pem.as_bytes()),
        signed(&key, &but(&header, &json!({"alg": "RS512"})), &claims),
        signed(&key, &but(&header, &json!({"alg": "PS256"})), &claims),
        signed(&key, &but(&header, &json!({"alg": null})), &claims),
    ] {
        assert_eq!(refusal(with(&app, &[(TOKEN_HEADER, &forged)])).await, (401, 401), "{forged}");
    }
}

/// The service's own key signs all of these tokens, so that only their header or claims are wrong.
#[tokio::test]
async fn a_token_with_a_missing_or_wrong_field_is_refused() {
    let app = start().await;
    let (header, claims) = parts(&token(&app).await);
    let key = own_key(&app).await;
    assert_eq!(status(with(&app, &[(TOKEN_HEADER, &signed(&key, &header, &claims))])).await, 200);
    for wrong in [
        signed(&key, &but(&header, &json!({"kid": null})), &claims),
        signed(&key, &but(&header, &json!({"kid": "another"})), &claims),
        signed(&key, &header, &but(&claims, &json!({"iss": "another"}))),
        signed(&key, &header, &but(&claims, &json!({"iss": null}))),
        signed(&key, &header, &but(&claims, &json!({"aud": "another"}))),
        signed(&key, &header, &but(&claims, &json!({"aud": null}))),
        signed(&key, &header, &but(&claims, &json!({"exp": null}))),
        signed(&key, &header, &but(&claims, &json!({"exp": "never"}))),
        signed(&key, &header, &but(&claims, &json!({"client_id": "nobody"}))),
        signed(&key, &header, &but(&claims, &json!({"client_id": null}))),
    ] {
        assert_eq!(refusal(with(&app, &[(TOKEN_HEADER, &wrong)])).await, (401, 401), "{wrong}");
    }
}

#[tokio::test]
async fn a_token_of_another_installation_is_refused() {
    let (app, other) = tokio::join!(start(), start());
    let (header, claims) = parts(&token(&app).await);
    let foreign = token(&other).await;
    let disguised = signed(&own_key(&other).await, &header, &claims);
    assert_eq!(status(with(&other, &[(TOKEN_HEADER, &foreign)])).await, 200);
    for token in [foreign, disguised] {
        assert_eq!(refusal(with(&app, &[(TOKEN_HEADER, &token)])).await, (401, 401));
    }
}

#[tokio::test]
async fn replicas_accept_each_others_tokens() {
    let file = format!("{ORG}{}", repeatable_series(1, ""));
    let one = TestApp::start_with(&file, |_| {}).await;
    let other = TestApp::start_over(one.connect.clone(), &file, |_| {}).await;
    for (issuer, receiver) in [(&one, &other), (&other, &one)] {
        let token = token(issuer).await;
        assert_eq!(status(with(receiver, &[(TOKEN_HEADER, &token)])).await, 200);
    }
    assert_eq!(one.count("select from signing_key").await, 1);
}

#[tokio::test]
async fn a_caller_without_write_access_is_403() {
    let app = start().await;
    let reports: Value = generate(&app, "reports", "reports-secret").await.json().await.unwrap();
    let reports = format!("Bearer {}", reports["data"]["accessToken"].as_str().unwrap());
    for authorization in [basic("office.desk", "office123"), basic("warehouse.gate", "gate123"), reports] {
        let answer = with(&app, &[("Authorization", &authorization)]).send().await.unwrap();
        let expected = (403, 4000, "Not authorized. Access is denied!".to_owned());
        assert_eq!(failure(answer).await, expected, "{authorization}");
    }
    assert_eq!(app.count("select from coupon").await, 0);
}

#[tokio::test]
async fn a_till_inherits_from_its_store_and_a_store_from_its_organisation() {
    let (desk, server) = (basic("office.desk", "office123"), basic("store.server", "server123"));
    let file = ORG
        .replace("default_access = \"write\"", "default_access = \"read\"")
        .replace("name = \"Head office\"\naccess = \"read\"", "name = \"Head office\"\naccess = \"write\"");
    let app = TestApp::start_with(&format!("{file}{}", repeatable_series(1, "")), |_| {}).await;
    assert_eq!(refusal(with(&app, &[("Authorization", &server)])).await, (403, 4000));
    assert_eq!(status(with(&app, &[("Authorization", &desk)])).await, 200);
}

#[tokio::test]
async fn the_access_of_an_oauth_client_does_not_depend_on_its_till() {
    let client = r#"
[[orgs.oauth_clients]]
key = "kiosk"
secret = "kiosk-secret"
till = "office.desk"
access = "write"
"#;
    let app = TestApp::start_with(&format!("{ORG}{client}{}", repeatable_series(1, "")), |_| {}).await;
    let desk = basic("office.desk", "office123");
    let kiosk: Value = generate(&app, "kiosk", "kiosk-secret").await.json().await.unwrap();
    assert_eq!(refusal(with(&app, &[("Authorization", &desk)])).await, (403, 4000));
    assert_eq!(status(with(&app, &[(TOKEN_HEADER, kiosk["data"]["accessToken"].as_str().unwrap())])).await, 200);
    assert_eq!(app.count("select from issued_coupon where till_id = 'office.desk' and store_id = 11").await, 1);
}

/// The cache keeps a credential for an hour here, so that only the notification can evict it.
#[tokio::test]
async fn a_changed_secret_or_access_takes_effect_at_once() {
    let file = format!("{ORG}{}", repeatable_series(1, ""));
    let app = TestApp::start_with(&file, |settings| settings.auth.credential_cache = Duration::from_hours(1)).await;
    let (old, new) = (basic("store.server", "server123"), basic("store.server", "server124"));
    let token = token(&app).await;
    let token = [(TOKEN_HEADER, token.as_str())];
    assert_eq!(status(with(&app, &[("Authorization", &old)])).await, 200);
    assert_eq!(status(with(&app, &[("Authorization", &new)])).await, 401);
    assert_eq!(status(with(&app, &token)).await, 200);

    let changed = file.replace("server123", "server124").replace("crm-secret", "crm-secret-2");
    provisioning::apply_text(&app.connect, &changed).await.unwrap();
    eventually("the service refuses the old password", async || {
        status(with(&app, &[("Authorization", &old)])).await == 401
    })
    .await;
    assert_eq!(status(with(&app, &[("Authorization", &new)])).await, 200);
    assert_eq!(generate(&app, "crm", "crm-secret").await.status(), 401);
    assert_eq!(generate(&app, "crm", "crm-secret-2").await.status(), 200);
    assert_eq!(status(with(&app, &token)).await, 200, "a token outlives the secret of its client");

    let read_only = changed.replace("access = \"write\"", "access = \"read\"");
    provisioning::apply_text(&app.connect, &read_only).await.unwrap();
    eventually("the service follows the change of access", async || status(with(&app, &token)).await == 403).await;
    assert_eq!(refusal(with(&app, &[("Authorization", &new)])).await, (403, 4000));
}

#[tokio::test]
async fn a_disabled_till_or_client_is_refused_at_once_and_can_be_enabled_again() {
    let app = start().await;
    let till = basic("store.server", "server123");
    let token = token(&app).await;
    let (till, token) = ([("Authorization", till.as_str())], [(TOKEN_HEADER, token.as_str())]);
    let change = async |sql: &'static str| app.change_credentials(sql).await;
    assert_eq!((status(with(&app, &till)).await, status(with(&app, &token)).await), (200, 200));

    change("update till set disabled = true where till_id = 'store.server'").await;
    eventually("the till is refused", async || status(with(&app, &till)).await == 401).await;
    assert_eq!(status(with(&app, &token)).await, 200, "a client does not depend on its till");
    change("update oauth_client set disabled = true where client_key = 'crm'").await;
    eventually("the client is refused", async || status(with(&app, &token)).await == 401).await;
    assert_eq!(generate(&app, "crm", "crm-secret").await.status(), 401);

    change("update till set disabled = false").await;
    change("update oauth_client set disabled = false").await;
    eventually("the till is accepted", async || status(with(&app, &till)).await == 200).await;
    eventually("the client is accepted", async || status(with(&app, &token)).await == 200).await;

    change("update oauth_client set tokens_from = '2026-11-22T10:00:01Z' where client_key = 'crm'").await;
    eventually("the token is refused", async || status(with(&app, &token)).await == 401).await;
    app.clock.set("2026-11-22T10:00:01Z");
    let newer = self::token(&app).await;
    assert_eq!(status(with(&app, &[(TOKEN_HEADER, &newer)])).await, 200);
}

/// Without its listening connection, the service trusts its cache for one second only.
#[tokio::test]
async fn a_change_takes_effect_even_if_its_notification_is_missed() {
    let app = start().await;
    let till = basic("store.server", "server123");
    let till = [("Authorization", till.as_str())];
    assert_eq!(status(with(&app, &till)).await, 200);
    // As in a failover: the connection ends, and the service misses the next change.
    let cut_listener = "select pg_terminate_backend(pid) from pg_stat_activity
                where datname = current_database() and application_name = 'coupon-issuer listener'";
    assert_eq!(app.count(cut_listener).await, 1);
    sqlx::query("update till set disabled = true").execute(&app.pool).await.unwrap();
    eventually("the till is refused", async || status(with(&app, &till)).await == 401).await;
}

#[tokio::test]
async fn a_new_password_works_at_once_even_if_it_was_refused_before() {
    let file = format!("{ORG}{}", repeatable_series(1, ""));
    let app = TestApp::start_with(&file, |_| {}).await;
    let new = basic("store.server", "server124");
    assert_eq!(status(with(&app, &[("Authorization", &new)])).await, 401);
    provisioning::apply_text(&app.connect, &file.replace("server123", "server124")).await.unwrap();
    assert_eq!(status(with(&app, &[("Authorization", &new)])).await, 200);
}

#[tokio::test]
async fn an_organisation_sees_nothing_of_another() {
    let other = ORG
        .replace("id = 1\nname = \"Test Retail\"", "id = 2\nname = \"Other Retail\"")
        .replace("store.server", "other.server")
        .replace("server123", "other123")
        .replace("office.desk", "other.desk")
        .replace("warehouse.gate", "other.gate")
        .replace("\"crm\"", "\"other-crm\"")
        .replace("\"reports\"", "\"other-reports\"");
    let theirs = default_series(1, "max_create = 1").replace("Series 1", "Theirs 1") + &repeatable_series(2, "");
    let app =
        TestApp::start_with(&format!("{ORG}{}{other}{theirs}", default_series(1, "max_create = 1")), |_| {}).await;
    let issue = async |authorization: String| {
        let body = json!({"seriesIds": [1, 2], "customer": {"id": "c", "mobile": "919900000001"}});
        let request = app.bare(body.to_string()).header("Content-Type", "application/json");
        let answer = request.header("Authorization", authorization).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        answer.json::<Value>().await.unwrap()
    };
    let ours = issue(basic("store.server", "server123")).await;
    assert_eq!(outcomes(&ours), ["issued", "707"]);
    assert_eq!(ours["response"][0]["result"]["description"], "Series 1");

    let theirs = issue(basic("other.server", "other123")).await;
    assert_eq!(outcomes(&theirs), ["issued", "issued"]);
    assert_eq!(theirs["response"][0]["result"]["description"], "Theirs 1");

    let token: Value = generate(&app, "other-crm", "crm-secret").await.json().await.unwrap();
    let token = token["data"]["accessToken"].as_str().unwrap().to_owned();
    assert_eq!(parts(&token).1["org_id"], 2);
    assert_eq!(outcomes(&issue(format!("Bearer {token}")).await), ["709", "issued"]);
    assert_eq!(app.count("select from coupon where org_id = 1").await, 1);
    assert_eq!(app.count("select from coupon where org_id = 2").await, 3);
}

#[tokio::test]
async fn secrets_are_stored_as_argon2id() {
    let app = start().await;
    assert_eq!(app.count("select from till where password_hash like '$argon2id$%'").await, 3);
    assert_eq!(app.count("select from oauth_client where secret_hash like '$argon2id$%'").await, 2);
    assert_eq!(app.count("select from till where password_hash !~ '^\\$argon2id\\$'").await, 0);
    assert_eq!(app.count("select from oauth_client where secret_hash !~ '^\\$argon2id\\$'").await, 0);
    let readable = "select from till where till::text ~* '(server|office|gate)123|8a16a6b70505eb1f1ff7cdc0cd5559a7'";
    assert_eq!(app.count(readable).await, 0);
    assert_eq!(app.count("select from oauth_client where oauth_client::text like '%secret%'").await, 0);
}
