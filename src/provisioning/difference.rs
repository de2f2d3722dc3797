use std::collections::BTreeMap;

use crate::db::provisioning::{StoredClientSettings, StoredProof, StoredTillSettings};
use crate::model::{Access, OrganisationSettings, RateLimit, Settings};

/// The difference between what is stored and what the file wants.
pub(super) enum Difference {
    None,
    /// Nothing is stored yet.
    New,
    /// The settings that differ, each with its old and new value.
    Settings(Vec<String>),
}

impl Difference {
    pub(super) fn between<T: Settings>(stored: Option<&T>, wanted: &T) -> Self {
        let Some(stored) = stored else { return Self::New };
        let before: BTreeMap<_, _> = stored.settings().into_iter().collect();
        let settings: Vec<String> = wanted
            .settings()
            .into_iter()
            .filter(|(name, value)| before.get(name) != Some(value))
            .map(|(name, value)| match before.get(name) {
                Some(old) => format!("{name} {old:?} -> {value:?}"),
                None => format!("{name} {value:?}"),
            })
            .collect();
        if settings.is_empty() { Self::None } else { Self::Settings(settings) }
    }

    /// Adds a changed secret by its name alone: its value must not appear in the report.
    pub(super) fn add_secret(&mut self, is_new: bool, name: &str) {
        match self {
            Self::None if is_new => *self = Self::Settings(vec![name.to_owned()]),
            Self::Settings(settings) if is_new => settings.push(name.to_owned()),
            _ => {}
        }
    }
}

impl Settings for OrganisationSettings {
    fn settings(&self) -> Vec<(&'static str, String)> {
        vec![
            ("name", self.name.clone()),
            ("time_zone", self.time_zone.clone()),
            ("customer_policy", self.customer_policy.name().to_owned()),
            ("default_access", self.default_access.name().to_owned()),
            ("rate_limit_per_minute", rate_limit_text(self.rate_limit)),
            ("natural_key", self.natural_key.to_string()),
        ]
    }
}

impl Settings for StoredTillSettings {
    fn settings(&self) -> Vec<(&'static str, String)> {
        let mut settings = vec![
            ("store_id", self.store_id.0.to_string()),
            ("access", self.access.map_or("default", Access::name).to_owned()),
            ("rate_limit_per_minute", rate_limit_text(self.rate_limit)),
        ];
        settings.extend(self.disabled.map(|disabled| ("disabled", disabled.to_string())));
        settings
    }
}

impl Settings for StoredClientSettings {
    fn settings(&self) -> Vec<(&'static str, String)> {
        let mut settings = vec![
            ("till", self.till_id.clone()),
            ("access", self.access.name().to_owned()),
            ("rate_limit_per_minute", rate_limit_text(self.rate_limit)),
        ];
        settings.extend(self.disabled.map(|disabled| ("disabled", disabled.to_string())));
        match &self.proof {
            StoredProof::Secret { token_ttl_seconds, .. } => {
                settings.push(("token_issuer", String::new()));
                settings.push(("token_ttl_seconds", token_ttl_seconds.to_string()));
            }
            StoredProof::Issuer(issuer) => settings.push(("token_issuer", issuer.clone())),
        }
        settings
    }
}

fn rate_limit_text(limit: Option<RateLimit>) -> String {
    match limit {
        None => "default".to_owned(),
        Some(RateLimit::Unlimited) => "unlimited".to_owned(),
        Some(RateLimit::PerMinute(count)) => count.to_string(),
    }
}
