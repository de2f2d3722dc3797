//! The call of a batch of four coupons is cut at every point: the session ends, the statement fails or times out, the network dies,
//! the server crashes. A second cut strikes every point of the recovery. The caller notices nothing.
//!
//! A cut inside a transaction leaves nothing of it, wherever it strikes. So the points are the beginning of procedure
//! `issue_coupons_1`, and the places before and after each commit. They are numbered in the order in which calls reach them.

use coupon_issuer::db::migrations;
use std::collections::BTreeSet;
use std::fmt;
use std::process::Command;
use std::str::FromStr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use coupon_issuer::demo::private_postgres::{Options, PrivatePostgres};
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::sleep;

use crate::network::Wire;
use crate::support::{TestApp, eventually, fresh_dir, new_database, outcome, series};

/// The places of the procedure, as they are numbered where it is made to stop. Each commit has two: before it and after it.
const BEGINNING: usize = 0;
const COMMITS: [&str; 5] =
    ["an unguarded coupon", "a coupon with a cap or a key", "a coupon", "a removed code", "the flush"];
const UNGUARDED: usize = 0;
const CAP_OR_KEY: usize = 1;
const GUARDED: usize = 2;
/// The commit of a removed code is never reached here: it takes an uploaded code that a change by hand has issued before.
const FLUSH: usize = 4;

/// The points of a batch of four: its beginning, two for each coupon, two for the flush.
const POINTS: i64 = 11;
/// The codes in the pool. More than any test takes.
const POOL: i64 = 1000;

/// Fewer tills than other tests have: the hash of each password costs time.
const ORG: &str = r#"
[[orgs]]
id = 1
name = "Test Retail"
time_zone = "UTC"
customer_policy = "open"
default_access = "write"
natural_key = true
[[orgs.stores]]
id = 10
name = "Downtown"
[[orgs.tills]]
id = "store.server"
store_id = 10
password = "server123"
"#;

const SCHEMA: &str = "
    -- Not transactional: it counts on over rollbacks and sessions.
    create sequence points;
    create sequence struck_1;
    create sequence struck_2;
    create sequence struck_3;
    create table cut (
        number bigint primary key,
        nth integer not null,
        way text not null,
        -- A crash may set the sequence back. A cut does not strike again after it.
        server timestamptz not null default pg_postmaster_start_time());
    create function reach(place integer, coupons integer) returns void language plpgsql as $$
    declare
        this constant bigint := nextval('points');
        armed cut;
    begin
        select * into armed from cut c where c.number = this and c.server = pg_postmaster_start_time();
        if not found then return; end if;
        perform setval('struck_' || armed.nth, 100 * (coupons + 1) + place);
        case armed.way
            when 'session' then
                perform pg_terminate_backend(pg_backend_pid());
                perform pg_sleep(600);
            when 'cancel' then
                perform pg_cancel_backend(pg_backend_pid());
                perform pg_sleep(600);
            when 'wait' then
                perform pg_sleep(600);
            when 'time out' then
                -- Not a coupon sent alone, if a slow machine has cut the batch before.
                if coupons = 4 then
                    perform pg_sleep(600);
                end if;
            when 'more time' then
                -- From the next statement on.
                perform set_config('statement_timeout', '50s', false);
            when 'hang' then
                -- Until a later point is reached.
                while (select p.last_value from points p) = this loop
                    perform pg_sleep(0.002);
                end loop;
            when 'let go' then
                -- Until the session that hung has come to its end.
                while exists (
                    select from pg_stat_activity a
                     where a.datname = current_database() and a.application_name = 'coupon-issuer writer'
                       and a.pid <> pg_backend_pid() and a.state = 'active') loop
                    perform pg_sleep(0.002);
                    perform pg_stat_clear_snapshot();
                end loop;
            else
                raise exception 'cut' using errcode = armed.way;
        end case;
    end $$";

/// Where a cut struck.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Struck {
    place: usize,
    /// Of the call that was cut.
    coupons: usize,
}

impl Struck {
    fn of(number: i64) -> Self {
        let number = usize::try_from(number).unwrap();
        Self { place: number % 100, coupons: number / 100 - 1 }
    }

