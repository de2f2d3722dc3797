//! Broken builds, which the judges must convict. Each test removes one safeguard in its own database and provokes the error that the
//! safeguard prevents. The sound build goes through the same events first and must be acquitted.

use std::sync::Arc;
use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use crate::catalogue;
use crate::cluster::{LONGEST_CALL, signal, waiting_calls};
use crate::faults::World;
use crate::judgement::Judgement;
use crate::sale::{Known, Sale};
use crate::{commits, start_world};

/// How many callers call at the same time.
const CALLERS: usize = 24;
const EVENT_TIMEOUT: Duration = Duration::from_mins(1);
/// A replica that has claimed a key sends its coupons within this time.
const SEND_DELAY: Duration = Duration::from_millis(700);

/// Replaces parts of a procedure. Each part must occur the given number of times: otherwise the procedure has changed, and the test
/// proves nothing.
async fn mutate(world: &World, procedure: &str, parts: &[(&str, &str, usize)]) {
    let definition = "select pg_get_functiondef(oid) from pg_proc where proname = $1";
    let mut admin = world.cluster.admin().await;
    let mut text: String = sqlx::query_scalar(definition).bind(procedure).fetch_one(&mut admin).await.unwrap();
    for (sound, broken, times) in parts {
        assert_eq!(text.matches(sound).count(), *times, "{procedure} has changed: {sound}");
        text = text.replace(sound, broken);
    }
    world.cluster.execute(&text).await;
}

