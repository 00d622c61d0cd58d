//! JSON to protobuf in one pass, without a tree of values in between: lists of many objects are made so. Fields stand in the order of the JSON;
//! those of an inlined struct may be in several messages of its number, which decoders merge.

use std::fmt;

use serde::de::{
    DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor,
    value::{MapAccessDeserializer, SeqAccessDeserializer},
};

use super::{
    Field, Schema, Shape, Struct,
    protobuf::{as_struct, put_bytes, put_message, write_value, write_zero},
};
use crate::meta::{Status, Value};

type Result<T, E = Status> = std::result::Result<T, E>;

/// The bare message of an object that is stored as this JSON.
pub fn message(json: &[u8], schema: &Schema) -> Result<Vec<u8>> {
    let mut out = Vec::with_capacity(json.len());
    let mut reader = serde_json::Deserializer::from_slice(json);
    Message { shape: as_struct(schema)?, out: &mut out }.deserialize(&mut reader).map_err(Status::internal)?;
    Ok(out)
}

/// The fields of a JSON object, into a message that is open.
struct Message<'a> {
    shape: &'a Struct,
    out: &'a mut Vec<u8>,
}

impl<'de> DeserializeSeed<'de> for Message<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<(), D::Error> {
        reader.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Message<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let fields = &self.shape.fields;
        let mut is_there = vec![false; fields.len()];
        while let Some(at) = map.next_key_seed(Name(self.shape))? {
            let Some(at) = at else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            is_there[at] = map.next_value_seed(Slot::of(&fields[at], self.out))?;
        }
        // Nothing is written for a pointer, not even the message that would lead to it.
        let mut absent = fields.iter().zip(is_there).filter(|(field, is_there)| !is_there && !field.is_pointer).map(|it| it.0);
        absent.try_for_each(|field| within(self.out, &field.within, |out| write_zero(out, field))).map_err(failed)
    }
}

fn failed<E: serde::de::Error>(why: Status) -> E {
    E::custom(why.message)
}

/// Writes into the messages that lead to an inlined field.
fn within(out: &mut Vec<u8>, numbers: &[u32], write: impl FnOnce(&mut Vec<u8>) -> Result<()>) -> Result<()> {
    let Some((last, outer)) = numbers.split_last() else { return write(out) };
    let mut message = Vec::new();
    put_message(&mut message, *last, write)?;
    for number in outer.iter().rev() {
        let inner = std::mem::take(&mut message);
        put_bytes(&mut message, *number, &inner);
    }
    out.append(&mut message);
    Ok(())
}

/// A field's place in its struct, by its name.
struct Name<'a>(&'a Struct);

impl<'de> DeserializeSeed<'de> for Name<'_> {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Self::Value, D::Error> {
        reader.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Name<'_> {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.0.by_name.get(name).copied())
    }
}

/// Where a value goes. Tells whether there was one: a field that is null is absent, an item of a list is not.
struct Slot<'a> {
    number: u32,
    schema: &'a Schema,
    within: &'a [u32],
    is_item: bool,
    out: &'a mut Vec<u8>,
}

impl<'a> Slot<'a> {
    fn of(field: &'a Field, out: &'a mut Vec<u8>) -> Self {
        Self { number: field.number, schema: &field.schema, within: &field.within, is_item: false, out }
    }

    fn item(number: u32, schema: &'a Schema, out: &'a mut Vec<u8>) -> Self {
        Self { number, schema, within: &[], is_item: true, out }
    }

    /// What has a form of its own in protobuf.
    fn other<E: serde::de::Error>(self, value: &Value) -> Result<bool, E> {
        within(self.out, self.within, |out| write_value(out, self.number, value, self.schema)).map_err(failed)?;
        Ok(true)
    }

    /// Runs `write` in the messages that lead here; its own errors are those of the reader.
    fn wrapped<E: serde::de::Error>(self, write: impl FnOnce(&mut Vec<u8>, u32, &Schema) -> Result<(), E>) -> Result<bool, E> {
        let (number, schema, mut result) = (self.number, self.schema, Ok(()));
        within(self.out, self.within, |out| {
            result = write(out, number, schema);
            Ok(())
        })
        .map_err(failed)?;
        result.map(|()| true)
    }
}

