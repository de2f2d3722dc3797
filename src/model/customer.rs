//! Customers: the identifiers a request may name one by, in the form in which they are compared.
//! Which customer a set of identifiers means is decided in `issuance::customers`.

/// A customer's key within its organisation.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CustomerId(pub String);

/// Who may receive an organisation's coupons (contract 1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CustomerPolicy {
    /// Anyone: an unknown id is taken as it is, another unknown identifier becomes a customer on first use.
    Open,
    /// Only the customers that `apply` has listed.
    Registered,
}

impl CustomerPolicy {
    /// The policy of this name, as the configuration and the database spell it.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "open" => Some(Self::Open),
            "registered" => Some(Self::Registered),
            _ => None,
        }
    }

    /// The name that [`CustomerPolicy::parse`] reads.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Registered => "registered",
        }
    }
}

/// The identifiers a customer is named by, each in the form in which it is stored and compared.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identifiers {
    /// `customer.id`, as it is.
    pub id: Option<CustomerId>,
    /// `customer.mobile`, its digits.
    pub mobile: Option<String>,
    /// `customer.externalId`, as it is.
    pub external_id: Option<String>,
    /// `customer.email`, in lower case.
    pub email: Option<String>,
}

impl Identifiers {
    /// The digits of a mobile number: `+91 99000-00001` and `919900000001` are the same mobile.
    /// `None` where there is none, or where there is anything but digits and the usual marks between them.
    #[must_use]
    pub fn mobile_digits(mobile: &str) -> Option<String> {
        let known = |c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.' | '(' | ')' | ' ');
        let digits: String = mobile.chars().filter(char::is_ascii_digit).collect();
        (!digits.is_empty() && digits.len() <= 20 && mobile.chars().all(known)).then_some(digits)
    }

    /// An e-mail address as it is compared: without surrounding space, in lower case.
    #[must_use]
    pub fn email_folded(email: &str) -> String {
        email.trim().to_lowercase()
    }

    /// Whether the customer is not named at all.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.id.is_none() && self.is_only_id()
    }

    /// Whether nothing but (perhaps) the id is given.
    #[must_use]
    pub const fn is_only_id(&self) -> bool {
        self.mobile.is_none() && self.external_id.is_none() && self.email.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mobile_is_its_digits() {
        for (given, digits) in [
            ("919900000001", Some("919900000001")),
            ("+91 (99) 000-000.01", Some("919900000001")),
            ("", None),
            ("+", None),
            ("91x99", None),
            ("123456789012345678901", None),
        ] {
            assert_eq!(Identifiers::mobile_digits(given).as_deref(), digits, "{given}");
        }
    }

    #[test]
    fn an_email_ignores_case() {
        assert_eq!(Identifiers::email_folded(" A@Example.COM "), "a@example.com");
    }
}
