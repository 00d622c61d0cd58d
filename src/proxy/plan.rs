//! Which front of a Service reaches which backends: a pure function of Services, EndpointSlices and the node's pods.
//! Source: upstream `pkg/proxy/{serviceport,endpoints,topology}.go`.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use k8s_openapi::api::{
    core::v1::{Pod, Service, ServicePort},
    discovery::v1::{Endpoint, EndpointPort, EndpointSlice},
};

use crate::client::pods::is_terminal;

/// `IPPROTO_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    Tcp = 6,
    Udp = 17,
    Sctp = 132,
}

impl Protocol {
    fn parse(text: Option<&str>) -> Option<Self> {
        match text.unwrap_or("TCP") {
            "TCP" => Some(Self::Tcp),
            "UDP" => Some(Self::Udp),
            "SCTP" => Some(Self::Sctp),
            _ => None,
        }
    }
}

/// Where traffic arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Front {
    /// A cluster IP, external IP or load balancer's IP.
    /// An address that belongs to the Service alone: other ports of it refuse.
    Cluster(IpAddr, Protocol, u16),
    Address(IpAddr, Protocol, u16),
    /// Any address of this node: a node port or a pod's host port.
    Node(Protocol, u16),
}

/// Where it goes: one of `backends`, at random, or by client for a while.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Balance {
    pub backends: BTreeSet<(IpAddr, u16)>,
    /// Session affinity by client IP, in seconds.
    pub affinity: Option<u32>,
}

/// What identifies the fronts that share a balance over time: `default/web:http`, and `:local` when only this node's count.
pub type Name = String;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    pub name: Name,
    pub fronts: Vec<Front>,
    pub balance: Balance,
}

/// The groups of one Service. None for headless ones and those without addresses.
pub fn service(service: &Service, slices: &[Arc<EndpointSlice>], node: &str) -> Vec<Group> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let is_proxied = spec.type_.as_deref() != Some("ExternalName") && spec.cluster_ip.as_deref().is_some_and(|it| it != "None" && !it.is_empty());
    if !is_proxied {
        return Vec::new();
    }
    spec.ports.iter().flatten().flat_map(|port| port_groups(service, port, slices, node)).collect()
}

fn port_groups(service: &Service, port: &ServicePort, slices: &[Arc<EndpointSlice>], node: &str) -> Vec<Group> {
    let (Some(spec), Some(protocol), Ok(number)) = (&service.spec, Protocol::parse(port.protocol.as_deref()), u16::try_from(port.port)) else {
        return Vec::new();
    };
    let address = |text: &String| text.parse().ok().map(|ip| Front::Address(ip, protocol, number));
    let cluster = spec.cluster_ips.iter().flatten().filter_map(|it| it.parse().ok().map(|ip| Front::Cluster(ip, protocol, number)));
    let balanced = status_ips(service).chain(spec.external_ips.iter().flatten().cloned()).collect::<Vec<_>>();
    let node_port = port.node_port.and_then(|it| u16::try_from(it).ok()).filter(|it| *it > 0).map(|it| Front::Node(protocol, it));
    let external = balanced.iter().filter_map(address).chain(node_port);

    let affinity = (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
        let timeout = spec.session_affinity_config.as_ref().and_then(|it| it.client_ip.as_ref()?.timeout_seconds);
        timeout.and_then(|it| u32::try_from(it).ok()).unwrap_or(10_800)
    });
    let group = |fronts: Vec<Front>, is_local: bool| {
        let backends = backends(slices, port, protocol, is_local.then_some(node));
        let suffix = if is_local { ":local" } else { "" };
        let meta = &service.metadata;
        let name = format!(
            "{}/{}:{}/{}{suffix}",
            meta.namespace.as_deref().unwrap_or_default(),
            meta.name.as_deref().unwrap_or_default(),
            port.name.as_deref().unwrap_or_default(),
            number
        );
        Group { name, fronts, balance: Balance { backends, affinity } }
    };
    let is_internal_local = spec.internal_traffic_policy.as_deref() == Some("Local");
    let is_external_local = spec.external_traffic_policy.as_deref() == Some("Local");
    if is_internal_local == is_external_local {
        return vec![group(cluster.chain(external).collect(), is_internal_local)];
    }
    vec![group(cluster.collect(), is_internal_local), group(external.collect(), is_external_local)]
}

fn status_ips(service: &Service) -> impl Iterator<Item = String> {
    let balancer = service.status.as_ref().and_then(|it| it.load_balancer.as_ref());
    balancer.and_then(|it| it.ingress.as_ref()).into_iter().flatten().filter_map(|it| it.ip.clone())
}

/// The endpoints that serve `port`: the ready ones, or those that terminate but still serve when none is ready.
fn backends(slices: &[Arc<EndpointSlice>], port: &ServicePort, protocol: Protocol, node: Option<&str>) -> BTreeSet<(IpAddr, u16)> {
    let is_here = |endpoint: &&Endpoint| node.is_none_or(|node| endpoint.node_name.as_deref() == Some(node));
    let select = |is_chosen: fn(&Endpoint) -> bool| -> BTreeSet<(IpAddr, u16)> {
        let matching = slices.iter().flat_map(|slice| {
            let ports = slice.ports.iter().flatten().filter(|it| is_port(it, port, protocol)).filter_map(|it| u16::try_from(it.port?).ok());
            let ports: Vec<u16> = ports.collect();
            slice.endpoints.iter().flatten().filter(is_here).filter(|it| is_chosen(it)).flat_map(move |it| {
                let addresses: Vec<IpAddr> = it.addresses.iter().filter_map(|it| it.parse().ok()).collect();
                ports.clone().into_iter().flat_map(move |port| addresses.clone().into_iter().map(move |ip| (ip, port)))
            })
        });
        matching.collect()
    };
    let ready = select(|it| it.conditions.as_ref().and_then(|it| it.ready) != Some(false));
    if !ready.is_empty() {
        return ready;
    }
    select(|it| it.conditions.as_ref().is_some_and(|it| it.serving == Some(true) && it.terminating == Some(true)))
}

