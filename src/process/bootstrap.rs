//! The objects of a new cluster: namespaces, RBAC, priority classes, priority levels, the service CIDR. What is missing is made at every start; RBAC objects
//! get back what they have lost, unless they are annotated `rbac.authorization.kubernetes.io/autoupdate: "false"`.
//! Source: kubernetes `pkg/registry/rbac/rest`, component-helpers `auth/rbac/reconciliation`.

use std::{collections::BTreeMap, future::Future};

use futures::future::try_join_all;
use serde_json::json;

use super::{flowcontrol, network::Network};
use crate::{
    api::rbac::{GROUP, aggregate},
    client::{Error, Result},
    controllers::bootstrap::{CLUSTER_INFO, KUBECONFIG, PUBLIC},
    meta::{Meta, Value},
    store::{Key, Snapshot},
};

/// The RBAC objects as text; its head explains the lines.
const RBAC: &str = include_str!("bootstrap-rbac.txt");
const AUTHENTICATION: &str = "extension-apiserver-authentication";
const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";
const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];
/// `edit` aggregates `view`, `admin` aggregates `edit`: this many passes settle all.
const AGGREGATION_PASSES: usize = 3;

/// What is to be done for one object.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    Create(Value),
    /// The object as it should be, with the resourceVersion at which it was read.
    Update(Value),
}

/// Makes what `snapshot` lacks, through `apply`: batch after batch, all of a batch at once, so that they are committed together.
pub async fn ensure<Applied>(network: &Network, told: &[Value], snapshot: &Snapshot, apply: impl Fn(Change) -> Applied) -> Result<()>
where
    Applied: Future<Output = Result<()>>,
{
    let find = |key: &Key| Some(snapshot.get(key)?.value());
    // What another server, starting at the same time, has made is there.
    let unless_there = |error: Error| if error.is_already_exists() { Ok(()) } else { Err(error) };
    for batch in plan(network, told, find) {
        try_join_all(batch.into_iter().map(|change| async { apply(change).await.or_else(unless_there) })).await?;
    }
    Ok(())
}

/// The changes that are needed, in batches: namespaces, RBAC, the range of Services and the like, Services in it.
/// `told` are objects of which only the server knows what stands in them.
pub fn plan(network: &Network, told: &[Value], find: impl Fn(&Key) -> Option<Value>) -> [Vec<Change>; 4] {
    [namespaces(), rbac(), rest(network, told), network.objects()].map(|batch| batch.into_iter().filter_map(|wanted| change(find(&key(&wanted)), wanted)).collect())
}

fn change(existing: Option<Value>, wanted: Value) -> Option<Change> {
    match existing {
        None => Some(Change::Create(wanted)),
        Some(existing) => reconcile(existing, &wanted).map(Change::Update),
    }
}

/// Where an object of this file is stored.
pub fn key(object: &Value) -> Key {
    let resource = match object.text("kind") {
        "Namespace" => "namespaces",
        "Service" => "services",
        "ConfigMap" => "configmaps",
        "PriorityClass" => "scheduling.k8s.io/priorityclasses",
        "FlowSchema" => "flowcontrol.apiserver.k8s.io/flowschemas",
        "PriorityLevelConfiguration" => "flowcontrol.apiserver.k8s.io/prioritylevelconfigurations",
        "ServiceCIDR" => "networking.k8s.io/servicecidrs",
        "ClusterRole" => "rbac.authorization.k8s.io/clusterroles",
        "ClusterRoleBinding" => "rbac.authorization.k8s.io/clusterrolebindings",
        "Role" => "rbac.authorization.k8s.io/roles",
        _ => "rbac.authorization.k8s.io/rolebindings",
    };
    Key::new(resource, object.namespace(), object.name())
}

