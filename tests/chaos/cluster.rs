//! The system under test: a private Postgres, the network to it, and two processes of the service.
//! Dropping a part stops it.

use coupon_issuer::db::migrations;
use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::str::FromStr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use coupon_issuer::demo::{Options, PrivatePostgres, PrivatePostgresError};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};

use crate::installation::Installation;
use crate::network::Network;

/// Few enough that a fault can take all of them.
const MAX_CONNECTIONS: &str = "60";
/// The role of the services. It is no superuser: the test uses the connections that Postgres reserves for superusers.
const ROLE: &str = "service";
const DATABASE: &str = "chaos";
/// How long a statement of the test may take to succeed, since it may have to wait for the end of a fault.
const POSTGRES_TIMEOUT: Duration = Duration::from_mins(1);
const STOP_TIMEOUT: Duration = Duration::from_secs(40);

/// How long a service may work on a request: the time-out in the settings below, and the 6 seconds of the lease.
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
    /// The copy of the installation that Postgres runs from. An error explains why there is no copy.
    pub installation: Result<Installation, String>,
    postgres: Arc<Mutex<PrivatePostgres>>,
    superuser: PgConnectOptions,
}

impl Cluster {
    /// Starts Postgres, migrates its schema, and starts the network. The caller fills the database and then starts the services.
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

    /// Connects as the services do, but not through the network.
    pub fn as_service(&self) -> PgConnectOptions {
        self.superuser.clone().username(ROLE).application_name("beside the services")
    }

