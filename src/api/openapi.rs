//! The OpenAPI documents: v3, one a group and version, and v2 for the whole server. Rendered when first asked for, and again only when
//! the kinds in them are others: five hundred custom resources that come one by one do not render each other.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use bytes::Bytes;
use http::HeaderMap;
use serde_json::json;

use super::{
    Response,
    aggregation::Delegates,
    body, discovery,
    forms::parse,
    paths::{self, META},
    routes::{self, Route},
};
use crate::{
    kinds::{Kind, Registry, Version},
    meta::{Map, Result, Status, Value},
    schema::{
        self,
        openapi::{self, Dialect, define},
        protobuf::gnostic,
    },
};

const V2: &str = "v2";
/// Other programs may render the same schemas otherwise.
const PROGRAM: &str = env!("CARGO_PKG_VERSION");

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
        let told = Told::at(registry, place);
        if told.kinds.is_empty() && told.routes.is_empty() {
            return Err(Status::no_route());
        }
        let tag = self.tag(place, &told);
        if place == V2 && wants_protobuf(headers) {
            let text = || gnostic::document(&parse(&self.text(place, &told))).into();
            return Ok(body::tagged_with(text, &format!("{tag}P"), PROTOBUF, headers));
        }
        Ok(body::tagged_with(|| self.text(place, &told), &tag, body::JSON, headers))
    }

    /// What changes with the document: the hash of its text, or of what its custom resources go back to.
    fn tag(&self, place: &str, told: &Told<'_>) -> String {
        if !told.has_custom() {
            return self.kept(place, told).0;
        }
        let identity = told.kinds.iter().map(|it| it.custom.as_ref().map_or_else(|| it.resource(), |it| format!("{} {}", it.uid, it.generation)));
        let all: Vec<String> = [PROGRAM.to_owned()].into_iter().chain(identity).collect();
        discovery::hash(all.join("\n").as_bytes())
    }

    fn text(&self, place: &str, told: &Told<'_>) -> Bytes {
        if told.has_custom() { self.render(place, told) } else { self.kept(place, told).1 }
    }

    fn kept(&self, place: &str, told: &Told<'_>) -> (String, Bytes) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let made = || {
            let text = self.render(place, told);
            (discovery::hash(&text), text)
        };
        kept.entry(place.to_owned()).or_insert_with(made).clone()
    }

    fn render(&self, place: &str, told: &Told<'_>) -> Bytes {
        match place {
            V2 => self.v2(told).into(),
            _ => v3(told, place.rsplit('/').next().unwrap_or_default()).into(),
        }
    }

    fn v2(&self, told: &Told<'_>) -> String {
        let (builtin, custom): (Vec<&Arc<Kind>>, Vec<&Arc<Kind>>) = told.kinds.iter().partition(|it| it.custom.is_none());
        let builtin = self.builtin.get_or_init(|| v2_parts(&builtin, &told.routes));
        // What custom resources refer to is among the built-in types.
        let custom: Vec<Parts> = custom.iter().map(|it| v2_parts(&[it], &[])).collect();
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
        let served = |kind: &Arc<Kind>| kind.versions.iter().filter(|it| it.is_served).map(|it| paths::root(&kind.group, &it.name)).collect::<Vec<_>>();
        let places: BTreeSet<String> = registry.iter().flat_map(served).chain(routes::all(registry).into_iter().map(|it| it.place)).collect();
        let mut paths: Map<String, Value> = places
            .into_iter()
            .map(|place| {
                let url = format!("/openapi/v3/{place}?hash={}", self.tag(&place, &Told::at(registry, &place)));
                (place, json!({"serverRelativeURL": url}))
            })
            .collect();
        // Documents of other servers are asked for here and passed on.
        let others = delegates.values().filter_map(|it| Some((paths::root(&it.group, &it.version), json!({"serverRelativeURL": it.told().openapi.clone()?}))));
        paths.extend(others);
        json!({"paths": paths}).to_string()
    }
}

