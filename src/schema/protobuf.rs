//! Kubernetes' protobuf (`application/vnd.kubernetes.protobuf`): the magic `k8s\0`, then `runtime.Unknown` around the message.
//! Source: apimachinery `pkg/runtime/serializer/protobuf`, the `generated.proto` of each group.

pub mod gnostic;
mod write;

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use jiff::Timestamp;

use self::write::put_bytes;
use super::{Field, Schema, Shape, Struct, codec::{self, SCHEMA_PROPS}};
use crate::meta::{Map, Meta, Result, Status, Value};

const MAGIC: &[u8] = b"k8s\0";
/// Messages nested deeper than this are refused; the deepest real ones are schemas of CRDs.
const DEPTH_MAX: usize = 100;

/// apiVersion and kind of an enveloped object, before its schema is known.
pub fn type_of(bytes: &[u8]) -> Result<(String, String)> {
    let envelope = Envelope::read(bytes)?;
    Ok((envelope.api_version.to_owned(), envelope.kind.to_owned()))
}

/// An enveloped object as JSON with `apiVersion` and `kind`, normalised as [`codec::decode_value`] does.
pub fn decode(bytes: &[u8], schema: &Schema) -> Result<Value> {
    let envelope = Envelope::read(bytes)?;
    let mut map = Map::new();
    read_struct(envelope.message, as_struct(schema)?, &[], &mut map, DEPTH_MAX)?;
    map.insert("apiVersion".to_owned(), envelope.api_version.into());
    map.insert("kind".to_owned(), envelope.kind.into());
    Ok(codec::decode_value(Value::Object(map), schema)?.0)
}

/// A JSON object as an enveloped message.
pub fn encode(value: &Value, schema: &Schema) -> Result<Vec<u8>> {
    encode_text(value.text("apiVersion"), value.text("kind"), value.to_string().as_bytes(), schema)
}

/// An object, given as its JSON text, as an enveloped message.
pub fn encode_text(api_version: &str, kind: &str, json: &[u8], schema: &Schema) -> Result<Vec<u8>> {
    Ok(envelope(api_version, kind, &write::message(json, schema)?))
}

/// The bare message of an object, given as its JSON text.
pub fn message(json: &[u8], schema: &Schema) -> Result<Bytes> {
    write::message(json, schema).map(Bytes::from)
}

/// The bare message in an envelope.
pub fn message_of(envelope: &Bytes) -> Result<Bytes> {
    Ok(envelope.slice_ref(Envelope::read(envelope)?.message))
}

/// A list of objects, each a bare message.
pub fn encode_list(api_version: &str, list_kind: &str, metadata: &Value, items: impl Iterator<Item = Result<Bytes>>) -> Result<Vec<u8>> {
    let list_meta = super::builtin("io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta").ok_or_else(|| Status::internal("no ListMeta"))?;
    let mut list = Vec::new();
    put_bytes(&mut list, 1, &write::message(metadata.to_string().as_bytes(), &list_meta)?);
    for item in items {
        put_bytes(&mut list, 2, &item?);
    }
    Ok(envelope(api_version, list_kind, &list))
}

/// A watch event in upstream's length-delimited stream: four bytes of length, then a bare `WatchEvent` around an enveloped object.
pub fn encode_watch_event(kind: &str, object: &[u8]) -> Vec<u8> {
    let mut raw = Vec::with_capacity(object.len() + 8);
    put_bytes(&mut raw, 1, object);
    let mut event = Vec::with_capacity(raw.len() + 32);
    put_bytes(&mut event, 1, kind.as_bytes());
    put_bytes(&mut event, 2, &raw);
    let mut frame = (event.len() as u32).to_be_bytes().to_vec();
    frame.extend(event);
    frame
}

fn envelope(api_version: &str, kind: &str, message: &[u8]) -> Vec<u8> {
    let mut type_meta = Vec::with_capacity(api_version.len() + kind.len() + 4);
    put_bytes(&mut type_meta, 1, api_version.as_bytes());
    put_bytes(&mut type_meta, 2, kind.as_bytes());
    let mut out = Vec::with_capacity(message.len() + type_meta.len() + 32);
    out.extend(MAGIC);
    put_bytes(&mut out, 1, &type_meta);
    put_bytes(&mut out, 2, message);
    put_bytes(&mut out, 3, b"");
    put_bytes(&mut out, 4, b"");
    out
}

