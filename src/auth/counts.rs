//! Credentials that were checked, counted by scheme and outcome. Every counter is there from the start.
//! Names of callers are no labels: a caller chooses them.

use metrics::{Counter, counter};

use super::AuthError;
use crate::telemetry::metrics as metric;

/// How a caller proves who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scheme {
    /// A till's password.
    Basic,
    /// An access token.
    Token,
    /// A client's secret, for a token.
    ClientSecret,
}

const SCHEMES: [(Scheme, &str); 3] =
    [(Scheme::Basic, "basic"), (Scheme::Token, "token"), (Scheme::ClientSecret, "client_secret")];
const OUTCOMES: [&str; 9] = [
    ACCEPTED,
    "wrong",
    "expired",
    "rate_limited",
    "too_many_wrong",
    "overloaded",
    "issuer_away",
    "unavailable",
    "failed",
];
const ACCEPTED: &str = "accepted";

/// The counters of one scheme.
struct OfScheme {
    accepted: Counter,
    all: Vec<(&'static str, Counter)>,
}

/// The counters.
pub(super) struct Counts {
    schemes: [OfScheme; 3],
    /// Turned away: too many requests, or too many wrong secrets.
    rate_limit: Counter,
    wrong_secrets: Counter,
}

impl Counts {
    pub(super) fn new() -> Self {
        let of_scheme = |(_, scheme): (Scheme, &'static str)| {
            let outcome = |outcome| counter!(metric::AUTHENTICATIONS.name, "scheme" => scheme, "outcome" => outcome);
            OfScheme { accepted: outcome(ACCEPTED), all: OUTCOMES.map(|name| (name, outcome(name))).into() }
        };
        let turned_away = |reason: &'static str| counter!(metric::TURNED_AWAY.name, "reason" => reason);
        Self {
            schemes: SCHEMES.map(of_scheme),
            rate_limit: turned_away("rate_limit"),
            wrong_secrets: turned_away("wrong_secrets"),
        }
    }

    /// Counts a check, and hands on what it has found.
    pub(super) fn counted<T>(&self, scheme: Scheme, result: Result<T, AuthError>) -> Result<T, AuthError> {
        let of_scheme = &self.schemes[scheme as usize];
        match &result {
            Ok(_) => of_scheme.accepted.increment(1),
            Err(error) => {
                let name = outcome(error);
                if let Some((_, counter)) = of_scheme.all.iter().find(|(outcome, _)| *outcome == name) {
                    counter.increment(1);
                }
                match error {
                    AuthError::TooManyRequests { .. } => self.rate_limit.increment(1),
                    AuthError::TooManyFailures { .. } => self.wrong_secrets.increment(1),
                    _ => {}
                }
            }
        }
        result
    }
}

const fn outcome(error: &AuthError) -> &'static str {
    match error {
        AuthError::Invalid(_) => "wrong",
        AuthError::Expired => "expired",
        AuthError::TooManyRequests { .. } => "rate_limited",
        AuthError::TooManyFailures { .. } => "too_many_wrong",
        AuthError::Busy => "overloaded",
        AuthError::IssuerAway => "issuer_away",
        AuthError::Unavailable(_) | AuthError::TimedOut => "unavailable",
        AuthError::Internal(_) => "failed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemes_and_outcomes_are_found_where_they_are_looked_for() {
        assert!(SCHEMES.iter().enumerate().all(|(index, (scheme, _))| *scheme as usize == index));
        let retry_after = std::time::Duration::ZERO;
        for error in [
            AuthError::Invalid("x"),
            AuthError::Expired,
            AuthError::TooManyRequests { limit: 1, retry_after },
            AuthError::TooManyFailures { retry_after },
            AuthError::Busy,
            AuthError::IssuerAway,
            AuthError::TimedOut,
            AuthError::Internal(String::new()),
        ] {
            assert!(OUTCOMES.contains(&outcome(&error)), "{error:?}");
        }
    }
}
