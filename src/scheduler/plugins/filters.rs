//! The plugins that compare what a pod asks for with what one node is: NodeName, NodeUnschedulable, TaintToleration, NodeAffinity, NodePorts.
//! Follows component-helpers `scheduling/corev1` and its `nodeaffinity`.

use k8s_openapi::api::core::v1::{Pod, Taint};

use crate::{
    client::placement,
    scheduler::{
        cluster::{Cluster, HostPort, NodeInfo, PodInfo},
        framework::{Judge, Rejection, normalize},
    },
};

/// Why a node does not suit a pod: upstream's `ErrReasonPod` and `ErrReason`.
pub const AFFINITY_REASON: &str = "node(s) didn't match Pod's node affinity/selector";
pub const PORTS_REASON: &str = "node(s) didn't have free ports for the requested pod ports";

/// A pod with scheduling gates does not enter the queue (PreEnqueue of SchedulingGates).
pub fn is_gated(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|it| it.scheduling_gates.as_ref()).is_some_and(|it| !it.is_empty())
}

/// A pod that names its node runs on no other.
pub fn node_name<'a>(pod: &'a PodInfo, _: &'a Cluster) -> Option<Judge<'a>> {
    let name = pod.node_name();
    let rejects = move |node: &NodeInfo| (node.name != name).then(|| Rejection::unresolvable("node(s) didn't match the requested node name"));
    (!name.is_empty()).then(|| Judge::filter(rejects))
}

/// Keeps pods off cordoned nodes, unless they tolerate it.
pub fn node_unschedulable<'a>(pod: &'a PodInfo, _: &'a Cluster) -> Option<Judge<'a>> {
    Some(Judge::filter(|node| {
        let is_cordoned = node.node.as_ref()?.spec.as_ref()?.unschedulable == Some(true);
        let taint = Taint { key: "node.kubernetes.io/unschedulable".to_owned(), effect: "NoSchedule".to_owned(), ..Taint::default() };
        (is_cordoned && !is_tolerated(&taint, pod)).then(|| Rejection::unresolvable("node(s) were unschedulable"))
    }))
}

/// Taints repel pods that do not tolerate them; those that merely prefer not to, by the score.
pub fn taint_toleration<'a>(pod: &'a PodInfo, _: &'a Cluster) -> Option<Judge<'a>> {
    let repels = |it: &&Taint| matches!(it.effect.as_str(), "NoSchedule" | "NoExecute") && !is_tolerated(it, pod);
    let dislikes = |it: &&Taint| it.effect == "PreferNoSchedule" && !is_tolerated(it, pod);
    let judge = Judge::filter(move |node| node.taints().find(repels).map(|_| Rejection::unresolvable("node(s) had untolerated taint(s)")));
    Some(judge.and_scores(move |nodes| Some(normalize(nodes.iter().map(|it| it.taints().filter(dislikes).count() as i64).collect(), true))))
}

pub fn is_tolerated(taint: &Taint, pod: &PodInfo) -> bool {
    pod.pod.spec.as_ref().is_some_and(|it| placement::is_tolerated(taint, it))
}

/// nodeSelector and node affinity.
pub fn node_affinity<'a>(pod: &'a PodInfo, _: &'a Cluster) -> Option<Judge<'a>> {
    let spec = pod.pod.spec.as_ref()?;
    let affinity = spec.affinity.as_ref().and_then(|it| it.node_affinity.as_ref());
    if affinity.is_none() && spec.node_selector.is_none() {
        return None;
    }
    let judge = Judge::filter(|node| (!does_match(pod, node)).then(|| Rejection::unresolvable(AFFINITY_REASON)));
    Some(judge.and_scores(move |nodes| {
        let preferred = affinity?.preferred_during_scheduling_ignored_during_execution.as_ref()?;
        let score = |node: &&NodeInfo| preferred.iter().filter(|it| placement::term_matches(&it.preference, node.place())).map(|it| i64::from(it.weight)).sum();
        Some(normalize(nodes.iter().map(score).collect(), false))
    }))
}

/// Whether the node has what the pod requires.
pub fn does_match(pod: &PodInfo, node: &NodeInfo) -> bool {
    pod.pod.spec.as_ref().is_none_or(|it| placement::is_fit(it, node.place()))
}

/// A host port serves one pod of a node.
pub fn node_ports<'a>(pod: &'a PodInfo, _: &'a Cluster) -> Option<Judge<'a>> {
    let rejects = |node: &NodeInfo| is_taken(&pod.ports, node).then(|| Rejection::resolvable(PORTS_REASON));
    (!pod.ports.is_empty()).then(|| Judge::filter(rejects))
}

/// Whether a pod of the node has one of these ports.
pub fn is_taken(wanted: &[HostPort], node: &NodeInfo) -> bool {
    let mut used = node.pods.values().flat_map(|it| &it.ports);
    used.any(|used| wanted.iter().any(|it| conflicts(it, used)))
}

fn conflicts(a: &HostPort, b: &HostPort) -> bool {
    let is_any = |it: &HostPort| it.ip == "0.0.0.0";
    a.port == b.port && a.protocol == b.protocol && (a.ip == b.ip || is_any(a) || is_any(b))
}
