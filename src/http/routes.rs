use std::sync::Arc;

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::routing::get;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::authenticate::{AccessGuard, authenticate};
use super::errors::{self, ApiError};
use super::openapi::{self, Description};
use super::request_log::request_log;
use super::state::Http;
use super::{console, docs, health, issue, metrics, oauth, paths};
use crate::config::HttpSettings;
use crate::model::Access;

type Routes = OpenApiRouter<Arc<Http>>;

/// All routes, each in one list, by the access that a caller needs. The lists are in the order of the OpenAPI document.
///
/// `routes!` adds a handler to the router and to the document. The router authenticates the callers of every list but
/// `public`, so a route is open to anyone only if it is in that list.
struct RouteTable {
    write: Routes,
    read: Routes,
    public: Routes,
}

impl RouteTable {
    fn new(settings: &HttpSettings) -> Self {
        let write = Routes::new().routes(routes!(issue::issue_coupons));

        let read = Routes::new().routes(routes!(issue::receipt));
        // The console is a page for people: the OpenAPI document leaves it out.
        let read = if settings.console { read.route(paths::CONSOLE, get(console::page)) } else { read };

        let public = Routes::new()
            .routes(routes!(oauth::token::token))
            .routes(routes!(oauth::contract_token::generate))
            .routes(routes!(oauth::metadata::metadata))
            .routes(routes!(oauth::metadata::keys))
            .routes(routes!(health::healthz))
            .routes(routes!(health::readyz))
            .routes(routes!(docs::openapi_json))
            .routes(routes!(docs::page))
            .routes(routes!(docs::file));

        Self { write, read, public }
    }
}

/// The router of the API, with the middleware around every request.
pub fn router(http: Arc<Http>) -> Router {
    metrics::register();
    let RouteTable { write, read, public } = RouteTable::new(&http.settings);
    let guard = |needed| from_fn_with_state(AccessGuard { http: Arc::clone(&http), needed }, authenticate);
    let routes = write.route_layer(guard(Access::Write)).merge(read.route_layer(guard(Access::Read))).merge(public);
    Router::from(routes)
        .fallback(docs::fallback)
        .method_not_allowed_fallback(async || ApiError::MethodNotAllowed)
        .layer(CatchPanicLayer::custom(errors::after_panic))
        .layer(from_fn_with_state(Arc::clone(&http), request_log))
        .with_state(http)
}

/// The OpenAPI document of the routes, as indented JSON with a line feed at its end.
///
/// # Errors
/// When it cannot be written as JSON, which would be a bug.
pub fn document(settings: &HttpSettings) -> Result<String, serde_json::Error> {
    let RouteTable { write, read, public } = RouteTable::new(settings);
    let routes = Routes::with_openapi(Description::openapi()).merge(write).merge(read).merge(public);
    openapi::complete(routes.into_openapi(), settings).to_pretty_json().map(|json| json + "\n")
}

#[cfg(test)]
mod tests {
    use utoipa::openapi::PathItem;
    use utoipa::openapi::path::Operation;

    use super::*;
    use crate::config::Settings;

    fn operations(routes: Routes) -> Vec<Operation> {
        let items = routes.into_openapi().paths.paths.into_values();
        items
            .flat_map(|PathItem { get, post, put, delete, patch, .. }| [get, post, put, delete, patch])
            .flatten()
            .collect()
    }

    /// Whether the document says that the operation takes requests without credentials.
    fn is_documented_as_open(operation: &Operation) -> bool {
        let security = serde_json::to_value(&operation.security).unwrap();
        let alternatives = security.as_array().expect("every operation says how its callers authenticate");
        alternatives.is_empty() || alternatives.contains(&serde_json::json!({}))
    }

    #[test]
    fn the_document_says_which_routes_need_credentials() {
        let RouteTable { write, read, public } = RouteTable::new(&Settings::load(None).unwrap().http);
        for (routes, is_open) in [(write, false), (read, false), (public, true)] {
            let operations = operations(routes);
            assert!(!operations.is_empty());
            for operation in operations {
                assert_eq!(is_documented_as_open(&operation), is_open, "{:?}", operation.operation_id);
            }
        }
    }
}
