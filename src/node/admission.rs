//! Whether the node takes a pod that was bound to it: schedulers err, and not every binding is a scheduler's.
//! Source: kubelet `pkg/kubelet/lifecycle/predicate.go`, `pkg/kubelet/sysctl/{allowlist,safe_sysctls}.go`.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod, PodSpec};
use kube::api::Patch;
use serde_json::json;

use super::agent::Agent;
use crate::{
    base::clock,
    client::{EventType, Result as ClientResult, pods::is_terminal, writes},
    scheduler::{
        cluster::{Cluster, NodeInfo, PodInfo},
        plugins::{filters, node_resources_fit},
    },
};

/// Kernel parameters that belong to the pod's namespaces and touch nobody else.
const SAFE_SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

/// Why a pod is not taken.
#[derive(Debug, PartialEq)]
pub struct Refusal {
    pub reason: String,
    pub message: String,
}

impl Agent {
    /// Whether the node takes a pod, decided once and one pod after the other; a pod that is refused has failed.
    pub(super) async fn is_admitted(&self, pod: &Pod) -> ClientResult<bool> {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let mut admitted = self.admitted.lock().await;
        if admitted.contains(&uid) {
            return Ok(true);
        }
        let mut others = self.pods();
        others.retain(|it| it.metadata.uid.as_ref().is_some_and(|it| admitted.contains(it)));
        *admitted = others.iter().filter_map(|it| it.metadata.uid.clone()).collect();
        others.retain(|it| !is_terminal(it));
        let node = writes::api::<Node>(&self.client, "").get(&self.options.name).await?;
        match admit(pod, &others, node) {
            Ok(()) => Ok(admitted.insert(uid)),
            Err(why) => self.refuse(pod, &why).await.map(|()| false),
        }
    }

    /// `rejectPod`.
    async fn refuse(&self, pod: &Pod, why: &Refusal) -> ClientResult<()> {
        self.recorder.event(pod, EventType::Warning, &why.reason, why.message.clone());
        let status = json!({"phase": "Failed", "reason": why.reason, "message": format!("Pod was rejected: {}", why.message),
            "startTime": clock::now_rfc3339(), "observedGeneration": pod.metadata.generation});
        let patch = Patch::Strategic(json!({"metadata": {"uid": pod.metadata.uid}, "status": status}));
        writes::patch_status(&self.client, pod, &patch).await.map(drop)
    }
}

fn refuse(reason: impl Into<String>, message: impl Into<String>) -> Result<(), Refusal> {
    Err(Refusal { reason: reason.into(), message: message.into() })
}

/// Judges a pod beside the `others` that the node has taken and that have not ended.
pub fn admit(pod: &Pod, others: &[Arc<Pod>], node: Node) -> Result<(), Refusal> {
    let spec = pod.spec.clone().unwrap_or_default();
    if spec.os.as_ref().is_some_and(|it| it.name != "linux") {
        return refuse("PodOSNotSupported", "Failed to admit pod as the OS field doesn't match node OS");
    }
    sysctls(&spec)?;
    let name = node.metadata.name.clone().unwrap_or_default();
    let mut cluster = Cluster::default();
    cluster.set_node(Arc::new(node));
    others.iter().for_each(|it| cluster.add_pod(Arc::new(PodInfo::new(Pod::clone(it))), &name));
    cluster.nodes.get(&name).map_or(Ok(()), |it| general(PodInfo::new(pod.clone()), it))
}

