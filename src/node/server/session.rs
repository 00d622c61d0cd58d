//! Exec and attach: the streams of one remote command, whichever protocol carries them.
//!
//! WebSocket: one channel byte in front of each message (`v5.channel.k8s.io`, KEP-4006, and the older forms); SPDY: one stream each,
//! told apart by their `streamtype`. Source: apiserver `pkg/util/proxy/websocket.go`, kubelet `pkg/cri/streaming/remotecommand`.

use std::{io, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use futures::{SinkExt, StreamExt, stream::SplitSink};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream},
    sync::{mpsc, oneshot},
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message, Utf8Bytes,
        protocol::{CloseFrame, Role, frame::coding::CloseCode},
    },
};

use super::spdy;
use crate::base::Tasks;

/// What is buffered between the wire and the command, for each stream.
const PIPE: usize = 64 << 10;
/// How long a SPDY client may take to open the streams it announced (`DefaultStreamCreationTimeout`).
const STREAMS_OPEN_WITHIN: Duration = Duration::from_secs(30);
/// An idle WebSocket is asked for a sign of life, so that proxies keep it.
const PING_EVERY: Duration = Duration::from_secs(5);

/// Which streams the client wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
pub struct TerminalSize {
    #[serde(rename = "Width")]
    pub width: u16,
    #[serde(rename = "Height")]
    pub height: u16,
}

/// The command's side of the streams. Dropping `stdout` and `stderr` ends them; then `outcome` tells how it went.
pub struct Session {
    pub stdin: Option<DuplexStream>,
    pub stdout: Option<DuplexStream>,
    pub stderr: Option<DuplexStream>,
    pub sizes: mpsc::Receiver<TerminalSize>,
    pub outcome: oneshot::Sender<Outcome>,
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Exited(i32),
    Failed(String),
}

impl Outcome {
    /// The `metav1.Status` that ends a session since protocol version 4.
    fn status(&self) -> Value {
        match self {
            Self::Exited(0) => json!({"metadata": {}, "status": "Success"}),
            Self::Exited(code) => json!({
                "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
                "message": format!("command terminated with non-zero exit code: command terminated with exit code {code}"),
                "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
            }),
            Self::Failed(why) => crate::meta::Status::internal(why).to_value(),
        }
    }

    /// Before version 4 the error was a text, and success nothing.
    fn text(&self) -> String {
        match self {
            Self::Exited(0) => String::new(),
            Self::Exited(code) => format!("command terminated with non-zero exit code: command terminated with exit code {code}"),
            Self::Failed(why) => why.clone(),
        }
    }
}

/// The wire's side of the streams.
struct Far {
    stdin: Option<DuplexStream>,
    stdout: Option<DuplexStream>,
    stderr: Option<DuplexStream>,
    sizes: mpsc::Sender<TerminalSize>,
    outcome: oneshot::Receiver<Outcome>,
}

fn pair(wanted: Wanted) -> (Session, Far) {
    let pipe = |is_wanted: bool| if is_wanted { Some(tokio::io::duplex(PIPE)).unzip() } else { (None, None) };
    let (stdin, far_stdin) = pipe(wanted.stdin);
    let (stdout, far_stdout) = pipe(wanted.stdout);
    let (stderr, far_stderr) = pipe(wanted.stderr && !wanted.tty);
    let (sizes_in, sizes) = mpsc::channel(4);
    let (outcome, outcome_out) = oneshot::channel();
    let far = Far { stdin: far_stdin, stdout: far_stdout, stderr: far_stderr, sizes: sizes_in, outcome: outcome_out };
    (Session { stdin, stdout, stderr, sizes, outcome }, far)
}

/// A WebSocket subprotocol for remote commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Channels {
    pub name: &'static str,
    version: u8,
    is_base64: bool,
}

