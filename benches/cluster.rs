//! What a cluster costs: how fast it is up and runs pods, what it needs when nothing happens, how fast many pods become ready.
//!
//! `cargo bench --bench cluster`, as root for the parts that run containers. Prints figures beside their goals and, where it was measured on a
//! machine of the same kind (2 cores), what upstream's components without kubelet and runtime take.

use std::{
    fs,
    net::TcpListener,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Node, Pod},
};
use kube::{
    Api, Client, Config,
    api::{DeleteParams, ListParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::json;

const LOOK_EVERY: Duration = Duration::from_millis(10);
const GIVE_UP: Duration = Duration::from_secs(120);
/// A cluster settles for this long, and is then measured for so long.
const SETTLE: Duration = Duration::from_secs(10);
const IDLE: Duration = Duration::from_secs(30);
const PODS: usize = 1000;
const NODES: usize = 100;
const TICKS_PER_SECOND: f64 = 100.0;

/// A cluster of the program that was built for this benchmark.
struct Cluster {
    folder: tempfile::TempDir,
    process: Child,
    began: Instant,
}

impl Cluster {
    fn start(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let port = TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a free port").port();
        let began = Instant::now();
        let mut command = Command::new(env!("CARGO_BIN_EXE_howdah"));
        command.arg("up").args(["--bind", &format!("127.0.0.1:{port}")]).arg("--data-dir").arg(folder.path().join("data"));
        command.arg("--kubeconfig").arg(folder.path().join("admin.conf")).args(arguments).stdout(Stdio::null());
        Self { process: command.spawn().expect("howdah starts"), folder, began }
    }

    /// A client, as soon as there is a kubeconfig.
    async fn client(&self) -> Client {
        let path = self.folder.path().join("admin.conf");
        loop {
            if let Ok(kubeconfig) = Kubeconfig::read_from(&path) {
                let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.expect("a configuration");
                return Client::try_from(config).expect("a client");
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// This process and those that keep its containers; not the containers.
    fn processes(&self) -> Vec<u32> {
        let folder = self.folder.path().display().to_string();
        let entries = fs::read_dir("/proc").expect("/proc").flatten();
        let pids = entries.filter_map(|it| it.file_name().to_string_lossy().parse().ok());
        let is_own = |pid: &u32| *pid == self.process.id() || fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|it| it.contains("shim\0run") && it.contains(&folder));
        pids.filter(is_own).collect()
    }

    fn memory_mib(&self) -> f64 {
        let pss = |pid: &u32| {
            let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
            text.lines().find_map(|it| it.strip_prefix("Pss:")?.trim().trim_end_matches(" kB").parse::<f64>().ok()).unwrap_or(0.0)
        };
        self.processes().iter().map(pss).sum::<f64>() / 1024.0
    }

    fn cpu_seconds(&self) -> f64 {
        let ticks = |pid: &u32| {
            let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let fields = text.rsplit_once(')').map(|it| it.1.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).unwrap_or_default();
            [11, 12].iter().filter_map(|at| fields.get(*at)?.parse::<f64>().ok()).sum::<f64>()
        };
        self.processes().iter().map(ticks).sum::<f64>() / TICKS_PER_SECOND
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-TERM", &self.process.id().to_string()]).status();
        let _ = self.process.wait();
    }
}

/// Looks until something is so; `None` when it never is.
async fn until(began: Instant, is_so: impl AsyncFn() -> bool) -> Option<f64> {
    while began.elapsed() < GIVE_UP {
        if is_so().await {
            return Some(began.elapsed().as_secs_f64());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    None
}

fn row(what: &str, found: Option<f64>, unit: &str, goal: f64, peer: &str) {
    let found_text = found.map_or("never".to_owned(), |it| format!("{it:.2} {unit}"));
    let verdict = if found.is_some_and(|it| it <= goal) { "" } else { "  MISSED" };
    println!("{what:52} {found_text:>12}   goal {goal} {unit}{}{verdict}", if peer.is_empty() { String::new() } else { format!("   upstream {peer}") });
}

fn is_ready(node: &Node) -> bool {
    node.status.iter().flat_map(|it| it.conditions.iter().flatten()).any(|it| it.type_ == "Ready" && it.status == "True")
}

async fn one_node() {
    let cluster = Cluster::start(&[]);
    let client = cluster.client().await;
    let (nodes, pods): (Api<Node>, Api<Pod>) = (Api::all(client.clone()), Api::default_namespaced(client));
    let api = until(cluster.began, async || nodes.list(&ListParams::default()).await.is_ok()).await;
    let node = until(cluster.began, async || nodes.list(&ListParams::default()).await.is_ok_and(|it| it.items.iter().any(is_ready))).await;
    let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "first"}, "spec": {"containers": [{"name": "c", "image": "howdah/hello:1"}]}})).expect("a Pod");
    until(cluster.began, async || pods.create(&PostParams::default(), &pod).await.is_ok()).await;
    let is_running = async || pods.get("first").await.is_ok_and(|it| it.status.is_some_and(|it| it.phase.as_deref() == Some("Running")));
    let running = until(cluster.began, is_running).await;
    row("up to an API that answers", api, "s", 2.0, "4.6 s");
    row("up to a node that is ready", node, "s", 2.0, "");
    row("up to a pod that runs", running, "s", 3.0, "");
    tokio::time::sleep(SETTLE).await;
    let (before, began) = (cluster.cpu_seconds(), Instant::now());
    tokio::time::sleep(IDLE).await;
    row("memory (PSS) when idle, with one pod", Some(cluster.memory_mib()), "MiB", 100.0, "514 MB");
    row("processor when idle, with one pod", Some((cluster.cpu_seconds() - before) / began.elapsed().as_secs_f64() * 100.0), "%", 1.0, "5.5 %");
    let _ = pods.delete("first", &DeleteParams::default()).await;
}

async fn many_pods() {
    let nodes = NODES.to_string();
    let cluster = Cluster::start(&["--node", "none", "--simulated-nodes", &nodes]);
    let client = cluster.client().await;
    let (nodes, deployments): (Api<Node>, Api<Deployment>) = (Api::all(client.clone()), Api::default_namespaced(client));
    until(cluster.began, async || nodes.list(&ListParams::default()).await.is_ok_and(|it| it.items.len() == NODES)).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let web = json!({"metadata": {"name": "web"}, "spec": {"replicas": PODS, "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "howdah/hello:1"}]}}}});
    let began = Instant::now();
    deployments.create(&PostParams::default(), &serde_json::from_value(web).expect("a Deployment")).await.expect("created");
    let ready = async || deployments.get("web").await.is_ok_and(|it| it.status.and_then(|it| it.ready_replicas) == i32::try_from(PODS).ok());
    let took = until(began, ready).await;
    row(&format!("{PODS} pods of a Deployment ready on {NODES} simulated nodes"), took, "s", 3.0, "");
    row("memory (PSS) with them", Some(cluster.memory_mib()), "MiB", 300.0, "");
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        if nix::unistd::geteuid().is_root() {
            one_node().await;
        } else {
            println!("SKIPPED: containers need root");
        }
        many_pods().await;
    });
}
