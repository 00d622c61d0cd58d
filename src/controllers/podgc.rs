//! Pods that nobody will end: those of nodes that are gone, those that go without ever having had a node, and too many that have ended.
//! Follows pkg/controller/podgc.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{ResourceExt, api::Patch};
use serde_json::json;
use tokio::sync::Mutex;

use super::{Controller, pods};
use crate::client::{Result, pods::disruption_target, writes};

/// `gcCheckPeriod`.
const EVERY: Duration = Duration::from_secs(20);
/// `quarantineTime`: how long a node may be missing before its pods are orphans.
const QUARANTINE: Duration = Duration::from_secs(40);
/// `--terminated-pod-gc-threshold`.
const TERMINATED_MOST: usize = 12_500;

#[derive(Default)]
pub struct PodGarbageCollector {
    /// Since when nodes are missing.
    missing: Mutex<HashMap<String, Instant>>,
}
type Shell = super::Shell<PodGarbageCollector>;

impl Controller for PodGarbageCollector {
    type Key = ();
    const NAME: &'static str = "pod-garbage-collector";
    const WORKERS: usize = 1;

    async fn listen(shell: &Arc<Shell>) {
        shell.queue.add(());
    }

    async fn reconcile(shell: &Arc<Shell>, (): &()) -> Result<Option<Duration>> {
        let all = shell.informers.pods.list();
        let gone = shell.gone_nodes(&all).await?;
        for pod in &all {
            let node = pods::node_name(pod);
            if gone.contains(node) {
                fail_and_delete(&shell.client, pod, "DeletionByPodGC", "PodGC: node no longer exists").await?;
            } else if node.is_empty() && pod.metadata.deletion_timestamp.is_some() {
                writes::delete(&shell.client, pod.as_ref(), writes::at_once()).await?;
            }
        }
        for pod in surplus(&all) {
            writes::delete(&shell.client, pod.as_ref(), writes::at_once()).await?;
        }
        Ok(Some(EVERY))
    }
}

impl Shell {
    /// Names of nodes that pods have, that are missing for so long that they are gone, by the server's word too.
    async fn gone_nodes(&self, all: &[Arc<Pod>]) -> Result<HashSet<String>> {
        let known: HashSet<String> = self.informers.nodes.list().iter().map(|it| it.name_any()).collect();
        let named: HashSet<&str> = all.iter().map(|it| pods::node_name(it)).filter(|it| !it.is_empty() && !known.contains(*it)).collect();
        let mut missing = self.own.missing.lock().await;
        missing.retain(|name, _| named.contains(name.as_str()));
        let mut gone = HashSet::new();
        for name in named {
            let since = *missing.entry(name.to_owned()).or_insert_with(Instant::now);
            if since.elapsed() >= QUARANTINE && writes::api::<Node>(&self.client, "").get_opt(name).await?.is_none() {
                gone.insert(name.to_owned());
            }
        }
        Ok(gone)
    }
}

/// The oldest ended pods beyond those that are kept; the evicted first.
fn surplus(all: &[Arc<Pod>]) -> Vec<Arc<Pod>> {
    let mut ended: Vec<&Arc<Pod>> = all.iter().filter(|it| pods::is_terminal(it) && it.metadata.deletion_timestamp.is_none()).collect();
    let is_evicted = |pod: &Pod| pod.status.as_ref().is_some_and(|it| it.reason.as_deref() == Some("Evicted"));
    ended.sort_by_key(|it| (!is_evicted(it), it.metadata.creation_timestamp.clone(), it.name_any()));
    ended.iter().take(ended.len().saturating_sub(TERMINATED_MOST)).map(|it| (*it).clone()).collect()
}

/// A pod whose node is gone can no longer say how it ended.
async fn fail_and_delete(client: &kube::Client, pod: &Pod, reason: &str, message: &str) -> Result<()> {
    if !pods::is_terminal(pod) {
        let condition = disruption_target(reason, message);
        let patch = Patch::Strategic(json!({"metadata": {"uid": pod.uid()}, "status": {"phase": "Failed", "conditions": [condition]}}));
        writes::patch_status(client, pod, &patch).await?;
    }
    writes::delete(client, pod, writes::at_once()).await.map(drop)
}