fn as_struct(schema: &Schema) -> Result<&Struct> {
    schema.as_struct().filter(|_| !schema.name.is_empty()).ok_or_else(|| Status::bad_request("the object has no protobuf form"))
}

fn malformed(what: &str) -> Status {
    Status::bad_request(format!("proto: {what}"))
}

struct Envelope<'a> {
    api_version: &'a str,
    kind: &'a str,
    message: &'a [u8],
}

impl<'a> Envelope<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self> {
        let body = bytes
            .strip_prefix(MAGIC)
            .ok_or_else(|| Status::bad_request("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]"))?;
        let type_meta = field(body, 1)?;
        Ok(Self { api_version: utf8(field(type_meta, 1)?)?, kind: utf8(field(type_meta, 2)?)?, message: field(body, 2)? })
    }
}

/// The bytes of a message's field of that number; none where it was never set.
fn field(message: &[u8], number: u32) -> Result<&[u8]> {
    let (mut reader, mut found) = (Reader(message), [].as_slice());
    while let Some((at, wire)) = reader.next()? {
        if at == number {
            found = wire.bytes()?;
        }
    }
    Ok(found)
}

fn utf8(bytes: &[u8]) -> Result<&str> {
    std::str::from_utf8(bytes).map_err(|_| malformed("invalid UTF-8"))
}

#[derive(Clone, Copy)]
enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32,
    Bytes(&'a [u8]),
}

impl<'a> Wire<'a> {
    fn bytes(self) -> Result<&'a [u8]> {
        if let Self::Bytes(bytes) = self { Ok(bytes) } else { Err(malformed("wrong wireType")) }
    }

    fn text(self) -> Result<&'a str> {
        self.bytes().and_then(utf8)
    }

    fn varint(self) -> Result<u64> {
        if let Self::Varint(value) = self { Ok(value) } else { Err(malformed("wrong wireType")) }
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn varint(&mut self) -> Result<u64> {
        let mut value = 0u64;
        for at in 0..10 {
            let byte = *self.0.get(at).ok_or_else(|| malformed("unexpected EOF"))?;
            value |= u64::from(byte & 127).checked_shl(7 * at as u32).unwrap_or(0);
            if byte < 128 {
                self.0 = &self.0[at + 1..];
                return Ok(value);
            }
        }
        Err(malformed("integer overflow"))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or_else(|| malformed("unexpected EOF"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn next(&mut self) -> Result<Option<(u32, Wire<'a>)>> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let number = u32::try_from(key >> 3).ok().filter(|it| *it > 0).ok_or_else(|| malformed("illegal tag"))?;
        let wire = match key & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => Wire::Fixed64(self.take(8)?.try_into().map(u64::from_le_bytes).map_err(|_| malformed("unexpected EOF"))?),
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| malformed("integer overflow"))?;
                Wire::Bytes(self.take(length)?)
            }
            5 => {
                self.take(4)?;
                Wire::Fixed32
            }
            other => return Err(malformed(&format!("illegal wireType {other}"))),
        };
        Ok(Some((number, wire)))
    }
}

/// Reads the fields of one message into `map`. `within` leads from the struct to the message: the inlined structs on the way.
fn read_struct(bytes: &[u8], shape: &Struct, within: &[u32], map: &mut Map<String, Value>, depth: usize) -> Result<()> {
    let depth = depth.checked_sub(1).ok_or_else(|| malformed("exceeded max depth"))?;
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.next()? {
        if let Some(field) = shape.fields.iter().find(|it| it.number == number && *it.within == *within) {
            read_field(wire, field, map, depth)?;
            continue;
        }
        let inner: Vec<u32> = within.iter().copied().chain([number]).collect();
        if shape.fields.iter().any(|it| it.within.starts_with(&inner)) {
            read_struct(wire.bytes()?, shape, &inner, map, depth)?;
        }
    }
    Ok(())
}

