use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum_server::{Handle, Server};
use hyper_util::rt::TokioTimer;
use sqlx::postgres::PgConnectOptions;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::{Instant, sleep, timeout};

use super::connections::{Connections, raise_fd_limit};
use super::purge::purge_requests;
use super::sampler::Sampler;
use crate::activity::{Activity, ActivityTasks};
use crate::auth::{Authenticator, KeyError, KeySource, SigningKeys};
use crate::config::{HttpSettings, Settings};
use crate::db::migrations::{self, SchemaError};
use crate::db::writer::Writer;
use crate::db::{Db, Presence};
use crate::http::{self, Http, Readiness, ReadinessCheck, router};
use crate::issuance::Issuer;
use crate::model::Environment;

/// For the answer to a readiness probe.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);

/// In bytes. The head of a request must fit.
const MAX_READ_BUFFER: usize = 128 * 1024;

/// How to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// First report not ready to load balancers, and accept requests for `http.drain_seconds`.
    AfterDrain,
    /// Accept no more requests.
    Now,
}

/// The service before it serves.
pub struct App {
    http: Arc<Http>,
    db: Db,
    writer_tasks: Vec<JoinHandle<()>>,
    activity_tasks: ActivityTasks,
    connections: Connections,
    background_tasks: [AbortHandle; 3],
}

impl App {
    /// Connects to the database, checks its schema, and starts the background tasks.
    ///
    /// # Errors
    /// When the database is away for `database.startup_timeout_seconds`, or this version does not support its schema.
    pub async fn build(
        settings: &Settings,
        connect: &PgConnectOptions,
        environment: Environment,
    ) -> anyhow::Result<Self> {
        let db = Db::new(connect.clone(), &settings.database);
        let startup_timeout = settings.database.startup_timeout;
        let check = async || {
            migrations::require_sessions(connect).await?;
            db.check_schema().await
        };
        retry_until(startup_timeout, SchemaError::is_unavailable, check).await?;
        let load = async || {
            SigningKeys::load(db.clone(), KeySource::from_settings(&settings.auth), environment.clock.clone()).await
        };
        let keys = retry_until(startup_timeout, KeyError::is_unavailable, load).await?;
        let (writer, writer_tasks) = Writer::start(connect, settings.writer);
        let Environment { clock, entropy } = environment;
        let authenticator = Arc::new(Authenticator::new(
            db.clone(),
            clock.clone(),
            entropy.clone(),
            keys,
            settings.http.public_url.clone(),
            &settings.auth,
            settings.rate_limit,
        )?);
        let follower = Arc::clone(&authenticator);
        let following = tokio::spawn(async move { follower.follow_changes().await }).abort_handle();
        let (activity, activity_tasks) = Activity::start(db.clone(), clock.clone(), entropy.uuid()?, settings.activity);
        let issuer = Issuer::new(
            db.clone(),
            writer,
            Presence::new(connect),
            clock.clone(),
            entropy,
            Arc::clone(&activity),
            settings.issuing,
        );
        let issuer = Arc::new(issuer);
        let purge = purge_requests(Arc::clone(&issuer), settings.issuing.keep_requests);
        let purging = tokio::spawn(purge).abort_handle();
        let readiness = Arc::new(Readiness::new(readiness_check(db.clone(), Arc::clone(&issuer))));
        let connections = Connections::new(raise_fd_limit(settings.http.max_connections), settings.http.write_timeout);
        let sampler = Sampler {
            db: db.clone(),
            issuer: Arc::clone(&issuer),
            readiness: Arc::clone(&readiness),
            connections: connections.clone(),
            clock,
            series: settings.metrics.series,
        };
        let sampling = tokio::spawn(sampler.run()).abort_handle();
        let http = Arc::new(Http {
            issuer,
            activity,
            authenticator,
            readiness,
            settings: settings.http.clone(),
            openapi: http::document(&settings.http).context("the OpenAPI document")?.into(),
        });
        let background_tasks = [following, purging, sampling];
        Ok(Self { http, db, writer_tasks, activity_tasks, connections, background_tasks })
    }

