//! Faults on purpose: two processes of the service, a Postgres, a network that is made to fail, and tills that go on asking.
//! Whatever breaks, no coupon is lost or doubled, no answer is taken back, and the service recovers by itself.
//!
//! The short form runs with the other tests, the long one by `make chaos`. A run is repeated, as far as time allows, by
//! `CHAOS_SEED`; `CHAOS_ROUNDS` says how often each fault strikes, `CHAOS_SKIP` which do not.

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
mod rare_paths;
mod replay;
mod tills;
mod verdict;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use tokio::time::{Instant, sleep};

use crate::cluster::{Cluster, LONGEST_CALL};
use crate::faults::{Fault, World};
use crate::history::Recorder;
use crate::judgement::Judgement;
use crate::natural::NaturalKeys;
use crate::rare_paths::RarePaths;
use crate::tills::{Counts, Shop, Wrong};
use crate::verdict::Totals;

/// How long the services may take to recover from a fault.
const RECOVERED_WITHIN: Duration = Duration::from_secs(15);

/// Complaints after which a run ends, and those of each kind that are told again at its end.
const ENOUGH: usize = 1000;
const TOLD: usize = 20;

/// The most faults that strike because a rare path was not met.
const MOST_BESIDES: usize = 10;

/// What a run does.
struct Plan {
    name: &'static str,
    /// How often each fault strikes.
    rounds: usize,
    /// How long a fault lasts, and how long it is quiet afterwards, in milliseconds.
    lasts: Range<u64>,
    quiet: Range<u64>,
    /// Whether faults also strike two at a time, and a lock is held for a minute.
    is_long: bool,
    /// Codes uploaded for the series that has plenty.
    codes: u32,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_fault_once() {
    run(&Plan { name: "chaos", rounds: 1, lasts: 600..1200, quiet: 100..300, is_long: false, codes: 20_000 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes 40 minutes; make chaos"]
async fn every_fault_many_times() {
    let rounds = variable("CHAOS_ROUNDS").map_or(20, |rounds| rounds.parse().unwrap());
    let plan = Plan { name: "chaos-long", rounds, lasts: 1000..8000, quiet: 300..1500, is_long: true, codes: 400_000 };
    run(&plan).await;
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

async fn run(plan: &Plan) {
    let seed =
        variable("CHAOS_SEED").map_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0, |seed| seed.parse().unwrap());
    println!("CHAOS_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let world = Arc::new(set_up(plan.name, seed).await);
    world.upload(catalogue::PLENTY, "PLENTY", 0, plan.codes).await;
    world.upload(catalogue::SCARCE, "SCARCE", 0, 300).await;
    let marks = tokio::spawn(commits::mark_always(Arc::clone(&world)));
    let started = Instant::now();
    let mut struck = Struck::default();
    if let Err(why) = &world.cluster.installation {
        println!("{}: skipped, Postgres' installation cannot be copied: {why}", Fault::Libraries.name());
        struck.skipped = Some(Fault::Libraries);
    }
    let rare_paths = RarePaths::start(world.cluster.replicas.each_ref().map(|replica| replica.metrics));
    world.shop.open();
    for one in strikes(plan, struck.skipped, &mut random) {
        let recovery = strike(&world, &one, &mut random, &mut struck).await;
        // The rest would only tell the same again.
        if recovery > RECOVERED_WITHIN || world.shop.complaints().len() > ENOUGH {
            break;
        }
        world.shop.say("a quiet moment");
        sleep(Duration::from_millis(random.random_range(plan.quiet.clone()))).await;
    }
    meet_rare_paths(&world, plan, &rare_paths, &mut random, &mut struck).await;
    world.shop.say("the end");
    let sales = world.shop.all_sales().await;
    let counts = world.shop.take_counts();
    let met = rare_paths.counts().await;
    drop(rare_paths);
    let totals = verdict::reach(&world, sales, &mut random).await;
    complain_of_errors(&world, &counts);
    marks.abort();
    let history = commits::complete(&world).await;
    let judgement = Judgement::of(&history);
    println!("history: {}\n{judgement}", world.shop.recorder.path.display());
    for (kind, findings) in judgement.findings() {
        for finding in findings {
            world.shop.complain(format!("{kind}: {finding}"));
        }
    }
    println!("{}\n{met}", table(&struck, &counts, &totals, started.elapsed()));
    if variable("CHAOS_SKIP").is_none() {
        met.missing().iter().for_each(|path| world.shop.complain(format!("did not test: {path}")));
    }
    let complaints = world.shop.complaints();
    let kept = world.cluster.directory.display();
    assert!(complaints.is_empty(), "CHAOS_SEED={seed}, logs in {kept}:\n{}", by_kind(&complaints));
}

/// Lets the faults strike that lead to the rare paths that were not met yet. A run that skips faults is not held to them, and one that
/// has failed needs no more.
async fn meet_rare_paths(world: &World, plan: &Plan, rare_paths: &RarePaths, random: &mut StdRng, struck: &mut Struck) {
    if variable("CHAOS_SKIP").is_some() {
        return;
    }
    for _ in 0..MOST_BESIDES {
        let Some(fault) = rare_paths.counts().await.fault_of_first_missing() else { break };
        if !world.shop.complaints().is_empty() {
            break;
        }
        strike(world, &Strike { faults: vec![fault], lasts: plan.lasts.clone() }, random, struck).await;
    }
}

/// Complains once about each fault during which an error of Postgres' own was answered as what it is not.
fn complain_of_errors(world: &World, counts: &Counts) {
    for (during, times) in &counts.failed {
        world.shop.complain_about(Wrong::Failed, format!("500 was answered {times} times, asked during {during}"));
    }
    for (during, times) in &counts.denied {
        world.shop.complain_about(Wrong::Denied, format!("786 was told {times} times, asked during {during}"));
    }
}

/// The first complaints of each kind, and how many there are.
fn by_kind(complaints: &[(Wrong, String)]) -> String {
    let mut kinds: BTreeMap<Wrong, Vec<&str>> = BTreeMap::new();
    for (kind, wrong) in complaints {
        kinds.entry(*kind).or_default().push(wrong);
    }
    let told = |(kind, wrong): (&Wrong, &Vec<&str>)| {
        format!("{kind:?}, {} times:\n{}", wrong.len(), wrong[..wrong.len().min(TOLD)].join("\n"))
    };
    kinds.iter().map(told).collect::<Vec<_>>().join("\n")
}

/// Everything, running, with the organisation and no codes yet.
async fn set_up(name: &str, seed: u64) -> World {
    let cluster = Cluster::start(PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name)).await;
    let path = cluster.directory.join("history.jsonl");
    let recorder = Recorder::start(path, seed, catalogue::TIME_ZONE, LONGEST_CALL);
    let addresses = cluster.replicas.each_ref().map(|replica| replica.address);
    let world = World {
        cluster,
        shop: Arc::new(Shop::new(seed, addresses, recorder)),
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
    assert!(recovered(&world).await < RECOVERED_WITHIN, "the services do not start");
    world
}

/// One fault, or two at a time, and for how long at least and at most, in milliseconds.
struct Strike {
    faults: Vec<Fault>,
    lasts: Range<u64>,
}

/// All strikes in their order. A long run has one lock of a minute besides.
fn strikes(plan: &Plan, without: Option<Fault>, random: &mut StdRng) -> Vec<Strike> {
    let skipped = variable("CHAOS_SKIP").unwrap_or_default();
    let skipped: Vec<&str> = skipped.split(',').collect();
    let mut left: Vec<Fault> = Fault::ALL
        .into_iter()
        .filter(|fault| !skipped.contains(&fault.name()) && Some(*fault) != without)
        .flat_map(|fault| std::iter::repeat_n(fault, plan.rounds))
        .collect();
    left.shuffle(random);
    let mut strikes = Vec::new();
    while let Some(fault) = left.pop() {
        let partner = left.iter().rposition(|other| fault.goes_with(*other));
        let partner = partner.filter(|_| plan.is_long && random.random_ratio(1, 3));
        let faults = std::iter::once(fault).chain(partner.map(|at| left.remove(at))).collect();
        strikes.push(Strike { faults, lasts: plan.lasts.clone() });
    }
    if plan.is_long && !skipped.contains(&Fault::Lock.name()) {
        strikes.insert(strikes.len() / 2, Strike { faults: vec![Fault::Lock], lasts: 60_000..60_001 });
    }
    strikes
}

/// What has struck.
#[derive(Default)]
struct Struck {
    /// How often each fault, and how long the services took to recover at worst.
    faults: BTreeMap<Fault, (usize, Duration)>,
    /// How often two at a time.
    pairs: usize,
    /// One that cannot strike here.
    skipped: Option<Fault>,
}

/// Lets it strike, waits until the services have recovered, and returns how long that took.
async fn strike(world: &World, strike: &Strike, random: &mut StdRng, struck: &mut Struck) -> Duration {
    let Strike { faults, lasts } = strike;
    let names = faults.iter().map(|fault| fault.name()).collect::<Vec<_>>().join(" and ");
    world.shop.say(&names);
    let [first, second] = [0, 1].map(|_| Duration::from_millis(random.random_range(lasts.clone())));
    let began = Instant::now();
    match faults.as_slice() {
        [one, two] => {
            let mut other = StdRng::from_rng(random);
            tokio::join!(world.strike(*one, first, random), world.strike(*two, second, &mut other));
            struck.pairs += 1;
        }
        alone => world.strike(alone[0], first, random).await,
    }
    let lasted = began.elapsed();
    world.shop.say(&format!("recovery from {names}"));
    let recovery = recovered(world).await;
    println!("{names}: {:.1} s, recovered in {:.2} s", lasted.as_secs_f32(), recovery.as_secs_f32());
    if recovery > RECOVERED_WITHIN {
        world.shop.complain(format!("{names}: recovered in {recovery:?}, more than {RECOVERED_WITHIN:?}"));
    }
    for fault in faults {
        let (times, worst) = struck.faults.entry(*fault).or_default();
        *times += 1;
        *worst = (*worst).max(recovery);
    }
    recovery
}

/// How long it takes until both services issue. What takes more than a minute is given up.
async fn recovered(world: &World) -> Duration {
    for replica in &world.cluster.replicas {
        if !replica.is_running() {
            world.shop.complain(format!("the service at {} has ended by itself", replica.address));
            // So would whoever runs it.
            replica.start();
        }
    }
    let (one, other) = tokio::join!(world.shop.probe(0), world.shop.probe(1));
    one.max(other)
}

/// What is printed at the end.
fn table(struck: &Struck, counts: &Counts, totals: &Totals, took: Duration) -> String {
    let mut table = format!("\n{:<14}{:>6}{:>18}\n", "fault", "times", "worst recovery");
    for (fault, (times, worst)) in &struck.faults {
        writeln!(table, "{:<14}{times:>6}{:>16.2} s", fault.name(), worst.as_secs_f32()).unwrap();
    }
    if let Some(fault) = struck.skipped {
        writeln!(table, "{:<14}{:>6}{:>18}", fault.name(), 0, "skipped").unwrap();
    }
    let faults: usize = struck.faults.values().map(|(times, _)| times).sum();
    let Counts { attempts, hang_ups, broken, timed_out, asked_again, statuses, undecided, longest, .. } = counts;
    let Totals { requests, coupons, resent, refused, interrupted, logged } = totals;
    let (longest, meanwhile) = (longest.0.as_secs_f32(), &longest.1);
    let lines = [
        format!("{faults} faults in {} s, {} times two together", took.as_secs(), struck.pairs),
        format!("{requests} requests, {attempts} attempts, {asked_again} asked again much later"),
        format!("{coupons} coupons, {resent} sent again, refused {refused:?}"),
        format!("answered {statuses:?}, of that undecided {undecided:?}"),
        format!("{hang_ups} hang-ups, {broken} broken connections, {timed_out} without an answer in 12 s"),
        format!("longest answer {longest:.2} s, asked during {meanwhile}"),
        format!("receipts that did not know of the answer: {interrupted} of {}", requests.min(&verdict::SAMPLE)),
    ];
    table += &lines.join("\n");
    for (what, times) in logged {
        write!(table, "\nlogged {times:>5} {what}").unwrap();
    }
    table
}
