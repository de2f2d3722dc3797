//! The tables of those who call, in the file of `apply`: tills, OAuth clients and the outside issuers of their tokens.
//!
//! Secrets are read here, from wherever the file says; no mistake repeats one.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;

use secrecy::SecretString;
use url::{Host, Url};

use super::file::{ACCESS_WORDS, Lines, Names, Secrets, unique};
use super::toml::Section;
use crate::auth::LONGEST_NAME;
use crate::model::{
    Access, ClientProof, OAuthClientPlan, RateLimit, StoreId, TextError, TillPlan, TokenAlgorithm, TokenIssuerPlan,
    secret_in, secret_line,
};

const LONGEST_URL: usize = 500;
const HIGHEST_RATE_LIMIT: i64 = 1_000_000;
/// How long a client's tokens live where the file does not say.
const TOKEN_TTL_SECONDS: i64 = 3600;
const SECRET_KEYS: [&str; 3] = ["secret", "secret_file", "secret_env"];

pub(super) fn till(
    section: &Section<'_>,
    secrets: &Secrets<'_>,
    stores: &Lines<i64>,
    ids: &mut BTreeSet<String>,
    names: &mut Names,
) -> Option<TillPlan> {
    let id = section.required("id", section.name("id", LONGEST_NAME));
    if let Some(id) = &id {
        if id.contains(':') {
            section.mistake("id", "must not contain a colon: it ends the name in Basic authentication");
        }
        ids.insert(id.clone());
        unique(section, "id", &mut names.tills, id.clone());
    }
    let store_id = section.required("store_id", section.integer("store_id", 1..=i64::MAX));
    if store_id.is_some_and(|id| !stores.contains_key(&id)) {
        section.mistake("store_id", "is no store of this organisation in this file");
    }
    let access = section.choice("access", ACCESS_WORDS, Access::parse);
    let disabled = section.boolean("disabled");
    let rate_limit = callers_rate_limit(section);
    let keys = ["password", "password_file", "password_env"];
    let password = one_of(section, &keys).and_then(|_| secret(section, secrets, keys));
    Some(TillPlan { id: id?, store_id: StoreId(store_id?), password: password?, access, disabled, rate_limit })
}

pub(super) fn token_issuer(section: &Section<'_>, issuers: &mut Lines<String>) -> Option<TokenIssuerPlan> {
    let issuer = section.required("issuer", url(section, "issuer", false));
    // One with a mistake in it is known, too: what refers to it is no mistake besides.
    if let Some(issuer) = &issuer {
        unique(section, "issuer", issuers, issuer.clone());
    }
    let audience = section.required("audience", section.name("audience", LONGEST_NAME));
    let jwks_url = url(section, "jwks_url", true);
    let claim = section.name("client_claim", LONGEST_NAME).unwrap_or_else(|| "client_id".to_owned());
    let algorithms = algorithms(section);
    Some(TokenIssuerPlan { issuer: issuer?, audience: audience?, jwks_url, client_claim: claim, algorithms })
}

pub(super) fn oauth_client(
    section: &Section<'_>,
    secrets: &Secrets<'_>,
    tills: &BTreeSet<String>,
    issuers: &Lines<String>,
    names: &mut Names,
) -> Option<OAuthClientPlan> {
    let key = section.required("key", section.name("key", LONGEST_NAME));
    if let Some(key) = &key {
        unique(section, "key", &mut names.clients, key.clone());
    }
    let till_id = section.required("till", section.text("till"));
    if till_id.as_ref().is_some_and(|till| !tills.contains(till)) {
        section.mistake("till", "is no till of this organisation in this file");
    }
    let access = section.required("access", section.choice("access", ACCESS_WORDS, Access::parse));
    let disabled = section.boolean("disabled");
    let rate_limit = callers_rate_limit(section);
    let proof = client_proof(section, secrets, issuers);
    Some(OAuthClientPlan { key: key?, proof: proof?, till_id: till_id?, access: access?, disabled, rate_limit })
}

