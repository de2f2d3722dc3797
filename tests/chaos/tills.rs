//! The load: tills that ask for coupons, try again until they know what became of each, and remember what they were told.
//! An answer that contradicts an earlier one is noticed here, at once; everything else is the verdict's.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use coupon_issuer::model::{Clock, SystemClock};
use jiff::Timestamp;
use jiff::civil::Date;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::catalogue;
use crate::faults::Fault;
use crate::history::{Answer, Issue, Line, Nanos, Recorder};

const TILLS: u64 = 24;
/// Customers that come and go, and those few of them that everyone serves at once.
const CUSTOMERS: u64 = 300;
const HOT_CUSTOMERS: u64 = 5;
/// Requests until one customer goes and another comes.
const STAY: u64 = 20;
/// Sales that a till leaves undecided before it begins another.
const MOST_OPEN: usize = 8;
/// How long a client waits for an answer.
pub const CLIENT_TIMEOUT: Duration = Duration::from_secs(12);
/// How often whoever was cut off asks the other replica, and how many times before he asks either.
const RETRY_EVERY: Duration = Duration::from_millis(200);
const MOST_AT_ONE: usize = 20;
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a probe is tried.
const PROBED_FOR: Duration = Duration::from_mins(1);
/// How long everybody may take to finish once nothing is broken any more.
pub const FINISHED_WITHIN: Duration = Duration::from_mins(1);

/// What is known of one entity: what the last answer said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Known {
    Nothing,
    /// With a hash of all that was shown of the coupon.
    Issued {
        code: String,
        shown: String,
    },
    Resent(String),
    Refused(u64),
}

impl Known {
    fn of(answer: Answer) -> Self {
        match answer {
            Answer::Issued { code, shown, .. } => Self::Issued { code, shown },
            Answer::Resent { code, .. } => Self::Resent(code),
            Answer::Refused { error, .. } => Self::Refused(error),
        }
    }

    /// Whether a till keeps the answer. It asks again after 748 and 786.
    fn is_final(&self) -> bool {
        !matches!(self, Self::Nothing | Self::Refused(748 | 786))
    }
}

/// The answer as the history has it. What is no answer of the service at all is complained about elsewhere.
fn answers(answer: &Value) -> Vec<Answer> {
    answer["response"].as_array().map(Vec::as_slice).unwrap_or_default().iter().map(answer_of).collect()
}

fn answer_of(entity: &Value) -> Answer {
    if let Some(error) = entity["errors"].get(0) {
        return Answer::Refused {
            error: error["code"].as_u64().unwrap_or_default(),
            message: error["message"].as_str().unwrap_or_default().to_owned(),
            // Without a valid instant no judge accepts a refusal that must have one.
            next_eligible_at: error["nextEligibleAt"].as_str().and_then(|instant| instant.parse().ok()),
        };
    }
    let shown = &entity["result"];
    let code = shown["code"].as_str().unwrap_or_default().to_owned();
    let valid_till = shown["validTill"].as_str().and_then(|text| text.get(..10)?.parse().ok()).unwrap_or(Date::MIN);
    if entity["warnings"][0]["code"] == 700 {
        return Answer::Resent { code, valid_till };
    }
    let mut hash = DefaultHasher::new();
    entity.to_string().hash(&mut hash);
    Answer::Issued { code, valid_till, shown: format!("{:016x}", hash.finish()) }
}

/// Sends a request, and returns the status and the body of the answer.
pub async fn exchange(request: reqwest::RequestBuilder) -> reqwest::Result<(u16, Value)> {
    let answer = request.send().await?;
    Ok((answer.status().as_u16(), answer.json().await?))
}

/// One request, under its key, and what is known of it.
#[derive(Debug, Clone)]
pub struct Sale {
    pub key: String,
    pub customer: String,
    pub series: Vec<i64>,
    pub known: Vec<Known>,
    /// Who asks, as the history names it.
    process: String,
    attempts: u32,
    /// Whether a call for it got no answer.
    pub is_cut_off: bool,
    /// Every 786 that was answered.
    pub denials: Vec<Denial>,
}

/// That nothing of an entity is stored (786), as an answer said.
#[derive(Debug, Clone)]
pub struct Denial {
    pub entity: usize,
    /// The id of the request that was answered, and when it was sent.
    pub request_id: String,
    pub asked_at: Timestamp,
}

