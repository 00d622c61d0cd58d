use bytes::Bytes;
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::{RootCertStore, ServerConfig, crypto::ring, pki_types::PrivateKeyDer, server::WebPkiClientVerifier};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::store::{Change, Draft, Expect, Header, Key, Store, Transaction, Write, memory::Memory};

fn pod() -> Value {
    json!({
        "metadata": {"name": "web", "namespace": "ns"},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "ports": [{"containerPort": 8080}]}]},
        "status": {"podIPs": [{"ip": "10.1.0.5"}]},
    })
}

fn node(address: &str, port: u16) -> Value {
    let addresses = json!([{"type": "Hostname", "address": "n1"}, {"type": "InternalIP", "address": address}]);
    json!({"metadata": {"name": "n1"}, "status": {"addresses": addresses, "daemonEndpoints": {"kubeletEndpoint": {"Port": port}}}})
}

/// A cluster of these objects.
async fn cluster(objects: Vec<(Key, Value)>) -> Snapshot {
    let labels = |object: &Value| object.labels().map(|(key, value)| (key.into(), value.into())).collect();
    let put = |(key, object): (Key, Value)| {
        let change = Change::Put(Draft::new(&object, Header { labels: labels(&object), ..Header::default() }));
        Write { key, expect: Expect::Absent, change }
    };
    let store = Store::open(Arc::new(Memory::new()), Arc::new(|_, _| Header::default()), &Tasks::new()).await.unwrap();
    store.submit(Transaction { writes: objects.into_iter().map(put).collect() }).await.unwrap();
    store.snapshot()
}

async fn with_node() -> Snapshot {
    cluster(vec![(Key::new("nodes", "", "n1"), node("10.0.0.1", 10250))]).await
}

#[tokio::test]
async fn streams_lead_to_the_api_of_the_node() {
    let base = "https://10.0.0.1:10250";
    let cases = [
        (Action::Log, "follow=true&container=c&tailLines=5&x=y", format!("{base}/containerLogs/ns/web/c?follow=true&tailLines=5")),
        (Action::Log, "", format!("{base}/containerLogs/ns/web/c")),
        (Action::Log, "container=d", "container d is not valid for pod web".to_owned()),
        (
            Action::Log,
            "tailLines=-1",
            "PodLogOptions \"web\" is invalid: tailLines: Invalid value: -1: must be greater than or equal to 0".to_owned(),
        ),
        (
            Action::Exec,
            "command=sh&command=-c&command=a%20b&stdin=true&stdout=1&stderr=false&tty=",
            format!("{base}/exec/ns/web/c?input=1&output=1&tty=1&command=sh&command=-c&command=a+b"),
        ),
        (Action::Attach, "stdout=true&container=c", format!("{base}/attach/ns/web/c?output=1")),
        (Action::PortForward, "ports=80&ports=81", format!("{base}/portForward/ns/web?port=80%2C81")),
        (Action::PortForward, "", format!("{base}/portForward/ns/web")),
    ];
    for (action, query, expected) in cases {
        let (snapshot, query) = (&with_node().await, &Query::parse(query));
        let target = match action {
            Action::Log => location::log(snapshot, &pod(), query).map(Option::unwrap),
            Action::Exec => location::exec(snapshot, &pod(), query),
            Action::Attach => location::attach(snapshot, &pod(), query),
            _ => location::port_forward(snapshot, &pod(), query),
        };
        assert_eq!(target.map_or_else(|status| status.message, |target| target.url()), expected);
    }
}

#[tokio::test]
async fn what_is_missing_is_told_in_upstreams_words() {
    let mut several = pod();
    several.set_at(&["spec", "containers"], json!([{"name": "a"}, {"name": "b"}]));
    several.set_at(&["spec", "initContainers"], json!([{"name": "i"}]));
    let mut unscheduled = pod();
    unscheduled.set_at(&["spec", "nodeName"], "");
    let mut elsewhere = pod();
    elsewhere.set_at(&["spec", "nodeName"], "n2");
    let cases = [
        (several, "a container name must be specified for pod web, choose one of: [i a b]"),
        (unscheduled.clone(), "pod web does not have a host assigned"),
        (elsewhere, "nodes \"n2\" not found"),
    ];
    for (pod, expected) in cases {
        assert_eq!(location::exec(&with_node().await, &pod, &Query::default()).unwrap_err().message, expected);
    }
    assert_eq!(location::log(&with_node().await, &unscheduled, &Query::default()).unwrap(), None);
}

