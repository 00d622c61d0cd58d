//! The plugins, under upstream's names; those that look at one node alone stand together.

pub mod default_preemption;
pub mod filters;
pub mod image_locality;
pub mod inter_pod_affinity;
pub mod node_resources_balanced_allocation;
pub mod node_resources_fit;
pub mod pod_topology_spread;
pub mod volume_binding;

use super::framework::{
    ClusterEvent::{NodeAdded, NodeChanged, PodAssigned, PodGone, StorageChanged},
    Plugin,
};

/// The plugins, in upstream's default order and with the weights of its default configuration.
#[rustfmt::skip]
pub const ALL: [Plugin; 11] = [
    Plugin { name: "NodeUnschedulable", weight: 1, prepare: filters::node_unschedulable, is_helped_by: |it| matches!(it, NodeAdded | NodeChanged) },
    Plugin { name: "NodeName", weight: 1, prepare: filters::node_name, is_helped_by: |it| it == NodeAdded },
    Plugin { name: "TaintToleration", weight: 3, prepare: filters::taint_toleration, is_helped_by: |it| matches!(it, NodeAdded | NodeChanged) },
    Plugin { name: "NodeAffinity", weight: 2, prepare: filters::node_affinity, is_helped_by: |it| matches!(it, NodeAdded | NodeChanged) },
    Plugin { name: "NodePorts", weight: 1, prepare: filters::node_ports, is_helped_by: |it| matches!(it, NodeAdded | PodGone) },
    Plugin { name: "NodeResourcesFit", weight: 1, prepare: node_resources_fit::prepare, is_helped_by: |it| !matches!(it, PodAssigned | StorageChanged) },
    Plugin { name: "VolumeBinding", weight: 1, prepare: volume_binding::prepare, is_helped_by: |it| matches!(it, NodeAdded | NodeChanged | StorageChanged) },
    Plugin { name: "PodTopologySpread", weight: 2, prepare: pod_topology_spread::prepare, is_helped_by: |it| it != StorageChanged },
    Plugin { name: "InterPodAffinity", weight: 2, prepare: inter_pod_affinity::prepare, is_helped_by: |it| it != StorageChanged },
    Plugin { name: "NodeResourcesBalancedAllocation", weight: 1, prepare: node_resources_balanced_allocation::prepare, is_helped_by: |_| false },
    Plugin { name: "ImageLocality", weight: 1, prepare: image_locality::prepare, is_helped_by: |_| false },
];

#[cfg(test)]
mod tests;
