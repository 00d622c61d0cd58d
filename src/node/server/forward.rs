//! Port-forward: SPDY streams, alone or inside a WebSocket (KEP-4006), and the older WebSocket channels.
//! Source: kubelet `pkg/cri/streaming/portforward`.

use std::{collections::HashMap, num::IntErrorKind};

use axum::{
    extract::{Path, Request, State},
    http::StatusCode,
    response::Response,
};
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, protocol::Role},
};

use super::{Context, dial, is_websocket, offered, refuse, spdy, switch_spdy, switch_websocket};
use crate::meta::options::Query;

const PROTOCOL: &str = "portforward.k8s.io";
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
const CHANNELS: [&str; 2] = ["v4.channel.k8s.io", "portforward.k8s.io"];
const PIPE: usize = 64 << 10;

pub async fn port_forward(State(context): State<Context>, Path((namespace, pod)): Path<(String, String)>, mut request: Request) -> Response {
    let upgrade = hyper::upgrade::on(&mut request);
    let place = (namespace, pod);
    let group = context.tasks.clone();
    if !is_websocket(&request) {
        group.spawn("node-forward-spdy", async move {
            if let Ok(io) = upgrade.await {
                serve(context, place, TokioIo::new(io)).await;
            }
        });
        return switch_spdy(PROTOCOL).unwrap_or_else(|| refuse(StatusCode::BAD_REQUEST, "no protocol"));
    }
    let names = offered(&request, "sec-websocket-protocol");
    let has_tunnel = names.iter().any(|it| it == TUNNEL);
    let ports = match ports(request.uri().query().unwrap_or_default()) {
        Err(why) if !has_tunnel => return refuse(StatusCode::BAD_REQUEST, why),
        ports => ports.unwrap_or_default(),
    };
    let protocol = if has_tunnel { TUNNEL } else { CHANNELS.into_iter().find(|it| names.iter().any(|name| name == it)).unwrap_or_default() };
    group.spawn("node-forward-websocket", async move {
        let Ok(io) = upgrade.await else { return };
        let socket = WebSocketStream::from_raw_socket(TokioIo::new(io), Role::Server, None).await;
        match has_tunnel {
            true => tunnel(context, place, socket).await,
            false => channels(context, place, socket, ports).await,
        }
    });
    switch_websocket(&request, protocol).unwrap_or_else(|| refuse(StatusCode::BAD_REQUEST, "no WebSocket key"))
}

/// The ports that a query names (`NewV4Options`).
fn ports(query: &str) -> Result<Vec<u16>, String> {
    let query = Query::parse(query);
    let values: Vec<&str> = query.all("port").collect();
    match values.iter().find(|it| it.is_empty()) {
        Some(_) => Err("query parameter \"port\" cannot be empty".to_owned()),
        None if values.is_empty() => Err("query parameter \"port\" is required".to_owned()),
        None => values.iter().flat_map(|it| it.split(',')).map(port).collect(),
    }
}

fn port(text: &str) -> Result<u16, String> {
    let failed = |why| format!("unable to parse {text:?} as a port: strconv.ParseUint: parsing {text:?}: {why}");
    match text.parse::<u16>() {
        Ok(0) => Err(format!("port {text:?} must be > 0")),
        Ok(port) => Ok(port),
        Err(error) if *error.kind() == IntErrorKind::PosOverflow => Err(failed("value out of range")),
        Err(_) => Err(failed("invalid syntax")),
    }
}

type Place = (String, String);
type Socket = WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>;

/// SPDY inside a WebSocket: binary messages are the bytes of the connection.
async fn tunnel(context: Context, place: Place, socket: Socket) {
    let (mut sink, mut stream) = socket.split();
    let (near, far) = tokio::io::duplex(PIPE);
    let (mut reader, mut writer) = tokio::io::split(near);
    context.tasks.spawn("node-forward-tunnel", async move {
        let mut buffer = vec![0; PIPE / 2];
        while let Ok(count @ 1..) = reader.read(&mut buffer).await {
            if sink.send(Message::binary(Bytes::copy_from_slice(&buffer[..count]))).await.is_err() {
                return;
            }
        }
        let _ = sink.send(Message::Close(None)).await;
    });
    let group = context.tasks.clone();
    group.spawn("node-forward-streams", async move { serve(context, place, far).await });
    while let Some(Ok(message)) = stream.next().await {
        match message {
            Message::Binary(data) => {
                if writer.write_all(&data).await.is_err() {
                    return;
                }
            }
            Message::Close(_) => return,
            _ => (),
        }
    }
}

