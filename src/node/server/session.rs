//! Exec and attach: the streams of one remote command, whichever protocol carries them.
//!
//! WebSocket: a channel each (`channels.rs`); SPDY: a stream each, told apart by their `streamtype`. Source: apiserver
//! `pkg/util/proxy/websocket.go`, kubelet `pkg/cri/streaming/remotecommand`.

use std::{collections::HashMap, io, time::Duration};

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
    time::timeout,
};

use super::{
    channels::Channels,
    spdy,
    streams::{QUEUE, Stream, Writer},
};
use crate::base::Tasks;

/// How long a SPDY client may take to open the streams it announced (`DefaultStreamCreationTimeout`).
const STREAMS_OPEN_WITHIN: Duration = Duration::from_secs(30);

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

/// The command's side of a session.
#[derive(Default)]
pub struct Streams {
    pub stdin: Option<mpsc::Receiver<Bytes>>,
    pub stdout: Option<Writer>,
    pub stderr: Option<Writer>,
    /// Sizes of the terminal, as JSON.
    pub sizes: Option<mpsc::Receiver<Bytes>>,
}

/// Where the session's outcome is told, once.
pub struct Ending {
    error: Writer,
    version: u8,
    /// What of the connection does not end by itself.
    reading: Tasks,
}

impl Ending {
    /// Tells the exit code of a command, or why it could not be run.
    pub async fn tell(self, outcome: io::Result<i32>) {
        let text = if self.version >= 4 { status(&outcome).to_string() } else { text(&outcome) };
        if !text.is_empty() {
            let _ = self.error.send(text).await;
        }
        self.error.close().await;
        self.reading.cancel();
    }
}

/// The `metav1.Status` that ends a session since protocol version 4.
fn status(outcome: &io::Result<i32>) -> Value {
    match outcome {
        Ok(0) => json!({"metadata": {}, "status": "Success"}),
        Ok(code) => json!({
            "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode", "message": text(outcome),
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
        }),
        Err(why) => crate::meta::Status::internal(why).to_value(),
    }
}

/// Before version 4 the error was a text, and success nothing.
fn text(outcome: &io::Result<i32>) -> String {
    match outcome {
        Ok(0) => String::new(),
        Ok(code) => format!("command terminated with non-zero exit code: command terminated with exit code {code}"),
        Err(why) => why.to_string(),
    }
}

/// The subprotocols of WebSockets for remote commands, the newest first.
pub const CHANNELS: &[Channels] = &[
    Channels::binary("v5.channel.k8s.io", 5),
    Channels::binary("v4.channel.k8s.io", 4),
    Channels::base64("v4.base64.channel.k8s.io", 4),
    Channels::binary("channel.k8s.io", 1),
    Channels::base64("base64.channel.k8s.io", 1),
];

const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;

/// A remote command over an upgraded WebSocket connection.
pub async fn over_websocket<S>(io: S, channels: Channels, wanted: Wanted, tasks: &Tasks) -> (Streams, Ending)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (stdin, stdin_reader) = mpsc::channel(QUEUE);
    let (sizes, sizes_reader) = mpsc::channel(QUEUE);
    let outgoing = channels.serve(io, vec![wanted.stdin.then_some(stdin), None, None, None, Some(sizes)], tasks).await;
    let writer = |channel: u8, is_wanted: bool| is_wanted.then(|| Writer::new(channel, &outgoing));
    let (stdout, stderr) = (writer(STDOUT, wanted.stdout), writer(STDERR, wanted.stderr && !wanted.tty));
    let ending = Ending { error: Writer::new(ERROR, &outgoing), version: channels.version, reading: tasks.child() };
    // An empty message on the first output channel tells the client that the connection stands.
    let _ = stdout.as_ref().or(stderr.as_ref()).unwrap_or(&ending.error).send(Bytes::new()).await;
    (Streams { stdin: wanted.stdin.then_some(stdin_reader), stdout, stderr, sizes: Some(sizes_reader) }, ending)
}

/// The SPDY protocol versions for remote commands, the newest first.
pub const SPDY_VERSIONS: [(&str, u8); 5] =
    [("v5.channel.k8s.io", 5), ("v4.channel.k8s.io", 4), ("v3.channel.k8s.io", 3), ("v2.channel.k8s.io", 2), ("channel.k8s.io", 1)];

/// A remote command over an upgraded SPDY connection, once the client has opened its streams.
pub async fn over_spdy<S>(io: S, version: u8, wanted: Wanted, tasks: &Tasks) -> io::Result<(Streams, Ending)>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let reading = tasks.child();
    let mut accepted = spdy::serve(io, tasks, &reading);
    let kinds = [("error", true), ("stdin", wanted.stdin), ("stdout", wanted.stdout), ("stderr", wanted.stderr && !wanted.tty), ("resize", wanted.tty && version >= 3)];
    let kinds: Vec<&str> = kinds.into_iter().filter(|it| it.1).map(|it| it.0).collect();
    let collect = async {
        let mut streams: HashMap<String, Stream> = HashMap::new();
        while streams.len() < kinds.len() {
            let (headers, stream) = accepted.recv().await.ok_or(io::ErrorKind::UnexpectedEof)?;
            let kind = headers.get("streamtype").filter(|it| kinds.contains(&it.as_str()));
            streams.extend(kind.cloned().map(|it| (it, stream)));
        }
        Ok::<_, io::Error>(streams)
    };
    let mut streams = timeout(STREAMS_OPEN_WITHIN, collect).await??;
    let mut take = |kind: &str| streams.remove(kind);
    let error = take("error").ok_or(io::ErrorKind::UnexpectedEof)?.writer;
    let [stdin, sizes] = ["stdin", "resize"].map(|it| take(it).map(|it| it.reader));
    let [stdout, stderr] = ["stdout", "stderr"].map(|it| take(it).map(|it| it.writer));
    Ok((Streams { stdin, stdout, stderr, sizes }, Ending { error, version, reading }))
}

#[cfg(test)]
mod tests {
    use futures::{SinkExt, StreamExt};
    use tokio_tungstenite::{
        WebSocketStream,
        tungstenite::{Message, protocol::Role},
    };

    use super::*;

    /// A command that gives its input back and exits with 3.
    async fn echo(streams: Streams) -> io::Result<i32> {
        if let (Some(mut stdin), Some(stdout)) = (streams.stdin, streams.stdout) {
            while let Some(data) = stdin.recv().await {
                stdout.send(data).await?;
            }
        }
        Ok(3)
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
                let (streams, ending) = over_websocket(server, channels, wanted, &group).await;
                ending.tell(echo(streams).await).await;
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
