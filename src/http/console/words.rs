//! Numbers, times and refusals in words, as people read them.
//! Nothing here makes HTML: what is returned is text that has yet to be escaped.

use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::issuance::Refusal;

/// Longer texts are cut: the page is to stay readable, whatever somebody calls a series.
const LONGEST: usize = 160;

/// With a comma at each thousand.
pub(super) fn number(number: i64) -> String {
    let digits = number.unsigned_abs().to_string();
    let mut told = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            told.push(',');
        }
        told.push(digit);
    }
    if number < 0 { format!("-{told}") } else { told }
}

/// `1 coupon`, `2 coupons`.
pub(super) fn several(count: i64, what: &str) -> String {
    format!("{} {what}{}", number(count), if count == 1 { "" } else { "s" })
}

/// A text that anyone may have written.
pub(super) fn cut(text: &str) -> String {
    if text.chars().count() <= LONGEST {
        text.to_owned()
    } else {
        format!("{}…", text.chars().take(LONGEST).collect::<String>())
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

/// For machines, in a `datetime`.
pub(super) fn instant(at: Timestamp) -> String {
    at.to_string()
}

/// An outcome as people know it: its code, what it means, and the message that callers got.
pub(super) struct Reason {
    pub(super) code: String,
    pub(super) meaning: String,
    pub(super) message: &'static str,
}

/// The reason of this name. One that is not known is a newer version's.
pub(super) fn reason(name: &str) -> Reason {
    match Refusal::named(name) {
        Some(refusal) => Reason {
            code: refusal.code().to_string(),
            meaning: meaning(refusal).to_owned(),
            message: refusal.message(),
        },
        None => Reason { code: "?".to_owned(), meaning: name.replace('_', " "), message: "" },
    }
}

/// In a few words: the messages of the contract do not all say what they mean.
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
        let told = [0, 999, 1000, 1_234_567, -1000].map(number);
        assert_eq!(told, ["0", "999", "1,000", "1,234,567", "-1,000"]);
        assert_eq!((several(1, "coupon"), several(2000, "coupon")), ("1 coupon".into(), "2,000 coupons".into()));
    }

    #[test]
    fn every_refusal_has_words() {
        for refusal in Refusal::iter() {
            assert_eq!(reason(refusal.name()).code, refusal.code().to_string());
        }
        assert_eq!(reason("of_later").meaning, "of later");
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(cut(&"é".repeat(200)).chars().count(), LONGEST + 1);
    }
}
