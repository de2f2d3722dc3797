//! The command line: reads arguments and settings, and hands over to `app`.
//! Nothing is decided here.

use std::io::{IsTerminal, Read};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand};
use coupon_issuer::app::{self, App, Event, Holder, ImportState, Outcome, Outside};
use coupon_issuer::config::Settings;
use coupon_issuer::private_postgres::{Options, PrivatePostgres};
use coupon_issuer::telemetry;
use indicatif::{ProgressBar, ProgressStyle};
use secrecy::SecretString;
use sqlx::postgres::PgConnectOptions;
use tokio::signal::unix::{SignalKind, signal};

/// Requests allocate much and briefly; this allocator is faster at it than the system's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const DEMO: &str = include_str!("../config/demo.toml");
const DEMO_DATABASE: &str = "coupon_issuer";

/// Issues coupons to customers over HTTP, one Postgres transaction per coupon.
///
/// Settings come from config/default.toml (built in), then --config, then the environment: COUPON_ISSUER__HTTP__LISTEN is
/// http.listen. DATABASE_URL names the database.
#[derive(Parser)]
#[expect(clippy::doc_markdown, reason = "printed by --help, where backticks are noise")]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
#[expect(clippy::doc_markdown, reason = "printed by --help, where backticks are noise")]
enum Command {
    /// Start a private Postgres, fill it with a demo, and serve.
    Demo(DemoArgs),
    /// Serve, until SIGTERM or Ctrl-C.
    Serve(ServeArgs),
    /// Bring the database's schema up to this version's.
    Migrate(Common),
    /// Make the database hold the organisations, tills, clients, customers and series that a file describes.
    ///
    /// The whole file is checked first, every mistake is told with its line, and all of it takes effect in one transaction.
    /// Applying the same file again changes nothing. What the file does not list is left alone.
    Apply(ApplyArgs),
    /// Upload codes for a series that gives out uploaded ones, and see how many are left.
    #[command(subcommand)]
    Codes(CodesCommand),
    /// Switch a till off and on, or give it another password, without a file.
    ///
    /// Each takes effect at once on running services, is recorded in the table audit_entry, and prints what was recorded.
    #[command(subcommand)]
    Till(TillCommand),
    /// Switch an OAuth client off and on, give it another secret, or make its tokens void, without a file.
    ///
    /// Each takes effect at once on running services, is recorded in the table audit_entry, and prints what was recorded.
    #[command(subcommand)]
    Client(ClientCommand),
    /// The keys that sign access tokens.
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Ask a running service whether it is ready; exits 0 if it is.
    Healthcheck(HealthcheckArgs),
}

#[derive(Args)]
#[expect(clippy::doc_markdown, reason = "printed by --help, where backticks are noise")]
struct Common {
    /// A file that overrides the built-in settings.
    #[arg(long, value_name = "FILE", env = "COUPON_ISSUER_CONFIG")]
    config: Option<PathBuf>,
    /// The database, as postgres://user:password@host:5432/database.
    #[arg(long, value_name = "URL", env = "DATABASE_URL", hide_env_values = true)]
    database_url: Option<SecretString>,
}

#[derive(Args)]
struct ServeArgs {
    #[command(flatten)]
    common: Common,
    /// Bring the schema up to date first. Safe when several replicas start at once.
    #[arg(long, env = "COUPON_ISSUER_MIGRATE")]
    migrate: bool,
}

#[derive(Args)]
struct ApplyArgs {
    /// The file; config/demo.toml is one.
    #[arg(env = "COUPON_ISSUER_APPLY_FILE")]
    file: PathBuf,
    #[command(flatten)]
    common: Common,
}

#[derive(Subcommand)]
enum CodesCommand {
    /// Put the codes of a file into the pool of a series, while the service runs.
    ///
    /// One code a line, or CSV with a code and, if only one customer may receive it, that customer's id. Lines that are not
    /// taken are told by number on standard error: those that are no code, and those whose code has been uploaded or issued
    /// before. After a break the same command goes on where it stopped. Exits 1 if there were lines that are no code.
    Import(ImportArgs),
    /// How many codes each pool has given out and has left, and how long they last at the pace of the last 24 hours.
    Status(StatusArgs),
}

#[derive(Args)]
#[expect(clippy::doc_markdown, reason = "printed by --help, where backticks are noise")]
struct ImportArgs {
    /// The organisation's id.
    #[arg(long, value_name = "ID")]
    org: i64,
    /// The series' id. Its codes must be uploaded ones (DISC_CODE_PIN).
    #[arg(long, value_name = "ID")]
    series: i64,
    /// The codes.
    file: PathBuf,
    #[command(flatten)]
    common: Common,
}

