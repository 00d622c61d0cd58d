//! JSON and YAML into a tree, strictly, as Go's decoder and encoder would leave it.
//!
//! Reading is two steps: [`parse_json`] and [`parse_yaml`] build the tree and note keys that stand twice; [`decode_value`] then walks
//! tree and schema together, refuses values of the wrong type, notes and drops unknown fields, writes numbers, times and
//! quantities in their canonical form, and drops or keeps empty values as `omitempty` does.
//! Source: sigs.k8s.io/json, sigs.k8s.io/yaml, apimachinery `pkg/runtime/serializer/json`.

use std::{fmt, sync::LazyLock};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use jiff::Timestamp;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use super::{Field, Schema, SchemaRef, Shape, Struct, builtin};
use crate::meta::{Map, Quantity, Result, Status, Value};

/// The type of a schema in a CRD.
pub(super) static SCHEMA_PROPS: LazyLock<SchemaRef> =
    LazyLock::new(|| builtin("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps").unwrap_or_default());

/// What strict field validation wants to know, in upstream's words (`unknown field "spec.foo"`, `duplicate field "spec.bar"`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notes {
    pub unknown: Vec<String>,
    /// Keys that stand twice. [`parse_object`] puts unknown fields of a built-in type here too, where they stand in the text.
    pub duplicate: Vec<String>,
}

impl Notes {
    /// All notes, duplicates first, as upstream joins them.
    pub fn all(&self) -> impl Iterator<Item = &String> {
        self.duplicate.iter().chain(&self.unknown)
    }
}

/// Parses JSON text of any shape without a schema, and notes its duplicate keys. 400 where it is no JSON, or nested deeper than
/// serde_json's 128 levels.
pub fn parse_json(bytes: &[u8]) -> Result<(Value, Vec<String>)> {
    parse(bytes, None)
}

fn parse(bytes: &[u8], schema: Option<&Schema>) -> Result<(Value, Vec<String>)> {
    let mut notes = Vec::new();
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let seed = Tree { path: &Place::Root, schema, notes: &mut notes };
    let value = seed.deserialize(&mut reader).and_then(|value| reader.end().map(|()| value)).map_err(|error| bad_json(&error, bytes))?;
    Ok((value, notes))
}

/// Parses JSON text that is to become an object of `schema`. Go's decoder meets unknown fields of its types on the way, those of
/// custom resources are looked for afterwards: so are they noted.
pub fn parse_object(bytes: &[u8], schema: &Schema) -> Result<(Value, Vec<String>)> {
    parse(bytes, Some(schema).filter(|it| !it.name.is_empty()))
}

/// Parses one YAML document without a schema, and notes the first key that stands twice in its map. 400 where it is no YAML.
pub fn parse_yaml(bytes: &[u8]) -> Result<(Value, Vec<String>)> {
    let text = std::str::from_utf8(bytes).map_err(|_| Status::bad_request("yaml: invalid leading UTF-8 octet"))?;
    let bad = |error: serde_saphyr::Error| {
        let text = error.without_snippet().to_string();
        Status::bad_request(format!("yaml: {}", text.strip_prefix("error: ").unwrap_or(&text)))
    };
    match serde_saphyr::from_str(text) {
        Ok(value) => Ok((value, Vec::new())),
        Err(error) => {
            let note = duplicate_key(&error).ok_or_else(|| bad(error))?;
            let options = serde_saphyr::options! { duplicate_keys: serde_saphyr::DuplicateKeyPolicy::LastWins };
            Ok((serde_saphyr::from_str_with_options(text, options).map_err(bad)?, vec![note]))
        }
    }
}

/// What sigs.k8s.io/yaml says of a key that stands twice.
fn duplicate_key(error: &serde_saphyr::Error) -> Option<String> {
    match error.without_snippet() {
        serde_saphyr::Error::DuplicateMappingKey { key, location } => {
            Some(format!("yaml: unmarshal errors:\n  line {}: key {:?} already set in map", location.line(), key.clone().unwrap_or_default()))
        }
        _ => None,
    }
}

