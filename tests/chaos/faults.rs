//! The faults. Each lasts for a while and is repaired when the call returns.

use coupon_issuer::codes;
use coupon_issuer::model::OrgId;
use coupon_issuer::model::SeriesId;
use coupon_issuer::provisioning;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rand::RngExt;
use rand::rngs::StdRng;
use serde_json::json;
use sqlx::{ConnectOptions, Connection};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, timeout};

use crate::catalogue;
use crate::cluster::{Cluster, freeze, process_tree, signal, waiting_calls};
use crate::history::{Apply, Import, Issue, Line};
use crate::natural::NaturalKeys;
use crate::network::NetworkState;
use crate::tills::{Tills, ViolationKind};

/// Errors of Postgres or its machine: disk full, out of memory, an I/O error, an internal error, corrupted data.
const POSTGRES_ERRORS: [&str; 5] = ["53100", "53200", "58030", "XX000", "XX001"];
/// The customer of the calls of [`Fault::Hostile`]. No till serves this customer.
pub const HOSTILE: &str = "hostile";
const HOSTILE_SERIES: [i64; 2] = [catalogue::UNLIMITED, catalogue::CAPPED];
/// The process, in the history, that applies files and uploads codes.
const OPERATOR: &str = "operator";
/// How long a service may take to notice that the database accepts no writes.
const UNREADY_TIMEOUT: Duration = Duration::from_secs(20);

/// Callers of the service that [`Fault::Takeover`] kills or [`Fault::Doubt`] cuts off.
const RUSH_CALLERS: u64 = 150;
/// Lock a series with a cap, and the settings of the organisation.
const LOCK_SERIES: &str = "begin; select pg_advisory_xact_lock(hashint8extended(2, 1))";
const LOCK_SETTINGS: &str = "begin; select lock_organisation_1(1)";
const LOCKS: [&str; 2] = [LOCK_SERIES, LOCK_SETTINGS];
const END_WAITING_SESSIONS: &str = "select pg_terminate_backend(pid, 2000) from pg_stat_activity
     where application_name = 'coupon-issuer writer' and wait_event_type = 'Lock'";
/// How long the network must be cut until a writer gives up: the time-out of a request (3 s), the time in which the writer tries to
/// find out what its call has stored (2 s), and a margin for a busy machine.
const IN_DOUBT_CUT: Duration = Duration::from_secs(6);

/// Requests for one customer in [`Fault::Race`].
const RACERS: u64 = 40;
/// How long [`Fault::Race`] locks the settings.
const RACE_LOCK_TIME: Duration = Duration::from_millis(300);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// Postgres is restarted in its mode "fast".
    Restart,
    /// Postgres is killed, and started again later.
    Crash,
    /// A backend process of Postgres is killed. Postgres recovers by itself.
    Backend,
    /// The services' sessions are terminated several times.
    Sessions,
    /// Other clients take all of Postgres' connections.
    Connections,
    /// Another session holds a lock.
    Lock,
    /// Every flush takes 100 ms.
    SlowDisk,
    /// All processes of Postgres are frozen.
    HungDisk,
    Cut,
    BlackHole,
    Stall,
    SlowNetwork,
    /// The database accepts no writes, as during a failover.
    ReadOnly,
    /// Postgres fails the insert of some coupons, with an error of the server.
    CouponErrors,
    /// Postgres fails every call of the writer, with an error of the server.
    CallErrors,
    /// The package of Postgres is upgraded under the running server: new sessions cannot load its libraries.
    Libraries,
    /// A service is killed, and started again later.
    Kill,
    /// A service is killed in the middle of many requests. Their callers turn to the other service at once.
    Takeover,
    /// A service is stopped with SIGTERM, and started again.
    Stop,
    /// The settings change, and codes are uploaded.
    Apply,
    /// Misbehaving callers occupy connections.
    Hostile,
    /// 200 callers hang up at once.
    HangUps,
    /// Many requests for one customer wait for the lock of the settings, and are then decided at once.
    Race,
    /// The network is cut while calls of the writer wait for a lock, and stays cut until the writers give up finding out what those
    /// calls have stored.
    Doubt,
}

impl Fault {
    pub const ALL: [Self; 24] = [
        Self::Restart,
        Self::Crash,
        Self::Backend,
        Self::Sessions,
        Self::Connections,
        Self::Lock,
        Self::SlowDisk,
        Self::HungDisk,
        Self::Cut,
        Self::BlackHole,
        Self::Stall,
        Self::SlowNetwork,
        Self::ReadOnly,
        Self::CouponErrors,
        Self::CallErrors,
        Self::Libraries,
        Self::Kill,
        Self::Takeover,
        Self::Stop,
        Self::Apply,
        Self::Hostile,
        Self::HangUps,
        Self::Race,
        Self::Doubt,
    ];

