//! Keeps pods off cordoned nodes, unless they tolerate it.

use k8s_openapi::api::core::v1::Taint;

use super::taint_toleration::is_tolerated;
use crate::scheduler::{
    cluster::{Cluster, NodeInfo, PodInfo},
    framework::{Judge, Rejection},
};

pub fn prepare<'a>(pod: &'a PodInfo, _: &'a Cluster) -> Option<Box<dyn Judge + 'a>> {
    Some(Box::new(Cordon { pod }))
}

struct Cordon<'a> {
    pod: &'a PodInfo,
}

impl Judge for Cordon<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Rejection> {
        let spec = node.node.as_ref().and_then(|it| it.spec.as_ref());
        if spec.and_then(|it| it.unschedulable) != Some(true) {
            return Ok(());
        }
        let taint = Taint { key: "node.kubernetes.io/unschedulable".to_owned(), effect: "NoSchedule".to_owned(), ..Taint::default() };
        if is_tolerated(&taint, self.pod) { Ok(()) } else { Err(Rejection::unresolvable("node(s) were unschedulable")) }
    }
}
