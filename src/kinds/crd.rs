//! A CustomResourceDefinition: its own strategy, and how it becomes a row.
//! Source: apiextensions-apiserver `pkg/apis/apiextensions/{v1/defaults.go,validation}`, `pkg/controller/status/naming_controller.go`.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use serde_json::json;

use super::{
    ALL_VERBS, Action, Body, Cell, Change, Column, Convert, Custom, FieldPath, Kind, Registry, Scope, Selectable, Strategy, Subresource, Version, Webhook,
};
use crate::{
    meta::{FieldError, FieldErrors, Json, Meta, Path, Value},
    schema::{SchemaRef, codec, rules, structural, validate},
};

pub const CRD: Strategy = Strategy { prepare, validate, ..Strategy::PLAIN };

/// What all custom resources share; their schema says the rest.
const CUSTOM: Strategy = Strategy { has_generation: true, updates_unconditionally: false, ..Strategy::PLAIN };

fn storage_version(crd: &Value) -> Vec<Value> {
    crd.items_at(&["spec", "versions"]).iter().filter(|it| it["storage"] == true).map(|it| it["name"].clone()).collect()
}

fn prepare(crd: &mut Value, change: Change<'_>) {
    match change {
        Change::Create => crd["status"] = json!({"conditions": null, "acceptedNames": {"plural": "", "kind": ""}, "storedVersions": storage_version(crd)}),
        // What has been stored in a version once may be there still.
        Change::Update(_) => {
            let mut stored = crd.items_at(&["status", "storedVersions"]).to_vec();
            let known: HashSet<Value> = stored.iter().cloned().collect();
            stored.extend(storage_version(crd).into_iter().filter(|it| !known.contains(it)));
            crd.set_at(&["status", "storedVersions"], stored);
        }
        Change::Part(..) => (),
    }
}

const PACKAGE: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1";

fn validate(crd: &Value, change: Change<'_>) -> FieldErrors {
    let mut errors = FieldErrors::new();
    if let Change::Part(..) = change {
        return errors;
    }
    validate_versions(&crd["spec"], &mut errors);
    let is_open = |crd: &Value| crd["spec"]["preserveUnknownFields"] == true;
    if is_open(crd) && !change.old().is_some_and(is_open) {
        let detail = "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead";
        errors.push(FieldError::invalid(&Path::new("spec").child("preserveUnknownFields"), true, detail));
    }
    validate_schemas(crd, change.old(), &mut errors);
    errors
}

/// Versions with a field of theirs and where it stands: once, as in upstream's internal form, where it is the same in all of them.
fn places<'a>(spec: &'a Value, field: &'static str, shared: &'static str) -> Vec<(Path, &'a Value)> {
    let (versions, path) = (spec.items_at(&["versions"]), Path::new("spec"));
    match versions.first() {
        Some(first) if versions.iter().all(|it| it.get(field) == first.get(field)) => vec![(path.child(shared), first)],
        _ => versions.iter().enumerate().map(|(at, it)| (path.child("versions").index(at).child(field), it)).collect(),
    }
}

/// What versions have beside their schemas.
fn validate_versions(spec: &Value, errors: &mut FieldErrors) {
    for (path, version) in places(spec, "subresources", "subresources") {
        errors.extend(super::rules::errors_of(&version["subresources"], &format!("{PACKAGE}.CustomResourceSubresources"), &path));
    }
    for (path, version) in places(spec, "additionalPrinterColumns", "additionalPrinterColumns") {
        for (at, column) in version.items_at(&["additionalPrinterColumns"]).iter().enumerate() {
            errors.extend(super::rules::errors_of(column, &format!("{PACKAGE}.CustomResourceColumnDefinition"), &path.index(at)));
        }
    }
    let (schemas, selectable) = (places(spec, "schema", "validation"), places(spec, "selectableFields", "selectableFields"));
    let is_apart = |list: &[(Path, &Value)]| list.first().is_some_and(|it| it.0.to_string().contains('['));
    for (path, version) in &selectable {
        let (fields, is_own) = (version.items_at(&["selectableFields"]), is_apart(&selectable));
        let Some(schema) = version.at(&["schema", "openAPIV3Schema"]).filter(|_| is_apart(&schemas) == is_own) else {
            let detail = if is_own { "may only be set when `version.schema.openAPIV3Schema` is not included" } else { "may only be set when validations.schema is included" };
            errors.extend(fields.first().map(|_| FieldError::invalid(path, "", detail)));
            continue;
        };
        let mut seen = HashSet::new();
        for (at, field) in fields.iter().map(|it| it.text("jsonPath")).enumerate() {
            selectable_field(field, schema, &path.index(at).child("jsonPath"), seen.insert(field), errors);
        }
        if fields.len() > SELECTABLE_MAX {
            errors.push(FieldError::too_many(path, fields.len(), SELECTABLE_MAX));
        }
    }
}

