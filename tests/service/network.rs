//! A database that does not answer, though nothing is broken: the network swallows it, a table is locked, it only reads.
//! Nobody waits longer than the stated time, and the service recovers by itself.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::json;
use sqlx::ConnectOptions;
use sqlx::postgres::PgConnectOptions;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::support::{ORG, TestApp, close, eventually, new_database, outcome, series};

/// More than any request may take: a failure, not a measurement.
const TOO_LONG: Duration = Duration::from_secs(25);

/// A wire to Postgres that can swallow what is sent over it, without a word to either side, or be cut.
pub struct Wire {
    /// Where its near end is.
    directory: TempDir,
    swallows: watch::Sender<bool>,
    /// Whether it takes new connections. Those that are there end each time that this is set.
    is_open: watch::Sender<bool>,
}

impl Wire {
    pub fn to(server: &PgConnectOptions) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join(socket_name(server))).unwrap();
        let (swallows, seen) = watch::channel(false);
        let (is_open, cuts) = watch::channel(true);
        let server = server.clone();
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let (server, seen, mut cuts) = (server.clone(), seen.clone(), cuts.clone());
                if !*cuts.borrow_and_update() {
                    continue;
                }
                tokio::spawn(async move {
                    tokio::select! {
                        () = carry(near, &server, seen) => {}
                        _ = cuts.changed() => {}
                    }
                });
            }
        });
        Self { directory, swallows, is_open }
    }

    /// How to connect over it.
    pub fn through(&self, server: &PgConnectOptions) -> PgConnectOptions {
        server.clone().socket(self.directory.path())
    }

    /// Ends every connection. The next one can be made at once.
    pub fn cut(&self) {
        self.is_open.send_replace(true);
    }

    /// Ends every connection, and lets none be made until it is cut the next time.
    pub fn close(&self) {
        self.is_open.send_replace(false);
    }
}

/// Carries one connection. A server that is away ends it.
async fn carry(near: UnixStream, server: &PgConnectOptions, seen: watch::Receiver<bool>) {
    if let Some(directory) = server.get_socket() {
        let Ok(far) = UnixStream::connect(directory.join(socket_name(server))).await else { return };
        pass_both_ways(near, far.into_split(), seen).await;
    } else {
        let Ok(far) = TcpStream::connect((server.get_host(), server.get_port())).await else { return };
        pass_both_ways(near, far.into_split(), seen).await;
    }
}

fn socket_name(server: &PgConnectOptions) -> String {
    format!(".s.PGSQL.{}", server.get_port())
}

async fn pass_both_ways(
    near: UnixStream,
    (far_in, far_out): (impl AsyncRead + Unpin, impl AsyncWrite + Unpin),
    seen: watch::Receiver<bool>,
) {
    let (near_in, near_out) = near.into_split();
    tokio::join!(pass(near_in, far_out, seen.clone()), pass(far_in, near_out, seen));
}

/// A connection that has lost anything never recovers, as after a failover to another host.
async fn pass(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, seen: watch::Receiver<bool>) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if *seen.borrow() {
            pending::<()>().await;
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            break;
        }
    }
}

/// The service over such a wire.
async fn start() -> (Wire, Arc<TestApp>) {
    let database = new_database().await;
    let wire = Wire::to(&database);
    let through = wire.through(&database);
    let file = format!("{ORG}{}{}", series(1, ""), series(2, "max_vouchers_per_user = 9"));
    let app = TestApp::start_over(through, &file, |settings| {
        settings.issuing.timeout = Duration::from_secs(2);
        settings.writer.statement_timeout = Duration::from_secs(1);
        settings.database.acquire_timeout = Duration::from_secs(1);
        settings.database.statement_timeout = Duration::from_secs(1);
    })
    .await;
    (wire, Arc::new(app))
}

