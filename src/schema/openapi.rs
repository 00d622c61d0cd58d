//! OpenAPI definitions from schemas.
//! Source: kube-openapi `pkg/{builder,builder3}`, apiextensions `pkg/controller/openapi/{builder,v2}`; the `x-kubernetes-*` extensions that clients read.

use serde_json::json;

use super::{Field, ListTopology, Schema, Shape, structural::OPEN};
use crate::meta::{Map, Meta, Value};

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// The two forms of a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    V2,
    V3,
}

impl Dialect {
    /// Where definitions stand: the prefix of a `$ref`.
    pub fn reference(self) -> &'static str {
        match self {
            Self::V2 => "#/definitions/",
            Self::V3 => "#/components/schemas/",
        }
    }

    pub fn refer(self, name: &str) -> Value {
        json!({"$ref": format!("{}{name}", self.reference())})
    }
}

/// What the types that every object has say of their fields, for `kubectl explain`: a type, or `*` for all others; a field; its description.
const DESCRIPTIONS: &str = include_str!("descriptions.txt");

fn describe(type_name: &str, field: &str, property: &mut Value) {
    let own = type_name.rsplit('.').next().unwrap_or_default();
    let found = DESCRIPTIONS.lines().find_map(|line| {
        let (owner, rest) = line.split_once(' ')?;
        let is_of = owner == own || (owner == "*" && own != "ObjectMeta");
        rest.strip_prefix(field)?.strip_prefix(' ').filter(|_| is_of)
    });
    if let Some(text) = found {
        // JSON references have no siblings in v3: kube-openapi wraps them.
        if let Some(target) = property.as_object_mut().and_then(|it| it.remove("$ref")) {
            *property = json!({"allOf": [{"$ref": target}]});
        }
        property["description"] = text.into();
    }
}

/// The definitions of a document (`components.schemas`): `schema` and all that it refers to, put into `into`.
pub fn define(schema: &Schema, name: &str, dialect: Dialect, into: &mut Map<String, Value>) {
    if into.contains_key(name) {
        return;
    }
    into.insert(name.to_owned(), Value::Null);
    let definition = object(schema, dialect, into);
    into.insert(name.to_owned(), definition);
}

fn object(schema: &Schema, dialect: Dialect, into: &mut Map<String, Value>) -> Value {
    let Some(shape) = schema.as_struct() else { return node(schema, dialect, into) };
    let mut definition = json!({"type": "object"});
    if shape.has_type_meta {
        add_type_meta(&mut definition);
    }
    for field in &shape.fields {
        let mut property = property(field, dialect, into);
        describe(&schema.name, &field.name, &mut property);
        definition["properties"][&field.name] = property;
    }
    let required: Vec<&str> = shape.fields.iter().filter(|it| it.is_required).map(|it| it.name.as_str()).collect();
    if !required.is_empty() {
        definition["required"] = json!(required);
    }
    if shape.is_atomic {
        definition["x-kubernetes-map-type"] = "atomic".into();
    }
    definition
}

fn add_type_meta(definition: &mut Value) {
    for name in ["apiVersion", "kind"] {
        let mut property = json!({"type": "string"});
        describe("", name, &mut property);
        definition["properties"][name] = property;
    }
}

/// What every object and list has: `apiVersion`, `kind`, and metadata of that type.
pub fn add_meta(definition: &mut Value, type_name: &str, dialect: Dialect) {
    add_type_meta(definition);
    let mut metadata = dialect.refer(type_name);
    describe("", "metadata", &mut metadata);
    definition["properties"]["metadata"] = metadata;
}

/// A custom resource's own schema, with the metadata that every object has (`buildKubeNative`). Where kubectl would take the declared
/// fields for all that there may be, v2 declares none.
pub fn custom(source: &Value, dialect: Dialect) -> Value {
    let is_open = source[OPEN] == true;
    if source.text("type").is_empty() || (dialect == Dialect::V2 && is_open) {
        return json!({"type": "object"});
    }
    let mut definition = published(source, dialect);
    add_meta(&mut definition, OBJECT_META, dialect);
    definition
}

