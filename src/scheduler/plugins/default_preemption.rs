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

/// The best candidate, or the text that says why there is none.
pub fn preempt(pod: &PodInfo, cluster: &mut Cluster, diagnosis: &Diagnosis) -> Result<Candidate, String> {
    if pod.pod.spec.as_ref().and_then(|it| it.preemption_policy.as_deref()) == Some("Never") {
        return Err("not eligible due to preemptionPolicy=Never.".to_owned());
    }
    if is_waiting_for_victims(pod, cluster) {
        return Err("not eligible due to a terminating pod on the nominated node.".to_owned());
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
    candidates.into_iter().min_by_key(cost).ok_or_else(|| framework::histogram(diagnosis.nodes, reasons.into_iter()))
}

/// Whether pods that this one evicted before are still going.
fn is_waiting_for_victims(pod: &PodInfo, cluster: &Cluster) -> bool {
    let nominated = pod.pod.status.as_ref().and_then(|it| it.nominated_node_name.as_deref());
    let node = nominated.and_then(|it| cluster.nodes.get(it));
    node.is_some_and(|it| it.pods.values().any(|it| it.priority < pod.priority && it.pod.metadata.deletion_timestamp.is_some()))
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