impl Sale {
    /// One that a process of its own asks for.
    pub fn new(key: String, customer: String, series: Vec<i64>) -> Self {
        let known = vec![Known::Nothing; series.len()];
        Self { known, process: key.clone(), key, customer, series, attempts: 0, is_cut_off: false, denials: Vec::new() }
    }

    /// A call for it that began then and had no answer yet.
    fn call(&self, start: Nanos) -> Issue {
        let (process, key, customer) = (self.process.clone(), self.key.clone(), self.customer.clone());
        Issue::asked(start, process, key, customer, self.series.clone())
    }

    /// The id of the attempt made last.
    fn request_id(&self) -> String {
        format!("{}.{}", self.key, self.attempts)
    }

    /// Keeps in mind which entities the answer to the attempt made last has said to be not stored.
    fn remember_denials(&mut self, asked_at: Timestamp) {
        let denied = self.known.iter().enumerate().filter(|(_, known)| **known == Known::Refused(786));
        let denied: Vec<usize> = denied.map(|(entity, _)| entity).collect();
        let request_id = self.request_id();
        self.denials.extend(denied.into_iter().map(|entity| Denial {
            entity,
            request_id: request_id.clone(),
            asked_at,
        }));
    }

    pub fn is_final(&self) -> bool {
        self.known.iter().all(Known::is_final)
    }

    /// Takes an answer in. Returns what is wrong with it: nothing that was told as issued may be taken back. Only that nothing is
    /// known of it at the moment may be told: what cannot be confirmed to be flushed is not shown.
    pub fn learn(&mut self, answer: &Value) -> Vec<String> {
        let told = answer["response"].as_array().map(Vec::as_slice).unwrap_or_default();
        let series: Vec<_> = told.iter().filter_map(|entity| entity["entityId"].as_i64()).collect();
        if series != self.series {
            return vec![format!("{}: asked for {:?} and was answered {answer}", self.key, self.series)];
        }
        let mut wrong = Vec::new();
        for (known, told) in self.known.iter_mut().zip(told) {
            let now = Known::of(answer_of(told));
            if matches!(known, Known::Issued { .. }) && now == Known::Refused(748) {
                continue;
            }
            if matches!(known, Known::Issued { .. }) && *known != now {
                wrong.push(format!("{}: was told {known:?} and later {now:?}", self.key));
            } else {
                *known = now;
            }
        }
        wrong
    }
}

/// What was counted.
#[derive(Debug, Default)]
pub struct Counts {
    pub attempts: u64,
    pub hang_ups: u64,
    pub broken: u64,
    pub timed_out: u64,
    pub asked_again: u64,
    pub statuses: BTreeMap<u16, u64>,
    /// Entities that were answered with a code that says to try again.
    pub undecided: BTreeMap<u64, u64>,
    /// Answers of 500, and entities answered 786 in spite of an error that is Postgres' own, by what was going on when it was asked.
    pub failed: BTreeMap<String, u64>,
    pub denied: BTreeMap<String, u64>,
    /// The longest time from a request to its answer, and what was going on when it began.
    pub longest: (Duration, String),
}

/// What a complaint is about. How an error of Postgres' own is answered is judged apart from everything else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wrong {
    /// Anything that is told or stored.
    Anything,
    /// 500 was answered.
    Failed,
    /// 786 was told of a coupon that is stored.
    DeniedStored,
    /// 786 was told of a coupon that Postgres has refused for a reason of its own. Only 748 is true.
    Denied,
    /// A service says that it is ready, and nothing can be written.
    Ready,
}

/// Where the tills are: what they share.
pub struct Shop {
    pub recorder: Recorder,
    client: reqwest::Client,
    addresses: [SocketAddr; 2],
    seed: u64,
    next: AtomicU64,
    closing: AtomicBool,
    out_of_patience: AtomicBool,
    counts: Mutex<Counts>,
    going_on: Mutex<String>,
    /// Everybody who is selling.
    tasks: Mutex<Vec<JoinHandle<Vec<Sale>>>>,
    probes: Mutex<Vec<Sale>>,
    wrong: Mutex<Vec<(Wrong, String)>>,
}

