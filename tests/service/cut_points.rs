//! Cuts the call of a batch of four coupons at every point: the session ends, the statement fails or times out, the network fails, or the
//! server crashes. A second cut strikes every point of the recovery. The caller notices nothing.
//!
//! A cut inside a transaction undoes it, wherever it strikes. So cuts between transactions are enough: at the start of procedure
//! `issue_coupons_1`, and before and after each commit. These are the steps. Each time that a call reaches a step is a point; the points
//! are numbered in order.

use std::collections::BTreeSet;
use std::fmt;
use std::process::Command;
use std::str::FromStr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use coupon_issuer::db::migrations;
use coupon_issuer::demo::{Options, PrivatePostgres};
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::sleep;

use crate::network::Wire;
use crate::support::{TestApp, eventually, fresh_dir, new_database, outcome, repeatable_series};

/// The first step. Each of [`COMMITS`] has two more: step `2 * index + 1` before it, and the next one after it.
const START: usize = 0;
const COMMITS: [&str; 8] = [
    "an unguarded coupon",
    "the claim of a simple coupon that is refused",
    "a simple coupon with an uploaded code",
    "a simple coupon",
    "a coupon",
    "the claim of a coupon that is refused",
    "a removed code",
    "the flush",
];
const UNGUARDED: usize = 0;
const UPLOADED: usize = 2;
const SIMPLE: usize = 3;
const GUARDED: usize = 4;
/// No test reaches the other commits: the customers of the tests have received nothing, and nobody has issued an uploaded code by hand.
const FLUSH: usize = 7;

/// The points of a batch of four: its start, two for each coupon, two for the flush.
const POINTS: i64 = 11;
/// The uploaded codes, more than any test needs.
const POOL: i64 = 1000;

/// Fewer tills than in other tests, because `apply` hashes the password of each, and hashing is slow.
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
    -- A sequence, because it counts on after rollbacks, and in all sessions.
    create sequence points;
    create sequence struck_1;
    create sequence struck_2;
    create sequence struck_3;
    create table cut (
        number bigint primary key,
        nth integer not null,
        effect text not null,
        -- A crash may set the sequence back. The cut must not strike again on the restarted server.
        server timestamptz not null default pg_postmaster_start_time());
    create function reach(step integer, coupons integer) returns void language plpgsql as $$
    declare
        this constant bigint := nextval('points');
        armed cut;
    begin
        select * into armed from cut c where c.number = this and c.server = pg_postmaster_start_time();
        if not found then return; end if;
        perform setval('struck_' || armed.nth, 100 * (coupons + 1) + step);
        case armed.effect
            when 'session' then
                perform pg_terminate_backend(pg_backend_pid());
                perform pg_sleep(600);
            when 'cancel' then
                perform pg_cancel_backend(pg_backend_pid());
                perform pg_sleep(600);
            when 'wait' then
                perform pg_sleep(600);
            when 'time out' then
                -- On a slow machine the batch may time out earlier. A coupon that is then sent alone must not wait.
                if coupons = 4 then
                    perform pg_sleep(600);
                end if;
            when 'longer time-out' then
                -- Counts from the next statement on.
                perform set_config('statement_timeout', '50s', false);
            when 'hang' then
                -- Until a call reaches a later point.
                while (select p.last_value from points p) = this loop
                    perform pg_sleep(0.002);
                end loop;
            when 'resume' then
                -- This point lets the hung call go on. Waits for its end.
                while exists (
                    select from pg_stat_activity a
                     where a.datname = current_database() and a.application_name = 'coupon-issuer writer'
                       and a.pid <> pg_backend_pid() and a.state = 'active') loop
                    perform pg_sleep(0.002);
                    perform pg_stat_clear_snapshot();
                end loop;
            else
                raise exception 'cut' using errcode = armed.effect;
        end case;
    end $$";

/// The point at which a cut struck.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Struck {
    step: usize,
    /// The number of coupons in the call.
    coupons: usize,
}

impl Struck {
    fn of(number: i64) -> Self {
        let number = usize::try_from(number).unwrap();
        Self { step: number % 100, coupons: number / 100 - 1 }
    }

