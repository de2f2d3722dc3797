//! Callers without an `Idempotency-Key` who ask under one natural key at the same time: all of them get the same coupons.
//! The other tills all have a key of their own, so their requests never meet an entity that somebody else has issued.

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
use crate::tills::{CLIENT_TIMEOUT, Shop, exchange};

const CALLERS: usize = 20;
/// One coupon of each for each natural key.
pub const SERIES: [i64; 2] = [catalogue::UNLIMITED, catalogue::NARROW];
const RETRY_EVERY: Duration = Duration::from_millis(100);
/// How long a caller tries. Two faults together may last for so long.
const PATIENCE: Duration = Duration::from_mins(3);

/// A coupon: its customer, its series and its code. `None`: the series refused it.
type Coupon = (String, i64, Option<String>);
/// What a caller was answered in the end. An error: what was wrong.
type Answered = Result<Vec<Coupon>, String>;

/// All of these callers, and what they were answered.
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

    /// Lets callers of both replicas ask for the same.
    pub fn race(&self, shop: &Arc<Shop>) {
        let customer = format!("natural-{}", self.races.fetch_add(1, Ordering::Relaxed));
        for caller in 0..CALLERS {
            let url = format!("http://{}/v2/coupon/bulk/issue", self.addresses[caller % 2]);
            let body = json!({"seriesIds": SERIES, "customer": {"id": customer},
                              "metadata": {"sourceType": "BILL", "sourceId": customer}});
            let request = self.client.post(url).basic_auth("store.server", Some("server123")).json(&body);
            let process = format!("{customer}, caller {caller}");
            let asked = ask_until_decided(Arc::clone(shop), process, request, customer.clone());
            self.callers.lock().unwrap().push(tokio::spawn(asked));
        }
    }

    /// Waits for all callers. Returns what is wrong: with an answer, or with what is stored.
    pub async fn verdict(&self, admin: &mut PgConnection) -> Vec<String> {
        let callers = std::mem::take(&mut *self.callers.lock().unwrap());
        let (mut answered, mut wrong) = (BTreeSet::new(), Vec::new());
        for caller in callers {
            match caller.await.unwrap() {
                Ok(coupons) => answered.extend(coupons),
                Err(why) => wrong.push(why),
            }
        }
        let one_each: BTreeSet<_> = answered.iter().map(|(customer, series, _)| (customer, series)).collect();
        if one_each.len() != answered.len() {
            wrong.push(format!("callers with one natural key were answered differently: {answered:?}"));
        }
        let stored = "select customer_id, series_id, code from issued_coupon where customer_id like 'natural-%'";
        let stored: Vec<Coupon> = sqlx::query_as(stored).fetch_all(admin).await.unwrap();
        let count = stored.len();
        let issued: BTreeSet<_> = answered.iter().filter(|(.., code)| code.is_some()).cloned().collect();
        if wrong.is_empty() && (count != issued.len() || BTreeSet::from_iter(stored.clone()) != issued) {
            wrong.push(format!("under natural keys {issued:?} was answered, and {stored:?} is stored"));
        }
        wrong
    }
}

/// Asks until each entity is decided. An error says what was answered last.
async fn ask_until_decided(
    shop: Arc<Shop>,
    process: String,
    request: reqwest::RequestBuilder,
    customer: String,
) -> Answered {
    let (started, mut last) = (Instant::now(), String::new());
    while started.elapsed() < PATIENCE {
        let (key, start) = (customer.clone(), shop.recorder.now());
        let call = Issue::asked(start, process.clone(), key, customer.clone(), SERIES.to_vec());
        let answered = exchange(request.try_clone().unwrap()).await;
        shop.record(Line::Issue, call, answered.as_ref().ok());
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
        sleep(RETRY_EVERY).await;
    }
    Err(format!("{customer}: not decided in {PATIENCE:?}, and answered last {last}"))
}

/// `None`: an entity is to be asked for again.
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
