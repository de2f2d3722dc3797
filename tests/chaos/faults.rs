//! The faults: each breaks something for a time, and has mended it when it returns.
//! What the services make of it is none of its business.

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
use crate::cluster::{Cluster, family, freeze, signal, waiting_calls};
use crate::history::{Apply, Import, Issue, Line};
use crate::natural::NaturalKeys;
use crate::network::Weather;
use crate::tills::{Shop, Wrong};

/// What Postgres says when the fault is its own, or its machine's: disk full, out of memory, an I/O error, an internal error,
/// corrupted data.
const SERVER_ERRORS: [&str; 5] = ["53100", "53200", "58030", "XX000", "XX001"];
/// The customer of [`Fault::Hostile`], whom no till serves.
pub const HOSTILE: &str = "hostile";
const HOSTILE_SERIES: [i64; 2] = [catalogue::UNLIMITED, catalogue::CAPPED];
/// Who applies files and uploads codes, in the history.
const OPERATOR: &str = "operator";
/// How long a service may take to notice that nothing can be written.
const NOT_READY_WITHIN: Duration = Duration::from_secs(20);

/// Callers of a service that is about to be killed, and what is locked then: a series with a cap, or the settings.
const RUSH: u64 = 150;
const LOCKS: [&str; 2] =
    ["begin; select pg_advisory_xact_lock(hashint8extended(2, 1))", "begin; select lock_organisation_1(1)"];
const END_WAITING: &str = "select pg_terminate_backend(pid, 2000) from pg_stat_activity
     where application_name = 'coupon-issuer writer' and wait_event_type = 'Lock'";
/// How long the network must be cut until a writer gives up: the time of a request (3 s), the time for finding out what is stored
/// (2 s), and some more for a busy machine.
const IN_DOUBT_AFTER: Duration = Duration::from_secs(6);

/// Requests for one customer, and for how long the settings are locked.
const RACERS: u64 = 40;
const START_AFTER: Duration = Duration::from_millis(300);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// Postgres is restarted (fast).
    Restart,
    /// Postgres is killed, and started again after a time.
    Crash,
    /// A server process of Postgres is killed: it recovers by itself.
    Backend,
    /// The services' sessions are ended, several times.
    Sessions,
    /// Others have all of Postgres' connections.
    Connections,
    /// Somebody holds a lock.
    Lock,
    /// Every flush takes 100 ms.
    SlowDisk,
    /// Postgres does nothing at all.
    HungDisk,
    Cut,
    BlackHole,
    Stall,
    SlowNetwork,
    /// The database is one that nothing can be written to, as in the middle of a failover.
    ReadOnly,
    /// Postgres refuses some of the coupons, for reasons of its own.
    CouponErrors,
    /// Postgres refuses every call that writes, for a reason of its own.
    CallErrors,
    /// The package was upgraded under the running server: new sessions cannot load its libraries.
    Libraries,
    /// A service is killed, and started again after a time.
    Kill,
    /// A service is killed in the middle of many requests, whose callers turn to the other at once.
    Takeover,
    /// A service is stopped with SIGTERM, and started again.
    Stop,
    /// The configuration is changed, and codes are uploaded.
    Apply,
    /// Callers that occupy connections.
    Hostile,
    /// 200 callers that hang up at once.
    HangUps,
    /// Many requests for one customer wait for settings that are locked, and then all are decided at once.
    Race,
    /// The network is cut while calls that write are waiting for a lock, and stays cut until the writers give up finding out what
    /// those calls have stored.
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

    /// As `CHAOS_SKIP` and the table call it.
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

    /// Whether it concerns the services and their callers. Any such can strike together with any other.
    const fn is_of_services(self) -> bool {
        matches!(
            self,
            Self::Kill | Self::Takeover | Self::Stop | Self::Apply | Self::Hostile | Self::HangUps | Self::Race
        )
    }

    pub fn goes_with(self, other: Self) -> bool {
        self.is_of_services() != other.is_of_services()
    }
}

/// A procedure, and the statement that makes it.
#[derive(Debug, PartialEq, Eq, sqlx::FromRow)]
struct Procedure {
    name: String,
    arguments: String,
    definition: String,
}

