//! The embedded runtime: containers without a daemon.
//!
//! Each container has a *shim*, a small process of this program that outlives the agent: it launches the container, copies its
//! output into the log, waits for its end and writes down how it ended. Everything else is files below the state directory, so
//! an agent that starts again finds all containers where they are. One shim a container, rather than one warden a node, because a
//! shim's death then touches one container, and no protocol is needed between agent and shim: files one way, signals the other.
//!
//! `launcher.rs` speaks to the kernel; `cgroup.rs` sets limits; `shim.rs` is the process; this file is the agent's view.

pub mod cgroup;
mod devices;
pub mod launcher;
mod log;
pub mod shim;
pub mod streams;
pub mod terminal;

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use nix::{
    mount::{MntFlags, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

/// Everything a shim needs to know of its container; `spec.json` in the container's directory.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Spec {
    pub pod_uid: String,
    pub name: String,
    pub attempt: u32,
    pub image: String,
    /// Unpacked layers, the topmost first.
    pub layers: Vec<PathBuf>,
    pub arguments: Vec<String>,
    /// `NAME=value`.
    pub environment: Vec<String>,
    pub directory: String,
    pub user: User,
    pub mounts: Vec<Mount>,
    pub is_read_only: bool,
    pub is_privileged: bool,
    pub seccomp: bool,
    /// A bit for each capability.
    pub capabilities: u64,
    pub no_new_privileges: bool,
    pub has_terminal: bool,
    pub has_stdin: bool,
    pub is_stdin_once: bool,
    pub oom_score_adj: i32,
    pub log: PathBuf,
    /// Namespaces of the pod to join: files of `net`, `ipc`, `uts`.
    pub namespaces: Vec<PathBuf>,
    pub is_host_pid: bool,
    /// A process whose PID namespace is joined instead of a new one.
    #[serde(default)]
    pub target: Option<i32>,
    pub cgroup: String,
    pub limits: cgroup::Limits,
    /// A number; SIGTERM without.
    pub stop_signal: Option<i32>,
    /// The host's file that the container may leave its last word in.
    pub termination_message: PathBuf,
    /// Without a last word, the end of the log stands for it when the container failed.
    pub falls_back_to_logs: bool,
}

impl Spec {
    /// What asks the container to end.
    pub fn stop_signal(&self) -> Signal {
        self.stop_signal.and_then(|it| Signal::try_from(it).ok()).unwrap_or(Signal::SIGTERM)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
}

/// A file or directory of the host inside the container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Mount {
    pub source: PathBuf,
    pub target: String,
    pub is_read_only: bool,
    /// For a part of a volume: the volume, out of which no link of a container may lead.
    #[serde(default)]
    pub within: Option<PathBuf>,
}

/// What the shim writes when the container runs: `state.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Started {
    pub process: Process,
    /// Beside it, the one that will write down its end.
    pub shim: Process,
    pub at: String,
}

/// A process, told from later ones of the same number by the time of its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub pid: i32,
    /// In clock ticks since boot.
    pub ticks: u64,
}

impl Process {
    pub fn of(pid: i32) -> Self {
        Self { pid, ticks: ticks(pid).unwrap_or(0) }
    }

    fn is_alive(self) -> bool {
        ticks(self.pid) == Some(self.ticks)
    }
}

/// What it writes at the end: `exit.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ended {
    pub code: i32,
    pub is_oom_killed: bool,
    /// Why the container never ran; empty when it did.
    pub error: String,
    /// Its last word.
    #[serde(default)]
    pub message: String,
    pub at: String,
}

impl Ended {
    fn unknown(at: &str) -> Self {
        Self { code: KILLED, is_oom_killed: false, error: String::new(), message: String::new(), at: at.to_owned() }
    }
}

/// What a process ends with that was killed.
const KILLED: i32 = 137;

/// A container as its files tell.
#[derive(Clone, Debug)]
pub struct Container {
    pub id: String,
    pub spec: Spec,
    pub started: Option<Started>,
    pub ended: Option<Ended>,
}

/// The runtime of one node: a state directory.
#[derive(Clone, Debug)]
pub struct Runtime {
    root: PathBuf,
}

/// This very program, even if its file was replaced since.
const SELF: &str = "/proc/self/exe";
/// How long containers get to end by themselves when the node stops.
const ENDED_WITHIN: Duration = Duration::from_secs(2);
/// How long a shim may take to write down the end of its container.
const TOLD_WITHIN: Duration = Duration::from_millis(500);
/// How long the processes of a killed container may take to go.
const GONE_WITHIN: Duration = Duration::from_secs(5);

