//! A private Postgres from the machine's own binaries, for `demo` and the integration tests.
//!
//! It serves one data directory on a Unix socket only this user can reach, and stops when this
//! process ends, however that comes about. It must not open a port or touch what it did not
//! create. Its calls block: from async code, wrap them in `spawn_blocking`.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File, Permissions, TryLockError};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, lchown};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use std::{env, process, thread};

use PrivatePostgresError as Error;

const SHELL: &str = "/bin/sh";
const BIN_DIR_VARIABLE: &str = "COUPON_ISSUER_PG_BIN";
const OLDEST_VERSION: u32 = 14;
const START_LIMIT: Duration = Duration::from_mins(1);
const STOP_LIMIT: Duration = Duration::from_secs(30);
const POLL_PAUSE: Duration = Duration::from_millis(20);

const LOCK_NAME: &str = "coupon-issuer.lock";
const LOG_NAME: &str = "server.log";
const UNFINISHED: &str = "cluster.new.";
const PID_NAME: &str = "postmaster.pid";
const SOCKET_NAME: &str = ".s.PGSQL.5432";
/// The lowest limit on a socket's path (macOS; Linux allows 107).
const SOCKET_PATH_LIMIT: usize = 103;

/// Runs a program and stops it with SIGINT (fast shutdown) when standard input closes, that is,
/// when our process closes it or dies. A reader waits for that and tells this shell, which alone
/// waits for the program: so no signal goes to a pid that has since been given to another
/// process, and the shell ends when the program does. Arguments: the log file, the command.
const WATCHDOG: &str = r#"
log=$1; shift
exec 3<&0 >"$log" 2>&1
trap 'again=1; kill -INT "$program"' TERM
"$@" </dev/null 3<&- &
program=$!
(read -r line <&3; kill -TERM $$) &
reader=$! stopping=
exec 3<&-
while again=; wait "$program"; status=$?; [ "$again" ]; do stopping=1; done
[ "$stopping" ] || kill "$reader"
exit "$status"
"#;

/// Prints where the process `$1` works: on Linux from /proc, else by lsof.
const WORKING_DIR: &str = r#"
[ -e /proc/self ] && exec readlink "/proc/$1/cwd"
lsof -a -p "$1" -d cwd -Fn | sed -n 's/^n//p'
"#;

/// Settings that keep the server private, and its log (for which Fedora has another default)
/// where we look for it.
const FIXED_SETTINGS: [&str; 5] = [
    "listen_addresses=",
    "port=5432",
    "unix_socket_permissions=0700",
    "logging_collector=off",
    "log_destination=stderr",
];

/// Where installations are, after the PATH; a `*` stands for a major version.
const PLACES: [&str; 8] = [
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/usr/bin",
    "/usr/local/pgsql/bin",
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
    "/opt/homebrew/bin",
    "/Applications/Postgres.app/Contents/Versions/*/bin",
];

/// Why a private Postgres could not be started or stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PrivatePostgresError {
    /// There is no usable installation.
    #[error(
        "no PostgreSQL {OLDEST_VERSION} or later was found: install it (apt-get install \
         postgresql, dnf install postgresql-server or brew install postgresql), or set \
         {BIN_DIR_VARIABLE} to the directory of its initdb, pg_ctl and postgres"
    )]
    NoBinaries,
    /// The environment or the caller names a directory that holds no usable installation.
    #[error("there is no PostgreSQL {OLDEST_VERSION} or later in {0} (see {BIN_DIR_VARIABLE})")]
    WrongBinDir(PathBuf),
    /// There is no account to run the server.
    #[error("no account to run Postgres: it refuses root, and no user postgres or nobody is known")]
    NoAccount,
    /// The directory is another user's, a link, or holds what may be needed.
    #[error("{0} is not ours to use: name a directory of your own, a new or an empty one")]
    NotOurs(PathBuf),
    /// Another program holds the directory.
    #[error("another program is already running a private Postgres in {0}")]
    InUse(PathBuf),
    /// A program of Postgres did not do its work: what happened, and the end of its output.
    #[error("{0}; its last words were:\n{1}")]
    Failed(&'static str, String),
    /// The operating system refused something.
    #[error("cannot {0} {1}")]
    Io(&'static str, PathBuf, #[source] io::Error),
}

type Result<T> = std::result::Result<T, PrivatePostgresError>;

/// What to start.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where everything is kept: cluster, log, lock and, if its path is short enough, the socket.
    /// New, empty or left by an earlier run; becomes accessible to its owner only.
    pub data_dir: PathBuf,
    /// `false` gives up the safety of the data in a power cut for speed, as tests like.
    pub durable: bool,
    /// Further server settings, name and value. They win over ours, except on where it listens
    /// and where it logs.
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
    // Only held: the system lets go of it when we die.
    _lock: File,
}

