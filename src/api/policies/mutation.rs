//! What a mutating policy's expression does to an object. Source: apiserver `pkg/admission/plugin/policy/mutating/patch/{smd,json_patch}.go`.

use serde_json::json;

use crate::{
    meta::{Value, object::GroupVersionKind},
    schema::{
        SchemaRef, apply, codec,
        cel::{List, Map, Val},
    },
};

/// The configuration that the expression made, over the object.
pub fn apply(object: &Value, made: &Val<'_>, schema: &SchemaRef) -> Result<Value, String> {
    check_names(made, "Object")?;
    let mut configuration = made.to_json().map_err(|it| format!("invalid return type: {it}"))?;
    let own = GroupVersionKind::of(object);
    for (field, text) in [("apiVersion", own.api_version()), ("kind", own.kind.to_string())] {
        configuration[field] = text.into();
    }
    let refuse = |why: String| format!("error applying patch: {why}");
    let untyped = |why: String| refuse(format!("failed to convert patch object to typed object: {why}"));
    let (_, notes) = codec::decode_value(configuration.clone(), schema).map_err(|it| untyped(it.message))?;
    if let Some(field) = notes.unknown.first().and_then(|it| it.split('"').nth(1)) {
        return Err(untyped(format!(".{field}: field not declared in schema")));
    }
    apply::overlay(object, &configuration, schema).map_err(|why| refuse(format!("invalid ApplyConfiguration: {why}")))
}

/// The patch that the expression made, on the object. One whose test fails changes nothing.
pub fn patch(object: &Value, made: &Val<'_>) -> Result<Value, String> {
    let Val::List(list) = made else { return Err("type mismatch: JSONPatchType.expression should evaluate to array".to_owned()) };
    let operations: Vec<Value> = list.iter().map(|it| operation(&it.map_err(|it| it.to_string())?)).collect::<Result<_, _>>()?;
    let patch: json_patch::Patch = serde_json::from_value(operations.into()).map_err(|why| format!("JSON Patch: {why}"))?;
    let mut patched = object.clone();
    match json_patch::patch(&mut patched, &patch) {
        Ok(()) => Ok(patched),
        Err(why) if matches!(why.kind, json_patch::PatchErrorKind::TestFailed) => Ok(object.clone()),
        Err(why) => Err(format!("JSON Patch: {why}")),
    }
}

fn operation(made: &Val<'_>) -> Result<Value, String> {
    let Val::Object(fields) = made else { return Err("type mismatch: JSONPatchType.expression should evaluate to array of JSONPatch".to_owned()) };
    let text = |name: &str| match fields.1.get(name) {
        Some(Val::String(text)) => text.to_string(),
        _ => String::new(),
    };
    let mut operation = json!({"op": text("op"), "path": text("path")});
    if !text("from").is_empty() {
        operation["from"] = text("from").into();
    }
    if let Some(value) = fields.1.get("value") {
        if let Val::Object(object) = value {
            check_names(value, &object.0)?;
        }
        let unfit = |why| format!("JSONPath valueExpression evaluated to a type that could not marshal to JSON: {why}");
        operation["value"] = value.to_json().map_err(unfit)?;
    }
    Ok(operation)
}

/// An object's type is named after its place: `Object.spec.template` (`CheckTypeNamesMatchFieldPathNames`).
fn check_names(value: &Val<'_>, expected: &str) -> Result<(), String> {
    match value {
        Val::Object(object) if object.0 != expected => {
            Err(format!("type mismatch: unexpected type name {:?}, expected {expected:?}, which matches field name path from root Object type", object.0))
        }
        Val::Object(object) => object.1.iter().try_for_each(|(name, value)| check_names(value, &format!("{expected}.{name}"))),
        Val::List(List::Made(list, _)) => list.iter().try_for_each(|it| check_names(it, expected)),
        Val::Map(Map::Made(map)) => map.values().try_for_each(|(_, value)| check_names(value, expected)),
        _ => Ok(()),
    }
}
