//! Prefers nodes whose cpu and memory the pod brings into balance.

use crate::scheduler::{
    cluster::{Cluster, NodeInfo, PodInfo, Resources},
    framework::{Judge, MOST},
};

/// A pod that asks for nothing is not weighed.
pub fn prepare<'a>(pod: &'a PodInfo, _: &'a Cluster) -> Option<Judge<'a>> {
    let is_best_effort = pod.request.milli_cpu == 0 && pod.request.memory == 0;
    (!is_best_effort).then(|| Judge::scores(|nodes| Some(nodes.iter().map(|it| improvement(pod, it)).collect())))
}

/// `balancedResourceScorer`: 75 where the balance stays, 100 and 50 at best and worst.
fn improvement(pod: &PodInfo, node: &NodeInfo) -> i64 {
    let used = (node.requested.milli_cpu, node.requested.memory);
    let with = (used.0 + pod.request.milli_cpu, used.1 + pod.request.memory);
    MOST / 2 + (MOST / 2 + balance(with, &node.allocatable) - balance(used, &node.allocatable)) / 2
}

/// One less the standard deviation of the used shares, in percent.
fn balance(used: (i64, i64), room: &Resources) -> i64 {
    let share = |used: i64, room: i64| (used as f64 / room as f64).min(1.0);
    if room.milli_cpu == 0 || room.memory == 0 {
        return MOST;
    }
    let deviation = (share(used.0, room.milli_cpu) - share(used.1, room.memory)).abs() / 2.0;
    ((1.0 - deviation) * MOST as f64) as i64
}