impl Shop {
    pub fn new(seed: u64, addresses: [SocketAddr; 2], recorder: Recorder) -> Self {
        Self {
            recorder,
            client: reqwest::Client::builder().no_proxy().build().unwrap(),
            addresses,
            seed,
            next: AtomicU64::new(0),
            closing: AtomicBool::new(false),
            out_of_patience: AtomicBool::new(false),
            counts: Mutex::default(),
            going_on: Mutex::new("the start".to_owned()),
            tasks: Mutex::default(),
            probes: Mutex::default(),
            wrong: Mutex::default(),
        }
    }

    /// Lets every till begin.
    pub fn open(self: &Arc<Self>) {
        for till in 0..TILLS {
            self.remember(tokio::spawn(Arc::clone(self).serve(till)));
        }
    }

    pub fn say(&self, going_on: &str) {
        going_on.clone_into(&mut self.going_on.lock().unwrap());
    }

    /// Notes something that must not be.
    pub fn complain(&self, wrong: String) {
        self.complain_about(Wrong::Anything, wrong);
    }

    pub fn complain_about(&self, what: Wrong, wrong: String) {
        eprintln!("WRONG ({what:?}) during {}: {wrong}", self.going_on.lock().unwrap());
        self.wrong.lock().unwrap().push((what, wrong));
    }

    pub fn complaints(&self) -> Vec<(Wrong, String)> {
        self.wrong.lock().unwrap().clone()
    }

    pub fn take_counts(&self) -> Counts {
        std::mem::take(&mut self.counts.lock().unwrap())
    }

    /// One attempt after the other. A sale that is not decided yet waits its turn, while others go on.
    async fn serve(self: Arc<Self>, till: u64) -> Vec<Sale> {
        let mut random = StdRng::seed_from_u64(self.seed.wrapping_add(till));
        let (mut open, mut done) = (Vec::new(), Vec::new());
        while !self.out_of_patience.load(Ordering::Relaxed) {
            let Some(mut sale) = self.next_sale(till, &mut open, &mut done, &mut random) else { break };
            let is_decided = self.try_once(&mut sale, &mut random).await;
            if is_decided { &mut done } else { &mut open }.push(sale);
            let longest_pause = if is_decided { 60 } else { 200 };
            sleep(Duration::from_millis(random.random_range(0..longest_pause))).await;
        }
        done.append(&mut open);
        done
    }

    /// One that is open, a new one, or one of long ago: what was answered must still be there. `None`: nothing is left to do.
    fn next_sale(&self, till: u64, open: &mut Vec<Sale>, done: &mut Vec<Sale>, random: &mut StdRng) -> Option<Sale> {
        let closing = self.closing.load(Ordering::Relaxed);
        if !open.is_empty() && (closing || open.len() >= MOST_OPEN || random.random_ratio(1, 3)) {
            return Some(open.swap_remove(random.random_range(0..open.len())));
        }
        if closing {
            return None;
        }
        if !done.is_empty() && random.random_ratio(1, 25) {
            self.counts.lock().unwrap().asked_again += 1;
            return Some(done.swap_remove(random.random_range(0..done.len())));
        }
        Some(Sale { process: format!("till-{till}"), ..self.draw(random) })
    }

    /// A request as a till may have it.
    pub fn draw(&self, random: &mut StdRng) -> Sale {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let present = if random.random_ratio(3, 10) { HOT_CUSTOMERS } else { CUSTOMERS };
        let customer = number / STAY + random.random_range(0..present);
        let count = random.random_range(1..=4);
        let any = |_| catalogue::ALL[random.random_range(0..catalogue::ALL.len())];
        Sale::new(format!("sale-{number}"), format!("customer-{customer}"), (0..count).map(any).collect())
    }

    /// Tries until all of it is decided, and at least once.
    pub async fn finish(&self, sale: &mut Sale, random: &mut StdRng) {
        while !self.try_once(sale, random).await && !self.out_of_patience.load(Ordering::Relaxed) {
            sleep(Duration::from_millis(random.random_range(20..400))).await;
        }
    }

    /// Asks either replica, and now and then hangs up in the middle. Whether all of it is decided.
    async fn try_once(&self, sale: &mut Sale, random: &mut StdRng) -> bool {
        let patience = random.random_ratio(1, 20).then(|| Duration::from_millis(random.random_range(0..40)));
        let replica = random.random_range(0..2);
        self.attempt(sale, replica, patience).await && sale.is_final()
    }

