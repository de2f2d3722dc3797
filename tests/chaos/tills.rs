//! The load: tills that ask for coupons and retry until every entity is decided.
//! They report at once an answer that contradicts an earlier one. The verdict checks everything else.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use coupon_issuer::model::{Clock, SystemClock};
use jiff::Timestamp;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::error::Elapsed;
use tokio::time::{Instant, sleep, timeout};

use crate::catalogue;
use crate::history::{Issue, Line, Recorder};
use crate::sale::{Known, Sale, answers};

const TILLS: u64 = 24;
/// How many customers are served at a time.
const CUSTOMERS: u64 = 300;
/// How many of these ask much more often than the others, at several tills at once.
const HOT_CUSTOMERS: u64 = 5;
/// After so many requests one customer is replaced by a new one.
const REQUESTS_PER_CUSTOMER: u64 = 20;
/// A till with so many undecided sales begins no new one.
const MAX_OPEN_SALES: usize = 8;
/// How long a client waits for an answer.
pub const CLIENT_TIMEOUT: Duration = Duration::from_secs(12);
/// How often, and how many times, a caller of [`Tills::rush`] retries before it becomes like any other.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);
const MAX_RUSH_ATTEMPTS: usize = 20;
/// The time-out of one call of a probe, and of the whole probe.
const PROBE_CALL_TIMEOUT: Duration = Duration::from_secs(2);
const PROBE_TIMEOUT: Duration = Duration::from_mins(1);
/// How long all tills may take to finish once no fault is active.
pub const SETTLE_TIMEOUT: Duration = Duration::from_mins(1);

/// The status and the body of an answer.
type Response = (u16, Value);

/// Sends a request.
pub async fn exchange(request: reqwest::RequestBuilder) -> reqwest::Result<Response> {
    let answer = request.send().await?;
    Ok((answer.status().as_u16(), answer.json().await?))
}

#[derive(Debug, Default)]
pub struct CallStats {
    pub attempts: u64,
    pub hang_ups: u64,
    pub broken_connections: u64,
    pub timed_out: u64,
    /// Decided requests that a till repeated.
    pub repeated: u64,
    pub statuses: BTreeMap<u16, u64>,
    /// Entities answered with an error that asks for a retry, by its code.
    pub undecided: BTreeMap<u64, u64>,
    /// Answers 500, by the phase in which the call began.
    pub internal_errors: BTreeMap<String, u64>,
    /// The longest time to an answer, and the phase in which the call began.
    pub longest: (Duration, String),
}

/// Wrong answers to errors of Postgres itself have kinds of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ViolationKind {
    /// Any other wrong answer, or anything wrong in the database.
    Other,
    /// A call was answered 500.
    InternalError,
    /// 786 ("not stored") was answered for a coupon that is stored.
    DeniedStored,
    /// The writer took an error of Postgres itself for a refusal, which is answered 786 ("not stored"). Only 748 ("in doubt") is true.
    DeniedInDoubt,
    /// A service reported that it is ready while the database accepted no writes.
    FalseReady,
}

/// All tills, and what they share.
pub struct Tills {
    pub recorder: Recorder,
    client: reqwest::Client,
    addresses: [SocketAddr; 2],
    seed: u64,
    next: AtomicU64,
    closing: AtomicBool,
    gave_up: AtomicBool,
    call_stats: Mutex<CallStats>,
    /// What the run does at the moment: which fault is active.
    phase: Mutex<String>,
    /// Tills and other callers. Each returns its sales.
    tasks: Mutex<Vec<JoinHandle<Vec<Sale>>>>,
    probes: Mutex<Vec<Sale>>,
    violations: Mutex<Vec<(ViolationKind, String)>>,
}

impl Tills {
    pub fn new(seed: u64, addresses: [SocketAddr; 2], recorder: Recorder) -> Self {
        Self {
            recorder,
            client: reqwest::Client::builder().no_proxy().build().unwrap(),
            addresses,
            seed,
            next: AtomicU64::new(0),
            closing: AtomicBool::new(false),
            gave_up: AtomicBool::new(false),
            call_stats: Mutex::default(),
            phase: Mutex::new("start-up".to_owned()),
            tasks: Mutex::default(),
            probes: Mutex::default(),
            violations: Mutex::default(),
        }
    }