/// Decodes what was parsed as a value of `schema`. Unknown fields are noted and dropped (kept where the schema preserves them).
pub fn decode((value, duplicate): (Value, Vec<String>), schema: &Schema) -> Result<(Value, Notes)> {
    let (value, notes) = decode_value(value, schema)?;
    Ok((value, Notes { duplicate, ..notes }))
}

/// Checks and normalises a tree: 400 with Go's sentence where a value has the wrong type.
pub fn decode_value(mut value: Value, schema: &Schema) -> Result<(Value, Notes)> {
    let unknown = Walk::over(&mut value, schema)?;
    Ok((value, Notes { unknown, duplicate: Vec::new() }))
}

/// Drops what the schema of a custom resource does not declare, and normalises its metadata as far as that can be read.
pub fn prune(value: &mut Value, schema: &Schema) {
    _ = Walk::over(value, schema);
}

/// What serde_json says, and how Go goes on after `invalid character 'x'` at the same place.
const SYNTAX: [(&str, &str); 10] = [
    ("expected value", "looking for beginning of value"),
    ("key must be a string", "looking for beginning of object key string"),
    ("expected `:`", "after object key"),
    ("expected `,` or `}`", "after object key:value pair"),
    ("expected `,` or `]`", "after array element"),
    ("trailing characters", "after top-level value"),
    ("trailing comma", "looking for beginning of object key string"),
    ("control character (\\u0000-\\u001F) found while parsing a string", "in string literal"),
    ("invalid escape", "in string escape code"),
    ("invalid number", "in numeric literal"),
];

/// The error of Go's decoder in place of serde_json's.
fn bad_json(error: &serde_json::Error, bytes: &[u8]) -> Status {
    let text = error.to_string();
    let reason = text.split(" at line ").next().unwrap_or_default();
    let line = bytes.split(|it| *it == b'\n').nth(error.line().saturating_sub(1)).unwrap_or_default();
    let letter = error.column().checked_sub(1).and_then(|it| line.get(it)).map_or('\n', |it| char::from(*it));
    Status::bad_request(match SYNTAX.iter().find(|it| it.0 == reason) {
        Some((_, place)) => format!("invalid character {} {place}", quoted(letter)),
        None if error.is_eof() => "unexpected end of JSON input".to_owned(),
        None if reason == "recursion limit exceeded" => "exceeded max depth".to_owned(),
        None => format!("invalid JSON: {reason} (line {}, column {})", error.line(), error.column()),
    })
}

/// A character as Go quotes it.
fn quoted(letter: char) -> String {
    match letter {
        '\n' | '\r' | '\t' => format!("{letter:?}"),
        '\0'..='\x1f' => format!("'\\x{:02x}'", u32::from(letter)),
        '\x7f'..='\u{9f}' => format!("'\\u{:04x}'", u32::from(letter)),
        _ => format!("{letter:?}"),
    }
}

/// What Go calls the type of a value.
pub fn json_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Where the walk is, for notes: `spec.containers[0].image`.
enum Place<'a> {
    Root,
    Field(&'a Place<'a>, &'a str),
    Key(&'a Place<'a>, &'a str),
    Index(&'a Place<'a>, usize),
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Field(Self::Root, key) | Self::Key(Self::Root, key) => f.write_str(key),
            Self::Field(parent, key) | Self::Key(parent, key) => write!(f, "{parent}.{key}"),
            Self::Index(parent, at) => write!(f, "{parent}[{at}]"),
        }
    }
}

impl Place<'_> {
    /// The names of the fields of structs on the way, as Go's decoder tells them.
    fn fields(&self) -> Vec<&str> {
        match self {
            Self::Root => Vec::new(),
            Self::Field(parent, name) => [parent.fields(), vec![name]].concat(),
            Self::Key(parent, _) | Self::Index(parent, _) => parent.fields(),
        }
    }
}

/// Builds a tree and notes duplicate keys; with a schema, unknown fields too.
struct Tree<'a, 'n> {
    path: &'a Place<'a>,
    schema: Option<&'a Schema>,
    notes: &'n mut Vec<String>,
}