/// What this server speaks.
pub const CHANNELS: &[Channels] = &[
    Channels { name: "v5.channel.k8s.io", version: 5, is_base64: false },
    Channels { name: "v4.channel.k8s.io", version: 4, is_base64: false },
    Channels { name: "v4.base64.channel.k8s.io", version: 4, is_base64: true },
    Channels { name: "channel.k8s.io", version: 1, is_base64: false },
    Channels { name: "base64.channel.k8s.io", version: 1, is_base64: true },
];

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// Version 5: the next byte names a channel whose sender is done.
const CLOSE: u8 = 255;

impl Channels {
    fn encode(self, channel: u8, data: &[u8]) -> Message {
        if self.is_base64 {
            return Message::text(format!("{channel}{}", BASE64.encode(data)));
        }
        let mut message = Vec::with_capacity(data.len() + 1);
        message.push(channel);
        message.extend(data);
        Message::binary(message)
    }

    fn decode(self, message: &[u8]) -> Option<(u8, Bytes)> {
        let (first, rest) = message.split_first()?;
        if self.is_base64 {
            return Some((first.wrapping_sub(b'0'), BASE64.decode(rest).ok()?.into()));
        }
        Some((*first, Bytes::copy_from_slice(rest)))
    }
}

/// Serves a remote command over an upgraded WebSocket connection.
pub async fn serve_websocket<S>(io: S, channels: Channels, wanted: Wanted, tasks: &Tasks, run: impl FnOnce(Session))
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let socket = WebSocketStream::from_raw_socket(io, Role::Server, None).await;
    let (sink, mut stream) = socket.split();
    let (session, far) = pair(wanted);
    run(session);
    let Far { mut stdin, stdout, stderr, sizes, outcome } = far;
    tasks.spawn("session-websocket-write", async move {
        if let Err(error) = write_channels(sink, channels, stdout, stderr, outcome).await {
            tracing::debug!(%error, "a session's client is gone");
        }
    });
    while let Some(Ok(message)) = stream.next().await {
        let data = match &message {
            Message::Binary(data) => data.as_ref(),
            Message::Text(text) => text.as_bytes(),
            Message::Close(_) => break,
            _ => continue,
        };
        match channels.decode(data) {
            Some((STDIN, data)) => write_or_drop(&mut stdin, &data).await,
            Some((RESIZE, data)) => resize(&sizes, &data).await,
            Some((CLOSE, data)) if channels.version >= 5 && data.as_ref() == [STDIN] => stdin = None,
            _ => (),
        }
    }
}

async fn write_or_drop(stdin: &mut Option<DuplexStream>, data: &[u8]) {
    if let Some(pipe) = stdin
        && pipe.write_all(data).await.is_err()
    {
        *stdin = None;
    }
}

async fn resize(sizes: &mpsc::Sender<TerminalSize>, data: &[u8]) {
    if let Ok(size) = serde_json::from_slice(data) {
        let _ = sizes.send(size).await;
    }
}

type Sink<S> = SplitSink<WebSocketStream<S>, Message>;
type SocketResult = Result<(), tokio_tungstenite::tungstenite::Error>;

/// Sends the output as it comes, then the outcome, then the close.
async fn write_channels<S>(
    mut sink: Sink<S>,
    channels: Channels,
    mut stdout: Option<DuplexStream>,
    mut stderr: Option<DuplexStream>,
    outcome: oneshot::Receiver<Outcome>,
) -> SocketResult
where
    S: AsyncRead + AsyncWrite + Send + Unpin,
{
    // An empty message on the first output channel tells the client that the connection stands.
    let first = if stdout.is_some() { STDOUT } else if stderr.is_some() { STDERR } else { ERROR };
    sink.send(channels.encode(first, &[])).await?;
    let (mut out, mut err) = (vec![0; PIPE / 2], vec![0; PIPE / 2]);
    let mut pings = tokio::time::interval(PING_EVERY);
    while stdout.is_some() || stderr.is_some() {
        tokio::select! {
            read = read_some(&mut stdout, &mut out) => forward(&mut sink, channels, STDOUT, &out[..read]).await?,
            read = read_some(&mut stderr, &mut err) => forward(&mut sink, channels, STDERR, &err[..read]).await?,
            _ = pings.tick() => sink.send(Message::Ping(Bytes::new())).await?,
        }
    }
    let outcome = outcome.await.unwrap_or_else(|_| Outcome::Failed("the session was dropped".to_owned()));
    if channels.version >= 4 {
        sink.send(channels.encode(ERROR, outcome.status().to_string().as_bytes())).await?;
    } else if outcome != Outcome::Exited(0) {
        sink.send(channels.encode(ERROR, outcome.text().as_bytes())).await?;
    }
    // Clients take anything but a normal closure for an error.
    sink.send(Message::Close(Some(CloseFrame { code: CloseCode::Normal, reason: Utf8Bytes::default() }))).await?;
    sink.close().await
}

