//! A CustomResourceDefinition: its own strategy, and how it becomes a row.
//! Source: apiextensions-apiserver `pkg/apis/apiextensions/{v1/defaults.go,validation}`, `pkg/controller/status/naming_controller.go`.

use std::sync::Arc;

use serde_json::json;

use super::{
    ALL_VERBS, Action, Body, Cell, Change, Column, Convert, Custom, FieldValue, Kind, Registry, Scope, Selectable, Strategy, Subresource, Version,
    check::{all, fill, one_of, required},
};
use crate::{
    meta::{FieldError, FieldErrors, Meta, Path, Value, names},
    schema::structural,
};

pub const CRD: Strategy = Strategy { default, prepare, validate, has_generation: true, resets_status: true, ..Strategy::PLAIN };

/// What all custom resources share; their schema says the rest.
const CUSTOM: Strategy = Strategy { has_generation: true, updates_unconditionally: false, ..Strategy::PLAIN };
const CUSTOM_WITH_STATUS: Strategy = Strategy { resets_status: true, ..CUSTOM };
static CUSTOM_STRATEGIES: [Strategy; 2] = [CUSTOM, CUSTOM_WITH_STATUS];

fn default(crd: &mut Value) {
    let kind = crd.text_at(&["spec", "names", "kind"]).to_owned();
    if let Some(names) = crd.get_mut("spec").and_then(|it| it.get_mut("names")) {
        fill(names, "singular", kind.to_ascii_lowercase());
        fill(names, "listKind", format!("{kind}List"));
    }
    if crd.at(&["spec", "conversion"]).is_none_or(Value::is_null) && crd["spec"].is_object() {
        crd["spec"]["conversion"] = json!({"strategy": "None"});
    }
}

fn prepare(crd: &mut Value, change: Change<'_>) {
    if let Change::Create = change {
        let stored: Vec<Value> = crd.items_at(&["spec", "versions"]).iter().filter(|it| it["storage"] == true).map(|it| it["name"].clone()).collect();
        crd["status"] = json!({"conditions": [], "acceptedNames": {"plural": "", "kind": ""}, "storedVersions": stored});
    }
}

fn validate(crd: &Value, change: Change<'_>) -> FieldErrors {
    let mut errors = FieldErrors::new();
    if let Change::Part(..) = change {
        return errors;
    }
    let (path, spec) = (Path::new("spec"), &crd["spec"]);
    let expected = format!("{}.{}", spec.text_at(&["names", "plural"]), spec.text("group"));
    if crd.name() != expected {
        errors.push(FieldError::invalid(&Path::new("metadata").child("name"), crd.name(), "must be spec.names.plural+\".\"+spec.group"));
    }
    match spec.text("group") {
        "" => errors.push(FieldError::required(&path.child("group"), "")),
        group => {
            all(names::dns1123_subdomain(group), group, &path.child("group"), &mut errors);
            if !group.contains('.') {
                errors.push(FieldError::invalid(&path.child("group"), group, "should be a domain with at least one dot"));
            }
        }
    }
    if spec.text("scope").is_empty() {
        errors.push(FieldError::required(&path.child("scope"), ""));
    }
    one_of(spec, "scope", &["Cluster", "Namespaced"], &path, &mut errors);
    for field in ["plural", "kind"] {
        required(&spec["names"], field, &path.child("names"), &mut errors);
    }
    for field in ["plural", "singular"] {
        let text = spec.text_at(&["names", field]);
        all(names::dns1035_label(text), text, &path.child("names").child(field), &mut errors);
    }
    validate_versions(spec, &path.child("versions"), &mut errors);
    if let Some(old) = change.old() {
        for field in [&["spec", "group"][..], &["spec", "scope"]] {
            super::check::immutable(crd, old, field, &mut errors);
        }
    }
    errors
}

fn validate_versions(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    let versions = spec.items_at(&["versions"]);
    let stored = versions.iter().filter(|it| it["storage"] == true).count();
    if stored != 1 {
        errors.push(FieldError::invalid(path, Value::Array(versions.to_vec()), "must have exactly one version marked as storage version"));
    }
    let mut seen = Vec::new();
    for (at, version) in versions.iter().enumerate() {
        let (path, name) = (path.index(at), version.text("name"));
        all(names::dns1035_label(name), name, &path.child("name"), errors);
        if seen.contains(&name) {
            errors.push(FieldError::duplicate(&path.child("name"), name));
        }
        seen.push(name);
        let schema_path = path.child("schema").child("openAPIV3Schema");
        match version.at(&["schema", "openAPIV3Schema"]) {
            None => errors.push(FieldError::required(&schema_path, "schemas are required")),
            Some(schema) if spec["preserveUnknownFields"] != true => errors.extend(structural::problems(schema, &schema_path)),
            Some(_) => (),
        }
    }
}

