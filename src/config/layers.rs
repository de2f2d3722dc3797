//! Merges the defaults, a file and the environment; each value keeps its origin.
//!
//! The defaults hold every key, so a new key needs no change here, unless it is secret: no output and no error shows a secret.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::Path;

use serde::de::DeserializeOwned;
use toml::{Table, Value};
use url::Url;

use super::error::{Origin, SettingsError};

pub(super) const DEFAULTS: &str = include_str!("../../config/default.toml");
/// The keys whose values are secret: every `SecretString` of the settings.
pub(super) const SECRETS: [&str; 2] = [DATABASE_URL_KEY, "auth.signing_keys"];
pub(super) const DATABASE_URL_KEY: &str = "database.url";

/// Printed in place of a secret.
const MASK: &str = "***";

/// The effective value of every key, and the origin of each value that is not a default.
pub(super) struct Layers {
    values: Table,
    origins: BTreeMap<String, Origin>,
}

impl Layers {
    pub(super) fn new(defaults: &str) -> Result<Self, SettingsError> {
        Ok(Self { values: parse(defaults, Path::new("config/default.toml"))?, origins: BTreeMap::new() })
    }

    /// A file overrides the values so far.
    pub(super) fn add_file(&mut self, path: &Path) -> Result<(), SettingsError> {
        let text = std::fs::read_to_string(path)
            .map_err(|reason| SettingsError::File { path: path.to_owned(), reason: reason.to_string() })?;
        let layer = parse(&text, path)?;
        merge("", &mut self.values, &mut self.origins, layer, &Origin::File(path.to_owned()))
    }

    /// Environment variables override the values so far: `COUPON_ISSUER__HTTP__LISTEN` is `http.listen`.
    pub(super) fn add_environment(
        &mut self,
        variables: impl Iterator<Item = (OsString, OsString)>,
    ) -> Result<(), SettingsError> {
        let mut found = BTreeMap::new();
        for (name, value) in variables {
            let Ok(name) = name.into_string() else { continue };
            let lower = name.to_lowercase();
            if let Some(key) = lower.strip_prefix("coupon_issuer__") {
                found.insert(name, (key.replace("__", "."), value));
            } else if lower.strip_prefix("coupon_issuer_").is_some_and(|rest| rest.contains("__")) {
                // One underscore too few is the likeliest mistake. Without this error, the variable would be ignored.
                return Err(SettingsError::Misnamed(name));
            }
        }
        for (name, (key, value)) in found {
            let origin = Origin::Environment(name);
            let value = value.into_string().map_err(|_| invalid(&key, &origin, "is not UTF-8"))?;
            let value = self.parse_like_default(&key, value);
            let layer =
                key.rsplit('.').fold(value, |value, part| Value::Table(Table::from_iter([(part.into(), value)])));
            if let Value::Table(layer) = layer {
                merge("", &mut self.values, &mut self.origins, layer, &origin)?;
            }
        }
        Ok(())
    }

    /// Sets one key, which must exist.
    pub(super) fn set(&mut self, key: &str, value: String, origin: Origin) {
        if let Some(slot) = self.slot(key) {
            *slot = Value::String(value);
            self.origins.insert(key.to_owned(), origin);
        }
    }

    /// Deserializes the values into the settings.
    pub(super) fn settings<T: DeserializeOwned>(&self) -> Result<T, SettingsError> {
        serde_path_to_error::deserialize(Value::Table(self.values.clone())).map_err(|error| {
            let path = error.path().to_string();
            let key = path.split('[').next().unwrap_or(&path);
            let reason = if SECRETS.contains(&key) { "must be a string" } else { error.inner().message() };
            invalid(key, &self.origin(key), reason)
        })
    }

    pub(super) fn origin(&self, key: &str) -> Origin {
        self.origins.get(key).cloned().unwrap_or(Origin::Default)
    }

    pub(super) fn value(&self, key: &str) -> Option<&Value> {
        let mut parts = key.split('.');
        let first = self.values.get(parts.next()?)?;
        parts.try_fold(first, |value, part| value.get(part))
    }

    /// The error for a key whose value cannot be used.
    pub(super) fn invalid(&self, key: &str, reason: impl Into<String>) -> SettingsError {
        invalid(key, &self.origin(key), reason)
    }

    fn slot(&mut self, key: &str) -> Option<&mut Value> {
        let (parents, last) = key.rsplit_once('.').unwrap_or(("", key));
        let mut table = &mut self.values;
        for part in parents.split('.').filter(|part| !part.is_empty()) {
            table = table.get_mut(part)?.as_table_mut()?;
        }
        table.get_mut(last)
    }

