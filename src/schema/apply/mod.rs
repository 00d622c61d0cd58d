//! Server-side apply and managed fields (KEP-555; structured-merge-diff): who owns which field.
//!
//! `managedFields` of an object is decoded into [`Managers`], and every write of an object goes through [`update`] or [`apply`].
//! Source: apimachinery `pkg/util/managedfields`, structured-merge-diff `merge/update.go`.

mod set;
mod typed;

pub use typed::check;

use std::collections::HashMap;

use serde_json::json;

use self::set::{Node, Set, parts};
use super::{ListTopology, Schema, Shape, codec};
use crate::meta::{Map, Meta, Result, Status, Value};

/// Who writes, for the entry in `managedFields`.
#[derive(Clone, Debug)]
pub struct Manager<'a> {
    pub name: &'a str,
    /// The version in which the manager speaks of the object.
    pub api_version: &'a str,
    /// "" or "status", "scale" …
    pub subresource: &'a str,
    /// RFC 3339.
    pub now: &'a str,
}

/// Managers by update beyond this many become one (`DefaultMaxUpdateManagers`).
const UPDATE_MANAGERS_MAX: usize = 10;
const ANCIENT: &str = "ancient-changes";
/// What nobody owns (`stripMeta`).
const NEVER_OWNED: &[&[&str]] = &[
    &["apiVersion"],
    &["kind"],
    &["metadata", "name"],
    &["metadata", "namespace"],
    &["metadata", "creationTimestamp"],
    &["metadata", "selfLink"],
    &["metadata", "uid"],
    &["metadata", "generation"],
    &["metadata", "managedFields"],
    &["metadata", "resourceVersion"],
];

/// One entry of `managedFields`: the fields, and all else that it says.
#[derive(Clone, Debug, PartialEq)]
struct Entry {
    about: Value,
    fields: Set,
}

impl Entry {
    fn new(manager: &Manager<'_>, operation: &str) -> Self {
        let mut about = json!({"manager": manager.name, "operation": operation, "apiVersion": manager.api_version, "time": manager.now, "fieldsType": "FieldsV1"});
        if !manager.subresource.is_empty() {
            about["subresource"] = manager.subresource.into();
        }
        Self { about, fields: Set::default() }
    }

    fn read(entry: &Value) -> Option<Self> {
        let is_known = matches!(entry.text("operation"), "Apply" | "Update") && entry.text("fieldsType") == "FieldsV1";
        let about = entry.as_object()?.iter().filter(|it| it.0 != "fieldsV1").map(|(name, value)| (name.clone(), value.clone()));
        is_known.then(|| Self { about: about.collect(), fields: entry.get("fieldsV1").map(Set::from_value).unwrap_or_default() })
    }

    fn to_value(&self) -> Value {
        let mut entry = self.about.clone();
        entry["fieldsV1"] = self.fields.to_value();
        entry
    }

    fn text(&self, field: &str) -> &str {
        self.about.text(field)
    }

    fn is(&self, manager: &Manager<'_>, operation: &str) -> bool {
        let is_same = self.text("manager") == manager.name && self.text("operation") == operation && self.text("subresource") == manager.subresource;
        // A manager that applies in another version replaces what it applied before.
        is_same && (operation == "Apply" || self.text("apiVersion") == manager.api_version)
    }
}

/// All entries of an object.
#[derive(Clone, Debug, Default, PartialEq)]
struct Managers(Vec<Entry>);

impl Managers {
    /// `None` for entries that cannot be read.
    fn read(object: &Value) -> Option<Self> {
        object.items_at(&["metadata", "managedFields"]).iter().map(Entry::read).collect::<Option<_>>().map(Self)
    }

    fn write(mut self, object: &mut Value) {
        self.0.retain(|it| !it.fields.is_empty());
        self.cap();
        let order = |it: &Entry| ["operation", "time", "manager", "apiVersion"].map(|field| it.text(field).to_owned());
        self.0.sort_by_key(order);
        match self.0.is_empty() {
            true => object.remove_metadata("managedFields"),
            false => object.set_metadata("managedFields", self.0.iter().map(Entry::to_value).collect::<Vec<_>>()),
        }
    }

