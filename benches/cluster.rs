//! What a cluster costs: how fast it is up and runs pods, what it needs when nothing happens, how fast many pods become ready.
//!
//! `cargo bench --bench cluster`, as root for the parts that run containers; with `-- node`, `-- pods` or `-- crds` only that part. Prints figures beside their goals and, where it was measured on a
//! machine of the same kind (2 cores), what upstream's components without kubelet and runtime take.

use std::{
    fs,
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher},
    net::TcpListener,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Node, Pod},
};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api, Client, Config,
    api::{ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Map, Value, json};

const LOOK_EVERY: Duration = Duration::from_millis(10);
const GIVE_UP: Duration = Duration::from_secs(120);
/// A cluster settles for this long, and is then measured for so long.
const SETTLE: Duration = Duration::from_secs(10);
const IDLE: Duration = Duration::from_secs(30);
const PODS: usize = 1000;
const NODES: usize = 100;
const CRDS: usize = 500;
/// Watchers may still read what happened in the last five minutes.
const FORGET: Duration = Duration::from_secs(330);
const STEP: usize = 100;
const CRD_GROUP: &str = "bench.example.com";
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

/// What descriptions are made of.
const WORDS: &str = "the of a to and in is for that it with as be this on by are from or an which not at can has if when will may all only one \
    value field name resource controller object specified default must should used cluster namespace pod container volume service secret \
    configuration reference optional maximum minimum number list set key certificate endpoint policy status condition update applied until";

/// As many words as a field's description has, others for each seed.
fn prose(seed: &str) -> String {
    let words: Vec<&str> = WORDS.split_whitespace().collect();
    let chosen = |at: usize| words[BuildHasherDefault::<DefaultHasher>::default().hash_one((seed, at)) as usize % words.len()];
    (0..20).map(chosen).collect::<Vec<_>>().join(" ")
}

/// A definition such as operators bring: some 45 kB of fields with descriptions, bounds, list maps and a few rules. No two sections are told
/// alike, so that what is kept packed shrinks no more than real ones do.
fn definition(number: usize) -> Value {
    let section = |at: usize| section(&format!("{number} {at}"));
    let sections: Map<String, Value> = (0..10).map(|it| (format!("section{it}"), section(it))).collect();
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": sections}, "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}});
    json!({
        "metadata": {"name": format!("things{number}.{CRD_GROUP}")},
        "spec": {
            "group": CRD_GROUP, "scope": "Namespaced", "names": {"plural": format!("things{number}"), "kind": format!("Thing{number}")},
            "versions": [{"name": "v1", "served": true, "storage": true, "subresources": {"status": {}}, "schema": {"openAPIV3Schema": schema}}],
        },
    })
}

fn section(seed: &str) -> Value {
    let text = |it: &str| json!({"type": "string", "maxLength": 253, "description": prose(&format!("{seed} {it}"))});
    let selector = json!({"type": "object", "x-kubernetes-map-type": "atomic", "properties": {"name": text("name"), "key": text("key"), "optional": {"type": "boolean"}}, "required": ["key"]});
    let item = json!({"type": "object", "required": ["name"], "properties": {"name": text("name"), "value": text("value"), "from": {"type": "object", "properties": {"secret": selector, "config": selector}}}});
    json!({"type": "object", "description": "A part of the whole that can be set by itself.", "properties": {
        "image": text("image"), "mode": {"type": "string", "enum": ["Always", "Never", "Auto"], "default": "Auto"}, "replicas": {"type": "integer", "format": "int32", "minimum": 0, "maximum": 100},
        "limits": {"type": "object", "additionalProperties": {"x-kubernetes-int-or-string": true, "pattern": "^[0-9]+(m|Mi|Gi)?$"}},
        "labels": {"type": "object", "additionalProperties": text("label")}, "schedule": {"type": "string", "pattern": "^[^ ]+$"}, "enabled": {"type": "boolean", "default": true},
        "env": {"type": "array", "maxItems": 20, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"], "items": item},
        "tls": {"type": "object", "properties": {"ca": selector, "cert": selector, "key": selector}}, "args": {"type": "array", "items": text("arg")},
    }, "x-kubernetes-validations": [{"rule": "!has(self.replicas) || self.replicas < 100 || self.mode != 'Never'", "message": "too many"}]})
}

/// Definitions that come one by one: what each takes while there are more and more, and what an object of each adds.
async fn many_definitions() {
    let cluster = Cluster::start(&["--node", "none"]);
    let client = cluster.client().await;
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    until(cluster.began, async || definitions.list(&ListParams::default()).await.is_ok()).await;
    tokio::time::sleep(SETTLE).await;
    let resource = |number: usize| ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(CRD_GROUP, "v1", &format!("Thing{number}")), &format!("things{number}"));
    let things = |number: usize| Api::<DynamicObject>::default_namespaced_with(client.clone(), &resource(number));
    println!("a definition has {} bytes", definition(0).to_string().len());
    let (start, mut before) = (cluster.memory_mib(), cluster.memory_mib());
    let per_object = |now: f64, then: f64, count: usize| Some((now - then) * 1024.0 / count as f64);
    for first in (0..CRDS).step_by(STEP) {
        let began = Instant::now();
        for number in first..first + STEP {
            let definition = serde_json::from_value(definition(number)).expect("a definition");
            definitions.create(&PostParams::default(), &definition).await.expect("created");
            until(began, async || things(number).list(&ListParams::default()).await.is_ok()).await;
        }
        let took = began.elapsed().as_secs_f64() * 1000.0 / STEP as f64;
        row(&format!("definitions {first} to {}, each until served", first + STEP), Some(took), "ms", 100.0, "");
        tokio::time::sleep(SETTLE).await;
        row("memory for each of them", per_object(cluster.memory_mib(), before, STEP), "kB", 100.0, "");
        before = cluster.memory_mib();
    }
    tokio::time::sleep(FORGET).await;
    before = cluster.memory_mib();
    row("memory for each definition, all", per_object(before, start, CRDS), "kB", 100.0, "");
    let began = Instant::now();
    for number in 0..CRDS {
        let thing = DynamicObject::new("one", &resource(number)).data(json!({"spec": {"section0": {"replicas": 3, "env": [{"name": "a", "value": "b"}]}}}));
        things(number).create(&PostParams::default(), &thing).await.expect("created");
    }
    row("the first object of a definition", Some(began.elapsed().as_secs_f64() * 1000.0 / CRDS as f64), "ms", 20.0, "");
    tokio::time::sleep(SETTLE).await;
    row("memory for each definition with an object", per_object(cluster.memory_mib(), start, CRDS), "kB", 300.0, "");
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let wanted = std::env::args().nth(1).filter(|it| !it.starts_with('-'));
        let is_wanted = |part: &str| wanted.as_ref().is_none_or(|it| it == part);
        match nix::unistd::geteuid().is_root() {
            true if is_wanted("node") => one_node().await,
            true => (),
            false => println!("SKIPPED: containers need root"),
        }
        if is_wanted("pods") {
            many_pods().await;
        }
        if is_wanted("crds") {
            many_definitions().await;
        }
    });
}
