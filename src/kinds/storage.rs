//! Volumes and what provides them: defaults and checks.
//! Source: `pkg/apis/core/v1/defaults.go`, `pkg/apis/storage/v1/defaults.go`, `pkg/apis/{core,storage}/validation`.

use super::{
    Change, Strategy,
    check::{fill, fill_at, immutable, one_of, required},
};
use crate::meta::{FieldError, FieldErrors, Meta, Path, Value};

pub const VOLUME: Strategy =
    Strategy { default: default_volume, prepare: prepare_volume, validate: validate_volume, resets_status: true, ..Strategy::PLAIN };
pub const CLAIM: Strategy = Strategy { default: default_claim, prepare: prepare_claim, validate: validate_claim, resets_status: true, ..Strategy::PLAIN };
pub const CLASS: Strategy = Strategy { default: default_class, validate: validate_class, ..Strategy::PLAIN };
pub const CSI_DRIVER: Strategy = Strategy { default: default_driver, has_generation: true, ..Strategy::PLAIN };
pub const ATTACHMENT: Strategy = Strategy { resets_status: true, ..Strategy::PLAIN };

const ACCESS_MODES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];

fn default_volume(object: &mut Value) {
    let spec = &mut object["spec"];
    fill(spec, "persistentVolumeReclaimPolicy", "Retain");
    fill(spec, "volumeMode", "Filesystem");
    if let Some(path) = spec.get_mut("hostPath")
        && path.get("type").is_none()
    {
        path["type"] = "".into();
    }
    fill_at(object, &["status", "phase"], "Pending");
}

fn prepare_volume(object: &mut Value, change: Change<'_>) {
    if let Change::Create = change {
        object["status"] = serde_json::json!({"phase": "Pending"});
    }
}

fn access_modes(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    let (modes, path) = (spec.items_at(&["accessModes"]), path.child("accessModes"));
    if modes.is_empty() {
        errors.push(FieldError::required(&path, "at least 1 access mode is required"));
    }
    for mode in modes.iter().filter_map(Value::as_str).filter(|it| !ACCESS_MODES.contains(it)) {
        errors.push(FieldError::not_supported(&path, mode, &ACCESS_MODES));
    }
    let is_single = modes.iter().any(|it| it == "ReadWriteOncePod");
    if is_single && modes.len() > 1 {
        errors.push(FieldError::forbidden(&path, "may not use ReadWriteOncePod with other access modes"));
    }
}

fn validate_volume(object: &Value, change: Change<'_>) -> FieldErrors {
    let (mut errors, path) = (FieldErrors::new(), Path::new("spec"));
    if let Change::Part(..) = change {
        return errors;
    }
    let spec = &object["spec"];
    access_modes(spec, &path, &mut errors);
    if spec.at(&["capacity", "storage"]).is_none() {
        errors.push(FieldError::not_supported(&path.child("capacity"), "", &["storage"]));
    }
    one_of(spec, "persistentVolumeReclaimPolicy", &["Delete", "Recycle", "Retain"], &path, &mut errors);
    one_of(spec, "volumeMode", &["Block", "Filesystem"], &path, &mut errors);
    const OTHERS: [&str; 10] = [
        "accessModes", "capacity", "claimRef", "persistentVolumeReclaimPolicy", "storageClassName", "mountOptions", "volumeMode", "nodeAffinity", "volumeAttributesClassName", "",
    ];
    let sources = spec.as_object().map_or(0, |it| it.keys().filter(|key| !OTHERS.contains(&key.as_str())).count());
    match sources {
        0 => errors.push(FieldError::required(&path, "must specify a volume type")),
        1 => (),
        _ => errors.push(FieldError::forbidden(&path, "may not specify more than 1 volume type")),
    }
    if let Some(old) = change.old() {
        let source = |object: &Value| object["spec"].as_object().map(|it| it.iter().filter(|(key, _)| !OTHERS.contains(&key.as_str())).map(|(key, value)| (key.clone(), value.clone())).collect::<Vec<_>>());
        if source(object) != source(old) {
            errors.push(FieldError::forbidden(&path.child("persistentvolumesource"), "spec.persistentvolumesource is immutable after creation"));
        }
        immutable(object, old, &["spec", "volumeMode"], &mut errors);
    }
    errors
}

