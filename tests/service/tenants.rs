//! The wall between organisations. Two of them have everything in common but their coupons: series, customers, stores and metadata
//! have the same names, and the till of each is named like the client of the other and has the same secret. Whatever one does, the
//! other must get what it would get alone. A new route must be added here.

use coupon_issuer::codes;
use coupon_issuer::model::OrgId;
use coupon_issuer::model::SeriesId;
use std::collections::BTreeSet;
use std::io::Write;

use coupon_issuer::config::Settings;
use coupon_issuer::model::Clock;
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use sqlx::Row;

use crate::authentication::{basic, but, own_key, parts, signed};
use crate::support::{TestApp, eventually, failure, outcome, outcomes, repeatable_series};

/// The source of the route table.
const ROUTE_TABLE: &str = include_str!("../../src/http/routes.rs");
const TOKEN_HEADER: &str = "X-CAP-API-OAUTH-TOKEN";
const FORM: &str = "application/x-www-form-urlencoded";

/// One of the two organisations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tenant {
    id: i64,
    /// In all texts and codes of this organisation, and in none of the other.
    mark: &'static str,
    till: &'static str,
    client: &'static str,
}

const A: Tenant = Tenant { id: 1, mark: "AYE", till: "north", client: "south" };
const B: Tenant = Tenant { id: 2, mark: "BEE", till: "south", client: "north" };
const CUSTOMERS: [&str; 2] = ["c", "d"];

/// The kind of credential that a tenant calls with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scheme {
    Password,
    Md5,
    ContractToken,
    StandardToken,
}

const EVERY_SCHEME: [Scheme; 4] = [Scheme::Password, Scheme::Md5, Scheme::ContractToken, Scheme::StandardToken];

/// The secret of a till, and of the client of the same name.
fn secret(name: &str) -> String {
    format!("the-secret-of-{name}")
}

impl Tenant {
    const fn other(self) -> Self {
        if self.id == A.id { B } else { A }
    }

    /// Its part of a file for `apply`, with these series and customers.
    fn file(self, policy: &str, more: &str) -> String {
        let Self { id, mark, till, client } = self;
        let (password, secret) = (secret(till), secret(client));
        format!(
            "[[orgs]]\nid = {id}\nname = \"{mark} Retail\"\ncustomer_policy = \"{policy}\"\ndefault_access = \"write\"\n\
             [[orgs.stores]]\nid = 10\nname = \"{mark} Downtown\"\n[[orgs.stores]]\nid = 11\nname = \"{mark} Uptown\"\n\
             [[orgs.tills]]\nid = \"{till}\"\nstore_id = 10\npassword = \"{password}\"\n\
             [[orgs.oauth_clients]]\nkey = \"{client}\"\nsecret = \"{secret}\"\ntill = \"{till}\"\naccess = \"write\"\n{more}"
        )
    }

    /// A series with the mark in every text.
    fn series(self, id: i64, settings: &str) -> String {
        let mark = self.mark;
        let codes =
            format!("discount_code = \"{mark}\"\ncoupon_prefix = \"{mark}\"\nalpha_numeric = false\n{settings}");
        repeatable_series(id, &codes)
            .replace("\"Series ", &format!("\"{mark} series "))
            .replace("\"Info ", &format!("\"{mark} "))
    }

    /// One series for each kind of limit. Series 1 to 10 are the same in both organisations, the later ones differ.
    fn all_series(self) -> String {
        let once = "is_multiple_vouchers_per_user_allowed = false";
        let (is_a, mark) = (self == A, self.mark);
        let of = |a: &str, b: &str| if is_a { a.to_owned() } else { b.to_owned() };
        let settings = [
            (1, String::new()),
            (2, "max_create = 2".to_owned()),
            (3, once.to_owned()),
            (4, format!("{once}\ndo_not_resend_existing_voucher = false")),
            (5, "mutual_exclusive_series_ids = [6]".to_owned()),
            (6, String::new()),
            (7, "min_days_between_vouchers = 30".to_owned()),
            (8, "client_handling_type = \"DISC_CODE_PIN\"".to_owned()),
            (9, format!("client_handling_type = \"GENERIC\"\ngeneric_code = \"{mark}-SPRING\"")),
            (10, "max_vouchers_per_user = 2".to_owned()),
            (11, of("store_ids = [11]", "store_ids = [10]")),
            (12, of("", "externally_managed = true")),
            (13, of("", "valid_till_date = \"2020-01-01\"")),
            (if is_a { 14 } else { 15 }, String::new()),
        ];
        settings.iter().map(|(id, settings)| self.series(*id, settings)).collect()
    }

