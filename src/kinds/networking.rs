//! Ingresses, network policies and endpoints: defaults and checks.
//! Source: `pkg/apis/networking/{v1/defaults.go,validation}`, `pkg/registry/networking`.

use serde_json::json;

use super::{
    Strategy,
    check::{each, fill, fill_absent},
};
use crate::meta::{Meta, Value, names};

pub const INGRESS: Strategy = Strategy { has_generation: true, resets_status: true, ..Strategy::PLAIN };
pub const INGRESS_CLASS: Strategy = Strategy { default: default_ingress_class, has_generation: true, ..Strategy::PLAIN };
pub const NETWORK_POLICY: Strategy = Strategy { default: default_network_policy, has_generation: true, ..Strategy::PLAIN };
pub const ENDPOINTS: Strategy = Strategy { default: default_endpoints, creates_on_update: true, ..Strategy::PLAIN };
pub const ENDPOINT_SLICE: Strategy = Strategy { default: default_endpoint_slice, has_generation: true, ..Strategy::PLAIN };
pub const IP_ADDRESS: Strategy = Strategy { name: ip_name, ..Strategy::PLAIN };

/// `ValidateIPAddressName`: an address as it is usually written.
fn ip_name(name: &str) -> names::Problems {
    match name.parse::<core::net::IpAddr>() {
        Err(_) => vec!["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".into()],
        Ok(address) if address.to_string() != name => vec![format!("must be in canonical form (\"{address}\")").into()],
        Ok(_) => names::Problems::new(),
    }
}

fn default_endpoints(object: &mut Value) {
    for subset in each(object, &["subsets"]) {
        each(subset, &["ports"]).for_each(|port| fill(port, "protocol", "TCP"));
    }
}

fn default_endpoint_slice(object: &mut Value) {
    for port in each(object, &["ports"]) {
        fill_absent(port, "name", "");
        fill_absent(port, "protocol", "TCP");
    }
}

fn default_ingress_class(object: &mut Value) {
    if object.at(&["spec", "parameters"]).is_some() {
        fill_absent(&mut object["spec"]["parameters"], "scope", "Cluster");
    }
}

fn default_network_policy(object: &mut Value) {
    let has_egress = object.at(&["spec", "egress"]).is_some_and(|it| it.as_array().is_some_and(|it| !it.is_empty()));
    if object.items_at(&["spec", "policyTypes"]).is_empty() {
        object.set_at(&["spec", "policyTypes"], if has_egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) });
    }
    for direction in ["ingress", "egress"] {
        for rule in each(object, &["spec", direction]) {
            each(rule, &["ports"]).for_each(|port| fill_absent(port, "protocol", "TCP"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_endpoints_are_tcp_where_they_say_nothing() {
        let mut endpoints = json!({"subsets": [{"ports": [{"port": 80}, {"port": 53, "protocol": "UDP"}]}]});
        default_endpoints(&mut endpoints);
        assert_eq!(endpoints["subsets"][0]["ports"], json!([{"port": 80, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]));
        let mut slice = json!({"ports": [{"port": 80}]});
        default_endpoint_slice(&mut slice);
        assert_eq!(slice["ports"], json!([{"port": 80, "name": "", "protocol": "TCP"}]));
    }

    #[test]
    fn policies_say_what_they_are_about() {
        let mut policy = json!({"spec": {"egress": [{"ports": [{"port": 1}]}]}});
        default_network_policy(&mut policy);
        assert_eq!(policy["spec"], json!({"policyTypes": ["Ingress", "Egress"], "egress": [{"ports": [{"port": 1, "protocol": "TCP"}]}]}));
    }
}
