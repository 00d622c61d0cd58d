//! Whole requests out of our own OpenAPI documents, most of them wrong, into the whole API server: none may panic, none be answered with a 5xx.
//!
//! `HOWDAH_FUZZ=1000000 cargo bench --bench fuzz` (the number of requests; `HOWDAH_SEED` repeats a run). In this process, on the memory store.

use std::{
    collections::BTreeMap,
    env,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use howdah::{
    api::{Body, Server, body, identity::{MASTERS, User}},
    base::Tasks,
    process::{
        apiserver::{ApiServer, Options, StoreKind},
        network::Wanted,
        slot,
    },
};
use http_body_util::BodyExt;
use serde_json::{Map, Value, json};

#[path = "../tests/support/dice.rs"]
mod dice;

use dice::{Dice, broken, torn};

const SEED: u64 = 88_172_645_463_325_252;
const TASKS: u64 = 8;
/// No answer takes this long, watches not counted, whose answer has begun by then.
const ANSWER_WITHIN: Duration = Duration::from_secs(90);
const BODY_MOST: usize = 1 << 20;
/// Schemas are followed so deep, then only what is required.
const DEPTH: usize = 5;
/// What these write would turn others' requests away, or ask servers that are not there, rightly with a 5xx: they are dry runs.
const TURN_AWAY: [&str; 6] = ["webhookconfigurations", "apiservices", "flowschemas", "prioritylevelconfigurations", "admissionpolicies", "admissionpolicybindings"];
/// What stands behind these is a node or a pod, and there is none.
const CONNECT: [&str; 5] = ["/proxy", "/exec", "/attach", "/portforward", "/log"];

/// One operation of the documents.
struct Operation {
    method: &'static str,
    path: String,
    parameters: Vec<String>,
    /// Of the body; null where there is none.
    schema: Value,
    document: Arc<Value>,
}

/// The objects that tests take to be valid, by kind.
fn bases() -> BTreeMap<String, Vec<Value>> {
    let mut all = BTreeMap::<String, Vec<Value>>::new();
    for text in include_str!("../tests/it/validation/objects.yaml").split("\n---\n") {
        let object: Value = serde_saphyr::from_str(text).expect("YAML");
        all.entry(object["kind"].as_str().unwrap_or_default().to_owned()).or_default().push(object);
    }
    all
}

struct Fuzz {
    server: Arc<Server>,
    operations: Vec<Operation>,
    bases: BTreeMap<String, Vec<Value>>,
    statuses: [AtomicUsize; 600],
    left: AtomicUsize,
}

async fn get(server: &Arc<Server>, path: &str) -> Value {
    let request = http::Request::builder().uri(path).header("accept", "application/json").body(body::full("")).expect("a request");
    let response = send(server, request).await;
    serde_json::from_slice(&response.into_body().collect().await.expect("a body").to_bytes()).expect("JSON")
}

async fn send(server: &Arc<Server>, request: http::Request<Body>) -> http::Response<Body> {
    let mut service = server.in_process(&User::system("fuzz", &[MASTERS]));
    match tower::Service::call(&mut service, request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

async fn operations(server: &Arc<Server>) -> Vec<Operation> {
    let index = get(server, "/openapi/v3").await;
    let mut all = Vec::new();
    for place in index["paths"].as_object().expect("paths").values() {
        let document = Arc::new(get(server, place["serverRelativeURL"].as_str().expect("a place")).await);
        for (path, item) in document["paths"].as_object().into_iter().flatten() {
            all.extend(["get", "post", "put", "patch", "delete"].into_iter().filter_map(|method| operation(&document, path, item, method)));
        }
    }
    all
}

fn operation(document: &Arc<Value>, path: &str, item: &Value, method: &'static str) -> Option<Operation> {
    let own = item.get(method)?;
    let names = [item, own].into_iter().flat_map(|it| it["parameters"].as_array().into_iter().flatten());
    let parameters = names.filter(|it| it["in"] == "query").filter_map(|it| it["name"].as_str().map(str::to_owned)).collect();
    let schema = |of: &Value| of["requestBody"]["content"].as_object().and_then(|it| it.values().next()).map(|it| it["schema"].clone());
    let schema = if method == "patch" { schema(&item["put"]) } else { schema(own) }.unwrap_or_default();
    Some(Operation { method, path: path.to_owned(), parameters, schema, document: document.clone() })
}

const NAMES: [&str; 10] = ["a", "b", "web", "default", "kube-system", "system:node", "A_", "..", "x%2Fy", "v1.apps"];

const ACCEPT: [&str; 6] = [
    "application/json",
    "application/vnd.kubernetes.protobuf, application/json",
    "application/yaml",
    "application/json;as=Table;v=v1;g=meta.k8s.io, application/json",
    "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io, application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io, application/json",
    "*/*",
];

fn pick<'a>(of: &[&'a str], dice: &mut Dice) -> &'a str {
    of[dice.below(of.len())]
}