/// Requests of every kind, at once: those that read and those that only write, with a key and without. Every round has customers
/// and keys of its own.
async fn all_answers(app: &Arc<TestApp>, round: &'static str) -> Vec<(u16, String)> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let asked: Vec<_> = (0..24)
        .map(|number| {
            let app = Arc::clone(app);
            tokio::spawn(async move {
                let name = format!("{round}-{}", NEXT.fetch_add(1, Ordering::Relaxed));
                let body = json!({"seriesIds": [1 + number % 2], "customer": {"id": name}});
                let request = app.post(body.to_string());
                let keyed = number % 3 == 0;
                let request = if keyed { request.header("Idempotency-Key", name) } else { request };
                let answer = timeout(TOO_LONG, request.send()).await.unwrap().unwrap();
                let status = answer.status().as_u16();
                let answer: serde_json::Value = answer.json().await.unwrap();
                let what = if status == 200 { outcome(&answer["response"][0]) } else { String::new() };
                (status, what)
            })
        })
        .collect();
    let mut answers = Vec::new();
    for answer in asked {
        answers.push(answer.await.unwrap());
    }
    answers
}

async fn all_are_answered(app: &Arc<TestApp>, round: &'static str, good: impl Fn(u16, &str) -> bool) {
    for (status, what) in all_answers(app, round).await {
        assert!(good(status, &what), "{round}: {status} {what}");
    }
}

fn told_to_retry(status: u16, what: &str) -> bool {
    matches!((status, what), (503, "") | (200, "748" | "786"))
}

/// Requests of every kind are issued. A round of which a busy machine delays one is followed by another.
async fn all_is_well(app: &Arc<TestApp>) {
    eventually("all of a round are issued", async || {
        all_answers(app, "well").await.iter().all(|(status, what)| (*status, what.as_str()) == (200, "issued"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_that_swallows_everything_keeps_nobody_waiting() {
    let (wire, app) = start().await;
    all_is_well(&app).await;
    wire.swallows.send(true).unwrap();
    for round in ["first", "second"] {
        all_are_answered(&app, round, told_to_retry).await;
    }
    assert_eq!(app.client().get(app.url("/readyz")).send().await.unwrap().status(), 503);
    wire.swallows.send(false).unwrap();
    all_is_well(&app).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_locked_table_keeps_nobody_waiting() {
    let (_wire, app) = start().await;
    all_is_well(&app).await;
    for table in ["series", "coupon", "keyed_request", "organisation"] {
        let mut holder = app.connect.connect().await.unwrap();
        let lock = sqlx::AssertSqlSafe(format!("begin; lock table {table} in access exclusive mode"));
        sqlx::raw_sql(lock).execute(&mut holder).await.unwrap();
        // What does not touch that table goes on.
        all_are_answered(&app, table, |status, what| told_to_retry(status, what) || what == "issued").await;
        close(holder).await;
        all_is_well(&app).await;
        sqlx::query("delete from keyed_request").execute(&app.pool).await.unwrap();
        sqlx::query("delete from coupon").execute(&app.pool).await.unwrap();
    }
}

/// A primary that has become a standby, or is not one yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_only_reads_is_away() {
    let (_wire, app) = start().await;
    all_is_well(&app).await;
    let name = app.connect.get_database().unwrap();
    for (value, round) in [("on", "meanwhile"), ("off", "after")] {
        let mut admin =
            app.connect.clone().options([("default_transaction_read_only", "off")]).connect().await.unwrap();
        let set = sqlx::AssertSqlSafe(format!(
            "alter database {name} set default_transaction_read_only = {value};
             select pg_terminate_backend(pid) from pg_stat_activity
              where datname = current_database() and pid <> pg_backend_pid()"
        ));
        sqlx::raw_sql(set).execute(&mut admin).await.unwrap();
        close(admin).await;
        if value == "on" {
            all_are_answered(&app, round, told_to_retry).await;
        }
    }
    all_is_well(&app).await;
}
