//! `metadata` of every object: what it may hold and what of it may change.
//! Source: apimachinery `pkg/api/validation/objectmeta.go`.

use std::collections::HashSet;

use super::Kind;
use crate::meta::{FieldError, FieldErrors, Map, Meta, Path, Value, names, object::split_api_version};

const FINALIZER_ORPHAN: &str = "orphan";
const FINALIZER_FOREGROUND: &str = "foregroundDeletion";

/// `ValidateObjectMeta`.
pub fn validate(object: &Value, kind: &Kind) -> FieldErrors {
    let path = Path::new("metadata");
    let mut errors = FieldErrors::new();
    let generate = object.metadata("generateName");
    if !generate.is_empty() {
        let problems = (kind.strategy.name)(&names::masked(generate));
        errors.extend(problems.into_iter().map(|it| FieldError::invalid(&path.child("generateName"), generate, it)));
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
    finalizers(object, &path.child("finalizers"), kind.custom.is_none() && !LOOSE.contains(&(kind.group.as_ref(), kind.kind.as_ref())), &mut errors);
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

/// `ValidateOwnerReferences`.
fn owners(owners: &[Value], path: &Path, errors: &mut FieldErrors) {
    for owner in owners {
        let version = Some(split_api_version(owner.text("apiVersion")).1).filter(|it| !it.contains('/')).unwrap_or_default();
        let parts = [("apiVersion", version, "version must not be empty"), ("kind", owner.text("kind"), EMPTY), ("name", owner.text("name"), EMPTY), ("uid", owner.text("uid"), EMPTY)];
        for (field, _, detail) in parts.into_iter().filter(|it| it.1.is_empty()) {
            errors.push(FieldError::invalid(&path.child(field), owner.text(field), detail));
        }
        if (owner.text("apiVersion"), owner.text("kind")) == ("v1", "Event") {
            errors.push(FieldError::invalid(path, owner.clone(), "/v1, Kind=Event is disallowed from being an owner"));
        }
    }
    let controllers = owners.iter().filter(|it| it.get("controller") == Some(&Value::Bool(true)));
    let mut controllers = controllers.map(|it| format!("{}/{}", it.text("kind"), it.text("name")));
    let first = controllers.next().unwrap_or_default();
    for name in controllers.take(CONTROLLERS_TOLD) {
        let detail = format!("Only one reference can have Controller set to true. Found \"true\" in references for {first} and {name}");
        errors.push(FieldError::invalid(path, Value::Array(owners.to_vec()), detail));
    }
}

/// Each of these errors has all references, so that without a bound they would be as large as the square of their number.
const CONTROLLERS_TOLD: usize = 16;
const EMPTY: &str = "must not be empty";
/// Finalizers that need no domain before them.
const STANDARD: [&str; 3] = [FINALIZER_ORPHAN, FINALIZER_FOREGROUND, "kubernetes"];
/// Built-in kinds whose finalizers may be any, for upstream checks them as apimachinery alone does.
const LOOSE: [(&str, &str); 5] =
    [("apiextensions.k8s.io", "CustomResourceDefinition"), ("", "Event"), ("coordination.k8s.io", "Lease"), ("policy", "PodDisruptionBudget"), ("node.k8s.io", "RuntimeClass")];

/// `validateKubeFinalizerName`: a name without a domain that is not the system's.
pub fn bare_finalizer(name: &str, path: &Path) -> Option<FieldError> {
    let is_fine = name.contains('/') || STANDARD.contains(&name);
    (!is_fine).then(|| FieldError::invalid(path, name, "name is neither a standard finalizer name nor is it fully qualified"))
}

fn finalizers(object: &Value, path: &Path, is_strict: bool, errors: &mut FieldErrors) {
    for (at, finalizer) in object.finalizers().enumerate() {
        errors.extend(names::qualified_name(finalizer).into_iter().map(|it| FieldError::invalid(path, finalizer, it)));
        errors.extend(bare_finalizer(finalizer, &path.index(at)).filter(|_| is_strict));
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
            let shown = now.cloned().unwrap_or_else(|| if matches!(field, "name" | "namespace") { "".into() } else { Value::Null });
            errors.push(FieldError::invalid(&path.child(field), shown, IMMUTABLE));
        }
    }
    if old.deletion_timestamp().is_some() {
        let known: HashSet<&str> = old.finalizers().collect();
        let added: Vec<Value> = new.finalizers().filter(|it| !known.contains(it)).map(Value::from).collect();
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