/// A node of a structural schema as it is told to clients.
fn published(source: &Value, dialect: Dialect) -> Value {
    let mut node = source.clone();
    match dialect {
        Dialect::V2 => simplify(&mut node),
        Dialect::V3 => unfold(&mut node),
    }
    for (_, property) in node.get_mut("properties").and_then(Value::as_object_mut).into_iter().flatten() {
        *property = published(property, dialect);
    }
    for part in ["items", "additionalProperties"] {
        if let Some(child) = node.get_mut(part).filter(|it| it.is_object()) {
            *child = published(child, dialect);
        }
    }
    let is_open = node[OPEN] == true && dialect == Dialect::V2;
    if node["x-kubernetes-embedded-resource"] == true && !is_open {
        add_meta(&mut node, OBJECT_META, dialect);
        let mut required = node.items_at(&["required"]).to_vec();
        required.extend(["kind", "apiVersion"].into_iter().filter(|it| !node.items_at(&["required"]).iter().any(|has| has == it)).map(Value::from));
        node["required"] = required.into();
    }
    node
}

/// What OpenAPI v2 cannot say, and what kubectl misreads in it, goes (`ToStructuralOpenAPIV2`).
fn simplify(node: &mut Value) {
    let (is_nullable, is_open) = (node["nullable"] == true, node[OPEN] == true);
    let is_nullable_at = |place: &Value| place["nullable"] == true;
    if let Some(required) = node.get("required").and_then(Value::as_array) {
        let of_nullable = |name: &Value| name.as_str().and_then(|it| node.at(&["properties", it])).is_some_and(is_nullable_at);
        let kept: Vec<Value> = required.iter().filter(|it| !of_nullable(it)).cloned().collect();
        match kept.is_empty() || node.get("additionalProperties").is_some_and(is_nullable_at) {
            true => _ = node.remove_at(&["required"]),
            false => node["required"] = kept.into(),
        }
    }
    let mut gone = vec!["allOf", "oneOf", "anyOf", "not", "nullable"];
    if is_nullable || is_open {
        gone.extend(["items", "properties"]);
    }
    let has_items = node.get("items").is_some() && !gone.contains(&"items");
    if is_nullable || (is_open && node.text("type") == "object") || (!has_items && node.text("type") == "array") {
        gone.push("type");
    }
    gone.into_iter().for_each(|it| _ = node.remove_at(&[it]));
}

/// A value that is an integer or a string says so in terms of OpenAPI (`Structural.Unfold`).
fn unfold(node: &mut Value) {
    if node["x-kubernetes-int-or-string"] != true {
        return;
    }
    let either = json!([{"type": "integer"}, {"type": "string"}]);
    if node["anyOf"] == either || node.items_at(&["allOf"]).first().is_some_and(|it| it["anyOf"] == either) {
        return;
    }
    if node.get("anyOf").is_none() {
        node["anyOf"] = either;
        return;
    }
    let all: Vec<Value> = [json!({"anyOf": either})].into_iter().chain(node.items_at(&["allOf"]).to_vec()).collect();
    node["allOf"] = all.into();
}

fn property(field: &Field, dialect: Dialect, into: &mut Map<String, Value>) -> Value {
    let mut property = node(&field.schema, dialect, into);
    if let Some(target) = property.get("$ref").cloned()
        && field.default.is_some()
        && dialect == Dialect::V3
    {
        property = json!({"allOf": [{"$ref": target}]});
    }
    if let Some(default) = &field.default {
        property["default"] = default.as_ref().clone();
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
        property["x-kubernetes-patch-merge-key"] = (**key).into();
    }
    property
}