    /// The name in `CHAOS_SKIP` and in the printed table.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Restart => "restart",
            Self::Crash => "crash",
            Self::Backend => "backend",
            Self::Sessions => "sessions",
            Self::Connections => "connections",
            Self::Lock => "lock",
            Self::SlowDisk => "slow-disk",
            Self::HungDisk => "hung-disk",
            Self::Cut => "cut",
            Self::BlackHole => "black-hole",
            Self::Stall => "stall",
            Self::SlowNetwork => "slow-network",
            Self::ReadOnly => "read-only",
            Self::CouponErrors => "coupon-errors",
            Self::CallErrors => "call-errors",
            Self::Libraries => "libraries",
            Self::Kill => "kill",
            Self::Takeover => "takeover",
            Self::Stop => "stop",
            Self::Apply => "apply",
            Self::Hostile => "hostile",
            Self::HangUps => "hang-ups",
            Self::Race => "race",
            Self::Doubt => "doubt",
        }
    }

    /// Whether the fault hits the services or their callers. The others hit Postgres, its disk or the network.
    const fn hits_services(self) -> bool {
        matches!(
            self,
            Self::Kill | Self::Takeover | Self::Stop | Self::Apply | Self::Hostile | Self::HangUps | Self::Race
        )
    }

    /// Two faults are injected at once only if exactly one of them hits the services.
    pub fn can_combine_with(self, other: Self) -> bool {
        self.hits_services() != other.hits_services()
    }
}

/// A stored procedure, and the statement that creates it.
#[derive(Debug, PartialEq, Eq, sqlx::FromRow)]
struct Procedure {
    name: String,
    arguments: String,
    definition: String,
}

impl Procedure {
    /// The statement that replaces the procedure by one that always fails.
    fn failing_definition(&self, error: &str) -> String {
        let Self { name, arguments, .. } = self;
        format!(
            "create or replace procedure {name}({arguments}) language plpgsql as $$ begin
                 raise 'a fault of the server' using errcode = '{error}';
             end $$"
        )
    }
}

/// The whole system under test, and its callers.
pub struct World {
    pub cluster: Cluster,
    pub tills: Arc<Tills>,
    /// The version of the settings that a run has last tried to apply.
    pub version: AtomicU32,
    /// The callers without an `Idempotency-Key`.
    pub natural_keys: NaturalKeys,
}

impl World {
    /// Injects a fault for about this time, and repairs it.
    pub async fn inject(&self, fault: Fault, time: Duration, random: &mut StdRng) {
        match fault {
            Fault::Restart => self.cluster.restart_postgres().await,
            Fault::Crash => {
                signal("-9", &[self.cluster.postmaster()]);
                sleep(time).await;
                self.cluster.restart_postgres().await;
            }
            Fault::Backend => self.kill_backend().await,
            Fault::Sessions => self.end_sessions(time).await,
            Fault::Connections => self.take_connections(time).await,
            Fault::Lock => self.hold_a_lock(time, random).await,
            Fault::SlowDisk => self.slow_down_flushes(time).await,
            Fault::HungDisk => {
                let pids = process_tree(self.cluster.postmaster());
                spawn_blocking(move || freeze(&pids, time)).await.unwrap();
            }
            Fault::Cut => self.degrade_network(NetworkState::Cut, time).await,
            Fault::BlackHole => self.degrade_network(NetworkState::BlackHole, time).await,
            Fault::Stall => self.degrade_network(NetworkState::Stalled, time).await,
            Fault::SlowNetwork => self.degrade_network(NetworkState::Slow, time).await,
            Fault::ReadOnly => self.refuse_writes(time).await,
            Fault::CouponErrors => self.refuse_some_coupons(time).await,
            Fault::CallErrors => self.refuse_calls(time, random).await,
            Fault::Libraries => self.replace_libraries(time).await,
            Fault::Kill => self.kill_service(time, random).await,
            Fault::Takeover => self.kill_between_coupons(time, random).await,
            Fault::Stop => self.stop_service(random).await,
            Fault::Apply => self.apply(time).await,
            Fault::Hostile => self.occupy_connections(time).await,
            Fault::HangUps => {
                self.tills.burst(random, 200);
                sleep(time).await;
            }
            Fault::Race => self.race(time, random).await,
            Fault::Doubt => self.cut_off_calls(random).await,
        }
    }

