use std::io::{self, IsTerminal};
use std::net::SocketAddr;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use axum::http::Uri;
use ipnet::IpNet;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer};
use sqlx::postgres::PgConnectOptions;
use url::Url;

use super::error::{Origin, SettingsError};
use super::layers::{DATABASE_URL_KEY, DEFAULTS, Layers};
use super::{log_filter, ranges};

/// The path below the collector's URL that receives spans. People often write it into the URL.
const TRACES_PATH: &str = "/v1/traces";

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
    #[serde(deserialize_with = "optional_url")]
    pub public_url: Option<String>,
    pub trusted_proxies: Vec<IpNet>,
    pub forwarded_header: ForwardedHeader,
    pub max_connections: usize,
    #[serde(rename = "header_timeout_seconds", deserialize_with = "seconds")]
    pub header_timeout: Duration,
    #[serde(rename = "idle_timeout_seconds", deserialize_with = "seconds")]
    pub idle_timeout: Duration,
    #[serde(rename = "write_timeout_seconds", deserialize_with = "seconds")]
    pub write_timeout: Duration,
    #[serde(rename = "body_timeout_seconds", deserialize_with = "seconds")]
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
    #[serde(deserialize_with = "optional_address")]
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
    #[serde(rename = "acquire_timeout_seconds", deserialize_with = "seconds")]
    pub acquire_timeout: Duration,
    #[serde(rename = "statement_timeout_seconds", deserialize_with = "seconds")]
    pub statement_timeout: Duration,
    #[serde(rename = "startup_timeout_seconds", deserialize_with = "seconds")]
    pub startup_timeout: Duration,
}

/// `[writer]`.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config/default.toml documents every key")]
pub struct WriterSettings {
    pub tasks: usize,
    pub batch: usize,
    pub queue: usize,
    #[serde(rename = "statement_timeout_seconds", deserialize_with = "seconds")]
    pub statement_timeout: Duration,
}

/// `[issuing]`.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config/default.toml documents every key")]
pub struct IssuingSettings {
    #[serde(rename = "timeout_seconds", deserialize_with = "seconds")]
    pub timeout: Duration,
    pub max_running: usize,
    #[serde(rename = "max_wait_seconds", deserialize_with = "seconds")]
    pub max_wait: Duration,
    pub settings_cache_bytes: u64,
    #[serde(rename = "keep_requests_hours", deserialize_with = "hours")]
    pub keep_requests: Duration,
}

/// `[activity]`.
#[derive(Debug, Clone, Copy, Deserialize)]
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
#[derive(Debug, Clone, Copy, Deserialize)]
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
    #[serde(deserialize_with = "log_filter")]
    pub filter: String,
    pub format: LogFormat,
}

/// `[traces]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config/default.toml documents every key")]
pub struct TracesSettings {
    /// The collector's URL without `/v1/traces`.
    #[serde(deserialize_with = "optional_collector_url")]
    pub otlp_endpoint: Option<String>,
    pub sample_ratio: f64,
}

/// The format of log lines.
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
    #[must_use]
    pub(crate) fn is_json(self) -> bool {
        match self {
            Self::Auto => !std::io::stdout().is_terminal(),
            Self::Text => false,
            Self::Json => true,
        }
    }
}

impl Settings {
    /// Reads the settings of this process: the defaults, then `file` if there is one, then the environment. Each overrides the one
    /// before. Nothing else reads the environment.
    ///
    /// # Errors
    /// When a file, a key or a value is wrong.
    pub fn load(file: Option<&Path>) -> Result<Self, SettingsError> {
        Self::from_layers(&layers(file)?)
    }

    /// The settings of this process as TOML: each value with its origin, secrets masked. `database_url` comes from the command line
    /// or `DATABASE_URL`.
    ///
    /// # Errors
    /// As [`Settings::load`].
    pub fn to_toml(file: Option<&Path>, database_url: Option<&SecretString>) -> Result<String, SettingsError> {
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
        Self::from_layers(&layers)?;
        Ok(layers.to_string())
    }

    fn from_layers(layers: &Layers) -> Result<Self, SettingsError> {
        ranges::check(layers)?;
        let settings: Self = layers.settings()?;
        if !settings.auth.signing_keys_file.is_empty() && !settings.auth.signing_keys.expose_secret().is_empty() {
            return Err(SettingsError::TwoKeySources);
        }
        if settings.metrics.listen.is_some_and(|metrics| is_conflict(metrics, settings.http.listen)) {
            return Err(layers.invalid("metrics.listen", "takes the port of http.listen: each needs one of its own"));
        }
        Ok(settings)
    }
}

/// Whether two listeners cannot have these addresses at the same time. Port 0 stands for any free port.
fn is_conflict(a: SocketAddr, b: SocketAddr) -> bool {
    let is_same_host = a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() == b.port() && a.port() != 0 && is_same_host
}

fn layers(file: Option<&Path>) -> Result<Layers, SettingsError> {
    let mut layers = Layers::new(DEFAULTS)?;
    if let Some(file) = file {
        layers.add_file(file)?;
    }
    layers.add_environment(std::env::vars_os())?;
    Ok(layers)
}

