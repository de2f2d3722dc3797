//! Customers: the identifiers a request may name one by, in the form in which they are compared.
//! Which customer a set of identifiers means is decided in `issuance::customers`.

use std::ops::RangeInclusive;

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

/// What people and address books write between the digits of a mobile number: the marks of ASCII, white space, dashes, the full-width
/// plus, and invisible characters that set the direction of text or join words.
pub const MOBILE_MARKS: [RangeInclusive<char>; 14] = [
    '\t'..='\t',
    ' '..=' ',
    '('..=')',
    '+'..='+',
    '-'..='/',
    '\u{a0}'..='\u{a0}',
    '\u{ad}'..='\u{ad}',
    '\u{2000}'..='\u{2015}',
    '\u{202a}'..='\u{202f}',
    '\u{2060}'..='\u{2069}',
    '\u{2212}'..='\u{2212}',
    '\u{3000}'..='\u{3000}',
    '\u{feff}'..='\u{feff}',
    '\u{ff0b}'..='\u{ff0b}',
];

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
    ///
    /// # Errors
    /// In words, where there is anything but up to 20 digits and [`MOBILE_MARKS`] between them.
    pub fn mobile_digits(mobile: &str) -> Result<String, String> {
        let is_mark = |c: char| MOBILE_MARKS.iter().any(|marks| marks.contains(&c));
        let digits: String = mobile.chars().filter(char::is_ascii_digit).collect();
        if let Some(other) = mobile.chars().find(|c| !c.is_ascii_digit() && !is_mark(*c)) {
            let shown = if other.is_control() { String::new() } else { format!("{other:?}, ") };
            return Err(format!(
                "holds {shown}U+{:04X}; only digits and marks such as + - . / ( ) may be in it",
                other as u32
            ));
        }
        match digits.len() {
            0 => Err("has no digit".to_owned()),
            1..=20 => Ok(digits),
            count => Err(format!("has {count} digits, at most 20 are allowed")),
        }
    }

    /// An e-mail address as it is compared: without surrounding space, in lower case.
    #[must_use]
    pub fn email_folded(email: &str) -> String {
        email.trim().to_lowercase()
    }

    /// The mobile, the e-mail and the external id.
    #[must_use]
    pub const fn beside_the_id(&self) -> [&Option<String>; 3] {
        [&self.mobile, &self.email, &self.external_id]
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
            ("+91/99000\u{2013}00001", Some("919900000001")),
            ("\u{202a}+91\u{a0}99000 00001\u{202c}", Some("919900000001")),
            ("\u{ff0b}91\t9900000001", Some("919900000001")),
            ("tel:919900000001", None),
            ("\u{0669}\u{0661}", None),
        ] {
            assert_eq!(Identifiers::mobile_digits(given).ok().as_deref(), digits, "{given}");
        }
        let told = Identifiers::mobile_digits("91 9900O 0001").unwrap_err();
        assert!(told.starts_with("holds 'O', U+004F;"), "{told}");
    }

    #[test]
    fn an_email_ignores_case() {
        assert_eq!(Identifiers::email_folded(" A@Example.COM "), "a@example.com");
    }
}
