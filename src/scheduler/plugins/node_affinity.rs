//! nodeSelector and node affinity. Follows component-helpers `scheduling/corev1/nodeaffinity`.

use crate::{
    client::placement,
    scheduler::{
        cluster::{Cluster, NodeInfo, PodInfo},
        framework::{Judge, Rejection, normalize},
    },
};

pub fn prepare<'a>(pod: &'a PodInfo, _: &'a Cluster) -> Option<Box<dyn Judge + 'a>> {
    let spec = pod.pod.spec.as_ref()?;
    let has_affinity = spec.affinity.as_ref().is_some_and(|it| it.node_affinity.is_some());
    (has_affinity || spec.node_selector.is_some()).then(|| Box::new(Affinity { pod }) as Box<dyn Judge>)
}

struct Affinity<'a> {
    pod: &'a PodInfo,
}

impl Judge for Affinity<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Rejection> {
        if does_match(self.pod, node) { Ok(()) } else { Err(Rejection::unresolvable(REASON)) }
    }

    fn scores(&self, nodes: &[&NodeInfo]) -> Option<Vec<i64>> {
        let affinity = self.pod.pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()?;
        let preferred = affinity.preferred_during_scheduling_ignored_during_execution.as_ref()?;
        let score = |node: &&NodeInfo| preferred.iter().filter(|it| placement::term_matches(&it.preference, node.place())).map(|it| i64::from(it.weight)).sum();
        Some(normalize(nodes.iter().map(score).collect(), false))
    }
}

/// `ErrReasonPod` of upstream.
pub const REASON: &str = "node(s) didn't match Pod's node affinity/selector";

/// Whether the node has what the pod requires.
pub fn does_match(pod: &PodInfo, node: &NodeInfo) -> bool {
    pod.pod.spec.as_ref().is_none_or(|it| placement::is_fit(it, node.place()))
}