impl PrivatePostgres {
    /// Starts the server, making the cluster first if there is none, and returns once it accepts
    /// connections. A server left behind by an earlier run is stopped first.
    ///
    /// Root's server runs as `postgres` or `nobody`; where that account cannot reach the data
    /// directory, the data are kept under `/var/tmp` instead, and a warning says where.
    ///
    /// # Errors
    ///
    /// No usable binaries or account; a directory that is not ours, or in use; a server that does
    /// not come up within a minute.
    pub fn start(options: &Options) -> Result<Self> {
        Self::start_from(&find_binaries()?, options)
    }

    /// As [`PrivatePostgres::start`], from the installation whose programs are in this directory.
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

    /// A command line for a person to paste, to look into `database`.
    #[must_use]
    pub fn psql_hint(&self, database: &str) -> String {
        let psql = self.bin_dir.join("psql");
        let psql = if psql.is_file() { &psql } else { Path::new("psql") };
        format!("{} '{}'", psql.display(), self.url(database))
    }

    /// The directory of the server's socket; it stays the same over a restart.
    #[must_use]
    pub fn socket_dir(&self) -> &Path {
        &self.socket_dir
    }

    /// The data directory really used, an absolute path; see [`PrivatePostgres::start`].
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// The process id of the server started last.
    #[must_use]
    pub fn postmaster_pid(&self) -> u32 {
        self.postmaster_pid
    }

    /// Starts the server again, whether it still runs or was killed, on the same data and the
    /// same socket: [`PrivatePostgres::url`] stays valid.
    ///
    /// # Errors
    ///
    /// The server does not stop, or does not come up; it may be tried again.
    pub fn restart(&mut self) -> Result<()> {
        self.shut_down()?;
        self.launch()
    }

    /// Ends all connections and stops the server; returns once it is gone. One too slow for that
    /// is stopped the hard way, and recovers at its next start.
    ///
    /// # Errors
    ///
    /// The server could not be stopped.
    pub fn stop(mut self) -> Result<()> {
        self.shut_down()
    }

