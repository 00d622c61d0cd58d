//! Node life cycle: a node that no longer renews its lease is unknown, one that is not ready is tainted, and pods that do not tolerate
//! that are evicted. Source: `pkg/controller/nodelifecycle`, `pkg/controller/tainteviction`.

use std::{sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, Pod, Taint};
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};

use super::{BY_NODE, Context};
use crate::{
    base::clock,
    client::{ObjectKey, Result, placement::tolerates, writes},
};

const NAME: &str = "node-controller";
const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
/// `--node-monitor-grace-period`: a lease older than this makes its node unknown.
const GRACE: SignedDuration = SignedDuration::from_secs(50);
/// `--node-monitor-period`.
const EVERY: Duration = Duration::from_secs(5);
/// A node that has just changed is looked at at once.
const AFTER_CHANGE: Duration = Duration::from_millis(20);

pub fn start(context: &Context) {
    let wake = Arc::new(tokio::sync::Notify::new());
    let listener = wake.clone();
    context.informers.nodes.subscribe(move |_| listener.notify_one());
    let own = context.clone();
    context.tasks.spawn("nodelifecycle", async move {
        own.informers.synced().await;
        let client = own.client(NAME);
        loop {
            if let Err(error) = monitor(&own, &client).await {
                tracing::debug!(%error, "nodes are looked at again");
            }
            tokio::select! {
                () = tokio::time::sleep(EVERY) => (),
                () = wake.notified() => tokio::time::sleep(AFTER_CHANGE).await,
            }
        }
    });
}

async fn monitor(context: &Context, client: &kube::Client) -> Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    for node in context.informers.nodes.list() {
        let lease = context.informers.node_leases.get(&ObjectKey::new("kube-node-lease", node.name_any()));
        let renewed = lease.and_then(|it| Some(it.spec.as_ref()?.renew_time.as_ref()?.0)).or(node.metadata.creation_timestamp.as_ref().map(|it| it.0));
        let now = clock::now();
        if let Some(status) = unknown(&node, renewed, now) {
            nodes.patch_status(&node.name_any(), &PatchParams::default(), &Patch::Strategic(status)).await?;
            continue;
        }
        if ready(&node) != "True" {
            mark_pods_not_ready(context, client, &node, now).await?;
        }
        if let Some(taints) = taints(&node, now) {
            let version = node.metadata.resource_version.clone();
            let patch = json!({"metadata": {"resourceVersion": version}, "spec": {"taints": taints}});
            nodes.patch(&node.name_any(), &writes::patching(writes::CONTROLLER_MANAGER), &Patch::Merge(patch)).await?;
            continue;
        }
        evict(context, client, &node, now).await?;
    }
    Ok(())
}

fn ready(node: &Node) -> &str {
    let conditions = node.status.as_ref().and_then(|it| it.conditions.as_deref()).unwrap_or_default();
    conditions.iter().find(|it| it.type_ == "Ready").map_or("Unknown", |it| it.status.as_str())
}

/// The conditions of a node that has not been heard of; `None` while it has, or when that is known already.
fn unknown(node: &Node, renewed: Option<Timestamp>, now: Timestamp) -> Option<Value> {
    let is_late = renewed.is_none_or(|it| now.duration_since(it) > GRACE);
    if !is_late || ready(node) == "Unknown" {
        return None;
    }
    let now = clock::rfc3339(now);
    let condition = |kind: &&str| {
        json!({"type": kind, "status": "Unknown", "reason": "NodeStatusUnknown", "message": "Kubelet stopped posting node status.", "lastTransitionTime": now})
    };
    let conditions: Vec<Value> = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"].iter().map(condition).collect();
    Some(json!({"status": {"conditions": conditions}}))
}

/// The taints that a node should have; `None` when it has them.
fn taints(node: &Node, now: Timestamp) -> Option<Vec<Value>> {
    let existing: Vec<Taint> = node.spec.as_ref().and_then(|it| it.taints.clone()).unwrap_or_default();
    let wanted = match ready(node) {
        "True" => None,
        "False" => Some(NOT_READY),
        _ => Some(UNREACHABLE),
    };
    let is_ours = |taint: &Taint| matches!(taint.key.as_str(), NOT_READY | UNREACHABLE);
    let own: Vec<(&str, &str)> = existing.iter().filter(|it| is_ours(it)).map(|it| (it.key.as_str(), it.effect.as_str())).collect();
    let needed: Vec<(&str, &str)> = wanted.into_iter().flat_map(|key| [(key, "NoSchedule"), (key, "NoExecute")]).collect();
    if own.len() == needed.len() && needed.iter().all(|it| own.contains(it)) {
        return None;
    }
    let others = existing.iter().filter(|it| !is_ours(it)).filter_map(|it| serde_json::to_value(it).ok());
    let ours = needed.iter().map(|(key, effect)| match *effect {
        "NoExecute" => json!({"key": key, "effect": effect, "timeAdded": clock::rfc3339(now)}),
        _ => json!({"key": key, "effect": effect}),
    });
    Some(others.chain(ours).collect())
}

