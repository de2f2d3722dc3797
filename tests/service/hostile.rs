//! Hostile credentials against the binary: forged and foreign tokens, broken headers, wrong passwords. None issues a coupon. The
//! answer shows no reason, except that a token has expired or that access is missing. The log has the reason, but no secret.
//!
//! The name of a case is the id of its request, by which the test finds it in the log.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_SHA512, RSA_PSS_SHA256, RsaEncoding};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use coupon_issuer::provisioning;
use hmac::{Hmac, KeyInit, Mac};
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey};
use md5::{Digest, Md5};
use reqwest::header::HeaderValue;
use reqwest::{RequestBuilder, Response};
use serde_json::{Value, json};
use sha2::Sha256;
use sqlx::postgres::{PgPool, PgPoolOptions};
use sqlx::{ConnectOptions, raw_sql};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::authentication::{basic, but, parts, signed, unsigned};
use crate::support::{ORG, TestApp, failure, new_database, repeatable_series};

const TOKEN_HEADER: &str = "X-CAP-API-OAUTH-TOKEN";
const BODY: &str = r#"{"seriesIds":[1],"customer":{"id":"c"}}"#;
const FORM: &str = "application/x-www-form-urlencoded";
/// A wrong password, which must not appear in the log.
const WRONG: &str = "hunter2-hunter2";

// The reasons in the log.
const NO_CREDENTIALS: &str = "no credentials";
const NOT_READ: &str = "the Basic credentials cannot be read";
const TWICE: &str = "the header with the credentials comes twice";
const NOT_TEXT: &str = "the header with the credentials is no plain text";
const UNKNOWN: &str = "there is no such till or client with a secret";
const SECRET: &str = "the secret is wrong";
const NUL: &str = "the name contains U+0000";
const ACCESS: &str = "the access level is too low";
const EXPIRED: &str = "the token has expired";
const TOO_LONG: &str = "the token is too long";
const NOT_JWT: &str = "the token is not a JWT";
const HEADER: &str = "the token's header cannot be read, or its algorithm is not supported";
const TYP: &str = "the token's typ is not at+jwt";
const CRIT: &str = "the token has a critical header";
const NO_KID: &str = "the token has no kid";
const KEY: &str = "the token's kid is not one of this service's keys";
const ALGORITHM: &str = "the token's algorithm does not match its key";
const SIGNATURE: &str = "the token's signature is wrong";
const UNREADABLE: &str = "the token cannot be read";
const CLAIMS: &str = "the token's claims are not a JSON object";
const NO_ISSUER: &str = "the token has no iss";
const ISSUER: &str = "the token's issuer is not accepted";
const AUDIENCE: &str = "the token is for another audience";
const LACKS: &str = "the token lacks a claim";
const NO_INSTANT: &str = "the token's exp, iat or nbf is not a valid time";
const NOT_YET: &str = "the token is not valid yet";
const NO_CLIENT: &str = "the token's client_id or org_id is not valid";
const CLIENT: &str = "the token's client does not belong to its issuer";

/// A request for a coupon that the service must refuse: its name, the reason in the log, and its headers.
struct Case {
    name: String,
    reason: &'static str,
    headers: Vec<(&'static str, Vec<u8>)>,
}

fn case<const N: usize>(name: &str, reason: &'static str, headers: [(&'static str, &[u8]); N]) -> Case {
    let headers = headers.map(|(header, value)| (header, value.to_vec())).into();
    Case { name: name.to_owned(), reason, headers }
}

/// A case with this token in the header `X-CAP-API-OAUTH-TOKEN`.
fn token(name: &str, reason: &'static str, token: &str) -> Case {
    case(name, reason, [(TOKEN_HEADER, token.as_bytes())])
}

/// A case with this name and password of a till.
fn till(name: &str, reason: &'static str, till_id: &str, password: &str) -> Case {
    case(name, reason, [("Authorization", basic(till_id, password).as_bytes())])
}

/// A case for each of these, with its number in its name.
fn each<T>(name: &str, all: impl IntoIterator<Item = T>, case: impl Fn(&str, T) -> Case) -> Vec<Case> {
    all.into_iter().enumerate().map(|(number, one)| case(&format!("{name}-{number}"), one)).collect()
}

/// The running binary, with the tills and clients of the cases in its database.
struct Service {
    child: Child,
    address: String,
    log: Option<JoinHandle<Vec<String>>>,
    pool: PgPool,
    client: reqwest::Client,
}

/// A till and clients for [`ORG`], which [`CHANGES`] makes unusable.
const OTHERS: &str = r#"
[[orgs.tills]]
id = "till.off"
store_id = 10
password = "till-off-password"
[[orgs.oauth_clients]]
key = "client.off"
secret = "client-off-secret"
till = "store.server"
access = "write"
[[orgs.oauth_clients]]
key = "client.revoked"
secret = "client-revoked-secret"
till = "store.server"
access = "write"
[[orgs.oauth_clients]]
key = "client.external"
secret = "client-external-secret"
till = "store.server"
access = "write"
[[orgs.oauth_clients]]
key = "client.none"
secret = "client-none-secret"
till = "store.server"
access = "none"
"#;
const OTHER_ORG: &str = r#"
[[orgs]]
id = 2
name = "Other Retail"
customer_policy = "open"
default_access = "write"
[[orgs.stores]]
id = 10
name = "Uptown"
[[orgs.tills]]
id = "other.server"
store_id = 10
password = "other-password"
[[orgs.oauth_clients]]
key = "other.crm"
secret = "other-crm-secret"
till = "other.server"
access = "write"
"#;
const CHANGES: &str = "
    update till set disabled = true where till_id = 'till.off';
    update oauth_client set disabled = true where client_key = 'client.off';
    update oauth_client set tokens_from = now() + interval '1 minute' where client_key = 'client.revoked';
    insert into token_issuer (org_id, issuer, audience, jwks_url, client_claim, algorithms)
    values (1, 'https://issuer.invalid', 'coupons', null, 'client_id', array['RS256']);
    update oauth_client set issuer = 'https://issuer.invalid', secret_hash = null where client_key = 'client.external';
    select pg_notify('coupon_issuer_credentials', '')";

impl Service {
    async fn start() -> Self {
        let database = new_database().await;
        let file = format!("{ORG}{OTHERS}{}{OTHER_ORG}{}", repeatable_series(1, ""), repeatable_series(1, ""));
        provisioning::apply_text(&database, &file).await.unwrap();
        let pool = PgPoolOptions::new().max_connections(2).connect_lazy_with(database.clone());
        raw_sql(CHANGES).execute(&pool).await.unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_coupon-issuer"));
        command
            .arg("serve")
            .env("DATABASE_URL", database.to_url_lossy().as_str())
            .env("COUPON_ISSUER__HTTP__LISTEN", "127.0.0.1:0")
            .env("COUPON_ISSUER__METRICS__LISTEN", "")
            .env("COUPON_ISSUER__RATE_LIMIT__FAILURES_PER_MINUTE", "1000000")
            .env("COUPON_ISSUER__RATE_LIMIT__FAILURES_PER_MINUTE_BY_ADDRESS", "1000000");
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let serving = lines.find(|line| line.as_ref().unwrap().contains("\"serving\"")).unwrap().unwrap();
        let serving: Value = serde_json::from_str(&serving).unwrap();
        let address = serving["address"].as_str().unwrap().to_owned();
        let log = Some(std::thread::spawn(move || lines.map(Result::unwrap).collect()));
        Self { child, address, log, pool, client: reqwest::Client::new() }
    }

