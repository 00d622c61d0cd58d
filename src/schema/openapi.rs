//! OpenAPI definitions from schemas.
//! Source: kube-openapi `pkg/builder3`; the `x-kubernetes-*` extensions that clients read.

use serde_json::json;

use super::{Field, ListTopology, Schema, Shape};
use crate::meta::{Map, Value};

/// The definitions of a document (`components.schemas`): `schema` and all that it refers to, put into `into`.
/// `reference` is the prefix of a `$ref` (`#/components/schemas/`).
pub fn define(schema: &Schema, name: &str, reference: &str, into: &mut Map<String, Value>) {
    if into.contains_key(name) {
        return;
    }
    into.insert(name.to_owned(), Value::Null);
    let definition = object(schema, reference, into);
    into.insert(name.to_owned(), definition);
}

fn object(schema: &Schema, reference: &str, into: &mut Map<String, Value>) -> Value {
    if let Some(rules) = &schema.rules
        && rules.source.is_object()
    {
        return custom(schema, &rules.source, reference, into);
    }
    let Some(shape) = schema.as_struct() else { return node(schema, reference, into) };
    let mut properties = Map::new();
    if shape.has_type_meta {
        properties.insert("apiVersion".to_owned(), json!({"type": "string", "description": "The version of the schema of this object."}));
        properties.insert("kind".to_owned(), json!({"type": "string", "description": "The kind of this object, in CamelCase."}));
    }
    for field in &shape.fields {
        properties.insert(field.name.clone(), property(field, reference, into));
    }
    let mut definition = json!({"type": "object", "properties": properties});
    let required: Vec<&str> = shape.fields.iter().filter(|it| it.is_required).map(|it| it.name.as_str()).collect();
    if !required.is_empty() {
        definition["required"] = json!(required);
    }
    if shape.is_atomic {
        definition["x-kubernetes-map-type"] = "atomic".into();
    }
    definition
}

/// A custom resource's own schema, with the metadata that every object has.
fn custom(schema: &Schema, source: &Value, reference: &str, into: &mut Map<String, Value>) -> Value {
    let mut definition = source.clone();
    if let Some(metadata) = schema.field("metadata").filter(|it| !it.schema.name.is_empty()) {
        let metadata = property(metadata, reference, into);
        let text = json!({"type": "string"});
        for (name, value) in [("apiVersion", text.clone()), ("kind", text), ("metadata", metadata)] {
            definition["properties"][name] = value;
        }
    }
    definition
}

fn property(field: &Field, reference: &str, into: &mut Map<String, Value>) -> Value {
    let mut property = node(&field.schema, reference, into);
    if let Some(target) = property.get("$ref").cloned()
        && field.default.is_some()
    {
        property = json!({"allOf": [{"$ref": target}]});
    }
    if let Some(default) = &field.default {
        property["default"] = default.clone();
    }
    if let Some(values) = field.enumeration {
        property["enum"] = json!(values);
    }
    if field.patch.is_merge || field.patch.is_replace || field.patch.retains_keys {
        let words = [(field.patch.is_merge, "merge"), (field.patch.is_replace, "replace"), (field.patch.retains_keys, "retainKeys")];
        let words: Vec<&str> = words.into_iter().filter(|(is, _)| *is).map(|(_, word)| word).collect();
        property["x-kubernetes-patch-strategy"] = words.join(",").into();
    }
    if let Some(key) = &field.patch.merge_key {
        property["x-kubernetes-patch-merge-key"] = key.as_str().into();
    }
    property
}

fn node(schema: &Schema, reference: &str, into: &mut Map<String, Value>) -> Value {
    match &schema.shape {
        Shape::Object(_) if !schema.name.is_empty() => {
            define(schema, &schema.name, reference, into);
            json!({"$ref": format!("{reference}{}", schema.name)})
        }
        Shape::Object(_) => object(schema, reference, into),
        Shape::Any | Shape::SchemaOrArray | Shape::SchemaOrBool | Shape::SchemaOrStrings => json!({}),
        Shape::Bool => json!({"type": "boolean"}),
        Shape::Int32 => json!({"type": "integer", "format": "int32"}),
        Shape::Int64 => json!({"type": "integer", "format": "int64"}),
        Shape::Float => json!({"type": "number", "format": "double"}),
        Shape::String | Shape::Duration => json!({"type": "string"}),
        Shape::Bytes => json!({"type": "string", "format": "byte"}),
        Shape::Time | Shape::MicroTime => json!({"type": "string", "format": "date-time"}),
        Shape::Quantity => json!({"type": "string", "x-kubernetes-quantity": true}),
        Shape::IntOrString => json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]}),
        Shape::Map { values, .. } => json!({"type": "object", "additionalProperties": node(values, reference, into)}),
        Shape::List { items, topology } => {
            let mut list = json!({"type": "array", "items": node(items, reference, into)});
            match topology {
                ListTopology::Atomic => list["x-kubernetes-list-type"] = "atomic".into(),
                ListTopology::Set => list["x-kubernetes-list-type"] = "set".into(),
                ListTopology::Map(keys) => {
                    list["x-kubernetes-list-type"] = "map".into();
                    list["x-kubernetes-list-map-keys"] = json!(keys);
                }
            }
            list
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definitions_are_closed_and_carry_what_clients_read() {
        let mut definitions = Map::new();
        let schema = crate::schema::builtin("io.k8s.api.apps.v1.Deployment").expect("Deployment");
        define(&schema, &schema.name, "#/", &mut definitions);
        let text = Value::Object(definitions.clone()).to_string();
        for reference in text.split("\"$ref\":\"#/").skip(1) {
            let name = reference.split('"').next().expect("a name");
            assert!(definitions.contains_key(name), "{name}");
        }
        let containers = &definitions["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
        assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
        assert_eq!(containers["x-kubernetes-list-map-keys"], json!(["name"]));
    }
}