async fn forward<S>(sink: &mut Sink<S>, channels: Channels, channel: u8, data: &[u8]) -> SocketResult
where
    S: AsyncRead + AsyncWrite + Send + Unpin,
{
    if data.is_empty() { Ok(()) } else { sink.send(channels.encode(channel, data)).await }
}

/// Reads what is there; the end of the pipe makes it `None` and reads nothing. Without a pipe it never completes.
async fn read_some(pipe: &mut Option<DuplexStream>, buffer: &mut [u8]) -> usize {
    let Some(reader) = pipe else { return std::future::pending().await };
    let read = reader.read(buffer).await.unwrap_or(0);
    if read == 0 {
        *pipe = None;
    }
    read
}

/// The SPDY protocol versions for remote commands, newest first.
pub const SPDY_VERSIONS: &[&str] = &["v5.channel.k8s.io", "v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];

/// Serves a remote command over an upgraded SPDY connection of protocol `version`.
pub async fn serve_spdy<S>(io: S, version: &str, wanted: Wanted, tasks: &Tasks, run: impl FnOnce(Session)) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let group = tasks.child();
    let mut accepted = spdy::serve(io, &group);
    let streams = timeout(STREAMS_OPEN_WITHIN, SpdyStreams::collect(&mut accepted, wanted, version)).await??;
    let (session, far) = pair(wanted);
    run(session);
    streams.pump(far, version, &group).await;
    group.stop(Duration::from_secs(1)).await;
    Ok(())
}

#[derive(Default)]
struct SpdyStreams {
    error: Option<spdy::Stream>,
    stdin: Option<spdy::Stream>,
    stdout: Option<spdy::Stream>,
    stderr: Option<spdy::Stream>,
    resize: Option<spdy::Stream>,
}

impl SpdyStreams {
    async fn collect(accepted: &mut mpsc::Receiver<spdy::Stream>, wanted: Wanted, version: &str) -> io::Result<Self> {
        let has_resize = wanted.tty && matches!(version, "v3.channel.k8s.io" | "v4.channel.k8s.io" | "v5.channel.k8s.io");
        let flags = [true, wanted.stdin, wanted.stdout, wanted.stderr && !wanted.tty, has_resize];
        let mut missing = flags.iter().filter(|it| **it).count();
        let mut streams = Self::default();
        while missing > 0 {
            let stream = accepted.recv().await.ok_or(io::ErrorKind::UnexpectedEof)?;
            let place = match stream.headers.get("streamtype").map(String::as_str) {
                Some("error") => &mut streams.error,
                Some("stdin") => &mut streams.stdin,
                Some("stdout") => &mut streams.stdout,
                Some("stderr") => &mut streams.stderr,
                Some("resize") => &mut streams.resize,
                _ => continue,
            };
            missing -= usize::from(place.is_none());
            *place = Some(stream);
        }
        Ok(streams)
    }