fn is_port(have: &EndpointPort, want: &ServicePort, protocol: Protocol) -> bool {
    have.name.as_deref().unwrap_or_default() == want.name.as_deref().unwrap_or_default() && Protocol::parse(have.protocol.as_deref()) == Some(protocol)
}

/// The host ports of a pod that runs on this node.
pub fn pod(pod: &Pod) -> Vec<Group> {
    let ip = pod.status.as_ref().and_then(|it| it.pod_ip.as_ref()?.parse::<IpAddr>().ok());
    let (Some(spec), Some(ip)) = (&pod.spec, ip) else { return Vec::new() };
    if is_terminal(pod) || spec.host_network == Some(true) {
        return Vec::new();
    }
    let ports = spec.containers.iter().flat_map(|it| it.ports.iter().flatten());
    let groups = ports.filter_map(|port| {
        let protocol = Protocol::parse(port.protocol.as_deref())?;
        let host_port = u16::try_from(port.host_port?).ok().filter(|it| *it > 0)?;
        let front = match port.host_ip.as_deref().and_then(|it| it.parse::<IpAddr>().ok()).filter(|it| !it.is_unspecified()) {
            Some(ip) => Front::Address(ip, protocol, host_port),
            None => Front::Node(protocol, host_port),
        };
        let name = format!("pod:{}:{}/{host_port}", pod.metadata.uid.as_deref().unwrap_or_default(), protocol as u8);
        let backends = BTreeSet::from([(ip, u16::try_from(port.container_port).ok()?)]);
        Some(Group { name, fronts: vec![front], balance: Balance { backends, affinity: None } })
    });
    groups.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn slices() -> [Arc<EndpointSlice>; 1] {
        let endpoint = |ip: &str, node: &str, ready: bool, terminating: bool| json!({"addresses": [ip], "nodeName": node,
            "conditions": {"ready": ready, "serving": true, "terminating": terminating}});
        let slice = json!({"addressType": "IPv4", "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}], "endpoints": [
            endpoint("10.244.0.1", "a", true, false), endpoint("10.244.1.1", "b", true, false), endpoint("10.244.0.2", "a", false, true)]});
        [Arc::new(serde_json::from_value(slice).expect("a slice"))]
    }

    fn groups(spec: Value) -> Vec<(String, Vec<Front>, Vec<String>)> {
        let object = json!({"metadata": {"namespace": "default", "name": "web"}, "spec": spec});
        let object: Service = serde_json::from_value(object).expect("a Service");
        let groups = service(&object, &slices(), "a").into_iter();
        groups.map(|it| (it.name, it.fronts, it.balance.backends.iter().map(|(ip, port)| format!("{ip}:{port}")).collect())).collect()
    }

    #[test]
    fn services_reach_their_ready_endpoints() {
        let vip = Front::Cluster("10.96.0.5".parse().expect("an address"), Protocol::Tcp, 80);
        let port = json!([{"name": "http", "port": 80, "nodePort": 30080}]);
        let all = vec!["10.244.0.1:8080".to_owned(), "10.244.1.1:8080".to_owned()];
        let own = vec!["10.244.0.1:8080".to_owned()];
        let plain = json!({"clusterIP": "10.96.0.5", "clusterIPs": ["10.96.0.5"], "ports": port});
        assert_eq!(groups(plain), [("default/web:http/80".to_owned(), vec![vip, Front::Node(Protocol::Tcp, 30080)], all.clone())]);
        let local = json!({"clusterIP": "10.96.0.5", "clusterIPs": ["10.96.0.5"], "externalTrafficPolicy": "Local", "ports": port});
        let expected = [
            ("default/web:http/80".to_owned(), vec![vip], all),
            ("default/web:http/80:local".to_owned(), vec![Front::Node(Protocol::Tcp, 30080)], own),
        ];
        assert_eq!(groups(local), expected);
        assert_eq!(groups(json!({"clusterIP": "None", "ports": port})), []);
        let other = json!({"clusterIP": "10.96.0.5", "clusterIPs": ["10.96.0.5"], "ports": [{"name": "other", "port": 1}]});
        assert_eq!(groups(other)[0].2, Vec::<String>::new());
    }

    #[test]
    fn host_ports_lead_to_the_pod() {
        let object = json!({"metadata": {"uid": "u"}, "spec": {"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 8080}]}]},
            "status": {"podIP": "10.244.0.9"}});
        let groups = pod(&serde_json::from_value(object).expect("a Pod"));
        assert_eq!(groups[0].fronts, [Front::Node(Protocol::Tcp, 8080)]);
        assert_eq!(groups[0].balance.backends, BTreeSet::from([("10.244.0.9".parse().expect("an address"), 80)]));
    }
}
