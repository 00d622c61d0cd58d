//! The node agent: registers its node, and makes the pods that are bound to it real.
//!
//! Each pod is reconciled by itself: the containers are read from the runtime's files, `plan.rs` says what is missing, this file does
//! it, and the status goes back to the API. Nothing is remembered that a restart of the process would lose.

use std::{
    collections::HashMap,
    fs,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Container as ContainerSpec, Node, Pod, PodSpec},
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::{
    images::Images,
    links, plan,
    runtime::{Container, Mount, Runtime, Spec, User, cgroup::Limits},
    volumes::Sources,
};
use crate::{
    api::{http, identity::User as Identity},
    base::{Tasks, clock, tasks},
    client::{Clients, Error, EventRecorder, EventType, Informer, ObjectKey, Result, WorkQueue, informer, writes},
    meta::Quantity,
};

const RENEW_EVERY: Duration = Duration::from_secs(10);
const LEASE_SECONDS: u32 = 40;
const LEASES: &str = "kube-node-lease";
const WORKERS: usize = 8;
/// Volumes and status are looked at again after this time, so that changed ConfigMaps and tokens reach the pod.
const RESYNC: Duration = Duration::from_secs(60);
/// How often a pod that ends is looked at.
const ENDING: Duration = Duration::from_millis(100);
/// Containers that an earlier process started are not its children; their end is looked for.
const ADOPTED_EVERY: Duration = Duration::from_millis(500);
const PODS_MAX: u32 = 110;
/// Docker's default set, by capability number.
const DEFAULT_CAPABILITIES: u64 = 0xa804_25fb;
const ALL_CAPABILITIES: u64 = 0x1ff_ffff_ffff;
const CAPABILITIES: [&str; 41] = [
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP", "LINUX_IMMUTABLE", "NET_BIND_SERVICE",
    "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN",
    "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE",
    "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF", "CHECKPOINT_RESTORE",
];

#[derive(Clone, Debug)]
pub struct Options {
    pub name: String,
    pub address: IpAddr,
    /// The node's server.
    pub port: u16,
    pub state_dir: PathBuf,
    pub images_dir: PathBuf,
    /// The first address of the node's pods; the others follow in a network of 256.
    pub pods: Ipv4Addr,
    pub cluster_dns: String,
    pub api_service: String,
    pub cgroup: String,
}

pub struct Agent {
    pub options: Options,
    pub runtime: Runtime,
    pub images: Images,
    client: kube::Client,
    pods: Informer<Pod>,
    queue: Arc<WorkQueue<ObjectKey>>,
    recorder: EventRecorder,
    tasks: Tasks,
    /// Why containers wait, by pod uid and name.
    waiting: Mutex<HashMap<String, HashMap<String, (String, String)>>>,
    /// Addresses in use, by pod uid.
    addresses: Mutex<HashMap<String, Ipv4Addr>>,
}

impl Agent {
    /// Starts the agent. Containers that run already are found again.
    pub fn start(clients: &Clients, tasks: &Tasks, options: Options) -> std::io::Result<Arc<Self>> {
        let client = clients.of(&Identity::system(&format!("system:node:{}", options.name), &["system:nodes"]));
        let runtime = Runtime::open(&options.state_dir)?;
        let own = informer::Options::default().fields(&format!("spec.nodeName={}", options.name));
        let pods = Informer::start("node-pods", Api::all(client.clone()), own, tasks);
        let agent = Arc::new(Self {
            recorder: EventRecorder::start(client.clone(), "kubelet", &options.name, tasks),
            images: Images::open(&options.images_dir)?,
            addresses: Mutex::new(known_addresses(runtime.root())),
            runtime,
            client,
            pods,
            queue: Arc::new(WorkQueue::new()),
            tasks: tasks.clone(),
            waiting: Mutex::default(),
            options,
        });
        agent.clone().run();
        Ok(agent)
    }

