//! Launches a process in a container: namespaces, mounts, identity, capabilities, seccomp, then exec. Runs in single-threaded
//! processes only. Facts: runc's `libcontainer/rootfs_linux.go` and `init_linux.go`, Docker's default seccomp profile.

use std::{
    collections::VecDeque,
    ffi::{CString, OsString},
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    path::{Component, Path, PathBuf},
};

use nix::{
    fcntl::{OFlag, OpenHow, ResolveFlag, openat2},
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns},
    sys::{
        stat::{Mode, SFlag, makedev, mknod},
        statvfs::FsFlags,
    },
};

use super::{Mount, Spec, User, cgroup};

/// The namespaces that the containers of a pod share.
pub const POD_NAMESPACES: [&str; 3] = ["net", "ipc", "uts"];
const NO_DEVICES: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
const MASKED: [&str; 10] = [
    "/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats",
    "/proc/sched_debug", "/sys/firmware",
];
/// What Docker's default profile keeps from a container, on x86-64 and arm64 alike.
const DENIED: &[libc::c_long] = &[
    libc::SYS_acct, libc::SYS_add_key, libc::SYS_bpf, libc::SYS_clock_adjtime, libc::SYS_clock_settime, libc::SYS_delete_module, libc::SYS_finit_module,
    libc::SYS_init_module, libc::SYS_kexec_load, libc::SYS_keyctl, libc::SYS_mbind, libc::SYS_mount, libc::SYS_move_pages, libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at, libc::SYS_perf_event_open, libc::SYS_pivot_root, libc::SYS_quotactl, libc::SYS_reboot, libc::SYS_request_key,
    libc::SYS_set_mempolicy, libc::SYS_setns, libc::SYS_settimeofday, libc::SYS_swapon, libc::SYS_swapoff, libc::SYS_umount2, libc::SYS_unshare,
    libc::SYS_userfaultfd, libc::SYS_vhangup, libc::SYS_fsopen, libc::SYS_fsmount, libc::SYS_move_mount, libc::SYS_open_tree,
];

/// As many links are followed as by the kernel.
const LINKS_MAX: usize = 40;

type Result<T> = std::result::Result<T, String>;

fn failed<E: std::fmt::Display>(what: impl std::fmt::Display) -> impl FnOnce(E) -> String {
    move |why| format!("{what}: {why}")
}

/// The part of a container's first process: everything from the fork to the exec. `folder` is the container's.
pub fn enter(spec: &Spec, folder: &Path) -> Result<()> {
    // Not every root may make a process safer than itself; then it stays as safe as this one.
    let _ = fs::write("/proc/self/oom_score_adj", spec.oom_score_adj.to_string());
    cgroup::join(&spec.cgroup).map_err(failed("cgroup"))?;
    join_namespaces(spec)?;
    nix::sched::unshare(CloneFlags::CLONE_NEWNS).map_err(failed("unshare"))?;
    let root = mount_root(spec, folder)?;
    for it in &spec.mounts {
        bind_mount(&root, it)?;
    }
    change_root(&root)?;
    protect(spec)?;
    Ok(())
}

fn join_namespaces(spec: &Spec) -> Result<()> {
    for path in &spec.namespaces {
        let file = fs::File::open(path).map_err(failed(path.display()))?;
        setns(file.as_fd(), CloneFlags::empty()).map_err(failed("setns"))?;
    }
    Ok(())
}

/// A path of a root's own below it on the host: `..` and links lead to where they lead in that root, never out of it (`SecureJoin`).
pub fn inside(root: &Path, target: &Path) -> io::Result<PathBuf> {
    let mut left: VecDeque<OsString> = target.components().map(|it| it.as_os_str().to_owned()).collect();
    let (mut path, mut links) = (root.to_owned(), 0);
    while let Some(part) = left.pop_front() {
        match Path::new(&part).components().next() {
            Some(Component::ParentDir) if path != root => _ = path.pop(),
            Some(Component::Normal(part)) => path.push(part),
            Some(Component::RootDir) => root.clone_into(&mut path),
            _ => continue,
        }
        let Some(link) = fs::read_link(&path).ok().filter(|_| path != root) else { continue };
        links += 1;
        if links > LINKS_MAX {
            return Err(io::Error::from_raw_os_error(libc::ELOOP));
        }
        path.pop();
        link.components().rev().for_each(|it| left.push_front(it.as_os_str().to_owned()));
    }
    Ok(path)
}

