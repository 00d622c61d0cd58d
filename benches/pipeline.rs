//! The whole HTTPS pipeline, one API server at a time on this machine: howdah on Postgres or SQLite, and, where they are at hand (`KUBE_APISERVER=path`,
//! and `ETCD=path` or on the PATH), upstream's kube-apiserver on etcd. The same clients ask both, and each figure is printed as a ratio too.
//!
//! `cargo bench --bench pipeline -- --pods 50000 --few 5000 --watchers 1000 --clients 1,64 --seconds 3 --store postgres`

#[path = "../tests/support/postgres.rs"]
#[allow(dead_code, reason = "shared with the tests of the whole program")]
mod database;

#[path = "../tests/support/etcd.rs"]
mod etcd;

#[path = "../tests/support/kube_apiserver.rs"]
mod kube_apiserver;

use std::{
    collections::HashMap,
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use howdah::{
    base::{
        clock,
        pki::{self, Identity, Rotating},
    },
    process::kubeconfig::Kubeconfig,
};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::{Value, json};

use crate::kube_apiserver::KubeApiserver;

const PODS: &str = "/api/v1/namespaces/default/pods";
/// Clients that make the pods, and pods that one client changes in turn.
const MAKERS: usize = 64;
const PODS_EACH: usize = 4;
/// Changes each second while the watchers' latency is measured, and clients that write as fast as they can while deliveries are counted.
const PACE: u32 = 20;
const WRITERS: usize = 8;
const LISTS: usize = 3;
const START_WITHIN: Duration = Duration::from_secs(120);
const JSON: &str = "application/json";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

struct Plan {
    few: usize,
    pods: usize,
    watchers: usize,
    clients: Vec<usize>,
    time: Duration,
    store: String,
}

fn main() {
    let mut plan = Plan { few: 5000, pods: 50_000, watchers: 1000, clients: vec![1, 64], time: Duration::from_secs(3), store: "postgres".to_owned() };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number = || arguments.next().and_then(|it| it.parse().ok()).expect("a number");
        match argument.as_str() {
            "--few" => plan.few = number(),
            "--pods" => plan.pods = number(),
            "--watchers" => plan.watchers = number(),
            "--seconds" => plan.time = Duration::from_secs(number() as u64),
            "--clients" => plan.clients = arguments.next().expect("clients").split(',').map(|it| it.parse().expect("a number")).collect(),
            "--store" => plan.store = arguments.next().expect("a store"),
            _ => (),
        }
    }
    // A connection for each watcher, on both ends.
    let (_, most) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).expect("a limit");
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, most, most).expect("a limit");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(run(&plan));
}

async fn run(plan: &Plan) {
    let folder = tempfile::tempdir().expect("a folder");
    let mut figures = Vec::new();
    if let Some(system) = howdah(&folder.path().join("howdah"), &plan.store).await {
        figures.push(measure(system, plan).await);
    }
    if let Some(system) = upstream(&folder.path().join("upstream")).await {
        figures.push(measure(system, plan).await);
    }
    println!("| {} pods, {} watchers | {} | times better |", plan.pods, plan.watchers, figures.iter().map(|it| it.name).collect::<Vec<_>>().join(" | "));
    println!("|---|{}---|", "---|".repeat(figures.len()));
    let Some((first, rest)) = figures.split_first() else { return };
    for (at, figure) in first.all.iter().enumerate() {
        let others: Vec<f64> = rest.iter().map(|it| it.all[at].value).collect();
        let cells: Vec<String> = std::iter::once(figure.value).chain(others.iter().copied()).map(shown).collect();
        let better = others.first().map(|it| if figure.is_rate { figure.value / it } else { it / figure.value });
        println!("| {} | {} | {} |", figure.what, cells.join(" | "), better.map_or(String::new(), |it| format!("{it:.1}")));
    }
}

