//! Streams as channels of a WebSocket: a byte in front of each message tells its channel (`v5.channel.k8s.io`, KEP-4006, and the older forms).
//! Source: apimachinery `pkg/util/httpstream/wsstream`.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use futures::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Error, Message, Utf8Bytes,
        protocol::{CloseFrame, Role, frame::coding::CloseCode},
    },
};

use super::streams::{Outgoing, QUEUE};
use crate::base::Tasks;

/// An idle WebSocket is asked for a sign of life, so that proxies keep it.
const PING_EVERY: Duration = Duration::from_secs(5);
/// Version 5: the next byte names a channel whose sender is done.
const CLOSE: u8 = 255;

/// A subprotocol with channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Channels {
    pub name: &'static str,
    pub version: u8,
    is_base64: bool,
}

impl Channels {
    pub const fn binary(name: &'static str, version: u8) -> Self {
        Self { name, version, is_base64: false }
    }

    pub const fn base64(name: &'static str, version: u8) -> Self {
        Self { name, version, is_base64: true }
    }

    fn encode(self, channel: u8, data: &[u8]) -> Message {
        if self.is_base64 { Message::text(format!("{channel}{}", BASE64.encode(data))) } else { Message::binary([&[channel], data].concat()) }
    }

    pub fn decode(self, message: &[u8]) -> Option<(u8, Bytes)> {
        let (first, rest) = message.split_first()?;
        if self.is_base64 {
            return Some((first.wrapping_sub(b'0'), BASE64.decode(rest).ok()?.into()));
        }
        Some((*first, Bytes::copy_from_slice(rest)))
    }

    /// Serves an upgraded connection: what comes goes to `incoming` by its channel. Returns where to send; the connection ends when nobody can
    /// any more.
    pub async fn serve<S>(self, io: S, incoming: Vec<Option<mpsc::Sender<Bytes>>>, tasks: &Tasks) -> mpsc::Sender<Outgoing>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (sink, stream) = WebSocketStream::from_raw_socket(io, Role::Server, None).await.split();
        let (outgoing, frames) = mpsc::channel(QUEUE);
        tasks.spawn("websocket-write", async move {
            if let Err(error) = self.write(sink, frames).await {
                tracing::debug!(%error, "a session's client is gone");
            }
        });
        tasks.spawn("websocket-read", self.read(stream, incoming));
        outgoing
    }

    async fn read<S>(self, mut stream: SplitStream<WebSocketStream<S>>, mut incoming: Vec<Option<mpsc::Sender<Bytes>>>)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin,
    {
        while let Some(Ok(message)) = stream.next().await {
            let data = match &message {
                Message::Binary(data) => data.as_ref(),
                Message::Text(text) => text.as_bytes(),
                Message::Close(_) => break,
                _ => continue,
            };
            match self.decode(data) {
                Some((CLOSE, data)) if self.version >= 5 => drop(data.first().and_then(|it| incoming.get_mut(usize::from(*it))?.take())),
                Some((channel, data)) => {
                    if let Some(Some(reader)) = incoming.get(usize::from(channel)) {
                        let _ = reader.send(data).await;
                    }
                }
                None => (),
            }
        }
    }

    async fn write<S>(self, mut sink: SplitSink<WebSocketStream<S>, Message>, mut frames: mpsc::Receiver<Outgoing>) -> Result<(), Error>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin,
    {
        let mut pings = tokio::time::interval(PING_EVERY);
        loop {
            tokio::select! {
                frame = frames.recv() => match frame {
                    Some(Outgoing::Data(channel, data)) => sink.send(self.encode(channel as u8, &data)).await?,
                    Some(_) => (),
                    None => break,
                },
                _ = pings.tick() => sink.send(Message::Ping(Bytes::new())).await?,
            }
        }
        // Clients take anything but a normal closure for an error.
        sink.send(Message::Close(Some(CloseFrame { code: CloseCode::Normal, reason: Utf8Bytes::default() }))).await?;
        sink.close().await
    }
}