/// `existing` with the rules or subjects, labels and annotations of `wanted` that it lacks. `None` if it lacks nothing, is no RBAC object or does not want it.
fn reconcile(mut existing: Value, wanted: &Value) -> Option<Value> {
    if wanted.name() == AUTHENTICATION && existing["data"] != wanted["data"] {
        existing["data"] = wanted["data"].clone();
        return Some(existing);
    }
    let is_rbac = wanted.text("apiVersion").starts_with(GROUP);
    if !is_rbac || existing.annotations().any(|it| it == (AUTOUPDATE, "false")) {
        return None;
    }
    let before = existing.clone();
    for map in ["labels", "annotations"] {
        let missing: Vec<_> =
            wanted.map_at(&["metadata", map]).into_iter().flatten().filter(|(name, _)| existing.at(&["metadata", map, name]).is_none()).collect();
        missing.into_iter().for_each(|(name, value)| existing.set_at(&["metadata", map, name], value.clone()));
    }
    match wanted.get("aggregationRule") {
        Some(rule) => existing["aggregationRule"] = rule.clone(),
        None => ["rules", "subjects"].iter().for_each(|field| add_missing(&mut existing, wanted, field)),
    }
    (existing != before).then_some(existing)
}

/// ConfigMap `cluster-info`: the kubeconfig, without a user, that machines which join are shown.
pub fn cluster_info(kubeconfig: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": CLUSTER_INFO, "namespace": PUBLIC}, "data": {KUBECONFIG: kubeconfig}})
}

/// ConfigMap `extension-apiserver-authentication`: by which authorities, headers and names servers behind the aggregation layer know this server
/// and the users that it names (`clusterauthenticationtrust`).
pub fn authentication(client_authority: &str, front_proxy_authority: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": AUTHENTICATION, "namespace": "kube-system"},
        "data": {
            "client-ca-file": client_authority,
            "requestheader-client-ca-file": front_proxy_authority,
            "requestheader-allowed-names": json!(["front-proxy-client"]).to_string(),
            "requestheader-username-headers": json!(["X-Remote-User"]).to_string(),
            "requestheader-uid-headers": json!(["X-Remote-Uid"]).to_string(),
            "requestheader-group-headers": json!(["X-Remote-Group"]).to_string(),
            "requestheader-extra-headers-prefix": json!(["X-Remote-Extra-"]).to_string(),
        },
    })
}

fn add_missing(existing: &mut Value, wanted: &Value, field: &str) {
    let mut items = existing.items_at(&[field]).to_vec();
    let missing: Vec<Value> = wanted.items_at(&[field]).iter().filter(|it| !items.contains(it)).cloned().collect();
    if !missing.is_empty() {
        items.extend(missing);
        existing[field] = items.into();
    }
}

fn namespaces() -> Vec<Value> {
    NAMESPACES.iter().map(|name| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})).collect()
}

fn rest(network: &Network, told: &[Value]) -> Vec<Value> {
    let class = |name: &str, value: i64, description: &str| {
        json!({
            "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name},
            "value": value, "globalDefault": false, "description": description, "preemptionPolicy": "PreemptLowerPriority",
        })
    };
    let critical = class(
        "system-cluster-critical",
        2_000_000_000,
        "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
    );
    let node_critical = class("system-node-critical", 2_000_001_000, "Used for system critical pods that must not be moved from their current node.");
    [node_critical, critical, network.service_cidr()].into_iter().chain(told.iter().cloned()).chain(flowcontrol::objects()).collect()
}

/// All RBAC objects, aggregated roles with the rules that they gather.
fn rbac() -> Vec<Value> {
    let mut objects: Vec<Value> = Vec::new();
    for line in RBAC.lines().filter(|it| !it.starts_with('#')) {
        match (line.strip_prefix("  "), objects.last_mut()) {
            (Some(line), Some(role)) => role["rules"].as_array_mut().expect("rules stand only under roles").push(rule(line)),
            _ => objects.push(object(line)),
        }
    }
    for _ in 0..AGGREGATION_PASSES {
        gather(&mut objects);
    }
    objects
}

fn gather(objects: &mut [Value]) {
    let roles: Vec<Value> = objects.iter().filter(|it| it.text("kind") == "ClusterRole").cloned().collect();
    for object in objects.iter_mut() {
        if let Some(aggregation) = object.get("aggregationRule").cloned() {
            object["rules"] = aggregate(object.name(), &aggregation, &roles).into();
        }
    }
}

