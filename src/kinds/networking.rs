//! Ingresses and network policies: defaults and checks.
//! Source: `pkg/apis/networking/{v1/defaults.go,validation}`, `pkg/registry/networking`.

use serde_json::json;

use super::{
    Change, Strategy,
    check::{each, fill, fill_at, one_of, required},
};
use crate::meta::{FieldError, FieldErrors, Meta, Path, Value, names};

pub const INGRESS: Strategy = Strategy { validate: validate_ingress, has_generation: true, resets_status: true, ..Strategy::PLAIN };
pub const INGRESS_CLASS: Strategy = Strategy { default: default_ingress_class, has_generation: true, ..Strategy::PLAIN };
pub const NETWORK_POLICY: Strategy = Strategy { default: default_network_policy, validate: validate_network_policy, has_generation: true, ..Strategy::PLAIN };
pub const IP_ADDRESS: Strategy = Strategy { name: ip_name, validate: validate_ip_address, ..Strategy::PLAIN };

/// `ValidateIPAddressName`: an address as it is usually written.
fn ip_name(name: &str) -> names::Problems {
    let is_canonical = name.parse::<core::net::IpAddr>().is_ok_and(|it| it.to_string() == name);
    if is_canonical { names::Problems::new() } else { vec!["must be a valid IP address in canonical form (e.g. 10.9.8.7 or 2001:db8::ffff)".into()] }
}

fn validate_ip_address(object: &Value, _: Change<'_>) -> FieldErrors {
    let (mut errors, path) = (FieldErrors::new(), Path::new("spec").child("parentRef"));
    match object.at(&["spec", "parentRef"]) {
        None => errors.push(FieldError::required(&path, "")),
        Some(parent) => ["resource", "name"].into_iter().filter(|it| parent.text(it).is_empty()).for_each(|it| errors.push(FieldError::required(&path.child(it), ""))),
    }
    errors
}

fn default_ingress_class(object: &mut Value) {
    if object.at(&["spec", "parameters"]).is_some() {
        fill_at(object, &["spec", "parameters", "scope"], "Cluster");
    }
}

fn validate_ingress(object: &Value, change: Change<'_>) -> FieldErrors {
    let (mut errors, path) = (FieldErrors::new(), Path::new("spec"));
    if let Change::Part(..) = change {
        return errors;
    }
    let spec = &object["spec"];
    if spec.items_at(&["rules"]).is_empty() && spec.get("defaultBackend").is_none() {
        errors.push(FieldError::invalid(&path, spec.clone(), "either `defaultBackend` or `rules` must be specified"));
    }
    if let Some(backend) = spec.get("defaultBackend") {
        validate_backend(backend, &path.child("defaultBackend"), &mut errors);
    }
    for (at, rule) in spec.items_at(&["rules"]).iter().enumerate() {
        let path = path.child("rules").index(at);
        let host = rule.text("host");
        if !host.is_empty() {
            let name = host.strip_prefix("*.").unwrap_or(host);
            super::check::all(names::dns1123_subdomain(name), host, &path.child("host"), &mut errors);
        }
        for (at, own) in rule.items_at(&["http", "paths"]).iter().enumerate() {
            let path = path.child("http").child("paths").index(at);
            match own.text("pathType") {
                "" => errors.push(FieldError::required(&path.child("pathType"), "pathType must be specified")),
                "ImplementationSpecific" => (),
                "Exact" | "Prefix" if own.text("path").starts_with('/') => (),
                "Exact" | "Prefix" => errors.push(FieldError::invalid(&path.child("path"), own.text("path"), "must be an absolute path")),
                _ => one_of(own, "pathType", &["Exact", "ImplementationSpecific", "Prefix"], &path, &mut errors),
            }
            validate_backend(&own["backend"], &path.child("backend"), &mut errors);
        }
    }
    errors
}

fn validate_backend(backend: &Value, path: &Path, errors: &mut FieldErrors) {
    match (backend.get("service"), backend.get("resource")) {
        (Some(_), Some(_)) => errors.push(FieldError::invalid(path, "", "cannot set both resource and service backends")),
        (None, None) => errors.push(FieldError::required(path, "resource or service backend is required")),
        (None, Some(_)) => (),
        (Some(service), None) => {
            let path = path.child("service");
            required(service, "name", &path, errors);
            let (name, number) = (service.text_at(&["port", "name"]), service.int_at(&["port", "number"]).unwrap_or(0));
            if name.is_empty() && number == 0 {
                errors.push(FieldError::required(&path, "port name or number is required"));
            }
        }
    }
}

fn default_network_policy(object: &mut Value) {
    let has_egress = object.at(&["spec", "egress"]).is_some_and(|it| it.as_array().is_some_and(|it| !it.is_empty()));
    if object.items_at(&["spec", "policyTypes"]).is_empty() {
        object.set_at(&["spec", "policyTypes"], if has_egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) });
    }
    for direction in ["ingress", "egress"] {
        for rule in each(object, &["spec", direction]) {
            each(rule, &["ports"]).for_each(|port| fill(port, "protocol", "TCP"));
        }
    }
}

fn validate_network_policy(object: &Value, _: Change<'_>) -> FieldErrors {
    let (mut errors, path) = (FieldErrors::new(), Path::new("spec"));
    for (at, kind) in object.items_at(&["spec", "policyTypes"]).iter().filter_map(Value::as_str).enumerate() {
        if !["Egress", "Ingress"].contains(&kind) {
            errors.push(FieldError::not_supported(&path.child("policyTypes").index(at), kind, &["Egress", "Ingress"]));
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ingresses_need_a_backend() {
        let errors = |spec: Value| validate_ingress(&json!({"spec": spec}), Change::Create).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(errors(json!({"defaultBackend": {"service": {"name": "a", "port": {"number": 80}}}})), Vec::<String>::new());
        assert_eq!(errors(json!({"rules": [{"http": {"paths": [{"path": "a", "pathType": "Exact", "backend": {}}]}}]})), [
            "spec.rules[0].http.paths[0].path: Invalid value: \"a\": must be an absolute path",
            "spec.rules[0].http.paths[0].backend: Required value: resource or service backend is required",
        ]);
    }

    #[test]
    fn policies_say_what_they_are_about() {
        let mut policy = json!({"spec": {"egress": [{"ports": [{"port": 1}]}]}});
        default_network_policy(&mut policy);
        assert_eq!(policy["spec"], json!({"policyTypes": ["Ingress", "Egress"], "egress": [{"ports": [{"port": 1, "protocol": "TCP"}]}]}));
    }
}
