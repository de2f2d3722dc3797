//! A private Postgres from the machine's own binaries, for `demo` and the integration tests.
//!
//! The server listens on a Unix socket that only this user can reach, and stops when this process ends, even if it is killed. It
//! must not open a port or change files that it did not create. All calls block: from async code, wrap them in `spawn_blocking`.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{process, thread};

use super::account::Account;
use super::data_dir::{SOCKET_NAME, lock, private_dir, socket_dir_for, usable_data_dir};
use super::error::{PrivatePostgresError, Result, cannot};
use super::installation::{complete_installation, find_binaries};
use super::watchdog::{Guarded, POLL_INTERVAL, WATCHDOG};

const START_TIMEOUT: Duration = Duration::from_mins(1);
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

const LOG_NAME: &str = "server.log";
const UNFINISHED_CLUSTER_PREFIX: &str = "cluster.new.";
const PID_NAME: &str = "postmaster.pid";

/// Prints the working directory of process `$1`: from /proc on Linux, otherwise with lsof.
const WORKING_DIR: &str = r#"
[ -e /proc/self ] && exec readlink "/proc/$1/cwd"
lsof -a -p "$1" -d cwd -Fn | sed -n 's/^n//p'
"#;

/// Keeps the server private, and its log where we read it: Fedora logs elsewhere by default.
const FIXED_SETTINGS: [&str; 5] = [
    "listen_addresses=",
    "port=5432",
    "unix_socket_permissions=0700",
    "logging_collector=off",
    "log_destination=stderr",
];

/// What to start.
#[derive(Debug, Clone)]
pub struct Options {
    /// The directory of the cluster, the log, the lock and, if its path is short enough, the socket. It must be new, empty, or from
    /// an earlier run. Only its owner keeps access to it.
    pub data_dir: PathBuf,
    /// `false` risks the data in a power cut for speed, as tests do.
    pub durable: bool,
    /// Further server settings, name and value. They override our defaults, except where the server listens and logs.
    pub settings: Vec<(String, String)>,
}

/// A running private Postgres. Dropping it stops the server.
#[derive(Debug)]
pub struct PrivatePostgres {
    options: Options,
    account: Account,
    bin_dir: PathBuf,
    data_dir: PathBuf,
    cluster: PathBuf,
    socket_dir: PathBuf,
    server: Option<Guarded>,
    postmaster_pid: u32,
    // The system releases the lock when this process dies.
    _lock: File,
}

impl PrivatePostgres {
    /// Makes the cluster if there is none, starts the server, and returns once it accepts connections. Stops a server that an
    /// earlier run left running first.
    ///
    /// As root, the server runs as `postgres` or `nobody`. If that account cannot reach the data directory, the data are kept under
    /// `/var/tmp`, and a warning names the directory.
    ///
    /// # Errors
    ///
    /// No usable binaries or account; a data directory that is not ours or is in use; a server that is not ready within a minute.
    pub fn start(options: &Options) -> Result<Self> {
        Self::start_from(&find_binaries()?, options)
    }

    /// Like [`PrivatePostgres::start`], with the programs in this directory.
    ///
    /// # Errors
    ///
    /// As [`PrivatePostgres::start`].
    pub fn start_from(bin_dir: &Path, options: &Options) -> Result<Self> {
        let bin_dir = complete_installation(bin_dir)?;
        let account = Account::choose()?;
        let data_dir = usable_data_dir(&options.data_dir, account)?;
        let mut postgres = Self {
            options: options.clone(),
            account,
            bin_dir,
            socket_dir: socket_dir_for(&data_dir),
            cluster: data_dir.join("cluster"),
            _lock: lock(&data_dir)?,
            data_dir,
            server: None,
            postmaster_pid: 0,
        };
        postgres.ensure_cluster()?;
        postgres.launch()?;
        Ok(postgres)
    }

