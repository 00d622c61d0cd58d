//! The scheduler's picture of the cluster: nodes with what runs on them, kept up to date change by change.
//! Follows pkg/scheduler/backend/cache and framework/types.go (`NodeInfo`, `PodInfo`).

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use k8s_openapi::{
    api::core::v1::{Container, Node, Pod, PodAffinityTerm, Taint},
    apimachinery::pkg::api::resource::Quantity as ApiQuantity,
};
use kube::ResourceExt;

use super::plugins::volume_binding::Storage;
use crate::{
    client::{ObjectKey, placement::Place},
    meta::{LabelSelector, Quantity},
};

/// What a container without requests counts as when nodes are scored (`DefaultMilliCPURequest`, `DefaultMemoryRequest`).
const DEFAULT_MILLI_CPU: i64 = 100;
const DEFAULT_MEMORY: i64 = 200 << 20;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Resources {
    pub milli_cpu: i64,
    pub memory: i64,
    pub ephemeral_storage: i64,
    /// Extended resources and huge pages.
    pub scalars: BTreeMap<String, i64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPort {
    pub ip: String,
    pub protocol: String,
    pub port: i32,
}

/// One term of pod (anti-)affinity, parsed.
#[derive(Clone, Debug)]
pub struct Term {
    selector: LabelSelector,
    namespaces: BTreeSet<String>,
    namespace_selector: Option<LabelSelector>,
    pub topology_key: String,
}

#[derive(Clone, Debug, Default)]
pub struct PodAffinities {
    pub required: Vec<Term>,
    pub required_anti: Vec<Term>,
    /// With their weights, negative for anti-affinity.
    pub preferred: Vec<(i64, Term)>,
}

impl PodAffinities {
    pub fn is_empty(&self) -> bool {
        self.required.is_empty() && self.required_anti.is_empty() && self.preferred.is_empty()
    }
}

/// A pod with what scheduling asks of it, computed once.
#[derive(Clone, Debug)]
pub struct PodInfo {
    pub key: ObjectKey,
    pub uid: String,
    pub pod: Pod,
    pub request: Resources,
    /// (cpu, memory) with defaults for what asks for nothing.
    pub non_zero: (i64, i64),
    pub ports: Vec<HostPort>,
    pub affinities: PodAffinities,
    pub owner: Option<String>,
    pub priority: i32,
}

#[derive(Clone, Debug, Default)]
pub struct NodeInfo {
    pub name: String,
    /// `None` while only pods bound to it are known.
    pub node: Option<Arc<Node>>,
    pub allocatable: Resources,
    pub allowed_pods: i64,
    pub requested: Resources,
    pub non_zero: (i64, i64),
    pub pods: HashMap<String, Arc<PodInfo>>,
    pub pods_by_owner: HashMap<String, i64>,
    pub images: HashMap<String, i64>,
}

/// Every node by name, and the labels of every namespace.
#[derive(Default)]
pub struct Cluster {
    pub nodes: BTreeMap<String, NodeInfo>,
    pub namespaces: HashMap<String, BTreeMap<String, String>>,
    /// How many nodes have each image.
    pub image_nodes: HashMap<String, i64>,
    /// How many pods on nodes have affinities of their own; zero spares every cycle a look at all pods.
    pub pods_with_affinity: usize,
    pub storage: Storage,
}

impl Resources {
    fn of(list: Option<&BTreeMap<String, ApiQuantity>>) -> Self {
        let mut resources = Self::default();
        for (name, quantity) in list.into_iter().flatten() {
            let value: Quantity = quantity.0.parse().unwrap_or(Quantity::ZERO);
            match name.as_str() {
                "cpu" => resources.milli_cpu = value.millis(),
                "memory" => resources.memory = value.units(),
                "ephemeral-storage" => resources.ephemeral_storage = value.units(),
                "pods" => (),
                _ => {
                    resources.scalars.insert(name.clone(), value.units());
                }
            }
        }
        resources
    }

    /// Adds `other` `sign` times.
    fn add(&mut self, other: &Self, sign: i64) {
        self.milli_cpu += sign * other.milli_cpu;
        self.memory += sign * other.memory;
        self.ephemeral_storage += sign * other.ephemeral_storage;
        for (name, value) in &other.scalars {
            *self.scalars.entry(name.clone()).or_default() += sign * value;
        }
    }

    fn max(&mut self, other: &Self) {
        self.milli_cpu = self.milli_cpu.max(other.milli_cpu);
        self.memory = self.memory.max(other.memory);
        self.ephemeral_storage = self.ephemeral_storage.max(other.ephemeral_storage);
        for (name, value) in &other.scalars {
            let present = self.scalars.entry(name.clone()).or_default();
            *present = (*present).max(*value);
        }
    }
}

impl Term {
    fn of(term: &PodAffinityTerm, namespace: &str) -> Self {
        let named = term.namespaces.clone().unwrap_or_default();
        let is_own = named.is_empty() && term.namespace_selector.is_none();
        Self {
            selector: term.label_selector.as_ref().map_or_else(LabelSelector::nothing, selector_of),
            namespaces: if is_own { [namespace.to_owned()].into() } else { named.into_iter().collect() },
            namespace_selector: term.namespace_selector.as_ref().map(selector_of),
            topology_key: term.topology_key.clone(),
        }
    }

    /// Whether `pod` is one that the term speaks of.
    pub fn selects(&self, pod: &PodInfo, cluster: &Cluster) -> bool {
        let namespace = pod.key.namespace.as_str();
        let is_in = self.namespaces.contains(namespace)
            || self.namespace_selector.as_ref().is_some_and(|it| cluster.namespaces.get(namespace).is_some_and(|labels| it.matches(labels)));
        is_in && self.selector.matches(pod.pod.labels())
    }
}

/// An unreadable selector selects nothing.
pub fn selector_of(selector: &k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector) -> LabelSelector {
    let value = serde_json::to_value(selector).ok();
    value.and_then(|it| LabelSelector::from_value(Some(&it)).ok()).unwrap_or_else(LabelSelector::nothing)
}

impl PodInfo {
    pub fn new(pod: Pod) -> Self {
        let owner = pod.owner_references().iter().find(|it| it.controller == Some(true)).map(|it| it.uid.clone());
        let key = ObjectKey::of(&pod);
        Self {
            uid: pod.uid().unwrap_or_default(),
            request: request(&pod),
            non_zero: non_zero(&pod),
            ports: host_ports(&pod),
            affinities: affinities(&pod, &key.namespace),
            priority: pod.spec.as_ref().and_then(|it| it.priority).unwrap_or(0),
            owner,
            key,
            pod,
        }
    }

    pub fn node_name(&self) -> &str {
        self.pod.spec.as_ref().and_then(|it| it.node_name.as_deref()).unwrap_or_default()
    }
}

fn containers(pod: &Pod) -> &[Container] {
    pod.spec.as_ref().map(|it| it.containers.as_slice()).unwrap_or_default()
}

fn init_containers(pod: &Pod) -> &[Container] {
    pod.spec.as_ref().and_then(|it| it.init_containers.as_deref()).unwrap_or_default()
}

/// `PodRequests`: the containers together, or the largest stage of the init containers, whichever is more.
fn request(pod: &Pod) -> Resources {
    let of = |it: &Container| Resources::of(it.resources.as_ref().and_then(|it| it.requests.as_ref()));
    let mut sum = Resources::default();
    containers(pod).iter().for_each(|it| sum.add(&of(it), 1));
    let (mut sidecars, mut most) = (Resources::default(), Resources::default());
    for container in init_containers(pod) {
        let mut stage = of(container);
        if container.restart_policy.as_deref() == Some("Always") {
            sum.add(&stage, 1);
            sidecars.add(&stage, 1);
            most.max(&sidecars);
        } else {
            stage.add(&sidecars, 1);
            most.max(&stage);
        }
    }
    sum.max(&most);
    let spec = pod.spec.as_ref();
    if let Some(whole) = spec.and_then(|it| it.resources.as_ref()).and_then(|it| it.requests.as_ref()) {
        let named = Resources::of(Some(whole));
        sum.milli_cpu = if whole.contains_key("cpu") { named.milli_cpu } else { sum.milli_cpu };
        sum.memory = if whole.contains_key("memory") { named.memory } else { sum.memory };
    }
    sum.add(&Resources::of(spec.and_then(|it| it.overhead.as_ref())), 1);
    sum
}

fn non_zero(pod: &Pod) -> (i64, i64) {
    let asked = request(pod);
    let lacks = |name: &str| {
        containers(pod).iter().filter(|it| it.resources.as_ref().and_then(|it| it.requests.as_ref()).is_none_or(|it| !it.contains_key(name))).count()
            as i64
    };
    (asked.milli_cpu + lacks("cpu") * DEFAULT_MILLI_CPU, asked.memory + lacks("memory") * DEFAULT_MEMORY)
}

fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let sidecars = init_containers(pod).iter().filter(|it| it.restart_policy.as_deref() == Some("Always"));
    let ports = containers(pod).iter().chain(sidecars).flat_map(|it| it.ports.iter().flatten());
    let of = |it: &k8s_openapi::api::core::v1::ContainerPort| {
        let port = it.host_port.filter(|it| *it > 0)?;
        let ip = it.host_ip.clone().filter(|it| !it.is_empty()).unwrap_or_else(|| "0.0.0.0".to_owned());
        Some(HostPort { ip, protocol: it.protocol.clone().unwrap_or_else(|| "TCP".to_owned()), port })
    };
    ports.filter_map(of).collect()
}

