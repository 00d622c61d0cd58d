//! The OpenAPI documents: v3, one a group and version, and v2 for the whole server. Rendered when first asked for, and again only when
//! the kinds in them are others: five hundred custom resources that come one by one do not render each other.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use bytes::Bytes;
use http::HeaderMap;
use serde_json::json;

use super::{Response, aggregation::Delegates, body, discovery};
use crate::{
    kinds::{Action, Kind, Registry, Verb, Version},
    meta::{Map, Result, Status, Value, object::api_version},
    schema::{
        self,
        openapi::{self, Dialect, add_type_meta, define, metadata},
    },
};

const V2: &str = "v2";
/// Other programs may render the same schemas otherwise.
const PROGRAM: &str = env!("CARGO_PKG_VERSION");
const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";

/// The documents. Those about built-in kinds alone are kept, those with custom resources rendered for who asks: there may be hundreds, and few ask for each.
#[derive(Default)]
pub struct Documents {
    /// Hash and text by path.
    kept: Mutex<HashMap<String, (String, Bytes)>>,
    /// The part of v2 that is always the same.
    builtin: OnceLock<Parts>,
}

/// Members of the objects `paths` and `definitions`, as JSON text.
#[derive(Default)]
struct Parts {
    paths: String,
    definitions: String,
}

impl Documents {
    /// Answers `/openapi/...`.
    pub fn serve(&self, registry: &Registry, delegates: &Delegates, path: &str, headers: &HeaderMap) -> Result<Response> {
        let path = path.trim_end_matches('/');
        if path == "/openapi/v3" {
            return Ok(body::tagged(self.index(registry, delegates).into(), body::JSON, headers));
        }
        let place = if path == "/openapi/v2" { V2 } else { path.strip_prefix("/openapi/v3/").filter(|it| *it != V2).unwrap_or_default() };
        let kinds = kinds(registry, place);
        if kinds.is_empty() {
            return Err(Status::no_route());
        }
        Ok(body::tagged_with(|| self.text(place, &kinds), &self.tag(place, &kinds), body::JSON, headers))
    }

    /// What changes with the document: the hash of its text, or of what its custom resources go back to.
    fn tag(&self, place: &str, kinds: &[&Arc<Kind>]) -> String {
        if !has_custom(kinds) {
            return self.kept(place, kinds).0;
        }
        let identity = kinds.iter().map(|it| it.custom.as_ref().map_or_else(|| it.resource(), |it| format!("{} {}", it.uid, it.generation)));
        let all: Vec<String> = [PROGRAM.to_owned()].into_iter().chain(identity).collect();
        discovery::hash(all.join("\n").as_bytes())
    }

    fn text(&self, place: &str, kinds: &[&Arc<Kind>]) -> Bytes {
        if has_custom(kinds) { self.render(place, kinds) } else { self.kept(place, kinds).1 }
    }

    fn kept(&self, place: &str, kinds: &[&Arc<Kind>]) -> (String, Bytes) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let made = || {
            let text = self.render(place, kinds);
            (discovery::hash(&text), text)
        };
        kept.entry(place.to_owned()).or_insert_with(made).clone()
    }

    fn render(&self, place: &str, kinds: &[&Arc<Kind>]) -> Bytes {
        match place.rsplit_once('/') {
            Some((_, version)) => v3(kinds, version).into(),
            None => self.v2(kinds).into(),
        }
    }

    fn v2(&self, kinds: &[&Arc<Kind>]) -> String {
        let (builtin, custom): (Vec<&Arc<Kind>>, Vec<&Arc<Kind>>) = kinds.iter().partition(|it| it.custom.is_none());
        let builtin = self.builtin.get_or_init(|| v2_parts(&builtin));
        // What custom resources refer to is among the built-in types.
        let custom: Vec<Parts> = custom.iter().map(|it| v2_parts(&[it])).collect();
        let join = |part: fn(&Parts) -> &String| std::iter::once(builtin).chain(&custom).map(|it| part(it).as_str()).collect::<Vec<_>>().join(",");
        format!(
            "{{\"swagger\":\"2.0\",\"info\":{},\"paths\":{{{}}},\"definitions\":{{{}}},\"securityDefinitions\":{},\"security\":[{{\"BearerToken\":[]}}]}}",
            info(),
            join(|it| &it.paths),
            join(|it| &it.definitions),
            json!({"BearerToken": {"description": "Bearer Token authentication", "type": "apiKey", "name": "authorization", "in": "header"}}),
        )
    }

    /// The documents there are; their addresses change with their content.
    fn index(&self, registry: &Registry, delegates: &Delegates) -> String {
        let served = |kind: &Arc<Kind>| kind.versions.iter().filter(|it| it.is_served).map(|it| place(&kind.group, &it.name)).collect::<Vec<_>>();
        let places: BTreeSet<String> = registry.iter().flat_map(served).collect();
        let mut paths: Map<String, Value> = places
            .into_iter()
            .map(|place| {
                let url = format!("/openapi/v3/{place}?hash={}", self.tag(&place, &kinds(registry, &place)));
                (place, json!({"serverRelativeURL": url}))
            })
            .collect();
        // Documents of other servers are asked for here and passed on.
        let others = delegates.values().filter_map(|it| Some((place(&it.group, &it.version), json!({"serverRelativeURL": it.told().openapi?}))));
        paths.extend(others);
        json!({"paths": paths}).to_string()
    }
}