/// `AdmissionCheck` of the scheduler: the first reason counts.
fn general(mut pod: PodInfo, node: &NodeInfo) -> Result<(), Refusal> {
    // Extended resources that the node does not have may be the cluster's.
    pod.request.scalars.retain(|name, _| !name.contains('/') || node.allocatable.scalars.contains_key(name));
    if let Some(it) = node_resources_fit::insufficient(&pod, node).first() {
        let message = format!("Node didn't have enough resource: {}, requested: {}, used: {}, capacity: {}", it.name, it.asked, it.used, it.room);
        return refuse(format!("OutOf{}", it.name), message);
    }
    let failed = |predicate: &str, why: &str| refuse(predicate, format!("Predicate {predicate} failed: {why}"));
    if !filters::does_match(&pod, node) {
        return failed("NodeAffinity", filters::AFFINITY_REASON);
    }
    if filters::is_taken(&pod.ports, node) {
        return failed("NodePorts", filters::PORTS_REASON);
    }
    Ok(())
}

fn sysctls(spec: &PodSpec) -> Result<(), Refusal> {
    let asked = spec.security_context.as_ref().and_then(|it| it.sysctls.as_ref());
    for sysctl in asked.into_iter().flatten() {
        let name = sysctl.name.replace('/', ".");
        let (is_host, namespace) = if name.starts_with("net.") { (spec.host_network, "Net") } else { (spec.host_ipc, "IPC") };
        match SAFE_SYSCTLS.contains(&name.as_str()) {
            false => return refuse("SysctlForbidden", format!("forbidden sysctl: {name:?} not allowlisted")),
            true if is_host == Some(true) => return refuse("SysctlForbidden", format!("forbidden sysctl: {name:?} not allowed with host {namespace} enabled")),
            true => (),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(name: &str, spec: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": name, "uid": name}, "spec": spec})).expect("a Pod")
    }

    #[test]
    fn a_node_says_why_it_refuses() {
        let node = json!({"metadata": {"name": "n", "labels": {"disk": "ssd"}}, "status": {"allocatable": {"cpu": "2", "memory": "1Gi", "pods": "2"}}});
        let cpu = |it: &str| json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": it}}}]});
        let port = json!({"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 80}]}]});
        let sysctl = |name: &str| json!({"containers": [], "hostNetwork": true, "securityContext": {"sysctls": [{"name": name, "value": "1"}]}});
        let cases = [
            (json!({"containers": []}), vec![], None),
            (cpu("1"), vec![cpu("1")], None),
            (cpu("1"), vec![cpu("1500m")], Some(("OutOfcpu", "Node didn't have enough resource: cpu, requested: 1000, used: 1500, capacity: 2000"))),
            (cpu("0"), vec![cpu("0"), cpu("0")], Some(("OutOfpods", "Node didn't have enough resource: pods, requested: 1, used: 2, capacity: 2"))),
            (json!({"containers": [], "nodeSelector": {"disk": "ssd"}}), vec![], None),
            (json!({"containers": [], "nodeSelector": {"disk": "hdd"}}), vec![], Some(("NodeAffinity", "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector"))),
            (port.clone(), vec![port], Some(("NodePorts", "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports"))),
            (json!({"containers": [{"name": "c", "resources": {"requests": {"x.com/gpu": "1"}}}]}), vec![], None),
            (json!({"containers": [], "os": {"name": "windows"}}), vec![], Some(("PodOSNotSupported", "Failed to admit pod as the OS field doesn't match node OS"))),
            (sysctl("kernel.shm_rmid_forced"), vec![], None),
            (sysctl("kernel.msgmax"), vec![], Some(("SysctlForbidden", "forbidden sysctl: \"kernel.msgmax\" not allowlisted"))),
            (sysctl("net.ipv4.tcp_syncookies"), vec![], Some(("SysctlForbidden", "forbidden sysctl: \"net.ipv4.tcp_syncookies\" not allowed with host Net enabled"))),
        ];
        for (spec, others, expected) in cases {
            let others: Vec<Arc<Pod>> = others.into_iter().enumerate().map(|(at, it)| Arc::new(pod(&format!("other-{at}"), it))).collect();
            let refused = admit(&pod("own", spec.clone()), &others, serde_json::from_value(node.clone()).expect("a Node")).err();
            assert_eq!(refused.as_ref().map(|it| (it.reason.as_str(), it.message.as_str())), expected, "{spec}");
        }
    }
}
