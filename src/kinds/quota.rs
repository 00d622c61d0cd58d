//! What an object takes from a quota, and which quotas it falls under: for admission, which charges, and for the controller, which counts anew.
//! Source: `pkg/quota/v1/evaluator/core/{pods,services,persistent_volume_claims,resource_claims}.go`, `pkg/apis/core/v1/helper/qos`.

use std::collections::BTreeMap;

use super::{
    pod::qos_class,
    rules::words::{quantities, quantity},
};
use crate::meta::{Meta, Quantity, Value, quantity::Format};

pub type Usage = BTreeMap<String, Quantity>;

/// Resources of the core group that a quota names without `count/`.
const PLAIN: [&str; 7] = ["configmaps", "persistentvolumeclaims", "pods", "replicationcontrollers", "resourcequotas", "secrets", "services"];
/// What of a container is counted under `requests.` and `limits.`.
const COMPUTE: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];
/// Devices of a class, as quotas name them (`ResourceClaimsPerClass`); of those that a claim may get by another name too.
const DEVICES: &str = ".deviceclass.resource.k8s.io/devices";
const IMPLICIT_DEVICES: &str = "requests.deviceclass.resource.kubernetes.io/";
/// What a request for all devices may come to (`AllocationResultsMaxSize`).
const ALL_DEVICES: i64 = 32;

fn one() -> Quantity {
    number(1)
}

fn number(count: i64) -> Quantity {
    Quantity::from_units(count, Format::DecimalSi)
}

/// The quantities of the map at a path.
pub fn amounts(object: &Value, path: &[&str]) -> Usage {
    quantities(object, path).map(|(name, amount, _)| (name.to_owned(), amount)).collect()
}

/// Joins what two have of the same.
fn merge(to: &mut Usage, from: Usage, join: fn(Quantity, Quantity) -> Quantity) {
    for (name, value) in from {
        to.entry(name).and_modify(|it| *it = join(*it, value)).or_insert(value);
    }
}

fn larger(one: Quantity, other: Quantity) -> Quantity {
    if one > other { one } else { other }
}

/// What one object of `plural` in `group` takes. A pod that has ended is only counted.
pub fn usage(group: &str, plural: &str, object: &Value) -> Usage {
    let mut usage = Usage::new();
    usage.insert(if group.is_empty() { format!("count/{plural}") } else { format!("count/{plural}.{group}") }, one());
    if group.is_empty() && plural == "pods" && is_over(object) {
        return usage;
    }
    if group.is_empty() && PLAIN.contains(&plural) {
        usage.insert(plural.to_owned(), one());
    }
    match (group, plural) {
        ("", "pods") => pod(object, &mut usage),
        ("", "services") => service(object, &mut usage),
        ("", "persistentvolumeclaims") => claim(object, &mut usage),
        ("resource.k8s.io", "resourceclaims") => devices(object, &mut usage),
        _ => (),
    }
    usage
}

fn is_over(pod: &Value) -> bool {
    matches!(pod.text_at(&["status", "phase"]), "Succeeded" | "Failed")
}

/// The sum over containers, or the most that an init container takes, with the sidecars that run beside it (`PodRequests`).
fn total(pod: &Value, kind: &str) -> Usage {
    let (mut sum, mut sidecars, mut most) = (Usage::new(), Usage::new(), Usage::new());
    for container in pod.items_at(&["spec", "containers"]) {
        merge(&mut sum, amounts(container, &["resources", kind]), Quantity::add);
    }
    for container in pod.items_at(&["spec", "initContainers"]) {
        let mut need = amounts(container, &["resources", kind]);
        if container.text("restartPolicy") == "Always" {
            merge(&mut sidecars, need.clone(), Quantity::add);
            merge(&mut sum, need, Quantity::add);
        } else {
            merge(&mut need, sidecars.clone(), Quantity::add);
            merge(&mut most, need, larger);
        }
    }
    merge(&mut sum, most, larger);
    let mut overhead = amounts(pod, &["spec", "overhead"]);
    overhead.retain(|name, _| kind == "requests" || sum.contains_key(name));
    merge(&mut sum, overhead, Quantity::add);
    sum
}

