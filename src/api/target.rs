//! The resource that a request is about, found in the registry.

use std::sync::Arc;

use super::{forms::View, identity::Attributes};
use crate::{
    kinds::{Kind, Registry, Subresource, Version},
    meta::{
        Meta, Result, Status, Value,
        object::{GroupResource, api_version},
    },
    schema::{self, SchemaRef},
    store::{Key, Stored},
};

/// A kind at one version, and the place in it.
#[derive(Clone)]
pub struct Target {
    pub kind: Arc<Kind>,
    version: usize,
    pub namespace: String,
    pub name: String,
    pub subresource: Option<Subresource>,
}

impl Target {
    /// 404 where no such resource or subresource is served.
    pub fn find(registry: &Registry, info: &Attributes) -> Result<Self> {
        let kind = registry.find(&info.group, &info.resource).ok_or_else(Status::no_route)?;
        let at = kind.versions.iter().position(|it| it.name == info.version && it.is_served).ok_or_else(Status::no_route)?;
        let is_placed = kind.is_namespaced() == !info.namespace.is_empty();
        let is_of_many = info.name.is_empty() || matches!(info.verb.as_str(), "list" | "watch" | "deletecollection");
        let is_across = kind.is_namespaced() && info.namespace.is_empty() && is_of_many;
        let is_itself = info.resource == "namespaces" && info.group.is_empty();
        if !(is_placed || is_across || is_itself) {
            return Err(Status::no_route());
        }
        let subresource = match info.subresource.as_str() {
            "" => None,
            name => Some(kind.subresource(name).cloned().ok_or_else(Status::no_route)?),
        };
        let namespace = if is_itself { String::new() } else { info.namespace.clone() };
        Ok(Self { kind: kind.clone(), version: at, namespace, name: info.name.clone(), subresource })
    }

    /// An object in the version that is stored.
    pub fn stored(kind: &Arc<Kind>, namespace: &str, name: &str) -> Self {
        Self { kind: kind.clone(), version: kind.stored, namespace: namespace.to_owned(), name: name.to_owned(), subresource: None }
    }

    pub fn version(&self) -> &Version {
        &self.kind.versions[self.version]
    }

    /// The place of the version among those of the kind.
    pub fn version_at(&self) -> usize {
        self.version
    }

    pub fn view(&self) -> View<'_> {
        View { kind: &self.kind, version: self.version() }
    }

    pub fn resource(&self) -> GroupResource {
        self.kind.group_resource()
    }

    pub fn key(&self) -> Key {
        self.key_of(&self.name)
    }

    pub fn key_of(&self, name: &str) -> Key {
        Key::new(&self.kind.resource(), &self.namespace, name)
    }

    pub fn subresource_name(&self) -> &'static str {
        self.subresource.as_ref().map_or("", |it| it.name)
    }

    /// The namespace that is asked for; `None` for all of them, and for kinds outside of any.
    pub fn in_namespace(&self) -> Option<&str> {
        Some(self.namespace.as_str()).filter(|it| !it.is_empty())
    }

    /// Whether an object says that it is the target, or of its collection (`checkName`).
    pub fn check_name(&self, object: &Value) -> Result<()> {
        match object.name() {
            name if name == self.name || self.name.is_empty() => (),
            "" => {
                let why = format!("the name of the object ({} based on URL) was undeterminable: name must be provided", self.name);
                return Err(Status::bad_request(why));
            }
            name => return Err(Status::bad_request(format!("the name of the object ({name}) does not match the name on the URL ({})", self.name))),
        }
        if self.kind.is_namespaced() && !object.namespace().is_empty() && object.namespace() != self.namespace {
            return Err(Status::bad_request("the namespace of the provided object does not match the namespace sent on the request"));
        }
        Ok(())
    }

    /// Fills in the defaults of an object in the target's version.
    pub fn fill(&self, object: &mut Value) {
        self.kind.fill(self.version(), object);
    }

    /// apiVersion and kind of what is sent: the object, or what its subresource takes.
    pub fn body_type(&self) -> (String, &str) {
        let body = self.subresource.as_ref().map(|it| it.body).filter(|it| !it.kind.is_empty());
        match body {
            Some(body) if !body.version.is_empty() => (api_version(body.group, body.version), body.kind),
            Some(body) => (self.view().api_version(), body.kind),
            None => (self.view().api_version(), &self.kind.kind),
        }
    }

    /// The schema of that type; `None` where it is not known.
    pub fn body_schema(&self) -> Option<SchemaRef> {
        if self.body_type().1 == self.kind.kind {
            return Some(self.version().schema.clone());
        }
        self.subresource.as_ref().and_then(|it| schema::builtin(&it.body.definition()))
    }

    /// The same place, with another subresource or none.
    pub fn with_subresource(&self, subresource: Option<Subresource>) -> Self {
        Self { subresource, ..self.clone() }
    }

    /// The same place under another name.
    pub fn named(&self, object: &Stored) -> Self {
        Self { name: object.key.name.to_string(), namespace: object.key.namespace.to_string(), ..self.clone() }
    }
}