    /// Name and value of the header that authenticates the tenant.
    async fn credential(self, app: &TestApp, scheme: Scheme) -> (&'static str, String) {
        match scheme {
            Scheme::Password => ("Authorization", basic(self.till, &secret(self.till))),
            Scheme::Md5 => {
                let md5 = coupon_issuer::auth::till_password(&secret(self.till).into());
                ("Authorization", basic(self.till, secrecy::ExposeSecret::expose_secret(&md5)))
            }
            Scheme::ContractToken => (TOKEN_HEADER, self.token(app, "/v3/oauth/token/generate").await),
            Scheme::StandardToken => ("Authorization", format!("Bearer {}", self.token(app, "/oauth/token").await)),
        }
    }

    async fn token(self, app: &TestApp, path: &str) -> String {
        let answer: Value =
            token_request(app, path, self.client, &secret(self.client)).send().await.unwrap().json().await.unwrap();
        let token = if path == "/oauth/token" { &answer["access_token"] } else { &answer["data"]["accessToken"] };
        token.as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
    }
}

fn token_request(app: &TestApp, path: &str, key: &str, secret: &str) -> RequestBuilder {
    let request = app.client().post(app.url(path));
    if path == "/oauth/token" {
        let form = format!("grant_type=client_credentials&client_id={key}&client_secret={secret}");
        request.header("Content-Type", FORM).body(form)
    } else {
        request.json(&json!({"key": key, "secret": secret}))
    }
}

/// Both organisations with all of their series, the same customers, and uploaded codes of their own.
async fn start(change: impl FnOnce(&mut Settings)) -> TestApp {
    let customers: String = CUSTOMERS
        .map(|id| format!("[[orgs.customers]]\nid = \"{id}\"\nmobile = \"9199000{}\"\nemail = \"{id}@example.com\"\nexternal_id = \"x-{id}\"\n", id.as_bytes()[0]))
        .concat();
    let file = [A, B].map(|tenant| tenant.file("open", &format!("{customers}{}", tenant.all_series())));
    let app = TestApp::start_with(&file.concat(), change).await;
    for Tenant { id, mark, .. } in [A, B] {
        let codes = format!("code,customer\n{mark}-OF-C,c\nIN-BOTH\n{mark}-POOL\n");
        assert_eq!(import(&app, id, &codes).await, (3, 0));
    }
    app
}

/// Uploads these codes into an organisation's pool, and returns how many were accepted and how many were duplicates.
async fn import(app: &TestApp, org: i64, codes: &str) -> (i64, i64) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(codes.as_bytes()).unwrap();
    let done = codes::import(&app.connect, OrgId(org), SeriesId(8), file.path(), &mut |_| {}).await.unwrap();
    (done.accepted, done.duplicates)
}

/// The outcomes of a tenant's requests, and the codes of the issued coupons.
#[derive(Debug, Default, PartialEq, Eq)]
struct Results {
    outcomes: Vec<String>,
    codes: Vec<String>,
}

struct Caller<'a> {
    app: &'a TestApp,
    tenant: Tenant,
    credential: (&'static str, String),
}

impl<'a> Caller<'a> {
    async fn new(app: &'a TestApp, tenant: Tenant, scheme: Scheme) -> Self {
        Self { app, tenant, credential: tenant.credential(app, scheme).await }
    }

