//! A number outside its range would panic, exhaust memory, wait for years, or switch a limit off. `config/default.toml` documents
//! each range beside its key; a test compares the two.

use toml::Value;

use super::error::SettingsError;
use super::layers::Layers;

/// In seconds. Postgres rounds a shorter time-out to zero, which means none.
const MIN_TIMEOUT: f64 = 0.001;
const HOUR: f64 = 3600.0;
const DAY: f64 = 24.0 * HOUR;
/// In hours.
const YEAR_HOURS: f64 = 8760.0;
const MEBIBYTE: f64 = 1_048_576.0;

/// The minimum and maximum of each key.
pub const RANGES: [(&str, f64, f64); 32] = [
    ("http.max_body_bytes", 1024.0, 100.0 * MEBIBYTE),
    ("http.max_connections", 1.0, 1_000_000.0),
    ("http.header_timeout_seconds", MIN_TIMEOUT, HOUR),
    ("http.idle_timeout_seconds", MIN_TIMEOUT, DAY),
    ("http.body_timeout_seconds", MIN_TIMEOUT, HOUR),
    ("http.write_timeout_seconds", MIN_TIMEOUT, HOUR),
    ("http.max_series_ids", 1.0, 10_000.0),
    ("http.drain_seconds", 0.0, HOUR),
    ("http.shutdown_timeout_seconds", 0.0, HOUR),
    ("metrics.series", 0.0, 10_000.0),
    ("database.max_connections", 1.0, 1000.0),
    ("database.acquire_timeout_seconds", MIN_TIMEOUT, HOUR),
    ("database.statement_timeout_seconds", MIN_TIMEOUT, HOUR),
    ("database.startup_timeout_seconds", 0.0, DAY),
    ("writer.tasks", 1.0, 64.0),
    ("writer.batch", 1.0, 10_000.0),
    ("writer.queue", 1.0, 1_000_000.0),
    ("writer.statement_timeout_seconds", MIN_TIMEOUT, HOUR),
    ("issuing.timeout_seconds", MIN_TIMEOUT, HOUR),
    ("issuing.max_running", 1.0, 1_000_000.0),
    ("issuing.max_wait_seconds", 0.0, HOUR),
    ("issuing.settings_cache_bytes", 0.0, 100.0 * 1024.0 * MEBIBYTE),
    ("issuing.keep_requests_hours", 24.0, YEAR_HOURS),
    ("activity.flush_seconds", 0.0, HOUR),
    ("activity.keep_hours", 2.0, YEAR_HOURS),
    ("auth.credential_cache_seconds", 0.0, DAY),
    ("auth.secret_cache_seconds", 0.0, DAY),
    (PER_MINUTE, 1.0, MAX_PER_MINUTE),
    ("rate_limit.failures_per_minute", 1.0, MAX_PER_MINUTE),
    ("rate_limit.failures_per_minute_by_name", 1.0, MAX_PER_MINUTE),
    ("rate_limit.failures_per_minute_by_address", 1.0, MAX_PER_MINUTE),
    ("traces.sample_ratio", 0.0, 1.0),
];
/// The only key that also accepts -1, which switches the limit off.
const PER_MINUTE: &str = "rate_limit.per_minute";
const MAX_PER_MINUTE: f64 = 1_000_000.0;

/// Checks every number. A value of another type passes: deserialization reports it, with the type that it expects.
pub(super) fn check(layers: &Layers) -> Result<(), SettingsError> {
    for (key, min, max) in RANGES {
        let Some(number) = layers.value(key).and_then(number) else { continue };
        let is_off = key == PER_MINUTE && (number + 1.0).abs() < f64::EPSILON;
        // Written as `!contains`, because `nan` must fail, too.
        if !(min..=max).contains(&number) && !is_off {
            let off = if key == PER_MINUTE { "-1 (no limit), or " } else { "" };
            return Err(layers.invalid(key, format!("must be {off}from {min} to {max}")));
        }
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "exact within every range")]
fn number(value: &Value) -> Option<f64> {
    value.as_float().or_else(|| value.as_integer().map(|integer| integer as f64))
}

#[cfg(test)]
mod tests {
    use super::super::layers::DEFAULTS;
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
            let (_, min, max) = RANGES.into_iter().find(|(name, ..)| *name == key).unwrap_or_else(|| panic!("{key}"));
            assert!(comment.contains(&format!("{min} to {max}")), "{key}: {min} to {max} is not in:{comment}");
            keys.push(key);
        }
        assert_eq!(keys.len(), RANGES.len(), "a range for a key that does not exist");
    }
}
