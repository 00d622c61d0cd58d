//! Port-forward: SPDY streams, alone or inside a WebSocket (KEP-4006), and the older WebSocket channels.
//! Source: kubelet `pkg/cri/streaming/portforward`.

use std::{collections::HashMap, future::ready, io, num::IntErrorKind};

use axum::{
    extract::{Path, Request, State},
    http::StatusCode,
    response::Response,
};
use bytes::Bytes;
use futures::{SinkExt, StreamExt, TryStreamExt};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Error, Message, protocol::Role},
};
use tokio_util::io::{CopyToBytes, SinkWriter, StreamReader};

use super::{
    Context,
    channels::Channels,
    dial, is_websocket, offered, refuse, spdy,
    streams::{QUEUE, Stream, Writer, carry, pour},
    switch_spdy, switch_websocket,
};
use crate::meta::options::Query;

const PROTOCOL: &str = "portforward.k8s.io";
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
const CHANNELS: [Channels; 2] = [Channels::binary("v4.channel.k8s.io", 4), Channels::binary("portforward.k8s.io", 1)];

type Place = (String, String);

pub async fn port_forward(State(context): State<Context>, Path(place): Path<Place>, mut request: Request) -> Response {
    let (upgrade, group) = (hyper::upgrade::on(&mut request), context.tasks.clone());
    if !is_websocket(&request) {
        group.spawn("node-forward-spdy", async move {
            if let Ok(io) = upgrade.await {
                serve(context, place, TokioIo::new(io)).await;
            }
        });
        return switch_spdy(PROTOCOL);
    }
    let names = offered(&request, "sec-websocket-protocol");
    let has_tunnel = names.iter().any(|it| it == TUNNEL);
    let ports = match ports(request.uri().query().unwrap_or_default()) {
        Err(why) if !has_tunnel => return refuse(StatusCode::BAD_REQUEST, why),
        ports => ports.unwrap_or_default(),
    };
    let spoken = CHANNELS.into_iter().find(|it| names.iter().any(|name| name == it.name));
    group.spawn("node-forward-websocket", async move {
        let Ok(io) = upgrade.await else { return };
        match has_tunnel {
            true => serve(context, place, tunnel(TokioIo::new(io)).await).await,
            false => channels(context, place, TokioIo::new(io), spoken.unwrap_or(CHANNELS[0]), ports).await,
        }
    });
    switch_websocket(&request, if has_tunnel { TUNNEL } else { spoken.map_or("", |it| it.name) })
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

/// SPDY inside a WebSocket: binary messages are the bytes of the connection.
async fn tunnel<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(io: S) -> impl AsyncRead + AsyncWrite + Send + Unpin {
    let (sink, stream) = WebSocketStream::from_raw_socket(io, Role::Server, None).await.split();
    let data = stream.try_filter_map(|it| ready(Ok(if let Message::Binary(data) = it { Some(data) } else { None })));
    let sink = sink.with(|data: Bytes| ready(Ok::<_, Error>(Message::Binary(data)))).sink_map_err(io::Error::other);
    tokio::io::join(StreamReader::new(data.map_err(io::Error::other)), SinkWriter::new(CopyToBytes::new(sink)))
}

/// Pairs the streams of each request: one for data, one for what went wrong.
async fn serve(context: Context, place: Place, io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) {
    let mut accepted = spdy::serve(io, &context.tasks, &context.tasks);
    let mut errors: HashMap<String, Stream> = HashMap::new();
    while let Some((headers, stream)) = accepted.recv().await {
        let text = |name: &str| headers.get(name).cloned().unwrap_or_default();
        let (id, port) = (text("requestid"), text("port"));
        if text("streamtype") == "error" {
            errors.insert(id, stream);
        } else if let Some(error) = errors.remove(&id) {
            let (context, place) = (context.clone(), place.clone());
            context.tasks.clone().spawn("node-forward", forward(context, place, port.parse().unwrap_or(0), stream, error.writer));
        }
    }
}

/// Carries between the client and a port of the pod, until both have said all.
async fn forward(context: Context, (namespace, pod): Place, port: u16, data: Stream, error: Writer) {
    match dial(&context, &namespace, &pod, port).await {
        Err(why) => {
            let _ = error.send(format!("error forwarding port {port} to pod {pod}: {why}")).await;
            data.writer.close().await;
            error.close().await;
        }
        Ok(target) => {
            let (from, to) = target.into_split();
            let from_pod = async {
                carry(Some(from), Some(data.writer)).await;
                error.close().await;
            };
            tokio::join!(pour(data.reader, to), from_pod);
        }
    }
}

/// The older form: two channels a port, of which the first carries data; each begins with the port's number.
async fn channels<S>(context: Context, place: Place, io: S, spoken: Channels, ports: Vec<u16>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (senders, readers): (Vec<_>, Vec<_>) = ports.iter().map(|_| mpsc::channel(QUEUE)).unzip();
    let outgoing = spoken.serve(io, senders.into_iter().flat_map(|it| [Some(it), None]).collect(), &context.tasks).await;
    for (at, (port, reader)) in (0u32..).zip(ports.into_iter().zip(readers)) {
        let [writer, error] = [2 * at, 2 * at + 1].map(|it| Writer::new(it, &outgoing));
        for it in [&writer, &error] {
            let _ = it.send(port.to_le_bytes().to_vec()).await;
        }
        let work = forward(context.clone(), place.clone(), port, Stream { reader, writer }, error);
        context.tasks.spawn("node-forward-channel", work);
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