    /// Starts every till.
    pub fn open(self: &Arc<Self>) {
        for till in 0..TILLS {
            self.track(tokio::spawn(Arc::clone(self).serve(till)));
        }
    }

    pub fn set_phase(&self, phase: &str) {
        phase.clone_into(&mut self.phase.lock().unwrap());
    }

    /// Reports a violation, which fails the run.
    pub fn report(&self, violation: String) {
        self.report_as(ViolationKind::Other, violation);
    }

    pub fn report_as(&self, kind: ViolationKind, violation: String) {
        eprintln!("VIOLATION ({kind:?}) during {}: {violation}", self.phase.lock().unwrap());
        self.violations.lock().unwrap().push((kind, violation));
    }

    pub fn violations(&self) -> Vec<(ViolationKind, String)> {
        self.violations.lock().unwrap().clone()
    }

    pub fn take_call_stats(&self) -> CallStats {
        std::mem::take(&mut self.call_stats.lock().unwrap())
    }

    /// One till: makes one attempt after the other, and serves others while a sale is undecided.
    async fn serve(self: Arc<Self>, till: u64) -> Vec<Sale> {
        let mut random = StdRng::seed_from_u64(self.seed.wrapping_add(till));
        let (mut open, mut done) = (Vec::new(), Vec::new());
        while !self.gave_up.load(Ordering::Relaxed) {
            let Some(mut sale) = self.next_sale(till, &mut open, &mut done, &mut random) else { break };
            let is_decided = self.try_once(&mut sale, &mut random).await;
            if is_decided { &mut done } else { &mut open }.push(sale);
            let longest_pause = if is_decided { 60 } else { 200 };
            sleep(Duration::from_millis(random.random_range(0..longest_pause))).await;
        }
        done.append(&mut open);
        done
    }

    /// An open sale, a new one, or a decided one, whose answer must not have changed. `None`: the till has finished.
    fn next_sale(&self, till: u64, open: &mut Vec<Sale>, done: &mut Vec<Sale>, random: &mut StdRng) -> Option<Sale> {
        let closing = self.closing.load(Ordering::Relaxed);
        if !open.is_empty() && (closing || open.len() >= MAX_OPEN_SALES || random.random_ratio(1, 3)) {
            return Some(open.swap_remove(random.random_range(0..open.len())));
        }
        if closing {
            return None;
        }
        if !done.is_empty() && random.random_ratio(1, 25) {
            self.call_stats.lock().unwrap().repeated += 1;
            return Some(done.swap_remove(random.random_range(0..done.len())));
        }
        Some(Sale { process: format!("till-{till}"), ..self.draw(random) })
    }

    /// A random new sale.
    pub fn draw(&self, random: &mut StdRng) -> Sale {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let customers = if random.random_ratio(3, 10) { HOT_CUSTOMERS } else { CUSTOMERS };
        let customer = number / REQUESTS_PER_CUSTOMER + random.random_range(0..customers);
        let count = random.random_range(1..=4);
        let any = |_| catalogue::ALL[random.random_range(0..catalogue::ALL.len())];
        Sale::new(format!("sale-{number}"), format!("customer-{customer}"), (0..count).map(any).collect())
    }

    /// Makes at least one attempt, and retries until every entity is decided.
    pub async fn finish(&self, sale: &mut Sale, random: &mut StdRng) {
        while !self.try_once(sale, random).await && !self.gave_up.load(Ordering::Relaxed) {
            sleep(Duration::from_millis(random.random_range(20..400))).await;
        }
    }

    /// Calls a random replica, and sometimes hangs up before the answer. True: every entity is decided.
    async fn try_once(&self, sale: &mut Sale, random: &mut StdRng) -> bool {
        let hang_up_after = random.random_ratio(1, 20).then(|| Duration::from_millis(random.random_range(0..40)));
        let replica = random.random_range(0..2);
        self.attempt(sale, replica, hang_up_after).await && sale.is_final()
    }