fn object(line: &str) -> Value {
    let mut words = line.split(' ');
    let mut word = || words.next().expect("every line has its words");
    let (kind, name) = (word(), word());
    match kind {
        "clusterrole" => cluster_role(name, words),
        "role" => new("Role", name, [("rules", json!([]))]),
        "clusterrolebinding" => binding("ClusterRoleBinding", "ClusterRole", name, word(), words),
        _ => binding("RoleBinding", "Role", name, word(), words),
    }
}

fn cluster_role<'a>(name: &str, marks: impl Iterator<Item = &'a str>) -> Value {
    let mut role = new("ClusterRole", name, [("rules", json!([]))]);
    for mark in marks {
        match mark.split_once('=') {
            Some(("label", label)) => role.set_at(&["metadata", "labels", label], "true"),
            Some((_, label)) => role["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": {label: "true"}}]}),
            None => (),
        }
    }
    role
}

fn binding<'a>(kind: &str, role_kind: &str, name: &str, role: &str, subjects: impl Iterator<Item = &'a str>) -> Value {
    let subjects: Vec<Value> = subjects.map(subject).collect();
    let role = json!({"apiGroup": GROUP, "kind": role_kind, "name": role});
    new(kind, name, [("roleRef", role), ("subjects", subjects.into())])
}

fn subject(text: &str) -> Value {
    let (kind, name) = text.split_once(':').expect("a subject has its kind");
    match (kind, name.split_once('/')) {
        ("serviceaccount", Some((namespace, name))) => json!({"kind": "ServiceAccount", "name": name, "namespace": namespace}),
        ("user", _) => json!({"apiGroup": GROUP, "kind": "User", "name": name}),
        _ => json!({"apiGroup": GROUP, "kind": "Group", "name": name}),
    }
}

fn new<const N: usize>(kind: &str, name: &str, fields: [(&str, Value); N]) -> Value {
    let (namespace, name) = name.split_once('/').unwrap_or(("", name));
    let metadata = json!({
        "name": name,
        "annotations": {AUTOUPDATE: "true"},
        "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
    });
    let mut object = json!({"apiVersion": format!("{GROUP}/v1"), "kind": kind, "metadata": metadata});
    if !namespace.is_empty() {
        object.set_metadata("namespace", namespace);
    }
    fields.into_iter().for_each(|(field, value)| object[field] = value);
    object
}

fn list(text: &str) -> Vec<&str> {
    text.split(',').map(|it| if it == "core" { "" } else { it }).collect()
}

