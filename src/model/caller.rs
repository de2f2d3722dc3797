use strum::{EnumString, IntoStaticStr, VariantNames};

use super::{OrgId, StoreId};

/// A level of the access group on resource Coupon (contract 5). Issuing needs [`Access::Write`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, EnumString, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Access {
    /// No access.
    None,
    /// May read.
    Read,
    /// May issue coupons.
    Write,
}

impl Access {
    /// The level with this name, as the configuration and the database spell it.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        name.parse().ok()
    }

    /// The inverse of [`Access::parse`].
    #[must_use]
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// How a caller authenticated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    /// A till, by Basic authentication.
    Till,
    /// An OAuth client, by a token. Holds the client's key, which is not secret.
    OAuthClient(String),
}

/// An authenticated caller: a till or an OAuth client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The organisation of the caller, the only one whose series it can use.
    pub org_id: OrgId,
    /// The calling till, the till of the OAuth client, or the till that the request is attributed to. `None`: the request is attributed
    /// to a store.
    pub till_id: Option<String>,
    /// The store of that till, or the store that the request is attributed to.
    pub store_id: StoreId,
    /// The access level of the caller.
    pub access: Access,
    /// How the caller authenticated.
    pub credential: Credential,
    /// Whether the request itself names the till or store.
    pub is_attributed: bool,
}

impl Caller {
    /// The till or store that the request names. `None`: it names none.
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

    /// The caller of a request that is attributed to this target. Its access is the lower one of client and target.
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

/// The target that a request of an OAuth client is attributed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attribution<'c> {
    /// The till with this id.
    Till(&'c str),
    /// A store, without a till.
    Store(StoreId),
}

/// A till or store that requests can be attributed to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// `None`: the store itself.
    pub till_id: Option<String>,
    /// The store, or the store of the till.
    pub store_id: StoreId,
    /// The access level of the target: none if the till is disabled.
    pub access: Access,
}

/// The kind of name by which a request names its target (contract 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumString, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "SCREAMING_SNAKE_CASE", ascii_case_insensitive)]
pub enum TargetType {
    /// The id of a till.
    Till,
    /// The code of a store.
    StoreCode,
    /// The name of a store, which need not be unique.
    StoreName,
    /// The external id of a store.
    StoreExternalId,
    /// The second external id of a store.
    #[strum(serialize = "STORE_EXTERNAL_ID_1")]
    StoreExternalId1,
    /// The third external id of a store.
    #[strum(serialize = "STORE_EXTERNAL_ID_2")]
    StoreExternalId2,
}

impl TargetType {
    /// All names, in the contract's order.
    pub const NAMES: &[&str] = <Self as VariantNames>::VARIANTS;

    /// The type with this name, in any case.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        name.parse().ok()
    }

    /// The name in the contract.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn target_types_have_the_names_of_the_contract() {
        assert_eq!(
            TargetType::NAMES,
            ["TILL", "STORE_CODE", "STORE_NAME", "STORE_EXTERNAL_ID", "STORE_EXTERNAL_ID_1", "STORE_EXTERNAL_ID_2",]
        );
        for name in TargetType::NAMES {
            assert_eq!(TargetType::parse(&name.to_lowercase()).map(TargetType::name), Some(*name));
        }
        assert_eq!(TargetType::parse("STORE_EXTERNAL_ID1"), None);
    }
}
