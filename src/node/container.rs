//! What the runtime is told of a container: from a pod, an image and the node's facts.
//! Source: kubelet `pkg/kubelet/kuberuntime/kuberuntime_container.go`, `pkg/securitycontext`, containerd's CRI for what images decide.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    str::FromStr,
};

use k8s_openapi::api::core::v1::{Container as ContainerSpec, Pod, PodSpec, VolumeMount};
use nix::sys::signal::Signal;

use super::{
    environment::{Environment, expand},
    images::Image,
    runtime::{Mount, Spec, User, cgroup::Limits, launcher::inside},
};
use crate::{meta::Quantity, scheduler::cluster::PodInfo};

/// Docker's default set, by capability number.
const DEFAULT_CAPABILITIES: u64 = 0xa804_25fb;
const ALL_CAPABILITIES: u64 = 0x1ff_ffff_ffff;
const CAPABILITIES: [&str; 41] = [
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP", "LINUX_IMMUTABLE", "NET_BIND_SERVICE",
    "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN",
    "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE",
    "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF", "CHECKPOINT_RESTORE",
];

/// Everything that decides over one start of one container.
pub struct Making<'a> {
    pub pod: &'a Pod,
    pub spec: &'a PodSpec,
    pub container: &'a ContainerSpec,
    pub attempt: u32,
    pub image: Image,
    pub environment: Environment,
    /// The directories of the pod's volumes by name.
    pub volumes: &'a HashMap<String, PathBuf>,
    /// The pod's own folder, with its namespaces and files.
    pub folder: PathBuf,
    pub log: PathBuf,
    pub termination_message: PathBuf,
    pub cgroup: String,
    pub hostname: String,
    /// A process of a container whose processes this one is to see.
    pub target: Option<i32>,
    /// Of the node, in bytes.
    pub memory: i64,
}

impl Making<'_> {
    /// The specification; otherwise why there can be none.
    pub fn spec(mut self) -> Result<Spec, String> {
        let (spec, container) = (self.spec, self.container);
        let is_host = spec.host_network == Some(true);
        let names: &[&str] = if is_host { &["ipc"] } else { &["net", "ipc", "uts"] };
        let security = container.security_context.as_ref();
        let is_privileged = security.and_then(|it| it.privileged) == Some(true);
        let has_terminal = container.tty == Some(true);
        let (user, home) = user(spec, container, &self.image.user, &self.image.layers)?;
        self.environment.complete(&self.image.environment, &self.hostname, has_terminal);
        if !self.environment.values.contains_key("HOME") {
            self.environment.set("HOME", home);
        }
        let asked = container.lifecycle.as_ref().and_then(|it| it.stop_signal.as_deref());
        let stop_signal = asked.or(Some(self.image.stop_signal.as_str())).and_then(|it| Signal::from_str(it).ok()).map(|it| it as i32);
        Ok(Spec {
            pod_uid: self.pod.metadata.uid.clone().unwrap_or_default(),
            name: container.name.clone(),
            attempt: self.attempt,
            image: self.image.id.clone(),
            arguments: arguments(container, &self.image.entrypoint, &self.image.command, &self.environment.values),
            environment: self.environment.pairs(),
            directory: container.working_dir.clone().filter(|it| !it.is_empty()).unwrap_or_else(|| self.image.directory.clone()),
            user,
            mounts: self.mounts()?,
            is_read_only: security.and_then(|it| it.read_only_root_filesystem) == Some(true),
            is_privileged,
            seccomp: has_seccomp(spec, container),
            capabilities: capabilities(container, is_privileged),
            no_new_privileges: security.and_then(|it| it.allow_privilege_escalation) == Some(false),
            has_terminal,
            has_stdin: container.stdin == Some(true),
            is_stdin_once: container.stdin_once == Some(true),
            oom_score_adj: oom_score(self.pod, container, self.memory),
            log: self.log,
            namespaces: names.iter().map(|it| self.folder.join(it)).collect(),
            is_host_pid: spec.host_pid == Some(true),
            target: self.target,
            cgroup: self.cgroup,
            limits: limits(container, is_privileged),
            stop_signal,
            layers: self.image.layers,
            termination_message: self.termination_message,
            falls_back_to_logs: container.termination_message_policy.as_deref() == Some("FallbackToLogsOnError"),
        })
    }

    fn mounts(&self) -> Result<Vec<Mount>, String> {
        let files = [("hosts", "/etc/hosts"), ("hostname", "/etc/hostname"), ("resolv.conf", "/etc/resolv.conf")];
        let asked = self.container.volume_mounts.as_deref().unwrap_or_default();
        let is_free = |target: &str| asked.iter().all(|it| it.mount_path != target);
        let mut mounts: Vec<Mount> = files
            .iter()
            .filter(|(_, target)| is_free(target))
            .map(|(name, target)| Mount { source: self.folder.join(name), target: (*target).to_owned(), is_read_only: false, within: None })
            .collect();
        let message = self.container.termination_message_path.clone().unwrap_or_else(|| "/dev/termination-log".to_owned());
        mounts.push(Mount { source: self.termination_message.clone(), target: message, is_read_only: false, within: None });
        for mount in asked {
            let (source, within) = self.source(mount)?;
            let is_read_only = mount.read_only == Some(true) || self.is_claimed_to_read(&mount.name);
            mounts.push(Mount { source, target: mount.mount_path.clone(), is_read_only, within });
        }
        Ok(mounts)
    }

    /// Whether the pod has a volume's claim for reading only.
    fn is_claimed_to_read(&self, volume: &str) -> bool {
        let named = self.spec.volumes.iter().flatten().find(|it| it.name == volume);
        named.and_then(|it| it.persistent_volume_claim.as_ref()).is_some_and(|it| it.read_only == Some(true))
    }

    /// What is mounted of a volume: all of it, or a part that does not lead out of it, with the volume (`pkg/volume/util/subpath`).
    fn source(&self, mount: &VolumeMount) -> Result<(PathBuf, Option<PathBuf>), String> {
        let volume = self.volumes.get(&mount.name).ok_or_else(|| format!("cannot find volume {:?} to mount into container {:?}", mount.name, self.container.name))?;
        let expanded = mount.sub_path_expr.as_deref().map(|it| expand(it, &self.environment.values));
        let Some(part) = expanded.as_deref().or(mount.sub_path.as_deref()).filter(|it| !it.is_empty()) else { return Ok((volume.clone(), None)) };
        let failed = || format!("failed to create subPath directory for volumeMount {:?} of container {:?}", mount.name, self.container.name);
        let wrong = |it: &Path| it.is_absolute() || it.components().any(|it| it == std::path::Component::ParentDir);
        if wrong(Path::new(part)) || expanded.as_deref().is_some_and(|it| it.contains("$(")) {
            return Err(failed());
        }
        let root = fs::canonicalize(volume).map_err(|_| failed())?;
        if fs::canonicalize(root.join(part)).is_ok_and(|it| !it.starts_with(&root)) {
            return Err(failed());
        }
        let path = inside(&root, Path::new(part)).map_err(|_| failed())?;
        if fs::symlink_metadata(&path).is_err() {
            fs::create_dir_all(&path).map_err(|_| failed())?;
            let mode = fs::metadata(&root).map(|it| it.permissions()).map_err(|_| failed())?;
            fs::set_permissions(&path, mode).map_err(|_| failed())?;
        }
        Ok((path, Some(root)))
    }
}

