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
    /// The till: its own, the one its OAuth client is bound to, or the one the request is attributed to. `None`: the request
    /// is attributed to a store.
    pub till_id: Option<String>,
    /// The store of that till, or the one the request is attributed to.
    pub store_id: StoreId,
    /// What it may do.
    pub access: Access,
    /// How it proved who it is.
    pub credential: Credential,
    /// Whether the request itself named the till or store.
    pub is_attributed: bool,
}

impl Caller {
    /// The till or store that the request named. `None`: it named none.
    #[must_use]
    pub fn attribution(&self) -> Option<Attribution<'_>> {
        self.is_attributed.then(|| match &self.till_id {
            Some(till_id) => Attribution::Till(till_id),
            None => Attribution::Store(self.store_id),
        })
    }

    /// The key of the OAuth client. `None`: the caller is a till.
    #[must_use]
    pub fn client_key(&self) -> Option<&str> {
        match &self.credential {
            Credential::Till => None,
            Credential::OAuthClient(key) => Some(key),
        }
    }

    /// The caller of a request that is attributed to this target. It may do what both the client and the target may.
    #[must_use]
    pub fn attributed_to(&self, target: &Target) -> Self {
        Self {
            org_id: self.org_id,
            till_id: target.till_id.clone(),
            store_id: target.store_id,
            access: self.access.min(target.access),
            credential: self.credential.clone(),
            is_attributed: true,
        }
    }
}

/// What a request of an OAuth client is attributed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attribution<'c> {
    /// The till with this id.
    Till(&'c str),
    /// A store, and none of its tills.
    Store(StoreId),
}

/// A till or store that requests can be attributed to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// `None`: the store itself.
    pub till_id: Option<String>,
    /// The store, or the till's.
    pub store_id: StoreId,
    /// What may be done in its name: nothing where the till is disabled.
    pub access: Access,
}

/// What a request names its target by (contract 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetType {
    /// A till's id.
    Till,
    /// A store's code.
    StoreCode,
    /// A store's name, which several may have.
    StoreName,
    /// A store's external id.
    StoreExternalId,
    /// Its second one.
    StoreExternalId1,
    /// Its third one.
    StoreExternalId2,
}

impl TargetType {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Till,
        Self::StoreCode,
        Self::StoreName,
        Self::StoreExternalId,
        Self::StoreExternalId1,
        Self::StoreExternalId2,
    ];

    /// The type of this name, in any case.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|target_type| target_type.name().eq_ignore_ascii_case(name))
    }

    /// The name in the contract.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Till => "TILL",
            Self::StoreCode => "STORE_CODE",
            Self::StoreName => "STORE_NAME",
            Self::StoreExternalId => "STORE_EXTERNAL_ID",
            Self::StoreExternalId1 => "STORE_EXTERNAL_ID_1",
            Self::StoreExternalId2 => "STORE_EXTERNAL_ID_2",
        }
    }
}
