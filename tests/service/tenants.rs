//! The wall between organisations: two that have everything in common but their coupons. Series, customers, stores and
//! metadata have the same names in both, and each one's till is called as the other's client, with the same secret.
//! Whatever one does, the other gets what it would get if it were alone. A new route must be added here.

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
use crate::support::{TestApp, eventually, failure, outcome, outcomes, series};

/// The route table itself: what is in it is read from there.
const ROUTE_TABLE: &str = include_str!("../../src/http/mod.rs");
const TOKEN_HEADER: &str = "X-CAP-API-OAUTH-TOKEN";
const FORM: &str = "application/x-www-form-urlencoded";

/// One of the two organisations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tenant {
    id: i64,
    /// In all of its texts and codes, and in nobody else's.
    mark: &'static str,
    till: &'static str,
    client: &'static str,
}

const A: Tenant = Tenant { id: 1, mark: "AYE", till: "north", client: "south" };
const B: Tenant = Tenant { id: 2, mark: "BEE", till: "south", client: "north" };
const CUSTOMERS: [&str; 2] = ["c", "d"];

/// By which credential a tenant calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Password,
    Md5,
    ContractToken,
    StandardToken,
}

const EVERY_WAY: [By; 4] = [By::Password, By::Md5, By::ContractToken, By::StandardToken];

/// Of a till and of the client of its name alike.
fn secret(name: &str) -> String {
    format!("the-secret-of-{name}")
}

impl Tenant {
    const fn other(self) -> Self {
        if self.id == A.id { B } else { A }
    }

    /// Its part of the file of `apply`, with these series and customers.
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

    /// A series whose every text says whose it is.
    fn series(self, id: i64, settings: &str) -> String {
        let mark = self.mark;
        let codes =
            format!("discount_code = \"{mark}\"\ncoupon_prefix = \"{mark}\"\nalpha_numeric = false\n{settings}");
        series(id, &codes).replace("\"Series ", &format!("\"{mark} series ")).replace("\"Info ", &format!("\"{mark} "))
    }

    /// Series of every kind of limit, under the same numbers as the other's; from 11 on they differ.
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

    /// The name and the secret that it authenticates with.
    async fn credential(self, app: &TestApp, by: By) -> (&'static str, String) {
        match by {
            By::Password => ("Authorization", basic(self.till, &secret(self.till))),
            By::Md5 => {
                let md5 = coupon_issuer::auth::till_password(&secret(self.till).into());
                ("Authorization", basic(self.till, secrecy::ExposeSecret::expose_secret(&md5)))
            }
            By::ContractToken => (TOKEN_HEADER, self.token(app, "/v3/oauth/token/generate").await),
            By::StandardToken => ("Authorization", format!("Bearer {}", self.token(app, "/oauth/token").await)),
        }
    }

    async fn token(self, app: &TestApp, path: &str) -> String {
        let answer: Value =
            ask_token(app, path, self.client, &secret(self.client)).send().await.unwrap().json().await.unwrap();
        let token = if path == "/oauth/token" { &answer["access_token"] } else { &answer["data"]["accessToken"] };
        token.as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
    }
}

fn ask_token(app: &TestApp, path: &str, key: &str, secret: &str) -> RequestBuilder {
    let request = app.client().post(app.url(path));
    if path == "/oauth/token" {
        let form = format!("grant_type=client_credentials&client_id={key}&client_secret={secret}");
        request.header("Content-Type", FORM).body(form)
    } else {
        request.json(&json!({"key": key, "secret": secret}))
    }
}

/// Both organisations, with all of their series and the same customers, and each with codes of its own to give out.
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

/// Uploads these codes into an organisation's pool: how many were accepted, and how many were there.
async fn import(app: &TestApp, org: i64, codes: &str) -> (i64, i64) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(codes.as_bytes()).unwrap();
    let done = codes::import(&app.connect, OrgId(org), SeriesId(8), file.path(), &mut |_| {}).await.unwrap();
    (done.accepted, done.duplicates)
}

