use std::sync::Arc;

use axum::body::Bytes;

use super::readiness::Readiness;
use crate::activity::Activity;
use crate::auth::Authenticator;
use crate::config::HttpSettings;
use crate::issuance::Issuer;

/// The state that all handlers share.
pub struct Http {
    /// Issues coupons.
    pub issuer: Arc<Issuer>,
    /// The console's data.
    pub activity: Arc<Activity>,
    /// Authenticates callers.
    pub authenticator: Arc<Authenticator>,
    /// Whether the service can take requests.
    pub readiness: Arc<Readiness>,
    /// `[http]`.
    pub settings: HttpSettings,
    /// The OpenAPI document for these settings.
    pub openapi: Bytes,
}
