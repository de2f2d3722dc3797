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

/// How often what costs nothing is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often the database is asked whether it is there.
const ASK_EVERY: Duration = Duration::from_secs(5);
/// How long it may take to answer that.
const ASK_WITHIN: Duration = Duration::from_secs(2);
/// How often it is asked what series have left, and how long that may take.
const COUNT_EVERY: Duration = Duration::from_secs(30);
const COUNT_WITHIN: Duration = Duration::from_secs(5);

/// What is looked at.
pub(super) struct Sampler {
    /// What reads.
    pub(super) db: Db,
    /// What issues, and waits to be written.
    pub(super) issuer: Arc<Issuer>,
    /// Whether a stop is under way.
    pub(super) readiness: Arc<Readiness>,
    /// Those of callers.
    pub(super) connections: Connections,
    /// What day it is.
    pub(super) clock: Arc<dyn Clock>,
    /// Of so many series it is told what they have left.
    pub(super) series: u32,
}

impl Sampler {
    /// Looks, for as long as it is polled.
    pub(super) async fn run(self) {
        tokio::join!(self.look(), self.ask(), self.count());
    }

    async fn look(&self) {
        let mut ticks = ticks(LOOK_EVERY);
        loop {
            ticks.tick().await;
            let (open, most) = self.connections.use_now();
            set(metric::CONNECTIONS, open);
            set(metric::CONNECTIONS_MAX, most);
            let (running, writer) = self.issuer.use_now();
            set(metric::REQUESTS_RUNNING, running);
            set(metric::QUEUE_COUPONS, writer.waiting);
            gauge!(metric::QUEUE_WAIT_ESTIMATE.name).set(writer.wait.as_secs_f64());
            set(metric::WRITERS, writer.connections);
            set(metric::WRITERS_MAX, writer.most_connections);
            let pool = self.db.pool_use();
            gauge!(metric::DATABASE_CONNECTIONS.name, "state" => "used").set(number(pool.used));
            gauge!(metric::DATABASE_CONNECTIONS.name, "state" => "idle").set(number(pool.idle));
            gauge!(metric::DATABASE_CONNECTIONS_MAX.name).set(f64::from(pool.most));
            set(metric::DATABASE_WAITING, pool.waiting);
        }
    }

    /// Why the database cannot be used is told to whoever asks for readiness.
    async fn ask(&self) {
        let mut ticks = ticks(ASK_EVERY);
        loop {
            ticks.tick().await;
            let answer = timeout(ASK_WITHIN, self.db.check_schema()).await;
            let is_up = !matches!(&answer, Err(_) | Ok(Err(SchemaError::Unavailable(_))));
            let is_refused = self.issuer.is_refused(ASK_WITHIN).await;
            let is_ready = matches!(&answer, Ok(Ok(()))) && !is_refused && !self.readiness.is_draining();
            set(metric::DATABASE_UP, usize::from(is_up));
            set(metric::READY, usize::from(is_ready));
        }
    }

    async fn count(&self) {
        let mut ticks = ticks(COUNT_EVERY);
        let mut is_told = false;
        if self.series == 0 {
            return;
        }
        loop {
            ticks.tick().await;
            // Whatever the organisation's time zone: yesterday's series are over everywhere.
            let today = self.clock.now().to_zoned(TimeZone::UTC).date().saturating_sub(1.day());
            match timeout(COUNT_WITHIN, self.db.series_remaining(today, self.series)).await {
                Ok(Ok(series)) => {
                    is_told = false;
                    tell(&series);
                }
                // That is told elsewhere.
                Ok(Err(DbError::Unavailable(_))) => {}
                Ok(Err(error)) if !is_told => {
                    is_told = true;
                    tracing::warn!(%error, "what series have left cannot be looked up; their metrics are missing meanwhile");
                }
                Err(_elapsed) if !is_told => {
                    is_told = true;
                    tracing::warn!(
                        "what series have left is not answered in time; their metrics are missing meanwhile"
                    );
                }
                Ok(Err(_)) | Err(_) => {}
            }
        }
    }
}

/// Those that are not set any more go away (`telemetry`).
fn tell(series: &[SeriesRemaining]) {
    for kind in [LimitKind::Cap, LimitKind::Pool] {
        for (state, is_used_up) in [("remaining", false), ("used_up", true)] {
            let of_state = series.iter().find(|one| one.kind == kind && (one.remaining == 0) == is_used_up);
            let (count, organisations) = of_state.map_or((0, 0), |one| (one.series, one.organisations));
            let labels = [("kind", kind.name()), ("state", state)];
            gauge!(metric::LIMITED_SERIES.name, &labels).set(amount(count));
            gauge!(metric::LIMITED_SERIES_ORGANISATIONS.name, &labels).set(amount(organisations));
        }
    }
    for one in series {
        let labels = [
            ("kind", one.kind.name().to_owned()),
            ("org_id", one.org_id.0.to_string()),
            ("series_id", one.series_id.0.to_string()),
        ];
        gauge!(metric::SERIES_REMAINING.name, &labels).set(amount(one.remaining));
        gauge!(metric::SERIES_REMAINING_RATIO.name, &labels).set(amount(one.remaining) / amount(one.of.max(1)));
    }
}

/// A late tick is no reason for two.
fn ticks(every: Duration) -> tokio::time::Interval {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

fn set(metric: Metric, value: usize) {
    gauge!(metric.name).set(number(value));
}

#[expect(clippy::cast_precision_loss, reason = "a gauge is a float; nobody asks for the last of 2^53")]
fn number(value: usize) -> f64 {
    value as f64
}

#[expect(clippy::cast_precision_loss, reason = "a gauge is a float; nobody asks for the last of 2^53")]
fn amount(value: i64) -> f64 {
    value as f64
}