/// What a tenant got: the outcome for each series asked for, and the codes of the coupons that were issued.
#[derive(Debug, Default, PartialEq, Eq)]
struct Got {
    outcomes: Vec<String>,
    codes: Vec<String>,
}

/// A caller of a tenant.
struct Caller<'a> {
    app: &'a TestApp,
    tenant: Tenant,
    credential: (&'static str, String),
}

impl<'a> Caller<'a> {
    async fn new(app: &'a TestApp, tenant: Tenant, by: By) -> Self {
        Self { app, tenant, credential: tenant.credential(app, by).await }
    }

    /// A request that names the same as the other tenant's do.
    fn request(&self, customer: &Value, series: &[i64]) -> RequestBuilder {
        let metadata = json!({"sourceType": "CAMPAIGN", "sourceId": "7", "notes": "the same"});
        let body = json!({"seriesIds": series, "customer": customer, "metadata": metadata});
        let path = "/v2/coupon/bulk/issue?accountId=the-same";
        let request = self.app.client().post(self.app.url(path)).header("X-Request-Id", "the-same").json(&body);
        request.header(self.credential.0, &self.credential.1)
    }

    /// The answer, which must hold nothing of the other tenant.
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

    /// Uses all of the series up, three times over for each customer, and keeps what it got.
    async fn use_up(&self) -> Got {
        let mut got = Got::default();
        for (customer, exclusive) in CUSTOMERS.into_iter().zip(self.exclusive()) {
            let others: Vec<i64> = (1..=15).filter(|id| ![5, 6].contains(id)).collect();
            for series in [vec![exclusive], vec![11 - exclusive], others.clone(), others.clone(), others] {
                let answer = self.issue(&json!({"id": customer}), &series).await;
                for entity in answer["response"].as_array().unwrap() {
                    let outcome = outcome(entity);
                    if outcome == "issued" {
                        got.codes.push(entity["result"]["code"].as_str().unwrap().to_owned());
                    }
                    got.outcomes.push(outcome);
                }
            }
        }
        got.codes.sort();
        got
    }

    /// Of the two series that exclude each other, the one that each customer asks for first. The other tenant's do the
    /// opposite.
    const fn exclusive(&self) -> [i64; 2] {
        if self.tenant.id == A.id { [5, 6] } else { [6, 5] }
    }
}

/// What a tenant gets that is alone in the world.
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

