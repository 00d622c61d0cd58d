//! Control groups: version 1, as on machines with a legacy or hybrid hierarchy, and version 2.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::devices;

const ROOT: &str = "/sys/fs/cgroup";
const V1: [&str; 6] = ["memory", "cpu", "cpuacct", "pids", "devices", "freezer"];
const V2: [&str; 3] = ["memory", "cpu", "pids"];
/// Microseconds of a scheduling period.
const PERIOD: i64 = 100_000;
/// Processes in one container, so that a fork bomb stays in it.
const PIDS_MAX: u64 = 4096;
/// Nodes of any kind may be made; those of devices.rs may be used too.
const NODES: [&str; 2] = ["c *:* m", "b *:* m"];

/// What a container may use; absent is without limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes.
    pub memory: Option<i64>,
    /// Thousandths of a processor.
    pub cpu: Option<i64>,
    /// Thousandths of a processor that are promised.
    pub cpu_request: i64,
    pub has_all_devices: bool,
}

pub fn is_v2() -> bool {
    Path::new(ROOT).join("cgroup.controllers").exists()
}

/// The controllers that the kernel does not offer here.
pub fn missing_controllers() -> Vec<&'static str> {
    let offered = fs::read_to_string(format!("{ROOT}/cgroup.controllers")).unwrap_or_default();
    match is_v2() {
        true => V2.into_iter().filter(|it| !offered.split_whitespace().any(|has| has == *it)).collect(),
        false => V1.into_iter().filter(|it| !Path::new(ROOT).join(it).exists()).collect(),
    }
}

/// The directories of a group.
fn folders(group: &str) -> Vec<String> {
    if is_v2() { vec![format!("{ROOT}/{group}")] } else { V1.iter().map(|it| format!("{ROOT}/{it}/{group}")).collect() }
}

/// A directory after all those in it.
fn nested(folder: &Path) -> Vec<PathBuf> {
    let inner = fs::read_dir(folder).into_iter().flatten().flatten().map(|it| it.path()).filter(|it| it.is_dir());
    inner.flat_map(|it| nested(&it)).chain([folder.to_owned()]).collect()
}

/// What a container sees of its own group below `/sys/fs/cgroup`: the directory on the host, and its place there.
pub fn views(group: &str) -> Vec<(String, &'static str)> {
    if is_v2() { vec![(format!("{ROOT}/{group}"), "")] } else { V1.iter().map(|it| (format!("{ROOT}/{it}/{group}"), *it)).collect() }
}

/// Makes a container's group with its limits.
pub fn create(group: &str, limits: &Limits) -> io::Result<()> {
    create_shared(group, limits)?;
    let place = if is_v2() { format!("{ROOT}/{group}") } else { format!("{ROOT}/pids/{group}") };
    fs::write(format!("{place}/pids.max"), PIDS_MAX.to_string())?;
    match (limits.has_all_devices, is_v2()) {
        (true, _) => Ok(()),
        (false, true) => devices::restrict(&Path::new(ROOT).join(group)).map_err(|why| io::Error::other(format!("devices: {why}"))),
        (false, false) => restrict_v1(group),
    }
}

/// Makes a group for groups, or changes its limits.
pub fn create_shared(group: &str, limits: &Limits) -> io::Result<()> {
    if is_v2() { create_v2(group)? } else { folders(group).iter().try_for_each(fs::create_dir_all)? }
    set_limits(group, limits)
}

fn restrict_v1(group: &str) -> io::Result<()> {
    let set = |file: &str, value: &str| fs::write(format!("{ROOT}/devices/{group}/{file}"), value);
    set("devices.deny", "a")?;
    let listed = devices::ALLOWED.iter().map(|(major, minor)| format!("c {major}:{} rwm", minor.map_or_else(|| "*".to_owned(), |it| it.to_string())));
    NODES.iter().map(|it| (*it).to_owned()).chain(listed).try_for_each(|it| set("devices.allow", &it))
}

/// Sets or changes the limits of a group; what is not limited any more is set free.
pub fn set_limits(group: &str, limits: &Limits) -> io::Result<()> {
    if is_v2() {
        return set_limits_v2(group, limits);
    }
    let set = |controller: &str, file: &str, value: String| fs::write(format!("{ROOT}/{controller}/{group}/{file}"), value);
    set("memory", "memory.limit_in_bytes", limits.memory.unwrap_or(-1).to_string())?;
    set("cpu", "cpu.shares", shares(limits.cpu_request).to_string())?;
    set("cpu", "cpu.cfs_period_us", PERIOD.to_string())?;
    set("cpu", "cpu.cfs_quota_us", limits.cpu.map_or(-1, quota).to_string())
}