    /// Whether the call had one coupon, and had not committed it.
    fn is_before_a_coupon_sent_alone(self) -> bool {
        let is_before_its_commit = self.place == BEGINNING || (self.place % 2 == 1 && self.place / 2 <= GUARDED);
        self.coupons == 1 && is_before_its_commit
    }
}

impl fmt::Display for Struck {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let coupons = self.coupons;
        if self.place == BEGINNING {
            return write!(formatter, "at the beginning of a call of {coupons}");
        }
        let side = if self.place % 2 == 1 { "before" } else { "after" };
        write!(formatter, "{side} the commit of {} in a call of {coupons}", COMMITS[(self.place - 1) / 2])
    }
}

/// Has the procedure reach a point at its beginning, and before and after each commit.
async fn add_points(pool: &PgPool) {
    let definition = "select pg_get_functiondef(oid) from pg_proc where proname like 'issue_coupons%'";
    let definitions: Vec<String> = sqlx::query_scalar(definition).fetch_all(pool).await.unwrap();
    let [definition] = &definitions[..] else { panic!("{} versions of the procedure", definitions.len()) };
    let reach = |place: usize| format!("perform reach({place}, cardinality(coupons));");
    let loops: Vec<&str> = definition.split("foreach item in array coupons loop").collect();
    let [before, after] = loops[..] else { panic!("{} loops over the coupons", loops.len() - 1) };
    let parts: Vec<&str> = after.split("commit;").collect();
    assert!(!before.contains("commit;"));
    assert_eq!(parts.len() - 1, COMMITS.len(), "the commits of the procedure");
    let mut pointed = format!("{before}{}\nforeach item in array coupons loop", reach(BEGINNING));
    for (place, part) in parts.iter().enumerate() {
        if place > 0 {
            pointed.extend([&reach(2 * place - 1), " commit; ", &reach(2 * place)]);
        }
        pointed += part;
    }
    for statement in [SCHEMA, &pointed] {
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(pool).await.unwrap();
    }
}

/// Under which name the entities of a batch are issued once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Name {
    None,
    Key,
    Natural,
}

/// The coupons that one request asks for, and that are written as one call.
#[derive(Debug, Clone, Copy)]
struct Batch {
    series: &'static [i64],
    name: Name,
}

/// Without limits, with a cap, with a maximum for a customer, and with uploaded codes.
const MIXED: &[i64] = &[1, 2, 3, 4];
/// The first one excludes another series.
const EXCLUSIVE: &[i64] = &[5, 2, 3, 4];
/// Those after the first are written on the short ways of the procedure.
const PLAIN: &[i64] = &[1; 4];

