//! Wrong secrets are counted, by name and by address: verifying one is slow on purpose, and guessing must not be a way to
//! keep the processors busy. What was verified before is not counted and never held up.

use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use moka::sync::Cache;

use crate::config::RateLimitSettings;

/// What failures are counted over.
pub(super) const WINDOW: Duration = Duration::from_mins(1);
/// Names and addresses counted at once, at most.
const MOST_COUNTED: u64 = 100_000;

struct Failures {
    since: Instant,
    count: AtomicU32,
}

type Counted<K> = Cache<K, Arc<Failures>>;

/// The failures of the last minute.
pub(super) struct Attempts {
    limits: RateLimitSettings,
    by_name_and_address: Counted<(Arc<str>, IpAddr)>,
    by_name: Counted<Arc<str>>,
    by_address: Counted<IpAddr>,
}

/// Whose attempt it is.
#[derive(Clone)]
pub(super) struct Attempt {
    /// With the kind of credential: a till may be called as a client is.
    name: Arc<str>,
    network: IpAddr,
}

impl Attempt {
    /// An attempt at this kind of credential of this name, from this address.
    pub(super) fn at(kind: &str, name: &str, from: IpAddr) -> Self {
        Self { name: format!("{kind}:{name}").into(), network: network(from) }
    }
}

/// An IPv6 caller has a whole network of addresses of its own.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
        address @ IpAddr::V4(_) => address,
    }
}

impl Attempts {
    pub(super) fn new(limits: RateLimitSettings) -> Self {
        Self { limits, by_name_and_address: counted(), by_name: counted(), by_address: counted() }
    }

    /// How long this caller has to wait before another secret of its is verified, if it has to.
    pub(super) fn blocked(&self, attempt: &Attempt) -> Option<Duration> {
        let at_once = self.by_name_and_address.get(&(Arc::clone(&attempt.name), attempt.network));
        left(at_once, self.limits.failures_per_minute)
            .max(left(self.by_name.get(&attempt.name), self.limits.failures_per_minute_by_name))
            .max(left(self.by_address.get(&attempt.network), self.limits.failures_per_minute_by_address))
    }

    /// As [`Attempts::blocked`], by the address alone.
    pub(super) fn blocked_from(&self, address: IpAddr) -> Option<Duration> {
        left(self.by_address.get(&network(address)), self.limits.failures_per_minute_by_address)
    }

    /// Counts a wrong secret.
    pub(super) fn failed(&self, attempt: &Attempt) {
        count(&self.by_name_and_address, (Arc::clone(&attempt.name), attempt.network));
        count(&self.by_name, Arc::clone(&attempt.name));
        count(&self.by_address, attempt.network);
    }

    /// Counts something wrong that names nobody.
    pub(super) fn failed_from(&self, address: IpAddr) {
        count(&self.by_address, network(address));
    }
}

fn counted<K: Hash + Eq + Send + Sync + 'static>() -> Counted<K> {
    Cache::builder().max_capacity(MOST_COUNTED).time_to_live(WINDOW).build()
}

fn count<K: Hash + Eq + Send + Sync + 'static>(counted: &Counted<K>, key: K) {
    counted.get_with(key, Failures::none).count.fetch_add(1, Ordering::Relaxed);
}

impl Failures {
    fn none() -> Arc<Self> {
        Arc::new(Self { since: Instant::now(), count: AtomicU32::new(0) })
    }
}

fn left(failures: Option<Arc<Failures>>, most: u32) -> Option<Duration> {
    let failures = failures.filter(|failures| failures.count.load(Ordering::Relaxed) >= most)?;
    Some(WINDOW.saturating_sub(failures.since.elapsed()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_caller_is_its_network_and_a_mapped_one_its_ipv4_address() {
        let network = |address: &str| network(address.parse().unwrap());
        assert_eq!(network("2001:db8:1:2:3:4:5:6"), network("2001:db8:1:2::9"));
        assert_ne!(network("2001:db8:1:2::9"), network("2001:db8:1:3::9"));
        assert_eq!(network("::ffff:192.0.2.7").to_string(), "192.0.2.7");
    }
}
