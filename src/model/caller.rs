//! Who is calling: the till or OAuth client behind a request, and what it may do.
//! A `Caller` exists only once its credential was verified.

use super::{OrgId, StoreId};

/// A level of the access group on resource Coupon (contract 5). Issuing needs [`Access::Write`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// May do nothing.
    None,
    /// May look.
    Read,
    /// May issue.
    Write,
}

impl Access {
    /// The level of this name, as the configuration and the database spell it.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "none" => Some(Self::None),
            "read" => Some(Self::Read),
            "write" => Some(Self::Write),
            _ => None,
        }
    }

    /// The name that [`Access::parse`] reads.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}

/// How a caller proved who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    /// A till, by Basic authentication.
    Till,
    /// An OAuth client, by a token; holds the client's key, which is no secret.
    OAuthClient(String),
}

/// A caller whose credential was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The organisation it belongs to: the only one whose series it can reach.
    pub org_id: OrgId,
    /// The till: its own, or the one its OAuth client is bound to.
    pub till_id: String,
    /// The store of that till.
    pub store_id: StoreId,
    /// What it may do.
    pub access: Access,
    /// How it proved who it is.
    pub credential: Credential,
}