#[tokio::test]
async fn the_proxy_finds_pods_services_and_nodes() {
    let service =
        json!({"metadata": {"name": "svc", "namespace": "ns"}, "spec": {"ports": [{"name": "http", "port": 80}, {"name": "alt", "port": 81}]}});
    let endpoint = |ip: &str, pod: &str, is_ready: bool| json!({"addresses": [ip], "conditions": {"ready": is_ready}, "targetRef": {"kind": "Pod", "name": pod}});
    let slice = json!({
        "metadata": {"name": "slice", "namespace": "ns", "labels": {"kubernetes.io/service-name": "svc"}},
        "ports": [{"name": "http", "port": 8080}],
        "endpoints": [endpoint("10.1.0.5", "web", true), endpoint("10.1.0.6", "web", true), endpoint("10.1.0.5", "web", false)],
    });
    let mut local = pod();
    local.set_at(&["status", "podIPs"], json!([{"ip": "127.0.0.1"}]));
    let none = || vec![];
    let slices = || vec![slice.clone()];
    // (resource, name in the path, object, slices, expected URL or message)
    let cases = [
        ("pods", "web", pod(), none(), "http://10.1.0.5:8080"),
        ("pods", "web:80", pod(), none(), "http://10.1.0.5"),
        ("pods", "https:web:8443", pod(), none(), "https://10.1.0.5:8443"),
        ("pods", "ftp:web:1", pod(), none(), "invalid pod request \"ftp:web:1\""),
        ("pods", "web", local, none(), "address not allowed"),
        ("services", "svc:http", service.clone(), slices(), "http://10.1.0.5:8080"),
        ("services", "https:svc:80", service.clone(), slices(), "https://10.1.0.5:8080"),
        ("services", "svc:99", service.clone(), slices(), "no service port 99 found for service \"svc\""),
        ("services", "svc:alt", service.clone(), slices(), "no endpoints available for service \"svc:alt\""),
        ("services", "svc:http", service, none(), "no endpoints available for service \"svc\""),
        ("nodes", "n1", node("10.0.0.1", 10250), none(), "https://10.0.0.1:10250"),
        ("nodes", "n1:9100", node("10.0.0.1", 10250), none(), "http://10.0.0.1:9100"),
    ];
    for (resource, id, object, slices, expected) in cases {
        let slices = slices.into_iter().map(|it: Value| (Key::new("discovery.k8s.io/endpointslices", "ns", it.name()), it));
        let snapshot = cluster(slices.chain([(Key::new("pods", "ns", "web"), pod())]).collect()).await;
        let target = location::proxy(&snapshot, resource, id, &object);
        assert_eq!(target.map_or_else(|status| status.message, |target| target.url()), expected, "{resource} {id}");
    }
}

/// An authority, and TLS both ways within it.
fn tls() -> (ServerConfig, ClientConfig) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let authority = params.self_signed(&key).unwrap().der().clone();
    let issuer = Issuer::new(params, key);
    let issue = || {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
        (vec![certificate.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
    };
    let mut roots = RootCertStore::empty();
    roots.add(authority).unwrap();
    let roots = Arc::new(roots);
    let provider = Arc::new(ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone()).build().unwrap();
    let server =
        ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().unwrap().with_client_cert_verifier(verifier);
    let client = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
    let ((chain, key), (own_chain, own_key)) = (issue(), issue());
    (server.with_single_cert(chain, key).unwrap(), client.with_client_auth_cert(own_chain, own_key).unwrap())
}

/// What the fake node answers: an echo for upgrades, the request in words otherwise, and errors on demand.
async fn answer(mut request: http::Request<Incoming>) -> std::result::Result<http::Response<Full<Bytes>>, std::convert::Infallible> {
    let (path, headers) = (request.uri().to_string(), request.headers().clone());
    if path.contains("waiting") {
        let text = "container \"waiting\" in pod \"web\" is waiting to start: ContainerCreating";
        return Ok(http::Response::builder().status(400).body(text.into()).unwrap());
    }
    if let (Some(protocol), false) = (headers.get(header::UPGRADE), path.contains("refuse")) {
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut stream = TokioIo::new(upgrade.await.unwrap());
            let mut bytes = [0; 64];
            while let Ok(length @ 1..) = stream.read(&mut bytes).await {
                stream.write_all(&bytes[..length]).await.unwrap();
            }
        });
        let response = http::Response::builder().status(101).header("upgrade", protocol).header("connection", "Upgrade").header("x-path", path);
        return Ok(response.body(Full::default()).unwrap());
    }
    let text = |name: &str| headers.get(name).map_or("-", |it| it.to_str().unwrap()).to_owned();
    let words = [path, text("x-forwarded-uri"), text("x-forwarded-for"), text("authorization"), text("keep-alive")].join(" ");
    let body = request.collect().await.unwrap().to_bytes();
    Ok(http::Response::builder().status(200).header("x-words", words).body(Full::new(body)).unwrap())
}