impl Procedure {
    /// The statement that makes it one that always fails.
    fn that_raises(&self, error: &str) -> String {
        let Self { name, arguments, .. } = self;
        format!(
            "create or replace procedure {name}({arguments}) language plpgsql as $$ begin
                 raise 'a fault of the server' using errcode = '{error}';
             end $$"
        )
    }
}

/// What the faults strike.
pub struct World {
    pub cluster: Cluster,
    pub shop: Arc<Shop>,
    /// The version of the file that was applied last, or at least tried.
    pub version: AtomicU32,
    /// The callers without a key of their own.
    pub natural_keys: NaturalKeys,
}

impl World {
    /// Breaks something for about so long, and mends it.
    pub async fn strike(&self, fault: Fault, time: Duration, random: &mut StdRng) {
        match fault {
            Fault::Restart => self.cluster.restart_postgres().await,
            Fault::Crash => {
                signal("-9", &[self.cluster.postmaster()]);
                sleep(time).await;
                self.cluster.restart_postgres().await;
            }
            Fault::Backend => self.kill_a_backend().await,
            Fault::Sessions => self.end_sessions(time).await,
            Fault::Connections => self.take_connections(time).await,
            Fault::Lock => self.hold_a_lock(time, random).await,
            Fault::SlowDisk => self.slow_down_flushes(time).await,
            Fault::HungDisk => {
                let pids = family(self.cluster.postmaster());
                spawn_blocking(move || freeze(&pids, time)).await.unwrap();
            }
            Fault::Cut => self.turn_the_weather(Weather::Cut, time).await,
            Fault::BlackHole => self.turn_the_weather(Weather::BlackHole, time).await,
            Fault::Stall => self.turn_the_weather(Weather::Stalled, time).await,
            Fault::SlowNetwork => self.turn_the_weather(Weather::Slow, time).await,
            Fault::ReadOnly => self.refuse_writes(time).await,
            Fault::CouponErrors => self.refuse_some_coupons(time).await,
            Fault::CallErrors => self.refuse_calls(time, random).await,
            Fault::Libraries => self.spoil_libraries(time).await,
            Fault::Kill => self.kill_a_service(time, random).await,
            Fault::Takeover => self.kill_between_coupons(time, random).await,
            Fault::Stop => self.stop_a_service(random).await,
            Fault::Apply => self.apply(time).await,
            Fault::Hostile => self.occupy(time).await,
            Fault::HangUps => {
                self.shop.burst(random, 200);
                sleep(time).await;
            }
            Fault::Race => self.race(time, random).await,
            Fault::Doubt => self.cut_off_calls(random).await,
        }
    }

