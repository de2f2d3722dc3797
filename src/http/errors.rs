//! Every failure of a request as a whole, with its status, code, body and headers (contract 2). No other file chooses a status.
//!
//! A refusal of one entity is not a failure of the request. Messages never hold SQL or other internals: this file logs the cause
//! of an internal error, once.

use std::any::Any;
use std::time::Duration;

use axum::Json;
use axum::http::header::{ACCEPT_ENCODING, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::metrics;
use crate::activity::OverviewError;
use crate::auth::AuthError;
use crate::issuance::IssueError;
use crate::telemetry::throttle::Throttle;

/// One error or warning (contract 2), of an entity or of the request.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(description = "An error or a warning.")]
pub(super) struct Problem {
    /// Always false.
    pub(super) status: bool,
    /// A code from the description of `issueCoupons`; a later version may have more.
    pub(super) code: u16,
    /// For people.
    pub(super) message: String,
    /// For an error: whether the same request may succeed later.
    #[schema(nullable = false)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) retryable: Option<bool>,
    /// When the customer may receive another coupon of the series, if known.
    #[schema(nullable = false, format = DateTime)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) next_eligible_at: Option<String>,
    /// The remaining coupons of the series, if that is why there is none.
    #[schema(nullable = false)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) remaining: Option<u64>,
}

impl Problem {
    pub(super) const fn new(code: u16, message: String, retryable: Option<bool>) -> Self {
        Self { status: false, code, message, retryable, next_eligible_at: None, remaining: None }
    }
}

static DATABASE_UNAVAILABLE: Throttle = Throttle::new();
static OVERLOADED: Throttle = Throttle::new();

/// Why a request as a whole failed.
#[derive(Debug)]
pub(super) enum ApiError {
    /// The message names the field.
    BadRequest(String),
    TooManyIds {
        given: usize,
        max: usize,
    },
    NoCustomer,
    UnknownCustomer,
    ConflictingCustomer,
    /// No request of the caller's organisation has the key.
    NoSuchRequest,
    /// Another attempt at the same keyed request is still running.
    StillRunning,
    KeyReused,
    NoCredentials,
    /// Only the log has the reason.
    BadCredentials(&'static str),
    ExpiredToken,
    TooManyRequests {
        limit: u32,
        retry_after: Duration,
    },
    TooManyFailures {
        retry_after: Duration,
    },
    /// Only the log has the reason.
    Forbidden(&'static str),
    NotFound,
    MethodNotAllowed,
    BodyTooSlow,
    BodyTooLarge {
        max_bytes: usize,
    },
    NotJson,
    EncodedBody,
    Internal(String),
    Unavailable(String),
    /// The service has never reached the external issuer of a token.
    IssuerUnreachable,
    Overloaded,
}

/// Why the service did not admit the caller, for the log line and the metrics.
#[derive(Debug, Clone, Copy)]
pub(super) struct Denied(pub(super) &'static str);

/// The error code of a request that failed as a whole, for the metrics.
#[derive(Debug, Clone, Copy)]
pub(super) struct ErrorCode(pub(super) u16);

/// A request that failed as a whole.
#[derive(Serialize, ToSchema)]
#[schema(as = Failure)]
pub(super) struct ErrorBody {
    #[schema(value_type = Vec<Problem>, min_items = 1, max_items = 1)]
    errors: [Problem; 1],
    #[schema(value_type = Vec<Problem>, max_items = 0)]
    warnings: [Problem; 0],
}

impl ErrorBody {
    pub(super) const fn error(&self) -> &Problem {
        let [error] = &self.errors;
        error
    }
}

impl ApiError {
    pub(super) fn body(&self) -> (StatusCode, ErrorBody) {
        let (status, code, message, retryable) = self.parts();
        (status, ErrorBody { errors: [Problem::new(code, message, Some(retryable))], warnings: [] })
    }

    /// Status, code, message, and whether the same request may succeed later.
    fn parts(&self) -> (StatusCode, u16, String, bool) {
        use StatusCode as S;
        let permanent = |status, code, message: &str| (status, code, message.to_owned(), false);
        let transient = |status: S, message: &str| (status, status.as_u16(), message.to_owned(), true);
        match self {
            Self::BadRequest(message) => permanent(S::BAD_REQUEST, 400, message),
            Self::TooManyIds { given, max } => {
                permanent(S::BAD_REQUEST, 1060, &format!("seriesIds: {given} ids, at most {max} are allowed"))
            }
            Self::NoCustomer => {
                permanent(S::BAD_REQUEST, 701, "customer: one of id, mobile, externalId and email is required")
            }
            Self::UnknownCustomer => permanent(S::BAD_REQUEST, 701, "customer: not a registered customer"),
            Self::ConflictingCustomer => {
                permanent(S::BAD_REQUEST, 721, "customer: the identifiers name different customers")
            }
            Self::NoSuchRequest => permanent(S::NOT_FOUND, 404, "No request with this Idempotency-Key is known"),
            Self::StillRunning => {
                transient(S::CONFLICT, "Idempotency-Key: this request is still being processed; try again later")
            }
            Self::KeyReused => permanent(S::UNPROCESSABLE_ENTITY, 422, "Idempotency-Key: was used for another request"),
            Self::NoCredentials => permanent(S::UNAUTHORIZED, 401, "Authentication is required"),
            Self::BadCredentials(_) => permanent(S::UNAUTHORIZED, 401, "Invalid credentials"),
            Self::ExpiredToken => permanent(S::UNAUTHORIZED, 498, "The access token has expired"),
            Self::Forbidden(_) => permanent(S::FORBIDDEN, 4000, "Not authorized. Access is denied!"),
            Self::TooManyRequests { limit, .. } => {
                transient(S::TOO_MANY_REQUESTS, &format!("Too many requests: {limit} a minute are allowed"))
            }
            Self::TooManyFailures { .. } => {
                transient(S::TOO_MANY_REQUESTS, "Too many failed attempts to authenticate; try again later")
            }
            Self::NotFound => permanent(S::NOT_FOUND, 404, "No such path"),
            Self::MethodNotAllowed => permanent(S::METHOD_NOT_ALLOWED, 405, "Method not allowed; see the Allow header"),
            Self::BodyTooSlow => transient(S::REQUEST_TIMEOUT, "The request body took too long to arrive"),
            Self::BodyTooLarge { max_bytes } => {
                permanent(S::PAYLOAD_TOO_LARGE, 413, &format!("The request body is larger than {max_bytes} bytes"))
            }
            Self::NotJson => permanent(S::UNSUPPORTED_MEDIA_TYPE, 415, "Content-Type must be application/json"),
            Self::EncodedBody => {
                permanent(S::UNSUPPORTED_MEDIA_TYPE, 415, "Content-Encoding is not supported; send the body as it is")
            }
            Self::Internal(_) => {
                transient(S::INTERNAL_SERVER_ERROR, "Internal error; the log has it under this request id")
            }
            Self::Unavailable(_) => transient(S::SERVICE_UNAVAILABLE, "The database is unavailable; try again later"),
            Self::IssuerUnreachable => {
                transient(S::SERVICE_UNAVAILABLE, "The token's issuer cannot be reached; try again later")
            }
            Self::Overloaded => transient(S::SERVICE_UNAVAILABLE, "Too many requests are waiting; try again later"),
        }
    }

    pub(super) fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let mut add = |name: HeaderName, value: &'static str| headers.append(name, HeaderValue::from_static(value));
        match self {
            Self::NoCredentials => {
                add(WWW_AUTHENTICATE, "Basic realm=\"coupon-issuer\", charset=\"UTF-8\"");
                add(WWW_AUTHENTICATE, "Bearer realm=\"coupon-issuer\"");
            }
            Self::BadCredentials(_) | Self::ExpiredToken => {
                add(WWW_AUTHENTICATE, "Basic realm=\"coupon-issuer\", charset=\"UTF-8\"");
                add(WWW_AUTHENTICATE, "Bearer realm=\"coupon-issuer\", error=\"invalid_token\"");
            }
            Self::EncodedBody => {
                add(ACCEPT_ENCODING, "identity");
            }
            Self::TooManyRequests { limit, retry_after } => {
                let seconds = whole_seconds(*retry_after);
                headers.insert(RETRY_AFTER, seconds.into());
                add_rate_limit(&mut headers, *limit, seconds);
            }
            Self::TooManyFailures { retry_after } => {
                headers.insert(RETRY_AFTER, whole_seconds(*retry_after).into());
            }
            Self::StillRunning | Self::Unavailable(_) | Self::IssuerUnreachable | Self::Overloaded => {
                add(RETRY_AFTER, "1");
            }
            _ => {}
        }
        headers
    }

    const fn denied(&self) -> Option<Denied> {
        match self {
            Self::NoCredentials => Some(Denied("no credentials")),
            Self::BadCredentials(reason) | Self::Forbidden(reason) => Some(Denied(reason)),
            Self::ExpiredToken => Some(Denied("the token has expired")),
            Self::TooManyRequests { .. } => Some(Denied("the rate limit is reached")),
            Self::TooManyFailures { .. } => Some(Denied("too many wrong credentials")),
            _ => None,
        }
    }

    fn log(&self) {
        match self {
            Self::Internal(reason) => tracing::error!(reason, "a request failed with 500"),
            Self::Unavailable(reason) => {
                DATABASE_UNAVAILABLE.log(|suppressed| {
                    tracing::warn!(reason, suppressed, "requests failed with 503: the database is unavailable");
                });
            }
            Self::IssuerUnreachable => {
                tracing::warn!("a request failed with 503: the issuer of its token cannot be reached");
            }
            Self::Overloaded => {
                metrics::OVERLOAD.increment(1);
                OVERLOADED
                    .log(|suppressed| tracing::warn!(suppressed, "requests failed with 503: too many are waiting"));
            }
            _ => {}
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        self.log();
        let (status, body) = self.body();
        let [Problem { code, .. }] = body.errors;
        let code = ErrorCode(code);
        let mut response = (status, self.headers(), Json(body)).into_response();
        response.extensions_mut().insert(code);
        if let Some(denied) = self.denied() {
            response.extensions_mut().insert(denied);
        }
        response
    }
}

/// Rounded up, so that a caller which waits so long is admitted.
fn whole_seconds(wait: Duration) -> u64 {
    wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
}

/// The limit, the number of requests that remain (none) and the time until there are more, in the syntax of the IETF draft
/// "`RateLimit` header fields for HTTP".
fn add_rate_limit(headers: &mut HeaderMap, limit: u32, seconds: u64) {
    let values = [
        ("ratelimit-policy", format!("\"requests\";q={limit};w=60")),
        ("ratelimit", format!("\"requests\";r=0;t={seconds}")),
    ];
    for (name, value) in values {
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
}

impl From<IssueError> for ApiError {
    fn from(error: IssueError) -> Self {
        match error {
            IssueError::UnknownCustomer => Self::UnknownCustomer,
            IssueError::ConflictingCustomer => Self::ConflictingCustomer,
            IssueError::Unavailable(ref cause) => {
                Self::Unavailable(cause.as_ref().map_or_else(|| error.to_string(), ToString::to_string))
            }
            IssueError::ServerFault(ref cause) => Self::Unavailable(cause.to_string()),
            IssueError::TimedOut => Self::Unavailable(error.to_string()),
            IssueError::Refused(cause) => Self::Internal(cause.to_string()),
            IssueError::StillRunning => Self::StillRunning,
            IssueError::KeyReused => Self::KeyReused,
            IssueError::Overloaded => Self::Overloaded,
            IssueError::Internal(reason) => Self::Internal(reason),
        }
    }
}

impl From<OverviewError> for ApiError {
    fn from(error: OverviewError) -> Self {
        match error {
            OverviewError::Unavailable(reason) => Self::Unavailable(reason),
            OverviewError::TimedOut => Self::Unavailable(error.to_string()),
            OverviewError::Internal(reason) => Self::Internal(reason),
        }
    }
}

impl From<AuthError> for ApiError {
    fn from(error: AuthError) -> Self {
        match error {
            AuthError::Invalid(reason) => Self::BadCredentials(reason),
            AuthError::Expired => Self::ExpiredToken,
            AuthError::TooManyRequests { limit, retry_after } => Self::TooManyRequests { limit, retry_after },
            AuthError::TooManyFailures { retry_after } => Self::TooManyFailures { retry_after },
            AuthError::Busy => Self::Overloaded,
            AuthError::IssuerAway => Self::IssuerUnreachable,
            AuthError::Unavailable(_) | AuthError::TimedOut => Self::Unavailable(error.to_string()),
            AuthError::Internal(reason) => Self::Internal(reason),
        }
    }
}

/// The response after a panic in a handler: well formed, as any other.
#[expect(clippy::needless_pass_by_value, reason = "the signature that CatchPanicLayer asks for")]
pub(super) fn after_panic(panic: Box<dyn Any + Send>) -> Response {
    let reason = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let reason = reason.or_else(|| panic.downcast_ref::<String>().cloned());
    ApiError::Internal(format!("panic: {}", reason.as_deref().unwrap_or("no message"))).into_response()
}
