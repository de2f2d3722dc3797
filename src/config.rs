//! Settings: `config/default.toml`, then a file, then the environment; each overrides the one before.
//!
//! Parsed once at start into plain values. Nothing else reads the environment.

mod layers;

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;
pub use layers::Origin;
use layers::{DATABASE_URL_KEY, Layers};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer};
use sqlx::postgres::PgConnectOptions;

const DEFAULTS: &str = include_str!("../config/default.toml");
/// The longest time that a setting may be: about three years.
const MOST_SECONDS: f64 = 100_000_000.0;

/// All settings; `config/default.toml` documents each key.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config/default.toml documents every key")]
pub struct Settings {
    pub http: HttpSettings,
    pub metrics: MetricsSettings,
    pub database: DatabaseSettings,
    pub writer: WriterSettings,
    pub issuing: IssuingSettings,
    pub activity: ActivitySettings,
    pub auth: AuthSettings,
    pub rate_limit: RateLimitSettings,
    pub log: LogSettings,
    pub traces: TracesSettings,
}

/// `[http]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config/default.toml documents every key")]
pub struct HttpSettings {
    pub listen: SocketAddr,
    pub max_body_bytes: usize,
    #[serde(deserialize_with = "url_if_any")]
    pub public_url: Option<String>,
    pub trusted_proxies: Vec<IpNet>,
    pub forwarded_header: ForwardedHeader,
    pub max_connections: usize,
    #[serde(rename = "header_timeout_seconds", deserialize_with = "some_seconds")]
    pub header_timeout: Duration,
    #[serde(rename = "idle_timeout_seconds", deserialize_with = "some_seconds")]
    pub idle_timeout: Duration,
    #[serde(rename = "write_timeout_seconds", deserialize_with = "some_seconds")]
    pub write_timeout: Duration,
    #[serde(rename = "body_timeout_seconds", deserialize_with = "some_seconds")]
    pub body_timeout: Duration,
    pub max_series_ids: usize,
    pub console: bool,
    pub docs: bool,
    #[serde(rename = "drain_seconds", deserialize_with = "seconds")]
    pub drain: Duration,
    #[serde(rename = "shutdown_timeout_seconds", deserialize_with = "seconds")]
    pub shutdown_timeout: Duration,
}

/// `http.forwarded_header`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[expect(missing_docs, reason = "config/default.toml documents every key")]
pub enum ForwardedHeader {
    #[serde(rename = "X-Forwarded-For")]
    XForwardedFor,
    Forwarded,
}

/// `[metrics]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config/default.toml documents every key")]
pub struct MetricsSettings {
    #[serde(deserialize_with = "address_if_any")]
    pub listen: Option<SocketAddr>,
    pub series: u32,
}

/// `[database]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config/default.toml documents every key")]
pub struct DatabaseSettings {
    pub url: SecretString,
    pub url_file: String,
    pub max_connections: u32,
    #[serde(rename = "acquire_timeout_seconds", deserialize_with = "some_seconds")]
    pub acquire_timeout: Duration,
    #[serde(rename = "statement_timeout_seconds", deserialize_with = "some_seconds")]
    pub statement_timeout: Duration,
    #[serde(rename = "startup_timeout_seconds", deserialize_with = "seconds")]
    pub startup_timeout: Duration,
}

/// `[writer]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config/default.toml documents every key")]
pub struct WriterSettings {
    pub tasks: usize,
    pub batch: usize,
    pub queue: usize,
    #[serde(rename = "statement_timeout_seconds", deserialize_with = "some_seconds")]
    pub statement_timeout: Duration,
}

/// `[issuing]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config/default.toml documents every key")]
pub struct IssuingSettings {
    #[serde(rename = "timeout_seconds", deserialize_with = "some_seconds")]
    pub timeout: Duration,
    pub max_running: usize,
    #[serde(rename = "max_wait_seconds", deserialize_with = "seconds")]
    pub max_wait: Duration,
    #[serde(rename = "settings_cache_seconds", deserialize_with = "seconds")]
    pub settings_cache: Duration,
    #[serde(rename = "keep_requests_hours", deserialize_with = "days")]
    pub keep_requests: Duration,
}

/// `[activity]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config/default.toml documents every key")]
pub struct ActivitySettings {
    #[serde(rename = "flush_seconds", deserialize_with = "seconds")]
    pub flush: Duration,
    #[serde(rename = "keep_hours", deserialize_with = "hours")]
    pub keep: Duration,
}

/// `[auth]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config/default.toml documents every key")]
pub struct AuthSettings {
    #[serde(rename = "credential_cache_seconds", deserialize_with = "seconds")]
    pub credential_cache: Duration,
    #[serde(rename = "secret_cache_seconds", deserialize_with = "seconds")]
    pub secret_cache: Duration,
    pub signing_keys_file: String,
    pub signing_keys: SecretString,
}

