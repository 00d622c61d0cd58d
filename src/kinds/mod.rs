//! The kinds: a row each. Everything that differs between kinds is data here; routes, discovery, tables, OpenAPI and storage
//! keys are computed from the row. A custom resource yields the same row at run time (`crd.rs`).
//!
//! Read `table.txt` first. A kind with behaviour of its own has a file for it, reached through its [`Strategy`].

pub mod check;
pub mod columns;
pub mod crd;
pub mod event;
mod expr;
pub mod expressions;
pub mod jsonpath;
pub mod metadata;
pub mod namespace;
pub mod networking;
pub mod node;
pub mod pipeline;
pub mod pod;
pub mod podsecurity;
pub mod policy;
pub mod quota;
pub mod registry;
pub mod rules;
pub mod secret;
pub mod service;
pub mod storage;
pub mod strategy;
pub mod table;
pub mod workloads;

pub use expr::Expr;
pub use registry::Registry;
pub use strategy::{Change, Strategy};

use std::sync::Arc;

use crate::{
    meta::{
        FieldErrors, Json, Status, Value,
        object::{GroupResource, Str},
    },
    schema::{SchemaRef, structural},
};

/// One row: one set of objects in the store, served in one or several versions.
#[derive(Clone, Debug)]
pub struct Kind {
    pub group: Str,
    pub kind: Str,
    pub list_kind: Str,
    /// The resource in a path: `deployments`.
    pub plural: Str,
    pub singular: Str,
    pub short_names: Vec<Str>,
    pub categories: Vec<Str>,
    pub scope: Scope,
    /// What discovery lists and the API accepts.
    pub verbs: &'static [Verb],
    /// In order of preference; the first is the preferred one.
    pub versions: Vec<Version>,
    /// The version in which objects are stored: a place in `versions`.
    pub stored: usize,
    pub subresources: Vec<Subresource>,
    pub strategy: Strategy,
    /// The answer to a deletion is the object, not a Status.
    pub returns_deleted: bool,
    /// Objects under another kind's key: `events.k8s.io/events` are stored as `events`. Otherwise the key is the row's own.
    pub storage: Option<&'static str>,
    /// Set for a custom resource: the CRD it comes from.
    pub custom: Option<Arc<Custom>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Cluster,
    Namespaced,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verb {
    Create,
    Delete,
    DeleteCollection,
    Get,
    List,
    Patch,
    Update,
    Watch,
}

impl Verb {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Delete => "delete",
            Self::DeleteCollection => "deletecollection",
            Self::Get => "get",
            Self::List => "list",
            Self::Patch => "patch",
            Self::Update => "update",
            Self::Watch => "watch",
        }
    }
}

/// All verbs, in the order in which discovery lists them.
pub const ALL_VERBS: &[Verb] = &[Verb::Create, Verb::Delete, Verb::DeleteCollection, Verb::Get, Verb::List, Verb::Patch, Verb::Update, Verb::Watch];
/// Kinds that exist only as the answer to a question: reviews, bindings.
pub const CREATE_ONLY: &[Verb] = &[Verb::Create];
/// What is found out when somebody asks: the statuses of components.
pub const READ_ONLY: &[Verb] = &[Verb::Get, Verb::List];

#[derive(Clone, Debug)]
pub struct Version {
    pub name: Str,
    pub schema: SchemaRef,
    pub is_served: bool,
    pub columns: Vec<Column>,
    /// Fields beside `metadata.name` and `metadata.namespace` that a field selector may name.
    pub selectable: Vec<Selectable>,
    pub convert: Convert,
    /// Told to clients in a `Warning` header.
    pub deprecation: Option<Str>,
    /// What stored bytes are in: another number for each version of a CRD at each of its generations; 0 for built-in kinds.
    pub generation: u64,
}

/// How an object in the stored version becomes one of this version, and back.
#[derive(Clone, Debug)]
pub enum Convert {
    /// Only `apiVersion` differs.
    Same,
    Fn {
        from_stored: fn(&mut Value),
        to_stored: fn(&mut Value),
    },
    /// A server of the user's converts between any two versions.
    Webhook(Arc<Webhook>),
}

/// `spec.conversion.webhook` of a custom resource definition.
#[derive(Debug)]
pub struct Webhook {
    pub client_config: Value,
    /// The versions of `ConversionReview` that it understands.
    pub review_versions: Vec<String>,
}

/// A column of `kubectl get`.
#[derive(Clone, Debug)]
pub struct Column {
    pub name: Str,
    /// `string`, `integer`, `number`, `boolean` or `date`, as OpenAPI has it.
    pub data_type: Str,
    pub format: Str,
    pub description: Str,
    /// 0 is always shown, above only with `-o wide`.
    pub priority: i32,
    pub cell: Cell,
    /// The word for what is absent or empty.
    pub or: Str,
}

/// Where a column's value comes from. Of several paths the first counts that leads to something.
#[derive(Clone, Debug)]
pub enum Cell {
    Name,
    Path(Vec<FieldPath>),
    /// `<age>` of a timestamp.
    Age(Vec<FieldPath>),
    /// How many elements a list has.
    Count(FieldPath),
    /// A LabelSelector as kubectl writes it.
    Selector(FieldPath),
    Expr(Arc<Expr>),
    /// The first few of a list.
    Some(Arc<Expr>),
    /// Functions get the object and the time now.
    Fn(fn(&Value, jiff::Timestamp) -> Value),
    /// A custom resource's JSONPath, as the CRD wrote it.
    JsonPath(Str),
}