    /// The oldest managers by update become one.
    fn cap(&mut self) {
        let mut updates: Vec<usize> = (0..self.0.len()).filter(|at| self.0[*at].text("operation") == "Update" && self.0[*at].text("subresource").is_empty()).collect();
        updates.sort_by_key(|at| self.0[*at].text("time").to_owned());
        let Some(surplus) = updates.len().checked_sub(UPDATE_MANAGERS_MAX).filter(|it| *it > 0) else { return };
        let mut oldest: Vec<usize> = updates[..=surplus].to_vec();
        oldest.sort_unstable();
        let mut ancient: Option<Entry> = None;
        for at in oldest.into_iter().rev() {
            let entry = self.0.remove(at);
            ancient.get_or_insert_with(|| entry.clone()).fields.union(&entry.fields);
        }
        ancient.iter_mut().for_each(|it| it.about["manager"] = ANCIENT.into());
        self.0.extend(ancient);
    }

    /// The entry of a manager, made if it is not there.
    fn entry(&mut self, manager: &Manager<'_>, operation: &str) -> &mut Entry {
        let at = self.0.iter().position(|it| it.is(manager, operation)).unwrap_or_else(|| {
            self.0.push(Entry::new(manager, operation));
            self.0.len() - 1
        });
        &mut self.0[at]
    }

    /// What all but one manager own.
    fn others(&self, manager: &Manager<'_>, operation: &str) -> Set {
        let mut all = Set::default();
        self.0.iter().filter(|it| !it.is(manager, operation)).for_each(|it| all.union(&it.fields));
        all
    }
}

/// How one object differs from another.
#[derive(Default)]
struct Comparison {
    /// Added and changed.
    changed: Set,
    removed: Set,
}

impl Comparison {
    /// `reset` are paths that the write may not reach, so that nobody gains or loses them.
    fn of(old: &Value, new: &Value, schema: &Schema, reset: &[&[&str]]) -> Self {
        let mut comparison = compare(Some(old), Some(new), &Node::root(schema));
        free(&mut comparison.changed, reset);
        free(&mut comparison.removed, reset);
        comparison
    }

    /// Adds what differs below a path element.
    fn add(&mut self, name: &str, old: Option<&Value>, new: Option<&Value>, node: &Node<'_>) {
        let below = compare(old, new, node);
        for (set, below) in [(&mut self.changed, below.changed), (&mut self.removed, below.removed)] {
            if !below.is_empty() {
                set.children.insert(name.to_owned(), below);
            }
        }
    }
}

/// Takes out what nobody owns, and what this write may not reach.
fn free(fields: &mut Set, reset: &[&[&str]]) {
    NEVER_OWNED.iter().chain(reset).for_each(|it| fields.remove_path(it));
}

fn compare(old: Option<&Value>, new: Option<&Value>, node: &Node<'_>) -> Comparison {
    let mut comparison = Comparison::default();
    if old == new {
        return comparison;
    }
    let (old_parts, new_parts) = (old.map(|it| parts(it, node)).unwrap_or_default(), new.map(|it| parts(it, node)).unwrap_or_default());
    let is_leaf = old_parts.is_empty() && new_parts.is_empty();
    comparison.changed.is_member = new.is_some() && (old.is_none() || is_leaf);
    comparison.removed.is_member = new.is_none();
    let mut before: HashMap<&str, &Value> = old_parts.iter().rev().map(|it| (it.name.as_str(), it.value)).collect();
    for part in &new_parts {
        comparison.add(&part.name, before.get(part.name.as_str()).copied(), Some(part.value), &part.node);
    }
    new_parts.iter().for_each(|it| _ = before.remove(it.name.as_str()));
    for part in old_parts.iter().filter(|it| before.contains_key(it.name.as_str())) {
        comparison.add(&part.name, Some(part.value), None, &part.node);
    }
    comparison
}

/// Records in `new.metadata.managedFields` what a create or update by `manager` changed (operation `Update`).
/// `old` is the object as stored (null on create), both in the manager's version. `reset` are paths that this subresource may not
/// own (`status` on the main resource), written as `["status"]`.
pub fn update(old: &Value, new: &mut Value, schema: &Schema, manager: &Manager<'_>, reset: &[&[&str]]) {
    if is_cleared(new) {
        return new.remove_metadata("managedFields");
    }
    let own = Managers::read(new).filter(|it| !it.0.is_empty());
    let mut managers = own.or_else(|| Managers::read(old)).unwrap_or_default();
    let empty = nothing(schema);
    let old = if old.is_null() { &empty } else { old };
    let comparison = Comparison::of(old, new, schema, reset);
    for entry in managers.0.iter_mut().filter(|it| !it.is(manager, "Update")) {
        entry.fields.remove(&comparison.changed);
        entry.fields.remove(&comparison.removed);
    }
    let entry = managers.entry(manager, "Update");
    let before = entry.fields.clone();
    entry.fields.union(&comparison.changed);
    entry.fields.remove(&comparison.removed);
    if entry.fields != before {
        entry.about["time"] = manager.now.into();
    }
    managers.write(new);
}

