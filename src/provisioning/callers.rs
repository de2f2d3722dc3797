//! The tables of callers in the file of `apply`: tills, OAuth clients and the external issuers of their tokens.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use url::{Host, Url};

use super::access::access;
use super::secrets::Secrets;
use super::toml::Section;
use super::unique_values::{FirstLines, GlobalNames, check_unique};
use crate::auth::MAX_NAME_LENGTH;
use crate::model::{ClientProof, OAuthClientPlan, RateLimit, StoreId, TillPlan, TokenAlgorithm, TokenIssuerPlan};

const MAX_URL_LENGTH: usize = 500;
const MAX_RATE_LIMIT: i64 = 1_000_000;
const DEFAULT_TOKEN_TTL_SECONDS: i64 = 3600;
const SECRET_KEYS: [&str; 3] = ["secret", "secret_file", "secret_env"];

pub(super) fn till(
    section: &Section<'_>,
    secrets: &Secrets<'_>,
    stores: &FirstLines<i64>,
    ids: &mut BTreeSet<String>,
    names: &mut GlobalNames,
) -> Option<TillPlan> {
    let id = section.required("id", section.name("id", MAX_NAME_LENGTH));
    if let Some(id) = &id {
        if id.contains(':') {
            section.mistake("id", "must not contain a colon: it ends the name in Basic authentication");
        }
        ids.insert(id.clone());
        check_unique(section, "id", &mut names.tills, id.clone());
    }
    let store_id = section.required("store_id", section.integer("store_id", 1..=i64::MAX));
    if store_id.is_some_and(|id| !stores.contains_key(&id)) {
        section.mistake("store_id", "is not a store of this organisation in this file");
    }
    let access = access(section, "access");
    let disabled = section.boolean("disabled");
    let rate_limit = caller_rate_limit(section);
    let keys = ["password", "password_file", "password_env"];
    let password = exactly_one(section, &keys).and_then(|_| secrets.read(section, keys));
    Some(TillPlan { id: id?, store_id: StoreId(store_id?), password: password?, access, disabled, rate_limit })
}

pub(super) fn token_issuer(section: &Section<'_>, issuers: &mut FirstLines<String>) -> Option<TokenIssuerPlan> {
    let issuer = section.required("issuer", url(section, "issuer", false));
    // Count an invalid issuer, too: a client that refers to it is not a second mistake.
    if let Some(issuer) = &issuer {
        check_unique(section, "issuer", issuers, issuer.clone());
    }
    let audience = section.required("audience", section.name("audience", MAX_NAME_LENGTH));
    let jwks_url = url(section, "jwks_url", true);
    let claim = section.name("client_claim", MAX_NAME_LENGTH).unwrap_or_else(|| "client_id".to_owned());
    let algorithms = algorithms(section);
    Some(TokenIssuerPlan { issuer: issuer?, audience: audience?, jwks_url, client_claim: claim, algorithms })
}

pub(super) fn oauth_client(
    section: &Section<'_>,
    secrets: &Secrets<'_>,
    tills: &BTreeSet<String>,
    issuers: &FirstLines<String>,
    names: &mut GlobalNames,
) -> Option<OAuthClientPlan> {
    let key = section.required("key", section.name("key", MAX_NAME_LENGTH));
    if let Some(key) = &key {
        check_unique(section, "key", &mut names.clients, key.clone());
    }
    let till_id = section.required("till", section.text("till"));
    if till_id.as_ref().is_some_and(|till| !tills.contains(till)) {
        section.mistake("till", "is not a till of this organisation in this file");
    }
    let access = section.required("access", access(section, "access"));
    let disabled = section.boolean("disabled");
    let rate_limit = caller_rate_limit(section);
    let proof = client_proof(section, secrets, issuers);
    Some(OAuthClientPlan { key: key?, proof: proof?, till_id: till_id?, access: access?, disabled, rate_limit })
}

