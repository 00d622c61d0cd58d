//! Two hundred requests that are wrong, each with the answer that upstream gives. None may leave anything behind.

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use futures::future::join_all;
use howdah::{base::pki::Identity, process::kubeconfig};
use http::{Request, header};
use http_body_util::BodyExt;
use kube::{
    Client, Config,
    client::Body,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};

use crate::{cluster::Cluster, kube_apiserver::KubeApiserver};

/// `METHOD PATH CONTENT-TYPE BODY`, and below it `CODE REASON MESSAGE`, where the message is a part of the real one; [`OWN`] may stand first.
const CASES: &str = include_str!("requests.txt");

pub async fn client(cluster: &Cluster) -> Client {
    client_of(&cluster.kubeconfig()).await
}

pub async fn client_of(kubeconfig: &std::path::Path) -> Client {
    let config = Kubeconfig::read_from(kubeconfig).expect("a kubeconfig");
    let mut config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await.expect("a configuration");
    config.default_retry = false;
    Client::try_from(config).expect("a client")
}

async fn ask(client: &Client, method: &str, path: &str, kind: &str, body: Vec<u8>) -> (u16, Value) {
    let request = Request::builder().method(method).uri(path).header(header::ACCEPT, "application/json");
    let request = if kind == "-" { request } else { request.header(header::CONTENT_TYPE, kind) };
    let Ok(response) = client.send(request.body(Body::from(body)).expect("a request")).await else { return (0, Value::Null) };
    let code = response.status().as_u16();
    let bytes = response.into_body().collect().await.expect("a body").to_bytes();
    (code, serde_json::from_slice(&bytes).unwrap_or_default())
}

/// Bodies that are too long to be written out.
fn body_of(text: &str) -> Vec<u8> {
    let config_map = |data: &str| format!(r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"big"}},"data":{{"a":"{data}"}}}}"#).into_bytes();
    match text {
        "-" => Vec::new(),
        "<deep>" => format!("{}{}", "[".repeat(20_000), "]".repeat(20_000)).into_bytes(),
        "<deep yaml>" => (0..1200).map(|at| format!("{}a:\n", " ".repeat(at))).collect::<String>().into_bytes(),
        "<10 MB>" => config_map(&"x".repeat(10 << 20)),
        "<2 MB>" => config_map(&"x".repeat(2 << 20)),
        "<zeros>" => vec![0; 64],
        "<protobuf>" => b"k8s\0\x0a\x0e\x0a\x02v1\x12\x09ConfigMap\x12\x05\xff\xff\xff\xff\xff".to_vec(),
        "<latin1>" => b"{\"apiVersion\":\"v1\",\"kind\":\"ConfigMap\",\"metadata\":{\"name\":\"\xe9\"}}".to_vec(),
        text => text.as_bytes().to_vec(),
    }
}

/// Asks all cases, or those alone whose answer is upstream's too; the wrong answers, and how many were asked.
async fn ask_all(client: &Client, is_upstream: bool) -> (Vec<String>, usize) {
    let lines: Vec<&str> = CASES.lines().filter(|it| !it.trim().is_empty() && !it.starts_with('#')).collect();
    let (mut failures, mut count) = (Vec::new(), 0);
    for case in lines.chunks(2) {
        let [request, answer] = case else { panic!("a request without an answer: {case:?}") };
        if is_upstream && request.starts_with(OWN) {
            continue;
        }
        let mut parts = request.trim_start_matches(OWN).splitn(4, ' ');
        let [method, path, kind, body] = [(); 4].map(|()| parts.next().unwrap_or("-"));
        let mut parts = answer.trim().splitn(3, ' ');
        let [code, reason, message] = [(); 3].map(|()| parts.next().unwrap_or(""));
        let (got, status) = ask(client, method, path, kind, body_of(body)).await;
        let is_right = got.to_string() == code && (reason == "-" || status["reason"] == reason) && status["message"].as_str().unwrap_or_default().contains(message);
        if !is_right {
            failures.push(format!("{request}\n  wanted: {code} {reason} {message}\n  got:    {got} {} {}", status["reason"], status["message"]));
        }
        count += 1;
    }
    (failures, count)
}

