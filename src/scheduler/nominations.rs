//! Pods that others were evicted for. Until they are on their node, what they ask for there is theirs, as far as pods of no higher priority go: else
//! what a controller makes anew in place of a victim would take the room that the victim left. Follows pkg/scheduler/backend/queue/nominator.go
//! and `RunFilterPluginsWithNominatedPods`.

use std::{collections::HashMap, sync::Arc};

use super::cluster::{Cluster, PodInfo};

/// Node and pod by the pod's uid.
#[derive(Default)]
pub struct Nominations(HashMap<String, (String, Arc<PodInfo>)>);

impl Nominations {
    /// `pod` gets the node; lesser pods that were promised room there lose it.
    pub fn add(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.0.retain(|_, (on, other)| on != node || other.priority >= pod.priority);
        self.0.insert(pod.uid.clone(), (node.to_owned(), pod));
    }

    pub fn remove(&mut self, uid: &str) {
        self.0.remove(uid);
    }

    pub fn node_of(&self, uid: &str) -> Option<&str> {
        self.0.get(uid).map(|it| it.0.as_str())
    }

    /// Does `work` on a cluster in which those count as on their nodes that go before `pod`.
    pub fn counted<T>(&self, pod: &PodInfo, cluster: &mut Cluster, work: impl FnOnce(&mut Cluster) -> T) -> T {
        let goes_before = |node: &str, it: &PodInfo| it.uid != pod.uid && it.priority >= pod.priority && cluster.nodes.get(node).is_some_and(|on| !on.pods.contains_key(&it.uid));
        let counted: Vec<_> = self.0.values().filter(|(node, it)| goes_before(node, it)).collect();
        counted.iter().for_each(|(node, it)| cluster.add_pod(it.clone(), node));
        let result = work(cluster);
        counted.iter().for_each(|(node, it)| drop(cluster.remove_pod(&it.uid, node)));
        result
    }
}
