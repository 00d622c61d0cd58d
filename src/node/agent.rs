//! The node agent: makes the pods that are bound to its node real.
//!
//! Each pod is reconciled by itself: the containers are read from the runtime's files, `plan.rs` says what is missing, this file does
//! it, and the status goes back to the API. Nothing is remembered that a restart of the process would lose.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    net::IpAddr,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::core::v1::{Container as ContainerSpec, Pod, PodSpec, Service};
use kube::{Api, ResourceExt, api::Patch};
use nix::sys::signal::Signal;
use parking_lot::Mutex;
use serde_json::json;
use tokio::{
    sync::{Mutex as AsyncMutex, Notify},
    time::Instant,
};

use super::{
    container::{Making, limits, pod_limits},
    ending::{find, grace},
    environment::{self, Machine},
    eviction::Pressure,
    images::{Image, Images},
    plan, probes,
    pulls::Pulls,
    runtime::{Container, Runtime, Spec, cgroup},
    sandbox::{Sandboxes, hostname},
    volumes::Sources,
};
use crate::{
    base::{Tasks, clock, tasks},
    client::{Change, Error, EventRecorder, EventType, Informer, ObjectKey, Result, Watch, WorkQueue, pods::is_terminal, writes},
};

/// Pods that are worked on at the same time; most of them wait, for a hook or the API.
const WORKERS: usize = 64;
/// What kubelet says where the runtime gives pods no users of their own (`userns_manager.go`).
const NO_USER_NAMESPACES: &str = "can't set `spec.hostUsers: false`, runtime does not support user namespaces";
/// Volumes and status are looked at again after this time, so that changed ConfigMaps and tokens reach the pod.
pub(super) const RESYNC: Duration = Duration::from_secs(60);
/// What could not be made is tried again after this time.
pub(super) const RETRY: Duration = Duration::from_secs(2);
/// A pod that is evicted at once gets no more (`immediateEvictionGracePeriodSeconds`).
const EVICTED_WITHIN: Duration = Duration::from_secs(1);
/// Containers that an earlier process started are not its children; their end is looked for.
const ADOPTED_EVERY: Duration = Duration::from_millis(500);
/// A container that begins to run says so within this time, or later by its end.
const STARTED_WITHIN: Duration = Duration::from_millis(500);

#[derive(Clone, Debug)]
pub struct Options {
    pub name: String,
    pub address: IpAddr,
    /// The node's server.
    pub port: u16,
    pub state_dir: PathBuf,
    pub images_dir: PathBuf,
    /// Asked for images before their registries.
    pub registry_mirror: Option<String>,
    pub cluster_dns: String,
    pub api_service: String,
    pub cgroup: String,
}

/// Why a container waits, by its name: reason and message.
type Waiting = HashMap<String, (String, String)>;
/// What could not be done yet: when to look again, and what the container waits for.
pub(super) type Delay = (Duration, Option<(String, String)>);

pub struct Agent {
    pub options: Options,
    pub runtime: Runtime,
    pub pulls: Arc<Pulls>,
    pub sandboxes: Sandboxes,
    pub probes: probes::Results,
    pub recorder: EventRecorder,
    pub tasks: Tasks,
    pub(super) machine: Machine,
    pub(super) client: kube::Client,
    pods: Informer<Pod>,
    services: Informer<Service>,
    queue: Arc<WorkQueue<ObjectKey>>,
    /// The uids of pods that the node has taken.
    pub(super) admitted: AsyncMutex<HashSet<String>>,
    /// By pod uid.
    pub(super) waiting: Mutex<HashMap<String, Waiting>>,
    /// Why pods must go, by uid.
    pub(super) evicted: Mutex<HashMap<String, String>>,
    pub(super) pressure: Mutex<Pressure>,
    /// The node has news of itself.
    pub(super) report_node: Notify,
    /// The disk is almost full.
    pub(super) images_to_prune: Notify,
    /// Since when pods have been seen to be deleted, by uid.
    pub(super) leaving: Mutex<HashMap<String, Instant>>,
    /// Containers that are asked to end, and when they must.
    pub(super) ending: Mutex<HashMap<String, Instant>>,
    /// Containers whose probes run.
    probed: Mutex<HashMap<String, String>>,
    gone: Notify,
}

