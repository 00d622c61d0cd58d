//! OpenAPI v2 in protobuf, as Go's discovery client asks for it (`OpenAPISchema`). The messages are those of gnostic's `openapiv2/OpenAPIv2.proto`,
//! as far as documents of this server have them.

use super::write::{put_bytes, put_int, put_number};
use crate::meta::{Meta, Value};

/// What a field holds.
#[derive(Clone, Copy)]
enum Of {
    Text,
    /// A boolean too.
    Int,
    Number,
    /// Any JSON, as YAML text.
    Any,
    Anys,
    /// A message within messages: each number leads one further in.
    Within(&'static [u32], &'static str),
    Type,
    Parameter,
    /// A schema, or whether there may be anything.
    Additional,
    Requirement,
}

use Of::{Additional, Any, Anys, Int, Number, Parameter, Requirement, Text, Type, Within};

const fn message_of(kind: &'static str) -> Of {
    Within(&[], kind)
}

/// Message, member, number and what stands there, or what stands in a list there. A member `*` is each that is not named: an entry of a map. `x-` are extensions.
#[rustfmt::skip]
const FIELDS: &[(&str, &str, u32, Of)] = &[
    ("Document", "swagger", 1, Text), ("Document", "info", 2, message_of("Info")), ("Document", "paths", 8, message_of("Paths")), ("Document", "definitions", 9, message_of("Schemas")),
    ("Document", "security", 12, Requirement), ("Document", "securityDefinitions", 13, message_of("SecurityDefinitions")), ("Document", "x-", 16, Any),
    ("Info", "title", 1, Text), ("Info", "version", 2, Text), ("Info", "description", 3, Text), ("Info", "x-", 7, Any),
    ("Paths", "x-", 1, Any), ("Paths", "*", 2, message_of("PathItem")),
    ("PathItem", "get", 2, message_of("Operation")), ("PathItem", "put", 3, message_of("Operation")), ("PathItem", "post", 4, message_of("Operation")), ("PathItem", "delete", 5, message_of("Operation")),
    ("PathItem", "options", 6, message_of("Operation")), ("PathItem", "head", 7, message_of("Operation")), ("PathItem", "patch", 8, message_of("Operation")), ("PathItem", "parameters", 9, Parameter), ("PathItem", "x-", 10, Any),
    ("Operation", "tags", 1, Text), ("Operation", "description", 3, Text), ("Operation", "operationId", 5, Text), ("Operation", "produces", 6, Text), ("Operation", "consumes", 7, Text),
    ("Operation", "parameters", 8, Parameter), ("Operation", "responses", 9, message_of("Responses")), ("Operation", "schemes", 10, Text), ("Operation", "x-", 13, Any),
    ("Responses", "*", 1, Within(&[1], "Response")), ("Response", "description", 1, Text), ("Response", "schema", 2, Within(&[1], "Schema")),
    ("Body", "description", 1, Text), ("Body", "name", 2, Text), ("Body", "in", 3, Text), ("Body", "required", 4, Int), ("Body", "schema", 5, message_of("Schema")),
    ("Query", "required", 1, Int), ("Query", "in", 2, Text), ("Query", "description", 3, Text), ("Query", "name", 4, Text), ("Query", "type", 6, Text), ("Query", "uniqueItems", 20, Int),
    ("Path", "required", 1, Int), ("Path", "in", 2, Text), ("Path", "description", 3, Text), ("Path", "name", 4, Text), ("Path", "type", 5, Text), ("Path", "uniqueItems", 19, Int),
    ("Schemas", "*", 1, message_of("Schema")),
    ("Schema", "$ref", 1, Text), ("Schema", "format", 2, Text), ("Schema", "title", 3, Text), ("Schema", "description", 4, Text), ("Schema", "default", 5, Any), ("Schema", "multipleOf", 6, Number),
    ("Schema", "maximum", 7, Number), ("Schema", "exclusiveMaximum", 8, Int), ("Schema", "minimum", 9, Number), ("Schema", "exclusiveMinimum", 10, Int), ("Schema", "maxLength", 11, Int), ("Schema", "minLength", 12, Int),
    ("Schema", "pattern", 13, Text), ("Schema", "maxItems", 14, Int), ("Schema", "minItems", 15, Int), ("Schema", "uniqueItems", 16, Int), ("Schema", "maxProperties", 17, Int), ("Schema", "minProperties", 18, Int),
    ("Schema", "required", 19, Text), ("Schema", "enum", 20, Anys), ("Schema", "additionalProperties", 21, Additional), ("Schema", "type", 22, Type), ("Schema", "items", 23, Within(&[1], "Schema")),
    ("Schema", "allOf", 24, message_of("Schema")), ("Schema", "properties", 25, message_of("Schemas")), ("Schema", "externalDocs", 29, message_of("ExternalDocs")), ("Schema", "example", 30, Any), ("Schema", "x-", 31, Any),
    ("ExternalDocs", "description", 1, Text), ("ExternalDocs", "url", 2, Text),
    ("SecurityDefinitions", "*", 1, Within(&[2], "ApiKey")), ("ApiKey", "type", 1, Text), ("ApiKey", "name", 2, Text), ("ApiKey", "in", 3, Text), ("ApiKey", "description", 4, Text),
];

