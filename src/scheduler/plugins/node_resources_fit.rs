//! A node has room for what a pod requests; the emptiest is preferred (LeastAllocated).

use crate::scheduler::{
    cluster::{Cluster, NodeInfo, PodInfo},
    framework::{ClusterEvent, Judge, MOST, Plugin, Rejection},
};

pub struct NodeResourcesFit;

impl Plugin for NodeResourcesFit {
    fn name(&self) -> &'static str {
        "NodeResourcesFit"
    }

    fn prepare<'a>(&'a self, pod: &'a PodInfo, _: &'a Cluster) -> Option<Box<dyn Judge + 'a>> {
        Some(Box::new(Fit { pod }))
    }

    fn is_helped_by(&self, event: ClusterEvent) -> bool {
        event != ClusterEvent::PodAssigned
    }
}

struct Fit<'a> {
    pod: &'a PodInfo,
}

impl Judge for Fit<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Rejection> {
        let (reasons, is_resolvable) = insufficient(self.pod, node);
        if reasons.is_empty() { Ok(()) } else { Err(Rejection { reasons, is_resolvable }) }
    }

    fn scores(&self, nodes: &[&NodeInfo]) -> Option<Vec<i64>> {
        Some(nodes.iter().map(|it| least_allocated(self.pod, it)).collect())
    }
}

/// `fitsRequest`: what is lacking, and whether an empty node would have it.
fn insufficient(pod: &PodInfo, node: &NodeInfo) -> (Vec<String>, bool) {
    let (asked, room, used) = (&pod.request, &node.allocatable, &node.requested);
    let mut reasons = Vec::new();
    let mut is_resolvable = true;
    if node.pods.len() as i64 + 1 > node.allowed_pods {
        reasons.push("Too many pods".to_owned());
    }
    let mut check = |name: &str, asked: i64, room: i64, used: i64| {
        if asked > 0 && asked > room - used {
            reasons.push(format!("Insufficient {name}"));
            is_resolvable &= asked <= room;
        }
    };
    check("cpu", asked.milli_cpu, room.milli_cpu, used.milli_cpu);
    check("memory", asked.memory, room.memory, used.memory);
    check("ephemeral-storage", asked.ephemeral_storage, room.ephemeral_storage, used.ephemeral_storage);
    for (name, asked) in &asked.scalars {
        let of = |it: &std::collections::BTreeMap<String, i64>| it.get(name).copied().unwrap_or(0);
        check(name, *asked, of(&room.scalars), of(&used.scalars));
    }
    (reasons, is_resolvable)
}

/// The mean free share of cpu and memory.
fn least_allocated(pod: &PodInfo, node: &NodeInfo) -> i64 {
    let parts = [(node.non_zero.0 + pod.non_zero.0, node.allocatable.milli_cpu), (node.non_zero.1 + pod.non_zero.1, node.allocatable.memory)];
    let shares: Vec<i64> = parts.iter().filter(|it| it.1 > 0).map(|(used, room)| if used > room { 0 } else { (room - used) * MOST / room }).collect();
    if shares.is_empty() { 0 } else { shares.iter().sum::<i64>() / shares.len() as i64 }
}