impl Agent {
    /// Starts the agent. Containers that run already are found again.
    pub fn start(client: kube::Client, tasks: &Tasks, options: Options) -> io::Result<Arc<Self>> {
        let runtime = Runtime::open(&options.state_dir)?;
        let own = Watch::default().fields(&format!("spec.nodeName={}", options.name));
        let images = Images::open(&options.images_dir)?;
        let sandboxes = Sandboxes::open(runtime.root().join("pods"), options.cluster_dns.clone());
        let agent = Arc::new(Self {
            admitted: AsyncMutex::new(sandboxes.uids().into_iter().collect()),
            recorder: EventRecorder::start(client.clone(), "kubelet", &options.name, tasks),
            pulls: Pulls::new(images, options.registry_mirror.clone(), tasks),
            sandboxes,
            probes: probes::Results::default(),
            machine: Machine::read(runtime.root()),
            pods: Informer::start("node-pods", Api::all(client.clone()), own, tasks),
            services: Informer::start("node-services", Api::all(client.clone()), Watch::default(), tasks),
            runtime,
            client,
            queue: Arc::new(WorkQueue::new()),
            tasks: tasks.clone(),
            waiting: Mutex::default(),
            evicted: Mutex::default(),
            pressure: Mutex::default(),
            report_node: Notify::new(),
            images_to_prune: Notify::new(),
            leaving: Mutex::default(),
            ending: Mutex::default(),
            probed: Mutex::default(),
            gone: Notify::new(),
            options,
        });
        agent.clone().run();
        Ok(agent)
    }

    fn run(self: Arc<Self>) {
        let (queue, agent) = (self.queue.clone(), Arc::downgrade(&self));
        self.pods.subscribe(move |change| {
            queue.add(ObjectKey::of(&**change.object()));
            if let (Change::Deleted(_), Some(agent)) = (change, agent.upgrade()) {
                agent.gone.notify_one();
            }
        });
        let tasks = self.tasks.clone();
        let agent = self.clone();
        tasks.spawn_vital("node-register", async move {
            agent.adopt();
            agent.register().await;
        });
        let agent = self.clone();
        tasks.spawn_vital("node-strangers", async move {
            agent.pods.synced().await;
            loop {
                agent.remove_strangers().await;
                let _ = tokio::time::timeout(RESYNC, agent.gone.notified()).await;
            }
        });
        tasks.spawn_vital("node-resources", self.clone().guard_resources());
        tasks.spawn_vital("node-images", self.clone().prune_images());
        tasks.spawn("node-pods-start", async move {
            self.pods.synced().await;
            self.services.synced().await;
            let (group, queue) = (self.tasks.clone(), self.queue.clone());
            queue.run(&group, "node-pod", WORKERS, move |key| {
                let agent = self.clone();
                async move { agent.reconcile(&key).await }
            });
        });
    }

    /// The pods of this node.
    pub(super) fn pods(&self) -> Vec<Arc<Pod>> {
        self.pods.list()
    }

