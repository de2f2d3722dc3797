use std::time::Duration;

use jiff_sqlx::Timestamp;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection};
use tokio::time::Instant;

use crate::db::session::{KEY_LOOKUP, PLANNED_ONCE, READ_COMMITTED, SessionOptions};
use crate::telemetry::metrics::{ActiveCount, ActiveGuard};

/// Opens the connections of one task. They do not come from a pool: batches rely on the settings of the session.
pub(super) struct Connector {
    session: SessionOptions,
    statement_timeout: Duration,
    connections: ActiveCount,
}

/// A connection, and what another connection needs to end its server process.
pub(super) struct WriterConnection {
    pub(super) connection: PgConnection,
    /// The `synchronous_commit` of the flush: the server's own setting, or `on` if the server has it off.
    pub(super) durability: String,
    /// The name that the session has given itself. A call fails in any other session: a pooler in transaction mode would run it there.
    pub(super) session: String,
    pub(super) backend: Backend,
    /// The database did not crash since: a crash would have broken the connection.
    pub(super) connected_at: Instant,
    _counted: ActiveGuard,
}

/// A server process. Both fields together identify it: the system reuses process ids.
#[derive(Debug, Clone)]
pub(super) struct Backend {
    pid: i32,
    started: Timestamp,
}

impl Connector {
    /// `connections` counts the open connections.
    pub(super) fn new(connect: PgConnectOptions, statement_timeout: Duration, connections: ActiveCount) -> Self {
        let timeout = format!("{}ms", statement_timeout.as_millis());
        let session = SessionOptions::new(connect)
            .named("coupon-issuer writer")
            .with(KEY_LOOKUP)
            .with([PLANNED_ONCE, READ_COMMITTED])
            .with([("statement_timeout", timeout.clone()), ("lock_timeout", timeout)])
            // All commits of a batch share the flush of its last transaction (migrations/0002, "DURABILITY").
            .with([("synchronous_commit", "off")]);
        Self { session, statement_timeout, connections }
    }

    /// After this time without an answer the connection counts as broken. Postgres cancels the statement one second earlier.
    pub(super) fn answer_timeout(&self) -> Duration {
        self.statement_timeout + Duration::from_secs(1)
    }

    pub(super) async fn connect(&self) -> Result<WriterConnection, sqlx::Error> {
        let mut connection = self.session.connect_options().connect().await?;
        let (pid, started, durability, session): (i32, Timestamp, String, String) = sqlx::query_as(
            "select pid, backend_start, current_setting('synchronous_commit'),
                    set_config('coupon_issuer.session', pid || ' ' || backend_start, false)
               from pg_stat_activity where pid = pg_backend_pid()",
        )
        .fetch_one(&mut connection)
        .await?;
        self.session.configure(&mut connection).await?;
        let durability = if durability == "off" { "on".to_owned() } else { durability };
        Ok(WriterConnection {
            connection,
            durability,
            session,
            backend: Backend { pid, started },
            connected_at: Instant::now(),
            _counted: self.connections.enter(),
        })
    }
}

impl WriterConnection {
    /// Ends the server process of a broken connection. It may still be writing its batch: only after its end is it clear which
    /// coupons are stored.
    pub(super) async fn terminate(&mut self, broken: &Backend) -> Result<(), sqlx::Error> {
        let is_terminated: Option<bool> = sqlx::query_scalar(
            "select pg_terminate_backend(pid, 2000) from pg_stat_activity where pid = $1 and backend_start = $2",
        )
        .bind(broken.pid)
        .bind(broken.started)
        .fetch_optional(&mut self.connection)
        .await?;
        match is_terminated {
            None | Some(true) => Ok(()),
            Some(false) => Err(sqlx::Error::Protocol("a broken connection's server process does not end".to_owned())),
        }
    }

    pub(super) async fn close(self) {
        if let Err(error) = self.connection.close().await {
            tracing::debug!(%error, "cannot close a writer's connection");
        }
    }
}
