//! The OpenAPI document: put together from what stands next to each handler and on its types, and from this service's settings.
//!
//! It says what the handlers do, and decides nothing. `tests/openapi.json` is what it is with the default settings.

pub(super) mod examples;
pub(super) mod failures;
pub(super) mod schemas;
mod security;
mod texts;

use std::sync::Arc;

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
pub(super) use texts::{ISSUING, RECEIPT, SERVICE, TOKEN, TOKENS, issue};
use utoipa::OpenApi;
use utoipa::openapi::path::{Operation, Parameter, ParameterIn, PathItem};
use utoipa::openapi::{OpenApi as Document, Ref, RefOr, Required, Schema, Server};

use super::Http;
use crate::config::HttpSettings;

#[derive(OpenApi)]
#[openapi(
    info(title = "Coupon issuer", license(name = "Apache-2.0", identifier = "Apache-2.0")),
    tags(
        (name = ISSUING, description = "Coupons, and what became of a request for them"),
        (name = TOKENS, description = "Tokens for OAuth clients"),
        (name = SERVICE, description = "The service itself"),
    ),
    paths(
        super::issue::issue_bulk,
        super::issue::receipt,
        super::oauth::token,
        super::token::generate,
        super::oauth::metadata,
        super::oauth::keys,
        super::health::healthz,
        super::health::readyz,
        serve,
        super::docs::page,
        super::docs::file,
    ),
    components(schemas(super::errors::Body)),
)]
struct Api;

/// The document, as indented JSON with a line feed at its end.
///
/// # Errors
/// When it cannot be written as JSON, which would be a mistake in it.
pub fn document(settings: &HttpSettings) -> Result<String, serde_json::Error> {
    let mut document = Api::openapi();
    document.info.version = String::from(env!("CARGO_PKG_VERSION"));
    document.info.description = Some(texts::ABOUT.to_owned());
    document.servers = Some(vec![Server::new(settings.public_url.as_deref().unwrap_or("/"))]);
    if !settings.docs {
        document.paths.paths.retain(|path, _| !path.starts_with("/docs"));
    }
    let components = document.components.get_or_insert_default();
    security::add_schemes(components, settings.public_url.as_deref().unwrap_or_default());
    failures::add_shared(components, settings);
    schemas::bound(components, settings);
    add_to_every_operation(&mut document);
    examples::add_refusals(&mut document);
    document.to_pretty_json().map(|json| json + "\n")
}

/// What every request may have and every answer has.
fn add_to_every_operation(document: &mut Document) {
    for operation in document.paths.paths.values_mut().flat_map(operations) {
        let parameters = operation.parameters.get_or_insert_default();
        for parameter in parameters.iter_mut() {
            if let RefOr::T(parameter) = parameter {
                complete(parameter);
            }
        }
        parameters
            .extend(failures::REQUEST_IDS.map(|name| RefOr::Ref(Ref::new(format!("#/components/parameters/{name}")))));
        for response in operation.responses.responses.values_mut() {
            if let RefOr::T(response) = response {
                failures::add_headers_of_all(response);
            }
        }
    }
}

/// No header is required, and what the schema says of a value is said of its parameter.
fn complete(parameter: &mut Parameter) {
    if parameter.parameter_in == ParameterIn::Header {
        parameter.required = Required::False;
    }
    if let (None, Some(RefOr::T(Schema::Object(schema)))) = (&parameter.description, &mut parameter.schema) {
        parameter.description = schema.description.take();
    }
}

fn operations(path: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    let PathItem { get, put, post, delete, patch, .. } = path;
    [get, put, post, delete, patch].into_iter().flatten()
}

/// An object among the schemas of the components.
fn object<'c>(
    components: &'c mut utoipa::openapi::Components,
    name: &str,
) -> Option<&'c mut utoipa::openapi::schema::Object> {
    match components.schemas.get_mut(name) {
        Some(RefOr::T(Schema::Object(object))) => Some(object),
        _ => None,
    }
}

#[utoipa::path(
    get,
    path = "/openapi.json",
    operation_id = "openapi",
    tag = SERVICE,
    summary = "This document",
    responses((status = 200, description = "OpenAPI 3.1", body = Object), failures::Any),
    security(),
)]
pub(super) async fn serve(State(http): State<Arc<Http>>) -> Response {
    let kind = (CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let fresh = (header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    ([kind, fresh], http.openapi.clone()).into_response()
}
