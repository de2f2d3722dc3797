//! Schemas with constraints that Rust types do not have: lengths, patterns, bounds, and that a customer needs an identifier.
//! Each has exactly the constraints that the handler checks.

use std::ops::RangeInclusive;

use serde_json::{Value, json};
use utoipa::openapi::extensions::Extensions;
use utoipa::openapi::schema::{
    Array, ArrayBuilder, KnownFormat, Object, ObjectBuilder, SchemaFormat, SchemaType, Type,
};
use utoipa::openapi::{Components, RefOr, Schema};
use utoipa::{Number, PartialSchema, ToSchema};

use crate::auth::{MAX_NAME_LENGTH, SCOPE};
use crate::config::HttpSettings;
use crate::model::{MOBILE_MARKS, Source, TargetType};

/// White space in Unicode.
const BLANK: &str = r"[\u0009-\u000D\u0020\u0085\u00A0\u1680\u2000-\u200A\u2028\u2029\u202F\u205F\u3000]";
/// The separators between scopes.
const SPACE: &str = r"[\u0009\u000A\u000C\u000D ]";
const NO_NUL: &str = r"^[^\u0000]*$";

/// An idempotency key in a header: an RFC 8941 string, or without quotes.
const KEY: &str = r#"^(?:"(?:[ !#-\[\]-~]|\\["\\]){1,255}"|[!#-~](?:[ -~]{0,253}[!-~])?|"(?:[ -~]{0,253}[!#-~])?)$"#;

fn string(description: &str, max_length: usize, pattern: &str) -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .description(Some(description))
        .max_length(Some(max_length))
        .pattern(Some(pattern))
}

fn nullable(builder: ObjectBuilder) -> ObjectBuilder {
    builder.schema_type(SchemaType::from_iter([Type::String, Type::Null]))
}

/// `seriesIds`; [`set_limits`] adds the maximum.
pub(in crate::http) fn series_ids() -> Array {
    let id = ObjectBuilder::new()
        .schema_type(SchemaType::from_iter([Type::Integer, Type::String]))
        .format(Some(SchemaFormat::KnownFormat(KnownFormat::Int64)))
        .minimum(Some(Number::Int(isize::MIN)))
        .maximum(Some(Number::Int(isize::MAX)))
        .pattern(Some("^0*[0-9]{1,18}$"));
    ArrayBuilder::new()
        .items(id)
        .min_items(Some(1))
        .description(Some("Integers, or strings of their digits. A repeated id is processed again, in order."))
        .examples([json!([101, 102])])
        .build()
}

pub(in crate::http) fn customer_id() -> Object {
    string("A string or an integer: `\"566881933\"` and `566881933` are the same.", 255, NO_NUL)
        .schema_type(SchemaType::from_iter([Type::String, Type::Integer, Type::Null]))
        .minimum(Some(Number::Int(isize::MIN)))
        .maximum(Some(Number::UInt(usize::MAX)))
        .examples([json!("566881933")])
        .build()
}

pub(in crate::http) fn mobile() -> Object {
    let range = |marks: &RangeInclusive<char>| {
        format!(r"\u{:04X}-\u{:04X}", u32::from(*marks.start()), u32::from(*marks.end()))
    };
    let marks: String = MOBILE_MARKS.iter().map(range).collect();
    let pattern = format!(r"^(?:{BLANK}*|(?:[{marks}]*[0-9]){{1,20}}[{marks}]*)$");
    string("A string or a number. Its digits are compared.", 255, &pattern)
        .schema_type(SchemaType::from_iter([Type::String, Type::Integer, Type::Null]))
        .minimum(Some(Number::Int(0)))
        .maximum(Some(Number::UInt(usize::MAX)))
        .examples([json!("+91 99000 00001")])
        .build()
}

pub(in crate::http) fn email() -> Object {
    nullable(string("Compared case-insensitively.", 254, NO_NUL)).examples([json!("someone@example.com")]).build()
}

pub(in crate::http) fn external_id() -> Object {
    nullable(string("The customer's id in another system.", 255, NO_NUL)).build()
}

