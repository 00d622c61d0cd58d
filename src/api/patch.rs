//! PATCH in its four forms: JSON patch, merge patch, strategic merge patch, and apply.
//! Source: apiserver `pkg/endpoints/handlers/patch.go`.

use json_patch::{AddOperation, PatchOperation};

use super::{
    Request, Response, body, negotiation,
    verbs::Call,
};
use crate::{
    kinds::Kind,
    meta::{
        FieldError, Map, Meta, Path, Result, Status, Value,
        object::split_api_version,
        options::{WriteOptions, invalid},
    },
    schema::{self, apply, codec::{self, Notes}, merge},
};

const JSON_PATCH: &str = "application/json-patch+json";
const MERGE_PATCH: &str = "application/merge-patch+json";
const STRATEGIC_PATCH: &str = "application/strategic-merge-patch+json";
pub const APPLY_YAML: &str = "application/apply-patch+yaml";
/// Operations in one JSON patch (`maxJSONPatchOperations`).
const OPERATIONS_MAX: usize = 10_000;

/// What an object is to become: a patch, decoded as far as it can be without the object, or another in its place.
pub enum Patch {
    /// `None` stands for an operation that nothing can be done with.
    Json(Vec<Option<PatchOperation>>),
    Merge(Value),
    Strategic(Value),
    Whole(Value),
}

/// Patches the target, or its subresource.
pub async fn patch(call: &Call, request: Request) -> Result<Response> {
    let media_type = negotiation::media_type(request.headers()).to_owned();
    let options = WriteOptions::from_query(&call.query, "PatchOptions")?;
    let bytes = body::read(request.into_body()).await?;
    if media_type == APPLY_YAML {
        return apply_configuration(call, &options, &bytes).await;
    }
    let (patch, duplicate) = Patch::read(&media_type, &bytes, call.target.kind.custom.is_some())?;
    if options.is_forced.is_some() {
        return Err(invalid("PatchOptions", vec![FieldError::forbidden(&Path::new("force"), "may not be specified for non-apply patch")]));
    }
    let change = |old: &Value| {
        let schema = &call.target.version().schema;
        let patched = patch.apply_to(old, schema)?;
        patch.check_type(call, &patched)?;
        let unfit = |why: &str| patch.apply_to(old, schema).map_or_else(|status| status, |patched| patch.unfit(&patched, why));
        let (new, notes) = codec::decode_value(patched, schema).map_err(|status| unfit(&status.message))?;
        call.strict(&options, &Notes { duplicate: duplicate.clone(), ..notes }).map_err(|why| unfit(&why))?;
        call.target.check_name(&new)?;
        Ok(new)
    };
    call.written(call.writer(&options).update(true, &change, None).await?).await
}

impl Patch {
    /// A patch, and what stands twice in it. 415 for one that the kind does not take.
    pub fn read(media_type: &str, bytes: &[u8], is_custom: bool) -> Result<(Self, Vec<String>)> {
        let undecodable = |why: Status| Status::bad_request(format!("error decoding patch: {}", why.message));
        let map = || codec::parse_json(bytes).and_then(of_map);
        match media_type {
            JSON_PATCH => read_operations(bytes).map_err(undecodable),
            MERGE_PATCH => match map().map_err(undecodable)? {
                (None, _) => Err(Status::bad_request("Invalid JSON Patch")),
                (Some(patch), duplicate) => Ok((Self::Merge(patch.into()), duplicate)),
            },
            STRATEGIC_PATCH if !is_custom => map().map(|(patch, duplicate)| (Self::Strategic(patch.unwrap_or_default().into()), duplicate)),
            _ if is_custom => Err(Status::unsupported_media_type(&[JSON_PATCH, MERGE_PATCH, APPLY_YAML])),
            _ => Err(Status::not_routed(415)),
        }
    }

    pub fn apply_to(&self, old: &Value, schema: &schema::Schema) -> Result<Value> {
        let mut new = old.clone();
        match self {
            Self::Json(patch) => apply_json_patch(&mut new, patch)?,
            Self::Merge(patch) => json_patch::merge(&mut new, patch),
            Self::Strategic(patch) => merge::strategic(&mut new, patch.clone(), schema)?,
            Self::Whole(object) => new = object.clone(),
        }
        Ok(new)
    }

    /// The result is still of the target's type; a strategic patch cannot say otherwise.
    fn check_type(&self, call: &Call, patched: &Value) -> Result<()> {
        let said = |field: &str, is: &str| Some(patched.text(field)).filter(|it| !it.is_empty() && *it != is).map(str::to_owned);
        let (version, kind) = (call.target.view().api_version(), &*call.target.kind.kind);
        let wrong = [("apiVersion", said("apiVersion", &version), version.as_str()), ("kind", said("kind", kind), kind)];
        let Some((field, Some(other), is)) = wrong.into_iter().find(|it| it.1.is_some()) else { return Ok(()) };
        match self {
            Self::Strategic(_) | Self::Whole(_) => Ok(()),
            _ if call.target.kind.custom.is_some() => {
                let error = FieldError::invalid(&Path::new(field), other, format!("must be {is}"));
                Err(Status::invalid(&call.target.kind.group, patched.text("kind"), patched.name(), vec![error]))
            }
            _ => Err(self.unfit(patched, &format!("no kind {:?} is registered for version {:?} in scheme", patched.text("kind"), patched.text("apiVersion")))),
        }
    }

