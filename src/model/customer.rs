use std::ops::RangeInclusive;

use strum::{EnumString, IntoStaticStr};

/// A customer's key within its organisation.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CustomerId(pub String);

/// Who may receive an organisation's coupons (contract 1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumString, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum CustomerPolicy {
    /// Everyone. An unknown id needs no customer record; any other unknown identifier creates a customer.
    Open,
    /// Only the customers that `apply` registered.
    Registered,
}

impl CustomerPolicy {
    /// The policy with this name, as the configuration and the database spell it.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        name.parse().ok()
    }

    /// The inverse of [`CustomerPolicy::parse`].
    #[must_use]
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// The characters that people and address books write between the digits of a mobile number: ASCII marks, white space, dashes, the
/// full-width plus, and invisible characters for text direction and word joining.
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

/// The identifiers of a customer, in the form in which the service stores and compares them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identifiers {
    /// `customer.id`, unchanged.
    pub id: Option<CustomerId>,
    /// The digits of `customer.mobile`.
    pub mobile: Option<String>,
    /// `customer.externalId`, unchanged.
    pub external_id: Option<String>,
    /// `customer.email`, in lower case.
    pub email: Option<String>,
}

impl Identifiers {
    /// The digits of a mobile number: `+91 99000-00001` and `919900000001` are the same mobile.
    ///
    /// # Errors
    /// A message for the caller, if there is anything but 1 to 20 digits and [`MOBILE_MARKS`] between them.
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

    /// An e-mail address in the form for comparisons: without surrounding space, in lower case.
    #[must_use]
    pub fn email_folded(email: &str) -> String {
        email.trim().to_lowercase()
    }

    /// The mobile, the e-mail and the external id, in this order.
    #[must_use]
    pub const fn except_id(&self) -> [&Option<String>; 3] {
        [&self.mobile, &self.email, &self.external_id]
    }

    /// Whether there is no identifier at all.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.id.is_none() && self.is_only_id()
    }

    /// Whether there is no identifier except perhaps the id.
    #[must_use]
    pub const fn is_only_id(&self) -> bool {
        self.mobile.is_none() && self.external_id.is_none() && self.email.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mobiles_are_compared_by_their_digits() {
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
        let error = Identifiers::mobile_digits("91 9900O 0001").unwrap_err();
        assert!(error.starts_with("holds 'O', U+004F;"), "{error}");
    }

    #[test]
    fn emails_are_case_insensitive() {
        assert_eq!(Identifiers::email_folded(" A@Example.COM "), "a@example.com");
    }
}
