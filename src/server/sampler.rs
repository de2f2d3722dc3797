use std::sync::Arc;
use std::time::Duration;

use jiff::ToSpan;
use jiff::tz::TimeZone;
use metrics::gauge;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::connections::Connections;
use crate::db::migrations::SchemaError;
use crate::db::{Db, DbError, LimitKind, SeriesRemaining};
use crate::http::Readiness;
use crate::issuance::Issuer;
use crate::model::Clock;
use crate::telemetry::metrics::{self as metric, Metric};

const USAGE_INTERVAL: Duration = Duration::from_secs(1);
const HEALTH_INTERVAL: Duration = Duration::from_secs(5);
const HEALTH_TIMEOUT: Duration = Duration::from_secs(2);
const REMAINING_INTERVAL: Duration = Duration::from_secs(30);
const REMAINING_TIMEOUT: Duration = Duration::from_secs(5);

/// Sets the gauges whose values nobody counts.
pub(super) struct Sampler {
    pub(super) db: Db,
    pub(super) issuer: Arc<Issuer>,
    pub(super) readiness: Arc<Readiness>,
    pub(super) connections: Connections,
    pub(super) clock: Arc<dyn Clock>,
    /// The number of series whose remaining coupons are exported (`metrics.series`).
    pub(super) series: u32,
}

impl Sampler {
    /// Samples for as long as it is polled.
    pub(super) async fn run(self) {
        tokio::join!(self.sample_usage(), self.sample_health(), self.sample_remaining());
    }

    async fn sample_usage(&self) {
        let mut ticks = ticks(USAGE_INTERVAL);
        loop {
            ticks.tick().await;
            let (open, max) = self.connections.usage();
            set(metric::CONNECTIONS, open);
            set(metric::CONNECTIONS_MAX, max);
            let (running, writer) = self.issuer.usage();
            set(metric::REQUESTS_RUNNING, running);
            set(metric::QUEUE_COUPONS, writer.waiting);
            gauge!(metric::QUEUE_WAIT_ESTIMATE.name).set(writer.wait.as_secs_f64());
            set(metric::WRITERS, writer.connections);
            set(metric::WRITERS_MAX, writer.max_connections);
            let pool = self.db.connection_pool_usage();
            gauge!(metric::DATABASE_CONNECTIONS.name, "state" => "used").set(number(pool.used));
            gauge!(metric::DATABASE_CONNECTIONS.name, "state" => "idle").set(number(pool.idle));
            gauge!(metric::DATABASE_CONNECTIONS_MAX.name).set(f64::from(pool.max));
            set(metric::DATABASE_WAITING, pool.waiting);
        }
    }

    /// Does not log why the database is unusable: the readiness probe answers that.
    async fn sample_health(&self) {
        let mut ticks = ticks(HEALTH_INTERVAL);
        loop {
            ticks.tick().await;
            let answer = timeout(HEALTH_TIMEOUT, self.db.check_schema()).await;
            let is_up = !matches!(&answer, Err(_) | Ok(Err(SchemaError::Unavailable(_))));
            let is_refused = self.issuer.is_refused(HEALTH_TIMEOUT).await;
            let is_ready = matches!(&answer, Ok(Ok(()))) && !is_refused && !self.readiness.is_draining();
            set(metric::DATABASE_UP, usize::from(is_up));
            set(metric::READY, usize::from(is_ready));
        }
    }

    async fn sample_remaining(&self) {
        let mut ticks = ticks(REMAINING_INTERVAL);
        let mut is_logged = false;
        if self.series == 0 {
            return;
        }
        loop {
            ticks.tick().await;
            // A series that was valid until yesterday in UTC may still be valid in another time zone.
            let today = self.clock.now().to_zoned(TimeZone::UTC).date().saturating_sub(1.day());
            match timeout(REMAINING_TIMEOUT, self.db.series_remaining(today, self.series)).await {
                Ok(Ok(series)) => {
                    is_logged = false;
                    set_remaining(&series);
                }
                // `coupon_issuer_database_up` shows it.
                Ok(Err(DbError::Unavailable(_))) => {}
                Ok(Err(error)) if !is_logged => {
                    is_logged = true;
                    tracing::warn!(%error, "the remaining coupons of series cannot be read: their metrics are missing");
                }
                Err(_elapsed) if !is_logged => {
                    is_logged = true;
                    tracing::warn!("the remaining coupons of series were not read in time: their metrics are missing");
                }
                Ok(Err(_)) | Err(_) => {}
            }
        }
    }
}

/// The gauge of a series that is no longer among `series` reaches its idle time-out (`telemetry::recorder`).
fn set_remaining(series: &[SeriesRemaining]) {
    for kind in [LimitKind::Cap, LimitKind::Pool] {
        for (state, is_used_up) in [("remaining", false), ("used_up", true)] {
            let example = series.iter().find(|series| series.kind == kind && (series.remaining == 0) == is_used_up);
            let (count, organisations) = example.map_or((0, 0), |example| (example.series, example.organisations));
            let labels = [("kind", kind.name()), ("state", state)];
            gauge!(metric::LIMITED_SERIES.name, &labels).set(amount(count));
            gauge!(metric::LIMITED_SERIES_ORGANISATIONS.name, &labels).set(amount(organisations));
        }
    }
    for limited in series {
        let labels = [
            ("kind", limited.kind.name().to_owned()),
            ("org_id", limited.org_id.0.to_string()),
            ("series_id", limited.series_id.0.to_string()),
        ];
        gauge!(metric::SERIES_REMAINING.name, &labels).set(amount(limited.remaining));
        gauge!(metric::SERIES_REMAINING_RATIO.name, &labels)
            .set(amount(limited.remaining) / amount(limited.total.max(1)));
    }
}

/// Does not catch up on missed ticks.
fn ticks(period: Duration) -> tokio::time::Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

fn set(metric: Metric, value: usize) {
    gauge!(metric.name).set(number(value));
}

#[expect(clippy::cast_precision_loss, reason = "a gauge is a float, exact up to 2^53")]
fn number(value: usize) -> f64 {
    value as f64
}

#[expect(clippy::cast_precision_loss, reason = "a gauge is a float, exact up to 2^53")]
fn amount(value: i64) -> f64 {
    value as f64
}
