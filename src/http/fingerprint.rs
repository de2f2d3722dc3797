//! What makes two requests under one key the same request (contract 6): a hash of all that a request asks for.
//!
//! It is taken of the text that was accepted, value by value: the order of an object's members and the space between them do not
//! count. It cannot fail. What cannot be taken apart counts letter by letter, so that two bodies with different values never
//! have one fingerprint; a stricter second parser once gave all bodies that it could not read the same one.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_bytes::ByteBuf;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use super::ids::{IdNumber, IdText, MobileText};
use crate::model::{Attribution, Source};

/// Of how the hash is taken: the first byte.
const VERSION: u8 = 1;

/// So deep are values taken apart: each level is read once more. What lies deeper counts letter by letter.
const DEPTH: usize = 8;

/// The fingerprint of a body that was accepted, of its query, and of the till or store that it names.
pub(super) fn fingerprint(
    body: &str,
    source: Source,
    account_id: Option<&str>,
    attribution: Option<Attribution<'_>>,
) -> i64 {
    let mut hash = Sha256::new();
    match serde_json::from_str::<&RawValue>(body) {
        Ok(value) => add(&mut hash, value, Place::Body, 0),
        Err(_) => add_bytes(&mut hash, b'r', body.as_bytes()),
    }
    add_query(&mut hash, source, account_id);
    match attribution {
        Some(Attribution::Till(till_id)) => add_bytes(&mut hash, b't', till_id.as_bytes()),
        Some(Attribution::Store(store_id)) => add_bytes(&mut hash, b's', &store_id.0.to_be_bytes()),
        None => {}
    }
    // Seven bytes of it: by chance two requests have one fingerprint once in 72,000,000,000,000,000 times.
    let mut bytes: [u8; 8] = hash.finalize()[..8].try_into().unwrap_or_default();
    bytes[0] = VERSION;
    i64::from_be_bytes(bytes)
}

fn add_query(hash: &mut Sha256, source: Source, account_id: Option<&str>) {
    add_bytes(hash, b'q', source.name().as_bytes());
    add_bytes(hash, b'q', account_id.unwrap_or_default().as_bytes());
}

/// Where a value stands, as far as that decides what it means: an id is the same as a number and as a string.
#[derive(Clone, Copy)]
enum Place {
    Body,
    SeriesIds,
    SeriesId,
    Customer,
    CustomerId,
    Mobile,
    Other,
}

impl Place {
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

    /// What a value here is, where it is an id.
    fn id(self, json: &str) -> Option<String> {
        // What is no id was not accepted as one, and is none: `null`.
        match self {
            Self::SeriesId => serde_json::from_str::<IdNumber>(json).ok().map(|id| id.0.to_string()),
            Self::CustomerId => serde_json::from_str::<IdText>(json).ok().map(|id| id.0),
            Self::Mobile => serde_json::from_str::<MobileText>(json).ok().map(|mobile| mobile.0),
            Self::Body | Self::SeriesIds | Self::Customer | Self::Other => None,
        }
    }
}

/// Each value with its kind and its length, so that no two read alike.
fn add(hash: &mut Sha256, value: &RawValue, place: Place, depth: usize) {
    let json = value.get();
    if let Some(id) = place.id(json) {
        return add_bytes(hash, b'"', id.as_bytes());
    }
    let is_added = match json.as_bytes().first() {
        Some(b'"') => add_text(hash, json),
        Some(b'[') if depth < DEPTH => add_items(hash, json, place, depth),
        Some(b'{') if depth < DEPTH => add_members(hash, json, place, depth),
        _ => false,
    };
    if !is_added {
        add_bytes(hash, b'r', json.as_bytes());
    }
}

/// As its bytes, in which half of a surrogate pair has a form, too.
fn add_text(hash: &mut Sha256, json: &str) -> bool {
    let Ok(text) = serde_json::from_str::<ByteBuf>(json) else { return false };
    add_bytes(hash, b'"', &text);
    true
}

fn add_items(hash: &mut Sha256, json: &str, place: Place, depth: usize) -> bool {
    let Ok(items) = serde_json::from_str::<Vec<&RawValue>>(json) else { return false };
    add_length(hash, b'[', items.len());
    for item in items {
        add(hash, item, place.of_item(), depth + 1);
    }
    true
}