fn pod(pod: &Value, usage: &mut Usage) {
    for (name, value) in total(pod, "requests") {
        if COMPUTE.contains(&name.as_str()) || name.starts_with("hugepages-") {
            usage.insert(name.clone(), value);
        }
        usage.insert(format!("requests.{name}"), value);
    }
    for (name, value) in total(pod, "limits").into_iter().filter(|(name, _)| COMPUTE.contains(&name.as_str())) {
        usage.insert(format!("limits.{name}"), value);
    }
}

fn service(service: &Value, usage: &mut Usage) {
    let ports = service.items_at(&["spec", "ports"]);
    let kind = service.text_at(&["spec", "type"]);
    let has_node_ports = kind == "NodePort" || kind == "LoadBalancer" && service.at(&["spec", "allocateLoadBalancerNodePorts"]) != Some(&Value::Bool(false));
    let count = if has_node_ports { ports.len() } else { ports.iter().filter(|it| kind == "LoadBalancer" && it.int_at(&["nodePort"]).unwrap_or(0) != 0).count() };
    usage.insert("services.nodeports".to_owned(), number(count as i64));
    usage.insert("services.loadbalancers".to_owned(), if kind == "LoadBalancer" { one() } else { Quantity::default() });
}

fn claim(claim: &Value, usage: &mut Usage) {
    let storage = claim.at(&["spec", "resources", "requests", "storage"]).and_then(quantity).unwrap_or_default();
    usage.insert("requests.storage".to_owned(), storage);
    let class = claim.text_at(&["spec", "storageClassName"]);
    if !class.is_empty() {
        usage.insert(format!("{class}.storageclass.storage.k8s.io/requests.storage"), storage);
        usage.insert(format!("{class}.storageclass.storage.k8s.io/persistentvolumeclaims"), one());
    }
}

/// The devices of each class; of several that a request would take, the most.
fn devices(claim: &Value, usage: &mut Usage) {
    let mut classes = BTreeMap::<String, i64>::new();
    for request in claim.items_at(&["spec", "devices", "requests"]) {
        let mut most = BTreeMap::<&str, i64>::new();
        for choice in request.items_at(&["firstAvailable"]).iter().chain(request.get("exactly")) {
            let count = match choice.text("allocationMode") {
                "ExactCount" => choice.int_at(&["count"]).unwrap_or(0),
                "All" => ALL_DEVICES,
                _ => 0,
            };
            let found = most.entry(choice.text("deviceClassName")).or_default();
            *found = count.max(*found);
        }
        most.into_iter().for_each(|(class, count)| *classes.entry(class.to_owned()).or_default() += count);
    }
    for (class, count) in classes {
        usage.insert(format!("{IMPLICIT_DEVICES}{class}"), number(count));
        usage.insert(format!("{class}{DEVICES}"), number(count));
    }
}

/// The resource that a name in a quota counts: group and plural.
pub fn counted(name: &str) -> (String, String) {
    if let Some(rest) = name.strip_prefix("count/") {
        let (plural, group) = rest.split_once('.').unwrap_or((rest, ""));
        return (group.to_owned(), plural.to_owned());
    }
    if name.ends_with(DEVICES) || name.starts_with(IMPLICIT_DEVICES) {
        return ("resource.k8s.io".to_owned(), "resourceclaims".to_owned());
    }
    let plural = match name {
        _ if PLAIN.contains(&name) => name,
        _ if name.starts_with("services.") => "services",
        "requests.storage" => "persistentvolumeclaims",
        _ if name.contains(".storageclass.storage.k8s.io/") => "persistentvolumeclaims",
        _ => "pods",
    };
    (String::new(), plural.to_owned())
}

/// Whether an object falls under all scopes of a quota. Only pods and claims of volumes do, where there are any.
pub fn is_in_scope(quota: &Value, group: &str, plural: &str, object: &Value) -> bool {
    let scopes = quota.texts_at(&["spec", "scopes"]).map(|it| (it, "Exists", [].as_slice()));
    let expressions = quota.items_at(&["spec", "scopeSelector", "matchExpressions"]).iter();
    let selected = expressions.map(|it| (it.text("scopeName"), it.text("operator"), it.items_at(&["values"])));
    let mut all = scopes.chain(selected).peekable();
    match (group, plural) {
        ("", "pods") => all.all(|(scope, operator, values)| is_pod_in(object, scope, operator, values)),
        ("", "persistentvolumeclaims") => all.all(|(scope, operator, values)| scope == "VolumeAttributesClass" && is_named(&attributes_classes(object), operator, values)),
        _ => all.peek().is_none(),
    }
}

