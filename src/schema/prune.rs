//! Drops the fields that a structural schema does not declare.
//! Source: apiextensions-apiserver `pkg/apiserver/schema/pruning/algorithm.go`.

use super::{Schema, Shape, Struct};
use crate::meta::{Map, Path, Value};

/// What every top-level object and embedded resource has, whatever its schema declares.
const TYPE_META: [&str; 3] = ["apiVersion", "kind", "metadata"];

/// Returns the paths of what was dropped, sorted. Values of another shape than declared are left for validation to refuse.
pub fn prune(value: &mut Value, schema: &Schema) -> Vec<String> {
    let mut dropped = Vec::new();
    visit(value, schema, &Path::root(), &mut dropped);
    dropped.sort();
    dropped
}

/// Recurses as deep as the value is, which the decoder has bounded.
fn visit(value: &mut Value, schema: &Schema, path: &Path, dropped: &mut Vec<String>) {
    match (&schema.shape, value) {
        (Shape::Object(declared), Value::Object(fields)) => visit_fields(fields, declared, path, dropped),
        (Shape::Map { values, .. }, Value::Object(entries)) => {
            entries.iter_mut().for_each(|(key, entry)| visit(entry, values, &path.child(key), dropped));
        }
        (Shape::List { items, .. }, Value::Array(list)) => {
            list.iter_mut().enumerate().for_each(|(at, item)| visit(item, items, &path.index(at), dropped));
        }
        _ => (),
    }
}

fn visit_fields(fields: &mut Map<String, Value>, declared: &Struct, path: &Path, dropped: &mut Vec<String>) {
    fields.retain(|name, value| {
        let path = path.child(name);
        match declared.by_name.get(name) {
            Some(at) => visit(value, &declared.fields[*at].schema, &path, dropped),
            None if declared.keeps(name) => (),
            None => {
                dropped.push(path.as_str().to_owned());
                return false;
            }
        }
        true
    });
}

impl Struct {
    /// Whether a field that is not declared stays.
    fn keeps(&self, name: &str) -> bool {
        self.preserves_unknown || ((self.has_type_meta || self.is_embedded_resource) && TYPE_META.contains(&name))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::{
        super::{Field, ListTopology, SchemaRef},
        *,
    };

    fn of(shape: Shape) -> SchemaRef {
        SchemaRef::Custom(Arc::new(Schema { shape, ..Schema::default() }))
    }

    fn object(fields: Vec<(&str, SchemaRef)>, change: fn(&mut Struct)) -> SchemaRef {
        let by_name = fields.iter().enumerate().map(|(at, (name, _))| ((*name).to_owned(), at)).collect();
        let fields = fields.into_iter().map(|(name, schema)| Field { name: name.to_owned(), schema, ..Field::default() }).collect();
        let mut shape = Struct { fields, by_name, ..Struct::default() };
        change(&mut shape);
        of(Shape::Object(shape))
    }

    #[test]
    fn only_declared_fields_stay() {
        let item = || object(vec![("a", of(Shape::String))], |_| ());
        let spec = object(
            vec![
                ("list", of(Shape::List { items: item(), topology: ListTopology::Atomic })),
                ("map", of(Shape::Map { values: item(), is_atomic: false })),
                ("open", object(vec![("item", item())], |it| it.preserves_unknown = true)),
                ("embedded", object(vec![("spec", item())], |it| it.is_embedded_resource = true)),
                ("any", of(Shape::Any)),
            ],
            |_| (),
        );
        let root = object(vec![("spec", spec)], |it| it.has_type_meta = true);
        let cases = [
            (json!({"kind": "K", "apiVersion": "g/v1", "metadata": {"name": "n"}}), vec![]),
            (json!({"other": 1, "spec": {"z": 1, "y": {"x": 1}}}), vec!["other", "spec.y", "spec.z"]),
            (json!({"spec": {"list": [{"a": "1"}, {"a": "2", "b": 1}]}}), vec!["spec.list[1].b"]),
            (json!({"spec": {"map": {"k": {"a": "1", "b": 1}}}}), vec!["spec.map.k.b"]),
            (json!({"spec": {"open": {"x": {"y": 1}, "item": {"b": 1}}}}), vec!["spec.open.item.b"]),
            (json!({"spec": {"embedded": {"kind": "K", "metadata": {}, "b": 1}}}), vec!["spec.embedded.b"]),
            (json!({"spec": {"any": {"x": [{"y": 1}]}}}), vec![]),
            (json!({"spec": "not an object"}), vec![]),
        ];
        for (input, expected) in cases {
            let mut pruned = input.clone();
            assert_eq!(prune(&mut pruned, &root), expected, "{input}");
            assert_eq!(prune(&mut pruned, &root), Vec::<String>::new(), "once pruned, nothing is left to drop");
            assert_eq!(pruned == input, expected.is_empty(), "{input}");
        }
    }
}
