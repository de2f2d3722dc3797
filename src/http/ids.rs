//! Ids as callers send them: a series' as an integer, a customer's as a string or an integer (contract 1).
//! JSON has one kind of number, so `101.0` is an integer as well: some callers' libraries write all numbers so.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, Unexpected, Visitor};

/// The greatest integer up to which a floating-point number is that one and no neighbour of it: 2^53 - 1.
const EXACT: f64 = 9_007_199_254_740_991.0;

/// An id that is an integer.
pub(super) struct IdNumber(pub(super) i64);

/// An id that is a string or an integer, as text.
pub(super) struct IdText(pub(super) String);

impl<'de> Deserialize<'de> for IdNumber {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Integer;
        impl Visitor<'_> for Integer {
            type Value = IdNumber;
            fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
                formatter.write_str("i64")
            }
            fn visit_i64<E>(self, number: i64) -> Result<IdNumber, E> {
                Ok(IdNumber(number))
            }
            fn visit_u64<E: Error>(self, number: u64) -> Result<IdNumber, E> {
                let id = i64::try_from(number);
                id.map(IdNumber).map_err(|_| E::invalid_value(Unexpected::Unsigned(number), &self))
            }
            fn visit_f64<E: Error>(self, number: f64) -> Result<IdNumber, E> {
                whole(number).map(IdNumber).ok_or_else(|| E::invalid_type(Unexpected::Float(number), &self))
            }
        }
        deserializer.deserialize_i64(Integer)
    }
}

impl<'de> Deserialize<'de> for IdText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextOrInteger;
        impl Visitor<'_> for TextOrInteger {
            type Value = IdText;
            fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
                formatter.write_str("a string or an integer")
            }
            fn visit_str<E>(self, text: &str) -> Result<IdText, E> {
                Ok(IdText(text.to_owned()))
            }
            fn visit_u64<E>(self, number: u64) -> Result<IdText, E> {
                Ok(IdText(number.to_string()))
            }
            fn visit_i64<E>(self, number: i64) -> Result<IdText, E> {
                Ok(IdText(number.to_string()))
            }
            fn visit_f64<E: Error>(self, number: f64) -> Result<IdText, E> {
                let id = whole(number).map(|number| IdText(number.to_string()));
                id.ok_or_else(|| E::invalid_type(Unexpected::Float(number), &self))
            }
        }
        deserializer.deserialize_any(TextOrInteger)
    }
}

/// The integer that this number is, if there is no doubt which.
#[expect(clippy::cast_possible_truncation, reason = "an integer of at most 53 bits")]
fn whole(number: f64) -> Option<i64> {
    (number.fract() == 0.0 && number.abs() <= EXACT).then_some(number as i64)
}