/// A value as its schema says, more or less.
fn made(schema: &Value, document: &Value, depth: usize, dice: &mut Dice) -> Value {
    if let Some(target) = schema["$ref"].as_str().or_else(|| schema["allOf"][0]["$ref"].as_str()) {
        let name = target.rsplit('/').next().unwrap_or_default();
        return made(&document["components"]["schemas"][name], document, depth, dice);
    }
    match schema["type"].as_str() {
        Some("object") => object(schema, document, depth, dice),
        Some("array") => (0..dice.below(3)).map(|_| made(&schema["items"], document, depth.saturating_sub(1), dice)).collect(),
        Some("integer" | "number") => json!([0, 1, 80, -1, 65536, 3][dice.below(6)]),
        Some("boolean") => json!(dice.is_one_in(2)),
        Some("string") if schema["format"] == "date-time" => json!("2026-01-02T03:04:05Z"),
        Some("string") => json!(pick(&["a", "b", "web", "Always", "10.0.0.1", "1Gi", "ClusterIP", "TCP", "IPv4", "YQ==", "self.a == 1"], dice)),
        _ => pick_value(dice),
    }
}

fn pick_value(dice: &mut Dice) -> Value {
    [json!("80%"), json!(1), json!({"a": "b"}), json!([]), json!("1")][dice.below(5)].clone()
}

fn object(schema: &Value, document: &Value, depth: usize, dice: &mut Dice) -> Value {
    let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect::<Vec<_>>();
    let mut all = Map::new();
    for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
        let is_wanted = if required.contains(&name.as_str()) { !dice.is_one_in(20) } else { depth > 0 && dice.is_one_in(3) };
        if is_wanted || name == "metadata" || name == "spec" && depth == DEPTH {
            all.insert(name.clone(), made(schema, document, depth.saturating_sub(1), dice));
        }
    }
    if schema["additionalProperties"].is_object() && depth > 0 {
        all.insert(pick(&["a", "cpu", "pods", "x/y"], dice).to_owned(), made(&schema["additionalProperties"], document, depth - 1, dice));
    }
    let kinds = &schema["x-kubernetes-group-version-kind"];
    let gvk = &kinds[dice.below(kinds.as_array().map_or(1, Vec::len))];
    if let Some(kind) = gvk["kind"].as_str() {
        let (group, version) = (gvk["group"].as_str().unwrap_or_default(), gvk["version"].as_str().unwrap_or_default());
        all.insert("kind".to_owned(), json!(kind));
        all.insert("apiVersion".to_owned(), json!(if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }));
    }
    all.into()
}

