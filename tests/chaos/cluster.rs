//! What is made to fail: a Postgres of the test's own, the network to it, and two processes of the service.
//! Whatever is started here is stopped when it is dropped.

use coupon_issuer::db::migrations;
use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::str::FromStr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use coupon_issuer::demo::private_postgres::{Options, PrivatePostgres, PrivatePostgresError};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};

use crate::installation::Installation;
use crate::network::Network;

/// So few that its connection table can be filled.
const MOST_CONNECTIONS: &str = "60";
/// What the services log in as. No superuser: the places kept for those are the test's.
const ROLE: &str = "service";
const DATABASE: &str = "chaos";
/// For what must succeed once a fault is over.
const PATIENCE: Duration = Duration::from_mins(1);
const STOP_LIMIT: Duration = Duration::from_secs(40);

/// How long a service may be at work on a request: the time-out in the settings below, and 6 seconds of the lease.
pub const LONGEST_CALL: Duration = Duration::from_secs(3 + 6);

const SETTINGS: [(&str, &str); 7] = [
    ("LOG__FILTER", "warn"),
    ("LOG__FORMAT", "json"),
    ("RATE_LIMIT__PER_MINUTE", "-1"),
    ("ISSUING__TIMEOUT_SECONDS", "3"),
    ("WRITER__STATEMENT_TIMEOUT_SECONDS", "2"),
    ("DATABASE__ACQUIRE_TIMEOUT_SECONDS", "1"),
    ("DATABASE__STATEMENT_TIMEOUT_SECONDS", "2"),
];

pub struct Cluster {
    pub replicas: [Replica; 2],
    pub network: Network,
    pub directory: PathBuf,
    /// What Postgres runs from. An error says why it is no copy.
    pub installation: Result<Installation, String>,
    postgres: Arc<Mutex<PrivatePostgres>>,
    superuser: PgConnectOptions,
}

impl Cluster {
    /// Starts Postgres, with the schema, and the network. The services are started by whoever has filled the database.
    pub async fn start(directory: PathBuf) -> Self {
        if directory.exists() {
            std::fs::remove_dir_all(&directory).unwrap();
        }
        std::fs::create_dir_all(&directory).unwrap();
        let start = {
            let directory = directory.clone();
            move || start_postgres(&directory).unwrap()
        };
        let (postgres, installation) = spawn_blocking(start).await.unwrap();
        let network = Network::start(postgres.socket_dir().join(".s.PGSQL.5432")).await;
        let superuser = PgConnectOptions::from_str(&postgres.url("postgres")).unwrap();
        for statement in ["create role service login", "create database chaos owner service"] {
            let mut connection = superuser.connect().await.unwrap();
            sqlx::raw_sql(statement).execute(&mut connection).await.unwrap();
        }
        let superuser = superuser.database(DATABASE);
        migrations::migrate(&superuser.clone().username(ROLE)).await.unwrap();
        let url = format!("postgres://{ROLE}@{}/{DATABASE}?sslmode=disable", network.address());
        let replicas = [1, 2].map(|number| Replica::new(&url, directory.join(format!("service-{number}.log"))));
        Self { replicas, network, directory, installation, postgres: Arc::new(Mutex::new(postgres)), superuser }
    }

    /// How the services would connect without the network.
    pub fn as_service(&self) -> PgConnectOptions {
        self.superuser.clone().username(ROLE).application_name("beside the services")
    }

