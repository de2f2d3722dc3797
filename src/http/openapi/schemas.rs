//! The forms of values that their Rust types do not tell: lengths, characters, bounds, and what a customer must have.
//! Each says what the handler checks, no more and no less.

use std::ops::RangeInclusive;

use serde_json::{Value, json};
use utoipa::openapi::extensions::Extensions;
use utoipa::openapi::schema::{
    Array, ArrayBuilder, KnownFormat, Object, ObjectBuilder, SchemaFormat, SchemaType, Type,
};
use utoipa::openapi::{Components, RefOr, Schema};
use utoipa::{Number, PartialSchema, ToSchema};

use super::object;
use crate::auth::{LONGEST_NAME, SCOPE};
use crate::config::HttpSettings;
use crate::model::{MOBILE_MARKS, Source, TargetType};

/// Whatever Unicode calls white space.
const BLANK: &str = r"[\u0009-\u000D\u0020\u0085\u00A0\u1680\u2000-\u200A\u2028\u2029\u202F\u205F\u3000]";
/// What separates scopes.
const SPACE: &str = r"[\u0009\u000A\u000C\u000D ]";
const NO_NUL: &str = r"^[^\u0000]*$";

/// A key as it is in a header: in quotes, where only a quote and a backslash are escaped, or as it is.
const KEY: &str = r#"^(?:"(?:[ !#-\[\]-~]|\\["\\]){1,255}"|[!#-~](?:[ -~]{0,253}[!-~])?|"(?:[ -~]{0,253}[!#-~])?)$"#;

fn string(description: &str, longest: usize, pattern: &str) -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .description(Some(description))
        .max_length(Some(longest))
        .pattern(Some(pattern))
}

fn nullable(builder: ObjectBuilder) -> ObjectBuilder {
    builder.schema_type(SchemaType::from_iter([Type::String, Type::Null]))
}

/// `seriesIds`; the most that there may be is set by [`bound`].
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
        .description(Some("Integers, or strings of their digits. One listed again is processed again, in order."))
        .examples([json!([101, 102])])
        .build()
}

/// `customer.id`.
pub(in crate::http) fn customer_id() -> Object {
    string("A string or an integer: `\"566881933\"` and `566881933` are the same.", 255, NO_NUL)
        .schema_type(SchemaType::from_iter([Type::String, Type::Integer, Type::Null]))
        .minimum(Some(Number::Int(isize::MIN)))
        .maximum(Some(Number::UInt(usize::MAX)))
        .examples([json!("566881933")])
        .build()
}

/// `customer.mobile`.
pub(in crate::http) fn mobile() -> Object {
    let range = |marks: &RangeInclusive<char>| {
        format!(r"\u{:04X}-\u{:04X}", u32::from(*marks.start()), u32::from(*marks.end()))
    };
    let marks: String = MOBILE_MARKS.iter().map(range).collect();
    let pattern = format!(r"^(?:{BLANK}*|(?:[{marks}]*[0-9]){{1,20}}[{marks}]*)$");
    string("Compared as its digits: a string, or a number.", 255, &pattern)
        .schema_type(SchemaType::from_iter([Type::String, Type::Integer, Type::Null]))
        .minimum(Some(Number::Int(0)))
        .maximum(Some(Number::UInt(usize::MAX)))
        .examples([json!("+91 99000 00001")])
        .build()
}

/// `customer.email`.
pub(in crate::http) fn email() -> Object {
    nullable(string("Compared without regard to case.", 254, NO_NUL)).examples([json!("someone@example.com")]).build()
}

/// `customer.externalId`.
pub(in crate::http) fn external_id() -> Object {
    nullable(string("The customer's id in another system.", 255, NO_NUL)).build()
}

/// `source`.
pub(in crate::http) fn source() -> Object {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .description(Some("Where the customer was; stored with the coupon. Empty: as if left out."))
        .enum_values(Some(Source::ALL.map(Source::name).into_iter().chain([""])))
        .default(Some(json!(Source::default().name())))
        .build()
}

/// `accountId`.
pub(in crate::http) fn account_id() -> Object {
    string("Stored with the coupon.", 255, NO_NUL).build()
}

/// `grant_type`.
pub(in crate::http) fn grant_type() -> Object {
    ObjectBuilder::new().schema_type(Type::String).enum_values(Some(["client_credentials"])).build()
}

/// `scope`.
pub(in crate::http) fn scope() -> Object {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .pattern(Some(format!("^{SPACE}*(?:{SCOPE}(?:{SPACE}+{SCOPE})*{SPACE}*)?$")))
        .examples([json!(SCOPE)])
        .description(Some("Left out: what the client may have."))
        .build()
}

/// A value that is described here and has no type of its own.
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
    "The header `Idempotency-Key`, which may be left out.",
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
        .enum_values(Some(TargetType::ALL.map(TargetType::name).into_iter().chain([""])))
        .default(Some(json!(TargetType::Till.name())))
);
described!(
    EntityCode,
    "The header `X-CAP-API-ATTRIBUTION-ENTITY-CODE`, or the older `X-CAP-API-ATTRIBUTION-TILL-CODE`.",
    ObjectBuilder::new().schema_type(Type::String).max_length(Some(LONGEST_NAME)).examples([json!("kiosk")])
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

/// Sets the bounds of this service, and what a customer must have.
pub(super) fn bound(components: &mut Components, settings: &HttpSettings) {
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
