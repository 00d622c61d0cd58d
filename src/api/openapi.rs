//! The OpenAPI documents: v3, one a group and version, and v2 for the whole server. Rendered when first asked for, once for each
//! generation of the registry.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, PoisonError},
};

use http::HeaderMap;
use serde_json::json;

use super::{Response, discovery};
use crate::{
    kinds::{Action, Kind, Registry, Verb, Version},
    meta::{Map, Result, Status, Value, object::api_version},
    schema::{self, openapi::define},
};

const V3_SCHEMAS: &str = "#/components/schemas/";
const V2_SCHEMAS: &str = "#/definitions/";
const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
const V3_JSON: &str = "application/json";

/// Rendered documents by path, of one generation of the registry.
#[derive(Default)]
pub struct Documents(Mutex<(u64, HashMap<String, String>)>);

impl Documents {
    fn get(&self, registry: &Registry, path: &str, render: impl FnOnce() -> Option<String>) -> Option<String> {
        let lock = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = |cache: &(u64, HashMap<String, String>)| cache.1.get(path).filter(|_| cache.0 == registry.generation).cloned();
        if let Some(text) = known(&lock()) {
            return Some(text);
        }
        let text = render()?;
        let mut cache = lock();
        if cache.0 != registry.generation {
            *cache = (registry.generation, HashMap::new());
        }
        cache.1.insert(path.to_owned(), text.clone());
        Some(text)
    }

    /// Answers `/openapi/...`.
    pub fn serve(&self, registry: &Registry, path: &str, headers: &HeaderMap) -> Result<Response> {
        let text = match path.trim_end_matches('/') {
            "/openapi/v2" => self.get(registry, path, || Some(v2(registry))),
            "/openapi/v3" => self.get(registry, path, || Some(self.index(registry))),
            other => other.strip_prefix("/openapi/v3/").and_then(|it| self.document(registry, it)),
        };
        Ok(discovery::with_etag(text.ok_or_else(Status::no_route)?, V3_JSON, headers))
    }

    fn document(&self, registry: &Registry, place: &str) -> Option<String> {
        let parts: Vec<&str> = place.split('/').collect();
        let (group, version) = match parts.as_slice() {
            ["api", version] => ("", *version),
            ["apis", group, version] => (*group, *version),
            _ => return None,
        };
        self.get(registry, place, || v3(registry, group, version))
    }

    /// The documents there are; their addresses change with their content.
    fn index(&self, registry: &Registry) -> String {
        let places: BTreeSet<String> = registry
            .iter()
            .flat_map(|kind| kind.versions.iter().filter(|it| it.is_served).map(|it| place(&kind.group, &it.name)))
            .collect();
        let paths: Map<String, Value> = places
            .into_iter()
            .filter_map(|place| {
                let hash = discovery::hash(self.document(registry, &place)?.as_bytes());
                let url = format!("/openapi/v3/{place}?hash={hash}");
                Some((place, json!({"serverRelativeURL": url})))
            })
            .collect();
        json!({"paths": paths}).to_string()
    }
}

fn place(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

fn served<'a>(registry: &'a Registry, group: &'a str, version: &'a str) -> Vec<(&'a Kind, &'a Version)> {
    let kinds = registry.iter().filter(|it| it.group == group);
    kinds.filter_map(|kind| Some((kind.as_ref(), kind.version(version).filter(|it| it.is_served)?))).collect()
}

/// The name of a kind's definition: the built-in type's, or the reversed group of a custom one.
fn definition_name(kind: &Kind, version: &Version) -> String {
    if !version.schema.name.is_empty() {
        return version.schema.name.clone();
    }
    let group: Vec<&str> = kind.group.rsplit('.').collect();
    format!("{}.{}.{}", group.join("."), version.name, kind.kind)
}

fn gvk(kind: &Kind, version: &str, name: &str) -> Value {
    json!({"group": kind.group, "version": version, "kind": name})
}