    /// Makes the cluster beside its place and moves it there once complete, so one whose making
    /// was interrupted is never taken for a good one.
    fn ensure_cluster(&self) -> Result<()> {
        if self.cluster.join("PG_VERSION").is_file() {
            return Ok(());
        }
        self.clear_unfinished()?;
        // The pid tells it from one that a dying initdb may still be writing to.
        let unfinished = self.data_dir.join(format!("{UNFINISHED}{}", process::id()));
        let fixed = "-U postgres -A trust -E UTF8 --locale=C -D".split(' ');
        let mut args: Vec<OsString> = fixed.map(Into::into).collect();
        args.push(unfinished.clone().into());
        if !self.options.durable {
            args.push("--no-sync".into());
        }
        let exit = self.spawn("initdb", &args)?.wait(START_LIMIT)?;
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
            if name.as_bytes().starts_with(UNFINISHED.as_bytes()) {
                fs::remove_dir_all(entry.path()).map_err(cannot("remove", &entry.path()))?;
            } else if name == "cluster" {
                // Not our doing, so somebody may want it back.
                tracing::warn!("setting aside a cluster without a PG_VERSION");
                let aside = format!("cluster.set-aside.{}", process::id());
                fs::rename(entry.path(), self.data_dir.join(aside)).map_err(cannot("rename", &entry.path()))?;
            }
        }
        Ok(())
    }

    /// Starts the server and waits until it is ready; tries again for a while if something that
    /// passes is in its way.
    fn launch(&mut self) -> Result<()> {
        let deadline = Instant::now() + START_LIMIT;
        loop {
            self.stop_leftover("fast")?;
            private_dir(&self.socket_dir, self.account)?;
            for stale in [".s.PGSQL.5432", ".s.PGSQL.5432.lock"] {
                // No server is alive, so a pid noted there is no server's.
                let _ = fs::remove_file(self.socket_dir.join(stale));
            }
            self.server = Some(self.spawn("postgres", &self.server_args())?);
            let Err(error) = self.wait_until_ready(deadline) else {
                return Ok(());
            };
            self.shut_down()?;
            if !passes(&error) || Instant::now() > deadline {
                return Err(error);
            }
            thread::sleep(10 * POLL_PAUSE);
        }
    }

    /// Of a setting given twice the last wins: ours, the caller's, then the fixed ones.
    fn server_args(&self) -> Vec<OsString> {
        let mut settings = vec!["max_connections=200".to_owned()];
        if !self.options.durable {
            settings.extend(["fsync=off", "full_page_writes=off"].map(Into::into));
        }
        let asked = self.options.settings.iter();
        settings.extend(asked.map(|(name, value)| format!("{name}={value}")));
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
                && server.wait(POLL_PAUSE)?.is_some()
            {
                return Err(self.failed("the Postgres server ended while starting"));
            }
        }
        Err(self.failed("the Postgres server was not ready in time"))
    }

    /// The order matters: once the socket answers, postmaster.pid is this server's, not one left
    /// by a killed server, which may well say "ready" too.
    fn ready_pid(&self) -> Option<u32> {
        UnixStream::connect(self.socket_dir.join(SOCKET_NAME)).ok()?;
        parse_ready_pid(&fs::read_to_string(self.cluster.join(PID_NAME)).ok()?)
    }

    fn shut_down(&mut self) -> Result<()> {
        let Some(mut server) = self.server.take() else {
            return Ok(());
        };
        server.pipe = None;
        let exit = server.wait(STOP_LIMIT)?;
        if !exit.is_some_and(|status| status.success()) {
            // It was too slow, or it or its watchdog was killed: make sure that nothing is left.
            self.stop_leftover(if exit.is_none() { "immediate" } else { "fast" })?;
            server.wait(STOP_LIMIT)?;
        }
        if !self.socket_dir.starts_with(&self.data_dir) {
            // For tidiness only; the next start makes it again.
            let _ = fs::remove_dir(&self.socket_dir);
        }
        Ok(())
    }

    /// Stops a server of this cluster that runs without us: a process working in the cluster.
    /// Anything else with the noted pid got it by chance, and Postgres would not start over it.
    fn stop_leftover(&self, mode: &str) -> Result<()> {
        let pid_file = self.cluster.join(PID_NAME);
        let noted = fs::read_to_string(&pid_file).unwrap_or_default();
        let Some(pid) = noted.lines().next().and_then(|pid| pid.parse::<u32>().ok()) else {
            return Ok(());
        };
        match self.account.ask(WORKING_DIR, pid.to_string()) {
            // Dead, or another user's: Postgres itself sees that the file is stale.
            None => return Ok(()),
            Some(dir) if dir == self.cluster => {}
            Some(_) => {
                tracing::warn!(pid, "removing a stale postmaster.pid");
                return fs::remove_file(&pid_file).map_err(cannot("remove", &pid_file));
            }
        }
        tracing::warn!(pid, mode, "stopping a Postgres left running");
        let pg_ctl = self.bin_dir.join("pg_ctl");
        let mut command = self.account.command(&pg_ctl);
        let args = ["stop", "-w", "-s", "-t", "30", "-m", mode, "-D"];
        let output = command.args(args).arg(&self.cluster).output();
        let output = output.map_err(cannot("run", &pg_ctl))?;
        // One that ended by itself in between left pg_ctl nothing to stop.
        if output.status.success() || !pid_file.exists() {
            return Ok(());
        }
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        Err(Error::Failed("pg_ctl could not stop the server", words))
    }

    fn spawn(&self, program: &str, args: &[OsString]) -> Result<Guarded> {
        let mut command = self.account.shell(WATCHDOG);
        command.arg(self.data_dir.join(LOG_NAME));
        command.arg(self.bin_dir.join(program)).args(args);
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        let spawned = command.stderr(Stdio::null()).spawn();
        let mut watchdog = spawned.map_err(cannot("run", SHELL.as_ref()))?;
        let pipe = watchdog.stdin.take();
        Ok(Guarded { watchdog, pipe })
    }

    fn failed(&self, what: &'static str) -> Error {
        let log = fs::read(self.data_dir.join(LOG_NAME)).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<_> = log.lines().collect();
        Error::Failed(what, lines[lines.len().saturating_sub(20)..].join("\n"))
    }
}

