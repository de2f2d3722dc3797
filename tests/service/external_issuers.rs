//! Tokens of external issuers. A stub signs tokens and serves its keys; the service fetches the keys and verifies the tokens. The
//! keys rotate, the stub fails, and the service must trust it for no clients but those that are bound to it.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex};

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair};
use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::StatusCode;
use axum::{Json, Router, routing::get};
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::support::{ORG, TestApp, eventually, repeatable_series};

const NOW_SECONDS: i64 = 1_795_341_600;

/// The state of the stub.
#[derive(Default)]
struct Served {
    issuer: String,
    keys: Vec<Jwk>,
    is_down: bool,
    /// While this is set, each request for the keys waits for a notification.
    held: Option<Arc<Notify>>,
    fetches: usize,
    /// The header of the last request for the keys.
    traceparent: Option<String>,
}

/// A stub of an external authorisation server.
struct Issuer {
    address: SocketAddr,
    served: Arc<Mutex<Served>>,
}

#[derive(Clone)]
struct Key {
    kid: &'static str,
    algorithm: Algorithm,
    signing: EncodingKey,
}

impl Key {
    fn new(algorithm: Algorithm, kid: &'static str) -> Self {
        let signing = match algorithm {
            Algorithm::RS256 => {
                let der: Pkcs8V1Der = KeyPair::generate(KeySize::Rsa2048).unwrap().as_der().unwrap();
                let body = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, der.as_ref());
                let pem = format!("-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----\n");
                EncodingKey::from_rsa_pem(pem.as_bytes()).unwrap()
            }
            Algorithm::ES256 => {
                let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
                EncodingKey::from_ec_der(key.to_pkcs8v1().unwrap().as_ref())
            }
            _ => EncodingKey::from_ed_der(Ed25519KeyPair::generate().unwrap().to_pkcs8v1().unwrap().as_ref()),
        };
        Self { kid, algorithm, signing }
    }

    fn public(&self) -> Jwk {
        let mut jwk = Jwk::from_encoding_key(&self.signing, self.algorithm).unwrap();
        jwk.common.key_id = Some(self.kid.to_owned());
        jwk
    }

    /// Signs these claims, with a header that `change` may adjust.
    fn sign(&self, claims: &Value, change: impl FnOnce(&mut Header)) -> String {
        let mut header = Header::new(self.algorithm);
        header.typ = Some("at+jwt".to_owned());
        header.kid = Some(self.kid.to_owned());
        change(&mut header);
        jsonwebtoken::encode(&header, claims, &self.signing).unwrap()
    }
}

impl Issuer {
    async fn start(keys: &[&Key]) -> Self {
        let served = Arc::new(Mutex::new(Served::default()));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        served.lock().unwrap().issuer = format!("http://{address}/realm");
        let discovery = async |State(served): State<Arc<Mutex<Served>>>| {
            let issuer = served.lock().unwrap().issuer.clone();
            Json(json!({"jwks_uri": format!("{}/keys", issuer), "issuer": issuer}))
        };
        let router = Router::new()
            .route("/realm/.well-known/openid-configuration", get(discovery))
            .route("/realm/keys", get(keys_of))
            .with_state(Arc::clone(&served));
        tokio::spawn(async move { axum::serve(listener, router).await });
        let issuer = Self { address, served };
        issuer.serve(keys);
        issuer
    }

    fn url(&self) -> String {
        format!("http://{}/realm", self.address)
    }

    fn serve(&self, keys: &[&Key]) {
        self.served.lock().unwrap().keys = keys.iter().map(|key| key.public()).collect();
    }

    fn claims(&self) -> Value {
        json!({
            "iss": self.url(), "sub": "erp", "client_id": "erp", "aud": ["another", "coupons"],
            "iat": NOW_SECONDS, "exp": NOW_SECONDS + 300, "jti": "1",
        })
    }

