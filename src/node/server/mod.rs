//! The node's HTTPS server, as the kubelet's: logs, exec, port-forward, pods, health. It serves only those whose certificate says
//! that they are the API server or an administrator.

pub mod forward;
pub mod logs;
pub mod session;
mod spdy;

use std::{process::Stdio, sync::Arc};

use axum::{
    Router,
    body::Body,
    extract::{Path, Request, State},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{any, get},
};
use hyper_util::rt::TokioIo;
use nix::pty::{OpenptyResult, Winsize, openpty};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use self::session::{CHANNELS, Outcome, SPDY_VERSIONS, Session, TerminalSize, Wanted, serve_spdy, serve_websocket};
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
        .route("/containerLogs/{namespace}/{pod}/{container}", get(container_logs))
        .route("/exec/{namespace}/{pod}/{container}", any(exec))
        .route("/portForward/{namespace}/{pod}", any(forward::port_forward))
        .with_state(context)
}

fn refuse(code: StatusCode, why: impl Into<String>) -> Response {
    (code, why.into()).into_response()
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

/// 101 for a WebSocket with this subprotocol.
fn switch_websocket(request: &Request, protocol: &str) -> Option<Response> {
    let key = request.headers().get(header::SEC_WEBSOCKET_KEY)?;
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, HeaderValue::from_str(&derive_accept_key(key.as_bytes())).ok()?);
    if !protocol.is_empty() {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_str(protocol).ok()?);
    }
    Some(response)
}

/// 101 for SPDY with this stream protocol.
fn switch_spdy(protocol: &str) -> Option<Response> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("SPDY/3.1"));
    headers.insert("X-Stream-Protocol-Version", HeaderValue::from_str(protocol).ok()?);
    Some(response)
}

