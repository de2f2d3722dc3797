//! The one place with status policy: every failure of a request as a whole, with its status, code and body (contract 2).
//!
//! A refusal of one entity is no failure of the request and is not here. Messages never hold SQL or other internals;
//! what went wrong inside is logged here, once.

use std::any::Any;
use std::time::Duration;

use axum::Json;
use axum::http::header::{ACCEPT_ENCODING, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::counts;
use crate::activity::OverviewError;
use crate::auth::AuthError;
use crate::issuance::IssueError;
use crate::telemetry::throttle::Throttle;

/// One error or warning (contract 2), of an entity or of the request.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Problem, description = "An error or a warning.")]
pub(super) struct Item {
    /// Always false.
    pub(super) status: bool,
    /// One of those that the description of `issueCoupons` lists; a later version may have more.
    pub(super) code: u16,
    /// For people.
    pub(super) message: String,
    /// Of an error: whether the same request may succeed later, unchanged.
    #[schema(nullable = false)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) retryable: Option<bool>,
    /// When the customer may receive another coupon of the series, where that is known.
    #[schema(nullable = false, format = DateTime)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) next_eligible_at: Option<String>,
    /// How many coupons the series has left, where that is why there is none.
    #[schema(nullable = false)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) remaining: Option<u64>,
}

impl Item {
    pub(super) const fn new(code: u16, message: String, retryable: Option<bool>) -> Self {
        Self { status: false, code, message, retryable, next_eligible_at: None, remaining: None }
    }
}

static AWAY: Throttle = Throttle::new();
static OVERLOADED: Throttle = Throttle::new();

/// Why a request as a whole failed.
#[derive(Debug)]
pub(super) enum ApiError {
    /// The message names the field.
    BadRequest(String),
    TooManyIds {
        given: usize,
        most: usize,
    },
    NoCustomer,
    UnknownCustomer,
    ConflictingCustomer,
    /// The key of a receipt is none of the caller's organisation.
    NoSuchRequest,
    /// Another attempt at the same keyed request is at work.
    StillRunning,
    KeyReused,
    NoCredentials,
    /// The reason is for the log alone.
    BadCredentials(&'static str),
    ExpiredToken,
    TooManyRequests {
        limit: u32,
        retry_after: Duration,
    },
    TooManyFailures {
        retry_after: Duration,
    },
    /// The reason is for the log alone.
    Forbidden(&'static str),
    NotFound,
    MethodNotAllowed,
    BodyTooSlow,
    BodyTooLarge {
        most: usize,
    },
    NotJson,
    EncodedBody,
    Internal(String),
    Unavailable(String),
    /// The outside issuer of a token has never been reached.
    IssuerAway,
    Overloaded,
}

/// Why credentials were not accepted, for the log line of the request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Denied(pub(super) &'static str);

/// The code of a request that failed as a whole, for the metrics.
#[derive(Debug, Clone, Copy)]
pub(super) struct Failure(pub(super) u16);

/// A request that failed as a whole.
#[derive(Serialize, ToSchema)]
#[schema(as = Failure)]
pub(super) struct Body {
    #[schema(value_type = Vec<Item>, min_items = 1, max_items = 1)]
    errors: [Item; 1],
    #[schema(value_type = Vec<Item>, max_items = 0)]
    warnings: [Item; 0],
}

impl Body {
    /// Code, message, and whether the same request may succeed later.
    pub(super) fn told(&self) -> (u16, &str, bool) {
        let [error] = &self.errors;
        (error.code, &error.message, error.retryable == Some(true))
    }
}

impl ApiError {
    /// Status and body.
    pub(super) fn body(&self) -> (StatusCode, Body) {
        let (status, code, message, retryable) = self.parts();
        (status, Body { errors: [Item::new(code, message, Some(retryable))], warnings: [] })
    }

    /// Status, code, message, and whether the same request may succeed later.
    fn parts(&self) -> (StatusCode, u16, String, bool) {
        use StatusCode as S;
        let fixed = |status, code, message: &str| (status, code, message.to_owned(), false);
        let later = |status: S, message: &str| (status, status.as_u16(), message.to_owned(), true);
        match self {
            Self::BadRequest(message) => fixed(S::BAD_REQUEST, 400, message),
            Self::TooManyIds { given, most } => {
                fixed(S::BAD_REQUEST, 1060, &format!("seriesIds: {given} ids, at most {most} are allowed"))
            }
            Self::NoCustomer => {
                fixed(S::BAD_REQUEST, 701, "customer: one of id, mobile, externalId and email is required")
            }
            Self::UnknownCustomer => fixed(S::BAD_REQUEST, 701, "customer: not a registered customer"),
            Self::ConflictingCustomer => {
                fixed(S::BAD_REQUEST, 721, "customer: the identifiers name different customers")
            }
            Self::NoSuchRequest => fixed(S::NOT_FOUND, 404, "No request with this Idempotency-Key is known"),
            Self::StillRunning => {
                later(S::CONFLICT, "Idempotency-Key: this request is still being processed; try again later")
            }
            Self::KeyReused => fixed(S::UNPROCESSABLE_ENTITY, 422, "Idempotency-Key: was used for another request"),
            Self::NoCredentials => fixed(S::UNAUTHORIZED, 401, "Authentication is required"),
            Self::BadCredentials(_) => fixed(S::UNAUTHORIZED, 401, "Invalid credentials"),
            Self::ExpiredToken => fixed(S::UNAUTHORIZED, 498, "The access token has expired"),
            Self::Forbidden(_) => fixed(S::FORBIDDEN, 4000, "Not authorized. Access is denied!"),
            Self::TooManyRequests { limit, .. } => {
                later(S::TOO_MANY_REQUESTS, &format!("Too many requests: {limit} a minute are allowed"))
            }
            Self::TooManyFailures { .. } => {
                later(S::TOO_MANY_REQUESTS, "Too many failed attempts to authenticate; try again later")
            }
            Self::NotFound => fixed(S::NOT_FOUND, 404, "No such path"),
            Self::MethodNotAllowed => fixed(S::METHOD_NOT_ALLOWED, 405, "Method not allowed; see the Allow header"),
            Self::BodyTooSlow => later(S::REQUEST_TIMEOUT, "The request body took too long to arrive"),
            Self::BodyTooLarge { most } => {
                fixed(S::PAYLOAD_TOO_LARGE, 413, &format!("The request body is larger than {most} bytes"))
            }
            Self::NotJson => fixed(S::UNSUPPORTED_MEDIA_TYPE, 415, "Content-Type must be application/json"),
            Self::EncodedBody => {
                fixed(S::UNSUPPORTED_MEDIA_TYPE, 415, "Content-Encoding is not supported; send the body as it is")
            }
            Self::Internal(_) => {
                later(S::INTERNAL_SERVER_ERROR, "Internal error; the log has it under this request id")
            }
            Self::Unavailable(_) => later(S::SERVICE_UNAVAILABLE, "The database is unavailable; try again later"),
            Self::IssuerAway => later(S::SERVICE_UNAVAILABLE, "The token's issuer cannot be reached; try again later"),
            Self::Overloaded => later(S::SERVICE_UNAVAILABLE, "Too many requests are waiting; try again later"),
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
                let wait = whole_seconds(*retry_after);
                headers.insert(RETRY_AFTER, wait.into());
                limited(&mut headers, "requests", *limit, wait);
            }
            Self::TooManyFailures { retry_after } => {
                headers.insert(RETRY_AFTER, whole_seconds(*retry_after).into());
            }
            Self::StillRunning | Self::Unavailable(_) | Self::IssuerAway | Self::Overloaded => {
                add(RETRY_AFTER, "1");
            }
            _ => {}
        }
        headers
    }

    /// Why the credentials were not accepted, if that is what is wrong.
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
            Self::Internal(reason) => tracing::error!(reason, "a request failed"),
            Self::Unavailable(reason) => {
                AWAY.log(|suppressed| tracing::warn!(reason, suppressed, "requests found the database away"));
            }
            Self::IssuerAway => tracing::warn!("a request found its token's issuer away"),
            Self::Overloaded => {
                counts::OVERLOAD.increment(1);
                OVERLOADED
                    .log(|suppressed| tracing::warn!(suppressed, "requests were turned away: too many are waiting"));
            }
            _ => {}
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        self.log();
        let (status, body) = self.body();
        let [Item { code, .. }] = body.errors;
        let failure = Failure(code);
        let mut response = (status, self.headers(), Json(body)).into_response();
        response.extensions_mut().insert(failure);
        if let Some(denied) = self.denied() {
            response.extensions_mut().insert(denied);
        }
        response
    }
}

/// Rounded up: who waits so long is let through.
fn whole_seconds(wait: Duration) -> u64 {
    wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
}

/// The limit and what is left of it, as the IETF's draft on rate limits in HTTP headers spells them.
fn limited(headers: &mut HeaderMap, policy: &str, limit: u32, wait: u64) {
    let values = [
        ("ratelimit-policy", format!("\"{policy}\";q={limit};w=60")),
        ("ratelimit", format!("\"{policy}\";r=0;t={wait}")),
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
            AuthError::IssuerAway => Self::IssuerAway,
            AuthError::Unavailable(_) | AuthError::TimedOut => Self::Unavailable(error.to_string()),
            AuthError::Internal(reason) => Self::Internal(reason),
        }
    }
}

/// A panic is a bug, and the caller's answer is still well formed.
#[expect(clippy::needless_pass_by_value, reason = "the signature that CatchPanicLayer asks for")]
pub(super) fn after_panic(panic: Box<dyn Any + Send>) -> Response {
    let reason = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let reason = reason.or_else(|| panic.downcast_ref::<String>().cloned());
    ApiError::Internal(format!("panic: {}", reason.as_deref().unwrap_or("no message"))).into_response()
}