fn node(schema: &Schema, dialect: Dialect, into: &mut Map<String, Value>) -> Value {
    match &schema.shape {
        Shape::Object(_) if !schema.name.is_empty() => {
            define(schema, &schema.name, dialect, into);
            dialect.refer(&schema.name)
        }
        Shape::Object(_) => object(schema, dialect, into),
        Shape::Any | Shape::SchemaOrArray | Shape::SchemaOrBool | Shape::SchemaOrStrings => json!({}),
        Shape::Bool => json!({"type": "boolean"}),
        Shape::Int32 => json!({"type": "integer", "format": "int32"}),
        Shape::Int64 => json!({"type": "integer", "format": "int64"}),
        Shape::Float => json!({"type": "number", "format": "double"}),
        Shape::String | Shape::Duration => json!({"type": "string"}),
        Shape::Bytes => json!({"type": "string", "format": "byte"}),
        Shape::Time | Shape::MicroTime => json!({"type": "string", "format": "date-time"}),
        Shape::Quantity => json!({"type": "string", "x-kubernetes-quantity": true}),
        Shape::IntOrString if dialect == Dialect::V2 => json!({"type": "string", "format": "int-or-string"}),
        Shape::IntOrString => json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]}),
        Shape::Map { values, .. } => json!({"type": "object", "additionalProperties": node(values, dialect, into)}),
        Shape::List { items, topology } => {
            let mut list = json!({"type": "array", "items": node(items, dialect, into)});
            if let ListTopology::Map(keys) = topology {
                list["x-kubernetes-list-map-keys"] = json!(keys);
            }
            list["x-kubernetes-list-type"] = match topology {
                ListTopology::Atomic => "atomic".into(),
                ListTopology::Set => "set".into(),
                ListTopology::Map(_) => "map".into(),
            };
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
        define(&schema, &schema.name, Dialect::V3, &mut definitions);
        let text = Value::Object(definitions.clone()).to_string();
        for reference in text.split("\"$ref\":\"#/components/schemas/").skip(1) {
            let name = reference.split('"').next().expect("a name");
            assert!(definitions.contains_key(name), "{name}");
        }
        let containers = &definitions["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
        assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
        assert_eq!(containers["x-kubernetes-list-map-keys"], json!(["name"]));
    }

    /// (what a node of a CRD says, what v2 and what v3 make of it); after upstream's `conversion_test.go` and `unfold_test.go`.
    #[test]
    fn custom_schemas_are_published_as_clients_can_read_them() {
        let either = json!([{"type": "integer"}, {"type": "string"}]);
        let cases = [
            (json!({"type": "string", "nullable": true}), json!({}), json!({"type": "string", "nullable": true})),
            (json!({"type": "array", "x-kubernetes-preserve-unknown-fields": true, "items": {"type": "string"}}), json!({"x-kubernetes-preserve-unknown-fields": true}), json!(null)),
            (
                json!({"type": "object", "required": ["a", "b"], "properties": {"a": {"type": "string", "nullable": true}, "b": {"type": "string"}}, "oneOf": [{}]}),
                json!({"type": "object", "required": ["b"], "properties": {"a": {}, "b": {"type": "string"}}}),
                json!(null),
            ),
            (json!({"x-kubernetes-int-or-string": true}), json!({"x-kubernetes-int-or-string": true}), json!({"x-kubernetes-int-or-string": true, "anyOf": either})),
            (
                json!({"x-kubernetes-int-or-string": true, "anyOf": [{"pattern": "a"}]}),
                json!({"x-kubernetes-int-or-string": true}),
                json!({"x-kubernetes-int-or-string": true, "anyOf": [{"pattern": "a"}], "allOf": [{"anyOf": either}]}),
            ),
        ];
        for (source, v2, v3) in cases {
            assert_eq!(published(&source, Dialect::V2), v2, "{source}");
            assert_eq!(published(&source, Dialect::V3), if v3.is_null() { source.clone() } else { v3 }, "{source}");
        }
    }
}
