//! Commands in containers, and the streams of containers themselves. Source: kubelet `pkg/kubelet/server/server.go` (`getExec`, `getAttach`).

use std::{fs::File, os::fd::AsRawFd, process::Stdio};

use axum::{
    extract::{Path, Request, State},
    http::StatusCode,
    response::Response,
};
use hyper_util::rt::TokioIo;
use nix::pty::Winsize;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixStream, unix::{OwnedReadHalf, OwnedWriteHalf}},
};

use super::{
    Context, is_websocket, offered, refuse,
    session::{CHANNELS, Outcome, SPDY_VERSIONS, Session, TerminalSize, Wanted, serve_spdy, serve_websocket},
    switch_spdy, switch_websocket,
};
use crate::{
    meta::options::Query,
    node::runtime::{
        Container,
        streams::{RESIZE, SOCKET, STDERR, STDIN, STDIN_CLOSED, STDOUT, frame, take_frame},
        terminal,
    },
};

type Place = Path<(String, String, String)>;
type Pipe = Option<tokio::io::DuplexStream>;

/// What of an attached container's output is read at once.
const CHUNK: usize = 16 << 10;

pub async fn exec(State(context): State<Context>, Path((namespace, pod, container)): Place, request: Request) -> Response {
    let query = Query::parse(request.uri().query().unwrap_or_default());
    let command: Vec<String> = query.all("command").map(str::to_owned).collect();
    let Some(found) = running(&context, &namespace, &pod, &container) else { return gone(&container) };
    let inner = context.clone();
    let has_terminal = query.flag("tty").unwrap_or(false);
    serve(&context, &query, request, move |session| {
        let group = inner.tasks.clone();
        group.spawn("node-exec", async move { run_exec(&inner, &found, &command, has_terminal, session).await });
    })
}

pub async fn attach(State(context): State<Context>, Path((namespace, pod, container)): Place, request: Request) -> Response {
    let query = Query::parse(request.uri().query().unwrap_or_default());
    let Some(found) = running(&context, &namespace, &pod, &container) else { return gone(&container) };
    let inner = context.clone();
    serve(&context, &query, request, move |session| {
        let group = inner.tasks.clone();
        group.spawn("node-attach", async move { run_attach(&inner, &found, session).await });
    })
}

fn running(context: &Context, namespace: &str, pod: &str, container: &str) -> Option<Container> {
    let pod = context.agent.pod(namespace, pod)?;
    context.agent.container(&pod, container, false).filter(Container::is_running)
}

fn gone(container: &str) -> Response {
    refuse(StatusCode::NOT_FOUND, format!("container not found ({container:?})"))
}

/// Agrees on a protocol with the client, and runs the session over it.
fn serve(context: &Context, query: &Query, mut request: Request, run: impl FnOnce(Session) + Send + 'static) -> Response {
    let flag = |names: [&str; 2]| names.iter().any(|it| query.flag(it).unwrap_or(false));
    let wanted = Wanted { stdin: flag(["input", "stdin"]), stdout: flag(["output", "stdout"]), stderr: flag(["error", "stderr"]), tty: flag(["tty", "tty"]) };
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
async fn run_exec(context: &Context, container: &Container, command: &[String], has_terminal: bool, session: Session) {
    let Session { stdin, stdout, stderr, sizes, outcome } = session;
    let result = match has_terminal {
        true => exec_terminal(context, container, command, (stdin, stdout), sizes).await,
        false => exec_pipes(context, container, command, stdin, stdout, stderr).await,
    };
    let _ = outcome.send(result.map_or_else(|why| Outcome::Failed(why.to_string()), Outcome::Exited));
}

async fn exec_pipes(context: &Context, container: &Container, command: &[String], stdin: Pipe, stdout: Pipe, stderr: Pipe) -> std::io::Result<i32> {
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
    container: &Container,
    command: &[String],
    (stdin, stdout): (Pipe, Pipe),
    mut sizes: tokio::sync::mpsc::Receiver<TerminalSize>,
) -> std::io::Result<i32> {
    let pid = container.pid().ok_or_else(|| std::io::Error::other("the container is not running"))?;
    let (master, slave) = terminal::open(format!("/proc/{pid}/root").as_ref())?;
    let mut command = tokio::process::Command::from(context.agent.runtime.exec(container, command, true)?);
    command.stdin(Stdio::from(slave.try_clone()?)).stdout(Stdio::from(slave.try_clone()?)).stderr(Stdio::from(slave)).kill_on_drop(true);
    let mut child = command.spawn()?;
    drop(command);
    let resized = master.try_clone()?;
    context.tasks.spawn("node-exec-resize", async move {
        while let Some(size) = sizes.recv().await {
            let size = Winsize { ws_row: size.height, ws_col: size.width, ws_xpixel: 0, ws_ypixel: 0 };
            terminal::resize(&resized, &size);
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

/// Joins the streams of a container's own process.
async fn run_attach(context: &Context, container: &Container, session: Session) {
    let Session { stdin, stdout, stderr, sizes, outcome } = session;
    let result = match connect(context, container).await {
        Ok(socket) => {
            let (from, to) = socket.into_split();
            context.tasks.spawn("node-attach-input", send_input(to, stdin, sizes));
            receive_output(from, stdout, stderr).await
        }
        Err(why) => Err(why),
    };
    let _ = outcome.send(result.map_or_else(|why| Outcome::Failed(why.to_string()), |()| Outcome::Exited(0)));
}

/// The path of a socket is short, so that its folder is named by a descriptor.
async fn connect(context: &Context, container: &Container) -> std::io::Result<UnixStream> {
    let folder = File::open(context.agent.runtime.folder(&container.id))?;
    UnixStream::connect(format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd())).await
}

async fn send_input(mut to: OwnedWriteHalf, mut stdin: Pipe, mut sizes: tokio::sync::mpsc::Receiver<TerminalSize>) {
    let mut buffer = vec![0; CHUNK];
    let mut has_sizes = true;
    while stdin.is_some() || has_sizes {
        let input = async {
            match &mut stdin {
                Some(stdin) => stdin.read(&mut buffer).await.unwrap_or(0),
                None => std::future::pending().await,
            }
        };
        let message = tokio::select! {
            count = input => match count {
                0 => {
                    stdin = None;
                    frame(STDIN_CLOSED, &[])
                }
                count => frame(STDIN, &buffer[..count]),
            },
            size = sizes.recv(), if has_sizes => match size {
                Some(size) => frame(RESIZE, &[size.height.to_be_bytes(), size.width.to_be_bytes()].concat()),
                None => {
                    has_sizes = false;
                    continue;
                }
            },
        };
        if to.write_all(&message).await.is_err() {
            return;
        }
    }
    // Closing this half would be read as leaving; it ends with the container or the session.
    std::future::pending().await
}

async fn receive_output(mut from: OwnedReadHalf, mut stdout: Pipe, mut stderr: Pipe) -> std::io::Result<()> {
    let (mut pending, mut buffer) = (Vec::new(), vec![0; CHUNK]);
    loop {
        let count = from.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        pending.extend_from_slice(&buffer[..count]);
        while let Some((kind, data)) = take_frame(&mut pending) {
            let pipe = match kind {
                STDOUT => &mut stdout,
                STDERR => &mut stderr,
                _ => continue,
            };
            if let Some(writer) = pipe
                && writer.write_all(&data).await.is_err()
            {
                *pipe = None;
            }
        }
        if stdout.is_none() && stderr.is_none() {
            return Ok(());
        }
    }
}
