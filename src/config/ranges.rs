//! The range of every setting that is a number. `config/default.toml` says each beside its key; a test compares the two.
//!
//! A number beyond its range would not do what it says: it panics, takes all memory, waits for years, or switches a limit off.

use toml::Value;

use super::SettingsError;
use super::layers::Layers;

/// A time-out has a thousandth of a second at least: Postgres takes less for none at all.
const SHORTEST: f64 = 0.001;
const HOUR: f64 = 3600.0;
const DAY: f64 = 24.0 * HOUR;
/// A year, in hours.
const YEAR: f64 = 8760.0;
const MEBIBYTE: f64 = 1_048_576.0;

/// The least and the most of each key.
pub const RANGES: [(&str, f64, f64); 32] = [
    ("http.max_body_bytes", 1024.0, 100.0 * MEBIBYTE),
    ("http.max_connections", 1.0, 1_000_000.0),
    ("http.header_timeout_seconds", SHORTEST, HOUR),
    ("http.idle_timeout_seconds", SHORTEST, DAY),
    ("http.body_timeout_seconds", SHORTEST, HOUR),
    ("http.write_timeout_seconds", SHORTEST, HOUR),
    ("http.max_series_ids", 1.0, 10_000.0),
    ("http.drain_seconds", 0.0, HOUR),
    ("http.shutdown_timeout_seconds", 0.0, HOUR),
    ("metrics.series", 0.0, 10_000.0),
    ("database.max_connections", 1.0, 1000.0),
    ("database.acquire_timeout_seconds", SHORTEST, HOUR),
    ("database.statement_timeout_seconds", SHORTEST, HOUR),
    ("database.startup_timeout_seconds", 0.0, DAY),
    ("writer.tasks", 1.0, 64.0),
    ("writer.batch", 1.0, 10_000.0),
    ("writer.queue", 1.0, 1_000_000.0),
    ("writer.statement_timeout_seconds", SHORTEST, HOUR),
    ("issuing.timeout_seconds", SHORTEST, HOUR),
    ("issuing.max_running", 1.0, 1_000_000.0),
    ("issuing.max_wait_seconds", 0.0, HOUR),
    ("issuing.settings_cache_seconds", 0.0, DAY),
    ("issuing.keep_requests_hours", 24.0, YEAR),
    ("activity.flush_seconds", 0.0, HOUR),
    ("activity.keep_hours", 2.0, YEAR),
    ("auth.credential_cache_seconds", 0.0, DAY),
    ("auth.secret_cache_seconds", 0.0, DAY),
    (PER_MINUTE, 1.0, MOST_A_MINUTE),
    ("rate_limit.failures_per_minute", 1.0, MOST_A_MINUTE),
    ("rate_limit.failures_per_minute_by_name", 1.0, MOST_A_MINUTE),
    ("rate_limit.failures_per_minute_by_address", 1.0, MOST_A_MINUTE),
    ("traces.sample_ratio", 0.0, 1.0),
];
/// The key that -1 switches off; no other number does.
const PER_MINUTE: &str = "rate_limit.per_minute";
const MOST_A_MINUTE: f64 = 1_000_000.0;

/// Checks every number. What is none is left to those who read the settings: they say which type is expected.
pub(super) fn check(layers: &Layers) -> Result<(), SettingsError> {
    for (key, least, most) in RANGES {
        let Some(number) = layers.value(key).and_then(number) else { continue };
        let is_off = key == PER_MINUTE && (number + 1.0).abs() < f64::EPSILON;
        // Not by its opposite: what is no number at all (`nan`) is outside, too.
        if !(least..=most).contains(&number) && !is_off {
            let off = if key == PER_MINUTE { "-1 (no limit), or " } else { "" };
            return Err(layers.wrong(key, format!("must be {off}from {least} to {most}")));
        }
    }
    Ok(())
}

/// Exact as far as ranges reach.
#[expect(clippy::cast_precision_loss, reason = "only numbers far beyond every range lose any")]
fn number(value: &Value) -> Option<f64> {
    value.as_float().or_else(|| value.as_integer().map(|integer| integer as f64))
}

#[cfg(test)]
mod tests {
    use super::super::DEFAULTS;
    use super::*;

    /// The comment above each number, with the keys that share it.
    fn documented() -> Vec<(String, String)> {
        let (mut table, mut comment, mut found) = (String::new(), String::new(), Vec::new());
        let mut is_open = false;
        for line in DEFAULTS.lines() {
            if let Some(name) = line.strip_prefix('[') {
                name.trim_end_matches(']').clone_into(&mut table);
            } else if let Some(text) = line.strip_prefix('#') {
                if !is_open {
                    comment.clear();
                }
                comment.push_str(text);
                is_open = true;
            } else if let Some((key, _)) = line.split_once(" = ") {
                found.push((format!("{table}.{key}"), comment.clone()));
                is_open = false;
            }
        }
        found
    }

    #[test]
    fn every_number_has_a_range_and_its_documentation_says_it() {
        let layers = Layers::new(DEFAULTS).unwrap();
        check(&layers).unwrap();
        let mut keys = Vec::new();
        for (key, comment) in documented() {
            if layers.value(&key).and_then(number).is_none() {
                continue;
            }
            let (_, least, most) =
                RANGES.into_iter().find(|(name, ..)| *name == key).unwrap_or_else(|| panic!("{key}"));
            assert!(comment.contains(&format!("{least} to {most}")), "{key}: {least} to {most} is not in:{comment}");
            keys.push(key);
        }
        assert_eq!(keys.len(), RANGES.len(), "a range for a key that does not exist");
    }
}
