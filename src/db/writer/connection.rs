use std::time::Duration;

use jiff_sqlx::Timestamp;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection, Row};
use tokio::time::Instant;

use crate::db::session::{KEY_LOOKUP_OPTIONS, PLANNED_ONCE, READ_COMMITTED};
use crate::telemetry::metrics::{ActiveCount, ActiveGuard};

/// Opens the connections of one task. They do not come from a pool: batches rely on the settings of the session.
pub(super) struct Connector {
    options: PgConnectOptions,
    statement_timeout: Duration,
    connections: ActiveCount,
}

/// A connection, and what another connection needs to end its server process.
pub(super) struct WriterConnection {
    pub(super) connection: PgConnection,
    /// The `synchronous_commit` of the flush: the server's own setting, or `on` if the server has it off.
    pub(super) durability: String,
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
    pub(super) fn new(options: PgConnectOptions, statement_timeout: Duration, connections: ActiveCount) -> Self {
        Self { options: options.options(KEY_LOOKUP_OPTIONS).options([PLANNED_ONCE]), statement_timeout, connections }
    }

    /// After this time without an answer the connection counts as broken. Postgres cancels the statement one second earlier.
    pub(super) fn answer_timeout(&self) -> Duration {
        self.statement_timeout + Duration::from_secs(1)
    }

    pub(super) async fn connect(&self) -> Result<WriterConnection, sqlx::Error> {
        let mut connection = self.options.connect().await?;
        let row = sqlx::query(
            "select pg_backend_pid() as pid, current_setting('synchronous_commit') as durability,
                    (select backend_start from pg_stat_activity where pid = pg_backend_pid()) as started",
        )
        .fetch_one(&mut connection)
        .await?;
        let durability: String = row.try_get("durability")?;
        let backend = Backend { pid: row.try_get("pid")?, started: row.try_get("started")? };

        // All commits of a batch share the flush of its last transaction (migrations/0002, "DURABILITY").
        sqlx::query(
            "select set_config('synchronous_commit', 'off', false), set_config('statement_timeout', $1, false),
                    set_config('lock_timeout', $1, false), set_config('application_name', 'coupon-issuer writer', false)",
        )
        .bind(format!("{}ms", self.statement_timeout.as_millis()))
        .execute(&mut connection)
        .await?;
        sqlx::query(READ_COMMITTED).execute(&mut connection).await?;
        let durability = if durability == "off" { "on".to_owned() } else { durability };
        Ok(WriterConnection {
            connection,
            durability,
            backend,
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