/// A cut: the number of the point, and the way: one of function `reach`, or the code of an error.
type Cut = (i64, &'static str);

/// The service over a database whose calls can be cut.
struct Rig {
    app: TestApp,
    /// Past the wire.
    pool: PgPool,
    /// Whether the service reaches the database over a wire, so that all of its connections can be cut.
    is_wired: bool,
    customers: AtomicUsize,
}

/// A request, the cuts that struck its calls, and its answer.
struct Run {
    batch: Batch,
    customer: String,
    cuts: Vec<Cut>,
    struck: Vec<Struck>,
    /// The points that were reached.
    reached: i64,
    status: u16,
    answer: Value,
}

impl Rig {
    async fn start() -> Self {
        let database = new_database().await;
        Self::over(database.clone(), &database, 50).await
    }

    /// `through`: how the service reaches the database. `timeout`: the seconds of a statement of the writer.
    async fn over(through: PgConnectOptions, database: &PgConnectOptions, timeout: u64) -> Self {
        let is_wired = through.get_socket() != database.get_socket();
        let all = [
            series(1, ""),
            series(2, "max_create = 100000"),
            series(3, "max_vouchers_per_user = 9"),
            series(4, "client_handling_type = \"DISC_CODE_PIN\""),
            series(5, "mutual_exclusive_series_ids = [6]"),
            series(6, ""),
        ];
        let app = TestApp::start_over(through, &format!("{ORG}{}", all.concat()), |settings| {
            // One writer, so that the points are reached one after the other.
            settings.writer.tasks = 1;
            settings.writer.statement_timeout = Duration::from_secs(timeout);
        })
        .await;
        // A flush of the test's own would save from a crash what the service has not flushed.
        let unflushed = database.clone().options([("synchronous_commit", "off")]);
        let pool = PgPoolOptions::new().max_connections(2).connect_lazy_with(unflushed);
        // At the start the service finds out whether writes are taken, by a call that no cut is meant for.
        eventually("ready", async || app.client().get(app.url("/readyz")).send().await.unwrap().status() == 200).await;
        add_points(&pool).await;
        let codes = "insert into pool_code (org_id, series_id, code, uploaded_code, position)
                     select 1, 4, 'GIFT-' || n, 'Gift-' || n, n from generate_series(1, $1) n";
        sqlx::query(codes).bind(POOL).execute(&pool).await.unwrap();
        Self { app, pool, is_wired, customers: AtomicUsize::new(0) }
    }

    async fn arm(&self, cuts: &[Cut]) {
        let row = |(nth, (number, way)): (usize, &Cut)| {
            format!("insert into cut (number, nth, way) values ({number}, {nth}, '{way}');")
        };
        let reset = "delete from cut; select setval('points', 1, false), setval('struck_1', 1, false), \
                     setval('struck_2', 1, false), setval('struck_3', 1, false);";
        let arm = reset.to_owned() + &(1..).zip(cuts).map(row).collect::<String>();
        sqlx::raw_sql(AssertSqlSafe(arm)).execute(&self.pool).await.unwrap();
    }

    /// Whether the nth cut has struck.
    async fn has_struck(&self, nth: usize) -> bool {
        let query = AssertSqlSafe(format!("select is_called from struck_{nth}"));
        sqlx::query_scalar(query).fetch_one(&self.pool).await.unwrap()
    }

    /// Whether a call runs.
    async fn is_at_work(&self) -> bool {
        let active = "select exists (
            select from pg_stat_activity
             where datname = current_database() and application_name = 'coupon-issuer writer' and state = 'active')";
        sqlx::query_scalar(active).fetch_one(&self.pool).await.unwrap()
    }

    /// The points that were reached, and where cuts struck. None strikes after this.
    async fn disarm(&self) -> (i64, Vec<Struck>) {
        let state =
            "select 0, last_value, is_called from points union all select 1, last_value, is_called from struck_1
                     union all select 2, last_value, is_called from struck_2
                     union all select 3, last_value, is_called from struck_3 order by 1";
        let numbers: Vec<(i32, i64, bool)> = sqlx::query_as(state).fetch_all(&self.pool).await.unwrap();
        sqlx::query("delete from cut").execute(&self.pool).await.unwrap();
        let called: Vec<i64> =
            numbers.iter().map_while(|(_, number, is_called)| is_called.then_some(*number)).collect();
        assert!(numbers[called.len()..].iter().all(|(.., is_called)| !is_called), "a cut was passed by: {numbers:?}");
        let Some((reached, struck)) = called.split_first() else { return (0, Vec::new()) };
        (*reached, struck.iter().copied().map(Struck::of).collect())
    }

    /// The customer of the next run.
    fn next_customer(&self) -> String {
        format!("c-{}", self.customers.load(Ordering::Relaxed))
    }

    fn new_customer(&self) -> String {
        let customer = self.next_customer();
        self.customers.fetch_add(1, Ordering::Relaxed);
        customer
    }

    async fn ask(&self, batch: Batch, customer: &str) -> (u16, Value) {
        ask(self.app.client().clone(), self.app.url("/v2/coupon/bulk/issue"), batch, customer.to_owned()).await
    }

    /// Where the connections for reads are cut as well, the service finds that out as it reads, and answers 503: asks again then.
    async fn ask_unless_away(&self, batch: Batch, customer: &str) -> (u16, Value) {
        for _ in 0..100 {
            let (status, answer) = self.ask(batch, customer).await;
            if status != 503 || !self.is_wired {
                return (status, answer);
            }
        }
        panic!("503 over and over");
    }

    /// Asks for a batch that is cut at these points.
    async fn run(&self, batch: Batch, cuts: &[Cut]) -> Run {
        let customer = self.new_customer();
        self.arm(cuts).await;
        let (status, answer) = self.ask_unless_away(batch, &customer).await;
        let (reached, struck) = self.disarm().await;
        Run { batch, customer, cuts: cuts.to_vec(), struck, reached, status, answer }
    }

    /// Asks for a batch that is cut at these points, and does this meanwhile, once a call waits at the last of them. Asks again where
    /// it comes to no call, because the connections for reads are found to be broken by an earlier cut.
    async fn run_beside(&self, batch: Batch, cuts: &[Cut], meanwhile: impl Future<Output = ()>) -> Run {
        let last = cuts.iter().rposition(|(_, way)| matches!(*way, "wait" | "hang")).unwrap() + 1;
        let customer = self.new_customer();
        self.arm(cuts).await;
        let url = self.app.url("/v2/coupon/bulk/issue");
        let ask = || tokio::spawn(ask(self.app.client().clone(), url.clone(), batch, customer.clone()));
        let mut asking = ask();
        while !self.has_struck(last).await {
            if asking.is_finished() {
                let answer = asking.await.unwrap();
                assert_eq!(answer.0, 503, "the point is not reached: {cuts:?} {answer:?}");
                asking = ask();
            }
            sleep(Duration::from_millis(2)).await;
        }
        meanwhile.await;
        let (status, answer) = asking.await.unwrap();
        let (reached, struck) = self.disarm().await;
        Run { batch, customer, cuts: cuts.to_vec(), struck, reached, status, answer }
    }

    /// Four requests for a capped coupon each, which gather while another call hangs. Their batch is cut at this point.
    async fn run_together(&self, number: i64) -> Vec<Run> {
        const UNLIMITED: Batch = Batch { series: &[1], name: Name::None };
        const CAPPED: Batch = Batch { series: &[2], name: Name::Key };
        // The other call has five points, and one is taken to let it go.
        let cuts = [(1, "hang"), (6 + number, "session")];
        self.arm(&cuts).await;
        let url = self.app.url("/v2/coupon/bulk/issue");
        let ask = |batch, customer| tokio::spawn(ask(self.app.client().clone(), url.clone(), batch, customer));
        let first = ask(UNLIMITED, self.new_customer());
        eventually("a call hangs", async || self.has_struck(1).await).await;
        let asked: Vec<_> = (0..4).map(|_| self.new_customer()).map(|id| (id.clone(), ask(CAPPED, id))).collect();
        sleep(Duration::from_millis(50)).await;
        sqlx::query("select nextval('points')").execute(&self.pool).await.unwrap();
        first.await.unwrap();
        let mut runs = Vec::new();
        for (customer, asking) in asked {
            let (status, answer) = asking.await.unwrap();
            runs.push(Run {
                batch: CAPPED,
                customer,
                cuts: cuts.to_vec(),
                struck: Vec::new(),
                reached: 0,
                status,
                answer,
            });
        }
        let (_, struck) = self.disarm().await;
        for run in &mut runs {
            run.struck.clone_from(&struck);
        }
        runs
    }

    /// The coupons of a customer: the series and the code of each.
    async fn stored(&self, customer: &str) -> Vec<(i64, String)> {
        let query = "select series_id, code from issued_coupon where customer_id = $1";
        let mut stored: Vec<(i64, String)> = sqlx::query_as(query).bind(customer).fetch_all(&self.pool).await.unwrap();
        stored.sort();
        stored
    }

    /// The counter counts the coupons, and each uploaded code is in the pool or a coupon's.
    async fn assert_counted(&self, run: &Run) {
        let (counted, capped, codes): (i64, i64, i64) = sqlx::query_as(
            "select (select max(issued) from series_counter where series_id = 2),
                    (select count(*) from coupon where series_id = 2),
                    (select count(*) from pool_code) + (select count(distinct code) from coupon where series_id = 4)",
        )
        .fetch_one(&self.pool)
        .await
        .unwrap();
        assert_eq!((counted, codes), (capped, POOL), "{run}");
    }

    /// Each entity is issued, its code is what is stored, and a retry shows the same.
    async fn assert_issued(&self, run: &Run) {
        assert_eq!(run.status, 200, "{run}");
        assert_eq!(run.outcomes(), vec!["issued"; run.batch.series.len()], "{run}");
        let answered = run.answered();
        assert_eq!(answered, self.stored(&run.customer).await, "{run}");
        assert_eq!(answered.iter().collect::<BTreeSet<_>>().len(), answered.len(), "{run}");
        self.assert_counted(run).await;
        if run.batch.name != Name::None {
            assert_eq!(
                self.ask_unless_away(run.batch, &run.customer).await,
                (200, run.answer.clone()),
                "a retry: {run}"
            );
            assert_eq!(answered, self.stored(&run.customer).await, "after a retry: {run}");
        }
    }

    /// As [`Rig::assert_issued`], except that one entity is answered with this error, and is not stored. A retry under the key issues it.
    async fn assert_one_failed(&self, run: &Run, code: &str) {
        assert_eq!(run.status, 200, "{run}");
        let mut outcomes = run.outcomes();
        outcomes.sort();
        assert_eq!(outcomes, [code, "issued", "issued", "issued"], "{run}");
        let answered = run.answered();
        assert_eq!(answered, self.stored(&run.customer).await, "{run}");
        self.assert_counted(run).await;
        if run.batch.name == Name::None {
            return;
        }
        let (status, answer) = self.ask_unless_away(run.batch, &run.customer).await;
        let retry = Run { status, answer, struck: run.struck.clone(), cuts: run.cuts.clone(), ..run.again() };
        for entity in answered {
            assert!(retry.answered().contains(&entity), "{entity:?} is not shown again: {retry}");
        }
        self.assert_issued(&retry).await;
    }

    async fn assert_clean(&self) {
        let report = self.app.verify().await;
        assert_eq!(report.wrong(), 0, "{report}");
    }
}