/// What a tenant got and what is stored of it is its own, and all of it.
async fn is_its_own(app: &TestApp, tenant: Tenant, got: &Got) {
    assert_eq!(got.outcomes, alone(tenant), "{tenant:?}");
    let rows = sqlx::query(
        "select code, till_id, store_id, account_id, metadata ->> 'notes' as notes, request_id from issued_coupon
          where org_id = $1 order by code collate \"C\"",
    )
    .bind(tenant.id)
    .fetch_all(&app.pool)
    .await
    .unwrap();
    let codes: Vec<String> = rows.iter().map(|row| row.get("code")).collect();
    assert_eq!(codes, got.codes, "{tenant:?}");
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
async fn what_one_organisation_has_used_up_is_there_for_the_other() {
    for (by, first) in EVERY_WAY.into_iter().zip([A, B, A, B]) {
        let app = start(|_| {}).await;
        for tenant in [first, first.other()] {
            let caller = Caller::new(&app, tenant, by).await;
            is_its_own(&app, tenant, &caller.use_up().await).await;
        }
        assert_eq!(app.count("select from coupon where org_id not in (1, 2)").await, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_organisations_that_issue_at_once_do_not_meet() {
    for (one, another) in [(By::Password, By::StandardToken), (By::ContractToken, By::Md5)] {
        let app = start(|_| {}).await;
        let (a, b) = (Caller::new(&app, A, one).await, Caller::new(&app, B, another).await);
        let (of_a, of_b) = tokio::join!(a.use_up(), b.use_up());
        is_its_own(&app, A, &of_a).await;
        is_its_own(&app, B, &of_b).await;
    }
}

/// Method and path of each route, as the route table spells them.
pub fn routes() -> Vec<(String, String)> {
    let another_way = ["nest(", "merge(", "route_service(", "nest_service(", "fallback_service("];
    for call in another_way {
        assert!(!ROUTE_TABLE.contains(&format!(".{call}")), "{call} is a way to add routes that is not looked at here");
    }
    let code = ROUTE_TABLE.split(".route(").skip(1);
    let routes = code.map(|rest| {
        let (path, rest) = rest.split_once(',').unwrap();
        (rest.split('(').next().unwrap().trim().to_owned(), path.trim().trim_matches('"').to_owned())
    });
    routes.collect()
}

/// Every route there is, as every caller there is.
#[tokio::test]
async fn no_route_tells_one_organisation_of_the_other() {
    let app = start(|_| {}).await;
    let routes = routes();
    assert!(routes.len() >= 7, "{routes:?}");
    for (method, path) in routes {
        match (&*method, &*path) {
            ("post", "ISSUE_PATH") => issues_its_own(&app).await,
            ("get", "RECEIPT_PATH") => tells_of_its_own_requests(&app).await,
            ("get", "console::PATH") => shows_its_own_activity().await,
            ("post", "/v3/oauth/token/generate" | "/oauth/token") => gives_out_its_own_tokens(&app, &path).await,
            ("get", "/healthz" | "/readyz" | "/openapi.json" | "/docs") => tells_everyone_the_same(&app, &path).await,
            ("get", "/docs/{file}") => tells_everyone_the_same(&app, "/docs/docs.js").await,
            ("get", "oauth::METADATA_PATH") => {
                tells_everyone_the_same(&app, "/.well-known/oauth-authorization-server").await;
            }
            ("get", "oauth::KEYS_PATH") => tells_everyone_the_same(&app, "/.well-known/jwks.json").await,
            _ => panic!("{method} {path} is a new route: what does it tell one organisation of another?"),
        }
    }
}

async fn issues_its_own(app: &TestApp) {
    for by in EVERY_WAY {
        for tenant in [A, B] {
            let caller = Caller::new(app, tenant, by).await;
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

    // With credentials of both, the token's organisation is the caller's, and nothing is the other's.
    let token = B.token(app, "/oauth/token").await;
    let till = Caller::new(app, A, By::Password).await;
    let both = till.request(&json!({"id": "c"}), &[15]).header(TOKEN_HEADER, token);
    assert_eq!(outcomes(&both.send().await.unwrap().json().await.unwrap()), ["issued"]);
    assert_eq!(app.count("select from coupon where org_id = 2").await, 13);
}

async fn tells_of_its_own_requests(app: &TestApp) {
    for (tenant, key) in [(A, "of-both"), (B, "of-both"), (A, "of-A"), (B, "of-B")] {
        let caller = Caller::new(app, tenant, By::Password).await;
        let request = caller.request(&json!({"id": key}), &[1]).header("Idempotency-Key", key);
        assert!(request.send().await.unwrap().headers().get("idempotent-replayed").is_none(), "{key}");
    }
    for by in EVERY_WAY {
        for (tenant, own, others) in [(A, "of-A", "of-B"), (B, "of-B", "of-A")] {
            let (header, credential) = tenant.credential(app, by).await;
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

/// The page has nothing of the other: neither its texts nor its counts nor its failures, whatever is asked for.
async fn shows_its_own_activity() {
    let app = start(|settings| settings.activity.flush = std::time::Duration::from_millis(20)).await;
    for (tenant, times) in [(A, 2), (B, 3)] {
        let caller = Caller::new(&app, tenant, By::Password).await;
        for number in 0..times {
            let body = json!({"seriesIds": [1, 14, 15], "customer": {"id": "c"}});
            let request = app.client().post(app.url("/v2/coupon/bulk/issue")).json(&body);
            let request = request.header(caller.credential.0, &caller.credential.1);
            request.header("X-Request-Id", format!("of-{}-{number}", tenant.mark)).send().await.unwrap();
        }
    }
    for by in EVERY_WAY {
        for (tenant, issued, refused, own, others) in [(A, 4, 2, 14, 15), (B, 6, 3, 15, 14)] {
            let (header, credential) = tenant.credential(&app, by).await;
            let ask = async |query: &str| {
                let url = app.url(&format!("/console{query}"));
                app.client().get(url).header(header, &credential).send().await.unwrap().text().await.unwrap()
            };
            let counts = format!("{issued} coupons issued, most of them at 10:00 ({issued}); {refused} refused.");
            eventually("its counts", async || ask("").await.contains(&counts)).await;
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

async fn gives_out_its_own_tokens(app: &TestApp, path: &str) {
    for tenant in [A, B] {
        let claims = parts(&tenant.token(app, path).await).1;
        assert_eq!((&claims["org_id"], &claims["client_id"]), (&json!(tenant.id), &json!(tenant.client)));
        assert_eq!(claims["sub"], tenant.client);
        let told = claims.to_string();
        assert!(!told.contains(A.mark) && !told.contains(B.mark), "{told}");
        let others = ask_token(app, path, tenant.client, &secret(tenant.other().client)).send().await.unwrap();
        assert_eq!(others.status(), 401, "{path}");
    }
}

/// Whoever asks, and without credentials.
async fn tells_everyone_the_same(app: &TestApp, path: &str) {
    let expected = app.client().get(app.url(path)).send().await.unwrap().text().await.unwrap();
    for secret in [A.mark, B.mark, "north", "south", "org_id"] {
        assert!(!expected.contains(secret), "{expected}");
    }
    for by in EVERY_WAY {
        for tenant in [A, B] {
            let (header, credential) = tenant.credential(app, by).await;
            let answer = app.client().get(app.url(path)).header(header, credential).send().await.unwrap();
            assert_eq!((answer.status().as_u16(), answer.text().await.unwrap()), (200, expected.clone()), "{path}");
        }
    }
}

/// What is no route, or not by this method, tells no more to one caller than to another.
#[tokio::test]
async fn what_is_not_there_is_not_there_for_anyone() {
    let app = start(|_| {}).await;
    for by in EVERY_WAY {
        for tenant in [A, B] {
            let (header, credential) = tenant.credential(&app, by).await;
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

/// Signed by the service's own key: an organisation is not what a token says, but what its client is.
#[tokio::test]
async fn a_token_that_names_one_organisation_and_the_others_client_is_401() {
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
        // The till of its client has the name of the other's client.
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

/// The codes that one has issued, or has in its pool, or that are everybody's there, are as good as new for the other.
#[tokio::test]
async fn a_code_exists_in_its_own_organisation_only() {
    let app = start(|_| {}).await;
    let got = Caller::new(&app, A, By::Password).await.use_up().await;
    let codes: BTreeSet<&String> = got.codes.iter().filter(|code| *code != "IN-BOTH").collect();
    let text = codes.iter().map(|code| code.as_str()).collect::<Vec<_>>().join("\n");
    let count = i64::try_from(codes.len()).unwrap();
    assert!(codes.contains(&"AYE-SPRING".to_owned()) && codes.contains(&"AYE-OF-C".to_owned()));
    assert_eq!(import(&app, A.id, &text).await, (0, count));
    assert_eq!(import(&app, B.id, &text).await, (count, 0));
}

/// Mobiles and e-mails are crossed: each is another customer's here than there.
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
async fn a_customer_is_looked_for_in_ones_own_organisation_only() {
    let file =
        A.file("open", CUSTOMERS_OF_A) + &A.series(1, "") + &B.file("registered", CUSTOMERS_OF_B) + &B.series(1, "");
    let app = TestApp::start_with(&file, |_| {}).await;
    let (a, b) = (Caller::new(&app, A, By::Password).await, Caller::new(&app, B, By::ContractToken).await);
    let (mobile_1, mobile_2) = (json!({"mobile": "+91 99000 00001"}), json!({"mobile": "919900000002"}));
    for (caller, customer, expected) in [
        (&a, &mobile_1, "y"),
        (&b, &mobile_1, "x"),
        (&a, &mobile_2, "x"),
        (&b, &mobile_2, "y"),
        (&a, &json!({"mobile": "919900000001", "email": "two@example.com"}), "y"),
        (&a, &json!({"id": "x", "mobile": "919900000002", "email": "ONE@example.com"}), "x"),
        (&b, &json!({"mobile": "919900000001", "externalId": "x-1"}), "x"),
        // Unknown there, so it is nobody's yet: the customer there gets it, the one here keeps it.
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
    // Of the other's customers nothing has changed, and what is new is where it was asked for.
    a.issue(&json!({"email": "new@example.com", "externalId": "x-2"}), &[1]).await;
    assert_eq!(app.count("select from customer where org_id = 1").await, 4);
    assert_eq!(app.count("select from customer where org_id = 2").await, 2);
    let theirs = "select from customer where org_id = 2 and registered and (customer_id, mobile, email, external_id) in
                  (('x', '919900000001', 'one@example.com', 'x-1'), ('y', '919900000002', 'two@example.com', 'x-2'))";
    assert_eq!(app.count(theirs).await, 2);
}

/// One's till is called as the other's client, and they come from one address.
#[tokio::test]
async fn limits_on_requests_and_on_wrong_secrets_are_not_shared_by_those_of_one_name() {
    let app = start(|settings| {
        settings.rate_limit.per_minute = 3;
        settings.rate_limit.failures_per_minute = 2;
        settings.rate_limit.failures_per_minute_by_address = 1000;
    })
    .await;
    // Asking for the token is a request, too.
    let client = Caller::new(&app, B, By::StandardToken).await;
    let statuses = [client.status().await, client.status().await, client.status().await];
    assert_eq!(statuses, [200, 200, 429]);
    let till = Caller::new(&app, A, By::Password).await;
    let statuses = [till.status().await, till.status().await, till.status().await, till.status().await];
    assert_eq!(statuses, [200, 200, 200, 429]);

    let app = start(|settings| settings.rate_limit.failures_per_minute = 2).await;
    for expected in [401, 401, 429] {
        let wrong = ask_token(&app, "/v3/oauth/token/generate", B.client, "wrong").send().await.unwrap();
        assert_eq!(wrong.status(), expected);
    }
    assert_eq!(Caller::new(&app, A, By::Password).await.status().await, 200);
}

#[tokio::test]
async fn switching_off_ones_till_and_client_leaves_the_others_of_the_same_names() {
    let app = start(|_| {}).await;
    let (a_till, a_client) = (Caller::new(&app, A, By::Password).await, Caller::new(&app, A, By::ContractToken).await);
    let (b_till, b_client) = (Caller::new(&app, B, By::Password).await, Caller::new(&app, B, By::ContractToken).await);
    for caller in [&a_till, &a_client, &b_till, &b_client] {
        assert_eq!(caller.status().await, 200);
    }
    let changes = "update till set disabled = true where org_id = 2;
                   update oauth_client set disabled = true where org_id = 2;
                   select pg_notify('coupon_issuer_credentials', '')";
    sqlx::raw_sql(changes).execute(&app.pool).await.unwrap();
    eventually("they are out", async || (b_till.status().await, b_client.status().await) == (401, 401)).await;
    assert_eq!((a_till.status().await, a_client.status().await), (200, 200));
}