/// Holds what is at `path` below `root`, without following a link that somebody has put there meanwhile. Its name is of this process.
fn hold(root: &Path, path: &Path) -> Result<(OwnedFd, PathBuf)> {
    let below = path.strip_prefix(root).map_err(failed(path.display()))?;
    let below = if below.as_os_str().is_empty() { Path::new(".") } else { below };
    let folder = fs::File::open(root).map_err(failed(root.display()))?;
    let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    let held = openat2(&folder, below, how).map_err(failed(path.display()))?;
    let name = PathBuf::from(format!("/proc/self/fd/{}", held.as_raw_fd()));
    Ok((held, name))
}

/// Mounts a volume, or a part of it, where the container wants it.
fn bind_mount(root: &Path, it: &Mount) -> Result<()> {
    let held = it.within.as_ref().map(|volume| hold(volume, &it.source)).transpose()?;
    let source = held.as_ref().map_or(it.source.as_path(), |it| it.1.as_path());
    let target = inside(root, Path::new(&it.target)).map_err(failed(&it.target))?;
    make_place(source, &target)?;
    let (none, held) = (None::<&str>, hold(root, &target)?);
    mount(Some(source), &held.1, none, MsFlags::MS_BIND | MsFlags::MS_REC, none).map_err(failed(format!("mount {}", target.display())))?;
    if it.is_read_only {
        make_read_only(&hold(root, &target)?.1)?;
    }
    Ok(())
}

fn mount_kind(kind: &str, target: &Path, flags: MsFlags, data: &str) -> Result<()> {
    fs::create_dir_all(target).map_err(failed(target.display()))?;
    mount(Some(kind), target, Some(kind), flags, Some(data).filter(|it| !it.is_empty())).map_err(failed(format!("mount {}", target.display())))
}

/// The overlay of the image's layers with a writable one, and what every container finds in it.
fn mount_root(spec: &Spec, folder: &Path) -> Result<PathBuf> {
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none).map_err(failed("making mounts private"))?;
    let [root, upper, work] = ["root", "upper", "work"].map(|it| folder.join(it));
    for path in [&root, &upper, &work] {
        fs::create_dir_all(path).map_err(failed(path.display()))?;
    }
    let layers: Vec<String> = spec.layers.iter().map(|it| it.display().to_string()).collect();
    let data = format!("lowerdir={},upperdir={},workdir={}", layers.join(":"), upper.display(), work.display());
    mount(Some("overlay"), &root, Some("overlay"), MsFlags::empty(), Some(data.as_str())).map_err(failed("overlay"))?;
    mount_kind("proc", &root.join("proc"), NO_DEVICES, "")?;
    mount_kind("tmpfs", &root.join("dev"), MsFlags::MS_NOSUID | MsFlags::MS_STRICTATIME, "mode=755,size=65536k")?;
    mount_kind("devpts", &root.join("dev/pts"), MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5")?;
    mount_kind("tmpfs", &root.join("dev/shm"), NO_DEVICES, "mode=1777,size=65536k")?;
    mount_kind("mqueue", &root.join("dev/mqueue"), NO_DEVICES, "")?;
    let sys = if spec.is_privileged { NO_DEVICES } else { NO_DEVICES | MsFlags::MS_RDONLY };
    mount_kind("sysfs", &root.join("sys"), sys, "")?;
    own_cgroup(spec, &root)?;
    devices(&root)?;
    Ok(root)
}

/// The container's own control group, to read: runtimes of languages look there for their limits.
fn own_cgroup(spec: &Spec, root: &Path) -> Result<()> {
    let place = root.join("sys/fs/cgroup");
    let views = cgroup::views(&spec.cgroup);
    if views.len() > 1 {
        mount_kind("tmpfs", &place, NO_DEVICES, "mode=755")?;
    }
    for (source, name) in views {
        bind_to_read(Path::new(&source), &if name.is_empty() { place.clone() } else { place.join(name) })?;
    }
    Ok(())
}

fn devices(root: &Path) -> Result<()> {
    for (name, major, minor) in [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)] {
        let path = root.join("dev").join(name);
        mknod(&path, SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(major, minor)).map_err(failed(path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).map_err(failed(path.display()))?;
    }
    let links = [("ptmx", "pts/ptmx"), ("fd", "/proc/self/fd"), ("stdin", "/proc/self/fd/0"), ("stdout", "/proc/self/fd/1"), ("stderr", "/proc/self/fd/2")];
    links.iter().try_for_each(|(name, target)| std::os::unix::fs::symlink(target, root.join("dev").join(name))).map_err(failed("/dev"))
}