    /// Parses a variable's text as the type of the key's default value. A list is strings separated by commas.
    fn parse_like_default(&mut self, key: &str, text: String) -> Value {
        match self.slot(key) {
            Some(Value::String(_)) | None => Value::String(text),
            Some(Value::Array(_)) => {
                let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
                Value::Array(items.map(|item| Value::String(item.to_owned())).collect())
            }
            Some(_) => (text.parse().map(Value::Integer).ok())
                .or_else(|| text.parse().map(Value::Float).ok())
                .or_else(|| text.to_lowercase().parse().map(Value::Boolean).ok())
                .unwrap_or(Value::String(text)),
        }
    }
}

/// Prints TOML that can be read again, except for masked values, with the origin behind each value.
impl fmt::Display for Layers {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.fmt_table("", &self.values, formatter)
    }
}

impl Layers {
    fn fmt_table(&self, name: &str, table: &Table, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_table = |value: &Value| value.is_table();
        if table.values().any(|value| !is_table(value)) && !name.is_empty() {
            writeln!(formatter, "[{name}]")?;
        }
        for (key, value) in table.iter().filter(|(_, value)| !is_table(value)) {
            let path = join(name, key);
            writeln!(formatter, "{key} = {}  # {}", displayed(&path, value), self.origin(&path))?;
        }
        let mut is_first = name.is_empty() && table.values().all(is_table);
        for (key, value) in table {
            let Value::Table(inner) = value else { continue };
            if !std::mem::take(&mut is_first) {
                writeln!(formatter)?;
            }
            self.fmt_table(&join(name, key), inner, formatter)?;
        }
        Ok(())
    }
}

fn displayed(key: &str, value: &Value) -> Value {
    match value.as_str() {
        Some("") => value.clone(),
        Some(url) if key == DATABASE_URL_KEY => Value::String(without_password(url)),
        _ if SECRETS.contains(&key) => Value::String(MASK.to_owned()),
        _ => value.clone(),
    }
}

/// Masks the password of a Postgres URL, both before the host and in the query. Masks the whole text if it is not a URL.
fn without_password(text: &str) -> String {
    let Ok(mut url) = Url::parse(text) else { return MASK.to_owned() };
    if url.cannot_be_a_base() || (url.password().is_some() && url.set_password(Some(MASK)).is_err()) {
        return MASK.to_owned();
    }
    let is_secret = |name: &str| name.contains("pass");
    if url.query_pairs().any(|(name, _)| is_secret(&name)) {
        let pairs: Vec<(String, String)> = url.query_pairs().into_owned().collect();
        let masked = pairs.iter().map(|(name, value)| (name, if is_secret(name) { MASK } else { value.as_str() }));
        url.query_pairs_mut().clear().extend_pairs(masked);
    }
    url.to_string()
}

/// Keeps the parser's message, but not the line that it quotes, which may hold a password.
fn parse(text: &str, path: &Path) -> Result<Table, SettingsError> {
    text.parse().map_err(|error: toml::de::Error| {
        let before = error.span().map_or(0, |span| span.start);
        let line = 1 + text.bytes().take(before).filter(|byte| *byte == b'\n').count();
        SettingsError::File { path: path.to_owned(), reason: format!("line {line}: {}", error.message()) }
    })
}

fn merge(
    table: &str,
    values: &mut Table,
    origins: &mut BTreeMap<String, Origin>,
    layer: Table,
    origin: &Origin,
) -> Result<(), SettingsError> {
    for (key, value) in layer {
        let path = join(table, &key);
        let known_keys = || values.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        match (values.contains_key(&key), value) {
            (false, _) => {
                let location = if table.is_empty() { "here".to_owned() } else { format!("in [{table}]") };
                return Err(invalid(
                    &path,
                    origin,
                    format!("there is no such setting; {location} are: {}", known_keys()),
                ));
            }
            (true, value) => match (&mut values[&key], value) {
                (Value::Table(values), Value::Table(layer)) => merge(&path, values, origins, layer, origin)?,
                (Value::Table(_), _) => return Err(invalid(&path, origin, "is a table of settings, not a setting")),
                (_, Value::Table(_)) => return Err(invalid(&path, origin, "is a setting, not a table of settings")),
                (slot, value) => {
                    *slot = value;
                    origins.insert(path, origin.clone());
                }
            },
        }
    }
    Ok(())
}

fn join(table: &str, key: &str) -> String {
    if table.is_empty() { key.to_owned() } else { format!("{table}.{key}") }
}

fn invalid(key: &str, origin: &Origin, reason: impl Into<String>) -> SettingsError {
    SettingsError::Value { key: key.to_owned(), origin: origin.clone(), reason: reason.into() }
}
