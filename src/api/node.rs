//! What a node may do: read what the pods bound to it refer to, and write only what is its own.
//! Source: kubernetes `plugin/pkg/auth/authorizer/node`, `plugin/pkg/admission/noderestriction`.

use super::{
    admission::{Context, Operation},
    identity::{Attributes, User},
};
use crate::{
    meta::{Meta, Result, Status, Value},
    store::{Key, Snapshot},
};

const GROUP: &str = "system:nodes";
const PREFIX: &str = "system:node:";
const LEASES: &str = "kube-node-lease";
/// The role whose rules say what all nodes may do, in so far as it is not about single objects.
pub const ROLE: &str = "system:node";
/// Labels of Kubernetes' own domains that a node may give itself (`kubeletapis.KubeletLabels`).
const OWN_LABELS: [&str; 12] = [
    "kubernetes.io/hostname",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "beta.kubernetes.io/instance-type",
    "node.kubernetes.io/instance-type",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "node.kubernetes.io/windows-build",
];
const OWN_LABEL_DOMAINS: [&str; 2] = ["kubelet.kubernetes.io", "node.kubernetes.io"];

/// The name of the node that `user` is.
pub fn name_of(user: &User) -> Option<&str> {
    user.name.strip_prefix(PREFIX).filter(|it| !it.is_empty() && user.is_in(GROUP))
}

/// What depends on the object alone and not on a rule: whether the node may; `None` where the rules of [`ROLE`] decide.
pub fn decide(node: &str, attributes: &Attributes, snapshot: &Snapshot) -> Option<bool> {
    let Attributes { verb, name, namespace, subresource, .. } = attributes;
    let is_read = matches!(verb.as_str(), "get" | "list" | "watch");
    let is_referred = |kind: &str| !name.is_empty() && pods_of(node, namespace, snapshot).any(|pod| refers(&pod["spec"], kind, name));
    match (attributes.group.as_str(), attributes.resource.as_str()) {
        ("", "secrets") => Some(is_read && subresource.is_empty() && is_referred("secret")),
        ("", "configmaps") => Some(is_read && subresource.is_empty() && is_referred("configMap")),
        ("", "persistentvolumeclaims") => Some((verb == "get" || subresource == "status") && !name.is_empty() && pods_of(node, namespace, snapshot).any(|it| claims(&it, name))),
        ("", "persistentvolumes") => Some(verb == "get" && is_bound_here(node, name, snapshot)),
        ("", "serviceaccounts") => {
            let is_asked = verb == "get" || verb == "create" && subresource == "token";
            Some(is_asked && pods_of(node, namespace, snapshot).any(|pod| pod.text_at(&["spec", "serviceAccountName"]) == name))
        }
        ("coordination.k8s.io", "leases") => Some(namespace == LEASES && (verb == "create" || name == node && !matches!(verb.as_str(), "list" | "watch"))),
        ("storage.k8s.io", "csinodes") => Some(verb == "create" || name == node && !matches!(verb.as_str(), "list" | "watch")),
        _ => None,
    }
}

/// The pods of a namespace, or of all, that are bound to the node.
fn pods_of<'a>(node: &'a str, namespace: &'a str, snapshot: &'a Snapshot) -> impl Iterator<Item = Value> + 'a {
    let namespace = Some(namespace).filter(|it| !it.is_empty());
    let is_bound = move |fields: &[(Box<str>, Box<str>)]| fields.iter().any(|(field, value)| **field == *"spec.nodeName" && **value == *node);
    snapshot.list("pods", namespace, None).filter(move |it| is_bound(&it.header.fields)).map(|it| it.value())
}

/// Whether a part of a pod's spec names the object: `secretKeyRef`, `secretRef`, `imagePullSecrets`, a volume's `secret`, and alike for others.
fn refers(part: &Value, kind: &str, name: &str) -> bool {
    let is_named = |it: &Value| [it.text("name"), it.text("secretName"), it.text("claimName")].contains(&name);
    match part {
        Value::Array(items) => items.iter().any(|it| refers(it, kind, name)),
        Value::Object(fields) => fields.iter().any(|(field, value)| {
            let is_reference = field.strip_prefix(kind).is_some_and(|it| matches!(it, "" | "Ref" | "KeyRef")) || kind == "secret" && field.ends_with("SecretRef");
            let is_list = kind == "secret" && field == "imagePullSecrets";
            is_reference && is_named(value) || is_list && value.as_array().is_some_and(|it| it.iter().any(is_named)) || refers(value, kind, name)
        }),
        _ => false,
    }
}