    /// Calls a replica once and applies its answer. False: there was no answer, or none that decides anything.
    pub async fn attempt(&self, sale: &mut Sale, replica: usize, hang_up_after: Option<Duration>) -> bool {
        self.call_stats.lock().unwrap().attempts += 1;
        sale.attempts += 1;
        let asked_at = SystemClock.now();
        let (started, phase) = (Instant::now(), self.phase.lock().unwrap().clone());
        let call = sale.call(self.recorder.now());
        let exchanged = timeout(hang_up_after.unwrap_or(CLIENT_TIMEOUT), self.exchange(sale, replica)).await;
        self.record(Line::Issue, call, exchanged.as_ref().ok().and_then(|answered| answered.as_ref().ok()));
        self.count(&exchanged, hang_up_after.is_some(), started.elapsed(), &phase);
        let Ok(Ok((status, answer))) = exchanged else {
            sale.has_unanswered_call = true;
            return false;
        };
        self.process_answer(sale, status, asked_at, &answer)
    }

    fn count(
        &self,
        exchanged: &Result<reqwest::Result<Response>, Elapsed>,
        may_hang_up: bool,
        took: Duration,
        phase: &str,
    ) {
        let mut calls = self.call_stats.lock().unwrap();
        let status = match exchanged {
            Err(_) if may_hang_up => return calls.hang_ups += 1,
            Err(_) => return calls.timed_out += 1,
            Ok(Err(_)) => return calls.broken_connections += 1,
            Ok(Ok((status, _))) => *status,
        };
        *calls.statuses.entry(status).or_default() += 1;
        if status == 500 {
            *calls.internal_errors.entry(phase.to_owned()).or_default() += 1;
        }
        if took > calls.longest.0 {
            calls.longest = (took, phase.to_owned());
        }
    }

    /// Applies an answer to its sale. False: it asks for a retry of the whole request, or it is wrong.
    fn process_answer(&self, sale: &mut Sale, status: u16, asked_at: Timestamp, answer: &Value) -> bool {
        let violations = match status {
            200 => sale.apply_answer(answer),
            409 | 429 | 500 | 503 => return false,
            _ => vec![format!("{}: {status} {answer}", sale.key)],
        };
        if violations.is_empty() {
            sale.record_denials(asked_at);
        }
        let mut calls = self.call_stats.lock().unwrap();
        for known in &sale.known {
            if let Known::Refused(code @ (748 | 786)) = known {
                *calls.undecided.entry(*code).or_default() += 1;
            }
        }
        drop(calls);
        let is_accepted = violations.is_empty();
        for violation in violations {
            self.report(violation);
        }
        is_accepted
    }

    /// Writes a call, with its answer if there is one, to the history.
    pub fn record(&self, line: fn(Issue) -> Line, call: Issue, answered: Option<&Response>) {
        let answered = answered.map(|(status, answer)| Issue {
            end: Some(self.recorder.now()),
            status: Some(*status),
            answer: (*status == 200).then(|| answers(answer)),
            ..call.clone()
        });
        self.recorder.write(&line(answered.unwrap_or(call)));
    }

    async fn exchange(&self, sale: &Sale, replica: usize) -> reqwest::Result<Response> {
        let url = format!("http://{}/v2/coupon/bulk/issue", self.addresses[replica]);
        let body = json!({"seriesIds": sale.series, "customer": {"id": sale.customer}});
        let request = self.client.post(url).basic_auth("store.server", Some("server123")).json(&body);
        let request = request.header("Idempotency-Key", &sale.key).header("X-Request-Id", sale.request_id());
        exchange(request).await
    }

    /// Fetches the receipt of a sale from a replica.
    pub async fn receipt(&self, sale: &Sale, replica: usize) -> reqwest::Result<Response> {
        let url = format!("http://{}/v2/coupon/bulk/issue/{}", self.addresses[replica], sale.key);
        let request = self.client.get(url).basic_auth("store.server", Some("server123")).timeout(CLIENT_TIMEOUT);
        let call = sale.call(self.recorder.now());
        let answered = exchange(request).await;
        self.record(Line::Receipt, call, answered.as_ref().ok());
        answered
    }

    /// Whether a replica reports that it is ready. A replica that does not answer is not.
    pub async fn is_ready(&self, replica: usize) -> bool {
        let url = format!("http://{}/readyz", self.addresses[replica]);
        let answer = self.client.get(url).timeout(CLIENT_TIMEOUT).send().await;
        answer.is_ok_and(|answer| answer.status() == 200)
    }