/// An object in which nothing is set: it has its metadata, which nobody owns.
fn nothing(schema: &Schema) -> Value {
    codec::decode_value(json!({"metadata": {}}), schema).map(|(value, _)| value).unwrap_or_default()
}

/// A client clears the managers by an empty list, or a list with one empty entry.
fn is_cleared(object: &Value) -> bool {
    match object.at(&["metadata", "managedFields"]).and_then(Value::as_array).map(Vec::as_slice) {
        Some([]) => true,
        Some([only]) => only.as_object().is_some_and(Map::is_empty),
        _ => false,
    }
}

/// Merges `applied` into `live` (null when the object does not exist), records the ownership, and returns the result.
/// 409 `Conflict` with a cause per field (`conflict with "x": .spec.replicas`) unless `is_forced`.
pub fn apply(live: &Value, applied: &Value, schema: &Schema, manager: &Manager<'_>, is_forced: bool, reset: &[&[&str]]) -> Result<Value> {
    let mut managers = Managers::read(live).unwrap_or_default();
    if !live.is_null() && managers.0.is_empty() {
        // What nobody is known to have set was there before the first apply (`skipnonapplied.go`).
        let fields = Comparison::of(&nothing(schema), live, schema, reset).changed;
        managers.0.push(Entry { fields, ..Entry::new(&Manager { name: "before-first-apply", ..manager.clone() }, "Update") });
    }
    let mut wanted = Set::of_applied(applied, schema);
    free(&mut wanted, reset);
    let mut merged = match live.is_null() {
        true => applied.clone(),
        false => merge(live, applied, &Node::root(schema)),
    };
    let mut kept = managers.others(manager, "Apply");
    let entry = managers.entry(manager, "Apply");
    let mut gone = entry.fields.clone();
    gone.remove(&wanted);
    kept.union(&wanted);
    prune(&mut merged, &gone, &kept, &Node::root(schema));
    if entry.fields != wanted || entry.text("apiVersion") != manager.api_version {
        *entry = Entry { fields: wanted, ..Entry::new(manager, "Apply") };
    }
    let comparison = Comparison::of(if live.is_null() { &merged } else { live }, &merged, schema, reset);
    settle(&mut managers, &comparison, manager, is_forced)?;
    managers.write(&mut merged);
    Ok(merged)
}

/// Takes what changed from its other owners, or refuses.
fn settle(managers: &mut Managers, comparison: &Comparison, manager: &Manager<'_>, is_forced: bool) -> Result<()> {
    let mut conflicts: Vec<(String, String)> = Vec::new();
    for entry in managers.0.iter_mut().filter(|it| !it.is(manager, "Apply")) {
        let contested = entry.fields.intersection(&comparison.changed);
        if is_forced {
            entry.fields.remove(&contested);
        } else {
            let by = owner(entry);
            conflicts.extend(contested.paths().into_iter().map(|path| (by.clone(), path)));
        }
        entry.fields.remove(&comparison.removed);
    }
    if conflicts.is_empty() { Ok(()) } else { Err(conflict(conflicts)) }
}

/// `"kubectl" with subresource "status" using apps/v1`; one that applied is named alone (`BuildManagerIdentifier` keeps neither its version
/// nor anybody's time).
fn owner(entry: &Entry) -> String {
    let part = if entry.text("subresource").is_empty() { String::new() } else { format!(" with subresource {:?}", entry.text("subresource")) };
    let version = if entry.text("operation") == "Update" { format!(" using {}", entry.text("apiVersion")) } else { String::new() };
    format!("{:?}{part}{version}", entry.text("manager"))
}

/// Source: managedfields `internal/conflict.go`.
fn conflict(mut conflicts: Vec<(String, String)>) -> Status {
    conflicts.sort_by(|left, right| left.0.cmp(&right.0));
    let told = match conflicts.as_slice() {
        [(owner, path)] => format!("1 conflict: conflict with {owner}: {path}"),
        many => {
            let of_one = |group: &[(String, String)]| {
                let lines: String = group.iter().map(|(_, path)| format!("\n- {path}")).collect();
                format!("conflicts with {}:{lines}", group[0].0)
            };
            let groups: Vec<String> = many.chunk_by(|left, right| left.0 == right.0).map(of_one).collect();
            format!("{} conflicts: {}", many.len(), groups.join("\n"))
        }
    };
    let status = Status::new(409, "Conflict", format!("Apply failed with {told}"));
    conflicts.iter().fold(status, |status, (owner, path)| status.with_cause("FieldManagerConflict", format!("conflict with {owner}"), path.as_str()))
}