    fn post(&self, path: &str, id: &str) -> RequestBuilder {
        self.client.post(format!("http://{}{path}", self.address)).header("X-Request-Id", id)
    }

    /// Requests a coupon under this id with these headers.
    async fn request(&self, id: &str, headers: &[(&'static str, Vec<u8>)]) -> Response {
        let without_headers =
            self.post("/v2/coupon/bulk/issue", id).header("Content-Type", "application/json").body(BODY.to_owned());
        let with = |request: RequestBuilder, (name, value): &(&'static str, Vec<u8>)| {
            request.header(*name, HeaderValue::from_bytes(value).unwrap())
        };
        headers.iter().fold(without_headers, with).send().await.unwrap()
    }

    /// Sends the request of a case. Asserts the answer that its reason may show, to the byte.
    async fn assert_refused(&self, case: &Case) {
        let name = &case.name;
        let answer = self.request(name, &case.headers).await;
        let challenges: Vec<_> = answer.headers().get_all("www-authenticate").iter().cloned().collect();
        assert_eq!(answer.headers()["x-request-id"], *name);
        let (expected, error) = match case.reason {
            NO_CREDENTIALS => ((401, 401, "Authentication is required".to_owned()), ""),
            EXPIRED => ((401, 498, "The access token has expired".to_owned()), ", error=\"invalid_token\""),
            ACCESS => ((403, 4000, "Not authorized. Access is denied!".to_owned()), ""),
            _ => ((401, 401, "Invalid credentials".to_owned()), ", error=\"invalid_token\""),
        };
        let both =
            ["Basic realm=\"coupon-issuer\", charset=\"UTF-8\"", &format!("Bearer realm=\"coupon-issuer\"{error}")];
        assert_eq!(challenges, if expected.0 == 401 { both.as_slice() } else { &[] }, "{name}");
        assert_eq!(failure(answer).await, expected, "{name}");
    }

    async fn coupons(&self) -> i64 {
        sqlx::query_scalar("select count(*) from coupon").fetch_one(&self.pool).await.unwrap()
    }

    async fn text(&self, query: &'static str) -> String {
        sqlx::query_scalar(query).fetch_one(&self.pool).await.unwrap()
    }

    /// Stops the service. Returns its log.
    fn stop(mut self) -> Vec<String> {
        assert!(Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap().success());
        self.log.take().unwrap().join().unwrap()
    }
}

/// Kills the service of a test that fails.
impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The reason in the log for each id of a request.
fn denials(log: &[String]) -> BTreeMap<String, String> {
    let lines = log.iter().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let text = |value: &Value| value.as_str().map(str::to_owned);
    lines.filter_map(|line| Some((text(&line["request_id"])?, text(&line["denied"])?))).collect()
}

fn assert_unlogged(log: &[String], name: &str, secret: &str) {
    assert!(secret.len() >= 8, "{name}: a secret this short may be in the log by chance");
    assert!(!log.iter().any(|line| line.contains(secret)), "{name}: its secret is in the log");
}

/// Makes forged tokens from a good one. It signs with the service's own key where only the header or the claims are to be wrong.
struct Forge {
    service_key: KeyPair,
    attacker_key: KeyPair,
    /// The service's published key.
    jwk: Value,
    header: Value,
    claims: Value,
    good: String,
}

impl Forge {
    async fn new(service: &Service) -> Self {
        let der: Vec<u8> =
            sqlx::query_scalar("select private_key from signing_key").fetch_one(&service.pool).await.unwrap();
        let good =
            service.post("/v3/oauth/token/generate", "good").json(&json!({"key": "crm", "secret": "crm-secret"}));
        let good: Value = good.send().await.unwrap().json().await.unwrap();
        let good = good["data"]["accessToken"].as_str().unwrap().to_owned();
        let url = format!("http://{}/.well-known/jwks.json", service.address);
        let jwks: Value = service.client.get(url).send().await.unwrap().json().await.unwrap();
        let (header, claims) = parts(&good);
        Self {
            service_key: KeyPair::from_pkcs8(&der).unwrap(),
            attacker_key: KeyPair::generate(KeySize::Rsa2048).unwrap(),
            jwk: jwks["keys"][0].clone(),
            header,
            claims,
            good,
        }
    }

    fn now(&self) -> i64 {
        self.claims["iat"].as_i64().unwrap()
    }

    /// The good token with these changes of its header, signed with the service's key.
    fn with_header(&self, changes: &Value) -> String {
        signed(&self.service_key, &but(&self.header, changes), &self.claims)
    }

    /// The good token with these changes of its claims, signed with the service's key.
    fn with_claims(&self, changes: &Value) -> String {
        signed(&self.service_key, &self.header, &but(&self.claims, changes))
    }

    /// A token with these bytes as header and claims, signed with the service's key.
    fn with_bytes(&self, header: &[u8], claims: &[u8]) -> String {
        let unsigned = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        self.with_signature(&unsigned, &aws_lc_rs::signature::RSA_PKCS1_SHA256)
    }

    fn with_signature(&self, unsigned: &str, padding: &'static dyn RsaEncoding) -> String {
        let mut signature = vec![0; self.service_key.public_modulus_len()];
        self.service_key.sign(padding, &SystemRandom::new(), unsigned.as_bytes(), &mut signature).unwrap();
        format!("{unsigned}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    /// The claims as text, with this claim added or replaced.
    fn claims_text(&self, name: &str, value: &str) -> String {
        let rest = but(&self.claims, &json!({name: null})).to_string();
        format!("{{\"{name}\":{value},{}", &rest[1..])
    }

    /// The good token with this JSON as one of its claims, signed with the service's key.
    fn with_claim_text(&self, name: &str, value: &str) -> String {
        self.with_bytes(self.header.to_string().as_bytes(), self.claims_text(name, value).as_bytes())
    }

    /// The good token with these changes of its header, signed with the attacker's key.
    fn by_attacker(&self, changes: &Value) -> String {
        signed(&self.attacker_key, &but(&self.header, changes), &self.claims)
    }

    /// Head, body and signature of the good token.
    fn good_parts(&self) -> [&str; 3] {
        self.good.split('.').collect::<Vec<_>>().try_into().unwrap()
    }
}

fn no_algorithm(forge: &Forge) -> Vec<Case> {
    let mut cases = Vec::new();
    for alg in ["none", "None", "NONE", "nOnE", " none", ""] {
        let unsigned = unsigned(&but(&forge.header, &json!({"alg": alg})), &forge.claims);
        let name = format!("alg-{}", alg.replace(' ', "_"));
        cases.push(token(&format!("{name}-with-dot"), HEADER, &format!("{unsigned}.")));
        cases.push(token(&format!("{name}-without-dot"), NOT_JWT, &unsigned));
        let [_, _, signature] = forge.good_parts();
        cases.push(token(&format!("{name}-signed"), HEADER, &format!("{unsigned}.{signature}")));
    }
    for alg in [json!(null), json!(7), json!(["RS256"]), json!("rs256"), json!("RS257"), json!("ES256K")] {
        let name = format!("alg-{}", alg.to_string().replace(['"', '[', ']'], ""));
        cases.push(token(&name, HEADER, &forge.with_header(&json!({"alg": alg}))));
    }
    cases
}

fn other_algorithms(forge: &Forge) -> Vec<Case> {
    let mut cases: Vec<Case> = ["RS384", "RS512", "PS256", "ES256", "ES384", "EdDSA", "HS256", "HS512"]
        .iter()
        .map(|alg| token(&format!("alg-{alg}-over-rs256"), ALGORITHM, &forge.with_header(&json!({"alg": alg}))))
        .collect();
    for (alg, padding) in [("RS512", &RSA_PKCS1_SHA512), ("PS256", &RSA_PSS_SHA256)] {
        let unsigned_as = |alg: &str| unsigned(&but(&forge.header, &json!({"alg": alg})), &forge.claims);
        let honest = forge.with_signature(&unsigned_as(alg), padding);
        cases.push(token(&format!("alg-{alg}-honestly"), ALGORITHM, &honest));
        let disguised = forge.with_signature(&unsigned_as("RS256"), padding);
        cases.push(token(&format!("alg-{alg}-as-rs256"), SIGNATURE, &disguised));
    }
    cases
}

/// Everybody has the public key. It must not work as the secret of an HMAC.
fn symmetric(forge: &Forge) -> Vec<Case> {
    let pkcs1 = forge.service_key.public_key().as_ref().to_vec();
    let spki = AsDer::<PublicKeyX509Der>::as_der(forge.service_key.public_key()).unwrap().as_ref().to_vec();
    let pem = |label: &str, der: &[u8]| {
        let body = STANDARD.encode(der);
        let lines: Vec<&str> = body.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
        format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n")).into_bytes()
    };
    let modulus = forge.jwk["n"].as_str().unwrap();
    let secrets = [
        ("nothing", vec![]),
        ("pkcs1-der", pkcs1.clone()),
        ("pkcs1-pem", pem("RSA PUBLIC KEY", &pkcs1)),
        ("spki-der", spki.clone()),
        ("spki-pem", pem("PUBLIC KEY", &spki)),
        ("modulus", URL_SAFE_NO_PAD.decode(modulus).unwrap()),
        ("modulus-text", modulus.as_bytes().to_vec()),
        ("jwk", forge.jwk.to_string().into_bytes()),
        ("kid", forge.jwk["kid"].as_str().unwrap().as_bytes().to_vec()),
    ];
    let unsigned = unsigned(&but(&forge.header, &json!({"alg": "HS256"})), &forge.claims);
    let forged = |(name, secret): (&str, Vec<u8>)| {
        let mut mac = Hmac::<Sha256>::new_from_slice(&secret).unwrap();
        mac.update(unsigned.as_bytes());
        let signature = URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes());
        token(&format!("hs256-with-{name}"), ALGORITHM, &format!("{unsigned}.{signature}"))
    };
    secrets.into_iter().map(forged).collect()
}

fn header_fields(forge: &Forge) -> Vec<Case> {
    let typs = [
        json!(null),
        json!(""),
        json!("JWT"),
        json!("jwt"),
        json!("id+jwt"),
        json!("at+jwt "),
        json!("at"),
        json!("JOSE"),
    ];
    let mut cases = each("typ", typs, |name, typ| token(name, TYP, &forge.with_header(&json!({"typ": typ}))));
    cases.extend(each("typ-no-text", [json!(7), json!(["at+jwt"]), json!({"at+jwt": 1})], |name, typ| {
        token(name, HEADER, &forge.with_header(&json!({"typ": typ})))
    }));
    cases.extend(each("crit", [json!(["exp"]), json!([]), json!(["b64"]), json!(["x"])], |name, crit| {
        token(name, CRIT, &forge.with_header(&json!({"crit": crit, "b64": false})))
    }));
    let text = forge.header.to_string();
    let doubled = text.replacen('{', r#"{"alg":"none","#, 1);
    for (name, reason, header) in [
        ("crit-no-array", HEADER, &*text.replacen('{', r#"{"crit":"exp","#, 1)),
        ("header-alg-twice", HEADER, &doubled),
        ("header-kid-twice", HEADER, &text.replacen('{', r#"{"kid":"x","#, 1)),
        ("header-array", HEADER, "[]"),
        ("header-text", HEADER, "\"RS256\""),
        ("header-empty", HEADER, ""),
        ("header-broken", HEADER, &text[1..]),
        ("header-more", HEADER, &format!("{text}{text}")),
        ("header-deep", HEADER, &text.replacen('{', &format!("{{\"x\":{},", "[".repeat(2000)), 1)),
    ] {
        cases.push(token(name, reason, &forge.with_bytes(header.as_bytes(), forge.claims.to_string().as_bytes())));
    }
    cases.push(token("header-no-utf8", HEADER, &forge.with_bytes(b"{\"alg\":\"\xff\"}", b"{}")));
    cases
}

/// Tokens that bring their own key, or its URL. `bait` is that URL.
fn foreign_keys(forge: &Forge, bait: &str) -> Vec<Case> {
    let der: Pkcs8V1Der = forge.attacker_key.as_der().unwrap();
    let pem = format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", STANDARD.encode(der.as_ref()));
    let mut jwk =
        Jwk::from_encoding_key(&EncodingKey::from_rsa_pem(pem.as_bytes()).unwrap(), Algorithm::RS256).unwrap();
    jwk.common.key_id = Some("attackers".to_owned());
    let certificate = STANDARD.encode(forge.attacker_key.public_key().as_ref());
    let mut cases = Vec::new();
    for (name, field) in [
        ("jku", json!({"jku": bait})),
        ("x5u", json!({"x5u": bait})),
        ("x5c", json!({"x5c": [certificate]})),
        ("jwk", json!({"jwk": jwk})),
        ("jwk-jku-x5u", json!({"jwk": jwk, "jku": bait, "x5u": bait})),
        ("no-hint", json!({})),
    ] {
        let kid = |kid: Value| forge.by_attacker(&but(&field, &json!({"kid": kid})));
        cases.push(token(&format!("{name}-attackers-kid"), KEY, &kid(json!("attackers"))));
        let own = but(&field, &json!({"kid": forge.header["kid"]}));
        cases.push(token(&format!("{name}-own-kid"), SIGNATURE, &forge.by_attacker(&own)));
        let mut header = but(&forge.header, &field);
        header.as_object_mut().unwrap().remove("kid");
        cases.push(token(&format!("{name}-no-kid"), NO_KID, &signed(&forge.attacker_key, &header, &forge.claims)));
    }
    cases
}

fn kids(forge: &Forge) -> Vec<Case> {
    let own = forge.header["kid"].as_str().unwrap();
    let unknown = [
        "",
        "unknown",
        "../../../../../../dev/null",
        "/etc/passwd",
        "file:///dev/null",
        "' or '1'='1",
        "x' union select private_key from signing_key --",
        "$(id)",
        "\0",
        &own.to_lowercase().replace(|c: char| c.is_ascii_digit(), "_"),
        &format!("{own} "),
        &format!("{own}\0"),
        &own[1..],
        &"k".repeat(5000),
    ];
    let mut cases = each("kid", unknown, |name, kid| token(name, KEY, &forge.with_header(&json!({"kid": kid}))));
    cases.extend(each("kid-no-text", [json!([own]), json!(7), json!({"kid": own}), json!(true)], |name, kid| {
        token(name, HEADER, &forge.with_header(&json!({"kid": kid})))
    }));
    let null = forge.header.to_string().replace(&json!(own).to_string(), "null");
    cases.push(token("kid-null", NO_KID, &forge.with_bytes(null.as_bytes(), forge.claims.to_string().as_bytes())));
    cases.push(token("kid-missing", NO_KID, &forge.with_header(&json!({"kid": null}))));
    cases
}

fn missing_claims(forge: &Forge) -> Vec<Case> {
    let mut cases = Vec::new();
    for (claim, reason) in [
        ("iss", NO_ISSUER),
        ("sub", LACKS),
        ("aud", LACKS),
        ("exp", LACKS),
        ("jti", LACKS),
        ("client_id", LACKS),
        ("org_id", LACKS),
        ("iat", NO_INSTANT),
    ] {
        cases.push(token(&format!("no-{claim}"), reason, &forge.with_claims(&json!({claim: null}))));
        cases.push(token(&format!("null-{claim}"), reason, &forge.with_claim_text(claim, "null")));
    }
    cases
}

fn claims_of_a_wrong_type(forge: &Forge) -> Vec<Case> {
    let array = |claim: &str| json!([forge.claims[claim]]).to_string();
    let (iss, client_id) = (array("iss"), array("client_id"));
    let mut cases = Vec::new();
    for (name, claim, reason, values) in [
        ("iss", "iss", NO_ISSUER, ["7", "{}", &iss].as_slice()),
        ("sub", "sub", LACKS, &["7", "true"]),
        ("sub-nested", "sub", UNREADABLE, &["{}", "[\"crm\"]"]),
        ("aud", "aud", LACKS, &["7", "true", "{}", "[7]", "[\"coupon-issuer\",7]", "[[\"coupon-issuer\"]]"]),
        ("jti", "jti", LACKS, &["7", "true", "{}", "[]"]),
        ("client_id", "client_id", NO_CLIENT, &["7", "true", "{}", &client_id]),
        ("org_id", "org_id", NO_CLIENT, &["\"1\"", "true", "{}", "[1]", "1.0"]),
        ("exp", "exp", LACKS, &["\"9999999999\"", "true", "{}"]),
        ("exp-nested", "exp", UNREADABLE, &["[9999999999]"]),
        ("iat", "iat", NO_INSTANT, &["\"1\"", "true", "{}", "[1]"]),
        ("nbf", "nbf", NO_INSTANT, &["\"1\"", "true", "null"]),
        ("nbf-nested", "nbf", UNREADABLE, &["[1]"]),
    ] {
        cases.extend(each(&format!("typed-{name}"), values, |name, value| {
            token(name, reason, &forge.with_claim_text(claim, value))
        }));
    }
    cases
}

fn times(forge: &Forge) -> Vec<Case> {
    let now = forge.now();
    let mut cases = Vec::new();
    for (name, reason, claim, value) in [
        ("expired-now", EXPIRED, "exp", now.to_string()),
        ("expired-long-ago", EXPIRED, "exp", (now - 86400).to_string()),
        ("expired-in-1970", EXPIRED, "exp", "0".to_owned()),
        ("exp-of-the-past-with-a-fraction", EXPIRED, "exp", format!("{}.9", now - 1)),
        ("exp-negative", LACKS, "exp", "-1".to_owned()),
        ("exp-1e400", CLAIMS, "exp", "1e400".to_owned()),
        ("exp-1e300", LACKS, "exp", "1e300".to_owned()),
        ("exp-1e18", NO_INSTANT, "exp", "1e18".to_owned()),
        ("exp-i64-max", NO_INSTANT, "exp", i64::MAX.to_string()),
        ("exp-u64-max", NO_INSTANT, "exp", u64::MAX.to_string()),
        ("exp-u64-max-and-one", LACKS, "exp", "18446744073709551616".to_owned()),
        ("exp-i64-min", LACKS, "exp", i64::MIN.to_string()),
        ("exp-in-milliseconds", NO_INSTANT, "exp", ((now + 60) * 1000).to_string()),
        ("exp-nan", CLAIMS, "exp", "NaN".to_owned()),
        ("iat-in-the-future", NOT_YET, "iat", (now + 600).to_string()),
        ("iat-i64-max", NO_INSTANT, "iat", i64::MAX.to_string()),
        ("iat-i64-min", NO_INSTANT, "iat", i64::MIN.to_string()),
        ("nbf-in-the-future", NOT_YET, "nbf", (now + 600).to_string()),
        ("nbf-1e300", NO_INSTANT, "nbf", "1e300".to_owned()),
    ] {
        cases.push(token(name, reason, &forge.with_claim_text(claim, &value)));
    }
    cases
}

fn whose(forge: &Forge) -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, reason, changes) in [
        ("aud-other", AUDIENCE, json!({"aud": "coupon-issuers"})),
        ("aud-upper-case", AUDIENCE, json!({"aud": "COUPON-ISSUER"})),
        ("aud-empty", AUDIENCE, json!({"aud": ""})),
        ("aud-none-of-several", AUDIENCE, json!({"aud": ["another", "coupon"]})),
        ("aud-of-none", AUDIENCE, json!({"aud": []})),
        ("iss-other", ISSUER, json!({"iss": "https://another.invalid"})),
        ("iss-upper-case", ISSUER, json!({"iss": "COUPON-ISSUER"})),
        ("iss-empty", ISSUER, json!({"iss": ""})),
        ("iss-nul", ISSUER, json!({"iss": "coupon-issuer\0"})),
        ("iss-sql", ISSUER, json!({"iss": "' or true --"})),
        ("client-of-another-org", CLIENT, json!({"client_id": "other.crm", "sub": "other.crm"})),
        ("org-of-another-client", CLIENT, json!({"org_id": 2})),
        ("org-unknown", CLIENT, json!({"org_id": 3})),
        ("org-zero", CLIENT, json!({"org_id": 0})),
        ("org-negative", CLIENT, json!({"org_id": -1})),
        ("org-beyond", NO_CLIENT, json!({"org_id": u64::MAX})),
        ("client-unknown", CLIENT, json!({"client_id": "nobody"})),
        ("client-empty", CLIENT, json!({"client_id": ""})),
        ("client-upper-case", CLIENT, json!({"client_id": "CRM"})),
        ("client-with-a-space", CLIENT, json!({"client_id": "crm "})),
        ("client-with-nul", NUL, json!({"client_id": "crm\0"})),
        ("client-sql", CLIENT, json!({"client_id": "' or client_key = 'crm"})),
        ("client-is-a-till", CLIENT, json!({"client_id": "store.server"})),
        ("client-of-an-external-issuer", CLIENT, json!({"client_id": "client.external"})),
        ("client-disabled", "the token's client is disabled", json!({"client_id": "client.off"})),
        ("client-revoked", "the token was revoked", json!({"client_id": "client.revoked"})),
        ("client-reads-only", ACCESS, json!({"client_id": "reports"})),
        ("client-may-nothing", ACCESS, json!({"client_id": "client.none"})),
    ] {
        cases.push(token(name, reason, &forge.with_claims(&changes)));
    }
    cases
}

/// Parsers differ: some take the first of two equal claims, and some the last. RFC 7519 allows the last, or no token at all.
fn repeated_claims(forge: &Forge) -> Vec<Case> {
    let twice = |first: &str| {
        let text = forge.claims.to_string().replacen('{', &format!("{{{first},"), 1);
        forge.with_bytes(forge.header.to_string().as_bytes(), text.as_bytes())
    };
    let last = |last: &str| {
        let text = forge.claims.to_string();
        let text = format!("{},{last}}}", &text[..text.len() - 1]);
        forge.with_bytes(forge.header.to_string().as_bytes(), text.as_bytes())
    };
    vec![
        token("twice-client", CLIENT, &last(r#""client_id":"nobody""#)),
        token("twice-client-null", LACKS, &last(r#""client_id":null"#)),
        token("twice-org", CLIENT, &last(r#""org_id":2"#)),
        token("twice-iat", NOT_YET, &last(&format!("\"iat\":{}", forge.now() + 600))),
        token("twice-jti", LACKS, &last(r#""jti":7"#)),
        token("twice-iss-last", ISSUER, &last(r#""iss":"another""#)),
        token("twice-iss-first", UNREADABLE, &twice(r#""iss":"another""#)),
        token("twice-aud-first", UNREADABLE, &twice(r#""aud":"another""#)),
        token("twice-aud-last", UNREADABLE, &last(r#""aud":"another""#)),
        token("twice-exp-first", UNREADABLE, &twice(r#""exp":0"#)),
        token("twice-exp-last", UNREADABLE, &last(&format!("\"exp\":{}", forge.now() + 9000))),
        token("twice-sub", UNREADABLE, &last(r#""sub":"nobody""#)),
    ]
}

fn signatures(forge: &Forge) -> Vec<Case> {
    let [head, body, signature] = forge.good_parts();
    let bytes = URL_SAFE_NO_PAD.decode(signature).unwrap();
    let flipped = |at: usize| {
        let mut bytes = bytes.clone();
        bytes[at] ^= 1;
        URL_SAFE_NO_PAD.encode(bytes)
    };
    let other = forge.with_claims(&json!({"jti": "another"}));
    let (_, others) = other.rsplit_once('.').unwrap();
    let short = URL_SAFE_NO_PAD.encode(&bytes[..128]);
    // The last character has four unused bits. Base64 with any of them set is invalid.
    let loose = format!("{}{}", &signature[..341], if signature.ends_with('A') { 'B' } else { 'h' });
    let richer = unsigned(&forge.header, &but(&forge.claims, &json!({"exp": forge.now() + 86400})));
    vec![
        token("signature-empty", SIGNATURE, &format!("{head}.{body}.")),
        token("signature-missing", NOT_JWT, &format!("{head}.{body}")),
        token("signature-half", SIGNATURE, &format!("{head}.{body}.{short}")),
        token("signature-cut", UNREADABLE, &format!("{head}.{body}.{}", &signature[..341])),
        token("signature-first-bit", SIGNATURE, &format!("{head}.{body}.{}", flipped(0))),
        token("signature-middle-bit", SIGNATURE, &format!("{head}.{body}.{}", flipped(128))),
        token("signature-last-bit", SIGNATURE, &format!("{head}.{body}.{}", flipped(255))),
        token("signature-loose-bits", UNREADABLE, &format!("{head}.{body}.{loose}")),
        token("signature-of-another", SIGNATURE, &format!("{head}.{body}.{others}")),
        token("signature-zeros", SIGNATURE, &format!("{head}.{body}.{}", URL_SAFE_NO_PAD.encode([0; 256]))),
        token("signature-twice", SIGNATURE, &format!("{head}.{body}.{signature}{signature}")),
        token("signature-padded", UNREADABLE, &format!("{head}.{body}.{signature}==")),
        token("signature-standard-base64", UNREADABLE, &format!("{head}.{body}.{}", STANDARD.encode(&bytes))),
        token("signature-null", UNREADABLE, &format!("{head}.{body}.null~")),
        token("body-changed", SIGNATURE, &format!("{richer}.{signature}")),
    ]
}

fn shapes(forge: &Forge) -> Vec<Case> {
    let (good, [head, body, signature]) = (&forge.good, forge.good_parts());
    let cut = head.len() + 10;
    let spaced = format!("{} {}", &good[..cut], &good[cut..]);
    let tabbed = format!("{}\t{}", &good[..cut], &good[cut..]);
    let long = forge.with_claims(&json!({"padding": "p".repeat(6500)}));
    assert!((8193..10_240).contains(&long.len()), "{}", long.len());
    let mut cases = vec![
        token("segments-4", NOT_JWT, &format!("{good}.{signature}")),
        token("segments-4-in-front", NOT_JWT, &format!("{head}.{good}")),
        token("segments-5-as-of-jwe", NOT_JWT, &format!("{head}.{signature}.{signature}.{body}.{signature}")),
        token("segments-empty-body", CLAIMS, &format!("{head}..{signature}")),
        token("segments-empty-head", HEADER, &format!(".{body}.{signature}")),
        token("segments-all-empty", HEADER, ".."),
        token("dots", NOT_JWT, &".".repeat(4096)),
        token("a-word", NOT_JWT, "undefined"),
        token("a-json-token", NOT_JWT, r#"{"payload":"","signatures":[]}"#),
        token("quoted", NOT_JWT, &format!("\"{good}\"")),
        token("two-in-one", NOT_JWT, &format!("{good},{good}")),
        token("two-in-one-spaced", NOT_JWT, &format!("{good} {good}")),
        token("bearer-twice", NOT_JWT, &format!("Bearer Bearer {good}")),
        token("space-within", CLAIMS, &spaced),
        token("tab-within", CLAIMS, &tabbed),
        token("percent-encoded", NOT_JWT, &good.replace('.', "%2E")),
        token("9-kib-well-signed", TOO_LONG, &long),
        token("64-kib", TOO_LONG, &format!("{good}{}", "A".repeat(64 * 1024))),
        case("no-ascii", NOT_TEXT, [(TOKEN_HEADER, format!("{good}é").as_bytes())]),
        case("no-utf8", NOT_TEXT, [(TOKEN_HEADER, b"\xff\xfe\xfd")]),
    ];
    let deep = format!("{}{}", "[".repeat(2000), "]".repeat(2000));
    let header = forge.header.to_string();
    for (name, claims) in [
        ("claims-array", b"[]".as_slice()),
        ("claims-text", b"\"crm\""),
        ("claims-null", b"null"),
        ("claims-no-utf8", b"{\"iss\":\"\xff\"}"),
        ("claims-broken", b"{\"iss\":"),
        ("claims-more", b"{} {}"),
        ("claims-deep", forge.claims_text("deep", &deep).as_bytes()),
        ("claims-lone-surrogate", forge.claims_text("client_id", "\"\\ud800\"").as_bytes()),
    ] {
        cases.push(token(name, CLAIMS, &forge.with_bytes(header.as_bytes(), claims)));
    }
    cases
}

/// Good credentials that must not count, since they come twice or in the wrong header.
fn placements(forge: &Forge) -> Vec<Case> {
    let (good, till) = (forge.good.as_bytes(), basic("store.server", "server123"));
    let (till, bearer) = (till.as_bytes(), format!("Bearer {}", forge.good));
    let bearer = bearer.as_bytes();
    let joined = [till, till].join(b", ".as_slice());
    vec![
        case("none", NO_CREDENTIALS, []),
        case("authorization-empty", NO_CREDENTIALS, [("Authorization", b"")]),
        case("token-empty", NO_CREDENTIALS, [(TOKEN_HEADER, b"")]),
        case("both-empty", NO_CREDENTIALS, [(TOKEN_HEADER, b""), ("Authorization", b"")]),
        case("authorization-twice", TWICE, [("Authorization", till), ("Authorization", till)]),
        case("authorization-two-kinds", TWICE, [("Authorization", till), ("Authorization", bearer)]),
        case("authorization-joined", NOT_READ, [("Authorization", &joined)]),
        case("token-twice", TWICE, [(TOKEN_HEADER, good), (TOKEN_HEADER, good)]),
        case("token-twice-one-empty", TWICE, [(TOKEN_HEADER, b""), (TOKEN_HEADER, good)]),
        case("token-wrong-beside-a-good-till", NOT_JWT, [(TOKEN_HEADER, b"undefined"), ("Authorization", till)]),
        case("token-is-basic", NOT_JWT, [(TOKEN_HEADER, till)]),
        case("bearer-is-basic", NOT_JWT, [("Authorization", &[b"Bearer ", &till[6..]].concat())]),
        case("basic-is-a-token", NOT_READ, [("Authorization", &[b"Basic ", good].concat())]),
        case("scheme-unknown", NO_CREDENTIALS, [("Authorization", &[b"Token ", good].concat())]),
        case("scheme-digest", NO_CREDENTIALS, [("Authorization", b"Digest username=\"store.server\"")]),
        case("scheme-missing", NO_CREDENTIALS, [("Authorization", good)]),
        case("scheme-only-basic", NO_CREDENTIALS, [("Authorization", b"Basic")]),
        case("scheme-only-bearer", NO_CREDENTIALS, [("Authorization", b"Bearer ")]),
        case("scheme-with-a-tab", NO_CREDENTIALS, [("Authorization", &[b"Bearer\t", good].concat())]),
        case("scheme-glued", NO_CREDENTIALS, [("Authorization", &[b"Bearer", good].concat())]),
        case("scheme-with-a-colon", NO_CREDENTIALS, [("Authorization", &[b"Bearer: ", good].concat())]),
        case("proxy-authorization", NO_CREDENTIALS, [("Proxy-Authorization", till)]),
        case("cookie", NO_CREDENTIALS, [("Cookie", &[b"access_token=", good].concat())]),
        case("identity-in-a-header", NO_CREDENTIALS, [("X-Forwarded-User", b"store.server"), ("X-Org-Id", b"1")]),
    ]
}

fn md5_hex(text: &str) -> String {
    Md5::digest(text).iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"))
}

fn basics(forge: &Forge, stored_hash: &str) -> Vec<Case> {
    let raw = |name: &str, reason, bytes: &[u8]| {
        case(name, reason, [("Authorization", format!("Basic {}", STANDARD.encode(bytes)).as_bytes())])
    };
    let plain = |name: &str, text: &str| case(name, NOT_READ, [("Authorization", format!("Basic {text}").as_bytes())]);
    let encoded = STANDARD.encode("store.server:server123");
    vec![
        raw("basic-no-colon", NOT_READ, b"store.server"),
        raw("basic-empty", NO_CREDENTIALS, b""),
        raw("basic-only-a-space", NOT_READ, b" "),
        raw("basic-no-utf8", NOT_READ, b"store.server:\xff\xfe\xfd\xfc"),
        raw("basic-latin1", NOT_READ, b"st\xf6re:server123"),
        plain("basic-not-base64", "store.server:server123"),
        plain("basic-base64url", "c3RvcmUuc2VydmVyOi0-Pz8_"),
        plain("basic-space-within", &format!("{} {}", &encoded[..8], &encoded[8..])),
        plain("basic-more", &format!("{encoded}!")),
        raw("basic-twice-encoded", NOT_READ, encoded.as_bytes()),
        case("basic-no-ascii", NOT_TEXT, [("Authorization", "Basic störe".as_bytes())]),
        till("name-empty", UNKNOWN, "", "server123"),
        till("name-and-password-empty", UNKNOWN, "", ""),
        till("name-nul", NUL, "store.server\0", "server123"),
        till("name-upper-case", UNKNOWN, "STORE.SERVER", "server123"),
        till("name-space-behind", UNKNOWN, "store.server ", "server123"),
        till("name-space-in-front", UNKNOWN, " store.server", "server123"),
        till("name-newline", UNKNOWN, "store.server\n", "server123"),
        till("name-cyrillic", UNKNOWN, "\u{455}tore.server", "server123"),
        till("name-zero-width", UNKNOWN, "store.server\u{200b}", "server123"),
        till("name-sql", UNKNOWN, "' or till_id = 'store.server", "server123"),
        till("name-wildcard", UNKNOWN, "store%", "server123"),
        till("name-long", "the name is too long", &"n".repeat(5000), "server123"),
        till("name-unknown", UNKNOWN, "nobody", WRONG),
        till("name-of-a-client", UNKNOWN, "crm", "crm-secret"),
        till("password-wrong", SECRET, "store.server", WRONG),
        till("password-empty", SECRET, "store.server", ""),
        till("password-upper-case", SECRET, "store.server", "SERVER123"),
        till("password-space-behind", SECRET, "store.server", "server123 "),
        till("password-nul-behind", SECRET, "store.server", "server123\0"),
        till("password-colon-in-front", SECRET, "store.server", ":server123"),
        till("password-of-another", SECRET, "store.server", "office123"),
        till("password-of-a-client", SECRET, "store.server", "crm-secret"),
        till("password-is-a-token", SECRET, "store.server", &forge.good),
        till("password-md5-of-wrong", SECRET, "store.server", &md5_hex(WRONG)),
        till("password-md5-of-md5", SECRET, "store.server", &md5_hex(&md5_hex("server123"))),
        till("password-md5-cut", SECRET, "store.server", "8a16a6b70505eb1f1ff7cdc0cd5559a"),
        till("password-is-the-stored-hash", SECRET, "store.server", stored_hash),
        till("till-disabled", "the till is disabled", "till.off", "till-off-password"),
        till("till-disabled-and-wrong", SECRET, "till.off", WRONG),
        till("till-reads-only", ACCESS, "office.desk", "office123"),
        till("till-may-nothing", ACCESS, "warehouse.gate", "gate123"),
        till("till-reads-only-and-wrong", SECRET, "office.desk", WRONG),
    ]
}

/// Adds each case with a token once more, as a Bearer in `Authorization`.
fn by_either_header(cases: Vec<Case>) -> Vec<Case> {
    let mut all = Vec::new();
    for case in cases {
        if let [(TOKEN_HEADER, token)] = &case.headers[..]
            && !token.is_empty()
        {
            let bearer = [b"Bearer ", token.as_slice()].concat();
            let name = format!("{}/bearer", case.name);
            all.push(Case { name, reason: case.reason, headers: vec![("Authorization", bearer)] });
        }
        all.push(case);
    }
    all
}

/// The secrets of a case: the words of its headers, and the passwords that Basic encodes.
fn secrets(case: &Case) -> Vec<String> {
    let with_secrets = case.headers.iter().filter(|(header, _)| *header != "X-Forwarded-User");
    let texts: Vec<_> = with_secrets.map(|(_, value)| String::from_utf8_lossy(value)).collect();
    let words: Vec<String> = texts.iter().flat_map(|text| text.split(' ').map(str::to_owned)).collect();
    let decoded = words.iter().filter_map(|word| String::from_utf8(STANDARD.decode(word).ok()?).ok());
    let passwords: Vec<String> = decoded.filter_map(|pair| Some(pair.split_once(':')?.1.to_owned())).collect();
    words.into_iter().chain(passwords).filter(|secret| secret.len() >= 8).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hostile_credential_is_refused_and_only_the_log_has_the_reason() {
    let service = Service::start().await;
    let forge = Forge::new(&service).await;
    let bait = TcpListener::bind("127.0.0.1:0").unwrap();
    bait.set_nonblocking(true).unwrap();
    let bait_url = format!("http://{}/keys.json", bait.local_addr().unwrap());
    let hash = service.text("select password_hash from till where till_id = 'store.server'").await;
    let cases = [
        no_algorithm(&forge),
        other_algorithms(&forge),
        symmetric(&forge),
        header_fields(&forge),
        foreign_keys(&forge, &bait_url),
        kids(&forge),
        missing_claims(&forge),
        claims_of_a_wrong_type(&forge),
        times(&forge),
        whose(&forge),
        repeated_claims(&forge),
        signatures(&forge),
        shapes(&forge),
        placements(&forge),
        basics(&forge, &hash),
    ];
    let cases = cases.into_iter().flatten().collect::<Vec<_>>();
    assert!(cases.len() >= 300, "{} cases", cases.len());
    let cases = by_either_header(cases);
    for case in &cases {
        service.assert_refused(case).await;
    }
    assert_eq!(service.coupons().await, 0);
    assert!(bait.accept().is_err(), "the service fetches keys from a URL in a token");

    // The good token and the good password, from which the cases are made.
    let good = [(TOKEN_HEADER, forge.with_claims(&json!({})).into_bytes())];
    assert_eq!(service.request("good-token", &good).await.status(), 200);
    let till = [("Authorization", basic("store.server", "server123").into_bytes())];
    assert_eq!(service.request("good-till", &till).await.status(), 200);
    assert_eq!(service.coupons().await, 2);

    let log = service.stop();
    let denials = denials(&log);
    let reason = |case: &Case| denials.get(&case.name).cloned().unwrap_or_default();
    let wrong: Vec<_> = cases.iter().filter(|case| reason(case) != case.reason).collect();
    let wrong: Vec<_> = wrong.iter().map(|case| (&case.name, case.reason, reason(case))).collect();
    assert!(wrong.is_empty(), "the log has another reason: {wrong:#?}");
    assert_eq!(denials.len(), cases.len(), "two cases have one name, or the service denied another request");
    for case in &cases {
        for secret in secrets(case) {
            assert_unlogged(&log, &case.name, &secret);
        }
    }
}

/// A request for a token that the service must refuse: its name, the reason in the log, the key and the secret.
type TokenCase<'a> = (&'a str, &'static str, &'a str, &'a str);

/// The request in each form in which a client may send its secret. Each has a name of its own.
fn token_requests(service: &Service, (name, _, key, secret): TokenCase<'_>) -> [(String, RequestBuilder); 3] {
    let quoted = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
    let form = "grant_type=client_credentials";
    let mut post = form.to_owned();
    write!(post, "&client_id={}&client_secret={}", quoted(key), quoted(secret)).unwrap();
    let names = ["v3", "post", "basic"].map(|form| format!("{name}/{form}"));
    let v3 = service.post("/v3/oauth/token/generate", &names[0]).json(&json!({"key": key, "secret": secret}));
    let standard = |name: &str| service.post("/oauth/token", name).header("Content-Type", FORM);
    let by_post = standard(&names[1]).body(post);
    let by_basic = standard(&names[2]).body(form).header("Authorization", basic(&quoted(key), &quoted(secret)));
    let [first, second, third] = names;
    [(first, v3), (second, by_post), (third, by_basic)]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_with_hostile_credentials_gets_no_token() {
    let service = Service::start().await;
    let good = Forge::new(&service).await.good;
    let hash = service.text("select secret_hash from oauth_client where client_key = 'crm'").await;
    let disabled = "the client is disabled";
    let cases: [TokenCase<'_>; 16] = [
        ("a-till", UNKNOWN, "store.server", "server123"),
        ("a-till-by-md5", UNKNOWN, "store.server", "8a16a6b70505eb1f1ff7cdc0cd5559a7"),
        ("key-unknown", UNKNOWN, "nobody", "crm-secret"),
        ("key-empty", UNKNOWN, "", "crm-secret"),
        ("key-upper-case", UNKNOWN, "CRM", "crm-secret"),
        ("key-space-behind", UNKNOWN, "crm ", "crm-secret"),
        ("key-nul", NUL, "crm\0", "crm-secret"),
        ("key-sql", UNKNOWN, "' or client_key = 'crm", "crm-secret"),
        ("secret-wrong", SECRET, "crm", WRONG),
        ("secret-empty", SECRET, "crm", ""),
        ("secret-of-another", SECRET, "crm", "other-crm-secret"),
        ("secret-is-a-token", SECRET, "crm", &good),
        ("secret-is-the-stored-hash", SECRET, "crm", &hash),
        ("client-of-an-external-issuer", UNKNOWN, "client.external", "client-external-secret"),
        ("client-disabled", disabled, "client.off", "client-off-secret"),
        ("client-disabled-and-wrong", SECRET, "client.off", WRONG),
    ];
    let mut expected = BTreeMap::new();
    for case in cases {
        for (name, request) in token_requests(&service, case) {
            let answer = request.send().await.unwrap();
            assert_eq!(
                (answer.status().as_u16(), &answer.headers()["cache-control"]),
                (401, &"no-store".parse().unwrap()),
                "{name}"
            );
            assert!(answer.headers().contains_key("www-authenticate"), "{name}");
            let body = if name.ends_with("/v3") {
                r#"{"data":null,"errors":[{"code":320001,"message":"Invalid client key and secret"}]}"#
            } else {
                r#"{"error":"invalid_client","error_description":"the client or its secret is not valid"}"#
            };
            assert_eq!(answer.text().await.unwrap(), body, "{name}");
            // In a form, a parameter without a value counts as missing.
            let is_missing = name.ends_with("/post") && (case.2.is_empty() || case.3.is_empty());
            expected.insert(name, if is_missing { "no client credentials" } else { case.1 }.to_owned());
        }
    }
    let log = service.stop();
    assert_eq!(denials(&log), expected);
    for (name, _, _, secret) in cases.iter().filter(|case| case.3.len() >= 8) {
        assert_unlogged(&log, name, secret);
    }
}

/// Status, headers and body of an answer, without the date, which always differs.
async fn whole_answer(request: RequestBuilder) -> String {
    let answer = request.header("X-Request-Id", "the-same").send().await.unwrap();
    let mut headers = answer.headers().clone();
    headers.remove("date");
    format!("{} {headers:?} {}", answer.status(), answer.text().await.unwrap())
}

#[tokio::test]
async fn an_answer_does_not_show_whether_a_till_or_client_exists() {
    let file = format!("{ORG}{OTHERS}{}{OTHER_ORG}", repeatable_series(1, ""));
    let app = TestApp::start_with(&file, |_| {}).await;
    raw_sql(CHANGES).execute(&app.pool).await.unwrap();
    let issue = |till: &str, password: &str| {
        whole_answer(app.bare(BODY).header("Content-Type", "application/json").basic_auth(till, Some(password)))
    };
    let unknown = issue("nobody", WRONG).await;
    assert!(unknown.starts_with("401 "), "{unknown}");
    for (till, password) in [
        ("store.server", WRONG),
        ("office.desk", WRONG),
        ("warehouse.gate", WRONG),
        ("other.server", WRONG),
        ("till.off", WRONG),
        ("till.off", "till-off-password"),
        ("crm", "crm-secret"),
    ] {
        assert_eq!(issue(till, password).await, unknown, "{till} {password}");
    }
    let token_request = |path: &str, key: &str, secret: &str| match path {
        "/oauth/token" => app
            .client()
            .post(app.url(path))
            .header("Content-Type", FORM)
            .body(format!("grant_type=client_credentials&client_id={key}&client_secret={secret}")),
        _ => app.client().post(app.url(path)).json(&json!({"key": key, "secret": secret})),
    };
    for path in ["/oauth/token", "/v3/oauth/token/generate"] {
        let unknown = whole_answer(token_request(path, "nobody", WRONG)).await;
        assert!(unknown.starts_with("401 "), "{unknown}");
        for (key, secret) in [
            ("crm", WRONG),
            ("client.off", WRONG),
            ("client.off", "client-off-secret"),
            ("client.external", WRONG),
            ("store.server", "server123"),
        ] {
            assert_eq!(whole_answer(token_request(path, key, secret)).await, unknown, "{path} {key} {secret}");
        }
    }
}

/// RFC 7519 requires this of a parser that does not refuse the token.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_of_two_equal_claims_counts() {
    let service = Service::start().await;
    let forge = Forge::new(&service).await;
    let request = async |id: &str, claims: String| {
        let token = forge.with_bytes(forge.header.to_string().as_bytes(), claims.as_bytes());
        service.request(id, &[(TOKEN_HEADER, token.into_bytes())]).await.status().as_u16()
    };
    let claims = |client: &str| but(&forge.claims, &json!({"client_id": client})).to_string();
    let twice = |first: &str, last: &str| claims(last).replacen('{', &format!("{{\"client_id\":\"{first}\","), 1);
    assert_eq!(request("first-unknown", twice("nobody", "crm")).await, 200);
    assert_eq!(request("last-unknown", twice("crm", "nobody")).await, 401);
    assert_eq!(request("first-reads-only", twice("reports", "crm")).await, 200);
    assert_eq!(request("last-reads-only", twice("crm", "reports")).await, 403);
    assert_eq!(request("first-of-another-org", twice("other.crm", "crm")).await, 200);
    assert_eq!(request("last-of-another-org", twice("crm", "other.crm")).await, 401);
    assert_eq!(service.coupons().await, 3);
}

/// The HTTP library refuses such a request before the service sees it, and answers without a body.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn oversized_headers_are_refused_and_the_service_goes_on() {
    let service = Service::start().await;
    let many = "X-Filler: x\r\n".repeat(200);
    let lines = format!("Authorization: Bearer {}\r\n", "A".repeat(1024 * 1024));
    for (filler, must_answer) in [(many, true), (lines, false)] {
        let mut stream = tokio::net::TcpStream::connect(&service.address).await.unwrap();
        let head = format!("POST /v2/coupon/bulk/issue HTTP/1.1\r\nHost: {}\r\n{filler}\r\n", service.address);
        // The service may close the connection before it has read everything. Then its answer may be lost, too.
        let _ = stream.write_all(head.as_bytes()).await;
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer).await;
        let is_refused = answer.starts_with("HTTP/1.1 431 ") && answer.ends_with("\r\n\r\n");
        assert!(is_refused || (answer.is_empty() && !must_answer), "{answer}");
        let till = [("Authorization", basic("store.server", "server123").into_bytes())];
        assert_eq!(service.request("after", &till).await.status(), 200);
    }
    assert_eq!(service.coupons().await, 2);
}
