//! Sets of fields: who owns what of an object, in the form of `fieldsV1` (structured-merge-diff `fieldpath`).

use std::collections::BTreeMap;

use crate::{
    meta::{Map, Value},
    schema::{Field, ListTopology, Schema, Shape},
};

/// A tree of path elements, written as in fieldsV1: `f:name`, `k:{"name":"a"}`, `v:"a"`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Set {
    /// The path that ends here is a member.
    pub is_member: bool,
    pub children: BTreeMap<String, Set>,
}

impl Set {
    fn member() -> Self {
        Self { is_member: true, ..Self::default() }
    }

    pub fn is_empty(&self) -> bool {
        !self.is_member && self.children.is_empty()
    }

    pub fn from_value(fields: &Value) -> Self {
        let mut set = Self::default();
        for (name, below) in fields.as_object().into_iter().flatten() {
            if name == "." {
                set.is_member = true;
                continue;
            }
            let mut child = Self::from_value(below);
            child.is_member |= below.as_object().is_none_or(Map::is_empty);
            set.children.insert(name.clone(), child);
        }
        set
    }

    pub fn to_value(&self) -> Value {
        let mut map = Map::new();
        if self.is_member && !self.children.is_empty() {
            map.insert(".".to_owned(), Value::Object(Map::new()));
        }
        for (name, child) in &self.children {
            map.insert(name.clone(), child.to_value());
        }
        Value::Object(map)
    }

    pub fn union(&mut self, other: &Self) {
        self.is_member |= other.is_member;
        for (name, child) in &other.children {
            self.children.entry(name.clone()).or_default().union(child);
        }
    }

    /// Takes the members of `other` away.
    pub fn remove(&mut self, other: &Self) {
        self.is_member &= !other.is_member;
        self.each_below(other, &|own, other| own.remove(other));
    }

    /// Takes everything below the paths of `other` away.
    pub fn remove_below(&mut self, other: &Self) {
        self.each_below(other, &|own, other| if other.children.is_empty() { *own = Self::default() } else { own.remove_below(other) });
    }

    /// Changes the children that both have; what becomes empty goes.
    fn each_below(&mut self, other: &Self, change: &dyn Fn(&mut Self, &Self)) {
        for (name, child) in &other.children {
            let Some(own) = self.children.get_mut(name) else { continue };
            change(own, child);
            if own.is_empty() {
                self.children.remove(name);
            }
        }
    }

    pub fn intersection(&self, other: &Self) -> Self {
        let mut set = Self { is_member: self.is_member && other.is_member, ..Self::default() };
        for (name, child) in &self.children {
            if let Some(below) = other.children.get(name).map(|it| child.intersection(it)).filter(|it| !it.is_empty()) {
                set.children.insert(name.clone(), below);
            }
        }
        set
    }

    /// The members as upstream prints paths and in its order, the nearer ones first: `.spec.containers[name="a"].image`.
    pub fn paths(&self) -> Vec<String> {
        let mut paths = Vec::new();
        self.collect("", &mut paths);
        paths
    }

    fn collect(&self, prefix: &str, paths: &mut Vec<String>) {
        let places: Vec<(String, &Self)> = self.children.iter().map(|(name, child)| (format!("{prefix}{}", element_text(name)), child)).collect();
        paths.extend(places.iter().filter(|it| it.1.is_member).map(|it| it.0.clone()));
        places.iter().for_each(|(place, child)| child.collect(place, paths));
    }

    /// A set with the one path of these field names.
    pub fn of_path(path: &[&str]) -> Self {
        match path.split_first() {
            None => Self::member(),
            Some((first, rest)) => Self { is_member: false, children: BTreeMap::from([(format!("f:{first}"), Self::of_path(rest))]) },
        }
    }

    /// All that `value` sets, as its manager applied it.
    pub fn of_applied(value: &Value, schema: &Schema) -> Self {
        let mut set = Self::default();
        set.add_applied(parts(value, &Node::root(schema)));
        set
    }

    fn add_applied(&mut self, parts: Vec<(String, Part<'_, '_>)>) {
        let owned = parts.into_iter().map(|(name, child)| (name, applied(&child))).filter(|it| !it.1.is_empty());
        self.children.extend(owned);
    }
}