/// `applied` over `live`: granular parts one by one, the rest as a whole.
fn merge(live: &Value, applied: &Value, node: &Node<'_>) -> Value {
    match (&node.schema.shape, live, applied) {
        _ if node.is_atomic => applied.clone(),
        (Shape::Object(_) | Shape::Map { .. } | Shape::Any, Value::Object(live), Value::Object(_)) => {
            let mut merged = live.clone();
            for part in parts(applied, node) {
                let name = part.name[2..].to_owned();
                let value = match live.get(&name) {
                    Some(before) => merge(before, part.value, &part.node),
                    None => part.value.clone(),
                };
                merged.insert(name, value);
            }
            Value::Object(merged)
        }
        // Items that both have are merged in their place; new ones come behind.
        (Shape::List { topology: ListTopology::Set | ListTopology::Map(_), .. }, Value::Array(list), Value::Array(_)) => {
            let mut merged = list.clone();
            let mut places: HashMap<String, usize> = parts(live, node).into_iter().enumerate().rev().map(|(at, it)| (it.name, at)).collect();
            for part in parts(applied, node) {
                if let Some(at) = places.get(&part.name) {
                    merged[*at] = merge(&merged[*at], part.value, &part.node);
                } else {
                    places.insert(part.name, merged.len());
                    merged.push(part.value.clone());
                }
            }
            merged.into()
        }
        _ => applied.clone(),
    }
}

/// `patch` over `live`, as an apply without managers: what mutating admission policies do. Nothing atomic may be in the patch
/// (`ApplyStructuredMergeDiff`).
pub fn overlay(live: &Value, patch: &Value, schema: &Schema) -> std::result::Result<Value, String> {
    let (node, mut atomics) = (Node::root(schema), Vec::new());
    find_atomics(patch, &node, "", &mut atomics);
    if atomics.is_empty() { Ok(merge(live, patch, &node)) } else { Err(format!("may not mutate atomic arrays, maps or structs: {}", atomics.join(", "))) }
}

fn find_atomics(value: &Value, node: &Node<'_>, path: &str, found: &mut Vec<String>) {
    if node.is_atomic && (value.is_object() || value.is_array()) {
        found.push(path.to_owned());
    }
    for (at, part) in parts(value, node).into_iter().enumerate() {
        let step = if value.is_array() { format!("[{at}]") } else { format!(".{}", &part.name[2..]) };
        find_atomics(part.value, &part.node, &format!("{path}{step}"), found);
    }
}