    /// The result is no object of the kind.
    fn unfit(&self, patched: &Value, why: &str) -> Status {
        let shown = match self {
            Self::Strategic(patch) => printed(patch),
            _ => patched.to_string(),
        };
        Status::invalid("", "", "", vec![FieldError::invalid(&Path::new("patch"), shown, why.to_owned())])
    }
}

/// A patch that is an object, or null, and what stands twice in it.
fn of_map((patch, duplicate): (Value, Vec<String>)) -> Result<(Option<Map<String, Value>>, Vec<String>)> {
    match patch {
        Value::Object(map) => Ok((Some(map), duplicate)),
        Value::Null => Ok((None, duplicate)),
        other => Err(Status::bad_request(format!("json: cannot unmarshal {} into Go value of type map[string]interface {{}}", codec::json_type(&other)))),
    }
}

/// A value as Go's `%v` prints it.
fn printed(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(list) => format!("[{}]", list.iter().map(printed).collect::<Vec<_>>().join(" ")),
        Value::Object(map) => format!("map[{}]", map.iter().map(|(key, value)| format!("{key}:{}", printed(value))).collect::<Vec<_>>().join(" ")),
        other => other.to_string(),
    }
}

/// JSON patch as upstream's library does it, which is milder than RFC 6902 about members that are not there: they test as null, and
/// replacing one adds it. Clients lean on it: kube-rs tests that there are no finalizers before it adds the first.
fn apply_json_patch(object: &mut Value, patch: &[Option<PatchOperation>]) -> Result<()> {
    use PatchOperation::{Add, Copy, Replace, Test};
    let failed = || Status { details: Some(Box::default()), ..Status::new(422, "Invalid", "the server rejected our request due to an error in our request") };
    for operation in patch {
        let operation = match operation.as_ref().ok_or_else(failed)? {
            Test(it) if it.value.is_null() && is_absent(object, it.path.as_str()) => continue,
            Replace(it) if is_absent(object, it.path.as_str()) => Add(AddOperation { path: it.path.clone(), value: it.value.clone() }),
            Copy(it) if is_absent(object, it.from.as_str()) => Add(AddOperation { path: it.path.clone(), value: Value::Null }),
            other => other.clone(),
        };
        json_patch::patch(object, &[operation]).map_err(|_| failed())?;
    }
    Ok(())
}

/// Whether `path` leads to a member that an existing object does not have.
fn is_absent(object: &Value, path: &str) -> bool {
    let parent = path.rsplit_once('/').and_then(|(parent, _)| object.pointer(parent));
    parent.is_some_and(Value::is_object) && object.pointer(path).is_none()
}

/// The operations of a JSON patch (`jsonPatchOp`), and what of them is unknown or stands twice. One that cannot be carried out is refused when
/// its turn comes.
fn read_operations(bytes: &[u8]) -> Result<(Patch, Vec<String>)> {
    let (value, mut notes) = codec::parse_json(bytes)?;
    let wrong = |value: &Value, into: &str| Status::bad_request(format!("json: cannot unmarshal {} into Go {into}", codec::json_type(value)));
    let list = value.as_array().ok_or_else(|| wrong(&value, "value of type []handlers.jsonPatchOp"))?;
    if list.len() > OPERATIONS_MAX {
        return Err(Status::too_large(format!("The allowed maximum operations in a JSON patch is {OPERATIONS_MAX}, got {}", list.len())));
    }
    let mut operations = Vec::new();
    for (at, operation) in list.iter().enumerate() {
        for (field, value) in operation.as_object().ok_or_else(|| wrong(operation, "value of type handlers.jsonPatchOp"))? {
            match field.as_str() {
                "op" | "path" | "from" if !value.is_string() => return Err(wrong(value, &format!("struct field jsonPatchOp.{field} of type string"))),
                "op" | "path" | "from" | "value" => (),
                _ => notes.push(format!("unknown field \"[{at}].{field}\"")),
            }
        }
        let mut whole = operation.clone();
        whole.as_object_mut().map(|it| it.entry("value").or_insert(Value::Null));
        operations.push(serde_json::from_value(whole).ok());
    }
    Ok((Patch::Json(operations), notes.into_iter().map(|it| format!("json patch {it}")).collect()))
}

/// Apply cannot track what no schema declares, whatever field validation is asked for (`ObjectToTyped`).
fn undeclared(call: &Call, object: &Value, unknown: &[String]) -> Result<()> {
    let fields: Vec<&str> = unknown.iter().filter_map(|it| it.strip_prefix("unknown field \"")?.strip_suffix('"')).collect();
    match fields.as_slice() {
        [] => Ok(()),
        [one] => Err(untyped(call, object, &format!(".{one}: field not declared in schema"))),
        all => Err(untyped(call, object, &format!("errors:\n{}", all.iter().map(|it| format!("  .{it}: field not declared in schema")).collect::<Vec<_>>().join("\n")))),
    }
}

