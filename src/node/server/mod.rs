//! The node's HTTPS server, as the kubelet's: logs, exec, attach, port-forward, health, metrics. It serves only those whose certificate says
//! that they are the API server or an administrator.

mod channels;
mod exec;
pub mod forward;
pub mod logs;
mod metrics;
mod session;
mod spdy;
mod streams;

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    extract::{Path, Request, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{any, get},
};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::agent::Agent;
use crate::{
    base::{Tasks, tasks},
    meta::options::Query,
};

/// The node and the tasks of its sessions.
#[derive(Clone)]
pub struct Context {
    pub agent: Arc<Agent>,
    pub tasks: Tasks,
}

/// Accepts TLS connections until `tasks` stop; `tls` asks for and checks client certificates.
pub async fn listen(agent: Arc<Agent>, listener: TcpListener, tls: Arc<rustls::ServerConfig>, tasks: Tasks) {
    let acceptor = TlsAcceptor::from(tls);
    let router = router(Context { agent, tasks: tasks.clone() });
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let (acceptor, router) = (acceptor.clone(), router.clone());
        tasks.spawn("node-connection", async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            if stream.get_ref().1.peer_certificates().is_none_or(|it| it.is_empty()) {
                return;
            }
            let service = hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
                let mut router = router.clone();
                async move { tower::Service::call(&mut router, request.map(Body::new)).await }
            });
            let served = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades();
            let _ = served.await;
        });
    }
}

fn router(context: Context) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/pods", get(pods))
        .route("/metrics", get(metrics::own))
        .route("/metrics/resource", get(metrics::resource))
        .route("/containerLogs/{namespace}/{pod}/{container}", get(container_logs))
        .route("/exec/{namespace}/{pod}/{container}", any(exec::exec))
        .route("/attach/{namespace}/{pod}/{container}", any(exec::attach))
        .route("/portForward/{namespace}/{pod}", any(forward::port_forward))
        .with_state(context)
}

fn refuse(code: StatusCode, why: impl Into<String>) -> Response {
    (code, why.into()).into_response()
}

/// The pods of the node, as it knows them.
async fn pods(State(context): State<Context>) -> Response {
    let items: Vec<_> = context.agent.pods().iter().map(|it| serde_json::to_value(&**it).unwrap_or_default()).collect();
    let list = serde_json::json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items});
    ([(header::CONTENT_TYPE, "application/json")], list.to_string()).into_response()
}

async fn container_logs(State(context): State<Context>, Path((namespace, pod, container)): Path<(String, String, String)>, request: Request) -> Response {
    let query = Query::parse(request.uri().query().unwrap_or_default());
    let Some(found) = context.agent.pod(&namespace, &pod) else { return refuse(StatusCode::NOT_FOUND, format!("pod {pod:?} not found")) };
    let previous = query.flag("previous").unwrap_or(false);
    let Some(current) = context.agent.container(&found, &container, previous) else {
        let why = match previous {
            true => format!("previous terminated container {container:?} in pod {pod:?} not found"),
            false => format!("container {container:?} in pod {pod:?} is waiting to start: ContainerCreating"),
        };
        return refuse(StatusCode::BAD_REQUEST, why);
    };
    match logs::Options::from_query(&query) {
        Ok(options) => logs::stream(context.agent.clone(), current, options).into_response(),
        Err(why) => refuse(StatusCode::BAD_REQUEST, why),
    }
}

/// The protocols that a client offers, in its order.
fn offered(request: &Request, name: &str) -> Vec<String> {
    let values = request.headers().get_all(name).iter().filter_map(|it| it.to_str().ok());
    values.flat_map(|it| it.split(',')).map(|it| it.trim().to_owned()).collect()
}

fn switch<const N: usize>(upgrade: &str, more: [(&str, &str); N]) -> Response {
    let headers = [("connection", "Upgrade"), ("upgrade", upgrade)].into_iter().chain(more).filter(|it| !it.1.is_empty());
    let response = Response::builder().status(StatusCode::SWITCHING_PROTOCOLS);
    let response = headers.fold(response, |response, (name, value)| response.header(name, value));
    response.body(Body::empty()).unwrap_or_else(|why| refuse(StatusCode::BAD_REQUEST, why.to_string()))
}

/// 101 for a WebSocket with this subprotocol.
fn switch_websocket(request: &Request, protocol: &str) -> Response {
    let Some(key) = request.headers().get(header::SEC_WEBSOCKET_KEY) else { return refuse(StatusCode::BAD_REQUEST, "no WebSocket key") };
    switch("websocket", [("sec-websocket-accept", &derive_accept_key(key.as_bytes())), ("sec-websocket-protocol", protocol)])
}

/// 101 for SPDY with this stream protocol.
fn switch_spdy(protocol: &str) -> Response {
    switch("SPDY/3.1", [("x-stream-protocol-version", protocol)])
}

fn is_websocket(request: &Request) -> bool {
    request.headers().get(header::UPGRADE).is_some_and(|it| it.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// Connects to a port of a pod from within its own network.
pub async fn dial(context: &Context, namespace: &str, pod: &str, port: u16) -> Result<tokio::net::TcpStream, String> {
    let found = context.agent.pod(namespace, pod).ok_or_else(|| format!("pod {pod:?} not found"))?;
    let is_host = found.spec.as_ref().and_then(|it| it.host_network) == Some(true);
    let network = context.agent.sandboxes.folder(found.metadata.uid.as_deref().unwrap_or_default()).join("net");
    let connect = move || {
        if !is_host {
            let file = std::fs::File::open(&network)?;
            nix::sched::setns(&file, nix::sched::CloneFlags::CLONE_NEWNET)?;
        }
        let stream = std::net::TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nonblocking(true)?;
        Ok::<_, std::io::Error>(stream)
    };
    let stream = tasks::blocking(move || tasks::on_own_thread(connect)).await.map_err(|why| why.to_string())?;
    let stream = stream.and_then(|it| it).map_err(|why| format!("failed to connect to localhost:{port} inside the pod: {why}"))?;
    tokio::net::TcpStream::from_std(stream).map_err(|why| why.to_string())
}