/// Whether a volume of a pod is the claim, by its name or as one that is made for the pod.
fn claims(pod: &Value, claim: &str) -> bool {
    let is_made = |volume: &Value| volume["ephemeral"].is_object() && format!("{}-{}", pod.name(), volume.text("name")) == claim;
    refers(&pod["spec"], "persistentVolumeClaim", claim) || pod.items_at(&["spec", "volumes"]).iter().any(is_made)
}

/// Whether a pod of the node uses the claim that the volume is bound to.
fn is_bound_here(node: &str, volume: &str, snapshot: &Snapshot) -> bool {
    let Some(volume) = snapshot.get(&Key::new("persistentvolumes", "", volume)).map(|it| it.value()) else { return false };
    let (namespace, claim) = (volume.text_at(&["spec", "claimRef", "namespace"]), volume.text_at(&["spec", "claimRef", "name"]));
    !claim.is_empty() && pods_of(node, namespace, snapshot).any(|pod| claims(&pod, claim))
}

/// Admission's NodeRestriction. `object` is null at a deletion.
pub fn restrict(context: &Context<'_>, object: &Value) -> Result<()> {
    let Some(node) = name_of(&context.requester.user) else { return Ok(()) };
    let target = context.target;
    let part = target.subresource_name();
    let refusal = match (target.kind.group.as_ref(), target.kind.plural.as_ref(), part) {
        ("", "pods", _) => pod_refusal(node, context, part, object),
        ("", "nodes", _) => node_refusal(node, context, object),
        ("", "serviceaccounts", "token") => token_refusal(node, context, object),
        ("coordination.k8s.io", "leases", _) if target.namespace != LEASES => Some("can only access leases in the \"kube-node-lease\" system namespace".to_owned()),
        ("coordination.k8s.io", "leases", _) if own_name(context, object) != node => Some("can only access node lease with the same name as the requesting node".to_owned()),
        ("storage.k8s.io", "csinodes", _) if own_name(context, object) != node => Some("can only access CSINode with the same name as the requesting node".to_owned()),
        _ => None,
    };
    refusal.map_or(Ok(()), |why| Err(Status::forbidden(&target.resource(), &target.name, why)))
}

fn own_name<'a>(context: &'a Context<'_>, object: &'a Value) -> &'a str {
    if context.target.name.is_empty() { object.name() } else { &context.target.name }
}

fn pod_refusal(node: &str, context: &Context<'_>, part: &str, object: &Value) -> Option<String> {
    let is_own = |pod: Option<&Value>| pod.is_some_and(|it| it.text_at(&["spec", "nodeName"]) == node);
    match (context.operation, part) {
        (Operation::Create, "") if object.annotations().all(|(key, _)| key != "kubernetes.io/config.mirror") => {
            Some(format!("pod does not have \"kubernetes.io/config.mirror\" annotation, node {node:?} can only create mirror pods"))
        }
        (Operation::Create, "") if !is_own(Some(object)) => Some(format!("node {node:?} can only create pods with spec.nodeName set to itself")),
        (Operation::Delete, _) if !is_own(context.old) => Some(format!("node {node:?} can only delete pods with spec.nodeName set to itself")),
        (Operation::Update, "status") if !is_own(context.old) => Some(format!("node {node:?} can only update pod status for pods with spec.nodeName set to itself")),
        (Operation::Update, "status") if context.old.is_some_and(|old| old.at(&["metadata", "labels"]) != object.at(&["metadata", "labels"])) => {
            Some(format!("node {node:?} cannot update labels through pod status"))
        }
        _ => None,
    }
}