    /// A superuser's connection, not through the network. Waits until Postgres accepts one.
    pub async fn admin(&self) -> PgConnection {
        let started = Instant::now();
        loop {
            match self.try_admin().await {
                Ok(connection) => return connection,
                Err(error) if started.elapsed() > POSTGRES_TIMEOUT => panic!("Postgres does not come back: {error}"),
                Err(_) => sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// As [`Cluster::admin`], without waiting.
    pub async fn try_admin(&self) -> sqlx::Result<PgConnection> {
        self.superuser.connect().await
    }

    /// As [`Cluster::admin`], for queries with joins. A crash loses the planner's statistics, and without them such a query takes
    /// minutes.
    pub async fn admin_with_statistics(&self) -> PgConnection {
        let mut admin = self.admin().await;
        sqlx::raw_sql("analyze").execute(&mut admin).await.unwrap();
        admin
    }

    /// Executes a statement, and retries it on a new connection if one breaks.
    pub async fn execute(&self, statement: &str) {
        let started = Instant::now();
        loop {
            let mut connection = self.admin().await;
            match sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut connection).await {
                Ok(_) => return drop(connection.close().await),
                Err(error) if started.elapsed() > POSTGRES_TIMEOUT => panic!("{statement}: {error}"),
                Err(_) => sleep(Duration::from_millis(50)).await,
            }
        }
    }

    pub fn postmaster(&self) -> u32 {
        self.postgres.lock().unwrap().postmaster_pid()
    }

    /// Stops Postgres in its mode "fast", unless it is dead already, and starts it.
    pub async fn restart_postgres(&self) {
        let postgres = Arc::clone(&self.postgres);
        spawn_blocking(move || postgres.lock().unwrap().restart().unwrap()).await.unwrap();
    }

    /// A command of the service's binary, with a connection to this database that does not go through the network.
    pub fn command(&self) -> Command {
        let url = self.superuser.clone().username(ROLE).to_url_lossy();
        let mut command = service_command(url.as_str());
        command.stdin(Stdio::null());
        command
    }
}

/// Starts Postgres from a copy of its installation, or from the installation itself if it cannot be copied.
fn start_postgres(directory: &Path) -> Result<(PrivatePostgres, Result<Installation, String>), PrivatePostgresError> {
    // The verdict compares the time of a commit with that of a call. The history takes the order of the commits from the log.
    let settings = [("max_connections", MAX_CONNECTIONS), ("track_commit_timestamp", "on"), ("wal_level", "logical")];
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

fn service_command(database_url: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_coupon-issuer"));
    command.env_remove("DATABASE_URL").env("COUPON_ISSUER__DATABASE__URL", database_url);
    for (name, value) in SETTINGS {
        command.env(format!("COUPON_ISSUER__{name}"), value);
    }
    command
}

/// A process of the service. A new process gets the same addresses.
pub struct Replica {
    pub address: SocketAddr,
    /// The address of its metrics.
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
        let mut command = service_command(&self.database_url);
        command.arg("serve").env("COUPON_ISSUER__HTTP__LISTEN", self.address.to_string());
        command.env("COUPON_ISSUER__METRICS__LISTEN", self.metrics.to_string());
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        *self.child.lock().unwrap() = Some(command.spawn().unwrap());
    }

    /// Whether the process was started and has not exited.
    pub fn is_running(&self) -> bool {
        self.child.lock().unwrap().as_mut().is_some_and(|child| child.try_wait().unwrap().is_none())
    }

    /// Sends SIGKILL, and waits for the exit.
    pub fn kill(&self) {
        if let Some(mut child) = self.child.lock().unwrap().take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Stops the process as an orchestrator does: SIGTERM, then a grace period. `None`: the process did not exit in time and was
    /// killed.
    pub async fn stop(&self) -> Option<ExitStatus> {
        let pid = self.child.lock().unwrap().as_ref().map(Child::id).unwrap();
        signal("-TERM", &[pid]);
        let started = Instant::now();
        while started.elapsed() < STOP_TIMEOUT {
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

/// A free port below 32768. The system picks the ports of outgoing connections above that, so none takes this one while the service
/// is down.
fn free_address() -> SocketAddr {
    let begin = 20_000 + u16::try_from(std::process::id() % 10_000).unwrap();
    let is_free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    let port = (begin..32_768).filter(|port| reserve_port(*port)).find(is_free).unwrap();
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// Reserves a port within this process. False: it was reserved before.
fn reserve_port(port: u16) -> bool {
    static RESERVED: Mutex<Vec<u16>> = Mutex::new(Vec::new());
    let mut reserved = RESERVED.lock().unwrap();
    let is_new = !reserved.contains(&port);
    reserved.push(port);
    is_new
}

/// Sends a signal to these processes. A process that has exited is ignored.
pub fn signal(signal: &str, pids: &[u32]) {
    let pids = pids.iter().map(ToString::to_string);
    let _ = Command::new("kill").arg(signal).args(pids).stderr(Stdio::null()).status();
}

/// A process and its children, in that order.
pub fn process_tree(parent: u32) -> Vec<u32> {
    let output = Command::new("pgrep").args(["-P", &parent.to_string()]).output().unwrap();
    let children = String::from_utf8(output.stdout).unwrap();
    // The parent is frozen first, so that it starts no more children.
    std::iter::once(parent).chain(children.lines().map(|pid| pid.parse().unwrap())).collect()
}

/// Freezes these processes for a time. A shell resumes them even if this process dies meanwhile.
pub fn freeze(pids: &[u32], time: Duration) {
    let script = r#"seconds=$1; shift; kill -STOP "$@"; sleep "$seconds"; kill -CONT "$@""#;
    let mut shell = Command::new("sh");
    shell.args(["-c", script, "sh", &time.as_secs_f32().to_string()]);
    let _ = shell.args(pids.iter().map(ToString::to_string)).stderr(Stdio::null()).status();
}

/// The logs of both services.
pub fn logs(cluster: &Cluster) -> String {
    let read = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
    cluster.replicas.iter().map(|replica| read(&replica.log)).collect()
}

/// How many of the writers' calls wait for a lock.
pub async fn waiting_calls(admin: &mut PgConnection) -> sqlx::Result<i64> {
    let waiting = "select count(*) from pg_stat_activity
         where application_name = 'coupon-issuer writer' and wait_event_type = 'Lock'";
    sqlx::query_scalar(waiting).fetch_one(admin).await
}