/// Marks a case whose answer is not upstream's: it depends on libraries, or upstream says 500 where the request is wrong.
const OWN: char = '~';

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_requests_get_upstreams_answers_and_leave_nothing() {
    let cluster = Cluster::start(&["--store", "memory", "--node", "none"]);
    let client = client(&cluster).await;
    let before = listed(&client).await;
    let (failures, count) = ask_all(&client, false).await;
    assert!(failures.is_empty(), "{} of {count}:\n{}", failures.len(), failures.join("\n"));
    assert!(count >= 100, "{count} cases");
    assert_eq!(listed(&client).await, before);
}

/// What the cases say is what upstream's own server says, where one is at hand (`KUBE_APISERVER`, and `ETCD` or one on the PATH).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_answers_are_those_of_kube_apiserver() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(upstream) = KubeApiserver::prepare(folder.path()).await else { return };
    let mut command = Command::new(&upstream.program);
    let mut server = command.args(&upstream.arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
    let kubeconfig = folder.path().join("admin.conf");
    kubeconfig::write(&kubeconfig, &format!("https://127.0.0.1:{}", upstream.port), &upstream.authority, &Identity::admin()).expect("a kubeconfig");
    let client = client_of(&kubeconfig).await;
    let put = async |path: &str, object: &str| ask(&client, "POST", path, "application/json", object.as_bytes().to_vec()).await.0 == 201;
    // Its controllers would make these, and a token needs the account.
    while !put("/api/v1/namespaces/default/configmaps", r#"{"metadata":{"name":"kube-root-ca.crt"},"data":{"ca.crt":"x"}}"#).await {
        assert!(server.try_wait().expect("a process").is_none(), "kube-apiserver has ended");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(put("/api/v1/namespaces/default/serviceaccounts", r#"{"metadata":{"name":"default"}}"#).await);
    let (failures, count) = ask_all(&client, true).await;
    _ = server.kill().and_then(|()| server.wait());
    drop(upstream.etcd);
    assert!(failures.is_empty(), "{} of {count}:\n{}", failures.len(), failures.join("\n"));
}

/// What a wrong request might have left. A controller's own come when they come.
async fn listed(client: &Client) -> Vec<String> {
    let mut names = Vec::new();
    for path in ["/api/v1/configmaps", "/api/v1/pods", "/api/v1/services", "/apis/apps/v1/deployments", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"] {
        let (_, list) = ask(client, "GET", path, "application/json", Vec::new()).await;
        let items = list["items"].as_array().cloned().unwrap_or_default();
        let items = items.iter().filter(|it| it["metadata"]["name"] != "kube-root-ca.crt");
        names.extend(items.map(|it| format!("{path} {} {}", it["metadata"]["namespace"], it["metadata"]["name"])));
    }
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_charges_a_quota_at_the_same_time_as_others_is_served_until_it_is_full() {
    let cluster = Cluster::start(&["--store", "memory", "--node", "none"]);
    let client = client(&cluster).await;
    let (quota, secrets) = ("/api/v1/namespaces/default/resourcequotas", "/api/v1/namespaces/default/secrets");
    let post = async |path: &str, object: Value| ask(&client, "POST", path, "application/json", object.to_string().into_bytes()).await.0;
    assert_eq!(post(quota, json!({"metadata": {"name": "q"}, "spec": {"hard": {"secrets": "20"}}})).await, 201);
    let used = async || ask(&client, "GET", &format!("{quota}/q"), "-", Vec::new()).await.1["status"]["used"]["secrets"].clone();
    while used().await.is_null() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let mut codes = join_all((0..30).map(|at| post(secrets, json!({"metadata": {"name": format!("s{at}")}})))).await;
    codes.sort_unstable();
    assert_eq!(codes, [[201; 20].as_slice(), &[403; 10]].concat());
    assert_eq!(used().await, "20");
}
