//! Untyped objects: who they are, and their metadata.

use std::{borrow::Cow, fmt};

use serde_json::{Map, Value, json};

pub type Str = Cow<'static, str>;

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupResource {
    pub group: Str,
    pub resource: Str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupVersionKind {
    pub group: Str,
    pub version: Str,
    pub kind: Str,
}

impl fmt::Display for GroupResource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.resource)?;
        if self.group.is_empty() { Ok(()) } else { write!(f, ".{}", self.group) }
    }
}

/// `apps/v1, Kind=Deployment`, as Go prints it.
impl fmt::Display for GroupVersionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}, Kind={}", self.group, self.version, self.kind)
    }
}

impl GroupResource {
    pub fn new(group: impl Into<Str>, resource: impl Into<Str>) -> Self {
        Self { group: group.into(), resource: resource.into() }
    }
}

impl GroupVersionKind {
    pub fn new(group: impl Into<Str>, version: impl Into<Str>, kind: impl Into<Str>) -> Self {
        Self { group: group.into(), version: version.into(), kind: kind.into() }
    }

    /// From an object's `apiVersion` and `kind`.
    pub fn of(object: &Value) -> Self {
        let (group, version) = split_api_version(object.text("apiVersion"));
        Self::new(group.to_owned(), version.to_owned(), object.text("kind").to_owned())
    }

    pub fn api_version(&self) -> String {
        api_version(&self.group, &self.version)
    }
}

/// `apps/v1`, or `v1` for the core group.
pub fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

/// (group, version) of an `apiVersion`.
pub fn split_api_version(text: &str) -> (&str, &str) {
    text.split_once('/').unwrap_or(("", text))
}

/// Counts looks at fields, for tests of what a check costs.
fn look() {
    #[cfg(test)]
    LOOKS.set(LOOKS.get() + 1);
}

/// Reading and writing the metadata of an untyped object. Missing or mistyped fields read as empty.
pub trait Meta {
    fn value(&self) -> &Value;
    fn value_mut(&mut self) -> &mut Value;

    /// The string at a top-level field, or "".
    fn text(&self, field: &str) -> &str {
        look();
        self.value().get(field).and_then(Value::as_str).unwrap_or_default()
    }
    /// The value at a path such as `["spec", "replicas"]`.
    fn at(&self, path: &[&str]) -> Option<&Value> {
        look();
        path.iter().try_fold(self.value(), |value, field| value.get(field))
    }
    /// The string at a path, or "".
    fn text_at(&self, path: &[&str]) -> &str {
        self.at(path).and_then(Value::as_str).unwrap_or_default()
    }
    /// The integer at a path.
    fn int_at(&self, path: &[&str]) -> Option<i64> {
        self.at(path).and_then(Value::as_i64)
    }
    /// The elements of the list at a path; none where there is no list.
    fn items_at(&self, path: &[&str]) -> &[Value] {
        self.at(path).and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }
    /// The list at a path, to add to it; made where there is none.
    fn list_at(&mut self, path: &[&str]) -> &mut Vec<Value> {
        if self.at(path).is_none_or(|it| !it.is_array()) {
            self.set_at(path, Vec::<Value>::new());
        }
        let list = path.iter().fold(self.value_mut(), |value, field| &mut value[*field]);
        list.as_array_mut().expect("it was made a list")
    }
    /// The fields of the map at a path.
    fn map_at(&self, path: &[&str]) -> Option<&Map<String, Value>> {
        self.at(path).and_then(Value::as_object)
    }
    /// Sets a value at a path, making the maps on the way; what is no map on the way is replaced.
    fn set_at(&mut self, path: &[&str], value: impl Into<Value>) {
        let mut place = self.value_mut();
        for field in path {
            if !place.is_object() {
                *place = json!({});
            }
            place = &mut place[*field];
        }
        *place = value.into();
    }
    /// Removes the value at a path and returns it.
    fn remove_at(&mut self, path: &[&str]) -> Option<Value> {
        let (last, parents) = path.split_last()?;
        let parent = parents.iter().try_fold(self.value_mut(), |value, field| value.get_mut(*field))?;
        parent.as_object_mut()?.remove(*last)
    }

    fn metadata(&self, field: &str) -> &str {
        self.text_at(&["metadata", field])
    }
    fn name(&self) -> &str {
        self.metadata("name")
    }
    fn namespace(&self) -> &str {
        self.metadata("namespace")
    }
    fn uid(&self) -> &str {
        self.metadata("uid")
    }
    fn resource_version(&self) -> &str {
        self.metadata("resourceVersion")
    }
    fn generation(&self) -> i64 {
        self.int_at(&["metadata", "generation"]).unwrap_or(0)
    }
    fn deletion_timestamp(&self) -> Option<&str> {
        Some(self.metadata("deletionTimestamp")).filter(|it| !it.is_empty())
    }
    fn labels(&self) -> impl Iterator<Item = (&str, &str)> {
        texts(self.map_at(&["metadata", "labels"]))
    }
    fn annotations(&self) -> impl Iterator<Item = (&str, &str)> {
        texts(self.map_at(&["metadata", "annotations"]))
    }
    fn finalizers(&self) -> impl Iterator<Item = &str> {
        self.texts_at(&["metadata", "finalizers"])
    }
    /// The texts in the list at a path.
    fn texts_at<'a>(&'a self, path: &[&str]) -> impl Iterator<Item = &'a str> + use<'a, Self> {
        self.items_at(path).iter().filter_map(Value::as_str)
    }
    fn condition(&self, kind: &str) -> Option<&Value> {
        self.items_at(&["status", "conditions"]).iter().find(|it| it.text("type") == kind)
    }
    fn has_condition(&self, kind: &str) -> bool {
        self.condition(kind).is_some_and(|it| it.text("status") == "True")
    }
    fn owner_references(&self) -> &[Value] {
        self.items_at(&["metadata", "ownerReferences"])
    }
    fn set_metadata(&mut self, field: &str, value: impl Into<Value>) {
        self.set_at(&["metadata", field], value);
    }
    fn remove_metadata(&mut self, field: &str) {
        self.remove_at(&["metadata", field]);
    }
}

fn texts(map: Option<&Map<String, Value>>) -> impl Iterator<Item = (&str, &str)> {
    map.into_iter().flatten().filter_map(|(key, value)| Some((key.as_str(), value.as_str()?)))
}

impl Meta for Value {
    fn value(&self) -> &Value {
        self
    }

    fn value_mut(&mut self) -> &mut Value {
        self
    }
}

#[cfg(test)]
thread_local! {
    pub static LOOKS: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_reads_as_empty_where_it_is_missing_or_mistyped() {
        let object = json!({"metadata": {"name": 5, "labels": {"a": "b", "c": 1}}});
        assert_eq!(object.name(), "");
        assert_eq!(object.labels().collect::<Vec<_>>(), [("a", "b")]);
        assert_eq!(object.finalizers().count(), 0);
        assert_eq!(object.deletion_timestamp(), None);
    }

    #[test]
    fn set_at_makes_the_way_and_remove_at_takes_only_the_leaf() {
        let mut object = json!({"spec": 1});
        object.set_at(&["spec", "a", "b"], 2);
        assert_eq!(object, json!({"spec": {"a": {"b": 2}}}));
        assert_eq!(object.remove_at(&["spec", "a", "b"]), Some(json!(2)));
        assert_eq!(object.remove_at(&["nowhere", "x"]), None);
        assert_eq!(object, json!({"spec": {"a": {}}}));
    }
}
