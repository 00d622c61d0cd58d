//! Makes room for a pod by evicting pods of lower priority. Follows framework/preemption and plugins/defaultpreemption, without disruption budgets.

use std::sync::Arc;

use crate::scheduler::{
    cluster::{Cluster, PodInfo},
    framework::{self, Diagnosis},
};

/// `DefaultMinCandidateNodesAbsolute`: enough candidates to choose from.
const CANDIDATES_MOST: usize = 100;

/// The node to clear and the pods to evict from it.
#[derive(Debug)]
pub struct Candidate {
    pub node: String,
    pub victims: Vec<Arc<PodInfo>>,
}

/// Why nobody is evicted, in upstream's words.
#[derive(Debug)]
pub struct Refusal {
    pub why: String,
    /// Room that was promised to the pod before would not come either.
    pub is_hopeless: bool,
}

/// The best candidate for a pod that was perhaps promised room on the node `promised` before.
pub fn preempt(pod: &PodInfo, promised: Option<&str>, cluster: &mut Cluster, diagnosis: &Diagnosis) -> Result<Candidate, Refusal> {
    let not_eligible = |why: &str| Err(Refusal { why: format!("not eligible due to {why}."), is_hopeless: false });
    if pod.pod.spec.as_ref().and_then(|it| it.preemption_policy.as_deref()) == Some("Never") {
        return not_eligible("preemptionPolicy=Never");
    }
    if promised.is_some_and(|it| is_being_cleared(it, pod, cluster)) {
        return not_eligible("a terminating pod on the nominated node");
    }
    let mut reasons = Vec::new();
    let mut candidates = Vec::new();
    for (node, rejection) in &diagnosis.rejections {
        if !rejection.is_resolvable {
            reasons.push("Preemption is not helpful for scheduling");
        } else if candidates.len() < CANDIDATES_MOST {
            match victims(pod, cluster, node) {
                Some(victims) => candidates.push(Candidate { node: node.clone(), victims }),
                None => reasons.push("No preemption victims found for incoming pod"),
            }
        }
    }
    let cost = |it: &Candidate| {
        let priorities = it.victims.iter().map(|it| i64::from(it.priority));
        (priorities.clone().max(), priorities.sum::<i64>(), it.victims.len())
    };
    let best = candidates.into_iter().min_by_key(cost);
    best.ok_or_else(|| Refusal { why: framework::histogram(diagnosis.nodes, reasons.into_iter()), is_hopeless: true })
}

/// Whether pods that this one evicted before are still going.
fn is_being_cleared(node: &str, pod: &PodInfo, cluster: &Cluster) -> bool {
    cluster.nodes.get(node).is_some_and(|it| it.pods.values().any(|it| it.priority < pod.priority && it.pod.metadata.deletion_timestamp.is_some()))
}

/// `SelectVictimsOnNode`: all lesser pods go, then the highest are kept as long as the pod still fits.
fn victims(pod: &PodInfo, cluster: &mut Cluster, node: &str) -> Option<Vec<Arc<PodInfo>>> {
    let mut lesser: Vec<Arc<PodInfo>> = cluster.nodes.get(node)?.pods.values().filter(|it| it.priority < pod.priority).cloned().collect();
    lesser.sort_by_key(|it| (std::cmp::Reverse(it.priority), it.pod.metadata.creation_timestamp.clone()));
    lesser.iter().for_each(|it| drop(cluster.remove_pod(&it.uid, node)));
    let does_fit = !lesser.is_empty() && framework::fits(pod, cluster, node);
    let mut victims = Vec::new();
    for other in lesser {
        cluster.add_pod(other.clone(), node);
        if does_fit && !framework::fits(pod, cluster, node) {
            cluster.remove_pod(&other.uid, node);
            victims.push(other);
        }
    }
    victims.iter().for_each(|it| cluster.add_pod(it.clone(), node));
    (does_fit && !victims.is_empty()).then_some(victims)
}