fn affinities(pod: &Pod, namespace: &str) -> PodAffinities {
    let affinity = pod.spec.as_ref().and_then(|it| it.affinity.as_ref());
    let (with, against) = (affinity.and_then(|it| it.pod_affinity.as_ref()), affinity.and_then(|it| it.pod_anti_affinity.as_ref()));
    let terms = |list: Option<&Vec<PodAffinityTerm>>| list.into_iter().flatten().map(|it| Term::of(it, namespace)).collect();
    let near = with.iter().flat_map(|it| it.preferred_during_scheduling_ignored_during_execution.iter().flatten()).map(|it| (1, it));
    let far = against.iter().flat_map(|it| it.preferred_during_scheduling_ignored_during_execution.iter().flatten()).map(|it| (-1, it));
    PodAffinities {
        required: terms(with.and_then(|it| it.required_during_scheduling_ignored_during_execution.as_ref())),
        required_anti: terms(against.and_then(|it| it.required_during_scheduling_ignored_during_execution.as_ref())),
        preferred: near.chain(far).map(|(sign, it)| (sign * i64::from(it.weight), Term::of(&it.pod_affinity_term, namespace))).collect(),
    }
}

impl NodeInfo {
    pub fn labels(&self) -> &BTreeMap<String, String> {
        static NONE: BTreeMap<String, String> = BTreeMap::new();
        self.node.as_ref().and_then(|it| it.metadata.labels.as_ref()).unwrap_or(&NONE)
    }

