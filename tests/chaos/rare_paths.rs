//! The rare paths of the services. A run that has not met one has not tested it.
//! They are counted by the services' metrics, summed over processes. What a process counted just before it was killed is lost, so a
//! sum may be too low, and is never too high.

use std::collections::HashMap;
use std::fmt::{self, Display, Formatter};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::faults::Fault;

const EVERY: Duration = Duration::from_millis(200);
const SCRAPED_WITHIN: Duration = Duration::from_secs(2);

/// A path, the counters that count it, as they are in the text of the metrics, and the fault that leads there.
struct Path {
    name: &'static str,
    counters: &'static [&'static str],
    fault: Fault,
}

const PATHS: [Path; 8] = [
    Path {
        name: "lost race",
        counters: &[
            r#"coupon_issuer_coupon_writes_total{outcome="cap_reached"}"#,
            r#"coupon_issuer_coupon_writes_total{outcome="ordinal_taken"}"#,
            r#"coupon_issuer_coupon_writes_total{outcome="holds_excluded"}"#,
        ],
        fault: Fault::Race,
    },
    Path {
        name: "code collision",
        counters: &[r#"coupon_issuer_coupon_writes_total{outcome="code_taken"}"#],
        fault: Fault::Race,
    },
    Path {
        name: "locked organisation",
        counters: &[r#"coupon_issuer_coupon_writes_total{outcome="settings_locked"}"#],
        fault: Fault::Race,
    },
    Path {
        name: "entity already issued",
        counters: &[r#"coupon_issuer_coupon_writes_total{outcome="already_issued"}"#],
        fault: Fault::Race,
    },
    Path {
        name: "unclaimed key",
        counters: &[r#"coupon_issuer_coupon_writes_total{outcome="key_not_claimed"}"#],
        fault: Fault::Race,
    },
    Path {
        name: "coupon in doubt",
        counters: &[r#"coupon_issuer_coupon_writes_total{outcome="in_doubt"}"#],
        fault: Fault::Doubt,
    },
    Path {
        name: "resumed request",
        counters: &[r#"coupon_issuer_key_claims_total{outcome="resumed"}"#],
        fault: Fault::Race,
    },
    Path {
        name: "takeover",
        counters: &[r#"coupon_issuer_key_claims_total{outcome="taken_over"}"#],
        fault: Fault::Takeover,
    },
];

/// Scrapes the services until it is stopped or dropped.
pub struct RarePaths {
    scrapers: Vec<Arc<Scraper>>,
    tasks: Vec<JoinHandle<()>>,
}

impl RarePaths {
    /// Starts to scrape the services' metrics at these addresses.
    pub fn start(addresses: [SocketAddr; 2]) -> Self {
        let scrapers = addresses.map(|address| Arc::new(Scraper::new(address))).to_vec();
        let scrape = |scraper: &Arc<Scraper>| {
            let scraper = Arc::clone(scraper);
            tokio::spawn(async move {
                loop {
                    scraper.scrape().await;
                    sleep(EVERY).await;
                }
            })
        };
        let tasks = scrapers.iter().map(scrape).collect();
        Self { scrapers, tasks }
    }

    /// How often each path was met up to now.
    pub async fn counts(&self) -> Counts {
        let mut times = [0; PATHS.len()];
        for scraper in &self.scrapers {
            scraper.scrape().await;
            let sums = scraper.sums.lock().await;
            for (path, times) in PATHS.iter().zip(&mut times) {
                *times += path.counters.iter().map(|counter| sums.of(counter)).sum::<u64>();
            }
        }
        Counts(times)
    }
}

impl Drop for RarePaths {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// How often each path was met, in the order of [`PATHS`].
pub struct Counts([u64; PATHS.len()]);

impl Counts {
    /// The paths that were not met.
    pub fn missing(&self) -> Vec<&'static str> {
        self.not_met().map(|path| path.name).collect()
    }

    /// The fault that leads to the first of those.
    pub fn fault_of_first_missing(&self) -> Option<Fault> {
        self.not_met().next().map(|path| path.fault)
    }

    fn not_met(&self) -> impl Iterator<Item = &'static Path> {
        PATHS.iter().zip(self.0).filter(|(_, times)| *times == 0).map(|(path, _)| path)
    }
}

impl Display for Counts {
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
        let client = reqwest::Client::builder().no_proxy().timeout(SCRAPED_WITHIN).build().unwrap();
        Self { client, url: format!("http://{address}/metrics"), sums: Mutex::default() }
    }

    /// That a service does not answer is no failure: most faults make it so.
    async fn scrape(&self) {
        // Held until the reply is added: of two scrapes at once, the older reply would look like a new process.
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
    /// Adds what was counted since the last scrape. A counter that went down belongs to a new process.
    fn add(&mut self, text: &str) {
        for counter in PATHS.iter().flat_map(|path| path.counters) {
            let value = text.lines().find_map(|line| line.strip_prefix(counter)?.trim().parse().ok());
            let Some(now) = value else { continue };
            let sum = self.0.entry(counter).or_default();
            sum.total += if now >= sum.last { now - sum.last } else { now };
            sum.last = now;
        }
    }

    fn of(&self, counter: &str) -> u64 {
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
    assert_eq!(sums.of(counter), 6);
    assert_eq!(sums.of(PATHS[0].counters[0]), 0);
}