    /// How long it takes until a replica issues a new coupon without a limit. Gives up after a minute.
    pub async fn probe(self: &Arc<Self>, replica: usize) -> Duration {
        let started = Instant::now();
        while started.elapsed() < PROBE_TIMEOUT {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let mut sale = Sale::new(format!("probe-{number}"), "probe".to_owned(), vec![catalogue::UNLIMITED]);
            self.attempt(&mut sale, replica, Some(PROBE_CALL_TIMEOUT)).await;
            if sale.is_final() {
                self.probes.lock().unwrap().push(sale);
                return started.elapsed();
            }
            // The verdict checks it like any other sale, so it must be finished.
            let (tills, mut random) = (Arc::clone(self), StdRng::seed_from_u64(number));
            self.track(tokio::spawn(async move {
                tills.finish(&mut sale, &mut random).await;
                vec![sale]
            }));
            sleep(Duration::from_millis(50)).await;
        }
        started.elapsed()
    }

    /// Starts callers that call and hang up at the same time, then retry.
    pub fn burst(self: &Arc<Self>, random: &mut StdRng, count: u64) {
        let hang_up_after = Some(Duration::from_millis(random.random_range(5..150)));
        for caller in 0..count {
            let (tills, mut random, mut sale) = (Arc::clone(self), StdRng::from_rng(random), self.draw(random));
            self.track(tokio::spawn(async move {
                tills.attempt(&mut sale, usize::from(caller % 2 == 0), hang_up_after).await;
                tills.finish(&mut sale, &mut random).await;
                vec![sale]
            }));
        }
    }

    /// Starts callers that ask for coupons of these series for one customer. Each repeats its request when every entity is decided.
    pub fn race(self: &Arc<Self>, random: &mut StdRng, count: u64, series: &[i64]) {
        let customer = format!("racer-{}", self.next.fetch_add(1, Ordering::Relaxed));
        for _ in 0..count {
            let (tills, mut random) = (Arc::clone(self), StdRng::from_rng(random));
            let mut sale = Sale::new(self.draw(&mut random).key, customer.clone(), series.to_vec());
            self.track(tokio::spawn(async move {
                tills.finish(&mut sale, &mut random).await;
                tills.finish(&mut sale, &mut random).await;
                vec![sale]
            }));
        }
    }

    /// Starts callers that ask one replica for several coupons each, and turn to the other replica after the first attempt.
    pub fn rush(self: &Arc<Self>, random: &mut StdRng, replica: usize, count: u64) {
        for _ in 0..count {
            let (tills, mut random, mut sale) = (Arc::clone(self), StdRng::from_rng(random), self.draw(random));
            let series = [catalogue::UNLIMITED, catalogue::CAPPED].into_iter().chain(sale.series).collect();
            sale = Sale::new(sale.key, sale.customer, series);
            self.track(tokio::spawn(async move {
                let mut asked = replica;
                for _ in 0..MAX_RUSH_ATTEMPTS {
                    if tills.attempt(&mut sale, asked, None).await && sale.is_final() {
                        return vec![sale];
                    }
                    if asked != replica {
                        sleep(RETRY_INTERVAL).await;
                    }
                    asked = 1 - replica;
                }
                tills.finish(&mut sale, &mut random).await;
                vec![sale]
            }));
        }
    }

    fn track(&self, task: JoinHandle<Vec<Sale>>) {
        self.tasks.lock().unwrap().push(task);
    }

    /// Waits until all callers have finished, and returns all sales. A caller that has not finished after a minute returns a sale
    /// that is not final.
    pub async fn all_sales(self: &Arc<Self>) -> Vec<Sale> {
        self.closing.store(true, Ordering::Relaxed);
        let tills = Arc::clone(self);
        let deadline = tokio::spawn(async move {
            sleep(SETTLE_TIMEOUT).await;
            tills.gave_up.store(true, Ordering::Relaxed);
        });
        let mut sales = std::mem::take(&mut *self.probes.lock().unwrap());
        let tasks = std::mem::take(&mut *self.tasks.lock().unwrap());
        for task in tasks {
            sales.extend(task.await.unwrap());
        }
        deadline.abort();
        sales
    }
}