    /// A connection of a superuser, which goes past the network. Waits until there is one to be had.
    pub async fn admin(&self) -> PgConnection {
        let started = Instant::now();
        loop {
            match self.try_admin().await {
                Ok(connection) => return connection,
                Err(error) if started.elapsed() > PATIENCE => panic!("Postgres does not come back: {error}"),
                Err(_) => sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// As [`Cluster::admin`], if there is one to be had at this moment.
    pub async fn try_admin(&self) -> sqlx::Result<PgConnection> {
        self.superuser.connect().await
    }

    /// As [`Cluster::admin`], for queries with joins. A crash loses the statistics, and without them such a query takes minutes.
    pub async fn admin_with_statistics(&self) -> PgConnection {
        let mut admin = self.admin().await;
        sqlx::raw_sql("analyze").execute(&mut admin).await.unwrap();
        admin
    }

    /// Has this done, over another connection if one breaks.
    pub async fn execute(&self, statement: &str) {
        let started = Instant::now();
        loop {
            let mut connection = self.admin().await;
            match sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut connection).await {
                Ok(_) => return drop(connection.close().await),
                Err(error) if started.elapsed() > PATIENCE => panic!("{statement}: {error}"),
                Err(_) => sleep(Duration::from_millis(50)).await,
            }
        }
    }

    pub fn postmaster(&self) -> u32 {
        self.postgres.lock().unwrap().postmaster_pid()
    }

    /// Stops Postgres (fast), unless it is dead already, and starts it.
    pub async fn restart_postgres(&self) {
        let postgres = Arc::clone(&self.postgres);
        spawn_blocking(move || postgres.lock().unwrap().restart().unwrap()).await.unwrap();
    }

    /// A command of the binary, told of this database by a way past the network.
    pub fn command(&self) -> Command {
        let url = self.superuser.clone().username(ROLE).to_url_lossy();
        let mut command = binary(url.as_str());
        command.stdin(Stdio::null());
        command
    }
}

/// Starts Postgres from a copy of its installation, or from the installation itself where that cannot be.
fn start_postgres(directory: &Path) -> Result<(PrivatePostgres, Result<Installation, String>), PrivatePostgresError> {
    // The verdict compares the time of a commit with that of an answer. The history reads the order of the commits from the log.
    let settings = [("max_connections", MOST_CONNECTIONS), ("track_commit_timestamp", "on"), ("wal_level", "logical")];
    let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let options = Options { data_dir: directory.join("postgres"), durable: true, settings };
    let started = Installation::copy_into(&directory.join("installation")).and_then(|copy| {
        let postgres = PrivatePostgres::start_from(copy.bin_dir(), &options);
        postgres.map(|postgres| (postgres, copy)).map_err(|error| format!("it does not start from its copy: {error}"))
    });
    match started {
        Ok((postgres, copy)) => Ok((postgres, Ok(copy))),
        Err(why) => PrivatePostgres::start(&options).map(|postgres| (postgres, Err(why))),
    }
}

fn binary(database_url: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_coupon-issuer"));
    command.env_remove("DATABASE_URL").env("COUPON_ISSUER__DATABASE__URL", database_url);
    for (name, value) in SETTINGS {
        command.env(format!("COUPON_ISSUER__{name}"), value);
    }
    command
}

/// One process of the service, always at the same address.
pub struct Replica {
    pub address: SocketAddr,
    /// Where its metrics are.
    pub metrics: SocketAddr,
    pub log: PathBuf,
    database_url: String,
    child: Mutex<Option<Child>>,
}

impl Replica {
    fn new(database_url: &str, log: PathBuf) -> Self {
        let (address, metrics) = (free_address(), free_address());
        Self { address, metrics, log, database_url: database_url.to_owned(), child: Mutex::new(None) }
    }

    pub fn start(&self) {
        let log = File::options().append(true).create(true).open(&self.log).unwrap();
        let mut command = binary(&self.database_url);
        command.arg("serve").env("COUPON_ISSUER__HTTP__LISTEN", self.address.to_string());
        command.env("COUPON_ISSUER__METRICS__LISTEN", self.metrics.to_string());
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        *self.child.lock().unwrap() = Some(command.spawn().unwrap());
    }

    /// Whether it was started and has not ended.
    pub fn is_running(&self) -> bool {
        self.child.lock().unwrap().as_mut().is_some_and(|child| child.try_wait().unwrap().is_none())
    }

    /// As `kill -9` does.
    pub fn kill(&self) {
        if let Some(mut child) = self.child.lock().unwrap().take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// As an orchestrator does: SIGTERM, and some time. `None`: it did not end in that time, and was killed.
    pub async fn stop(&self) -> Option<ExitStatus> {
        let pid = self.child.lock().unwrap().as_ref().map(Child::id).unwrap();
        signal("-TERM", &[pid]);
        let started = Instant::now();
        while started.elapsed() < STOP_LIMIT {
            if let Some(exit) = self.child.lock().unwrap().as_mut().and_then(|child| child.try_wait().unwrap()) {
                return Some(exit);
            }
            sleep(Duration::from_millis(20)).await;
        }
        self.kill();
        None
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A port that nobody has now, and that the system gives to no outgoing connection while the service is down: those it takes
/// from 32768 upwards.
fn free_address() -> SocketAddr {
    let begin = 20_000 + u16::try_from(std::process::id() % 10_000).unwrap();
    let free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    let port = (begin..32_768).filter(|port| not_handed_out(*port)).find(free).unwrap();
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// Whether it is the first time that this process asks for this port.
fn not_handed_out(port: u16) -> bool {
    static HANDED_OUT: Mutex<Vec<u16>> = Mutex::new(Vec::new());
    let mut handed_out = HANDED_OUT.lock().unwrap();
    let is_new = !handed_out.contains(&port);
    handed_out.push(port);
    is_new
}

/// Sends a signal to these processes. That one of them has gone is no failure.
pub fn signal(signal: &str, pids: &[u32]) {
    let pids = pids.iter().map(ToString::to_string);
    let _ = Command::new("kill").arg(signal).args(pids).stderr(Stdio::null()).status();
}

/// A process and its children.
pub fn family(parent: u32) -> Vec<u32> {
    let output = Command::new("pgrep").args(["-P", &parent.to_string()]).output().unwrap();
    let children = String::from_utf8(output.stdout).unwrap();
    // The parent first: what is frozen makes no more children.
    std::iter::once(parent).chain(children.lines().map(|pid| pid.parse().unwrap())).collect()
}

/// Freezes these processes for a time. A shell thaws them, even if this process dies meanwhile.
pub fn freeze(pids: &[u32], time: Duration) {
    let script = r#"seconds=$1; shift; kill -STOP "$@"; sleep "$seconds"; kill -CONT "$@""#;
    let mut shell = Command::new("sh");
    shell.args(["-c", script, "sh", &time.as_secs_f32().to_string()]);
    let _ = shell.args(pids.iter().map(ToString::to_string)).stderr(Stdio::null()).status();
}

/// Everything that the services have logged.
pub fn logs(cluster: &Cluster) -> String {
    let read = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
    cluster.replicas.iter().map(|replica| read(&replica.log)).collect()
}

/// How many calls that write wait for a lock.
pub async fn waiting_calls(admin: &mut PgConnection) -> sqlx::Result<i64> {
    let waiting = "select count(*) from pg_stat_activity
         where application_name = 'coupon-issuer writer' and wait_event_type = 'Lock'";
    sqlx::query_scalar(waiting).fetch_one(admin).await
}