    /// An organisation that accepts this issuer for its client `erp`, with these further settings of the issuer.
    fn org(&self, settings: &str) -> String {
        let url = self.url();
        format!(
            "{ORG}[[orgs.token_issuers]]\nissuer = \"{url}\"\naudience = \"coupons\"\n{settings}\n[[orgs.oauth_clients]]\n\
             key = \"erp\"\ntoken_issuer = \"{url}\"\ntill = \"store.server\"\naccess = \"write\"\n{}",
            repeatable_series(1, "")
        )
    }

    fn fetches(&self) -> usize {
        self.served.lock().unwrap().fetches
    }

    /// From now on, each request for the keys waits for one notification.
    fn hold(&self) -> Arc<Notify> {
        let held = Arc::new(Notify::new());
        self.served.lock().unwrap().held = Some(Arc::clone(&held));
        held
    }
}

async fn keys_of(State(served): State<Arc<Mutex<Served>>>, headers: HeaderMap) -> Result<Json<Value>, StatusCode> {
    let (keys, held, is_down) = {
        let mut served = served.lock().unwrap();
        served.fetches += 1;
        served.traceparent = headers.get("traceparent").map(|value| value.to_str().unwrap().to_owned());
        (served.keys.clone(), served.held.clone(), served.is_down)
    };
    if let Some(held) = held {
        held.notified().await;
    }
    if is_down { Err(StatusCode::BAD_GATEWAY) } else { Ok(Json(json!({"keys": keys}))) }
}

fn with_changes(claims: &Value, changes: &Value) -> Value {
    let mut other = claims.clone();
    for (name, value) in changes.as_object().unwrap() {
        other[name] = value.clone();
    }
    other.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    other
}

