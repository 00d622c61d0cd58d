//! nodeSelector and node affinity. Follows component-helpers `scheduling/corev1/nodeaffinity`.

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm};

use crate::scheduler::{
    cluster::{Cluster, NodeInfo, PodInfo},
    framework::{ClusterEvent, Judge, Plugin, Rejection, normalize},
};

pub struct NodeAffinity;

impl Plugin for NodeAffinity {
    fn name(&self) -> &'static str {
        "NodeAffinity"
    }

    fn weight(&self) -> i64 {
        2
    }

    fn prepare<'a>(&'a self, pod: &'a PodInfo, _: &'a Cluster) -> Option<Box<dyn Judge + 'a>> {
        let spec = pod.pod.spec.as_ref()?;
        let has_affinity = spec.affinity.as_ref().is_some_and(|it| it.node_affinity.is_some());
        (has_affinity || spec.node_selector.is_some()).then(|| Box::new(Affinity { pod }) as Box<dyn Judge>)
    }

    fn is_helped_by(&self, event: ClusterEvent) -> bool {
        matches!(event, ClusterEvent::NodeAdded | ClusterEvent::NodeChanged)
    }
}

struct Affinity<'a> {
    pod: &'a PodInfo,
}

impl Judge for Affinity<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Rejection> {
        if does_match(self.pod, node) { Ok(()) } else { Err(Rejection::unresolvable("node(s) didn't match Pod's node affinity/selector")) }
    }

    fn scores(&self, nodes: &[&NodeInfo]) -> Option<Vec<i64>> {
        let affinity = self.pod.pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()?;
        let preferred = affinity.preferred_during_scheduling_ignored_during_execution.as_ref()?;
        let score = |node: &&NodeInfo| preferred.iter().filter(|it| term_matches(&it.preference, node)).map(|it| i64::from(it.weight)).sum();
        Some(normalize(nodes.iter().map(score).collect(), false))
    }
}

/// Whether the node has what the pod requires (`GetRequiredNodeAffinity`).
pub fn does_match(pod: &PodInfo, node: &NodeInfo) -> bool {
    let Some(spec) = &pod.pod.spec else { return true };
    let labels = node.labels();
    let has_labels = spec.node_selector.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    let affinity = spec.affinity.as_ref().and_then(|it| it.node_affinity.as_ref());
    let required = affinity.and_then(|it| it.required_during_scheduling_ignored_during_execution.as_ref());
    has_labels && required.is_none_or(|it| it.node_selector_terms.iter().any(|term| term_matches(term, node)))
}

/// An empty term matches nothing.
fn term_matches(term: &NodeSelectorTerm, node: &NodeInfo) -> bool {
    let (labels, fields) = (term.match_expressions.as_deref().unwrap_or_default(), term.match_fields.as_deref().unwrap_or_default());
    let is_empty = labels.is_empty() && fields.is_empty();
    !is_empty
        && labels.iter().all(|it| is_met(it, node.labels().get(&it.key).map(String::as_str)))
        && fields.iter().all(|it| is_met(it, (it.key == "metadata.name").then_some(node.name.as_str())))
}

fn is_met(requirement: &NodeSelectorRequirement, present: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let is_listed = present.is_some_and(|it| values.iter().any(|value| value == it));
    let numbers = || Some((present?.parse::<i64>().ok()?, values.first()?.parse::<i64>().ok()?));
    match requirement.operator.as_str() {
        "In" => is_listed,
        "NotIn" => !is_listed,
        "Exists" => present.is_some(),
        "DoesNotExist" => present.is_none(),
        "Gt" => numbers().is_some_and(|(present, bound)| present > bound),
        "Lt" => numbers().is_some_and(|(present, bound)| present < bound),
        _ => false,
    }
}
