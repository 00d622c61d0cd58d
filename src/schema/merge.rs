//! Strategic merge patch over plain JSON (apimachinery `pkg/util/strategicpatch`). JSON merge patch (RFC 7386) is the crate `json_patch`'s.

use std::collections::{HashMap, HashSet};

use super::{PatchStrategy, Schema};
use crate::meta::{Map, Result, Status, Value};

type Object = Map<String, Value>;

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const SET_ORDER: &str = "$setElementOrder/";
const DELETE_PRIMITIVES: &str = "$deleteFromPrimitiveList/";

/// Applies a strategic merge patch. 400 for a patch that no object could take, with upstream's text.
pub fn strategic(document: &mut Value, patch: Value, schema: &Schema) -> Result<()> {
    let (Value::Object(document), Value::Object(patch)) = (document, patch) else {
        return Err(Status::bad_request("cannot unmarshal: the patch must be an object"));
    };
    merge_map(document, patch, Some(schema))
}

/// What the schema says of one field.
struct How<'a> {
    /// Of the field, or of the items of a list and the values of a map.
    below: Option<&'a Schema>,
    strategy: PatchStrategy,
}

impl<'a> How<'a> {
    fn of(schema: Option<&'a Schema>, name: &str) -> Self {
        let field = schema.and_then(|it| it.field(name));
        let below = schema.and_then(|it| it.below(name)).map(|it| it.items().unwrap_or(it));
        Self { below, strategy: field.map(|it| it.patch.clone()).unwrap_or_default() }
    }

    fn key(&self) -> &str {
        self.strategy.merge_key.as_deref().unwrap_or_default()
    }
}

fn merge_map(document: &mut Object, mut patch: Object, schema: Option<&Schema>) -> Result<()> {
    match patch.remove(DIRECTIVE).as_ref().map(Value::as_str) {
        None | Some(Some("merge")) => (),
        Some(Some("replace")) => {
            *document = patch;
            return Ok(());
        }
        Some(Some("delete")) => {
            document.clear();
            return Ok(());
        }
        Some(other) => return Err(Status::bad_request(format!("unknown patch type: {}", other.unwrap_or("the directive must be a string")))),
    }
    retain_keys(document, &mut patch)?;
    let orders: Vec<String> = patch.keys().filter(|it| it.starts_with(SET_ORDER)).cloned().collect();
    for directive in orders {
        ordered_list(document, &mut patch, &directive, schema)?;
    }
    for (name, value) in patch {
        match name.strip_prefix(DELETE_PRIMITIVES) {
            Some(field) => delete_primitives(document, field, &value),
            None => merge_field(document, &name, value, &How::of(schema, &name))?,
        }
    }
    Ok(())
}

/// `$retainKeys`: of a union only the named fields stay.
fn retain_keys(document: &mut Object, patch: &mut Object) -> Result<()> {
    let Some(keep) = patch.remove(RETAIN_KEYS) else { return Ok(()) };
    let Value::Array(keep) = keep else { return Err(Status::bad_request("invalid patch format of retainKeys")) };
    let keep: HashSet<&str> = keep.iter().filter_map(Value::as_str).collect();
    let is_kept = |name: &str| keep.contains(name);
    if patch.iter().any(|(name, value)| !value.is_null() && !name.starts_with('$') && !is_kept(name)) {
        return Err(Status::bad_request("invalid patch format of retainKeys"));
    }
    document.retain(|name, _| is_kept(name));
    Ok(())
}

/// `$setElementOrder/field`: the list is merged, then brought into this order.
fn ordered_list(document: &mut Object, patch: &mut Object, directive: &str, schema: Option<&Schema>) -> Result<()> {
    let field = &directive[SET_ORDER.len()..];
    let Some(Value::Array(order)) = patch.remove(directive) else {
        return Err(Status::bad_request(format!("invalid patch format of setElementOrder: {directive} must be a list")));
    };
    let how = How::of(schema, field);
    let old = items(document.get(field));
    let primitives = patch.remove(&format!("{DELETE_PRIMITIVES}{field}"));
    let mut merged = match patch.remove(field) {
        None => old.clone(),
        Some(value) if document.contains_key(field) => merge_list(old.clone(), items(Some(&value)), &how)?,
        Some(value) => items(without_directives(value).as_ref()),
    };
    if let Some(gone) = primitives {
        let gone: HashSet<Value> = items(Some(&gone)).into_iter().collect();
        merged.retain(|it| !gone.contains(it));
    }
    if merged.is_empty() && !document.contains_key(field) {
        return Ok(());
    }
    document.insert(field.to_owned(), in_order(merged, &order, &old, how.key()).into());
    Ok(())
}

