//! Answers as WebSocket messages, for clients that can do nothing else: logs and watches.
//! Source: apimachinery `pkg/util/httpstream/wsstream/stream.go`, apiserver `pkg/endpoints/handlers/watch.go`.

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::{HeaderMap, StatusCode, header};
use http_body_util::BodyExt;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{self, Message, Utf8Bytes, handshake::derive_accept_key, protocol::Role},
};

use super::{Body, Request, Response, body};
use crate::{
    base::Tasks,
    meta::{Result, Status},
};

/// How bytes become messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Messages {
    /// A chunk as it comes, after an empty message that says all is well.
    Binary,
    /// The same in base64.
    Base64,
    /// A line of text each: the events of a watch.
    Lines,
}

/// The subprotocols of logs.
const BYTES: [(&str, Messages); 2] = [("binary.k8s.io", Messages::Binary), ("base64.binary.k8s.io", Messages::Base64)];

/// Whether the client asks for a WebSocket.
pub fn is_asked(headers: &HeaderMap) -> bool {
    headers.get(header::UPGRADE).is_some_and(|it| it.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// A request that asks for a WebSocket, taken apart before its body goes elsewhere.
pub struct Socket {
    upgrade: OnUpgrade,
    accept: String,
    offered: Vec<String>,
}

impl Socket {
    /// `None` for a request that asks for none; 400 for one that asks wrongly.
    pub fn take(request: &mut Request) -> Result<Option<Self>> {
        if !is_asked(request.headers()) {
            return Ok(None);
        }
        let headers = request.headers();
        let key = headers.get(header::SEC_WEBSOCKET_KEY).ok_or_else(|| Status::bad_request("missing Sec-WebSocket-Key header"))?;
        let accept = derive_accept_key(key.as_bytes());
        let offered = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|it| it.to_str().ok()).flat_map(|it| it.split(','));
        let offered = offered.map(|it| it.trim().to_owned()).collect();
        Ok(Some(Self { upgrade: hyper::upgrade::on(request), accept, offered }))
    }

    /// Sends bytes in the subprotocol that the client prefers.
    pub fn send_bytes(self, bytes: Body, tasks: &Tasks) -> Result<Response> {
        let found = self.offered.iter().find_map(|offered| BYTES.iter().find(|(name, _)| name == offered)).copied();
        if found.is_none() && !self.offered.is_empty() {
            return Err(Status::bad_request(format!("unsupported WebSocket protocols: {}", self.offered.join(", "))));
        }
        let (protocol, messages) = found.unwrap_or(("", Messages::Binary));
        self.send(protocol, messages, bytes, tasks)
    }

    /// Sends the events of a watch.
    pub fn send_events(self, events: Body, tasks: &Tasks) -> Result<Response> {
        self.send("", Messages::Lines, events, tasks)
    }

    fn send(self, protocol: &str, messages: Messages, bytes: Body, tasks: &Tasks) -> Result<Response> {
        let mut response = http::Response::builder().status(StatusCode::SWITCHING_PROTOCOLS).header(header::CONNECTION, "Upgrade");
        response = response.header(header::UPGRADE, "websocket").header(header::SEC_WEBSOCKET_ACCEPT, &self.accept);
        if !protocol.is_empty() {
            response = response.header(header::SEC_WEBSOCKET_PROTOCOL, protocol);
        }
        tasks.spawn("websocket", async move {
            let Ok(upgraded) = self.upgrade.await else { return };
            let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
            if let Err(why) = relay(socket, messages, bytes).await {
                tracing::debug!(%why, "a WebSocket ended");
            }
        });
        response.body(body::empty()).map_err(Status::internal)
    }
}

/// Sends until the bytes end or the client goes. What the client says is not listened to, but its pings are answered.
async fn relay(socket: WebSocketStream<TokioIo<Upgraded>>, messages: Messages, mut bytes: Body) -> std::result::Result<(), tungstenite::Error> {
    let (mut sender, mut receiver) = socket.split();
    if messages != Messages::Lines {
        sender.send(message(messages, Bytes::new())).await?;
    }
    loop {
        tokio::select! {
            heard = receiver.next() => match heard {
                Some(Ok(it)) if !it.is_close() => (),
                _ => break,
            },
            frame = bytes.frame() => match frame.map(|it| it.map(hyper::body::Frame::into_data)) {
                Some(Ok(Ok(data))) if messages == Messages::Lines => {
                    for line in data.split(|it| *it == b'\n').filter(|it| !it.is_empty()) {
                        sender.send(message(messages, data.slice_ref(line))).await?;
                    }
                }
                Some(Ok(Ok(data))) => sender.send(message(messages, data)).await?,
                Some(Ok(Err(_))) => (),
                Some(Err(_)) | None => break,
            },
        }
    }
    sender.close().await
}

fn message(messages: Messages, data: Bytes) -> Message {
    match messages {
        Messages::Binary => Message::Binary(data),
        Messages::Base64 => Message::text(BASE64.encode(&data)),
        Messages::Lines => Utf8Bytes::try_from(data).map_or_else(|why| Message::text(why.to_string()), Message::Text),
    }
}
