//! Simulated nodes: they register, renew their leases, and say of every pod that is bound to them that it runs, without any
//! container. For tests of the control plane and its scale, as kwok does.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use super::register::{RENEW_EVERY, renew_lease};
use crate::{
    api::identity::{MASTERS, User},
    base::{Tasks, clock},
    client::{Clients, Informer, ObjectKey, Result, Watch, WorkQueue, pods, writes},
};

/// Pods whose status is written at the same time.
const WORKERS: usize = 32;

/// Starts `count` nodes, named `sim-0` and so on.
pub fn start(clients: &Clients, tasks: &Tasks, count: usize) {
    // One identity for all of them, so that it is no node's: a node may only speak of itself (NodeRestriction).
    let client = clients.of(&User::system("system:simulated-nodes", &[MASTERS]));
    let group = tasks.clone();
    tasks.spawn("simulated-nodes", async move {
        let nodes: Api<Node> = Api::all(client.clone());
        for at in 0..count {
            register(&nodes, &name(at)).await;
        }
        run_pods(client.clone(), &group);
        let mut ticks = tokio::time::interval(RENEW_EVERY);
        loop {
            ticks.tick().await;
            for at in 0..count {
                renew_lease(&client, &name(at)).await;
            }
        }
    });
}

fn name(at: usize) -> String {
    format!("sim-{at}")
}

async fn register(nodes: &Api<Node>, name: &str) {
    let now = clock::now_rfc3339();
    let condition = |kind: &str, status: &str, reason: &str, message: &str| {
        json!({"type": kind, "status": status, "reason": reason, "message": message, "lastHeartbeatTime": now, "lastTransitionTime": now})
    };
    let resources = json!({"cpu": "32", "memory": "256Gi", "pods": "110", "ephemeral-storage": "1Ti"});
    let status = json!({
        "capacity": resources, "allocatable": resources,
        "conditions": [
            condition("MemoryPressure", "False", "KubeletHasSufficientMemory", "the node is simulated"),
            condition("DiskPressure", "False", "KubeletHasNoDiskPressure", "the node is simulated"),
            condition("PIDPressure", "False", "KubeletHasSufficientPID", "the node is simulated"),
            condition("Ready", "True", "KubeletReady", "the node is simulated"),
        ],
        "addresses": [{"type": "Hostname", "address": name}],
        "nodeInfo": {"machineID": "", "systemUUID": "", "bootID": "", "kernelVersion": "simulated", "osImage": "simulated", "operatingSystem": "linux",
            "containerRuntimeVersion": "simulated://1", "kubeletVersion": crate::api::http::GIT_VERSION, "kubeProxyVersion": "", "architecture": crate::api::http::arch()},
    });
    let labels = json!({"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": crate::api::http::arch(), "type": "simulated"});
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}, "status": status});
    let Ok(node) = serde_json::from_value::<Node>(node) else { return };
    match nodes.create(&PostParams::default(), &node).await {
        Ok(_) => (),
        Err(kube::Error::Api(error)) if error.reason == "AlreadyExists" => {
            let patch = json!({"status": {"conditions": status["conditions"]}});
            let _ = nodes.patch_status(name, &PatchParams::default(), &Patch::Strategic(patch)).await;
        }
        Err(error) => tracing::warn!(name, %error, "a simulated node could not register"),
    }
}

fn run_pods(client: kube::Client, tasks: &Tasks) {
    let queue: Arc<WorkQueue<ObjectKey>> = Arc::new(WorkQueue::new());
    let pods: Informer<Pod> = Informer::start("simulated-pods", Api::all(client.clone()), Watch::default(), tasks);
    let listener = queue.clone();
    pods.subscribe(move |change| {
        if pods::node_name(change.object()).starts_with("sim-") && !change.is_deleted() {
            listener.add(ObjectKey::of(&**change.object()));
        }
    });
    queue.run(tasks, "simulated-pod", WORKERS, move |key| {
        let (client, pods) = (client.clone(), pods.clone());
        async move {
            match pods.get(&key) {
                Some(pod) => run_pod(&client, &pod).await.map(|_| None),
                None => Ok(None),
            }
        }
    });
}

/// Brings one pod to its next state, running or gone. Whether it is there and was not in it yet.
async fn run_pod(client: &kube::Client, pod: &Pod) -> Result<bool> {
    match pods::phase(pod) {
        _ if pod.metadata.deletion_timestamp.is_some() => writes::delete(client, pod, writes::at_once()).await,
        "Running" | "Succeeded" | "Failed" => Ok(false),
        _ => writes::patch_status(client, pod, &Patch::Strategic(running(pod))).await,
    }
}

/// The status of a pod whose containers run.
fn running(pod: &Pod) -> Value {
    let now = clock::now_rfc3339();
    let containers = pod.spec.as_ref().map(|it| it.containers.as_slice()).unwrap_or_default();
    let statuses: Vec<Value> = containers
        .iter()
        .map(|it| {
            json!({"name": it.name, "image": it.image, "imageID": "", "containerID": format!("simulated://{}", it.name), "ready": true, "started": true,
                "restartCount": 0, "state": {"running": {"startedAt": now}}})
        })
        .collect();
    let condition = |kind: &str| json!({"type": kind, "status": "True", "lastProbeTime": null, "lastTransitionTime": now});
    let conditions = ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady"].map(condition);
    let ip = address(pod.metadata.uid.as_deref().unwrap_or_default());
    json!({"status": {"phase": "Running", "startTime": now, "podIP": ip, "podIPs": [{"ip": ip}], "containerStatuses": statuses,
        "conditions": conditions}})
}

/// An address made from the uid: nothing answers there, but most pods have one of their own.
fn address(uid: &str) -> String {
    let hash = uid.bytes().fold(0u32, |hash, byte| hash.wrapping_mul(31).wrapping_add(u32::from(byte)));
    let [_, _, third, fourth] = hash.to_be_bytes();
    format!("10.200.{third}.{}", fourth.max(1))
}
