//! From a Service to the address of one of its ready endpoints, for the server's own calls: webhooks and aggregated APIs. The server need not
//! be on a node, so that it goes to the endpoints and not to the cluster address.
//! Source: apiserver `pkg/util/proxy/proxy.go` (`ResolveEndpoint`).

use std::sync::Arc;

use crate::{
    meta::{Meta, Result, Status, Value, object::GroupResource},
    store::{Key, Snapshot, Stored},
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
    let declared = declared(&service, port).ok_or_else(|| Status::unavailable(format!("no service port {port} found for service {name:?}")))?;
    let family = service.items_at(&["spec", "ipFamilies"]).first().and_then(Value::as_str).unwrap_or("IPv4");
    choose(&slices(snapshot, namespace, name), declared.text("name"), family)
        .ok_or_else(|| Status::unavailable(format!("no endpoints available for service {name:?}")))
}

/// One of the ready endpoints that have the port, of the preferred family if there are any.
fn choose(slices: &[Value], port: &str, family: &str) -> Option<(String, u16)> {
    let (preferred, others): (Vec<&Value>, Vec<&Value>) = slices.iter().partition(|it| it.text("addressType") == family);
    let found = |slices: Vec<&Value>| any(slices.into_iter().flat_map(|it| ready(it, port)).map(|(_, address, port)| (address.to_owned(), port)));
    found(preferred).or_else(|| found(others))
}

/// The port of this number in a Service.
pub fn declared(service: &Value, port: i64) -> Option<&Value> {
    service.items_at(&["spec", "ports"]).iter().find(|it| it.int_at(&["port"]) == Some(port))
}

/// The EndpointSlices of a Service.
pub fn slices(snapshot: &Snapshot, namespace: &str, name: &str) -> Vec<Value> {
    stored_slices(snapshot, namespace, name).map(|it| it.value()).collect()
}

pub fn stored_slices<'a>(snapshot: &'a Snapshot, namespace: &'a str, name: &'a str) -> impl Iterator<Item = &'a Arc<Stored>> {
    snapshot.list(SLICES, Some(namespace), None).filter(move |it| it.header.label(SERVICE_NAME) == Some(name))
}

/// The ready endpoints of a slice, each with its address and the number of the port of this name; none without the port.
pub fn ready<'a>(slice: &'a Value, port: &str) -> impl Iterator<Item = (&'a Value, &'a str, u16)> + use<'a> {
    let named = slice.items_at(&["ports"]).iter().find(|it| it.text("name") == port);
    let number = named.and_then(|it| u16::try_from(it.int_at(&["port"])?).ok());
    let is_ready = |it: &&Value| it.at(&["conditions", "ready"]) != Some(&Value::Bool(false));
    let ready = slice.items_at(&["endpoints"]).iter().filter(is_ready);
    ready.filter_map(move |it| Some((it, it.items_at(&["addresses"]).first()?.as_str()?, number?)))
}

/// One of them by chance.
pub fn any<T>(all: impl Iterator<Item = T>) -> Option<T> {
    let all: Vec<T> = all.collect();
    let at = (uuid::Uuid::new_v4().as_fields().0 as usize).checked_rem(all.len())?;
    all.into_iter().nth(at)
}

/// `host:port`, an IPv6 address in brackets.
pub fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
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
            for _ in 0..3 {
                let chosen = choose(&slices, port, "IPv4");
                assert_eq!(chosen, expected.map(|it| (it.to_owned(), 8444)), "{slices:?} {port}");
            }
        }
    }
}