/// `MaxSelectableFields`.
const SELECTABLE_MAX: usize = 8;

/// `ValidateCustomResourceSelectableFields`, for one of them.
fn selectable_field(text: &str, schema: &Value, path: &Path, is_first: bool, errors: &mut FieldErrors) {
    let mut wrong = |detail: String| errors.push(FieldError::invalid(path, text, detail));
    let found = if text.contains('[') { Err("array notation is not allowed".to_owned()) } else { rules::path::resolve(text, schema) };
    match found {
        _ if text.is_empty() => errors.push(FieldError::required(path, "")),
        Err(why) => wrong(format!("is an invalid path: {why}")),
        Ok((place, below)) => {
            if place.to_string().starts_with("metadata") {
                wrong("must not point to fields in metadata".to_owned());
            }
            if !matches!(below.text("type"), "string" | "boolean" | "integer") {
                wrong("must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.".to_owned());
            }
            errors.extend((!is_first).then(|| FieldError::duplicate(path, text)));
        }
    }
}

/// The schemas and their rules.
fn validate_schemas(crd: &Value, old: Option<&Value>, errors: &mut FieldErrors) {
    let spec = &crd["spec"];
    let has_none = spec.items_at(&["versions"]).iter().all(|it| it.at(&["schema", "openAPIV3Schema"]).is_none());
    let is_apart = places(spec, "schema", "validation").len() > 1;
    for (at, version) in spec.items_at(&["versions"]).iter().enumerate() {
        let is_missing = version.at(&["schema", "openAPIV3Schema"]).is_none() && (has_none || is_apart);
        let path = Path::new("spec").child("versions").index(at).child("schema").child("openAPIV3Schema");
        errors.extend(is_missing.then(|| FieldError::required(&path, "")));
    }
    let known: HashMap<&str, &Value> = old.map_or(&[][..], |it| it.items_at(&["spec", "versions"])).iter().rev().map(|it| (it.text("name"), it)).collect();
    for (path, version) in places(spec, "schema", "validation") {
        let Some(schema) = version.at(&["schema", "openAPIV3Schema"]).filter(|_| spec["preserveUnknownFields"] != true) else { continue };
        let place = path.child("openAPIV3Schema");
        let mut problems = super::rules::errors_as(schema, super::rules::SCHEMA, ROOT_SCHEMA, &place);
        if version.at(&["subresources", "status"]).is_some() {
            problems.extend(beside_status(schema, &place));
        }
        problems.extend(metadata(schema, &place));
        if problems.is_empty() {
            defaults(schema, &place, &mut problems);
        }
        let is_unchanged = known.get(version.text("name")).is_some_and(|it| it.at(&["schema", "openAPIV3Schema"]) == Some(schema));
        // A schema that is not structural has no types to check rules by.
        errors.extend(if problems.is_empty() { rules::check::check(schema, &place, is_unchanged) } else { problems });
    }
}

/// `metadata` is what it is for every object; a schema may bound names alone (`validateStructuralMetadataInvariants`).
fn metadata(schema: &Value, path: &Path) -> Option<FieldError> {
    let metadata = schema.at(&["properties", "metadata"])?.as_object()?;
    let is_name = |it: &String| matches!(it.as_str(), "name" | "generateName");
    let is_allowed = |(word, value): (&String, &Value)| match word.as_str() {
        "type" | "default" => true,
        "properties" => value.as_object().is_some_and(|it| it.keys().all(is_name)),
        _ => value.is_null(),
    };
    let detail = "must not specify anything other than name and generateName, but metadata is implicitly specified";
    (!metadata.iter().all(is_allowed)).then(|| FieldError::forbidden(&path.child("properties").key("metadata"), detail))
}