impl Drop for PrivatePostgres {
    fn drop(&mut self) {
        if let Err(error) = self.shut_down() {
            tracing::warn!(%error, "the private Postgres did not stop");
        }
    }
}

/// A program under the watchdog; it ends when the pipe closes. Std marks the pipe close-on-exec,
/// so no other child of ours can keep it open.
#[derive(Debug)]
struct Guarded {
    watchdog: Child,
    pipe: Option<ChildStdin>,
}

impl Guarded {
    /// The program's exit, or `None` if it still runs after `limit`.
    fn wait(&mut self, limit: Duration) -> Result<Option<ExitStatus>> {
        let deadline = Instant::now() + limit;
        loop {
            let exit = self.watchdog.try_wait();
            let exit = exit.map_err(cannot("wait for", SHELL.as_ref()))?;
            if exit.is_some() || Instant::now() >= deadline {
                return Ok(exit);
            }
            thread::sleep(POLL_PAUSE);
        }
    }
}

/// Who runs the server: ourselves or, with a `gid`, the account root steps down to.
#[derive(Debug, Clone, Copy)]
struct Account {
    uid: u32,
    gid: Option<u32>,
}

impl Account {
    fn choose() -> Result<Self> {
        let named = |name: &&str| {
            let gid = Some(id(&["-g", name])?);
            id(&["-u", name]).map(|uid| Self { uid, gid })
        };
        let account = match id(&["-u"]) {
            Some(0) => ["postgres", "nobody"].iter().find_map(named),
            own => own.map(|uid| Self { uid, gid: None }),
        };
        account.ok_or(Error::NoAccount)
    }

    /// A command run by this account, out of reach of the terminal's Ctrl-C, and with messages
    /// in English, which we look into.
    fn command(self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.env("LC_ALL", "C").current_dir("/").stdin(Stdio::null()).process_group(0);
        if let Some(gid) = self.gid {
            command.uid(self.uid).gid(gid);
        }
        command
    }

    /// Runs `script`; the arguments to be added are its `$1` and so on.
    fn shell(self, script: &str) -> Command {
        let mut command = self.command(SHELL);
        command.args(["-c", script, "sh"]);
        command
    }

    /// The path that `script` prints, if it prints one.
    fn ask(self, script: &str, argument: impl AsRef<OsStr>) -> Option<PathBuf> {
        let output = self.shell(script).arg(argument).output().ok()?;
        let path = output.stdout.trim_ascii_end();
        (!path.is_empty()).then(|| OsStr::from_bytes(path).into())
    }
}

/// Asks the `id` command, which needs no unsafe code and knows every source of accounts.
fn id(args: &[&str]) -> Option<u32> {
    let output = Command::new("id").args(args).output().ok()?;
    str::from_utf8(&output.stdout).ok()?.trim().parse().ok()
}

