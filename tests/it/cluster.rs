//! A cluster of the real program for a test, on a port and in a folder of its own.

use std::{
    io::{BufRead, BufReader},
    net::TcpListener,
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use crate::postgres::kept::Kept;

/// How long a cluster may take to start on a busy machine.
const START_WITHIN: Duration = Duration::from_secs(60);

pub struct Cluster {
    folder: tempfile::TempDir,
    port: u16,
    arguments: Vec<String>,
    process: Kept,
}

impl Cluster {
    pub fn start(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let port = TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a free port").port();
        let arguments: Vec<String> = arguments.iter().map(|it| it.to_string()).collect();
        let process = launch(&folder, port, &arguments);
        Self { folder, port, arguments, process }
    }

    pub fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("admin.conf")
    }

    /// Imports an image archive into the node.
    pub fn import(&self, archive: &std::path::Path) {
        let data = self.folder.path().join("data");
        let done = Command::new(env!("CARGO_BIN_EXE_howdah")).args(["image", "import", "--data-dir"]).arg(data).arg(archive).output().expect("howdah");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }

    /// Kills the process as `kill -9` does, and starts it again on what it left.
    pub fn crash_and_restart(&mut self) {
        self.process.end("KILL");
        self.process = launch(&self.folder, self.port, &self.arguments);
    }

    /// Runs kubectl; its output, and whether it succeeded.
    pub fn kubectl(&self, arguments: &str) -> (bool, String) {
        self.kubectl_with(arguments, "")
    }

    pub fn kubectl_with(&self, arguments: &str, input: &str) -> (bool, String) {
        let mut child = Command::new(kubectl())
            .args(arguments.split_whitespace())
            .env("KUBECONFIG", self.kubeconfig())
            .env("KUBECACHEDIR", self.folder.path().join("cache"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kubectl");
        std::io::Write::write_all(&mut child.stdin.take().expect("stdin"), input.as_bytes()).expect("input");
        let output = child.wait_with_output().expect("kubectl ends");
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        (output.status.success(), text)
    }

    /// Runs kubectl until its output is `wanted`; fails the test when it never is.
    pub fn eventually(&self, arguments: &str, wanted: &str) {
        let began = Instant::now();
        let mut last = String::new();
        while began.elapsed() < START_WITHIN {
            last = self.kubectl(arguments).1;
            if last.trim() == wanted {
                return;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        panic!("kubectl {arguments}\n  wanted: {wanted}\n  got:    {last}");
    }
}

/// The kubectl that ./test unpacked, or the one on the PATH.
pub fn kubectl() -> String {
    std::env::var("HOWDAH_KUBECTL").unwrap_or_else(|_| "kubectl".to_owned())
}

/// Whether there is a kubectl at all; says loudly when there is none.
pub fn has_kubectl() -> bool {
    let found = Command::new(kubectl()).args(["version", "--client"]).output().is_ok_and(|it| it.status.success());
    if !found {
        eprintln!("SKIPPED: there is no kubectl on this machine");
    }
    found
}

/// Ends by SIGTERM, so that a clean end is part of every test.
fn launch(folder: &tempfile::TempDir, port: u16, arguments: &[String]) -> Kept {
    let mut command = Kept::command("TERM", env!("CARGO_BIN_EXE_howdah"));
    command
        .arg("up")
        .args(["--bind", &format!("127.0.0.1:{port}")])
        .arg("--data-dir")
        .arg(folder.path().join("data"))
        .arg("--kubeconfig")
        .arg(folder.path().join("admin.conf"))
        .args(arguments)
        .stdout(Stdio::piped());
    let mut process = Kept::start(command);
    let mut lines = BufReader::new(process.stdout()).lines();
    let began = Instant::now();
    loop {
        let line = lines.next().expect("the cluster starts").expect("text");
        if line.contains("Ctrl-C stops it") {
            break;
        }
        assert!(began.elapsed() < START_WITHIN, "the cluster does not start");
    }
    // What it prints at its end is for nobody.
    std::thread::spawn(move || lines.for_each(drop));
    process
}