/// Defaults are values of their schemas, and have no fields that would be pruned (`ValidateDefaults`).
fn defaults(schema: &Value, path: &Path, errors: &mut FieldErrors) {
    if let Some(default) = schema.get("default").filter(|it| !it.is_null()) {
        let (own, mut pruned, path) = (structural::from_crd(Some(schema.clone())), default.clone(), path.child("default"));
        codec::prune(&mut pruned, &own);
        match pruned == *default {
            true => errors.extend(validate::custom(default, None, &own).0.into_iter().map(|it| FieldError { field: path.with(it.field.as_str()), ..it })),
            false => errors.push(FieldError::invalid(&path, default.clone(), "must not have unknown fields")),
        }
    }
    for (name, property) in schema.map_at(&["properties"]).into_iter().flatten() {
        defaults(property, &path.child("properties").key(name), errors);
    }
    if let Some(items) = schema.get("items") {
        defaults(items, &path.child("items"), errors);
    }
}

const ROOT_SCHEMA: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.RootSchema";

/// What a schema with `status` apart may have at its root: nothing that speaks of the whole.
fn beside_status(schema: &Value, path: &Path) -> Option<FieldError> {
    const ALLOWED: &str = "Description Type Format Title Maximum ExclusiveMaximum Minimum ExclusiveMinimum MaxLength MinLength Pattern MaxItems MinItems UniqueItems MultipleOf Required Items Properties ExternalDocs Example XPreserveUnknownFields XValidations";
    let internal = |field: &str| field.replace("x-kubernetes-", "x-").split('-').map(|it| it[..1].to_uppercase() + &it[1..]).collect::<String>();
    if !matches!(schema.text("type"), "" | "object") {
        let detail = "only \"object\" is allowed as the type at the root of the schema if the status subresource is enabled";
        return Some(FieldError::invalid(&path.child("type"), schema.text("type"), detail));
    }
    let is_refused = |(field, value): (&String, &Value)| !value.is_null() && !ALLOWED.split(' ').any(|it| it == internal(field));
    let detail = || format!("only [{ALLOWED}] fields are allowed at the root of the schema if the status subresource is enabled");
    schema.as_object()?.iter().any(is_refused).then(|| FieldError::invalid(path, schema.clone(), detail()))
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

/// The row of a CRD, whose stored form is `definition`; `None` while it is not established.
pub fn kind(crd: &Value, definition: Json) -> Option<Kind> {
    let spec = crd.get("spec").filter(|_| crd.has_condition("Established"))?;
    let names = &spec["names"];
    let listed = spec.items_at(&["versions"]);
    let convert = convert(crd);
    let custom = Arc::new(Custom { crd: crd.name().to_owned(), uid: crd.uid().to_owned(), generation: crd.generation(), definition });
    let versions: Vec<Version> = listed.iter().enumerate().map(|(at, it)| Version { convert: convert.clone(), ..version(crd, it, at, &custom) }).collect();
    let stored = listed.iter().position(|it| it["storage"] == true)?;
    let texts = |field: &str| names.items_at(&[field]).iter().filter_map(|it| Some(it.as_str()?.to_owned().into())).collect();
    let subresources = subresources(&listed[stored]);
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
        strategy: Strategy { resets_status: has_status, ..CUSTOM },
        returns_deleted: false,
        storage: None,
        custom: Some(custom),
    })
}

/// How its versions become each other.
fn convert(crd: &Value) -> Convert {
    let webhook = &crd["spec"]["conversion"];
    if webhook.text("strategy") != "Webhook" {
        return Convert::Same;
    }
    let review_versions = webhook.items_at(&["webhook", "conversionReviewVersions"]).iter().filter_map(|it| Some(it.as_str()?.to_owned())).collect();
    Convert::Webhook(Arc::new(Webhook { client_config: webhook["webhook"]["clientConfig"].clone(), review_versions }))
}

/// Versions that one number can tell apart beside a generation.
const VERSION_BITS: u32 = 16;

