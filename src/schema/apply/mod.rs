//! Server-side apply and managed fields (KEP-555; structured-merge-diff): who owns which field.
//!
//! `managedFields` of an object is decoded into [`Managers`], and every write of an object goes through [`update`] or [`apply`].
//! Source: apimachinery `pkg/util/managedfields`, structured-merge-diff `merge/update.go`.

mod set;

use serde_json::json;

use self::set::{Node, Set, key, parts};
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

/// One entry of `managedFields`.
#[derive(Clone, Debug, PartialEq)]
struct Entry {
    manager: String,
    operation: String,
    api_version: String,
    subresource: String,
    time: String,
    fields: Set,
}

impl Entry {
    fn new(manager: &Manager<'_>, operation: &str) -> Self {
        let of = [manager.name, operation, manager.api_version, manager.subresource, manager.now];
        Self::of(of, Set::default())
    }

    fn of(texts: [&str; 5], fields: Set) -> Self {
        let [manager, operation, api_version, subresource, time] = texts.map(str::to_owned);
        Self { manager, operation, api_version, subresource, time, fields }
    }

    fn read(entry: &Value) -> Option<Self> {
        let is_known = matches!(entry.text("operation"), "Apply" | "Update") && entry.text("fieldsType") == "FieldsV1";
        let texts = ["manager", "operation", "apiVersion", "subresource", "time"].map(|it| entry.text(it));
        is_known.then(|| Self::of(texts, entry.get("fieldsV1").map(Set::from_value).unwrap_or_default()))
    }

    fn to_value(&self) -> Value {
        let mut entry = json!({
            "manager": self.manager, "operation": self.operation, "apiVersion": self.api_version,
            "time": self.time, "fieldsType": "FieldsV1", "fieldsV1": self.fields.to_value(),
        });
        if !self.subresource.is_empty() {
            entry["subresource"] = self.subresource.as_str().into();
        }
        entry
    }

    fn is(&self, manager: &Manager<'_>, operation: &str) -> bool {
        let is_same = self.manager == manager.name && self.operation == operation && self.subresource == manager.subresource;
        // A manager that applies in another version replaces what it applied before.
        is_same && (operation == "Apply" || self.api_version == manager.api_version)
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
        let order = |it: &Entry| (it.operation.clone(), it.time.clone(), it.manager.clone(), it.api_version.clone());
        self.0.sort_by_key(order);
        match self.0.is_empty() {
            true => object.remove_metadata("managedFields"),
            false => object.set_metadata("managedFields", self.0.iter().map(Entry::to_value).collect::<Vec<_>>()),
        }
    }

