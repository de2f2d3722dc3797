//! Ids as callers send them (contract 1): as a JSON number or as a string.
//!
//! The text of a number decides whether it is an integer. As a floating-point number, `4503599627370497.2` would be rounded to
//! another customer's id.

use std::borrow::Cow;

use serde::de::{Deserialize, Deserializer, Error};
use serde_json::value::RawValue;

use super::body::HALF_SURROGATE_PAIR;

/// 2^53 - 1, the greatest integer up to which a floating-point number is exact. A client that writes a fraction or an exponent
/// probably keeps numbers as floating point, so it may have rounded a greater one.
const MAX_EXACT: i128 = 9_007_199_254_740_991;

/// A series' id: an integer, or a string of digits.
pub(super) struct IdNumber(pub(super) i64);

/// A customer's id, as text: a string or an integer.
pub(super) struct IdText(pub(super) String);

/// A mobile number, as text: a string or a whole number.
pub(super) struct MobileText(pub(super) String);

impl<'de> Deserialize<'de> for IdNumber {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let error = || D::Error::custom("must be an integer of 64 bits, or a string of its digits");
        let id = match Scalar::of(<&RawValue>::deserialize(deserializer)?)? {
            Scalar::Number(number) => integer(number),
            Scalar::Text(text) if text.bytes().all(|byte| byte.is_ascii_digit()) => text.parse().ok(),
            Scalar::Text(_) | Scalar::Other => None,
        };
        id.and_then(|id| i64::try_from(id).ok()).map(Self).ok_or_else(error)
    }
}

impl<'de> Deserialize<'de> for IdText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let error = || D::Error::custom("must be a string, or an integer of 64 bits");
        match Scalar::of(<&RawValue>::deserialize(deserializer)?)? {
            Scalar::Text(text) => Ok(Self(text.into_owned())),
            Scalar::Number(number) => {
                let id = integer(number).filter(|id| (i128::from(i64::MIN)..=i128::from(u64::MAX)).contains(id));
                id.map(|id| Self(id.to_string())).ok_or_else(error)
            }
            Scalar::Other => Err(error()),
        }
    }
}

impl<'de> Deserialize<'de> for MobileText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let error = || D::Error::custom("must be a string, or a whole number of at most 20 digits");
        match Scalar::of(<&RawValue>::deserialize(deserializer)?)? {
            Scalar::Text(text) => Ok(Self(text.into_owned())),
            Scalar::Number(number) => {
                let mobile = integer(number).and_then(|mobile| u128::try_from(mobile).ok());
                mobile.map(|mobile| Self(mobile.to_string())).ok_or_else(error)
            }
            Scalar::Other => Err(error()),
        }
    }
}

/// A JSON value that may be an id. A number keeps its text.
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
                // The only well-formed JSON strings that Rust cannot represent.
                E::custom(HALF_SURROGATE_PAIR)
            }),
            _ => Ok(Self::Other),
        }
    }
}

/// The value of this JSON number, if it is certainly an integer.
fn integer(number: &str) -> Option<i128> {
    if !number.contains(['.', 'e', 'E']) {
        // An integer of more than 128 bits is not an id: `None`.
        return number.parse().ok();
    }
    let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    // The value is `digits` times ten to the power `power`.
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
    (-MAX_EXACT..=MAX_EXACT).contains(&integer).then_some(integer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_decides_whether_a_number_is_an_integer() {
        for (number, expected) in [
            ("0", Some(0)),
            ("-0", Some(0)),
            ("-0.00e-5", Some(0)),
            ("0E99999999999", Some(0)),
            ("101", Some(101)),
            ("101.0", Some(101)),
            ("1.01e2", Some(101)),
            ("10100E-2", Some(101)),
            ("-1.50e+1", Some(-15)),
            ("9007199254740991.0", Some(MAX_EXACT)),
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
            assert_eq!(integer(number), expected, "{number}");
        }
    }

    proptest::proptest! {
        #[test]
        fn the_value_does_not_depend_on_the_notation(value in -MAX_EXACT..=MAX_EXACT, zeros in 0_usize..5, shift in 0_u32..9) {
            let point = format!("{value}.{}", "0".repeat(zeros + 1));
            let exponent = format!("{value}{}e-{shift}", "0".repeat(shift as usize));
            for number in [value.to_string(), point, exponent] {
                proptest::prop_assert_eq!(integer(&number), Some(value));
            }
        }

        #[test]
        fn a_fraction_is_never_rounded(whole in -MAX_EXACT..=MAX_EXACT, fraction in 1_u32..1000, zeros in 0_usize..30) {
            let number = format!("{whole}.{}{fraction}", "0".repeat(zeros));
            proptest::prop_assert_eq!(integer(&number), None);
        }
    }
}