/// Those that a claim has, wants or is being given.
fn attributes_classes(claim: &Value) -> Vec<&str> {
    let paths: [&[&str]; 3] = [&["spec", "volumeAttributesClassName"], &["status", "currentVolumeAttributesClassName"], &["status", "modifyVolumeStatus", "targetVolumeAttributesClassName"]];
    paths.iter().map(|it| claim.text_at(it)).filter(|it| !it.is_empty()).collect()
}

/// Whether one of the names is meant; no name at all is what is not there.
fn is_named(names: &[&str], operator: &str, values: &[Value]) -> bool {
    let is_listed = |name: &&str| values.iter().any(|it| it == name);
    match operator {
        "Exists" => !names.is_empty(),
        "DoesNotExist" => names.is_empty(),
        "In" => names.iter().any(is_listed),
        "NotIn" => names.is_empty() || !names.iter().all(is_listed),
        _ => false,
    }
}

/// Whether a term of pod affinity looks beyond the pod's namespace (`usesCrossNamespacePodAffinity`).
fn crosses_namespaces(pod: &Value) -> bool {
    ["podAffinity", "podAntiAffinity"].iter().any(|side| {
        let required = pod.items_at(&["spec", "affinity", side, "requiredDuringSchedulingIgnoredDuringExecution"]).iter();
        let preferred = pod.items_at(&["spec", "affinity", side, "preferredDuringSchedulingIgnoredDuringExecution"]).iter().map(|it| &it["podAffinityTerm"]);
        required.chain(preferred).any(|it| !it.items_at(&["namespaces"]).is_empty() || it["namespaceSelector"].is_object())
    })
}

fn is_pod_in(pod: &Value, scope: &str, operator: &str, values: &[Value]) -> bool {
    let is_terminating = pod.int_at(&["spec", "activeDeadlineSeconds"]).is_some_and(|it| it >= 0);
    let is_best_effort = qos_class(&pod["spec"]) == "BestEffort";
    match scope {
        "Terminating" => is_terminating,
        "NotTerminating" => !is_terminating,
        "BestEffort" => is_best_effort,
        "NotBestEffort" => !is_best_effort,
        "PriorityClass" => {
            let class = Some(pod.text_at(&["spec", "priorityClassName"])).filter(|it| !it.is_empty());
            is_named(class.as_slice(), operator, values)
        }
        "CrossNamespacePodAffinity" => crosses_namespaces(pod),
        _ => false,
    }
}