fn rule(line: &str) -> Value {
    let mut words = line.split(' ');
    let mut fields = BTreeMap::new();
    fields.insert("verbs", list(words.next().expect("a rule has verbs")));
    for (word, field) in words.zip(["apiGroups", "resources", "resourceNames"]) {
        match word.strip_prefix("url:") {
            Some(paths) => fields.insert("nonResourceURLs", list(paths)),
            None => fields.insert(field, list(word)),
        };
    }
    json!(fields)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{
        identity::{AUTHENTICATED, Attributes, UNAUTHENTICATED, User},
        rbac::Index,
    };

    fn network() -> Network {
        Network { services: "10.96.0.0/16".parse().unwrap(), pods: "10.244.0.0/16".parse().unwrap() }
    }

    fn objects() -> Vec<Value> {
        plan(&network(), &[cluster_info(""), authentication("ca", "front")], |_| None)
            .into_iter()
            .flatten()
            .map(|it| if let Change::Create(object) = it { object } else { panic!("{it:?}") })
            .collect()
    }

    #[test]
    fn the_roles_allow_what_their_names_promise() {
        let rbac = rbac();
        let edit = json!({"metadata": {"name": "e", "namespace": "a"}, "roleRef": {"kind": "ClusterRole", "name": "edit"}, "subjects": [{"kind": "User", "name": "ed"}]});
        let admin = json!({"metadata": {"name": "a", "namespace": "a"}, "roleRef": {"kind": "ClusterRole", "name": "admin"}, "subjects": [{"kind": "User", "name": "ad"}]});
        let (roles, bindings): (Vec<&Value>, Vec<&Value>) = rbac.iter().chain([&edit, &admin]).partition(|it| it.get("roleRef").is_none());
        let index = Index::new(roles, bindings);
        let user = |name: &str, group: &str| User { name: name.into(), groups: vec![group.into()], ..User::default() };
        let account = |name: &str| User::service_account("kube-system", name);
        let ask = |verb: &str, resource: &str, namespace: &str| {
            let (group, resource) = resource.rsplit_once(':').unwrap_or(("", resource));
            let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
            let text = str::to_owned;
            Attributes {
                verb: text(verb),
                group: text(group),
                resource: text(resource),
                subresource: text(subresource),
                namespace: text(namespace),
                ..Attributes::default()
            }
        };
        let path = |path: &str| Attributes { verb: "get".into(), path: path.into(), ..Attributes::default() };
        let cases = [
            (user("x", UNAUTHENTICATED), path("/healthz"), true),
            (user("x", UNAUTHENTICATED), path("/version"), true),
            (user("x", UNAUTHENTICATED), path("/apis"), false),
            (user("x", AUTHENTICATED), path("/apis/apps/v1"), true),
            (user("x", AUTHENTICATED), path("/metrics"), false),
            (user("x", AUTHENTICATED), ask("create", "authorization.k8s.io:selfsubjectaccessreviews", ""), true),
            (user("x", AUTHENTICATED), ask("get", "pods", "a"), false),
            // What a node may do the Node authorizer decides, not a role of its group.
            (user("system:node:n", "system:nodes"), ask("patch", "pods/status", "a"), false),
            (user("system:node:n", "system:nodes"), ask("create", "serviceaccounts/token", "a"), false),
            (user("system:node:n", "system:nodes"), ask("create", "apps:deployments", "a"), false),
            (user("system:kube-scheduler", ""), ask("create", "pods/binding", "a"), true),
            (user("system:kube-proxy", ""), ask("watch", "discovery.k8s.io:endpointslices", ""), true),
            (user("kube-apiserver-kubelet-client", ""), ask("get", "nodes/proxy", ""), true),
            (account("replicaset-controller"), ask("create", "pods", "a"), true),
            (account("replicaset-controller"), ask("create", "secrets", "a"), false),
            (account("coredns"), ask("watch", "services", ""), true),
            (user("ed", ""), ask("get", "pods/log", "a"), true),
            (user("ed", ""), ask("create", "apps:deployments", "a"), true),
            (user("ed", ""), ask("create", "rbac.authorization.k8s.io:roles", "a"), false),
            (user("ad", ""), ask("create", "rbac.authorization.k8s.io:roles", "a"), true),
            (user("ad", ""), ask("get", "pods", "a"), true),
            (user("ad", ""), ask("get", "pods", "b"), false),
        ];
        for (who, question, expected) in cases {
            assert_eq!(index.decide(&who, &question).is_ok(), expected, "{} {question:?}", who.name);
        }
        assert!(!rbac.iter().any(|it| it["rules"].as_array().is_some_and(Vec::is_empty)), "a role without rules");
        assert!(index.rules_for(&user("x", AUTHENTICATED), "").1.is_empty());
    }

    #[test]
    fn a_second_start_changes_nothing() {
        let objects = objects();
        let find = |wanted: &Key| objects.iter().find(|it| key(it) == *wanted).cloned();
        assert_eq!(plan(&network(), &[cluster_info(""), authentication("ca", "front")], find), [vec![], vec![], vec![], vec![]]);
    }

    #[test]
    fn lost_rules_come_back_unless_they_are_not_wanted() {
        let objects = objects();
        let wanted = objects.iter().find(|it| it.name() == "system:basic-user" && it.text("kind") == "ClusterRole").unwrap();
        let edited = |annotation: &str| {
            let mut role = wanted.clone();
            role["rules"] = json!([{"verbs": ["get"], "apiGroups": ["x"], "resources": ["y"]}]);
            role.set_at(&["metadata", "annotations", AUTOUPDATE], annotation);
            role
        };
        assert_eq!(reconcile(edited("false"), wanted), None);
        let reconciled = reconcile(edited("true"), wanted).unwrap();
        assert_eq!(reconciled["rules"].as_array().unwrap().len(), 1 + wanted["rules"].as_array().unwrap().len());
        let view = objects.iter().find(|it| it.name() == "view").unwrap();
        let mut gathered = view.clone();
        gathered["rules"] = json!([]);
        assert_eq!(reconcile(gathered, view), None, "rules of an aggregated role are its controller's");
    }
}