/// Runs the events on the sound build, breaks the build, and runs them again. Returns the judgement on the whole history, which
/// convicts.
async fn convict(name: &str, break_build: impl AsyncFn(&World), events: impl AsyncFn(&Arc<World>, u32)) -> Judgement {
    let world = Arc::new(start_world(name, 1).await);
    let marks = tokio::spawn(commits::mark_continuously(Arc::clone(&world)));
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

async fn wait_until(event: &str, has_happened: impl AsyncFn() -> bool) {
    let started = Instant::now();
    while !has_happened().await {
        assert!(started.elapsed() < EVENT_TIMEOUT, "not within a minute: {event}");
        sleep(Duration::from_millis(20)).await;
    }
}

async fn count(world: &World, query: &str) -> i64 {
    sqlx::query_scalar(AssertSqlSafe(query)).fetch_one(&mut world.cluster.admin().await).await.unwrap()
}

fn sale(name: String, series: &[i64]) -> Sale {
    Sale::new(format!("key of {name}"), name, series.to_vec())
}

/// Retries at this replica until the sale is settled. The judges find answers that contradict each other.
async fn settle(world: &World, sale: &mut Sale, replica: usize) {
    let started = Instant::now();
    world.tills.attempt(sale, replica, None).await;
    while !sale.is_final() {
        assert!(started.elapsed() < EVENT_TIMEOUT, "not settled within a minute: {sale:?}");
        sleep(Duration::from_millis(100)).await;
        world.tills.attempt(sale, replica, None).await;
    }
}

/// Starts all calls at once. Every other one goes to the second replica.
fn start_all(world: &Arc<World>, sales: impl IntoIterator<Item = Sale>) -> JoinSet<()> {
    let call = |(number, mut sale): (usize, Sale)| {
        let world = Arc::clone(world);
        async move { settle(&world, &mut sale, number % 2).await }
    };
    sales.into_iter().enumerate().map(call).collect()
}

/// Starts all calls while their writes wait for this lock, so that all decisions are made before anything is written: releases it once
/// this number of batches wait.
async fn settle_all_behind(world: &Arc<World>, batches: u32, lock: &str, sales: impl IntoIterator<Item = Sale>) {
    let mut holder = world.cluster.admin().await;
    sqlx::raw_sql(AssertSqlSafe(lock)).execute(&mut holder).await.unwrap();
    let calls = start_all(world, sales);
    let all_wait = async || waiting_calls(&mut world.cluster.admin().await).await.unwrap() >= i64::from(batches);
    wait_until("the batches wait for the lock", all_wait).await;
    holder.close().await.unwrap();
    calls.join_all().await;
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
    let judgement = convict("broken-cap", break_build, async |world, round| {
        if round > 0 {
            world.apply_version(round).await.unwrap();
        }
        let cap = catalogue::caps(round).into_iter().find(|(id, _)| *id == catalogue::HOT).unwrap().1;
        let issued = count(world, &format!("select count(*) from coupon where series_id = {}", catalogue::HOT)).await;
        let before = usize::try_from(cap - issued - 1).unwrap();
        for (number, series) in vec![catalogue::HOT; before].chunks(20).enumerate() {
            settle(world, &mut sale(format!("early-{round}-{number}"), series), 0).await;
        }
        let sales = (0..CALLERS).map(|number| sale(format!("late-{round}-{number}"), &[catalogue::HOT]));
        let lock = format!("begin; select pg_advisory_xact_lock(hashint8extended({}, 1))", catalogue::HOT);
        settle_all_behind(world, 2, &lock, sales).await;
    });
    convicted_by_both(&judgement.await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ordinal_that_is_not_unique() {
    let break_build = async |world: &World| {
        let not_unique = "drop index coupon_ordinal;
                          create index coupon_ordinal on coupon (org_id, customer_id, series_id, ordinal)";
        world.cluster.execute(not_unique).await;
        let lock = "not pg_try_advisory_xact_lock(hashtextextended(item.customer_id, -1 - item.series_id))";
        mutate(world, "issue_coupons_1", &[(lock, "false", 2)]).await;
    };
    let judgement = convict("broken-ordinal", break_build, async |world, round| {
        let sales = (0..CALLERS).map(|number| {
            let key = format!("key-{round}-{number}");
            Sale::new(key, format!("customer-{round}"), vec![catalogue::ONE_EACH])
        });
        // The sound build refuses the second batch before it waits.
        settle_all_behind(world, 1 + round, "begin; lock table coupon in exclusive mode", sales).await;
    });
    convicted_by_both(&judgement.await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_that_issues_anew() {
    let break_build = async |world: &World| {
        // The statement occurs three times in the procedure, with different indentation.
        let sound = "item.answers)\n                    on conflict do nothing";
        let anew = "item.answers)\n                    on conflict (org_id, key_hash) do update \
                    set first_coupon_id = excluded.first_coupon_id, attempt = excluded.attempt, answers = excluded.answers";
        mutate(
            world,
            "issue_coupons_1",
            &[(sound, anew, 2), (&sound.replace("    on", "on"), &anew.replace("    on", "on"), 1)],
        )
        .await;
    };
    let judgement = convict("broken-replay", break_build, async |world, round| {
        for replica in [0, 1] {
            let mut sale = sale(format!("customer-{round}-{replica}"), &[catalogue::UNLIMITED, catalogue::CAPPED]);
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
    let judgement = convict("broken-flush", break_build, async |world, round| {
        // Otherwise autovacuum or the WAL writer might flush what the session has not flushed.
        world.cluster.execute("alter system set autovacuum = off").await;
        world.cluster.execute("select pg_reload_conf()").await;
        let mut sale = sale(format!("customer-{round}"), &[catalogue::UNLIMITED, catalogue::ONE_EACH]);
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

/// A replica claims a key and dies before Postgres reads its call. The other replica takes over and refuses a coupon, because the pool
/// is empty. Codes are uploaded, and only then does Postgres read the call of the dead replica.
async fn takeover(world: &Arc<World>, round: u32) {
    let [first, second] = &world.cluster.replicas;
    second.kill();
    prepare_writers(world, round).await;
    world.upload(catalogue::SCARCE, "FIRST", round, 1).await;
    let writers = freeze_writers(world).await;
    // The first series excludes another. For such a request the replica claims the key in a statement of its own.
    let mut taken_over = sale(format!("customer-{round}"), &[12, catalogue::SCARCE]);
    let claimed_at = kill_after_claim(world, &taken_over).await;

    second.start();
    wait_until("the other replica is ready", async || world.tills.is_ready(1).await).await;
    settle(world, &mut sale(format!("another-{round}"), &[catalogue::SCARCE]), 1).await;
    settle(world, &mut taken_over, 1).await;
    assert_eq!(taken_over.known[1], Known::Refused(5005));
    world.upload(catalogue::SCARCE, "LATER", round, 1).await;
    // Until then the judges accept the effect of a call without an answer.
    sleep_until(claimed_at + LONGEST_CALL).await;
    // A commit above this mark happened after LONGEST_CALL.
    commits::mark_once(world).await;
    resume_writers(world, &writers).await;
    settle(world, &mut sale(format!("afterwards-{round}"), &[catalogue::UNLIMITED]), 1).await;
    world.tills.attempt(&mut taken_over, 1, None).await;
    first.start();
    wait_until("the first replica is ready", async || world.tills.is_ready(0).await).await;
}

/// Makes every writer of the first replica open its session and prepare its statement: a frozen session that is only preparing it would
/// not issue anything later.
async fn prepare_writers(world: &World, round: u32) {
    for number in 0..CALLERS {
        let mut sale = sale(format!("warm-up-{round}-{number}"), &[catalogue::UNLIMITED]);
        world.tills.attempt(&mut sale, 0, None).await;
    }
}

/// Stops the backends of the writers' sessions, and returns their process ids.
async fn freeze_writers(world: &World) -> Vec<u32> {
    let writers = "select pid from pg_stat_activity where application_name = 'coupon-issuer writer'";
    let writers: Vec<i32> = sqlx::query_scalar(writers).fetch_all(&mut world.cluster.admin().await).await.unwrap();
    let writers: Vec<u32> = writers.iter().map(|pid| pid.cast_unsigned()).collect();
    signal("-STOP", &writers);
    writers
}

/// Resumes the frozen backends, and waits until they have processed the call of the dead replica and exited.
async fn resume_writers(world: &World, writers: &[u32]) {
    signal("-CONT", writers);
    let pids = writers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let alive = format!("select count(*) from pg_stat_activity where pid = any ('{{{pids}}}')");
    wait_until("the frozen call has ended", async || count(world, &alive).await == 0).await;
}

/// Calls the first replica, and kills it when it has claimed the key and sent its coupons. Returns a moment after the claim.
async fn kill_after_claim(world: &Arc<World>, sale: &Sale) -> Instant {
    let claimed = format!("select count(*) from keyed_request where key_hash = key_hash_1('{}')", sale.key);
    let call = {
        let (world, mut sale) = (Arc::clone(world), sale.clone());
        tokio::spawn(async move { world.tills.attempt(&mut sale, 0, None).await })
    };
    wait_until("the key is claimed", async || count(world, &claimed).await == 1).await;
    let claimed_at = Instant::now();
    sleep(SEND_DELAY).await;
    world.cluster.replicas[0].kill();
    assert!(!call.await.unwrap(), "the call got an answer");
    claimed_at
}
