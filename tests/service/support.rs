//! What every test starts from: the service over a database of its own on a real Postgres, with a clock that is held.
//!
//! The server is the one that `DATABASE_URL` names, or a private one from local binaries, started once for all tests.

use coupon_issuer::db::migrations;
use coupon_issuer::provisioning;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use coupon_issuer::config::Settings;
use coupon_issuer::demo::private_postgres::{Options, PrivatePostgres};
use coupon_issuer::model::Environment;
use coupon_issuer::model::{Clock, OsEntropy};
use coupon_issuer::server::{App, Stop};
use coupon_issuer::verify::{self, Report};
use jiff::Timestamp;
use serde_json::{Value, json};
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection};
use tokio::sync::{OnceCell, mpsc};
use tokio::task::JoinHandle;

/// The instant at which every test begins.
pub const NOW: &str = "2026-11-22T10:00:00Z";

/// An organisation with one till (`store.server`, `server123`) in store 10, to which tests add their series.
pub const ORG: &str = r#"
[[orgs]]
id = 1
name = "Test Retail"
time_zone = "UTC"
customer_policy = "open"
default_access = "write"
[[orgs.stores]]
id = 10
name = "Downtown"
[[orgs.stores]]
id = 11
name = "Head office"
access = "read"
[[orgs.stores]]
id = 12
name = "Warehouse"
access = "none"
[[orgs.tills]]
id = "store.server"
store_id = 10
password = "server123"
[[orgs.tills]]
id = "office.desk"
store_id = 11
password = "office123"
[[orgs.tills]]
id = "warehouse.gate"
store_id = 12
password = "gate123"
[[orgs.oauth_clients]]
key = "crm"
secret = "crm-secret"
till = "store.server"
access = "write"
token_ttl_seconds = 3600
[[orgs.oauth_clients]]
key = "reports"
secret = "reports-secret"
till = "store.server"
access = "read"
"#;

/// A series that issues to anyone any number of times, with these settings besides.
pub fn series(id: i64, settings: &str) -> String {
    let unlimited = if settings.contains("is_multiple_vouchers_per_user_allowed") {
        ""
    } else {
        "is_multiple_vouchers_per_user_allowed = true"
    };
    let expiry = if settings.contains("valid_till_date") { "" } else { "valid_till_date = \"2027-05-09\"" };
    format!(
        "[[orgs.series]]\nid = {id}\ndescription = \"Series {id}\"\ninfo = \"Info {id}\"\ndiscount_type = \"ABS\"\n\
         discount_value = 500\n{expiry}\n{unlimited}\n{settings}\n"
    )
}

/// A clock that stands still until it is set.
pub struct HeldClock(AtomicI64);

impl HeldClock {
    pub fn set(&self, instant: &str) {
        self.0.store(instant.parse::<Timestamp>().unwrap().as_microsecond(), Ordering::SeqCst);
    }
}

impl Clock for HeldClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_microsecond(self.0.load(Ordering::SeqCst)).unwrap()
    }

    fn elapsed(&self) -> Duration {
        self.now().duration_since(NOW.parse().unwrap()).try_into().unwrap()
    }
}

/// The service, serving on a port of its own.
pub struct TestApp {
    pub address: SocketAddr,
    pub clock: Arc<HeldClock>,
    pub connect: PgConnectOptions,
    pub pool: PgPool,
    client: reqwest::Client,
    stop: Option<mpsc::Sender<Stop>>,
    serving: JoinHandle<anyhow::Result<()>>,
}

impl TestApp {
    /// Over a new database that holds [`ORG`] with these series.
    pub async fn start(series: &[String]) -> Self {
        Self::start_with(&format!("{ORG}{}", series.concat()), |_| {}).await
    }

    /// Over a new database that holds what this file of `apply` says, with other settings.
    pub async fn start_with(file: &str, change: impl FnOnce(&mut Settings)) -> Self {
        Self::start_over(new_database().await, file, change).await
    }

    /// Over this database, which must have the schema.
    pub async fn start_over(connect: PgConnectOptions, file: &str, change: impl FnOnce(&mut Settings)) -> Self {
        provisioning::apply_text(&connect, file).await.unwrap();
        let mut settings = Settings::load(None).unwrap();
        settings.database.max_connections = 4;
        // More writers than a deployment has, to race each other; and requests by the thousand from one till.
        settings.writer.tasks = 4;
        settings.rate_limit.per_minute = -1;
        // A machine that is busy with other work cuts nothing short. A test of a time-out sets its own.
        settings.issuing.timeout = Duration::from_mins(1);
        settings.issuing.max_wait = Duration::from_mins(1);
        settings.writer.statement_timeout = Duration::from_secs(50);
        settings.database.acquire_timeout = Duration::from_secs(25);
        settings.database.statement_timeout = Duration::from_secs(25);
        change(&mut settings);
        let clock = Arc::new(HeldClock(AtomicI64::new(0)));
        clock.set(NOW);
        let outside = Environment { clock: clock.clone(), entropy: Arc::new(OsEntropy) };
        let app = App::build(&settings, &connect, outside).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stops) = mpsc::channel(1);
        let serving = tokio::spawn(app.serve(listener, stops));
        let pool = PgPoolOptions::new().max_connections(2).connect_lazy_with(connect.clone());
        let client = reqwest::Client::new();
        Self { address, clock, connect, pool, client, stop: Some(stop), serving }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn client(&self) -> &reqwest::Client {
        &self.client
    }

