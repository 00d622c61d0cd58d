//! Random input: patches and applied configurations beside upstream's code (`HOWDAH_ORACLE_APPLY` names the Go program), and garbage
//! into every reader, which may refuse it but not panic. Bounded; `HOWDAH_FUZZ` sets the number of inputs of the latter.

use std::env;

use howdah::{
    meta::{FieldSelector, LabelSelector, Meta},
    schema::{Schema, Shape, apply, builtin, codec, merge, protobuf},
};
use serde_json::{Value, json};

use crate::{
    dice::{Dice, broken, torn},
    oracle::ask,
    validation::{Base, bases},
};

/// A part of a value: fields left out, scalars changed, items left out. Keys of list maps stay.
fn part(value: &Value, schema: &Schema, dice: &mut Dice) -> Value {
    match (&schema.shape, value) {
        (Shape::Object(shape), Value::Object(map)) => {
            let kept = map.iter().filter_map(|(name, value)| {
                let field = shape.fields.iter().find(|it| it.name == *name)?;
                let is_key = matches!(name.as_str(), "name" | "key" | "type" | "ip" | "port" | "containerPort" | "protocol" | "mountPath" | "topologyKey" | "whenUnsatisfiable" | "devicePath" | "uid");
                (is_key || !dice.is_one_in(3)).then(|| (name.clone(), if is_key { value.clone() } else { part(value, &field.schema, dice) }))
            });
            kept.collect::<serde_json::Map<_, _>>().into()
        }
        (Shape::List { items, .. }, Value::Array(list)) => list.iter().filter_map(|it| (!dice.is_one_in(4)).then(|| part(it, items, dice))).collect(),
        (Shape::Map { values, .. }, Value::Object(map)) => {
            let mut map: serde_json::Map<_, _> = map.iter().filter_map(|(key, value)| (!dice.is_one_in(4)).then(|| (key.clone(), part(value, values, dice)))).collect();
            if dice.is_one_in(4) && matches!(values.shape, Shape::String) {
                map.insert(format!("k{}", dice.below(3)), json!(format!("v{}", dice.below(3))));
            }
            map.into()
        }
        (Shape::String, _) if dice.is_one_in(3) => json!(format!("v{}", dice.below(3))),
        (Shape::Int32 | Shape::Int64, _) if dice.is_one_in(3) => json!(dice.below(4) + 1),
        _ => value.clone(),
    }
}

struct Step {
    request: Value,
    /// The object, or the error's text.
    found: Result<Value, String>,
}

const NOW: &str = "2024-01-01T00:00:00Z";

fn prepared(object: &Value, schema: &Schema) -> Value {
    codec::decode_value(object.clone(), schema).expect("decodes").0
}

/// Chains of applies and updates by several managers over one object; each step is a case of its own.
fn chain(name: &str, base: &Base, dice: &mut Dice, steps: &mut Vec<Step>) {
    let (schema, gvk) = (&base.version().schema, name.rsplit_once('/').expect("a name").0);
    let api_version = base.object["apiVersion"].as_str().expect("apiVersion");
    let mut live = Value::Null;
    for _ in 0..4 {
        let (by, is_forced, is_apply) = (["a", "b", "c"][dice.below(3)], dice.is_one_in(2), live.is_null() || !dice.is_one_in(3));
        let is_status = base.kind.has_status() && !live.is_null() && dice.is_one_in(4);
        let subresource = if is_status { "status" } else { "" };
        let reset: &[&str] = match (base.kind.has_status(), is_status) {
            (true, true) => &["spec"],
            (true, false) => &["status"],
            _ => &[],
        };
        let mut object = part(&base.object, schema, dice);
        for field in ["apiVersion", "kind"] {
            object[field] = base.object[field].clone();
        }
        object["metadata"]["name"] = base.object["metadata"]["name"].clone();
        object["metadata"].as_object_mut().expect("metadata").retain(|key, _| matches!(key.as_str(), "name" | "labels" | "annotations" | "finalizers"));
        let manager = apply::Manager { name: by, api_version, subresource, now: NOW };
        let paths: Vec<Vec<&str>> = reset.iter().map(|it| vec![*it]).collect();
        let paths: Vec<&[&str]> = paths.iter().map(Vec::as_slice).collect();
        let found = if is_apply {
            apply::apply(&live, &object, schema, &manager, is_forced, &paths).map_err(|it| it.message)
        } else {
            object = prepared(&object, schema);
            let mut new = object.clone();
            apply::update(&live, &mut new, schema, &manager, &paths);
            Ok(new)
        };
        let operation = if is_apply { "apply" } else { "update" };
        let request = json!({"gvk": gvk, "op": operation, "live": live, "object": object, "manager": by, "force": is_forced, "subresource": subresource, "reset": reset});
        if let Ok(object) = &found {
            live = prepared(object, schema);
        }
        steps.push(Step { request, found });
    }
}