/// The definitions of a kind and of its list.
fn define_kind(kind: &Kind, version: &Version, reference: &str, into: &mut Map<String, Value>) {
    let name = definition_name(kind, version);
    define(&version.schema, &name, reference, into);
    into[&name]["x-kubernetes-group-version-kind"] = json!([gvk(kind, &version.name, &kind.kind)]);
    let list = json!({
        "type": "object", "required": ["items"],
        "properties": {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"$ref": format!("{reference}{META}.ListMeta")},
            "items": {"type": "array", "items": {"$ref": format!("{reference}{name}")}}},
        "x-kubernetes-group-version-kind": [gvk(kind, &version.name, &kind.list_kind)],
    });
    into.insert(format!("{name}List"), list);
}

fn define_common(reference: &str, into: &mut Map<String, Value>) {
    for name in ["ListMeta", "ObjectMeta", "DeleteOptions", "Status", "WatchEvent"] {
        if let Some(schema) = schema::builtin(&format!("{META}.{name}")) {
            define(&schema, &schema.name, reference, into);
        }
    }
    into.insert(format!("{META}.Patch"), json!({"type": "object"}));
}

fn v3(registry: &Registry, group: &str, version: &str) -> Option<String> {
    let kinds = served(registry, group, version);
    if kinds.is_empty() {
        return None;
    }
    let (mut schemas, mut paths) = (Map::new(), Map::new());
    define_common(V3_SCHEMAS, &mut schemas);
    for (kind, version) in &kinds {
        define_kind(kind, version, V3_SCHEMAS, &mut schemas);
        add_paths(kind, version, Dialect::V3, &mut paths);
    }
    Some(json!({"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": super::http::GIT_VERSION}, "paths": paths, "components": {"schemas": schemas}}).to_string())
}

fn v2(registry: &Registry) -> String {
    let (mut definitions, mut paths) = (Map::new(), Map::new());
    define_common(V2_SCHEMAS, &mut definitions);
    for kind in registry.iter() {
        for version in kind.versions.iter().filter(|it| it.is_served) {
            define_kind(kind, version, V2_SCHEMAS, &mut definitions);
            add_paths(kind, version, Dialect::V2, &mut paths);
        }
    }
    json!({"swagger": "2.0", "info": {"title": "Kubernetes", "version": super::http::GIT_VERSION}, "paths": paths, "definitions": definitions}).to_string()
}

#[derive(Clone, Copy, PartialEq)]
enum Dialect {
    V2,
    V3,
}

impl Dialect {
    fn parameter(self, name: &str, place: &str, kind: &str) -> Value {
        match self {
            Self::V2 => json!({"name": name, "in": place, "type": kind, "uniqueItems": true, "required": place == "path"}),
            Self::V3 => json!({"name": name, "in": place, "required": place == "path", "schema": {"type": kind, "uniqueItems": true}}),
        }
    }

    fn body(self, operation: &mut Value, definition: &str, media_types: &[&str]) {
        match self {
            Self::V2 => {
                let parameter = json!({"name": "body", "in": "body", "required": true, "schema": {"$ref": format!("{V2_SCHEMAS}{definition}")}});
                if let Some(list) = operation["parameters"].as_array_mut() {
                    list.push(parameter);
                }
                operation["consumes"] = json!(media_types);
            }
            Self::V3 => {
                let content: Map<String, Value> = media_types.iter().map(|it| ((*it).to_owned(), json!({"schema": {"$ref": format!("{V3_SCHEMAS}{definition}")}}))).collect();
                operation["requestBody"] = json!({"content": content, "required": true});
            }
        }
    }

    fn answer(self, operation: &mut Value, definition: &str) {
        operation["responses"] = match self {
            Self::V2 => json!({"200": {"description": "OK", "schema": {"$ref": format!("{V2_SCHEMAS}{definition}")}}}),
            Self::V3 => json!({"200": {"description": "OK", "content": {"application/json": {"schema": {"$ref": format!("{V3_SCHEMAS}{definition}")}}}}}),
        };
    }
}

