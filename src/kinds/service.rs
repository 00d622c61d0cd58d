//! Services: defaults and checks. Addresses and node ports are allocated by the API floor.
//! Source: `pkg/apis/core/v1/defaults.go`, `pkg/apis/core/validation/validation.go` (`ValidateService`).

use serde_json::json;

use super::{
    Change, Strategy,
    check::{all, each, fill, one_of},
};
use crate::meta::{FieldError, FieldErrors, Meta, Path, Value, names};

pub const SERVICE: Strategy = Strategy { default, prepare, validate, name: names::dns1035_label, resets_status: true, ..Strategy::PLAIN };

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

fn validate(service: &Value, change: Change<'_>) -> FieldErrors {
    let mut errors = FieldErrors::new();
    let (path, spec) = (Path::new("spec"), &service["spec"]);
    one_of(spec, "type", &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"], &path, &mut errors);
    let is_headless = spec.text("clusterIP") == "None";
    let ports = spec.items_at(&["ports"]);
    match spec.text("type") {
        "ExternalName" => {
            let name = spec.text("externalName").trim_end_matches('.');
            if name.is_empty() {
                errors.push(FieldError::required(&path.child("externalName"), ""));
            } else {
                all(names::dns1123_subdomain(name), name, &path.child("externalName"), &mut errors);
            }
        }
        _ if ports.is_empty() && !is_headless => errors.push(FieldError::required(&path.child("ports"), "")),
        _ => (),
    }
    validate_ports(spec, ports, &path.child("ports"), &mut errors);
    one_of(spec, "sessionAffinity", &["ClientIP", "None"], &path, &mut errors);
    for (key, value) in spec.map_at(&["selector"]).into_iter().flatten() {
        let path = path.child("selector");
        all(names::qualified_name(key), key, &path, &mut errors);
        all(names::label_value(value.as_str().unwrap_or_default()), value.as_str().unwrap_or_default(), &path, &mut errors);
    }
    if let Some(old) = change.old() {
        let (now, before) = (spec.text("clusterIP"), old.text_at(&["spec", "clusterIP"]));
        let both_have = spec.text("type") != "ExternalName" && old.text_at(&["spec", "type"]) != "ExternalName";
        if both_have && !before.is_empty() && now != before {
            let ips = spec.get("clusterIPs").cloned().unwrap_or_else(|| json!([now]));
            errors.push(FieldError::invalid(&path.child("clusterIPs").index(0), ips, "may not change once set"));
        }
    }
    errors
}

fn validate_ports(spec: &Value, ports: &[Value], path: &Path, errors: &mut FieldErrors) {
    let (mut seen_names, mut seen_ports) = (Vec::new(), Vec::new());
    for (at, port) in ports.iter().enumerate() {
        let (path, name) = (path.index(at), port.text("name"));
        if name.is_empty() && ports.len() > 1 {
            errors.push(FieldError::required(&path.child("name"), ""));
        } else if !name.is_empty() {
            all(names::dns1123_label(name), name, &path.child("name"), errors);
            if seen_names.contains(&name) {
                errors.push(FieldError::duplicate(&path.child("name"), name));
            }
            seen_names.push(name);
        }
        let number = port.int_at(&["port"]).unwrap_or(0);
        errors.extend(names::port_number(number).into_iter().map(|it| FieldError::invalid(&path.child("port"), number, it)));
        one_of(port, "protocol", &["SCTP", "TCP", "UDP"], &path, errors);
        match &port["targetPort"] {
            Value::String(text) => all(names::port_name(text), text, &path.child("targetPort"), errors),
            other => {
                let target = other.as_i64().unwrap_or(0);
                errors.extend(names::port_number(target).into_iter().map(|it| FieldError::invalid(&path.child("targetPort"), target, it)));
            }
        }
        if spec.text("type") == "ClusterIP" && port.int_at(&["nodePort"]).unwrap_or(0) != 0 {
            errors.push(FieldError::forbidden(&path.child("nodePort"), "may not be used when `type` is 'ClusterIP'"));
        }
        let key = (port.text("protocol"), number);
        if seen_ports.contains(&key) {
            let value = json!({"port": number, "protocol": key.0, "targetPort": 0});
            errors.push(FieldError::duplicate(&path, value));
        }
        seen_ports.push(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_get_defaults_and_errors() {
        let mut service = json!({"spec": {"ports": [{"port": 80}]}});
        default(&mut service);
        assert_eq!(
            service["spec"],
            json!({"type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster", "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}]})
        );
        let cases = [
            (json!({"type": "ClusterIP"}), vec!["spec.ports: Required value"]),
            (
                json!({"type": "ClusterIP", "ports": [{"port": 0, "targetPort": 1}]}),
                vec!["spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive"],
            ),
            (json!({"type": "ExternalName"}), vec!["spec.externalName: Required value"]),
        ];
        for (spec, expected) in cases {
            let errors: Vec<String> = validate(&json!({"spec": spec}), Change::Create).iter().map(ToString::to_string).collect();
            assert_eq!(errors, expected);
        }
    }
}