/// A message with what `write` puts in it, whose errors are not of this program.
fn put_read<E>(out: &mut Vec<u8>, number: u32, write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>) -> Result<(), E>
where
    E: serde::de::Error,
{
    let mut result = Ok(());
    put_message(out, number, |out| {
        result = write(out);
        Ok(())
    })
    .map_err(failed)?;
    result
}

impl<'de> DeserializeSeed<'de> for Slot<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<bool, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Slot<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a value of {}", self.schema.name)
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<bool, E> {
        if self.is_item { self.other(&Value::Null) } else { Ok(false) }
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<bool, E> {
        self.other(&value.into())
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<bool, E> {
        self.other(&value.into())
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<bool, E> {
        self.other(&value.into())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<bool, E> {
        self.other(&value.into())
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<bool, E> {
        match &self.schema.shape {
            Shape::String => self.wrapped(|out, number, _| {
                put_bytes(out, number, value.as_bytes());
                Ok(())
            }),
            _ => self.other(&value.into()),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<bool, A::Error> {
        match &self.schema.shape {
            Shape::List { items, .. } => self.wrapped(|out, number, _| {
                while seq.next_element_seed(Slot::item(number, items, out))?.is_some() {}
                Ok(())
            }),
            _ => self.other(&serde::Deserialize::deserialize(SeqAccessDeserializer::new(seq))?),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<bool, A::Error> {
        match &self.schema.shape {
            Shape::Object(shape) => self.wrapped(|out, number, _| put_read(out, number, |out| Message { shape, out }.visit_map(map))),
            Shape::Map { values, .. } => self.wrapped(|out, number, _| {
                while let Some(key) = map.next_key::<String>()? {
                    put_read(out, number, |out| {
                        put_bytes(out, 1, key.as_bytes());
                        map.next_value_seed(Entry { values, out })
                    })?;
                }
                Ok(())
            }),
            _ => self.other(&serde::Deserialize::deserialize(MapAccessDeserializer::new(map))?),
        }
    }
}

/// The value of an entry of a map: a list is a message of its own.
struct Entry<'a> {
    values: &'a Schema,
    out: &'a mut Vec<u8>,
}

impl<'de> DeserializeSeed<'de> for Entry<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<(), D::Error> {
        match &self.values.shape {
            Shape::List { .. } => put_read(self.out, 2, |out| Slot::item(1, self.values, out).deserialize(reader).map(drop)),
            _ => Slot::item(2, self.values, self.out).deserialize(reader).map(drop),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::{builtin, protobuf}, *};

    #[test]
    fn one_pass_says_the_same_as_a_tree() {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "labels": {"a": "b"}, "creationTimestamp": "2024-01-01T00:00:00Z", "deletionTimestamp": null,
                "managedFields": [{"manager": "m", "fieldsV1": {"f:spec": {}}, "time": "2024-01-01T00:00:00Z"}]},
            "spec": {"containers": [{"name": "c", "command": ["a", "b"], "resources": {"limits": {"cpu": "500m", "memory": 5}}, "livenessProbe": {"httpGet": {"port": "http", "path": "/"}, "periodSeconds": 3},
                    "securityContext": {"runAsUser": 0, "privileged": false}, "env": [{"name": "E", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "k"}}}]}],
                "volumes": [{"name": "v", "configMap": {"name": "m", "defaultMode": 420}}, {"name": "e", "emptyDir": {}}],
                "tolerations": [{"key": "k", "tolerationSeconds": 300}], "unknown": {"x": [1]}},
            "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}], "conditions": [{"type": "Ready", "status": "True", "lastProbeTime": null}]}});
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "data": {"a": "YWJj"}, "type": "Opaque"});
        let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "metadata": {}, "spec": {"extra": {"k": ["a", "b"], "n": []}, "groups": []}});
        for (name, object) in [("io.k8s.api.core.v1.Pod", pod), ("io.k8s.api.core.v1.Secret", secret), ("io.k8s.api.authorization.v1.SubjectAccessReview", review)] {
            let schema = builtin(name).expect("a type");
            let enveloped = |message: &[u8]| protobuf::decode(&protobuf::envelope("v1", "K", message), &schema).expect("decodes");
            let (tree, pass) = (protobuf::encode_message(&object, &schema).expect("encodes"), message(object.to_string().as_bytes(), &schema).expect("encodes"));
            assert_eq!(enveloped(&pass), enveloped(&tree), "{name}");
        }
        assert!(message(b"{\"metadata\": [1]}", &builtin("io.k8s.api.core.v1.Pod").expect("Pod")).is_err());
    }
}
