//! DNS over UDP and TCP (RFC 1035, 7766), with forwarding to the host's resolvers.

use std::{io, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use hickory_proto::op::{Message, ResponseCode};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
    time::timeout,
};

use super::zone::{Outcome, Zone, reply};
use crate::base::Tasks;

/// The largest answer over UDP for clients that say they take it (the DNS flag day's figure).
pub const UDP_PAYLOAD: u16 = 1232;
/// Clients without EDNS take no more (RFC 1035, 4.2.1).
const UDP_PAYLOAD_PLAIN: usize = 512;
/// How long each of the host's resolvers is asked before the next one.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(2);
/// An idle TCP client is let go.
const TCP_IDLE: Duration = Duration::from_secs(10);
/// Forwarded queries and TCP clients at a time, 4 KiB each at the most: 4 MiB.
const MOST_AT_ONCE: usize = 1024;

/// A DNS server on one address.
pub struct Server {
    zone: Arc<ArcSwap<Zone>>,
    resolvers: Vec<SocketAddr>,
    places: Arc<Semaphore>,
}

impl Server {
    pub fn new(zone: Arc<ArcSwap<Zone>>, resolvers: Vec<SocketAddr>) -> Arc<Self> {
        Arc::new(Self { zone, resolvers, places: Arc::new(Semaphore::new(MOST_AT_ONCE)) })
    }

    /// Serves `udp` and `tcp`, which share an address, until `tasks` stop.
    pub fn start(self: &Arc<Self>, udp: UdpSocket, tcp: TcpListener, tasks: &Tasks) {
        let (server, group) = (self.clone(), tasks.clone());
        tasks.spawn_vital("dns-udp", async move { server.serve_udp(Arc::new(udp), &group).await });
        let (server, group) = (self.clone(), tasks.clone());
        tasks.spawn_vital("dns-tcp", async move { server.serve_tcp(tcp, &group).await });
    }

    async fn serve_udp(self: Arc<Self>, socket: Arc<UdpSocket>, tasks: &Tasks) {
        let mut buffer = vec![0; 4096];
        loop {
            let Ok((length, peer)) = socket.recv_from(&mut buffer).await else { continue };
            let Ok(request) = Message::from_vec(&buffer[..length]) else { continue };
            match self.zone.load().answer(&request) {
                Outcome::Answer(answer) => send(&socket, peer, &request, answer).await,
                Outcome::Forward => self.forward_udp(&socket, peer, request, tasks),
            }
        }
    }

    fn forward_udp(self: &Arc<Self>, socket: &Arc<UdpSocket>, peer: SocketAddr, request: Message, tasks: &Tasks) {
        let Ok(place) = self.places.clone().try_acquire_owned() else { return };
        let (server, socket) = (self.clone(), socket.clone());
        tasks.spawn("dns-forward", async move {
            let answer = server.forward(&request).await;
            send(&socket, peer, &request, answer).await;
            drop(place);
        });
    }

    async fn serve_tcp(self: Arc<Self>, listener: TcpListener, tasks: &Tasks) {
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            let Ok(place) = self.places.clone().try_acquire_owned() else { continue };
            let server = self.clone();
            tasks.spawn("dns-tcp-client", async move {
                let _ = server.serve_stream(stream).await;
                drop(place);
            });
        }
    }

    async fn serve_stream(&self, mut stream: TcpStream) -> io::Result<()> {
        loop {
            let request = timeout(TCP_IDLE, read_message(&mut stream)).await??;
            let outcome = self.zone.load().answer(&request);
            let answer = match outcome {
                Outcome::Answer(answer) => answer,
                Outcome::Forward => self.forward(&request).await,
            };
            timeout(TCP_IDLE, write_message(&mut stream, &answer)).await??;
        }
    }

    /// Asks the host's resolvers one after the other; SERVFAIL when none answers.
    async fn forward(&self, request: &Message) -> Message {
        for resolver in &self.resolvers {
            match timeout(FORWARD_TIMEOUT, ask(*resolver, request)).await {
                Ok(Ok(answer)) => return answer,
                Ok(Err(error)) => tracing::debug!(%resolver, %error, "a resolver of the host failed"),
                Err(_) => tracing::debug!(%resolver, "a resolver of the host did not answer"),
            }
        }
        reply(request, ResponseCode::ServFail)
    }
}

/// The host's resolvers, from a resolv.conf; those on loopback are left out where they would be this server itself.
pub fn resolvers(path: &Path) -> Vec<SocketAddr> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let servers = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    servers.filter_map(|it| it.trim().parse().ok()).map(|ip| SocketAddr::new(ip, 53)).collect()
}

async fn send(socket: &UdpSocket, peer: SocketAddr, request: &Message, answer: Message) {
    let limit = request.edns.as_ref().map_or(UDP_PAYLOAD_PLAIN, |it| usize::from(it.max_payload().clamp(512, UDP_PAYLOAD)));
    let bytes = match answer.to_vec() {
        Ok(bytes) if bytes.len() > limit => answer.truncate().to_vec(),
        other => other,
    };
    match bytes {
        Ok(bytes) => _ = socket.send_to(&bytes, peer).await,
        Err(error) => tracing::debug!(%error, "an answer could not be encoded"),
    }
}

async fn ask(resolver: SocketAddr, request: &Message) -> io::Result<Message> {
    let local = if resolver.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(local).await?;
    socket.connect(resolver).await?;
    socket.send(&request.to_vec().map_err(io::Error::other)?).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        let answer = Message::from_vec(&buffer[..length]).map_err(io::Error::other)?;
        if answer.metadata.id != request.metadata.id {
            continue;
        }
        if !answer.metadata.truncation {
            return Ok(answer);
        }
        let mut stream = TcpStream::connect(resolver).await?;
        write_message(&mut stream, request).await?;
        return read_message(&mut stream).await;
    }
}

async fn read_message(stream: &mut TcpStream) -> io::Result<Message> {
    let length = stream.read_u16().await?;
    let mut bytes = vec![0; usize::from(length)];
    stream.read_exact(&mut bytes).await?;
    Message::from_vec(&bytes).map_err(io::Error::other)
}

async fn write_message(stream: &mut TcpStream, message: &Message) -> io::Result<()> {
    let bytes = message.to_vec().map_err(io::Error::other)?;
    let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    stream.write_u16(length).await?;
    stream.write_all(&bytes).await
}
