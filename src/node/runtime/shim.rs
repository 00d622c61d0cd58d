//! The shim: one process a container, that launches it, keeps its log and writes down its end. Single-threaded; started by the agent as
//! `howdah shim run DIR`, and for exec as `howdah shim exec DIR -- COMMAND`.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
    process::ExitCode,
};

use nix::{
    sched::{CloneFlags, setns, unshare},
    sys::wait::{WaitStatus, waitpid},
    unistd::{ForkResult, Pid, dup2_stderr, dup2_stdin, dup2_stdout, fork, setsid},
};

use super::{
    Ended, Process, Spec, Started, cgroup, launcher,
    log::{Lines, Log},
    read,
    streams::{SOCKET, Streams},
    terminal, write,
};
use crate::base::clock;

/// `MaxContainerTerminationMessageLength`, and `MaxContainerTerminationMessageLogLines` and `-LogLength` where the log stands for it.
const MESSAGE_MAX: usize = 4096;
const LOG_LINES: usize = 80;
const LOG_MAX: usize = 2048;
/// What a container that could not be started is said to have exited with.
const CANNOT_START: i32 = 128;

/// `shim run`: the whole life of a container.
pub fn run(folder: &Path) -> ExitCode {
    let ended = match launch(folder) {
        Ok(ended) => ended,
        Err(error) => Ended { code: CANNOT_START, is_oom_killed: false, error, message: String::new(), at: clock::now_rfc3339() },
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
    // A socket's path is short, so that it is bound from within its folder.
    std::env::set_current_dir(folder).map_err(text)?;
    let listener = UnixListener::bind(SOCKET).map_err(text)?;
    let (mut own, ends) = if spec.has_terminal { terminal_to_come()? } else { pipes(spec.has_stdin)? };
    let (mut problem, mut problem_end) = io::pipe().map_err(text)?;
    match spec.target {
        Some(pid) => {
            let namespace = File::open(format!("/proc/{pid}/ns/pid")).map_err(|_| "the target container is not running")?;
            setns(namespace.as_fd(), CloneFlags::CLONE_NEWPID).map_err(text)?;
        }
        None if spec.is_host_pid => (),
        None => unshare(CloneFlags::CLONE_NEWPID).map_err(text)?,
    }
    // SAFETY: this process has one thread, so that the child may do anything.
    let child = match unsafe { fork() }.map_err(text)? {
        ForkResult::Child => {
            drop((own, problem));
            let why = first_process(&spec, folder, ends);
            let _ = problem_end.write_all(why.as_bytes());
            // SAFETY: nothing of this process is to be cleaned up in the child.
            unsafe { libc::_exit(127) }
        }
        ForkResult::Parent { child } => child,
    };
    drop((ends, problem_end));
    let mut why = String::new();
    problem.read_to_string(&mut why).map_err(text)?;
    if !why.is_empty() {
        let _ = waitpid(child, None);
        return Err(why);
    }
    let started = Started { process: Process::of(child.as_raw()), shim: Process::of(std::process::id() as i32), at: clock::now_rfc3339() };
    write(&folder.join("state.json"), &started).map_err(text)?;
    own.receive_terminal()?;
    let is_stdin_once = spec.is_stdin_once;
    let streams = Streams { stdout: own.stdout, stderr: own.stderr, stdin: own.stdin, terminal: own.terminal, is_stdin_once, listener };
    streams.carry(&mut Log::new(&spec.log));
    let code = wait(child);
    let is_oom_killed = cgroup::oom_kills(&spec.cgroup) > 0;
    Ok(Ended { code, is_oom_killed, error: String::new(), message: last_word(&spec, code), at: clock::now_rfc3339() })
}

/// What the container left in its termination message, or the end of its log.
fn last_word(spec: &Spec, code: i32) -> String {
    let written = std::fs::read(&spec.termination_message).unwrap_or_default();
    if !written.is_empty() || code == 0 || !spec.falls_back_to_logs {
        return String::from_utf8_lossy(&written[..written.len().min(MESSAGE_MAX)]).into_owned();
    }
    let log = std::fs::read_to_string(&spec.log).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    let last: String = lines.iter().skip(lines.len().saturating_sub(LOG_LINES)).filter_map(|it| said(it)).collect();
    let start = (last.len().saturating_sub(LOG_MAX)..=last.len()).find(|it| last.is_char_boundary(*it)).unwrap_or(0);
    last[start..].to_owned()
}

/// What an entry of the log says: `TIME STREAM TAG TEXT`, where the tag P is of a line that does not end here.
fn said(entry: &str) -> Option<String> {
    let mut parts = entry.splitn(4, ' ').skip(2);
    let (tag, text) = (parts.next()?, parts.next()?);
    Some(if tag == "P" { text.to_owned() } else { format!("{text}\n") })
}

/// The shim's ends of the container's standard streams.
#[derive(Default)]
struct Own {
    stdout: Option<Lines>,
    stderr: Option<Lines>,
    stdin: Option<File>,
    terminal: Option<File>,
    /// Where the container's first process hands the terminal over that it has opened.
    handover: Option<UnixStream>,
}

impl Own {
    fn receive_terminal(&mut self) -> Result<(), String> {
        let Some(socket) = self.handover.take() else { return Ok(()) };
        let master = terminal::receive(&socket).map_err(text)?;
        let copy = || master.try_clone().map(File::from).map_err(text);
        (self.stdin, self.terminal) = (Some(copy()?), Some(copy()?));
        self.stdout = Some(Lines::new(master, "stdout"));
        Ok(())
    }
}

/// The container's: input, output and errors, or a terminal for all three, which only the container can open.
enum Ends {
    Pipes([OwnedFd; 3]),
    Terminal(UnixStream),
}

fn pipes(has_stdin: bool) -> Result<(Own, Ends), String> {
    let (out, out_end) = io::pipe().map_err(text)?;
    let (err, err_end) = io::pipe().map_err(text)?;
    let (stdin_end, stdin): (OwnedFd, _) = match has_stdin {
        true => io::pipe().map(|(end, own)| (end.into(), Some(File::from(OwnedFd::from(own))))).map_err(text)?,
        false => (File::open("/dev/null").map_err(text)?.into(), None),
    };
    let own = Own { stdout: Some(Lines::new(out.into(), "stdout")), stderr: Some(Lines::new(err.into(), "stderr")), stdin, ..Own::default() };
    Ok((own, Ends::Pipes([stdin_end, out_end.into(), err_end.into()])))
}

fn terminal_to_come() -> Result<(Own, Ends), String> {
    let (own, end) = UnixStream::pair().map_err(text)?;
    Ok((Own { handover: Some(own), ..Own::default() }, Ends::Terminal(end)))
}

fn become_streams([stdin, stdout, stderr]: [&OwnedFd; 3]) -> Result<(), String> {
    dup2_stdin(stdin).and_then(|()| dup2_stdout(stdout)).and_then(|()| dup2_stderr(stderr)).map_err(text)
}

/// Returns only when the container's command could not be run.
fn first_process(spec: &Spec, folder: &Path, ends: Ends) -> String {
    let prepared = (|| -> Result<(), String> {
        let _ = setsid();
        match ends {
            Ends::Pipes(streams) => {
                become_streams(streams.each_ref())?;
                launcher::enter(spec, folder)
            }
            Ends::Terminal(handover) => {
                launcher::enter(spec, folder)?;
                let (master, slave) = terminal::open(Path::new("/")).map_err(|why| format!("terminal: {why}"))?;
                become_streams([&slave; 3])?;
                terminal::control();
                terminal::send(&handover, &master).map_err(text)
            }
        }
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
    let joined = |kind: &str| File::open(format!("/proc/{}/ns/{kind}", started.process.pid)).map_err(|_| "the container is not running".to_owned());
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
                terminal::control();
            }
            eprintln!("{}", launcher::execute(&spec, arguments));
            // SAFETY: as above.
            unsafe { libc::_exit(126) }
        }
    }
}

