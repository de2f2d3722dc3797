//! A database that does not answer although nothing is broken: the network drops all data, a table is locked, the database is
//! read-only. Each request ends within its time-out, and the service recovers by itself.

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

use crate::support::{ORG, TestApp, close, eventually, new_database, outcome, repeatable_series};

/// Far above the time-outs of [`start`]: a request that takes longer has hung.
const TOO_LONG: Duration = Duration::from_secs(25);

/// A proxy in front of Postgres that can drop all data without notice to either side, or cut its connections.
pub struct Wire {
    /// Holds the socket that clients connect to.
    directory: TempDir,
    drops_data: watch::Sender<bool>,
    /// Whether it accepts new connections. Each assignment ends the present ones.
    is_open: watch::Sender<bool>,
}

impl Wire {
    pub fn to(server: &PgConnectOptions) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join(socket_name(server))).unwrap();
        let (drops_data, drops) = watch::channel(false);
        let (is_open, cuts) = watch::channel(true);
        let server = server.clone();
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let (server, drops, mut cuts) = (server.clone(), drops.clone(), cuts.clone());
                if !*cuts.borrow_and_update() {
                    continue;
                }
                tokio::spawn(async move {
                    tokio::select! {
                        () = carry(near, &server, drops) => {}
                        _ = cuts.changed() => {}
                    }
                });
            }
        });
        Self { directory, drops_data, is_open }
    }

    /// The options to connect through this proxy.
    pub fn through(&self, server: &PgConnectOptions) -> PgConnectOptions {
        server.clone().socket(self.directory.path())
    }

    /// Ends every connection. New ones can be made at once.
    pub fn cut(&self) {
        self.is_open.send_replace(true);
    }

    /// Ends every connection, and accepts none until the next [`Wire::cut`].
    pub fn close(&self) {
        self.is_open.send_replace(false);
    }
}

/// Forwards one connection, and closes it if the server cannot be reached.
async fn carry(near: UnixStream, server: &PgConnectOptions, drops: watch::Receiver<bool>) {
    if let Some(directory) = server.get_socket() {
        let Ok(far) = UnixStream::connect(directory.join(socket_name(server))).await else { return };
        pass_both_ways(near, far.into_split(), drops).await;
    } else {
        let Ok(far) = TcpStream::connect((server.get_host(), server.get_port())).await else { return };
        pass_both_ways(near, far.into_split(), drops).await;
    }
}

fn socket_name(server: &PgConnectOptions) -> String {
    format!(".s.PGSQL.{}", server.get_port())
}

async fn pass_both_ways(
    near: UnixStream,
    (far_in, far_out): (impl AsyncRead + Unpin, impl AsyncWrite + Unpin),
    drops: watch::Receiver<bool>,
) {
    let (near_in, near_out) = near.into_split();
    tokio::join!(pass(near_in, far_out, drops.clone()), pass(far_in, near_out, drops));
}

/// A connection that has lost data stays silent, as after a failover to another host.
async fn pass(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, drops: watch::Receiver<bool>) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if *drops.borrow() {
            pending::<()>().await;
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            break;
        }
    }
}

async fn start() -> (Wire, Arc<TestApp>) {
    let database = new_database().await;
    let wire = Wire::to(&database);
    let through = wire.through(&database);
    let file = format!("{ORG}{}{}", repeatable_series(1, ""), repeatable_series(2, "max_vouchers_per_user = 9"));
    let app = TestApp::start_over(through, &file, |settings| {
        settings.issuing.timeout = Duration::from_secs(2);
        settings.writer.statement_timeout = Duration::from_secs(1);
        settings.database.acquire_timeout = Duration::from_secs(1);
        settings.database.statement_timeout = Duration::from_secs(1);
    })
    .await;
    (wire, Arc::new(app))
}

/// Sends requests of every kind at once: to a series that reads the customer's history and to one that only writes, with an
/// idempotency key and without. Every round has its own customers and keys.
async fn send_round(app: &Arc<TestApp>, round: &'static str) -> Vec<(u16, String)> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let calls: Vec<_> = (0..24)
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
                let outcome = if status == 200 { outcome(&answer["response"][0]) } else { String::new() };
                (status, outcome)
            })
        })
        .collect();
    let mut answers = Vec::new();
    for call in calls {
        answers.push(call.await.unwrap());
    }
    answers
}

async fn assert_round(app: &Arc<TestApp>, round: &'static str, is_allowed: impl Fn(u16, &str) -> bool) {
    for (status, outcome) in send_round(app, round).await {
        assert!(is_allowed(status, &outcome), "{round}: {status} {outcome}");
    }
}

fn is_retryable(status: u16, outcome: &str) -> bool {
    matches!((status, outcome), (503, "") | (200, "748" | "786"))
}

/// Every request of a round is issued. A busy machine may delay one of them, so there may be several rounds.
async fn assert_works(app: &Arc<TestApp>) {
    eventually("every request of a round is issued", async || {
        send_round(app, "works").await.iter().all(|(status, outcome)| (*status, outcome.as_str()) == (200, "issued"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_end_in_time_while_the_network_drops_all_data() {
    let (wire, app) = start().await;
    assert_works(&app).await;
    wire.drops_data.send(true).unwrap();
    for round in ["first", "second"] {
        assert_round(&app, round, is_retryable).await;
    }
    assert_eq!(app.client().get(app.url("/readyz")).send().await.unwrap().status(), 503);
    wire.drops_data.send(false).unwrap();
    assert_works(&app).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_end_in_time_while_a_table_is_locked() {
    let (_wire, app) = start().await;
    assert_works(&app).await;
    for table in ["series", "coupon", "keyed_request", "organisation"] {
        let mut holder = app.connect.connect().await.unwrap();
        let lock = sqlx::AssertSqlSafe(format!("begin; lock table {table} in access exclusive mode"));
        sqlx::raw_sql(lock).execute(&mut holder).await.unwrap();
        // A request that does not need the table may be issued.
        assert_round(&app, table, |status, outcome| is_retryable(status, outcome) || outcome == "issued").await;
        close(holder).await;
        assert_works(&app).await;
        sqlx::query("delete from keyed_request").execute(&app.pool).await.unwrap();
        sqlx::query("delete from coupon").execute(&app.pool).await.unwrap();
    }
}

/// A former primary, or a standby that is not promoted yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_only_database_counts_as_unavailable() {
    let (_wire, app) = start().await;
    assert_works(&app).await;
    let name = app.connect.get_database().unwrap();
    for (value, round) in [("on", "read-only"), ("off", "writable")] {
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
            assert_round(&app, round, is_retryable).await;
        }
    }
    assert_works(&app).await;
}
