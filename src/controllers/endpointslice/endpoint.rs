//! One pod as an endpoint of a service: its address, ports and conditions. Follows staging endpointslice/utils.go.

use std::{collections::BTreeMap, net::IpAddr};

use k8s_openapi::{
    api::{
        core::v1::{ObjectReference, Pod, Service, ServicePort},
        discovery::v1::{Endpoint, EndpointConditions, EndpointPort},
    },
    apimachinery::pkg::util::intstr::IntOrString,
};
use kube::ResourceExt;

use crate::controllers::pods;

pub const HEADLESS: &str = "service.kubernetes.io/headless";
pub const ZONE: &str = "topology.kubernetes.io/zone";

/// A pod behind a service.
pub struct Source<'a> {
    pub service: &'a Service,
    pub pod: &'a Pod,
}

pub fn has_selector(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    spec.and_then(|it| it.type_.as_deref()) != Some("ExternalName") && spec.is_some_and(|it| it.selector.is_some())
}

pub fn selects(service: &Service, pod: &Pod) -> bool {
    let selector = service.spec.as_ref().and_then(|it| it.selector.as_ref());
    has_selector(service) && selector.into_iter().flatten().all(|(key, value)| pod.labels().get(key) == Some(value))
}

/// `!IsServiceIPSet`.
pub fn is_headless(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    spec.and_then(|it| it.type_.as_deref()) != Some("ExternalName")
        && matches!(spec.and_then(|it| it.cluster_ip.as_deref()), None | Some("" | "None"))
}

/// The service's own labels, whether it is headless, and `more`: what its endpoints are found by.
pub fn labels<const N: usize>(service: &Service, more: [(&str, &str); N]) -> BTreeMap<String, String> {
    let mut labels = service.labels().clone();
    labels.remove(HEADLESS);
    let headless = is_headless(service).then_some((HEADLESS, ""));
    labels.extend(headless.into_iter().chain(more).map(|(key, value)| (key.to_owned(), value.to_owned())));
    labels
}

pub fn publishes_not_ready(service: &Service) -> bool {
    service.spec.as_ref().and_then(|it| it.publish_not_ready_addresses).unwrap_or(false)
}

pub fn address_types(service: &Service) -> Vec<&'static str> {
    let families = service.spec.as_ref().and_then(|it| it.ip_families.as_deref()).unwrap_or_default();
    let mut types: Vec<&str> = families.iter().map(|it| if it == "IPv6" { "IPv6" } else { "IPv4" }).collect();
    types.dedup();
    if types.is_empty() { vec!["IPv4"] } else { types }
}

/// When the newest cause of a change came about: the service was made, or a pod became ready or not.
pub fn trigger_time(service: &Service, pods: &[std::sync::Arc<Pod>]) -> Option<String> {
    let made = service.metadata.creation_timestamp.as_ref().map(|it| it.0);
    let turned = pods.iter().filter_map(|it| pods::condition(it, "Ready")?.last_transition_time.as_ref().map(|it| it.0)).max();
    made.max(turned).map(|it| it.to_string())
}

impl Source<'_> {
    /// The pod's endpoint in the address family, if it has an address there and has not ended.
    pub fn endpoint(&self, family: &str, zone: impl Fn(&str) -> Option<String>) -> Option<Endpoint> {
        let (pod, serving) = (self.pod, pods::is_ready(self.pod));
        let address = self.address(family).filter(|_| !pods::is_terminal(pod))?;
        let terminating = pod.metadata.deletion_timestamp.is_some();
        let conditions = EndpointConditions {
            ready: Some(publishes_not_ready(self.service) || (serving && !terminating)),
            serving: Some(serving),
            terminating: Some(terminating),
        };
        let node = Some(pods::node_name(pod)).filter(|it| !it.is_empty());
        Some(Endpoint {
            addresses: vec![address],
            conditions: Some(conditions),
            target_ref: Some(self.target()),
            node_name: node.map(str::to_owned),
            zone: node.and_then(zone),
            hostname: self.hostname(),
            ..Endpoint::default()
        })
    }

    pub fn address(&self, family: &str) -> Option<String> {
        let status = self.pod.status.as_ref()?;
        let many = status.pod_ips.iter().flatten().map(|it| it.ip.as_str());
        let mut addresses = many.chain(status.pod_ip.as_deref());
        let is_of = |it: &&str| it.parse::<IpAddr>().is_ok_and(|it| it.is_ipv6() == (family == "IPv6"));
        addresses.find(is_of).map(str::to_owned)
    }

    pub fn target(&self) -> ObjectReference {
        ObjectReference {
            kind: Some("Pod".to_owned()),
            namespace: self.pod.namespace(),
            name: Some(self.pod.name_any()),
            uid: self.pod.uid(),
            ..ObjectReference::default()
        }
    }

    /// `ShouldSetHostname`.
    pub fn hostname(&self) -> Option<String> {
        let spec = self.pod.spec.as_ref()?;
        let is_named = spec.subdomain.as_deref() == Some(&self.service.name_any()) && self.service.namespace() == self.pod.namespace();
        spec.hostname.clone().filter(|it| !it.is_empty() && is_named)
    }

    /// The service's ports on this pod; one whose name no container has is left out.
    pub fn ports(&self) -> Vec<EndpointPort> {
        let ports = self.service.spec.iter().flat_map(|it| it.ports.iter().flatten());
        let of = |port: &ServicePort| {
            Some(EndpointPort {
                name: Some(port.name.clone().unwrap_or_default()),
                port: Some(self.target_port(port)?),
                protocol: Some(protocol(port.protocol.as_deref()).to_owned()),
                app_protocol: port.app_protocol.clone(),
            })
        };
        ports.filter_map(of).collect()
    }

    /// `FindPort`.
    fn target_port(&self, port: &ServicePort) -> Option<i32> {
        match &port.target_port {
            None | Some(IntOrString::Int(0)) => Some(port.port),
            Some(IntOrString::Int(number)) => Some(*number),
            Some(IntOrString::String(name)) => self.named_port(name, protocol(port.protocol.as_deref())),
        }
    }

    fn named_port(&self, name: &str, wanted: &str) -> Option<i32> {
        let spec = self.pod.spec.as_ref()?;
        let sidecars = spec.init_containers.iter().flatten().filter(|it| it.restart_policy.as_deref() == Some("Always"));
        let mut ports = spec.containers.iter().chain(sidecars).flat_map(|it| it.ports.iter().flatten());
        ports.find(|it| it.name.as_deref() == Some(name) && protocol(it.protocol.as_deref()) == wanted).map(|it| it.container_port)
    }
}

fn protocol(of: Option<&str>) -> &str {
    of.unwrap_or("TCP")
}
