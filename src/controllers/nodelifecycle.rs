//! Node life cycle: a node that no longer renews its lease is unknown, one that is not ready is tainted, and pods that do not tolerate
//! that are evicted. Source: `pkg/controller/nodelifecycle`, `pkg/controller/tainteviction`.

use std::{sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, Pod, Taint};
use kube::{
    ResourceExt,
    api::{DeleteParams, Patch},
};
use serde_json::{Value, json};

use super::{BY_NODE, Controller, pods};
use crate::{
    base::clock,
    client::{ObjectKey, Result, placement::tolerates, writes},
};

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
/// `--node-monitor-grace-period`: a lease older than this makes its node unknown.
const GRACE: SignedDuration = SignedDuration::from_secs(50);
/// `--node-monitor-period`.
const EVERY: Duration = Duration::from_secs(5);
/// A node that has just changed is looked at at once.
const AFTER_CHANGE: Duration = Duration::from_millis(20);

pub struct NodeLifecycleController;
type Shell = super::Shell<NodeLifecycleController>;

impl Controller for NodeLifecycleController {
    type Key = ();
    const NAME: &'static str = "node-controller";
    const WORKERS: usize = 1;

    async fn listen(shell: &Arc<Shell>) {
        shell.on(&shell.informers.nodes, |it, _| it.queue.add_after((), AFTER_CHANGE));
    }

    async fn reconcile(shell: &Arc<Shell>, (): &()) -> Result<Option<Duration>> {
        for node in shell.informers.nodes.list() {
            shell.monitor(&node, clock::now()).await?;
        }
        Ok(Some(EVERY))
    }
}

impl Shell {
    async fn monitor(&self, node: &Node, now: Timestamp) -> Result<()> {
        let lease = self.informers.node_leases.get(&ObjectKey::new("kube-node-lease", node.name_any()));
        let renewed = lease.and_then(|it| Some(it.spec.as_ref()?.renew_time.as_ref()?.0)).or(node.metadata.creation_timestamp.as_ref().map(|it| it.0));
        if let Some(status) = unknown(node, renewed, now) {
            return writes::patch_status(&self.client, node, &Patch::Strategic(status)).await.map(drop);
        }
        if ready(node) != "True" {
            self.mark_pods_not_ready(node, now).await?;
        }
        if let Some(taints) = taints(node, now) {
            let patch = json!({"metadata": {"resourceVersion": node.metadata.resource_version}, "spec": {"taints": taints}});
            return writes::patch(&self.client, node, &Patch::Merge(patch)).await.map(drop);
        }
        self.evict(node, now).await
    }

    /// Takes the pods of a node that is not ready out of the Services' endpoints (`MarkPodsNotReady`).
    async fn mark_pods_not_ready(&self, node: &Node, now: Timestamp) -> Result<()> {
        for pod in self.informers.pods.by(BY_NODE, &node.name_any()).iter().filter(|it| pods::is_ready(it)) {
            let condition = json!({"type": "Ready", "status": "False", "lastTransitionTime": clock::rfc3339(now)});
            let patch = json!({"metadata": {"uid": pod.metadata.uid}, "status": {"conditions": [condition]}});
            writes::patch_status(&self.client, pod.as_ref(), &Patch::Strategic(patch)).await?;
        }
        Ok(())
    }

    /// Deletes the pods that have been on a tainted node for longer than they tolerate.
    async fn evict(&self, node: &Node, now: Timestamp) -> Result<()> {
        let all = node.spec.as_ref().and_then(|it| it.taints.as_deref()).unwrap_or_default();
        let executing: Vec<&Taint> = all.iter().filter(|it| it.effect == "NoExecute").collect();
        for pod in self.informers.pods.by(BY_NODE, &node.name_any()) {
            if pod.metadata.deletion_timestamp.is_none() && is_due(&pod, &executing, now) {
                writes::delete(&self.client, pod.as_ref(), DeleteParams::default()).await?;
            }
        }
        Ok(())
    }
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