/// Conditions `NamesAccepted` and `Established` of a CRD beside the kinds that are served: (accepted, reason, message).
pub fn names_accepted(crd: &Value, registry: &Registry) -> (bool, &'static str, String) {
    let (group, names) = (crd.text_at(&["spec", "group"]), &crd["spec"]["names"]);
    let others = registry.iter().filter(|it| it.group == group && it.custom.as_ref().is_none_or(|it| it.crd != crd.name()));
    for other in others {
        let taken = |name: &str| other.plural == name || other.singular == name || other.short_names.iter().any(|it| it == name);
        let checks = [("plural", "PluralConflict"), ("singular", "SingularConflict")];
        for (field, reason) in checks {
            if taken(names.text(field)) {
                return (false, reason, format!("{:?} is already in use", names.text(field)));
            }
        }
        if let Some(short) = names.items_at(&["shortNames"]).iter().filter_map(Value::as_str).find(|it| taken(it)) {
            return (false, "ShortNamesConflict", format!("{short:?} is already in use"));
        }
        let is_kind_taken = |name: &str| other.kind == name || other.list_kind == name;
        for (field, reason) in [("kind", "KindConflict"), ("listKind", "ListKindConflict")] {
            if is_kind_taken(names.text(field)) {
                return (false, reason, format!("{:?} is already in use", names.text(field)));
            }
        }
    }
    (true, "NoConflicts", "no conflicts found".to_owned())
}

/// The row of a CRD; `None` while it is not established.
pub fn kind(crd: &Value) -> Option<Kind> {
    let is_established = crd.items_at(&["status", "conditions"]).iter().any(|it| it.text("type") == "Established" && it.text("status") == "True");
    let spec = crd.get("spec").filter(|_| is_established)?;
    let names = &spec["names"];
    let listed = spec.items_at(&["versions"]);
    let versions: Vec<Version> = listed.iter().map(|it| version(crd, it)).collect();
    let stored = listed.iter().position(|it| it["storage"] == true)?;
    let texts = |field: &str| names.items_at(&[field]).iter().filter_map(|it| Some(it.as_str()?.to_owned().into())).collect();
    let subresources = subresources(&listed[stored], names.text("kind"));
    let has_status = subresources.iter().any(|it| it.action == Action::Status);
    Some(Kind {
        group: spec.text("group").to_owned().into(),
        kind: names.text("kind").to_owned().into(),
        list_kind: names.text("listKind").to_owned().into(),
        plural: names.text("plural").to_owned().into(),
        singular: names.text("singular").to_owned().into(),
        short_names: texts("shortNames"),
        categories: texts("categories"),
        scope: if spec.text("scope") == "Cluster" { Scope::Cluster } else { Scope::Namespaced },
        verbs: ALL_VERBS,
        versions,
        stored,
        subresources,
        strategy: &CUSTOM_STRATEGIES[usize::from(has_status)],
        storage: None,
        custom: Some(Arc::new(Custom { crd: crd.name().to_owned(), uid: crd.uid().to_owned() })),
    })
}

fn version(crd: &Value, version: &Value) -> Version {
    let preserves = crd["spec"]["preserveUnknownFields"] == true;
    let deprecation = (version["deprecated"] == true).then(|| match version.text("deprecationWarning") {
        "" => format!("{}/{} {} is deprecated", crd.text_at(&["spec", "group"]), version.text("name"), crd.text_at(&["spec", "names", "kind"])),
        text => text.to_owned(),
    });
    Version {
        name: version.text("name").to_owned().into(),
        schema: structural::from_crd(version.at(&["schema", "openAPIV3Schema"]), preserves),
        is_served: version["served"] == true,
        columns: columns(version),
        selectable: version.items_at(&["selectableFields"]).iter().map(selectable).collect(),
        convert: Convert::Same,
        deprecation: deprecation.map(Into::into),
        generation: u64::try_from(crd.generation()).unwrap_or_default(),
    }
}

fn columns(version: &Value) -> Vec<Column> {
    let column = |name: &str, data_type: &str, cell: Cell| Column {
        name: name.to_owned().into(),
        data_type: data_type.to_owned().into(),
        format: "".into(),
        description: "".into(),
        priority: 0,
        cell,
    };
    let mut columns = vec![Column { format: "name".into(), ..column("Name", "string", Cell::Name) }];
    let declared = version.items_at(&["additionalPrinterColumns"]);
    columns.extend(declared.iter().map(|it| Column {
        format: it.text("format").to_owned().into(),
        description: it.text("description").to_owned().into(),
        priority: it.int_at(&["priority"]).and_then(|it| i32::try_from(it).ok()).unwrap_or(0),
        ..column(it.text("name"), it.text("type"), Cell::JsonPath(it.text("jsonPath").to_owned().into()))
    }));
    if declared.is_empty() {
        columns.push(column("Age", "date", Cell::Age(&["metadata", "creationTimestamp"])));
    }
    columns
}

fn selectable(field: &Value) -> Selectable {
    let path = field.text("jsonPath").trim_start_matches('.');
    Selectable { name: path.to_owned().into(), value: FieldValue::Path(path.split('.').map(|it| it.to_owned().into()).collect()) }
}

fn subresources(version: &Value, _kind: &str) -> Vec<Subresource> {
    const VERBS: &[&str] = &["get", "patch", "update"];
    let mut list = Vec::new();
    if version.at(&["subresources", "status"]).is_some() {
        list.push(Subresource { name: "status", action: Action::Status, body: Body { group: "", version: "", kind: "" }, verbs: VERBS });
    }
    if let Some(scale) = version.at(&["subresources", "scale"]) {
        let path = |field: &str| scale.text(field).split('.').filter(|it| !it.is_empty()).map(|it| it.to_owned().into()).collect();
        let action = Action::Scale { spec: path("specReplicasPath"), status: path("statusReplicasPath"), selector: path("labelSelectorPath") };
        list.push(Subresource { name: "scale", action, body: Body { group: "autoscaling", version: "v1", kind: "Scale" }, verbs: VERBS });
    }
    list
}
