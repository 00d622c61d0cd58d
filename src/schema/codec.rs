//! JSON and YAML into a tree, strictly, as Go's decoder and encoder would leave it.
//!
//! Reading is two steps: [`parse_json`] and [`parse_yaml`] build the tree and note keys that stand twice; [`decode_value`] then walks
//! tree and schema together, refuses values of the wrong type, notes and drops unknown fields, writes numbers, times and
//! quantities in their canonical form, and drops or keeps empty values as `omitempty` does.
//! Source: sigs.k8s.io/json, sigs.k8s.io/yaml, apimachinery `pkg/runtime/serializer/json`.

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use jiff::Timestamp;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use super::{Field, Schema, Shape, Struct};
use crate::meta::{Map, Quantity, Result, Status, Value};

/// The type of a schema in a CRD.
pub(super) const SCHEMA_PROPS: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps";

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
    let value = seed.deserialize(&mut reader).and_then(|value| reader.end().map(|()| value)).map_err(|error| bad_json(&error))?;
    Ok((value, notes))
}

/// Parses JSON text that is to become an object of `schema`. Go's decoder meets unknown fields of its types on the way, those of
/// custom resources are looked for afterwards: so are they noted.
pub fn parse_object(bytes: &[u8], schema: &Schema) -> Result<(Value, Vec<String>)> {
    parse(bytes, Some(schema).filter(|it| !it.name.is_empty()))
}