    fn run(self: Arc<Self>) {
        let queue = self.queue.clone();
        self.pods.subscribe(move |change| queue.add(ObjectKey::of(&**change.object())));
        let tasks = self.tasks.clone();
        let agent = self.clone();
        tasks.spawn("node-register", async move {
            agent.adopt();
            agent.register().await;
        });
        let queue = self.queue.clone();
        let agent = self.clone();
        tasks.spawn("node-pods-start", async move {
            agent.pods.synced().await;
            agent.remove_strangers().await;
            let group = agent.tasks.clone();
            queue.run(&group, "node-pod", WORKERS, move |key| {
                let agent = agent.clone();
                async move { agent.reconcile(&key).await }
            });
        });
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

    fn containers(&self, pod: &Pod) -> Vec<Container> {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        self.runtime.containers().into_iter().filter(|it| it.spec.pod_uid == uid).collect()
    }

    pub fn pod_folder(&self, uid: &str) -> PathBuf {
        self.runtime.root().join("pods").join(uid)
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

    fn wake(&self, uid: &str) {
        let found = self.pods.list().into_iter().find(|it| it.metadata.uid.as_deref() == Some(uid));
        found.into_iter().for_each(|it| self.queue.add(ObjectKey::of(&*it)));
    }

    /// Pods that were deleted while nobody looked leave nothing behind.
    async fn remove_strangers(&self) {
        let known: Vec<String> = self.pods.list().iter().filter_map(|it| it.metadata.uid.clone()).collect();
        let folders = fs::read_dir(self.runtime.root().join("pods")).into_iter().flatten().flatten();
        for uid in folders.map(|it| it.file_name().to_string_lossy().into_owned()).filter(|it| !known.contains(it)) {
            self.runtime.containers().iter().filter(|it| it.spec.pod_uid == uid).for_each(|it| self.runtime.signal(it, Signal::SIGKILL));
            tokio::time::sleep(ENDING).await;
            self.clean(&uid);
        }
    }

    async fn reconcile(self: &Arc<Self>, key: &ObjectKey) -> Result<Option<Duration>> {
        let Some(pod) = self.pods.get(key) else { return Ok(None) };
        let containers = self.containers(&pod);
        if pod.metadata.deletion_timestamp.is_some() {
            return self.end(&pod, &containers).await;
        }
        if matches!(pod.status.as_ref().and_then(|it| it.phase.as_deref()), Some("Succeeded" | "Failed")) {
            return Ok(None);
        }
        let mut again = RESYNC;
        let spec = pod.spec.as_ref().ok_or_else(|| Error::Invalid("a pod without a specification".to_owned()))?;
        let address = self.sandbox(&pod, spec)?;
        let pod = with_address(&pod, address, self.options.address);
        let volumes = self.volumes(&pod, spec).await;
        for step in plan::steps(&pod, &containers, clock::now()) {
            match step {
                plan::Step::Wait(seconds) => again = again.min(Duration::from_secs(u64::try_from(seconds).unwrap_or(1))),
                plan::Step::Start { name, attempt } => {
                    let started = match &volumes {
                        Ok(volumes) => self.launch(&pod, spec, &name, attempt, volumes).await,
                        Err(error) => Err(("ContainerCreating".to_owned(), error.clone())),
                    };
                    again = again.min(self.note(&pod, &name, started));
                }
            }
        }
        self.forget_old(&pod);
        self.report(&pod, address).await?;
        Ok(Some(again))
    }

    /// Records why a container waits, or that it does no longer. Returns when to look again.
    fn note(&self, pod: &Pod, name: &str, started: std::result::Result<(), (String, String)>) -> Duration {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let own = waiting.entry(uid).or_default();
        match started {
            Ok(()) => {
                own.remove(name);
                RESYNC
            }
            Err(why) => {
                self.recorder.event(pod, EventType::Warning, "Failed", &why.1);
                own.insert(name.to_owned(), why);
                Duration::from_secs(10)
            }
        }
    }

    /// The namespaces and address of a pod.
    fn sandbox(&self, pod: &Pod, spec: &PodSpec) -> Result<Option<Ipv4Addr>> {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let is_host = spec.host_network == Some(true);
        let address = if is_host { None } else { Some(self.address(&uid)?) };
        let hostname = spec.hostname.clone().unwrap_or_else(|| pod.name_any());
        let folder = self.pod_folder(&uid);
        links::create(&folder, &uid, &hostname, address).map_err(|why| Error::Invalid(format!("failed to set up the sandbox: {why}")))?;
        let written = (|| {
            if let Some(address) = address {
                fs::write(folder.join("address"), address.to_string())?;
            }
            fs::write(folder.join("hostname"), format!("{hostname}\n"))?;
            fs::write(folder.join("hosts"), hosts(address, &hostname))?;
            fs::write(folder.join("resolv.conf"), self.resolv_conf(pod, spec))
        })();
        written.map_err(|why| Error::Invalid(format!("{}: {why}", folder.display())))?;
        Ok(address.or(match self.options.address {
            IpAddr::V4(own) => Some(own),
            IpAddr::V6(_) => None,
        }))
    }

    fn address(&self, uid: &str) -> Result<Ipv4Addr> {
        let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(address) = addresses.get(uid) {
            return Ok(*address);
        }
        let [a, b, c, _] = self.options.pods.octets();
        let free = (2..=254).map(|it| Ipv4Addr::new(a, b, c, it)).find(|it| !addresses.values().any(|used| used == it));
        let address = free.ok_or_else(|| Error::Invalid("no address is left for the pod".to_owned()))?;
        addresses.insert(uid.to_owned(), address);
        Ok(address)
    }

    fn resolv_conf(&self, pod: &Pod, spec: &PodSpec) -> String {
        let host = || fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        let namespace = pod.namespace().unwrap_or_default();
        match spec.dns_policy.as_deref() {
            Some("Default") => host(),
            Some("ClusterFirst") if spec.host_network == Some(true) => host(),
            _ => format!(
                "search {namespace}.svc.cluster.local svc.cluster.local cluster.local\nnameserver {}\noptions ndots:5\n",
                self.options.cluster_dns
            ),
        }
    }

    async fn volumes(&self, pod: &Pod, spec: &PodSpec) -> std::result::Result<HashMap<String, PathBuf>, String> {
        let root = self.runtime.root().join("volumes").join(pod.metadata.uid.as_deref().unwrap_or_default());
        let sources = self.sources(pod);
        let mut volumes = HashMap::new();
        for volume in spec.volumes.iter().flatten() {
            let folder = sources.volume(pod, volume, &root).await.map_err(|why| format!("MountVolume.SetUp failed for volume {:?} : {}", volume.name, why.message()))?;
            volumes.insert(volume.name.clone(), folder);
        }
        Ok(volumes)
    }

    fn sources(&self, pod: &Pod) -> Sources {
        Sources { client: self.client.clone(), namespace: pod.namespace().unwrap_or_default() }
    }

    /// Starts a container; otherwise the reason and message of its waiting state.
    async fn launch(self: &Arc<Self>, pod: &Pod, spec: &PodSpec, name: &str, attempt: u32, volumes: &HashMap<String, PathBuf>) -> std::result::Result<(), (String, String)> {
        let mut all = spec.init_containers.iter().flatten().chain(&spec.containers);
        let Some(container) = all.find(|it| it.name == name) else { return Ok(()) };
        let image_name = container.image.clone().unwrap_or_default();
        let (images, wanted) = (self.images.clone(), image_name.clone());
        let image = tasks::blocking(move || images.get(&wanted)).await.ok().flatten();
        let Some(image) = image else {
            return Err(("ErrImageNeverPull".to_owned(), format!("Container image {image_name:?} is not present; import it with `howdah image import`")));
        };
        let wrong = |why: String| ("CreateContainerConfigError".to_owned(), why);
        let service = [("KUBERNETES_SERVICE_HOST".to_owned(), self.options.api_service.clone()), ("KUBERNETES_SERVICE_PORT".to_owned(), "443".to_owned())];
        let environment = self.sources(pod).environment(pod, container, &image.environment, &service).await.map_err(|why| wrong(why.message()))?;
        let user = user(spec, container, &image.user, &image.layers).map_err(wrong)?;
        let log = self.log_path(pod, name, attempt);
        log.parent().map_or(Ok(()), fs::create_dir_all).map_err(|why| wrong(why.to_string()))?;
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let folder = self.pod_folder(&uid);
        let namespaces = if spec.host_network == Some(true) { vec![folder.join("ipc")] } else { ["net", "ipc", "uts"].map(|it| folder.join(it)).to_vec() };
        let security = container.security_context.as_ref();
        let is_privileged = security.and_then(|it| it.privileged) == Some(true);
        let spec = Spec {
            pod_uid: uid.clone(),
            name: name.to_owned(),
            attempt,
            image: image.id.clone(),
            arguments: arguments(container, &image.entrypoint, &image.command, &environment),
            layers: image.layers,
            environment,
            directory: container.working_dir.clone().unwrap_or(image.directory),
            user,
            mounts: self.mounts(container, volumes, &folder),
            is_read_only: security.and_then(|it| it.read_only_root_filesystem) == Some(true),
            is_privileged,
            seccomp: has_seccomp(spec, container),
            capabilities: capabilities(container, is_privileged),
            no_new_privileges: security.and_then(|it| it.allow_privilege_escalation) == Some(false),
            has_terminal: false,
            oom_score_adj: 900,
            log,
            namespaces,
            is_host_pid: spec.host_pid == Some(true),
            cgroup: format!("{}/{uid}", self.options.cgroup),
            limits: limits(container, is_privileged),
            stop_signal: None,
        };
        self.run_shim(pod, &spec).await.map_err(|why| ("RunContainerError".to_owned(), why))
    }

    async fn run_shim(self: &Arc<Self>, pod: &Pod, spec: &Spec) -> std::result::Result<(), String> {
        let (id, mut child) = self.runtime.start(spec).map_err(|why| why.to_string())?;
        let (agent, uid) = (self.clone(), spec.pod_uid.clone());
        self.tasks.spawn_finishing("node-shim", async move {
            let _ = tasks::blocking(move || child.wait()).await;
            agent.wake(&uid);
        });
        // The status that follows should say that it runs, so its first moments are waited for.
        for _ in 0..200 {
            if self.runtime.container(&id).is_some_and(|it| it.started.is_some() || it.ended.is_some()) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        self.recorder.event(pod, EventType::Normal, "Started", &format!("Started container {}", spec.name));
        Ok(())
    }

    fn mounts(&self, container: &ContainerSpec, volumes: &HashMap<String, PathBuf>, folder: &Path) -> Vec<Mount> {
        let files = [("hosts", "/etc/hosts"), ("hostname", "/etc/hostname"), ("resolv.conf", "/etc/resolv.conf")];
        let own = files.iter().map(|(name, target)| Mount { source: folder.join(name), target: (*target).to_owned(), is_read_only: false });
        let asked = container.volume_mounts.iter().flatten().filter_map(|it| {
            let source = volumes.get(&it.name)?.join(it.sub_path.as_deref().unwrap_or_default());
            Some(Mount { source, target: it.mount_path.clone(), is_read_only: it.read_only == Some(true) })
        });
        own.chain(asked).collect()
    }

    pub fn log_path(&self, pod: &Pod, container: &str, attempt: u32) -> PathBuf {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        self.runtime.root().join("logs").join(uid).join(container).join(format!("{attempt}.log"))
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
    }

    async fn report(&self, pod: &Pod, address: Option<Ipv4Addr>) -> Result<()> {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).get(&uid).cloned().unwrap_or_default();
        let notes = plan::Notes { not_ready: Vec::new(), waiting };
        let (ip, host) = (address.map(|it| it.to_string()), self.options.address.to_string());
        let status = plan::status(pod, &self.containers(pod), &notes, (ip.as_deref(), &host), clock::now());
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
        let patch = json!({"metadata": {"uid": uid}, "status": status});
        match api.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Strategic(patch)).await {
            Err(kube::Error::Api(error)) if error.code == 404 || error.code == 409 => Ok(()),
            other => other.map(|_| ()).map_err(Into::into),
        }
    }

    /// Ends a pod: a request, its grace period, the end, and then its removal from the API.
    async fn end(&self, pod: &Pod, containers: &[Container]) -> Result<Option<Duration>> {
        let running: Vec<&Container> = containers.iter().filter(|it| it.is_running()).collect();
        let deadline = pod.metadata.deletion_timestamp.as_ref().map(|it| it.0).unwrap_or_else(clock::now);
        if !running.is_empty() {
            let is_late = clock::now() >= deadline;
            for container in running {
                let asked = self.pod_folder(&container.spec.pod_uid).join(format!("ending-{}", container.id));
                if is_late {
                    self.runtime.signal(container, Signal::SIGKILL);
                } else if !asked.exists() {
                    self.runtime.signal(container, Signal::SIGTERM);
                    self.recorder.event(pod, EventType::Normal, "Killing", &format!("Stopping container {}", container.spec.name));
                    let _ = fs::write(asked, "");
                }
            }
            return Ok(Some(ENDING));
        }
        self.clean(pod.metadata.uid.as_deref().unwrap_or_default());
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
        let params = DeleteParams { grace_period_seconds: Some(0), ..writes::deleting(pod.metadata.uid.as_deref()) };
        match api.delete(&pod.name_any(), &params).await {
            Err(kube::Error::Api(error)) if error.code == 404 || error.code == 409 => Ok(None),
            other => other.map(|_| None).map_err(Into::into),
        }
    }

    /// Removes all that is left of a pod.
    fn clean(&self, uid: &str) {
        for container in self.runtime.containers().iter().filter(|it| it.spec.pod_uid == uid) {
            self.runtime.remove(container);
        }
        links::remove(uid);
        super::runtime::remove_namespaces(&self.pod_folder(uid));
        super::runtime::cgroup::remove(&format!("{}/{uid}", self.options.cgroup));
        for folder in ["volumes", "logs"] {
            let _ = fs::remove_dir_all(self.runtime.root().join(folder).join(uid));
        }
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }

    /// Ends all containers of the node, for a clean stop; their pods start again with the next process.
    pub fn stop(&self) {
        self.runtime.purge();
        for uid in known_addresses(self.runtime.root()).keys() {
            links::remove(uid);
        }
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner).keys().for_each(|it| links::remove(it));
        super::runtime::cgroup::remove(&self.options.cgroup);
    }

