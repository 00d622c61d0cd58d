//! `metadata` of every object: what it may hold and what of it may change.
//! Source: apimachinery `pkg/api/validation/objectmeta.go`.

use super::Kind;
use crate::meta::{FieldError, FieldErrors, Map, Meta, Path, Value, names};

const FINALIZER_ORPHAN: &str = "orphan";
const FINALIZER_FOREGROUND: &str = "foregroundDeletion";

/// `ValidateObjectMeta`.
pub fn validate(object: &Value, kind: &Kind) -> FieldErrors {
    let path = Path::new("metadata");
    let mut errors = FieldErrors::new();
    let generate = object.metadata("generateName");
    if !generate.is_empty() {
        // A name that will be made from a valid prefix is valid: a letter stands for the random part.
        errors.extend(
            (kind.strategy.name)(&format!("{generate}a")).into_iter().map(|it| FieldError::invalid(&path.child("generateName"), generate, it)),
        );
    }
    match object.name() {
        "" => errors.push(FieldError::required(&path.child("name"), "name or generateName is required")),
        name => errors.extend((kind.strategy.name)(name).into_iter().map(|it| FieldError::invalid(&path.child("name"), name, it))),
    }
    match (kind.is_namespaced(), object.namespace()) {
        (true, "") => errors.push(FieldError::required(&path.child("namespace"), "")),
        (true, namespace) => {
            errors.extend(names::dns1123_label(namespace).into_iter().map(|it| FieldError::invalid(&path.child("namespace"), namespace, it)))
        }
        (false, "") => (),
        (false, _) => errors.push(FieldError::forbidden(&path.child("namespace"), "not allowed on this type")),
    }
    if object.generation() < 0 {
        errors.push(FieldError::invalid(&path.child("generation"), object.generation(), "must be greater than or equal to 0"));
    }
    labels(object.map_at(&["metadata", "labels"]), &path.child("labels"), &mut errors);
    annotations(object.map_at(&["metadata", "annotations"]), &path.child("annotations"), &mut errors);
    owners(object.owner_references(), &path.child("ownerReferences"), &mut errors);
    finalizers(object, &path.child("finalizers"), &mut errors);
    errors
}

/// `ValidateLabels`.
pub fn labels(labels: Option<&Map<String, Value>>, path: &Path, errors: &mut FieldErrors) {
    for (key, value) in labels.into_iter().flatten() {
        let value = value.as_str().unwrap_or_default();
        errors.extend(names::qualified_name(key).into_iter().map(|it| FieldError::invalid(path, key.as_str(), it)));
        errors.extend(names::label_value(value).into_iter().map(|it| FieldError::invalid(path, value, it)));
    }
}

/// `ValidateAnnotations`.
pub fn annotations(annotations: Option<&Map<String, Value>>, path: &Path, errors: &mut FieldErrors) {
    let mut size = 0;
    for (key, value) in annotations.into_iter().flatten() {
        errors.extend(names::qualified_name(&key.to_lowercase()).into_iter().map(|it| FieldError::invalid(path, key.as_str(), it)));
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    if size > names::ANNOTATIONS_MAX {
        errors.push(FieldError::too_long(path, names::ANNOTATIONS_MAX));
    }
}

fn owners(owners: &[Value], path: &Path, errors: &mut FieldErrors) {
    let mut controller = None;
    for owner in owners {
        for field in ["apiVersion", "kind", "name", "uid"] {
            if owner.text(field).is_empty() {
                let detail = if field == "apiVersion" { "version must not be empty" } else { "must not be empty" };
                errors.push(FieldError::invalid(&path.child(field), owner.text(field), detail));
            }
        }
        if owner.get("controller") == Some(&Value::Bool(true)) {
            if let Some(first) = controller {
                let detail = format!(
                    "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {}",
                    owner.text("name")
                );
                errors.push(FieldError::invalid(&Path::new("metadata").child("ownerReferences"), Value::Array(owners.to_vec()), detail));
            }
            controller = Some(owner.text("name"));
        }
    }
}

fn finalizers(object: &Value, path: &Path, errors: &mut FieldErrors) {
    for (at, finalizer) in object.finalizers().enumerate() {
        errors.extend(names::qualified_name(finalizer).into_iter().map(|it| FieldError::invalid(&path.index(at), finalizer, it)));
    }
    let has = |name: &str| object.finalizers().any(|it| it == name);
    if has(FINALIZER_ORPHAN) && has(FINALIZER_FOREGROUND) {
        let all: Vec<Value> = object.finalizers().map(Value::from).collect();
        errors.push(FieldError::invalid(path, all, "finalizer orphan and foregroundDeletion cannot be both set"));
    }
}

/// `ValidateObjectMetaUpdate`, for what a client may not change.
pub fn validate_update(new: &Value, old: &Value) -> FieldErrors {
    let path = Path::new("metadata");
    let mut errors = FieldErrors::new();
    for field in ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        let (now, before) = (new.at(&["metadata", field]), old.at(&["metadata", field]));
        if now != before {
            errors.push(FieldError::invalid(&path.child(field), now.cloned().unwrap_or_default(), IMMUTABLE));
        }
    }
    if old.deletion_timestamp().is_some() {
        let added: Vec<Value> = new.finalizers().filter(|it| !old.finalizers().any(|old| old == *it)).map(Value::from).collect();
        if !added.is_empty() {
            let detail = format!("no new finalizers can be added if the object is being deleted, found new finalizers {}", go_strings(&added));
            errors.push(FieldError::forbidden(&path.child("finalizers"), detail));
        }
    }
    errors
}

/// What upstream says of a field that never changes.
pub const IMMUTABLE: &str = "field is immutable";

/// `[]string{"a", "b"}`.
fn go_strings(values: &[Value]) -> String {
    let texts: Vec<String> = values.iter().map(ToString::to_string).collect();
    format!("[]string{{{}}}", texts.join(", "))
}