/// One strategic merge patch, with directives now and then.
fn patched(name: &str, base: &Base, dice: &mut Dice) -> Step {
    let (schema, gvk) = (&base.version().schema, name.rsplit_once('/').expect("a name").0);
    let live = part(&base.object, schema, dice);
    let mut patch = part(&base.object, schema, dice);
    direct(&mut patch, schema, dice);
    let mut object = live.clone();
    let found = merge::strategic(&mut object, patch.clone(), schema).map(|()| object).map_err(|it| it.message);
    Step { request: json!({"gvk": gvk, "op": "smp", "live": live, "object": patch}), found }
}

fn direct(patch: &mut Value, schema: &Schema, dice: &mut Dice) {
    match (&schema.shape, patch) {
        (Shape::Object(shape), Value::Object(map)) => {
            for (name, value) in map.iter_mut() {
                let Some(field) = shape.fields.iter().find(|it| it.name == *name) else { continue };
                match value {
                    Value::Array(list) if field.patch.is_merge && field.patch.merge_key.is_some() && dice.is_one_in(3) => match dice.below(2) {
                        0 => list.push(json!({"$patch": "replace"})),
                        _ => list.iter_mut().filter(|_| dice.is_one_in(2)).filter_map(Value::as_object_mut).for_each(|it| _ = it.insert("$patch".to_owned(), json!("delete"))),
                    },
                    Value::Object(inner) if dice.is_one_in(10) => _ = inner.insert("$patch".to_owned(), json!("replace")),
                    other if dice.is_one_in(12) && !matches!(name.as_str(), "name" | "key" | "type") => *other = Value::Null,
                    other => direct(other, &field.schema, dice),
                }
            }
        }
        (Shape::List { items, .. }, Value::Array(list)) => list.iter_mut().for_each(|it| direct(it, items, dice)),
        _ => (),
    }
}

/// Managed fields by manager, without times and the order of entries.
fn settled(object: &Value, schema: &Schema) -> Value {
    let mut object = codec::decode_value(object.clone(), schema).map_or_else(|_| object.clone(), |it| it.0);
    let entries = object.at(&["metadata", "managedFields"]).and_then(Value::as_array).cloned().unwrap_or_default();
    let mut entries: Vec<String> = entries
        .into_iter()
        .map(|mut it| {
            it.remove_at(&["time"]);
            it.to_string()
        })
        .collect();
    entries.sort();
    object.set_metadata("managedFields", entries);
    object
}

