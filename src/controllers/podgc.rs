//! Pods that nobody will end: those of nodes that are gone, those that go without ever having had a node, and too many that have ended.
//! Follows pkg/controller/podgc.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Patch},
};
use serde_json::json;

use super::{Context, Informers, pods};
use crate::{
    base::clock,
    client::{
        Error, Result,
        writes::{self, CONTROLLER_MANAGER},
    },
};

const NAME: &str = "pod-garbage-collector";
/// `gcCheckPeriod`.
const EVERY: Duration = Duration::from_secs(20);
/// `quarantineTime`: how long a node may be missing before its pods are orphans.
const QUARANTINE: Duration = Duration::from_secs(40);
/// `--terminated-pod-gc-threshold`.
const TERMINATED_MOST: usize = 12_500;

pub fn start(context: &Context) {
    let (client, informers) = (context.client(NAME), context.informers.clone());
    context.tasks.spawn(NAME, async move {
        informers.synced().await;
        let mut missing = HashMap::new();
        loop {
            if let Err(error) = collect(&client, &informers, &mut missing).await {
                tracing::warn!(error = error.message(), "pods could not be collected");
            }
            tokio::time::sleep(EVERY).await;
        }
    });
}

async fn collect(client: &kube::Client, informers: &Informers, missing: &mut HashMap<String, Instant>) -> Result<()> {
    let all = informers.pods.list();
    let gone = gone_nodes(client, informers, &all, missing).await?;
    for pod in &all {
        let node = pods::node_name(pod);
        if gone.contains(node) {
            let (reason, message) = ("DeletionByPodGC", "PodGC: node no longer exists");
            fail_and_delete(client, pod, reason, message).await?;
        } else if node.is_empty() && pod.metadata.deletion_timestamp.is_some() {
            delete(client, pod).await?;
        }
    }
    for pod in surplus(&all) {
        delete(client, &pod).await?;
    }
    Ok(())
}

/// Names of nodes that pods have, that are missing for so long that they are gone, by the server's word too.
async fn gone_nodes(client: &kube::Client, informers: &Informers, all: &[Arc<Pod>], missing: &mut HashMap<String, Instant>) -> Result<HashSet<String>> {
    let known: HashSet<String> = informers.nodes.list().iter().map(|it| it.name_any()).collect();
    let named: HashSet<&str> = all.iter().map(|it| pods::node_name(it)).filter(|it| !it.is_empty() && !known.contains(*it)).collect();
    missing.retain(|name, _| named.contains(name.as_str()));
    let mut gone = HashSet::new();
    for name in named {
        let since = *missing.entry(name.to_owned()).or_insert_with(Instant::now);
        if since.elapsed() >= QUARANTINE && Api::<Node>::all(client.clone()).get_opt(name).await?.is_none() {
            gone.insert(name.to_owned());
        }
    }
    Ok(gone)
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
        let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
        let condition = disruption_target(reason, message, clock::now());
        let patch = Patch::Strategic(json!({"metadata": {"uid": pod.uid()}, "status": {"phase": "Failed", "conditions": [condition]}}));
        let patched = writes::unless_not_found(api.patch_status(&pod.name_any(), &writes::patching(CONTROLLER_MANAGER), &patch).await)?;
        if patched.is_none() {
            return Ok(());
        }
    }
    delete(client, pod).await
}

/// The condition that tells why a pod had to go.
pub fn disruption_target(reason: &str, message: &str, now: Timestamp) -> serde_json::Value {
    json!({"type": "DisruptionTarget", "status": "True", "reason": reason, "message": message, "lastTransitionTime": now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()})
}

async fn delete(client: &kube::Client, pod: &Pod) -> Result<()> {
    let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    let options = DeleteParams { grace_period_seconds: Some(0), ..writes::deleting(pod.metadata.uid.as_deref()) };
    match api.delete(&pod.name_any(), &options).await.map_err(Error::from) {
        Err(error) if !error.is_not_found() && !error.is_conflict() => Err(error),
        _ => Ok(()),
    }
}