/// A directory or an empty file, as `source` is, for something to be mounted on.
fn make_place(source: &Path, target: &Path) -> Result<()> {
    let made = match fs::metadata(source).map_err(failed(source.display()))?.is_dir() {
        true => fs::create_dir_all(target),
        false if target.exists() => Ok(()),
        false => target.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(target, "")),
    };
    made.map_err(failed(target.display()))
}

fn make_read_only(target: &Path) -> Result<()> {
    // Flags that the mount has must be named again, or the kernel takes the wish for an attempt to lose them.
    let flags = nix::sys::statvfs::statvfs(target).map_err(failed(target.display()))?.flags();
    let kept = [(FsFlags::ST_NOSUID, MsFlags::MS_NOSUID), (FsFlags::ST_NODEV, MsFlags::MS_NODEV), (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC)];
    let kept = kept.iter().filter(|it| flags.contains(it.0)).fold(MsFlags::empty(), |all, it| all | it.1);
    let none = None::<&str>;
    mount(none, target, none, MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | kept, none).map_err(failed(format!("remount {}", target.display())))
}

/// Mounts a directory of the host at `target`, which is made, to be read.
fn bind_to_read(source: &Path, target: &Path) -> Result<()> {
    let none = None::<&str>;
    make_place(source, target)?;
    mount(Some(source), target, none, MsFlags::MS_BIND | MsFlags::MS_REC, none).map_err(failed(format!("mount {}", target.display())))?;
    make_read_only(target)
}

fn change_root(root: &Path) -> Result<()> {
    std::env::set_current_dir(root).map_err(failed(root.display()))?;
    nix::unistd::pivot_root(".", ".").map_err(failed("pivot_root"))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(failed("umount"))?;
    std::env::set_current_dir("/").map_err(failed("/"))
}

/// Takes away what a container must not see or change.
fn protect(spec: &Spec) -> Result<()> {
    let none = None::<&str>;
    if !spec.is_privileged {
        for path in READ_ONLY.iter().filter(|it| mount(Some(**it), **it, none, MsFlags::MS_BIND | MsFlags::MS_REC, none).is_ok()) {
            mount(none, *path, none, MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | NO_DEVICES, none).map_err(failed(path))?;
        }
        for path in MASKED {
            match fs::metadata(path) {
                Ok(it) if it.is_dir() => mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::MS_RDONLY, Some("size=0")).map_err(failed(path))?,
                Ok(_) => mount(Some("/dev/null"), path, none, MsFlags::MS_BIND, none).map_err(failed(path))?,
                Err(_) => (),
            }
        }
    }
    if spec.is_read_only {
        mount(none, "/", none, MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, none).map_err(failed("/"))?;
    }
    Ok(())
}

/// Becomes the container's user with its rights, and runs `arguments`. Returns only the reason why that failed.
pub fn execute(spec: &Spec, arguments: &[String]) -> String {
    let ready = become_user(spec).inspect(|()| die_with_parent());
    match ready.and_then(|()| exec(spec, arguments)) {
        Ok(never) => match never {},
        Err(why) => why,
    }
}

fn become_user(spec: &Spec) -> Result<()> {
    let directory = if spec.directory.is_empty() { "/" } else { &spec.directory };
    if std::env::set_current_dir(directory).is_err() {
        fs::create_dir_all(directory).and_then(|()| std::env::set_current_dir(directory)).map_err(failed(directory))?;
    }
    let User { uid, gid, groups } = spec.user.clone();
    let capabilities = spec.capabilities;
    own_streams(uid);
    // SAFETY: plain system calls on values and live buffers; this process has one thread.
    unsafe {
        for bit in (0..=40u64).filter(|it| capabilities >> it & 1 == 0) {
            libc::prctl(libc::PR_CAPBSET_DROP, bit, 0, 0, 0);
        }
        libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0);
        if libc::setgroups(groups.len(), groups.as_ptr()) != 0 || libc::setresgid(gid, gid, gid) != 0 || libc::setresuid(uid, uid, uid) != 0 {
            return Err(failed("setting the user")(io::Error::last_os_error()));
        }
        libc::prctl(libc::PR_SET_KEEPCAPS, 0, 0, 0, 0);
    }
    set_capabilities(if uid == 0 { capabilities } else { 0 })?;
    if spec.no_new_privileges {
        // SAFETY: no pointers.
        unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    }
    if spec.seccomp && !spec.is_privileged { apply_seccomp() } else { Ok(()) }
}