/// The directory to use for `asked`, made ours. That changes its owner and mode, so a home
/// directory given by mistake must be refused: our lock file marks a directory as ours.
fn usable_data_dir(asked: &Path, account: Account) -> Result<PathBuf> {
    fs::create_dir_all(asked).map_err(cannot("create", asked))?;
    let mut dir = asked.canonicalize().map_err(cannot("resolve", asked))?;
    let mut entries = fs::read_dir(&dir).map_err(cannot("read", &dir))?;
    if entries.next().is_some() && !dir.join(LOCK_NAME).is_file() {
        return Err(Error::NotOurs(dir));
    }
    let parent = dir.parent().unwrap_or(&dir);
    if account.gid.is_some() && account.ask(r#"cd "$1" && pwd"#, parent).is_none() {
        let used = short_name_for(&dir, "/var/tmp");
        tracing::warn!(
            asked = %dir.display(),
            used = %used.display(),
            "root's Postgres cannot reach the data directory and keeps the data in another"
        );
        dir = used;
    }
    private_dir(&dir, account)?;
    Ok(dir)
}

/// Makes a directory only the account can enter. One that another user made is refused: in a
/// shared place such as /tmp it may be a trap.
fn private_dir(dir: &Path, account: Account) -> Result<()> {
    let made = DirBuilder::new().mode(0o700).create(dir);
    if let Err(error) = made
        && error.kind() != io::ErrorKind::AlreadyExists
    {
        return Err(cannot("create", dir)(error));
    }
    let found = fs::symlink_metadata(dir).map_err(cannot("look at", dir))?;
    let is_roots = account.gid.is_some() && found.uid() == 0;
    if !found.is_dir() || !(found.uid() == account.uid || is_roots) {
        return Err(Error::NotOurs(dir.to_owned()));
    }
    if is_roots {
        lchown(dir, Some(account.uid), account.gid).map_err(cannot("give away", dir))?;
    }
    fs::set_permissions(dir, Permissions::from_mode(0o700)).map_err(cannot("protect", dir))
}

fn lock(dir: &Path) -> Result<File> {
    let path = dir.join(LOCK_NAME);
    // Never truncating: root must not, should the account have put a link there.
    let file = File::options().append(true).create(true).open(&path);
    let file = file.map_err(cannot("open", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::InUse(dir.to_owned())),
        Err(TryLockError::Error(error)) => Err(cannot("lock", &path)(error)),
    }
}

/// In the data directory if the path is short enough and free of what separates or quotes names
/// in a list of hosts; else in /tmp, always by the same name.
fn socket_dir_for(data_dir: &Path) -> PathBuf {
    let inside = data_dir.join("socket");
    let fits = inside.to_str().is_some_and(|path| {
        path.len() + "/".len() + SOCKET_NAME.len() <= SOCKET_PATH_LIMIT && !path.contains([',', '"'])
    });
    if fits { inside } else { short_name_for(data_dir, "/tmp") }
}

/// A name for `dir` that is the same in every run and build (FNV-1a hash).
fn short_name_for(dir: &Path, parent: &str) -> PathBuf {
    let bytes = dir.as_os_str().as_bytes().iter();
    let hash =
        bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    Path::new(parent).join(format!("coupon-issuer-{hash:016x}"))
}