/// What the containers of a pod must name because a quota limits it, and do not: `limits.cpu for: c1,c2; …`; empty when all is there.
pub fn missing(quota: &Value, pod: &Value) -> String {
    let hard = quota.map_at(&["status", "hard"]);
    let mut gaps: Vec<String> = Vec::new();
    for name in hard.into_iter().flat_map(|it| it.keys()) {
        let (kind, resource) = match name.split_once('.') {
            Some((kind @ ("requests" | "limits"), resource)) if COMPUTE.contains(&resource) => (kind, resource),
            None if COMPUTE.contains(&name.as_str()) => ("requests", name.as_str()),
            _ => continue,
        };
        let containers = pod.items_at(&["spec", "containers"]).iter().chain(pod.items_at(&["spec", "initContainers"]));
        let without: Vec<&str> = containers.filter(|it| it.at(&["resources", kind, resource]).is_none()).map(|it| it.text("name")).collect();
        if !without.is_empty() {
            gaps.push(format!("{name} for: {}", without.join(",")));
        }
    }
    gaps.join("; ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn texts(usage: &Usage) -> Vec<String> {
        usage.iter().map(|(name, value)| format!("{name}={value}")).collect()
    }

    #[test]
    fn objects_take_what_they_ask_for() {
        let pod = json!({"spec": {"containers": [
            {"name": "a", "resources": {"requests": {"cpu": "500m"}, "limits": {"cpu": "1"}}}, {"name": "b", "resources": {"requests": {"cpu": "250m"}}}],
            "initContainers": [{"name": "i", "resources": {"requests": {"cpu": "600m", "example.com/x": "2"}}}]}});
        let expected = ["count/pods=1", "cpu=750m", "limits.cpu=1", "pods=1", "requests.cpu=750m", "requests.example.com/x=2"];
        assert_eq!(texts(&usage("", "pods", &pod)), expected);
        let mut ended = pod;
        ended["status"] = json!({"phase": "Failed"});
        assert_eq!(texts(&usage("", "pods", &ended)), ["count/pods=1"]);
        let claim = json!({"spec": {"devices": {"requests": [
            {"exactly": {"deviceClassName": "gold", "allocationMode": "ExactCount", "count": 2}},
            {"firstAvailable": [{"deviceClassName": "gold", "allocationMode": "ExactCount", "count": 1}, {"deviceClassName": "gold", "allocationMode": "All"}]}]}}});
        let expected = ["count/resourceclaims.resource.k8s.io=1", "gold.deviceclass.resource.k8s.io/devices=34", "requests.deviceclass.resource.kubernetes.io/gold=34"];
        assert_eq!(texts(&usage("resource.k8s.io", "resourceclaims", &claim)), expected);
        let service = json!({"spec": {"type": "NodePort", "ports": [{"port": 1}, {"port": 2}]}});
        assert_eq!(texts(&usage("", "services", &service)), ["count/services=1", "services=1", "services.loadbalancers=0", "services.nodeports=2"]);
        assert_eq!(texts(&usage("apps", "deployments", &json!({}))), ["count/deployments.apps=1"]);
    }

    #[test]
    fn names_lead_to_what_they_count() {
        let cases = [("count/deployments.apps", "apps", "deployments"), ("limits.cpu", "", "pods"), ("services.nodeports", "", "services"), ("gold.storageclass.storage.k8s.io/requests.storage", "", "persistentvolumeclaims")];
        for (name, group, plural) in cases {
            assert_eq!(counted(name), (group.to_owned(), plural.to_owned()), "{name}");
        }
    }

    #[test]
    fn scopes_select_pods() {
        let quota = |scope: &str| json!({"spec": {"scopes": [scope]}});
        let pod = json!({"spec": {"containers": [{"name": "c"}], "activeDeadlineSeconds": 5}});
        for (scope, is_in) in [("Terminating", true), ("NotTerminating", false), ("BestEffort", true), ("NotBestEffort", false), ("PriorityClass", false)] {
            assert_eq!(is_in_scope(&quota(scope), "", "pods", &pod), is_in, "{scope}");
        }
        assert!(!is_in_scope(&quota("BestEffort"), "", "services", &json!({})));
        let near = |term: Value| json!({"spec": {"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}}});
        for (term, is_in) in [(json!({"topologyKey": "region"}), false), (json!({"namespaces": ["a"]}), true), (json!({"namespaceSelector": {}}), true)] {
            assert_eq!(is_in_scope(&quota("CrossNamespacePodAffinity"), "", "pods", &near(term)), is_in);
        }
        let of_class = |operator: &str, class: &str| json!({"spec": {"scopeSelector": {"matchExpressions": [{"scopeName": "VolumeAttributesClass", "operator": operator, "values": [class]}]}}});
        let claim = json!({"spec": {"volumeAttributesClassName": "gold"}, "status": {"currentVolumeAttributesClassName": "silver"}});
        for (operator, class, is_in) in [("In", "silver", true), ("In", "bronze", false), ("NotIn", "gold", true), ("Exists", "", true), ("DoesNotExist", "", false)] {
            assert_eq!(is_in_scope(&of_class(operator, class), "", "persistentvolumeclaims", &claim), is_in, "{operator} {class}");
        }
    }

    #[test]
    fn what_is_limited_must_be_named() {
        let quota = json!({"status": {"hard": {"limits.cpu": "1", "pods": "1"}}});
        assert_eq!(missing(&quota, &json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}]}})), "limits.cpu for: a,b");
    }
}
