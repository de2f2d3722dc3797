//! `log.filter`: levels that exist, and one for the service's own lines.
//!
//! `EnvFilter` takes a word that is no level for the name of a target, of which it then shows everything, and of all others
//! nothing: `warning` would silence the service.

use tracing_subscriber::EnvFilter;

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
/// What the targets of the service's own lines begin with.
const OWN: &str = "coupon_issuer";

/// The filter as `EnvFilter` reads it: in it spaces are part of a name.
pub(super) fn parse(text: &str) -> Result<String, String> {
    let directives = text.split(',').map(directive).collect::<Result<Vec<_>, _>>()?;
    let is_own = |(target, _): &(Option<&str>, String)| target.is_none_or(|target| target.starts_with(OWN));
    if !directives.iter().any(is_own) {
        return Err(format!("shows no line of the service: begin with one of {}", LEVELS.join(", ")));
    }
    let filter = directives.into_iter().map(|(_, directive)| directive).collect::<Vec<_>>().join(",");
    EnvFilter::try_new(&filter).map_err(|error| error.to_string())?;
    Ok(filter)
}

/// One part, with the target that it is about; `None`: about all.
fn directive(text: &str) -> Result<(Option<&str>, String), String> {
    let text = text.trim();
    let Some((target, level)) = text.rsplit_once('=').filter(|_| !text.ends_with(']')) else {
        return Ok((None, level_of(text)?));
    };
    let (target, level) = (target.trim(), level_of(level.trim())?);
    if target.is_empty() {
        return Err(format!("{text:?} names no target"));
    }
    Ok((Some(target), format!("{target}={level}")))
}

fn level_of(text: &str) -> Result<String, String> {
    let level = text.to_lowercase();
    if LEVELS.contains(&level.as_str()) {
        return Ok(level);
    }
    let hint = if level == "warning" { ": write warn" } else { "" };
    Err(format!("{text:?} is no level{hint}; levels are {}", LEVELS.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_exist_and_targets_may_be_any() {
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
    fn what_would_silence_the_service_is_refused() {
        for (text, reason) in [
            ("warning", "\"warning\" is no level: write warn; levels are off, error, warn, info, debug, trace"),
            ("", "\"\" is no level"),
            ("info,", "\"\" is no level"),
            ("sqlx", "\"sqlx\" is no level"),
            ("info,sqlx", "\"sqlx\" is no level"),
            ("info,sqlx=", "\"\" is no level"),
            ("info,sqlx=verbose", "\"verbose\" is no level"),
            ("info,=debug", "\"=debug\" names no target"),
            ("sqlx=debug", "shows no line of the service: begin with one of off"),
            ("coupon-issuer=debug", "shows no line of the service"),
            ("a=b=c", "\"c\" is no level"),
            ("info,a=b=debug", "error parsing level filter"),
            ("info,[request]", "\"[request]\" is no level"),
        ] {
            let refused = parse(text).unwrap_err();
            assert!(refused.starts_with(reason), "{text}: {refused}");
        }
    }
}