/// What Go's discovery client reads v2 in, and its older name, which is no media type and is not answered.
const PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
const OLD_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";

fn wants_protobuf(headers: &HeaderMap) -> bool {
    let accept = headers.get(http::header::ACCEPT).and_then(|it| it.to_str().ok()).unwrap_or_default();
    accept.split([',', ';']).any(|it| matches!(it.trim(), PROTOBUF | OLD_PROTOBUF))
}

/// What a document tells.
struct Told<'a> {
    kinds: Vec<&'a Arc<Kind>>,
    routes: Vec<Route>,
}

impl<'a> Told<'a> {
    fn at(registry: &'a Registry, place: &str) -> Self {
        let routes = routes::all(registry).into_iter().filter(|it| place == V2 || it.place == place);
        Self { kinds: kinds(registry, place), routes: routes.collect() }
    }

    fn has_custom(&self) -> bool {
        self.kinds.iter().any(|it| it.custom.is_some())
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

fn info() -> Value {
    json!({"title": "Kubernetes", "version": super::http::GIT_VERSION})
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
    let items = json!({"type": "array", "items": dialect.refer(&name), "description": format!("List of {}.", kind.plural)});
    let mut list = json!({
        "type": "object", "required": ["items"], "properties": {"items": items}, "description": format!("{} is a list of {}", kind.list_kind, kind.kind),
        "x-kubernetes-group-version-kind": [gvk(kind, &version.name, &kind.list_kind)],
    });
    openapi::add_meta(&mut list, &format!("{META}.ListMeta"), dialect);
    if kind.custom.is_some() && !version.selectable.is_empty() {
        let fields: Vec<Value> = version.selectable.iter().map(|it| json!({"fieldPath": it.name})).collect();
        into[&name]["x-kubernetes-selectable-fields"] = json!(fields);
        list["x-kubernetes-selectable-fields"] = json!(fields);
    }
    into.insert(paths::list_name(kind, &name), list);
    paths::bodies(kind).for_each(|it| define(&it, &it.name, dialect, into));
}

fn define_common(dialect: Dialect, into: &mut Map<String, Value>) {
    for name in ["ListMeta", "ObjectMeta", "DeleteOptions", "Status"] {
        if let Some(schema) = schema::builtin(&format!("{META}.{name}")) {
            define(&schema, &schema.name, dialect, into);
        }
    }
    into.insert(format!("{META}.Patch"), json!({"type": "object"}));
    let properties = json!({"object": {"type": "object"}, "type": {"type": "string", "default": ""}});
    into.insert(format!("{META}.WatchEvent"), json!({"type": "object", "required": ["type", "object"], "properties": properties}));
}

fn v3(told: &Told<'_>, version: &str) -> String {
    let (mut schemas, mut paths) = (Map::new(), Map::new());
    if !told.kinds.is_empty() {
        define_common(Dialect::V3, &mut schemas);
    }
    told.routes.iter().for_each(|it| it.add(Dialect::V3, &mut paths, &mut schemas));
    for (kind, version) in told.kinds.iter().filter_map(|it| Some((it, it.version(version)?))) {
        define_kind(kind, version, Dialect::V3, &mut schemas);
        add_paths(kind, version, Dialect::V3, &mut paths);
    }
    json!({"openapi": "3.0.0", "info": info(), "paths": paths, "components": {"schemas": schemas}}).to_string()
}

fn v2_parts(kinds: &[&Arc<Kind>], routes: &[Route]) -> Parts {
    let (mut definitions, mut paths) = (Map::new(), Map::new());
    routes.iter().for_each(|it| it.add(Dialect::V2, &mut paths, &mut definitions));
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

fn add_paths(kind: &Kind, version: &Version, dialect: Dialect, into: &mut Map<String, Value>) {
    paths::Paths { kind, version, definition: &definition_name(kind, version), dialect, into }.add();
}