    /// A request with the same metadata, account and request id as those of the other tenant.
    fn request(&self, customer: &Value, series: &[i64]) -> RequestBuilder {
        let metadata = json!({"sourceType": "CAMPAIGN", "sourceId": "7", "notes": "the same"});
        let body = json!({"seriesIds": series, "customer": customer, "metadata": metadata});
        let path = "/v2/coupon/bulk/issue?accountId=the-same";
        let request = self.app.client().post(self.app.url(path)).header("X-Request-Id", "the-same").json(&body);
        request.header(self.credential.0, &self.credential.1)
    }

    /// The answer, which must contain nothing of the other tenant.
    async fn issue(&self, customer: &Value, series: &[i64]) -> Value {
        let answer = self.request(customer, series).send().await.unwrap();
        let (status, text) = (answer.status(), answer.text().await.unwrap());
        assert_eq!(status, 200, "{text}");
        assert!(!text.contains(self.tenant.other().mark), "{text}");
        serde_json::from_str(&text).unwrap()
    }

    async fn status(&self) -> u16 {
        self.request(&json!({"id": "c"}), &[1]).send().await.unwrap().status().as_u16()
    }

    /// Requests all series for each customer until every limit is reached: the exclusive series once, the others three times.
    async fn use_up(&self) -> Results {
        let mut results = Results::default();
        for (customer, exclusive) in CUSTOMERS.into_iter().zip(self.exclusive()) {
            let others: Vec<i64> = (1..=15).filter(|id| ![5, 6].contains(id)).collect();
            for series in [vec![exclusive], vec![11 - exclusive], others.clone(), others.clone(), others] {
                let answer = self.issue(&json!({"id": customer}), &series).await;
                for entity in answer["response"].as_array().unwrap() {
                    let outcome = outcome(entity);
                    if outcome == "issued" {
                        results.codes.push(entity["result"]["code"].as_str().unwrap().to_owned());
                    }
                    results.outcomes.push(outcome);
                }
            }
        }
        results.codes.sort();
        results
    }

    /// Of the two series that exclude each other, the one that each customer requests first. Those of the other tenant begin with
    /// the other one.
    const fn exclusive(&self) -> [i64; 2] {
        if self.tenant.id == A.id { [5, 6] } else { [6, 5] }
    }
}

/// The outcomes of [`Caller::use_up`] for a tenant that is alone.
fn alone(tenant: Tenant) -> Vec<String> {
    let (differing, pool) = if tenant == A {
        (["735", "issued", "issued", "issued", "707"], ["issued", "5005"])
    } else {
        (["issued", "777", "712", "707", "issued"], ["issued", "5005"])
    };
    let mut all = Vec::new();
    for (customer, pool) in pool.into_iter().enumerate() {
        all.extend(["issued", "709"]);
        for round in 0..3 {
            let (first, later) = (round == 0, round > 0);
            let cap = if customer == 0 && round < 2 { "issued" } else { "5001" };
            let once = if first { "issued" } else { "709" };
            let resent = if later { "resent" } else { "issued" };
            let maximum = if round < 2 { "issued" } else { "730" };
            all.extend(["issued", cap, once, resent, once, pool, "issued", maximum]);
            all.extend(differing);
        }
    }
    all.into_iter().map(str::to_owned).collect()
}

/// The tenant got what it would get alone, and the database has exactly its coupons.
async fn assert_isolated(app: &TestApp, tenant: Tenant, results: &Results) {
    assert_eq!(results.outcomes, alone(tenant), "{tenant:?}");
    let rows = sqlx::query(
        "select code, till_id, store_id, account_id, metadata ->> 'notes' as notes, request_id from issued_coupon
          where org_id = $1 order by code collate \"C\"",
    )
    .bind(tenant.id)
    .fetch_all(&app.pool)
    .await
    .unwrap();
    let codes: Vec<String> = rows.iter().map(|row| row.get("code")).collect();
    assert_eq!(codes, results.codes, "{tenant:?}");
    assert!(codes.iter().all(|code| code.starts_with(tenant.mark) || code == "IN-BOTH"), "{codes:?}");
    let pool: Vec<_> = codes.iter().filter(|code| code.contains('-') && !code.ends_with("SPRING")).collect();
    assert_eq!(pool, [&format!("{}-OF-C", tenant.mark), &format!("{}-POOL", tenant.mark), "IN-BOTH"]);
    for row in &rows {
        assert_eq!(row.get::<&str, _>("till_id"), tenant.till);
        assert_eq!(row.get::<i64, _>("store_id"), 10);
        let same = [row.get::<&str, _>("account_id"), row.get("notes"), row.get("request_id")];
        assert_eq!(same, ["the-same", "the same", "the-same"]);
    }
    let now = app.clock.now();
    let status = codes::status(&app.connect, Some(OrgId(tenant.id)), None, now).await.unwrap().to_string();
    assert!(status.contains(tenant.mark) && !status.contains(tenant.other().mark), "{status}");
}