    /// Makes the Node object, keeps its status, and renews its lease.
    async fn register(&self) {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let node = self.node();
        match serde_json::from_value::<Node>(node.clone()) {
            Ok(object) => match nodes.create(&PostParams::default(), &object).await {
                Ok(_) => (),
                Err(kube::Error::Api(error)) if error.reason == "AlreadyExists" => {
                    let patch = json!({"status": node["status"]});
                    let _ = nodes.patch_status(&self.options.name, &PatchParams::default(), &Patch::Strategic(patch)).await;
                }
                Err(error) => tracing::warn!(%error, "the node could not register"),
            },
            Err(error) => tracing::error!(%error, "the node makes no sense"),
        }
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), LEASES);
        let mut ticks = tokio::time::interval(RENEW_EVERY);
        loop {
            ticks.tick().await;
            let spec = json!({"holderIdentity": self.options.name, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": clock::rfc3339_micro(clock::now())});
            let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": self.options.name, "namespace": LEASES}, "spec": spec});
            let params = PatchParams::apply("kubelet").force();
            if let Err(error) = leases.patch(&self.options.name, &params, &Patch::Apply(&lease)).await {
                tracing::warn!(%error, "the node's lease was not renewed");
            }
        }
    }

    fn node(&self) -> Value {
        let (name, now) = (&self.options.name, clock::now_rfc3339());
        let condition = |kind: &str, status: &str, reason: &str, message: &str| {
            json!({"type": kind, "status": status, "reason": reason, "message": message, "lastHeartbeatTime": now, "lastTransitionTime": now})
        };
        let labels = json!({"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": http::arch(), "node-role.kubernetes.io/control-plane": ""});
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let resources = json!({"cpu": cores.to_string(), "memory": format!("{}Ki", memory_kib()), "pods": PODS_MAX.to_string(), "ephemeral-storage": "100Gi"});
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let os = text("/etc/os-release").lines().find_map(|it| Some(it.strip_prefix("PRETTY_NAME=")?.trim_matches('"').to_owned())).unwrap_or_default();
        let [a, b, c, _] = self.options.pods.octets();
        let cidr = format!("{a}.{b}.{c}.0/24");
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}, "spec": {"podCIDR": cidr, "podCIDRs": [cidr]},
            "status": {"capacity": resources, "allocatable": resources,
                "conditions": [
                    condition("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
                    condition("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
                    condition("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
                    condition("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
                ],
                "addresses": [{"type": "InternalIP", "address": self.options.address.to_string()}, {"type": "Hostname", "address": name}],
                "daemonEndpoints": {"kubeletEndpoint": {"Port": self.options.port}},
                "nodeInfo": {"machineID": text("/etc/machine-id"), "systemUUID": "", "bootID": text("/proc/sys/kernel/random/boot_id"),
                    "kernelVersion": text("/proc/sys/kernel/osrelease"), "osImage": os, "operatingSystem": "linux", "architecture": http::arch(),
                    "containerRuntimeVersion": concat!("howdah://", env!("CARGO_PKG_VERSION")), "kubeletVersion": http::GIT_VERSION, "kubeProxyVersion": ""}}})
    }
}

fn memory_kib() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    text.lines().find_map(|it| it.strip_prefix("MemTotal:")?.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}

/// The addresses that pods of an earlier process hold.
fn known_addresses(root: &Path) -> HashMap<String, Ipv4Addr> {
    let folders = fs::read_dir(root.join("pods")).into_iter().flatten().flatten();
    let read = |it: fs::DirEntry| Some((it.file_name().to_string_lossy().into_owned(), fs::read_to_string(it.path().join("address")).ok()?.parse().ok()?));
    folders.filter_map(read).collect()
}

/// The pod with the addresses that its environment may ask for.
fn with_address(pod: &Pod, address: Option<Ipv4Addr>, host: IpAddr) -> Pod {
    let mut pod = pod.clone();
    let status = pod.status.get_or_insert_default();
    status.pod_ip = address.map(|it| it.to_string());
    status.host_ip = Some(host.to_string());
    pod
}

fn hosts(address: Option<Ipv4Addr>, hostname: &str) -> String {
    let own = address.map(|it| format!("{it}\t{hostname}\n")).unwrap_or_default();
    format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{own}")
}

/// Command and arguments: the pod's over the image's, with references expanded.
fn arguments(container: &ContainerSpec, entrypoint: &[String], command: &[String], environment: &[String]) -> Vec<String> {
    let values: HashMap<String, String> = environment.iter().filter_map(|it| it.split_once('=')).map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let expand = |list: &[String]| list.iter().map(|it| super::volumes::expand(it, &values)).collect::<Vec<_>>();
    let own = container.command.as_deref().filter(|it| !it.is_empty()).map(expand);
    let args = container.args.as_deref().filter(|it| !it.is_empty()).map(expand);
    match (own, args) {
        (Some(own), args) => own.into_iter().chain(args.unwrap_or_default()).collect(),
        (None, Some(args)) => entrypoint.iter().cloned().chain(args).collect(),
        (None, None) => entrypoint.iter().chain(command).cloned().collect(),
    }
}

/// The user by the pod, the container, or the image.
fn user(spec: &PodSpec, container: &ContainerSpec, image: &str, layers: &[PathBuf]) -> std::result::Result<User, String> {
    let (pod, own) = (spec.security_context.as_ref(), container.security_context.as_ref());
    let number = |it: Option<i64>| it.and_then(|it| u32::try_from(it).ok());
    let mut user = image_user(image, layers).ok_or_else(|| format!("unable to find user {image}: no matching entries in passwd file"))?;
    user.uid = number(own.and_then(|it| it.run_as_user).or(pod.and_then(|it| it.run_as_user))).unwrap_or(user.uid);
    user.gid = number(own.and_then(|it| it.run_as_group).or(pod.and_then(|it| it.run_as_group))).unwrap_or(user.gid);
    user.groups = pod.into_iter().flat_map(|it| it.supplemental_groups.iter().flatten().copied().chain(it.fs_group)).filter_map(|it| number(Some(it))).collect();
    let must_not_be_root = own.and_then(|it| it.run_as_non_root).or(pod.and_then(|it| it.run_as_non_root)) == Some(true);
    if must_not_be_root && user.uid == 0 {
        return Err("container has runAsNonRoot and image will run as root".to_owned());
    }
    Ok(user)
}

/// `name`, `uid` or either with `:group`, by the image's own files.
fn image_user(text: &str, layers: &[PathBuf]) -> Option<User> {
    let (name, group) = text.split_once(':').map_or((text, None), |(name, group)| (name, Some(group)));
    let read = |file: &str| layers.iter().find_map(|it| fs::read_to_string(it.join(file)).ok()).unwrap_or_default();
    let lookup = |file: &str, name: &str| -> Option<Vec<String>> { read(file).lines().map(|it| it.split(':').map(str::to_owned).collect::<Vec<_>>()).find(|it| it.first().is_some_and(|it| it == name)) };
    let (uid, gid) = match name {
        "" => (0, 0),
        name => match name.parse() {
            Ok(uid) => (uid, 0),
            Err(_) => {
                let entry = lookup("etc/passwd", name)?;
                (entry.get(2)?.parse().ok()?, entry.get(3)?.parse().ok()?)
            }
        },
    };
    let gid = match group {
        Some(group) => group.parse().ok().or_else(|| lookup("etc/group", group)?.get(2)?.parse().ok())?,
        None => gid,
    };
    Some(User { uid, gid, groups: Vec::new() })
}

fn has_seccomp(spec: &PodSpec, container: &ContainerSpec) -> bool {
    let own = container.security_context.as_ref().and_then(|it| it.seccomp_profile.as_ref());
    let profile = own.or(spec.security_context.as_ref().and_then(|it| it.seccomp_profile.as_ref()));
    profile.is_some_and(|it| it.type_ == "RuntimeDefault")
}

fn capabilities(container: &ContainerSpec, is_privileged: bool) -> u64 {
    if is_privileged {
        return ALL_CAPABILITIES;
    }
    let bits = |names: Option<&Vec<String>>| -> u64 {
        names.into_iter().flatten().fold(0, |all, name| {
            let name = name.to_ascii_uppercase();
            match name.trim_start_matches("CAP_") {
                "ALL" => ALL_CAPABILITIES,
                name => all | CAPABILITIES.iter().position(|it| *it == name).map_or(0, |at| 1 << at),
            }
        })
    };
    let asked = container.security_context.as_ref().and_then(|it| it.capabilities.as_ref());
    let (add, drop) = (bits(asked.and_then(|it| it.add.as_ref())), bits(asked.and_then(|it| it.drop.as_ref())));
    (DEFAULT_CAPABILITIES & !drop) | add
}

fn limits(container: &ContainerSpec, is_privileged: bool) -> Limits {
    let resources = container.resources.as_ref();
    let amount = |list: Option<&std::collections::BTreeMap<String, _>>, name: &str| -> Option<Quantity> {
        let quantity: &k8s_openapi::apimachinery::pkg::api::resource::Quantity = list?.get(name)?;
        quantity.0.parse().ok()
    };
    Limits {
        memory: amount(resources.and_then(|it| it.limits.as_ref()), "memory").map(Quantity::units),
        cpu: amount(resources.and_then(|it| it.limits.as_ref()), "cpu").map(Quantity::millis),
        cpu_request: amount(resources.and_then(|it| it.requests.as_ref()), "cpu").map_or(0, Quantity::millis),
        has_all_devices: is_privileged,
    }
}
