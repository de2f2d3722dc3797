//! Numbers, times and refusals as text for people. The text is not escaped for HTML yet.

use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::issuance::Refusal;

/// The page truncates longer texts, such as the description of a series.
const MAX_TEXT_LENGTH: usize = 160;

/// With a comma between thousands.
pub(super) fn number(number: i64) -> String {
    let digits = number.unsigned_abs().to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if number < 0 { format!("-{text}") } else { text }
}

/// `1 coupon`, `2 coupons`.
pub(super) fn several(count: i64, noun: &str) -> String {
    format!("{} {noun}{}", number(count), if count == 1 { "" } else { "s" })
}

pub(super) fn truncate(text: &str) -> String {
    if text.chars().count() <= MAX_TEXT_LENGTH {
        text.to_owned()
    } else {
        format!("{}…", text.chars().take(MAX_TEXT_LENGTH).collect::<String>())
    }
}

/// `10:04`.
pub(super) fn minute(at: Timestamp, zone: &TimeZone) -> String {
    at.to_zoned(zone.clone()).strftime("%H:%M").to_string()
}

/// `2026-11-22 10:04:07`.
pub(super) fn second(at: Timestamp, zone: &TimeZone) -> String {
    at.to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// `2026-11-22`.
pub(super) fn day(at: Timestamp, zone: &TimeZone) -> String {
    at.to_zoned(zone.clone()).date().to_string()
}

/// For the attribute `datetime`.
pub(super) fn instant(at: Timestamp) -> String {
    at.to_string()
}

/// A refusal as the page shows it.
pub(super) struct Reason {
    pub(super) code: String,
    pub(super) meaning: String,
    /// The message to the caller.
    pub(super) message: &'static str,
}

/// The reason with this name. An unknown name comes from a newer version.
pub(super) fn reason(name: &str) -> Reason {
    match Refusal::from_name(name) {
        Some(refusal) => Reason {
            code: refusal.code().to_string(),
            meaning: meaning(refusal).to_owned(),
            message: refusal.message(),
        },
        None => Reason { code: "?".to_owned(), meaning: name.replace('_', " "), message: "" },
    }
}

/// In a few words, as some messages of the contract do not say what they mean.
const fn meaning(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::UnknownSeries => "no such series",
        Refusal::ExternallyManaged => "issued by another system",
        Refusal::InvalidStore => "not for the caller's store",
        Refusal::Expired => "the series has expired",
        Refusal::AlreadyHolds => "the customer has one",
        Refusal::PerUserMaximum => "the customer's maximum",
        Refusal::MutuallyExclusive => "the customer has one of an exclusive series",
        Refusal::CapReached => "the cap is reached",
        Refusal::PoolEmpty => "no uploaded code is left",
        Refusal::Gap { .. } => "too soon after the last one",
        Refusal::TimedOut => "took too long",
        Refusal::InDoubt => "may be stored: a retry finds out",
        Refusal::Failed => "failed in the database",
    }
}

#[cfg(test)]
mod tests {
    use strum::IntoEnumIterator;

    use super::*;

    #[test]
    fn numbers_are_readable() {
        let numbers = [0, 999, 1000, 1_234_567, -1000].map(number);
        assert_eq!(numbers, ["0", "999", "1,000", "1,234,567", "-1,000"]);
        assert_eq!((several(1, "coupon"), several(2000, "coupon")), ("1 coupon".into(), "2,000 coupons".into()));
    }

    #[test]
    fn every_refusal_has_a_reason() {
        for refusal in Refusal::iter() {
            assert_eq!(reason(refusal.name()).code, refusal.code().to_string());
        }
        assert_eq!(reason("of_later").meaning, "of later");
    }

    #[test]
    fn long_texts_are_truncated_between_characters() {
        assert_eq!(truncate(&"é".repeat(200)).chars().count(), MAX_TEXT_LENGTH + 1);
    }
}