fn node_refusal(node: &str, context: &Context<'_>, object: &Value) -> Option<String> {
    let name = own_name(context, object);
    if name != node {
        return Some(format!("node {node:?} is not allowed to modify node {name:?}"));
    }
    let empty = Value::Null;
    let old = context.old.unwrap_or(&empty);
    if context.operation == Operation::Update && old.at(&["spec", "taints"]) != object.at(&["spec", "taints"]) {
        return Some(format!("node {node:?} is not allowed to modify taints"));
    }
    if context.operation == Operation::Update && old.at(&["metadata", "ownerReferences"]) != object.at(&["metadata", "ownerReferences"]) {
        return Some(format!("node {node:?} is not allowed to modify ownerReferences"));
    }
    let mut foreign: Vec<&str> = object.labels().chain(old.labels()).map(|(key, _)| key).filter(|key| label(old, key) != label(object, key) && !is_own_label(key)).collect();
    foreign.sort_unstable();
    foreign.dedup();
    (!foreign.is_empty() && context.operation != Operation::Delete).then(|| format!("is not allowed to modify labels: {}", foreign.join(", ")))
}

fn label<'a>(object: &'a Value, key: &str) -> Option<&'a Value> {
    object.at(&["metadata", "labels", key])
}

/// Labels outside of Kubernetes' domains are the node's affair; in them only those that are meant for it.
fn is_own_label(key: &str) -> bool {
    let Some((domain, _)) = key.split_once('/') else { return true };
    let is_under = |of: &str| domain == of || domain.strip_suffix(of).is_some_and(|it| it.ends_with('.'));
    let is_kubernetes = is_under("kubernetes.io") || is_under("k8s.io");
    !is_kubernetes || OWN_LABELS.contains(&key) || OWN_LABEL_DOMAINS.iter().any(|it| is_under(it))
}

fn token_refusal(node: &str, context: &Context<'_>, request: &Value) -> Option<String> {
    let bound = request.at(&["spec", "boundObjectRef"]);
    let Some(bound) = bound.filter(|it| it.text("kind") == "Pod" && !it.text("name").is_empty()) else { return Some("node requested token not bound to a pod".to_owned()) };
    match context.find("pods", &context.target.namespace, bound.text("name")) {
        Some(pod) if pod.text_at(&["spec", "nodeName"]) != node => Some("node requested token bound to a pod scheduled on a different node".to_owned()),
        Some(pod) if pod.uid() != bound.text("uid") => Some(format!("the UID in the bound object reference ({}) does not match the UID in record. The object might have been deleted and then recreated", bound.text("uid"))),
        None => Some(format!("node requested token bound to a pod that is not there: {}", bound.text("name"))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_refers_to_what_it_names() {
        let spec = json!({"imagePullSecrets": [{"name": "pull"}], "volumes": [
                {"secret": {"secretName": "tls"}}, {"configMap": {"name": "config"}}, {"persistentVolumeClaim": {"claimName": "data"}},
                {"projected": {"sources": [{"secret": {"name": "part"}}, {"configMap": {"name": "root"}}]}}, {"csi": {"nodePublishSecretRef": {"name": "csi"}}}],
            "containers": [{"name": "nothing", "env": [{"valueFrom": {"secretKeyRef": {"name": "key"}}}], "envFrom": [{"configMapRef": {"name": "all"}}]}]});
        let cases = [
            ("secret", "pull tls part key csi", "config nothing data"),
            ("configMap", "config root all", "tls nothing"),
            ("persistentVolumeClaim", "data", "tls config"),
        ];
        for (kind, named, others) in cases {
            named.split(' ').for_each(|it| assert!(refers(&spec, kind, it), "{kind} {it}"));
            others.split(' ').for_each(|it| assert!(!refers(&spec, kind, it), "{kind} {it}"));
        }
    }

    #[test]
    fn a_node_labels_itself_with_its_own_labels() {
        let cases = [("kubernetes.io/hostname", true), ("team", true), ("example.com/x", true), ("node.kubernetes.io/x", true), ("foo.kubelet.kubernetes.io/x", true),
            ("node-role.kubernetes.io/master", false), ("node-restriction.kubernetes.io/x", false), ("k8s.io/x", false)];
        for (key, expected) in cases {
            assert_eq!(is_own_label(key), expected, "{key}");
        }
    }

    #[test]
    fn only_nodes_are_nodes() {
        let user = |name: &str, group: &str| User::system(name, &[group]);
        assert_eq!(name_of(&user("system:node:a", GROUP)), Some("a"));
        assert_eq!(name_of(&user("system:node:", GROUP)), None);
        assert_eq!(name_of(&user("system:node:a", "other")), None);
    }
}