impl<'de> DeserializeSeed<'de> for Tree<'_, '_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

macro_rules! scalars {
    ($($visit:ident: $of:ty),*) => {
        $(fn $visit<E>(self, value: $of) -> std::result::Result<Value, E> {
            Ok(value.into())
        })*
    };
}

impl<'de> Visitor<'de> for Tree<'_, '_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> std::result::Result<Value, E> {
        Ok(Value::Null)
    }

    scalars!(visit_bool: bool, visit_i64: i64, visit_u64: u64, visit_f64: f64, visit_str: &str, visit_string: String);

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> std::result::Result<Value, A::Error> {
        let mut list = Vec::new();
        let schema = self.schema.and_then(Schema::items);
        loop {
            let path = Place::Index(self.path, list.len());
            match items.next_element_seed(Tree { path: &path, schema, notes: self.notes })? {
                Some(item) => list.push(item),
                None => return Ok(Value::Array(list)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> std::result::Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let path = Place::Key(self.path, &key);
            let schema = self.schema.and_then(|it| it.below(&key));
            if self.schema.and_then(Schema::as_struct).is_some_and(|it| !it.keeps(&key)) {
                let note = format!("unknown field \"{path}\"");
                if !self.notes.contains(&note) {
                    self.notes.push(note);
                }
                entries.next_value::<serde::de::IgnoredAny>()?;
                continue;
            }
            let value = entries.next_value_seed(Tree { path: &path, schema, notes: self.notes })?;
            if map.contains_key(&key) {
                self.notes.push(format!("duplicate field \"{path}\""));
            }
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

/// The walk over a tree and its schema.
struct Walk<'s> {
    unknown: Vec<String>,
    /// The name of the innermost struct's type; empty in a custom resource, whose types are the validator's matter.
    owner: &'s str,
}

impl<'s> Walk<'s> {
    /// Walks over all of a value; returns the unknown fields.
    fn over(value: &mut Value, schema: &'s Schema) -> Result<Vec<String>> {
        let mut walk = Self { unknown: Vec::new(), owner: &schema.name };
        walk.visit(value, schema, &Place::Root)?;
        Ok(walk.unknown)
    }

    fn visit(&mut self, value: &mut Value, schema: &'s Schema, place: &Place<'_>) -> Result<()> {
        if value.is_null() {
            return Ok(());
        }
        match &schema.shape {
            Shape::Object(it) => self.object(value, schema, it, place),
            Shape::List { items, .. } => self.list(value, schema, items, place),
            Shape::Map { values, .. } => self.map(value, schema, values, place),
            Shape::SchemaOrArray | Shape::SchemaOrBool | Shape::SchemaOrStrings => self.union(value, place),
            _ => self.scalar(value, schema, place),
        }
    }

    fn object(&mut self, value: &mut Value, schema: &'s Schema, shape: &'s Struct, place: &Place<'_>) -> Result<()> {
        let Value::Object(map) = value else { return self.mismatch(value, schema, place) };
        let outer = std::mem::replace(&mut self.owner, &schema.name);
        for (name, value) in map.iter_mut() {
            let place = Place::Field(place, name);
            match shape.field(name) {
                Some(field) => self.visit(value, &field.schema, &place)?,
                None if shape.keeps(name) => (),
                None => self.unknown.push(format!("unknown field \"{place}\"")),
            }
        }
        self.owner = outer;
        map.retain(|name, _| shape.keeps(name));
        match schema.is_builtin() {
            true => shape.fields.iter().try_for_each(|field| self.emptiness(map, field, place))?,
            // Null where it is no value of its own is nothing (`PruneNonNullableNullsWithoutDefaults`).
            false => map.retain(|name, value| !value.is_null() || shape.field(name).is_none_or(|it| it.schema.is_nullable)),
        }
        Ok(())
    }

    /// Leaves a field of a Go struct as its encoder would: empty values go, and what has no `omitempty` is written.
    fn emptiness(&mut self, map: &mut Map<String, Value>, field: &'s Field, place: &Place<'_>) -> Result<()> {
        let present = map.get(&field.name).filter(|it| !it.is_null());
        let is_struct = matches!(field.schema.shape, Shape::Object(_));
        match present {
            Some(value) if !field.keeps_zero && is_omitted(value, field) => {
                map.remove(&field.name);
            }
            Some(_) => (),
            None if is_struct && !field.is_pointer => {
                let mut empty = Value::Object(Map::new());
                self.visit(&mut empty, &field.schema, place)?;
                map.insert(field.name.clone(), empty);
            }
            None if field.keeps_zero => {
                map.insert(field.name.clone(), zero(field));
            }
            None => {
                map.remove(&field.name);
            }
        }
        Ok(())
    }

    fn list(&mut self, value: &mut Value, schema: &'s Schema, items: &'s Schema, place: &Place<'_>) -> Result<()> {
        let Value::Array(list) = value else { return self.mismatch(value, schema, place) };
        for (at, item) in list.iter_mut().enumerate() {
            let place = Place::Index(place, at);
            if item.is_null() && !items.name.is_empty() {
                *item = Value::Object(Map::new());
            }
            self.visit(item, items, &place)?;
        }
        Ok(())
    }

    fn map(&mut self, value: &mut Value, schema: &'s Schema, values: &'s Schema, place: &Place<'_>) -> Result<()> {
        let Value::Object(map) = value else { return self.mismatch(value, schema, place) };
        for (key, value) in map.iter_mut() {
            let place = Place::Key(place, key);
            if value.is_null() && !values.is_nullable {
                let is_text = matches!(values.shape, Shape::String) && !self.is_custom();
                *value = values.default.clone().or(is_text.then(|| "".into())).unwrap_or_default();
            }
            self.visit(value, values, &place)?;
        }
        map.retain(|_, value| !value.is_null() || values.is_nullable || !self.is_custom());
        Ok(())
    }

    /// A schema, several, or something simpler. Go decodes these by a method of their own, which drops unknown fields silently.
    fn union(&mut self, value: &mut Value, place: &Place<'_>) -> Result<()> {
        let known = self.unknown.len();
        match value {
            Value::Object(_) => self.visit(value, &SCHEMA_PROPS, place)?,
            Value::Array(list) => list.iter_mut().filter(|it| it.is_object()).try_for_each(|it| self.visit(it, &SCHEMA_PROPS, place))?,
            _ => (),
        }
        self.unknown.truncate(known);
        Ok(())
    }

    fn scalar(&self, value: &mut Value, schema: &Schema, place: &Place<'_>) -> Result<()> {
        let is_fine = match (&schema.shape, &*value) {
            (Shape::Any, _) => true,
            (Shape::Bool, Value::Bool(_)) | (Shape::String, Value::String(_)) | (Shape::Float, Value::Number(_)) => true,
            (Shape::Int32, Value::Number(number)) => number.as_i64().is_some_and(|it| i32::try_from(it).is_ok()),
            (Shape::Int64, Value::Number(number)) => number.is_i64(),
            (Shape::IntOrString, Value::Number(number)) => number.as_i64().is_some_and(|it| i32::try_from(it).is_ok()),
            (Shape::IntOrString | Shape::Duration, Value::String(_)) => true,
            (Shape::Bytes, Value::String(text)) => return check_base64(text),
            (Shape::Time | Shape::MicroTime, Value::String(text)) => {
                *value = time(text, matches!(schema.shape, Shape::MicroTime))?;
                true
            }
            (Shape::Quantity, Value::String(_) | Value::Number(_)) => {
                *value = quantity(value)?;
                true
            }
            _ => false,
        };
        if is_fine { Ok(()) } else { self.mismatch(value, schema, place) }
    }

    fn is_custom(&self) -> bool {
        self.owner.is_empty()
    }

    /// `UnmarshalTypeError`.
    fn mismatch(&self, value: &Value, schema: &Schema, place: &Place<'_>) -> Result<()> {
        let fields = place.fields();
        if self.is_custom() && !schema.is_builtin() && !fields.is_empty() {
            return Ok(());
        }
        let found = match value {
            Value::Number(number) if matches!(schema.shape, Shape::Int32 | Shape::Int64) => format!("number {number}"),
            other => json_type(other).to_owned(),
        };
        let wanted = go_type(schema);
        let owner = self.owner.rsplit('.').next().unwrap_or_default();
        let place = if fields.is_empty() || self.is_custom() { "Go value".to_owned() } else { format!("Go struct field {owner}.{}", fields.join(".")) };
        Err(Status::bad_request(format!("json: cannot unmarshal {found} into {place} of type {wanted}")))
    }
}

impl Schema {
    /// The schema of a list's items.
    pub(super) fn items(&self) -> Option<&Self> {
        match &self.shape {
            Shape::List { items, .. } => Some(items),
            _ => None,
        }
    }
}

impl Struct {
    /// Whether an object may have a field of that name.
    fn keeps(&self, name: &str) -> bool {
        let has_type = self.has_type_meta || self.is_embedded_resource;
        self.preserves_unknown || self.by_name.contains_key(name) || (has_type && matches!(name, "apiVersion" | "kind"))
    }
}

/// Whether Go's `omitempty` drops the value of a field.
fn is_omitted(value: &Value, field: &Field) -> bool {
    let shape = &field.schema.shape;
    match (value, shape) {
        (Value::Array(list), Shape::List { .. }) => list.is_empty(),
        (Value::Object(map), Shape::Map { .. }) => map.is_empty(),
        _ if field.is_pointer => false,
        (Value::Bool(flag), _) => !flag,
        (Value::Number(number), _) => number.as_f64() == Some(0.0) && !matches!(shape, Shape::IntOrString),
        (Value::String(text), _) => text.is_empty() && !matches!(shape, Shape::Quantity | Shape::IntOrString | Shape::Time),
        _ => false,
    }
}

/// What a field without `omitempty` is written as when it is empty.
fn zero(field: &Field) -> Value {
    match field.schema.shape {
        _ if field.is_pointer => Value::Null,
        Shape::String => "".into(),
        Shape::Bool => false.into(),
        Shape::Int32 | Shape::Int64 | Shape::Float | Shape::IntOrString => 0.into(),
        Shape::Quantity => "0".into(),
        Shape::Duration => "0s".into(),
        _ => Value::Null,
    }
}

fn check_base64(text: &str) -> Result<()> {
    let error = match BASE64.decode(text) {
        Ok(_) => return Ok(()),
        Err(base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol { offset: at, .. }) => at,
        Err(_) => text.len() / 4 * 4,
    };
    Err(Status::bad_request(format!("illegal base64 data at input byte {error}")))
}

fn time(text: &str, is_micro: bool) -> Result<Value> {
    let at: Timestamp = text
        .parse()
        .map_err(|_| Status::bad_request(format!("parsing time {text:?} as \"2006-01-02T15:04:05Z07:00\": cannot parse {text:?} as \"2006\"")))?;
    Ok(at.strftime(if is_micro { "%Y-%m-%dT%H:%M:%S.%6fZ" } else { "%Y-%m-%dT%H:%M:%SZ" }).to_string().into())
}

fn quantity(value: &Value) -> Result<Value> {
    let text = match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let quantity: Quantity = text.parse().map_err(|error: crate::meta::quantity::ParseError| Status::bad_request(error.to_string()))?;
    Ok(quantity.to_string().into())
}

/// `v1.Container` of `io.k8s.api.core.v1.Container`.
fn go_name(name: &str) -> String {
    let parts: Vec<&str> = name.rsplit('.').take(2).collect();
    match parts.as_slice() {
        [name, package] => format!("{package}.{name}"),
        _ => "map[string]interface {}".to_owned(),
    }
}

/// A schema's type as Go prints it.
fn go_type(schema: &Schema) -> String {
    match &schema.shape {
        Shape::Bool => "bool".into(),
        Shape::Int32 => "int32".into(),
        Shape::Int64 => "int64".into(),
        Shape::Float => "float64".into(),
        Shape::String | Shape::Bytes | Shape::Time | Shape::MicroTime | Shape::Duration => "string".into(),
        Shape::IntOrString => "intstr.IntOrString".into(),
        Shape::Quantity => "resource.Quantity".into(),
        Shape::List { items, .. } => format!("[]{}", go_type(items)),
        Shape::Map { values, .. } => format!("map[string]{}", go_type(values)),
        Shape::Object(_) => go_name(&schema.name),
        _ => "interface {}".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::builtin;
    use serde_json::json;

    fn decode(kind: &str, value: Value) -> (Value, Notes) {
        let schema = builtin(kind).expect("a type");
        super::decode(parse_json(value.to_string().as_bytes()).expect("JSON"), &schema).expect("decodes")
    }

    #[test]
    fn objects_come_out_as_from_gos_encoder() {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "creationTimestamp": null, "labels": {}},
            "spec": {"nodeName": "", "containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": 0.5, "memory": "1024Mi"}}}],
                "volumes": [{"name": "v", "emptyDir": {}}]}});
        let (pod, notes) = decode("io.k8s.api.core.v1.Pod", pod);
        let expected = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "status": {},
            "spec": {"containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": "500m", "memory": "1Gi"}}}],
                "volumes": [{"name": "v", "emptyDir": {}}]}});
        assert_eq!(pod, expected);
        assert_eq!(notes, Notes::default());
        let (role, _) = decode("io.k8s.api.rbac.v1.Role", json!({"metadata": {"name": "r", "deletionTimestamp": "2024-01-01T02:00:00+02:00"}}));
        assert_eq!(role, json!({"metadata": {"name": "r", "deletionTimestamp": "2024-01-01T00:00:00Z"}, "rules": null}));
    }

    #[test]
    fn custom_resources_keep_what_is_declared_and_leave_types_to_validation() {
        let item = || json!({"type": "object", "properties": {"a": {"type": "string"}}});
        let schema = crate::schema::structural::from_crd(Some(json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
            "list": {"type": "array", "items": item()}, "map": {"type": "object", "additionalProperties": item()},
            "open": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {"item": item()}},
            "embedded": {"type": "object", "x-kubernetes-embedded-resource": true, "properties": {"spec": item()}},
            "any": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}, "n": {"type": "integer"}, "null": {"type": "string", "nullable": true},
            "filled": {"type": "object", "additionalProperties": {"type": "string", "default": "x"}}}}}})));
        let cases = [
            (json!({"kind": "K", "apiVersion": "g/v1", "metadata": {"name": "n"}}), vec![]),
            (json!({"other": 1, "spec": {"z": 1, "y": {"x": 1}}}), vec!["other", "spec.y", "spec.z"]),
            (json!({"spec": {"list": [{"a": "1"}, {"a": "2", "b": 1}]}}), vec!["spec.list[1].b"]),
            (json!({"spec": {"map": {"k": {"a": "1", "b": 1}}}}), vec!["spec.map.k.b"]),
            (json!({"spec": {"open": {"x": {"y": 1}, "item": {"b": 1}}}}), vec!["spec.open.item.b"]),
            (json!({"spec": {"embedded": {"kind": "K", "metadata": {}, "b": 1}}}), vec!["spec.embedded.b"]),
            (json!({"spec": {"any": {"x": [{"y": 1}]}}}), vec![]),
            (json!({"spec": "not an object"}), vec![]),
            (json!({"spec": {"n": "not a number", "list": {}, "map": [], "null": null}}), vec![]),
        ];
        for (input, expected) in cases {
            let expected: Vec<String> = expected.iter().map(|it| format!("unknown field \"{it}\"")).collect();
            let (pruned, notes) = decode_value(input.clone(), &schema).expect("decodes");
            assert_eq!(notes.unknown, expected, "{input}");
            assert_eq!(decode_value(pruned.clone(), &schema).expect("decodes"), (pruned.clone(), Notes::default()), "once pruned, nothing is left to drop");
            assert_eq!(pruned == input, expected.is_empty(), "{input}");
        }
        let (without_nulls, _) = decode_value(json!({"spec": {"n": null, "null": null, "map": {"a": null}, "filled": {"a": null}, "any": {"x": null}}}), &schema).expect("decodes");
        assert_eq!(without_nulls["spec"], json!({"null": null, "map": {}, "filled": {"a": "x"}, "any": {"x": null}}));
        assert_eq!(decode_value(json!({"metadata": {"labels": 5}}), &schema).map_err(|it| it.code), Err(400));
    }

    #[test]
    fn unknown_and_duplicate_fields_are_noted_with_their_path() {
        let schema = builtin("io.k8s.api.core.v1.Pod").expect("Pod");
        let text = br#"{"metadata":{"name":"a","name":"b"},"spec":{"containers":[{"name":"c","foo":1}],"Containers":[]}}"#;
        let (value, notes) = super::decode(parse_json(text).expect("JSON"), &schema).expect("decodes");
        assert_eq!(value["metadata"]["name"], "b");
        let all: Vec<&str> = notes.all().map(String::as_str).collect();
        assert_eq!(all, ["duplicate field \"metadata.name\"", "unknown field \"spec.Containers\"", "unknown field \"spec.containers[0].foo\""]);
    }

    #[test]
    fn values_of_the_wrong_type_get_gos_sentence() {
        let cases = [
            (json!({"spec": {"replicas": "3"}}), "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32"),
            (json!({"spec": {"replicas": 1.5}}), "json: cannot unmarshal number 1.5 into Go struct field DeploymentSpec.spec.replicas of type int32"),
            (json!({"spec": []}), "json: cannot unmarshal array into Go struct field Deployment.spec of type v1.DeploymentSpec"),
            (json!([]), "json: cannot unmarshal array into Go value of type v1.Deployment"),
            (
                json!({"spec": {"template": {"spec": {"containers": {}}}}}),
                "json: cannot unmarshal object into Go struct field PodSpec.spec.template.spec.containers of type []v1.Container",
            ),
            (
                json!({"spec": {"template": {"spec": {"containers": [{"resources": {"limits": {"cpu": "x"}}}]}}}}),
                "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
            ),
        ];
        let schema = builtin("io.k8s.api.apps.v1.Deployment").expect("Deployment");
        for (value, message) in cases {
            let error = decode_value(value, &schema).expect_err(message);
            assert_eq!((error.code, error.message.as_str()), (400, message));
        }
    }

    #[test]
    fn keys_that_stand_twice_are_noted() {
        let (value, notes) = parse_yaml(b"a: 1\nb:\n  c: 2\n  c: 3\n").expect("YAML");
        assert_eq!(value, serde_json::json!({"a": 1, "b": {"c": 3}}));
        assert_eq!(notes, ["yaml: unmarshal errors:\n  line 4: key \"c\" already set in map"]);
    }

    #[test]
    fn what_is_no_json_or_yaml_is_refused() {
        for text in ["", "{", "{\"a\":}", "[1,]", "{} {}", &"[".repeat(100_000)] {
            assert_eq!(parse_json(text.as_bytes()).map_err(|it| it.code), Err(400), "{}", &text[..text.len().min(20)]);
        }
        for text in ["a: b: c", "{", "&a [*a", "\u{0}"] {
            assert_eq!(parse_yaml(text.as_bytes()).map_err(|it| it.code), Err(400), "{text}");
        }
    }

    #[test]
    fn yaml_reads_as_the_same_json() {
        let yaml = b"apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: a\ndata:\n  x: \"1\"\n  y: |\n    two\n    lines\n";
        let schema = builtin("io.k8s.api.core.v1.ConfigMap").expect("ConfigMap");
        let (value, _) = super::decode(parse_yaml(yaml).expect("YAML"), &schema).expect("decodes");
        assert_eq!(value["data"], json!({"x": "1", "y": "two\nlines\n"}));
    }
}
