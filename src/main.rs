//! The command line: what each command does with its arguments, which is to hand over to `app`.
//! Nothing is decided here.

mod cli;
mod output;

use std::io::{IsTerminal, Read};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use clap::Parser;
use cli::{
    Cli, ClientArgs, ClientCommand, CodesCommand, Command, Common, ConfigCommand, DemoArgs, ImportArgs, KeysCommand,
    ServeArgs, SetPasswordArgs, SetSecretArgs, TillArgs, TillCommand, VerifyArgs,
};
use coupon_issuer::app::{self, App, Event, Holder, ImportState, Outcome, Outside, Stop};
use coupon_issuer::config::{LogFormat, Settings, SettingsError};
use coupon_issuer::private_postgres::{Options, PrivatePostgres};
use coupon_issuer::telemetry;
use indicatif::{ProgressBar, ProgressStyle};
use output::{answer, complain, report};
use secrecy::SecretString;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// Requests allocate much and briefly; this allocator is faster at it than the system's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const DEMO: &str = include_str!("../config/demo.toml");
/// Codes for its series that gives out uploaded ones.
const DEMO_GIFT_CARDS: &str = include_str!("../config/demo_gift_cards.csv");
const DEMO_ORG: i64 = 1;
const DEMO_POOL: i64 = 106;
const DEMO_DATABASE: &str = "coupon_issuer";

#[tokio::main]
async fn main() -> ExitCode {
    let done = run(Cli::parse().command).await;
    telemetry::flush_logs();
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(format_args!("coupon-issuer: {}", told(&error)));
            ExitCode::FAILURE
        }
    }
}

/// An error with its causes, each told once: some messages hold their cause's already.
fn told(error: &anyhow::Error) -> String {
    let mut told = error.to_string();
    // Whoever wraps an error of the database says what it says, with its code.
    let causes = error.chain().skip(1).filter(|cause| !cause.is::<sqlx::Error>());
    for cause in causes.map(ToString::to_string) {
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
            report("the schema is up to date");
            Ok(())
        }
        Command::Apply(args) => {
            report(app::apply(&args.common.connect_options()?, &args.file).await?);
            Ok(())
        }
        Command::Codes(CodesCommand::Import(args)) => import_codes(args).await,
        Command::Codes(CodesCommand::Status(args)) => {
            let connect = args.common.connect_options()?;
            let pools = app::codes_status(&connect, args.org, args.series, &Outside::default()).await?;
            if pools.is_empty() { answer("no series gives out uploaded codes") } else { answer(pools) }
        }
        Command::Config(ConfigCommand::Show(common)) => {
            app::usable_settings(common.config.as_deref(), common.database_url.as_ref())?;
            answer(common.shown()?)
        }
        Command::Verify(args) => verify(args).await,
        Command::Healthcheck(args) => healthcheck(&args.url).await,
        Command::Openapi(args) => answer(app::openapi(&Settings::load(args.config.as_deref())?)?),
        Command::Keys(KeysCommand::Rotate(common)) => {
            let rotated =
                app::rotate_keys(&common.connect_options()?, &common.settings()?.auth, &Outside::default()).await?;
            report(rotated);
            Ok(())
        }
        Command::Keys(KeysCommand::List(common)) => {
            let keys = app::list_keys(&common.connect_options()?, &common.settings()?, &Outside::default()).await?;
            answer(keys)
        }
        Command::Till(command) => till(command).await.map(report),
        Command::Client(command) => client(command).await.map(report),
    }
}

async fn serve(args: ServeArgs) -> anyhow::Result<()> {
    let Common { config, database_url } = args.common;
    let (settings, connect) = app::usable_settings(config.as_deref(), database_url.as_ref())?;
    let connect = connect.ok_or(SettingsError::NoDatabase)?;
    let collector = telemetry::start_logs(&settings.log, &settings.traces)?;
    let stops = stop_signals()?;
    if args.migrate {
        app::migrate_to_serve(&settings, &connect).await?;
    }
    let listener = bind(settings.http.listen)?;
    let metrics = telemetry::start_metrics()?;
    if let Some(address) = settings.metrics.listen {
        app::serve_metrics(address, metrics).await?;
    }
    let served = App::build(&settings, &connect, Outside::default()).await?.serve(listener, stops).await;
    if let Some(collector) = collector {
        collector.finish().await;
    }
    served
}

async fn demo(args: DemoArgs) -> anyhow::Result<()> {
    let mut settings = Settings::load(None)?;
    settings.http.drain = Duration::ZERO;
    settings.http.public_url.get_or_insert_with(|| format!("http://{}", args.listen));
    // People read the demo's log.
    if settings.log.format != LogFormat::Json {
        settings.log.format = LogFormat::Text;
    }
    let collector = telemetry::start_logs(&settings.log, &settings.traces)?;
    let stops = stop_signals()?;
    let listener = bind(args.listen)?;
    report(format_args!("Starting a private Postgres in {} ...", args.data_dir.display()));
    let options = Options { data_dir: args.data_dir.clone(), durable: true, settings: Vec::new() };
    let postgres = tokio::task::spawn_blocking(move || PrivatePostgres::start(&options)).await??;
    let served = serve_demo(&settings, &postgres, &args.data_dir, listener, stops).await;
    let stopped = tokio::task::spawn_blocking(move || postgres.stop()).await?;
    if let Some(collector) = collector {
        collector.finish().await;
    }
    served?;
    stopped.context("stopping the private Postgres")
}

