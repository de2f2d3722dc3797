//! The composition root: builds the rooms out of the settings, and serves until told to stop.
//!
//! The only place where the clock, the randomness, the pool and the router meet.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, FORWARDED, HOST};
use axum::http::uri::PathAndQuery;
use axum::http::{Request, StatusCode, Uri};
use axum_server::{Handle, Server};
use hyper_util::rt::{TokioIo, TokioTimer};
use secrecy::{ExposeSecret, SecretString};
use sqlx::postgres::PgConnectOptions;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::{Instant, sleep, timeout};

use crate::activity::{Activity, ActivityLimits, ActivityTasks};
use crate::auth::{AttemptLimits, AuthLimits, Authenticator, KeyError, KeySource, SigningKeys};
use crate::codes::{self, Pools};
pub use crate::codes::{DryRun, Event, ImportState, LineError};
use crate::config::{AuthSettings, ForwardedHeader, HttpSettings, Settings, SettingsError};
use crate::db::migrations::{self, SchemaError};
use crate::http::{
    self, Connections, Described, Http, HttpLimits, Readiness, ReadinessCheck, TrustedProxies, X_FORWARDED_FOR, router,
};
use crate::issuance::{IssueLimits, Issuer};
pub use crate::model::secret_in;
use crate::model::{Clock, Entropy, OrgId, OsEntropy, RateLimit, SeriesId, SystemClock};
use crate::provisioning::commands::{self, Order};
pub use crate::provisioning::commands::{Holder, Outcome};
pub use crate::provisioning::keys::KeyList;
use crate::provisioning::{self, Report, keys};

use crate::db::writer::{Writer, WriterLimits};
use crate::db::{Db, DbError, Presence, ReadLimits};
use crate::telemetry::Metrics;
use crate::verify;
use crate::watch::Watch;

/// How often old keyed requests are purged.
const PURGE_EVERY: Duration = Duration::from_mins(1);
/// How long the database may take to show its schema: whoever asks for readiness has not long to wait.
const CHECK_WITHIN: Duration = Duration::from_secs(2);

/// What a connection may have read and not handled yet, in bytes: a request's head must fit.
const CONNECTION_BUFFER: usize = 128 * 1024;

/// Open files besides callers' connections: those to the database, the listeners, the log.
const OTHER_FILES: usize = 200;

/// How to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Tell balancers first, by no longer being ready, and take requests for `http.drain_seconds`.
    AfterDrain,
    /// Take no request any more.
    Now,
}

/// Time and randomness, which tests pass in.
#[derive(Clone)]
pub struct Outside {
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// Where codes come from.
    pub entropy: Arc<dyn Entropy>,
}

impl Default for Outside {
    fn default() -> Self {
        Self { clock: Arc::new(SystemClock), entropy: Arc::new(OsEntropy) }
    }
}

