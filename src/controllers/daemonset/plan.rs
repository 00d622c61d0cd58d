//! What a DaemonSet needs next: pure, from the set, its nodes and its pods on each to pods that come and go, and a status.
//! Follows pkg/controller/daemon/{daemon_controller,update}.go and util/daemonset_util.go.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::{DaemonSet, DaemonSetStatus, RollingUpdateDaemonSet},
    core::v1::{Affinity, Node, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, Toleration},
};
use kube::ResourceExt;

use crate::{
    client::placement::{self, Place},
    controllers::{history::REVISION_HASH, pods},
};

/// Taints by the node's conditions, which pods of DaemonSets tolerate; the last is for those on the host's network.
const TOLERATED: [(&str, &str); 7] = [
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
    ("node.kubernetes.io/network-unavailable", "NoSchedule"),
];
const NODE_NAME: &str = "metadata.name";

/// Pods by the node that they are for.
pub type ByNode = BTreeMap<String, Vec<Arc<Pod>>>;

#[derive(Default)]
pub struct Plan {
    /// Names of nodes that get a pod.
    pub create: Vec<String>,
    pub delete: Vec<Arc<Pod>>,
    /// Of `delete`, those that have failed or ended by themselves.
    pub ended: Vec<Arc<Pod>>,
}

/// A set at one moment.
pub struct View<'a> {
    pub set: &'a DaemonSet,
    /// The hash of the present template.
    pub hash: &'a str,
    pub nodes: &'a [Arc<Node>],
    pub now: Timestamp,
}

/// `GetTargetNodeName`: where a pod runs or is to run.
pub fn target(pod: &Pod) -> Option<&str> {
    let spec = pod.spec.as_ref()?;
    if let Some(name) = spec.node_name.as_deref().filter(|it| !it.is_empty()) {
        return Some(name);
    }
    let required = spec.affinity.as_ref()?.node_affinity.as_ref()?.required_during_scheduling_ignored_during_execution.as_ref()?;
    let fields = required.node_selector_terms.iter().flat_map(|it| it.match_fields.iter().flatten());
    fields.filter(|it| it.key == NODE_NAME && it.operator == "In").find_map(|it| it.values.as_ref()?.first()).map(String::as_str)
}

pub fn by_node(pods: Vec<Arc<Pod>>) -> ByNode {
    let mut nodes = ByNode::new();
    for pod in pods.into_iter().filter(|it| it.metadata.deletion_timestamp.is_none() || !pods::is_terminal(it)) {
        if let Some(name) = target(&pod).map(str::to_owned) {
            nodes.entry(name).or_default().push(pod);
        }
    }
    nodes
}

/// A pod of the set for one node.
pub fn pod(set: &DaemonSet, node: &str, hash: &str) -> Pod {
    let template = set.spec.as_ref().map(|it| it.template.clone()).unwrap_or_default();
    let mut pod = pods::pod_of(&template, set);
    pod.metadata.labels.get_or_insert_default().insert(REVISION_HASH.to_owned(), hash.to_owned());
    let spec = pod.spec.get_or_insert_default();
    spec.affinity = Some(pinned(spec.affinity.take().unwrap_or_default(), node));
    tolerate(spec);
    pod
}

/// `ReplaceDaemonSetPodNodeNameNodeAffinity`.
fn pinned(mut affinity: Affinity, node: &str) -> Affinity {
    let field = NodeSelectorRequirement { key: NODE_NAME.to_owned(), operator: "In".to_owned(), values: Some(vec![node.to_owned()]) };
    let term = NodeSelectorTerm { match_fields: Some(vec![field.clone()]), match_expressions: None };
    let own: &mut NodeAffinity = affinity.node_affinity.get_or_insert_default();
    let required = own.required_during_scheduling_ignored_during_execution.take().map(|it| it.node_selector_terms).unwrap_or_default();
    let mut terms: Vec<_> = required.into_iter().map(|it| NodeSelectorTerm { match_fields: Some(vec![field.clone()]), ..it }).collect();
    if terms.is_empty() {
        terms.push(term);
    }
    own.required_during_scheduling_ignored_during_execution = Some(NodeSelector { node_selector_terms: terms });
    affinity
}

/// `AddOrUpdateDaemonPodTolerations`.
fn tolerate(spec: &mut PodSpec) {
    let count = if spec.host_network == Some(true) { TOLERATED.len() } else { TOLERATED.len() - 1 };
    let tolerations = spec.tolerations.get_or_insert_default();
    for (key, effect) in &TOLERATED[..count] {
        let toleration = Toleration {
            key: Some((*key).to_owned()),
            operator: Some("Exists".to_owned()),
            effect: Some((*effect).to_owned()),
            ..Toleration::default()
        };
        if !tolerations.contains(&toleration) {
            tolerations.push(toleration);
        }
    }
}