async fn ask(client: reqwest::Client, url: String, batch: Batch, customer: String) -> (u16, Value) {
    let mut body = json!({"seriesIds": batch.series, "customer": {"id": customer}});
    if batch.name == Name::Natural {
        body["metadata"] = json!({"sourceType": "BILL", "sourceId": customer});
    }
    let mut request = client.post(url).basic_auth("store.server", Some("server123")).json(&body);
    if batch.name == Name::Key {
        request = request.header("Idempotency-Key", customer);
    }
    let answer = request.send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

impl Run {
    fn outcomes(&self) -> Vec<String> {
        self.answer["response"].as_array().unwrap().iter().map(outcome).collect()
    }

    /// The series and the code of each entity that is issued.
    fn answered(&self) -> Vec<(i64, String)> {
        let entities = self.batch.series.iter().zip(self.answer["response"].as_array().unwrap());
        let issued =
            entities.filter_map(|(series, entity)| Some((*series, entity["result"]["code"].as_str()?.to_owned())));
        let mut answered: Vec<_> = issued.collect();
        answered.sort();
        answered
    }

    fn again(&self) -> Self {
        Self {
            batch: self.batch,
            customer: self.customer.clone(),
            cuts: Vec::new(),
            struck: Vec::new(),
            reached: 0,
            status: 0,
            answer: Value::Null,
        }
    }
}

impl fmt::Display for Run {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { batch, cuts, struck, status, answer, .. } = self;
        write!(formatter, "{batch:?} was cut:")?;
        for ((number, way), struck) in cuts.iter().zip(struck.iter().map(Some).chain([None; 3])) {
            write!(formatter, " {way} at {number}")?;
            if let Some(struck) = struck {
                write!(formatter, ", {struck};")?;
            }
        }
        write!(formatter, " and answered {status} {answer}")
    }
}