async fn status(app: &TestApp, token: &str) -> u16 {
    let request = app.bare(r#"{"seriesIds":[1],"customer":{"id":"c"}}"#).header("Content-Type", "application/json");
    request.bearer_auth(token).send().await.unwrap().status().as_u16()
}

#[tokio::test]
async fn tokens_of_each_algorithm_issue_for_the_till_of_their_client() {
    let keys = [Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA].map(|algorithm| Key::new(algorithm, "k"));
    for key in &keys {
        let issuer = Issuer::start(&[key]).await;
        let app = TestApp::start_with(&issuer.org(""), |_| {}).await;
        assert_eq!(status(&app, &key.sign(&issuer.claims(), |_| {})).await, 200, "{:?}", key.algorithm);
        let full_type = key.sign(&issuer.claims(), |header| header.typ = Some("application/at+JWT".to_owned()));
        assert_eq!(status(&app, &full_type).await, 200);
        let without_kid = key.sign(&issuer.claims(), |header| header.kid = None);
        assert_eq!(status(&app, &without_kid).await, 200, "the issuer has only one key");
        assert_eq!(app.count("select from issued_coupon where till_id = 'store.server' and store_id = 10").await, 3);
        assert_eq!(issuer.fetches(), 1);
    }
}

#[tokio::test]
async fn a_token_must_match_the_settings_of_its_issuer() {
    let (key, other) = (Key::new(Algorithm::ES256, "k"), Key::new(Algorithm::RS256, "r"));
    let issuer = Issuer::start(&[&key, &other]).await;
    let keys = format!("http://{}/realm/keys", issuer.address);
    let settings = format!("jwks_url = \"{keys}\"\nclient_claim = \"azp\"\nalgorithms = [\"ES256\"]");
    let app = TestApp::start_with(&issuer.org(&settings), |_| {}).await;
    let claims = with_changes(&issuer.claims(), &json!({"azp": "erp", "client_id": "someone-else"}));
    assert_eq!(status(&app, &key.sign(&claims, |_| {})).await, 200);
    assert_eq!(status(&app, &other.sign(&claims, |_| {})).await, 401, "its algorithm is not accepted");
    for change in [
        json!({"azp": null}),
        json!({"azp": ""}),
        json!({"azp": 7}),
        json!({"azp": "crm"}),
        json!({"aud": "another"}),
        json!({"aud": null}),
        json!({"iss": "http://127.0.0.1:1/realm"}),
        json!({"iss": null}),
        json!({"sub": null}),
        json!({"jti": null}),
        json!({"iat": null}),
        json!({"exp": null}),
        json!({"exp": NOW_SECONDS}),
        json!({"exp": "2030-01-01"}),
        json!({"nbf": NOW_SECONDS + 60}),
        json!({"iat": NOW_SECONDS + 60}),
    ] {
        assert_eq!(status(&app, &key.sign(&with_changes(&claims, &change), |_| {})).await, 401, "{change}");
    }
    let typ = |typ: Option<&str>| key.sign(&claims, |header| header.typ = typ.map(str::to_owned));
    for token in [typ(None), typ(Some("JWT")), typ(Some("id+jwt"))] {
        assert_eq!(status(&app, &token).await, 401);
    }
    let critical = key.sign(&claims, |header| header.crit = Some(vec!["exp".to_owned()]));
    assert_eq!(status(&app, &critical).await, 401);
    let near = with_changes(&claims, &json!({"nbf": NOW_SECONDS + 20, "iat": NOW_SECONDS + 20}));
    assert_eq!(status(&app, &key.sign(&near, |_| {})).await, 200, "the issuer's clock may be a little ahead");
}

#[tokio::test]
async fn an_unknown_key_makes_the_service_fetch_the_keys_at_most_once_a_minute() {
    let (old, new) = (Key::new(Algorithm::ES256, "old"), Key::new(Algorithm::ES256, "new"));
    let issuer = Issuer::start(&[&old]).await;
    let app = TestApp::start_with(&issuer.org(""), |_| {}).await;
    assert_eq!(status(&app, &old.sign(&issuer.claims(), |_| {})).await, 200);
    issuer.serve(&[&old, &new]);
    assert_eq!(
        status(&app, &new.sign(&issuer.claims(), |_| {})).await,
        401,
        "the keys were fetched within this minute"
    );
    app.clock.set("2026-11-22T10:01:00Z");
    assert_eq!(status(&app, &new.sign(&issuer.claims(), |_| {})).await, 200);
    assert_eq!(issuer.fetches(), 2);
    for number in 0..50 {
        let unknown = new.sign(&issuer.claims(), |header| header.kid = Some(format!("no-{number}")));
        assert_eq!(status(&app, &unknown).await, 401);
    }
    assert_eq!(issuer.fetches(), 2);

    // Old keys keep verifying tokens while the service fetches the keys again. After that, a withdrawn key is refused.
    issuer.serve(&[&new]);
    app.clock.set("2026-11-22T10:04:59Z");
    assert_eq!(status(&app, &old.sign(&issuer.claims(), |_| {})).await, 200);
    app.clock.set("2026-11-22T10:11:01Z");
    let later = with_changes(&issuer.claims(), &json!({"exp": NOW_SECONDS + 3600}));
    assert_eq!(status(&app, &new.sign(&later, |_| {})).await, 200);
    eventually("the keys are fetched again", async || issuer.fetches() == 3).await;
    let fresh = with_changes(&later, &json!({"jti": "2"}));
    eventually("the old key is refused", async || status(&app, &old.sign(&fresh, |_| {})).await == 401).await;
}

#[tokio::test]
async fn while_an_issuer_is_down_cached_keys_verify_its_tokens_without_delay() {
    let key = Key::new(Algorithm::EdDSA, "k");
    let issuer = Issuer::start(&[&key]).await;
    let app = TestApp::start_with(&issuer.org(""), |_| {}).await;
    assert_eq!(status(&app, &key.sign(&issuer.claims(), |_| {})).await, 200);
    let held = issuer.hold();
    issuer.served.lock().unwrap().is_down = true;
    app.clock.set("2026-11-22T12:00:00Z");
    let later = with_changes(&issuer.claims(), &json!({"exp": NOW_SECONDS + 40_000}));
    let unknown = key.sign(&later, |header| header.kid = Some("unknown".to_owned()));
    let mut waiting = pin!(status(&app, &unknown));
    let others = async {
        eventually("the keys are fetched again", async || issuer.fetches() == 2).await;
        // Only a few: they must end within the five seconds after which the service stops waiting for the issuer.
        for number in 0..3 {
            let token = key.sign(&with_changes(&later, &json!({"jti": number.to_string()})), |_| {});
            assert_eq!(status(&app, &token).await, 200);
            assert_eq!(app.issue_one("c", 1).await, "issued");
        }
    };
    tokio::select! {
        status = &mut waiting => panic!("{status} came first: the others waited for an issuer whose new keys they do not need"),
        () = others => {}
    }
    held.notify_one();
    assert_eq!(waiting.await, 401);
}

#[tokio::test]
async fn tokens_of_an_issuer_that_was_never_reached_are_503_until_it_answers() {
    let key = Key::new(Algorithm::ES256, "k");
    let issuer = Issuer::start(&[&key]).await;
    let app = TestApp::start_with(&issuer.org(""), |_| {}).await;
    issuer.served.lock().unwrap().is_down = true;
    let token = key.sign(&issuer.claims(), |_| {});
    assert_eq!(status(&app, &token).await, 503);
    issuer.served.lock().unwrap().is_down = false;
    assert_eq!(status(&app, &token).await, 503, "a failed fetch is repeated after five seconds at the earliest");
    app.clock.set("2026-11-22T10:00:05Z");
    assert_eq!(status(&app, &token).await, 200);
}

#[tokio::test]
async fn an_issuer_is_trusted_only_for_clients_of_its_organisation() {
    let key = Key::new(Algorithm::ES256, "k");
    let (issuer, foreign) = (Issuer::start(&[&key]).await, Issuer::start(&[&key]).await);
    let other_org = ORG
        .replace("id = 1\nname = \"Test Retail\"", "id = 2\nname = \"Other Retail\"")
        .replace("store.server", "other.server")
        .replace("office.desk", "other.desk")
        .replace("warehouse.gate", "other.gate")
        .replace("\"crm\"", "\"other-crm\"")
        .replace("\"reports\"", "\"other-reports\"");
    let url = foreign.url();
    let theirs = format!(
        "{other_org}[[orgs.token_issuers]]\nissuer = \"{url}\"\naudience = \"coupons\"\n[[orgs.oauth_clients]]\n\
         key = \"other-erp\"\ntoken_issuer = \"{url}\"\ntill = \"other.server\"\naccess = \"write\"\n{}",
        repeatable_series(1, "")
    );
    let app = TestApp::start_with(&format!("{}{theirs}", issuer.org("")), |_| {}).await;
    let named = |issuer: &Issuer, client: &str| {
        key.sign(&with_changes(&issuer.claims(), &json!({"client_id": client})), |_| {})
    };
    assert_eq!(status(&app, &named(&issuer, "erp")).await, 200);
    assert_eq!(status(&app, &named(&foreign, "other-erp")).await, 200);
    for token in [
        named(&foreign, "erp"),
        named(&issuer, "other-erp"),
        named(&issuer, "other-crm"),
        named(&issuer, "crm"),
        named(&issuer, "store.server"),
    ] {
        assert_eq!(status(&app, &token).await, 401);
    }
    // A client of an external issuer has no secret here.
    let grant = json!({"key": "erp", "secret": ""});
    let refused = app.client().post(app.url("/v3/oauth/token/generate")).json(&grant).send().await.unwrap();
    assert_eq!(refused.status(), 401);
    assert_eq!(app.count("select from coupon where org_id = 1").await, 1);
    assert_eq!(app.count("select from coupon where org_id = 2").await, 1);
}

#[tokio::test]
async fn two_organisations_may_accept_the_same_issuer_independently() {
    let key = Key::new(Algorithm::ES256, "k");
    let (issuer, unreachable) = (Issuer::start(&[&key]).await, "http://127.0.0.1:1/keys");
    let url = issuer.url();
    // The first organisation names a URL for the keys at which nothing answers. The second must not suffer from it.
    let first = issuer.org(&format!("jwks_url = \"{unreachable}\""));
    let second = format!(
        "[[orgs]]\nid = 2\nname = \"Other\"\ntime_zone = \"UTC\"\ncustomer_policy = \"open\"\ndefault_access = \"write\"\n\
         [[orgs.stores]]\nid = 20\nname = \"Uptown\"\n[[orgs.tills]]\nid = \"other.till\"\nstore_id = 20\npassword = \"x\"\n\
         [[orgs.token_issuers]]\nissuer = \"{url}\"\naudience = \"coupons\"\nclient_claim = \"azp\"\n[[orgs.oauth_clients]]\n\
         key = \"other-erp\"\ntoken_issuer = \"{url}\"\ntill = \"other.till\"\naccess = \"write\"\n{}",
        repeatable_series(1, "")
    );
    let app = TestApp::start_with(&format!("{first}{second}"), |_| {}).await;
    let claims = with_changes(&issuer.claims(), &json!({"azp": "other-erp"}));
    let theirs = with_changes(&claims, &json!({"client_id": "someone-else"}));
    assert_eq!(status(&app, &key.sign(&theirs, |_| {})).await, 200);
    assert_eq!(app.count("select from coupon where org_id = 2").await, 1);
    // A token that names clients of both belongs to the first organisation, whose keys cannot be fetched.
    assert_eq!(status(&app, &key.sign(&claims, |_| {})).await, 503);
    let nobodys = with_changes(&claims, &json!({"azp": "nobody", "client_id": "nobody"}));
    assert!([401, 503].contains(&status(&app, &key.sign(&nobodys, |_| {})).await));
    assert_eq!(app.count("select from coupon where org_id = 1").await, 0);
}

#[tokio::test]
async fn the_keys_are_fetched_although_the_caller_hangs_up() {
    let key = Key::new(Algorithm::ES256, "k");
    let issuer = Issuer::start(&[&key]).await;
    let held = issuer.hold();
    let app = TestApp::start_with(&issuer.org(""), |_| {}).await;
    let token = key.sign(&issuer.claims(), |_| {});
    tokio::select! {
        status = status(&app, &token) => panic!("{status} without the keys"),
        () = eventually("the keys are fetched", async || issuer.fetches() == 1) => {}
    }
    held.notify_one();
    assert_eq!(status(&app, &token).await, 200, "the keys are there although the first caller did not wait");
    assert_eq!(issuer.fetches(), 1);
}

#[tokio::test]
async fn a_key_withdrawn_during_an_idle_time_is_refused() {
    let (old, new) = (Key::new(Algorithm::ES256, "old"), Key::new(Algorithm::ES256, "new"));
    let issuer = Issuer::start(&[&old]).await;
    let app = TestApp::start_with(&issuer.org(""), |_| {}).await;
    assert_eq!(status(&app, &old.sign(&issuer.claims(), |_| {})).await, 200);
    issuer.serve(&[&new]);
    app.clock.set("2026-11-22T15:00:00Z");
    let later = with_changes(&issuer.claims(), &json!({"exp": NOW_SECONDS + 40_000, "jti": "2"}));
    assert_eq!(status(&app, &old.sign(&later, |_| {})).await, 401);
    assert_eq!(status(&app, &new.sign(&later, |_| {})).await, 200);
}

/// So the trace of a slow request shows the issuer's part of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_fetch_of_the_keys_carries_the_trace_of_the_request() {
    let key = Key::new(Algorithm::ES256, "k");
    let issuer = Issuer::start(&[&key]).await;
    let app = TestApp::start_with(&issuer.org(""), |_| {}).await;
    let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let request = app.bare(r#"{"seriesIds":[1],"customer":{"id":"c"}}"#).header("Content-Type", "application/json");
    let request = request.bearer_auth(key.sign(&issuer.claims(), |_| {})).header("traceparent", traceparent);
    assert_eq!(request.send().await.unwrap().status(), 200);
    assert_eq!(issuer.served.lock().unwrap().traceparent.as_deref(), Some(traceparent));
}