fn delete_primitives(document: &mut Object, field: &str, gone: &Value) {
    let gone: HashSet<Value> = items(Some(gone)).into_iter().collect();
    if let Some(Value::Array(list)) = document.get_mut(field) {
        list.retain(|it| !gone.contains(it));
    }
}

fn merge_field(document: &mut Object, name: &str, value: Value, how: &How<'_>) -> Result<()> {
    if value.is_null() {
        document.remove(name);
        return Ok(());
    }
    match (document.get_mut(name), value) {
        (Some(Value::Object(old)), Value::Object(patch)) if !how.strategy.is_replace => merge_map(old, patch, how.below),
        (Some(Value::Array(old)), Value::Array(patch)) if how.strategy.is_merge => {
            *old = merge_list(std::mem::take(old), patch, how)?;
            Ok(())
        }
        (Some(old @ Value::Array(_)), value @ Value::Array(_)) => {
            *old = value;
            Ok(())
        }
        (_, value) => {
            match without_directives(value) {
                Some(value) => _ = document.insert(name.to_owned(), value),
                None => _ = document.remove(name),
            }
            Ok(())
        }
    }
}

fn merge_list(old: Vec<Value>, patch: Vec<Value>, how: &How<'_>) -> Result<Vec<Value>> {
    if !how.strategy.is_merge {
        return Ok(patch);
    }
    if !patch.iter().chain(&old).any(Value::is_object) {
        let mut seen = HashSet::new();
        let all = old.iter().chain(&patch).filter(|it| seen.insert(*it)).cloned().collect();
        return Ok(in_order(all, &patch, &old, ""));
    }
    merge_objects(old, patch, how)
}

fn merge_objects(old: Vec<Value>, patch: Vec<Value>, how: &How<'_>) -> Result<Vec<Value>> {
    let key = how.key();
    let id = |value: &Value| {
        let missing = || Status::bad_request(format!("map: {value} does not contain declared merge key: {key}"));
        value.get(key).cloned().ok_or_else(missing)
    };
    let (mut merged, mut changes, mut gone, mut replaces) = (old, Vec::new(), HashSet::new(), false);
    for value in patch {
        match value.get(DIRECTIVE).and_then(Value::as_str) {
            None | Some("merge") => changes.push(value),
            Some("replace") => replaces = true,
            Some("delete") => _ = gone.insert(id(&value)?),
            Some(other) => return Err(Status::bad_request(format!("unknown patch type: {other}"))),
        }
    }
    if replaces {
        return Ok(changes);
    }
    merged.retain(|it| it.get(key).is_none_or(|it| !gone.contains(it)));
    let server = merged.clone();
    let mut places = places(&merged, key);
    for change in &changes {
        let own = id(change)?;
        match (places.get(&own).and_then(|it| merged.get_mut(*it)), change) {
            (Some(Value::Object(existing)), Value::Object(patch)) => merge_map(existing, patch.clone(), how.below)?,
            _ => {
                places.entry(own).or_insert(merged.len());
                merged.extend(without_directives(change.clone()));
            }
        }
    }
    Ok(in_order(merged, &changes, &server, key))
}

fn items(value: Option<&Value>) -> Vec<Value> {
    value.and_then(Value::as_array).cloned().unwrap_or_default()
}

/// A value that lands where nothing was, without its directives and nulls; `None` when it is one (`removeDirectives`).
fn without_directives(value: Value) -> Option<Value> {
    let is_directive = |name: &str| name.starts_with(SET_ORDER) || name.starts_with(DELETE_PRIMITIVES) || name == RETAIN_KEYS || name == DIRECTIVE;
    match value {
        Value::Object(map) if map.contains_key(DIRECTIVE) => None,
        Value::Object(map) => {
            let kept = map.into_iter().filter(|(name, value)| !is_directive(name) && !value.is_null());
            Some(Value::Object(kept.filter_map(|(name, value)| Some((name, without_directives(value)?))).collect()))
        }
        Value::Array(list) => Some(Value::Array(list.into_iter().filter_map(without_directives).collect())),
        value => Some(value),
    }
}