    pub fn place(&self) -> Place<'_> {
        Place { name: &self.name, labels: self.labels() }
    }

    pub fn taints(&self) -> impl Iterator<Item = &Taint> {
        self.node.iter().flat_map(|it| it.spec.iter()).flat_map(|it| it.taints.iter().flatten())
    }

    fn set_node(&mut self, node: Arc<Node>) {
        let status = node.status.as_ref();
        let allocatable = status.and_then(|it| it.allocatable.as_ref());
        self.allocatable = Resources::of(allocatable);
        self.allowed_pods = allocatable.and_then(|it| it.get("pods")).and_then(|it| it.0.parse::<Quantity>().ok()).map_or(0, Quantity::units);
        let images = status.iter().flat_map(|it| it.images.iter().flatten());
        self.images = images.flat_map(|it| it.names.iter().flatten().map(|name| (name.clone(), it.size_bytes.unwrap_or(0)))).collect();
        self.node = Some(node);
    }

    fn count(&mut self, pod: &PodInfo, sign: i64) {
        self.requested.add(&pod.request, sign);
        self.non_zero = (self.non_zero.0 + sign * pod.non_zero.0, self.non_zero.1 + sign * pod.non_zero.1);
        if let Some(owner) = &pod.owner {
            *self.pods_by_owner.entry(owner.clone()).or_default() += sign;
            self.pods_by_owner.retain(|_, count| *count > 0);
        }
    }
}

