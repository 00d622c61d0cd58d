//! Which part of an old object a part of the new one comes from. What has not changed need not become valid: the checks of custom resources are
//! "ratcheted". Follows apiserver `pkg/cel/common/equality.go`, apiextensions-apiserver `pkg/apiserver/validation/ratcheting.go` (KEP-4008).

use crate::meta::{Meta, Value};

/// A value, its schema as the CRD wrote it, and the old value of the same place, if that can be told.
#[derive(Clone, Copy, Debug)]
pub struct Correlation<'a> {
    pub value: &'a Value,
    pub schema: &'a Value,
    pub old: Option<&'a Value>,
    /// The nearest place above whose old value is known: new, old, schema.
    parent: Option<(&'a Value, &'a Value, &'a Value)>,
    is_root: bool,
}

impl<'a> Correlation<'a> {
    pub fn new(value: &'a Value, old: Option<&'a Value>, schema: &'a Value) -> Self {
        Self { value, schema, old, parent: None, is_root: true }
    }

    fn child(self, value: &'a Value, schema: &'a Value, old: Option<&'a Value>) -> Self {
        let parent = self.old.map(|old| (self.value, old, self.schema)).or(self.parent);
        Self { value, schema, old, parent, is_root: false }
    }

    /// A field or an entry. `None` where there is no value or no schema.
    pub fn key(self, name: &str) -> Option<Self> {
        let (value, schema) = (self.value.get(name)?, below(self.schema, name)?);
        // The version of both is the same by conversion: what they were is not known.
        if self.is_root && matches!(name, "apiVersion" | "kind") {
            return Some(Self { value, schema, old: None, parent: None, is_root: false });
        }
        Some(self.child(value, schema, self.old.and_then(|it| it.get(name))))
    }

    /// An item; only those of list maps are known again.
    pub fn index(self, at: usize) -> Option<Self> {
        let (value, schema) = (self.value.get(at)?, self.schema.get("items")?);
        Some(self.child(value, schema, self.old.and_then(|it| same_item(it, value, self.schema))))
    }

    /// The same place seen by another schema (`allOf`), whose errors are not ratcheted by the place itself.
    pub fn again(self, schema: &'a Value) -> Self {
        Self { schema, old: None, ..self }
    }

    /// Whether nothing changed here, or in what is around it.
    pub fn is_unchanged(self) -> bool {
        match (self.old, self.parent) {
            (Some(old), _) => is_same(self.value, old, self.schema),
            (None, Some((new, old, schema))) => is_same(new, old, schema),
            (None, None) => false,
        }
    }
}

fn below<'a>(schema: &'a Value, name: &str) -> Option<&'a Value> {
    let values = || schema.get("additionalProperties").filter(|it| it.is_object());
    schema.at(&["properties", name]).or_else(values)
}

/// The item of a list map that has the keys of `item`.
pub fn same_item<'a>(list: &'a Value, item: &Value, schema: &Value) -> Option<&'a Value> {
    if schema.text("x-kubernetes-list-type") != "map" {
        return None;
    }
    let keys: Vec<&str> = schema.texts_at(&["x-kubernetes-list-map-keys"]).collect();
    list.as_array()?.iter().find(|it| keys.iter().all(|key| it.get(key) == item.get(key)))
}

/// Equal as far as the schema sees them; the order of a list map does not count.
fn is_same(new: &Value, old: &Value, schema: &Value) -> bool {
    match (new, old) {
        (Value::Object(a), Value::Object(b)) => {
            let same = |(name, value): (&String, &Value)| b.get(name).zip(below(schema, name)).is_some_and(|(old, schema)| is_same(value, old, schema));
            a.len() == b.len() && a.iter().all(same)
        }
        (Value::Array(a), Value::Array(b)) if schema.text("x-kubernetes-list-type") == "map" => {
            a.len() == b.len() && a.iter().all(|item| same_item(old, item, schema).is_some_and(|it| is_same(item, it, &schema["items"])))
        }
        _ => new == old,
    }
}
