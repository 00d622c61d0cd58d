//! Authorization: `system:masters` may do anything, nodes what is theirs, RBAC decides about everyone else.

use std::sync::Arc;

use super::{
    derived::Derived,
    identity::{Attributes, Decision, MASTERS, User},
    node,
    rbac::Index,
};
use crate::{
    meta::{Result, Status, Value, object::GroupResource},
    store::Snapshot,
};

/// Roles, then bindings.
const OBJECTS: [&str; 4] = [
    "rbac.authorization.k8s.io/clusterroles",
    "rbac.authorization.k8s.io/roles",
    "rbac.authorization.k8s.io/clusterrolebindings",
    "rbac.authorization.k8s.io/rolebindings",
];

/// Decides about requests. It keeps what it has read of the RBAC objects until one of them changes.
#[derive(Default)]
pub struct Authorizer {
    index: Derived<Index>,
}

impl Authorizer {
    pub fn authorize(&self, user: &User, attributes: &Attributes, snapshot: &Snapshot) -> Decision {
        let may = |is_allowed, reason| Decision { is_allowed, reason, ..Decision::default() };
        if user.is_in(MASTERS) {
            return may(true, String::new());
        }
        let index = self.index(snapshot);
        if let Some(node) = node::name_of(user)
            && node::decide(node, attributes, snapshot).unwrap_or_else(|| index.role_allows(node::ROLE, attributes))
        {
            return may(true, String::new());
        }
        index.decide(user, attributes).map_or_else(|why| may(false, why), |reason| may(true, reason))
    }

    /// [`Authorizer::authorize`], with upstream's 403 for everything but an allowance.
    pub fn check(&self, user: &User, attributes: &Attributes, snapshot: &Snapshot) -> Result<()> {
        self.authorize(user, attributes, snapshot).check(user, attributes)
    }

    /// The roles and bindings in `snapshot`.
    pub fn index(&self, snapshot: &Snapshot) -> Arc<Index> {
        let objects = |resources: &[&str]| -> Vec<Value> { resources.iter().flat_map(|it| snapshot.list(it, None, None)).map(|it| it.value()).collect() };
        self.index.get(snapshot, &OBJECTS, |_| Index::new(&objects(&OBJECTS[..2]), &objects(&OBJECTS[2..])))
    }
}

impl Decision {
    /// Forbids what is not allowed.
    pub fn check(self, user: &User, attributes: &Attributes) -> Result<()> {
        if self.is_allowed { Ok(()) } else { Err(forbidden(user, attributes, &self.reason)) }
    }
}

/// `responsewriters.ForbiddenStatusError`.
pub fn forbidden(user: &User, attributes: &Attributes, reason: &str) -> Status {
    let Attributes { verb, path, group, resource, subresource, namespace, .. } = attributes;
    let who = format!("User {:?} cannot {verb}", user.name);
    let message = if attributes.is_resource() {
        let part = if subresource.is_empty() { resource.clone() } else { format!("{resource}/{subresource}") };
        let scope = if namespace.is_empty() { "at the cluster scope".to_owned() } else { format!("in the namespace {namespace:?}") };
        format!("{who} resource {part:?} in API group {group:?} {scope}")
    } else {
        format!("{who} path {path:?}")
    };
    let why = if reason.is_empty() { message } else { format!("{message}: {reason}") };
    Status::forbidden(&GroupResource::new(group.clone(), resource.clone()), &attributes.name, why)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::store::{Change, Draft, Expect, Header, Key, Store, Transaction, Write, memory::Memory};

    #[tokio::test]
    async fn decisions_follow_the_stored_objects() {
        let tasks = crate::base::Tasks::new();
        let store = Store::open(Arc::new(Memory::new()), Arc::new(|_, _| Header::default()), &tasks).await.unwrap();
        let authorizer = Authorizer::default();
        let jane = User { name: "jane".into(), ..User::default() };
        let question = Attributes { verb: "get".into(), resource: "pods".into(), ..Attributes::default() };
        let role = json!({"metadata": {"name": "r"}, "rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]});
        let other = json!({"metadata": {"name": "r"}, "rules": []});
        let binding =
            json!({"metadata": {"name": "b"}, "roleRef": {"kind": "ClusterRole", "name": "r"}, "subjects": [{"kind": "User", "name": "jane"}]});
        // (resource, what is stored there or deleted, whether jane may)
        let steps = [
            (OBJECTS[0], Some(&role), false),
            (OBJECTS[2], Some(&binding), true),
            ("pods", Some(&other), true),
            (OBJECTS[0], Some(&other), false),
            (OBJECTS[0], Some(&role), true),
            (OBJECTS[2], None, false),
        ];
        for (resource, object, expected) in steps {
            let change = match object {
                Some(object) => Change::Put(Draft::new(object, Header::default())),
                None => Change::Delete(Draft::new(&binding, Header::default())),
            };
            let key = Key::new(resource, "", object.unwrap_or(&binding)["metadata"]["name"].as_str().unwrap());
            let expect = store.snapshot().get(&key).map_or(Expect::Absent, |it| Expect::At(it.revision));
            store.submit(Transaction { writes: vec![Write { key, expect, change }] }).await.unwrap();
            assert_eq!(authorizer.authorize(&jane, &question, &store.snapshot()).is_allowed, expected, "{resource} {object:?}");
        }
    }

    #[test]
    fn refusals_read_as_upstreams() {
        let text = |it: &str| it.to_owned();
        let user = User { name: "jane".into(), ..User::default() };
        let pods = Attributes { verb: text("get"), resource: text("pods"), namespace: text("default"), name: text("web"), ..Default::default() };
        let log = Attributes { subresource: text("log"), ..pods.clone() };
        let nodes = Attributes { verb: text("list"), resource: text("nodes"), ..Default::default() };
        let deployments =
            Attributes { verb: text("list"), group: text("apps"), resource: text("deployments"), namespace: text("a"), ..Default::default() };
        let path = Attributes { verb: text("get"), path: text("/metrics"), ..Default::default() };
        let cases = [
            (pods, "pods \"web\" is forbidden: User \"jane\" cannot get resource \"pods\" in API group \"\" in the namespace \"default\""),
            (log, "pods \"web\" is forbidden: User \"jane\" cannot get resource \"pods/log\" in API group \"\" in the namespace \"default\""),
            (nodes, "nodes is forbidden: User \"jane\" cannot list resource \"nodes\" in API group \"\" at the cluster scope"),
            (
                deployments,
                "deployments.apps is forbidden: User \"jane\" cannot list resource \"deployments\" in API group \"apps\" in the namespace \"a\"",
            ),
            (path, "forbidden: User \"jane\" cannot get path \"/metrics\""),
        ];
        for (attributes, expected) in cases {
            assert_eq!(forbidden(&user, &attributes, "").message, expected);
        }
    }
}