impl Fuzz {
    fn object(&self, it: &Operation, dice: &mut Dice) -> Value {
        let made = made(&it.schema, &it.document, DEPTH, dice);
        let mut object = match self.bases.get(made["kind"].as_str().unwrap_or_default()) {
            Some(bases) if !dice.is_one_in(3) => bases[dice.below(bases.len())].clone(),
            _ => made,
        };
        if object["metadata"].is_object() && !dice.is_one_in(10) {
            object["metadata"]["name"] = json!(pick(&NAMES[..4], dice));
            object["metadata"].as_object_mut().expect("an object").remove("namespace");
        }
        if dice.is_one_in(2) { broken(&object, dice) } else { object }
    }

    fn request(&self, it: &Operation, dice: &mut Dice) -> http::Request<Body> {
        let mut path = it.path.clone();
        for part in ["{namespace}", "{name}", "{path}", "{logpath}"] {
            let value = if part == "{namespace}" && !dice.is_one_in(5) { "default" } else { pick(&NAMES, dice) };
            path = path.replace(part, value);
        }
        let (kind, bytes) = self.body(it, dice);
        let query = query(it, dice);
        let builder = http::Request::builder().method(it.method.to_uppercase().as_str()).uri(format!("{path}?{query}"));
        let accept = pick(if dice.is_one_in(40) { &["text/html", "", "a/b;q=x"] } else { &ACCEPT }, dice);
        builder.header("accept", accept).header("content-type", kind).body(body::full(bytes)).expect("a request")
    }

    fn body(&self, it: &Operation, dice: &mut Dice) -> (&'static str, Vec<u8>) {
        if it.schema.is_null() && !dice.is_one_in(20) {
            return ("application/json", Vec::new());
        }
        let object = self.object(it, dice);
        let json = object.to_string().into_bytes();
        let json = if dice.is_one_in(12) { torn(&json, dice) } else { json };
        if it.method != "patch" {
            let odd = ["application/vnd.kubernetes.protobuf", "text/plain", "", "application/merge-patch+json"];
            return (pick(if dice.is_one_in(20) { &odd } else { &["application/json", "application/yaml"] }, dice), json);
        }
        let operations = json!([{"op": pick(&["add", "replace", "remove", "test", "copy", "move"], dice), "path": pick(&["/spec", "/metadata/labels", "/x", "", "/spec/template"], dice),
            "from": "/metadata/name", "value": object}]);
        match dice.below(5) {
            0 => ("application/json-patch+json", operations.to_string().into_bytes()),
            1 => ("application/merge-patch+json", json),
            2 => ("application/strategic-merge-patch+json", json),
            _ => ("application/apply-patch+yaml", json),
        }
    }

    /// Sends one request; what went wrong.
    async fn one(&self, dice: &mut Dice) -> Result<(), String> {
        let it = &self.operations[dice.below(self.operations.len())];
        let request = self.request(it, dice);
        let told = format!("{} {}", request.method(), request.uri());
        let (parts, content) = request.into_parts();
        let bytes = content.collect().await.map_err(|why| why.to_string())?.to_bytes();
        let request = http::Request::from_parts(parts, body::full(bytes.clone()));
        let response = tokio::time::timeout(ANSWER_WITHIN, send(&self.server, request)).await.map_err(|_| format!("{told}: no answer"))?;
        let status = response.status().as_u16();
        self.statuses[usize::from(status)].fetch_add(1, Ordering::Relaxed);
        // A revision that is not yet is waited for, and told so with 504, as upstream does.
        if status < 500 || status == 504 || CONNECT.iter().any(|part| it.path.contains(part)) {
            return Ok(());
        }
        let answer = response.into_body().collect().await.map_err(|why| why.to_string())?.to_bytes();
        Err(format!("{told}: {status}\n  sent: {}\n  got:  {}", String::from_utf8_lossy(&bytes[..bytes.len().min(BODY_MOST)]), String::from_utf8_lossy(&answer)))
    }

    fn is_to_go_on(&self) -> bool {
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |it| it.checked_sub(1)).is_ok()
    }
}