/// Several databases of the same kind, so that cuts are tried side by side.
async fn rigs(count: usize) -> Vec<Arc<Rig>> {
    let mut rigs = Vec::new();
    for _ in 0..count {
        rigs.push(Arc::new(Rig::start().await));
    }
    rigs
}

/// Does this for each of these cases, on whichever rig is free, and verifies the rigs.
async fn for_each<C, F>(
    rigs: &[Arc<Rig>],
    cases: impl IntoIterator<Item = C>,
    each: impl Fn(Arc<Rig>, C) -> F,
) -> Vec<F::Output>
where
    F: Future<Output: Send> + Send + 'static,
{
    let mut free = rigs.to_vec();
    let (mut working, mut done) = (JoinSet::new(), Vec::new());
    for case in cases {
        if free.is_empty() {
            let (rig, output) = working.join_next().await.unwrap().unwrap();
            free.push(rig);
            done.push(output);
        }
        let rig = free.pop().unwrap();
        let doing = each(Arc::clone(&rig), case);
        working.spawn(async move { (rig, doing.await) });
    }
    for (_, output) in working.join_all().await {
        done.push(output);
    }
    for rig in rigs {
        rig.assert_clean().await;
    }
    done
}

/// The commits that a batch reaches: those of its coupons, and the flush.
fn assert_all_places(struck: impl IntoIterator<Item = Struck>, coupons: &[usize]) {
    let places: BTreeSet<usize> = struck.into_iter().map(|struck| struck.place).collect();
    let commits = coupons.iter().chain([&FLUSH]).flat_map(|commit| [2 * commit + 1, 2 * commit + 2]);
    assert_eq!(places, commits.chain([BEGINNING]).collect());
}

