//! Whether two requests with one idempotency key are the same request (contract 6): a hash of all that a request asks for.
//!
//! The hash is made of the accepted text, value by value, regardless of white space and of the order of an object's members. It
//! cannot fail: it takes the text of a value that it cannot parse. An earlier version parsed more strictly, and gave all bodies
//! that it could not parse the same fingerprint.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_bytes::ByteBuf;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use super::ids::{IdNumber, IdText, MobileText};
use crate::model::{Attribution, Source};

/// The version of this algorithm: the first byte of a fingerprint.
const VERSION: u8 = 1;

/// How deep values are parsed. Each level parses the text once more, so deeper values count by their text.
const MAX_DEPTH: usize = 8;

/// The fingerprint of an accepted body, of its query, and of the till or store that the request names.
pub(super) fn fingerprint(
    body: &str,
    source: Source,
    account_id: Option<&str>,
    attribution: Option<Attribution<'_>>,
) -> i64 {
    let mut hash = Sha256::new();
    match serde_json::from_str::<&RawValue>(body) {
        Ok(value) => add(&mut hash, value, Position::Body, 0),
        Err(_) => add_bytes(&mut hash, b'r', body.as_bytes()),
    }
    add_query(&mut hash, source, account_id);
    match attribution {
        Some(Attribution::Till(till_id)) => add_bytes(&mut hash, b't', till_id.as_bytes()),
        Some(Attribution::Store(store_id)) => add_bytes(&mut hash, b's', &store_id.0.to_be_bytes()),
        None => {}
    }
    // Seven bytes of the hash: two different requests have the same fingerprint with a probability of 1 in 72,000,000,000,000,000.
    let mut bytes: [u8; 8] = hash.finalize()[..8].try_into().unwrap_or_default();
    bytes[0] = VERSION;
    i64::from_be_bytes(bytes)
}

fn add_query(hash: &mut Sha256, source: Source, account_id: Option<&str>) {
    add_bytes(hash, b'q', source.name().as_bytes());
    add_bytes(hash, b'q', account_id.unwrap_or_default().as_bytes());
}

/// The position of a value, as far as it decides the meaning: an id is the same as a number and as a string.
#[derive(Clone, Copy)]
enum Position {
    Body,
    SeriesIds,
    SeriesId,
    Customer,
    CustomerId,
    Mobile,
    Other,
}

impl Position {
    fn of_member(self, name: &[u8]) -> Self {
        match (self, name) {
            (Self::Body, b"seriesIds") => Self::SeriesIds,
            (Self::Body, b"customer") => Self::Customer,
            (Self::Customer, b"id") => Self::CustomerId,
            (Self::Customer, b"mobile") => Self::Mobile,
            _ => Self::Other,
        }
    }

    fn of_item(self) -> Self {
        if matches!(self, Self::SeriesIds) { Self::SeriesId } else { Self::Other }
    }

    /// The id in a value at this position.
    fn id(self, json: &str) -> Option<String> {
        // Only `null` fails to parse here, as the request was accepted.
        match self {
            Self::SeriesId => serde_json::from_str::<IdNumber>(json).ok().map(|id| id.0.to_string()),
            Self::CustomerId => serde_json::from_str::<IdText>(json).ok().map(|id| id.0),
            Self::Mobile => serde_json::from_str::<MobileText>(json).ok().map(|mobile| mobile.0),
            Self::Body | Self::SeriesIds | Self::Customer | Self::Other => None,
        }
    }
}

/// Adds each value with its kind and length, so that different values never add the same bytes.
fn add(hash: &mut Sha256, value: &RawValue, position: Position, depth: usize) {
    let json = value.get();
    if let Some(id) = position.id(json) {
        return add_bytes(hash, b'"', id.as_bytes());
    }
    let is_added = match json.as_bytes().first() {
        Some(b'"') => add_text(hash, json),
        Some(b'[') if depth < MAX_DEPTH => add_items(hash, json, position, depth),
        Some(b'{') if depth < MAX_DEPTH => add_members(hash, json, position, depth),
        _ => false,
    };
    if !is_added {
        add_bytes(hash, b'r', json.as_bytes());
    }
}

