//! The rare code paths of the services. A run that has not reached one has not tested it.
//! The services' metrics count them; the counts here are sums over all processes. The last counts of a killed process are lost, so a
//! sum may be too low, but never too high.

use std::collections::HashMap;
use std::fmt::{self, Display, Formatter};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::faults::Fault;

const SCRAPE_INTERVAL: Duration = Duration::from_millis(200);
const SCRAPE_TIMEOUT: Duration = Duration::from_secs(2);

/// A rare path, its counters as the text of the metrics writes them, and a fault that leads to it.
struct RarePath {
    name: &'static str,
    counters: &'static [&'static str],
    fault: Fault,
}

const PATHS: [RarePath; 8] = [
    RarePath {
        name: "lost race",
        counters: &[
            r#"coupon_issuer_coupon_writes_total{outcome="cap_reached"}"#,
            r#"coupon_issuer_coupon_writes_total{outcome="ordinal_taken"}"#,
            r#"coupon_issuer_coupon_writes_total{outcome="holds_excluded"}"#,
        ],
        fault: Fault::Race,
    },
    RarePath {
        name: "code collision",
        counters: &[r#"coupon_issuer_coupon_writes_total{outcome="code_taken"}"#],
        fault: Fault::Race,
    },
    RarePath {
        name: "locked organisation",
        counters: &[r#"coupon_issuer_coupon_writes_total{outcome="settings_locked"}"#],
        fault: Fault::Race,
    },
    RarePath {
        name: "entity already issued",
        counters: &[r#"coupon_issuer_coupon_writes_total{outcome="already_issued"}"#],
        fault: Fault::Race,
    },
    RarePath {
        name: "unclaimed key",
        counters: &[r#"coupon_issuer_coupon_writes_total{outcome="key_not_claimed"}"#],
        fault: Fault::Race,
    },
    RarePath {
        name: "coupon in doubt",
        counters: &[r#"coupon_issuer_coupon_writes_total{outcome="in_doubt"}"#],
        fault: Fault::Doubt,
    },
    RarePath {
        name: "resumed request",
        counters: &[r#"coupon_issuer_key_claims_total{outcome="resumed"}"#],
        fault: Fault::Race,
    },
    RarePath {
        name: "takeover",
        counters: &[r#"coupon_issuer_key_claims_total{outcome="taken_over"}"#],
        fault: Fault::Takeover,
    },
];

/// Scrapes the services until it is dropped.
pub struct RarePaths {
    scrapers: Vec<Arc<Scraper>>,
    tasks: Vec<JoinHandle<()>>,
}

impl RarePaths {
    /// Starts to scrape the metrics at these addresses.
    pub fn start(addresses: [SocketAddr; 2]) -> Self {
        let scrapers = addresses.map(|address| Arc::new(Scraper::new(address))).to_vec();
        let scrape = |scraper: &Arc<Scraper>| {
            let scraper = Arc::clone(scraper);
            tokio::spawn(async move {
                loop {
                    scraper.scrape().await;
                    sleep(SCRAPE_INTERVAL).await;
                }
            })
        };
        let tasks = scrapers.iter().map(scrape).collect();
        Self { scrapers, tasks }
    }

    /// How many coupons the database has refused so far.
    pub async fn refused_coupons(&self) -> u64 {
        let mut refused = 0;
        for scraper in &self.scrapers {
            scraper.scrape().await;
            refused += scraper.sums.lock().await.total(r#"coupon_issuer_coupon_writes_total{outcome="refused"}"#);
        }
        refused
    }

    /// How often each path was reached so far.
    pub async fn counts(&self) -> PathCounts {
        let mut times = [0; PATHS.len()];
        for scraper in &self.scrapers {
            scraper.scrape().await;
            let sums = scraper.sums.lock().await;
            for (path, times) in PATHS.iter().zip(&mut times) {
                *times += path.counters.iter().map(|counter| sums.total(counter)).sum::<u64>();
            }
        }
        PathCounts(times)
    }
}

impl Drop for RarePaths {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// How often each path was reached, in the order of [`PATHS`].
pub struct PathCounts([u64; PATHS.len()]);

impl PathCounts {
    /// The paths that were not reached.
    pub fn missing(&self) -> Vec<&'static str> {
        self.not_reached().map(|path| path.name).collect()
    }

    /// The fault that leads to the first missing path.
    pub fn fault_of_first_missing(&self) -> Option<Fault> {
        self.not_reached().next().map(|path| path.fault)
    }

    fn not_reached(&self) -> impl Iterator<Item = &'static RarePath> {
        PATHS.iter().zip(self.0).filter(|(_, times)| *times == 0).map(|(path, _)| path)
    }
}

impl Display for PathCounts {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{:<24}{:>6}", "rare path", "times")?;
        PATHS.iter().zip(self.0).try_for_each(|(path, times)| write!(f, "\n{:<24}{times:>6}", path.name))
    }
}

struct Scraper {
    client: reqwest::Client,
    url: String,
    sums: Mutex<Sums>,
}

impl Scraper {
    fn new(address: SocketAddr) -> Self {
        let client = reqwest::Client::builder().no_proxy().timeout(SCRAPE_TIMEOUT).build().unwrap();
        Self { client, url: format!("http://{address}/metrics"), sums: Mutex::default() }
    }

    /// Ignores a service that does not answer: most faults cause that.
    async fn scrape(&self) {
        // Locked until the reply is added: with two scrapes at once, the older reply would look like a new process.
        let mut sums = self.sums.lock().await;
        let Ok(answer) = self.client.get(&self.url).send().await else { return };
        if let Ok(text) = answer.text().await {
            sums.add(&text);
        }
    }
}

/// The counters of one replica, each summed over its processes.
#[derive(Default)]
struct Sums(HashMap<&'static str, Sum>);

#[derive(Default)]
struct Sum {
    total: u64,
    last: u64,
}

impl Sums {
    /// Adds the increase since the last scrape. A counter that went down belongs to a new process.
    fn add(&mut self, text: &str) {
        for counter in PATHS.iter().flat_map(|path| path.counters) {
            let value = text.lines().find_map(|line| line.strip_prefix(counter)?.trim().parse().ok());
            let Some(now) = value else { continue };
            let sum = self.0.entry(counter).or_default();
            sum.total += if now >= sum.last { now - sum.last } else { now };
            sum.last = now;
        }
    }

    fn total(&self, counter: &str) -> u64 {
        self.0.get(counter).map_or(0, |sum| sum.total)
    }
}

#[test]
fn counters_are_summed_over_processes() {
    let counter = PATHS[5].counters[0];
    let mut sums = Sums::default();
    for value in [2, 5, 1, 1] {
        sums.add(&format!("# TYPE coupon_issuer_coupon_writes_total counter\n{counter} {value}\nother 7\n"));
    }
    assert_eq!(sums.total(counter), 6);
    assert_eq!(sums.total(PATHS[0].counters[0]), 0);
}