/// How a batch is cut twice.
#[derive(Debug, Clone, Copy)]
struct Twice {
    batch: Batch,
    /// What the first cut does, at every point of the batch.
    first: &'static str,
    /// After which of these points the session ends once more, at every point of the settling.
    and_after: &'static [i64],
    /// The commits of coupons that are reached.
    commits: &'static [usize],
}

/// What is left to settle differs only in how many coupons are committed. At each of these points that is another number.
const AFTER_COMMITS: &[i64] = &[1, 3, 5, 7, 9];
const AFTER_TWO_COMMITS: &[i64] = &[1, 5];
const EVERY_POINT: &[i64] = &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11];

async fn cut_twice(rigs: &[Arc<Rig>], twice: Twice) {
    let Twice { batch, .. } = twice;
    let uncut = rigs[0].run(batch, &[]).await;
    rigs[0].assert_issued(&uncut).await;
    assert_eq!(uncut.reached, POINTS, "{uncut}");
    let all = for_each(rigs, 1..=POINTS, move |rig, first| async move {
        let mut struck = Vec::new();
        for second in first + 1.. {
            let run = rig.run(batch, &[(first, twice.first), (second, "session")]).await;
            rig.assert_issued(&run).await;
            struck.extend(&run.struck);
            if run.struck.len() == 1 || !twice.and_after.contains(&first) {
                break;
            }
        }
        struck
    })
    .await;
    println!("{batch:?}: {} cuts", all.iter().map(Vec::len).sum::<usize>());
    assert_all_places(all.into_iter().flatten(), twice.commits);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_cut_twice_is_issued_once() {
    let rigs = rigs(2).await;
    let first = "session";
    for (name, and_after) in [(Name::Key, EVERY_POINT), (Name::None, AFTER_COMMITS), (Name::Natural, AFTER_TWO_COMMITS)]
    {
        let batch = Batch { series: MIXED, name };
        cut_twice(&rigs, Twice { batch, first, and_after, commits: &[GUARDED] }).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_on_the_short_ways_cut_twice_is_issued_once() {
    let rigs = rigs(2).await;
    // The settling sends every coupon on the long way, as above.
    let and_after = AFTER_TWO_COMMITS;
    for (name, first, commits) in
        [(Name::None, "session", &[UNGUARDED, GUARDED]), (Name::Key, "XX000", &[CAP_OR_KEY, GUARDED])]
    {
        let batch = Batch { series: PLAIN, name };
        cut_twice(&rigs, Twice { batch, first, and_after, commits }).await;
    }
    // Its key is claimed by a statement, before the batch.
    let batch = Batch { series: EXCLUSIVE, name: Name::Key };
    let twice = Twice { batch, first: "XX000", and_after, commits: &[GUARDED] };
    cut_twice(&rigs, twice).await;
}

/// Four requests for one capped series: the later ones go on with the count of the first, on the short way of the procedure.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_of_several_requests_that_is_cut_is_issued_once() {
    let rigs = rigs(2).await;
    let all = for_each(&rigs, 1..=POINTS, |rig, number| async move {
        loop {
            let runs = rig.run_together(number).await;
            for run in &runs {
                rig.assert_issued(run).await;
            }
            // A request that came late was not in the batch.
            if let [struck] = runs[0].struck[1..]
                && struck.coupons == runs.len()
            {
                return struck;
            }
        }
    })
    .await;
    assert_all_places(all, &[CAP_OR_KEY, GUARDED]);
}

/// A fault of the statement, one of the server, a deadlock, and a statement that is cancelled, as by its time-out.
const ERRORS: [&str; 4] = ["P0001", "XX000", "40P01", "cancel"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_fails_is_settled() {
    let rigs = rigs(2).await;
    for name in [Name::None, Name::Key] {
        for series in [MIXED, PLAIN] {
            let batch = Batch { series, name };
            for_each(&rigs, 1..=POINTS, move |rig, number| async move {
                for error in ERRORS {
                    let run = rig.run(batch, &[(number, error)]).await;
                    assert_eq!(run.struck.len(), 1, "{run}");
                    rig.assert_issued(&run).await;
                }
            })
            .await;
        }
    }
}

/// The first call ends with its session, or fails; then each call of the settling fails at each of its points.
///
/// An entity is answered with an error only if the error struck its own call before its commit: it was sent alone, so that it is
/// the database's answer to it. It is not stored, and a retry under the key issues it. A deadlock alone is tried again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coupon_is_failed_only_by_an_error_before_its_own_commit() {
    let rigs = rigs(2).await;
    // After two commits, and before the first.
    for (name, first, left) in [(Name::None, (5, "session"), 2), (Name::Key, (1, "XX000"), 4)] {
        let batch = Batch { series: MIXED, name };
        let failed = for_each(&rigs, ERRORS, move |rig, error| async move {
            let mut failed = 0;
            for number in first.0 + 1.. {
                let run = rig.run(batch, &[first, (number, error)]).await;
                let Some(struck) = run.struck.get(1) else { break };
                if error != "40P01" && struck.is_before_a_coupon_sent_alone() {
                    rig.assert_one_failed(&run, if error == "P0001" { "786" } else { "748" }).await;
                    failed += 1;
                } else {
                    rig.assert_issued(&run).await;
                }
            }
            failed
        })
        .await;
        // At two points of each coupon that is left.
        assert_eq!(failed.into_iter().sum::<usize>(), 3 * 2 * left);
    }
}

/// The statement's own clock, at every point.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_takes_too_long_is_settled() {
    let batch = Batch { series: MIXED, name: Name::Key };
    let mut rigs = Vec::new();
    for _ in 0..3 {
        let database = new_database().await;
        rigs.push(Arc::new(Rig::over(database.clone(), &database, 2).await));
    }
    for_each(&rigs, 1..=POINTS, move |rig, number| async move {
        let run = rig.run(batch, &[(number, "time out"), (number + 1, "more time")]).await;
        rig.assert_issued(&run).await;
    })
    .await;
}

/// The service over a wire.
async fn wired() -> (Rig, Wire) {
    let database = new_database().await;
    let wire = Wire::to(&database);
    let rig = Rig::over(wire.through(&database), &database, 50).await;
    (rig, wire)
}

const NETWORK_BATCHES: [Batch; 3] = [
    Batch { series: MIXED, name: Name::Key },
    Batch { series: MIXED, name: Name::None },
    Batch { series: PLAIN, name: Name::None },
];

/// The server does not notice that its client is gone: the call comes to its end before the service connects again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_goes_on_without_its_client_is_found_as_it_ended() {
    let (rig, wire) = wired().await;
    for batch in NETWORK_BATCHES {
        for number in 1..=POINTS {
            let meanwhile = async {
                wire.close();
                sqlx::query("select nextval('points')").execute(&rig.pool).await.unwrap();
                eventually("the call ends", async || !rig.is_at_work().await).await;
                wire.cut();
            };
            let run = rig.run_beside(batch, &[(number, "hang")], meanwhile).await;
            rig.assert_issued(&run).await;
        }
    }
    rig.assert_clean().await;
}