/// Adds a string as bytes, which can represent half of a surrogate pair.
fn add_text(hash: &mut Sha256, json: &str) -> bool {
    let Ok(text) = serde_json::from_str::<ByteBuf>(json) else { return false };
    add_bytes(hash, b'"', &text);
    true
}

fn add_items(hash: &mut Sha256, json: &str, position: Position, depth: usize) -> bool {
    let Ok(items) = serde_json::from_str::<Vec<&RawValue>>(json) else { return false };
    add_length(hash, b'[', items.len());
    for item in items {
        add(hash, item, position.of_item(), depth + 1);
    }
    true
}

fn add_members(hash: &mut Sha256, json: &str, position: Position, depth: usize) -> bool {
    let Ok(Members(mut members)) = serde_json::from_str(json) else { return false };
    // The sort is stable: members with the same name keep their order.
    members.sort_by(|(a, _), (b, _)| a.cmp(b));
    add_length(hash, b'{', members.len());
    for (name, value) in members {
        add_bytes(hash, b':', &name);
        add(hash, value, position.of_member(&name), depth + 1);
    }
    true
}

/// An object's members in their order, including repeated ones.
struct Members<'a>(Vec<(ByteBuf, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MembersVisitor;
        impl<'de> Visitor<'de> for MembersVisitor {
            type Value = Members<'de>;
            fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
                formatter.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(MembersVisitor)
    }
}

fn add_bytes(hash: &mut Sha256, kind: u8, bytes: &[u8]) {
    add_length(hash, kind, bytes.len());
    hash.update(bytes);
}

