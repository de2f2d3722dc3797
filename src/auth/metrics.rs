//! Counts authentications by scheme and outcome. All counters exist from the start, so that an alert rule finds them at zero.
//! The name of a caller is never a label, since the caller chooses it.

use metrics::{Counter, counter};
use strum::{EnumIter, IntoEnumIterator, IntoStaticStr};

use super::error::AuthError;
use crate::telemetry::metrics as metric;

/// The credential of a request. The names are values of the label `scheme`.
#[derive(Debug, Clone, Copy, EnumIter, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub(super) enum Scheme {
    /// A till's password.
    Basic,
    /// An access token.
    Token,
    /// A client's secret, exchanged for a token.
    ClientSecret,
}

/// The names are values of the label `outcome`.
#[derive(Debug, Clone, Copy, EnumIter, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
enum Outcome {
    Accepted,
    Wrong,
    Expired,
    RateLimited,
    TooManyWrong,
    Overloaded,
    IssuerAway,
    Unavailable,
    Failed,
}

impl From<&AuthError> for Outcome {
    fn from(error: &AuthError) -> Self {
        match error {
            AuthError::Invalid(_) => Self::Wrong,
            AuthError::Expired => Self::Expired,
            AuthError::TooManyRequests { .. } => Self::RateLimited,
            AuthError::TooManyFailures { .. } => Self::TooManyWrong,
            AuthError::Busy => Self::Overloaded,
            AuthError::IssuerAway => Self::IssuerAway,
            AuthError::Unavailable(_) | AuthError::TimedOut => Self::Unavailable,
            AuthError::Internal(_) => Self::Failed,
        }
    }
}

pub(super) struct AuthenticationMetrics {
    /// By [`Scheme`], then by [`Outcome`], each in the order of its variants.
    authentications: Vec<Vec<Counter>>,
    rate_limited: Counter,
    too_many_wrong_secrets: Counter,
}

impl AuthenticationMetrics {
    pub(super) fn new() -> Self {
        let authentications = |scheme: Scheme, outcome: Outcome| {
            let labels = [("scheme", <&str>::from(scheme)), ("outcome", outcome.into())];
            counter!(metric::AUTHENTICATIONS.name, &labels)
        };
        let turned_away = |reason: &'static str| counter!(metric::TURNED_AWAY.name, "reason" => reason);
        let by_outcome = |scheme| Outcome::iter().map(|outcome| authentications(scheme, outcome)).collect();
        Self {
            authentications: Scheme::iter().map(by_outcome).collect(),
            rate_limited: turned_away("rate_limit"),
            too_many_wrong_secrets: turned_away("wrong_secrets"),
        }
    }

    pub(super) fn record<T>(&self, scheme: Scheme, result: &Result<T, AuthError>) {
        let outcome = result.as_ref().map_or_else(Outcome::from, |_| Outcome::Accepted);
        self.authentications[scheme as usize][outcome as usize].increment(1);
        match outcome {
            Outcome::RateLimited => self.rate_limited.increment(1),
            Outcome::TooManyWrong => self.too_many_wrong_secrets.increment(1),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_have_the_names_that_alert_rules_know() {
        let schemes: Vec<&str> = Scheme::iter().map(<&str>::from).collect();
        assert_eq!(schemes, ["basic", "token", "client_secret"]);
        let outcomes: Vec<&str> = Outcome::iter().map(<&str>::from).collect();
        let expected = "accepted wrong expired rate_limited too_many_wrong overloaded issuer_away unavailable failed";
        assert_eq!(outcomes.join(" "), expected);
    }
}