fn untyped(call: &Call, object: &Value, why: &str) -> Status {
    let (Kind { group, kind, .. }, version) = (&*call.target.kind, &call.target.version().name);
    Status::bad_request(format!("failed to create typed patch object ({}/{}; {group}/{version}, Kind={kind}): {why}", object.namespace(), object.name()))
}

/// Server-side apply: the body is the configuration that the manager wants.
async fn apply_configuration(call: &Call, options: &WriteOptions, bytes: &[u8]) -> Result<Response> {
    if options.field_manager.is_empty() {
        return Err(invalid("PatchOptions", vec![FieldError::required(&Path::new("fieldManager"), "is required for apply patch")]));
    }
    let undecodable = |why: String| Status::bad_request(format!("error decoding YAML: {why}"));
    let (value, duplicate) = codec::parse_yaml(bytes).map_err(|status| undecodable(format!("error converting YAML to JSON: {}", status.message)))?;
    let (value, duplicate) = of_map((value, duplicate)).map_err(|status| undecodable(format!("error unmarshaling JSON: while decoding JSON: {}", status.message)))?;
    let value = Value::Object(value.unwrap_or_default());
    check_applied(&value, &call.target.kind.group, &call.target.version().name, &call.target.kind.kind)?;
    if value.at(&["metadata", "managedFields"]).is_some_and(|it| !it.is_null()) {
        return Err(Status::bad_request("metadata.managedFields must be nil"));
    }
    let (decoded, notes) = codec::decode_value(value.clone(), &call.target.version().schema).map_err(|why| untyped(call, &value, &why.message))?;
    undeclared(call, &value, &notes.unknown)?;
    apply::check(&value, &call.target.version().schema).map_err(|why| untyped(call, &value, &why))?;
    // Decoding adds empty structs, which nobody applied.
    let mut object = keep_written(decoded, &value);
    let notes = Notes { duplicate, ..Notes::default() };
    call.strict(options, &notes).map_err(|why| Status::bad_request(format!("error {}", why.replacen("decoding error", "decoding YAML", 1))))?;
    if object.name().is_empty() {
        object.set_metadata("name", call.target.name.as_str());
    }
    call.target.check_name(&object)?;
    if call.target.kind.is_namespaced() {
        object.set_metadata("namespace", call.target.namespace.as_str());
    }
    call.written(call.writer(options).apply(object).await?).await
}

/// A configuration says of what type it is (`versionCheckManager`).
pub fn check_applied(configuration: &Value, group: &str, version: &str, kind: &str) -> Result<()> {
    let (said_group, said_version) = split_api_version(configuration.text("apiVersion"));
    match (said_group, said_version, configuration.text("kind")) == (group, version, kind) {
        true => Ok(()),
        false => Err(Status::bad_request(format!("invalid object type: {said_group}/{said_version}, Kind={}", configuration.text("kind")))),
    }
}

fn keep_written(decoded: Value, written: &Value) -> Value {
    match (decoded, written) {
        (Value::Object(map), Value::Object(source)) => {
            map.into_iter().filter_map(|(name, value)| Some((name.clone(), keep_written(value, source.get(&name)?)))).collect::<serde_json::Map<_, _>>().into()
        }
        (Value::Array(list), Value::Array(source)) if list.len() == source.len() => list.into_iter().zip(source).map(|(value, source)| keep_written(value, source)).collect(),
        (decoded, _) => decoded,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn members_that_are_not_there_test_as_null_and_are_replaced() {
        let object = json!({"metadata": {"name": "a", "labels": {"x/y": "1"}}, "list": [1]});
        let failed = || Err("the server rejected our request due to an error in our request".to_owned());
        let cases = [
            (
                json!([{"op": "test", "path": "/metadata/finalizers", "value": null}, {"op": "add", "path": "/metadata/finalizers", "value": ["f"]}]),
                Ok(json!({"metadata": {"name": "a", "labels": {"x/y": "1"}, "finalizers": ["f"]}, "list": [1]})),
            ),
            (json!([{"op": "replace", "path": "/spec", "value": 2}]), Ok(json!({"metadata": {"name": "a", "labels": {"x/y": "1"}}, "list": [1], "spec": 2}))),
            (json!([{"op": "replace", "path": "/metadata/labels/x~1y", "value": "2"}]), Ok(json!({"metadata": {"name": "a", "labels": {"x/y": "2"}}, "list": [1]}))),
            (json!([{"op": "add", "path": "/b", "value": 1}, {"op": "test", "path": "/metadata/name", "value": null}]), failed()),
            (json!([{"op": "test", "path": "/spec/size", "value": null}]), failed()),
            (json!([{"op": "replace", "path": "/list/1", "value": 2}]), failed()),
            (json!([{"op": "remove", "path": "/spec"}]), failed()),
        ];
        for (patch, expected) in cases {
            let done = Patch::read(JSON_PATCH, patch.to_string().as_bytes(), false).and_then(|it| it.0.apply_to(&object, &schema::Schema::default()));
            assert_eq!(done.map_err(|status| status.message), expected, "{patch}");
        }
    }
}
