//! Several API servers on one Postgres, as a user runs them: a definition told by one is served by the other, a quota is answered with 507 until
//! somebody makes room by hand, and controllers and scheduler find a server that came after them.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use http::StatusCode;
use howdah::meta::{Meta, Value};
use serde_json::json;

use crate::{compose::RANGES, postgres, requests::client_of};

const WITHIN: Duration = Duration::from_secs(90);
const DEFINITIONS: usize = 8;
const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

/// A process of the program; it ends with the value.
struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    fn start(log: PathBuf, arguments: &[&str]) -> Self {
        let file = std::fs::File::create(&log).expect("a log");
        let child = Command::new(env!("CARGO_BIN_EXE_howdah")).args(arguments).stdout(Stdio::null()).stderr(file).spawn().expect("the program starts");
        Self { child, log }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("== {}\n{}", self.log.display(), std::fs::read_to_string(&self.log).unwrap_or_default());
        }
    }
}

struct Server {
    _process: Process,
    kubeconfig: PathBuf,
    port: u16,
}

impl Server {
    fn start(folder: &Path, name: &str, store: &str, quota: &str) -> Self {
        let own = folder.join(name);
        std::fs::create_dir_all(&own).expect("a folder");
        let port = TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a free port").port();
        let (kubeconfig, bind) = (own.join("admin.conf"), format!("127.0.0.1:{port}"));
        let mut arguments = vec!["apiserver", "--store", store, "--store-quota", quota, "--bind", &bind];
        let (config, data) = (kubeconfig.display().to_string(), own.display().to_string());
        arguments.extend(["--kubeconfig", &config, "--data-dir", &data]);
        arguments.extend(RANGES);
        Self { _process: Process::start(own.join("log"), &arguments), kubeconfig, port }
    }

    fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    async fn client(&self) -> kube::Client {
        let began = Instant::now();
        while !self.kubeconfig.exists() || tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.is_err() {
            assert!(began.elapsed() < WITHIN, "the server does not start");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        client_of(&self.kubeconfig).await
    }

    /// A role with its kubeconfig, which is told of this server alone.
    fn role(&self, role: &str, user: &str) -> Process {
        let kubeconfig = self.kubeconfig.with_file_name(format!("{user}.conf")).display().to_string();
        Process::start(self.kubeconfig.with_file_name(format!("{role}.log")), &[role, "--kubeconfig", &kubeconfig, "--server", &self.url()])
    }
}

async fn send(client: &kube::Client, method: &str, path: &str, body: &Value) -> (u16, Value) {
    let request = http::Request::builder().method(method).uri(path).header("content-type", "application/json");
    let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
    let answer = client.send(request.body(kube::client::Body::from(body)).expect("a request")).await.expect("an answer");
    let status = answer.status().as_u16();
    let bytes = http_body_util::BodyExt::collect(answer.into_body()).await.expect("a body").to_bytes();
    (status, serde_json::from_slice(&bytes).unwrap_or_default())
}

async fn get(client: &kube::Client, path: &str) -> Value {
    send(client, "GET", path, &Value::Null).await.1
}

async fn eventually(client: &kube::Client, path: &str, is_it: impl Fn(&Value) -> bool) {
    let began = Instant::now();
    loop {
        let answer = get(client, path).await;
        if is_it(&answer) {
            return;
        }
        assert!(began.elapsed() < WITHIN, "{path}: {answer}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn is_established(definition: &Value) -> bool {
    definition.items_at(&["status", "conditions"]).iter().any(|it| it.text("type") == "Established" && it.text("status") == "True")
}

/// What one server calls established another one serves and lists, at once.
async fn definitions(one: &kube::Client, two: &kube::Client) {
    for at in 0..DEFINITIONS {
        let (group, plural) = (format!("g{at}.example.com"), format!("kettles{at}"));
        let versions = json!([{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}}}]);
        let spec = json!({"group": group, "scope": "Namespaced", "names": {"kind": format!("Kettle{at}"), "plural": plural}, "versions": versions});
        let definition = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": format!("{plural}.{group}")}, "spec": spec});
        assert_eq!(send(one, "POST", CRDS, &definition).await.0, 201);
        eventually(one, &format!("{CRDS}/{plural}.{group}"), is_established).await;
        let kettle = json!({"apiVersion": format!("{group}/v1"), "kind": format!("Kettle{at}"), "metadata": {"name": "k"}});
        assert_eq!(send(two, "POST", &format!("/apis/{group}/v1/namespaces/default/{plural}"), &kettle).await.0, 201, "definition {at}");
        let groups = get(two, "/apis").await;
        assert!(groups.items_at(&["groups"]).iter().any(|it| it.text("name") == group), "{group} is not listed: {groups}");
    }
    assert_eq!(send(two, "GET", "/apis/none.example.com/v1/none", &Value::Null).await.0, 404);
}

/// The first server has room, the second has not, until objects are deleted by hand.
async fn quota(one: &kube::Client, two: &kube::Client, store: &str) {
    let map = |name: &str, bytes: usize| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"fill": "x".repeat(bytes)}});
    for at in 0..4 {
        assert_eq!(send(one, "POST", MAPS, &map(&format!("large-{at}"), 900_000)).await.0, 201);
    }
    let (code, status) = send(two, "POST", MAPS, &map("more", 10)).await;
    assert_eq!((code, status.text("reason")), (StatusCode::INSUFFICIENT_STORAGE.as_u16(), "InsufficientStorage"), "{status}");
    assert!(status.text("message").contains("the store's quota of 2097152 bytes is exceeded; delete something"), "{status}");
    let (code, status) = send(two, "PUT", &format!("{MAPS}/large-3"), &map("large-3", 10)).await;
    assert_eq!(code, 200, "what becomes smaller is written: {status}");
    let by_hand = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_howdah")).arg("store").args(arguments).args(["--store", store]).output().expect("howdah");
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    };
    let bytes = |line: &str| line.strip_suffix(" configmaps").and_then(|it| it.split_whitespace().last()?.parse::<usize>().ok());
    let sizes = by_hand(&["sizes"]);
    assert!(sizes.lines().find_map(bytes).is_some_and(|it| it > 2_700_000), "{sizes}");
    assert_eq!(by_hand(&["delete", "configmaps", "large-0", "-n", "default"]).trim(), "Deleted 1 objects.");
    assert_eq!(by_hand(&["delete", "configmaps", "large-0", "-n", "default"]).trim(), "Deleted 0 objects.");
    assert!(by_hand(&["delete", "configmaps"]).contains("--all"), "all of a resource are deleted on purpose only");
    assert_eq!(by_hand(&["delete", "configmaps", "large-1", "-n", "default"]).trim(), "Deleted 1 objects.");
    assert_eq!(send(one, "GET", &format!("{MAPS}/large-0"), &Value::Null).await.0, 404);
    assert_eq!(send(two, "POST", MAPS, &map("more", 10)).await.0, 201);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_of_one_store_are_one_cluster() {
    let Some(database) = postgres::Server::start(&[]) else { return };
    let (folder, store) = (tempfile::tempdir().expect("a folder"), database.url("servers"));
    let first = Server::start(folder.path(), "one", &store, "2Gi");
    let one = first.client().await;
    let _roles = [first.role("controllers", "controller-manager"), first.role("scheduler", "scheduler")];
    let second = Server::start(folder.path(), "two", &store, "2Mi");
    let two = second.client().await;
    definitions(&one, &two).await;
    quota(&one, &two, &store).await;

    let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices?labelSelector=kubernetes.io/service-name%3Dkubernetes";
    let has_port = |list: &Value, port: u16| list.items_at(&["items"]).iter().any(|it| it.items_at(&["ports"]).iter().any(|it| it["port"] == port));
    eventually(&two, slices, |it| has_port(it, first.port) && has_port(it, second.port)).await;
    for lease in ["kube-controller-manager", "kube-scheduler"] {
        let held = |it: &Value| it.text_at(&["spec", "holderIdentity"]).contains('_');
        eventually(&two, &format!("/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/{lease}"), held).await;
    }
    drop(first);
    let template = json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "howdah/hello:1"}]}});
    let spec = json!({"replicas": 2, "selector": {"matchLabels": {"app": "web"}}, "template": template});
    let web = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": spec});
    let (code, answer) = send(&two, "POST", "/apis/apps/v1/namespaces/default/deployments", &web).await;
    assert_eq!(code, 201, "{answer}");
    // The controllers have made them, and the scheduler has seen that there is no node.
    let unscheduled = |it: &Value| it.items_at(&["status", "conditions"]).iter().any(|it| it.text("type") == "PodScheduled" && it.text("status") == "False");
    eventually(&two, "/api/v1/namespaces/default/pods", |it| it.items_at(&["items"]).iter().filter(|it| unscheduled(it)).count() == 2).await;
}
