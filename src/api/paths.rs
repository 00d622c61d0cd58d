//! The `paths` of OpenAPI documents: what can be asked of a kind, by which method, with which parameters and body. Names, ids and parameters are
//! upstream's, so that clients which are generated from the documents have the same functions. Source: apiserver `pkg/endpoints/installer.go`.

use http::Method;
use serde_json::json;

use crate::{
    kinds::{Action, Kind, Subresource, Verb, Version},
    meta::{Map, Meta, Value},
    schema::{self, openapi::Dialect},
};

pub const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
const MEDIA_TYPES: [&str; 3] = ["application/json", "application/vnd.kubernetes.protobuf", "application/yaml"];
const PATCHES: [&str; 4] = ["application/json-patch+json", "application/merge-patch+json", "application/strategic-merge-patch+json", "application/apply-patch+yaml"];

/// Parameters in the query, by name; those named in [`BOOLEANS`] and [`INTEGERS`] are no texts.
type Names = &'static [&'static str];
const BOOLEANS: Names = &["allowWatchBookmarks", "follow", "force", "ignoreStoreReadErrorWithClusterBreakingPotential", "insecureSkipTLSVerifyBackend", "orphanDependents", "previous", "sendInitialEvents",
    "stderr", "stdin", "stdout", "timestamps", "tty", "watch"];
const INTEGERS: Names = &["gracePeriodSeconds", "limit", "limitBytes", "ports", "sinceSeconds", "tailLines", "timeoutSeconds"];
const SELECTION: Names = &["continue", "fieldSelector", "labelSelector", "limit", "resourceVersion", "resourceVersionMatch", "sendInitialEvents", "timeoutSeconds"];
const WATCHING: Names = &["allowWatchBookmarks", "watch"];
const WRITING: Names = &["dryRun", "fieldManager", "fieldValidation"];
const DELETION: Names = &["dryRun", "gracePeriodSeconds", "ignoreStoreReadErrorWithClusterBreakingPotential", "orphanDependents", "propagationPolicy"];
const STREAMS: Names = &["container", "stderr", "stdin", "stdout", "tty"];
const LOG: Names = &["container", "follow", "insecureSkipTLSVerifyBackend", "limitBytes", "previous", "sinceSeconds", "stream", "tailLines", "timestamps"];

/// A method of a path: `action` is upstream's `x-kubernetes-action`, `verb` begins its id.
struct Operation {
    method: Method,
    action: &'static str,
    verb: &'static str,
    codes: &'static [u16],
    names: Vec<Names>,
    takes: Takes,
}

/// The body of a request.
#[derive(Clone, Copy, PartialEq)]
enum Takes {
    Nothing,
    Object,
    Patch,
    Options,
}

impl Operation {
    fn new(action: &'static str) -> Self {
        let (method, verb, codes, names, takes): (_, _, &[u16], Vec<Names>, _) = match action {
            "list" => (Method::GET, "list", &[200], vec![SELECTION, WATCHING], Takes::Nothing),
            "watch" | "watchlist" => (Method::GET, "watch", &[200], vec![SELECTION, WATCHING], Takes::Nothing),
            "post" => (Method::POST, "create", &[200, 201, 202], vec![WRITING], Takes::Object),
            "deletecollection" => (Method::DELETE, "delete", &[200], vec![SELECTION, DELETION], Takes::Options),
            "put" => (Method::PUT, "replace", &[200, 201], vec![WRITING], Takes::Object),
            "patch" => (Method::PATCH, "patch", &[200, 201], vec![WRITING, &["force"]], Takes::Patch),
            "delete" => (Method::DELETE, "delete", &[200, 202], vec![DELETION], Takes::Options),
            _ => (Method::GET, "read", &[200], vec![], Takes::Nothing),
        };
        Self { method, action, verb, codes, names, takes }
    }

    /// A request that goes through to a node, a pod or a Service.
    fn connect(method: Method, names: Vec<Names>) -> Self {
        Self { method, action: "connect", verb: "connect", codes: &[200], names, takes: Takes::Nothing }
    }
}

fn title(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|it| it.to_ascii_uppercase().to_string() + letters.as_str()).unwrap_or_default()
}