/// Lets the user open `/dev/stdout` and the like again: pipes and terminals are of the user, the host's `/dev/null` is not (runc `fixStdioPermissions`).
fn own_streams(uid: u32) {
    for stream in [io::stdin().as_fd(), io::stdout().as_fd(), io::stderr().as_fd()] {
        if nix::sys::stat::fstat(stream).is_ok_and(|it| it.st_rdev != makedev(1, 3)) {
            let _ = nix::unistd::fchown(stream, Some(uid.into()), None);
        }
    }
}

/// `capset`, version 3: effective and permitted, nothing inheritable; of what is asked for, that which the machine has to give.
fn set_capabilities(bits: u64) -> Result<()> {
    let header = [0x2008_0522u32, 0];
    let mut data = [[0u32; 3]; 2];
    // SAFETY: the kernel fills the two live arrays, which have the layout that it wants.
    if unsafe { libc::syscall(libc::SYS_capget, header.as_ptr(), data.as_mut_ptr()) } != 0 {
        return Err(failed("capget")(io::Error::last_os_error()));
    }
    let (low, high) = (bits as u32 & data[0][1], (bits >> 32) as u32 & data[1][1]);
    let data = [[low, low, 0], [high, high, 0]];
    // SAFETY: the kernel reads the two live arrays.
    let done = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) };
    if done == 0 { Ok(()) } else { Err(failed("capset")(io::Error::last_os_error())) }
}

/// A process whose parent is gone is killed: without its shim a container would be deaf, without its caller an exec endless.
/// A change of user forgets this wish, so that it comes after.
fn die_with_parent() {
    // SAFETY: no pointers.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) };
}

fn apply_seccomp() -> Result<()> {
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
    let rules = DENIED.iter().map(|it| (*it, Vec::new())).collect();
    let arch = std::env::consts::ARCH.try_into().map_err(failed("seccomp"))?;
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(libc::EPERM as u32), arch).map_err(failed("seccomp"))?;
    let program: BpfProgram = filter.try_into().map_err(failed("seccomp"))?;
    seccompiler::apply_filter(&program).map_err(failed("seccomp"))
}

fn exec(spec: &Spec, arguments: &[String]) -> Result<std::convert::Infallible> {
    let text = |it: &String| CString::new(it.as_bytes()).map_err(failed("a zero byte"));
    let program = arguments.first().ok_or("no command specified")?;
    let values = arguments.iter().map(text).collect::<Result<Vec<_>>>()?;
    let environment = spec.environment.iter().map(text).collect::<Result<Vec<_>>>()?;
    let path = spec.environment.iter().find_map(|it| it.strip_prefix("PATH=")).unwrap_or("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    let places: Vec<String> = if program.contains('/') { vec![program.clone()] } else { path.split(':').map(|it| format!("{it}/{program}")).collect() };
    let mut last = nix::errno::Errno::ENOENT;
    for place in &places {
        match nix::unistd::execve(&text(place)?, &values, &environment) {
            Err(nix::errno::Errno::ENOENT) => (),
            Err(other) => last = other,
            Ok(never) => return Ok(never),
        }
    }
    Err(match last {
        nix::errno::Errno::ENOENT if !program.contains('/') => format!("exec: {program:?}: executable file not found in $PATH"),
        other => format!("exec: {program:?}: {}", other.desc().to_lowercase()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_in_their_root() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path();
        fs::create_dir_all(root.join("run/x")).expect("folders");
        fs::create_dir_all(root.join("var")).expect("folders");
        for (link, target) in [("var/run", "/run"), ("var/up", "../../../../etc"), ("var/near", "run/x"), ("loop", "loop")] {
            std::os::unix::fs::symlink(target, root.join(link)).expect("a link");
        }
        let cases = [
            ("/a/b", Some("a/b")),
            ("/var/run/secrets", Some("run/secrets")),
            ("../../etc", Some("etc")),
            ("/var/up/passwd", Some("etc/passwd")),
            ("/var/near/../y", Some("run/y")),
            ("/loop/a", None),
            ("/", Some("")),
        ];
        for (target, expected) in cases {
            assert_eq!(inside(root, Path::new(target)).ok(), expected.map(|it| if it.is_empty() { root.to_owned() } else { root.join(it) }), "{target}");
        }
    }
}