    /// Kills one, and waits until Postgres has recovered: it ends all the others first.
    async fn kill_a_backend(&self) {
        let mut admin = self.cluster.admin().await;
        let writers =
            "select pid from pg_stat_activity where application_name = 'coupon-issuer writer' order by random()";
        // One that has ended by itself meanwhile is followed by another.
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

    /// Takes every place, and those of the services when they are torn from them.
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
        self.shop.say(&format!("lock: {lock}"));
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

    /// Always the same coupons: those that are sent again alone are refused again.
    async fn refuse_some_coupons(&self, time: Duration) {
        let refuse = format!(
            "create function refuse() returns trigger language plpgsql as $$ begin
                 raise 'a fault of the server' using errcode = ('{{{}}}'::text[])[1 + (hashint8extended(new.coupon_id, 1) & 255) % {}];
             end $$;
             create trigger refuse before insert on coupon for each row
                 when (hashint8extended(new.coupon_id, 0) & 7 = 0) execute function refuse()",
            SERVER_ERRORS.join(","),
            SERVER_ERRORS.len(),
        );
        self.cluster.execute(&refuse).await;
        sleep(time).await;
        self.cluster.execute("drop function if exists refuse() cascade").await;
    }

    /// Even those that write nothing: that shows that it is no coupon's fault.
    async fn refuse_calls(&self, time: Duration, random: &mut StdRng) {
        let error = SERVER_ERRORS[random.random_range(0..SERVER_ERRORS.len())];
        self.shop.say(&format!("{}: {error}", Fault::CallErrors.name()));
        let procedures = self.writers_procedures().await;
        assert!(!procedures.is_empty(), "the writer calls procedures of another name now");
        for procedure in &procedures {
            self.cluster.execute(&procedure.that_raises(error)).await;
        }
        self.without_database(time).await;
        for procedure in &procedures {
            self.cluster.execute(&procedure.definition).await;
        }
        assert!(self.writers_procedures().await == procedures, "they are not what they were before");
    }

    /// Of every version that there is.
    async fn writers_procedures(&self) -> Vec<Procedure> {
        let all = "select quote_ident(proname) as name, pg_get_function_arguments(oid) as arguments,
                          pg_get_functiondef(oid) as definition
                     from pg_proc where prokind = 'p' and proname like 'issue\\_coupons%' order by oid";
        sqlx::query_as(all).fetch_all(&mut self.cluster.admin().await).await.unwrap()
    }

    async fn spoil_libraries(&self, time: Duration) {
        // Where it is no copy, this fault does not strike.
        let Ok(installation) = &self.cluster.installation else { return };
        installation.spoil();
        self.end_all_sessions().await;
        self.without_database(time).await;
        installation.mend();
    }

    /// Waits for so long while nothing can be written, and until both services have said that they are not ready.
    async fn without_database(&self, time: Duration) {
        let ((), first, second) = tokio::join!(sleep(time), self.says_not_ready(0), self.says_not_ready(1));
        for (replica, says_so) in [first, second].into_iter().enumerate() {
            if !says_so {
                let address = self.cluster.replicas[replica].address;
                self.shop.complain_about(Wrong::Ready, format!("the service at {address} is ready, and cannot write"));
            }
        }
    }

    /// Whether a replica says within a time that it is not ready, or says nothing at all. Once is not enough: whoever has just lost
    /// his connections says so as well.
    async fn says_not_ready(&self, replica: usize) -> bool {
        let until = Instant::now() + NOT_READY_WITHIN;
        let mut in_a_row = 0;
        while in_a_row < 10 {
            if Instant::now() > until {
                return false;
            }
            in_a_row = if self.shop.is_ready(replica).await { 0 } else { in_a_row + 1 };
            sleep(Duration::from_millis(50)).await;
        }
        true
    }

    async fn turn_the_weather(&self, weather: Weather, time: Duration) {
        self.cluster.network.turn(weather);
        sleep(time).await;
        self.cluster.network.turn(Weather::Clear);
    }

    async fn kill_a_service(&self, time: Duration, random: &mut StdRng) {
        let replica = &self.cluster.replicas[random.random_range(0..2)];
        replica.kill();
        sleep(time).await;
        replica.start();
    }

    /// While somebody holds a lock coupons wait, and of some requests the first ones are issued: then the service is killed, and
    /// in every other case its calls with it, as a server does that looks after its connections. Of what else is broken
    /// meanwhile it makes the best.
    async fn kill_between_coupons(&self, time: Duration, random: &mut StdRng) {
        let number = random.random_range(0..2);
        let replica = &self.cluster.replicas[number];
        let mut holder = self.cluster.admin().await;
        if let Err(error) = sqlx::raw_sql(LOCKS[random.random_range(0..LOCKS.len())]).execute(&mut holder).await {
            eprintln!("takeover: {error}");
        }
        self.shop.rush(random, number, RUSH);
        sleep(Duration::from_millis(random.random_range(200..600))).await;
        replica.kill();
        if random.random_ratio(1, 2) {
            let _ = sqlx::raw_sql(END_WAITING).execute(&mut holder).await;
        }
        let _ = holder.close().await;
        sleep(time).await;
        replica.start();
    }

    /// Coupons of one customer, coupons under one natural key, and codes of which many are taken. The lock may fail, since another
    /// fault may strike meanwhile.
    async fn race(&self, time: Duration, random: &mut StdRng) {
        let mut holder = self.cluster.admin().await;
        if let Err(error) = sqlx::raw_sql(LOCKS[1]).execute(&mut holder).await {
            eprintln!("race: {error}");
        }
        self.shop.race(random, RACERS, &[catalogue::THREE_EACH, catalogue::NARROW]);
        self.natural_keys.race(&self.shop);
        sleep(START_AFTER).await;
        let _ = holder.close().await;
        sleep(time).await;
    }

    /// In half of the cases the calls get their lock after the cut, and store their coupons.
    async fn cut_off_calls(&self, random: &mut StdRng) {
        let mut holder = self.cluster.admin().await;
        if let Err(error) = sqlx::raw_sql(LOCKS[0]).execute(&mut holder).await {
            eprintln!("doubt: {error}");
        }
        let replica = random.random_range(0..2);
        self.shop.rush(random, replica, RUSH);
        let until = Instant::now() + IN_DOUBT_AFTER;
        while Instant::now() < until && matches!(waiting_calls(&mut holder).await, Ok(0)) {
            sleep(Duration::from_millis(10)).await;
        }
        self.cluster.network.turn(Weather::Cut);
        if random.random_ratio(1, 2) {
            let _ = holder.close().await;
            sleep(IN_DOUBT_AFTER).await;
        } else {
            sleep(IN_DOUBT_AFTER).await;
            let _ = holder.close().await;
        }
        self.cluster.network.turn(Weather::Clear);
    }

    async fn stop_a_service(&self, random: &mut StdRng) {
        let replica = &self.cluster.replicas[random.random_range(0..2)];
        match replica.stop().await {
            Some(exit) if exit.success() => {}
            exit => self.shop.complain(format!("after SIGTERM a service ended with {exit:?}")),
        }
        replica.start();
    }

    /// Applies one version of the file after the other, and uploads codes.
    async fn apply(&self, time: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until {
            let version = 1 + self.version.fetch_add(1, Ordering::Relaxed);
            // That it did not succeed while something else is broken is no failure; whether it did may not even be known.
            if let Err(error) = self.apply_version(version).await {
                eprintln!("apply: {error}");
            }
            self.upload(catalogue::SCARCE, "SCARCE", version, 40).await;
            sleep(Duration::from_millis(300)).await;
        }
    }

    pub async fn apply_version(&self, version: u32) -> anyhow::Result<()> {
        let recorder = &self.shop.recorder;
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
        let recorder = &self.shop.recorder;
        let start = recorder.now();
        let imported = codes::import(&self.cluster.as_service(), OrgId(1), SeriesId(series), &file, &mut |_| {}).await;
        let end = imported.is_ok().then(|| recorder.now());
        if let Err(error) = imported {
            eprintln!("codes import: {error}");
        }
        recorder.write(&Line::Import(Import { process: OPERATOR.to_owned(), start, end, series, count }));
    }

    /// Connections that say nothing, that stop in the middle of a head, and that ask and never listen.
    async fn occupy(&self, time: Duration) {
        let mut held = Vec::new();
        for number in 0..720_usize {
            let address = self.cluster.replicas[number % 2].address;
            let words = match number {
                0..500 => String::new(),
                500..700 => "POST /v2/coupon/bulk/issue HTTP/1.1\r\nHost: x\r\nAuthor".to_owned(),
                _ => self.pipelined(number, 200),
            };
            held.extend(hold(address, &words).await);
        }
        sleep(time).await;
    }

    /// Many requests in a row, each under a key of its own that no till has. Nobody reads the answers.
    fn pipelined(&self, caller: usize, count: usize) -> String {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let body = json!({"seriesIds": HOSTILE_SERIES, "customer": {"id": HOSTILE}}).to_string();
        let credentials = STANDARD.encode("store.server:server123");
        let one = |_| {
            let key = format!("{HOSTILE}-{caller}-{}", NEXT.fetch_add(1, Ordering::Relaxed));
            let (recorder, series) = (&self.shop.recorder, HOSTILE_SERIES.to_vec());
            let call = Issue::asked(recorder.now(), key.clone(), key.clone(), HOSTILE.to_owned(), series);
            recorder.write(&Line::Issue(call));
            format!(
                "POST /v2/coupon/bulk/issue HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nAuthorization: Basic \
                 {credentials}\r\nIdempotency-Key: {key}\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            )
        };
        (0..count).map(one).collect()
    }
}

/// A connection on which this was said, as far as anybody listened.
async fn hold(address: SocketAddr, words: &str) -> Option<TcpStream> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    let _ = timeout(Duration::from_millis(100), stream.write_all(words.as_bytes())).await;
    Some(stream)
}