fn query(it: &Operation, dice: &mut Dice) -> String {
    let is_write = it.method != "get";
    let mut all: Vec<String> = Vec::new();
    for name in &it.parameters {
        if !dice.is_one_in(5) {
            continue;
        }
        let values: &[&str] = match name.as_str() {
            "dryRun" => &["All", "None", ""],
            "labelSelector" => &["a=b", "a in (b", "!a", ",", "app=web,tier!=x"],
            "fieldSelector" => &["metadata.name=a", "spec.nodeName=", "x=y", "a!="],
            "resourceVersionMatch" => &["Exact", "NotOlderThan", "x"],
            "resourceVersion" => &["0", "1", "5", "-1", "x"],
            "fieldValidation" => &["Strict", "Warn", "Ignore", "x"],
            "propagationPolicy" => &["Orphan", "Background", "Foreground", "x"],
            "limit" | "gracePeriodSeconds" | "timeoutSeconds" => &["0", "1", "500", "-1", "x"],
            "continue" => &["", "eyJ2IjoibWV0YSJ9", "x"],
            "fieldManager" => &["m", "", "kubectl"],
            _ => &["true", "false", "1", "x"],
        };
        all.push(format!("{name}={}", pick(values, dice).replace(' ', "%20")));
    }
    if is_write && TURN_AWAY.iter().any(|part| it.path.contains(part)) {
        all.insert(0, "dryRun=All".to_owned());
    }
    all.join("&")
}

async fn run(fuzz: Arc<Fuzz>, seed: u64) -> Vec<String> {
    let (mut dice, mut wrong) = (Dice(seed), Vec::new());
    while fuzz.is_to_go_on() {
        // A panic of a request ends no task but this one: the server's own answer to it is a 500.
        wrong.extend(fuzz.one(&mut dice).await.err());
    }
    wrong
}

async fn whole(count: usize, seed: u64) -> Vec<String> {
    let (folder, tasks) = (tempfile::tempdir().expect("a folder"), Tasks::new());
    let options = Options {
        data_dir: folder.path().join("data"),
        bind: "127.0.0.1:0".parse().expect("an address"),
        advertise_address: Some("127.0.0.1".parse().expect("an address")),
        tls_san: Vec::new(),
        kubeconfig: folder.path().join("admin.conf"),
        store: StoreKind::Memory,
        store_quota: 2 << 30,
        trace: None,
        network: Wanted::default(),
    };
    let api = ApiServer::start(&options, slot::free_network(), &tasks).await.expect("the server starts");
    let operations = operations(&api.server).await;
    println!("{} operations of our OpenAPI documents, {count} requests, seed {seed}", operations.len());
    let statuses = std::array::from_fn(|_| AtomicUsize::new(0));
    let fuzz = Arc::new(Fuzz { server: api.server.clone(), operations, bases: bases(), statuses, left: AtomicUsize::new(count) });
    let began = Instant::now();
    let runs = (1..=TASKS).map(|at| tokio::spawn(run(fuzz.clone(), seed.wrapping_mul(at) | 1)));
    let wrong = futures::future::join_all(runs).await.into_iter().flat_map(|it| it.expect("no panic")).collect();
    for (status, count) in fuzz.statuses.iter().enumerate().map(|(at, it)| (at, it.load(Ordering::Relaxed))).filter(|it| it.1 > 0) {
        println!("{status}: {count}");
    }
    println!("{:.0} requests/s", count as f64 / began.elapsed().as_secs_f64());
    tasks.stop(Duration::from_secs(5)).await;
    api.stop(Duration::from_secs(5)).await;
    wrong
}

fn number(name: &str, otherwise: u64) -> u64 {
    env::var(name).ok().and_then(|it| it.parse().ok()).unwrap_or(otherwise)
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let wrong = runtime.block_on(whole(number("HOWDAH_FUZZ", 20_000) as usize, number("HOWDAH_SEED", SEED)));
    wrong.iter().take(20).for_each(|it| eprintln!("{it}"));
    assert!(wrong.is_empty(), "{} requests were answered wrongly", wrong.len());
}