/// The call hangs, and would go on as soon as the service has begun to settle it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_hangs_without_its_client_is_ended() {
    let (rig, wire) = wired().await;
    for batch in NETWORK_BATCHES {
        for number in 1..=POINTS {
            let cuts = [(number, "hang"), (number + 1, "let go")];
            let run = rig.run_beside(batch, &cuts, async { wire.cut() }).await;
            rig.assert_issued(&run).await;
        }
    }
    rig.assert_clean().await;
}

/// A Postgres of a test's own that can crash, and the service over a wire to it.
struct Crashing {
    postgres: Arc<Mutex<PrivatePostgres>>,
    rig: Rig,
    wire: Wire,
}

impl Crashing {
    async fn start(directory: &str) -> Self {
        // Little is flushed but what is asked for: the rest is lost in a crash.
        let settings = [("wal_writer_delay", "10s"), ("wal_writer_flush_after", "1GB"), ("full_page_writes", "off")];
        let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        let options = Options { data_dir: fresh_dir(directory), durable: true, settings };
        let postgres = spawn_blocking(move || PrivatePostgres::start(&options)).await.unwrap().unwrap();
        let database = PgConnectOptions::from_str(&postgres.url("crash")).unwrap();
        migrations::create_database(&database).await.unwrap();
        migrations::migrate(&database).await.unwrap();
        let wire = Wire::to(&database);
        let rig = Rig::over(wire.through(&database), &database, 50).await;
        Self { postgres: Arc::new(Mutex::new(postgres)), rig, wire }
    }