fn shown(value: f64) -> String {
    if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

struct Figure {
    what: String,
    value: f64,
    /// More is better.
    is_rate: bool,
}

struct Figures {
    name: &'static str,
    all: Vec<Figure>,
}

impl Figures {
    fn rate(&mut self, what: String, value: f64) {
        self.add(what, value, true);
    }

    fn cost(&mut self, what: String, value: f64) {
        self.add(what, value, false);
    }

    fn add(&mut self, what: String, value: f64, is_rate: bool) {
        println!("{}: {what}: {}", self.name, shown(value));
        self.all.push(Figure { what, value, is_rate });
    }
}

/// Keeps what an API server stands on, for as long as it lives.
enum Beneath {
    Etcd(etcd::Etcd),
    Postgres(database::Server),
    Nothing,
}

/// An API server and its database.
struct System {
    name: &'static str,
    program: PathBuf,
    arguments: Vec<String>,
    log: PathBuf,
    port: u16,
    server: Option<Child>,
    beneath: Beneath,
    /// How its clients trust it and who they are; howdah has written that by the time it serves.
    credentials: Box<dyn Fn() -> Option<rustls::ClientConfig>>,
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a free port").port()
}

async fn howdah(folder: &Path, store: &str) -> Option<System> {
    fs::create_dir_all(folder).expect("a folder");
    let (store, beneath) = match store {
        "postgres" => {
            let server = database::Server::start(&[])?;
            (server.url("pipeline"), Beneath::Postgres(server))
        }
        other => (other.to_owned(), Beneath::Nothing),
    };
    let (port, kubeconfig) = (free_port(), folder.join("admin.conf"));
    let arguments = ["apiserver", "--store", &store, "--bind", &format!("127.0.0.1:{port}"), "--data-dir", &folder.display().to_string(), "--kubeconfig"];
    let arguments = arguments.iter().map(|it| (*it).to_owned()).chain([kubeconfig.display().to_string()]).collect();
    let credentials = Box::new(move || {
        let it = Kubeconfig::read(&kubeconfig).ok()?;
        pki::client_config(&it.authority, Some(Rotating::new(&it.credential).ok()?)).ok()
    });
    let (program, log) = (env!("CARGO_BIN_EXE_howdah").into(), folder.join("log"));
    Some(System { name: "howdah", program, arguments, log, port, server: None, beneath, credentials })
}

async fn upstream(folder: &Path) -> Option<System> {
    let KubeApiserver { program, arguments, port, authority, etcd } = KubeApiserver::prepare(folder).await?;
    let admin = authority.issue(&Identity::admin(), clock::now()).expect("a certificate");
    let credentials = Box::new(move || pki::client_config(authority.certificate(), Some(Rotating::new(&admin).ok()?)).ok());
    Some(System { name: "kube-apiserver", program, arguments, log: folder.join("log"), port, server: None, beneath: Beneath::Etcd(etcd), credentials })
}

impl System {
    /// Starts the server, and returns how long it took until it served its pods.
    async fn start(&mut self) -> Duration {
        let log = fs::File::options().create(true).append(true).open(&self.log).expect("a log");
        let began = Instant::now();
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).stdout(Stdio::null()).stderr(log);
        self.server = Some(command.spawn().expect("the server starts"));
        while began.elapsed() < START_WITHIN {
            if let Some(tls) = (self.credentials)() {
                let http = Http::new(self.port, tls);
                if http.is_ok("/readyz").await && http.is_ok("/api/v1/namespaces/default").await && http.is_ok(&format!("{PODS}?limit=1&resourceVersion=0")).await {
                    return began.elapsed();
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{} does not start: {}", self.name, fs::read_to_string(&self.log).unwrap_or_default());
    }

    fn kill(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _ = server.kill();
            let _ = server.wait();
        }
    }

    fn client(&self) -> Http {
        Http::new(self.port, (self.credentials)().expect("credentials"))
    }

    /// In MiB: the server's, and that of its database.
    fn memory(&self) -> (f64, f64) {
        let own = self.server.as_ref().map_or(0.0, |it| memory_of(it.id()));
        let beneath = match &self.beneath {
            Beneath::Etcd(it) => memory_of(it.process.id()),
            Beneath::Postgres(it) => it.pid().map_or(0.0, memory_of),
            Beneath::Nothing => 0.0,
        };
        (own, beneath)
    }
}

impl Drop for System {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The memory (PSS, MiB) of a process and all below it.
fn memory_of(root: u32) -> f64 {
    let numbers = |it: fs::DirEntry| it.file_name().to_string_lossy().parse::<u32>().ok();
    let parent = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/stat")).ok()?.rsplit_once(") ")?.1.split(' ').nth(1)?.parse::<u32>().ok();
    let parents: HashMap<u32, u32> = fs::read_dir("/proc").expect("/proc").flatten().filter_map(numbers).filter_map(|it| Some((it, parent(&it)?))).collect();
    let is_below = |pid: &u32| std::iter::successors(Some(*pid), |it| parents.get(it).copied()).any(|it| it == root);
    let pss = |pid: &u32| {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        text.lines().find_map(|it| it.strip_prefix("Pss:")?.trim().trim_end_matches(" kB").parse::<f64>().ok()).unwrap_or_default()
    };
    parents.keys().filter(|it| is_below(it)).map(|it| pss(it)).sum::<f64>() / 1024.0
}

/// A client with connections of its own.
#[derive(Clone)]
struct Http {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    base: String,
}

impl Http {
    fn new(port: u16, tls: rustls::ClientConfig) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_only().enable_http1().wrap_connector(tcp);
        Self { client: Client::builder(TokioExecutor::new()).build(connector), base: format!("https://127.0.0.1:{port}") }
    }

    async fn send(&self, method: &str, path: &str, accept: &str, body: String) -> Option<http::Response<Incoming>> {
        let request = http::Request::builder().method(method).uri(format!("{}{path}", self.base)).header("accept", accept).header("content-type", JSON);
        self.client.request(request.body(Full::from(body)).expect("a request")).await.ok()
    }

    async fn is_ok(&self, path: &str) -> bool {
        self.send("GET", path, JSON, String::new()).await.is_some_and(|it| it.status().is_success())
    }

    /// A write that must succeed: the object.
    async fn write(&self, method: &str, path: &str, body: String) -> Bytes {
        let answer = self.send(method, path, JSON, body).await.expect("an answer");
        let status = answer.status();
        let bytes = answer.into_body().collect().await.expect("a body").to_bytes();
        assert!(status.is_success(), "{method} {path}: {status} {}", String::from_utf8_lossy(&bytes));
        bytes
    }

    /// How long a list takes to its last byte.
    async fn list(&self, accept: &str) -> Duration {
        let began = Instant::now();
        let answer = self.send("GET", PODS, accept, String::new()).await.expect("an answer");
        assert!(answer.status().is_success(), "{}", answer.status());
        let mut body = answer.into_body();
        while let Some(frame) = body.frame().await {
            frame.expect("a whole list");
        }
        began.elapsed()
    }
}

/// The value of the first member of this name, which is a string.
fn text_of<'a>(json: &'a [u8], name: &str) -> Option<&'a str> {
    let found = after(json, format!("\"{name}\":\"").as_bytes())?;
    let rest = &json[found..];
    std::str::from_utf8(&rest[..rest.iter().position(|it| *it == b'"')?]).ok()
}