/// How willingly the kernel ends the container when memory is short (`qos.GetContainerOOMScoreAdjust`).
fn oom_score(pod: &Pod, container: &ContainerSpec, memory: i64) -> i32 {
    match pod.status.as_ref().and_then(|it| it.qos_class.as_deref()) {
        Some("Guaranteed") => -997,
        Some("BestEffort") => 1000,
        _ => {
            let requests = container.resources.as_ref().and_then(|it| it.requests.as_ref());
            let request: i64 = requests.and_then(|it| it.get("memory")).and_then(|it| it.0.parse::<Quantity>().ok()).map_or(0, Quantity::units);
            let share = 1000 - 1000 * request / memory.max(1);
            i32::try_from(share.clamp(3, 999)).unwrap_or(999)
        }
    }
}

/// Command and arguments: the pod's over the image's, with references expanded.
fn arguments(container: &ContainerSpec, entrypoint: &[String], command: &[String], values: &HashMap<String, String>) -> Vec<String> {
    let expand = |list: &[String]| list.iter().map(|it| expand(it, values)).collect::<Vec<_>>();
    let own = container.command.as_deref().filter(|it| !it.is_empty()).map(expand);
    let args = container.args.as_deref().filter(|it| !it.is_empty()).map(expand);
    match (own, args) {
        (Some(own), args) => own.into_iter().chain(args.unwrap_or_default()).collect(),
        (None, Some(args)) => entrypoint.iter().cloned().chain(args).collect(),
        (None, None) => entrypoint.iter().chain(command).cloned().collect(),
    }
}

