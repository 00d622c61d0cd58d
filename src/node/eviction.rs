//! Pods that use more of the disk than they may, and a node that runs out of memory or disk.
//! Source: kubelet `pkg/kubelet/eviction/{eviction_manager,helpers}.go`.

use std::{
    cmp::Reverse,
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::core::v1::{Container as ContainerSpec, Pod};
use nix::sys::statvfs::statvfs;
use tokio::time::Instant;

use super::{
    agent::Agent,
    environment::Machine,
    runtime::{Container, cgroup},
};
use crate::{
    base::tasks,
    client::{EventType, pods::is_terminal},
    meta::{Quantity, quantity::Format},
    scheduler::cluster::PodInfo,
};

/// `monitoringInterval`.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// `memory.available` of the kubelet's defaults.
const MEMORY_LEAST: i64 = 100 << 20;
/// A tenth of the disk, the kubelet's `nodefs.available`, suits servers that do nothing else; on people's own machines, which are often almost
/// full, only what is truly the end counts (kind switches the check off). The smaller one holds.
const DISK_LEAST: i64 = 1 << 30;
const DISK_LEAST_PART: u64 = 10;
/// `evictionPressureTransitionPeriod`: pressure that has gone is told of for so long.
const TOLD_FOR: Duration = Duration::from_secs(300);
/// `PriorityClass` of what the node itself needs.
const CRITICAL: i32 = 2_000_000_000;

/// When the node was last seen to be short of something.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pressure {
    memory: Option<Instant>,
    disk: Option<Instant>,
}

impl Pressure {
    fn is_recent(at: Option<Instant>) -> bool {
        at.is_some_and(|it| it.elapsed() < TOLD_FOR)
    }

    /// Whether the node says that it is short of memory, and of disk.
    pub fn told(self) -> (bool, bool) {
        (Self::is_recent(self.memory), Self::is_recent(self.disk))
    }
}

impl Agent {
    /// Looks after the node's resources for ever.
    pub(super) async fn guard_resources(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        loop {
            ticks.tick().await;
            let agent = self.clone();
            let _ = tasks::blocking(move || agent.look_at_resources()).await;
        }
    }

    fn look_at_resources(&self) {
        let pods: Vec<Arc<Pod>> = self.pods().into_iter().filter(|it| !is_terminal(it) && it.metadata.deletion_timestamp.is_none()).collect();
        for pod in &pods {
            if let Some(why) = self.over_disk_limit(pod) {
                self.evict(pod, why);
            }
        }
        let memory = available_memory();
        let (disk, disk_least) = statvfs(self.runtime.root()).map_or((i64::MAX, 0), |it| {
            let bytes = |blocks: u64| (blocks * it.fragment_size()) as i64;
            (bytes(it.blocks_available()), bytes(it.blocks() / DISK_LEAST_PART).min(DISK_LEAST))
        });
        let mut pressure = self.pressure.lock();
        let before = pressure.told();
        pressure.memory = if memory < MEMORY_LEAST { Some(Instant::now()) } else { pressure.memory };
        pressure.disk = if disk < disk_least { Some(Instant::now()) } else { pressure.disk };
        if before != pressure.told() {
            self.report_node.notify_one();
        }
        drop(pressure);
        // The strictest wish is met first, and one pod at a time goes.
        if memory < MEMORY_LEAST {
            self.evict_one(&pods, "memory", MEMORY_LEAST, memory, |pod| cgroup::memory_used(&self.group_of(pod)));
        } else if disk < disk_least {
            self.images_to_prune.notify_one();
            self.evict_one(&pods, "ephemeral-storage", disk_least, disk, |pod| self.disk_used(pod));
        }
    }

    pub(super) fn group_of(&self, pod: &Pod) -> String {
        format!("{}/{}", self.options.cgroup, pod.metadata.uid.as_deref().unwrap_or_default())
    }