/// The directory of the programs that [`PrivatePostgres::start`] runs.
///
/// # Errors
///
/// No usable binaries.
pub fn find_binaries() -> Result<PathBuf> {
    if let Some(dir) = env::var_os(BIN_DIR_VARIABLE).filter(|dir| !dir.is_empty()) {
        return complete_installation(Path::new(&dir));
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let on_path = env::split_paths(&path).filter(|dir| dir.is_absolute());
    let dirs = on_path.chain(PLACES.iter().flat_map(|place| expand(place)));
    first_recent(dirs, major_version).ok_or(Error::NoBinaries)
}

/// This directory, as an absolute path, because our commands run in another directory.
fn complete_installation(dir: &Path) -> Result<PathBuf> {
    let dir = std::path::absolute(dir).map_err(cannot("resolve", dir))?;
    first_recent([dir.clone()], major_version).ok_or(Error::WrongBinDir(dir))
}

/// The directories `place` stands for, the highest version first.
fn expand(place: &str) -> Vec<PathBuf> {
    let Some((before, after)) = place.split_once('*') else {
        return vec![place.into()];
    };
    let (parent, prefix) = before.rsplit_once('/').unwrap_or(("", before));
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    let version = |name: &OsStr| name.to_str()?.strip_prefix(prefix)?.parse::<u32>().ok();
    let mut versions: Vec<_> = entries.filter_map(|entry| version(&entry.file_name())).collect();
    versions.sort_unstable();
    let dirs = versions.iter().rev();
    dirs.map(|version| format!("{before}{version}{after}").into()).collect()
}

fn first_recent(dirs: impl IntoIterator<Item = PathBuf>, version_of: impl Fn(&Path) -> Option<u32>) -> Option<PathBuf> {
    dirs.into_iter().find(|dir| version_of(dir).is_some_and(|version| version >= OLDEST_VERSION))
}

/// The version of the complete installation in `dir`; one of clients only has no initdb.
fn major_version(dir: &Path) -> Option<u32> {
    if !dir.join("initdb").is_file() || !dir.join("pg_ctl").is_file() {
        return None;
    }
    let mut postgres = Command::new(dir.join("postgres"));
    let output = postgres.arg("--version").output().ok()?;
    parse_major_version(str::from_utf8(&output.stdout).ok()?)
}

/// Reads "postgres (`PostgreSQL`) 15.14 (Debian ...)", or "19devel" in its place.
fn parse_major_version(printed: &str) -> Option<u32> {
    let (_, version) = printed.split_once(") ")?;
    let mut numbers = version.split(|c: char| !c.is_ascii_digit());
    numbers.next()?.parse().ok()
}

/// The pid (line 1 of postmaster.pid) of a server whose state (line 8) is "ready".
fn parse_ready_pid(pid_file: &str) -> Option<u32> {
    let mut lines = pid_file.lines();
    let pid = lines.next()?.parse().ok()?;
    (lines.nth(6)?.trim() == "ready").then_some(pid)
}

/// Whether a start failed because a killed server's last backends are still ending, or because
/// the pid it noted is just now that of a short-lived process.
fn passes(error: &Error) -> bool {
    let Error::Failed(_, log) = error else {
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

fn cannot(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Io(action, path.to_owned(), source)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_major_version() {
        let version = |text: &str| parse_major_version(&format!("postgres (PostgreSQL) {text}\n"));
        assert_eq!(version("15.14 (Debian 15.14-0+deb12u1)"), Some(15));
        assert_eq!(version("19devel"), Some(19));
        assert_eq!(parse_major_version("not found"), None);
    }

    #[test]
    fn takes_the_first_directory_recent_enough() {
        let version = |dir: &Path| dir.to_str()?.strip_prefix("/pg")?.parse().ok();
        let first = |dirs: &[&str]| first_recent(dirs.iter().map(PathBuf::from), version);
        assert_eq!(first(&["/none", "/pg13", "/pg14", "/pg18"]), first(&["/pg14"]));
        assert_eq!(first(&["/pg14"]), Some("/pg14".into()));
        assert_eq!(first(&["/none", "/pg13"]), None);
        assert_eq!(first_recent(["/nonexistent".into()], major_version), None);
    }

    #[test]
    fn lists_versions_highest_first() -> io::Result<()> {
        let parent = tempfile::tempdir()?;
        for name in ["pgsql-9", "pgsql-16", "pgsql-9.6", "share"] {
            fs::create_dir(parent.path().join(name))?;
        }
        let found = expand(&format!("{}/pgsql-*/bin", parent.path().display()));
        let expected = ["pgsql-16/bin", "pgsql-9/bin"];
        assert_eq!(found, expected.map(|dir| parent.path().join(dir)));
        assert!(expand("/nonexistent/*/bin").is_empty());
        Ok(())
    }

    #[test]
    fn reads_a_pid_only_of_a_ready_server() {
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

    #[test]
    fn a_socket_path_is_never_too_long() {
        let short = socket_dir_for(Path::new("/data"));
        assert_eq!(short, Path::new("/data/socket"));
        for name in ["x".repeat(90), "a,b".to_owned()] {
            let dir = socket_dir_for(&Path::new("/data").join(name));
            assert!(dir.starts_with("/tmp"), "{}", dir.display());
            assert!(dir.join(SOCKET_NAME).as_os_str().len() <= SOCKET_PATH_LIMIT);
        }
    }
}