    /// Returns how many coupons of the customer the crash has lost.
    async fn crash(&self, customer: &str) -> usize {
        let before = self.rig.stored(customer).await.len();
        let postgres = Arc::clone(&self.postgres);
        self.wire.close();
        let restart = move || {
            let mut postgres = postgres.lock().unwrap();
            let killed = Command::new("kill").args(["-9", &postgres.postmaster_pid().to_string()]).status();
            assert!(killed.unwrap().success());
            postgres.restart().unwrap();
        };
        spawn_blocking(restart).await.unwrap();
        let after = self.rig.stored(customer).await.len();
        self.wire.cut();
        before - after
    }

    async fn stop(self) {
        self.rig.assert_clean().await;
        self.rig.app.stop().await;
        let postgres = Arc::into_inner(self.postgres).unwrap().into_inner().unwrap();
        spawn_blocking(|| postgres.stop()).await.unwrap().unwrap();
    }

    /// Crashes while a call waits at the last of these cuts. Returns how many coupons that has lost.
    async fn run(&self, batch: Batch, cuts: &[Cut]) -> usize {
        let lost = AtomicUsize::new(0);
        let customer = self.rig.next_customer();
        let meanwhile = async { lost.store(self.crash(&customer).await, Ordering::Relaxed) };
        let run = self.rig.run_beside(batch, cuts, meanwhile).await;
        assert_eq!(run.customer, customer);
        self.rig.assert_issued(&run).await;
        lost.into_inner()
    }

    /// Crashes as soon as a request is answered.
    async fn run_and_crash(&self, batch: Batch, cuts: &[Cut]) -> Run {
        let run = self.rig.run(batch, cuts).await;
        assert_eq!(self.crash(&run.customer).await, 0, "{run}");
        self.rig.assert_issued(&run).await;
        run
    }
}

/// The crash takes back what no flush had reached.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_at_any_point_takes_back_no_answered_coupon() {
    let batch = Batch { series: MIXED, name: Name::Key };
    let crashing = Crashing::start("cut-crash").await;
    let mut lost = 0;
    for number in 1..=POINTS {
        lost += crashing.run(batch, &[(number, "wait")]).await;
    }
    assert!(lost > 0);
    crashing.run_and_crash(batch, &[]).await;
    crashing.stop().await;
}

/// The session ends after three commits; a crash while they are settled may take them back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_while_a_batch_is_settled_takes_back_no_answered_coupon() {
    let batch = Batch { series: MIXED, name: Name::None };
    let crashing = Crashing::start("cut-crash-settling").await;
    // A coupon that was sent alone is found to be committed, but its call failed before the flush. Only the last flush of the
    // settling keeps it.
    for number in [13, 14] {
        let run = crashing.run_and_crash(batch, &[(7, "session"), (number, "XX000")]).await;
        assert_eq!((run.struck[1].coupons, run.struck[1].is_before_a_coupon_sent_alone()), (1, false), "{run}");
    }
    let mut lost = 0;
    // The probe, one coupon alone, and the flush.
    for number in 8..8 + 3 + 5 + 3 {
        lost += crashing.run(batch, &[(7, "session"), (number, "wait")]).await;
    }
    // Such a coupon, and a crash while the next one is sent: the first one is lost, and must be sent again.
    lost += crashing.run(batch, &[(5, "session"), (11, "XX000"), (12, "wait")]).await;
    assert!(lost > 0);
    crashing.stop().await;
}