/// The user by the pod, the container, or the image; and its home.
fn user(spec: &PodSpec, container: &ContainerSpec, image: &str, layers: &[PathBuf]) -> Result<(User, String), String> {
    let (pod, own) = (spec.security_context.as_ref(), container.security_context.as_ref());
    let number = |it: Option<i64>| it.and_then(|it| u32::try_from(it).ok());
    let mut user = image_user(image, layers).ok_or_else(|| format!("unable to find user {image}: no matching entries in passwd file"))?;
    user.uid = number(own.and_then(|it| it.run_as_user).or(pod.and_then(|it| it.run_as_user))).unwrap_or(user.uid);
    user.gid = number(own.and_then(|it| it.run_as_group).or(pod.and_then(|it| it.run_as_group))).unwrap_or(user.gid);
    user.groups = pod.into_iter().flat_map(|it| it.supplemental_groups.iter().flatten().copied().chain(it.fs_group)).filter_map(|it| number(Some(it))).collect();
    let entry = lookup(layers, "etc/passwd", |it| it.get(2).and_then(|it| it.parse().ok()) == Some(user.uid));
    if own.and_then(|it| it.run_as_user).or(pod.and_then(|it| it.run_as_user)).is_some() && own.and_then(|it| it.run_as_group).or(pod.and_then(|it| it.run_as_group)).is_none() {
        user.gid = entry.as_ref().and_then(|it| it.get(3)?.parse().ok()).unwrap_or(0);
    }
    if pod.and_then(|it| it.supplemental_groups_policy.as_deref()) != Some("Strict")
        && let Some(name) = entry.as_ref().and_then(|it| it.first())
    {
        // What the image says of the user is added (KEP-3619).
        let is_member = |it: &Vec<String>| it.get(3).is_some_and(|it| it.split(',').any(|it| it == name));
        user.groups.extend(entries(layers, "etc/group").filter(is_member).filter_map(|it| it.get(2)?.parse::<u32>().ok()));
    }
    let home = entry.and_then(|it| it.get(5).cloned()).filter(|it| !it.is_empty()).unwrap_or_else(|| "/".to_owned());
    let must_not_be_root = own.and_then(|it| it.run_as_non_root).or(pod.and_then(|it| it.run_as_non_root)) == Some(true);
    if must_not_be_root && user.uid == 0 {
        let why = if own.and_then(|it| it.run_as_user).or(pod.and_then(|it| it.run_as_user)) == Some(0) { "container's runAsUser breaks non-root policy" } else { "container has runAsNonRoot and image will run as root" };
        return Err(why.to_owned());
    }
    Ok((user, home))
}

/// `name`, `uid` or either with `:group`, by the image's own files.
fn image_user(text: &str, layers: &[PathBuf]) -> Option<User> {
    let (name, group) = text.split_once(':').map_or((text, None), |(name, group)| (name, Some(group)));
    let named = |file: &str, name: &str| lookup(layers, file, |it| it.first().is_some_and(|it| it == name));
    let (uid, gid) = match name {
        "" => (0, 0),
        name => match name.parse() {
            Ok(uid) => (uid, lookup(layers, "etc/passwd", |it| it.get(2).is_some_and(|it| it == name)).and_then(|it| it.get(3)?.parse().ok()).unwrap_or(0)),
            Err(_) => {
                let entry = named("etc/passwd", name)?;
                (entry.get(2)?.parse().ok()?, entry.get(3)?.parse().ok()?)
            }
        },
    };
    let gid = match group {
        Some(group) => group.parse().ok().or_else(|| named("etc/group", group)?.get(2)?.parse().ok())?,
        None => gid,
    };
    Some(User { uid, gid, groups: Vec::new() })
}

/// The entries of the image's file such as `/etc/passwd`, in fields.
fn entries(layers: &[PathBuf], file: &str) -> impl Iterator<Item = Vec<String>> {
    let text = layers.iter().find_map(|it| fs::read_to_string(it.join(file)).ok()).unwrap_or_default();
    text.lines().map(|it| it.split(':').map(str::to_owned).collect()).collect::<Vec<_>>().into_iter()
}

/// The first entry that fits.
fn lookup(layers: &[PathBuf], file: &str, fits: impl Fn(&[String]) -> bool) -> Option<Vec<String>> {
    entries(layers, file).find(|it| fits(it))
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

/// What the container may use.
pub fn limits(container: &ContainerSpec, is_privileged: bool) -> Limits {
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

/// What all containers of a pod may use together (`ResourceConfigForPod`): what the pod says itself, or the sum where each container has a
/// limit. Its share of the processor follows what it requests, beside other pods.
pub fn pod_limits(pod: &Pod, spec: &PodSpec) -> Limits {
    let own = |name: &str| spec.resources.as_ref().and_then(|it| it.limits.as_ref()?.get(name)?.0.parse::<Quantity>().ok());
    let all: Vec<Limits> = spec.containers.iter().map(|it| limits(it, false)).collect();
    let sum = |of: fn(&Limits) -> Option<i64>| all.iter().map(of).sum::<Option<i64>>();
    Limits {
        memory: own("memory").map(Quantity::units).or_else(|| sum(|it| it.memory)),
        cpu: own("cpu").map(Quantity::millis).or_else(|| sum(|it| it.cpu)),
        cpu_request: PodInfo::new(pod.clone()).request.milli_cpu,
        has_all_devices: true,
    }
}