/// A secret, or an issuer of tokens.
fn client_proof(section: &Section<'_>, secrets: &Secrets<'_>, issuers: &Lines<String>) -> Option<ClientProof> {
    let ttl = section.integer("token_ttl_seconds", 1..=2_592_000);
    let [plain, file, variable] = SECRET_KEYS;
    if one_of(section, &[plain, file, variable, "token_issuer"])? != "token_issuer" {
        let secret = secret(section, secrets, SECRET_KEYS)?;
        let token_ttl_seconds = i32::try_from(ttl.unwrap_or(TOKEN_TTL_SECONDS)).ok()?;
        return Some(ClientProof::Secret { secret, token_ttl_seconds });
    }
    if section.has("token_ttl_seconds") {
        section.mistake("token_ttl_seconds", "means something only with a secret");
    }
    let issuer = section.text("token_issuer")?;
    if !issuers.contains_key(&issuer) {
        section.mistake("token_issuer", "is no token issuer of this organisation in this file");
    }
    Some(ClientProof::Issuer(issuer))
}

/// The only one of these keys that is there; none or several are a mistake.
fn one_of(section: &Section<'_>, keys: &[&'static str]) -> Option<&'static str> {
    let given: Vec<&'static str> = keys.iter().copied().filter(|key| section.has(key)).collect();
    if let [only] = given.as_slice() {
        return Some(only);
    }
    let (last, first) = keys.split_last()?;
    let at = given.first().or(first.first())?;
    section.mistake(at, format!("give exactly one of {} and {last}", first.join(", ")));
    None
}

/// A secret: in the file, in a file of its own, or in the environment. One of the three keys must be there.
fn secret(section: &Section<'_>, secrets: &Secrets<'_>, keys: [&'static str; 3]) -> Option<SecretString> {
    let [plain, file, variable] = keys;
    let (key, secret) = if section.has(file) {
        (file, from_file(&secrets.directory.join(section.text(file)?)))
    } else if section.has(variable) {
        let value = (secrets.variable)(&section.text(variable)?);
        (variable, value.ok_or_else(|| "the environment has no such variable".to_owned()).and_then(from_variable))
    } else {
        (plain, secret_line(&section.text(plain)?).map_err(|error| error.to_string()))
    };
    // A mistake refuses the file.
    secret.map_err(|reason| section.mistake(key, reason)).ok()
}

fn from_file(path: &Path) -> Result<SecretString, String> {
    let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
    secret_in(bytes).map_err(|error| error.to_string())
}

fn from_variable(value: OsString) -> Result<SecretString, String> {
    let text = value.into_string().map_err(|_| TextError::NotUtf8.to_string())?;
    secret_line(&text).map_err(|error| error.to_string())
}

/// The limit for those of an organisation that have none of their own.
pub(super) fn organisation_rate_limit(section: &Section<'_>) -> Option<RateLimit> {
    rate_limit(section, "must be -1, which is no limit, or an integer from 1")
}

fn callers_rate_limit(section: &Section<'_>) -> Option<RateLimit> {
    rate_limit(section, "must not be 0: use disabled = true instead")
}

fn rate_limit(section: &Section<'_>, zero: &str) -> Option<RateLimit> {
    let given = section.integer("rate_limit_per_minute", -1..=HIGHEST_RATE_LIMIT)?;
    if given == 0 {
        section.mistake("rate_limit_per_minute", zero);
    }
    Some(RateLimit::of(i32::try_from(given).ok()?))
}

fn algorithms(section: &Section<'_>) -> BTreeSet<TokenAlgorithm> {
    let key = "algorithms";
    let words = TokenAlgorithm::ALL.map(TokenAlgorithm::name).join(", ");
    let Some(given) = section.texts(key) else { return TokenAlgorithm::ALL.into() };
    let mut algorithms = BTreeSet::new();
    if given.is_empty() {
        section.mistake(key, format!("must not be empty; left out, it is {words}"));
    }
    for word in given {
        match TokenAlgorithm::parse(&word) {
            None => section.mistake(key, format!("must hold nothing but {words}")),
            Some(algorithm) if !algorithms.insert(algorithm) => section.mistake(key, format!("lists {word} twice")),
            Some(_) => {}
        }
    }
    algorithms
}

/// A URL as it is written, since an issuer is compared to the letter; what is wrong with it is noted.
fn url(section: &Section<'_>, key: &'static str, may_have_query: bool) -> Option<String> {
    let text = section.name(key, LONGEST_URL)?;
    if let Some(fault) = fault(&text, may_have_query) {
        section.mistake(key, fault);
    }
    Some(text)
}

/// What is wrong with a URL from which keys are to be had.
fn fault(text: &str, may_have_query: bool) -> Option<&'static str> {
    // The parser would forgive these; the library that fetches need not.
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
        return Some("must hold neither a user nor a password");
    }
    if url.fragment().is_some() {
        return Some("must have no fragment (#)");
    }
    (!may_have_query && url.query().is_some()).then_some("must have no query (?)")
}
