//! The Node object of this machine: registered, told of every change, kept alive by a lease.
//! Source: kubelet `pkg/kubelet/kubelet_node_status.go`, `pkg/kubelet/nodestatus/setters.go`, KEP-589.

use std::{fs, path::Path, time::Duration};

use k8s_openapi::api::{coordination::v1::Lease, core::v1::Node};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use nix::sys::statvfs::statvfs;
use serde_json::{Value, json};

use super::{agent::Agent, environment::Machine};
use crate::{
    api::http,
    base::{backoff::Backoff, clock},
    client::writes,
};

/// `nodeLeaseDurationSeconds` / 4.
pub const RENEW_EVERY: Duration = Duration::from_secs(10);
/// `nodeStatusReportFrequency`, in renewals of the lease.
const REPORT_EVERY: u32 = 30;
/// How soon the node's range of pod addresses is looked for again.
const RANGE_FIRST: Duration = Duration::from_millis(20);
const RANGE_MOST: Duration = Duration::from_secs(5);
const LEASE_SECONDS: u32 = 40;
const LEASES: &str = "kube-node-lease";
const PODS_MAX: u32 = 110;

impl Agent {
    /// Makes the Node object, keeps its status, and renews its lease.
    pub(super) async fn register(&self) {
        self.join().await;
        let mut ticks = tokio::time::interval(RENEW_EVERY);
        for count in 0.. {
            let is_news = tokio::select! {
                _ = ticks.tick() => false,
                () = self.report_node.notified() => true,
            };
            if let Err(error) = self.keep_node(is_news || count % REPORT_EVERY == 0).await {
                tracing::warn!(%error, "the node could not report");
            }
            renew_lease(&self.client, &self.options.name).await;
        }
    }

    /// Registers the node and waits until it has its part of the pods' addresses: before that it is not ready.
    async fn join(&self) {
        let mut backoff = Backoff::new(RANGE_FIRST, RANGE_MOST);
        while !self.sandboxes.has_range() {
            if let Err(error) = self.keep_node(true).await {
                tracing::warn!(%error, "the node could not register");
            }
            if !self.sandboxes.has_range() {
                tokio::time::sleep(backoff.next_delay()).await;
            }
        }
    }

    /// Registers the node if it is not, and reports when it is time or when others hold it for dead.
    async fn keep_node(&self, is_due: bool) -> Result<(), kube::Error> {
        let (nodes, name) = (Api::<Node>::all(self.client.clone()), &self.options.name);
        let Some(found) = nodes.get_opt(name).await? else {
            let node = serde_json::from_value(self.node()).map_err(kube::Error::SerdeError)?;
            return nodes.create(&PostParams::default(), &node).await.map(drop);
        };
        if let Some(range) = found.spec.as_ref().and_then(|it| it.pod_cidr.as_ref()?.parse().ok()) {
            self.sandboxes.set_range(range);
        }
        let conditions = found.status.iter().flat_map(|it| it.conditions.iter().flatten());
        let is_ready = conditions.into_iter().any(|it| it.type_ == "Ready" && it.status == "True");
        if is_due || !is_ready {
            let patch = json!({"status": self.node()["status"]});
            nodes.patch_status(name, &PatchParams::default(), &Patch::Strategic(patch)).await?;
        }
        Ok(())
    }

    pub(super) fn node(&self) -> Value {
        let (name, now, machine) = (&self.options.name, clock::now_rfc3339(), self.machine);
        let condition = |kind: &str, status: &str, reason: &str, message: &str| {
            json!({"type": kind, "status": status, "reason": reason, "message": message, "lastHeartbeatTime": now, "lastTransitionTime": now})
        };
        let (lacks_memory, lacks_disk) = self.pressure.lock().told();
        let memory = if lacks_memory { ("True", "KubeletHasInsufficientMemory", "kubelet has insufficient memory available") } else { ("False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available") };
        let disk = if lacks_disk { ("True", "KubeletHasDiskPressure", "kubelet has disk pressure") } else { ("False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure") };
        let labels = json!({"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": http::arch()});
        let resources = json!({"cpu": (machine.cpu_millis / 1000).to_string(), "memory": format!("{}Ki", machine.memory_bytes / 1024), "pods": PODS_MAX.to_string(),
            "ephemeral-storage": format!("{}Ki", machine.storage_bytes / 1024), "hugepages-1Gi": "0", "hugepages-2Mi": "0"});
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let os = text("/etc/os-release").lines().find_map(|it| Some(it.strip_prefix("PRETTY_NAME=")?.trim_matches('"').to_owned())).unwrap_or_default();
        let ready = match self.sandboxes.has_range() {
            true => condition("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
            false => condition("Ready", "False", "KubeletNotReady", "container runtime network not ready: the node has no range of pod addresses yet"),
        };
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels},
            "status": {"capacity": resources, "allocatable": resources,
                "conditions": [
                    condition("MemoryPressure", memory.0, memory.1, memory.2),
                    condition("DiskPressure", disk.0, disk.1, disk.2),
                    condition("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
                    ready,
                ],
                "addresses": [{"type": "InternalIP", "address": self.options.address.to_string()}, {"type": "Hostname", "address": name}],
                "daemonEndpoints": {"kubeletEndpoint": {"Port": self.options.port}},
                "nodeInfo": {"machineID": text("/etc/machine-id"), "systemUUID": "", "bootID": text("/proc/sys/kernel/random/boot_id"),
                    "kernelVersion": text("/proc/sys/kernel/osrelease"), "osImage": os, "operatingSystem": "linux", "architecture": http::arch(),
                    
                    "containerRuntimeVersion": concat!("howdah://", env!("CARGO_PKG_VERSION")), "kubeletVersion": http::GIT_VERSION, "kubeProxyVersion": ""}}})
    }
}

/// Says that a node lives.
pub async fn renew_lease(client: &kube::Client, node: &str) {
    let spec = json!({"holderIdentity": node, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": clock::rfc3339_micro(clock::now())});
    let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": node, "namespace": LEASES}, "spec": spec});
    let params = PatchParams::apply("kubelet").force();
    if let Err(error) = writes::api::<Lease>(client, LEASES).patch(node, &params, &Patch::Apply(&lease)).await {
        tracing::warn!(%error, node, "the node's lease was not renewed");
    }
}

impl Machine {
    /// This machine; its storage is that of `folder`.
    pub fn read(folder: &Path) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let storage = statvfs(folder).map_or(0, |it| it.blocks() as i64 * it.fragment_size() as i64);
        Self { cpu_millis: i64::try_from(cores).unwrap_or(1) * 1000, memory_bytes: Self::memory_kib("MemTotal:").unwrap_or(0) * 1024, storage_bytes: storage }
    }

    /// An entry of `/proc/meminfo`, such as `MemTotal:`.
    pub fn memory_kib(entry: &str) -> Option<i64> {
        let text = fs::read_to_string("/proc/meminfo").ok()?;
        text.lines().find_map(|it| it.strip_prefix(entry)?.trim().trim_end_matches(" kB").parse().ok())
    }
}