/// Removes what is `gone` and not `kept` by anyone.
fn prune(value: &mut Value, gone: &Set, kept: &Set, node: &Node<'_>) {
    let places: Vec<(String, Node<'_>)> = parts(value, node).into_iter().map(|it| (it.name, it.node)).collect();
    let mut places = places.into_iter();
    let mut stays = |part: &mut Value| {
        let Some((name, node)) = places.next() else { return true };
        let Some(gone) = gone.children.get(&name) else { return true };
        let kept = kept.children.get(&name);
        if kept.is_none() && gone.is_member {
            return false;
        }
        prune(part, gone, kept.unwrap_or(&Set::default()), &node);
        // What stood around it goes too when nobody names it.
        kept.is_some() || !part.as_object().is_some_and(Map::is_empty)
    };
    match value {
        Value::Object(map) => map.retain(|_, part| stays(part)),
        Value::Array(list) => list.retain_mut(stays),
        _ => (),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::builtin;

    fn manager<'a>(name: &'a str, now: &'a str) -> Manager<'a> {
        Manager { name, api_version: "apps/v1", subresource: "", now }
    }

    fn fields(object: &Value, name: &str) -> Value {
        let entries = object.items_at(&["metadata", "managedFields"]);
        entries.iter().find(|it| it.text("manager") == name).map(|it| it["fieldsV1"].clone()).unwrap_or_default()
    }

    fn deployment(replicas: i64, image: &str) -> Value {
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "labels": {"a": "b"}},
            "spec": {"replicas": replicas, "template": {"spec": {"containers": [{"name": "c", "image": image}]}}}})
    }

    #[test]
    fn an_update_owns_what_it_changes() {
        let schema = builtin("io.k8s.api.apps.v1.Deployment").expect("Deployment");
        let (mut first, _) = codec::decode_value(deployment(1, "i:1"), &schema).expect("decodes");
        update(&Value::Null, &mut first, &schema, &manager("kubectl-create", "2024-01-01T00:00:00Z"), &[&["status"]]);
        let expected = json!({"f:metadata": {"f:labels": {".": {}, "f:a": {}}},
            "f:spec": {"f:replicas": {}, "f:template": {"f:spec": {"f:containers": {"k:{\"name\":\"c\"}": {".": {}, "f:name": {}, "f:image": {}, "f:resources": {}}}}}}});
        assert_eq!(fields(&first, "kubectl-create"), expected);
        let mut second = first.clone();
        second["spec"]["replicas"] = 3.into();
        update(&first, &mut second, &schema, &manager("kubectl-scale", "2024-01-01T00:00:01Z"), &[]);
        assert_eq!(fields(&second, "kubectl-scale"), json!({"f:spec": {"f:replicas": {}}}));
        assert!(fields(&second, "kubectl-create")["f:spec"].get("f:replicas").is_none());
        let mut same = second.clone();
        update(&second, &mut same, &schema, &manager("other", "2024-01-01T00:00:02Z"), &[]);
        assert_eq!(same, second);
        let mut cleared = second.clone();
        cleared["metadata"]["managedFields"] = json!([{}]);
        update(&second, &mut cleared, &schema, &manager("other", "2024-01-01T00:00:02Z"), &[]);
        assert_eq!(cleared.at(&["metadata", "managedFields"]), None);
    }

    #[test]
    fn applies_merge_conflict_and_prune() {
        let schema = builtin("io.k8s.api.apps.v1.Deployment").expect("Deployment");
        let (alice, bob) = (manager("alice", "2024-01-01T00:00:00Z"), manager("bob", "2024-01-01T00:00:01Z"));
        let live = apply(&Value::Null, &deployment(1, "i:1"), &schema, &alice, false, &[]).expect("applies");
        let error = apply(&live, &deployment(2, "i:1"), &schema, &bob, false, &[]).expect_err("a conflict");
        assert_eq!((error.code, error.message.as_str()), (409, "Apply failed with 1 conflict: conflict with \"alice\": .spec.replicas"));
        let causes = error.details.expect("details").causes;
        assert_eq!((causes[0].reason.as_ref(), causes[0].field.as_str()), ("FieldManagerConflict", ".spec.replicas"));
        let mut scaled = live.clone();
        scaled["spec"]["replicas"] = json!(5);
        update(&live, &mut scaled, &schema, &manager("scaler", "2024-01-01T00:00:01Z"), &[]);
        let error = apply(&scaled, &deployment(2, "i:2"), &schema, &bob, false, &[]).expect_err("conflicts");
        let image = ".spec.template.spec.containers[name=\"c\"].image";
        assert_eq!(error.message, format!("Apply failed with 2 conflicts: conflicts with \"alice\":\n- {image}\nconflicts with \"scaler\" using apps/v1:\n- .spec.replicas"));
        let forced = apply(&live, &deployment(2, "i:1"), &schema, &bob, true, &[]).expect("forces");
        assert_eq!(forced["spec"]["replicas"], 2);
        assert!(fields(&forced, "alice")["f:spec"].get("f:replicas").is_none());
        let mut less = deployment(1, "i:1");
        less["metadata"] = json!({"name": "web"});
        less["spec"] = json!({"template": {"spec": {"containers": [{"name": "d", "image": "x"}]}}});
        let after = apply(&live, &less, &schema, &alice, false, &[]).expect("applies");
        assert_eq!(after["metadata"].get("labels").and_then(|it| it.get("a")), None);
        assert_eq!(after["spec"].get("replicas"), None);
        assert_eq!(after["spec"]["template"]["spec"]["containers"], json!([{"name": "d", "image": "x"}]));
    }

    #[test]
    fn sets_survive_the_way_there_and_back() {
        let fields = json!({"f:metadata": {"f:labels": {".": {}, "f:a": {}}}, "f:spec": {"f:list": {"k:{\"name\":\"x\"}": {".": {}, "f:name": {}}, "v:\"y\"": {}}}});
        assert_eq!(Set::from_value(&fields).to_value(), fields);
        assert_eq!(Set::from_value(&fields).paths().len(), 5);
    }
}