impl DatabaseSettings {
    /// How to connect. `url`, from the command line or `DATABASE_URL`, takes precedence over these settings.
    ///
    /// # Errors
    /// When no database is configured, or its URL cannot be read.
    pub fn connect_options(&self, url: Option<&SecretString>) -> Result<PgConnectOptions, SettingsError> {
        let from_file = || url_in(&self.url_file).map_err(|error| SettingsError::UrlFile(self.url_file.clone(), error));
        let url = match url {
            Some(url) => url.clone(),
            None if !self.url.expose_secret().is_empty() => self.url.clone(),
            None if !self.url_file.is_empty() => from_file()?,
            None => return Err(SettingsError::NoDatabase),
        };
        let text = url.expose_secret();
        if !text.starts_with("postgres://") && !text.starts_with("postgresql://") {
            return Err(SettingsError::Url);
        }
        let options = PgConnectOptions::from_str(text).map_err(|_| SettingsError::Url)?;
        // A URL has an IPv6 address in brackets, which a host look-up does not accept.
        let bare = options.get_host().strip_prefix('[').and_then(|host| host.strip_suffix(']')).map(str::to_owned);
        let options = if let Some(host) = bare { options.host(&host) } else { options };
        // PgBouncer refuses the setting, and binary floating-point numbers do not depend on it.
        Ok(options.extra_float_digits(None).application_name("coupon-issuer"))
    }
}

/// Reads a file of one line. Two lines are refused, because the URL parser drops line breaks and would join them.
fn url_in(path: &str) -> io::Result<SecretString> {
    let text = std::fs::read_to_string(path)?;
    let url = text.trim_start_matches('\u{feff}').trim();
    if url.contains(['\r', '\n']) {
        let reason = "the file is more than one line: it holds the URL and nothing else";
        return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
    }
    Ok(url.into())
}

fn hours<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let hours = u32::deserialize(deserializer)?;
    Ok(Duration::from_secs(u64::from(hours) * 3600))
}

fn seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let seconds = f64::deserialize(deserializer)?;
    Duration::try_from_secs_f64(seconds).map_err(serde::de::Error::custom)
}

fn log_filter<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    log_filter::parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
}

/// Empty, or an http or https URL; removes slashes from its end.
fn optional_url<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.is_empty() {
        return Ok(None);
    }
    // The exporter of spans and HTTP clients parse it as a `Uri`, which is stricter.
    let (url, uri) = (Url::parse(&text), text.parse::<Uri>());
    let is_plain =
        |url: &Url| matches!(url.scheme(), "http" | "https") && url.query().is_none() && url.fragment().is_none();
    if !url.as_ref().is_ok_and(is_plain) || !uri.is_ok_and(|uri| uri.host().is_some_and(|host| !host.is_empty())) {
        return Err(serde::de::Error::custom("must be a URL such as https://coupons.example.com"));
    }
    Ok(Some(text.trim_end_matches('/').to_owned()))
}

fn optional_collector_url<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let url = optional_url(deserializer)?;
    Ok(url.map(|url| url.strip_suffix(TRACES_PATH).unwrap_or(&url).trim_end_matches('/').to_owned()))
}

fn optional_address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SocketAddr>, D::Error> {
    let address = String::deserialize(deserializer)?;
    if address.is_empty() {
        return Ok(None);
    }
    address.parse().map(Some).map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::super::layers::SECRETS;
    use super::*;

    #[test]
    fn the_defaults_are_complete() {
        let settings = Settings::load(None).unwrap();
        assert_eq!(settings.http.max_series_ids, 100);
        assert!(matches!(settings.database.connect_options(None), Err(SettingsError::NoDatabase)));
    }

    #[test]
    fn an_ipv6_host_loses_its_brackets() {
        let database = Settings::load(None).unwrap().database;
        for (url, host) in [("postgres://u@[::1]:5433/db", "::1"), ("postgres://u@db.example:5433/db", "db.example")] {
            let options = database.connect_options(Some(&url.to_owned().into())).unwrap();
            assert_eq!((options.get_host(), options.get_port()), (host, 5433), "{url}");
        }
    }

    /// A secret that `SECRETS` does not list would be printed by `config show`.
    #[test]
    fn every_secret_is_masked() {
        let fields = include_str!("settings.rs").lines().filter_map(|line| line.trim().strip_prefix("pub "));
        let secret: Vec<&str> = fields
            .filter(|field| field.contains(": ") && field.contains("SecretString") && field.ends_with(','))
            .filter_map(|field| field.split(':').next())
            .collect();
        let listed: Vec<&str> = SECRETS.iter().filter_map(|key| key.rsplit('.').next()).collect();
        assert_eq!(secret, listed, "SECRETS must list every SecretString, in their order");

        let mut layers = Layers::new(DEFAULTS).unwrap();
        for key in SECRETS {
            layers.set(key, "hunter2".to_owned(), Origin::Argument("test"));
            assert_eq!(layers.origin(key), Origin::Argument("test"), "{key} does not exist");
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