/// `spec.nodeName`, with dots or not before it.
#[derive(Clone, Debug)]
pub struct FieldPath(Vec<Str>);

impl FieldPath {
    pub fn new(path: &str) -> Self {
        Self(path.split('.').filter(|it| !it.is_empty()).map(|it| it.to_owned().into()).collect())
    }

    pub fn of<'a>(&self, object: &'a Value) -> Option<&'a Value> {
        self.0.iter().try_fold(object, |value, field| value.get(field.as_ref())).filter(|it| !it.is_null())
    }
}

/// A field that a field selector may name, and the text that stands there: at the first of the paths that has one.
#[derive(Clone, Debug)]
pub struct Selectable {
    pub name: Str,
    pub paths: Vec<FieldPath>,
    pub or: Str,
}

#[derive(Clone, Debug)]
pub struct Subresource {
    pub name: &'static str,
    pub action: Action,
    /// Group, version and kind of the body that discovery names.
    pub body: Body,
    /// In discovery's words: `["get", "patch", "update"]`.
    pub verbs: Vec<&'static str>,
}

/// Empty parts are the kind's own.
#[derive(Clone, Copy, Debug)]
pub struct Body {
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
}

impl Body {
    /// The name of the built-in type.
    pub fn definition(&self) -> String {
        definition(self.group, if self.version.is_empty() { "v1" } else { self.version }, self.kind)
    }
}

/// The name of a type of Kubernetes' own API groups, as OpenAPI has it.
pub fn definition(group: &str, version: &str, kind: &str) -> String {
    let package = if group.is_empty() { "core" } else { group.split('.').next().unwrap_or_default() };
    format!("io.k8s.api.{package}.{version}.{kind}")
}

/// What a subresource does; the API floor has one function for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Status,
    /// Paths of replicas in spec, in status, and of the label selector in status (a text, or a LabelSelector at a spec path).
    Scale {
        spec: Vec<Str>,
        status: Vec<Str>,
        selector: Vec<Str>,
    },
    /// Another part of the object that is written apart: `ephemeralcontainers`, `resize`, `approval`, `finalize`.
    Part,
    Binding,
    Eviction,
    Token,
    Log,
    Exec,
    Attach,
    PortForward,
    Proxy,
}

/// Where a custom resource comes from.
#[derive(Debug)]
pub struct Custom {
    pub crd: String,
    pub uid: String,
    pub generation: i64,
    /// The definition as it is stored. What is made of its schemas, for objects or for OpenAPI, is made when someone asks.
    pub definition: Json,
}

impl Custom {
    /// The `openAPIV3Schema` of a version.
    pub fn schema(&self, version: &str) -> Option<Value> {
        let mut definition: Value = serde_json::from_slice(&self.definition.text()).ok()?;
        let is_open = definition["spec"]["preserveUnknownFields"] == true;
        let versions = definition["spec"]["versions"].as_array_mut()?;
        let version = versions.iter_mut().find(|it| it["name"] == version)?;
        let mut schema = version.get_mut("schema")?.get_mut("openAPIV3Schema")?.take();
        if is_open && schema.is_object() {
            schema[structural::OPEN] = true.into();
        }
        Some(schema)
    }
}

impl Kind {
    pub fn group_resource(&self) -> GroupResource {
        GroupResource { group: self.group.clone(), resource: self.plural.clone() }
    }

    /// What is said of an object of this kind that is not valid.
    pub fn invalid(&self, name: &str, errors: FieldErrors) -> Status {
        Status::invalid(&self.group, &self.kind, name, errors)
    }

    /// The key of the kind's objects in the store: `pods`, `apps/deployments`.
    pub fn resource(&self) -> String {
        match self.storage {
            Some(storage) => storage.to_owned(),
            None if self.group.is_empty() => self.plural.to_string(),
            None => format!("{}/{}", self.group, self.plural),
        }
    }

    pub fn is_namespaced(&self) -> bool {
        self.scope == Scope::Namespaced
    }

    pub fn version(&self, name: &str) -> Option<&Version> {
        self.versions.iter().find(|it| it.name == name)
    }

    pub fn stored_version(&self) -> &Version {
        &self.versions[self.stored]
    }

    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|it| it.name == name)
    }

    pub fn has_status(&self) -> bool {
        self.subresources.iter().any(|it| it.action == Action::Status)
    }

    pub fn accepts(&self, verb: Verb) -> bool {
        self.verbs.contains(&verb)
    }
}

impl Selectable {
    /// The text of this field in `object`; "" where it is absent.
    pub fn text(&self, object: &Value) -> String {
        let texts = self.paths.iter().filter_map(|path| match path.of(object)? {
            Value::String(text) => Some(text.clone()).filter(|it| !it.is_empty()),
            value @ (Value::Bool(_) | Value::Number(_)) => Some(value.to_string()),
            _ => None,
        });
        texts.into_iter().next().unwrap_or_else(|| self.or.to_string())
    }
}