    /// The pod of this node by its name.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        self.pods.get(&ObjectKey::new(namespace, name))
    }

    /// The newest container of a pod by its name; with `previous` the one before.
    pub fn container(&self, pod: &Pod, name: &str, previous: bool) -> Option<Container> {
        let mut all: Vec<Container> = self.containers(pod).into_iter().filter(|it| it.spec.name == name).collect();
        all.sort_by_key(|it| std::cmp::Reverse(it.spec.attempt));
        all.into_iter().nth(usize::from(previous))
    }

    pub(super) fn containers(&self, pod: &Pod) -> Vec<Container> {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        self.runtime.containers().into_iter().filter(|it| it.spec.pod_uid == uid).collect()
    }

    /// Waits for the end of containers that are not this process' children.
    fn adopt(self: &Arc<Self>) {
        let running: Vec<Container> = self.runtime.containers().into_iter().filter(Container::is_running).collect();
        let agent = self.clone();
        self.tasks.spawn("node-adopted", async move {
            for container in running {
                while agent.runtime.container(&container.id).is_some_and(|it| it.is_running()) {
                    tokio::time::sleep(ADOPTED_EVERY).await;
                }
                agent.wake(&container.spec.pod_uid);
            }
        });
    }

    /// Has a pod looked at.
    pub fn wake(&self, uid: &str) {
        let found = self.pods.list().into_iter().find(|it| it.metadata.uid.as_deref() == Some(uid));
        found.into_iter().for_each(|it| self.queue.add(ObjectKey::of(&*it)));
    }

    /// Pods that are gone from the API, by force or while nobody looked, leave nothing behind.
    async fn remove_strangers(self: &Arc<Self>) {
        let volumes = fs::read_dir(self.runtime.root().join("volumes")).into_iter().flatten().flatten();
        let mut uids: Vec<String> = volumes.map(|it| it.file_name().to_string_lossy().into_owned()).collect();
        uids.extend(self.sandboxes.uids());
        uids.extend(self.runtime.containers().into_iter().map(|it| it.spec.pod_uid));
        uids.sort();
        uids.dedup();
        let known: Vec<String> = self.pods.list().iter().filter_map(|it| it.metadata.uid.clone()).collect();
        for uid in uids.into_iter().filter(|it| !known.contains(it)) {
            let mut running = true;
            while running {
                let all = self.runtime.containers();
                let left: Vec<&Container> = all.iter().filter(|it| it.spec.pod_uid == uid && it.is_running()).collect();
                left.iter().for_each(|it| self.runtime.signal(it, Signal::SIGKILL));
                running = !left.is_empty();
                tokio::time::sleep(Duration::from_millis(if running { 20 } else { 0 })).await;
            }
            let agent = self.clone();
            let _ = tasks::blocking(move || agent.clean(&uid)).await;
        }
    }

    async fn reconcile(self: &Arc<Self>, key: &ObjectKey) -> Result<Option<Duration>> {
        let Some(pod) = self.pods.get(key) else { return Ok(None) };
        let containers = self.containers(&pod);
        if pod.metadata.deletion_timestamp.is_some() {
            return self.end(&pod, &containers).await;
        }
        let spec = pod.spec.clone().ok_or_else(|| Error::Invalid("a pod without a specification".to_owned()))?;
        if is_terminal(&pod) {
            return Ok(self.rest(&pod, &containers).await);
        }
        if !self.is_admitted(&pod).await? {
            return Ok(None);
        }
        if let Some((reason, why, within)) = self.must_end(&pod, &spec) {
            return self.fail(&pod, &containers, (reason, why), within).await;
        }
        let pod = Arc::new(self.with_addresses(&pod, &spec)?);
        self.follow_probes(&pod, &containers);
        self.resize(&pod, &containers);
        if plan::is_over(&spec, &containers) {
            self.end_containers(&pod, &containers, grace(&pod));
        }
        let again = self.proceed(&pod, &spec, &containers).await;
        self.forget_old(&pod);
        self.report(&pod, &self.containers(&pod)).await?;
        Ok(Some(remaining(&pod, &spec).map_or(again, |it| it.min(again))))
    }

    /// Takes the steps that are due. Returns when to look again.
    async fn proceed(self: &Arc<Self>, pod: &Arc<Pod>, spec: &PodSpec, containers: &[Container]) -> Duration {
        let steps = plan::steps(pod, containers, &self.notes(pod, containers), clock::now());
        if steps.is_empty() {
            // What runs already only has its volumes kept fresh.
            let _ = self.volumes(pod, spec).await;
            return RESYNC;
        }
        let volumes = match self.volumes(pod, spec).await {
            Ok(volumes) => volumes,
            Err(why) => {
                self.recorder.event(&**pod, EventType::Warning, "FailedMount", why);
                return RETRY;
            }
        };
        let mut again = RESYNC;
        for step in steps {
            again = again.min(match step {
                plan::Step::Wait(seconds) => Duration::from_secs(u64::try_from(seconds).unwrap_or(1)),
                plan::Step::Start { name, attempt } => match find(pod, &name) {
                    Some(container) => self.start_container(pod, spec, &container, attempt, &volumes).await,
                    None => RESYNC,
                },
            });
        }
        again
    }

    /// Starts a container, or notes why it waits. Returns when to look again.
    async fn start_container(self: &Arc<Self>, pod: &Arc<Pod>, spec: &PodSpec, container: &ContainerSpec, attempt: u32, volumes: &HashMap<String, PathBuf>) -> Duration {
        let found = match self.image(pod, spec, container, attempt).await {
            Ok(image) => self.image_volumes(pod, spec, container, volumes).await.map(|volumes| (image, volumes)),
            Err(delay) => Err(delay),
        };
        let (again, waits) = match found {
            Err(delay) => delay,
            Ok((image, volumes)) => match self.launch(pod, spec, container, attempt, image, &volumes).await {
                Ok(()) => (RESYNC, None),
                Err((reason, message)) => {
                    self.recorder.event(&**pod, EventType::Warning, "Failed", format!("Error: {message}"));
                    (RETRY * 5, Some((reason.to_owned(), message)))
                }
            },
        };
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let mut all = self.waiting.lock();
        let own = all.entry(uid).or_default();
        match waits {
            Some(why) => own.insert(container.name.clone(), why),
            None => own.remove(&container.name),
        };
        again
    }

    /// Makes the container and starts it; otherwise the reason and message of its waiting state.
    async fn launch(
        self: &Arc<Self>,
        pod: &Arc<Pod>,
        spec: &PodSpec,
        container: &ContainerSpec,
        attempt: u32,
        image: Image,
        volumes: &HashMap<String, PathBuf>,
    ) -> std::result::Result<(), (&'static str, String)> {
        let wrong = |why: String| ("CreateContainerConfigError", why);
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let services = environment::of_services(&self.services.list(), pod, &self.options.api_service);
        let environment = self.sources(&pod.namespace().unwrap_or_default()).environment(pod, container, services).await;
        let making = Making {
            pod,
            spec,
            container,
            attempt,
            image,
            environment: environment.map_err(|why| wrong(why.message()))?,
            volumes,
            folder: self.sandboxes.folder(&uid),
            log: self.log(&uid, &container.name, attempt).map_err(|why| wrong(why.to_string()))?,
            termination_message: self.termination_message(&uid, &container.name, attempt).map_err(|why| wrong(why.to_string()))?,
            cgroup: format!("{}/{uid}", self.options.cgroup),
            hostname: hostname(pod, spec),
            target: self.target_of(pod, spec, &container.name),
            memory: self.machine.memory_bytes,
        };
        let made = making.spec().map_err(wrong)?;
        cgroup::create_shared(&format!("{}/{uid}", self.options.cgroup), &pod_limits(pod, spec)).map_err(|why| ("CreateContainerError", format!("cgroup: {why}")))?;
        let started = self.run_shim(&made).await.map_err(|why| ("RunContainerError", why.to_string()))?;
        self.recorder.event(&**pod, EventType::Normal, "Created", "Container created");
        match &started.ended {
            Some(ended) if !ended.error.is_empty() => self.recorder.event(&**pod, EventType::Warning, "Failed", format!("Error: {}", ended.error)),
            _ => self.recorder.event(&**pod, EventType::Normal, "Started", "Container started"),
        }
        self.after_start(pod, container, &started).await;
        self.probe(pod, container, &started);
        Ok(())
    }

    /// The process whose view of processes an ephemeral container shares.
    fn target_of(&self, pod: &Pod, spec: &PodSpec, name: &str) -> Option<i32> {
        let own = spec.ephemeral_containers.iter().flatten().find(|it| it.name == name)?;
        let target = self.container(pod, own.target_container_name.as_deref().filter(|it| !it.is_empty())?, false)?;
        target.pid().map(nix::unistd::Pid::as_raw)
    }

    fn log(&self, uid: &str, container: &str, attempt: u32) -> io::Result<PathBuf> {
        let folder = self.runtime.root().join("logs").join(uid).join(container);
        fs::create_dir_all(&folder)?;
        Ok(folder.join(format!("{attempt}.log")))
    }

    /// The file for a container's last word, which any user may write.
    fn termination_message(&self, uid: &str, container: &str, attempt: u32) -> io::Result<PathBuf> {
        let folder = self.sandboxes.folder(uid).join("messages");
        fs::create_dir_all(&folder)?;
        let path = folder.join(format!("{container}.{attempt}"));
        fs::write(&path, "")?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666))?;
        Ok(path)
    }

    /// Starts a container and waits a moment for it, so that the status that follows can say that it runs.
    async fn run_shim(self: &Arc<Self>, spec: &Spec) -> io::Result<Container> {
        let (id, mut child) = self.runtime.start(spec)?;
        let (agent, uid) = (self.clone(), spec.pod_uid.clone());
        self.tasks.spawn_finishing("node-shim", async move {
            let _ = tasks::blocking(move || child.wait()).await;
            agent.wake(&uid);
        });
        let began = Instant::now();
        loop {
            let found = self.runtime.container(&id).ok_or_else(|| io::Error::other("the container is gone"))?;
            if found.started.is_some() || found.ended.is_some() || began.elapsed() > STARTED_WITHIN {
                return Ok(found);
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Brings the limits of running containers in line with the pod's (KEP-1287); those that want a restart for it get one.
    fn resize(self: &Arc<Self>, pod: &Arc<Pod>, containers: &[Container]) {
        for container in containers.iter().filter(|it| it.is_running()) {
            let Some(spec) = find(pod, &container.spec.name) else { continue };
            let (old, new) = (container.spec.limits, limits(&spec, container.spec.is_privileged));
            let changed = [("cpu", (old.cpu, old.cpu_request) != (new.cpu, new.cpu_request)), ("memory", old.memory != new.memory)];
            if !changed.iter().any(|it| it.1) {
                continue;
            }
            if let (Some(whole), uid) = (&pod.spec, &container.spec.pod_uid) {
                let _ = cgroup::create_shared(&format!("{}/{uid}", self.options.cgroup), &pod_limits(pod, whole));
            }
            let restarts = |name: &str| spec.resize_policy.iter().flatten().any(|it| it.resource_name == name && it.restart_policy == "RestartContainer");
            if changed.iter().any(|(name, is_changed)| *is_changed && restarts(name)) {
                self.kill(pod, container, grace(pod), format!("Container {} resize requires restart", spec.name));
            } else if let Err(why) = self.runtime.resize(container, new) {
                self.recorder.event(&**pod, EventType::Warning, "ResizeError", format!("container {}: {why}", spec.name));
            }
        }
    }

    /// Starts the probes of containers that run without, and ends containers whose probes have failed.
    fn follow_probes(self: &Arc<Self>, pod: &Arc<Pod>, containers: &[Container]) {
        for container in containers.iter().filter(|it| it.is_running()) {
            let Some(spec) = find(pod, &container.spec.name) else { continue };
            self.probe(pod, &spec, container);
            if let Some(kind) = self.probes.failed(&container.id) {
                let probe = if kind == probes::Kind::Startup { &spec.startup_probe } else { &spec.liveness_probe };
                let own = probe.as_ref().and_then(|it| it.termination_grace_period_seconds).and_then(|it| u64::try_from(it).ok());
                let why = format!("Container {} failed {} probe, will be restarted", spec.name, kind.name().to_lowercase());
                self.kill(pod, container, own.map_or_else(|| grace(pod), Duration::from_secs), why);
            }
        }
    }

    fn probe(self: &Arc<Self>, pod: &Arc<Pod>, spec: &ContainerSpec, container: &Container) {
        let uid = container.spec.pod_uid.clone();
        if self.probed.lock().insert(container.id.clone(), uid).is_none() {
            let address = pod.status.as_ref().and_then(|it| it.pod_ip.as_deref()?.parse().ok());
            probes::start(self, pod, spec, container, address);
        }
    }

    /// The namespaces and addresses of a pod (one that wants users of its own is refused), and the pod with what its environment may ask for.
    fn with_addresses(&self, pod: &Pod, spec: &PodSpec) -> Result<Pod> {
        let refuse = |why: &dyn core::fmt::Display| {
            let why = format!("Failed to create pod sandbox: {why}");
            self.recorder.event(pod, EventType::Warning, "FailedCreatePodSandBox", why.clone());
            Error::Invalid(why)
        };
        if spec.host_users == Some(false) {
            return Err(refuse(&NO_USER_NAMESPACES));
        }
        let own = self.sandboxes.ensure(pod, spec).map_err(|why| refuse(&why))?;
        let mut pod = pod.clone();
        let status = pod.status.get_or_insert_default();
        status.host_ip = Some(self.options.address.to_string());
        status.pod_ip = Some(own.map_or_else(|| self.options.address.to_string(), |it| it.to_string()));
        Ok(pod)
    }

    async fn volumes(&self, pod: &Pod, spec: &PodSpec) -> std::result::Result<HashMap<String, PathBuf>, String> {
        let root = self.volumes_of(pod);
        let sources = self.sources(&pod.namespace().unwrap_or_default());
        let mut volumes = HashMap::new();
        // Those that are images are mounted when a container wants them.
        for volume in spec.volumes.iter().flatten().filter(|it| it.image.is_none()) {
            let made = sources.volume(pod, volume, &root).await;
            volumes.insert(volume.name.clone(), made.map_err(|why| format!("MountVolume.SetUp failed for volume {:?} : {}", volume.name, why.message()))?);
        }
        Ok(volumes)
    }

    /// The folder of a pod's volumes.
    pub(super) fn volumes_of(&self, pod: &Pod) -> PathBuf {
        self.runtime.root().join("volumes").join(pod.metadata.uid.as_deref().unwrap_or_default())
    }

    pub(super) fn sources(&self, namespace: &str) -> Sources {
        Sources { client: self.client.clone(), namespace: namespace.to_owned(), machine: self.machine }
    }

    /// A pod that has come to its end keeps its containers' logs, and nothing else.
    async fn rest(self: &Arc<Self>, pod: &Arc<Pod>, containers: &[Container]) -> Option<Duration> {
        if self.end_containers(pod, containers, grace(pod)) {
            return Some(Duration::from_secs(1));
        }
        let (agent, uid) = (self.clone(), pod.metadata.uid.clone().unwrap_or_default());
        let _ = tasks::blocking(move || agent.sandboxes.remove(&uid)).await;
        None
    }

    /// Whether a pod must end before its time: reason, message, and how long it may take.
    fn must_end(&self, pod: &Pod, spec: &PodSpec) -> Option<(&'static str, String, Duration)> {
        if remaining(pod, spec).is_some_and(|it| it.is_zero()) {
            // `pkg/kubelet/active_deadline.go`
            let why = "Pod was active on the node longer than the specified deadline".to_owned();
            self.recorder.event(pod, EventType::Normal, "DeadlineExceeded", why.clone());
            return Some(("DeadlineExceeded", why, grace(pod)));
        }
        let evicted = self.evicted.lock();
        let why = evicted.get(pod.metadata.uid.as_deref()?)?.clone();
        Some((plan::EVICTED, why, EVICTED_WITHIN))
    }

    async fn fail(self: &Arc<Self>, pod: &Arc<Pod>, containers: &[Container], (reason, why): (&str, String), within: Duration) -> Result<Option<Duration>> {
        if self.end_containers(pod, containers, within) {
            return Ok(Some(Duration::from_secs(1)));
        }
        let notes = plan::Notes { failed: Some((reason.to_owned(), why)), ..plan::Notes::default() };
        self.report_with(pod, containers, &notes).await?;
        Ok(None)
    }

    /// Of each container the newest two stay: the one that runs, and the one whose end is told.
    fn forget_old(&self, pod: &Pod) {
        let all = self.containers(pod);
        for container in &all {
            let newer = all.iter().filter(|it| it.spec.name == container.spec.name && it.spec.attempt > container.spec.attempt).count();
            if newer >= 2 {
                self.runtime.remove(container);
            }
        }
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let mut probed = self.probed.lock();
        probed.retain(|id, of| of != uid || all.iter().any(|it| it.id == *id && it.is_running()));
    }

    /// What the runtime does not know of a pod's containers.
    fn notes(&self, pod: &Pod, containers: &[Container]) -> plan::Notes {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let waiting = self.waiting.lock().get(uid).cloned().unwrap_or_default();
        let is_leaving = pod.metadata.deletion_timestamp.is_some();
        let mut notes = plan::Notes { waiting, is_leaving, ..plan::Notes::default() };
        for container in containers.iter().filter(|it| it.is_running()) {
            let Some(spec) = find(pod, &container.spec.name) else { continue };
            if !self.probes.is_started(&spec, &container.id) {
                notes.not_started.push(spec.name.clone());
            }
            if !self.probes.is_ready(&spec, &container.id) {
                notes.not_ready.push(spec.name.clone());
            }
        }
        notes
    }

    pub(super) async fn report(&self, pod: &Pod, containers: &[Container]) -> Result<()> {
        self.report_with(pod, containers, &self.notes(pod, containers)).await
    }

    async fn report_with(&self, pod: &Pod, containers: &[Container], notes: &plan::Notes) -> Result<()> {
        let ip = pod.status.as_ref().and_then(|it| it.pod_ip.clone());
        let host = self.options.address.to_string();
        let status = plan::status(pod, containers, notes, (ip.as_deref(), &host), clock::now());
        let patch = Patch::Strategic(json!({"metadata": {"uid": pod.metadata.uid}, "status": status}));
        match writes::patch_status(&self.client, pod, &patch).await {
            Err(error) if error.is_conflict() => Ok(()),
            other => other.map(drop),
        }
    }
}

/// What is left of the time that a pod may be active.
fn remaining(pod: &Pod, spec: &PodSpec) -> Option<Duration> {
    let most = spec.active_deadline_seconds?;
    let began = pod.status.as_ref()?.start_time.as_ref()?.0;
    let left = most - clock::now().duration_since(began).as_secs();
    Some(Duration::from_secs(u64::try_from(left).unwrap_or(0)))
}
