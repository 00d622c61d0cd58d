//! The streams between a client and a pod, whichever protocol carries them: those of SPDY (`spdy.rs`), or channels of a WebSocket (`channels.rs`).

use std::io;

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::mpsc,
};

/// What is read at once of a process or a connection.
pub const CHUNK: usize = 32 << 10;
/// Chunks of one stream that wait for their reader, or of one connection for the client: 64 of at most 32 KiB each.
pub const QUEUE: usize = 64;

/// One stream: what the client sends, and the way back.
pub struct Stream {
    pub reader: mpsc::Receiver<Bytes>,
    pub writer: Writer,
}

/// What goes to the client, by the number of its stream.
pub enum Outgoing {
    Data(u32, Bytes),
    /// Nothing more comes on this stream.
    End(u32),
    /// Bytes of the protocol itself.
    Control(Vec<u8>),
}

/// The sending side of a stream. The connection ends with the last of its writers.
pub struct Writer {
    stream: u32,
    outgoing: mpsc::Sender<Outgoing>,
}

impl Writer {
    pub fn new(stream: impl Into<u32>, outgoing: &mpsc::Sender<Outgoing>) -> Self {
        Self { stream: stream.into(), outgoing: outgoing.clone() }
    }

    pub async fn send(&self, data: impl Into<Bytes>) -> io::Result<()> {
        self.outgoing.send(Outgoing::Data(self.stream, data.into())).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    pub async fn close(self) {
        let _ = self.outgoing.send(Outgoing::End(self.stream)).await;
    }
}

/// Sends what is read until it ends or nobody listens any more, and closes the stream.
pub async fn carry(from: Option<impl AsyncRead + Unpin>, to: Option<Writer>) {
    let (Some(mut from), Some(to)) = (from, to) else { return };
    let mut buffer = vec![0; CHUNK];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if to.send(Bytes::copy_from_slice(&buffer[..count])).await.is_err() {
            return;
        }
    }
    to.close().await;
}

/// Writes what the client sends until it ends or nobody takes it any more.
pub async fn pour(mut from: mpsc::Receiver<Bytes>, mut to: impl AsyncWrite + Unpin) {
    while let Some(data) = from.recv().await {
        if to.write_all(&data).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}
