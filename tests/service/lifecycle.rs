//! The binary as new users and operators run it: demo, migrate, serve, healthcheck, signals and exit codes.

use coupon_issuer::provisioning;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use sqlx::ConnectOptions;
use sqlx::postgres::PgConnectOptions;

use crate::support::{ORG, close, empty_database, eventually, fresh_dir, new_database, outcomes, repeatable_series};

/// A process of the binary. Dropping it kills it, so that a failing test leaves no process behind.
pub struct Running {
    child: Child,
    pub address: String,
    /// The lines that it printed before it served.
    printed: Vec<String>,
}

fn binary() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_coupon-issuer"));
    command.env_remove("DATABASE_URL").env("COUPON_ISSUER__METRICS__LISTEN", "");
    command.env("COUPON_ISSUER__HTTP__DRAIN_SECONDS", "0");
    // As in `TestApp`: long enough that no request times out on a busy machine.
    for (name, seconds) in [
        ("ISSUING__TIMEOUT_SECONDS", "60"),
        ("ISSUING__MAX_WAIT_SECONDS", "60"),
        ("WRITER__STATEMENT_TIMEOUT_SECONDS", "50"),
        ("DATABASE__ACQUIRE_TIMEOUT_SECONDS", "25"),
        ("DATABASE__STATEMENT_TIMEOUT_SECONDS", "25"),
    ] {
        command.env(format!("COUPON_ISSUER__{name}"), seconds);
    }
    command
}

