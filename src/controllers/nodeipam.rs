//! Gives each node a part of the cluster's range of pod addresses. Follows pkg/controller/nodeipam/ipam (range_allocator.go).

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
    time::Duration,
};

use k8s_openapi::api::core::v1::{ConfigMap, Node};
use kube::{ResourceExt, api::Patch};
use parking_lot::Mutex;
use serde_json::json;

use super::Controller;
use crate::{
    base::clock,
    client::{EventType, ObjectKey, Result, writes},
    meta::Cidr,
};

/// `--node-cidr-mask-size`: 256 addresses a node, of which pods get 253.
const MASK: u8 = 24;
/// The ranges that the first API server fixed.
const NETWORK: (&str, &str) = ("kube-system", "cluster-network");
const RETRY: Duration = Duration::from_secs(1);
/// A node without a range is looked at again, for another may have gone.
const FULL: Duration = Duration::from_secs(60);
/// Nodes that only say that their pods run need no addresses.
const SIMULATED: (&str, &str) = ("type", "simulated");

#[derive(Default)]
pub struct NodeIpamController {
    range: OnceLock<Cidr>,
    /// What was given and may not be in the cache yet.
    given: Mutex<HashMap<String, Cidr>>,
}
type Shell = super::Shell<NodeIpamController>;

impl Controller for NodeIpamController {
    type Key = String;
    const NAME: &'static str = "node-controller";
    // One at a time: two nodes must not get the same part.
    const WORKERS: usize = 1;

    async fn listen(shell: &Arc<Shell>) {
        let range = cluster_range(&shell.client).await;
        shell.own.range.get_or_init(|| range);
        shell.on(&shell.informers.nodes, |it, change| {
            if !change.is_deleted() && needs_range(change.object()) {
                it.queue.add(change.object().name_any());
            }
        });
    }

    async fn reconcile(shell: &Arc<Shell>, name: &String) -> Result<Option<Duration>> {
        let (nodes, range) = (&shell.informers.nodes, shell.own.range.get());
        let Some((node, range)) = nodes.get(&ObjectKey::new("", name)).filter(|it| needs_range(it)).zip(range) else { return Ok(None) };
        let Some(free) = shell.own.take(*range, &nodes.list(), name) else {
            shell.events.event(&*node, EventType::Normal, "CIDRNotAvailable", format!("Node {name} status is now: CIDRNotAvailable"));
            return Ok(Some(FULL));
        };
        let patch = json!({"metadata": {"uid": node.metadata.uid}, "spec": {"podCIDR": free.to_string(), "podCIDRs": [free.to_string()]}});
        writes::patch(&shell.client, node.as_ref(), &Patch::Strategic(patch)).await?;
        tracing::info!(node = name, range = %free, at = %clock::now(), "a node got its pods' addresses");
        Ok(None)
    }
}

impl NodeIpamController {
    /// A part of the range that no other node has.
    fn take(&self, range: Cidr, nodes: &[Arc<Node>], name: &str) -> Option<Cidr> {
        let mut given = self.given.lock();
        given.retain(|name, _| nodes.iter().any(|it| it.name_any() == *name && range_of(it).is_none()));
        let used: Vec<Cidr> = nodes.iter().filter_map(|it| range_of(it)).chain(given.iter().filter(|(of, _)| *of != name).map(|(_, it)| *it)).collect();
        let free = free(range, &used)?;
        given.insert(name.to_owned(), free);
        Some(free)
    }
}

async fn cluster_range(client: &kube::Client) -> Cidr {
    let maps = writes::api::<ConfigMap>(client, NETWORK.0);
    loop {
        match maps.get(NETWORK.1).await {
            Ok(map) => match map.data.as_ref().and_then(|it| it.get("pods")?.parse().ok()) {
                Some(range) => return range,
                None => tracing::error!("ConfigMap {}/{} names no range of pods", NETWORK.0, NETWORK.1),
            },
            Err(error) => tracing::debug!(%error, "the cluster's ranges are not known yet"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

fn range_of(node: &Node) -> Option<Cidr> {
    node.spec.as_ref()?.pod_cidr.as_ref()?.parse().ok()
}

fn needs_range(node: &Node) -> bool {
    let is_simulated = node.labels().get(SIMULATED.0).is_some_and(|it| it == SIMULATED.1);
    range_of(node).is_none() && node.metadata.deletion_timestamp.is_none() && !is_simulated
}

/// The first part of `range` that overlaps none in use.
fn free(range: Cidr, used: &[Cidr]) -> Option<Cidr> {
    range.subnets(MASK.max(range.prefix())).find(|it| used.iter().all(|used| !used.overlaps(*it)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_free_part_is_given() {
        let range = |text: &str| text.parse::<Cidr>().unwrap();
        let cases = [
            ("10.244.0.0/16", vec![], Some("10.244.0.0/24")),
            ("10.244.0.0/16", vec!["10.244.0.0/24", "10.244.2.0/24"], Some("10.244.1.0/24")),
            ("10.244.0.0/16", vec!["10.244.0.0/23"], Some("10.244.2.0/24")),
            ("10.244.0.0/24", vec!["10.244.0.0/24"], None),
            ("10.244.0.0/25", vec![], Some("10.244.0.0/25")),
        ];
        for (all, used, expected) in cases {
            let used: Vec<Cidr> = used.into_iter().map(range).collect();
            assert_eq!(free(range(all), &used).map(|it| it.to_string()).as_deref(), expected, "{all} {used:?}");
        }
    }
}