/// Whether a node is to get a pod, and may keep one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    pub runs: bool,
    pub keeps: bool,
}

/// `NodeShouldRunDaemonPod`.
pub fn verdict(set: &DaemonSet, node: &Node) -> Verdict {
    let pod = pod(set, &node.name_any(), "");
    let no_labels = BTreeMap::new();
    let place = Place { name: &node.name_any(), labels: node.metadata.labels.as_ref().unwrap_or(&no_labels) };
    let Some(spec) = pod.spec.filter(|it| placement::is_fit(it, place)) else { return Verdict { runs: false, keeps: false } };
    let taints = node.spec.as_ref().and_then(|it| it.taints.as_deref()).unwrap_or_default();
    let tolerates = |effects: &[&str]| taints.iter().all(|it| !effects.contains(&it.effect.as_str()) || placement::is_tolerated(it, &spec));
    Verdict { runs: tolerates(&["NoSchedule", "NoExecute"]), keeps: tolerates(&["NoExecute"]) }
}

impl View<'_> {
    fn min_ready(&self) -> i32 {
        self.set.spec.as_ref().and_then(|it| it.min_ready_seconds).unwrap_or(0)
    }

    fn rolling(&self) -> Option<&RollingUpdateDaemonSet> {
        self.set.spec.as_ref()?.update_strategy.as_ref()?.rolling_update.as_ref()
    }

    pub fn is_rolling(&self) -> bool {
        let kind = self.set.spec.as_ref().and_then(|it| it.update_strategy.as_ref()?.type_.as_deref());
        kind.is_none_or(|it| it == "RollingUpdate")
    }

    /// `AllowsSurge`.
    fn surges(&self) -> bool {
        self.is_rolling() && self.max_surge(1) > 0
    }

    fn max_surge(&self, wanted: i32) -> i32 {
        pods::scaled(self.rolling().and_then(|it| it.max_surge.as_ref()), wanted, true)
    }

    fn max_unavailable(&self, wanted: i32) -> i32 {
        let given = self.rolling().and_then(|it| it.max_unavailable.as_ref());
        given.map_or(1, |it| pods::scaled(Some(it), wanted, true))
    }

    fn is_available(&self, pod: &Pod) -> bool {
        pods::is_available(pod, self.min_ready(), self.now)
    }

    fn is_updated(&self, pod: &Pod) -> bool {
        pod.labels().get(REVISION_HASH).map(String::as_str) == Some(self.hash)
    }

    /// `manage`: one pod on each node that is to have it, none elsewhere.
    pub fn manage(&self, by_node: &ByNode) -> Plan {
        let mut plan = Plan::default();
        for node in self.nodes {
            let name = node.name_any();
            let verdict = verdict(self.set, node);
            match by_node.get(&name) {
                None if verdict.runs => plan.create.push(name),
                None => (),
                Some(pods) if verdict.keeps => self.tidy(&name, pods, verdict.runs, &mut plan),
                Some(pods) => plan.delete.extend(living(pods)),
            }
        }
        let is_stray = |name: &String| self.nodes.iter().all(|it| it.metadata.name.as_ref() != Some(name));
        let stray = by_node.iter().filter(|(name, _)| is_stray(name)).flat_map(|(_, pods)| living(pods));
        plan.delete.extend(stray.filter(|it| pods::node_name(it).is_empty()));
        plan
    }

    /// Of a node's pods, one stays; while surging, also one new that is not yet available beside one old that is.
    fn tidy(&self, node: &str, pods: &[Arc<Pod>], runs: bool, plan: &mut Plan) {
        let (ended, mut running): (Vec<_>, Vec<_>) = living(pods).partition(|it| pods::is_terminal(it));
        plan.delete.extend(ended.iter().cloned());
        plan.ended.extend(ended);
        running.sort_by_key(|it| (pods::node_name(it).is_empty(), it.metadata.creation_timestamp.clone(), it.name_any()));
        if !self.surges() {
            return plan.delete.extend(running.into_iter().skip(1));
        }
        if running.is_empty() && runs {
            return plan.create.push(node.to_owned());
        }
        if running.len() < 2 {
            return;
        }
        let (new, old): (Vec<_>, Vec<_>) = running.into_iter().partition(|it| self.is_updated(it));
        if let (Some(new), Some(old)) = (new.first(), old.first())
            && (!pods::is_ready(old) || self.is_available(new))
        {
            plan.delete.push(old.clone());
        }
        plan.delete.extend(new.into_iter().skip(1).chain(old.into_iter().skip(1)));
    }

    /// `rollingUpdate`.
    pub fn update(&self, by_node: &ByNode) -> Plan {
        let running: Vec<String> = self.nodes.iter().filter(|it| verdict(self.set, it).runs).map(|it| it.name_any()).collect();
        let wanted = running.len() as i32;
        let (surge, mut unavailable) = (self.max_surge(wanted), self.max_unavailable(wanted));
        if wanted > 0 && surge == 0 && unavailable == 0 {
            unavailable = 1;
        }
        let mut by_node = by_node.clone();
        for node in &running {
            by_node.entry(node.clone()).or_default();
        }
        if surge == 0 { self.replace(&by_node, unavailable) } else { self.surge(&by_node, &running, surge) }
    }

    /// The updated pod of a node and the outdated one; nothing when there are several of a sort.
    fn pair<'a>(&self, pods: &'a [Arc<Pod>]) -> Option<(Option<&'a Arc<Pod>>, Option<&'a Arc<Pod>>)> {
        let living = pods.iter().filter(|it| it.metadata.deletion_timestamp.is_none());
        let (new, old): (Vec<_>, Vec<_>) = living.partition(|it| self.is_updated(it));
        (new.len() < 2 && old.len() < 2).then(|| (new.first().copied(), old.first().copied()))
    }

    /// Deletes outdated pods: those unavailable, and of the others as many as may be missing.
    fn replace(&self, by_node: &ByNode, most: i32) -> Plan {
        let (mut unavailable, mut allowed, mut candidates) = (0, Vec::new(), Vec::new());
        for pods in by_node.values() {
            match self.pair(pods) {
                None | Some((None, None) | (Some(_), Some(_))) => unavailable += 1,
                Some((Some(new), None)) => unavailable += i32::from(!self.is_available(new)),
                Some((None, Some(old))) if self.is_available(old) => candidates.push(old.clone()),
                Some((None, Some(old))) => {
                    allowed.push(old.clone());
                    unavailable += 1;
                }
            }
        }
        let more = (most - unavailable).max(0) as usize;
        allowed.extend(candidates.into_iter().take(more));
        Plan { delete: allowed, ..Plan::default() }
    }

    /// Adds updated pods beside outdated ones, which go once the new are available.
    fn surge(&self, by_node: &ByNode, running: &[String], most: i32) -> Plan {
        let (mut plan, mut candidates, mut sunset) = (Plan::default(), Vec::new(), Vec::new());
        let (mut surging, mut available) = (0, 0_usize);
        for (node, pods) in by_node {
            let Some((new, old)) = self.pair(pods) else {
                surging += 1;
                continue;
            };
            available += usize::from(old.or(new).is_some_and(|it| self.is_available(it)));
            match (new, old) {
                (_, None) => (),
                (None, Some(old)) => match (running.contains(node), self.is_available(old)) {
                    (true, true) => candidates.push(node.clone()),
                    (true, false) => plan.create.push(node.clone()),
                    (false, true) => sunset.push(old.clone()),
                    (false, false) => plan.delete.push(old.clone()),
                },
                (Some(new), Some(_)) if !self.is_available(new) => surging += 1,
                (Some(_), Some(old)) => plan.delete.push(old.clone()),
            }
        }
        plan.delete.extend(sunset.into_iter().take(available.saturating_sub(running.len())));
        plan.create.extend(candidates.into_iter().take((most - surging).max(0) as usize));
        plan
    }

    /// `updateDaemonSetStatus`.
    pub fn status(&self, by_node: &ByNode) -> DaemonSetStatus {
        let old = self.set.status.clone().unwrap_or_default();
        let mut status = DaemonSetStatus { observed_generation: self.set.metadata.generation, collision_count: old.collision_count, conditions: old.conditions, ..DaemonSetStatus::default() };
        let (mut updated, mut available) = (0, 0);
        for node in self.nodes {
            let pods = by_node.get(&node.name_any()).map(Vec::as_slice).unwrap_or_default();
            let first = pods.iter().min_by_key(|it| (it.metadata.creation_timestamp.clone(), it.name_any()));
            if !verdict(self.set, node).runs {
                status.number_misscheduled += i32::from(first.is_some());
                continue;
            }
            status.desired_number_scheduled += 1;
            let Some(pod) = first else { continue };
            status.current_number_scheduled += 1;
            status.number_ready += i32::from(pods::is_ready(pod));
            available += i32::from(self.is_available(pod));
            updated += i32::from(self.is_updated(pod));
        }
        let some = |count: i32| Some(count).filter(|it| *it != 0);
        status.updated_number_scheduled = some(updated);
        status.number_available = some(available);
        status.number_unavailable = some(status.desired_number_scheduled - available);
        status
    }
}

fn living(pods: &[Arc<Pod>]) -> impl Iterator<Item = Arc<Pod>> {
    pods.iter().filter(|it| it.metadata.deletion_timestamp.is_none()).cloned()
}

#[cfg(test)]
mod tests;