/// Where the paths of a version begin.
pub fn root(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

/// `AppsV1`, as ids have it, and `apps_v1`, as tags.
pub fn group_version(group: &str, version: &str) -> (String, String) {
    let group = if group.is_empty() { "core" } else { group.strip_suffix(".k8s.io").unwrap_or(group) };
    let id: String = group.split('.').map(title).collect();
    (id + &title(version), format!("{}_{version}", group.split('.').enumerate().map(|(at, it)| if at == 0 { it.to_owned() } else { title(it) }).collect::<String>()))
}

/// An answer with its code's name: of a schema in v2, of a schema for each media type in v3.
pub fn answer(dialect: Dialect, said: &str, media_types: &[&str], schema: &Value) -> Value {
    match dialect {
        Dialect::V2 => json!({"description": said, "schema": schema}),
        Dialect::V3 => json!({"description": said, "content": content(media_types, schema)}),
    }
}

fn content(media_types: &[&str], schema: &Value) -> Value {
    media_types.iter().map(|it| ((*it).to_owned(), json!({"schema": schema}))).collect::<Map<_, _>>().into()
}

/// Adds the paths of one version of a kind, whose definition has this name.
pub struct Paths<'a> {
    pub kind: &'a Kind,
    pub version: &'a Version,
    pub definition: &'a str,
    pub dialect: Dialect,
    pub into: &'a mut Map<String, Value>,
}

/// Where a path is and what its ids end with.
#[derive(Clone, Copy)]
struct Place<'p> {
    /// Below the version.
    path: &'p str,
    /// The subresource with a capital, `ForAllNamespaces`, or nothing.
    suffix: &'p str,
    part: Option<&'p Subresource>,
}