/// A node on loopback; returns its port and the way to it.
async fn serve() -> (u16, Nodes) {
    let (server, client) = tls();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let acceptor = TlsAcceptor::from(Arc::new(server));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(stream) = acceptor.accept(stream).await else { continue };
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer)).with_upgrades());
        }
    });
    (port, Nodes::new(client, Tasks::new()))
}

fn target(port: u16, path: &str) -> Target {
    Target { security: Security::Node, host: "127.0.0.1".into(), port, path: path.into(), query: String::new() }
}

#[tokio::test]
async fn a_log_streams_or_tells_the_nodes_error() {
    let (port, nodes) = serve().await;
    let response = nodes.log("web", &target(port, "/containerLogs/ns/web/c"), None).await.unwrap();
    assert_eq!(response.headers()[header::CONTENT_TYPE], "text/plain");
    let status = nodes.log("web", &target(port, "/containerLogs/ns/web/waiting"), None).await.unwrap_err();
    let expected = (400, "container \"waiting\" in pod \"web\" is waiting to start: ContainerCreating");
    assert_eq!((status.code, status.message.as_str()), expected);
    assert_eq!(nodes.log("web", &target(1, "/x"), None).await.unwrap_err().code, 500);
}

#[tokio::test]
async fn a_proxied_request_arrives_as_from_a_proxy() {
    let (port, nodes) = serve().await;
    let request = http::Request::post("/api/v1/nodes/n1/proxy/a?b=c").header("keep-alive", "5").header("authorization", "Bearer x");
    let mut request = request.body(Body::new(Full::new(Bytes::from("hello")).map_err(|never| match never {}))).unwrap();
    request.extensions_mut().insert(Peer { address: Some("10.9.8.7:6".parse().unwrap()), ..Peer::default() });
    let response = nodes.proxy(target(port, ""), "/a", request).await.unwrap();
    assert_eq!(response.headers()["x-words"], "/a?b=c /api/v1/nodes/n1/proxy/a 10.9.8.7 - -");
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "hello");
    let bare = http::Request::get("/api/v1/nodes/n1/proxy?q").body(body::empty()).unwrap();
    let response = nodes.proxy(target(port, ""), "", bare).await.unwrap();
    assert_eq!((response.status().as_u16(), &response.headers()[header::LOCATION]), (301, &HeaderValue::from_static("/api/v1/nodes/n1/proxy/?q")));
}

/// Serves one connection of a client by `nodes.stream` to `target` and returns the client's end.
async fn client_of(nodes: Nodes, target: Target) -> TcpStream {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let (nodes, target) = (&nodes, &target);
        let service = service_fn(move |request: http::Request<Incoming>| async move {
            let request = request.map(|body| Body::new(body.map_err(crate::api::BodyError::new)));
            let answered = nodes.stream(target, request).await;
            Ok::<_, std::convert::Infallible>(answered.unwrap_or_else(|status| http::Response::builder().status(status.code).body(body::empty()).unwrap()))
        });
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades().await.unwrap();
        std::future::pending::<()>().await;
    });
    TcpStream::connect(address).await.unwrap()
}

#[tokio::test]
async fn an_upgraded_stream_is_relayed_byte_for_byte() {
    let upgrade = "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nContent-Length: 0\r\n";
    // (path at the node, request headers, expected start of the answer)
    let cases = [
        ("/exec/ns/web/c", upgrade, "HTTP/1.1 101 Switching Protocols"),
        ("/exec/ns/web/refuse", upgrade, "HTTP/1.1 200 OK"),
        ("/exec/ns/web/c", "", "HTTP/1.1 400 Bad Request"),
    ];
    for (path, headers, expected) in cases {
        let (port, nodes) = serve().await;
        let mut client = client_of(nodes, target(port, path)).await;
        client.write_all(format!("POST /api/v1/x HTTP/1.1\r\nHost: h\r\n{headers}\r\n").as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(client.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        assert!(head.starts_with(expected), "{head}");
        if expected.contains("101") {
            assert!(head.to_lowercase().contains("upgrade: spdy/3.1\r\n") && head.contains(path), "{head}");
            client.write_all(b"\x80\x03frames\x00").await.unwrap();
            let mut echo = [0; 9];
            client.read_exact(&mut echo).await.unwrap();
            assert_eq!(&echo, b"\x80\x03frames\x00");
        }
    }
}
