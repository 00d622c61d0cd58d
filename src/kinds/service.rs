//! Services: what goes with their type. Addresses and node ports are allocated by the API floor.
//! Source: `pkg/registry/core/service/strategy.go`.

use serde_json::json;

use super::{Change, Strategy};
use crate::meta::{Meta, Value};

pub const SERVICE: Strategy = Strategy { prepare, ..Strategy::PLAIN };

fn has_address(spec: &Value) -> bool {
    spec.text("type") != "ExternalName"
}

fn is_balanced(spec: &Value) -> bool {
    spec.text("type") == "LoadBalancer"
}

fn is_reached_from_outside(spec: &Value) -> bool {
    match spec.text("type") {
        "NodePort" | "LoadBalancer" => true,
        kind => kind == "ClusterIP" && !spec.items_at(&["externalIPs"]).is_empty(),
    }
}

fn has_health_port(spec: &Value) -> bool {
    is_balanced(spec) && spec.text("externalTrafficPolicy") == "Local"
}

/// Fields that only some Services have, and which those are.
const DEPENDENT: [(&str, fn(&Value) -> bool); 5] = [
    ("healthCheckNodePort", has_health_port),
    ("externalTrafficPolicy", is_reached_from_outside),
    ("internalTrafficPolicy", has_address),
    ("allocateLoadBalancerNodePorts", is_balanced),
    ("loadBalancerClass", is_balanced),
];

/// Takes away what the Service had only by its old type and its client left as it was (`dropTypeDependentFields`).
fn drop_dependent(service: &mut Value, old: &Value) {
    let (spec, before) = (&mut service["spec"], &old["spec"]);
    for (field, needs) in DEPENDENT {
        if needs(before) && !needs(spec) && spec.get(field) == before.get(field) {
            spec.remove_at(&[field]);
        }
    }
}

fn prepare(service: &mut Value, change: Change<'_>) {
    match change {
        Change::Create => service["status"] = json!({"loadBalancer": {}}),
        Change::Update(old) => drop_dependent(service, old),
        Change::Part(..) => (),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::rules::filled;

    #[test]
    fn services_get_defaults() {
        let service = filled("Service", json!({"spec": {"ports": [{"port": 80}]}}));
        assert_eq!(
            service["spec"],
            json!({"type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster", "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}]})
        );
    }

    #[test]
    fn what_a_type_alone_had_goes_with_it() {
        let old = json!({"spec": {"type": "NodePort", "externalTrafficPolicy": "Cluster", "internalTrafficPolicy": "Cluster"}});
        // (type, field that the client changed, what is left)
        let cases = [
            ("ExternalName", None, json!({"type": "ExternalName"})),
            ("ClusterIP", None, json!({"type": "ClusterIP", "internalTrafficPolicy": "Cluster"})),
            ("ExternalName", Some("externalTrafficPolicy"), json!({"type": "ExternalName", "externalTrafficPolicy": "Local"})),
        ];
        for (kind, changed, expected) in cases {
            let mut new = old.clone();
            new["spec"]["type"] = kind.into();
            changed.into_iter().for_each(|it| new["spec"][it] = "Local".into());
            prepare(&mut new, Change::Update(&old));
            assert_eq!(new["spec"], expected, "{kind}");
        }
    }

    #[test]
    fn what_affinity_and_addresses_need_is_filled_in() {
        let service = filled("Service", json!({"spec": {"type": "LoadBalancer", "sessionAffinity": "None", "sessionAffinityConfig": {}}, "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}}}));
        assert_eq!(service["spec"].get("sessionAffinityConfig"), None);
        assert_eq!(service["status"]["loadBalancer"]["ingress"], json!([{"ip": "192.0.2.1", "ipMode": "VIP"}]));
    }
}