    /// Why a pod must go for what it has written (`localStorageEviction`).
    fn over_disk_limit(&self, pod: &Pod) -> Option<String> {
        let spec = pod.spec.as_ref()?;
        let mut total_limit = 0;
        for volume in spec.volumes.iter().flatten() {
            let Some(source) = volume.empty_dir.as_ref().filter(|it| it.medium.as_deref().unwrap_or_default().is_empty()) else { continue };
            let Some((text, limit)) = source.size_limit.as_ref().and_then(|it| Some((&it.0, it.0.parse::<Quantity>().ok()?))) else { continue };
            if !limit.is_zero() && size(&self.volumes_of(pod).join(&volume.name)) > limit.units() {
                return Some(format!("Usage of EmptyDir volume {:?} exceeds the limit {text:?}. ", volume.name));
            }
        }
        for container in &spec.containers {
            let Some((text, limit)) = storage_limit(container) else { continue };
            total_limit += limit;
            let found = self.container(pod, &container.name, false);
            if found.is_some_and(|it| self.written_by(&it) > limit) {
                return Some(format!("Container {} exceeded its local ephemeral storage limit {text:?}. ", container.name));
            }
        }
        (total_limit > 0 && self.disk_used(pod) > total_limit)
            .then(|| format!("Pod ephemeral local storage usage exceeds the total limit of containers {}. ", bytes(total_limit)))
    }

    /// The writable layer and the logs.
    fn written_by(&self, container: &Container) -> i64 {
        let logs = container.spec.log.parent().map_or(0, size);
        size(&self.runtime.folder(&container.id).join("upper")) + logs
    }

    fn disk_used(&self, pod: &Pod) -> i64 {
        let volumes = pod.spec.iter().flat_map(|it| it.volumes.iter().flatten());
        let on_disk = volumes.filter(|it| it.empty_dir.as_ref().is_some_and(|it| it.medium.as_deref().unwrap_or_default().is_empty()));
        let volumes: i64 = on_disk.map(|it| size(&self.volumes_of(pod).join(&it.name))).sum();
        volumes + self.containers(pod).iter().map(|it| self.written_by(it)).sum::<i64>()
    }

    /// Evicts the pod that the node is best without: one over its request before others, then by priority, then by use beyond the request.
    fn evict_one(&self, pods: &[Arc<Pod>], what: &str, least: i64, available: i64, used: impl Fn(&Pod) -> i64) {
        let of = |pod: &Arc<Pod>| {
            let info = PodInfo::new(Pod::clone(pod));
            let request = if what == "memory" { info.request.memory } else { info.request.ephemeral_storage };
            (pod.clone(), info.priority, request, used(pod))
        };
        let ranked = pods.iter().map(of).filter(|it| it.1 < CRITICAL);
        let first = ranked.min_by_key(|(_, priority, request, used)| (Reverse(used > request), *priority, Reverse(used - request)));
        let Some((pod, _, request, used)) = first else { return };
        self.evict(&pod, format!(
            "The node was low on resource: {what}. Threshold quantity: {}, available: {}. The pod was using {}, request is {}. ",
            bytes(least), bytes(available), bytes(used), bytes(request)
        ));
    }

    fn evict(&self, pod: &Arc<Pod>, why: String) {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let mut evicted = self.evicted.lock();
        if evicted.contains_key(&uid) {
            return;
        }
        self.recorder.event(&**pod, EventType::Warning, "Evicted", why.clone());
        evicted.insert(uid.clone(), why);
        drop(evicted);
        self.wake(&uid);
    }
}

fn bytes(count: i64) -> Quantity {
    Quantity::from_units(count, Format::BinarySi)
}

fn storage_limit(container: &ContainerSpec) -> Option<(String, i64)> {
    let limit = container.resources.as_ref()?.limits.as_ref()?.get("ephemeral-storage")?;
    Some((limit.0.clone(), limit.0.parse::<Quantity>().ok()?.units()))
}

fn available_memory() -> i64 {
    Machine::memory_kib("MemAvailable:").map_or(i64::MAX, |it| it * 1024)
}

/// What a tree takes of its disk; other file systems in it are not counted.
fn size(path: &Path) -> i64 {
    const BLOCK: u64 = 512;
    fn blocks(path: &Path, device: u64) -> u64 {
        let Ok(found) = fs::symlink_metadata(path) else { return 0 };
        let below = || fs::read_dir(path).into_iter().flatten().flatten().map(|it| blocks(&it.path(), device)).sum::<u64>();
        match found.dev() == device {
            true => found.blocks() + if found.is_dir() { below() } else { 0 },
            false => 0,
        }
    }
    fs::symlink_metadata(path).map_or(0, |it| (blocks(path, it.dev()) * BLOCK) as i64)
}
