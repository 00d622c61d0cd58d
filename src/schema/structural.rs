//! From the `openAPIV3Schema` of a CRD to a [`Schema`].
//! Source: apiextensions-apiserver `pkg/apiserver/schema`.

use std::sync::OnceLock;

use super::{Field, ListTopology, Schema, SchemaRef, Shape, Struct, builtin, rules, types};
use crate::meta::{Meta, Value};

/// Says that fields that a node does not declare are kept.
pub const OPEN: &str = "x-kubernetes-preserve-unknown-fields";
const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// What a custom resource's values must be: its whole schema as the CRD wrote it, which `validate.rs` walks beside the value.
#[derive(Debug)]
pub struct Rules {
    pub source: Value,
    /// The rules in CEL, compiled when the first object is checked.
    validations: OnceLock<Option<rules::Node>>,
}

impl Rules {
    pub fn validations(&self) -> Option<&rules::Node> {
        self.validations.get_or_init(|| rules::Node::of(&self.source)).as_ref()
    }
}

/// The schema of a custom resource's version: `apiVersion`, `kind` and `metadata` are added as built-in. With no schema, everything is preserved.
pub fn from_crd(open_api_v3_schema: Option<Value>) -> Schema {
    let is_open = open_api_v3_schema.is_none();
    let mut source = open_api_v3_schema.unwrap_or_else(|| Value::Object(serde_json::Map::new()));
    drop_prose(&mut source);
    let shape = object(&source, true);
    let shape = Struct { preserves_unknown: shape.preserves_unknown || is_open, has_type_meta: true, ..shape };
    let schema = with_shape(&source, Shape::Object(shape));
    Schema { rules: Some(Box::new(Rules { source, validations: OnceLock::new() })), ..schema }
}

/// Takes out what only people read, which is most of a schema.
fn drop_prose(schema: &mut Value) {
    let Some(words) = schema.as_object_mut() else { return };
    for prose in ["description", "title", "example", "externalDocs"] {
        words.remove(prose);
    }
    for (word, below) in words {
        match word.as_str() {
            "properties" => below.as_object_mut().into_iter().flatten().for_each(|it| drop_prose(it.1)),
            "allOf" | "anyOf" | "oneOf" => below.as_array_mut().into_iter().flatten().for_each(drop_prose),
            "items" | "additionalProperties" | "not" => drop_prose(below),
            _ => (),
        }
    }
}

fn with_shape(source: &Value, shape: Shape) -> Schema {
    Schema { shape, is_nullable: source["nullable"] == true, default: source.get("default").cloned(), ..Schema::default() }
}

fn node(source: &Value) -> SchemaRef {
    let is_embedded = source["x-kubernetes-embedded-resource"] == true;
    let preserves = source[OPEN] == true;
    let child = |name: &str| source.get(name).map(node).unwrap_or_default();
    let shape = match source.text("type") {
        _ if source["x-kubernetes-int-or-string"] == true => Shape::IntOrString,
        "object" if source.get("additionalProperties").is_some_and(Value::is_object) => {
            Shape::Map { values: child("additionalProperties"), is_atomic: source.text("x-kubernetes-map-type") == "atomic" }
        }
        "object" if source.get("additionalProperties") == Some(&Value::Bool(true)) => Shape::Any,
        "object" if source.get("properties").is_some() || !preserves || is_embedded => {
            Shape::Object(object(source, is_embedded))
        }
        "array" => Shape::List { items: child("items"), topology: topology(source) },
        "string" => Shape::String,
        "boolean" => Shape::Bool,
        "integer" => Shape::Int64,
        "number" => Shape::Float,
        _ => Shape::Any,
    };
    let schema = with_shape(source, shape);
    let is_plain = !schema.is_nullable && schema.default.is_none();
    types::scalar_node(&schema.shape).filter(|_| is_plain).unwrap_or_else(|| schema.into())
}

fn topology(source: &Value) -> ListTopology {
    match source.text("x-kubernetes-list-type") {
        "set" => ListTopology::Set,
        "map" => ListTopology::Map(source.texts_at(&["x-kubernetes-list-map-keys"]).map(str::to_owned).collect()),
        _ => ListTopology::Atomic,
    }
}

/// Where it is an object of its own, `metadata` is what it is for every object, whatever the CRD says of it.
fn object(source: &Value, has_metadata: bool) -> Struct {
    let required = source.items_at(&["required"]);
    let is_own = |name: &str| has_metadata && matches!(name, "apiVersion" | "kind" | "metadata");
    let properties = source.map_at(&["properties"]).into_iter().flatten().filter(|it| !is_own(it.0));
    let metadata = has_metadata.then(|| Field { name: "metadata".to_owned(), schema: builtin(OBJECT_META).unwrap_or_default(), ..Field::default() });
    let fields: Vec<Field> = properties
        .map(|(name, property)| Field { name: name.clone(), schema: node(property), is_required: required.iter().any(|it| it == name), ..Field::default() })
        .chain(metadata)
        .collect();
    let by_name = fields.iter().enumerate().map(|(at, field)| (field.name.clone(), at)).collect();
    Struct {
        fields,
        by_name,
        is_atomic: source.text("x-kubernetes-map-type") == "atomic",
        preserves_unknown: source[OPEN] == true,
        is_embedded_resource: source["x-kubernetes-embedded-resource"] == true,
        has_type_meta: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::{codec, default};
    use serde_json::json;

    fn schema() -> Value {
        json!({"type": "object", "properties": {"spec": {"type": "object", "required": ["size"], "properties": {
            "size": {"type": "integer"}, "color": {"type": "string", "default": "blue"}, "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
            "tags": {"type": "object", "additionalProperties": {"type": "string"}}, "items": {"type": "array", "items": {"type": "object", "properties": {"n": {"type": "string"}}}}}}}})
    }

    #[test]
    fn custom_resources_are_decoded_pruned_and_defaulted() {
        let schema = from_crd(Some(schema()));
        let object = json!({"apiVersion": "x/v1", "kind": "X", "metadata": {"name": "a", "labels": {}},
            "spec": {"size": 1, "more": true, "free": {"any": [1]}, "items": [{"n": "a", "m": 1}]}});
        let (mut decoded, notes) = codec::decode_value(object, &schema).expect("decodes");
        assert_eq!(notes.unknown, ["unknown field \"spec.items[0].m\"", "unknown field \"spec.more\""]);
        default::default(&mut decoded, &schema);
        assert_eq!(decoded["spec"], json!({"size": 1, "color": "blue", "free": {"any": [1]}, "items": [{"n": "a"}]}));
    }
}
