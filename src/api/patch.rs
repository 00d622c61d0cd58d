//! PATCH in its four forms: JSON patch, merge patch, strategic merge patch, and apply.
//! Source: apiserver `pkg/endpoints/handlers/patch.go`.

use super::{
    Request, Response, body,
    negotiation::{self, Encoding},
    verbs::{Call, decode},
};
use crate::{
    meta::{
        FieldError, Meta, Path, Result, Status, Value,
        options::{WriteOptions, invalid},
    },
    schema::{self, codec::{self, Notes}, merge},
};

const JSON_PATCH: &str = "application/json-patch+json";
pub const MERGE_PATCH: &str = "application/merge-patch+json";
const STRATEGIC_PATCH: &str = "application/strategic-merge-patch+json";
pub const APPLY_YAML: &str = "application/apply-patch+yaml";
/// Operations in one JSON patch (`maxJSONPatchOperations`).
const OPERATIONS_MAX: usize = 10_000;

/// What an object is to become: a patch, decoded as far as it can be without the object, or another in its place.
pub enum Patch {
    Json(json_patch::Patch),
    Merge(Value),
    Strategic(Value),
    Whole(Value),
}

/// Patches the target, or its subresource.
pub async fn patch(call: &Call, request: Request) -> Result<Response> {
    let options = WriteOptions::from_query(&call.query)?;
    let media_type = negotiation::media_type(request.headers()).to_owned();
    let bytes = body::read(request.into_body()).await?;
    if media_type == APPLY_YAML {
        return apply(call, &options, &bytes).await;
    }
    let patch = Patch::read(&media_type, &bytes, call.target.kind.custom.is_some())?;
    if options.is_forced.is_some() {
        return Err(invalid("PatchOptions", FieldError::forbidden(&Path::new("force"), "may not be specified for non-apply patch")));
    }
    let change = |old: &Value| {
        let schema = &call.target.version().schema;
        let (new, notes) = codec::decode_value(patch.apply_to(old, schema)?, schema).map_err(|status| unprocessable(call, status))?;
        call.strict(&options, &notes)?;
        call.target.check_name(&new)?;
        Ok(new)
    };
    call.written(call.writer(&options).update(true, &change, None).await?).await
}

/// A patch whose result is no object of the kind: 422 for what cannot be read, as upstream.
fn unprocessable(call: &Call, status: Status) -> Status {
    let kind = &call.target.kind.kind;
    Status::bad_request(format!("{kind} in version {:?} cannot be handled as a {kind}: {}", call.target.version().name, status.message))
}

