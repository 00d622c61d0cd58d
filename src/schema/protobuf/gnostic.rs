//! OpenAPI v2 in protobuf, as Go's discovery client asks for it (`OpenAPISchema`). The messages are those of gnostic's `openapiv2/OpenAPIv2.proto`,
//! as far as documents of this server have them.

use super::write::{put_bytes, put_int, put_number};
use crate::meta::{Meta, Value};

/// What a field holds.
#[derive(Clone, Copy)]
enum Of {
    Text,
    Texts,
    Bool,
    Int,
    Number,
    /// Any JSON, as YAML text.
    Any,
    Anys,
    Message(&'static str),
    Messages(&'static str),
    /// A message within messages: each number leads one further in.
    Within(&'static [u32], &'static str),
    Type,
    Parameters,
    /// A schema, or whether there may be anything.
    Additional,
    Requirements,
}

use Of::{Additional, Any, Anys, Bool, Int, Message, Messages, Number, Parameters, Requirements, Text, Texts, Type, Within};

/// Message, member, number and what stands there. A member `*` is each that is not named: an entry of a map. `x-` are extensions.
#[rustfmt::skip]
const FIELDS: &[(&str, &str, u32, Of)] = &[
    ("Document", "swagger", 1, Text), ("Document", "info", 2, Message("Info")), ("Document", "paths", 8, Message("Paths")), ("Document", "definitions", 9, Message("Schemas")),
    ("Document", "security", 12, Requirements), ("Document", "securityDefinitions", 13, Message("SecurityDefinitions")), ("Document", "x-", 16, Any),
    ("Info", "title", 1, Text), ("Info", "version", 2, Text), ("Info", "description", 3, Text), ("Info", "x-", 7, Any),
    ("Paths", "x-", 1, Any), ("Paths", "*", 2, Message("PathItem")),
    ("PathItem", "get", 2, Message("Operation")), ("PathItem", "put", 3, Message("Operation")), ("PathItem", "post", 4, Message("Operation")), ("PathItem", "delete", 5, Message("Operation")),
    ("PathItem", "options", 6, Message("Operation")), ("PathItem", "head", 7, Message("Operation")), ("PathItem", "patch", 8, Message("Operation")), ("PathItem", "parameters", 9, Parameters), ("PathItem", "x-", 10, Any),
    ("Operation", "tags", 1, Texts), ("Operation", "description", 3, Text), ("Operation", "operationId", 5, Text), ("Operation", "produces", 6, Texts), ("Operation", "consumes", 7, Texts),
    ("Operation", "parameters", 8, Parameters), ("Operation", "responses", 9, Message("Responses")), ("Operation", "schemes", 10, Texts), ("Operation", "x-", 13, Any),
    ("Responses", "*", 1, Within(&[1], "Response")), ("Response", "description", 1, Text), ("Response", "schema", 2, Within(&[1], "Schema")),
    ("Body", "description", 1, Text), ("Body", "name", 2, Text), ("Body", "in", 3, Text), ("Body", "required", 4, Bool), ("Body", "schema", 5, Message("Schema")),
    ("Query", "required", 1, Bool), ("Query", "in", 2, Text), ("Query", "description", 3, Text), ("Query", "name", 4, Text), ("Query", "type", 6, Text), ("Query", "uniqueItems", 20, Bool),
    ("Path", "required", 1, Bool), ("Path", "in", 2, Text), ("Path", "description", 3, Text), ("Path", "name", 4, Text), ("Path", "type", 5, Text), ("Path", "uniqueItems", 19, Bool),
    ("Schemas", "*", 1, Message("Schema")),
    ("Schema", "$ref", 1, Text), ("Schema", "format", 2, Text), ("Schema", "title", 3, Text), ("Schema", "description", 4, Text), ("Schema", "default", 5, Any), ("Schema", "multipleOf", 6, Number),
    ("Schema", "maximum", 7, Number), ("Schema", "exclusiveMaximum", 8, Bool), ("Schema", "minimum", 9, Number), ("Schema", "exclusiveMinimum", 10, Bool), ("Schema", "maxLength", 11, Int), ("Schema", "minLength", 12, Int),
    ("Schema", "pattern", 13, Text), ("Schema", "maxItems", 14, Int), ("Schema", "minItems", 15, Int), ("Schema", "uniqueItems", 16, Bool), ("Schema", "maxProperties", 17, Int), ("Schema", "minProperties", 18, Int),
    ("Schema", "required", 19, Texts), ("Schema", "enum", 20, Anys), ("Schema", "additionalProperties", 21, Additional), ("Schema", "type", 22, Type), ("Schema", "items", 23, Within(&[1], "Schema")),
    ("Schema", "allOf", 24, Messages("Schema")), ("Schema", "properties", 25, Message("Schemas")), ("Schema", "externalDocs", 29, Message("ExternalDocs")), ("Schema", "example", 30, Any), ("Schema", "x-", 31, Any),
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
    let all = value.as_array().map(Vec::as_slice).unwrap_or_default();
    match of {
        Text => put_bytes(out, number, value.as_str().unwrap_or_default().as_bytes()),
        Texts => all.iter().for_each(|it| put(out, number, Text, it)),
        Bool => put_int(out, number, i64::from(*value == true)),
        Int => put_int(out, number, value.as_i64().unwrap_or_default()),
        Number => put_number(out, number, value.as_f64().unwrap_or_default()),
        Any => put_bytes(out, number, &within(&[2], value.to_string().into_bytes())),
        Anys => all.iter().for_each(|it| put(out, number, Any, it)),
        Message(kind) => put_bytes(out, number, &message(kind, value)),
        Messages(kind) => all.iter().for_each(|it| put(out, number, Message(kind), it)),
        Within(path, kind) => put_bytes(out, number, &within(path, message(kind, value))),
        Type => put_bytes(out, number, &within(&[1], value.as_str().unwrap_or_default().into())),
        Parameters => all.iter().for_each(|it| match it.text("in") {
            "body" => put(out, number, Within(&[1, 1], "Body"), it),
            "path" => put(out, number, Within(&[1, 2, 4], "Path"), it),
            _ => put(out, number, Within(&[1, 2, 3], "Query"), it),
        }),
        Additional if value.is_object() => put(out, number, Within(&[1], "Schema"), value),
        Additional => {
            let mut is_open = Vec::new();
            put_int(&mut is_open, 2, i64::from(*value == true));
            put_bytes(out, number, &is_open);
        }
        Requirements => {
            for (name, scopes) in all.iter().filter_map(Value::as_object).flatten() {
                let mut named = Vec::new();
                put_bytes(&mut named, 1, name.as_bytes());
                let mut texts = Vec::new();
                put(&mut texts, 1, Texts, scopes);
                put_bytes(&mut named, 2, &texts);
                put_bytes(out, number, &within(&[1], named));
            }
        }
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
