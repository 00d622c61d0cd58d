//! A pod that names its node runs on no other.

use crate::scheduler::{
    cluster::{Cluster, NodeInfo, PodInfo},
    framework::{Judge, Rejection},
};

pub fn prepare<'a>(pod: &'a PodInfo, _: &'a Cluster) -> Option<Box<dyn Judge + 'a>> {
    let name = pod.node_name();
    (!name.is_empty()).then(|| Box::new(Named { name }) as Box<dyn Judge>)
}

struct Named<'a> {
    name: &'a str,
}

impl Judge for Named<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Rejection> {
        if node.name == self.name { Ok(()) } else { Err(Rejection::unresolvable("node(s) didn't match the requested node name")) }
    }
}
