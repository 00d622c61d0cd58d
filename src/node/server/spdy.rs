//! SPDY/3.1, as far as Kubernetes' streaming uses it: streams opened by the client, each with headers, over one connection.
//!
//! Like the library on the other side (moby/spdystream), this does no per-stream flow control: a stream whose reader is slow
//! holds up the connection, and so bounds the memory. Source: the SPDY draft 3.1; apimachinery `pkg/util/httpstream/spdy`.

use std::{collections::HashMap, io};

use bytes::{Bytes, BytesMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::mpsc,
};

use super::streams::{Outgoing, QUEUE, Stream, Writer};
use crate::base::Tasks;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;

const FLAG_FIN: u8 = 1;
const VERSION: u16 = 0x8003;
/// Client data and headers larger than this in one frame end the connection; clients send 32 KiB.
const FRAME_MAX: usize = 1 << 20;
/// Streams that wait to be accepted.
const ACCEPT_QUEUE: usize = 64;
/// The largest header block, decompressed.
const HEADERS_MAX: usize = 64 << 10;
/// What compresses header blocks well, by the draft; both sides know it.
const DICTIONARY: &[u8] = include_bytes!("spdy-dictionary.bin");

/// A stream that the client opened, with its headers; their names are in lower case.
pub type Opened = (HashMap<String, String>, Stream);

/// Serves SPDY on `io` and hands over the streams that the client opens. What is written goes out until nobody can write any more: `reading` has
/// stopped, or the client has left, and there are no writers.
pub fn serve(io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, tasks: &Tasks, reading: &Tasks) -> mpsc::Receiver<Opened> {
    let (reader, mut writer) = tokio::io::split(io);
    let (accept, accepted) = mpsc::channel(ACCEPT_QUEUE);
    let (frames, mut outgoing) = mpsc::channel(QUEUE);
    tasks.spawn("spdy-write", async move {
        while let Some(frame) = outgoing.recv().await {
            let frame = match frame {
                Outgoing::Data(stream, data) => data_frame(stream, 0, &data),
                Outgoing::End(stream) => data_frame(stream, FLAG_FIN, &[]),
                Outgoing::Control(frame) => frame,
            };
            if writer.write_all(&frame).await.is_err() || writer.flush().await.is_err() {
                break;
            }
        }
        let _ = writer.shutdown().await;
    });
    let connection = Connection { frames, accept, streams: HashMap::new(), headers: HeaderCodec::new() };
    reading.spawn("spdy-read", async move {
        if let Err(error) = connection.read(reader).await {
            tracing::debug!(%error, "a SPDY connection ended");
        }
    });
    accepted
}

struct Connection {
    frames: mpsc::Sender<Outgoing>,
    accept: mpsc::Sender<Opened>,
    streams: HashMap<u32, mpsc::Sender<Bytes>>,
    headers: HeaderCodec,
}

impl Connection {
    async fn read(mut self, mut reader: impl AsyncRead + Unpin) -> io::Result<()> {
        let mut head = [0u8; 8];
        loop {
            reader.read_exact(&mut head).await?;
            let flags = head[4];
            let length = usize::try_from(u32::from_be_bytes([0, head[5], head[6], head[7]])).unwrap_or(usize::MAX);
            if length > FRAME_MAX {
                return Err(invalid("a frame is too large"));
            }
            let mut body = BytesMut::zeroed(length);
            reader.read_exact(&mut body).await?;
            let body = body.freeze();
            let first = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
            let is_control = first >> 31 == 1;
            match (is_control, first as u16) {
                (false, _) => self.data(first, flags, body).await,
                (true, SYN_STREAM) => self.open(flags, &body).await?,
                (true, RST_STREAM) => _ = self.streams.remove(&word(&body, 0)?),
                (true, PING) => self.send(control_frame(PING, &body)).await?,
                (true, GOAWAY) => return Ok(()),
                _ => (),
            }
        }
    }

    async fn data(&mut self, id: u32, flags: u8, body: Bytes) {
        if let Some(stream) = self.streams.get(&id)
            && !body.is_empty()
        {
            // The reader may be gone; then the data is for nobody.
            let _ = stream.send(body).await;
        }
        if flags & FLAG_FIN != 0 {
            self.streams.remove(&id);
        }
    }

    async fn open(&mut self, flags: u8, body: &[u8]) -> io::Result<()> {
        let id = word(body, 0)? & 0x7fff_ffff;
        let headers = self.headers.decode(body.get(10..).unwrap_or_default())?;
        let (data, reader) = mpsc::channel(QUEUE);
        if flags & FLAG_FIN == 0 {
            self.streams.insert(id, data);
        }
        let reply = [id.to_be_bytes().as_slice(), &self.headers.encode_empty()?].concat();
        self.send(control_frame(SYN_REPLY, &reply)).await?;
        // Streams beyond those that are waited for are nobody's.
        let _ = self.accept.send((headers, Stream { reader, writer: Writer::new(id, &self.frames) })).await;
        Ok(())
    }