/// What tells an item from the others: the item itself where there is no key.
fn identity(item: &Value, key: &str) -> Value {
    if key.is_empty() { item.clone() } else { item.get(key).cloned().unwrap_or_default() }
}

/// Where each item stands.
fn places(list: &[Value], key: &str) -> HashMap<Value, usize> {
    list.iter().enumerate().rev().map(|(at, it)| (identity(it, key), at)).collect()
}

/// Items that the patch names come in its order, the others keep the server's; both are woven together by the server's order.
fn in_order(items: Vec<Value>, order: &[Value], server: &[Value], key: &str) -> Vec<Value> {
    let (order, server) = (places(order, key), places(server, key));
    let place = |places: &HashMap<Value, usize>, item: &Value| places.get(&identity(item, key)).copied();
    let (mut named, mut others): (Vec<Value>, Vec<Value>) = items.into_iter().partition(|it| place(&order, it).is_some());
    named.sort_by_key(|it| place(&order, it));
    others.sort_by_key(|it| place(&server, it).unwrap_or(usize::MAX));
    let (mut named, mut others) = (named.into_iter().peekable(), others.into_iter().peekable());
    let mut woven = Vec::new();
    while let (Some(other), Some(own)) = (others.peek(), named.peek()) {
        let other_first = matches!((place(&server, other), place(&server, own)), (Some(left), Some(right)) if left < right);
        woven.extend(if other_first { others.next() } else { named.next() });
    }
    woven.extend(named);
    woven.extend(others);
    woven
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn strategic_patches_apply_as_upstreams() {
        let pod = || json!({"metadata": {"labels": {"a": "1"}, "finalizers": ["x", "y"]}, "spec": {"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "2"}],
            "tolerations": [{"key": "k"}]}});
        let cases = [
            (json!({"metadata": {"labels": {"a": null, "b": "2"}}}), "/metadata/labels", json!({"b": "2"})),
            (json!({"spec": {"containers": [{"name": "b", "image": "3"}]}}), "/spec/containers", json!([{"name": "a", "image": "1"}, {"name": "b", "image": "3"}])),
            (json!({"spec": {"containers": [{"name": "a", "$patch": "delete"}]}}), "/spec/containers", json!([{"name": "b", "image": "2"}])),
            (json!({"spec": {"$setElementOrder/containers": [{"name": "c"}, {"name": "a"}, {"name": "b"}], "containers": [{"name": "c", "image": "4"}]}}), "/spec/containers",
                json!([{"name": "c", "image": "4"}, {"name": "a", "image": "1"}, {"name": "b", "image": "2"}])),
            (json!({"spec": {"containers": [{"$patch": "replace"}, {"name": "z"}]}}), "/spec/containers", json!([{"name": "z"}])),
            (json!({"spec": {"tolerations": [{"key": "n"}]}}), "/spec/tolerations", json!([{"key": "n"}])),
            (json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["x"]}}), "/metadata/finalizers", json!(["y"])),
            (json!({"metadata": {"finalizers": ["z"]}}), "/metadata/finalizers", json!(["x", "y", "z"])),
            (json!({"metadata": {"labels": {"$patch": "replace", "c": "3"}}}), "/metadata/labels", json!({"c": "3"})),
        ];
        let schema = crate::schema::builtin("io.k8s.api.core.v1.Pod").expect("Pod");
        for (patch, path, expected) in cases {
            let mut document = pod();
            strategic(&mut document, patch.clone(), &schema).expect("applies");
            let found = document.pointer(path).cloned().unwrap_or_default();
            match path {
                "/metadata/finalizers" if expected.as_array().is_some_and(|it| it.len() == 3) => assert_eq!(found.as_array().map(Vec::len), Some(3), "{patch}"),
                _ => assert_eq!(found, expected, "{patch}"),
            }
        }
        for patch in [json!({"spec": {"$patch": "x"}}), json!({"spec": {"containers": [{"image": "i"}]}}), json!([])] {
            assert_eq!(strategic(&mut pod(), patch, &schema).map_err(|it| it.code), Err(400));
        }
    }
}
