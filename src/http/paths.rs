//! The paths that are used outside of their handler, too: in metrics, links and documents.

pub(super) const ISSUE: &str = "/v2/coupon/bulk/issue";
pub(super) const TOKEN: &str = "/oauth/token";
pub(super) const OAUTH_METADATA: &str = "/.well-known/oauth-authorization-server";
pub(super) const OAUTH_KEYS: &str = "/.well-known/jwks.json";
pub(super) const DOCS: &str = "/docs";
pub(super) const CONSOLE: &str = "/console";