    /// Kills a backend process, and waits until Postgres has recovered, for which it terminates all other sessions.
    async fn kill_backend(&self) {
        let mut admin = self.cluster.admin().await;
        let writers =
            "select pid from pg_stat_activity where application_name = 'coupon-issuer writer' order by random()";
        // Repeated until no writer has a session: a session may have ended before the signal came.
        while let Ok(Some(pid)) = sqlx::query_scalar::<_, i32>(writers).fetch_optional(&mut admin).await {
            signal("-9", &[pid.cast_unsigned()]);
            sleep(Duration::from_millis(200)).await;
        }
        self.cluster.execute("select 1").await;
    }

    async fn end_sessions(&self, time: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until {
            self.end_all_sessions().await;
            sleep(Duration::from_millis(300)).await;
        }
    }

    async fn end_all_sessions(&self) {
        let all = "select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'coupon-issuer%'";
        self.cluster.execute(all).await;
    }

    /// Takes every free connection, then terminates the services' sessions and takes theirs.
    async fn take_connections(&self, time: Duration) {
        let greedy = self.cluster.as_service();
        let until = Instant::now() + time;
        let (mut taken, mut is_full) = (Vec::new(), false);
        while Instant::now() < until {
            match greedy.connect().await {
                Ok(connection) => taken.push(connection),
                Err(_) if is_full => sleep(Duration::from_millis(20)).await,
                Err(_) => {
                    is_full = true;
                    self.end_all_sessions().await;
                }
            }
        }
        for connection in taken {
            let _ = connection.close().await;
        }
    }

    async fn hold_a_lock(&self, time: Duration, random: &mut StdRng) {
        let series = [catalogue::HOT, catalogue::PLENTY, 2][random.random_range(0..3)];
        let lock = match random.random_range(0..4) {
            0 => "begin; lock table coupon in exclusive mode".to_owned(),
            1 => "begin; lock table keyed_request in exclusive mode".to_owned(),
            2 => "begin; select lock_organisation_1(1)".to_owned(),
            _ => format!("begin; select pg_advisory_xact_lock(hashint8extended({series}, 1))"),
        };
        self.tills.set_phase(&format!("lock: {lock}"));
        let mut holder = self.cluster.admin().await;
        sqlx::raw_sql(sqlx::AssertSqlSafe(lock)).execute(&mut holder).await.unwrap();
        sleep(time).await;
        holder.close().await.unwrap();
    }

    async fn slow_down_flushes(&self, time: Duration) {
        for setting in ["commit_delay = 100000", "commit_siblings = 0"] {
            self.cluster.execute(&format!("alter system set {setting}")).await;
        }
        self.cluster.execute("select pg_reload_conf()").await;
        sleep(time).await;
        for setting in ["commit_delay", "commit_siblings"] {
            self.cluster.execute(&format!("alter system reset {setting}")).await;
        }
        self.cluster.execute("select pg_reload_conf()").await;
    }

    async fn refuse_writes(&self, time: Duration) {
        self.cluster.execute("alter system set default_transaction_read_only = on").await;
        self.cluster.execute("select pg_reload_conf()").await;
        self.end_all_sessions().await;
        sleep(time).await;
        self.cluster.execute("alter system reset default_transaction_read_only").await;
        self.cluster.execute("select pg_reload_conf()").await;
    }

    /// The coupon id decides, so that a coupon that the writer retries alone fails again.
    async fn refuse_some_coupons(&self, time: Duration) {
        let refuse = format!(
            "create function refuse() returns trigger language plpgsql as $$ begin
                 raise 'a fault of the server' using errcode = ('{{{}}}'::text[])[1 + (hashint8extended(new.coupon_id, 1) & 255) % {}];
             end $$;
             create trigger refuse before insert on coupon for each row
                 when (hashint8extended(new.coupon_id, 0) & 7 = 0) execute function refuse()",
            POSTGRES_ERRORS.join(","),
            POSTGRES_ERRORS.len(),
        );
        self.cluster.execute(&refuse).await;
        sleep(time).await;
        self.cluster.execute("drop function if exists refuse() cascade").await;
    }

    /// Empty calls fail, too. By that the writer learns that no coupon causes the error.
    async fn refuse_calls(&self, time: Duration, random: &mut StdRng) {
        let error = POSTGRES_ERRORS[random.random_range(0..POSTGRES_ERRORS.len())];
        self.tills.set_phase(&format!("{}: {error}", Fault::CallErrors.name()));
        let procedures = self.writers_procedures().await;
        assert!(!procedures.is_empty(), "the writer calls procedures of another name now");
        for procedure in &procedures {
            self.cluster.execute(&procedure.failing_definition(error)).await;
        }
        self.without_database(time).await;
        for procedure in &procedures {
            self.cluster.execute(&procedure.definition).await;
        }
        assert!(self.writers_procedures().await == procedures, "the procedures were not restored");
    }