    /// Asks a replica once, and learns from its answer; whether there was one. With `patience` it hangs up after that time.
    pub async fn attempt(&self, sale: &mut Sale, replica: usize, patience: Option<Duration>) -> bool {
        self.counts.lock().unwrap().attempts += 1;
        sale.attempts += 1;
        let asked_at = SystemClock.now();
        let (started, going_on) = (Instant::now(), self.going_on.lock().unwrap().clone());
        let call = sale.call(self.recorder.now());
        let exchange = timeout(patience.unwrap_or(CLIENT_TIMEOUT), self.exchange(sale, replica)).await;
        self.record(Line::Issue, call, exchange.as_ref().ok().and_then(|answered| answered.as_ref().ok()));
        let mut counts = self.counts.lock().unwrap();
        match (&exchange, patience) {
            (Err(_), Some(_)) => counts.hang_ups += 1,
            (Err(_), None) => counts.timed_out += 1,
            (Ok(Err(_)), _) => counts.broken += 1,
            (Ok(Ok((status, _))), _) => *counts.statuses.entry(*status).or_default() += 1,
        }
        let Ok(Ok((status, answer))) = exchange else {
            sale.is_cut_off = true;
            return false;
        };
        if status == 500 {
            *counts.failed.entry(going_on.clone()).or_default() += 1;
        }
        if started.elapsed() > counts.longest.0 {
            counts.longest = (started.elapsed(), going_on.clone());
        }
        drop(counts);
        let before = sale.denials.len();
        let is_good = self.digest(sale, status, asked_at, &answer);
        // Nothing else fails then but what the server refuses.
        if going_on.contains(Fault::CouponErrors.name()) && sale.denials.len() > before {
            let denied = (sale.denials.len() - before) as u64;
            *self.counts.lock().unwrap().denied.entry(going_on).or_default() += denied;
        }
        is_good
    }

    /// Makes of an answer what a till does; whether it was one.
    fn digest(&self, sale: &mut Sale, status: u16, asked_at: Timestamp, answer: &Value) -> bool {
        let wrong = match status {
            200 => sale.learn(answer),
            409 | 429 | 500 | 503 => return false,
            _ => vec![format!("{}: {status} {answer}", sale.key)],
        };
        if wrong.is_empty() {
            sale.remember_denials(asked_at);
        }
        let mut counts = self.counts.lock().unwrap();
        for known in &sale.known {
            if let Known::Refused(code @ (748 | 786)) = known {
                *counts.undecided.entry(*code).or_default() += 1;
            }
        }
        drop(counts);
        let is_good = wrong.is_empty();
        for wrong in wrong {
            self.complain(wrong);
        }
        is_good
    }

    /// Writes a call into the history, with its answer if it had one.
    pub fn record(&self, line: fn(Issue) -> Line, call: Issue, answered: Option<&(u16, Value)>) {
        let answered = answered.map(|(status, answer)| Issue {
            end: Some(self.recorder.now()),
            status: Some(*status),
            answer: (*status == 200).then(|| answers(answer)),
            ..call.clone()
        });
        self.recorder.write(&line(answered.unwrap_or(call)));
    }

    async fn exchange(&self, sale: &Sale, replica: usize) -> reqwest::Result<(u16, Value)> {
        let url = format!("http://{}/v2/coupon/bulk/issue", self.addresses[replica]);
        let body = json!({"seriesIds": sale.series, "customer": {"id": sale.customer}});
        let request = self.client.post(url).basic_auth("store.server", Some("server123")).json(&body);
        let request = request.header("Idempotency-Key", &sale.key).header("X-Request-Id", sale.request_id());
        exchange(request).await
    }

    /// What a replica knows of a sale: the status and the body of its receipt.
    pub async fn receipt(&self, sale: &Sale, replica: usize) -> reqwest::Result<(u16, Value)> {
        let url = format!("http://{}/v2/coupon/bulk/issue/{}", self.addresses[replica], sale.key);
        let request = self.client.get(url).basic_auth("store.server", Some("server123")).timeout(CLIENT_TIMEOUT);
        let call = sale.call(self.recorder.now());
        let answered = exchange(request).await;
        self.record(Line::Receipt, call, answered.as_ref().ok());
        answered
    }

