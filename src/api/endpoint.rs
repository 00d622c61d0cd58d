//! From a Service to the address of one of its ready endpoints, for the server's own calls: webhooks and aggregated APIs. The server need not
//! be on a node, so that it goes to the endpoints and not to the cluster address.
//! Source: apiserver `pkg/util/proxy/proxy.go` (`ResolveEndpoint`).

use crate::{
    meta::{
        Meta, Result, Status, Value,
        object::GroupResource,
    },
    store::{Key, Snapshot},
};

const SLICES: &str = "discovery.k8s.io/endpointslices";
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Address and port of a ready endpoint of a Service's port; 503 where none is ready.
pub fn resolve(snapshot: &Snapshot, namespace: &str, name: &str, port: i64) -> Result<(String, u16)> {
    let stored = snapshot.get(&Key::new("services", namespace, name));
    let service = stored.map(|it| it.value()).ok_or_else(|| Status::not_found(&GroupResource::new("", "services"), name))?;
    let kind = service.text_at(&["spec", "type"]);
    if !matches!(kind, "ClusterIP" | "LoadBalancer" | "NodePort") {
        return Err(Status::internal(format!("unsupported service type {kind:?}")));
    }
    let declared = service.items_at(&["spec", "ports"]).iter().find(|it| it.int_at(&["port"]) == Some(port));
    let declared = declared.ok_or_else(|| Status::unavailable(format!("no service port {port} found for service {name:?}")))?;
    let slices = snapshot.list(SLICES, Some(namespace), None).filter(|it| it.header.label(SERVICE_NAME) == Some(name)).map(|it| it.value());
    let slices: Vec<Value> = slices.collect();
    let family = service.items_at(&["spec", "ipFamilies"]).first().and_then(Value::as_str).unwrap_or("IPv4");
    choose(&slices, declared.text("name"), family, random())
        .ok_or_else(|| Status::unavailable(format!("no endpoints available for service {name:?}")))
}

fn random() -> usize {
    uuid::Uuid::new_v4().as_fields().0 as usize
}

/// One of the ready endpoints that have the port, of the preferred family if there are any.
fn choose(slices: &[Value], port: &str, family: &str, turn: usize) -> Option<(String, u16)> {
    let (preferred, others): (Vec<&Value>, Vec<&Value>) = slices.iter().partition(|it| it.text("addressType") == family);
    [preferred, others].iter().find_map(|slices| {
        let ready: Vec<(String, u16)> = slices.iter().flat_map(|it| endpoints(it, port)).collect();
        let at = turn.checked_rem(ready.len())?;
        ready.into_iter().nth(at)
    })
}

fn endpoints(slice: &Value, port: &str) -> Vec<(String, u16)> {
    let named = slice.items_at(&["ports"]).iter().find(|it| it.text("name") == port);
    let Some(number) = named.and_then(|it| u16::try_from(it.int_at(&["port"])?).ok()) else { return Vec::new() };
    let ready = slice.items_at(&["endpoints"]).iter().filter(|it| it.at(&["conditions", "ready"]) != Some(&Value::Bool(false)));
    ready.filter_map(|it| Some((it.items_at(&["addresses"]).first()?.as_str()?.to_owned(), number))).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_ready_endpoint_of_the_right_port_is_chosen() {
        let slice = |family: &str, address: &str, ready: Option<bool>| {
            json!({"addressType": family, "ports": [{"name": "web", "port": 8444}, {"name": "other", "port": 1}], "endpoints": [{"addresses": [address], "conditions": {"ready": ready}}]})
        };
        let four = slice("IPv4", "10.0.0.1", Some(true));
        let cases = [
            (vec![four.clone()], "web", Some("10.0.0.1")),
            (vec![four.clone()], "none", None),
            (vec![slice("IPv4", "10.0.0.1", Some(false))], "web", None),
            (vec![slice("IPv4", "10.0.0.2", None)], "web", Some("10.0.0.2")),
            (vec![slice("IPv6", "fd00::1", None), four], "web", Some("10.0.0.1")),
            (vec![slice("IPv6", "fd00::1", None)], "web", Some("fd00::1")),
            (Vec::new(), "web", None),
        ];
        for (slices, port, expected) in cases {
            for turn in 0..3 {
                let chosen = choose(&slices, port, "IPv4", turn);
                assert_eq!(chosen, expected.map(|it| (it.to_owned(), 8444)), "{slices:?} {port}");
            }
        }
    }
}
