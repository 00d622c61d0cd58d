//! Ingresses, network policies and endpoints: defaults and checks.
//! Source: `pkg/apis/networking/{v1/defaults.go,validation}`, `pkg/registry/networking`.

use serde_json::json;

use super::Strategy;
use crate::meta::{Meta, Value, names};

pub const NETWORK_POLICY: Strategy = Strategy { default: default_network_policy, ..Strategy::PLAIN };
pub const IP_ADDRESS: Strategy = Strategy { name: ip_name, ..Strategy::PLAIN };

/// `ValidateIPAddressName`: an address as it is usually written.
fn ip_name(name: &str) -> names::Problems {
    match name.parse::<core::net::IpAddr>() {
        Err(_) => vec!["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".into()],
        Ok(address) if address.to_string() != name => vec![format!("must be in canonical form (\"{address}\")").into()],
        Ok(_) => names::Problems::new(),
    }
}

fn default_network_policy(object: &mut Value) {
    let has_egress = object.at(&["spec", "egress"]).is_some_and(|it| it.as_array().is_some_and(|it| !it.is_empty()));
    if object.items_at(&["spec", "policyTypes"]).is_empty() {
        object.set_at(&["spec", "policyTypes"], if has_egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_say_what_they_are_about() {
        let mut policy = json!({"spec": {"egress": [{"ports": [{"port": 1}]}]}});
        default_network_policy(&mut policy);
        assert_eq!(policy["spec"], json!({"policyTypes": ["Ingress", "Egress"], "egress": [{"ports": [{"port": 1}]}]}));
    }
}