    async fn send(&self, frame: Vec<u8>) -> io::Result<()> {
        self.frames.send(Outgoing::Control(frame)).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// Header blocks share one compression state for each direction of a connection.
struct HeaderCodec {
    inflate: Decompress,
    deflate: Compress,
}

impl HeaderCodec {
    fn new() -> Self {
        let mut deflate = Compress::new(Compression::fast(), true);
        if let Err(error) = deflate.set_dictionary(DICTIONARY) {
            tracing::error!(%error, "the SPDY dictionary is refused");
        }
        Self { inflate: Decompress::new(true), deflate }
    }

    fn decode(&mut self, block: &[u8]) -> io::Result<HashMap<String, String>> {
        let bytes = self.inflate(block)?;
        let count = word(&bytes, 0)? as usize;
        let mut at = 4;
        let mut text = || -> io::Result<String> {
            let length = word(&bytes, at)? as usize;
            let slice = bytes.get(at + 4..).and_then(|it| it.get(..length)).ok_or_else(|| invalid("a header is cut off"))?;
            at += 4 + length;
            Ok(String::from_utf8_lossy(slice).into_owned())
        };
        // A header takes eight bytes at least, so that the count cannot make room for more than came.
        let mut headers = HashMap::with_capacity(count.min(bytes.len() / 8));
        for _ in 0..count {
            let name = text()?.to_ascii_lowercase();
            headers.insert(name, text()?);
        }
        Ok(headers)
    }

    fn inflate(&mut self, block: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::with_capacity(4 * block.len() + 256);
        let mut rest = block;
        loop {
            let before = (self.inflate.total_in(), out.len());
            let status = match self.inflate.decompress_vec(rest, &mut out, FlushDecompress::Sync) {
                Err(error) if error.needs_dictionary().is_some() => {
                    self.inflate.set_dictionary(DICTIONARY).map_err(io::Error::other)?;
                    Status::Ok
                }
                other => other.map_err(io::Error::other)?,
            };
            let consumed = (self.inflate.total_in() - before.0) as usize;
            rest = rest.get(consumed..).unwrap_or_default();
            if out.len() > HEADERS_MAX {
                return Err(invalid("the headers are too large"));
            }
            let is_stuck = consumed == 0 && out.len() == before.1 && status != Status::Ok;
            if (rest.is_empty() && out.len() < out.capacity()) || is_stuck {
                return Ok(out);
            }
            out.reserve(out.capacity().max(256));
        }
    }

    /// A block without headers: what a reply needs.
    fn encode_empty(&mut self) -> io::Result<Vec<u8>> {
        let mut out = Vec::with_capacity(64);
        self.deflate.compress_vec(&0u32.to_be_bytes(), &mut out, FlushCompress::Sync).map_err(io::Error::other)?;
        Ok(out)
    }
}

fn control_frame(kind: u16, body: &[u8]) -> Vec<u8> {
    data_frame(u32::from(VERSION) << 16 | u32::from(kind), 0, body)
}

fn data_frame(id: u32, flags: u8, data: &[u8]) -> Vec<u8> {
    let length = u32::from(flags) << 24 | data.len() as u32;
    [&id.to_be_bytes(), &length.to_be_bytes(), data].concat()
}

fn word(bytes: &[u8], at: usize) -> io::Result<u32> {
    let four = bytes.get(at..at + 4).and_then(|it| it.try_into().ok());
    four.map(u32::from_be_bytes).ok_or_else(|| invalid("a frame is cut off"))
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client's compressor, to make header blocks as clients do.
    struct Client(Compress);

    impl Client {
        fn new() -> Self {
            let mut compress = Compress::new(Compression::best(), true);
            compress.set_dictionary(DICTIONARY).expect("the dictionary");
            Self(compress)
        }

        fn open(&mut self, id: u32, headers: &[(&str, &str)]) -> Vec<u8> {
            let mut block = (headers.len() as u32).to_be_bytes().to_vec();
            for text in headers.iter().flat_map(|(name, value)| [name, value]) {
                block.extend((text.len() as u32).to_be_bytes());
                block.extend(text.as_bytes());
            }
            let mut out = Vec::with_capacity(1024);
            self.0.compress_vec(&block, &mut out, FlushCompress::Sync).expect("compress");
            control_frame(SYN_STREAM, &[id.to_be_bytes().as_slice(), &[0; 6], &out].concat())
        }
    }

    #[tokio::test]
    async fn streams_carry_headers_and_data_both_ways() {
        let tasks = Tasks::new();
        let (mut client, server) = tokio::io::duplex(1 << 16);
        let mut streams = serve(server, &tasks, &tasks);
        let mut headers = Client::new();
        for (id, kind) in [(1u32, "error"), (3, "stdin")] {
            client.write_all(&headers.open(id, &[("streamtype", kind)])).await.expect("open");
            let (found, mut stream) = streams.recv().await.expect("a stream");
            assert_eq!(found["streamtype"], kind);
            client.write_all(&data_frame(id, FLAG_FIN, b"hello")).await.expect("data");
            assert_eq!(stream.reader.recv().await.as_deref(), Some(b"hello".as_slice()));
            assert_eq!(stream.reader.recv().await, None);
            stream.writer.send("back").await.expect("send");
            stream.writer.close().await;
        }
        let mut seen = vec![0; 8];
        client.read_exact(&mut seen).await.expect("the reply");
        assert_eq!(seen[..4], [0x80, 3, 0, 2]);
    }

    #[tokio::test]
    async fn garbage_ends_the_connection() {
        for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0x80, 3, 0, 1, 0, 0, 0, 12, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 9, 9], &[0, 0, 0, 1, 0, 255, 255, 255]] {
            let tasks = Tasks::new();
            let (mut client, server) = tokio::io::duplex(1 << 16);
            let mut streams = serve(server, &tasks, &tasks);
            client.write_all(garbage).await.expect("write");
            client.shutdown().await.expect("shutdown");
            assert!(streams.recv().await.is_none());
        }
    }
}