/// `[rate_limit]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config/default.toml documents every key")]
pub struct RateLimitSettings {
    pub per_minute: i32,
    pub failures_per_minute: u32,
    pub failures_per_minute_by_name: u32,
    pub failures_per_minute_by_address: u32,
}

/// `[log]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config/default.toml documents every key")]
pub struct LogSettings {
    pub filter: String,
    pub format: LogFormat,
}

/// `[traces]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config/default.toml documents every key")]
pub struct TracesSettings {
    #[serde(deserialize_with = "url_if_any")]
    pub otlp_endpoint: Option<String>,
    #[serde(deserialize_with = "ratio")]
    pub sample_ratio: f64,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text on a terminal, else JSON.
    Auto,
    /// For people.
    Text,
    /// For machines.
    Json,
}

impl LogFormat {
    /// Whether lines are JSON.
    #[must_use]
    pub fn is_json(self) -> bool {
        match self {
            Self::Auto => !std::io::stdout().is_terminal(),
            Self::Text => false,
            Self::Json => true,
        }
    }
}

/// Settings that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A file cannot be read, or is no TOML.
    #[error("file {path}: {reason}", path = path.display())]
    #[expect(missing_docs, reason = "the message says it")]
    File { path: PathBuf, reason: String },
    /// There is no such key, or its value is wrong.
    #[error("{key} ({origin}): {reason}")]
    #[expect(missing_docs, reason = "the message says it")]
    Value { key: String, origin: Origin, reason: String },
    /// A variable that looks like a setting and is none.
    #[error("environment {0}: a setting's variable begins with COUPON_ISSUER__, with two underscores")]
    Misnamed(String),
    /// A number that must not be zero.
    #[error("{0} must be at least 1")]
    Zero(&'static str),
    /// Keys that sign from two places.
    #[error("auth.signing_keys_file and auth.signing_keys are both set: one of them is enough")]
    TwoKeySources,
    /// No database is named.
    #[error("no database: set DATABASE_URL, or database.url or database.url_file in the configuration")]
    NoDatabase,
    /// The file with the URL cannot be read.
    #[error("database.url_file: {0}: {1}")]
    UrlFile(String, #[source] std::io::Error),
    /// The URL is none. It holds a password, so it is not shown.
    #[error("the database URL is not valid; it looks like postgres://user:password@host:5432/database")]
    Url,
}

impl Settings {
    /// The settings of this process: the defaults, `file` if there is one, and the environment.
    ///
    /// # Errors
    /// When a file, a key or a value is wrong.
    pub fn load(file: Option<&Path>) -> Result<Self, SettingsError> {
        Self::of(&layers(file)?)
    }

    /// The settings of this process as TOML, each with where it comes from and secrets masked; `database_url` is that of the
    /// command line or `DATABASE_URL`.
    ///
    /// # Errors
    /// As [`Settings::load`].
    pub fn shown(file: Option<&Path>, database_url: Option<&SecretString>) -> Result<String, SettingsError> {
        let mut layers = layers(file)?;
        if let Some(url) = database_url.map(ExposeSecret::expose_secret) {
            let is_variable = std::env::var("DATABASE_URL").is_ok_and(|variable| variable == url);
            let origin = if is_variable {
                Origin::Environment("DATABASE_URL".to_owned())
            } else {
                Origin::Argument("--database-url")
            };
            layers.set(DATABASE_URL_KEY, url.to_owned(), origin);
        }
        Self::of(&layers)?;
        Ok(layers.to_string())
    }

    fn of(layers: &Layers) -> Result<Self, SettingsError> {
        let settings: Self = layers.settings()?;
        settings.checked().map_err(|error| match error {
            SettingsError::Zero(key) => SettingsError::Value {
                key: key.to_owned(),
                origin: layers.origin(key),
                reason: "must be at least 1".to_owned(),
            },
            other => other,
        })
    }

    fn checked(self) -> Result<Self, SettingsError> {
        let numbers = [
            ("http.max_series_ids", self.http.max_series_ids),
            ("http.max_connections", self.http.max_connections),
            ("issuing.max_running", self.issuing.max_running),
            ("writer.tasks", self.writer.tasks),
            ("writer.batch", self.writer.batch),
            ("writer.queue", self.writer.queue),
            ("rate_limit.failures_per_minute", self.rate_limit.failures_per_minute as usize),
            ("rate_limit.failures_per_minute_by_name", self.rate_limit.failures_per_minute_by_name as usize),
            ("rate_limit.failures_per_minute_by_address", self.rate_limit.failures_per_minute_by_address as usize),
            ("database.max_connections", self.database.max_connections as usize),
        ];
        match numbers.into_iter().find(|(_, number)| *number == 0) {
            Some((key, _)) => Err(SettingsError::Zero(key)),
            None if !self.auth.signing_keys_file.is_empty() && !self.auth.signing_keys.expose_secret().is_empty() => {
                Err(SettingsError::TwoKeySources)
            }
            None => Ok(self),
        }
    }
}

fn layers(file: Option<&Path>) -> Result<Layers, SettingsError> {
    let mut layers = Layers::new(DEFAULTS)?;
    if let Some(file) = file {
        layers.file(file)?;
    }
    layers.environment(std::env::vars_os())?;
    Ok(layers)
}

impl DatabaseSettings {
    /// How to connect: `url` of the command line or `DATABASE_URL` first, then these settings.
    ///
    /// # Errors
    /// When no database is named, or its URL cannot be read.
    pub fn connect_options(&self, url: Option<&SecretString>) -> Result<PgConnectOptions, SettingsError> {
        let from_file = || {
            std::fs::read_to_string(&self.url_file)
                .map_err(|error| SettingsError::UrlFile(self.url_file.clone(), error))
        };
        let url = match url {
            Some(url) => url.clone(),
            None if !self.url.expose_secret().is_empty() => self.url.clone(),
            None if !self.url_file.is_empty() => from_file()?.trim().to_owned().into(),
            None => return Err(SettingsError::NoDatabase),
        };
        let text = url.expose_secret();
        if !text.starts_with("postgres://") && !text.starts_with("postgresql://") {
            return Err(SettingsError::Url);
        }
        let options = PgConnectOptions::from_str(text).map_err(|_| SettingsError::Url)?;
        Ok(options.application_name("coupon-issuer"))
    }
}

/// A day or more, in hours.
fn days<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    hours_from(deserializer, 24)
}