fn create_v2(group: &str) -> io::Result<()> {
    let mut path = Path::new(ROOT).to_owned();
    for part in Path::new(group).components() {
        // Controllers must be handed down level by level; those that the kernel lacks are left out.
        for controller in V2 {
            let _ = fs::write(path.join("cgroup.subtree_control"), format!("+{controller}"));
        }
        path.push(part);
        match fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => (),
        }
    }
    Ok(())
}

fn set_limits_v2(group: &str, limits: &Limits) -> io::Result<()> {
    let path = Path::new(ROOT).join(group);
    let is_missing = |it: &str| !path.join(it).exists();
    if ["memory.max", "cpu.max", "cpu.weight"].into_iter().any(is_missing) {
        // `up` has said that limits do not hold here.
        return Ok(());
    }
    let most = |it: Option<i64>| it.map_or_else(|| "max".to_owned(), |it| it.to_string());
    fs::write(path.join("memory.max"), most(limits.memory))?;
    // As the kubelet: no swap, and a container that runs out of memory ends as a whole. Kernels may lack either.
    let _ = fs::write(path.join("memory.swap.max"), "0");
    let _ = fs::write(path.join("memory.oom.group"), "1");
    fs::write(path.join("cpu.max"), format!("{} {PERIOD}", most(limits.cpu.map(quota))))?;
    // The map of shares (2 to 262,144) onto weights (1 to 10,000), as runc's.
    let weight = 1 + (shares(limits.cpu_request) - 2) * 9999 / 262_142;
    fs::write(path.join("cpu.weight"), weight.to_string())
}

/// `MilliCPUToShares`.
fn shares(millis: i64) -> u64 {
    (u64::try_from(millis).unwrap_or(0) * 1024 / 1000).clamp(2, 262_144)
}

/// `MilliCPUToQuota`: at least a millisecond of each period.
fn quota(millis: i64) -> i64 {
    (millis * PERIOD / 1000).max(1000)
}

/// Moves the calling process into a group.
pub fn join(group: &str) -> io::Result<()> {
    folders(group).iter().try_for_each(|it| fs::write(format!("{it}/cgroup.procs"), "0"))
}

/// Kills whatever runs in a group; the nameless one is everybody's.
pub fn kill_all(group: &str) {
    if group.is_empty() {
        return;
    }
    let place = folders(group).into_iter().next().unwrap_or_default();
    let processes = nested(Path::new(&place)).into_iter().map(|it| fs::read_to_string(it.join("cgroup.procs")).unwrap_or_default());
    for pid in processes.collect::<String>().lines().filter_map(|it| it.parse().ok()) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
    }
}

/// How often the kernel has killed something in the group for want of memory.
pub fn oom_kills(group: &str) -> u64 {
    let file = if is_v2() { format!("{ROOT}/{group}/memory.events") } else { format!("{ROOT}/memory/{group}/memory.oom_control") };
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines().find_map(|it| it.strip_prefix("oom_kill ")?.parse().ok()).unwrap_or(0)
}

/// The memory that a group uses and the kernel cannot easily take back (the working set).
pub fn memory_used(group: &str) -> i64 {
    let (used, stat, key) = match is_v2() {
        true => (format!("{ROOT}/{group}/memory.current"), format!("{ROOT}/{group}/memory.stat"), "inactive_file "),
        false => (format!("{ROOT}/memory/{group}/memory.usage_in_bytes"), format!("{ROOT}/memory/{group}/memory.stat"), "total_inactive_file "),
    };
    let used: i64 = fs::read_to_string(used).ok().and_then(|it| it.trim().parse().ok()).unwrap_or(0);
    let stat = fs::read_to_string(stat).unwrap_or_default();
    used - stat.lines().find_map(|it| it.strip_prefix(key)?.parse::<i64>().ok()).unwrap_or(0)
}

/// The seconds of processors that a group has used.
pub fn cpu_seconds(group: &str) -> f64 {
    let number = |text: &str| text.trim().parse::<f64>().ok();
    let used = match is_v2() {
        true => fs::read_to_string(format!("{ROOT}/{group}/cpu.stat")).ok().and_then(|it| it.lines().find_map(|it| number(it.strip_prefix("usage_usec ")?))).map(|it| it / 1e6),
        false => fs::read_to_string(format!("{ROOT}/cpuacct/{group}/cpuacct.usage")).ok().and_then(|it| number(&it)).map(|it| it / 1e9),
    };
    used.unwrap_or(0.0)
}

/// Removes a group with those in it, once their processes are gone; waits for that a moment.
pub fn remove(group: &str) {
    if group.is_empty() {
        return;
    }
    for folder in folders(group).iter().flat_map(|it| nested(Path::new(it))) {
        for _ in 0..50 {
            match fs::remove_dir(&folder) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => std::thread::sleep(Duration::from_millis(2)),
                _ => break,
            }
        }
    }
}