    /// A POST to the endpoint with this body and nothing else: neither credentials nor a Content-Type.
    pub fn bare(&self, body: impl Into<reqwest::Body>) -> reqwest::RequestBuilder {
        self.client.post(self.url("/v2/coupon/bulk/issue")).body(body)
    }

    /// A POST to the endpoint, by the till, with this body.
    pub fn post(&self, body: impl Into<reqwest::Body>) -> reqwest::RequestBuilder {
        self.bare(body).basic_auth("store.server", Some("server123")).header("Content-Type", "application/json")
    }

    /// Status and body of a request with this JSON.
    pub async fn send(&self, body: &Value) -> (u16, Value) {
        let answer = self.post(body.to_string()).send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    /// Asks for these series for a customer; the answer must be a 200.
    pub async fn issue(&self, customer: &str, series: &[i64]) -> Value {
        let (status, answer) = self.send(&json!({"seriesIds": series, "customer": {"id": customer}})).await;
        assert_eq!(status, 200, "{answer}");
        answer
    }

    /// As [`TestApp::issue`], for one series; what [`outcome`] makes of the entity.
    pub async fn issue_one(&self, customer: &str, series: i64) -> String {
        outcome(&self.issue(customer, &[series]).await["response"][0])
    }

    /// What `verify` of all organisations finds at this moment.
    pub async fn verify(&self) -> Report {
        verify::run(&self.connect, None).await.unwrap()
    }

    /// How many rows a query returns.
    pub async fn count(&self, query: &'static str) -> usize {
        sqlx::query(query).fetch_all(&self.pool).await.unwrap().len()
    }

    /// Changes credentials by hand, and notifies the replicas as whoever changes them must.
    pub async fn change_credentials(&self, change: &'static str) {
        let notified = format!("{change}; select pg_notify('coupon_issuer_credentials', '')");
        sqlx::raw_sql(AssertSqlSafe(notified)).execute(&self.pool).await.unwrap();
    }

    /// Stops as Ctrl-C would, and waits for the end.
    pub async fn stop(mut self) {
        drop(self.stop.take());
        self.serving.await.unwrap().unwrap();
    }
}

/// `issued`, `resent`, or the error code of an entity, with what must hold for each.
pub fn outcome(entity: &Value) -> String {
    let errors = entity["errors"].as_array().unwrap();
    let warnings = entity["warnings"].as_array().unwrap();
    assert_eq!(entity.get("result").is_some(), errors.is_empty(), "a result or an error: {entity}");
    match (errors.first(), warnings.first()) {
        (Some(error), _) => error["code"].to_string(),
        (None, Some(warning)) => {
            assert_eq!(warning["code"], 700, "{entity}");
            "resent".to_owned()
        }
        (None, None) => "issued".to_owned(),
    }
}

/// What [`outcome`] makes of each entity of an answer.
pub fn outcomes(answer: &Value) -> Vec<String> {
    answer["response"].as_array().unwrap().iter().map(outcome).collect()
}

/// Status, code and message of the answer to a request that failed as a whole, with what must hold for each.
pub async fn failure(answer: reqwest::Response) -> (u16, u64, String) {
    let id = answer.headers()["x-cap-request-id"].clone();
    assert!(!id.is_empty());
    assert_eq!(answer.headers()["x-request-id"], id);
    assert_eq!(answer.headers()["x-cap-requestid"], id);
    assert_eq!(answer.headers()["content-type"], "application/json");
    let status = answer.status().as_u16();
    let (code, message) = only_error(&answer.text().await.unwrap());
    (status, code, message)
}

/// Code and message of the one error in the body of a failure, whose form must be the contract's to the byte.
pub fn only_error(body: &str) -> (u64, String) {
    let error = &serde_json::from_str::<Value>(body).unwrap()["errors"][0];
    let (code, message, retryable) = (&error["code"], &error["message"], &error["retryable"]);
    let form = format!(
        r#"{{"errors":[{{"status":false,"code":{code},"message":{message},"retryable":{retryable}}}],"warnings":[]}}"#
    );
    assert_eq!(body, form);
    assert!(retryable.is_boolean());
    (code.as_u64().unwrap(), message.as_str().unwrap().to_owned())
}

/// How often each outcome came.
pub fn tally(outcomes: impl IntoIterator<Item = String>) -> std::collections::BTreeMap<String, usize> {
    let mut tally = std::collections::BTreeMap::new();
    for outcome in outcomes {
        *tally.entry(outcome).or_default() += 1;
    }
    tally
}

/// A new database with the schema, on the server of all tests.
pub async fn new_database() -> PgConnectOptions {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    static TEMPLATE: OnceCell<String> = OnceCell::const_new();
    let server = server().await;
    let template = TEMPLATE.get_or_init(|| make_template(&server)).await;
    let name = format!("{template}_{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let mut connection = admin(&server).await;
    execute(&mut connection, format!("create database {name} template {template}")).await;
    server.database(&name)
}

/// An empty database.
pub async fn empty_database() -> PgConnectOptions {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let server = server().await;
    let name = format!("{PREFIX}{}_empty_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    execute(&mut admin(&server).await, format!("create database {name}")).await;
    server.database(&name)
}

const PREFIX: &str = "coupon_issuer_test_";

async fn make_template(server: &PgConnectOptions) -> String {
    let mut connection = admin(server).await;
    let leftovers: Vec<String> = sqlx::query_scalar("select datname from pg_database where datname like $1")
        .bind(format!("{}%", PREFIX.replace('_', "\\_")))
        .fetch_all(&mut connection)
        .await
        .unwrap();
    for name in leftovers {
        // One that is in use belongs to another run.
        let _ = sqlx::raw_sql(AssertSqlSafe(format!("drop database {name}"))).execute(&mut connection).await;
    }
    let name = format!("{PREFIX}{}", std::process::id());
    execute(&mut connection, format!("create database {name}")).await;
    migrations::migrate(&server.clone().database(&name)).await.unwrap();
    name
}

async fn admin(server: &PgConnectOptions) -> PgConnection {
    server.clone().database("postgres").connect().await.unwrap()
}

async fn execute(connection: &mut PgConnection, statement: String) {
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut *connection).await.unwrap();
}

async fn server() -> PgConnectOptions {
    let url = match std::env::var("DATABASE_URL") {
        Ok(url) => url,
        Err(_) => tokio::task::spawn_blocking(|| private_server().url("postgres")).await.unwrap(),
    };
    PgConnectOptions::from_str(&url).unwrap()
}

/// Its watchdog stops it when this process ends.
fn private_server() -> &'static PrivatePostgres {
    static SERVER: OnceLock<PrivatePostgres> = OnceLock::new();
    SERVER.get_or_init(|| {
        let data_dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("postgres");
        let settings = vec![("max_connections".to_owned(), "500".to_owned())];
        PrivatePostgres::start(&Options { data_dir, durable: false, settings }).unwrap()
    })
}

/// The procedures that write coupons, replaced until they are put back.
pub struct ReplacedWriter {
    pool: PgPool,
    definitions: Vec<String>,
}

impl ReplacedWriter {
    /// Has every version of the procedure do this instead, in PL/pgSQL. Its arguments keep their names.
    pub async fn with(app: &TestApp, body: &str) -> Self {
        let procedures: Vec<(String, String)> = sqlx::query_as(
            "select pg_get_functiondef(oid), format('%I(%s)', proname, pg_get_function_arguments(oid))
               from pg_proc where proname like 'issue_coupons%'",
        )
        .fetch_all(&app.pool)
        .await
        .unwrap();
        assert!(!procedures.is_empty());
        let mut definitions = Vec::new();
        for (definition, signature) in procedures {
            let replaced = format!("create or replace procedure {signature} language plpgsql as $$ {body} $$");
            sqlx::raw_sql(AssertSqlSafe(replaced)).execute(&app.pool).await.unwrap();
            definitions.push(definition);
        }
        Self { pool: app.pool.clone(), definitions }
    }

    pub async fn put_back(self) {
        for definition in self.definitions {
            sqlx::raw_sql(AssertSqlSafe(definition)).execute(&self.pool).await.unwrap();
        }
    }
}

/// Waits until something holds, for a time that only a failure takes.
pub async fn eventually<F: Future<Output = bool>>(what: &str, holds: impl Fn() -> F) {
    for _ in 0..600 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("never: {what}");
}

/// A directory for a cluster of a test's own, empty whatever an earlier run has left.
pub fn fresh_dir(name: &str) -> PathBuf {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    if dir.exists() {
        std::fs::remove_dir_all(&dir).unwrap();
    }
    dir
}

/// Closes a connection of a test's own.
pub async fn close(connection: PgConnection) {
    connection.close().await.unwrap();
}