/// Parses one YAML document without a schema, and notes the first key that stands twice in its map. 400 where it is no YAML.
pub fn parse_yaml(bytes: &[u8]) -> Result<(Value, Vec<String>)> {
    let text = std::str::from_utf8(bytes).map_err(|_| Status::bad_request("error converting YAML to JSON: yaml: invalid leading UTF-8 octet"))?;
    let bad = |error: serde_saphyr::Error| Status::bad_request(format!("error converting YAML to JSON: yaml: {error}"));
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

/// Decodes JSON as a value of `schema`. Unknown fields are noted and dropped (kept where the schema preserves them).
pub fn decode_json(bytes: &[u8], schema: &Schema) -> Result<(Value, Notes)> {
    let (value, duplicate) = parse_json(bytes)?;
    let (value, notes) = decode_value(value, schema)?;
    Ok((value, Notes { duplicate, ..notes }))
}

/// Decodes YAML as a value of `schema`.
pub fn decode_yaml(bytes: &[u8], schema: &Schema) -> Result<(Value, Notes)> {
    let (value, duplicate) = parse_yaml(bytes)?;
    let (value, notes) = decode_value(value, schema)?;
    Ok((value, Notes { duplicate, ..notes }))
}

/// Checks and normalises a tree: 400 with Go's sentence where a value has the wrong type.
pub fn decode_value(mut value: Value, schema: &Schema) -> Result<(Value, Notes)> {
    let mut walk = Walk { unknown: Vec::new(), fields: Vec::new(), owner: String::new() };
    walk.visit(&mut value, schema, &Place::Root)?;
    Ok((value, Notes { unknown: walk.unknown, duplicate: Vec::new() }))
}

fn bad_json(error: &serde_json::Error) -> Status {
    let text = error.to_string();
    let reason = text.split(" at line ").next().unwrap_or_default();
    let message = match reason {
        "EOF while parsing a value" | "EOF while parsing an object" | "EOF while parsing a list" | "EOF while parsing a string" => {
            "unexpected end of JSON input".to_owned()
        }
        "recursion limit exceeded" => "exceeded max depth".to_owned(),
        other => format!("invalid JSON: {other} (line {}, column {})", error.line(), error.column()),
    };
    Status::bad_request(format!("json: {message}"))
}

/// Where the walk is, for notes: `spec.containers[0].image`.
enum Place<'a> {
    Root,
    Key(&'a Place<'a>, &'a str),
    Index(&'a Place<'a>, usize),
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Key(Self::Root, key) => f.write_str(key),
            Self::Key(parent, key) => write!(f, "{parent}.{key}"),
            Self::Index(parent, at) => write!(f, "{parent}[{at}]"),
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

impl<'de> Visitor<'de> for Tree<'_, '_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> std::result::Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> std::result::Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> std::result::Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> std::result::Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> std::result::Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> std::result::Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> std::result::Result<Value, E> {
        Ok(value.into())
    }

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
            let schema = self.schema.and_then(|it| it.child(&key));
            if schema.is_none() && self.schema.is_some_and(|it| it.refuses(&key)) {
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
struct Walk {
    unknown: Vec<String>,
    /// Names of the fields on the way, for Go's sentence.
    fields: Vec<String>,
    /// Go's name of the innermost struct.
    owner: String,
}

impl Walk {
    fn visit(&mut self, value: &mut Value, schema: &Schema, place: &Place<'_>) -> Result<()> {
        if value.is_null() {
            return Ok(());
        }
        match &schema.shape {
            Shape::Object(it) => self.object(value, schema, it, place),
            Shape::List { items, .. } => self.list(value, schema, items, place),
            Shape::Map { values, .. } => self.map(value, schema, values, place),
            Shape::SchemaOrArray | Shape::SchemaOrBool | Shape::SchemaOrStrings => self.union(value, place),
            _ => self.scalar(value, schema),
        }
    }

    fn object(&mut self, value: &mut Value, schema: &Schema, shape: &Struct, place: &Place<'_>) -> Result<()> {
        let Value::Object(map) = value else { return self.mismatch(value, schema) };
        let is_custom = schema.name.is_empty();
        let owner = std::mem::replace(&mut self.owner, go_name(&schema.name).rsplit('.').next().unwrap_or_default().to_owned());
        for (name, value) in map.iter_mut() {
            let place = Place::Key(place, name);
            match shape.by_name.get(name).map(|at| &shape.fields[*at]) {
                Some(field) => {
                    self.fields.push(name.clone());
                    self.visit(value, &field.schema, &place)?;
                    self.fields.pop();
                }
                None if shape.preserves_unknown || is_type_meta(shape, name) => (),
                None => self.unknown.push(format!("unknown field \"{place}\"")),
            }
        }
        self.owner = owner;
        if !shape.preserves_unknown {
            map.retain(|name, _| shape.by_name.contains_key(name) || is_type_meta(shape, name));
        }
        match is_custom {
            true => drop_defaulted_nulls(map, shape),
            false => shape.fields.iter().try_for_each(|field| self.emptiness(map, field, place))?,
        }
        Ok(())
    }

    /// Leaves a field of a Go struct as its encoder would: empty values go, and what has no `omitempty` is written.
    fn emptiness(&mut self, map: &mut Map<String, Value>, field: &Field, place: &Place<'_>) -> Result<()> {
        let present = map.get(&field.name).filter(|it| !it.is_null());
        let is_struct = matches!(field.schema.shape, Shape::Object(_));
        match present {
            Some(value) if !field.keeps_zero && !field.is_pointer && !is_struct && is_zero(value, &field.schema.shape) => {
                map.remove(&field.name);
            }
            Some(value) if !field.keeps_zero && is_empty_collection(value, &field.schema.shape) => {
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

    fn list(&mut self, value: &mut Value, schema: &Schema, items: &Schema, place: &Place<'_>) -> Result<()> {
        let Value::Array(list) = value else { return self.mismatch(value, schema) };
        for (at, item) in list.iter_mut().enumerate() {
            let place = Place::Index(place, at);
            if item.is_null() && !items.name.is_empty() {
                *item = Value::Object(Map::new());
            }
            self.visit(item, items, &place)?;
        }
        Ok(())
    }

    fn map(&mut self, value: &mut Value, schema: &Schema, values: &Schema, place: &Place<'_>) -> Result<()> {
        let Value::Object(map) = value else { return self.mismatch(value, schema) };
        for (key, value) in map.iter_mut() {
            let place = Place::Key(place, key);
            if value.is_null() && matches!(values.shape, Shape::String) && values.rules.is_none() {
                *value = "".into();
            }
            self.visit(value, values, &place)?;
        }
        Ok(())
    }

    /// A schema, several, or something simpler. Go decodes these by a method of their own, which drops unknown fields silently.
    fn union(&mut self, value: &mut Value, place: &Place<'_>) -> Result<()> {
        let Some(props) = super::builtin(SCHEMA_PROPS) else { return Ok(()) };
        let known = self.unknown.len();
        match value {
            Value::Object(_) => self.visit(value, &props, place)?,
            Value::Array(list) => list.iter_mut().filter(|it| it.is_object()).try_for_each(|it| self.visit(it, &props, place))?,
            _ => (),
        }
        self.unknown.truncate(known);
        Ok(())
    }

    fn scalar(&mut self, value: &mut Value, schema: &Schema) -> Result<()> {
        if schema.rules.is_some() {
            // Custom resources: types are the validator's matter, with its own sentences.
            return Ok(());
        }
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
        if is_fine { Ok(()) } else { self.mismatch(value, schema) }
    }

    /// `UnmarshalTypeError`.
    fn mismatch(&self, value: &Value, schema: &Schema) -> Result<()> {
        let found = match value {
            Value::Null => "null".to_owned(),
            Value::Bool(_) => "bool".to_owned(),
            Value::Number(number) if matches!(schema.shape, Shape::Int32 | Shape::Int64) => format!("number {number}"),
            Value::Number(_) => "number".to_owned(),
            Value::String(_) => "string".to_owned(),
            Value::Array(_) => "array".to_owned(),
            Value::Object(_) => "object".to_owned(),
        };
        let wanted = go_type(schema);
        let place = if self.fields.is_empty() { "Go value".to_owned() } else { format!("Go struct field {}.{}", self.owner, self.fields.join(".")) };
        Err(Status::bad_request(format!("json: cannot unmarshal {found} into {place} of type {wanted}")))
    }
}

impl Schema {
    fn items(&self) -> Option<&Self> {
        match &self.shape {
            Shape::List { items, .. } => Some(items),
            _ => None,
        }
    }

    /// The schema of what stands under `key`.
    fn child(&self, key: &str) -> Option<&Self> {
        match &self.shape {
            Shape::Map { values, .. } => Some(values),
            _ => self.field(key).map(|it| &*it.schema),
        }
    }

    /// Whether the object may have no field of that name.
    fn refuses(&self, key: &str) -> bool {
        self.as_struct().is_some_and(|it| !it.preserves_unknown && !it.by_name.contains_key(key) && !is_type_meta(it, key))
    }
}

fn is_type_meta(shape: &Struct, name: &str) -> bool {
    (shape.has_type_meta || shape.is_embedded_resource) && matches!(name, "apiVersion" | "kind")
}

/// A `null` of a custom resource gives way to the field's default, unless it is a value of its own.
fn drop_defaulted_nulls(map: &mut Map<String, Value>, shape: &Struct) {
    map.retain(|name, value| {
        let field = shape.by_name.get(name).map(|at| &shape.fields[*at]);
        let has_default = field.is_some_and(|it| (it.default.is_some() || it.schema.default.is_some()) && !it.schema.is_nullable);
        !(value.is_null() && has_default)
    });
}

/// Whether Go's `omitempty` drops the value of a field that is no pointer.
fn is_zero(value: &Value, shape: &Shape) -> bool {
    match value {
        Value::Bool(flag) => !flag,
        Value::Number(number) => number.as_f64() == Some(0.0) && !matches!(shape, Shape::IntOrString),
        Value::String(text) => text.is_empty() && !matches!(shape, Shape::Quantity | Shape::IntOrString | Shape::Time),
        _ => false,
    }
}

fn is_empty_collection(value: &Value, shape: &Shape) -> bool {
    match (value, shape) {
        (Value::Array(list), Shape::List { .. }) => list.is_empty(),
        (Value::Object(map), Shape::Map { .. }) => map.is_empty(),
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
        decode_json(value.to_string().as_bytes(), &schema).expect("decodes")
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
    fn unknown_and_duplicate_fields_are_noted_with_their_path() {
        let schema = builtin("io.k8s.api.core.v1.Pod").expect("Pod");
        let text = br#"{"metadata":{"name":"a","name":"b"},"spec":{"containers":[{"name":"c","foo":1}],"Containers":[]}}"#;
        let (value, notes) = decode_json(text, &schema).expect("decodes");
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
        let (value, _) = decode_yaml(yaml, &schema).expect("decodes");
        assert_eq!(value["data"], json!({"x": "1", "y": "two\nlines\n"}));
    }
}
