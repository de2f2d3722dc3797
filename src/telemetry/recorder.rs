use std::time::Duration;

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use metrics_util::MetricKindMask;

use super::metrics as metric;

/// A gauge that was not set for this long is no longer exported, such as that of a series which is no longer among those with the
/// least remaining.
const GAUGE_IDLE_TIMEOUT: Duration = Duration::from_mins(2);

const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The commit that this binary was built from, if the build sets it.
const REVISION: &str = match option_env!("COUPON_ISSUER_REVISION") {
    Some(revision) => revision,
    None => "unknown",
};

/// Starts collecting metrics. Counts before this call are lost.
///
/// # Errors
/// When it was called before.
pub fn start_metrics() -> Result<Metrics, BuildError> {
    let seconds = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
    let coupons = [1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 64.0, 100.0, 200.0];
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &seconds)?
        .set_buckets_for_metric(Matcher::Full(metric::BATCH_SIZE.name.to_owned()), &coupons)?
        .idle_timeout(MetricKindMask::GAUGE, Some(GAUGE_IDLE_TIMEOUT))
        .install_recorder()?;
    metric::describe();
    metrics_process::Collector::default().describe();
    Ok(Metrics(handle))
}

/// The collected metrics.
#[derive(Clone)]
pub struct Metrics(PrometheusHandle);

impl Metrics {
    /// All metrics in Prometheus' text format, with those of the process.
    #[must_use]
    pub fn render(&self) -> String {
        // Set at every scrape: a gauge that is set once would reach its idle time-out.
        ::metrics::gauge!(metric::BUILD_INFO.name, "version" => VERSION, "revision" => REVISION).set(1.0);
        metrics_process::Collector::default().collect();
        self.0.render()
    }

    /// Drains the histograms, which otherwise grow. To be called every few seconds.
    pub fn run_upkeep(&self) {
        self.0.run_upkeep();
    }
}