    /// Whether the call had one coupon and had not yet committed it.
    fn is_before_a_coupon_sent_alone(self) -> bool {
        let is_before_its_commit = self.step == START || (self.step % 2 == 1 && self.step / 2 <= GUARDED);
        self.coupons == 1 && is_before_its_commit
    }
}

impl fmt::Display for Struck {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let coupons = self.coupons;
        if self.step == START {
            return write!(formatter, "at the start of a call of {coupons}");
        }
        let side = if self.step % 2 == 1 { "before" } else { "after" };
        write!(formatter, "{side} the commit of {} in a call of {coupons}", COMMITS[(self.step - 1) / 2])
    }
}

/// Makes the procedure call function `reach` at each step.
async fn add_points(pool: &PgPool) {
    let definition = "select pg_get_functiondef(oid) from pg_proc where proname like 'issue_coupons%'";
    let definitions: Vec<String> = sqlx::query_scalar(definition).fetch_all(pool).await.unwrap();
    let [definition] = &definitions[..] else { panic!("{} versions of the procedure", definitions.len()) };
    let reach = |step: usize| format!("perform reach({step}, cardinality(coupons));");
    let loops: Vec<&str> = definition.split("foreach item in array coupons loop").collect();
    let [before, after] = loops[..] else { panic!("{} loops over the coupons", loops.len() - 1) };
    let parts: Vec<&str> = after.split("commit;").collect();
    assert!(!before.contains("commit;"));
    assert_eq!(parts.len() - 1, COMMITS.len(), "the commits of the procedure");
    let mut with_steps = format!("{before}{}\nforeach item in array coupons loop", reach(START));
    for (commit, part) in parts.iter().enumerate() {
        if commit > 0 {
            with_steps.extend([&reach(2 * commit - 1), " commit; ", &reach(2 * commit)]);
        }
        with_steps += part;
    }
    for statement in [SCHEMA, &with_steps] {
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(pool).await.unwrap();
    }
}

/// What makes a retry of the request show the same coupons.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Idempotency {
    None,
    Key,
    Natural,
}

/// One request. Its coupons are one call, unless a cut strikes.
#[derive(Debug, Clone, Copy)]
struct Batch {
    series: &'static [i64],
    idempotency: Idempotency,
}

/// Without limits, with a cap, with a maximum per customer, and with uploaded codes.
const MIXED: &[i64] = &[1, 2, 3, 4];
/// The first series excludes another one.
const EXCLUSIVE: &[i64] = &[5, 2, 3, 4];
/// The procedure writes all but the first on its fast paths.
const PLAIN: &[i64] = &[1; 4];

