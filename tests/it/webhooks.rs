//! Webhooks of the user, asked by the real program over HTTPS: admission and the conversion of custom resources.

use std::{sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use rustls::{ServerConfig, crypto::ring, pki_types::PrivateKeyDer};
use serde_json::{Value, json};
use tokio_rustls::TlsAcceptor;

use crate::cluster::{Cluster, has_kubectl};

/// What is answered to a review, and after how long.
type Answer = fn(path: &str, review: &Value) -> (Value, Duration);

/// An HTTPS server whose certificate is its own authority.
struct Hooks {
    port: u16,
    authority: String,
}

impl Hooks {
    fn start(answer: Answer) -> Self {
        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).expect("a certificate");
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider())).with_safe_default_protocol_versions().expect("TLS");
        let config = config.with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key).expect("a configuration");
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("a listener of tokio");
        let port = listener.local_addr().expect("an address").port();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(accept(listener, TlsAcceptor::from(Arc::new(config)), answer));
        });
        Self { port, authority: STANDARD.encode(made.cert.pem()) }
    }

    fn client(&self, path: &str) -> Value {
        json!({"url": format!("https://127.0.0.1:{}/{path}", self.port), "caBundle": self.authority})
    }

    /// A webhook for config maps of the namespace `default`.
    fn webhook(&self, path: &str, more: Value) -> Value {
        let mut webhook = json!({"name": format!("{path}.example.com"), "sideEffects": "None", "admissionReviewVersions": ["v1"], "clientConfig": self.client(path),
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "default"}},
            "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]}]});
        more.as_object().into_iter().flatten().for_each(|(field, value)| webhook[field] = value.clone());
        webhook
    }
}

async fn accept(listener: std::net::TcpListener, acceptor: TlsAcceptor, answer: Answer) {
    let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
    while let Ok((stream, _)) = listener.accept().await {
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(move |it| respond(it, answer))).await;
        });
    }
}

async fn respond(request: http::Request<Incoming>, answer: Answer) -> Result<http::Response<Full<bytes::Bytes>>, hyper::Error> {
    let path = request.uri().path().trim_start_matches('/').to_owned();
    let review: Value = serde_json::from_slice(&request.into_body().collect().await?.to_bytes()).unwrap_or_default();
    let (mut response, delay) = answer(&path, &review);
    tokio::time::sleep(delay).await;
    response["uid"] = review["request"]["uid"].clone();
    let body = json!({"kind": review["kind"], "apiVersion": review["apiVersion"], "response": response}).to_string();
    Ok(http::Response::new(Full::new(body.into())))
}

fn configuration(kind: &str, name: &str, webhooks: &[Value]) -> String {
    json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": name}, "webhooks": webhooks}).to_string()
}

fn patch(operations: Value) -> Value {
    json!({"allowed": true, "patchType": "JSONPatch", "patch": STANDARD.encode(operations.to_string())})
}

fn admission(path: &str, review: &Value) -> (Value, Duration) {
    let data = &review["request"]["object"]["data"];
    let answer = match path {
        // Only a second round tells that `second` has been there.
        "first" if data["second"] == "yes" => patch(json!([{"op": "add", "path": "/data/again", "value": "yes"}])),
        "first" => patch(json!([{"op": "add", "path": "/data/first", "value": "yes"}])),
        "second" => patch(json!([{"op": "add", "path": "/data/second", "value": "yes"}])),
        "refuse" => {
            let operation = review["request"]["operation"].as_str().unwrap_or_default();
            json!({"allowed": false, "status": {"code": 403, "message": format!("no {operation}")}, "warnings": ["think again"]})
        }
        _ => json!({"allowed": true}),
    };
    (answer, Duration::from_secs(if path == "slow" { 20 } else { 0 }))
}

const MUTATING: &str = "MutatingWebhookConfiguration";
const VALIDATING: &str = "ValidatingWebhookConfiguration";

