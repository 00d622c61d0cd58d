//! The README's tour does what it says: its lines are run here.

use std::{
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use crate::{
    cluster::{Cluster, has_kubectl, kubectl},
    pods::is_root,
};

/// People take longer between two lines than a Service needs to reach its first pod.
const WITHIN: Duration = Duration::from_secs(20);

/// The lines of the README's first block of shell that begins with `start`.
fn block(start: &str) -> impl Iterator<Item = &'static str> {
    let readme = include_str!("../../README.md");
    let found = readme.split("```sh\n").skip(1).find(|it| it.starts_with(start)).expect("the block");
    found.split("```").next().unwrap_or_default().lines().filter(|it| !it.is_empty())
}

fn shell(cluster: &Cluster, line: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", &line.replace("kubectl ", &format!("{} ", kubectl()))]).env("KUBECONFIG", cluster.kubeconfig()).stdin(Stdio::null());
    command
}

fn succeeds(cluster: &Cluster, line: &str) -> String {
    let began = Instant::now();
    loop {
        let output = shell(cluster, line).output().expect("sh");
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        if output.status.success() {
            return text;
        }
        assert!(began.elapsed() < WITHIN, "{line}\n{text}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// What a line leaves running behind a `&`.
struct Behind(Child);

impl Drop for Behind {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_tour_can_be_taken() {
    if !has_kubectl() || !is_root() {
        return;
    }
    let cluster = Cluster::start(&[]);
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a free port").port();
    let mut behind = Vec::new();
    let mut count = 0;
    for line in block("export KUBECONFIG").filter(|it| it.starts_with("kubectl ")) {
        count += 1;
        let (line, comment) = line.split_once(" #").unwrap_or((line, ""));
        let Some(started) = line.trim_end().strip_suffix('&') else {
            succeeds(&cluster, line);
            continue;
        };
        let forward = format!("exec {}", started.replace("8080:80", &format!("{port}:80")));
        behind.push(Behind(shell(&cluster, &forward).stdout(Stdio::null()).spawn().expect("sh")));
        let then = comment.split_once("then: ").expect("what to do then").1.replace("localhost:8080", &format!("127.0.0.1:{port}"));
        assert!(succeeds(&cluster, &then).contains("web-"), "{then}");
    }
    assert!(count > 10, "{count} lines");
    cluster.eventually("get deployments,services -l app=web -o name", "");
}