    /// Serves on this listener until a stop arrives or the channel closes. Then accepts no more connections, and finishes the
    /// requests in flight within `http.shutdown_timeout_seconds`.
    ///
    /// # Errors
    /// When the listener cannot be served.
    pub async fn serve(self, listener: TcpListener, mut stops: mpsc::Receiver<Stop>) -> anyhow::Result<()> {
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let handle: Handle<SocketAddr> = Handle::new();
        let settings = &self.http.settings;
        let server = server(listener, self.connections.clone(), settings)?.handle(handle.clone());
        let serving = tokio::spawn(
            server.serve(router(Arc::clone(&self.http)).into_make_service_with_connect_info::<SocketAddr>()),
        );
        tracing::info!(%address, "serving");

        let stop = stops.recv().await;
        self.http.readiness.drain();
        if stop == Some(Stop::AfterDrain) {
            tracing::info!("stopping: not ready any more; still accepting requests until load balancers notice");
            // A second stop, or a closed channel, ends the drain early.
            let _ = timeout(settings.drain, stops.recv()).await;
        }
        tracing::info!("stopping: accepting no more connections, finishing requests in flight");
        let started = Instant::now();
        handle.graceful_shutdown(Some(settings.shutdown_timeout));
        serving.await.context("the server task broke off")?.context("serving")?;
        let remaining =
            self.http.settings.shutdown_timeout.saturating_sub(started.elapsed()).max(Duration::from_secs(1));
        if timeout(remaining, self.finish()).await.is_err() {
            tracing::warn!("stopped before all requests in flight were finished");
        }
        tracing::info!(ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX), "stopped");
        Ok(())
    }

    /// Waits for issuances in flight, even if their callers are gone, then flushes the activity, then waits for the writer.
    async fn finish(self) {
        self.http.issuer.finish().await;
        self.activity_tasks.finish().await;
        for task in self.background_tasks {
            task.abort();
        }
        drop(self.http);
        for task in self.writer_tasks {
            if let Err(error) = task.await {
                tracing::error!(%error, "a writer task broke off");
            }
        }
        self.db.close().await;
    }
}

/// The HTTP server on this listener, with the limits on connections.
fn server(
    listener: TcpListener,
    connections: Connections,
    settings: &HttpSettings,
) -> std::io::Result<Server<SocketAddr, Connections>> {
    let mut server = axum_server::from_tcp(listener)?
        .acceptor(connections)
        .first_request_timeout(settings.header_timeout)
        .http1_only();
    server
        .http_builder()
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(settings.idle_timeout)
        // Without it, hyper reads ahead while a request runs, to notice that its caller is gone. A request runs to its end anyway,
        // and the second buffer would double the memory of a connection.
        .half_close(true)
        .max_buf_size(MAX_READ_BUFFER);
    Ok(server)
}

/// Retries an operation once a second while it fails because the database is unavailable, until the time-out.
pub(crate) async fn retry_until<T, E: std::error::Error + Send + Sync + 'static>(
    timeout: Duration,
    is_unavailable: impl Fn(&E) -> bool,
    mut operation: impl AsyncFnMut() -> Result<T, E>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + timeout;
    loop {
        match operation().await {
            Ok(done) => return Ok(done),
            Err(error) if is_unavailable(&error) && Instant::now() < deadline => {
                tracing::warn!(%error, "waiting for the database");
                sleep(Duration::from_secs(1)).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn readiness_check(db: Db, issuer: Arc<Issuer>) -> ReadinessCheck {
    Box::new(move || {
        let (db, issuer) = (db.clone(), Arc::clone(&issuer));
        Box::pin(async move {
            let checked = timeout(CHECK_TIMEOUT, db.check_schema()).await;
            checked
                .map_err(|_elapsed| "the database does not answer in time".to_owned())?
                .map_err(|error| error.to_string())?;
            // With the same time-out: a write that is not answered in time counts as refused.
            if issuer.is_refused(CHECK_TIMEOUT).await {
                return Err("the database refuses every write".to_owned());
            }
            Ok(())
        })
    })
}