#[derive(Args)]
struct StatusArgs {
    /// Of this organisation only.
    #[arg(long, value_name = "ID")]
    org: Option<i64>,
    /// Of this series only.
    #[arg(long, value_name = "ID")]
    series: Option<i64>,
    #[command(flatten)]
    common: Common,
}

#[derive(Subcommand)]
enum TillCommand {
    /// Keep a till from doing anything, until it is enabled.
    ///
    /// An apply leaves it disabled, unless its file says disabled = false.
    Disable(TillArgs),
    /// Let a till that was disabled log in again.
    ///
    /// An apply leaves it enabled, unless its file says disabled = true.
    Enable(TillArgs),
    /// Give a till another password; the one it had is refused from then on.
    ///
    /// Without --password-file it is read from standard input, or asked for twice if that is a terminal. Change it where
    /// the file of apply has it, too: the next apply brings back what the file says.
    SetPassword(SetPasswordArgs),
}

#[derive(Subcommand)]
enum ClientCommand {
    /// Keep a client from doing anything, with the tokens that it has as well, until it is enabled.
    ///
    /// An apply leaves it disabled, unless its file says disabled = false.
    Disable(ClientArgs),
    /// Let a client that was disabled in again.
    ///
    /// An apply leaves it enabled, unless its file says disabled = true.
    Enable(ClientArgs),
    /// Give a client another secret; the one it had gets no token from then on.
    ///
    /// The tokens that it has stay good until they expire; client revoke-tokens makes them void. Without --secret-file
    /// the secret is read from standard input, or asked for twice if that is a terminal. Change it where the file of
    /// apply has it, too: the next apply brings back what the file says.
    SetSecret(SetSecretArgs),
    /// Make every token that a client has been given so far void.
    ///
    /// Those made from now on are good, so a client that still knows its secret goes on with a new one.
    RevokeTokens(ClientArgs),
}

#[derive(Subcommand)]
#[expect(clippy::doc_markdown, reason = "printed by --help, where backticks are noise")]
enum KeysCommand {
    /// Make a new key that signs access tokens. No call fails, and nothing is restarted.
    ///
    /// It is published at once and signs in a minute; the one before verifies until the last of its tokens has ended. Only for
    /// keys that are kept in the database, as they are where auth.signing_keys_file and auth.signing_keys are empty.
    Rotate(Common),
    /// Tell which keys there are: which one signs, and until when the others verify.
    List(Common),
}

#[derive(Args)]
struct TillArgs {
    /// The till's id, the name it logs in by.
    till: String,
    #[command(flatten)]
    common: Common,
}

#[derive(Args)]
struct ClientArgs {
    /// The client's key.
    key: String,
    #[command(flatten)]
    common: Common,
}

#[derive(Args)]
struct SetPasswordArgs {
    #[command(flatten)]
    till: TillArgs,
    /// A file that holds the password, or its md5, and nothing else.
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
}

#[derive(Args)]
struct SetSecretArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// A file that holds the secret and nothing else.
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
}

#[derive(Args)]
struct DemoArgs {
    /// Where to serve.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080", env = "COUPON_ISSUER_DEMO_LISTEN")]
    listen: SocketAddr,
    /// Where the private Postgres keeps its data. It survives a restart; remove the directory to start anew.
    #[arg(long, value_name = "DIR", default_value = ".demo", env = "COUPON_ISSUER_DEMO_DATA_DIR")]
    data_dir: PathBuf,
}

#[derive(Args)]
struct HealthcheckArgs {
    /// What to ask.
    #[arg(default_value = "http://127.0.0.1:8080/readyz", env = "COUPON_ISSUER_HEALTHCHECK_URL")]
    url: String,
}

#[tokio::main]
async fn main() -> ExitCode {
    let done = run(Cli::parse().command).await;
    telemetry::flush_logs();
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("coupon-issuer: {}", told(&error));
            ExitCode::FAILURE
        }
    }
}

/// An error with its causes, each told once: some messages hold their cause's already.
fn told(error: &anyhow::Error) -> String {
    let mut told = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !told.contains(&cause) {
            told.push_str(": ");
            told.push_str(&cause);
        }
    }
    told
}