    /// The writer's procedures, in all versions.
    async fn writers_procedures(&self) -> Vec<Procedure> {
        let all = "select quote_ident(proname) as name, pg_get_function_arguments(oid) as arguments,
                          pg_get_functiondef(oid) as definition
                     from pg_proc where prokind = 'p' and proname like 'issue\\_coupons%' order by oid";
        sqlx::query_as(all).fetch_all(&mut self.cluster.admin().await).await.unwrap()
    }

    async fn replace_libraries(&self, time: Duration) {
        // Without a copy of the installation, this fault is skipped.
        let Ok(installation) = &self.cluster.installation else { return };
        installation.corrupt_plpgsql();
        self.end_all_sessions().await;
        self.without_database(time).await;
        installation.restore_plpgsql();
    }

    /// Waits until the time is over and both services have reported that they are not ready.
    async fn without_database(&self, time: Duration) {
        let ((), first, second) = tokio::join!(sleep(time), self.becomes_unready(0), self.becomes_unready(1));
        for (replica, is_unready) in self.cluster.replicas.iter().zip([first, second]) {
            if !is_unready {
                let violation =
                    format!("the service at {} reports that it is ready, but cannot write", replica.address);
                self.tills.report_as(ViolationKind::FalseReady, violation);
            }
        }
    }

    /// Whether a replica reports that it is not ready, or does not answer, ten times in a row. A single report proves nothing: a
    /// replica that has just lost its connections is not ready either.
    async fn becomes_unready(&self, replica: usize) -> bool {
        let until = Instant::now() + UNREADY_TIMEOUT;
        let mut in_a_row = 0;
        while in_a_row < 10 {
            if Instant::now() > until {
                return false;
            }
            in_a_row = if self.tills.is_ready(replica).await { 0 } else { in_a_row + 1 };
            sleep(Duration::from_millis(50)).await;
        }
        true
    }

    async fn degrade_network(&self, state: NetworkState, time: Duration) {
        self.cluster.network.set(state);
        sleep(time).await;
        self.cluster.network.set(NetworkState::Healthy);
    }

    async fn kill_service(&self, time: Duration, random: &mut StdRng) {
        let replica = &self.cluster.replicas[random.random_range(0..2)];
        replica.kill();
        sleep(time).await;
        replica.start();
    }

    /// A lock makes coupons wait, so that some requests are issued in part. Then the service is killed. In half of the cases the
    /// waiting calls are terminated as well, as by a server that notices closed connections. The lock may fail, since another fault
    /// may be active.
    async fn kill_between_coupons(&self, time: Duration, random: &mut StdRng) {
        let number = random.random_range(0..2);
        let replica = &self.cluster.replicas[number];
        let mut holder = self.cluster.admin().await;
        if let Err(error) = sqlx::raw_sql(LOCKS[random.random_range(0..LOCKS.len())]).execute(&mut holder).await {
            eprintln!("takeover: {error}");
        }
        self.tills.rush(random, number, RUSH_CALLERS);
        sleep(Duration::from_millis(random.random_range(200..600))).await;
        replica.kill();
        if random.random_ratio(1, 2) {
            let _ = sqlx::raw_sql(END_WAITING_SESSIONS).execute(&mut holder).await;
        }
        let _ = holder.close().await;
        sleep(time).await;
        replica.start();
    }

    /// Requests for one customer, requests under one natural key, and random codes of which many are taken. The lock may fail, since
    /// another fault may be active.
    async fn race(&self, time: Duration, random: &mut StdRng) {
        let mut holder = self.cluster.admin().await;
        if let Err(error) = sqlx::raw_sql(LOCK_SETTINGS).execute(&mut holder).await {
            eprintln!("race: {error}");
        }
        self.tills.race(random, RACERS, &[catalogue::THREE_EACH, catalogue::NARROW]);
        self.natural_keys.race(&self.tills);
        sleep(RACE_LOCK_TIME).await;
        let _ = holder.close().await;
        sleep(time).await;
    }

