//! The fixture: a service on a new database of a real Postgres, with a clock that the test sets.
//!
//! `DATABASE_URL` names the Postgres server. Without it, all tests share one private server, started from local binaries.

use coupon_issuer::db::migrations;
use coupon_issuer::provisioning;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use coupon_issuer::config::Settings;
use coupon_issuer::demo::{Options, PrivatePostgres};
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

/// The clock of every test starts here.
pub const NOW: &str = "2026-11-22T10:00:00Z";

/// An organisation with three stores and a till in each. Till `store.server` (password `server123`) in store 10 may issue; requests of
/// [`TestApp`] use it. Tests append their series.
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

/// A series with these settings, for the file of `apply`. Every other setting has the default of `apply`: above all, a customer who holds
/// a coupon of the series gets no second one.
pub fn default_series(id: i64, settings: &str) -> String {
    let expiry = if settings.contains("valid_till_date") { "" } else { "valid_till_date = \"2027-05-09\"" };
    format!(
        "[[orgs.series]]\nid = {id}\ndescription = \"Series {id}\"\ninfo = \"Info {id}\"\ndiscount_type = \"ABS\"\n\
         discount_value = 500\n{expiry}\n{settings}\n"
    )
}

/// As [`default_series`], but with `is_multiple_vouchers_per_user_allowed = true`, unless the settings say otherwise: a customer gets
/// another coupon with each request.
pub fn repeatable_series(id: i64, settings: &str) -> String {
    let key = "is_multiple_vouchers_per_user_allowed";
    if settings.contains(key) {
        default_series(id, settings)
    } else {
        default_series(id, &format!("{key} = true\n{settings}"))
    }
}

/// For tests that do not yet say which kind of series they need.
/// A clock that shows the same instant until a test sets another.
pub struct TestClock(AtomicI64);

impl TestClock {
    pub fn set(&self, instant: &str) {
        self.0.store(instant.parse::<Timestamp>().unwrap().as_microsecond(), Ordering::SeqCst);
    }
}

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_microsecond(self.0.load(Ordering::SeqCst)).unwrap()
    }

    fn elapsed(&self) -> Duration {
        self.now().duration_since(NOW.parse().unwrap()).try_into().unwrap()
    }
}

/// The service, running in this process on a free port, and its database.
pub struct TestApp {
    pub address: SocketAddr,
    pub clock: Arc<TestClock>,
    pub connect: PgConnectOptions,
    pub pool: PgPool,
    client: reqwest::Client,
    stop: Option<mpsc::Sender<Stop>>,
    serving: JoinHandle<anyhow::Result<()>>,
}

impl TestApp {
    /// Starts on a new database with [`ORG`] and these series.
    pub async fn start(series: &[String]) -> Self {
        Self::start_with(&format!("{ORG}{}", series.concat()), |_| {}).await
    }

    /// Starts on a new database, to which `apply` has applied this file. `change` may change the service's settings.
    pub async fn start_with(file: &str, change: impl FnOnce(&mut Settings)) -> Self {
        Self::start_over(new_database().await, file, change).await
    }

