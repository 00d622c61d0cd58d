//! Which part of an old object a part of the new one comes from. What has not changed need not become valid: the checks of custom resources are
//! "ratcheted". Follows apiserver `pkg/cel/common/equality.go`, apiextensions-apiserver `pkg/apiserver/validation/ratcheting.go` (KEP-4008).

use std::collections::HashMap;

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

    /// A place seen by a schema within a combination (`anyOf`), which is no node of its own.
    pub fn part(value: &'a Value, schema: &'a Value) -> Self {
        Self { is_root: false, ..Self::new(value, None, schema) }
    }

    /// Whether the field is one that every object has, whatever its schema says of it.
    pub fn is_of_object(self, name: &str) -> bool {
        matches!(name, "apiVersion" | "kind" | "metadata") && (self.is_root || self.schema["x-kubernetes-embedded-resource"] == true)
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

    /// The items in their order, none where there is no schema; only those of list maps are known again.
    pub fn items(self) -> impl Iterator<Item = Self> {
        let (list, schema) = (self.value.as_array().into_iter().flatten(), self.schema.get("items"));
        let old = self.old.and_then(|it| Keyed::of(it, self.schema));
        list.filter_map(move |value| Some(self.child(value, schema?, old.as_ref().and_then(|it| it.same(value)))))
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

/// The items of a list map, by what they have under its keys.
pub struct Keyed<'a> {
    keys: Vec<&'a str>,
    items: HashMap<Vec<Option<&'a Value>>, &'a Value>,
}

impl<'a> Keyed<'a> {
    /// `None` for any other list.
    pub fn of(list: &'a Value, schema: &'a Value) -> Option<Self> {
        if schema.text("x-kubernetes-list-type") != "map" {
            return None;
        }
        let keys: Vec<&str> = schema.texts_at(&["x-kubernetes-list-map-keys"]).collect();
        let mut items = HashMap::new();
        list.as_array()?.iter().for_each(|it| _ = items.entry(identity(it, &keys)).or_insert(it));
        Some(Self { keys, items })
    }

    /// The item that has the keys of `item`.
    pub fn same(&self, item: &Value) -> Option<&'a Value> {
        self.items.get(&identity(item, &self.keys)).copied()
    }
}

/// What tells an item of a list map from the others.
pub fn identity<'a>(item: &'a Value, keys: &[impl AsRef<str>]) -> Vec<Option<&'a Value>> {
    keys.iter().map(|key| item.get(key.as_ref())).collect()
}

/// Equal as far as the schema sees them; the order of a list map does not count.
fn is_same(new: &Value, old: &Value, schema: &Value) -> bool {
    match (new, old) {
        (Value::Object(a), Value::Object(b)) => {
            let same = |(name, value): (&String, &Value)| b.get(name).zip(below(schema, name)).is_some_and(|(old, schema)| is_same(value, old, schema));
            a.len() == b.len() && a.iter().all(same)
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => match Keyed::of(old, schema) {
            Some(old) => a.iter().all(|item| old.same(item).is_some_and(|it| is_same(item, it, &schema["items"]))),
            None => a == b,
        },
        _ => new == old,
    }
}