async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Demo(args) => demo(args).await,
        Command::Serve(args) => serve(args).await,
        Command::Migrate(common) => {
            app::migrate(&common.connect_options()?).await?;
            println!("the schema is up to date");
            Ok(())
        }
        Command::Apply(args) => {
            println!("{}", app::apply(&args.common.connect_options()?, &args.file).await?);
            Ok(())
        }
        Command::Codes(CodesCommand::Import(args)) => import_codes(args).await,
        Command::Codes(CodesCommand::Status(args)) => {
            let connect = args.common.connect_options()?;
            let pools = app::codes_status(&connect, args.org, args.series, &Outside::default()).await?;
            println!(
                "{}",
                if pools.is_empty() { "no series gives out uploaded codes".to_owned() } else { pools.to_string() }
            );
            Ok(())
        }
        Command::Healthcheck(args) => healthcheck(&args.url).await,
        Command::Keys(KeysCommand::Rotate(common)) => {
            let rotated =
                app::rotate_keys(&common.connect_options()?, &common.settings()?.auth, &Outside::default()).await?;
            println!("{rotated}");
            Ok(())
        }
        Command::Keys(KeysCommand::List(common)) => {
            let keys = app::list_keys(&common.connect_options()?, &common.settings()?, &Outside::default()).await?;
            println!("{keys}");
            Ok(())
        }
        Command::Till(command) => till(command).await.map(|outcome| println!("{outcome}")),
        Command::Client(command) => client(command).await.map(|outcome| println!("{outcome}")),
    }
}

impl Common {
    fn settings(&self) -> anyhow::Result<Settings> {
        Ok(Settings::load(self.config.as_deref())?)
    }

    fn connect_options(&self) -> anyhow::Result<PgConnectOptions> {
        Ok(self.settings()?.database.connect_options(self.database_url.as_ref())?)
    }
}

async fn serve(args: ServeArgs) -> anyhow::Result<()> {
    let settings = args.common.settings()?;
    telemetry::start_logs(&settings.log.filter, settings.log.format.is_json())?;
    let connect = settings.database.connect_options(args.common.database_url.as_ref())?;
    let stop = stop_signal()?;
    if args.migrate {
        app::migrate(&connect).await?;
    }
    let listener = bind(settings.http.listen)?;
    let metrics = telemetry::start_metrics()?;
    if let Some(address) = settings.metrics.listen {
        app::serve_metrics(address, metrics).await?;
    }
    App::build(&settings, &connect, Outside::default()).await?.serve(listener, stop).await
}

async fn demo(args: DemoArgs) -> anyhow::Result<()> {
    let mut settings = Settings::load(None)?;
    settings.http.public_url.get_or_insert_with(|| format!("http://{}", args.listen));
    telemetry::start_logs(&settings.log.filter, false)?;
    let stop = stop_signal()?;
    let listener = bind(args.listen)?;
    println!("Starting a private Postgres in {} ...", args.data_dir.display());
    let options = Options { data_dir: args.data_dir, durable: true, settings: Vec::new() };
    let postgres = tokio::task::spawn_blocking(move || PrivatePostgres::start(&options)).await??;
    let served = serve_demo(&settings, &postgres, listener, stop).await;
    let stopped = tokio::task::spawn_blocking(move || postgres.stop()).await?;
    served?;
    stopped.context("stopping the private Postgres")
}

async fn serve_demo(
    settings: &Settings,
    postgres: &PrivatePostgres,
    listener: TcpListener,
    stop: impl Future<Output = ()> + Send,
) -> anyhow::Result<()> {
    let url = SecretString::from(postgres.url(DEMO_DATABASE));
    let connect = settings.database.connect_options(Some(&url))?;
    app::create_database(&connect).await?;
    app::migrate(&connect).await?;
    println!("Applying config/demo.toml: {}", app::apply_text(&connect, DEMO).await?);
    let app = App::build(settings, &connect, Outside::default()).await?;
    println!("{}", welcome(listener.local_addr()?, &postgres.psql_hint(DEMO_DATABASE)));
    app.serve(listener, stop).await
}

fn welcome(address: SocketAddr, psql: &str) -> String {
    format!(
        "
Issue two coupons:

  curl -sS -u store.server:server123 -H 'Content-Type: application/json' \\
    -d '{{\"seriesIds\":[101,102],\"customer\":{{\"id\":\"566881933\"}}}}' \\
    http://{address}/v2/coupon/bulk/issue

Look at them:

  {psql} -c 'select series_id, customer_id, code, expires_on, xmin from coupon'

Ctrl-C stops the service and its Postgres.
"
    )
}

fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))
}