    /// As [`TestApp::start_with`], but on this database, which must have the schema. Several services may share one.
    pub async fn start_over(connect: PgConnectOptions, file: &str, change: impl FnOnce(&mut Settings)) -> Self {
        provisioning::apply_text(&connect, file).await.unwrap();
        let mut settings = Settings::load(None).unwrap();
        settings.database.max_connections = 4;
        // Several writers, so that they race each other.
        settings.writer.tasks = 4;
        // Some tests send thousands of requests from one till.
        settings.rate_limit.per_minute = -1;
        // Long time-outs: a busy machine must not fail a test. A test of a time-out sets its own.
        settings.issuing.timeout = Duration::from_mins(1);
        settings.issuing.max_wait = Duration::from_mins(1);
        settings.writer.statement_timeout = Duration::from_secs(50);
        settings.database.acquire_timeout = Duration::from_secs(25);
        settings.database.statement_timeout = Duration::from_secs(25);
        change(&mut settings);
        let clock = Arc::new(TestClock(AtomicI64::new(0)));
        clock.set(NOW);
        let environment = Environment { clock: clock.clone(), entropy: Arc::new(OsEntropy) };
        let app = App::build(&settings, &through_pooler(&connect).await, environment).await.unwrap();
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

    /// A request for coupons with this body, without credentials and without a Content-Type.
    pub fn bare(&self, body: impl Into<reqwest::Body>) -> reqwest::RequestBuilder {
        self.client.post(self.url("/v2/coupon/bulk/issue")).body(body)
    }

    /// A request for coupons with this body, from till `store.server`.
    pub fn post(&self, body: impl Into<reqwest::Body>) -> reqwest::RequestBuilder {
        self.bare(body).basic_auth("store.server", Some("server123")).header("Content-Type", "application/json")
    }

    /// Requests coupons from till `store.server` with this JSON. Returns the status and the body of the response.
    pub async fn send(&self, body: &Value) -> (u16, Value) {
        let answer = self.post(body.to_string()).send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    /// Requests a coupon of each of these series for a customer, and asserts a 200. Returns the body.
    pub async fn issue(&self, customer: &str, series: &[i64]) -> Value {
        let (status, answer) = self.send(&json!({"seriesIds": series, "customer": {"id": customer}})).await;
        assert_eq!(status, 200, "{answer}");
        answer
    }

    /// Requests a coupon of one series for a customer. Returns its [`outcome`].
    pub async fn issue_one(&self, customer: &str, series: i64) -> String {
        outcome(&self.issue(customer, &[series]).await["response"][0])
    }

    /// Runs `verify` on all organisations.
    pub async fn verify(&self) -> Report {
        verify::run(&self.connect, None).await.unwrap()
    }

    /// How many rows a query returns.
    pub async fn count(&self, query: &'static str) -> usize {
        sqlx::query(query).fetch_all(&self.pool).await.unwrap().len()
    }

    /// Changes credentials with SQL, and notifies the replicas, which would use their caches otherwise.
    pub async fn change_credentials(&self, change: &'static str) {
        let statements = format!("{change}; select pg_notify('coupon_issuer_credentials', '')");
        sqlx::raw_sql(AssertSqlSafe(statements)).execute(&self.pool).await.unwrap();
    }

    /// Stops the service as Ctrl-C does, and waits for its end.
    pub async fn stop(mut self) {
        drop(self.stop.take());
        self.serving.await.unwrap().unwrap();
    }
}

/// `issued`, `resent`, or the error code of an entity. Asserts that the entity has either a result or an error, and that the only warning
/// is 700.
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

/// The [`outcome`] of each entity in a response.
pub fn outcomes(answer: &Value) -> Vec<String> {
    answer["response"].as_array().unwrap().iter().map(outcome).collect()
}

/// Status, code and message of the response to a request that failed as a whole. Asserts its headers and its form.
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

/// Code and message of the only error in the body of a failure. Asserts the contract's form, to the byte.
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

/// Counts each outcome.
pub fn tally(outcomes: impl IntoIterator<Item = String>) -> std::collections::BTreeMap<String, usize> {
    let mut tally = std::collections::BTreeMap::new();
    for outcome in outcomes {
        *tally.entry(outcome).or_default() += 1;
    }
    tally
}

/// Creates a database with the schema. A copy of a template is much faster than a migration.
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

/// Creates a database without the schema.
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
        // This fails for a database in use: another run of the tests needs it.
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

/// `POOLER_URL` names a pooler in front of the server, for the services only (tests/pgbouncer.sh). Not for one that has a `Wire` in front.
async fn through_pooler(database: &PgConnectOptions) -> PgConnectOptions {
    let Ok(url) = std::env::var("POOLER_URL") else { return database.clone() };
    if database.get_socket() != server().await.get_socket() {
        return database.clone();
    }
    let pooler = PgConnectOptions::from_str(&url).unwrap().extra_float_digits(None);
    pooler.database(database.get_database().unwrap())
}

/// No test stops it: its watchdog does, when this process ends.
fn private_server() -> &'static PrivatePostgres {
    static SERVER: OnceLock<PrivatePostgres> = OnceLock::new();
    SERVER.get_or_init(|| {
        let data_dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("postgres");
        let settings = vec![("max_connections".to_owned(), "500".to_owned())];
        PrivatePostgres::start(&Options { data_dir, durable: false, settings }).unwrap()
    })
}

/// Replaces the procedure that writes coupons, until [`ReplacedWriter::put_back`].
pub struct ReplacedWriter {
    pool: PgPool,
    definitions: Vec<String>,
}

impl ReplacedWriter {
    /// Replaces the body of every version of the procedure by this PL/pgSQL. The names of the arguments stay.
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

/// Puts a procedure in front of the one that writes coupons. The body is PL/pgSQL, in which `ORIGINAL` calls that one.
pub async fn wrap_writer(connect: &PgConnectOptions, body: &str) {
    let mut connection = connect.connect().await.unwrap();
    let (arguments, names): (String, Vec<String>) = sqlx::query_as(
        "select pg_get_function_arguments(oid), proargnames from pg_proc where proname = 'issue_coupons_1'",
    )
    .fetch_one(&mut connection)
    .await
    .unwrap();
    let body = body.replace("ORIGINAL", &format!("call original({})", names.join(", ")));
    let wrap = format!(
        "alter procedure issue_coupons_1 rename to original;
         create procedure issue_coupons_1({arguments}) language plpgsql as $$ {body} $$"
    );
    sqlx::raw_sql(AssertSqlSafe(wrap)).execute(&mut connection).await.unwrap();
    close(connection).await;
}

/// Waits until the condition holds. Panics after at least 30 seconds.
pub async fn eventually<F: Future<Output = bool>>(what: &str, holds: impl Fn() -> F) {
    for _ in 0..600 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("did not happen within 30 s: {what}");
}

/// The path of a directory for one test. Deletes what an earlier run left there.
pub fn fresh_dir(name: &str) -> PathBuf {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    if dir.exists() {
        std::fs::remove_dir_all(&dir).unwrap();
    }
    dir
}

/// Closes a connection, and with it ends its transaction and its locks.
pub async fn close(connection: PgConnection) {
    connection.close().await.unwrap();
}