/// A whole document.
pub fn document(json: &Value) -> Vec<u8> {
    message("Document", json)
}

fn message(kind: &str, value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    let find = |member: &str| FIELDS.iter().find(|it| it.0 == kind && it.1 == member);
    for (name, value) in value.as_object().into_iter().flatten() {
        if let Some((.., number, of)) = find(name) {
            put(&mut out, *number, *of, value);
            continue;
        }
        let extension = find("x-").filter(|_| name.starts_with("x-"));
        if let Some((.., number, of)) = extension.or_else(|| find("*")) {
            put_bytes(&mut out, *number, &entry(name, *of, value));
        }
    }
    out
}

/// `NamedSchema` and its like.
fn entry(name: &str, of: Of, value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    put_bytes(&mut out, 1, name.as_bytes());
    put(&mut out, 2, of, value);
    out
}

fn put(out: &mut Vec<u8>, number: u32, of: Of, value: &Value) {
    match (of, value) {
        (Any, _) => put_bytes(out, number, &within(&[2], value.to_string().into_bytes())),
        (_, Value::Array(all)) => all.iter().for_each(|it| put(out, number, if let Anys = of { Any } else { of }, it)),
        (Text, _) => put_bytes(out, number, value.as_str().unwrap_or_default().as_bytes()),
        (Int, _) => put_int(out, number, value.as_i64().unwrap_or(i64::from(*value == true))),
        (Number, _) => put_number(out, number, value.as_f64().unwrap_or_default()),
        (Within(path, kind), _) => put_bytes(out, number, &within(path, message(kind, value))),
        (Type, _) => put_bytes(out, number, &within(&[1], value.as_str().unwrap_or_default().into())),
        (Parameter, _) => match value.text("in") {
            "body" => put(out, number, Within(&[1, 1], "Body"), value),
            "path" => put(out, number, Within(&[1, 2, 4], "Path"), value),
            _ => put(out, number, Within(&[1, 2, 3], "Query"), value),
        },
        (Additional, Value::Object(_)) => put(out, number, Within(&[1], "Schema"), value),
        (Additional, _) => {
            let mut is_open = Vec::new();
            put_int(&mut is_open, 2, i64::from(*value == true));
            put_bytes(out, number, &is_open);
        }
        (Requirement, _) => {
            for (name, scopes) in value.as_object().into_iter().flatten() {
                let mut texts = Vec::new();
                put(&mut texts, 1, Text, scopes);
                let mut named = Vec::new();
                put_bytes(&mut named, 1, name.as_bytes());
                put_bytes(&mut named, 2, &texts);
                put_bytes(out, number, &within(&[1], named));
            }
        }
        (Anys, _) => (),
    }
}

/// Wraps a message into others, the first number being the outermost.
fn within(path: &[u32], inner: Vec<u8>) -> Vec<u8> {
    path.iter().rev().fold(inner, |inner, number| {
        let mut out = Vec::with_capacity(inner.len() + 8);
        put_bytes(&mut out, *number, &inner);
        out
    })
}