fn is_websocket(request: &Request) -> bool {
    request.headers().get(header::UPGRADE).is_some_and(|it| it.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

async fn exec(State(context): State<Context>, Path((namespace, pod, container)): Path<(String, String, String)>, mut request: Request) -> Response {
    let query = Query::parse(request.uri().query().unwrap_or_default());
    let command: Vec<String> = query.all("command").map(str::to_owned).collect();
    let flag = |names: [&str; 2]| names.iter().any(|it| query.flag(it).unwrap_or(false));
    let wanted = Wanted { stdin: flag(["input", "stdin"]), stdout: flag(["output", "stdout"]), stderr: flag(["error", "stderr"]), tty: flag(["tty", "tty"]) };
    let found = context.agent.pod(&namespace, &pod).and_then(|it| context.agent.container(&it, &container, false)).filter(|it| it.is_running());
    let Some(found) = found else { return refuse(StatusCode::NOT_FOUND, format!("container not found ({container:?})")) };
    let run = {
        let (context, command) = (context.clone(), command.clone());
        move |session: Session| {
            let inner = context.clone();
            context.tasks.spawn("node-exec", async move { run_exec(&inner, &found, &command, wanted.tty, session).await });
        }
    };
    let upgrade = hyper::upgrade::on(&mut request);
    if is_websocket(&request) {
        let names = offered(&request, "sec-websocket-protocol");
        let Some(channels) = CHANNELS.iter().find(|it| names.iter().any(|name| name == it.name)).copied() else {
            return refuse(StatusCode::BAD_REQUEST, "no subprotocol that this node speaks was offered");
        };
        let group = context.tasks.clone();
        context.tasks.spawn("node-exec-websocket", async move {
            if let Ok(io) = upgrade.await {
                serve_websocket(TokioIo::new(io), channels, wanted, &group, run).await;
            }
        });
        return switch_websocket(&request, channels.name).unwrap_or_else(|| refuse(StatusCode::BAD_REQUEST, "no WebSocket key"));
    }
    let names = offered(&request, "x-stream-protocol-version");
    let Some(version) = SPDY_VERSIONS.iter().find(|it| names.iter().any(|name| name == *it)).copied() else {
        return refuse(StatusCode::FORBIDDEN, format!("unable to negotiate protocol: client supports {names:?}, server supports {SPDY_VERSIONS:?}"));
    };
    let group = context.tasks.clone();
    context.tasks.spawn("node-exec-spdy", async move {
        if let Ok(io) = upgrade.await {
            let _ = serve_spdy(TokioIo::new(io), version, wanted, &group, run).await;
        }
    });
    switch_spdy(version).unwrap_or_else(|| refuse(StatusCode::BAD_REQUEST, "no protocol"))
}

/// Runs a command in a container with the streams of a session.
async fn run_exec(context: &Context, container: &super::runtime::Container, command: &[String], has_terminal: bool, session: Session) {
    let Session { stdin, stdout, stderr, sizes, outcome } = session;
    let result = match has_terminal {
        true => exec_terminal(context, container, command, (stdin, stdout), sizes).await,
        false => exec_pipes(context, container, command, stdin, stdout, stderr).await,
    };
    let _ = outcome.send(result.map_or_else(|why| Outcome::Failed(why.to_string()), Outcome::Exited));
}

type Pipe = Option<tokio::io::DuplexStream>;

async fn exec_pipes(context: &Context, container: &super::runtime::Container, command: &[String], stdin: Pipe, stdout: Pipe, stderr: Pipe) -> std::io::Result<i32> {
    let mut command = tokio::process::Command::from(context.agent.runtime.exec(container, command, false)?);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn()?;
    if let (Some(mut from), Some(mut to)) = (stdin, child.stdin.take()) {
        context.tasks.spawn("node-exec-stdin", async move {
            let _ = tokio::io::copy(&mut from, &mut to).await;
        });
    }
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let copy_out = async move {
        if let (Some(mut from), Some(mut to)) = (out, stdout) {
            let _ = tokio::io::copy(&mut from, &mut to).await;
        }
    };
    let copy_err = async move {
        if let (Some(mut from), Some(mut to)) = (err, stderr) {
            let _ = tokio::io::copy(&mut from, &mut to).await;
        }
    };
    let ((), (), status) = tokio::join!(copy_out, copy_err, child.wait());
    Ok(status?.code().unwrap_or(137))
}

async fn exec_terminal(
    context: &Context,
    container: &super::runtime::Container,
    command: &[String],
    (stdin, stdout): (Pipe, Pipe),
    mut sizes: tokio::sync::mpsc::Receiver<TerminalSize>,
) -> std::io::Result<i32> {
    let OpenptyResult { master, slave } = openpty(None, None)?;
    let mut command = tokio::process::Command::from(context.agent.runtime.exec(container, command, true)?);
    command.stdin(Stdio::from(slave.try_clone()?)).stdout(Stdio::from(slave.try_clone()?)).stderr(Stdio::from(slave)).kill_on_drop(true);
    let mut child = command.spawn()?;
    drop(command);
    let resized = master.try_clone()?;
    context.tasks.spawn("node-exec-resize", async move {
        while let Some(size) = sizes.recv().await {
            let size = Winsize { ws_row: size.height, ws_col: size.width, ws_xpixel: 0, ws_ypixel: 0 };
            super::runtime::launcher::resize(&resized, &size);
        }
    });
    let (mut writer, mut reader) = (tokio::fs::File::from_std(master.try_clone()?.into()), tokio::fs::File::from_std(master.into()));
    if let Some(mut from) = stdin {
        context.tasks.spawn("node-exec-stdin", async move {
            let _ = tokio::io::copy(&mut from, &mut writer).await;
        });
    }
    if let Some(mut to) = stdout {
        // The terminal reads as broken once the last process has left it.
        let _ = tokio::io::copy(&mut reader, &mut to).await;
    }
    Ok(child.wait().await?.code().unwrap_or(137))
}

/// Connects to a port of a pod from within its own network.
pub async fn dial(context: &Context, namespace: &str, pod: &str, port: u16) -> Result<tokio::net::TcpStream, String> {
    let found = context.agent.pod(namespace, pod).ok_or_else(|| format!("pod {pod:?} not found"))?;
    let is_host = found.spec.as_ref().and_then(|it| it.host_network) == Some(true);
    let network = context.agent.pod_folder(found.metadata.uid.as_deref().unwrap_or_default()).join("net");
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
