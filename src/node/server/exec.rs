//! Commands in containers, and the streams of containers themselves. Source: kubelet `pkg/kubelet/server/server.go` (`getExec`, `getAttach`).

use std::{fs::File, io, os::fd::AsRawFd, process::Stdio};

use axum::{
    extract::{Path, Request, State},
    http::StatusCode,
    response::Response,
};
use bytes::Bytes;
use futures::{StreamExt, stream};
use hyper_util::rt::TokioIo;
use nix::pty::Winsize;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
};

use super::{
    Context, is_websocket, offered, refuse,
    session::{CHANNELS, SPDY_VERSIONS, Streams, TerminalSize, Wanted, over_spdy, over_websocket},
    streams::{CHUNK, Writer, carry, pour},
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

pub async fn exec(State(context): State<Context>, Path((namespace, pod, container)): Place, request: Request) -> Response {
    let query = Query::parse(request.uri().query().unwrap_or_default());
    let command: Vec<String> = query.all("command").map(str::to_owned).collect();
    let Some(found) = running(&context, &namespace, &pod, &container) else { return gone(&container) };
    let (inner, has_terminal) = (context.clone(), query.flag("tty").unwrap_or(false));
    serve(&context, &query, request, async move |streams| match has_terminal {
        true => exec_terminal(&inner, &found, &command, streams).await,
        false => exec_pipes(&inner, &found, &command, streams).await,
    })
}

pub async fn attach(State(context): State<Context>, Path((namespace, pod, container)): Place, request: Request) -> Response {
    let query = Query::parse(request.uri().query().unwrap_or_default());
    let Some(found) = running(&context, &namespace, &pod, &container) else { return gone(&container) };
    let inner = context.clone();
    serve(&context, &query, request, async move |streams| join(&inner, &found, streams).await.map(|()| 0))
}

fn running(context: &Context, namespace: &str, pod: &str, container: &str) -> Option<Container> {
    let pod = context.agent.pod(namespace, pod)?;
    context.agent.container(&pod, container, false).filter(Container::is_running)
}

fn gone(container: &str) -> Response {
    refuse(StatusCode::NOT_FOUND, format!("container not found ({container:?})"))
}

/// Agrees on a protocol with the client, and does `run` with the streams of the session; the client is told the exit code that it comes to.
fn serve<R>(context: &Context, query: &Query, mut request: Request, run: impl FnOnce(Streams) -> R + Send + 'static) -> Response
where
    R: Future<Output = io::Result<i32>> + Send,
{
    let flag = |names: [&str; 2]| names.iter().any(|it| query.flag(it).unwrap_or(false));
    let wanted = Wanted { stdin: flag(["input", "stdin"]), stdout: flag(["output", "stdout"]), stderr: flag(["error", "stderr"]), tty: flag(["tty", "tty"]) };
    let (upgrade, tasks) = (hyper::upgrade::on(&mut request), context.tasks.clone());
    if is_websocket(&request) {
        let names = offered(&request, "sec-websocket-protocol");
        let Some(channels) = CHANNELS.iter().find(|it| names.iter().any(|name| name == it.name)).copied() else {
            return refuse(StatusCode::BAD_REQUEST, "no subprotocol that this node speaks was offered");
        };
        context.tasks.spawn("node-session-websocket", async move {
            let Ok(io) = upgrade.await else { return };
            let (streams, ending) = over_websocket(TokioIo::new(io), channels, wanted, &tasks).await;
            ending.tell(run(streams).await).await;
        });
        return switch_websocket(&request, channels.name);
    }
    let names = offered(&request, "x-stream-protocol-version");
    let Some((name, version)) = SPDY_VERSIONS.into_iter().find(|it| names.iter().any(|name| name == it.0)) else {
        let supported = SPDY_VERSIONS.map(|it| it.0);
        return refuse(StatusCode::FORBIDDEN, format!("unable to negotiate protocol: client supports {names:?}, server supports {supported:?}"));
    };
    context.tasks.spawn("node-session-spdy", async move {
        let Ok(io) = upgrade.await else { return };
        if let Ok((streams, ending)) = over_spdy(TokioIo::new(io), version, wanted, &tasks).await {
            ending.tell(run(streams).await).await;
        }
    });
    switch_spdy(name)
}

async fn exec_pipes(context: &Context, container: &Container, command: &[String], streams: Streams) -> io::Result<i32> {
    let mut command = tokio::process::Command::from(context.agent.runtime.exec(container, command, false)?);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn()?;
    if let (Some(from), Some(to)) = (streams.stdin, child.stdin.take()) {
        context.tasks.spawn("node-exec-stdin", pour(from, to));
    }
    let (out, err) = (carry(child.stdout.take(), streams.stdout), carry(child.stderr.take(), streams.stderr));
    let ((), (), status) = tokio::join!(out, err, child.wait());
    Ok(status?.code().unwrap_or(137))
}

async fn exec_terminal(context: &Context, container: &Container, command: &[String], streams: Streams) -> io::Result<i32> {
    let pid = container.pid().ok_or_else(|| io::Error::other("the container is not running"))?;
    let (master, slave) = terminal::open(format!("/proc/{pid}/root").as_ref())?;
    let mut command = tokio::process::Command::from(context.agent.runtime.exec(container, command, true)?);
    command.stdin(Stdio::from(slave.try_clone()?)).stdout(Stdio::from(slave.try_clone()?)).stderr(Stdio::from(slave)).kill_on_drop(true);
    let mut child = command.spawn()?;
    drop(command);
    let resized = master.try_clone()?;
    context.tasks.spawn("node-exec-resize", sizes(streams.sizes).for_each(move |size| {
        let size = Winsize { ws_row: size.height, ws_col: size.width, ws_xpixel: 0, ws_ypixel: 0 };
        terminal::resize(&resized, &size);
        std::future::ready(())
    }));
    let (writer, reader) = (tokio::fs::File::from_std(master.try_clone()?.into()), tokio::fs::File::from_std(master.into()));
    if let Some(from) = streams.stdin {
        context.tasks.spawn("node-exec-stdin", pour(from, writer));
    }
    // The terminal reads as broken once the last process has left it.
    carry(Some(reader), streams.stdout).await;
    Ok(child.wait().await?.code().unwrap_or(137))
}

/// Joins the streams of a container's own process, through its socket. The socket's path is short, so that its folder is named by a descriptor.
async fn join(context: &Context, container: &Container, streams: Streams) -> io::Result<()> {
    let folder = File::open(context.agent.runtime.folder(&container.id))?;
    let socket = UnixStream::connect(format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd())).await?;
    let (from, to) = socket.into_split();
    context.tasks.spawn("node-attach-input", send_input(to, streams.stdin, streams.sizes));
    receive_output(from, streams.stdout, streams.stderr).await
}

/// What comes on a stream, until its end.
fn chunks(from: mpsc::Receiver<Bytes>) -> impl stream::Stream<Item = Bytes> {
    stream::unfold(from, async |mut from| Some((from.recv().await?, from)))
}

fn sizes(from: Option<mpsc::Receiver<Bytes>>) -> impl stream::Stream<Item = TerminalSize> {
    stream::iter(from).flat_map(chunks).filter_map(async |it| serde_json::from_slice(&it).ok())
}

async fn send_input(mut to: OwnedWriteHalf, stdin: Option<mpsc::Receiver<Bytes>>, resize: Option<mpsc::Receiver<Bytes>>) {
    let closed = || stream::iter([frame(STDIN_CLOSED, &[])]);
    let input = stream::iter(stdin).flat_map(|it| chunks(it).map(|it| frame(STDIN, &it)).chain(closed()));
    let sizes = sizes(resize).map(|it| frame(RESIZE, &[it.height.to_be_bytes(), it.width.to_be_bytes()].concat()));
    let mut frames = std::pin::pin!(stream::select(input, sizes));
    while let Some(message) = frames.next().await {
        if to.write_all(&message).await.is_err() {
            return;
        }
    }
    // Closing this half would be read as leaving; it ends with the container or the session.
    std::future::pending().await
}

async fn receive_output(mut from: OwnedReadHalf, mut stdout: Option<Writer>, mut stderr: Option<Writer>) -> io::Result<()> {
    let (mut pending, mut buffer) = (Vec::new(), vec![0; CHUNK]);
    loop {
        let count = from.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        pending.extend_from_slice(&buffer[..count]);
        while let Some((kind, data)) = take_frame(&mut pending) {
            let writer = match kind {
                STDOUT => &mut stdout,
                STDERR => &mut stderr,
                _ => continue,
            };
            if let Some(to) = writer
                && to.send(data).await.is_err()
            {
                *writer = None;
            }
        }
        if stdout.is_none() && stderr.is_none() {
            return Ok(());
        }
    }
}
