//! Wrong secrets are counted, by name and by address: verifying one is slow on purpose, and guessing must not be a way to
//! keep the processors busy. What was verified before is not counted and never held up.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use moka::sync::Cache;

/// What failures are counted over.
pub(super) const WINDOW: Duration = Duration::from_mins(1);
/// Names and addresses counted at once, at most.
const MOST_COUNTED: u64 = 100_000;

/// How many wrong secrets are verified in a minute.
#[derive(Debug, Clone, Copy)]
pub struct AttemptLimits {
    /// Of one till or client.
    pub by_name: u32,
    /// From one address.
    pub by_address: u32,
}

struct Failures {
    since: Instant,
    count: AtomicU32,
}

/// The failures of the last minute.
pub(super) struct Attempts {
    limits: AttemptLimits,
    by_name: Cache<String, Arc<Failures>>,
    by_address: Cache<IpAddr, Arc<Failures>>,
}

/// Whose attempt it is.
#[derive(Clone, Copy)]
pub(super) struct Attempt<'a> {
    /// The kind of credential and its name: a till may be called as a client is.
    pub(super) kind: &'static str,
    pub(super) name: &'a str,
    pub(super) address: IpAddr,
}

impl Attempt<'_> {
    fn name(&self) -> String {
        format!("{}:{}", self.kind, self.name)
    }

    /// An IPv6 caller has a whole network of addresses of its own.
    fn network(&self) -> IpAddr {
        match self.address.to_canonical() {
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
            address @ IpAddr::V4(_) => address,
        }
    }
}

impl Attempts {
    pub(super) fn new(limits: AttemptLimits) -> Self {
        Self {
            limits,
            by_name: Cache::builder().max_capacity(MOST_COUNTED).time_to_live(WINDOW).build(),
            by_address: Cache::builder().max_capacity(MOST_COUNTED).time_to_live(WINDOW).build(),
        }
    }

    /// How long this caller has to wait before another secret of its is verified, if it has to.
    pub(super) fn blocked(&self, attempt: Attempt<'_>) -> Option<Duration> {
        left(self.by_name.get(&attempt.name()), self.limits.by_name).max(self.blocked_by_address(attempt))
    }

    /// As [`Attempts::blocked`], by the address alone.
    pub(super) fn blocked_by_address(&self, attempt: Attempt<'_>) -> Option<Duration> {
        left(self.by_address.get(&attempt.network()), self.limits.by_address)
    }

    /// Counts a wrong secret.
    pub(super) fn failed(&self, attempt: Attempt<'_>) {
        self.by_name.get_with(attempt.name(), Failures::none).count.fetch_add(1, Ordering::Relaxed);
        self.failed_from(attempt);
    }

    /// Counts something wrong that names nobody.
    pub(super) fn failed_from(&self, attempt: Attempt<'_>) {
        self.by_address.get_with(attempt.network(), Failures::none).count.fetch_add(1, Ordering::Relaxed);
    }
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
        let network = |address: &str| Attempt { kind: "till", name: "", address: address.parse().unwrap() }.network();
        assert_eq!(network("2001:db8:1:2:3:4:5:6"), network("2001:db8:1:2::9"));
        assert_ne!(network("2001:db8:1:2::9"), network("2001:db8:1:3::9"));
        assert_eq!(network("::ffff:192.0.2.7").to_string(), "192.0.2.7");
    }
}