pub(in crate::http) fn source() -> Object {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .description(Some("Where the customer was; stored with the coupon. Empty: the same as absent."))
        .enum_values(Some(Source::NAMES.iter().copied().chain([""])))
        .default(Some(json!(Source::default().name())))
        .build()
}

pub(in crate::http) fn account_id() -> Object {
    string("Stored with the coupon.", 255, NO_NUL).build()
}

pub(in crate::http) fn grant_type() -> Object {
    ObjectBuilder::new().schema_type(Type::String).enum_values(Some(["client_credentials"])).build()
}

pub(in crate::http) fn scope() -> Object {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .pattern(Some(format!("^{SPACE}*(?:{SCOPE}(?:{SPACE}+{SCOPE})*{SPACE}*)?$")))
        .examples([json!(SCOPE)])
        .description(Some("Absent: everything that the client may have."))
        .build()
}

/// A schema of a value that has no Rust type.
macro_rules! described {
    ($name:ident, $doc:literal, $schema:expr) => {
        #[doc = $doc]
        pub(in crate::http) struct $name;

        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                $schema.build().into()
            }
        }

        impl ToSchema for $name {}
    };
}

described!(
    RequestKey,
    "The header `Idempotency-Key`, which is optional.",
    ObjectBuilder::new().schema_type(Type::String).pattern(Some(KEY)).examples([json!("bill-4711")])
);
described!(
    PathKey,
    "The same in a path, where no quotes are taken off.",
    ObjectBuilder::new().schema_type(Type::String).pattern(Some("^[ -~]{1,255}$")).examples([json!("bill-4711")])
);
described!(
    EntityType,
    "The header `X-CAP-API-ATTRIBUTION-ENTITY-TYPE`, in any case.",
    ObjectBuilder::new()
        .schema_type(Type::String)
        .enum_values(Some(TargetType::NAMES.iter().copied().chain([""])))
        .default(Some(json!(TargetType::Till.name())))
);
described!(
    EntityCode,
    "The header `X-CAP-API-ATTRIBUTION-ENTITY-CODE`, or the older `X-CAP-API-ATTRIBUTION-TILL-CODE`.",
    ObjectBuilder::new().schema_type(Type::String).max_length(Some(MAX_NAME_LENGTH)).examples([json!("kiosk")])
);
described!(
    DocsFile,
    "What the page `/docs` is made of.",
    ObjectBuilder::new().schema_type(Type::String).enum_values(Some(crate::http::docs::FILES))
);
described!(
    Replayed,
    "The header `Idempotent-Replayed`.",
    ObjectBuilder::new().schema_type(Type::String).enum_values(Some(["true"]))
);
described!(
    KeySet,
    "A JSON Web Key Set.",
    ObjectBuilder::new().required("keys").property(
        "keys",
        ArrayBuilder::new().items(
            ["kty", "kid", "alg", "use", "n", "e"]
                .into_iter()
                .fold(ObjectBuilder::new().required("kty"), |key, name| {
                    key.property(name, ObjectBuilder::new().schema_type(Type::String))
                })
        )
    )
);

/// Sets the limits that depend on the settings, and that a customer needs an identifier.
pub(super) fn set_limits(components: &mut Components, settings: &HttpSettings) {
    let request = object(components, "IssueRequest");
    if let Some(RefOr::T(Schema::Array(ids))) = request.and_then(|request| request.properties.get_mut("seriesIds")) {
        ids.max_items = Some(settings.max_series_ids);
    }
    if let Some(customer) = object(components, "Customer") {
        let blank: Value = json!({"type": ["string", "null"], "pattern": format!("^{BLANK}*$")});
        let all_blank = json!({"properties": {"id": blank, "mobile": blank, "externalId": blank, "email": blank}});
        customer.extensions = Some(Extensions::from_iter([("not", all_blank)]));
    }
}

fn object<'c>(components: &'c mut Components, name: &str) -> Option<&'c mut Object> {
    match components.schemas.get_mut(name) {
        Some(RefOr::T(Schema::Object(object))) => Some(object),
        _ => None,
    }
}
