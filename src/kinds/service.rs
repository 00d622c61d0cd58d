//! Services: defaults and checks. Addresses and node ports are allocated by the API floor.
//! Source: `pkg/apis/core/v1/defaults.go`, `pkg/apis/core/validation/validation.go` (`ValidateService`).

use serde_json::json;

use super::{
    Change, Strategy,
    check::{each, fill},
};
use crate::meta::{Meta, Value, names};

pub const SERVICE: Strategy = Strategy { default, prepare, name: names::dns1035_label, resets_status: true, ..Strategy::PLAIN };

fn default(service: &mut Value) {
    let spec = &mut service["spec"];
    fill(spec, "sessionAffinity", "None");
    fill(spec, "type", "ClusterIP");
    if spec.text("sessionAffinity") == "ClientIP" && spec.at(&["sessionAffinityConfig", "clientIP", "timeoutSeconds"]).is_none() {
        spec.set_at(&["sessionAffinityConfig", "clientIP", "timeoutSeconds"], 10_800);
    }
    for port in each(spec, &["ports"]) {
        fill(port, "protocol", "TCP");
        let number = port.get("port").cloned().unwrap_or_default();
        if port.get("targetPort").is_none_or(|it| *it == 0 || *it == "") {
            port["targetPort"] = number;
        }
    }
    let kind = spec.text("type").to_owned();
    if matches!(kind.as_str(), "NodePort" | "LoadBalancer") {
        fill(spec, "externalTrafficPolicy", "Cluster");
    }
    if kind == "LoadBalancer" {
        fill(spec, "allocateLoadBalancerNodePorts", true);
    }
    if kind != "ExternalName" {
        fill(spec, "internalTrafficPolicy", "Cluster");
    }
}

fn prepare(service: &mut Value, change: Change<'_>) {
    if let Change::Create = change {
        service["status"] = json!({"loadBalancer": {}});
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_get_defaults() {
        let mut service = json!({"spec": {"ports": [{"port": 80}]}});
        default(&mut service);
        assert_eq!(
            service["spec"],
            json!({"type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster", "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}]})
        );
    }
}
