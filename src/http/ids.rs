//! Ids as callers send them (contract 1): as a JSON number or as a string.
//!
//! Whether a number is an integer is decided on its text. Read as a floating-point number first, `4503599627370497.2` would be
//! rounded to somebody else's id.

use std::borrow::Cow;

use serde::de::{Deserialize, Deserializer, Error};
use serde_json::value::RawValue;

use super::body::HALF_A_PAIR;

/// The greatest integer that has no neighbour among floating-point numbers which is printed alike: 2^53 - 1. A number with a
/// fraction or an exponent comes from a library that keeps all numbers so; beyond this one it may have been rounded.
const EXACT: i128 = 9_007_199_254_740_991;

/// A series' id: an integer, or a string of digits.
pub(super) struct IdNumber(pub(super) i64);

/// A customer's id, as text: a string or an integer.
pub(super) struct IdText(pub(super) String);

/// A mobile number, as text: a string or a whole number.
pub(super) struct MobileText(pub(super) String);

impl<'de> Deserialize<'de> for IdNumber {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let wrong = || D::Error::custom("must be an integer of 64 bits, or a string of its digits");
        let id = match Scalar::of(<&RawValue>::deserialize(deserializer)?)? {
            Scalar::Number(number) => integer(number),
            Scalar::Text(text) if text.bytes().all(|byte| byte.is_ascii_digit()) => text.parse().ok(),
            Scalar::Text(_) | Scalar::Other => None,
        };
        id.and_then(|id| i64::try_from(id).ok()).map(Self).ok_or_else(wrong)
    }
}

impl<'de> Deserialize<'de> for IdText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let wrong = || D::Error::custom("must be a string, or an integer of 64 bits");
        match Scalar::of(<&RawValue>::deserialize(deserializer)?)? {
            Scalar::Text(text) => Ok(Self(text.into_owned())),
            Scalar::Number(number) => {
                let id = integer(number).filter(|id| (i128::from(i64::MIN)..=i128::from(u64::MAX)).contains(id));
                id.map(|id| Self(id.to_string())).ok_or_else(wrong)
            }
            Scalar::Other => Err(wrong()),
        }
    }
}

impl<'de> Deserialize<'de> for MobileText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let wrong = || D::Error::custom("must be a string, or a whole number of at most 20 digits");
        match Scalar::of(<&RawValue>::deserialize(deserializer)?)? {
            Scalar::Text(text) => Ok(Self(text.into_owned())),
            Scalar::Number(number) => {
                let mobile = integer(number).and_then(|mobile| u128::try_from(mobile).ok());
                mobile.map(|mobile| Self(mobile.to_string())).ok_or_else(wrong)
            }
            Scalar::Other => Err(wrong()),
        }
    }
}

/// A JSON value that may be an id. A number is kept as it is written.
enum Scalar<'a> {
    Number(&'a str),
    Text(Cow<'a, str>),
    Other,
}

impl<'a> Scalar<'a> {
    fn of<E: Error>(value: &'a RawValue) -> Result<Self, E> {
        let json = value.get();
        match json.as_bytes().first() {
            Some(b'-' | b'0'..=b'9') => Ok(Self::Number(json)),
            Some(b'"') => serde_json::from_str(json).map(Self::Text).map_err(|_| {
                // The only well-formed JSON strings that are no text.
                E::custom(HALF_A_PAIR)
            }),
            _ => Ok(Self::Other),
        }
    }
}

/// The integer that this JSON number is, if there is no doubt which.
fn integer(number: &str) -> Option<i128> {
    if !number.contains(['.', 'e', 'E']) {
        // Beyond 128 bits it is an integer, too, but no id.
        return number.parse().ok();
    }
    let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    // The value is these digits times ten to this power.
    let fraction = fraction.trim_end_matches('0');
    if fraction.is_empty() && whole.trim_start_matches('-') == "0" {
        return Some(0);
    }
    let digits = format!("{whole}{fraction}");
    let power = exponent.parse::<i32>().ok()?.checked_sub(i32::try_from(fraction.len()).ok()?)?;
    let digits = if power < 0 {
        let (kept, dropped) = digits.split_at_checked(digits.len().checked_sub(power.unsigned_abs() as usize)?)?;
        dropped.bytes().all(|digit| digit == b'0').then_some(kept)?
    } else {
        &digits
    };
    let integer = digits.parse::<i128>().ok()?.checked_mul(10_i128.checked_pow(power.max(0).unsigned_abs())?)?;
    (-EXACT..=EXACT).contains(&integer).then_some(integer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_an_integer_by_its_text() {
        for (number, is) in [
            ("0", Some(0)),
            ("-0", Some(0)),
            ("-0.00e-5", Some(0)),
            ("0E99999999999", Some(0)),
            ("101", Some(101)),
            ("101.0", Some(101)),
            ("1.01e2", Some(101)),
            ("10100E-2", Some(101)),
            ("-1.50e+1", Some(-15)),
            ("9007199254740991.0", Some(EXACT)),
            ("18446744073709551616", Some(18_446_744_073_709_551_616)),
            ("9007199254740992.0", None),
            ("9007199254740990.6", None),
            ("4503599627370497.2", None),
            ("4503599627370497.20000000000000000000", None),
            ("1.0000000000000000000000000000000000000001", None),
            ("1e-1", None),
            ("1e-400", None),
            ("1e400", None),
            ("1e99999999999999999999", None),
        ] {
            assert_eq!(integer(number), is, "{number}");
        }
    }

    proptest::proptest! {
        /// Shifting the point by the exponent changes how it is written, not what it is.
        #[test]
        fn however_it_is_written_it_is_the_same(value in -EXACT..=EXACT, zeros in 0_usize..5, shift in 0_u32..9) {
            let point = format!("{value}.{}", "0".repeat(zeros + 1));
            let exponent = format!("{value}{}e-{shift}", "0".repeat(shift as usize));
            for number in [value.to_string(), point, exponent] {
                proptest::prop_assert_eq!(integer(&number), Some(value));
            }
        }

        #[test]
        fn a_fraction_is_never_rounded(whole in -EXACT..=EXACT, fraction in 1_u32..1000, zeros in 0_usize..30) {
            let number = format!("{whole}.{}{fraction}", "0".repeat(zeros));
            proptest::prop_assert_eq!(integer(&number), None);
        }
    }
}