/// The kinds of a document: all for v2, those served in one version of one group (`api/v1`, `apis/apps/v1`) for v3.
fn kinds<'a>(registry: &'a Registry, place: &str) -> Vec<&'a Arc<Kind>> {
    let (group, version) = match place.split('/').collect::<Vec<_>>().as_slice() {
        [V2] => return registry.iter().collect(),
        ["api", version] => ("", *version),
        ["apis", group, version] => (*group, *version),
        _ => return Vec::new(),
    };
    registry.iter().filter(|it| it.group == group && it.version(version).is_some_and(|it| it.is_served)).collect()
}

fn has_custom(kinds: &[&Arc<Kind>]) -> bool {
    kinds.iter().any(|it| it.custom.is_some())
}

fn info() -> Value {
    json!({"title": "Kubernetes", "version": super::http::GIT_VERSION})
}

fn place(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

/// The name of a kind's definition: the built-in type's, or the reversed group of a custom one.
fn definition_name(kind: &Kind, version: &Version) -> String {
    if kind.custom.is_none() {
        return version.schema.name.clone();
    }
    let group: Vec<&str> = kind.group.rsplit('.').collect();
    format!("{}.{}.{}", group.join("."), version.name, kind.kind)
}

fn gvk(kind: &Kind, version: &str, name: &str) -> Value {
    json!({"group": kind.group, "version": version, "kind": name})
}

/// The definitions of a kind and of its list.
fn define_kind(kind: &Kind, version: &Version, dialect: Dialect, into: &mut Map<String, Value>) {
    let name = definition_name(kind, version);
    match &kind.custom {
        None => define(&version.schema, &name, dialect, into),
        Some(custom) => _ = into.insert(name.clone(), openapi::custom(&custom.schema(&version.name).unwrap_or_default(), dialect)),
    }
    into[&name]["x-kubernetes-group-version-kind"] = json!([gvk(kind, &version.name, &kind.kind)]);
    let mut properties = Map::new();
    add_type_meta(&mut properties);
    let items = json!({"type": "array", "items": dialect.refer(&name), "description": format!("List of {}.", kind.plural)});
    properties.insert("items".to_owned(), items);
    properties.insert("metadata".to_owned(), metadata(&format!("{META}.ListMeta"), dialect));
    let mut list = json!({
        "type": "object", "required": ["items"], "properties": properties, "description": format!("{} is a list of {}", kind.list_kind, kind.kind),
        "x-kubernetes-group-version-kind": [gvk(kind, &version.name, &kind.list_kind)],
    });
    if kind.custom.is_some() && !version.selectable.is_empty() {
        let fields: Vec<Value> = version.selectable.iter().map(|it| json!({"fieldPath": it.name})).collect();
        into[&name]["x-kubernetes-selectable-fields"] = json!(fields);
        list["x-kubernetes-selectable-fields"] = json!(fields);
    }
    let list_name = match kind.custom {
        Some(_) => format!("{}{}", name.strip_suffix(kind.kind.as_ref()).unwrap_or(&name), kind.list_kind),
        None => format!("{name}List"),
    };
    into.insert(list_name, list);
}

fn define_common(dialect: Dialect, into: &mut Map<String, Value>) {
    for name in ["ListMeta", "ObjectMeta", "DeleteOptions", "Status", "WatchEvent"] {
        if let Some(schema) = schema::builtin(&format!("{META}.{name}")) {
            define(&schema, &schema.name, dialect, into);
        }
    }
    into.insert(format!("{META}.Patch"), json!({"type": "object"}));
}

fn v3(kinds: &[&Arc<Kind>], version: &str) -> String {
    let (mut schemas, mut paths) = (Map::new(), Map::new());
    define_common(Dialect::V3, &mut schemas);
    for (kind, version) in kinds.iter().filter_map(|it| Some((it, it.version(version)?))) {
        define_kind(kind, version, Dialect::V3, &mut schemas);
        add_paths(kind, version, Dialect::V3, &mut paths);
    }
    json!({"openapi": "3.0.0", "info": info(), "paths": paths, "components": {"schemas": schemas}}).to_string()
}

fn v2_parts(kinds: &[&Arc<Kind>]) -> Parts {
    let (mut definitions, mut paths) = (Map::new(), Map::new());
    if kinds.iter().any(|it| it.custom.is_none()) {
        define_common(Dialect::V2, &mut definitions);
    }
    for kind in kinds {
        for version in kind.versions.iter().filter(|it| it.is_served) {
            define_kind(kind, version, Dialect::V2, &mut definitions);
            add_paths(kind, version, Dialect::V2, &mut paths);
        }
    }
    let members = |map: Map<String, Value>| {
        let text = Value::Object(map).to_string();
        text[1..text.len() - 1].to_owned()
    };
    Parts { paths: members(paths), definitions: members(definitions) }
}

fn parameter(dialect: Dialect, name: &str, place: &str, kind: &str) -> Value {
    match dialect {
        Dialect::V2 => json!({"name": name, "in": place, "type": kind, "uniqueItems": true, "required": place == "path"}),
        Dialect::V3 => json!({"name": name, "in": place, "required": place == "path", "schema": {"type": kind, "uniqueItems": true}}),
    }
}

fn set_body(dialect: Dialect, operation: &mut Value, definition: &str, media_types: &[&str]) {
    match dialect {
        Dialect::V2 => {
            let parameter = json!({"name": "body", "in": "body", "required": true, "schema": dialect.refer(definition)});
            if let Some(list) = operation["parameters"].as_array_mut() {
                list.push(parameter);
            }
            operation["consumes"] = json!(media_types);
        }
        Dialect::V3 => {
            let content: Map<String, Value> = media_types.iter().map(|it| ((*it).to_owned(), json!({"schema": dialect.refer(definition)}))).collect();
            operation["requestBody"] = json!({"content": content, "required": true});
        }
    }
}

fn set_answer(dialect: Dialect, operation: &mut Value, definition: &str) {
    operation["responses"] = match dialect {
        Dialect::V2 => json!({"200": {"description": "OK", "schema": dialect.refer(definition)}, "401": {"description": "Unauthorized"}}),
        Dialect::V3 => json!({"200": {"description": "OK", "content": {"application/json": {"schema": dialect.refer(definition)}}}, "401": {"description": "Unauthorized"}}),
    };
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
    let parameters: Vec<Value> = names.into_iter().filter(|(is, _)| *is).map(|(_, name)| parameter(dialect, name, "path", "string")).collect();
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
            names.iter().map(|(name, kind)| parameter(dialect, name, "query", kind)).collect()
        }
        "delete" | "deletecollection" => [("dryRun", "string"), ("gracePeriodSeconds", "integer"), ("propagationPolicy", "string")].iter().map(|(name, kind)| parameter(dialect, name, "query", kind)).collect(),
        "list" => [("labelSelector", "string"), ("fieldSelector", "string"), ("limit", "integer"), ("continue", "string"), ("resourceVersion", "string"), ("watch", "boolean")].iter().map(|(name, kind)| parameter(dialect, name, "query", kind)).collect(),
        _ => Vec::new(),
    };
    let mut operation = json!({"parameters": parameters, "x-kubernetes-action": action, "x-kubernetes-group-version-kind": gvk(kind, &version.name, &kind.kind)});
    match action {
        "post" | "put" => set_body(dialect, &mut operation, &name, &["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"]),
        "patch" => set_body(dialect, &mut operation, &format!("{META}.Patch"), PATCHES),
        _ => (),
    }
    set_answer(dialect, &mut operation, &if action == "list" { format!("{name}List") } else { name });
    operation
}