    /// The oldest managers by update become one.
    fn cap(&mut self) {
        let mut updates: Vec<usize> = (0..self.0.len()).filter(|at| self.0[*at].operation == "Update" && self.0[*at].subresource.is_empty()).collect();
        updates.sort_by_key(|at| self.0[*at].time.clone());
        let Some(surplus) = updates.len().checked_sub(UPDATE_MANAGERS_MAX).filter(|it| *it > 0) else { return };
        let mut oldest: Vec<usize> = updates[..=surplus].to_vec();
        oldest.sort_unstable();
        let mut ancient: Option<Entry> = None;
        for at in oldest.into_iter().rev() {
            let entry = self.0.remove(at);
            match &mut ancient {
                None => ancient = Some(Entry { manager: ANCIENT.to_owned(), ..entry }),
                Some(all) => all.fields.union(&entry.fields),
            }
        }
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
        for path in NEVER_OWNED.iter().chain(reset) {
            comparison.changed.remove_below(&Set::of_path(path));
            comparison.removed.remove_below(&Set::of_path(path));
        }
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

fn compare(old: Option<&Value>, new: Option<&Value>, node: &Node<'_>) -> Comparison {
    let mut comparison = Comparison::default();
    if old == new {
        return comparison;
    }
    let (old_parts, new_parts) = (old.map(|it| parts(it, node)).unwrap_or_default(), new.map(|it| parts(it, node)).unwrap_or_default());
    let is_leaf = old_parts.is_empty() && new_parts.is_empty();
    comparison.changed.is_member = new.is_some() && (old.is_none() || is_leaf);
    comparison.removed.is_member = new.is_none();
    let find = |list: &'_ [(String, set::Part<'_, '_>)], name: &str| list.iter().position(|(it, _)| it == name);
    for (name, part) in &new_parts {
        let before = find(&old_parts, name).map(|at| old_parts[at].1.value);
        comparison.add(name, before, Some(part.value), &part.node);
    }
    for (name, part) in old_parts.iter().filter(|(name, _)| find(&new_parts, name).is_none()) {
        comparison.add(name, Some(part.value), None, &part.node);
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
        entry.time = manager.now.to_owned();
    }
    managers.write(new);
}

/// An object in which nothing is set.
fn nothing(schema: &Schema) -> Value {
    codec::decode_value(json!({}), schema).map(|(value, _)| value).unwrap_or_default()
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
    if applied.at(&["metadata", "managedFields"]).is_some() {
        return Err(Status::bad_request("metadata.managedFields must be nil"));
    }
    let mut managers = Managers::read(live).unwrap_or_default();
    if !live.is_null() && managers.0.is_empty() {
        // What nobody is known to have set was there before the first apply (`skipnonapplied.go`).
        let fields = Comparison::of(&nothing(schema), live, schema, reset).changed;
        managers.0.push(Entry { manager: "before-first-apply".to_owned(), fields, ..Entry::new(manager, "Update") });
    }
    let mut wanted = Set::of_applied(applied, schema);
    for path in NEVER_OWNED.iter().chain(reset) {
        wanted.remove_below(&Set::of_path(path));
    }
    let mut merged = match live.is_null() {
        true => applied.clone(),
        false => merge(live, applied, &Node::root(schema)),
    };
    let others = managers.others(manager, "Apply");
    let entry = managers.entry(manager, "Apply");
    let mut gone = entry.fields.clone();
    gone.remove(&wanted);
    let mut kept = others;
    kept.union(&wanted);
    prune(&mut merged, &gone, &kept, &Node::root(schema));
    let is_changed = entry.fields != wanted || entry.api_version != manager.api_version;
    if is_changed {
        entry.fields = wanted;
        entry.api_version = manager.api_version.to_owned();
        entry.time = manager.now.to_owned();
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
    let part = if entry.subresource.is_empty() { String::new() } else { format!(" with subresource {:?}", entry.subresource) };
    let version = if entry.operation == "Update" { format!(" using {}", entry.api_version) } else { String::new() };
    format!("{:?}{part}{version}", entry.manager)
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
    if node.is_atomic {
        return applied.clone();
    }
    match (live, applied) {
        (Value::Object(live), Value::Object(_)) if is_granular_map(node) => {
            let mut merged = live.clone();
            for (name, part) in parts(applied, node) {
                let name = name[2..].to_owned();
                let value = match live.get(&name) {
                    Some(before) => merge(before, part.value, &part.node),
                    None => part.value.clone(),
                };
                merged.insert(name, value);
            }
            Value::Object(merged)
        }
        (Value::Array(live_items), Value::Array(items)) => match &node.schema.shape {
            Shape::List { items: schema, topology: ListTopology::Map(keys) } => merge_items(live_items, items, |it| key(it, keys, schema), |live, applied| merge(live, applied, &Node { schema, is_atomic: false, is_item: true })),
            Shape::List { topology: ListTopology::Set, .. } => merge_items(live_items, items, Value::to_string, |_, applied| applied.clone()),
            _ => applied.clone(),
        },
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
    for (at, (name, part)) in parts(value, node).into_iter().enumerate() {
        let step = if value.is_array() { format!("[{at}]") } else { format!(".{}", &name[2..]) };
        find_atomics(part.value, &part.node, &format!("{path}{step}"), found);
    }
}

fn is_granular_map(node: &Node<'_>) -> bool {
    matches!(node.schema.shape, Shape::Object(_) | Shape::Map { .. } | Shape::Any)
}

/// Items that both have are merged in their place; new ones come behind.
fn merge_items(live: &[Value], applied: &[Value], id: impl Fn(&Value) -> String, merge: impl Fn(&Value, &Value) -> Value) -> Value {
    let mut merged = live.to_vec();
    for item in applied {
        match merged.iter_mut().find(|it| id(it) == id(item)) {
            Some(existing) => *existing = merge(existing, item),
            None => merged.push(item.clone()),
        }
    }
    merged.into()
}

/// Removes what is `gone` and not `kept` by anyone.
fn prune(value: &mut Value, gone: &Set, kept: &Set, node: &Node<'_>) {
    let places: Vec<(String, Node<'_>)> = parts(value, node).into_iter().map(|(name, part)| (name, part.node)).collect();
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