    /// A URL that reaches `database` as superuser, whatever `PG...` variables are set.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        let database = percent_encode(database.as_bytes());
        let host = percent_encode(self.socket_dir.as_os_str().as_bytes());
        format!("postgres://postgres@localhost:5432/{database}?host={host}&sslmode=disable")
    }

    /// A psql command that opens `database`, for a person to paste.
    #[must_use]
    pub fn psql_hint(&self, database: &str) -> String {
        let psql = self.bin_dir.join("psql");
        let psql = if psql.is_file() { &psql } else { Path::new("psql") };
        format!("{} '{}'", psql.display(), self.url(database))
    }

    /// The directory of the server's socket. A restart does not change it.
    #[must_use]
    pub fn socket_dir(&self) -> &Path {
        &self.socket_dir
    }

    /// The absolute path of the data directory in use, which may differ from the requested one; see [`PrivatePostgres::start`].
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// The process id of the server that was started last.
    #[must_use]
    pub fn postmaster_pid(&self) -> u32 {
        self.postmaster_pid
    }

    /// Starts the server again on the same data and the same socket, whether it still runs or was killed.
    /// [`PrivatePostgres::url`] stays valid.
    ///
    /// # Errors
    ///
    /// The server does not stop or does not start. The caller may try again.
    pub fn restart(&mut self) -> Result<()> {
        self.shut_down()?;
        self.launch()
    }

    /// Ends all connections, stops the server, and returns once it is gone. A server that does not stop in time is stopped in
    /// immediate mode and recovers at its next start.
    ///
    /// # Errors
    ///
    /// The server could not be stopped.
    pub fn stop(mut self) -> Result<()> {
        self.shut_down()
    }

    /// Makes the cluster under another name and renames it once complete, so that a half-made cluster is never used.
    fn ensure_cluster(&self) -> Result<()> {
        if self.cluster.join("PG_VERSION").is_file() {
            return Ok(());
        }
        self.clear_unfinished()?;
        // An initdb of an earlier process may still be writing: the pid keeps the two apart.
        let unfinished = self.data_dir.join(format!("{UNFINISHED_CLUSTER_PREFIX}{}", process::id()));
        let fixed = "-U postgres -A trust -E UTF8 --locale=C -D".split(' ');
        let mut args: Vec<OsString> = fixed.map(Into::into).collect();
        args.push(unfinished.clone().into());
        if !self.options.durable {
            args.push("--no-sync".into());
        }
        let exit = self.spawn("initdb", &args)?.wait(START_TIMEOUT)?;
        if !exit.is_some_and(|status| status.success()) {
            return Err(self.failed("initdb did not make a cluster"));
        }
        fs::rename(&unfinished, &self.cluster).map_err(cannot("rename", &unfinished))?;
        let synced = File::open(&self.data_dir).and_then(|dir| dir.sync_all());
        synced.map_err(cannot("sync", &self.data_dir))
    }

    fn clear_unfinished(&self) -> Result<()> {
        let entries = fs::read_dir(&self.data_dir).map_err(cannot("read", &self.data_dir))?;
        for entry in entries.flatten() {
            let name = entry.file_name();
            if name.as_bytes().starts_with(UNFINISHED_CLUSTER_PREFIX.as_bytes()) {
                fs::remove_dir_all(entry.path()).map_err(cannot("remove", &entry.path()))?;
            } else if name == "cluster" {
                // We did not leave it like that, so somebody may need its files.
                tracing::warn!("renaming a cluster directory without a PG_VERSION");
                let aside = format!("cluster.set-aside.{}", process::id());
                fs::rename(entry.path(), self.data_dir.join(aside)).map_err(cannot("rename", &entry.path()))?;
            }
        }
        Ok(())
    }

    /// Starts the server and waits until it is ready. Retries until the time-out if the cause of a failure is temporary.
    fn launch(&mut self) -> Result<()> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            self.stop_leftover("fast")?;
            private_dir(&self.socket_dir, self.account)?;
            for stale in [".s.PGSQL.5432", ".s.PGSQL.5432.lock"] {
                // No server runs, so a pid in the lock file is not a server's.
                let _ = fs::remove_file(self.socket_dir.join(stale));
            }
            self.server = Some(self.spawn("postgres", &self.server_args())?);
            let Err(error) = self.wait_until_ready(deadline) else {
                return Ok(());
            };
            self.shut_down()?;
            if !is_temporary(&error) || Instant::now() > deadline {
                return Err(error);
            }
            thread::sleep(10 * POLL_INTERVAL);
        }
    }

    /// Postgres takes the last value of a setting. The order is: our defaults, the caller's, the fixed ones.
    fn server_args(&self) -> Vec<OsString> {
        let mut settings = vec!["max_connections=200".to_owned()];
        if !self.options.durable {
            settings.extend(["fsync=off", "full_page_writes=off"].map(Into::into));
        }
        let from_caller = self.options.settings.iter();
        settings.extend(from_caller.map(|(name, value)| format!("{name}={value}")));
        settings.extend(FIXED_SETTINGS.map(Into::into));
        let socket_dir = self.socket_dir.display();
        settings.push(format!("unix_socket_directories=\"{socket_dir}\""));
        let mut args = vec!["-D".into(), self.cluster.clone().into()];
        for setting in settings {
            args.extend(["-c".into(), setting.into()]);
        }
        args
    }

    fn wait_until_ready(&mut self, deadline: Instant) -> Result<()> {
        while Instant::now() < deadline {
            if let Some(pid) = self.ready_pid() {
                self.postmaster_pid = pid;
                return Ok(());
            }
            if let Some(server) = &mut self.server
                && server.wait(POLL_INTERVAL)?.is_some()
            {
                return Err(self.failed("the Postgres server ended while starting"));
            }
        }
        Err(self.failed("the Postgres server was not ready in time"))
    }

    /// The order matters: a killed server may leave a postmaster.pid that says "ready". Once the socket answers, the file is this
    /// server's.
    fn ready_pid(&self) -> Option<u32> {
        UnixStream::connect(self.socket_dir.join(SOCKET_NAME)).ok()?;
        parse_ready_pid(&fs::read_to_string(self.cluster.join(PID_NAME)).ok()?)
    }

    fn shut_down(&mut self) -> Result<()> {
        let Some(mut server) = self.server.take() else {
            return Ok(());
        };
        server.stop();
        let exit = server.wait(STOP_TIMEOUT)?;
        if !exit.is_some_and(|status| status.success()) {
            // It was too slow, or somebody killed it or its watchdog: a server process may still run.
            self.stop_leftover(if exit.is_none() { "immediate" } else { "fast" })?;
            server.wait(STOP_TIMEOUT)?;
        }
        if !self.socket_dir.starts_with(&self.data_dir) {
            // A failure does no harm: the next start makes the directory again.
            let _ = fs::remove_dir(&self.socket_dir);
        }
        Ok(())
    }

    /// Stops a server of this cluster that an earlier process left running, which is a process whose working directory is the
    /// cluster. Any other process got the pid in the file by chance, and Postgres would refuse to start because of it.
    fn stop_leftover(&self, mode: &str) -> Result<()> {
        let pid_file = self.cluster.join(PID_NAME);
        let recorded = fs::read_to_string(&pid_file).unwrap_or_default();
        let Some(pid) = recorded.lines().next().and_then(|pid| pid.parse::<u32>().ok()) else {
            return Ok(());
        };
        match self.account.path_from(WORKING_DIR, pid.to_string()) {
            // Dead, or another user's process: Postgres itself sees that the file is stale.
            None => return Ok(()),
            Some(dir) if dir == self.cluster => {}
            Some(_) => {
                tracing::warn!(pid, "removing a stale postmaster.pid");
                return fs::remove_file(&pid_file).map_err(cannot("remove", &pid_file));
            }
        }
        tracing::warn!(pid, mode, "stopping a Postgres that an earlier run left running");
        let pg_ctl = self.bin_dir.join("pg_ctl");
        let mut command = self.account.command(&pg_ctl);
        let args = ["stop", "-w", "-s", "-t", "30", "-m", mode, "-D"];
        let output = command.args(args).arg(&self.cluster).output();
        let output = output.map_err(cannot("run", &pg_ctl))?;
        // pg_ctl fails if the server ended by itself in the meantime.
        if output.status.success() || !pid_file.exists() {
            return Ok(());
        }
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        Err(PrivatePostgresError::Failed("pg_ctl could not stop the server", stderr))
    }

    fn spawn(&self, program: &str, args: &[OsString]) -> Result<Guarded> {
        let mut command = self.account.shell(WATCHDOG);
        command.arg(self.data_dir.join(LOG_NAME));
        Guarded::spawn(command.arg(self.bin_dir.join(program)).args(args))
    }

    fn failed(&self, what: &'static str) -> PrivatePostgresError {
        let log = fs::read(self.data_dir.join(LOG_NAME)).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<_> = log.lines().collect();
        PrivatePostgresError::Failed(what, lines[lines.len().saturating_sub(20)..].join("\n"))
    }
}

