//! Broken builds: whether the judges can convict. Each test takes one safeguard away, in its own database, and provokes what the
//! safeguard prevents. The sound build goes through the same events first, and must be acquitted.

use std::sync::Arc;
use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use crate::catalogue;
use crate::cluster::{LONGEST_CALL, signal, waiting_calls};
use crate::faults::World;
use crate::judgement::Judgement;
use crate::tills::{Known, Sale};
use crate::{commits, set_up};

/// Callers that ask at once.
const CROWD: usize = 24;
const PATIENCE: Duration = Duration::from_mins(1);
/// In this time a replica that has claimed a key sends its coupons.
const SENT_WITHIN: Duration = Duration::from_millis(700);

/// Replaces pieces of a procedure. Each must occur so many times: otherwise the procedure has changed, and the test proves nothing.
async fn mutate(world: &World, procedure: &str, pieces: &[(&str, &str, usize)]) {
    let definition = "select pg_get_functiondef(oid) from pg_proc where proname = $1";
    let mut admin = world.cluster.admin().await;
    let mut text: String = sqlx::query_scalar(definition).bind(procedure).fetch_one(&mut admin).await.unwrap();
    for (sound, broken, times) in pieces {
        assert_eq!(text.matches(sound).count(), *times, "{procedure} has changed: {sound}");
        text = text.replace(sound, broken);
    }
    world.cluster.execute(&text).await;
}

/// Runs the events on the sound build, breaks it, and runs them again. Returns the judgement on the whole history, a conviction.
async fn convict(name: &str, break_build: impl AsyncFn(&World), events: impl AsyncFn(&Arc<World>, u32)) -> Judgement {
    let world = Arc::new(set_up(name, 1).await);
    let marks = tokio::spawn(commits::mark_always(Arc::clone(&world)));
    events(&world, 0).await;
    let judgement = Judgement::of(&commits::complete(&world).await);
    assert!(judgement.acquits(), "the sound build: {judgement}");
    break_build(&world).await;
    events(&world, 1).await;
    marks.abort();
    let judgement = Judgement::of(&commits::complete(&world).await);
    println!("{name}: {judgement}");
    assert!(!judgement.acquits(), "the broken build is acquitted");
    judgement
}

fn convicted_by_both(judgement: &Judgement) {
    assert!(!judgement.replay.divergences.is_empty() && !judgement.checked.violations.is_empty(), "{judgement}");
}

