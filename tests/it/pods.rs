//! Real containers: pods that run, are reached, survive the agent, and leave nothing behind.

use std::process::Command;

use crate::cluster::{Cluster, has_kubectl};

pub fn is_root() -> bool {
    let is_root = nix::unistd::geteuid().is_root();
    if !is_root {
        eprintln!("SKIPPED: containers need root");
    }
    is_root
}

/// What howdah has in the kernel: mounts, links, processes beside containers.
fn traces(cluster: &Cluster) -> Vec<String> {
    let folder = cluster.folder().display().to_string();
    let mounts = std::fs::read_to_string("/proc/mounts").expect("mounts");
    let mut found: Vec<String> = mounts.lines().filter(|it| it.contains(&folder)).map(str::to_owned).collect();
    let processes = Command::new("ps").args(["-eo", "args"]).output().expect("ps");
    found.extend(String::from_utf8_lossy(&processes.stdout).lines().filter(|it| it.contains("shim run") && it.contains(&folder)).map(str::to_owned));
    found
}

#[test]
fn pods_run_are_reached_and_survive_kill_9_of_the_agent() {
    if !has_kubectl() || !is_root() {
        return;
    }
    let mut cluster = Cluster::start(&[]);
    let (created, output) = cluster.kubectl("create deployment web --image=howdah/hello:1 --replicas=3");
    assert!(created, "{output}");
    cluster.eventually("get deployment web -o jsonpath={.status.readyReplicas}", "3");
    let (_, pods) = cluster.kubectl("get pods -o jsonpath={.items[*].metadata.name}");
    let first = pods.split_whitespace().next().expect("a pod").to_owned();

    let (_, log) = cluster.kubectl(&format!("logs {first}"));
    assert_eq!(log.trim(), format!("{first} listens on port 8080"));
    let (ran, output) = cluster.kubectl(&format!("exec {first} -- /howdah --version"));
    assert!(ran && output.starts_with("howdah "), "{output}");
    let (ran, output) = cluster.kubectl(&format!("exec {first} -- /howdah image import /nothing"));
    assert!(!ran && output.contains("command terminated with exit code 1"), "{output}");

    cluster.kubectl("expose deployment web --port=80 --target-port=8080");
    let (answered, output) = cluster.kubectl("get --raw /api/v1/namespaces/default/services/web:80/proxy/");
    assert!(answered && pods.contains(output.trim()), "{output}");

    cluster.crash_and_restart();
    cluster.eventually("get deployment web -o jsonpath={.status.readyReplicas}", "3");
    assert_eq!(cluster.kubectl("get pods -o jsonpath={.items[*].metadata.name}").1, pods);
    assert_eq!(cluster.kubectl("get pods -o jsonpath={.items[*].status.containerStatuses[0].restartCount}").1, "0 0 0");
    let (_, log) = cluster.kubectl(&format!("logs {first}"));
    assert_eq!(log.trim(), format!("{first} listens on port 8080"));

    assert!(!traces(&cluster).is_empty());
    let (deleted, output) = cluster.kubectl("delete deployment web --wait");
    assert!(deleted, "{output}");
    cluster.eventually("get pods -o name", "");
    assert_eq!(traces(&cluster), Vec::<String>::new());
}

const FAILING: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: once}
spec:
  restartPolicy: Never
  containers:
  - name: c
    image: howdah/hello:1
    command: ["/howdah", "image", "import", "/nothing"]
    securityContext: {runAsUser: 1000, readOnlyRootFilesystem: true, allowPrivilegeEscalation: false, capabilities: {drop: ["ALL"]}, seccompProfile: {type: RuntimeDefault}}
    resources: {limits: {cpu: 100m, memory: 64Mi}}
"#;

#[test]
fn a_container_that_ends_says_how() {
    if !has_kubectl() || !is_root() {
        return;
    }
    let cluster = Cluster::start(&["--store", "memory"]);
    let (created, output) = cluster.kubectl_with("create -f -", FAILING);
    assert!(created, "{output}");
    cluster.eventually("get pod once -o jsonpath={.status.phase}", "Failed");
    cluster.eventually("get pod once -o jsonpath={.status.containerStatuses[0].state.terminated.exitCode}", "1");
    let (_, output) = cluster.kubectl("logs once");
    assert!(output.starts_with("howdah: "), "{output}");
    // Nor does one run as it must not.
    let (created, output) = cluster.kubectl_with("create -f -", &FAILING.replace("once", "apart").replace("spec:\n", "spec:\n  hostUsers: false\n"));
    assert!(created, "{output}");
    cluster.eventually(
        "get events --field-selector involvedObject.name=apart,reason=FailedCreatePodSandBox -o jsonpath={.items[*].message}",
        "Failed to create pod sandbox: can't set `spec.hostUsers: false`, runtime does not support user namespaces",
    );
}
