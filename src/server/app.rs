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
use crate::db::migrations::SchemaError;
use crate::db::writer::Writer;
use crate::db::{Db, Presence};
use crate::http::{self, Http, Readiness, ReadinessCheck, router};
use crate::issuance::Issuer;
use crate::model::Environment;

/// Whoever asks for readiness does not wait long.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);

/// The read buffer of a connection, in bytes: a request's head must fit.
const CONNECTION_BUFFER: usize = 128 * 1024;

/// How to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Tell balancers first, by no longer being ready, and take requests for `http.drain_seconds`.
    AfterDrain,
    /// Take no request any more.
    Now,
}

/// The service, built and not yet serving.
pub struct App {
    http: Arc<Http>,
    db: Db,
    writers: Vec<JoinHandle<()>>,
    activity: ActivityTasks,
    connections: Connections,
    in_background: [AbortHandle; 3],
}

impl App {
    /// Builds the service over a database, whose schema must be one that this version can work on.
    ///
    /// # Errors
    /// When the database stays away for `database.startup_timeout_seconds`, or its schema is another one.
    pub async fn build(
        settings: &Settings,
        connect: &PgConnectOptions,
        environment: Environment,
    ) -> anyhow::Result<Self> {
        let db = Db::new(connect.clone(), &settings.database);
        let startup_timeout = settings.database.startup_timeout;
        retry_until(startup_timeout, SchemaError::is_away, async || db.check_schema().await).await?;
        let load =
            async || SigningKeys::load(db.clone(), KeySource::of(&settings.auth), environment.clock.clone()).await;
        let keys = retry_until(startup_timeout, KeyError::is_away, load).await?;
        let (writer, writers) = Writer::start(connect, settings.writer);
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
        let following = Arc::clone(&authenticator);
        let following = tokio::spawn(async move { following.follow_changes().await }).abort_handle();
        let (activity, keeping) = Activity::start(db.clone(), clock.clone(), entropy.uuid()?, settings.activity);
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
        let purging = purge_requests(Arc::clone(&issuer), settings.issuing.keep_requests);
        let purging = tokio::spawn(purging).abort_handle();
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
        let in_background = [following, purging, sampling];
        Ok(Self { http, db, writers, activity: keeping, connections, in_background })
    }

    /// Serves on this listener until it is told to stop, or nobody is left who could tell it; then accepts nothing more and
    /// finishes what is in flight, for as long as `http.shutdown_timeout_seconds` allows.
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
            tracing::info!("stopping: no longer ready, taking requests until balancers have heard of it");
            // Another stop, or nobody left to tell one: do not wait for the rest.
            let _ = timeout(settings.drain, stops.recv()).await;
        }
        tracing::info!("stopping: accepting nothing more, finishing what is in flight");
        let started = Instant::now();
        handle.graceful_shutdown(Some(settings.shutdown_timeout));
        serving.await.context("the server task broke off")?.context("serving")?;
        let remaining =
            self.http.settings.shutdown_timeout.saturating_sub(started.elapsed()).max(Duration::from_secs(1));
        if timeout(remaining, self.finish()).await.is_err() {
            tracing::warn!("stopped before everything in flight was finished");
        }
        tracing::info!(seconds = started.elapsed().as_secs_f32(), "stopped");
        Ok(())
    }

    /// Waits for issuances whose callers have gone, for what they add to the activity, and then for the writer.
    async fn finish(self) {
        self.http.issuer.finish().await;
        self.activity.finish().await;
        for task in self.in_background {
            task.abort();
        }
        drop(self.http);
        for writer in self.writers {
            if let Err(error) = writer.await {
                tracing::error!(%error, "a writer broke off");
            }
        }
        self.db.close().await;
    }
}

/// What speaks HTTP on this listener, within the bounds on connections.
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
        // Nothing is read while a request is at work: it runs to its end even if its caller is gone, and a second buffer for each
        // would be half of what a connection takes.
        .half_close(true)
        .max_buf_size(CONNECTION_BUFFER);
    Ok(server)
}

/// Retries an operation once a second while it fails because the database is away, until the time-out.
pub(crate) async fn retry_until<T, E: std::error::Error + Send + Sync + 'static>(
    timeout: Duration,
    is_away: impl Fn(&E) -> bool,
    mut operation: impl AsyncFnMut() -> Result<T, E>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + timeout;
    loop {
        match operation().await {
            Ok(done) => return Ok(done),
            Err(error) if is_away(&error) && Instant::now() < deadline => {
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
            // As not answering in time counts what does not answer in time.
            if issuer.is_refused(CHECK_TIMEOUT).await {
                return Err("the database refuses every write".to_owned());
            }
            Ok(())
        })
    })
}
