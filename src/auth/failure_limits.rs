//! Limits on wrong secrets, by name and by address. Verifying a secret is slow on purpose, so guessing must not keep the
//! processors busy. A secret that was verified before passes even while its name or address is blocked.

use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use moka::sync::Cache;

use crate::config::RateLimitSettings;

const WINDOW: Duration = Duration::from_mins(1);
/// The most names, and the most addresses, that are counted at the same time.
const MAX_COUNTED: u64 = 100_000;

struct Failures {
    since: Instant,
    count: AtomicU32,
}

type FailureCounts<K> = Cache<K, Arc<Failures>>;

/// Counts the failures of the last minute.
pub(super) struct FailureLimits {
    limits: RateLimitSettings,
    by_name_and_address: FailureCounts<(Arc<str>, IpAddr)>,
    by_name: FailureCounts<Arc<str>>,
    by_address: FailureCounts<IpAddr>,
}

/// An attempt to log in.
#[derive(Clone)]
pub(super) struct Attempt {
    /// Prefixed with the kind of credential: a till and a client may have the same name.
    name: Arc<str>,
    network: IpAddr,
}

impl Attempt {
    pub(super) fn new(kind: &str, name: &str, address: IpAddr) -> Self {
        Self { name: format!("{kind}:{name}").into(), network: network(address) }
    }
}

/// The address itself for IPv4, the /64 network for IPv6: an IPv6 caller has a whole network of addresses.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
        address @ IpAddr::V4(_) => address,
    }
}

impl FailureLimits {
    pub(super) fn new(limits: RateLimitSettings) -> Self {
        Self { limits, by_name_and_address: failure_counts(), by_name: failure_counts(), by_address: failure_counts() }
    }

    /// How long the caller must wait before the service verifies another of its secrets; `None`: it need not wait.
    pub(super) fn retry_after(&self, attempt: &Attempt) -> Option<Duration> {
        let by_name_and_address = self.by_name_and_address.get(&(Arc::clone(&attempt.name), attempt.network));
        remaining_block(by_name_and_address, self.limits.failures_per_minute)
            .max(remaining_block(self.by_name.get(&attempt.name), self.limits.failures_per_minute_by_name))
            .max(remaining_block(self.by_address.get(&attempt.network), self.limits.failures_per_minute_by_address))
    }

    /// As [`FailureLimits::retry_after`], by the address alone.
    pub(super) fn retry_after_for_address(&self, address: IpAddr) -> Option<Duration> {
        remaining_block(self.by_address.get(&network(address)), self.limits.failures_per_minute_by_address)
    }

    /// Counts a wrong secret.
    pub(super) fn record_failure(&self, attempt: &Attempt) {
        increment(&self.by_name_and_address, (Arc::clone(&attempt.name), attempt.network));
        increment(&self.by_name, Arc::clone(&attempt.name));
        increment(&self.by_address, attempt.network);
    }

    /// Counts an invalid token towards its sender's address: the name in it is not to be trusted.
    pub(super) fn record_failure_from_address(&self, address: IpAddr) {
        increment(&self.by_address, network(address));
    }
}

fn failure_counts<K: Hash + Eq + Send + Sync + 'static>() -> FailureCounts<K> {
    Cache::builder().max_capacity(MAX_COUNTED).time_to_live(WINDOW).build()
}

fn increment<K: Hash + Eq + Send + Sync + 'static>(counts: &FailureCounts<K>, key: K) {
    counts.get_with(key, Failures::none).count.fetch_add(1, Ordering::Relaxed);
}

impl Failures {
    fn none() -> Arc<Self> {
        Arc::new(Self { since: Instant::now(), count: AtomicU32::new(0) })
    }
}

fn remaining_block(failures: Option<Arc<Failures>>, limit: u32) -> Option<Duration> {
    let failures = failures.filter(|failures| failures.count.load(Ordering::Relaxed) >= limit)?;
    Some(WINDOW.saturating_sub(failures.since.elapsed()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_address_counts_as_its_network_and_a_mapped_one_as_its_ipv4_address() {
        let network = |address: &str| network(address.parse().unwrap());
        assert_eq!(network("2001:db8:1:2:3:4:5:6"), network("2001:db8:1:2::9"));
        assert_ne!(network("2001:db8:1:2::9"), network("2001:db8:1:3::9"));
        assert_eq!(network("::ffff:192.0.2.7").to_string(), "192.0.2.7");
    }
}
