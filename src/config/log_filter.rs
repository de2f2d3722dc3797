//! Validates `log.filter`, because `EnvFilter` takes an unknown level for the name of a target: with `warning` it would log that
//! target alone, and silence the service.

use tracing_subscriber::EnvFilter;

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
/// The prefix of the service's own targets.
const OWN: &str = "coupon_issuer";

/// Returns the filter without spaces, which `EnvFilter` would take for part of a name.
pub(super) fn parse(text: &str) -> Result<String, String> {
    let directives = text.split(',').map(parse_directive).collect::<Result<Vec<_>, _>>()?;
    let is_own = |(target, _): &(Option<&str>, String)| target.is_none_or(|target| target.starts_with(OWN));
    if !directives.iter().any(is_own) {
        return Err(format!("shows no line of the service: begin with one of {}", LEVELS.join(", ")));
    }
    let filter = directives.into_iter().map(|(_, directive)| directive).collect::<Vec<_>>().join(",");
    EnvFilter::try_new(&filter).map_err(|error| error.to_string())?;
    Ok(filter)
}

/// Parses a directive. Without a target it applies to all targets.
fn parse_directive(text: &str) -> Result<(Option<&str>, String), String> {
    let text = text.trim();
    let Some((target, level)) = text.rsplit_once('=').filter(|_| !text.ends_with(']')) else {
        return Ok((None, parse_level(text)?));
    };
    let (target, level) = (target.trim(), parse_level(level.trim())?);
    if target.is_empty() {
        return Err(format!("{text:?} names no target"));
    }
    Ok((Some(target), format!("{target}={level}")))
}

fn parse_level(text: &str) -> Result<String, String> {
    let level = text.to_lowercase();
    if LEVELS.contains(&level.as_str()) {
        return Ok(level);
    }
    let hint = if level == "warning" { ": write warn" } else { "" };
    Err(format!("{text:?} is not a level{hint}; levels are {}", LEVELS.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_levels_with_any_target_are_accepted() {
        for (text, filter) in [
            ("info", "info"),
            ("debug ", "debug"),
            ("WARN", "warn"),
            ("off", "off"),
            ("info,sqlx=debug", "info,sqlx=debug"),
            (" info , sqlx = DEBUG ", "info,sqlx=debug"),
            ("coupon_issuer=debug", "coupon_issuer=debug"),
            ("coupon_issuer_writer=trace,warn", "coupon_issuer_writer=trace,warn"),
            ("info,[request{org_id=1}]=debug", "info,[request{org_id=1}]=debug"),
        ] {
            assert_eq!(parse(text).as_deref(), Ok(filter), "{text}");
        }
    }

    #[test]
    fn a_filter_that_would_silence_the_service_is_refused() {
        for (text, reason) in [
            ("warning", "\"warning\" is not a level: write warn; levels are off, error, warn, info, debug, trace"),
            ("", "\"\" is not a level"),
            ("info,", "\"\" is not a level"),
            ("sqlx", "\"sqlx\" is not a level"),
            ("info,sqlx", "\"sqlx\" is not a level"),
            ("info,sqlx=", "\"\" is not a level"),
            ("info,sqlx=verbose", "\"verbose\" is not a level"),
            ("info,=debug", "\"=debug\" names no target"),
            ("sqlx=debug", "shows no line of the service: begin with one of off"),
            ("coupon-issuer=debug", "shows no line of the service"),
            ("a=b=c", "\"c\" is not a level"),
            ("info,a=b=debug", "error parsing level filter"),
            ("info,[request]", "\"[request]\" is not a level"),
        ] {
            let refused = parse(text).unwrap_err();
            assert!(refused.starts_with(reason), "{text}: {refused}");
        }
    }
}