/// Takes the pods of a node that is not ready out of the Services' endpoints (`MarkPodsNotReady`).
async fn mark_pods_not_ready(context: &Context, client: &kube::Client, node: &Node, now: Timestamp) -> Result<()> {
    for pod in context.informers.pods.by(BY_NODE, &node.name_any()).iter().filter(|it| is_pod_ready(it)) {
        let condition = json!({"type": "Ready", "status": "False", "lastTransitionTime": clock::rfc3339(now)});
        let patch = json!({"metadata": {"uid": pod.metadata.uid}, "status": {"conditions": [condition]}});
        let pods: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
        writes::unless_not_found(pods.patch_status(&pod.name_any(), &writes::patching(writes::CONTROLLER_MANAGER), &Patch::Strategic(patch)).await)?;
    }
    Ok(())
}

fn is_pod_ready(pod: &Pod) -> bool {
    pod.status.iter().flat_map(|it| it.conditions.iter().flatten()).any(|it| it.type_ == "Ready" && it.status == "True")
}

/// Deletes the pods that have been on a tainted node for longer than they tolerate.
async fn evict(context: &Context, client: &kube::Client, node: &Node, now: Timestamp) -> Result<()> {
    let all = node.spec.as_ref().and_then(|it| it.taints.as_deref()).unwrap_or_default();
    let executing: Vec<&Taint> = all.iter().filter(|it| it.effect == "NoExecute").collect();
    if executing.is_empty() {
        return Ok(());
    }
    for pod in context.informers.pods.by(BY_NODE, &node.name_any()) {
        if pod.metadata.deletion_timestamp.is_some() || !is_due(&pod, &executing, now) {
            continue;
        }
        let pods: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
        match pods.delete(&pod.name_any(), &writes::deleting(pod.metadata.uid.as_deref())).await {
            Err(kube::Error::Api(error)) if error.code == 404 || error.code == 409 => (),
            other => _ = other?,
        }
    }
    Ok(())
}

/// Whether some taint is not tolerated, or no longer.
fn is_due(pod: &Pod, taints: &[&Taint], now: Timestamp) -> bool {
    let tolerations = pod.spec.as_ref().and_then(|it| it.tolerations.as_deref()).unwrap_or_default();
    taints.iter().any(|taint| {
        let seconds: Vec<Option<i64>> = tolerations.iter().filter(|it| tolerates(it, taint)).map(|it| it.toleration_seconds).collect();
        let added = taint.time_added.as_ref().map_or(now, |it| it.0);
        match seconds.iter().flatten().min() {
            _ if seconds.is_empty() => true,
            None => false,
            Some(limit) => now.duration_since(added) >= SignedDuration::from_secs(*limit),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(status: &str, taints: Value) -> Node {
        let node = json!({"metadata": {"name": "n"}, "spec": {"taints": taints}, "status": {"conditions": [{"type": "Ready", "status": status}]}});
        serde_json::from_value(node).expect("a Node")
    }

    #[test]
    fn taints_follow_readiness() {
        let now = Timestamp::UNIX_EPOCH;
        let not_ready = json!([{"key": NOT_READY, "effect": "NoSchedule"}]);
        assert_eq!(taints(&node("True", not_ready), now), Some(vec![]));
        assert_eq!(taints(&node("True", json!([{"key": "own", "effect": "NoSchedule"}])), now), None);
        let effects: Vec<Value> = taints(&node("Unknown", json!([])), now).expect("taints").into_iter().map(|it| it["effect"].clone()).collect();
        assert_eq!(effects, ["NoSchedule", "NoExecute"]);
    }

    #[test]
    fn a_silent_node_is_unknown() {
        let now = Timestamp::UNIX_EPOCH + SignedDuration::from_secs(1000);
        assert!(unknown(&node("True", json!([])), Some(now - SignedDuration::from_secs(10)), now).is_none());
        assert!(unknown(&node("True", json!([])), Some(now - SignedDuration::from_secs(60)), now).is_some());
        assert!(unknown(&node("Unknown", json!([])), None, now).is_none());
    }

    #[test]
    fn pods_leave_when_their_toleration_ends() {
        let pod = |seconds: Value| -> Pod { serde_json::from_value(json!({"spec": {"containers": [], "tolerations": [{"key": NOT_READY, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds}]}})).expect("a Pod") };
        let taint: Taint = serde_json::from_value(json!({"key": NOT_READY, "effect": "NoExecute", "timeAdded": "1970-01-01T00:00:00Z"})).expect("a Taint");
        let at = |seconds| Timestamp::UNIX_EPOCH + SignedDuration::from_secs(seconds);
        assert!(!is_due(&pod(json!(300)), &[&taint], at(299)));
        assert!(is_due(&pod(json!(300)), &[&taint], at(300)));
        assert!(!is_due(&pod(Value::Null), &[&taint], at(9999)));
        assert!(is_due(&Pod::default(), &[&taint], at(0)));
    }
}