/// A cut: the number of the point, and the effect, which is one of function `reach` or an error code.
type Cut = (i64, &'static str);

/// The service, and its database, whose calls can be cut.
struct Rig {
    app: TestApp,
    /// Connects to the database directly, and not over the wire.
    pool: PgPool,
    /// Whether the service reaches the database over a wire, so that all of its connections can be cut.
    is_wired: bool,
    customers: AtomicUsize,
}

/// A request, the cuts of its calls, and its answer.
struct Run {
    batch: Batch,
    customer: String,
    cuts: Vec<Cut>,
    struck: Vec<Struck>,
    /// How many points the calls reached.
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
            repeatable_series(1, ""),
            repeatable_series(2, "max_create = 100000"),
            repeatable_series(3, "max_vouchers_per_user = 9"),
            repeatable_series(4, "client_handling_type = \"DISC_CODE_PIN\""),
            repeatable_series(5, "mutual_exclusive_series_ids = [6]"),
            repeatable_series(6, ""),
        ];
        let app = TestApp::start_over(through, &format!("{ORG}{}", all.concat()), |settings| {
            // One writer, so that the points have an order.
            settings.writer.tasks = 1;
            settings.writer.statement_timeout = Duration::from_secs(timeout);
        })
        .await;
        // A flush by the test would save coupons from a crash that the service has not flushed.
        let unflushed = database.clone().options([("synchronous_commit", "off")]);
        let pool = PgPoolOptions::new().max_connections(2).connect_lazy_with(unflushed);
        // When the service starts, it tries a write. That call must not count.
        eventually("ready", async || app.client().get(app.url("/readyz")).send().await.unwrap().status() == 200).await;
        add_points(&pool).await;
        let codes = "insert into pool_code (org_id, series_id, code, uploaded_code, position)
                     select 1, 4, 'GIFT-' || n, 'Gift-' || n, n from generate_series(1, $1) n";
        sqlx::query(codes).bind(POOL).execute(&pool).await.unwrap();
        Self { app, pool, is_wired, customers: AtomicUsize::new(0) }
    }

    async fn arm(&self, cuts: &[Cut]) {
        // A late call of the run before would take the first point: the sequence restarts before the cuts are visible.
        eventually("no call is running", async || !self.is_call_running().await).await;
        let row = |(nth, (number, effect)): (usize, &Cut)| {
            format!("insert into cut (number, nth, effect) values ({number}, {nth}, '{effect}');")
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

    /// Whether the writer is in a call.
    async fn is_call_running(&self) -> bool {
        let active = "select exists (
            select from pg_stat_activity
             where datname = current_database() and application_name = 'coupon-issuer writer' and state = 'active')";
        sqlx::query_scalar(active).fetch_one(&self.pool).await.unwrap()
    }

    /// Removes the cuts. Returns how many points the calls reached, and where the cuts struck.
    async fn disarm(&self) -> (i64, Vec<Struck>) {
        let state =
            "select 0, last_value, is_called from points union all select 1, last_value, is_called from struck_1
                     union all select 2, last_value, is_called from struck_2
                     union all select 3, last_value, is_called from struck_3 order by 1";
        let numbers: Vec<(i32, i64, bool)> = sqlx::query_as(state).fetch_all(&self.pool).await.unwrap();
        sqlx::query("delete from cut").execute(&self.pool).await.unwrap();
        let called: Vec<i64> =
            numbers.iter().map_while(|(_, number, is_called)| is_called.then_some(*number)).collect();
        assert!(
            numbers[called.len()..].iter().all(|(.., is_called)| !is_called),
            "a cut did not strike, but a later one did: {numbers:?}"
        );
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

    async fn request(&self, batch: Batch, customer: &str) -> (u16, Value) {
        request(self.app.client().clone(), self.app.url("/v2/coupon/bulk/issue"), batch, customer.to_owned()).await
    }

    /// A cut wire also breaks the connections for reads. The service notices when it reads next, and answers 503; then this tries again.
    async fn request_until_connected(&self, batch: Batch, customer: &str) -> (u16, Value) {
        for _ in 0..100 {
            let (status, answer) = self.request(batch, customer).await;
            if status != 503 || !self.is_wired {
                return (status, answer);
            }
        }
        panic!("100 times 503");
    }

    /// Requests a batch, and cuts its calls at these points.
    async fn run(&self, batch: Batch, cuts: &[Cut]) -> Run {
        let customer = self.new_customer();
        self.arm(cuts).await;
        let (status, answer) = self.request_until_connected(batch, &customer).await;
        let (reached, struck) = self.disarm().await;
        Run { batch, customer, cuts: cuts.to_vec(), struck, reached, status, answer }
    }

    /// As [`Rig::run`]. Does `meanwhile` once a call waits at the last of the points. Sends the request again if it fails before its call,
    /// because an earlier cut broke the connections for reads.
    async fn run_beside(&self, batch: Batch, cuts: &[Cut], meanwhile: impl Future<Output = ()>) -> Run {
        let last = cuts.iter().rposition(|(_, effect)| matches!(*effect, "wait" | "hang")).unwrap() + 1;
        let customer = self.new_customer();
        self.arm(cuts).await;
        let url = self.app.url("/v2/coupon/bulk/issue");
        let send = || tokio::spawn(request(self.app.client().clone(), url.clone(), batch, customer.clone()));
        let mut response = send();
        while !self.has_struck(last).await {
            if response.is_finished() {
                let answer = response.await.unwrap();
                assert_eq!(answer.0, 503, "no call reaches the point: {cuts:?} {answer:?}");
                response = send();
            }
            sleep(Duration::from_millis(2)).await;
        }
        meanwhile.await;
        let (status, answer) = response.await.unwrap();
        let (reached, struck) = self.disarm().await;
        Run { batch, customer, cuts: cuts.to_vec(), struck, reached, status, answer }
    }

    /// Sends this request of four customers while another call hangs, so that they form one batch. Cuts that batch at this point.
    async fn run_together(&self, batch: Batch, number: i64) -> Vec<Run> {
        const UNLIMITED: Batch = Batch { series: &[1], idempotency: Idempotency::None };
        // The other call has five points. The test uses a sixth to let it go on.
        let cuts = [(1, "hang"), (6 + number, "session")];
        self.arm(&cuts).await;
        let url = self.app.url("/v2/coupon/bulk/issue");
        let send = |batch, customer| tokio::spawn(request(self.app.client().clone(), url.clone(), batch, customer));
        let first = send(UNLIMITED, self.new_customer());
        eventually("a call hangs", async || self.has_struck(1).await).await;
        let requests: Vec<_> = (0..4).map(|_| self.new_customer()).map(|id| (id.clone(), send(batch, id))).collect();
        sleep(Duration::from_millis(50)).await;
        sqlx::query("select nextval('points')").execute(&self.pool).await.unwrap();
        first.await.unwrap();
        let mut runs = Vec::new();
        for (customer, response) in requests {
            let (status, answer) = response.await.unwrap();
            runs.push(Run { batch, customer, cuts: cuts.to_vec(), struck: Vec::new(), reached: 0, status, answer });
        }
        let (_, struck) = self.disarm().await;
        for run in &mut runs {
            run.struck.clone_from(&struck);
        }
        runs
    }

    /// Series and code of each coupon of a customer.
    async fn stored(&self, customer: &str) -> Vec<(i64, String)> {
        let query = "select series_id, code from issued_coupon where customer_id = $1";
        let mut stored: Vec<(i64, String)> = sqlx::query_as(query).bind(customer).fetch_all(&self.pool).await.unwrap();
        stored.sort();
        stored
    }

    /// Asserts that the counter of the capped series is exact, and that each uploaded code is either in the pool or in a coupon.
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

    /// Asserts that each entity is issued and stored with its code, and that a retry shows the same.
    async fn assert_issued(&self, run: &Run) {
        assert_eq!(run.status, 200, "{run}");
        assert_eq!(run.outcomes(), vec!["issued"; run.batch.series.len()], "{run}");
        let answered = run.answered();
        assert_eq!(answered, self.stored(&run.customer).await, "{run}");
        assert_eq!(answered.iter().collect::<BTreeSet<_>>().len(), answered.len(), "{run}");
        self.assert_counted(run).await;
        if run.batch.idempotency != Idempotency::None {
            assert_eq!(
                self.request_until_connected(run.batch, &run.customer).await,
                (200, run.answer.clone()),
                "a retry: {run}"
            );
            assert_eq!(answered, self.stored(&run.customer).await, "after a retry: {run}");
        }
    }

    /// As [`Rig::assert_issued`], but one entity has this error and is not stored. A retry under the key issues it.
    async fn assert_one_failed(&self, run: &Run, code: &str) {
        assert_eq!(run.status, 200, "{run}");
        let mut outcomes = run.outcomes();
        outcomes.sort();
        assert_eq!(outcomes, [code, "issued", "issued", "issued"], "{run}");
        let answered = run.answered();
        assert_eq!(answered, self.stored(&run.customer).await, "{run}");
        self.assert_counted(run).await;
        if run.batch.idempotency == Idempotency::None {
            return;
        }
        let (status, answer) = self.request_until_connected(run.batch, &run.customer).await;
        let retry = Run { status, answer, struck: run.struck.clone(), cuts: run.cuts.clone(), ..run.again() };
        for entity in answered {
            assert!(retry.answered().contains(&entity), "the retry does not show {entity:?}: {retry}");
        }
        self.assert_issued(&retry).await;
    }

    async fn assert_clean(&self) {
        let report = self.app.verify().await;
        assert_eq!(report.wrong(), 0, "{report}");
    }
}

async fn request(client: reqwest::Client, url: String, batch: Batch, customer: String) -> (u16, Value) {
    let mut body = json!({"seriesIds": batch.series, "customer": {"id": customer}});
    if batch.idempotency == Idempotency::Natural {
        body["metadata"] = json!({"sourceType": "BILL", "sourceId": customer});
    }
    let mut post = client.post(url).basic_auth("store.server", Some("server123")).json(&body);
    if batch.idempotency == Idempotency::Key {
        post = post.header("Idempotency-Key", customer);
    }
    let answer = post.send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

impl Run {
    fn outcomes(&self) -> Vec<String> {
        self.answer["response"].as_array().unwrap().iter().map(outcome).collect()
    }

    /// Series and code of each entity that was issued.
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
        for ((number, effect), struck) in cuts.iter().zip(struck.iter().map(Some).chain([None; 3])) {
            write!(formatter, " {effect} at {number}")?;
            if let Some(struck) = struck {
                write!(formatter, ", {struck};")?;
            }
        }
        write!(formatter, " and answered {status} {answer}")
    }
}

/// Several rigs, to try cuts in parallel.
async fn rigs(count: usize) -> Vec<Arc<Rig>> {
    let mut rigs = Vec::new();
    for _ in 0..count {
        rigs.push(Arc::new(Rig::start().await));
    }
    rigs
}

/// Runs `each` for each case, on a rig that is free. Verifies the rigs at the end.
async fn for_each<C, F>(
    rigs: &[Arc<Rig>],
    cases: impl IntoIterator<Item = C>,
    each: impl Fn(Arc<Rig>, C) -> F,
) -> Vec<F::Output>
where
    F: Future<Output: Send> + Send + 'static,
{
    let mut free = rigs.to_vec();
    let (mut running, mut outputs) = (JoinSet::new(), Vec::new());
    for case in cases {
        if free.is_empty() {
            let (rig, output) = running.join_next().await.unwrap().unwrap();
            free.push(rig);
            outputs.push(output);
        }
        let rig = free.pop().unwrap();
        let output = each(Arc::clone(&rig), case);
        running.spawn(async move { (rig, output.await) });
    }
    for (_, output) in running.join_all().await {
        outputs.push(output);
    }
    for rig in rigs {
        rig.assert_clean().await;
    }
    outputs
}

/// Asserts that the cuts struck at the start, and before and after these commits of coupons and the flush.
fn assert_all_steps(struck: impl IntoIterator<Item = Struck>, coupons: &[usize]) {
    let steps: BTreeSet<usize> = struck.into_iter().map(|struck| struck.step).collect();
    let commits = coupons.iter().chain([&FLUSH]).flat_map(|commit| [2 * commit + 1, 2 * commit + 2]);
    assert_eq!(steps, commits.chain([START]).collect());
}

/// How a batch is cut twice.
#[derive(Debug, Clone, Copy)]
struct Twice {
    batch: Batch,
    /// The effect of the first cut, which strikes every point of the batch in turn.
    first: &'static str,
    /// After a first cut at one of these points, a second one ends the session, at every point of the recovery in turn.
    second_after: &'static [i64],
    /// The commits of coupons that the batch reaches.
    commits: &'static [usize],
}

/// The recovery depends only on the number of committed coupons, which differs at each of these points.
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
            if run.struck.len() == 1 || !twice.second_after.contains(&first) {
                break;
            }
        }
        struck
    })
    .await;
    println!("{batch:?}: {} cuts", all.iter().map(Vec::len).sum::<usize>());
    assert_all_steps(all.into_iter().flatten(), twice.commits);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_cut_twice_is_issued_once() {
    let rigs = rigs(2).await;
    let first = "session";
    for (idempotency, second_after) in
        [(Idempotency::Key, EVERY_POINT), (Idempotency::None, AFTER_COMMITS), (Idempotency::Natural, AFTER_TWO_COMMITS)]
    {
        let batch = Batch { series: MIXED, idempotency };
        let commits: &[usize] = match idempotency {
            Idempotency::None => &[UNGUARDED, GUARDED],
            Idempotency::Key => &[SIMPLE, GUARDED],
            Idempotency::Natural => &[GUARDED],
        };
        cut_twice(&rigs, Twice { batch, first, second_after, commits }).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_on_the_fast_paths_cut_twice_is_issued_once() {
    let rigs = rigs(2).await;
    // The recovery sends every coupon on the slow path, as in the test above.
    let second_after = AFTER_TWO_COMMITS;
    for (idempotency, first, commits) in
        [(Idempotency::None, "session", &[UNGUARDED, GUARDED]), (Idempotency::Key, "XX000", &[SIMPLE, GUARDED])]
    {
        let batch = Batch { series: PLAIN, idempotency };
        cut_twice(&rigs, Twice { batch, first, second_after, commits }).await;
    }
    // A statement of its own claims the key before the batch.
    let batch = Batch { series: EXCLUSIVE, idempotency: Idempotency::Key };
    let twice = Twice { batch, first: "XX000", second_after, commits: &[GUARDED] };
    cut_twice(&rigs, twice).await;
}

/// Four requests for one series, with a cap or with uploaded codes. After the first coupon, the procedure keeps the count or the codes and
/// takes its fast path.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_of_several_requests_that_is_cut_is_issued_once() {
    const CAPPED: Batch = Batch { series: &[2], idempotency: Idempotency::Key };
    const UPLOADED_CODES: Batch = Batch { series: &[4], idempotency: Idempotency::None };
    const KEYED_CODES: Batch = Batch { series: &[4], idempotency: Idempotency::Key };
    let rigs = rigs(2).await;
    for (batch, fast) in [(CAPPED, SIMPLE), (UPLOADED_CODES, UPLOADED), (KEYED_CODES, UPLOADED)] {
        let all = for_each(&rigs, 1..=POINTS, move |rig, number| async move {
            loop {
                let runs = rig.run_together(batch, number).await;
                for run in &runs {
                    rig.assert_issued(run).await;
                }
                // A request that came too late for the batch spoils the round.
                if let [struck] = runs[0].struck[1..]
                    && struck.coupons == runs.len()
                {
                    return struck;
                }
            }
        })
        .await;
        assert_all_steps(all, &[fast, GUARDED]);
    }
}

/// An error of the statement, an error of the server, a deadlock, and a cancelled statement, as after a time-out.
const ERRORS: [&str; 4] = ["P0001", "XX000", "40P01", "cancel"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_whose_call_fails_is_issued_once() {
    let rigs = rigs(2).await;
    for idempotency in [Idempotency::None, Idempotency::Key] {
        for series in [MIXED, PLAIN] {
            let batch = Batch { series, idempotency };
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

/// The first call fails, or its session ends. Then the calls of the recovery fail, at each point in turn.
///
/// The recovery sends a coupon alone. If that call fails before its commit, the database has rejected this coupon: the entity has an error,
/// the coupon is not stored, and a retry under the key issues it. After a deadlock the service tries again by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coupon_fails_only_if_its_own_call_fails_before_its_commit() {
    let rigs = rigs(2).await;
    // After two commits, and before the first.
    for (idempotency, first, uncommitted) in
        [(Idempotency::None, (5, "session"), 2), (Idempotency::Key, (1, "XX000"), 4)]
    {
        let batch = Batch { series: MIXED, idempotency };
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
        // Three of the errors, at two points of each coupon that the first call did not commit.
        assert_eq!(failed.into_iter().sum::<usize>(), 3 * 2 * uncommitted);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_whose_call_times_out_is_issued_once() {
    let batch = Batch { series: MIXED, idempotency: Idempotency::Key };
    let mut rigs = Vec::new();
    for _ in 0..3 {
        let database = new_database().await;
        rigs.push(Arc::new(Rig::over(database.clone(), &database, 2).await));
    }
    for_each(&rigs, 1..=POINTS, move |rig, number| async move {
        let run = rig.run(batch, &[(number, "time out"), (number + 1, "longer time-out")]).await;
        rig.assert_issued(&run).await;
    })
    .await;
}

/// The service, connected to its database over a wire.
async fn wired() -> (Rig, Wire) {
    let database = new_database().await;
    let wire = Wire::to(&database);
    let rig = Rig::over(wire.through(&database), &database, 50).await;
    (rig, wire)
}

const NETWORK_BATCHES: [Batch; 3] = [
    Batch { series: MIXED, idempotency: Idempotency::Key },
    Batch { series: MIXED, idempotency: Idempotency::None },
    Batch { series: PLAIN, idempotency: Idempotency::None },
];

/// The server does not notice that its client is gone. The call ends before the service connects again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_whose_call_ends_without_its_client_is_issued_once() {
    let (rig, wire) = wired().await;
    for batch in NETWORK_BATCHES {
        for number in 1..=POINTS {
            let meanwhile = async {
                wire.close();
                sqlx::query("select nextval('points')").execute(&rig.pool).await.unwrap();
                eventually("the call ends", async || !rig.is_call_running().await).await;
                wire.cut();
            };
            let run = rig.run_beside(batch, &[(number, "hang")], meanwhile).await;
            rig.assert_issued(&run).await;
        }
    }
    rig.assert_clean().await;
}

/// The call hangs, and would go on during the recovery.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_whose_call_hangs_without_its_client_is_issued_once() {
    let (rig, wire) = wired().await;
    for batch in NETWORK_BATCHES {
        for number in 1..=POINTS {
            let cuts = [(number, "hang"), (number + 1, "resume")];
            let run = rig.run_beside(batch, &cuts, async { wire.cut() }).await;
            rig.assert_issued(&run).await;
        }
    }
    rig.assert_clean().await;
}

/// A Postgres that the test can crash, and the service, connected to it over a wire.
struct Crashing {
    postgres: Arc<Mutex<PrivatePostgres>>,
    rig: Rig,
    wire: Wire,
}

impl Crashing {
    async fn start(directory: &str) -> Self {
        // Postgres flushes little by itself, so that a crash loses what the service has not flushed.
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

    /// Kills Postgres and restarts it. Returns how many coupons of the customer that lost.
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

    /// Crashes while a call waits at the last of these cuts. Returns how many coupons that lost.
    async fn run(&self, batch: Batch, cuts: &[Cut]) -> usize {
        let lost = AtomicUsize::new(0);
        let customer = self.rig.next_customer();
        let meanwhile = async { lost.store(self.crash(&customer).await, Ordering::Relaxed) };
        let run = self.rig.run_beside(batch, cuts, meanwhile).await;
        assert_eq!(run.customer, customer);
        self.rig.assert_issued(&run).await;
        lost.into_inner()
    }

    /// Crashes as soon as the request is answered.
    async fn run_and_crash(&self, batch: Batch, cuts: &[Cut]) -> Run {
        let run = self.rig.run(batch, cuts).await;
        assert_eq!(self.crash(&run.customer).await, 0, "{run}");
        self.rig.assert_issued(&run).await;
        run
    }
}

/// The crash loses coupons that are not yet flushed. The service issues them again before it answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_at_any_point_loses_no_answered_coupon() {
    let batch = Batch { series: MIXED, idempotency: Idempotency::Key };
    let crashing = Crashing::start("cut-crash").await;
    let mut lost = 0;
    for number in 1..=POINTS {
        lost += crashing.run(batch, &[(number, "wait")]).await;
    }
    assert!(lost > 0);
    crashing.run_and_crash(batch, &[]).await;
    crashing.stop().await;
}

/// The session ends after three commits. A crash during the recovery may lose these coupons.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_during_the_recovery_loses_no_answered_coupon() {
    let batch = Batch { series: MIXED, idempotency: Idempotency::None };
    let crashing = Crashing::start("cut-crash-recovery").await;
    // The call of a coupon sent alone commits it, and fails before its flush. Only the last flush of the recovery saves it.
    for number in [13, 14] {
        let run = crashing.run_and_crash(batch, &[(7, "session"), (number, "XX000")]).await;
        assert_eq!((run.struck[1].coupons, run.struck[1].is_before_a_coupon_sent_alone()), (1, false), "{run}");
    }
    let mut lost = 0;
    // The points of the probe (3), of one coupon alone (5), and of the flush (3).
    for number in 8..8 + 3 + 5 + 3 {
        lost += crashing.run(batch, &[(7, "session"), (number, "wait")]).await;
    }
    // The same, but with a crash in the call of the next coupon. It loses the first one, which the service must send again.
    lost += crashing.run(batch, &[(5, "session"), (11, "XX000"), (12, "wait")]).await;
    assert!(lost > 0);
    crashing.stop().await;
}