async fn serve_demo(
    settings: &Settings,
    postgres: &PrivatePostgres,
    data_dir: &Path,
    listener: TcpListener,
    stops: mpsc::Receiver<Stop>,
) -> anyhow::Result<()> {
    let url = SecretString::from(postgres.url(DEMO_DATABASE));
    let connect = settings.database.connect_options(Some(&url))?;
    app::create_database(&connect).await?;
    app::migrate(&connect).await?;
    report(format_args!("Applying config/demo.toml: {}", app::apply_text(&connect, DEMO).await?));
    let gift_cards = data_dir.join("gift_cards.csv");
    tokio::fs::write(&gift_cards, DEMO_GIFT_CARDS).await.context("writing the demo's codes")?;
    app::import_codes(&connect, DEMO_ORG, DEMO_POOL, &gift_cards, &mut |_event| {}).await?;
    let metrics = telemetry::start_metrics()?;
    let app = App::build(settings, &connect, Outside::default()).await?;
    report(welcome(listener.local_addr()?, settings.http.console, &postgres.psql_hint(DEMO_DATABASE)));
    // A demo beside a Prometheus, or beside another demo, goes on without.
    if let Some(address) = settings.metrics.listen
        && let Err(error) = app::serve_metrics(address, metrics).await
    {
        tracing::warn!("metrics are not served: {error:#}");
    }
    app.serve(listener, stops).await
}

fn welcome(address: SocketAddr, has_console: bool, psql: &str) -> String {
    let console = if has_console {
        format!(
            "\nWhat goes on, for any till or client with read access (office.desk, office123): http://{address}/console\n"
        )
    } else {
        String::new()
    };
    format!(
        "
Issue two coupons:

  curl -sS -u store.server:server123 -H 'Content-Type: application/json' \\
    -d '{{\"seriesIds\":[101,102],\"customer\":{{\"id\":\"566881933\"}}}}' \\
    http://{address}/v2/coupon/bulk/issue

Or in a browser: http://{address}/docs
{console}
Look at them:

  {psql} -c 'select i.series_id, i.customer_id, i.code, i.expires_on, c.xmin from issued_coupon i join coupon c using (org_id, coupon_id)'

Ctrl-C stops the service and its Postgres.
"
    )
}

fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))
}

/// SIGTERM and Ctrl-C. Listening begins now, so that a signal during start is not lost. A terminal that hangs up is no reason to stop,
/// and nothing is read again by it.
fn stop_signals() -> anyhow::Result<mpsc::Receiver<Stop>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let (told, stops) = mpsc::channel(1);
    tokio::spawn(async move {
        loop {
            let stop = tokio::select! {
                _ = terminate.recv() => Stop::AfterDrain,
                _ = interrupt.recv() => Stop::Now,
                _ = hang_up.recv() => {
                    tracing::info!("SIGHUP ignored: settings are read at the start; SIGTERM stops the service");
                    continue;
                }
            };
            // Nobody listens any more: the service has stopped.
            let _ = told.send(stop).await;
        }
    });
    Ok(stops)
}

/// Shows a bar on a terminal; what is not taken goes to standard error, the counts to standard output.
async fn import_codes(args: ImportArgs) -> anyhow::Result<()> {
    let connect = args.common.connect_options()?;
    let bar = ProgressBar::new(0);
    bar.set_style(ProgressStyle::with_template("{wide_bar} {bytes} of {total_bytes}, {eta} left")?);
    let mut tell = |event| match event {
        Event::Begins(ImportState { is_finished: true, .. }) => report("this file has been uploaded before"),
        Event::Begins(ImportState { lines_done, .. }) if lines_done > 0 => {
            report(format_args!("going on after line {lines_done}, where an earlier run stopped"));
        }
        Event::Begins(_) => {}
        Event::Rejected { line, reason } => bar.suspend(|| complain(format_args!("line {line}: {reason}"))),
        Event::Progress { done, of } => {
            bar.set_length(of);
            bar.set_position(done);
        }
    };
    let file = args.file.display();
    let done = if args.dry_run {
        let dry_run = app::dry_run_codes(&connect, args.org, args.series, &args.file, &mut tell).await?;
        bar.finish_and_clear();
        match dry_run.layout {
            Some(layout) => report(format_args!("dry run, nothing is stored; {file} has {layout}")),
            None => report(format_args!("dry run, nothing is stored; {file} has no codes")),
        }
        dry_run.counts
    } else {
        let done = app::import_codes(&connect, args.org, args.series, &args.file, &mut tell).await?;
        bar.finish_and_clear();
        done
    };
    let ImportState { accepted, duplicates, malformed, .. } = done;
    report(format_args!("codes accepted: {accepted}, duplicates: {duplicates}, malformed lines: {malformed}"));
    if malformed > 0 {
        bail!("{file} has lines that are no code");
    }
    Ok(())
}

async fn verify(args: VerifyArgs) -> anyhow::Result<()> {
    let connect = args.common.connect_options()?;
    let found = app::verify(&connect, args.org).await?;
    let wrong = found.wrong();
    answer(found)?;
    if wrong > 0 {
        bail!("not everything is as it must be");
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
    let bytes = match file {
        Some(file) => std::fs::read(file).with_context(|| file.display().to_string())?,
        None if std::io::stdin().is_terminal() => ask_for_secret(what)?.into_bytes(),
        None => {
            let mut bytes = Vec::new();
            std::io::stdin().read_to_end(&mut bytes).with_context(|| format!("reading the {what}"))?;
            bytes
        }
    };
    app::secret_in(bytes).map_err(|error| anyhow!("the {what} {error}"))
}

fn ask_for_secret(what: &str) -> anyhow::Result<String> {
    let ask = |prompt: String| rpassword::prompt_password(prompt).with_context(|| format!("reading the {what}"));
    let first = ask(format!("New {what}: "))?;
    if first != ask(format!("The same {what} again: "))? {
        bail!("the two are not the same");
    }
    Ok(first)
}