async fn wait_until(what: &str, is_so: impl AsyncFn() -> bool) {
    let started = Instant::now();
    while !is_so().await {
        assert!(started.elapsed() < PATIENCE, "not within a minute: {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

async fn count(world: &World, query: &str) -> i64 {
    sqlx::query_scalar(AssertSqlSafe(query)).fetch_one(&mut world.cluster.admin().await).await.unwrap()
}

fn sale(name: String, series: &[i64]) -> Sale {
    Sale::new(format!("key of {name}"), name, series.to_vec())
}

/// Asks this replica until the sale is settled. Answers that contradict each other are left to the judges.
async fn settle(world: &World, sale: &mut Sale, replica: usize) {
    let started = Instant::now();
    world.shop.attempt(sale, replica, None).await;
    while !sale.is_final() {
        assert!(started.elapsed() < PATIENCE, "not settled within a minute: {sale:?}");
        sleep(Duration::from_millis(100)).await;
        world.shop.attempt(sale, replica, None).await;
    }
}

/// All ask at once, every other one the second replica.
fn ask_all(world: &Arc<World>, sales: impl IntoIterator<Item = Sale>) -> JoinSet<()> {
    let ask = |(number, mut sale): (usize, Sale)| {
        let world = Arc::clone(world);
        async move { settle(&world, &mut sale, number % 2).await }
    };
    sales.into_iter().enumerate().map(ask).collect()
}

/// All decisions are made before anything is written: the writes wait for this lock.
async fn ask_all_behind(world: &Arc<World>, lock: &str, sales: impl IntoIterator<Item = Sale>) {
    let mut holder = world.cluster.admin().await;
    sqlx::raw_sql(AssertSqlSafe(lock)).execute(&mut holder).await.unwrap();
    let asking = ask_all(world, sales);
    let two_wait = async || waiting_calls(&mut world.cluster.admin().await).await.unwrap() >= 2;
    wait_until("two batches wait for the lock", two_wait).await;
    holder.close().await.unwrap();
    asking.join_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cap_that_is_read_before_its_lock() {
    const READ: &str = "select c.issued into so_far_before from series_counter c
                 where c.org_id = this_org and c.series_id = item.series_id order by c.issued desc limit 1;";
    let lock = "if series_key is not null and locked_key is null and not item.exclusive then";
    let too_early = format!("{READ}\n        {lock}");
    let break_build = async |world: &World| {
        mutate(
            world,
            "issue_coupons_1",
            &[
                ("    so_far bigint;", "    so_far bigint;\n    so_far_before bigint;", 1),
                (lock, &too_early, 1),
                (
                    "if so_far is null or so_far >= item.cap then",
                    "if so_far_before is null or so_far_before >= item.cap then",
                    1,
                ),
            ],
        )
        .await;
    };
    let judgement = convict("broken-cap", break_build, async |world, turn| {
        if turn > 0 {
            world.apply_version(turn).await.unwrap();
        }
        let cap = catalogue::caps(turn).into_iter().find(|(id, _)| *id == catalogue::HOT).unwrap().1;
        let issued = count(world, &format!("select count(*) from coupon where series_id = {}", catalogue::HOT)).await;
        let before = usize::try_from(cap - issued - 1).unwrap();
        for (number, some) in vec![catalogue::HOT; before].chunks(20).enumerate() {
            settle(world, &mut sale(format!("early-{turn}-{number}"), some), 0).await;
        }
        let crowd = (0..CROWD).map(|number| sale(format!("late-{turn}-{number}"), &[catalogue::HOT]));
        let lock = format!("begin; select pg_advisory_xact_lock(hashint8extended({}, 1))", catalogue::HOT);
        ask_all_behind(world, &lock, crowd).await;
    });
    convicted_by_both(&judgement.await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ordinal_that_is_not_unique() {
    let break_build = async |world: &World| {
        let not_unique = "drop index coupon_ordinal;
                          create index coupon_ordinal on coupon (org_id, customer_id, series_id, ordinal)";
        world.cluster.execute(not_unique).await;
    };
    let judgement = convict("broken-ordinal", break_build, async |world, turn| {
        let crowd = (0..CROWD).map(|number| {
            let key = format!("key-{turn}-{number}");
            Sale::new(key, format!("customer-{turn}"), vec![catalogue::ONE_EACH])
        });
        ask_all_behind(world, "begin; lock table coupon in exclusive mode", crowd).await;
    });
    convicted_by_both(&judgement.await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_that_issues_anew() {
    let break_build = async |world: &World| {
        // Twice in the procedure, indented differently.
        let sound = "item.answers)\n                on conflict do nothing";
        let anew = "item.answers)\n                on conflict (org_id, key_hash) do update \
                    set first_coupon_id = excluded.first_coupon_id, attempt = excluded.attempt, answers = excluded.answers";
        mutate(
            world,
            "issue_coupons_1",
            &[(sound, anew, 1), (&sound.replace("    on", "on"), &anew.replace("    on", "on"), 1)],
        )
        .await;
    };
    let judgement = convict("broken-replay", break_build, async |world, turn| {
        for replica in [0, 1] {
            let mut sale = sale(format!("customer-{turn}-{replica}"), &[catalogue::UNLIMITED, catalogue::CAPPED]);
            settle(world, &mut sale, 0).await;
            settle(world, &mut sale, replica).await;
        }
    });
    convicted_by_both(&judgement.await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_before_its_flush() {
    let break_build = async |world: &World| {
        let flush = "set_config('synchronous_commit', durability, true)";
        mutate(world, "issue_coupons_1", &[(flush, "set_config('synchronous_commit', 'off', true)", 1)]).await;
    };
    let judgement = convict("broken-flush", break_build, async |world, turn| {
        // Otherwise autovacuum or the WAL writer may flush what the session has not.
        world.cluster.execute("alter system set autovacuum = off").await;
        world.cluster.execute("select pg_reload_conf()").await;
        let mut sale = sale(format!("customer-{turn}"), &[catalogue::UNLIMITED, catalogue::ONE_EACH]);
        let mut other = sale.clone();
        let wal_writer = "select pid::bigint from pg_stat_activity where backend_type = 'walwriter'";
        let wal_writer = u32::try_from(count(world, wal_writer).await).unwrap();
        signal("-STOP", &[wal_writer]);
        settle(world, &mut sale, 0).await;
        signal("-9", &[world.cluster.postmaster(), wal_writer]);
        world.cluster.restart_postgres().await;
        settle(world, &mut other, 0).await;
    });
    convicted_by_both(&judgement.await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_takeover_without_its_fence() {
    let break_build = async |world: &World| {
        mutate(world, "issue_coupons_1", &[("and r.attempt = item.attempt", "", 3)]).await;
    };
    let judgement = convict("broken-fence", break_build, takeover).await;
    assert!(!judgement.replay.divergences.is_empty(), "{judgement}");
}

/// A replica claims a key, and Postgres does not read its call. The replica dies. Another one takes over and refuses a coupon, because
/// no code is left. Codes are uploaded, and Postgres reads the call of the dead replica.
async fn takeover(world: &Arc<World>, turn: u32) {
    let [first, second] = &world.cluster.replicas;
    second.kill();
    // Each writer needs its session, with the statement prepared: a call that is only being prepared would issue nothing later.
    let warm_up = (0..CROWD).map(|number| sale(format!("warm-up-{turn}-{number}"), &[catalogue::UNLIMITED]));
    for mut sale in warm_up {
        world.shop.attempt(&mut sale, 0, None).await;
    }
    world.upload(catalogue::SCARCE, "FIRST", turn, 1).await;
    let writers = "select pid from pg_stat_activity where application_name = 'coupon-issuer writer'";
    let writers: Vec<i32> = sqlx::query_scalar(writers).fetch_all(&mut world.cluster.admin().await).await.unwrap();
    let frozen: Vec<u32> = writers.iter().map(|pid| pid.cast_unsigned()).collect();
    signal("-STOP", &frozen);

    // The first of these is of an exclusive series: its key is claimed by a statement of its own.
    let mut taken_over = sale(format!("customer-{turn}"), &[12, catalogue::SCARCE]);
    let asking = {
        let (world, mut sale) = (Arc::clone(world), taken_over.clone());
        tokio::spawn(async move { world.shop.attempt(&mut sale, 0, None).await })
    };
    let claimed = format!("select count(*) from keyed_request where key_hash = key_hash_1('{}')", taken_over.key);
    wait_until("the key is claimed", async || count(world, &claimed).await == 1).await;
    let began_before = Instant::now();
    sleep(SENT_WITHIN).await;
    first.kill();
    assert!(!asking.await.unwrap(), "the call was not held");

    second.start();
    wait_until("the other replica is ready", async || world.shop.is_ready(1).await).await;
    settle(world, &mut sale(format!("another-{turn}"), &[catalogue::SCARCE]), 1).await;
    settle(world, &mut taken_over, 1).await;
    assert_eq!(taken_over.known[1], Known::Refused(5005));
    world.upload(catalogue::SCARCE, "LATER", turn, 1).await;
    // A call without an answer may take effect until then.
    sleep_until(began_before + LONGEST_CALL).await;
    // What lies above this mark was committed after LONGEST_CALL.
    commits::mark_once(world).await;
    signal("-CONT", &frozen);
    let alive = format!("select count(*) from pg_stat_activity where pid = any ('{{{}}}')", pids(&frozen));
    wait_until("the held call is over", async || count(world, &alive).await == 0).await;
    settle(world, &mut sale(format!("afterwards-{turn}"), &[catalogue::UNLIMITED]), 1).await;
    world.shop.attempt(&mut taken_over, 1, None).await;
    first.start();
    wait_until("the first replica is ready", async || world.shop.is_ready(0).await).await;
}

fn pids(pids: &[u32]) -> String {
    pids.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}
