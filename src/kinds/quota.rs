//! What an object takes from a quota, and which quotas it falls under: for admission, which charges, and for the controller, which counts anew.
//! Source: `pkg/quota/v1/evaluator/core/{pods,services,persistent_volume_claims}.go`, `pkg/apis/core/v1/helper/qos`.

use std::collections::BTreeMap;

use super::pod::qos_class;
use crate::meta::{Meta, Quantity, Value};

pub type Usage = BTreeMap<String, Quantity>;

/// Resources of the core group that a quota names without `count/`.
const PLAIN: [&str; 7] = ["configmaps", "persistentvolumeclaims", "pods", "replicationcontrollers", "resourcequotas", "secrets", "services"];
/// What of a container is counted under `requests.` and `limits.`.
const COMPUTE: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];

fn one() -> Quantity {
    "1".parse().unwrap_or_default()
}

fn amount(value: Option<&Value>) -> Option<Quantity> {
    value.and_then(Value::as_str).and_then(|it| it.parse().ok())
}

fn add(usage: &mut Usage, name: String, more: Quantity) {
    let sum = usage.get(&name).map_or(more, |it| it.add(more));
    usage.insert(name, sum);
}

/// What one object of `plural` in `group` takes. Empty for a pod that has ended.
pub fn usage(group: &str, plural: &str, object: &Value) -> Usage {
    let mut usage = Usage::new();
    if group.is_empty() && plural == "pods" && is_over(object) {
        return usage;
    }
    usage.insert(if group.is_empty() { format!("count/{plural}") } else { format!("count/{plural}.{group}") }, one());
    if group.is_empty() && PLAIN.contains(&plural) {
        usage.insert(plural.to_owned(), one());
    }
    match (group, plural) {
        ("", "pods") => pod(object, &mut usage),
        ("", "services") => service(object, &mut usage),
        ("", "persistentvolumeclaims") => claim(object, &mut usage),
        _ => (),
    }
    usage
}

fn is_over(pod: &Value) -> bool {
    matches!(pod.text_at(&["status", "phase"]), "Succeeded" | "Failed")
}

/// The sum over containers, or the most that an init container takes, with the sidecars that run beside it (`PodRequests`).
fn total(pod: &Value, kind: &str) -> Usage {
    let of = |container: &Value| -> Usage {
        let list = container.map_at(&["resources", kind]).into_iter().flatten();
        list.filter_map(|(name, value)| Some((name.clone(), amount(Some(value))?))).collect()
    };
    let mut sum = Usage::new();
    for container in pod.items_at(&["spec", "containers"]) {
        of(container).into_iter().for_each(|(name, more)| add(&mut sum, name, more));
    }
    let (mut sidecars, mut most) = (Usage::new(), Usage::new());
    for container in pod.items_at(&["spec", "initContainers"]) {
        let mut need = of(container);
        if container.text("restartPolicy") == "Always" {
            need.into_iter().for_each(|(name, more)| {
                add(&mut sidecars, name.clone(), more);
                add(&mut sum, name, more);
            });
            continue;
        }
        sidecars.iter().for_each(|(name, more)| add(&mut need, name.clone(), *more));
        keep_larger(&mut most, need);
    }
    keep_larger(&mut sum, most);
    for (name, value) in pod.map_at(&["spec", "overhead"]).into_iter().flatten() {
        if let (Some(more), true) = (amount(Some(value)), kind == "requests" || sum.contains_key(name)) {
            add(&mut sum, name.clone(), more);
        }
    }
    sum
}

fn keep_larger(to: &mut Usage, from: Usage) {
    for (name, value) in from {
        let larger = to.get(&name).map_or(value, |it| if *it > value { *it } else { value });
        to.insert(name, larger);
    }
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
    usage.insert("services.nodeports".to_owned(), count.to_string().parse().unwrap_or_default());
    usage.insert("services.loadbalancers".to_owned(), if kind == "LoadBalancer" { one() } else { Quantity::default() });
}

fn claim(claim: &Value, usage: &mut Usage) {
    let storage = amount(claim.at(&["spec", "resources", "requests", "storage"])).unwrap_or_default();
    usage.insert("requests.storage".to_owned(), storage);
    let class = claim.text_at(&["spec", "storageClassName"]);
    if !class.is_empty() {
        usage.insert(format!("{class}.storageclass.storage.k8s.io/requests.storage"), storage);
        usage.insert(format!("{class}.storageclass.storage.k8s.io/persistentvolumeclaims"), one());
    }
}

/// The resource that a name in a quota counts: group and plural.
pub fn counted(name: &str) -> (String, String) {
    if let Some(rest) = name.strip_prefix("count/") {
        let (plural, group) = rest.split_once('.').unwrap_or((rest, ""));
        return (group.to_owned(), plural.to_owned());
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

/// Whether an object falls under all scopes of a quota. Only pods do, where there are any.
pub fn is_in_scope(quota: &Value, group: &str, plural: &str, object: &Value) -> bool {
    let scopes = quota.texts_at(&["spec", "scopes"]).map(|it| (it, "Exists", [].as_slice()));
    let expressions = quota.items_at(&["spec", "scopeSelector", "matchExpressions"]).iter();
    let selected = expressions.map(|it| (it.text("scopeName"), it.text("operator"), it.items_at(&["values"])));
    let mut all = scopes.chain(selected).peekable();
    if all.peek().is_some() && !(group.is_empty() && plural == "pods") {
        return false;
    }
    all.all(|(scope, operator, values)| matches_scope(object, scope, operator, values))
}

fn matches_scope(pod: &Value, scope: &str, operator: &str, values: &[Value]) -> bool {
    let is_terminating = pod.int_at(&["spec", "activeDeadlineSeconds"]).is_some_and(|it| it >= 0);
    let is_best_effort = qos_class(&pod["spec"]) == "BestEffort";
    match scope {
        "Terminating" => is_terminating,
        "NotTerminating" => !is_terminating,
        "BestEffort" => is_best_effort,
        "NotBestEffort" => !is_best_effort,
        "PriorityClass" => {
            let class = pod.text_at(&["spec", "priorityClassName"]);
            match operator {
                "Exists" => !class.is_empty(),
                "DoesNotExist" => class.is_empty(),
                "In" => values.iter().any(|it| it == class),
                "NotIn" => values.iter().all(|it| it != class),
                _ => false,
            }
        }
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
        assert!(usage("", "pods", &ended).is_empty());
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
    }

    #[test]
    fn what_is_limited_must_be_named() {
        let quota = json!({"status": {"hard": {"limits.cpu": "1", "pods": "1"}}});
        assert_eq!(missing(&quota, &json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}]}})), "limits.cpu for: a,b");
    }
}