/// Where what follows `part` begins.
fn after(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len()).position(|it| it == part).map(|it| it + part.len())
}

/// A pod as one client keeps it to change it.
struct Pod {
    name: String,
    spec: String,
    revision: String,
}

fn spec() -> Value {
    let variables: Vec<Value> = (0..12).map(|it| json!({"name": format!("VARIABLE_{it}"), "value": format!("the value of variable {it}")})).collect();
    let probe = json!({"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 10});
    let limits = json!({"cpu": "100m", "memory": "128Mi"});
    let container = json!({"name": "web", "image": "registry.example.com/team/web:1.2.3", "env": variables, "ports": [{"containerPort": 8080}],
        "livenessProbe": probe, "readinessProbe": probe, "resources": {"limits": limits, "requests": limits}});
    json!({"containers": [container], "automountServiceAccountToken": false})
}

/// Makes pods `from..to`; some of them are returned for those who change them.
async fn fill(system: &System, from: usize, to: usize, keep: usize) -> Vec<Pod> {
    let (next, kept) = (Arc::new(AtomicU64::new(from as u64)), Arc::new(Mutex::new(Vec::new())));
    let mut makers = tokio::task::JoinSet::new();
    let spec: Arc<str> = spec().to_string().into();
    for _ in 0..MAKERS {
        let (http, next, kept, spec) = (system.client(), next.clone(), kept.clone(), spec.clone());
        makers.spawn(async move {
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed) as usize;
                if at >= to {
                    return;
                }
                let name = format!("pod-{at:06}");
                let body = format!(r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"{name}","labels":{{"app":"web"}}}},"spec":{spec}}}"#);
                let made = http.write("POST", PODS, body).await;
                if kept.lock().expect("the kept").len() < keep {
                    let object: Value = serde_json::from_slice(&made).expect("JSON");
                    let revision = object["metadata"]["resourceVersion"].as_str().expect("a revision").to_owned();
                    kept.lock().expect("the kept").push(Pod { name, spec: object["spec"].to_string(), revision });
                }
            }
        });
    }
    makers.join_all().await;
    std::mem::take(&mut *kept.lock().expect("the kept"))
}