fn read_field(wire: Wire<'_>, field: &Field, map: &mut Map<String, Value>, depth: usize) -> Result<()> {
    match &field.schema.shape {
        Shape::List { items, .. } => {
            let item = read_value(wire, items, depth)?;
            match map.get_mut(&field.name) {
                Some(Value::Array(list)) => list.push(item),
                _ => _ = map.insert(field.name.clone(), Value::Array(vec![item])),
            }
        }
        Shape::Map { values, .. } => {
            let (key, value) = read_entry(wire.bytes()?, values, depth)?;
            match map.get_mut(&field.name) {
                Some(Value::Object(entries)) => _ = entries.insert(key, value),
                _ => _ = map.insert(field.name.clone(), Value::Object(Map::from_iter([(key, value)]))),
            }
        }
        _ => _ = map.insert(field.name.clone(), read_value(wire, &field.schema, depth)?),
    }
    Ok(())
}

fn read_entry(bytes: &[u8], values: &Schema, depth: usize) -> Result<(String, Value)> {
    let (mut key, mut value) = (String::new(), None);
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.next()? {
        match (number, &values.shape) {
            (1, _) => key = wire.text()?.to_owned(),
            (2, Shape::List { items, .. }) => {
                let (mut list, mut inner) = (Vec::new(), Reader(wire.bytes()?));
                while let Some((_, wire)) = inner.next()? {
                    list.push(read_value(wire, items, depth)?);
                }
                value = Some(Value::Array(list));
            }
            (2, _) => value = Some(read_value(wire, values, depth)?),
            _ => (),
        }
    }
    let value = match (value, &values.shape) {
        (Some(value), _) => value,
        (None, Shape::List { .. }) => Value::Array(Vec::new()),
        (None, _) => read_value(Wire::Bytes(b""), values, depth)?,
    };
    Ok((key, value))
}

fn read_value(wire: Wire<'_>, schema: &Schema, depth: usize) -> Result<Value> {
    Ok(match &schema.shape {
        Shape::String => wire.text()?.into(),
        Shape::Bool => (wire.varint()? != 0).into(),
        Shape::Int32 => (wire.varint()? as i32).into(),
        Shape::Int64 => (wire.varint()? as i64).into(),
        Shape::Float => match wire {
            Wire::Fixed64(bits) => f64::from_bits(bits).into(),
            _ => return Err(malformed("wrong wireType")),
        },
        Shape::Bytes => BASE64.encode(wire.bytes()?).into(),
        Shape::Time | Shape::MicroTime => read_time(wire.bytes()?, matches!(schema.shape, Shape::MicroTime))?,
        Shape::Duration => format!("{}ns", Triple::read(wire.bytes()?)?.first).into(),
        Shape::Quantity => match utf8(Triple::read(wire.bytes()?)?.bytes)? {
            "" => "0".into(),
            text => text.into(),
        },
        Shape::IntOrString => {
            let triple = Triple::read(wire.bytes()?)?;
            if triple.first == 0 { (triple.second as i32).into() } else { utf8(triple.bytes)?.into() }
        }
        Shape::Any => match Triple::read(wire.bytes()?)?.bytes {
            [] => Value::Null,
            raw => codec::parse_json(raw).map(|(value, _)| value).unwrap_or_else(|_| BASE64.encode(raw).into()),
        },
        Shape::Object(shape) => {
            let mut map = Map::new();
            read_struct(wire.bytes()?, shape, &[], &mut map, depth)?;
            map.into()
        }
        Shape::SchemaOrArray | Shape::SchemaOrBool | Shape::SchemaOrStrings => read_schema_union(wire.bytes()?, &schema.shape, depth)?,
        Shape::List { .. } | Shape::Map { .. } => return Err(malformed("a list of lists")),
    })
}

/// The small messages of Time, Duration, Quantity, IntOrString and RawExtension: two integers and some bytes.
struct Triple<'a> {
    first: i64,
    second: i64,
    bytes: &'a [u8],
}

