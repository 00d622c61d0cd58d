//! Taints repel pods that do not tolerate them; those that merely prefer not to, by the score.

use k8s_openapi::api::core::v1::Taint;

use crate::{
    client::placement,
    scheduler::{
        cluster::{Cluster, NodeInfo, PodInfo},
        framework::{Judge, Rejection, normalize},
    },
};

pub fn prepare<'a>(pod: &'a PodInfo, _: &'a Cluster) -> Option<Box<dyn Judge + 'a>> {
    Some(Box::new(Taints { pod }))
}

struct Taints<'a> {
    pod: &'a PodInfo,
}

impl Judge for Taints<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Rejection> {
        let repels = |it: &&Taint| matches!(it.effect.as_str(), "NoSchedule" | "NoExecute") && !is_tolerated(it, self.pod);
        match node.taints().find(repels) {
            None => Ok(()),
            Some(_) => Err(Rejection::unresolvable("node(s) had untolerated taint(s)")),
        }
    }

    fn scores(&self, nodes: &[&NodeInfo]) -> Option<Vec<i64>> {
        let dislikes = |it: &&Taint| it.effect == "PreferNoSchedule" && !is_tolerated(it, self.pod);
        let counts: Vec<i64> = nodes.iter().map(|node| node.taints().filter(dislikes).count() as i64).collect();
        Some(normalize(counts, true))
    }
}

pub fn is_tolerated(taint: &Taint, pod: &PodInfo) -> bool {
    pod.pod.spec.as_ref().is_some_and(|it| placement::is_tolerated(taint, it))
}