#[test]
fn patches_and_applies_are_upstreams() {
    let Ok(oracle) = env::var("HOWDAH_ORACLE_APPLY") else {
        eprintln!("SKIPPED: no oracle here; HOWDAH_ORACLE_APPLY names it");
        return;
    };
    let rounds: usize = env::var("HOWDAH_ROUNDS").ok().and_then(|it| it.parse().ok()).unwrap_or(3);
    let (bases, mut dice, mut steps) = (bases(), Dice(0x9e37_79b9_7f4a_7c15), Vec::new());
    // The types of custom resource definitions are in no Go client.
    for (name, base) in bases.iter().filter(|it| !it.0.contains("CustomResourceDefinition")) {
        for _ in 0..rounds {
            chain(name, base, &mut dice, &mut steps);
            (0..4).for_each(|_| steps.push(patched(name, base, &mut dice)));
        }
    }
    let answers = ask(&oracle, &steps.iter().map(|it| it.request.clone()).collect::<Vec<_>>());
    let (mut report, mut counts) = (String::new(), std::collections::BTreeMap::<String, (usize, usize)>::new());
    for (step, answer) in steps.iter().zip(&answers) {
        let gvk = step.request["gvk"].as_str().expect("gvk");
        let schema = &bases.iter().find(|it| it.0.starts_with(&format!("{gvk}/"))).expect("a base").1.version().schema;
        let error = answer["error"].as_str();
        let is_equal = match (&step.found, error) {
            (Ok(found), None) => settled(found, schema) == settled(&answer["object"], schema),
            (Err(found), Some(error)) => found == error || step.request["op"] == "smp",
            _ => false,
        };
        let count = counts.entry(step.request["op"].to_string()).or_default();
        count.1 += 1;
        count.0 += usize::from(is_equal);
        if !is_equal {
            let why = match (&step.found, error) {
                (Ok(found), None) => crate::fixtures::difference(&settled(found, schema), &settled(&answer["object"], schema), ""),
                (found, error) => format!("{:?} / {error:?}", found.as_ref().err()),
            };
            report += &format!("{} {}: {}\n   {}\n", step.request["op"], gvk, why.chars().take(600).collect::<String>(), step.request.to_string().chars().take(1500).collect::<String>());
        }
    }
    println!("equal and total: {counts:?}");
    env::var("HOWDAH_APPLY_REPORT").into_iter().for_each(|it| std::fs::write(it, &report).expect("written"));
}

/// One input into every reader.
fn feed(base: &Base, dice: &mut Dice) {
    let schema = &base.version().schema;
    let value = broken(&base.object, dice);
    if let Ok((object, _)) = codec::decode_value(value.clone(), schema) {
        let bytes = protobuf::encode(&object, schema).unwrap_or_default();
        let _ = protobuf::decode(&torn(&bytes, dice), schema);
        let mut new = object.clone();
        if new.is_object() && new["metadata"].is_object() {
            let operation = ["create", "update", "status", "resize", "approval"][dice.below(5)];
            let _ = base.run(operation, &new);
            base.version().columns.iter().for_each(|it| _ = it.value(&new, jiff::Timestamp::UNIX_EPOCH));
            let manager = apply::Manager { name: "f", api_version: "v1", subresource: "", now: NOW };
            let _ = apply::apply(&base.object, &new, schema, &manager, dice.is_one_in(2), &[]);
            apply::update(&base.object, &mut new, schema, &manager, &[]);
        }
    }
    let mut object = base.object.clone();
    let _ = merge::strategic(&mut object, broken(&value, dice), schema);
    let text = torn(value.to_string().as_bytes(), dice);
    let _ = codec::parse_json(&text).and_then(|it| codec::decode(it, schema));
    let _ = codec::parse_yaml(&text[..text.len().min(600)]).and_then(|it| codec::decode(it, schema));
    const SELECTORS: [&str; 6] = ["a=b,c!=d", "a in (b,c),!d", "a notin (b)", "metadata.name=x,spec.nodeName!=y", "a>5,b<3", "a exists"];
    let text = String::from_utf8_lossy(&torn(SELECTORS[dice.below(SELECTORS.len())].as_bytes(), dice)).into_owned();
    let _ = (LabelSelector::parse(&text), FieldSelector::parse(&text));
}

#[test]
fn no_input_makes_a_reader_panic() {
    let count: usize = env::var("HOWDAH_FUZZ").ok().and_then(|it| it.parse().ok()).unwrap_or(500);
    let (bases, mut dice) = (bases(), Dice(env::var("HOWDAH_SEED").ok().and_then(|it| it.parse().ok()).unwrap_or(88_172_645_463_325_252)));
    let bases: Vec<&Base> = bases.values().collect();
    assert!(builtin("io.k8s.api.core.v1.Pod").is_some());
    for at in 0..count {
        feed(bases[dice.below(bases.len())], &mut dice);
        if at % 100_000 == 0 && at > 0 {
            println!("{at} inputs");
        }
    }
}
