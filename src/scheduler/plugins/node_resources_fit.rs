//! A node has room for what a pod requests; the emptiest is preferred (LeastAllocated).

use crate::scheduler::{
    cluster::{Cluster, NodeInfo, PodInfo},
    framework::{Judge, MOST, Rejection},
};

pub fn prepare<'a>(pod: &'a PodInfo, _: &'a Cluster) -> Option<Judge<'a>> {
    let rejection = |node: &NodeInfo| {
        let lacking = insufficient(pod, node);
        let is_resolvable = lacking.iter().all(|it| it.name == "pods" || it.asked <= it.room);
        (!lacking.is_empty()).then(|| Rejection { reasons: lacking.iter().map(Insufficient::reason).collect(), is_resolvable })
    };
    Some(Judge::filter(rejection).and_scores(|nodes| Some(nodes.iter().map(|it| least_allocated(pod, it)).collect())))
}

/// A resource of which a node has too little left (`InsufficientResource`).
#[derive(Debug, PartialEq)]
pub struct Insufficient {
    pub name: String,
    pub asked: i64,
    pub used: i64,
    pub room: i64,
}

impl Insufficient {
    fn reason(&self) -> String {
        if self.name == "pods" { "Too many pods".to_owned() } else { format!("Insufficient {}", self.name) }
    }
}

/// `fitsRequest`: what is lacking.
pub fn insufficient(pod: &PodInfo, node: &NodeInfo) -> Vec<Insufficient> {
    let (asked, room, used) = (&pod.request, &node.allocatable, &node.requested);
    let mut all = vec![
        ("pods", 1, node.allowed_pods, node.pods.len() as i64),
        ("cpu", asked.milli_cpu, room.milli_cpu, used.milli_cpu),
        ("memory", asked.memory, room.memory, used.memory),
        ("ephemeral-storage", asked.ephemeral_storage, room.ephemeral_storage, used.ephemeral_storage),
    ];
    let of = |it: &std::collections::BTreeMap<String, i64>, name: &str| it.get(name).copied().unwrap_or(0);
    all.extend(asked.scalars.iter().map(|(name, asked)| (name.as_str(), *asked, of(&room.scalars, name), of(&used.scalars, name))));
    let lacking = all.into_iter().filter(|(_, asked, room, used)| *asked > 0 && *asked > room - used);
    lacking.map(|(name, asked, room, used)| Insufficient { name: name.to_owned(), asked, used, room }).collect()
}

/// The mean free share of cpu and memory.
fn least_allocated(pod: &PodInfo, node: &NodeInfo) -> i64 {
    let parts = [(node.non_zero.0 + pod.non_zero.0, node.allocatable.milli_cpu), (node.non_zero.1 + pod.non_zero.1, node.allocatable.memory)];
    let shares: Vec<i64> = parts.iter().filter(|it| it.1 > 0).map(|(used, room)| if used > room { 0 } else { (room - used) * MOST / room }).collect();
    if shares.is_empty() { 0 } else { shares.iter().sum::<i64>() / shares.len() as i64 }
}