impl Patch {
    /// 415 for a patch that the kind does not take.
    pub fn read(media_type: &str, bytes: &[u8], is_custom: bool) -> Result<Self> {
        match media_type {
            JSON_PATCH => parse_json_patch(bytes).map(Self::Json),
            MERGE_PATCH => Ok(Self::Merge(codec::parse_json(bytes)?.0)),
            STRATEGIC_PATCH if !is_custom => Ok(Self::Strategic(codec::parse_json(bytes)?.0)),
            _ if is_custom => Err(Status::unsupported_media_type(&[JSON_PATCH, MERGE_PATCH, APPLY_YAML])),
            _ => Err(Status::unsupported_media_type(&[JSON_PATCH, MERGE_PATCH, STRATEGIC_PATCH, APPLY_YAML])),
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
}

/// JSON patch as upstream's library does it, which is milder than RFC 6902 about members that are not there: they test as null, and
/// replacing one adds it. Clients lean on it: kube-rs tests that there are no finalizers before it adds the first.
fn apply_json_patch(object: &mut Value, patch: &json_patch::Patch) -> Result<()> {
    use json_patch::{AddOperation, PatchOperation::{Add, Replace, Test}};
    for (at, operation) in patch.0.iter().enumerate() {
        let operation = match operation {
            Test(it) if it.value.is_null() && is_absent(object, it.path.as_str()) => continue,
            Replace(it) if is_absent(object, it.path.as_str()) => Add(AddOperation { path: it.path.clone(), value: it.value.clone() }),
            other => other.clone(),
        };
        json_patch::patch(object, &[operation]).map_err(|mut error| {
            error.operation = at;
            Status::new(422, "Invalid", format!("the server rejected our request due to an error in our request: {error}"))
        })?;
    }
    Ok(())
}

/// Whether `path` leads to a member that an existing object does not have.
fn is_absent(object: &Value, path: &str) -> bool {
    let parent = path.rsplit_once('/').and_then(|(parent, _)| object.pointer(parent));
    parent.is_some_and(Value::is_object) && object.pointer(path).is_none()
}

fn parse_json_patch(bytes: &[u8]) -> Result<json_patch::Patch> {
    let (value, _) = codec::parse_json(bytes)?;
    let count = value.as_array().map_or(0, Vec::len);
    if count > OPERATIONS_MAX {
        let message = format!("The allowed maximum operations in a JSON patch is {OPERATIONS_MAX}, got {count}");
        return Err(Status::new(413, "RequestEntityTooLarge", message));
    }
    serde_json::from_value(value).map_err(|error| Status::bad_request(format!("error decoding patch: {error}")))
}

/// Apply cannot track what no schema declares, whatever field validation is asked for (`ObjectToTyped`).
fn undeclared(call: &Call, object: &Value, unknown: &[String]) -> Result<()> {
    let fields: Vec<&str> = unknown.iter().filter_map(|it| it.strip_prefix("unknown field \"")?.strip_suffix('"')).collect();
    let list = match fields.as_slice() {
        [] => return Ok(()),
        [one] => format!(".{one}: field not declared in schema"),
        all => format!("errors:\n{}", all.iter().map(|it| format!("  .{it}: field not declared in schema")).collect::<Vec<_>>().join("\n")),
    };
    let (version, kind) = (call.target.view().api_version(), &call.target.kind.kind);
    Err(Status::new(500, "", format!("failed to create typed patch object ({}/{}; {version}, Kind={kind}): {list}", call.target.namespace, object.name())))
}

/// Server-side apply: the body is the configuration that the manager wants.
async fn apply(call: &Call, options: &WriteOptions, bytes: &[u8]) -> Result<Response> {
    if options.field_manager.is_empty() {
        return Err(invalid("PatchOptions", FieldError::required(&Path::new("fieldManager"), "is required for apply patch")));
    }
    let (value, duplicate) = codec::parse_yaml(bytes).map_err(|status| Status::bad_request(format!("error decoding YAML: {}", status.message)))?;
    for field in ["apiVersion", "kind"] {
        if value.text(field).is_empty() {
            return Err(Status::bad_request(format!("Object '{field}' is missing in '{value}'")));
        }
    }
    let (mut object, notes) = decode_sparse(call, &value)?;
    undeclared(call, &object, &notes.unknown)?;
    call.strict(options, &Notes { duplicate, ..Notes::default() })?;
    if object.name().is_empty() {
        object.set_metadata("name", call.target.name.as_str());
    }
    call.target.check_name(&object)?;
    if call.target.kind.is_namespaced() {
        object.set_metadata("namespace", call.target.namespace.as_str());
    }
    call.written(call.writer(options).apply(object).await?).await
}

/// The configuration with only what its manager wrote: decoding adds empty structs, which nobody applied.
fn decode_sparse(call: &Call, value: &Value) -> Result<(Value, codec::Notes)> {
    let api_version = call.target.view().api_version();
    let schema = &call.target.version().schema;
    let (decoded, notes) = decode(value.to_string().as_bytes(), Encoding::Json, &call.target.kind.kind, &api_version, schema)?;
    Ok((keep_written(decoded, value), notes))
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
        let failed = |at: usize, path: &str, why: &str| format!("the server rejected our request due to an error in our request: operation '/{at}' failed at path '{path}': {why}");
        let cases = [
            (
                json!([{"op": "test", "path": "/metadata/finalizers", "value": null}, {"op": "add", "path": "/metadata/finalizers", "value": ["f"]}]),
                Ok(json!({"metadata": {"name": "a", "labels": {"x/y": "1"}, "finalizers": ["f"]}, "list": [1]})),
            ),
            (json!([{"op": "replace", "path": "/spec", "value": 2}]), Ok(json!({"metadata": {"name": "a", "labels": {"x/y": "1"}}, "list": [1], "spec": 2}))),
            (json!([{"op": "replace", "path": "/metadata/labels/x~1y", "value": "2"}]), Ok(json!({"metadata": {"name": "a", "labels": {"x/y": "2"}}, "list": [1]}))),
            (json!([{"op": "add", "path": "/b", "value": 1}, {"op": "test", "path": "/metadata/name", "value": null}]), Err(failed(1, "/metadata/name", "value did not match"))),
            (json!([{"op": "test", "path": "/spec/size", "value": null}]), Err(failed(0, "/spec/size", "path is invalid"))),
            (json!([{"op": "replace", "path": "/list/1", "value": 2}]), Err(failed(0, "/list/1", "path is invalid"))),
            (json!([{"op": "remove", "path": "/spec"}]), Err(failed(0, "/spec", "path is invalid"))),
        ];
        for (patch, expected) in cases {
            let mut new = object.clone();
            let done = apply_json_patch(&mut new, &serde_json::from_value(patch.clone()).expect("a patch"));
            assert_eq!(done.map(|()| new).map_err(|status| status.message), expected, "{patch}");
        }
    }
}
