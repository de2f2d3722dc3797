//! The parts of the OpenAPI document that are not next to a handler. `tests/openapi.json` is the document for the default settings.

use utoipa::OpenApi;
use utoipa::openapi::path::{Operation, Parameter, ParameterIn, PathItem};
use utoipa::openapi::{OpenApi as Document, Ref, RefOr, Required, Schema, Server};

use super::texts::{ABOUT, ISSUING, SERVICE, TOKENS};
use super::{examples, failures, schemas, security};
use crate::config::HttpSettings;
use crate::http::{errors, paths};

/// The document without its paths.
#[derive(OpenApi)]
#[openapi(
    info(title = "Coupon issuer", license(name = "Apache-2.0", identifier = "Apache-2.0")),
    tags(
        (name = ISSUING, description = "Coupons, and the outcome of a request for them"),
        (name = TOKENS, description = "Tokens for OAuth clients"),
        (name = SERVICE, description = "The service itself"),
    ),
    components(schemas(errors::ErrorBody)),
)]
pub(in crate::http) struct Description;

/// Adds to a document with its paths all that depends on the settings, and all that operations have in common.
pub(in crate::http) fn complete(mut document: Document, settings: &HttpSettings) -> Document {
    document.info.version = String::from(env!("CARGO_PKG_VERSION"));
    document.info.description = Some(ABOUT.to_owned());
    document.servers = Some(vec![Server::new(settings.public_url.as_deref().unwrap_or("/"))]);
    if !settings.docs {
        document.paths.paths.retain(|path, _| !path.starts_with(paths::DOCS));
    }
    let components = document.components.get_or_insert_default();
    security::add_schemes(components, settings.public_url.as_deref().unwrap_or_default());
    failures::add_shared(components, settings);
    schemas::set_limits(components, settings);
    add_to_every_operation(&mut document);
    examples::add_refusals(&mut document);
    document
}

/// Adds the parameters of every request and the headers of every response.
fn add_to_every_operation(document: &mut Document) {
    for operation in document.paths.paths.values_mut().flat_map(operations) {
        let parameters = operation.parameters.get_or_insert_default();
        for parameter in parameters.iter_mut() {
            if let RefOr::T(parameter) = parameter {
                complete_parameter(parameter);
            }
        }
        parameters
            .extend(failures::REQUEST_IDS.map(|name| RefOr::Ref(Ref::new(format!("#/components/parameters/{name}")))));
        for response in operation.responses.responses.values_mut() {
            if let RefOr::T(response) = response {
                failures::add_common_headers(response);
            }
        }
    }
}

/// Makes a header optional, and moves the description of the schema to the parameter.
fn complete_parameter(parameter: &mut Parameter) {
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
