//! The shim: one process a container, that launches it, keeps its log and writes down its end. Single-threaded; started by the agent as
//! `howdah shim run DIR`, and for exec as `howdah shim exec DIR -- COMMAND`.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    process::ExitCode,
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, setns, unshare},
    sys::wait::{WaitStatus, waitpid},
    unistd::{ForkResult, Pid, dup2_stderr, dup2_stdin, dup2_stdout, fork, setsid},
};

use super::{Ended, Spec, Started, cgroup, launcher, read, ticks, write};
use crate::base::clock;

/// A log file is put aside when it reaches this (`containerLogMaxSize`), and this many are kept (`containerLogMaxFiles`).
const LOG_MAX: u64 = 10 << 20;
const LOGS_KEPT: u32 = 5;
/// The longest line of a log that is written in one piece, as containerd's.
const LINE_MAX: usize = 16 << 10;
/// What a container that could not be started is said to have exited with.
const CANNOT_START: i32 = 128;

/// `shim run`: the whole life of a container.
pub fn run(folder: &Path) -> ExitCode {
    let ended = match launch(folder) {
        Ok(ended) => ended,
        Err(error) => Ended { code: CANNOT_START, is_oom_killed: false, error, at: clock::now_rfc3339() },
    };
    match write(&folder.join("exit.json"), &ended) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn launch(folder: &Path) -> Result<Ended, String> {
    let _ = setsid();
    let spec: Spec = read(&folder.join("spec.json")).ok_or("the container has no specification")?;
    cgroup::create(&spec.cgroup, &spec.limits).map_err(|why| format!("cgroup: {why}"))?;
    let (out, out_end) = io::pipe().map_err(text)?;
    let (err, err_end) = io::pipe().map_err(text)?;
    let (mut problem, mut problem_end) = io::pipe().map_err(text)?;
    if !spec.is_host_pid {
        unshare(CloneFlags::CLONE_NEWPID).map_err(text)?;
    }
    // SAFETY: this process has one thread, so that the child may do anything.
    let child = match unsafe { fork() }.map_err(text)? {
        ForkResult::Child => {
            drop((out, err, problem));
            let why = first_process(&spec, folder, out_end.into(), err_end.into());
            let _ = problem_end.write_all(why.as_bytes());
            // SAFETY: nothing of this process is to be cleaned up in the child.
            unsafe { libc::_exit(127) }
        }
        ForkResult::Parent { child } => child,
    };
    drop((out_end, err_end, problem_end));
    let mut why = String::new();
    problem.read_to_string(&mut why).map_err(text)?;
    if !why.is_empty() {
        let _ = waitpid(child, None);
        return Err(why);
    }
    let started = Started { pid: child.as_raw(), ticks: ticks(child.as_raw()).unwrap_or(0), at: clock::now_rfc3339() };
    write(&folder.join("state.json"), &started).map_err(text)?;
    Log::new(&spec.log).copy(out.into(), err.into());
    let code = wait(child);
    let is_oom_killed = cgroup::oom_kills(&spec.cgroup) > 0;
    Ok(Ended { code, is_oom_killed, error: String::new(), at: clock::now_rfc3339() })
}

/// Returns only when the container's command could not be run.
fn first_process(spec: &Spec, folder: &Path, out: OwnedFd, err: OwnedFd) -> String {
    let prepared = (|| -> Result<(), String> {
        let _ = setsid();
        let null = File::open("/dev/null").map_err(text)?;
        dup2_stdin(&null).map_err(text)?;
        dup2_stdout(&out).map_err(text)?;
        dup2_stderr(&err).map_err(text)?;
        launcher::enter(spec, folder)
    })();
    match prepared {
        Ok(()) => launcher::execute(spec, &spec.arguments),
        Err(why) => why,
    }
}

fn wait(child: Pid) -> i32 {
    loop {
        match waitpid(child, None) {
            Ok(WaitStatus::Exited(_, code)) => return code,
            Ok(WaitStatus::Signaled(_, signal, _)) => return 128 + signal as i32,
            Err(nix::errno::Errno::EINTR) | Ok(_) => (),
            Err(_) => return 255,
        }
    }
}

/// `shim exec`: runs a command in a running container, with this process' own standard streams. Its exit code is the command's.
pub fn exec(folder: &Path, has_terminal: bool, arguments: &[String]) -> ExitCode {
    match run_in(folder, has_terminal, arguments) {
        Ok(code) => ExitCode::from(u8::try_from(code & 0xff).unwrap_or(u8::MAX)),
        Err(why) => {
            eprintln!("{why}");
            ExitCode::from(126)
        }
    }
}

fn run_in(folder: &Path, has_terminal: bool, arguments: &[String]) -> Result<i32, String> {
    let spec: Spec = read(&folder.join("spec.json")).ok_or("the container is gone")?;
    let started: Started = read(&folder.join("state.json")).ok_or("the container is not running")?;
    let joined = |kind: &str| File::open(format!("/proc/{}/ns/{kind}", started.pid)).map_err(|_| "the container is not running".to_owned());
    let namespaces = ["ipc", "uts", "net", "pid", "mnt"].map(joined);
    cgroup::join(&spec.cgroup).map_err(|why| format!("cgroup: {why}"))?;
    for namespace in namespaces {
        setns(namespace?.as_fd(), CloneFlags::empty()).map_err(text)?;
    }
    // SAFETY: this process has one thread.
    match unsafe { fork() }.map_err(text)? {
        ForkResult::Parent { child } => Ok(wait(child)),
        ForkResult::Child => {
            let _ = setsid();
            if has_terminal {
                // SAFETY: standard input is the terminal that the agent has opened.
                unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) };
            }
            eprintln!("{}", launcher::execute(&spec, arguments));
            // SAFETY: as above.
            unsafe { libc::_exit(126) }
        }
    }
}

