//! A chaos run: two processes of the service, a Postgres and the network between them fail on purpose while tills keep calling.
//! Whatever fails, no coupon may be lost or issued twice, no answer may be contradicted later, and the service must recover without
//! help.
//!
//! The short run is part of `make test`, the long one is `make chaos`. `CHAOS_SEED` repeats the random choices of a run, though not
//! its timing. `CHAOS_ROUNDS` sets how often each fault is injected, `CHAOS_SKIP` lists faults to skip.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod broken;
mod catalogue;
mod cluster;
mod commits;
mod faults;
mod history;
mod installation;
mod judgement;
mod linearizability;
mod natural;
mod network;
mod plan;
mod rare_paths;
mod replay;
mod sale;
mod summary;
mod tills;
mod verdict;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::{Instant, sleep};

use crate::cluster::{Cluster, LONGEST_CALL};
use crate::faults::{Fault, World};
use crate::history::Recorder;
use crate::judgement::Judgement;
use crate::natural::NaturalKeys;
use crate::plan::{Injection, Plan, variable};
use crate::rare_paths::RarePaths;
use crate::summary::InjectionStats;
use crate::tills::{CallStats, Tills, ViolationKind};

/// How long the services may take to recover from a fault.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(15);
/// A run that has found more violations stops injecting faults.
const MAX_VIOLATIONS: usize = 1000;
/// How many faults a run injects in addition, to reach the rare paths it has missed.
const MAX_EXTRA_INJECTIONS: usize = 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_fault_once() {
    let plan = Plan {
        name: "chaos",
        rounds: 1,
        fault_millis: 600..1200,
        pause_millis: 100..300,
        is_long: false,
        plenty_codes: 20_000,
    };
    run(&plan).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes 40 minutes; make chaos"]
async fn every_fault_many_times() {
    let plan = Plan {
        name: "chaos-long",
        rounds: variable("CHAOS_ROUNDS").map_or(20, |rounds| rounds.parse().unwrap()),
        fault_millis: 1000..8000,
        pause_millis: 300..1500,
        is_long: true,
        plenty_codes: 400_000,
    };
    run(&plan).await;
}

async fn run(plan: &Plan) {
    let random_seed = || uuid::Uuid::new_v4().as_u64_pair().0;
    let seed = variable("CHAOS_SEED").map_or_else(random_seed, |seed| seed.parse().unwrap());
    println!("CHAOS_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let world = Arc::new(start_world(plan.name, seed).await);
    world.upload(catalogue::PLENTY, "PLENTY", 0, plan.plenty_codes).await;
    world.upload(catalogue::SCARCE, "SCARCE", 0, 300).await;
    let marks = tokio::spawn(commits::mark_continuously(Arc::clone(&world)));
    let started = Instant::now();
    let rare_paths = RarePaths::start(world.cluster.replicas.each_ref().map(|replica| replica.metrics));
    world.tills.open();
    let mut injected = InjectionStats::default();
    inject_all(&world, plan, &rare_paths, &mut random, &mut injected).await;
    inject_for_rare_paths(&world, plan, &rare_paths, &mut random, &mut injected).await;
    world.tills.set_phase("the final checks");
    let sales = world.tills.all_sales().await;
    let calls = world.tills.take_call_stats();
    let path_counts = rare_paths.counts().await;
    drop(rare_paths);
    let totals = verdict::check_all(&world, sales, &mut random).await;
    report_wrong_errors(&world, &calls);
    marks.abort();
    judge_history(&world).await;
    println!("{}\n{path_counts}", summary::table(&injected, &calls, &totals, started.elapsed()));
    if variable("CHAOS_SKIP").is_none() {
        path_counts.missing().iter().for_each(|path| world.tills.report(format!("rare path not reached: {path}")));
    }
    let violations = world.tills.violations();
    let logs = world.cluster.directory.display();
    assert!(violations.is_empty(), "CHAOS_SEED={seed}, logs in {logs}:\n{}", summary::by_kind(&violations));
}

/// Injects every fault of the plan. Ends early once the services do not recover, or the violations repeat themselves.
async fn inject_all(
    world: &World,
    plan: &Plan,
    rare_paths: &RarePaths,
    random: &mut StdRng,
    injected: &mut InjectionStats,
) {
    if let Err(why) = &world.cluster.installation {
        println!("{}: skipped, the Postgres installation cannot be copied: {why}", Fault::Libraries.name());
        injected.skipped = Some(Fault::Libraries);
    }
    for injection in plan.injections(injected.skipped, random) {
        let recovery = inject(world, rare_paths, &injection, random, injected).await;
        if recovery > RECOVERY_TIMEOUT || world.tills.violations().len() > MAX_VIOLATIONS {
            break;
        }
        world.tills.set_phase("no fault");
        sleep(Duration::from_millis(random.random_range(plan.pause_millis.clone()))).await;
    }
}

/// Injects the faults that lead to the rare paths the run has not reached yet. Does nothing in a run that skips faults, which need not
/// reach them, or that has failed already.
async fn inject_for_rare_paths(
    world: &World,
    plan: &Plan,
    rare_paths: &RarePaths,
    random: &mut StdRng,
    injected: &mut InjectionStats,
) {
    if variable("CHAOS_SKIP").is_some() {
        return;
    }
    for _ in 0..MAX_EXTRA_INJECTIONS {
        let Some(fault) = rare_paths.counts().await.fault_of_first_missing() else { break };
        if !world.tills.violations().is_empty() {
            break;
        }
        let injection = Injection { faults: vec![fault], millis: plan.fault_millis.clone() };
        inject(world, rare_paths, &injection, random, injected).await;
    }
}

/// Injects one fault or two at once, and returns how long the services took to recover.
async fn inject(
    world: &World,
    rare_paths: &RarePaths,
    injection: &Injection,
    random: &mut StdRng,
    injected: &mut InjectionStats,
) -> Duration {
    let Injection { faults, millis } = injection;
    let names = faults.iter().map(|fault| fault.name()).collect::<Vec<_>>().join(" and ");
    world.tills.set_phase(&names);
    let [first, second] = [0, 1].map(|_| Duration::from_millis(random.random_range(millis.clone())));
    let refused_before = rare_paths.refused_coupons().await;
    let began = Instant::now();
    match faults.as_slice() {
        [one, two] => {
            let mut other = StdRng::from_rng(random);
            tokio::join!(world.inject(*one, first, random), world.inject(*two, second, &mut other));
            injected.pairs += 1;
        }
        alone => world.inject(alone[0], first, random).await,
    }
    let lasted = began.elapsed();
    world.tills.set_phase(&format!("recovery from {names}"));
    let recovery = wait_for_recovery(world).await;
    println!("{names}: lasted {:.1} s, recovered in {:.2} s", lasted.as_secs_f32(), recovery.as_secs_f32());
    // During this fault, an error of Postgres itself may leave a coupon in doubt. The writer must not take it for a refusal.
    let refused = rare_paths.refused_coupons().await - refused_before;
    if faults.contains(&Fault::CouponErrors) && refused > 0 {
        let found = format!("{names}: the writer took {refused} errors of Postgres itself for refusals");
        world.tills.report_as(ViolationKind::DeniedInDoubt, found);
    }
    if recovery > RECOVERY_TIMEOUT {
        world.tills.report(format!("{names}: recovered in {recovery:?}, more than {RECOVERY_TIMEOUT:?}"));
    }
    for fault in faults {
        injected.add(*fault, recovery);
    }
    recovery
}

/// Waits until both services issue coupons, and returns how long that took. Gives up after a minute.
async fn wait_for_recovery(world: &World) -> Duration {
    for replica in &world.cluster.replicas {
        if !replica.is_running() {
            world.tills.report(format!("the service at {} exited by itself", replica.address));
            // As an orchestrator would.
            replica.start();
        }
    }
    let (first, second) = tokio::join!(world.tills.probe(0), world.tills.probe(1));
    first.max(second)
}

/// Starts everything, with the organisation and without uploaded codes.
async fn start_world(name: &str, seed: u64) -> World {
    let cluster = Cluster::start(PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name)).await;
    let path = cluster.directory.join("history.jsonl");
    let recorder = Recorder::start(path, seed, catalogue::TIME_ZONE, LONGEST_CALL);
    let addresses = cluster.replicas.each_ref().map(|replica| replica.address);
    let world = World {
        cluster,
        tills: Arc::new(Tills::new(seed, addresses, recorder)),
        version: AtomicU32::new(0),
        natural_keys: NaturalKeys::new(addresses),
    };
    world.apply_version(0).await.unwrap();
    world.cluster.execute(&catalogue::take_codes()).await;
    for statement in commits::SET_UP {
        world.cluster.execute(statement).await;
    }
    for replica in &world.cluster.replicas {
        replica.start();
    }
    assert!(wait_for_recovery(&world).await < RECOVERY_TIMEOUT, "the services do not start");
    world
}

/// Reports one violation for each phase in which an error of Postgres itself got a wrong answer.
fn report_wrong_errors(world: &World, calls: &CallStats) {
    for (phase, times) in &calls.internal_errors {
        world
            .tills
            .report_as(ViolationKind::InternalError, format!("answer 500, {times} times, to calls during {phase}"));
    }
}

/// Adds the commits to the history, prints both verdicts on it, and reports their findings.
async fn judge_history(world: &World) {
    let history = commits::complete(world).await;
    let judgement = Judgement::of(&history);
    println!("history: {}\n{judgement}", world.tills.recorder.path.display());
    for (kind, findings) in judgement.findings() {
        for finding in findings {
            world.tills.report(format!("{kind}: {finding}"));
        }
    }
}