impl Running {
    /// Waits until the process logs its address.
    pub fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut printed = Vec::new();
        let address = loop {
            let line =
                lines.next().unwrap_or_else(|| panic!("the process ended before it served: {printed:?}")).unwrap();
            if line.contains("serving") && line.contains("address") && !line.contains("metrics") {
                let from = line.rfind("127.0.0.1:").unwrap();
                break line[from..].trim_end_matches(['"', '}']).to_owned();
            }
            printed.push(line);
        };
        // A full pipe would block the process.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, address, printed }
    }

    pub async fn post(&self, body: Value) -> reqwest::Result<Value> {
        let url = format!("http://{}/v2/coupon/bulk/issue", self.address);
        let request = reqwest::Client::new().post(url).basic_auth("store.server", Some("server123")).json(&body);
        request.send().await?.json().await
    }

    pub fn signal(&self, signal: &str) {
        assert!(Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap().success());
    }

    pub fn wait(mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn demo(data_dir: &Path) -> Command {
    let mut command = binary();
    command.args(["demo", "--listen", "127.0.0.1:0", "--data-dir"]).arg(data_dir);
    command
}

pub fn serve(database: &PgConnectOptions) -> Command {
    let mut command = binary();
    command.arg("serve").env("DATABASE_URL", url(database)).env("COUPON_ISSUER__HTTP__LISTEN", "127.0.0.1:0");
    command
}

fn url(database: &PgConnectOptions) -> String {
    database.to_url_lossy().to_string()
}

/// A newcomer starts the demo, pastes the command that it prints, stops it, and starts it again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_curl_command_of_the_demo_issues_two_coupons_that_survive_a_restart() {
    let dir = fresh_dir("demo");
    let running = Running::start(&mut demo(&dir));
    let printed = running.printed.join("\n");
    let curl = printed[printed.find("curl ").unwrap()..].split("\n\n").next().unwrap().replace("-sS", "-sS --fail");
    let answer = Command::new("sh").args(["-c", &curl]).output().unwrap();
    let answer: Value = serde_json::from_slice(&answer.stdout).unwrap();
    assert_eq!(outcomes(&answer), ["issued", "issued"], "{answer}");
    let again = running.post(json!({"seriesIds": [103, 106], "customer": {"id": "566881933"}})).await.unwrap();
    assert_eq!(outcomes(&again), ["issued", "issued"]);
    let console = reqwest::Client::new().get(format!("http://{}/console", running.address));
    assert!(printed.contains("/console") && printed.contains("(office.desk, office123)"), "{printed}");
    assert_eq!(console.basic_auth("office.desk", Some("office123")).send().await.unwrap().status(), 200);
    running.signal("-INT");
    assert_eq!(running.wait().code(), Some(0));

    // SIGKILL gives the demo no chance to clean up. The next one must take over its data directory.
    let mut running = Running::start(&mut demo(&dir));
    assert!(running.printed.iter().any(|line| line.contains("no change")), "{:?}", running.printed);
    running.child.kill().unwrap();
    running.child.wait().unwrap();

    let running = Running::start(&mut demo(&dir));
    let again = running.post(json!({"seriesIds": [103], "customer": {"id": "566881933"}})).await.unwrap();
    assert_eq!(outcomes(&again), ["709"]);
    running.signal("-TERM");
    assert_eq!(running.wait().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_demo_warns_and_serves_without_metrics_if_their_port_is_taken() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap();
    let dir = fresh_dir("demo-metrics");
    let start = || {
        let mut demo = demo(&dir);
        demo.env("COUPON_ISSUER__METRICS__LISTEN", port.to_string()).env("COUPON_ISSUER__LOG__FORMAT", "json");
        Running::start(&mut demo)
    };
    let running = start();
    let warned = running.printed.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    assert_eq!(warned.map(|line| line["level"].clone()).collect::<Vec<_>>(), ["WARN"], "{:?}", running.printed);
    running.signal("-TERM");
    assert_eq!(running.wait().code(), Some(0));

    drop(taken);
    let running = start();
    let metrics = reqwest::get(format!("http://{port}/metrics")).await.unwrap().text().await.unwrap();
    assert!(metrics.contains("coupon_issuer_entities_total{outcome=\"issued\"} 0"), "{metrics}");
    running.signal("-TERM");
    assert_eq!(running.wait().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_postgres_the_demo_names_the_variable_to_set() {
    let output = demo(&fresh_dir("none")).env("COUPON_ISSUER_PG_BIN", "/nonexistent").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("COUPON_ISSUER_PG_BIN"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_finishes_requests_in_flight() {
    let database = new_database().await;
    provisioning::apply_text(&database, &format!("{ORG}{}", repeatable_series(1, "max_create = 100"))).await.unwrap();
    let running = Running::start(&mut serve(&database));
    // While the test holds the lock on the series, the request stays in flight.
    let mut holder = database.connect().await.unwrap();
    sqlx::raw_sql("select pg_advisory_lock(hashint8extended(1, 1))").execute(&mut holder).await.unwrap();
    let request = running.post(json!({"seriesIds": [1], "customer": {"id": "c"}}));
    let (answer, ()) = tokio::join!(request, async {
        eventually("the coupon waits for the lock", || async {
            let mut connection = database.connect().await.unwrap();
            let waits = sqlx::query(
                "select from pg_locks where locktype = 'advisory' and not granted
                                      and database = (select oid from pg_database where datname = current_database())",
            );
            let waits = waits.fetch_all(&mut connection).await.unwrap().len() == 1;
            close(connection).await;
            waits
        })
        .await;
        running.signal("-TERM");
        let address = running.address.clone();
        eventually("the port is closed", || async { tokio::net::TcpStream::connect(&address).await.is_err() }).await;
        close(holder).await;
    });
    assert_eq!(outcomes(&answer.unwrap()), ["issued"]);
    assert_eq!(running.wait().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn serve_refuses_a_missing_newer_older_or_altered_schema() {
    let refused = |database: PgConnectOptions| {
        let output = serve(&database).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    let empty = empty_database().await;
    let error = refused(empty.clone());
    assert!(error.contains("coupon-issuer migrate"), "{error}");

    let newer = new_database().await;
    run(&newer, NEXT_MIGRATION).await;
    run(&newer, "update schema_floor set version = 9999").await;
    let error = refused(newer.clone());
    assert!(error.contains("too far ahead") && error.contains("9999"), "{error}");
    let migrated = binary().arg("migrate").env("DATABASE_URL", url(&newer)).output().unwrap();
    assert_eq!(migrated.status.code(), Some(1));

    let old = new_database().await;
    run(&old, "update _sqlx_migrations set description = 'issuing', checksum = '' where version = 1").await;
    let error = refused(old.clone());
    assert!(error.contains("before 0.2.0") && error.contains("create another database"), "{error}");
    let migrated = binary().arg("migrate").env("DATABASE_URL", url(&old)).output().unwrap();
    assert_eq!(
        (migrated.status.code(), String::from_utf8_lossy(&migrated.stderr).contains("before 0.2.0")),
        (Some(1), true)
    );

    let changed = new_database().await;
    run(&changed, "update _sqlx_migrations set checksum = '' where version = 1").await;
    let error = refused(changed.clone());
    assert!(error.contains("cannot be trusted"), "{error}");
    // The other commands refuse an altered schema, too.
    for command in [
        &["verify"] as &[&str],
        &["apply", "config/demo.toml"],
        &["codes", "status"],
        &["codes", "import", "--org", "1", "--series", "106", "config/demo_gift_cards.csv"],
        &["codes", "import", "--dry-run", "--org", "1", "--series", "106", "config/demo_gift_cards.csv"],
        &["till", "disable", "store.server"],
        &["client", "revoke-tokens", "demo"],
        &["keys", "list"],
        &["keys", "rotate"],
    ] {
        let output = binary().args(command).env("DATABASE_URL", url(&changed)).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.contains("cannot be trusted"), "{command:?}: {error}");
        assert_ne!(output.status.code(), Some(0), "{command:?}");
    }
}

async fn run(database: &PgConnectOptions, statements: &'static str) {
    let mut connection = database.connect().await.unwrap();
    sqlx::raw_sql(statements).execute(&mut connection).await.unwrap();
    close(connection).await;
}

/// A migration as the next version may have it: a column more in each table that this version reads or writes.
const NEXT_MIGRATION: &str = "
    begin;
    insert into _sqlx_migrations (version, description, success, checksum, execution_time)
    values (9999, 'of a later version', true, '', 0);
    alter table series add column of_later text not null default 'new';
    alter table organisation add column of_later text;
    alter table coupon add column of_later text;
    alter table keyed_request add column of_later text;
    alter table natural_issuance add column of_later text;
    alter table series_version add column of_later text;
    alter table origin add column of_later text;
    alter table till add column of_later text;
    alter table signing_key add column of_later text;
    alter table customer add column of_later text;
    alter table activity_minute add column of_later text;
    alter table activity_total add column of_later text;
    alter table activity_series add column of_later text;
    alter table activity_failure add column of_later text;
    alter table activity_writer add column of_later text;
    commit";

/// During a rolling upgrade, replicas of the older version keep serving, and may be started again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_older_version_serves_and_starts_on_the_schema_of_the_next() {
    let database = new_database().await;
    let file = format!("{ORG}{}{}", repeatable_series(1, ""), repeatable_series(2, "max_vouchers_per_user = 1000000"));
    provisioning::apply_text(&database, &file).await.unwrap();
    let running = Running::start(&mut serve(&database));
    let ask = async |number: usize| {
        let url = format!("http://{}/v2/coupon/bulk/issue", running.address);
        // Each key is used twice, and each customer is looked up by mobile.
        let body = json!({"seriesIds": [1, 2], "customer": {"mobile": format!("99{}", number / 2 % 5)}});
        let request = reqwest::Client::new().post(url).basic_auth("store.server", Some("server123")).json(&body);
        let request = request.header("Idempotency-Key", format!("k{}", number / 2));
        request.send().await.unwrap().json::<Value>().await.unwrap()
    };
    for number in 0..40 {
        if number == 20 {
            run(&database, NEXT_MIGRATION).await;
        }
        assert_eq!(outcomes(&ask(number).await), ["issued", "issued"]);
    }
    let ready = format!("http://{}/readyz", running.address);
    assert_eq!(reqwest::get(&ready).await.unwrap().status(), 200);
    running.signal("-TERM");
    assert_eq!(running.wait().code(), Some(0));

    let again = Running::start(serve(&database).arg("--migrate"));
    let answer = again.post(json!({"seriesIds": [1, 2], "customer": {"id": "c"}})).await.unwrap();
    assert_eq!(outcomes(&answer), ["issued", "issued"]);
}

/// A load balancer sees `/readyz` fail, and stops sending before the replica closes its port.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_sigterm_readyz_fails_while_requests_are_still_answered() {
    let database = new_database().await;
    provisioning::apply_text(&database, &format!("{ORG}{}", repeatable_series(1, ""))).await.unwrap();
    let running = Running::start(serve(&database).env("COUPON_ISSUER__HTTP__DRAIN_SECONDS", "60"));
    let client = reqwest::Client::new();
    let url = |path: &str| format!("http://{}{path}", running.address);
    let body = json!({"seriesIds": [1], "customer": {"id": "c"}});
    let ask =
        || client.post(url("/v2/coupon/bulk/issue")).basic_auth("store.server", Some("server123")).json(&body).send();
    assert!(ask().await.unwrap().headers().get("connection").is_none());

    running.signal("-TERM");
    eventually("the replica is not ready", async || reqwest::get(url("/readyz")).await.unwrap().status() == 503).await;
    let answer = ask().await.unwrap();
    assert_eq!(answer.headers()["connection"], "close");
    assert_eq!(outcomes(&answer.json().await.unwrap()), ["issued"]);
    assert_eq!(reqwest::get(url("/healthz")).await.unwrap().status(), 200);

    // A second signal ends the drain of a minute at once.
    running.signal("-TERM");
    assert_eq!(running.wait().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_that_start_at_the_same_time_all_migrate_and_serve() {
    let database = empty_database().await;
    let replicas: Vec<_> = (0..3)
        .map(|_| {
            let mut command = serve(&database);
            command.arg("--migrate");
            tokio::task::spawn_blocking(move || Running::start(&mut command))
        })
        .collect();
    for replica in replicas {
        let replica = replica.await.unwrap();
        let ready = format!("http://{}/readyz", replica.address);
        let check = |url: &str| binary().args(["healthcheck", url]).output().unwrap().status.code();
        assert_eq!(check(&ready), Some(0));
        assert_eq!(check(&format!("http://{}/nothing", replica.address)), Some(1));
        replica.signal("-TERM");
        assert_eq!(replica.wait().code(), Some(0));
        assert_eq!(check(&ready), Some(1), "the replica has stopped");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn migrate_and_apply_may_be_run_twice() {
    let database = empty_database().await;
    let run = |arguments: &[&str]| {
        let output = binary().args(arguments).env("DATABASE_URL", url(&database)).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/config/demo.toml");
    assert_eq!(run(&["migrate"]).0, Some(0));
    assert_eq!(run(&["migrate"]).0, Some(0));
    let (code, printed, _) = run(&["apply", demo]);
    assert!(code == Some(0) && printed.contains("org 1 series 101: created"), "{printed}");
    let (code, printed, _) = run(&["apply", demo]);
    assert_eq!((code, printed.as_str()), (Some(0), "no change\n"));
    let (code, _, error) = run(&["apply", "/nonexistent.toml"]);
    assert!(code == Some(1) && error.contains("/nonexistent.toml"), "{error}");
}

#[tokio::test]
async fn apply_succeeds_even_if_its_output_cannot_be_written() {
    let database = new_database().await;
    let run = |arguments: &[&str], stdout: Stdio| {
        let mut command = binary();
        command.args(arguments).env("DATABASE_URL", url(&database)).stdout(stdout).stderr(Stdio::piped());
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let full = || Stdio::from(std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap());
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/config/demo.toml");
    let (code, error) = run(&["apply", demo], full());
    assert_eq!(code, Some(0), "{error}");
    assert!(error.starts_with("it is done, but standard output cannot be written") && error.contains("101"), "{error}");
    assert_eq!(run(&["apply", demo], Stdio::null()), (Some(0), String::new()));

    // The output of this command is its only result, so it fails.
    let (code, error) = run(&["openapi"], full());
    assert!(code == Some(1) && error.starts_with("coupon-issuer: standard output: "), "{error}");
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    assert_eq!(run(&["openapi"], writer.into()), (Some(0), String::new()), "the reader has left, as `| head` does");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sighup_does_not_stop_the_service() {
    let database = new_database().await;
    let running = Running::start(&mut serve(&database));
    running.signal("-HUP");
    let ready = reqwest::get(format!("http://{}/readyz", running.address)).await.unwrap();
    assert_eq!(ready.status(), 200);
    running.signal("-INT");
    assert_eq!(running.wait().code(), Some(0));
}

#[test]
fn version_shows_the_release_of_the_time_zone_data() {
    let printed = String::from_utf8(binary().arg("--version").output().unwrap().stdout).unwrap();
    let start = concat!("coupon-issuer ", env!("CARGO_PKG_VERSION"), " (time zones: 20");
    assert!(printed.starts_with(start), "{printed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn serve_refuses_a_wrong_setting_by_name_and_shows_no_secret() {
    let database = new_database().await;
    for (variable, value, named) in [
        ("COUPON_ISSUER__HTTP__LISTEN", "everywhere", "http.listen"),
        ("COUPON_ISSUER__HTP__LISTEN", "127.0.0.1:0", "htp"),
        ("COUPON_ISSUER__WRITER__TASKS", "0", "writer.tasks"),
        ("COUPON_ISSUER__LOG__FILTER", "a=b=c", "log.filter"),
        ("DATABASE_URL", "nonsense://hunter2", "URL"),
    ] {
        let output = serve(&database).env(variable, value).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{variable}");
        assert!(error.contains(named) && !error.contains("hunter2"), "{variable}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_are_served_on_their_own_port_only() {
    let database = new_database().await;
    provisioning::apply_text(&database, &format!("{ORG}{}", repeatable_series(1, ""))).await.unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let running = Running::start(serve(&database).env("COUPON_ISSUER__METRICS__LISTEN", port.to_string()));
    running.post(json!({"seriesIds": [1, 999], "customer": {"id": "c"}})).await.unwrap();
    let metrics = reqwest::get(format!("http://{port}/metrics")).await.unwrap().text().await.unwrap();
    for line in [
        "coupon_issuer_entities_total{outcome=\"issued\"} 1",
        "coupon_issuer_entities_total{outcome=\"unknown_series\"} 1",
        "coupon_issuer_requests_total{route=\"/v2/coupon/bulk/issue\",status=\"200\"} 1",
    ] {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }
    let on_the_main_port = reqwest::get(format!("http://{}/metrics", running.address)).await.unwrap();
    assert_eq!(on_the_main_port.status(), 404);
    running.signal("-TERM");
    tokio::time::timeout(Duration::from_secs(30), tokio::task::spawn_blocking(|| running.wait()))
        .await
        .unwrap()
        .unwrap();
}

/// The error of the connection pool says only that it timed out. Operators need the reason behind it.
#[tokio::test]
async fn serve_reports_why_the_database_cannot_be_reached() {
    let mut command = binary();
    command.arg("serve").env("DATABASE_URL", "postgres://nobody@127.0.0.1:1/none");
    command.env("COUPON_ISSUER__DATABASE__ACQUIRE_TIMEOUT_SECONDS", "0.2");
    command.env("COUPON_ISSUER__DATABASE__STARTUP_TIMEOUT_SECONDS", "1");
    let ended = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert!(!ended.status.success());
    let output = String::from_utf8([ended.stdout, ended.stderr].concat()).unwrap();
    assert!(output.contains("Connection refused") && output.contains("waiting for the database"), "{output}");
    assert!(!output.contains("pool timed out"), "{output}");
}

#[tokio::test]
async fn migrate_and_serve_refuse_a_database_that_is_not_utf8() {
    let database = empty_database().await;
    let name = format!("{}_latin1", database.get_database().unwrap());
    let mut connection = database.connect().await.unwrap();
    let create = format!("create database {name} encoding 'LATIN1' lc_collate 'C' lc_ctype 'C' template template0");
    sqlx::raw_sql(sqlx::AssertSqlSafe(create)).execute(&mut connection).await.unwrap();
    close(connection).await;
    for subcommand in ["migrate", "serve"] {
        let mut command = binary();
        command.arg(subcommand).env("COUPON_ISSUER__HTTP__LISTEN", "127.0.0.1:0");
        command.env("DATABASE_URL", url(&database.clone().database(&name)));
        let ended = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        assert!(!ended.status.success());
        let output = String::from_utf8([ended.stdout, ended.stderr].concat()).unwrap();
        assert!(output.contains("encoding is LATIN1, and must be UTF8"), "{output}");
    }
}