/// The paths of a kind: what clients ask is whether an operation takes `dryRun` and `fieldValidation`, and which kind it is about.
fn add_paths(kind: &Kind, version: &Version, dialect: Dialect, paths: &mut Map<String, Value>) {
    let root = if kind.group.is_empty() { format!("/api/{}", version.name) } else { format!("/apis/{}", api_version(&kind.group, &version.name)) };
    let base = if kind.is_namespaced() { format!("{root}/namespaces/{{namespace}}/{}", kind.plural) } else { format!("{root}/{}", kind.plural) };
    let operation = |verb: Verb, action: &str| kind.accepts(verb).then(|| self::operation(kind, version, dialect, action));
    let collection = [("get", operation(Verb::List, "list")), ("post", operation(Verb::Create, "post")), ("delete", operation(Verb::DeleteCollection, "deletecollection"))];
    let item = [("get", operation(Verb::Get, "get")), ("put", operation(Verb::Update, "put")), ("patch", operation(Verb::Patch, "patch")), ("delete", operation(Verb::Delete, "delete"))];
    add_path(paths, &base, kind.is_namespaced(), false, dialect, collection.into_iter());
    add_path(paths, &format!("{base}/{{name}}"), kind.is_namespaced(), true, dialect, item.into_iter());
    for part in kind.subresources.iter().filter(|it| matches!(it.action, Action::Status | Action::Part)) {
        let verbs = [("get", "get"), ("put", "update"), ("patch", "patch")];
        let operations = verbs.into_iter().map(|(method, verb)| (method, part.verbs.contains(&verb).then(|| self::operation(kind, version, dialect, method))));
        add_path(paths, &format!("{base}/{{name}}/{}", part.name), kind.is_namespaced(), true, dialect, operations);
    }
}

fn add_path<'a>(paths: &mut Map<String, Value>, path: &str, is_namespaced: bool, is_named: bool, dialect: Dialect, operations: impl Iterator<Item = (&'a str, Option<Value>)>) {
    let mut item: Map<String, Value> = operations.filter_map(|(method, operation)| Some((method.to_owned(), operation?))).collect();
    if item.is_empty() {
        return;
    }
    let names = [(is_named, "name"), (is_namespaced, "namespace")];
    let parameters: Vec<Value> = names.into_iter().filter(|(is, _)| *is).map(|(_, name)| dialect.parameter(name, "path", "string")).collect();
    item.insert("parameters".to_owned(), parameters.into());
    paths.insert(path.to_owned(), item.into());
}

fn operation(kind: &Kind, version: &Version, dialect: Dialect, action: &str) -> Value {
    const PATCHES: &[&str] = &["application/json-patch+json", "application/merge-patch+json", "application/strategic-merge-patch+json", "application/apply-patch+yaml"];
    let name = definition_name(kind, version);
    let parameters: Vec<Value> = match action {
        "post" | "put" | "patch" => {
            let mut names = vec![("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string")];
            if action == "patch" {
                names.push(("force", "boolean"));
            }
            names.iter().map(|(name, kind)| dialect.parameter(name, "query", kind)).collect()
        }
        "delete" | "deletecollection" => [("dryRun", "string"), ("gracePeriodSeconds", "integer"), ("propagationPolicy", "string")].iter().map(|(name, kind)| dialect.parameter(name, "query", kind)).collect(),
        "list" => [("labelSelector", "string"), ("fieldSelector", "string"), ("limit", "integer"), ("continue", "string"), ("resourceVersion", "string"), ("watch", "boolean")].iter().map(|(name, kind)| dialect.parameter(name, "query", kind)).collect(),
        _ => Vec::new(),
    };
    let mut operation = json!({"parameters": parameters, "x-kubernetes-action": action, "x-kubernetes-group-version-kind": gvk(kind, &version.name, &kind.kind)});
    match action {
        "post" | "put" => dialect.body(&mut operation, &name, &["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"]),
        "patch" => dialect.body(&mut operation, &format!("{META}.Patch"), PATCHES),
        _ => (),
    }
    dialect.answer(&mut operation, &if action == "list" { format!("{name}List") } else { name });
    operation
}