fn add_members(hash: &mut Sha256, json: &str, place: Place, depth: usize) -> bool {
    let Ok(Members(mut members)) = serde_json::from_str(json) else { return false };
    // Those of one name stay in their order.
    members.sort_by(|(one, _), (other, _)| one.cmp(other));
    add_length(hash, b'{', members.len());
    for (name, value) in members {
        add_bytes(hash, b':', &name);
        add(hash, value, place.of_member(&name), depth + 1);
    }
    true
}

/// An object's members in their order, each as often as it is there.
struct Members<'a>(Vec<(ByteBuf, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Each;
        impl<'de> Visitor<'de> for Each {
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
        deserializer.deserialize_map(Each)
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

    /// A JSON value, with its strings as UTF-16: half of a surrogate pair may be among them.
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

    /// How a value is written where that does not count, drawn as it goes.
    struct Style<'a>(std::iter::Cycle<std::slice::Iter<'a, u8>>);

    impl Style<'_> {
        fn draw(&mut self, ways: usize) -> usize {
            usize::from(*self.0.next().unwrap()) % ways
        }

        fn space(&mut self) -> &'static str {
            ["", "", " ", "\n\t"][self.draw(4)]
        }

        fn text(&mut self, units: &[u16]) -> String {
            let unit = |unit: &u16| match char::from_u32(u32::from(*unit)) {
                Some(plain @ ' '..='~') if !matches!(plain, '"' | '\\') && self.draw(2) == 0 => plain.to_string(),
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
                    // Those of one name stay in their order.
                    if self.draw(2) == 0 {
                        members.sort_by(|(one, _), (other, _)| other.cmp(one));
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

    /// Its members in one order.
    fn sorted(value: &Json) -> Json {
        match value {
            Json::Items(items) => Json::Items(items.iter().map(sorted).collect()),
            Json::Members(members) => {
                let mut members: Vec<_> = members.iter().map(|(name, value)| (name.clone(), sorted(value))).collect();
                members.sort_by(|(one, _), (other, _)| one.cmp(other));
                Json::Members(members)
            }
            leaf => leaf.clone(),
        }
    }

    fn of(style: &[u8], ignored: &Json) -> i64 {
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
        fn how_a_value_is_written_does_not_count(value in json(5), one in vec(any::<u8>(), 1..50), other in vec(any::<u8>(), 1..50)) {
            prop_assert_eq!(of(&one, &value), of(&other, &value));
        }

        /// Also where they are deeper than they are taken apart, and beyond what another parser reads.
        #[test]
        fn two_values_have_two_fingerprints(one in json(12), other in json(12), style in vec(any::<u8>(), 1..50)) {
            let is_same = of(&style, &one) == of(&style, &other);
            prop_assert_eq!(is_same, sorted(&one) == sorted(&other));
        }

        #[test]
        fn whatever_else_a_body_holds_its_customer_counts(value in json(12), style in vec(any::<u8>(), 1..50)) {
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
        let of = |series: &str, id: &str, mobile: &str| {
            let body = format!(r#"{{"seriesIds":{series},"customer":{{"id":{id},"mobile":{mobile}}},"x":"1"}}"#);
            fingerprint(&body, Source::Instore, None, None)
        };
        let first = of("[101]", "7", "919900000001");
        for (series, id, mobile) in [
            (r#"["101"]"#, "7", "919900000001"),
            ("[101.0]", r#""7""#, "919900000001"),
            ("[1.01e2]", "7.0", r#""919900000001""#),
        ] {
            assert_eq!(of(series, id, mobile), first, "{series} {id} {mobile}");
        }
        assert_ne!(of("[101]", "7", "919900000002"), first);
        assert_ne!(of("[101,101]", "7", "919900000001"), first);
        let [number, text] = ["1", r#""1""#].map(|x| {
            let body = format!(r#"{{"seriesIds":[101],"customer":{{"id":7}},"x":{x}}}"#);
            fingerprint(&body, Source::Instore, None, None)
        });
        assert_ne!(number, text, "elsewhere they are not");
    }
}