/// A container's log in the format of CRI: `time stream F|P text`.
struct Log {
    path: PathBuf,
    file: Option<File>,
    size: u64,
}

impl Log {
    fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), file: None, size: 0 }
    }

    /// Copies both streams until both have ended.
    fn copy(&mut self, out: OwnedFd, err: OwnedFd) {
        let mut streams = [Some(Lines::new(out, "stdout")), Some(Lines::new(err, "stderr"))];
        while streams.iter().any(Option::is_some) {
            let Some(ready) = ready(&streams) else { continue };
            for at in ready {
                let is_open = streams[at].as_mut().is_some_and(|it| it.read(self));
                if !is_open {
                    streams[at] = None;
                }
            }
        }
    }

    fn write(&mut self, stream: &str, tag: char, line: &[u8]) {
        if self.size > LOG_MAX {
            self.rotate();
        }
        if self.file.is_none() {
            self.file = fs::OpenOptions::new().create(true).append(true).open(&self.path).ok();
            self.size = self.file.as_ref().and_then(|it| it.metadata().ok()).map_or(0, |it| it.len());
        }
        let now = clock::now().strftime("%Y-%m-%dT%H:%M:%S.%9fZ").to_string();
        let mut record = format!("{now} {stream} {tag} ").into_bytes();
        record.extend_from_slice(line);
        record.push(b'\n');
        self.size += record.len() as u64;
        if let Some(file) = &mut self.file {
            let _ = file.write_all(&record);
        }
    }

    fn rotate(&mut self) {
        let aside = |number: u32| PathBuf::from(format!("{}.{number}", self.path.display()));
        for number in (1..LOGS_KEPT - 1).rev() {
            let _ = fs::rename(aside(number), aside(number + 1));
        }
        let _ = fs::rename(&self.path, aside(1));
        self.file = None;
        self.size = 0;
    }
}

/// The places of the streams that have something to read; waits for one.
fn ready(streams: &[Option<Lines>]) -> Option<Vec<usize>> {
    let places: Vec<usize> = (0..streams.len()).filter(|at| streams[*at].is_some()).collect();
    let mut fds: Vec<PollFd<'_>> = streams.iter().flatten().map(|it| PollFd::new(it.file.as_fd(), PollFlags::POLLIN)).collect();
    poll(&mut fds, PollTimeout::NONE).ok()?;
    let is_ready = |fd: &PollFd<'_>| fd.revents().is_some_and(|it| !it.is_empty());
    Some(places.into_iter().zip(&fds).filter(|(_, fd)| is_ready(fd)).map(|(at, _)| at).collect())
}

/// One stream, cut into lines.
struct Lines {
    file: File,
    stream: &'static str,
    pending: Vec<u8>,
}

impl Lines {
    fn new(fd: OwnedFd, stream: &'static str) -> Self {
        Self { file: fd.into(), stream, pending: Vec::new() }
    }

    /// Reads what is there into the log; `false` at the end.
    fn read(&mut self, log: &mut Log) -> bool {
        let mut buffer = [0u8; LINE_MAX];
        let count = match self.file.read(&mut buffer) {
            Ok(0) | Err(_) => {
                if !self.pending.is_empty() {
                    log.write(self.stream, 'F', &std::mem::take(&mut self.pending));
                }
                return false;
            }
            Ok(count) => count,
        };
        for part in buffer[..count].split_inclusive(|it| *it == b'\n') {
            match part.strip_suffix(b"\n") {
                Some(end) => {
                    self.pending.extend_from_slice(end);
                    log.write(self.stream, 'F', &std::mem::take(&mut self.pending));
                }
                None => self.pending.extend_from_slice(part),
            }
            if self.pending.len() >= LINE_MAX {
                log.write(self.stream, 'P', &std::mem::take(&mut self.pending));
            }
        }
        true
    }
}