fn element_text(element: &str) -> String {
    if let Some(name) = element.strip_prefix("f:") {
        return format!(".{name}");
    }
    if let Some(value) = element.strip_prefix("v:") {
        return format!("[={value}]");
    }
    let keys: Value = element.strip_prefix("k:").and_then(|it| serde_json::from_str(it).ok()).unwrap_or_default();
    let texts: Vec<String> = keys.as_object().into_iter().flatten().map(|(name, value)| format!("{name}={value}")).collect();
    format!("[{}]", texts.join(","))
}

fn applied(part: &Part<'_, '_>) -> Set {
    let below = parts(part.value, &part.node);
    // Items of lists are members themselves; other containers only when nothing is in them.
    let is_member = part.node.is_item || (below.is_empty() && !part.is_nothing());
    let mut set = Set { is_member, ..Set::default() };
    set.add_applied(below);
    set
}

/// A place in an object: its schema, and whether it is owned as a whole.
#[derive(Clone, Copy)]
pub struct Node<'a> {
    pub schema: &'a Schema,
    pub is_atomic: bool,
    pub is_item: bool,
}

impl<'a> Node<'a> {
    pub fn root(schema: &'a Schema) -> Self {
        Self { schema, is_atomic: false, is_item: false }
    }

    fn field(field: &'a Field) -> Self {
        let is_atomic = field.is_atomic || (is_atomic(&field.schema) && !field.is_granular);
        Self { schema: &field.schema, is_atomic, is_item: false }
    }

    fn of(schema: &'a Schema, is_item: bool) -> Self {
        Self { schema, is_atomic: is_atomic(schema), is_item }
    }
}

fn is_atomic(schema: &Schema) -> bool {
    match &schema.shape {
        Shape::Object(shape) => shape.is_atomic,
        Shape::Map { is_atomic, .. } => *is_atomic,
        Shape::List { topology, .. } => *topology == ListTopology::Atomic,
        _ => false,
    }
}

/// A part of a value under its path element.
pub struct Part<'v, 's> {
    pub value: &'v Value,
    pub node: Node<'s>,
}

impl Part<'_, '_> {
    /// A list without items, where items are owned one by one: it is nobody's.
    fn is_nothing(&self) -> bool {
        !self.node.is_atomic && matches!(self.node.schema.shape, Shape::List { .. }) && self.value.as_array().is_some_and(Vec::is_empty)
    }
}

/// The parts of a value that are owned one by one; none of a leaf or an atomic value.
pub fn parts<'v, 's>(value: &'v Value, node: &Node<'s>) -> Vec<(String, Part<'v, 's>)> {
    static ANY: std::sync::LazyLock<Schema> = std::sync::LazyLock::new(Schema::default);
    if node.is_atomic {
        return Vec::new();
    }
    let named = |name: &str, value: &'v Value, node: Node<'s>| (format!("f:{name}"), Part { value, node });
    match (&node.schema.shape, value) {
        (Shape::Object(shape), Value::Object(map)) => map
            .iter()
            .map(|(name, value)| {
                named(name, value, shape.field(name).map_or_else(|| Node::of(&ANY, false), Node::field))
            })
            .collect(),
        (Shape::Map { values, .. }, Value::Object(map)) => map.iter().map(|(name, value)| named(name, value, Node::of(values, false))).collect(),
        (Shape::Any, Value::Object(map)) => map.iter().map(|(name, value)| named(name, value, Node::of(&ANY, false))).collect(),
        (Shape::List { items, topology: ListTopology::Set }, Value::Array(list)) => {
            list.iter().map(|value| (format!("v:{value}"), Part { value, node: Node::of(items, true) })).collect()
        }
        (Shape::List { items, topology: ListTopology::Map(keys) }, Value::Array(list)) => {
            list.iter().map(|value| (key(value, keys, items), Part { value, node: Node::of(items, true) })).collect()
        }
        _ => Vec::new(),
    }
}

/// `k:{...}` of an item: the values of its keys, the declared default where one is absent.
pub fn key(item: &Value, keys: &[String], items: &Schema) -> String {
    let value = |name: &String| {
        let declared = || items.field(name)?.default.as_deref().cloned();
        Some((name.clone(), item.get(name).cloned().or_else(declared)?))
    };
    format!("k:{}", Value::Object(keys.iter().filter_map(value).collect()))
}