impl<'a> Triple<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self> {
        let mut triple = Self { first: 0, second: 0, bytes: &[] };
        let mut reader = Reader(bytes);
        while let Some((number, wire)) = reader.next()? {
            match (number, wire) {
                (1, Wire::Varint(value)) => triple.first = value as i64,
                (2, Wire::Varint(value)) => triple.second = value as i64,
                (_, Wire::Bytes(bytes)) => triple.bytes = bytes,
                _ => (),
            }
        }
        Ok(triple)
    }
}

fn read_time(bytes: &[u8], is_micro: bool) -> Result<Value> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    let triple = Triple::read(bytes)?;
    let nanos = i32::try_from(triple.second).unwrap_or_default();
    let at = Timestamp::new(triple.first, nanos).map_err(|_| malformed("a time out of range"))?;
    Ok(at.strftime(if is_micro { "%Y-%m-%dT%H:%M:%S.%6fZ" } else { "%Y-%m-%dT%H:%M:%SZ" }).to_string().into())
}

fn read_schema_union(bytes: &[u8], shape: &Shape, depth: usize) -> Result<Value> {
    let (mut one, mut many, mut allows) = (None, Vec::new(), false);
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.next()? {
        match (shape, number) {
            (Shape::SchemaOrBool, 1) => allows = wire.varint()? != 0,
            (Shape::SchemaOrBool, _) | (_, 1) => one = Some(read_value(wire, &SCHEMA_PROPS, depth)?),
            (Shape::SchemaOrStrings, _) => many.push(wire.text()?.into()),
            _ => many.push(read_value(wire, &SCHEMA_PROPS, depth)?),
        }
    }
    Ok(match one {
        Some(schema) => schema,
        None if matches!(shape, Shape::SchemaOrBool) => allows.into(),
        None => many.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::builtin;
    use serde_json::json;

    #[test]
    fn objects_survive_the_way_there_and_back() {
        let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "labels": {"a": "b"}, "creationTimestamp": "2024-01-01T00:00:00Z"},
            "spec": {"replicas": 0, "selector": {"matchLabels": {"a": "b"}}, "strategy": {"rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 1}},
                "template": {"metadata": {}, "spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": "500m"}},
                    "env": [{"name": "E", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "k"}}}]}],
                    "volumes": [{"name": "v", "configMap": {"name": "m", "defaultMode": 420}}]}}}, "status": {}});
        let crd = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "x"}, "status": {"conditions": null, "acceptedNames": {"plural": "", "kind": ""}, "storedVersions": null},
            "spec": {"group": "g", "names": {"plural": "p", "kind": "K"}, "scope": "Namespaced", "versions": [{"name": "v1", "served": true, "storage": true,
                "subresources": {"status": {}}, "schema": {"openAPIV3Schema": {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "string", "default": "x"}},
                    "b": {"additionalProperties": true}}}}}]}});
        for (name, object) in [
            ("io.k8s.api.apps.v1.Deployment", deployment),
            ("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinition", crd),
        ] {
            let schema = builtin(name).expect("a type");
            let bytes = encode(&object, &schema).expect("encodes");
            assert_eq!(decode(&bytes, &schema).expect("decodes"), object);
            assert_eq!(type_of(&bytes).expect("a type").1, object["kind"]);
            for length in 0..bytes.len() {
                let _ = decode(&bytes[..length], &schema);
            }
        }
    }

    #[test]
    fn garbage_is_a_bad_request() {
        let schema = builtin("io.k8s.api.core.v1.Pod").expect("Pod");
        let nested = (0..200).fold(Vec::new(), |inner, _| {
            let mut out = Vec::new();
            put_bytes(&mut out, 2, &inner);
            out
        });
        let cases: [&[u8]; 5] = [b"", b"k8s", b"{}", b"k8s\0\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f", &envelope("v1", "Pod", &nested)];
        for (at, bytes) in cases.into_iter().enumerate() {
            assert_eq!(decode(bytes, &schema).map_err(|it| it.code), Err(400), "case {at}");
        }
    }
}