/// Reads the client's secret or its token issuer.
fn client_proof(section: &Section<'_>, secrets: &Secrets<'_>, issuers: &FirstLines<String>) -> Option<ClientProof> {
    let ttl = section.integer("token_ttl_seconds", 1..=2_592_000);
    let [plain, file, variable] = SECRET_KEYS;
    if exactly_one(section, &[plain, file, variable, "token_issuer"])? != "token_issuer" {
        let secret = secrets.read(section, SECRET_KEYS)?;
        let token_ttl_seconds = i32::try_from(ttl.unwrap_or(DEFAULT_TOKEN_TTL_SECONDS)).ok()?;
        return Some(ClientProof::Secret { secret, token_ttl_seconds });
    }
    if section.has("token_ttl_seconds") {
        section.mistake("token_ttl_seconds", "is allowed only with a secret");
    }
    let issuer = section.text("token_issuer")?;
    if !issuers.contains_key(&issuer) {
        section.mistake("token_issuer", "is not a token issuer of this organisation in this file");
    }
    Some(ClientProof::Issuer(issuer))
}

/// Returns the key that the section has. None or several of them are a mistake.
fn exactly_one(section: &Section<'_>, keys: &[&'static str]) -> Option<&'static str> {
    let given: Vec<&'static str> = keys.iter().copied().filter(|key| section.has(key)).collect();
    if let [only] = given.as_slice() {
        return Some(only);
    }
    let (last, first) = keys.split_last()?;
    let at = given.first().or(first.first())?;
    section.mistake(at, format!("give exactly one of {} and {last}", first.join(", ")));
    None
}

/// Reads the limit of tills and clients that have no limit of their own.
pub(super) fn organisation_rate_limit(section: &Section<'_>) -> Option<RateLimit> {
    rate_limit(section, "must be -1, which is no limit, or an integer from 1")
}

fn caller_rate_limit(section: &Section<'_>) -> Option<RateLimit> {
    rate_limit(section, "must not be 0: use disabled = true instead")
}

fn rate_limit(section: &Section<'_>, zero: &str) -> Option<RateLimit> {
    let given = section.integer("rate_limit_per_minute", -1..=MAX_RATE_LIMIT)?;
    if given == 0 {
        section.mistake("rate_limit_per_minute", zero);
    }
    Some(RateLimit::from_per_minute(i32::try_from(given).ok()?))
}

fn algorithms(section: &Section<'_>) -> BTreeSet<TokenAlgorithm> {
    let key = "algorithms";
    let words = TokenAlgorithm::NAMES.join(", ");
    let Some(given) = section.texts(key) else { return TokenAlgorithm::all() };
    let mut algorithms = BTreeSet::new();
    if given.is_empty() {
        section.mistake(key, format!("must not be empty; without the key, it is {words}"));
    }
    for word in given {
        match TokenAlgorithm::parse(&word) {
            None => section.mistake(key, format!("may contain only {words}")),
            Some(algorithm) if !algorithms.insert(algorithm) => section.mistake(key, format!("lists {word} twice")),
            Some(_) => {}
        }
    }
    algorithms
}

/// Returns the URL as it is written, even if it is invalid: issuers are compared byte by byte.
fn url(section: &Section<'_>, key: &'static str, may_have_query: bool) -> Option<String> {
    let text = section.name(key, MAX_URL_LENGTH)?;
    if let Some(fault) = url_fault(&text, may_have_query) {
        section.mistake(key, fault);
    }
    Some(text)
}

/// Checks a URL from which the service fetches keys.
fn url_fault(text: &str, may_have_query: bool) -> Option<&'static str> {
    // The parser accepts these, but the HTTP client may not.
    let is_plain = !text.contains(|c: char| c.is_whitespace() || c.is_control()) && text.contains("://");
    let Some(url) = Url::parse(text).ok().filter(|_| is_plain) else {
        return Some("must be a URL like https://login.example.com");
    };
    let is_local = match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address == Ipv4Addr::LOCALHOST,
        Some(Host::Ipv6(address)) => address == Ipv6Addr::LOCALHOST,
        None => false,
    };
    match url.scheme() {
        "https" => {}
        "http" if is_local => {}
        _ => return Some("must begin with https:// (http:// only for 127.0.0.1, [::1] and localhost)"),
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Some("must contain neither a user nor a password");
    }
    if url.fragment().is_some() {
        return Some("must have no fragment (#)");
    }
    (!may_have_query && url.query().is_some()).then_some("must have no query (?)")
}