#[tokio::test]
async fn limits_that_one_organisation_has_used_up_are_unused_for_the_other() {
    for (scheme, first) in EVERY_SCHEME.into_iter().zip([A, B, A, B]) {
        let app = start(|_| {}).await;
        for tenant in [first, first.other()] {
            let caller = Caller::new(&app, tenant, scheme).await;
            assert_isolated(&app, tenant, &caller.use_up().await).await;
        }
        assert_eq!(app.count("select from coupon where org_id not in (1, 2)").await, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_organisations_that_issue_concurrently_stay_separate() {
    for (one, another) in [(Scheme::Password, Scheme::StandardToken), (Scheme::ContractToken, Scheme::Md5)] {
        let app = start(|_| {}).await;
        let (a, b) = (Caller::new(&app, A, one).await, Caller::new(&app, B, another).await);
        let (of_a, of_b) = tokio::join!(a.use_up(), b.use_up());
        assert_isolated(&app, A, &of_a).await;
        assert_isolated(&app, B, &of_b).await;
    }
}

/// Method and path of each route: those of the OpenAPI document, and those that the route table keeps out of it.
fn routes() -> Vec<(String, String)> {
    let settings = Settings::load(None).unwrap();
    let document: Value = serde_json::from_str(&coupon_issuer::http::document(&settings.http).unwrap()).unwrap();
    let mut routes = undocumented_routes();
    for (path, item) in document["paths"].as_object().unwrap() {
        routes.extend(item.as_object().unwrap().keys().map(|method| (method.clone(), path.clone())));
    }
    routes
}

/// Method and path of each route that is not in the OpenAPI document, as the route table spells them.
pub fn undocumented_routes() -> Vec<(String, String)> {
    for call in ["nest(", "route_service(", "nest_service(", "fallback_service("] {
        assert!(!ROUTE_TABLE.contains(&format!(".{call}")), "this test does not know routes that are added by {call}");
    }
    for merged in ROUTE_TABLE.split(".merge(").skip(1) {
        let list = merged.split(|letter: char| !letter.is_alphabetic()).next().unwrap();
        assert!(["write", "read", "public"].contains(&list), "{list} is not a list of the route table");
    }
    let code = ROUTE_TABLE.split(".route(").skip(1);
    let routes = code.map(|rest| {
        let (path, rest) = rest.split_once(',').unwrap();
        (rest.split('(').next().unwrap().trim().to_owned(), path.trim().trim_matches('"').to_owned())
    });
    routes.collect()
}

#[tokio::test]
async fn no_route_reveals_one_organisation_to_the_other() {
    let app = start(|_| {}).await;
    let routes = routes();
    assert!(routes.len() >= 7, "{routes:?}");
    for (method, path) in routes {
        match (&*method, &*path) {
            ("post", "/v2/coupon/bulk/issue") => issues_own_coupons(&app).await,
            ("get", "/v2/coupon/bulk/issue/{key}") => returns_own_receipts(&app).await,
            ("get", "paths::CONSOLE") => shows_own_activity().await,
            ("post", "/v3/oauth/token/generate" | "/oauth/token") => grants_own_tokens(&app, &path).await,
            ("get", "/healthz" | "/readyz" | "/openapi.json" | "/docs") => answers_everyone_alike(&app, &path).await,
            ("get", "/docs/{file}") => answers_everyone_alike(&app, "/docs/docs.js").await,
            ("get", "/.well-known/oauth-authorization-server" | "/.well-known/jwks.json") => {
                answers_everyone_alike(&app, &path).await;
            }
            _ => panic!("{method} {path} is a new route: what does it tell one organisation of another?"),
        }
    }
}

async fn issues_own_coupons(app: &TestApp) {
    for scheme in EVERY_SCHEME {
        for tenant in [A, B] {
            let caller = Caller::new(app, tenant, scheme).await;
            let answer = caller.issue(&json!({"id": "c"}), &[1, 9, 14, 15]).await;
            let of_one = if tenant == A { ["issued", "707"] } else { ["707", "issued"] };
            assert_eq!(outcomes(&answer), [["issued", "issued"], of_one].concat());
            let result = &answer["response"][0]["result"];
            assert_eq!(result["description"], format!("{} series 1", tenant.mark));
            assert_eq!(
                (&result["discountCode"], &result["detailedInfo"]),
                (&json!(tenant.mark), &json!(format!("{} 1", tenant.mark)))
            );
            assert_eq!(answer["response"][1]["result"]["code"], format!("{}-SPRING", tenant.mark));
        }
    }
    assert_eq!(app.count("select from issued_coupon where org_id = 1 and till_id = 'north'").await, 12);
    assert_eq!(app.count("select from issued_coupon where org_id = 2 and till_id = 'south'").await, 12);
    assert_eq!(app.count("select from coupon").await, 24);

    // With a password of one and a token of the other, the token decides on the organisation.
    let token = B.token(app, "/oauth/token").await;
    let till = Caller::new(app, A, Scheme::Password).await;
    let both = till.request(&json!({"id": "c"}), &[15]).header(TOKEN_HEADER, token);
    assert_eq!(outcomes(&both.send().await.unwrap().json().await.unwrap()), ["issued"]);
    assert_eq!(app.count("select from coupon where org_id = 2").await, 13);
}

async fn returns_own_receipts(app: &TestApp) {
    for (tenant, key) in [(A, "of-both"), (B, "of-both"), (A, "of-A"), (B, "of-B")] {
        let caller = Caller::new(app, tenant, Scheme::Password).await;
        let request = caller.request(&json!({"id": key}), &[1]).header("Idempotency-Key", key);
        assert!(request.send().await.unwrap().headers().get("idempotent-replayed").is_none(), "{key}");
    }
    for scheme in EVERY_SCHEME {
        for (tenant, own, others) in [(A, "of-A", "of-B"), (B, "of-B", "of-A")] {
            let (header, credential) = tenant.credential(app, scheme).await;
            let get = |key: &str| {
                let url = app.url(&format!("/v2/coupon/bulk/issue/{key}"));
                app.client().get(url).header(header, &credential).send()
            };
            for key in ["of-both", own] {
                let receipt: Value = get(key).await.unwrap().json().await.unwrap();
                assert_eq!(receipt["response"][0]["result"]["discountCode"], tenant.mark, "{receipt}");
            }
            let theirs = get(others).await.unwrap();
            assert_eq!(failure(theirs).await, failure(get("nobodys").await.unwrap()).await);
        }
    }
}

/// Whatever the query, the page has no text, no count and no failure of the other organisation.
async fn shows_own_activity() {
    let app = start(|settings| settings.activity.flush = std::time::Duration::from_millis(20)).await;
    for (tenant, times) in [(A, 2), (B, 3)] {
        let caller = Caller::new(&app, tenant, Scheme::Password).await;
        for number in 0..times {
            let body = json!({"seriesIds": [1, 14, 15], "customer": {"id": "c"}});
            let request = app.client().post(app.url("/v2/coupon/bulk/issue")).json(&body);
            let request = request.header(caller.credential.0, &caller.credential.1);
            request.header("X-Request-Id", format!("of-{}-{number}", tenant.mark)).send().await.unwrap();
        }
    }
    for scheme in EVERY_SCHEME {
        for (tenant, issued, refused, own, others) in [(A, 4, 2, 14, 15), (B, 6, 3, 15, 14)] {
            let (header, credential) = tenant.credential(&app, scheme).await;
            let ask = async |query: &str| {
                let url = app.url(&format!("/console{query}"));
                app.client().get(url).header(header, &credential).send().await.unwrap().text().await.unwrap()
            };
            let counts = format!("{issued} coupons issued, most of them at 10:00 ({issued}); {refused} refused.");
            eventually("the page has the tenant's counts", async || ask("").await.contains(&counts)).await;
            let theirs = format!("request=of-{}-1", tenant.other().mark);
            for query in ["", "?series=1,14,15", &format!("?{theirs}"), "?after=idle.0", "?org=2&org_id=2"] {
                let page = ask(query).await.replace(&format!("value=\"{}\"", &theirs[8..]), "");
                assert!(
                    page.contains(&format!("{} Retail", tenant.mark)) && !page.contains(tenant.other().mark),
                    "{page}"
                );
            }
            let page = ask("?series=14,15").await;
            assert!(page.contains(&format!("id=\"series-{own}\"")) && page.contains(&format!("no series {others}.")));
            assert_eq!(page.matches(&format!("of-{}", tenant.mark)).count(), refused, "{page}");
        }
    }
}

async fn grants_own_tokens(app: &TestApp, path: &str) {
    for tenant in [A, B] {
        let claims = parts(&tenant.token(app, path).await).1;
        assert_eq!((&claims["org_id"], &claims["client_id"]), (&json!(tenant.id), &json!(tenant.client)));
        assert_eq!(claims["sub"], tenant.client);
        let text = claims.to_string();
        assert!(!text.contains(A.mark) && !text.contains(B.mark), "{text}");
        let others = token_request(app, path, tenant.client, &secret(tenant.other().client)).send().await.unwrap();
        assert_eq!(others.status(), 401, "{path}");
    }
}

/// The answer is the same with every credential and without one.
async fn answers_everyone_alike(app: &TestApp, path: &str) {
    let expected = app.client().get(app.url(path)).send().await.unwrap().text().await.unwrap();
    for secret in [A.mark, B.mark, "north", "south", "org_id"] {
        assert!(!expected.contains(secret), "{expected}");
    }
    for scheme in EVERY_SCHEME {
        for tenant in [A, B] {
            let (header, credential) = tenant.credential(app, scheme).await;
            let answer = app.client().get(app.url(path)).header(header, credential).send().await.unwrap();
            assert_eq!((answer.status().as_u16(), answer.text().await.unwrap()), (200, expected.clone()), "{path}");
        }
    }
}

#[tokio::test]
async fn an_unknown_path_or_method_is_answered_alike_for_every_caller() {
    let app = start(|_| {}).await;
    for scheme in EVERY_SCHEME {
        for tenant in [A, B] {
            let (header, credential) = tenant.credential(&app, scheme).await;
            for (method, path, status) in [
                (Method::DELETE, "/v2/coupon/bulk/issue", 405),
                (Method::GET, "/v2/coupon/bulk/issue", 405),
                (Method::POST, "/v2/coupon/bulk/issue/2", 405),
                (Method::GET, "/v2/coupon/bulk/issue/2", 404),
                (Method::GET, "/v2/coupon/bulk/issue/2/3", 404),
                (Method::POST, "/2/v2/coupon/bulk/issue", 404),
            ] {
                let request = app.client().request(method, app.url(path)).header(header, &credential);
                assert_eq!(failure(request.send().await.unwrap()).await.0, status, "{path}");
            }
        }
    }
}

/// Even if the service's own key signs it, a token must name the organisation of its client.
#[tokio::test]
async fn a_token_that_names_one_organisation_and_a_client_of_the_other_is_401() {
    let app = start(|_| {}).await;
    let key = own_key(&app).await;
    for tenant in [A, B] {
        let other = tenant.other();
        let token = tenant.token(&app, "/oauth/token").await;
        let (header, claims) = parts(&token);
        let issue = async |changes: Value| {
            let credential = (TOKEN_HEADER, signed(&key, &header, &but(&claims, &changes)));
            Caller { app: &app, tenant, credential }.status().await
        };
        assert_eq!(issue(json!({"org_id": other.id})).await, 401);
        assert_eq!(issue(json!({"client_id": other.client})).await, 401);
        assert_eq!(issue(json!({"client_id": other.client, "sub": other.client})).await, 401);
        assert_eq!(issue(json!({"org_id": other.id, "sub": other.client})).await, 401);
        // The tenant's till has the name of the other's client, so this token is consistent.
        assert_eq!(issue(json!({"org_id": other.id, "client_id": tenant.till})).await, 200);
        assert_eq!(issue(json!({"client_id": tenant.till})).await, 401);
        assert_eq!(issue(json!({})).await, 200);
        let others = other.token(&app, "/oauth/token").await;
        let [head, _, signature] = token.split('.').collect::<Vec<_>>()[..] else { panic!("{token}") };
        let mixed = format!("{head}.{}.{signature}", others.split('.').nth(1).unwrap());
        assert_eq!(Caller { app: &app, tenant, credential: (TOKEN_HEADER, mixed) }.status().await, 401);
    }
    assert_eq!(app.count("select from coupon where org_id = 1").await, 2);
    assert_eq!(app.count("select from coupon where org_id = 2").await, 2);
}

/// Issued codes, pooled codes and generic codes of one organisation are new to the other.
#[tokio::test]
async fn a_code_exists_in_its_own_organisation_only() {
    let app = start(|_| {}).await;
    let results = Caller::new(&app, A, Scheme::Password).await.use_up().await;
    let codes: BTreeSet<&String> = results.codes.iter().filter(|code| *code != "IN-BOTH").collect();
    let text = codes.iter().map(|code| code.as_str()).collect::<Vec<_>>().join("\n");
    let count = i64::try_from(codes.len()).unwrap();
    assert!(codes.contains(&"AYE-SPRING".to_owned()) && codes.contains(&"AYE-OF-C".to_owned()));
    assert_eq!(import(&app, A.id, &text).await, (0, count));
    assert_eq!(import(&app, B.id, &text).await, (count, 0));
}

/// Compared with B, the mobiles of `x` and `y` are swapped.
const CUSTOMERS_OF_A: &str = r#"
[[orgs.customers]]
id = "x"
mobile = "919900000002"
email = "one@example.com"
[[orgs.customers]]
id = "y"
mobile = "919900000001"
email = "two@example.com"
[[orgs.customers]]
id = "only-here"
mobile = "919900000003"
email = "three@example.com"
external_id = "x-3"
"#;
const CUSTOMERS_OF_B: &str = r#"
[[orgs.customers]]
id = "x"
mobile = "919900000001"
email = "one@example.com"
external_id = "x-1"
[[orgs.customers]]
id = "y"
mobile = "919900000002"
email = "two@example.com"
external_id = "x-2"
"#;

#[tokio::test]
async fn a_customer_is_looked_up_in_the_callers_organisation_only() {
    let file =
        A.file("open", CUSTOMERS_OF_A) + &A.series(1, "") + &B.file("registered", CUSTOMERS_OF_B) + &B.series(1, "");
    let app = TestApp::start_with(&file, |_| {}).await;
    let (a, b) = (Caller::new(&app, A, Scheme::Password).await, Caller::new(&app, B, Scheme::ContractToken).await);
    let (mobile_1, mobile_2) = (json!({"mobile": "+91 99000 00001"}), json!({"mobile": "919900000002"}));
    for (caller, customer, expected) in [
        (&a, &mobile_1, "y"),
        (&b, &mobile_1, "x"),
        (&a, &mobile_2, "x"),
        (&b, &mobile_2, "y"),
        (&a, &json!({"mobile": "919900000001", "email": "two@example.com"}), "y"),
        (&a, &json!({"id": "x", "mobile": "919900000002", "email": "ONE@example.com"}), "x"),
        (&b, &json!({"mobile": "919900000001", "externalId": "x-1"}), "x"),
        // A does not know this external id yet, so `y` of A gets it. In B it stays with `x`.
        (&a, &json!({"id": "y", "externalId": "x-1"}), "y"),
        (&b, &json!({"externalId": "x-1"}), "x"),
    ] {
        let answer = caller.issue(customer, &[1]).await;
        let row = sqlx::query_scalar("select org_id::text || ' ' || customer_id from coupon where code = $1")
            .bind(answer["response"][0]["result"]["code"].as_str().unwrap());
        let whose: String = row.fetch_one(&app.pool).await.unwrap();
        assert_eq!(whose, format!("{} {expected}", caller.tenant.id), "{customer}");
    }
    for (caller, customer, status, code) in [
        (&b, json!({"mobile": "919900000001", "email": "two@example.com"}), 400, 721),
        (&b, json!({"id": "x", "mobile": "919900000002"}), 400, 721),
        (&a, json!({"id": "x", "mobile": "919900000001"}), 400, 721),
        (&b, json!({"id": "only-here"}), 400, 701),
        (&b, json!({"mobile": "919900000003"}), 400, 701),
        (&b, json!({"email": "three@example.com"}), 400, 701),
        (&b, json!({"externalId": "x-3"}), 400, 701),
    ] {
        let refused = failure(caller.request(&customer, &[1]).send().await.unwrap()).await;
        assert_eq!((refused.0, refused.1), (status, code), "{customer}");
    }
    assert_eq!(app.count("select from coupon").await, 9);
    // The new customer is in the caller's organisation, and the customers of the other have not changed.
    a.issue(&json!({"email": "new@example.com", "externalId": "x-2"}), &[1]).await;
    assert_eq!(app.count("select from customer where org_id = 1").await, 4);
    assert_eq!(app.count("select from customer where org_id = 2").await, 2);
    let theirs = "select from customer where org_id = 2 and registered and (customer_id, mobile, email, external_id) in
                  (('x', '919900000001', 'one@example.com', 'x-1'), ('y', '919900000002', 'two@example.com', 'x-2'))";
    assert_eq!(app.count(theirs).await, 2);
}

/// Both call from the same address.
#[tokio::test]
async fn a_till_and_a_client_of_the_same_name_share_no_rate_limit() {
    let app = start(|settings| {
        settings.rate_limit.per_minute = 3;
        settings.rate_limit.failures_per_minute = 2;
        settings.rate_limit.failures_per_minute_by_address = 1000;
    })
    .await;
    // The request for the token counts, too.
    let client = Caller::new(&app, B, Scheme::StandardToken).await;
    let statuses = [client.status().await, client.status().await, client.status().await];
    assert_eq!(statuses, [200, 200, 429]);
    let till = Caller::new(&app, A, Scheme::Password).await;
    let statuses = [till.status().await, till.status().await, till.status().await, till.status().await];
    assert_eq!(statuses, [200, 200, 200, 429]);

    let app = start(|settings| settings.rate_limit.failures_per_minute = 2).await;
    for expected in [401, 401, 429] {
        let wrong = token_request(&app, "/v3/oauth/token/generate", B.client, "wrong").send().await.unwrap();
        assert_eq!(wrong.status(), expected);
    }
    assert_eq!(Caller::new(&app, A, Scheme::Password).await.status().await, 200);
}

#[tokio::test]
async fn disabling_a_till_and_a_client_leaves_those_of_the_same_names_enabled() {
    let app = start(|_| {}).await;
    let (a_till, a_client) =
        (Caller::new(&app, A, Scheme::Password).await, Caller::new(&app, A, Scheme::ContractToken).await);
    let (b_till, b_client) =
        (Caller::new(&app, B, Scheme::Password).await, Caller::new(&app, B, Scheme::ContractToken).await);
    for caller in [&a_till, &a_client, &b_till, &b_client] {
        assert_eq!(caller.status().await, 200);
    }
    let changes = "update till set disabled = true where org_id = 2;
                   update oauth_client set disabled = true where org_id = 2;
                   select pg_notify('coupon_issuer_credentials', '')";
    sqlx::raw_sql(changes).execute(&app.pool).await.unwrap();
    eventually("the disabled credentials are refused", async || {
        (b_till.status().await, b_client.status().await) == (401, 401)
    })
    .await;
    assert_eq!((a_till.status().await, a_client.status().await), (200, 200));
}