impl Cluster {
    /// The nodes that are known as such.
    pub fn present(&self) -> impl Iterator<Item = &NodeInfo> {
        self.nodes.values().filter(|it| it.node.is_some())
    }

    pub fn set_node(&mut self, node: Arc<Node>) {
        let name = node.name_any();
        let info = self.nodes.entry(name.clone()).or_insert_with(|| NodeInfo { name, ..NodeInfo::default() });
        let before: Vec<String> = info.images.keys().cloned().collect();
        info.set_node(node);
        let after: Vec<String> = info.images.keys().cloned().collect();
        self.count_images(before, -1);
        self.count_images(after, 1);
    }

    pub fn remove_node(&mut self, name: &str) {
        let Some(info) = self.nodes.get_mut(name) else { return };
        let images: Vec<String> = std::mem::take(&mut info.images).into_keys().collect();
        info.node = None;
        if info.pods.is_empty() {
            self.nodes.remove(name);
        }
        self.count_images(images, -1);
    }

    fn count_images(&mut self, names: Vec<String>, sign: i64) {
        for name in names {
            *self.image_nodes.entry(name).or_default() += sign;
        }
        self.image_nodes.retain(|_, count| *count > 0);
    }

    /// Puts a pod on a node, in place of what was known of it before.
    pub fn add_pod(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.remove_pod(&pod.uid, node);
        self.pods_with_affinity += usize::from(!pod.affinities.is_empty());
        let info = self.nodes.entry(node.to_owned()).or_insert_with(|| NodeInfo { name: node.to_owned(), ..NodeInfo::default() });
        info.count(&pod, 1);
        info.pods.insert(pod.uid.clone(), pod);
    }

    pub fn remove_pod(&mut self, uid: &str, node: &str) -> Option<Arc<PodInfo>> {
        let info = self.nodes.get_mut(node)?;
        let pod = info.pods.remove(uid)?;
        info.count(&pod, -1);
        self.pods_with_affinity -= usize::from(!pod.affinities.is_empty());
        if info.node.is_none() && info.pods.is_empty() {
            self.nodes.remove(node);
        }
        Some(pod)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_request_is_the_containers_or_the_largest_init_stage() {
        let cpu = |it: &str| json!({"requests": {"cpu": it}});
        // (containers, init containers with their restart policy, overhead) -> milli cpu
        let cases = [
            (vec!["100m", "200m"], vec![], "0", 300),
            (vec!["100m"], vec![("500m", None)], "0", 500),
            (vec!["100m"], vec![("200m", Some("Always")), ("500m", None)], "0", 700),
            (vec!["400m"], vec![("200m", Some("Always")), ("300m", None)], "50m", 650),
        ];
        for (main, init, overhead, expected) in cases {
            let containers: Vec<_> = main.iter().map(|it| json!({"name": "c", "resources": cpu(it)})).collect();
            let inits: Vec<_> = init.iter().map(|(it, policy)| json!({"name": "i", "resources": cpu(it), "restartPolicy": policy})).collect();
            let pod = json!({"metadata": {}, "spec": {"containers": containers, "initContainers": inits, "overhead": {"cpu": overhead}}});
            assert_eq!(request(&serde_json::from_value(pod).unwrap()).milli_cpu, expected, "{main:?} {init:?}");
        }
    }
}