/// A claim, or a template for one.
pub fn default_claim(object: &mut Value) {
    fill(&mut object["spec"], "volumeMode", "Filesystem");
    fill_at(object, &["status", "phase"], "Pending");
}

fn prepare_claim(object: &mut Value, change: Change<'_>) {
    if let Change::Create = change {
        object["status"] = serde_json::json!({"phase": "Pending"});
    }
}

fn validate_claim(object: &Value, change: Change<'_>) -> FieldErrors {
    let (mut errors, path) = (FieldErrors::new(), Path::new("spec"));
    if let Change::Part(..) = change {
        return errors;
    }
    let spec = &object["spec"];
    access_modes(spec, &path, &mut errors);
    if spec.at(&["resources", "requests", "storage"]).is_none() {
        errors.push(FieldError::required(&path.child("resources").key("storage"), ""));
    }
    one_of(spec, "volumeMode", &["Block", "Filesystem"], &path, &mut errors);
    if let Some(old) = change.old() {
        let mut rest = object.clone();
        for field in ["resources", "volumeAttributesClassName"] {
            rest["spec"][field] = old["spec"][field].clone();
        }
        // A claim is bound once, and may get its class once.
        for field in ["volumeName", "storageClassName"] {
            if old.text_at(&["spec", field]).is_empty() {
                rest["spec"][field] = old["spec"][field].clone();
            }
        }
        let strip = |value: &Value| value.as_object().map(|it| it.iter().filter(|(_, value)| !value.is_null()).map(|(key, value)| (key.clone(), value.clone())).collect::<Vec<_>>());
        if strip(&rest["spec"]) != strip(&old["spec"]) {
            errors.push(FieldError::forbidden(&path, "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims"));
        }
    }
    errors
}

fn default_class(object: &mut Value) {
    fill_at(object, &["reclaimPolicy"], "Delete");
    fill_at(object, &["volumeBindingMode"], "Immediate");
}

fn validate_class(object: &Value, change: Change<'_>) -> FieldErrors {
    let (mut errors, root) = (FieldErrors::new(), Path::root());
    required(object, "provisioner", &root, &mut errors);
    one_of(object, "reclaimPolicy", &["Delete", "Retain"], &root, &mut errors);
    one_of(object, "volumeBindingMode", &["Immediate", "WaitForFirstConsumer"], &root, &mut errors);
    if let Some(old) = change.old() {
        let fixed = [("parameters", "updates to parameters are forbidden."), ("provisioner", "updates to provisioner are forbidden."), ("reclaimPolicy", "updates to reclaimPolicy are forbidden.")];
        for (field, detail) in fixed.into_iter().filter(|(field, _)| object.get(*field) != old.get(*field)) {
            errors.push(FieldError::forbidden(&root.child(field), detail));
        }
        immutable(object, old, &["volumeBindingMode"], &mut errors);
    }
    errors
}

fn default_driver(object: &mut Value) {
    let spec = &mut object["spec"];
    fill(spec, "attachRequired", true);
    fill(spec, "podInfoOnMount", false);
    fill(spec, "storageCapacity", false);
    fill(spec, "fsGroupPolicy", "ReadWriteOnceWithFSType");
    if spec.items_at(&["volumeLifecycleModes"]).is_empty() {
        spec["volumeLifecycleModes"] = serde_json::json!(["Persistent"]);
    }
    fill(spec, "requiresRepublish", false);
    fill(spec, "seLinuxMount", false);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn claims_are_checked() {
        let mut claim = json!({"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
        default_claim(&mut claim);
        assert_eq!(validate_claim(&claim, Change::Create), []);
        let mut other = claim.clone();
        other["spec"]["accessModes"] = json!(["Often"]);
        let errors: Vec<String> = validate_claim(&other, Change::Update(&claim)).iter().map(ToString::to_string).collect();
        assert_eq!(errors.len(), 2, "{errors:?}");
        assert!(errors[0].starts_with("spec.accessModes: Unsupported value: \"Often\""));
    }
}