impl Drop for PrivatePostgres {
    fn drop(&mut self) {
        if let Err(error) = self.shut_down() {
            tracing::warn!(%error, "the private Postgres did not stop");
        }
    }
}

/// The pid (line 1 of postmaster.pid) of a server whose state (line 8) is "ready".
fn parse_ready_pid(pid_file: &str) -> Option<u32> {
    let mut lines = pid_file.lines();
    let pid = lines.next()?.parse().ok()?;
    (lines.nth(6)?.trim() == "ready").then_some(pid)
}

/// Whether a start failed because the last backends of a killed server are still ending, or because a short-lived process has the
/// pid that the killed server recorded.
fn is_temporary(error: &PrivatePostgresError) -> bool {
    let PrivatePostgresError::Failed(_, log) = error else {
        return false;
    };
    log.contains("pre-existing shared memory block") || log.contains("postmaster.pid\" already exists")
}

fn percent_encode(bytes: &[u8]) -> String {
    let encode = |&byte: &u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' => char::from(byte).into(),
        _ => format!("%{byte:02X}"),
    };
    bytes.iter().map(encode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_counts_only_of_a_ready_server() {
        let file = |state| format!("47\n/d/cluster\n1700000\n5432\n/d/socket\n\n 42 7\n{state}\n");
        assert_eq!(parse_ready_pid(&file("ready   ")), Some(47));
        assert_eq!(parse_ready_pid(&file("starting")), None);
        assert_eq!(parse_ready_pid("47\n/d/cluster\n"), None);
    }

    #[test]
    fn encodes_for_urls() {
        let encoded = percent_encode("/a b/ü+&'".as_bytes());
        assert_eq!(encoded, "%2Fa%20b%2F%C3%BC%2B%26%27");
        assert_eq!(percent_encode(b"Az09-._"), "Az09-._");
    }
}