impl Runtime {
    pub fn open(root: &Path) -> io::Result<Self> {
        for folder in ["containers", "pods", "logs", "volumes"] {
            fs::create_dir_all(root.join(folder))?;
        }
        Ok(Self { root: root.to_owned() })
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn folder(&self, id: &str) -> PathBuf {
        self.root.join("containers").join(id)
    }

    /// All containers, dead ones too, in no order.
    pub fn containers(&self) -> Vec<Container> {
        let entries = fs::read_dir(self.root.join("containers")).into_iter().flatten().flatten();
        entries.filter_map(|it| self.container(&it.file_name().to_string_lossy())).collect()
    }

    pub fn container(&self, id: &str) -> Option<Container> {
        let folder = self.folder(id);
        let spec: Spec = read(&folder.join("spec.json"))?;
        let started: Option<Started> = read(&folder.join("state.json"));
        let mut ended: Option<Ended> = read(&folder.join("exit.json"));
        if let (None, Some(started)) = (&ended, &started)
            && !started.process.is_alive()
            && !started.shim.is_alive()
        {
            // The shim may have spoken just before it went; otherwise nobody knows how the container ended.
            ended = read(&folder.join("exit.json")).or_else(|| Some(Ended::unknown(&started.at)));
        }
        Some(Container { id: id.to_owned(), spec, started, ended })
    }

    /// Starts a container under a new id, and returns once its shim runs. Whether the container does is told by its state.
    pub fn start(&self, spec: &Spec) -> io::Result<(String, std::process::Child)> {
        let id = uuid::Uuid::new_v4().simple().to_string();
        let folder = self.folder(&id);
        fs::create_dir_all(&folder)?;
        let spec = Spec { cgroup: format!("{}/{id}", spec.cgroup), ..spec.clone() };
        write(&folder.join("spec.json"), &spec)?;
        let log = fs::File::create(folder.join("shim.log"))?;
        let mut command = Command::new(SELF);
        command.args(["shim", "run"]).arg(&folder).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        Ok((id, command.spawn()?))
    }

    /// The command that runs `arguments` in a container: its standard streams are the command's.
    pub fn exec(&self, container: &Container, arguments: &[String], has_terminal: bool) -> io::Result<Command> {
        let mut command = Command::new(SELF);
        command.args(["shim", "exec"]).arg(self.folder(&container.id));
        if has_terminal {
            command.arg("--tty");
        }
        command.arg("--").args(arguments);
        Ok(command)
    }

    /// Gives a running container other limits.
    pub fn resize(&self, container: &Container, limits: cgroup::Limits) -> io::Result<()> {
        cgroup::set_limits(&container.spec.cgroup, &limits)?;
        write(&self.folder(&container.id).join("spec.json"), &Spec { limits, ..container.spec.clone() })
    }

    /// Sends a signal to a container's first process, if it still runs.
    pub fn signal(&self, container: &Container, signal: Signal) {
        if let Some(pid) = container.pid() {
            let _ = kill(pid, signal);
        }
    }

    /// Removes a container that has ended, and all that is left of it.
    pub fn remove(&self, container: &Container) {
        self.signal(container, Signal::SIGKILL);
        // Its process may be younger than what is known of it here.
        cgroup::kill_all(&container.spec.cgroup);
        cgroup::remove(&container.spec.cgroup);
        let _ = fs::remove_dir_all(self.folder(&container.id));
    }

    /// Asks all containers to end, and ends those that do not. Returns when their shims have written down how they ended.
    pub fn stop(&self) {
        let running: Vec<Container> = self.containers().into_iter().filter(Container::is_running).collect();
        running.iter().for_each(|it| self.signal(it, it.spec.stop_signal()));
        wait_while(ENDED_WITHIN, || running.iter().any(Container::is_running));
        running.iter().for_each(|it| self.signal(it, Signal::SIGKILL));
        wait_while(GONE_WITHIN, || running.iter().any(Container::is_running));
        wait_while(TOLD_WITHIN, || running.iter().any(|it| self.container(&it.id).is_some_and(|it| it.ended.is_none())));
        self.containers().iter().for_each(|it| cgroup::remove(&it.spec.cgroup));
    }
}

fn wait_while(within: Duration, is_so: impl Fn() -> bool) {
    let began = std::time::Instant::now();
    while is_so() && began.elapsed() < within {
        std::thread::sleep(Duration::from_millis(5));
    }
}

impl Container {
    /// The process, if it is still the same one.
    pub fn pid(&self) -> Option<Pid> {
        let started = self.started.as_ref().filter(|it| self.ended.is_none() && it.process.is_alive())?;
        Some(Pid::from_raw(started.process.pid))
    }

    /// Whether it runs, or its end is just being written down.
    pub fn is_running(&self) -> bool {
        let is_alive = |it: &Started| it.process.is_alive() || it.shim.is_alive();
        self.ended.is_none() && self.started.as_ref().is_some_and(is_alive)
    }
}

/// Lets a pod's namespaces go.
pub fn release_namespaces(pod: &Path) {
    for kind in launcher::POD_NAMESPACES {
        let _ = umount2(&pod.join(kind), MntFlags::MNT_DETACH);
    }
}

/// Removes a pod's folder with its namespaces.
pub fn remove_namespaces(pod: &Path) {
    release_namespaces(pod);
    let _ = fs::remove_dir_all(pod);
}

/// When a process was started, in ticks since boot.
fn ticks(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold anything, so that fields are counted from its closing bracket; a zombie is gone.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    (*fields.first()? != "Z").then(|| fields.get(19)?.parse().ok())?
}

fn read<T: for<'a> Deserialize<'a>>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// Writes a file as a whole or not at all.
fn write<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, serde_json::to_vec(value)?)?;
    fs::rename(new, path)
}