#[test]
fn webhooks_change_refuse_and_fail_as_they_are_configured() {
    if !has_kubectl() {
        return;
    }
    let cluster = Cluster::start(&["--store", "memory", "--node", "none"]);
    let hooks = Hooks::start(admission);
    let apply = |text: &str| {
        let (applied, output) = cluster.kubectl_with("apply -f -", text);
        assert!(applied, "{output}");
    };
    let create = |name: &str| cluster.kubectl(&format!("create configmap {name} --from-literal=k=v"));

    let skips = json!([{"name": "not-skipped", "expression": "object.metadata.name != 'skipped'"}]);
    let chain = [hooks.webhook("first", json!({"reinvocationPolicy": "IfNeeded", "matchConditions": skips})), hooks.webhook("second", json!({"matchConditions": skips}))];
    apply(&configuration(MUTATING, "chain", &chain));
    create("a");
    assert_eq!(cluster.kubectl("get configmap a -o jsonpath={.data}").1, r#"{"again":"yes","first":"yes","k":"v","second":"yes"}"#);
    create("skipped");
    assert_eq!(cluster.kubectl("get configmap skipped -o jsonpath={.data}").1, r#"{"k":"v"}"#);
    let (created, output) = cluster.kubectl("create configmap elsewhere -n kube-public --from-literal=k=v -o jsonpath={.data}");
    assert!(created && output == r#"{"k":"v"}"#, "{output}");
    cluster.kubectl("delete mutatingwebhookconfiguration chain");

    let rules = json!([{"operations": ["UPDATE", "DELETE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]}]);
    apply(&configuration(VALIDATING, "refuse", &[hooks.webhook("refuse", json!({"rules": rules}))]));
    for (command, operation) in [("delete configmap a", "DELETE"), ("label configmap a x=y", "UPDATE"), ("delete configmap --all --dry-run=server", "DELETE")] {
        let (done, output) = cluster.kubectl(command);
        assert!(!done && output.contains(&format!("admission webhook \"refuse.example.com\" denied the request: no {operation}")), "{output}");
        assert!(output.contains("Warning: think again"), "{output}");
    }
    assert!(cluster.kubectl("delete validatingwebhookconfiguration refuse").0);

    apply(&configuration(VALIDATING, "slow", &[hooks.webhook("slow", json!({"timeoutSeconds": 1}))]));
    let (created, output) = create("late");
    assert!(!created && output.contains("failed calling webhook \"slow.example.com\": failed to call webhook: Post \"https://127.0.0.1:"), "{output}");
    assert!(output.contains("/slow?timeout=1s\": context deadline exceeded"), "{output}");
    // A request that has less time than the webhook takes gets the server's own answer, whatever the webhook's failure policy.
    apply(&configuration(VALIDATING, "slow", &[hooks.webhook("slow", json!({"timeoutSeconds": 15, "failurePolicy": "Ignore"}))]));
    let late = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "later"}}).to_string();
    let (created, output) = cluster.kubectl_with("create -v=6 --raw /api/v1/namespaces/default/configmaps?timeout=1s -f -", &late);
    assert!(!created && output.contains("504") && output.contains("(Timeout): Timeout: request did not complete within"), "{output}");
    cluster.kubectl("delete validatingwebhookconfiguration slow");
    assert!(!cluster.kubectl("get configmap later").0);

    let mut unknown = hooks.webhook("allow", json!({"failurePolicy": "Fail"}));
    unknown["clientConfig"]["caBundle"] = STANDARD.encode(rcgen::generate_simple_self_signed(vec!["x".to_owned()]).expect("a certificate").cert.pem()).into();
    apply(&configuration(VALIDATING, "unknown", &[unknown.clone()]));
    let (created, output) = create("closed");
    assert!(!created && output.contains("failed calling webhook \"allow.example.com\": failed to call webhook: Post"), "{output}");
    unknown["failurePolicy"] = "Ignore".into();
    apply(&configuration(VALIDATING, "unknown", &[unknown]));
    let (created, output) = create("open");
    assert!(created, "{output}");
}

/// Turns `hostPort` of v1 into `host` and `port` of v2, and back.
fn conversion(_: &str, review: &Value) -> (Value, Duration) {
    let wanted = &review["request"]["desiredAPIVersion"];
    let convert = |object: &Value| {
        let mut object = object.clone();
        object["apiVersion"] = wanted.clone();
        let fields = object.as_object_mut().expect("an object");
        match fields.remove("hostPort") {
            Some(both) => {
                let (host, port) = both.as_str().and_then(|it| it.split_once(':')).expect("host and port");
                fields.insert("host".to_owned(), host.into());
                fields.insert("port".to_owned(), port.into());
            }
            None => {
                let both = [fields.remove("host"), fields.remove("port")].map(|it| it.and_then(|it| it.as_str().map(str::to_owned)).unwrap_or_default()).join(":");
                fields.insert("hostPort".to_owned(), both.into());
            }
        }
        object
    };
    let converted: Vec<Value> = review["request"]["objects"].as_array().into_iter().flatten().map(convert).collect();
    (json!({"result": {"status": "Success"}, "convertedObjects": converted}), Duration::ZERO)
}

fn definition(hooks: &Hooks, stored: &str) -> String {
    let version = |name: &str, fields: Value| json!({"name": name, "served": true, "storage": name == stored, "schema": {"openAPIV3Schema": {"type": "object", "properties": fields}}});
    let text = json!({"type": "string"});
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "places.example.com"}, "spec": {
        "group": "example.com", "scope": "Namespaced", "names": {"plural": "places", "kind": "Place"},
        "versions": [version("v1", json!({"hostPort": text})), version("v2", json!({"host": text, "port": text}))],
        "conversion": {"strategy": "Webhook", "webhook": {"clientConfig": hooks.client("convert"), "conversionReviewVersions": ["v1"]}}}})
    .to_string()
}

#[test]
fn custom_resources_are_converted_wherever_they_are_read_and_written() {
    if !has_kubectl() {
        return;
    }
    let cluster = Cluster::start(&["--store", "memory", "--node", "none"]);
    let hooks = Hooks::start(conversion);
    let apply = |text: &str| {
        let (applied, output) = cluster.kubectl_with("apply -f -", text);
        assert!(applied, "{output}");
    };
    apply(&definition(&hooks, "v1"));
    assert!(cluster.kubectl("wait --for=condition=Established crd/places.example.com --timeout=30s").0);
    let place = |version: &str, name: &str, fields: Value| {
        let mut place = json!({"apiVersion": format!("example.com/{version}"), "kind": "Place", "metadata": {"name": name}});
        fields.as_object().into_iter().flatten().for_each(|(field, value)| place[field] = value.clone());
        place.to_string()
    };
    apply(&place("v1", "a", json!({"hostPort": "h:1"})));
    assert_eq!(cluster.kubectl("get places.v2.example.com a -o jsonpath={.host}/{.port}{.hostPort}").1, "h/1");

    apply(&definition(&hooks, "v2"));
    cluster.eventually("get crd places.example.com -o jsonpath={.status.storedVersions}", r#"["v1","v2"]"#);
    apply(&place("v2", "b", json!({"host": "i", "port": "2"})));
    assert_eq!(cluster.kubectl("get places.v1.example.com -o jsonpath={.items[*].hostPort}").1, "h:1 i:2");
    assert_eq!(cluster.kubectl("get places.v2.example.com -o jsonpath={.items[*].host}").1, "h i");
    let (patched, output) = cluster.kubectl("patch places.v1.example.com b --type=merge -p {\"hostPort\":\"j:3\"}");
    assert!(patched, "{output}");
    assert_eq!(cluster.kubectl("get places.v2.example.com b -o jsonpath={.host}/{.port}").1, "j/3");

    let (_, events) = cluster.kubectl("get --raw /apis/example.com/v2/namespaces/default/places?watch=1&timeoutSeconds=2");
    let events: Vec<Value> = events.lines().map(|it| serde_json::from_str(it).expect("an event")).collect();
    let seen: Vec<String> = events.iter().map(|it| format!("{} {} {}", it["type"], it["object"]["apiVersion"], it["object"]["host"])).collect();
    assert_eq!(seen, [r#""ADDED" "example.com/v2" "h""#, r#""ADDED" "example.com/v2" "j""#]);
    assert!(cluster.kubectl("delete places.v1.example.com --all").0);

    let moved = definition(&hooks, "v2").replace(&hooks.port.to_string(), "1");
    apply(&place("v2", "c", json!({"host": "k", "port": "4"})));
    apply(&moved);
    let (read, output) = cluster.kubectl("get places.v1.example.com c");
    assert!(!read && output.contains("conversion webhook for example.com/v2, Kind=Place failed: Post \"https://127.0.0.1:1/convert?timeout=30s\": dial tcp"), "{output}");
    assert!(cluster.kubectl("get places.v2.example.com c").0);
}