fn add_length(hash: &mut Sha256, kind: u8, length: usize) {
    hash.update([kind]);
    hash.update((length as u64).to_be_bytes());
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// A JSON value whose strings are UTF-16, so that they may have half of a surrogate pair.
    #[derive(Debug, Clone, PartialEq)]
    enum Json {
        Literal(&'static str),
        Number(String),
        Text(Vec<u16>),
        Items(Vec<Json>),
        Members(Vec<(Vec<u16>, Json)>),
    }

    fn text() -> impl Strategy<Value = Vec<u16>> {
        let unit = prop_oneof![0x20_u16..0x7f, Just(0xd83d), Just(0xde00), Just(0), any::<u16>()];
        vec(unit, 0..4)
    }

    fn json(depth: u32) -> impl Strategy<Value = Json> {
        let number = prop_oneof![
            any::<i64>().prop_map(|number| number.to_string()),
            Just("18446744073709551616".to_owned()),
            Just("18446744073709551617".to_owned()),
            (any::<i8>(), 0_u16..500).prop_map(|(digits, exponent)| format!("{digits}.5e{exponent}")),
        ];
        let leaf = prop_oneof![
            prop_oneof![Just("null"), Just("true"), Just("false")].prop_map(Json::Literal),
            number.prop_map(Json::Number),
            text().prop_map(Json::Text),
        ];
        leaf.prop_recursive(depth, 24, 4, |inner| {
            prop_oneof![
                vec(inner.clone(), 0..4).prop_map(Json::Items),
                vec((text(), inner), 0..4).prop_map(Json::Members)
            ]
        })
    }

    /// Chooses the notation of a value where it must not count.
    struct Style<'a>(std::iter::Cycle<std::slice::Iter<'a, u8>>);

    impl Style<'_> {
        fn choose(&mut self, choices: usize) -> usize {
            usize::from(*self.0.next().unwrap()) % choices
        }

        fn space(&mut self) -> &'static str {
            ["", "", " ", "\n\t"][self.choose(4)]
        }

        fn text(&mut self, units: &[u16]) -> String {
            let unit = |unit: &u16| match char::from_u32(u32::from(*unit)) {
                Some(plain @ ' '..='~') if !matches!(plain, '"' | '\\') && self.choose(2) == 0 => plain.to_string(),
                _ => format!("\\u{unit:04x}"),
            };
            format!("\"{}\"", units.iter().map(unit).collect::<String>())
        }

        fn json(&mut self, value: &Json) -> String {
            let written = match value {
                Json::Literal(literal) => (*literal).to_owned(),
                Json::Number(number) => number.clone(),
                Json::Text(text) => self.text(text),
                Json::Items(items) => {
                    let items: Vec<String> = items.iter().map(|item| self.json(item)).collect();
                    format!("[{}{}]", self.space(), items.join(","))
                }
                Json::Members(members) => {
                    let mut members: Vec<_> = members.iter().collect();
                    // The sort is stable: members with the same name keep their order.
                    if self.choose(2) == 0 {
                        members.sort_by(|(a, _), (b, _)| b.cmp(a));
                    }
                    let member = |(name, value): &(Vec<u16>, Json)| {
                        format!("{}{}:{}", self.text(name), self.space(), self.json(value))
                    };
                    format!("{{{}}}", members.into_iter().map(member).collect::<Vec<_>>().join(","))
                }
            };
            format!("{}{written}{}", self.space(), self.space())
        }
    }

    fn sorted(value: &Json) -> Json {
        match value {
            Json::Items(items) => Json::Items(items.iter().map(sorted).collect()),
            Json::Members(members) => {
                let mut members: Vec<_> = members.iter().map(|(name, value)| (name.clone(), sorted(value))).collect();
                members.sort_by(|(a, _), (b, _)| a.cmp(b));
                Json::Members(members)
            }
            leaf => leaf.clone(),
        }
    }

    fn fingerprint_of(style: &[u8], ignored: &Json) -> i64 {
        let ignored = Style(style.iter().cycle()).json(ignored);
        fingerprint(
            &format!(r#"{{"x":{ignored},"seriesIds":[101],"customer":{{"id":"c"}}}}"#),
            Source::Instore,
            None,
            None,
        )
    }

    proptest! {
        #[test]
        fn the_notation_of_a_value_does_not_count(value in json(5), first in vec(any::<u8>(), 1..50), second in vec(any::<u8>(), 1..50)) {
            prop_assert_eq!(fingerprint_of(&first, &value), fingerprint_of(&second, &value));
        }

        /// Also for values that are deeper than [`MAX_DEPTH`], or that `serde_json` cannot represent.
        #[test]
        fn different_values_have_different_fingerprints(first in json(12), second in json(12), style in vec(any::<u8>(), 1..50)) {
            let is_same = fingerprint_of(&style, &first) == fingerprint_of(&style, &second);
            prop_assert_eq!(is_same, sorted(&first) == sorted(&second));
        }

        #[test]
        fn the_customer_counts_whatever_else_is_in_the_body(value in json(12), style in vec(any::<u8>(), 1..50)) {
            let ignored = Style(style.iter().cycle()).json(&value);
            let [aa, bb] = ["aa", "bb"].map(|id| {
                let body = format!(r#"{{"seriesIds":[101],"customer":{{"id":"{id}"}},"x":{ignored}}}"#);
                fingerprint(&body, Source::Instore, None, None)
            });
            prop_assert_ne!(aa, bb);
        }
    }

    #[test]
    fn an_id_is_the_same_as_a_number_and_as_a_string() {
        let fingerprint_of = |series: &str, id: &str, mobile: &str| {
            let body = format!(r#"{{"seriesIds":{series},"customer":{{"id":{id},"mobile":{mobile}}},"x":"1"}}"#);
            fingerprint(&body, Source::Instore, None, None)
        };
        let first = fingerprint_of("[101]", "7", "919900000001");
        for (series, id, mobile) in [
            (r#"["101"]"#, "7", "919900000001"),
            ("[101.0]", r#""7""#, "919900000001"),
            ("[1.01e2]", "7.0", r#""919900000001""#),
        ] {
            assert_eq!(fingerprint_of(series, id, mobile), first, "{series} {id} {mobile}");
        }
        assert_ne!(fingerprint_of("[101]", "7", "919900000002"), first);
        assert_ne!(fingerprint_of("[101,101]", "7", "919900000001"), first);
        let [number, text] = ["1", r#""1""#].map(|x| {
            let body = format!(r#"{{"seriesIds":[101],"customer":{{"id":7}},"x":{x}}}"#);
            fingerprint(&body, Source::Instore, None, None)
        });
        assert_ne!(number, text, "elsewhere a number and a string are different");
    }
}