    /// In half of the cases the lock is released during the cut: the calls store their coupons, and nobody receives the answer.
    async fn cut_off_calls(&self, random: &mut StdRng) {
        let mut holder = self.cluster.admin().await;
        if let Err(error) = sqlx::raw_sql(LOCK_SERIES).execute(&mut holder).await {
            eprintln!("doubt: {error}");
        }
        let replica = random.random_range(0..2);
        self.tills.rush(random, replica, RUSH_CALLERS);
        let until = Instant::now() + IN_DOUBT_CUT;
        while Instant::now() < until && matches!(waiting_calls(&mut holder).await, Ok(0)) {
            sleep(Duration::from_millis(10)).await;
        }
        self.cluster.network.set(NetworkState::Cut);
        if random.random_ratio(1, 2) {
            let _ = holder.close().await;
            sleep(IN_DOUBT_CUT).await;
        } else {
            sleep(IN_DOUBT_CUT).await;
            let _ = holder.close().await;
        }
        self.cluster.network.set(NetworkState::Healthy);
    }

    async fn stop_service(&self, random: &mut StdRng) {
        let replica = &self.cluster.replicas[random.random_range(0..2)];
        match replica.stop().await {
            Some(exit) if exit.success() => {}
            exit => self.tills.report(format!("after SIGTERM a service exited with {exit:?}")),
        }
        replica.start();
    }

    /// Applies one version of the settings after the other, and uploads codes.
    async fn apply(&self, time: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until {
            let version = 1 + self.version.fetch_add(1, Ordering::Relaxed);
            // Another fault may make it fail, or lose its answer. Neither is a violation.
            if let Err(error) = self.apply_version(version).await {
                eprintln!("apply: {error}");
            }
            self.upload(catalogue::SCARCE, "SCARCE", version, 40).await;
            sleep(Duration::from_millis(300)).await;
        }
    }

    pub async fn apply_version(&self, version: u32) -> anyhow::Result<()> {
        let recorder = &self.tills.recorder;
        let start = recorder.now();
        let applied = provisioning::apply_text(&self.cluster.as_service(), &catalogue::file(version)).await;
        let end = applied.is_ok().then(|| recorder.now());
        let process = OPERATOR.to_owned();
        recorder.write(&Line::Apply(Apply { process, start, end, series: catalogue::rules(version) }));
        applied.map(drop).map_err(anyhow::Error::from)
    }

    pub async fn upload(&self, series: i64, prefix: &str, version: u32, count: u32) {
        let file = self.cluster.directory.join("codes.csv");
        std::fs::write(&file, catalogue::codes(prefix, version, count)).unwrap();
        let recorder = &self.tills.recorder;
        let start = recorder.now();
        let imported = codes::import(&self.cluster.as_service(), OrgId(1), SeriesId(series), &file, &mut |_| {}).await;
        let end = imported.is_ok().then(|| recorder.now());
        if let Err(error) = imported {
            eprintln!("codes import: {error}");
        }
        recorder.write(&Line::Import(Import { process: OPERATOR.to_owned(), start, end, series, count }));
    }

    /// Opens connections that send nothing, that send half a request, and that send many requests but read no answer.
    async fn occupy_connections(&self, time: Duration) {
        let mut connections = Vec::new();
        for number in 0..720_usize {
            let address = self.cluster.replicas[number % 2].address;
            let bytes = match number {
                0..500 => String::new(),
                500..700 => "POST /v2/coupon/bulk/issue HTTP/1.1\r\nHost: x\r\nAuthor".to_owned(),
                _ => self.pipelined(number, 200),
            };
            connections.extend(open_and_send(address, &bytes).await);
        }
        sleep(time).await;
    }

    /// Requests in a row on one connection, each under a key that no till uses.
    fn pipelined(&self, caller: usize, count: usize) -> String {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let body = json!({"seriesIds": HOSTILE_SERIES, "customer": {"id": HOSTILE}}).to_string();
        let credentials = STANDARD.encode("store.server:server123");
        let request = |_| {
            let key = format!("{HOSTILE}-{caller}-{}", NEXT.fetch_add(1, Ordering::Relaxed));
            let (recorder, series) = (&self.tills.recorder, HOSTILE_SERIES.to_vec());
            let call = Issue::unanswered(recorder.now(), key.clone(), key.clone(), HOSTILE.to_owned(), series);
            recorder.write(&Line::Issue(call));
            format!(
                "POST /v2/coupon/bulk/issue HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nAuthorization: Basic \
                 {credentials}\r\nIdempotency-Key: {key}\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            )
        };
        (0..count).map(request).collect()
    }
}

/// Opens a connection and sends these bytes, or as many as the service reads within 100 ms.
async fn open_and_send(address: SocketAddr, bytes: &str) -> Option<TcpStream> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    let _ = timeout(Duration::from_millis(100), stream.write_all(bytes.as_bytes())).await;
    Some(stream)
}
