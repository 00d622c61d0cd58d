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
        other.children.iter().for_each(|(name, child)| self.change(name, |own| own.remove(child)));
    }

    /// Takes everything at and below a path of field names away.
    pub fn remove_path(&mut self, path: &[&str]) {
        match path {
            [] => *self = Self::default(),
            [first, rest @ ..] => self.change(&format!("f:{first}"), |own| own.remove_path(rest)),
        }
    }

    /// Changes what is below a path element; when that becomes empty it goes.
    fn change(&mut self, name: &str, change: impl FnOnce(&mut Self)) {
        let Some(own) = self.children.get_mut(name) else { return };
        change(own);
        if own.is_empty() {
            self.children.remove(name);
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

    /// All that `value` sets, as its manager applied it.
    pub fn of_applied(value: &Value, schema: &Schema) -> Self {
        Self { is_member: false, ..Self::owned(value, &Node::root(schema)) }
    }

    fn owned(value: &Value, node: &Node<'_>) -> Self {
        let below = parts(value, node);
        // A list without items, where items are owned one by one, is nobody's.
        let is_nothing = !node.is_atomic && matches!(node.schema.shape, Shape::List { .. }) && value.as_array().is_some_and(Vec::is_empty);
        // Items of lists are members themselves; other containers only when nothing is in them.
        let is_member = node.is_item || (below.is_empty() && !is_nothing);
        let children = below.into_iter().map(|it| (it.name, Self::owned(it.value, &it.node))).filter(|it| !it.1.is_empty()).collect();
        Self { is_member, children }
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
    pub name: String,
    pub value: &'v Value,
    pub node: Node<'s>,
}

/// The parts of a value that are owned one by one; none of a leaf or an atomic value.
pub fn parts<'v, 's>(value: &'v Value, node: &Node<'s>) -> Vec<Part<'v, 's>> {
    static ANY: std::sync::LazyLock<Schema> = std::sync::LazyLock::new(Schema::default);
    match (&node.schema.shape, value) {
        _ if node.is_atomic => Vec::new(),
        (Shape::Object(shape), Value::Object(map)) => of_map(map, |name| shape.field(name).map_or_else(|| Node::of(&ANY, false), Node::field)),
        (Shape::Map { values, .. }, Value::Object(map)) => of_map(map, |_| Node::of(values, false)),
        (Shape::Any, Value::Object(map)) => of_map(map, |_| Node::of(&ANY, false)),
        (Shape::List { items, topology: ListTopology::Set }, Value::Array(list)) => of_list(list, items, |it| format!("v:{it}")),
        (Shape::List { items, topology: ListTopology::Map(keys) }, Value::Array(list)) => of_list(list, items, |it| key(it, keys, items)),
        _ => Vec::new(),
    }
}

fn of_map<'v, 's>(map: &'v Map<String, Value>, node: impl Fn(&str) -> Node<'s>) -> Vec<Part<'v, 's>> {
    map.iter().map(|(name, value)| Part { name: format!("f:{name}"), value, node: node(name) }).collect()
}

fn of_list<'v, 's>(list: &'v [Value], items: &'s Schema, name: impl Fn(&Value) -> String) -> Vec<Part<'v, 's>> {
    list.iter().map(|value| Part { name: name(value), value, node: Node::of(items, true) }).collect()
}

/// `k:{...}` of an item: the values of its keys, the declared default where one is absent.
fn key(item: &Value, keys: &[String], items: &Schema) -> String {
    let value = |name: &String| {
        let declared = || items.field(name)?.default.as_deref().cloned();
        Some((name.clone(), item.get(name).cloned().or_else(declared)?))
    };
    format!("k:{}", Value::Object(keys.iter().filter_map(value).collect()))
}