/// Done at the first SIGTERM or Ctrl-C. Listening begins now, so that a signal during start is not lost.
fn stop_signal() -> anyhow::Result<impl Future<Output = ()> + Send> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Shows a bar on a terminal; what is not taken goes to standard error, the counts to standard output.
async fn import_codes(args: ImportArgs) -> anyhow::Result<()> {
    let connect = args.common.connect_options()?;
    let bar = ProgressBar::new(0);
    bar.set_style(ProgressStyle::with_template("{wide_bar} {bytes} of {total_bytes}, {eta} left")?);
    let mut tell = |event| match event {
        Event::Begins(ImportState { is_finished: true, .. }) => println!("this file has been uploaded before"),
        Event::Begins(ImportState { lines_done, .. }) if lines_done > 0 => {
            println!("going on after line {lines_done}, where an earlier run stopped");
        }
        Event::Begins(_) => {}
        Event::Rejected { line, reason } => bar.suspend(|| eprintln!("line {line}: {reason}")),
        Event::Progress { done, of } => {
            bar.set_length(of);
            bar.set_position(done);
        }
    };
    let done = app::import_codes(&connect, args.org, args.series, &args.file, &mut tell).await?;
    bar.finish_and_clear();
    println!("codes accepted: {}, duplicates: {}, malformed lines: {}", done.accepted, done.duplicates, done.malformed);
    if done.malformed > 0 {
        bail!("{} has lines that are no code", args.file.display());
    }
    Ok(())
}

async fn healthcheck(url: &str) -> anyhow::Result<()> {
    let status =
        tokio::time::timeout(Duration::from_secs(5), app::get_status(url)).await.context("no answer in time")??;
    if !status.is_success() {
        bail!("{url} answered {status}");
    }
    Ok(())
}

async fn till(command: TillCommand) -> anyhow::Result<Outcome> {
    let outside = Outside::default();
    let set_disabled = async |TillArgs { till, common }: TillArgs, disabled| {
        app::set_disabled(&common.connect_options()?, &Holder::Till(till), disabled, &outside).await
    };
    match command {
        TillCommand::Disable(args) => set_disabled(args, true).await,
        TillCommand::Enable(args) => set_disabled(args, false).await,
        TillCommand::SetPassword(SetPasswordArgs { till: TillArgs { till, common }, password_file }) => {
            let connect = common.connect_options()?;
            let password = read_secret(password_file.as_deref(), "password")?;
            app::set_secret(&connect, &Holder::Till(till), password, &outside).await
        }
    }
}

async fn client(command: ClientCommand) -> anyhow::Result<Outcome> {
    let outside = Outside::default();
    let set_disabled = async |ClientArgs { key, common }: ClientArgs, disabled| {
        app::set_disabled(&common.connect_options()?, &Holder::Client(key), disabled, &outside).await
    };
    match command {
        ClientCommand::Disable(args) => set_disabled(args, true).await,
        ClientCommand::Enable(args) => set_disabled(args, false).await,
        ClientCommand::SetSecret(SetSecretArgs { client: ClientArgs { key, common }, secret_file }) => {
            let connect = common.connect_options()?;
            let secret = read_secret(secret_file.as_deref(), "secret")?;
            app::set_secret(&connect, &Holder::Client(key), secret, &outside).await
        }
        ClientCommand::RevokeTokens(ClientArgs { key, common }) => {
            app::revoke_tokens(&common.connect_options()?, &key, &outside).await
        }
    }
}

/// One line, from a file or from standard input; a terminal is asked for it twice, and does not show it.
fn read_secret(file: Option<&Path>, what: &str) -> anyhow::Result<SecretString> {
    let mut text = match file {
        Some(file) => std::fs::read_to_string(file).with_context(|| file.display().to_string())?,
        None if std::io::stdin().is_terminal() => ask_for_secret(what)?,
        None => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).with_context(|| format!("reading the {what}"))?;
            text
        }
    };
    text.truncate(text.trim_end_matches(['\r', '\n']).len());
    if text.is_empty() {
        bail!("the {what} is empty");
    }
    if text.contains(['\r', '\n']) {
        bail!("the {what} is more than one line");
    }
    Ok(text.into())
}

fn ask_for_secret(what: &str) -> anyhow::Result<String> {
    let ask = |prompt: String| rpassword::prompt_password(prompt).with_context(|| format!("reading the {what}"));
    let first = ask(format!("New {what}: "))?;
    if first != ask(format!("The same {what} again: "))? {
        bail!("the two are not the same");
    }
    Ok(first)
}