    /// Whether a replica says that it is ready. One that says nothing is not.
    pub async fn is_ready(&self, replica: usize) -> bool {
        let url = format!("http://{}/readyz", self.addresses[replica]);
        let answer = self.client.get(url).timeout(CLIENT_TIMEOUT).send().await;
        answer.is_ok_and(|answer| answer.status() == 200)
    }

    /// How long it takes until a replica issues a fresh coupon that nothing limits. What takes more
    /// than a minute is given up.
    pub async fn probe(self: &Arc<Self>, replica: usize) -> Duration {
        let started = Instant::now();
        while started.elapsed() < PROBED_FOR {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let mut sale = Sale::new(format!("probe-{number}"), "probe".to_owned(), vec![catalogue::UNLIMITED]);
            self.attempt(&mut sale, replica, Some(PROBE_TIMEOUT)).await;
            if sale.is_final() {
                self.probes.lock().unwrap().push(sale);
                return started.elapsed();
            }
            // It is a sale like any other, and somebody has to finish it.
            let (shop, mut random) = (Arc::clone(self), StdRng::seed_from_u64(number));
            self.remember(tokio::spawn(async move {
                shop.finish(&mut sale, &mut random).await;
                vec![sale]
            }));
            sleep(Duration::from_millis(50)).await;
        }
        started.elapsed()
    }

    /// Many who ask at once, and hang up at once; then each tries again.
    pub fn burst(self: &Arc<Self>, random: &mut StdRng, count: u64) {
        let patience = Some(Duration::from_millis(random.random_range(5..150)));
        for one in 0..count {
            let (shop, mut random, mut sale) = (Arc::clone(self), StdRng::from_rng(random), self.draw(random));
            self.remember(tokio::spawn(async move {
                shop.attempt(&mut sale, usize::from(one % 2 == 0), patience).await;
                shop.finish(&mut sale, &mut random).await;
                vec![sale]
            }));
        }
    }

    /// Many who ask at once for coupons of these series for one customer. Each asks once more when all is decided.
    pub fn race(self: &Arc<Self>, random: &mut StdRng, count: u64, series: &[i64]) {
        let customer = format!("racer-{}", self.next.fetch_add(1, Ordering::Relaxed));
        for _ in 0..count {
            let (shop, mut random) = (Arc::clone(self), StdRng::from_rng(random));
            let mut sale = Sale::new(self.draw(&mut random).key, customer.clone(), series.to_vec());
            self.remember(tokio::spawn(async move {
                shop.finish(&mut sale, &mut random).await;
                shop.finish(&mut sale, &mut random).await;
                vec![sale]
            }));
        }
    }

    /// Many who ask one replica for several coupons each, and turn to the other one as soon as they are cut off.
    pub fn rush(self: &Arc<Self>, random: &mut StdRng, replica: usize, count: u64) {
        for _ in 0..count {
            let (shop, mut random, mut sale) = (Arc::clone(self), StdRng::from_rng(random), self.draw(random));
            let series = [catalogue::UNLIMITED, catalogue::CAPPED].into_iter().chain(sale.series).collect();
            sale = Sale::new(sale.key, sale.customer, series);
            self.remember(tokio::spawn(async move {
                let mut asked = replica;
                for _ in 0..MOST_AT_ONE {
                    if shop.attempt(&mut sale, asked, None).await && sale.is_final() {
                        return vec![sale];
                    }
                    if asked != replica {
                        sleep(RETRY_EVERY).await;
                    }
                    asked = 1 - replica;
                }
                shop.finish(&mut sale, &mut random).await;
                vec![sale]
            }));
        }
    }

    fn remember(&self, task: JoinHandle<Vec<Sale>>) {
        self.tasks.lock().unwrap().push(task);
    }

    /// Waits until everybody has finished, and returns all sales. Whoever has not finished by the end of a minute leaves a
    /// sale that is not final.
    pub async fn all_sales(self: &Arc<Self>) -> Vec<Sale> {
        self.closing.store(true, Ordering::Relaxed);
        let shop = Arc::clone(self);
        let clock = tokio::spawn(async move {
            sleep(FINISHED_WITHIN).await;
            shop.out_of_patience.store(true, Ordering::Relaxed);
        });
        let mut sales = std::mem::take(&mut *self.probes.lock().unwrap());
        let tasks = std::mem::take(&mut *self.tasks.lock().unwrap());
        for task in tasks {
            sales.extend(task.await.unwrap());
        }
        clock.abort();
        sales
    }
}