/// Two or more: the console shows the last one.
fn hours<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    hours_from(deserializer, 2)
}

fn hours_from<'de, D: Deserializer<'de>>(deserializer: D, least: u32) -> Result<Duration, D::Error> {
    let hours = u32::deserialize(deserializer)?;
    if hours < least {
        return Err(serde::de::Error::custom(format!("must be {least} or more")));
    }
    Ok(Duration::from_secs(u64::from(hours) * 3600))
}

fn seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let seconds = f64::deserialize(deserializer)?;
    // Beyond it an instant that lies so far ahead could not be told.
    if !(0.0..=MOST_SECONDS).contains(&seconds) {
        return Err(serde::de::Error::custom(format!("must be from 0 to {MOST_SECONDS} seconds")));
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// As [`seconds`], for what makes no sense without any: everything would be too late.
fn some_seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let time = seconds(deserializer)?;
    if time.is_zero() {
        return Err(serde::de::Error::custom("must be more than 0"));
    }
    Ok(time)
}

/// A URL of http or https, without the slash at its end.
fn url_if_any<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let url = String::deserialize(deserializer)?;
    if url.is_empty() {
        return Ok(None);
    }
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    if rest.is_none_or(|rest| rest.is_empty() || rest.contains(['?', '#', ' '])) {
        return Err(serde::de::Error::custom("must be a URL such as https://coupons.example.com"));
    }
    Ok(Some(url.trim_end_matches('/').to_owned()))
}

/// A share of a whole.
fn ratio<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    let ratio = f64::deserialize(deserializer)?;
    if !(0.0..=1.0).contains(&ratio) {
        return Err(serde::de::Error::custom("must be between 0 and 1"));
    }
    Ok(ratio)
}

fn address_if_any<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SocketAddr>, D::Error> {
    let address = String::deserialize(deserializer)?;
    if address.is_empty() {
        return Ok(None);
    }
    address.parse().map(Some).map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_complete() {
        let settings = Settings::load(None).unwrap();
        assert_eq!(settings.http.max_series_ids, 100);
        assert!(matches!(settings.database.connect_options(None), Err(SettingsError::NoDatabase)));
    }

    /// Whoever adds a secret has to name it, or `config show` prints it.
    #[test]
    fn secrets_are_masked_and_nothing_else_is() {
        let fields = include_str!("config.rs").lines().filter_map(|line| line.trim().strip_prefix("pub "));
        let secret: Vec<&str> = fields
            .filter(|field| field.contains(": ") && field.contains("SecretString") && field.ends_with(','))
            .filter_map(|field| field.split(':').next())
            .collect();
        let named: Vec<&str> = layers::SECRETS.iter().filter_map(|key| key.rsplit('.').next()).collect();
        assert_eq!(secret, named, "layers::SECRETS must name every SecretString, in their order");

        let mut layers = Layers::new(DEFAULTS).unwrap();
        for key in layers::SECRETS {
            layers.set(key, "hunter2".to_owned(), Origin::Argument("test"));
            assert_eq!(layers.origin(key), Origin::Argument("test"), "{key} is no key");
        }
        assert!(!layers.to_string().contains("hunter2"));
    }

    #[test]
    fn a_url_is_never_shown() {
        let mut settings = Settings::load(None).unwrap();
        settings.database.url = "postgres://u:hunter2@h/d".into();
        assert!(!format!("{settings:?}").contains("hunter2"));
        let wrong = SecretString::from("hunter2://");
        assert!(!settings.database.connect_options(Some(&wrong)).unwrap_err().to_string().contains("hunter2"));
    }
}