/// The service, built and not yet serving.
pub struct App {
    http: Http,
    settings: HttpSettings,
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
    pub async fn build(settings: &Settings, connect: &PgConnectOptions, outside: Outside) -> anyhow::Result<Self> {
        let db = Db::new(connect.clone(), read_limits(settings));
        let patience = settings.database.startup_timeout;
        patiently(patience, SchemaError::is_away, async || db.check_schema().await).await?;
        let load = async || SigningKeys::load(db.clone(), key_source(&settings.auth), outside.clock.clone()).await;
        let keys = patiently(patience, KeyError::is_away, load).await?;
        let (writer, writers) = Writer::start(connect, writer_limits(settings));
        let Outside { clock, entropy } = outside;
        let public_url = settings.http.public_url.clone();
        let authenticator = Arc::new(Authenticator::new(
            db.clone(),
            clock.clone(),
            entropy.clone(),
            keys,
            public_url.clone(),
            &auth_limits(settings),
        )?);
        let following = Arc::clone(&authenticator);
        let following = tokio::spawn(async move { following.follow_changes().await }).abort_handle();
        let limits = ActivityLimits { flush_every: settings.activity.flush, keep: settings.activity.keep };
        let (activity, keeping) = Activity::start(db.clone(), clock.clone(), entropy.uuid()?, limits);
        let issuer = Issuer::new(
            db.clone(),
            writer,
            Presence::new(connect),
            clock.clone(),
            entropy,
            Arc::clone(&activity),
            issue_limits(settings),
        );
        let issuer = Arc::new(issuer);
        let purging = purge_requests(Arc::clone(&issuer), settings.issuing.keep_requests);
        let purging = tokio::spawn(purging).abort_handle();
        let readiness = Arc::new(Readiness::new(readiness_check(db.clone(), Arc::clone(&issuer))));
        let connections = Connections::new(places(settings.http.max_connections), settings.http.write_timeout);
        let watch = Watch {
            db: db.clone(),
            issuer: Arc::clone(&issuer),
            readiness: Arc::clone(&readiness),
            connections: connections.clone(),
            clock,
            series: settings.metrics.series,
        };
        let watching = tokio::spawn(watch.run()).abort_handle();
        let http = Http {
            issuer,
            activity,
            has_console: settings.http.console,
            authenticator,
            readiness,
            limits: http_limits(&settings.http),
            public_url,
            trusted_proxies: trusted_proxies(&settings.http),
            openapi: openapi(settings)?.into(),
            docs: settings.http.docs,
        };
        let in_background = [following, purging, watching];
        let settings = settings.http.clone();
        Ok(Self { http, settings, db, writers, activity: keeping, connections, in_background })
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
        let server = server(listener, self.connections.clone(), &self.settings)?.handle(handle.clone());
        let serving =
            tokio::spawn(server.serve(router(self.http.clone()).into_make_service_with_connect_info::<SocketAddr>()));
        tracing::info!(%address, "serving");

        let stop = stops.recv().await;
        self.http.readiness.drain();
        if stop == Some(Stop::AfterDrain) {
            tracing::info!("stopping: no longer ready, taking requests until balancers have heard of it");
            // Another stop, or nobody left to tell one: do not wait for the rest.
            let _ = timeout(self.settings.drain, stops.recv()).await;
        }
        tracing::info!("stopping: accepting nothing more, finishing what is in flight");
        let started = Instant::now();
        handle.graceful_shutdown(Some(self.settings.shutdown_timeout));
        serving.await.context("the server task broke off")?.context("serving")?;
        let left = self.settings.shutdown_timeout.saturating_sub(started.elapsed()).max(Duration::from_secs(1));
        if timeout(left, self.finish()).await.is_err() {
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

/// As many connections as the system has open files for. The soft limit on those is often a thousand, by tradition.
fn places(wanted: usize) -> usize {
    let needed = u64::try_from(wanted + OTHER_FILES).unwrap_or(u64::MAX);
    let had = rlimit::increase_nofile_limit(needed).unwrap_or(needed);
    if had >= needed {
        return wanted;
    }
    let places = usize::try_from(had).unwrap_or(usize::MAX).saturating_sub(OTHER_FILES).max(1);
    tracing::warn!(places, wanted, "the limit on open files (ulimit -n) leaves fewer places for connections");
    places
}

/// Serves `/metrics` on its own port, for as long as the process lives.
///
/// # Errors
/// When the port cannot be had.
pub async fn serve_metrics(address: SocketAddr, metrics: Metrics) -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::bind(address).await.with_context(|| format!("metrics.listen {address}"))?;
    let address = listener.local_addr()?;
    let upkeep = metrics.clone();
    tokio::spawn(async move {
        loop {
            sleep(Duration::from_secs(5)).await;
            upkeep.run_upkeep();
        }
    });
    let text = [(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    let router = axum::Router::new().route("/metrics", axum::routing::get(async move || (text, metrics.render())));
    tokio::spawn(async move { axum::serve(listener, router).await });
    tracing::info!(%address, "serving metrics");
    Ok(())
}

/// The OpenAPI document of a service with these settings, as `/openapi.json` serves it.
///
/// # Errors
/// When it cannot be written as JSON, which would be a mistake in it.
pub fn openapi(settings: &Settings) -> anyhow::Result<String> {
    let described = Described {
        public_url: settings.http.public_url.clone(),
        limits: http_limits(&settings.http),
        docs: settings.http.docs,
    };
    http::document(&described).context("the OpenAPI document")
}

/// Creates the database of these options, if it does not exist.
///
/// # Errors
/// When the server cannot be reached or refuses.
pub async fn create_database(connect: &PgConnectOptions) -> anyhow::Result<()> {
    migrations::create_database(connect).await.context("creating the database")
}

/// The status that a GET of an `http` URL is answered with: what `healthcheck` asks for.
///
/// # Errors
/// When the URL is none, or nobody answers.
pub async fn get_status(url: &str) -> anyhow::Result<StatusCode> {
    let uri: Uri = url.parse().with_context(|| format!("{url} is no URL"))?;
    let host = uri.host().with_context(|| format!("{url} names no host"))?;
    let address = format!("{host}:{}", uri.port_u16().unwrap_or(80));
    let stream =
        tokio::net::TcpStream::connect(&address).await.with_context(|| format!("nobody listens on {address}"))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let path = uri.path_and_query().map_or("/", PathAndQuery::as_str);
    let request = Request::get(path).header(HOST, &address).body(Body::empty())?;
    Ok(sender.send_request(request).await?.status())
}

/// Brings the schema up to this version's.
///
/// # Errors
/// When it cannot; see [`migrations::migrate`].
pub async fn migrate(connect: &PgConnectOptions) -> Result<(), SchemaError> {
    migrations::migrate(connect).await
}

/// As [`migrate`], before serving: with the patience of a start.
///
/// # Errors
/// As [`migrate`], and when the database stays away for `database.startup_timeout_seconds`.
pub async fn migrate_to_serve(settings: &Settings, connect: &PgConnectOptions) -> anyhow::Result<()> {
    patiently(settings.database.startup_timeout, SchemaError::is_away, async || migrate(connect).await).await
}

/// The settings that `serve` runs with, and the database if one is named: `url` of the command line, or theirs. `config show` judges by
/// the same. Unlike the other commands' settings these are of use only if the files that they name are there.
///
/// # Errors
/// When `serve` would refuse them. Asks no database.
pub fn usable_settings(
    file: Option<&Path>,
    url: Option<&SecretString>,
) -> anyhow::Result<(Settings, Option<PgConnectOptions>)> {
    let settings = Settings::load(file)?;
    key_source(&settings.auth).check()?;
    let connect = match settings.database.connect_options(url) {
        Err(SettingsError::NoDatabase) => None,
        connect => Some(connect?),
    };
    Ok((settings, connect))
}

/// Applies a file of configuration as code.
///
/// # Errors
/// When the file has mistakes, or the database cannot be asked; nothing is changed then.
pub async fn apply(connect: &PgConnectOptions, file: &Path) -> anyhow::Result<Report> {
    let plans = provisioning::read(file)?;
    require_schema(connect).await?;
    Ok(provisioning::apply(connect, &plans).await?)
}

/// Applies the text of such a file, which holds all of its secrets.
///
/// # Errors
/// As [`apply`].
pub async fn apply_text(connect: &PgConnectOptions, text: &str) -> anyhow::Result<Report> {
    let secrets = provisioning::Secrets { directory: Path::new("."), variable: &|_| None };
    let plans = provisioning::parse(text, &secrets)?;
    require_schema(connect).await?;
    Ok(provisioning::apply(connect, &plans).await?)
}

/// Uploads a file of codes into a series' pool, telling what can be watched of it.
///
/// # Errors
/// When the file cannot be read, the series takes no codes, or the database cannot be asked; see [`codes::import`].
pub async fn import_codes(
    connect: &PgConnectOptions,
    org_id: i64,
    series_id: i64,
    file: &Path,
    tell: &mut (dyn FnMut(Event) + Send),
) -> anyhow::Result<ImportState> {
    require_schema(connect).await?;
    Ok(codes::import(connect, OrgId(org_id), SeriesId(series_id), file, tell).await?)
}

/// Does what [`import_codes`] does, except that nothing is stored.
///
/// # Errors
/// As [`import_codes`].
pub async fn dry_run_codes(
    connect: &PgConnectOptions,
    org_id: i64,
    series_id: i64,
    file: &Path,
    tell: &mut (dyn FnMut(Event) + Send),
) -> anyhow::Result<DryRun> {
    require_schema(connect).await?;
    Ok(codes::dry_run(connect, OrgId(org_id), SeriesId(series_id), file, tell).await?)
}

/// What is left in the pools of this organisation or series, or in all.
///
/// # Errors
/// When the database cannot be asked.
pub async fn codes_status(
    connect: &PgConnectOptions,
    org_id: Option<i64>,
    series_id: Option<i64>,
    outside: &Outside,
) -> anyhow::Result<Pools> {
    require_schema(connect).await?;
    Ok(codes::status(connect, org_id.map(OrgId), series_id.map(SeriesId), outside.clock.now()).await?)
}

/// Checks that what must hold does, in all organisations or in this one.
///
/// # Errors
/// When there is no such organisation, the schema is not this version's, or the database cannot be asked.
pub async fn verify(connect: &PgConnectOptions, org_id: Option<i64>) -> anyhow::Result<verify::Report> {
    require_schema(connect).await?;
    Ok(verify::run(connect, org_id.map(OrgId)).await?)
}

/// Disables a till or client, or enables it.
///
/// # Errors
/// See [`commands::set_disabled`].
pub async fn set_disabled(
    connect: &PgConnectOptions,
    holder: &Holder,
    disabled: bool,
    outside: &Outside,
) -> anyhow::Result<Outcome> {
    require_schema(connect).await?;
    Ok(commands::set_disabled(connect, holder, disabled, order(outside)).await?)
}

/// Gives a till another password, or a client another secret.
///
/// # Errors
/// See [`commands::set_secret`].
pub async fn set_secret(
    connect: &PgConnectOptions,
    holder: &Holder,
    secret: SecretString,
    outside: &Outside,
) -> anyhow::Result<Outcome> {
    require_schema(connect).await?;
    Ok(commands::set_secret(connect, holder, secret, order(outside)).await?)
}

/// Makes every token that a client has been given so far void.
///
/// # Errors
/// See [`commands::revoke_tokens`].
pub async fn revoke_tokens(connect: &PgConnectOptions, key: &str, outside: &Outside) -> anyhow::Result<Outcome> {
    require_schema(connect).await?;
    Ok(commands::revoke_tokens(connect, key, order(outside)).await?)
}

/// Makes a new key that signs access tokens.
///
/// # Errors
/// When the keys are not in the database, or see [`keys::rotate`].
pub async fn rotate_keys(
    connect: &PgConnectOptions,
    settings: &AuthSettings,
    outside: &Outside,
) -> anyhow::Result<Outcome> {
    in_database(settings)?;
    require_schema(connect).await?;
    Ok(keys::rotate(connect, order(outside)).await?)
}

/// The keys that sign access tokens.
///
/// # Errors
/// When the keys are not in the database, or it cannot be asked.
pub async fn list_keys(connect: &PgConnectOptions, settings: &Settings, outside: &Outside) -> anyhow::Result<KeyList> {
    in_database(&settings.auth)?;
    require_schema(connect).await?;
    Ok(keys::list(&Db::new(connect.clone(), read_limits(settings)), outside.clock.now()).await?)
}

/// Commands work on a schema that this version knows, and on no other.
async fn require_schema(connect: &PgConnectOptions) -> anyhow::Result<()> {
    match migrations::require(connect).await {
        Err(SchemaError::Unavailable(error)) => Err(DbError::from(error).into()),
        checked => Ok(checked?),
    }
}

fn in_database(settings: &AuthSettings) -> anyhow::Result<()> {
    match key_source(settings) {
        KeySource::Database => Ok(()),
        KeySource::File(_) | KeySource::Value(_) => bail!(
            "the keys are those of auth.signing_keys_file or auth.signing_keys, not of the database: put a new one second, wait \
             until every replica has read it, put it first, and take the old one away once its tokens have ended"
        ),
    }
}

fn order(outside: &Outside) -> Order {
    Order { actor: commands::actor(), at: outside.clock.now() }
}

/// What is needed to start, tried again while the database is away.
async fn patiently<T, E: std::error::Error + Send + Sync + 'static>(
    patience: Duration,
    is_away: impl Fn(&E) -> bool,
    mut needed: impl AsyncFnMut() -> Result<T, E>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        match needed().await {
            Ok(done) => return Ok(done),
            Err(error) if is_away(&error) && Instant::now() < deadline => {
                tracing::warn!(%error, "waiting for the database");
                sleep(Duration::from_secs(1)).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn key_source(settings: &AuthSettings) -> KeySource {
    if !settings.signing_keys_file.is_empty() {
        KeySource::File(settings.signing_keys_file.clone().into())
    } else if !settings.signing_keys.expose_secret().is_empty() {
        KeySource::Value(settings.signing_keys.clone())
    } else {
        KeySource::Database
    }
}

fn read_limits(settings: &Settings) -> ReadLimits {
    ReadLimits {
        max_connections: settings.database.max_connections,
        acquire_timeout: settings.database.acquire_timeout,
        statement_timeout: settings.database.statement_timeout,
    }
}

fn writer_limits(settings: &Settings) -> WriterLimits {
    WriterLimits {
        tasks: settings.writer.tasks,
        batch: settings.writer.batch,
        queue: settings.writer.queue,
        statement_timeout: settings.writer.statement_timeout,
    }
}

fn issue_limits(settings: &Settings) -> IssueLimits {
    IssueLimits {
        timeout: settings.issuing.timeout,
        settings_time_to_live: settings.issuing.settings_cache,
        most_running: settings.issuing.max_running,
        longest_wait: settings.issuing.max_wait,
    }
}

/// Purges old keyed requests, now and then. Several replicas that do it at once are not in each other's way.
async fn purge_requests(issuer: Arc<Issuer>, kept_for: Duration) {
    loop {
        match issuer.purge_requests(kept_for).await {
            Ok(0) => {}
            Ok(purged) => tracing::info!(purged, "purged old keyed requests"),
            Err(error) => tracing::warn!(%error, "old keyed requests cannot be purged now"),
        }
        sleep(PURGE_EVERY).await;
    }
}

fn http_limits(settings: &HttpSettings) -> HttpLimits {
    HttpLimits {
        max_body_bytes: settings.max_body_bytes,
        body_timeout: settings.body_timeout,
        max_series_ids: settings.max_series_ids,
    }
}

fn trusted_proxies(settings: &HttpSettings) -> TrustedProxies {
    let header = match settings.forwarded_header {
        ForwardedHeader::XForwardedFor => X_FORWARDED_FOR,
        ForwardedHeader::Forwarded => FORWARDED,
    };
    TrustedProxies { networks: settings.trusted_proxies.clone(), header }
}

fn auth_limits(settings: &Settings) -> AuthLimits {
    AuthLimits {
        credential_cache: settings.auth.credential_cache,
        secret_cache: settings.auth.secret_cache,
        rate_limit: RateLimit::of(settings.rate_limit.per_minute),
        attempts: AttemptLimits {
            by_name_and_address: settings.rate_limit.failures_per_minute,
            by_name: settings.rate_limit.failures_per_minute_by_name,
            by_address: settings.rate_limit.failures_per_minute_by_address,
        },
    }
}

fn readiness_check(db: Db, issuer: Arc<Issuer>) -> ReadinessCheck {
    Box::new(move || {
        let (db, issuer) = (db.clone(), Arc::clone(&issuer));
        Box::pin(async move {
            let checked = timeout(CHECK_WITHIN, db.check_schema()).await;
            checked
                .map_err(|_elapsed| "the database does not answer in time".to_owned())?
                .map_err(|error| error.to_string())?;
            // As not answering in time counts what does not answer in time.
            if issuer.is_refused(CHECK_WITHIN).await {
                return Err("the database refuses every write".to_owned());
            }
            Ok(())
        })
    })
}
