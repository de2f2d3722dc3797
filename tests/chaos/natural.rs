//! Callers without an `Idempotency-Key` that call under one natural key at the same time: all of them must get the same coupons.
//! Every till has a key of its own, so only these callers meet an entity that another request has issued.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use sqlx::PgConnection;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::catalogue;
use crate::history::{Issue, Line};
use crate::tills::{CLIENT_TIMEOUT, Tills, exchange};

const CALLERS: usize = 20;
/// Under each natural key, one coupon of each series is asked for.
pub const SERIES: [i64; 2] = [catalogue::UNLIMITED, catalogue::NARROW];
const RETRY_INTERVAL: Duration = Duration::from_millis(100);
/// How long a caller retries: as long as two faults may last together.
const DECISION_TIMEOUT: Duration = Duration::from_mins(3);

/// A coupon: its customer, its series and its code. `None`: the series refused it.
type Coupon = (String, i64, Option<String>);
/// The final answer to a caller. An error explains what is wrong.
type Answered = Result<Vec<Coupon>, String>;

pub struct NaturalKeys {
    client: reqwest::Client,
    addresses: [SocketAddr; 2],
    races: AtomicU64,
    callers: Mutex<Vec<JoinHandle<Answered>>>,
}

impl NaturalKeys {
    pub fn new(addresses: [SocketAddr; 2]) -> Self {
        let client = reqwest::Client::builder().no_proxy().timeout(CLIENT_TIMEOUT).build().unwrap();
        Self { client, addresses, races: AtomicU64::new(0), callers: Mutex::default() }
    }

    /// Starts callers of both replicas under one natural key.
    pub fn race(&self, tills: &Arc<Tills>) {
        let customer = format!("natural-{}", self.races.fetch_add(1, Ordering::Relaxed));
        for caller in 0..CALLERS {
            let url = format!("http://{}/v2/coupon/bulk/issue", self.addresses[caller % 2]);
            let body = json!({"seriesIds": SERIES, "customer": {"id": customer},
                              "metadata": {"sourceType": "BILL", "sourceId": customer}});
            let request = self.client.post(url).basic_auth("store.server", Some("server123")).json(&body);
            let process = format!("{customer}, caller {caller}");
            let calls = call_until_decided(Arc::clone(tills), process, request, customer.clone());
            self.callers.lock().unwrap().push(tokio::spawn(calls));
        }
    }

    /// Waits for all callers. Returns what is wrong with their answers or the stored coupons.
    pub async fn check(&self, admin: &mut PgConnection) -> Vec<String> {
        let callers = std::mem::take(&mut *self.callers.lock().unwrap());
        let (mut answered, mut violations) = (BTreeSet::new(), Vec::new());
        for caller in callers {
            match caller.await.unwrap() {
                Ok(coupons) => answered.extend(coupons),
                Err(violation) => violations.push(violation),
            }
        }
        let one_each: BTreeSet<_> = answered.iter().map(|(customer, series, _)| (customer, series)).collect();
        if one_each.len() != answered.len() {
            violations.push(format!("callers with one natural key got different answers: {answered:?}"));
        }
        let stored = "select customer_id, series_id, code from issued_coupon where customer_id like 'natural-%'";
        let stored: Vec<Coupon> = sqlx::query_as(stored).fetch_all(admin).await.unwrap();
        let count = stored.len();
        let issued: BTreeSet<_> = answered.iter().filter(|(.., code)| code.is_some()).cloned().collect();
        if violations.is_empty() && (count != issued.len() || BTreeSet::from_iter(stored.clone()) != issued) {
            violations.push(format!("the answers under natural keys show {issued:?}, but {stored:?} is stored"));
        }
        violations
    }
}

/// Retries until each entity is decided. An error shows the last answer.
async fn call_until_decided(
    tills: Arc<Tills>,
    process: String,
    request: reqwest::RequestBuilder,
    customer: String,
) -> Answered {
    let (started, mut last) = (Instant::now(), String::new());
    while started.elapsed() < DECISION_TIMEOUT {
        let (key, start) = (customer.clone(), tills.recorder.now());
        let call = Issue::unanswered(start, process.clone(), key, customer.clone(), SERIES.to_vec());
        let answered = exchange(request.try_clone().unwrap()).await;
        tills.record(Line::Issue, call, answered.as_ref().ok());
        match answered {
            Ok((200, answer)) => {
                if let Some(coupons) = decided(&answer, &customer) {
                    return Ok(coupons);
                }
                last = answer.to_string();
            }
            Ok((409 | 429 | 500 | 503, answer)) => last = answer.to_string(),
            Ok((status, answer)) => return Err(format!("{customer}: {status} {answer}")),
            Err(error) => last = error.to_string(),
        }
        sleep(RETRY_INTERVAL).await;
    }
    Err(format!("{customer}: not decided within {DECISION_TIMEOUT:?}; last answer: {last}"))
}

/// `None`: an entity must be retried.
fn decided(answer: &Value, customer: &str) -> Option<Vec<Coupon>> {
    let entities = answer["response"].as_array()?;
    let coupon = |entity: &Value| match entity["errors"][0]["code"].as_u64() {
        Some(748 | 786) => None,
        Some(_) => Some((customer.to_owned(), entity["entityId"].as_i64()?, None)),
        None => {
            let code = entity["result"]["code"].as_str()?.to_owned();
            Some((customer.to_owned(), entity["entityId"].as_i64()?, Some(code)))
        }
    };
    entities.iter().map(coupon).collect()
}