/// Changes a pod; the change says when it was made, in microseconds since `began`.
async fn change(http: &Http, pod: &mut Pod, began: Instant) {
    let (name, revision, spec, at) = (&pod.name, &pod.revision, &pod.spec, began.elapsed().as_micros());
    let metadata = format!(r#"{{"name":"{name}","namespace":"default","resourceVersion":"{revision}","labels":{{"app":"web"}},"annotations":{{"at":"{at}"}}}}"#);
    let body = format!(r#"{{"apiVersion":"v1","kind":"Pod","metadata":{metadata},"spec":{spec}}}"#);
    let changed = http.write("PUT", &format!("{PODS}/{name}"), body).await;
    pod.revision = text_of(&changed, "resourceVersion").expect("a revision").to_owned();
}

/// `count` clients, each as fast as it can, on pods of its own, which are given back. Returns changes per second and the sorted times.
async fn update(system: &System, pods: &mut Vec<Pod>, count: usize, time: Duration, began: Instant) -> (f64, Vec<Duration>) {
    let mut clients = tokio::task::JoinSet::new();
    let start = Instant::now();
    for _ in 0..count {
        let (http, mut own) = (system.client(), pods.split_off(pods.len() - PODS_EACH));
        clients.spawn(async move {
            let mut took = Vec::new();
            for at in 0.. {
                if start.elapsed() >= time {
                    break;
                }
                let sent = Instant::now();
                let place = at % own.len();
                change(&http, &mut own[place], began).await;
                took.push(sent.elapsed());
            }
            (own, took)
        });
    }
    let mut all = Vec::new();
    for (own, took) in clients.join_all().await {
        pods.extend(own);
        all.extend(took);
    }
    all.sort_unstable();
    (all.len() as f64 / start.elapsed().as_secs_f64(), all)
}

/// What all watchers have seen.
#[derive(Default)]
struct Seen {
    events: AtomicU64,
    is_timed: AtomicBool,
    is_over: AtomicBool,
    opened: AtomicU64,
    late: Mutex<Vec<u64>>,
}

/// Follows all pods, and goes on where a server ended it.
async fn watch(http: Http, mut revision: String, began: Instant, seen: Arc<Seen>) {
    while !seen.is_over.load(Ordering::Relaxed) {
        let Some(answer) = http.send("GET", &format!("{PODS}?watch=1&resourceVersion={revision}"), JSON, String::new()).await else { continue };
        seen.opened.fetch_add(1, Ordering::Relaxed);
        let (mut body, mut line) = (answer.into_body(), Vec::new());
        while let Some(Ok(frame)) = body.frame().await {
            for part in frame.data_ref().map_or(&[][..], |it| it).split_inclusive(|it| *it == b'\n') {
                line.extend_from_slice(part);
                if part.ends_with(b"\n") {
                    if let Some(its) = text_of(&line, "resourceVersion") {
                        revision.replace_range(.., its);
                    }
                    note(&line, began, &seen);
                    line.clear();
                }
            }
        }
    }
}

fn note(line: &[u8], began: Instant, seen: &Seen) {
    seen.events.fetch_add(1, Ordering::Relaxed);
    if seen.is_timed.load(Ordering::Relaxed)
        && let Some(at) = text_of(line, "at").and_then(|it| it.parse::<u64>().ok())
    {
        let late = (began.elapsed().as_micros() as u64).saturating_sub(at);
        seen.late.lock().expect("the times").push(late);
    }
}

/// Watchers of all pods: first while some are changed now and then, then while they are changed as fast as it goes.
async fn deliver(system: &System, pods: &mut Vec<Pod>, plan: &Plan, began: Instant, figures: &mut Figures) {
    let seen = Arc::new(Seen::default());
    let list = system.client().write("GET", &format!("{PODS}?limit=1"), String::new()).await;
    let revision = text_of(&list, "resourceVersion").expect("a revision").to_owned();
    let watchers: Vec<_> = (0..plan.watchers).map(|_| tokio::spawn(watch(system.client(), revision.clone(), began, seen.clone()))).collect();
    while (seen.opened.load(Ordering::Relaxed) as usize) < plan.watchers {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let http = system.client();
    change(&http, &mut pods[0], began).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    seen.is_timed.store(true, Ordering::Relaxed);
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / PACE);
    for at in 0..(plan.time.as_secs() as usize * PACE as usize) {
        ticks.tick().await;
        let place = at % pods.len();
        change(&http, &mut pods[place], began).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    seen.is_timed.store(false, Ordering::Relaxed);
    let mut late = std::mem::take(&mut *seen.late.lock().expect("the times"));
    late.sort_unstable();
    let at = |part: usize| late.get(late.len() * part / 100).map_or(f64::NAN, |it| *it as f64 / 1000.0);
    let what = |part: usize| format!("a change to {} watchers at {PACE}/s, p{part}, ms", plan.watchers);
    figures.cost(what(50), at(50));
    figures.cost(what(99), at(99));
    let (before, start, ends) = (seen.events.load(Ordering::Relaxed), Instant::now(), seen.opened.load(Ordering::Relaxed));
    update(system, pods, WRITERS, plan.time, began).await;
    let events = seen.events.load(Ordering::Relaxed) - before;
    figures.rate(format!("deliveries/s to {} watchers", plan.watchers), events as f64 / start.elapsed().as_secs_f64());
    println!("{}: {} watches were ended", system.name, seen.opened.load(Ordering::Relaxed) - ends);
    seen.is_over.store(true, Ordering::Relaxed);
    watchers.iter().for_each(tokio::task::JoinHandle::abort);
}

async fn lists(system: &System, count: usize, figures: &mut Figures) {
    for (form, name) in [(JSON, "JSON"), (PROTOBUF, "protobuf")] {
        let mut took = Vec::new();
        for _ in 0..LISTS {
            took.push(system.client().list(form).await);
        }
        took.sort_unstable();
        figures.cost(format!("list of {count} pods in {name}, s"), took[LISTS / 2].as_secs_f64());
    }
}

async fn measure(mut system: System, plan: &Plan) -> Figures {
    let mut figures = Figures { name: system.name, all: Vec::new() };
    let began = Instant::now();
    figures.cost("start of a new cluster, s".to_owned(), system.start().await.as_secs_f64());
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}).to_string();
    system.client().write("POST", "/api/v1/namespaces/default/serviceaccounts", account).await;
    let keep = plan.clients.iter().copied().fold(WRITERS, usize::max) * PODS_EACH;
    let mut pods = fill(&system, 0, plan.few.max(keep), keep).await;
    lists(&system, plan.few, &mut figures).await;
    let start = Instant::now();
    fill(&system, plan.few.max(keep), plan.pods, 0).await;
    figures.rate(format!("pods made/s by {MAKERS} clients"), (plan.pods - plan.few) as f64 / start.elapsed().as_secs_f64());
    lists(&system, plan.pods, &mut figures).await;
    for count in &plan.clients {
        let (rate, took) = update(&system, &mut pods, *count, plan.time, began).await;
        figures.rate(format!("pod updates/s by {count} clients"), rate);
        figures.cost(format!("pod updates by {count} clients, p99, ms"), took.get(took.len() * 99 / 100).map_or(f64::NAN, |it| it.as_secs_f64() * 1000.0));
    }
    let (own, beneath) = system.memory();
    figures.cost(format!("memory of the API server with {} pods, MiB", plan.pods), own);
    figures.cost("memory with its database's, MiB".to_owned(), own + beneath);
    deliver(&system, &mut pods, plan, began, &mut figures).await;
    system.kill();
    figures.cost(format!("start with {} pods, s", plan.pods), system.start().await.as_secs_f64());
    figures
}
