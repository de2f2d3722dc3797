use utoipa::openapi::Components;
use utoipa::openapi::security::{
    ApiKey, ApiKeyValue, ClientCredentials, Flow, HttpAuthScheme, HttpBuilder, OAuth2, Scopes, SecurityScheme,
};

use crate::auth::SCOPE;
use crate::http::paths;

/// Adds the ways to authenticate (contract 5). Clients get their tokens from `{base}/oauth/token`.
pub(super) fn add_schemes(components: &mut Components, base: &str) {
    let http = |scheme, description| HttpBuilder::new().scheme(scheme).description(Some(description));
    let basic = |description| SecurityScheme::Http(http(HttpAuthScheme::Basic, description).build());
    let bearer = http(HttpAuthScheme::Bearer, "A token of this service, or of a trusted external issuer.");
    let flow = ClientCredentials::new(format!("{base}{}", paths::TOKEN), Scopes::one(SCOPE, "issue coupons"));
    let schemes = [
        ("basic", basic("A till and its password, or the md5 of that in hex.")),
        ("oauthClient", basic("An OAuth client's key and secret, form-encoded as RFC 6749, 2.3.1, says.")),
        (
            "oauth2",
            SecurityScheme::OAuth2(OAuth2::with_description(
                [Flow::ClientCredentials(flow)],
                "An OAuth client, by a token that it got with its key and secret.",
            )),
        ),
        ("bearer", SecurityScheme::Http(bearer.bearer_format("JWT").build())),
        (
            "capToken",
            SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::with_description(
                "X-CAP-API-OAUTH-TOKEN",
                "A token, without `Bearer`. It decides over `Authorization`.",
            ))),
        ),
    ];
    for (name, scheme) in schemes {
        components.add_security_scheme(name, scheme);
    }
}
