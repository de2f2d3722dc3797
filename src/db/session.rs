//! Sessions of the database with their settings.

use std::sync::Arc;

use sqlx::ConnectOptions;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};

/// The name of a setting and its value.
pub(super) type Setting = (&'static str, &'static str);

/// For sessions that look rows up by key. Where statistics are stale, the planner would otherwise scan tables that have grown. JIT is
/// off because the price put on sequential scans would trigger it, at 50 ms a statement.
pub(super) const KEY_LOOKUP: [Setting; 2] = [("enable_seqscan", "off"), ("jit", "off")];

/// For sessions that repeat a few statements with arrays of values. By default Postgres would plan every execution anew, because it
/// overestimates what a plan for the given values saves: 400 µs for a look-up of histories, 1 µs per coupon of a batch.
pub(super) const PLANNED_ONCE: Setting = ("plan_cache_mode", "force_generic_plan");

/// Makes each statement see what was committed before it, whatever isolation level the database has as its default. A statement that
/// follows a wait for a lock relies on this.
pub(super) const READ_COMMITTED: Setting = ("default_transaction_isolation", "read committed");

/// How to open a session. Its settings are applied by a statement after connecting: a pooler refuses a start-up message that contains
/// them, or silently drops them.
#[derive(Debug, Clone)]
pub(super) struct SessionOptions {
    connect: PgConnectOptions,
    settings: Vec<(&'static str, String)>,
}

impl SessionOptions {
    pub(super) const fn new(connect: PgConnectOptions) -> Self {
        Self { connect, settings: Vec::new() }
    }

    /// With the name that Postgres shows for the session.
    pub(super) fn named(mut self, name: &str) -> Self {
        self.connect = self.connect.application_name(name);
        self
    }

    /// With these settings, too.
    pub(super) fn with<V: Into<String>>(mut self, settings: impl IntoIterator<Item = (&'static str, V)>) -> Self {
        self.settings.extend(settings.into_iter().map(|(name, value)| (name, value.into())));
        self
    }

    pub(super) const fn connect_options(&self) -> &PgConnectOptions {
        &self.connect
    }

    /// Connects and applies the settings.
    pub(super) async fn open(&self) -> Result<PgConnection, sqlx::Error> {
        let mut connection = self.connect.connect().await?;
        self.configure(&mut connection).await?;
        Ok(connection)
    }

    /// A pool of such sessions, which connects on first use.
    pub(super) fn pool(self, options: PgPoolOptions) -> PgPool {
        let connect = self.connect.clone();
        let session = Arc::new(self);
        options
            .after_connect(move |connection, _| {
                let session = Arc::clone(&session);
                Box::pin(async move { session.configure(connection).await })
            })
            .connect_lazy_with(connect)
    }

    /// Applies the settings.
    pub(super) async fn configure(&self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        let (names, values): (Vec<&str>, Vec<&str>) =
            self.settings.iter().map(|(name, value)| (*name, value.as_str())).unzip();
        let statement =
            "select set_config(s.name, s.value, false) from unnest($1::text[], $2::text[]) as s (name, value)";
        sqlx::query(statement).bind(names).bind(values).execute(connection).await.map(drop)
    }
}
