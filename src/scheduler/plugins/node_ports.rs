//! A host port serves one pod of a node.

use crate::scheduler::{
    cluster::{Cluster, HostPort, NodeInfo, PodInfo},
    framework::{Judge, Rejection},
};

pub fn prepare<'a>(pod: &'a PodInfo, _: &'a Cluster) -> Option<Box<dyn Judge + 'a>> {
    (!pod.ports.is_empty()).then(|| Box::new(Ports { wanted: &pod.ports }) as Box<dyn Judge>)
}

struct Ports<'a> {
    wanted: &'a [HostPort],
}

impl Judge for Ports<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Rejection> {
        if is_taken(self.wanted, node) { Err(Rejection::resolvable(REASON)) } else { Ok(()) }
    }
}

/// `ErrReason` of upstream.
pub const REASON: &str = "node(s) didn't have free ports for the requested pod ports";

/// Whether a pod of the node has one of these ports.
pub fn is_taken(wanted: &[HostPort], node: &NodeInfo) -> bool {
    let mut used = node.pods.values().flat_map(|it| &it.ports);
    used.any(|used| wanted.iter().any(|it| conflicts(it, used)))
}

fn conflicts(a: &HostPort, b: &HostPort) -> bool {
    let is_any = |it: &HostPort| it.ip == "0.0.0.0";
    a.port == b.port && a.protocol == b.protocol && (a.ip == b.ip || is_any(a) || is_any(b))
}
