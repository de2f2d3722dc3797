use std::ffi::OsString;
use std::path::Path;

use secrecy::SecretString;

use super::toml::Section;
use crate::model::{TextError, secret_in, secret_line};

/// The sources of secrets that are not in the file itself.
pub struct Secrets<'a> {
    /// The directory that a relative `password_file` starts from.
    pub directory: &'a Path,
    /// Looks up an environment variable.
    pub variable: &'a dyn Fn(&str) -> Option<OsString>,
}

impl Secrets<'_> {
    /// Reads a secret under one of three keys: from the file itself, from a file of its own, or from an environment variable. One
    /// of the keys must be there. No mistake repeats a secret.
    pub(super) fn read(&self, section: &Section<'_>, keys: [&'static str; 3]) -> Option<SecretString> {
        let [plain, file, variable] = keys;
        let (key, secret) = if section.has(file) {
            (file, from_file(&self.directory.join(section.text(file)?)))
        } else if section.has(variable) {
            let value = (self.variable)(&section.text(variable)?);
            (variable, value.ok_or_else(|| "the environment has no such variable".to_owned()).and_then(from_variable))
        } else {
            (plain, secret_line(&section.text(plain)?).map_err(|error| error.to_string()))
        };
        secret.map_err(|reason| section.mistake(key, reason)).ok()
    }
}

fn from_file(path: &Path) -> Result<SecretString, String> {
    let bytes = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    secret_in(bytes).map_err(|error| error.to_string())
}

fn from_variable(value: OsString) -> Result<SecretString, String> {
    let text = value.into_string().map_err(|_| TextError::NotUtf8.to_string())?;
    secret_line(&text).map_err(|error| error.to_string())
}
