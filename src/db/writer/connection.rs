//! A writer task's own connection: how it is made, and how one that broke is made sure to be over.
//! Not from a pool: its session has settings that the batches rely on.

use std::time::Duration;

use jiff_sqlx::Timestamp;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection, Row};
use tokio::time::Instant;

use crate::db::{LOOK_UPS_ONLY, READ_COMMITTED};
use crate::telemetry::metrics::{Held, Level};

/// Makes connections for one task.
pub(super) struct Connector {
    options: PgConnectOptions,
    statement_timeout: Duration,
    up: Level,
}

/// A connection, and what is needed to speak of it from another one.
pub(super) struct WriterConnection {
    pub(super) connection: PgConnection,
    /// The level of `synchronous_commit` at which an answer counts as durable: the server's own, or `on` where that
    /// is off.
    pub(super) durability: String,
    pub(super) backend: Backend,
    /// Before it was: whatever is visible over it was so without a crash in between, or was flushed.
    pub(super) made_at: Instant,
    _up: Held,
}

/// A server process: its number alone may be another's by now.
#[derive(Debug, Clone)]
pub(super) struct Backend {
    pid: i32,
    started: Timestamp,
}

impl Connector {
    /// Connections that are made count as up for as long as they are kept.
    pub(super) fn new(options: PgConnectOptions, statement_timeout: Duration, up: Level) -> Self {
        Self { options: options.options(LOOK_UPS_ONLY), statement_timeout, up }
    }

    /// How long to wait for an answer before the connection counts as broken.
    pub(super) fn patience(&self) -> Duration {
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

        // The commits within a batch share the flush of its last transaction (migrations/0002, "DURABILITY").
        sqlx::query(
            "select set_config('synchronous_commit', 'off', false), set_config('statement_timeout', $1, false),
                    set_config('lock_timeout', $1, false), set_config('application_name', 'coupon-issuer writer', false)",
        )
        .bind(format!("{}ms", self.statement_timeout.as_millis()))
        .execute(&mut connection)
        .await?;
        sqlx::query(READ_COMMITTED).execute(&mut connection).await?;
        let durability = if durability == "off" { "on".to_owned() } else { durability };
        Ok(WriterConnection { connection, durability, backend, made_at: Instant::now(), _up: self.up.hold() })
    }
}

impl WriterConnection {
    /// Ends the server process of a connection that broke: it may still be writing what it was sent, and only what it
    /// has left behind at its end can be counted.
    pub(super) async fn end(&mut self, broken: &Backend) -> Result<(), sqlx::Error> {
        let still_there: Option<bool> = sqlx::query_scalar(
            "select pg_terminate_backend(pid, 2000) from pg_stat_activity where pid = $1 and backend_start = $2",
        )
        .bind(broken.pid)
        .bind(broken.started)
        .fetch_optional(&mut self.connection)
        .await?;
        match still_there {
            None | Some(true) => Ok(()),
            Some(false) => Err(sqlx::Error::Protocol("a broken connection's server process does not end".to_owned())),
        }
    }

    pub(super) async fn close(self) {
        if let Err(error) = self.connection.close().await {
            tracing::debug!(%error, "closing a writer's connection");
        }
    }
}