    async fn pump(self, far: Far, version: &str, tasks: &Tasks) {
        if let (Some(stream), Some(pipe)) = (self.stdin, far.stdin) {
            tasks.spawn("session-spdy-stdin", spdy_to_pipe(stream, pipe));
        }
        if let Some(stream) = self.resize {
            tasks.spawn("session-spdy-resize", spdy_sizes(stream, far.sizes));
        }
        let out = pipe_to_spdy(far.stdout, self.stdout.map(|it| it.writer));
        let err = pipe_to_spdy(far.stderr, self.stderr.map(|it| it.writer));
        let ((), (), outcome) = tokio::join!(out, err, far.outcome);
        let outcome = outcome.unwrap_or_else(|_| Outcome::Failed("the session was dropped".to_owned()));
        let Some(error) = self.error else { return };
        let text = if matches!(version, "v4.channel.k8s.io" | "v5.channel.k8s.io") { outcome.status().to_string() } else { outcome.text() };
        let _ = error.writer.send(text.as_bytes()).await;
        let _ = error.writer.close().await;
    }
}

async fn spdy_to_pipe(mut stream: spdy::Stream, mut pipe: DuplexStream) {
    while let Some(data) = stream.reader.recv().await {
        if pipe.write_all(&data).await.is_err() {
            return;
        }
    }
}

async fn spdy_sizes(mut stream: spdy::Stream, sizes: mpsc::Sender<TerminalSize>) {
    while let Some(data) = stream.reader.recv().await {
        resize(&sizes, &data).await;
    }
}

async fn pipe_to_spdy(pipe: Option<DuplexStream>, writer: Option<spdy::Writer>) {
    let (Some(mut pipe), Some(writer)) = (pipe, writer) else { return };
    let mut buffer = vec![0; PIPE / 2];
    while let Ok(read @ 1..) = pipe.read(&mut buffer).await {
        if writer.send(&buffer[..read]).await.is_err() {
            return;
        }
    }
    let _ = writer.close().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A command that gives its input back and exits with 3.
    fn echo(session: Session, tasks: &Tasks) {
        tasks.spawn("echo", async move {
            let Session { stdin, stdout, outcome, .. } = session;
            if let (Some(mut stdin), Some(mut stdout)) = (stdin, stdout) {
                let _ = tokio::io::copy(&mut stdin, &mut stdout).await;
            }
            let _ = outcome.send(Outcome::Exited(3));
        });
    }

    #[tokio::test]
    async fn websocket_channels_carry_a_command() {
        for (channels, hello, close) in [
            (CHANNELS[0], Message::binary(&b"\x00hello"[..]), Message::binary(&b"\xff\x00"[..])),
            (CHANNELS[2], Message::text("0aGVsbG8="), Message::Close(None)),
        ] {
            let tasks = Tasks::new();
            let (client, server) = tokio::io::duplex(1 << 16);
            let wanted = Wanted { stdin: true, stdout: true, ..Wanted::default() };
            let group = tasks.clone();
            tasks.spawn("server", async move {
                let inner = group.clone();
                serve_websocket(server, channels, wanted, &group, |session| echo(session, &inner)).await;
            });
            let mut client = WebSocketStream::from_raw_socket(client, Role::Client, None).await;
            client.send(hello).await.expect("send");
            let mut seen = Vec::new();
            let mut close = Some(close);
            while let Some(Ok(message)) = client.next().await {
                let data = message.into_data();
                let Some((channel, data)) = channels.decode(&data) else { continue };
                seen.push((channel, String::from_utf8_lossy(&data).into_owned()));
                if seen.contains(&(STDOUT, "hello".to_owned()))
                    && let Some(close) = close.take()
                {
                    client.send(close).await.expect("close");
                }
            }
            assert!(seen.contains(&(STDOUT, "hello".to_owned())), "{seen:?}");
            if channels.version == 5 {
                let (channel, status) = seen.last().expect("an outcome");
                assert_eq!(*channel, ERROR);
                assert!(status.contains("NonZeroExitCode") && status.contains("\"message\":\"3\""), "{status}");
            }
        }
    }
}
