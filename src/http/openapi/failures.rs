//! The failures of whole requests in the OpenAPI document. They come from [`ApiError`], so that status, code, message and headers
//! are those that callers get. This file lists which operation may fail how.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::{Value, json};
use utoipa::IntoResponses;
use utoipa::openapi::example::ExampleBuilder;
use utoipa::openapi::extensions::Extensions;
use utoipa::openapi::header::{Header, HeaderBuilder};
use utoipa::openapi::path::{Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::response::{Response, ResponseBuilder};
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::{Components, ContentBuilder, Ref, RefOr, Required};

use crate::config::HttpSettings;
use crate::http::errors::ApiError;

/// An error under the name of its example.
type NamedError = (&'static str, ApiError);
type Responses = BTreeMap<String, RefOr<Response>>;

/// The headers in which a caller may send a request id.
pub(super) const REQUEST_IDS: [&str; 3] = ["X-CAP-REQUEST-ID", "X-Request-Id", "X-Cap-RequestID"];

/// The headers of responses: name, description, kind.
const HEADERS: [(&str, &str, HeaderKind); 14] = [
    ("X-CAP-REQUEST-ID", "The id of the request: the caller's, or a new one", HeaderKind::Always),
    ("X-Request-Id", "The same", HeaderKind::Always),
    ("X-Cap-RequestID", "The same", HeaderKind::Always),
    ("Cache-Control", "`no-store`, except for keys, this document and its page", HeaderKind::Always),
    ("Content-Security-Policy", "An answer of the API may load nothing, and must not be framed", HeaderKind::Always),
    ("Referrer-Policy", "`no-referrer`", HeaderKind::Always),
    ("X-Content-Type-Options", "`nosniff`", HeaderKind::Always),
    ("X-Frame-Options", "`DENY`", HeaderKind::Always),
    ("Strict-Transport-Security", "Present if callers reach the service by https", HeaderKind::Sometimes),
    ("WWW-Authenticate", "A challenge for each scheme", HeaderKind::Always),
    ("Retry-After", "Seconds until the request may be retried", HeaderKind::Seconds),
    ("RateLimit", "How much of the limit remains, and until when: `\"requests\";r=0;t=1`", HeaderKind::Sometimes),
    ("RateLimit-Policy", "The limit, and for how many seconds: `\"requests\";q=1000;w=60`", HeaderKind::Sometimes),
    ("Accept-Encoding", "`identity`: a compressed body is not accepted", HeaderKind::Sometimes),
];

/// How many of [`HEADERS`] every response has: the first ones.
const COMMON_HEADER_COUNT: usize = 8;

#[derive(Clone, Copy, PartialEq, Eq)]
enum HeaderKind {
    Always,
    Sometimes,
    Seconds,
}

/// Every failure of a request as a whole, sorted by status.
pub(super) fn all() -> Vec<NamedError> {
    let own = ISSUE_ONLY.iter().flat_map(|failures| failures());
    let mut all: Vec<NamedError> = own.chain(SHARED.iter().flat_map(|shared| (shared.failures)())).collect();
    all.sort_by_key(|(_, failure)| failure.body().0);
    all.dedup_by_key(|(name, _)| *name);
    all
}

const ISSUE_ONLY: [fn() -> Vec<NamedError>; 4] = [bad_issue, running, reused, no_such_request];

fn bad_issue() -> Vec<NamedError> {
    let message = "customer.mobile: must have 1 to 20 digits, and no letters";
    vec![
        ("bad_request", ApiError::BadRequest(message.to_owned())),
        unknown_target(),
        ("too_many_ids", ApiError::TooManyIds { given: 101, max: 100 }),
        ("no_customer", ApiError::NoCustomer),
        ("unknown_customer", ApiError::UnknownCustomer),
        ("conflicting_customer", ApiError::ConflictingCustomer),
    ]
}

fn unknown_target() -> NamedError {
    let message = "X-CAP-API-ATTRIBUTION-ENTITY-CODE: names no till or store of the organisation (as TILL)";
    ("unknown_target", ApiError::BadRequest(message.to_owned()))
}

fn bad_receipt() -> Vec<NamedError> {
    vec![("bad_key", crate::http::idempotency::malformed()), unknown_target()]
}

fn bad_body() -> Vec<NamedError> {
    vec![("bad_request", ApiError::BadRequest("missing field `secret`".to_owned()))]
}

fn bad_host() -> Vec<NamedError> {
    vec![("bad_host", ApiError::BadRequest("the Host header is missing or no host".to_owned()))]
}

fn running() -> Vec<NamedError> {
    vec![("still_running", ApiError::StillRunning)]
}

fn reused() -> Vec<NamedError> {
    vec![("key_reused", ApiError::KeyReused)]
}

fn no_such_request() -> Vec<NamedError> {
    vec![("no_such_request", ApiError::NoSuchRequest)]
}

/// A response that several operations have.
struct Shared {
    name: &'static str,
    description: &'static str,
    failures: fn() -> Vec<NamedError>,
}

const SHARED: [Shared; 11] = [
    Shared {
        name: "Unauthorized",
        description: "Missing or invalid credentials, or an expired token",
        failures: unauthorized,
    },
    Shared {
        name: "Forbidden",
        description: "The access of the caller, or of the till or store that the request is attributed to, is too low",
        failures: || vec![("forbidden", ApiError::Forbidden(""))],
    },
    Shared {
        name: "NotFound",
        description: "There is no such path",
        failures: || vec![("not_found", ApiError::NotFound)],
    },
    Shared {
        name: "MethodNotAllowed",
        description: "The path has other methods; `Allow` lists them",
        failures: || vec![("method_not_allowed", ApiError::MethodNotAllowed)],
    },
    Shared {
        name: "BodyTooSlow",
        description: "The body did not arrive in time",
        failures: || vec![("body_too_slow", ApiError::BodyTooSlow)],
    },
    Shared {
        name: "BodyTooLarge",
        description: "The body is too large",
        failures: || vec![("body_too_large", ApiError::BodyTooLarge { max_bytes: 1_048_576 })],
    },
    Shared {
        name: "NotJson",
        description: "`Content-Type` is not JSON, or the body is compressed",
        failures: not_json,
    },
    Shared {
        name: "TooManyRequests",
        description: "Too many requests from this credential, or too many wrong secrets",
        failures: too_many,
    },
    Shared { name: "TooManyFailures", description: "Too many wrong secrets", failures: || vec![too_many_failures()] },
    Shared {
        name: "InternalError",
        description: "An internal error",
        failures: || vec![("internal", ApiError::Internal(String::new()))],
    },
    Shared {
        name: "Unavailable",
        description: "The database or a token's issuer is unavailable, or the service is overloaded",
        failures: unavailable,
    },
];

fn unauthorized() -> Vec<NamedError> {
    vec![
        ("no_credentials", ApiError::NoCredentials),
        ("bad_credentials", ApiError::BadCredentials("")),
        ("expired_token", ApiError::ExpiredToken),
    ]
}

fn not_json() -> Vec<NamedError> {
    vec![("not_json", ApiError::NotJson), ("encoded_body", ApiError::EncodedBody)]
}

fn too_many() -> Vec<NamedError> {
    let retry_after = Duration::from_secs(1);
    vec![("too_many_requests", ApiError::TooManyRequests { limit: 1000, retry_after }), too_many_failures()]
}

const fn too_many_failures() -> NamedError {
    ("too_many_failures", ApiError::TooManyFailures { retry_after: Duration::from_secs(6) })
}

fn unavailable() -> Vec<NamedError> {
    vec![
        ("database_away", ApiError::Unavailable(String::new())),
        ("issuer_away", ApiError::IssuerUnreachable),
        ("overloaded", ApiError::Overloaded),
    ]
}

/// Defines a type for the failures of each operation.
macro_rules! failures_of {
    ($($doc:literal $name:ident: [$($shared:literal),*] $(, $description:literal => $own:expr)*;)*) => {$(
        #[doc = $doc]
        pub(in crate::http) struct $name;

        impl IntoResponses for $name {
            fn responses() -> Responses {
                let mut responses = Responses::new();
                $(add_shared_ref(&mut responses, $shared);)*
                $(add(&mut responses, $description, &$own);)*
                responses
            }
        }
    )*};
}

failures_of! {
    "The failures of `issueCoupons`." Issue:
        ["Unauthorized", "Forbidden", "BodyTooSlow", "BodyTooLarge", "NotJson", "TooManyRequests", "InternalError", "Unavailable"],
        "The request cannot be processed; the message names the field" => bad_issue(),
        "Another attempt at the same keyed request is at work" => running(),
        "The `Idempotency-Key` was used for another request" => reused();
    "The failures of `getReceipt`." Receipt: ["Unauthorized", "Forbidden", "TooManyRequests", "InternalError", "Unavailable"],
        "The key in the path is not valid, or the attribution headers name nothing that is known" => bad_receipt(),
        "The organisation has no request under this key" => no_such_request();
    "The failures of `generateToken`." ContractToken:
        ["BodyTooSlow", "BodyTooLarge", "NotJson", "TooManyFailures", "InternalError", "Unavailable"],
        "The body is not a token request; the message names the field" => bad_body();
    "The failures of `token`." Token: ["BodyTooSlow", "BodyTooLarge", "TooManyFailures", "InternalError", "Unavailable"];
    "The failures of `authorizationServer`." Metadata: ["InternalError"], "The request names no host" => bad_host();
    "The failures of `docsFile`." File: ["NotFound", "InternalError"];
    "The failures of every operation." Any: ["InternalError"];
}

fn add_shared_ref(responses: &mut Responses, name: &str) {
    let shared = SHARED.iter().find(|shared| shared.name == name);
    if let Some((_, failure)) = shared.and_then(|shared| (shared.failures)().pop()) {
        responses.insert(failure.body().0.as_str().to_owned(), Ref::from_response_name(name).into());
    }
}

fn add(responses: &mut Responses, description: &str, failures: &[NamedError]) {
    if let Some((_, failure)) = failures.first() {
        responses.insert(failure.body().0.as_str().to_owned(), response(description, failures).into());
    }
}

/// The response for failures with the same status.
fn response(description: &str, failures: &[NamedError]) -> Response {
    let examples = failures.iter().map(|(name, failure)| {
        let (_, body) = failure.body();
        let summary = format!("{}: {}", body.error().code, body.error().message);
        (*name, ExampleBuilder::new().summary(summary).value(serde_json::to_value(&body).ok()).build())
    });
    let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Failure"))).examples_from_iter(examples);
    let mut response =
        ResponseBuilder::new().description(description).content("application/json", content.build()).build();
    let headers = failures.iter().flat_map(|(_, failure)| failure.headers());
    let headers: BTreeSet<String> = headers.filter_map(|(name, _)| Some(name?.as_str().to_owned())).collect();
    for (name, ..) in HEADERS.iter().filter(|(name, ..)| headers.contains(&name.to_ascii_lowercase())) {
        response.headers.insert((*name).to_owned(), header_ref(name));
    }
    response
}

fn header_ref(name: &str) -> RefOr<Header> {
    RefOr::Ref(Ref::new(format!("#/components/headers/{name}")))
}

/// Adds the headers that every response has.
pub(super) fn add_common_headers(response: &mut Response) {
    for (name, ..) in &HEADERS[..COMMON_HEADER_COUNT] {
        response.headers.insert((*name).to_owned(), header_ref(name));
    }
}

/// Adds the headers, parameters and responses that operations refer to.
pub(super) fn add_shared(components: &mut Components, settings: &HttpSettings) {
    for (name, description, kind) in HEADERS {
        components.headers.insert(name.to_owned(), header(description, kind).into());
    }
    for name in REQUEST_IDS {
        components.parameters.insert(name.to_owned(), request_id(name).into());
    }
    for Shared { name, description, failures } in SHARED {
        let mut failures = failures();
        for (_, failure) in &mut failures {
            if let ApiError::BodyTooLarge { max_bytes } = failure {
                *max_bytes = settings.max_body_bytes;
            }
        }
        let mut response = response(description, &failures);
        add_common_headers(&mut response);
        components.responses.insert(name.to_owned(), response.into());
    }
}

fn header(description: &str, kind: HeaderKind) -> Header {
    let schema = if kind == HeaderKind::Seconds {
        ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(0))
    } else {
        ObjectBuilder::new().schema_type(Type::String)
    };
    let required: [(&str, Value); 1] = [("required", json!(kind != HeaderKind::Sometimes))];
    HeaderBuilder::new()
        .description(Some(description))
        .schema(Some(schema))
        .extensions(Some(Extensions::from_iter(required)))
        .build()
}

fn request_id(name: &str) -> Parameter {
    ParameterBuilder::new()
        .name(name)
        .parameter_in(ParameterIn::Header)
        .required(Required::False)
        .description(Some("The id of the request in the answer and in the log; ignored if it is malformed"))
        .schema(Some(ObjectBuilder::new().schema_type(Type::String)))
        .build()
}
