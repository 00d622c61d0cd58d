//! Volumes and what provides them: defaults and checks.
//! Source: `pkg/apis/core/v1/defaults.go`, `pkg/apis/storage/v1/defaults.go`, `pkg/apis/{core,storage}/validation`.

use super::{Change, Strategy};
use crate::meta::{FieldError, FieldErrors, Meta, Path, Value};

pub const VOLUME: Strategy =
    Strategy { prepare: prepare_volume, ..Strategy::PLAIN };
pub const CLAIM: Strategy = Strategy { prepare: prepare_claim, validate: validate_claim, ..Strategy::PLAIN };
pub const CSI_DRIVER: Strategy = Strategy { prepare: prepare_driver, ..Strategy::PLAIN };

fn prepare_volume(object: &mut Value, change: Change<'_>) {
    if let Change::Create = change {
        // The time of the phase is that of the object.
        let now = object.metadata("creationTimestamp").to_owned();
        object["status"] = serde_json::json!({"phase": "Pending", "lastPhaseTransitionTime": now});
    }
}

fn prepare_claim(object: &mut Value, change: Change<'_>) {
    if let Change::Create = change {
        object["status"] = serde_json::json!({"phase": "Pending"});
    }
    match change {
        Change::Part(_, old) => object["spec"] = old["spec"].clone(),
        Change::Create | Change::Update(_) => {
            // The gate `CrossNamespaceVolumeDataSource` is closed in v1.36.
            let is_elsewhere = |it: &Value| !it.text_at(&["spec", "dataSourceRef", "namespace"]).is_empty();
            if is_elsewhere(object) && change.old().is_none_or(|it| it.at(&["spec", "dataSourceRef"]).is_none()) {
                object.remove_at(&["spec", "dataSourceRef"]);
            }
            // `EnforceDataSourceBackwardsCompatibility`: the older field knows two kinds of sources.
            let of = |field: &str| object.text_at(&["spec", "dataSource", field]);
            let is_known = matches!((of("apiGroup"), of("kind")), ("", "PersistentVolumeClaim") | ("snapshot.storage.k8s.io", "VolumeSnapshot"));
            if !is_known && change.old().is_none_or(|it| it.at(&["spec", "dataSource"]).is_none()) {
                object.remove_at(&["spec", "dataSource"]);
            }
            same_sources(&mut object["spec"]);
        }
    }
}

/// `NormalizeDataSources`: a source is written in both fields, unless it is of another namespace.
fn same_sources(spec: &mut Value) {
    let of = |source: &Value| serde_json::json!({"apiGroup": source.get("apiGroup"), "kind": source.text("kind"), "name": source.text("name")});
    let (source, reference) = (spec.get("dataSource").map(of), spec.get("dataSourceRef").map(of));
    match (source, reference) {
        (Some(mut source), None) => {
            if source["apiGroup"].is_null() {
                source.remove_at(&["apiGroup"]);
            }
            spec["dataSourceRef"] = source;
        }
        (None, Some(reference)) if spec.text_at(&["dataSourceRef", "namespace"]).is_empty() => spec["dataSource"] = reference,
        _ => (),
    }
}

/// What of a claim may change.
fn validate_claim(object: &Value, change: Change<'_>) -> FieldErrors {
    let (mut errors, path) = (FieldErrors::new(), Path::new("spec"));
    if let Change::Update(old) = change {
        let (mut rest, is_bound) = (object.clone(), object.text_at(&["status", "phase"]) == "Bound");
        if is_bound && rest.at(&["spec", "resources", "requests"]).is_some() {
            rest["spec"]["resources"]["requests"]["storage"] = old["spec"]["resources"]["requests"]["storage"].clone();
        }
        if is_bound {
            rest["spec"]["volumeAttributesClassName"] = old["spec"]["volumeAttributesClassName"].clone();
        }
        // A claim is bound once, and may get its class once.
        for field in ["volumeName", "storageClassName"] {
            if old.at(&["spec", field]).is_none_or(|it| it.is_null() || field == "volumeName" && *it == "") {
                rest["spec"][field] = old["spec"][field].clone();
            }
        }
        let mut before = old["spec"].clone();
        same_sources(&mut before);
        let strip = |value: &Value| value.as_object().map(|it| it.iter().filter(|(_, value)| !value.is_null()).map(|(key, value)| (key.clone(), value.clone())).collect::<Vec<_>>());
        if strip(&rest["spec"]) != strip(&before) {
            errors.push(FieldError::forbidden(&path, "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims"));
        }
    }
    errors
}

/// Upstream counts a driver's changes from nothing.
fn prepare_driver(object: &mut Value, change: Change<'_>) {
    if let Change::Create = change {
        object.remove_metadata("generation");
    }
}