fn version(crd: &Value, version: &Value, at: usize, custom: &Arc<Custom>) -> Version {
    let (name, custom) = (version.text("name").to_owned(), custom.clone());
    let deprecation = (version["deprecated"] == true).then(|| match version.text("deprecationWarning") {
        "" => format!("{}/{} {} is deprecated", crd.text_at(&["spec", "group"]), version.text("name"), crd.text_at(&["spec", "names", "kind"])),
        text => text.to_owned(),
    });
    Version {
        name: name.clone().into(),
        schema: SchemaRef::lazy(move || structural::from_crd(custom.schema(&name))),
        is_served: version["served"] == true,
        columns: columns(version),
        selectable: version.items_at(&["selectableFields"]).iter().map(selectable).collect(),
        convert: Convert::Same,
        deprecation: deprecation.map(Into::into),
        generation: u64::try_from(crd.generation()).unwrap_or_default() << VERSION_BITS | at as u64,
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
        or: "".into(),
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
        columns.push(column("Age", "date", Cell::Age(vec![FieldPath::new("metadata.creationTimestamp")])));
    }
    columns
}

fn selectable(field: &Value) -> Selectable {
    let path = field.text("jsonPath").trim_start_matches('.');
    Selectable { name: path.to_owned().into(), paths: vec![FieldPath::new(path)], or: "".into() }
}

fn subresources(version: &Value) -> Vec<Subresource> {
    let verbs = || vec!["get", "patch", "update"];
    let mut list = Vec::new();
    if version.at(&["subresources", "status"]).is_some() {
        list.push(Subresource { name: "status", action: Action::Status, body: Body { group: "", version: "", kind: "" }, verbs: verbs() });
    }
    if let Some(scale) = version.at(&["subresources", "scale"]) {
        let path = |field: &str| scale.text(field).split('.').filter(|it| !it.is_empty()).map(|it| it.to_owned().into()).collect();
        let action = Action::Scale { spec: path("specReplicasPath"), status: path("statusReplicasPath"), selector: path("labelSelectorPath") };
        list.push(Subresource { name: "scale", action, body: Body { group: "autoscaling", version: "v1", kind: "Scale" }, verbs: verbs() });
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_versions_are_remembered_and_conversions_checked() {
        let version = |name: &str, is_stored: bool| json!({"name": name, "served": true, "storage": is_stored, "schema": {"openAPIV3Schema": {"type": "object"}}});
        let of = |versions: Value, conversion: Value| {
            json!({"metadata": {"name": "xs.e.com"}, "spec": {"group": "e.com", "scope": "Namespaced", "names": {"plural": "xs", "kind": "X"}, "versions": versions, "conversion": conversion}})
        };
        let mut old = of(json!([version("v1", true)]), Value::Null);
        old = crate::kinds::rules::filled("CustomResourceDefinition", old);
        prepare(&mut old, Change::Create);
        let webhook = json!({"strategy": "Webhook", "webhook": {"clientConfig": {"service": {"namespace": "n", "name": "s", "port": 443}}, "conversionReviewVersions": ["v1"]}});
        let errors = |versions: Value, conversion: Value| {
            let mut new = of(versions, conversion);
            new["status"] = old["status"].clone();
            new = crate::kinds::rules::filled("CustomResourceDefinition", new);
            prepare(&mut new, Change::Update(&old));
            (new["status"]["storedVersions"].clone(), crate::kinds::rules::told("CustomResourceDefinition", &new, Change::Update(&old)))
        };
        let both = json!([version("v1", false), version("v2", true)]);
        assert_eq!(errors(both.clone(), webhook), (json!(["v1", "v2"]), Vec::new()));
        let (_, lost) = errors(json!([version("v2", true)]), json!({"strategy": "None"}));
        assert!(lost[0].starts_with("status.storedVersions[0]: Invalid value: \"v1\": missing from spec.versions; v1 was previously a storage version"), "{lost:?}");
        let (_, wrong) = errors(both, json!({"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v3"]}}));
        assert_eq!(wrong, [
            "spec.conversion.webhookClientConfig: Required value: required when strategy is set to Webhook",
            "spec.conversion.conversionReviewVersions: Invalid value: [\"v3\"]: must include at least one of v1, v1beta1",
        ]);
    }
}
