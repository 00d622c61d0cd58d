//! RBAC's bindings. Source: `pkg/apis/rbac/validation/validation.go`.

use super::{
    Change, Strategy,
    check::{fill, required},
};
use crate::meta::{FieldError, FieldErrors, Meta, Path, Value, names};

pub const BINDING: Strategy = Strategy { default, validate, name: names::path_segment, ..Strategy::PLAIN };

const GROUP: &str = "rbac.authorization.k8s.io";

fn default(binding: &mut Value) {
    if let Some(role) = binding.get_mut("roleRef") {
        fill(role, "apiGroup", GROUP);
    }
    for subject in super::check::each(binding, &["subjects"]) {
        if matches!(subject.text("kind"), "User" | "Group") {
            fill(subject, "apiGroup", GROUP);
        }
    }
}

fn validate(binding: &Value, change: Change<'_>) -> FieldErrors {
    let mut errors = FieldErrors::new();
    let path = Path::new("roleRef");
    let role = &binding["roleRef"];
    if role.text("apiGroup") != GROUP {
        errors.push(FieldError::not_supported(&path.child("apiGroup"), role.text("apiGroup"), &[GROUP]));
    }
    let kinds: &[&str] = if binding.namespace().is_empty() { &["ClusterRole"] } else { &["ClusterRole", "Role"] };
    if !kinds.contains(&role.text("kind")) {
        errors.push(FieldError::not_supported(&path.child("kind"), role.text("kind"), kinds));
    }
    required(role, "name", &path, &mut errors);
    for (at, subject) in binding.items_at(&["subjects"]).iter().enumerate() {
        validate_subject(subject, &Path::new("subjects").index(at), &mut errors);
    }
    if let Some(old) = change.old().filter(|old| old["roleRef"] != *role) {
        let _ = old;
        errors.push(FieldError::invalid(&path, role.clone(), "cannot change roleRef"));
    }
    errors
}

fn validate_subject(subject: &Value, path: &Path, errors: &mut FieldErrors) {
    required(subject, "name", path, errors);
    let group = subject.text("apiGroup");
    match subject.text("kind") {
        "ServiceAccount" => {
            if !group.is_empty() {
                errors.push(FieldError::not_supported(&path.child("apiGroup"), group, &[""]));
            }
            required(subject, "namespace", path, errors);
        }
        "User" | "Group" => {
            if group != GROUP {
                errors.push(FieldError::not_supported(&path.child("apiGroup"), group, &[GROUP]));
            }
        }
        other => errors.push(FieldError::not_supported(&path.child("kind"), other, &["Group", "ServiceAccount", "User"])),
    }
}