impl Paths<'_> {
    pub fn add(mut self) {
        let (kind, plural) = (self.kind, self.kind.plural.clone());
        let own = if kind.is_namespaced() { format!("namespaces/{{namespace}}/{plural}") } else { plural.to_string() };
        let accepted = |all: &[(Verb, &'static str)]| all.iter().filter(|it| kind.accepts(it.0)).map(|it| Operation::new(it.1)).collect::<Vec<_>>();
        let definition = self.definition.to_owned();
        let collection = accepted(&[(Verb::List, "list"), (Verb::Create, "post"), (Verb::DeleteCollection, "deletecollection")]);
        let item = accepted(&[(Verb::Get, "get"), (Verb::Update, "put"), (Verb::Patch, "patch"), (Verb::Delete, "delete")]);
        let (named, lists, watches) = (format!("{own}/{{name}}"), kind.accepts(Verb::List), kind.accepts(Verb::Watch));
        self.path(Place { path: &own, suffix: "", part: None }, collection, &definition);
        self.path(Place { path: &named, suffix: "", part: None }, item, &definition);
        if lists && kind.is_namespaced() {
            self.path(Place { path: &plural, suffix: "ForAllNamespaces", part: None }, vec![Operation::new("list")], &definition);
        }
        if watches && kind.custom.is_none() {
            self.path(Place { path: &format!("watch/{own}"), suffix: "List", part: None }, vec![Operation::new("watchlist")], &definition);
            self.path(Place { path: &format!("watch/{named}"), suffix: "", part: None }, vec![Operation::new("watch")], &definition);
            if kind.is_namespaced() {
                self.path(Place { path: &format!("watch/{plural}"), suffix: "ListForAllNamespaces", part: None }, vec![Operation::new("watchlist")], &definition);
            }
        }
        kind.subresources.iter().for_each(|it| self.subresource(&named, it));
    }

    fn subresource(&mut self, named: &str, part: &Subresource) {
        let (path, suffix) = (format!("{named}/{}", part.name), title(part.name));
        let place = Place { path: &path, suffix: &suffix, part: Some(part) };
        let connect = |methods: &[&str], names: &[Names]| methods.iter().filter_map(|it| Some(Operation::connect(it.parse().ok()?, names.to_vec()))).collect::<Vec<_>>();
        let operations = match part.action {
            Action::Exec => connect(&["GET", "POST"], &[&["command"], STREAMS]),
            Action::Attach => connect(&["GET", "POST"], &[STREAMS]),
            Action::PortForward => connect(&["GET", "POST"], &[&["ports"]]),
            Action::Log => vec![Operation { names: vec![LOG], ..Operation::new("get") }],
            Action::Proxy => {
                const METHODS: [&str; 7] = ["GET", "PUT", "POST", "DELETE", "OPTIONS", "HEAD", "PATCH"];
                let (below, suffix) = (format!("{path}/{{path}}"), format!("{suffix}WithPath"));
                self.path(Place { path: &below, suffix: &suffix, part: Some(part) }, connect(&METHODS, &[&["path"]]), "");
                connect(&METHODS, &[&["path"]])
            }
            _ => {
                let verbs = [("get", "get"), ("create", "post"), ("update", "put"), ("patch", "patch")];
                verbs.iter().filter(|it| part.verbs.contains(&it.0)).map(|it| Operation::new(it.1)).collect()
            }
        };
        let definition = match part.action {
            Action::Binding | Action::Eviction | Action::Token | Action::Scale { .. } => part.body.definition(),
            Action::Status | Action::Part => self.definition.to_owned(),
            _ => String::new(),
        };
        self.path(place, operations, &definition);
    }

    fn path(&mut self, place: Place<'_>, operations: Vec<Operation>, definition: &str) {
        if operations.is_empty() {
            return;
        }
        let root = root(&self.kind.group, &self.version.name);
        let rendered = operations.iter().map(|it| (it.method.as_str().to_lowercase(), self.operation(it, place, definition)));
        let mut item: Map<String, Value> = rendered.collect();
        let names = ["name", "namespace", "path"].into_iter().filter(|it| place.path.contains(&format!("{{{it}}}")));
        let mut parameters: Vec<Value> = names.map(|it| self.parameter(it, "path")).collect();
        if operations.iter().all(|it| it.action != "connect") {
            parameters.push(self.parameter("pretty", "query"));
        }
        item.insert("parameters".to_owned(), parameters.into());
        self.into.insert(format!("/{root}/{}", place.path), item.into());
    }

    fn parameter(&self, name: &str, place: &str) -> Value {
        let kind = if BOOLEANS.contains(&name) { "boolean" } else if INTEGERS.contains(&name) { "integer" } else { "string" };
        let mut parameter = match self.dialect {
            Dialect::V2 => json!({"name": name, "in": place, "type": kind, "uniqueItems": true}),
            Dialect::V3 => json!({"name": name, "in": place, "schema": {"type": kind, "uniqueItems": true}}),
        };
        if place == "path" {
            parameter["required"] = true.into();
        }
        parameter
    }

    fn operation(&self, it: &Operation, place: Place<'_>, definition: &str) -> Value {
        let mut names: Vec<&str> = it.names.iter().flat_map(|it| it.iter().copied()).collect();
        names.sort_unstable();
        let parameters: Vec<Value> = names.into_iter().map(|it| self.parameter(it, "query")).collect();
        let (id, tag) = group_version(&self.kind.group, &self.version.name);
        let collection = if it.action == "deletecollection" { "Collection" } else { "" };
        let namespaced = if place.path.contains("{namespace}") { "Namespaced" } else { "" };
        let method = if it.action == "connect" { title(&it.method.as_str().to_lowercase()) } else { String::new() };
        let id = format!("{}{id}{method}{collection}{namespaced}{}{}", it.verb, self.kind.kind, place.suffix);
        let mut operation = json!({"operationId": id, "tags": [tag], "parameters": parameters, "x-kubernetes-action": it.action, "x-kubernetes-group-version-kind": self.gvk(place, definition)});
        self.set_body(&mut operation, it.takes, definition);
        if operation.items_at(&["parameters"]).is_empty() {
            operation.remove_at(&["parameters"]);
        }
        self.set_answers(&mut operation, it, definition);
        operation
    }

    /// What the body is of: another kind where a subresource has one.
    fn gvk(&self, place: Place<'_>, definition: &str) -> Value {
        let body = place.part.map(|it| it.body).filter(|it| !it.kind.is_empty() && definition != self.definition);
        match body {
            Some(it) => json!({"group": it.group, "version": if it.version.is_empty() { &self.version.name } else { it.version }, "kind": it.kind}),
            None => json!({"group": self.kind.group, "version": self.version.name, "kind": self.kind.kind}),
        }
    }

    /// Custom resources have neither protobuf nor strategic merges.
    fn spoken(&self, all: &[&'static str]) -> Vec<&'static str> {
        all.iter().copied().filter(|it| self.kind.custom.is_none() || !it.contains("protobuf") && !it.contains("strategic")).collect()
    }

    fn set_body(&self, operation: &mut Value, takes: Takes, definition: &str) {
        let (name, media_types) = match takes {
            Takes::Nothing => return,
            Takes::Object => (definition.to_owned(), self.spoken(&MEDIA_TYPES)),
            Takes::Patch => (format!("{META}.Patch"), self.spoken(&PATCHES)),
            Takes::Options => (format!("{META}.DeleteOptions"), self.spoken(&MEDIA_TYPES)),
        };
        let is_required = takes != Takes::Options;
        match self.dialect {
            Dialect::V2 => {
                let mut body = json!({"name": "body", "in": "body", "schema": self.dialect.refer(&name)});
                if is_required {
                    body["required"] = true.into();
                }
                operation["parameters"].as_array_mut().into_iter().for_each(|it| it.insert(0, body.clone()));
                operation["consumes"] = json!(media_types);
            }
            Dialect::V3 => {
                operation["requestBody"] = json!({"content": content(&media_types, &self.dialect.refer(&name))});
                if is_required {
                    operation["requestBody"]["required"] = true.into();
                }
            }
        }
    }

    fn set_answers(&self, operation: &mut Value, it: &Operation, definition: &str) {
        let schema = match it.action {
            action if action == "connect" || definition.is_empty() => json!({"type": "string"}),
            "list" => self.dialect.refer(&list_name(self.kind, definition)),
            "watch" | "watchlist" => self.dialect.refer(&format!("{META}.WatchEvent")),
            "delete" if self.kind.returns_deleted => self.dialect.refer(definition),
            "delete" | "deletecollection" => self.dialect.refer(&format!("{META}.Status")),
            _ => self.dialect.refer(definition),
        };
        let said = |code: u16| match code {
            201 => "Created",
            202 => "Accepted",
            _ => "OK",
        };
        let media_types = if it.action == "connect" && self.dialect == Dialect::V3 { vec!["*/*"] } else { self.spoken(&MEDIA_TYPES) };
        let mut all: Map<String, Value> = it.codes.iter().map(|code| (code.to_string(), answer(self.dialect, said(*code), &media_types, &schema))).collect();
        all.insert("401".to_owned(), json!({"description": "Unauthorized"}));
        operation["responses"] = all.into();
        if self.dialect == Dialect::V2 {
            operation["produces"] = json!(media_types);
        }
    }
}

/// The name of the definition of a kind's list.
pub fn list_name(kind: &Kind, definition: &str) -> String {
    match kind.custom {
        Some(_) => format!("{}{}", definition.strip_suffix(kind.kind.as_ref()).unwrap_or(definition), kind.list_kind),
        None => format!("{definition}List"),
    }
}

/// The definitions of other groups that a kind's subresources refer to.
pub fn bodies(kind: &Kind) -> impl Iterator<Item = schema::SchemaRef> + '_ {
    let others = kind.subresources.iter().filter(|it| matches!(it.action, Action::Binding | Action::Eviction | Action::Token | Action::Scale { .. }));
    others.filter_map(|it| schema::builtin(&it.body.definition()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_named_as_upstreams() {
        let registry = crate::kinds::table::registry();
        let ids = |group: &str, kind: &str| {
            let (kind, mut paths) = (registry.by_kind(group, kind).unwrap(), Map::new());
            Paths { kind, version: &kind.versions[0], definition: &kind.versions[0].schema.name, dialect: Dialect::V3, into: &mut paths }.add();
            let ids = |item: &Value| item.as_object().unwrap().values().filter_map(|it| it["operationId"].as_str().map(str::to_owned)).collect::<Vec<_>>();
            paths.iter().map(|(path, item)| format!("{path} {}", ids(item).join(" "))).collect::<std::collections::BTreeSet<_>>()
        };
        let expected = [
            ("rbac.authorization.k8s.io", "ClusterRole", "/apis/rbac.authorization.k8s.io/v1/clusterroles deleteRbacAuthorizationV1CollectionClusterRole listRbacAuthorizationV1ClusterRole createRbacAuthorizationV1ClusterRole"),
            ("rbac.authorization.k8s.io", "ClusterRole", "/apis/rbac.authorization.k8s.io/v1/watch/clusterroles/{name} watchRbacAuthorizationV1ClusterRole"),
            ("apps", "Deployment", "/apis/apps/v1/namespaces/{namespace}/deployments/{name}/scale readAppsV1NamespacedDeploymentScale patchAppsV1NamespacedDeploymentScale replaceAppsV1NamespacedDeploymentScale"),
            ("apps", "Deployment", "/apis/apps/v1/deployments listAppsV1DeploymentForAllNamespaces"),
            ("", "Pod", "/api/v1/namespaces/{namespace}/pods/{name}/exec connectCoreV1GetNamespacedPodExec connectCoreV1PostNamespacedPodExec"),
            ("", "Pod", "/api/v1/namespaces/{namespace}/pods/{name}/eviction createCoreV1NamespacedPodEviction"),
            ("", "Binding", "/api/v1/namespaces/{namespace}/bindings createCoreV1NamespacedBinding"),
        ];
        for (group, kind, line) in expected {
            let found = ids(group, kind);
            assert!(found.contains(line), "{line}\n{found:#?}");
        }
    }
}
