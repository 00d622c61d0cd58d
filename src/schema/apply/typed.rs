//! What a configuration must be before it can be merged. Source: structured-merge-diff `typed/validate.go`.

use std::collections::HashSet;

use super::super::{ListTopology, Schema, Shape};
use crate::meta::Value;

/// Lists that are sets or maps have no element twice, and each element of a map its keys. The error is upstream's sentence.
pub fn check(configuration: &Value, schema: &Schema) -> Result<(), String> {
    visit(configuration, schema, "")
}

fn visit(value: &Value, schema: &Schema, path: &str) -> Result<(), String> {
    match (&schema.shape, value) {
        (Shape::Object(_) | Shape::Map { .. }, Value::Object(map)) => {
            let is_whole = |name: &str| schema.field(name).is_some_and(|it| it.is_atomic);
            let below = map.iter().filter(|it| !is_whole(it.0)).filter_map(|(name, value)| Some((name, value, schema.below(name)?)));
            below.into_iter().try_for_each(|(name, value, below)| visit(value, below, &format!("{path}.{name}")))
        }
        (Shape::List { items, topology }, Value::Array(list)) => {
            let mut seen = HashSet::new();
            for (at, item) in list.iter().enumerate() {
                let element = element(item, at, items, topology).map_err(|why| format!("{path}: element {at}: {why}"))?;
                visit(item, items, &format!("{path}{element}"))?;
                if !seen.insert(element.clone()) {
                    return Err(format!("{path}: duplicate entries for key {element}"));
                }
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// What a path says of an element: `[0]`, `[="a"]`, `[port=80,protocol="TCP"]`.
fn element(item: &Value, at: usize, items: &Schema, topology: &ListTopology) -> Result<String, String> {
    let keys = match topology {
        ListTopology::Atomic => return Ok(format!("[{at}]")),
        ListTopology::Set => return Ok(format!("[={item}]")),
        ListTopology::Map(keys) => keys,
    };
    let default = |key: &str| items.field(key).and_then(|it| it.default.as_deref().or(it.schema.default.as_ref()));
    let told: Vec<String> = keys.iter().filter_map(|key| Some(format!("{key}={}", item.get(key).or_else(|| default(key))?))).collect();
    match told.is_empty() {
        false => Ok(format!("[{}]", told.join(","))),
        true => {
            let keys: Vec<String> = keys.iter().map(|it| format!("{it:?}")).collect();
            Err(format!("associative list with keys has an element that omits all key fields [{}] (and doesn't have default values for any key fields)", keys.join(" ")))
        }
    }
}