/// Pairs the streams of each request: one for data, one for what went wrong.
async fn serve<S>(context: Context, place: Place, io: S)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let mut accepted = spdy::serve(io, &context.tasks);
    let mut errors: HashMap<String, spdy::Stream> = HashMap::new();
    while let Some(stream) = accepted.recv().await {
        let text = |name: &str| stream.headers.get(name).cloned().unwrap_or_default();
        let (id, kind, port) = (text("requestid"), text("streamtype"), text("port"));
        if kind == "error" {
            errors.insert(id, stream);
            continue;
        }
        let Some(error) = errors.remove(&id) else { continue };
        let (inner, place) = (context.clone(), place.clone());
        context.tasks.spawn("node-forward", async move { forward(&inner, &place, port.parse().unwrap_or(0), stream, error).await });
    }
}

async fn forward(context: &Context, (namespace, pod): &Place, port: u16, mut data: spdy::Stream, error: spdy::Stream) {
    match dial(context, namespace, pod, port).await {
        Err(why) => _ = error.writer.send(failure(port, pod, &why).as_bytes()).await,
        Ok(target) => {
            let (mut reader, mut writer) = target.into_split();
            let to_pod = async {
                while let Some(bytes) = data.reader.recv().await {
                    if writer.write_all(&bytes).await.is_err() {
                        break;
                    }
                }
                let _ = writer.shutdown().await;
            };
            let from_pod = async {
                let mut buffer = vec![0; PIPE / 2];
                while let Ok(count @ 1..) = reader.read(&mut buffer).await {
                    if data.writer.send(&buffer[..count]).await.is_err() {
                        break;
                    }
                }
                let _ = data.writer.close().await;
            };
            tokio::join!(to_pod, from_pod);
        }
    }
    let _ = data.writer.close().await;
    let _ = error.writer.close().await;
}

fn failure(port: u16, pod: &str, why: &str) -> String {
    format!("error forwarding port {port} to pod {pod}: {why}")
}

/// The older form: two channels a port, of which the first carries data; each begins with the port's number.
async fn channels(context: Context, place: Place, socket: Socket, ports: Vec<u16>) {
    let (mut sink, mut stream) = socket.split();
    let (outgoing, mut frames) = mpsc::channel::<Message>(64);
    context.tasks.spawn("node-forward-write", async move {
        while let Some(frame) = frames.recv().await {
            if sink.send(frame).await.is_err() {
                return;
            }
        }
        let _ = sink.send(Message::Close(None)).await;
    });
    let mut incoming = Vec::new();
    for (at, port) in (0u8..).zip(&ports) {
        let (sender, receiver) = mpsc::channel::<Bytes>(64);
        incoming.push(sender);
        let (inner, place, outgoing, port) = (context.clone(), place.clone(), outgoing.clone(), *port);
        context.tasks.spawn("node-forward-channel", async move { channel(&inner, &place, port, at * 2, receiver, outgoing).await });
    }
    drop(outgoing);
    while let Some(Ok(Message::Binary(data))) = stream.next().await {
        if let Some((channel, _)) = data.split_first()
            && let Some(port) = incoming.get(usize::from(channel / 2))
        {
            let _ = port.send(data.slice(1..)).await;
        }
    }
}

async fn channel(context: &Context, (namespace, pod): &Place, port: u16, number: u8, mut incoming: mpsc::Receiver<Bytes>, outgoing: mpsc::Sender<Message>) {
    let frame = |channel: u8, data: &[u8]| Message::binary([&[channel], data].concat());
    for channel in [number, number + 1] {
        let _ = outgoing.send(frame(channel, &port.to_le_bytes())).await;
    }
    let target = match dial(context, namespace, pod, port).await {
        Ok(target) => target,
        Err(why) => {
            let _ = outgoing.send(frame(number + 1, failure(port, pod, &why).as_bytes())).await;
            return;
        }
    };
    let (mut reader, mut writer) = target.into_split();
    let to_pod = async {
        while let Some(bytes) = incoming.recv().await {
            if writer.write_all(&bytes).await.is_err() {
                break;
            }
        }
    };
    let from_pod = async {
        let mut buffer = vec![0; PIPE / 2];
        while let Ok(count @ 1..) = reader.read(&mut buffer).await {
            if outgoing.send(frame(number, &buffer[..count])).await.is_err() {
                break;
            }
        }
    };
    tokio::select! {
        () = to_pod => (),
        () = from_pod => (),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_api_server_names_ports_as_upstreams_does() {
        let cases = [
            ("port=8080", Ok(vec![8080])),
            ("port=80,443&port=8080", Ok(vec![80, 443, 8080])),
            ("ports=8080", Err("query parameter \"port\" is required")),
            ("port=", Err("query parameter \"port\" cannot be empty")),
            ("port=0", Err("port \"0\" must be > 0")),
            ("port=http", Err("unable to parse \"http\" as a port: strconv.ParseUint: parsing \"http\": invalid syntax")),
        ];
        for (query, expected) in cases {
            assert_eq!(ports(query), expected.map_err(str::to_owned), "{query}");
        }
    }
}
