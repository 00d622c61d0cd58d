//! Streams to nodes, pods and services: logs, exec, attach, port-forward, proxy. The server authenticates and authorizes, then passes bytes
//! both ways; it understands none of the stream protocols.
//! Source: kubernetes `pkg/registry/core/{pod,service,node}/strategy.go`, apimachinery `pkg/util/proxy`, apiserver `pkg/registry/generic/rest`.

mod links;
mod location;

use std::{sync::Arc, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use bytes::{Bytes, BytesMut};
use futures::{StreamExt, stream};
use http_body_util::{BodyExt, BodyStream, Limited};
use hyper_util::rt::TokioIo;
use hyper::upgrade::OnUpgrade;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite, copy_bidirectional_with_sizes},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use links::Links;
pub use location::split_target;
use location::{Security, Target};

use super::{
    Body, BodyError, Request, Response,
    authn::remove_credentials,
    body, endpoint,
    identity::{Attributes, Peer},
    websocket::Socket,
};
use crate::{
    base::{Tasks, pki},
    kinds::Action,
    meta::{Meta, Result, Status, Value, options::Query},
    store::Snapshot,
};

/// To a node or pod, handshake included; upstream's dialer waits as long.
const DIAL_TIMEOUT: Duration = Duration::from_secs(30);
/// Of each direction of a relayed stream.
const RELAY_BUFFER: usize = 32 << 10;
/// As much of a node's error is read and told.
const ERROR_MAX: usize = 64 << 10;
/// The longest page whose links are rewritten; held in memory meanwhile.
const PAGE_MAX: usize = 8 << 20;
/// RFC 9110: these are between two neighbours only.
const HOP_BY_HOP: [&str; 9] =
    ["connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"];

/// The way to nodes: their HTTPS port, with the server's client certificate. Pods are reached directly.
pub struct Nodes {
    /// Shows the server's client certificate and trusts the cluster's authority.
    node: Arc<ClientConfig>,
    /// For `https:` targets of the proxy, whose certificates nobody here can know.
    any: Arc<ClientConfig>,
    tasks: Tasks,
}

/// What another server answered, or why it cannot be reached.
type Answered = std::result::Result<Response, String>;

impl Nodes {
    pub fn new(node: ClientConfig, tasks: Tasks) -> Self {
        Self { node: Arc::new(node), any: Arc::new(pki::trusting_any(None)), tasks }
    }

    /// Serves a `connect` subresource of `object` (a Pod, Service or Node), by what is asked for in path and query.
    /// For [`Action::Proxy`] the name in the path may be `[https:]name[:port]`; see [`split_target`].
    pub async fn connect(&self, action: &Action, object: &Value, asked: &Attributes, query: &Query, mut request: Request, snapshot: &Snapshot) -> Result<Response> {
        match action {
            Action::Log => match location::log(snapshot, object, query)? {
                Some(target) => self.log(object.name(), &target, Socket::take(&mut request)?).await,
                None => http::Response::builder().status(StatusCode::NO_CONTENT).body(body::empty()).map_err(Status::internal),
            },
            Action::Exec => self.stream(&location::exec(snapshot, object, query)?, request).await,
            Action::Attach => self.stream(&location::attach(snapshot, object, query)?, request).await,
            Action::PortForward => self.stream(&location::port_forward(snapshot, object, query)?, request).await,
            Action::Proxy => {
                let target = location::proxy(snapshot, &asked.resource, &asked.name, object)?;
                let rest = asked.proxied(request.uri().path()).to_owned();
                self.proxy(target, &rest, request).await
            }
            _ => Err(Status::method_not_allowed()),
        }
    }

    /// `rest.LocationStreamer`: the node's answer, or its error as a Status.
    async fn log(&self, pod: &str, target: &Target, socket: Option<Socket>) -> Result<Response> {
        let request = http::Request::get(target.path_and_query()).header(header::HOST, target.authority());
        let request = request.body(body::empty()).map_err(Status::internal)?;
        let sent = self.send(&self.route(target), request).await.map_err(|why| Status::internal(format!("Get {:?}: {why}", target.url())))?;
        if !sent.status().is_success() {
            return Err(log_error(pod, sent).await);
        }
        let (_, body) = sent.into_parts();
        if let Some(socket) = socket {
            return socket.send_bytes(body, &self.tasks);
        }
        Ok(body::respond(200, "text/plain", body))
    }

    /// Exec, attach and port-forward: nothing but an upgrade makes sense.
    async fn stream(&self, target: &Target, request: Request) -> Result<Response> {
        if !is_upgrade(request.headers()) {
            return Err(Status::bad_request("Upgrade request required"));
        }
        let uri = request.uri().path().to_owned();
        let sent = self.forward(&self.route(target), &target.authority(), &target.path_and_query(), &uri, request).await;
        sent.map_err(|why| Status::internal(format!("error dialing backend: {why}")))
    }

    /// `rest` is what follows `/proxy` in the path.
    async fn proxy(&self, mut target: Target, rest: &str, request: Request) -> Result<Response> {
        if rest.is_empty() && matches!(*request.method(), Method::GET | Method::HEAD) {
            return redirect_to_root(request.uri());
        }
        let prefix = request.uri().path().strip_suffix(rest).unwrap_or_default().to_owned();
        target.path = if rest.is_empty() { "/".to_owned() } else { rest.to_owned() };
        target.query = request.uri().query().unwrap_or_default().to_owned();
        let (authority, asked, is_upgrade) = (target.authority(), host_of(&request), is_upgrade(request.headers()));
        let sent = self.forward(&self.route(&target), &authority, &target.path_and_query(), &format!("{prefix}{}", target.path), request).await;
        let response = sent.map_err(|why| Status::unavailable(format!("error trying to reach service: {why}")))?;
        Ok(if is_upgrade { response } else { relink(response, &Links { prefix: &prefix, target: &authority, asked: &asked }).await })
    }

    /// Passes a request on to a server of this API's own kind, which knows the user by headers; upgrades too.
    pub async fn delegate(&self, route: &Route, request: Request) -> Answered {
        let place = request.uri().path_and_query().map_or("/", |it| it.as_str()).to_owned();
        let uri = request.uri().path().to_owned();
        self.forward(route, &route.authority(), &place, &uri, request).await
    }

    /// Passes a request on to a place on another server, and its answer back, both bodies streaming; upgrades too. `uri` is what the other
    /// server is told of the path that the client asked for.
    async fn forward(&self, route: &Route, authority: &str, place: &str, uri: &str, mut request: Request) -> Answered {
        let from_client = hyper::upgrade::on(&mut request);
        let is_upgrade = is_upgrade(request.headers());
        remove_credentials(request.headers_mut());
        add_forwarded(&mut request, uri);
        let mut request = readdress(request, authority, place)?;
        if is_upgrade {
            return self.tunnel(route, from_client, request).await;
        }
        remove_hop_by_hop(request.headers_mut());
        let mut response = self.send(route, request).await?;
        remove_hop_by_hop(response.headers_mut());
        Ok(response)
    }

    /// Passes an upgrade on. If the other side agrees, bytes are relayed both ways until one ends; its refusal is passed back.
    async fn tunnel(&self, route: &Route, from_client: OnUpgrade, request: Request) -> Answered {
        let (mut parts, _) = request.into_parts();
        parts.headers.remove(header::CONTENT_LENGTH);
        let mut response = self.send(route, http::Request::from_parts(parts, body::empty())).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            remove_hop_by_hop(response.headers_mut());
            return Ok(response);
        }
        let from_target = hyper::upgrade::on(&mut response);
        self.tasks.spawn("relay", async move {
            if let (Ok(client), Ok(target)) = tokio::join!(from_client, from_target) {
                let ended = copy_bidirectional_with_sizes(&mut TokioIo::new(client), &mut TokioIo::new(target), RELAY_BUFFER, RELAY_BUFFER).await;
                tracing::debug!(?ended, "a relayed stream ended");
            }
        });
        Ok(response.map(|_| body::empty()))
    }

    fn route(&self, target: &Target) -> Route {
        let name = ServerName::try_from(target.host.clone());
        let config = match target.security {
            Security::None => None,
            Security::Node => Some(self.node.clone()),
            Security::Any => Some(self.any.clone()),
        };
        // A host that is no name for TLS has no certificate either: without TLS it will not be understood.
        Route { host: target.host.clone(), port: target.port, tls: config.zip(name.ok()) }
    }

    /// One request over a connection of its own.
    async fn send(&self, route: &Route, request: Request) -> Answered {
        let dialed = timeout(DIAL_TIMEOUT, route.dial()).await;
        let stream = dialed.map_err(|_| format!("dial tcp {}: i/o timeout", route.authority()))??;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|why| why.to_string())?;
        self.tasks.spawn("connection to a node or pod", async move {
            if let Err(why) = connection.with_upgrades().await {
                tracing::debug!(%why, "a connection ended");
            }
        });
        let response = sender.send_request(request).await.map_err(|why| why.to_string())?;
        Ok(response.map(|body| Body::new(body.map_err(BodyError::new))))
    }
}

/// Where a server is, and how it is spoken to.
pub struct Route {
    pub host: String,
    pub port: u16,
    /// With whose trust, and whose name the certificate must have.
    pub tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
}

impl Route {
    pub fn authority(&self) -> String {
        endpoint::authority(&self.host, self.port)
    }

    async fn dial(&self) -> std::result::Result<Box<dyn Stream>, String> {
        let failed = |why: std::io::Error| format!("dial tcp {}: {why}", self.authority());
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        let Some((config, name)) = self.tls.clone() else { return Ok(Box::new(stream)) };
        Ok(Box::new(TlsConnector::from(config).connect(name, stream).await.map_err(|why| format!("tls: {why}"))?))
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Tells another server of the request as the client sent it.
fn add_forwarded(request: &mut Request, uri: &str) {
    let peer = request.extensions().get::<Peer>().and_then(|it| it.address);
    let before = request.headers().get_all("x-forwarded-for").iter().filter_map(|it| it.to_str().ok().map(str::to_owned));
    let addresses = peer.map(|it| before.chain([it.ip().to_string()]).collect::<Vec<_>>().join(", "));
    let told = [("x-forwarded-uri", Some(uri.to_owned())), ("x-forwarded-host", Some(host_of(request))), ("x-forwarded-proto", Some("https".to_owned())), ("x-forwarded-for", addresses)];
    for (name, value) in told {
        let value = value.and_then(|it| HeaderValue::try_from(it).ok());
        value.into_iter().for_each(|it| _ = request.headers_mut().insert(name, it));
    }
}

/// The words of `Connection`.
fn connection(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    headers.get_all(header::CONNECTION).into_iter().filter_map(|it| it.to_str().ok()).flat_map(|it| it.split(',')).map(str::trim)
}

fn is_upgrade(headers: &HeaderMap) -> bool {
    headers.contains_key(header::UPGRADE) && connection(headers).any(|it| it.eq_ignore_ascii_case("upgrade"))
}

/// Removes the headers between neighbours, also those that `Connection` names.
fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = connection(headers).filter_map(|it| it.parse().ok()).collect();
    for name in named.into_iter().chain(HOP_BY_HOP.map(HeaderName::from_static)) {
        headers.remove(name);
    }
}

/// The host that the client asked: in HTTP/2 it stands in the URI.
pub fn host_of(request: &Request) -> String {
    let header = request.headers().get(header::HOST).and_then(|it| it.to_str().ok());
    header.map(str::to_owned).or_else(|| Some(request.uri().authority()?.to_string())).unwrap_or_default()
}

/// The request as the target sees it: HTTP/1.1, its own path and host.
fn readdress(request: Request, authority: &str, place: &str) -> std::result::Result<Request, String> {
    let (mut parts, body) = request.into_parts();
    parts.uri = place.parse().map_err(|why: http::uri::InvalidUri| why.to_string())?;
    parts.version = http::Version::HTTP_11;
    parts.extensions = http::Extensions::new();
    parts.headers.insert(header::HOST, HeaderValue::from_str(authority).map_err(|why| why.to_string())?);
    Ok(http::Request::from_parts(parts, body))
}

/// `…/proxy` without a path goes to `…/proxy/`, so that relative links work.
fn redirect_to_root(uri: &Uri) -> Result<Response> {
    let query = uri.query().map(|it| format!("?{it}")).unwrap_or_default();
    let response = http::Response::builder().status(StatusCode::MOVED_PERMANENTLY).header(header::LOCATION, format!("{}/{query}", uri.path()));
    response.body(body::empty()).map_err(Status::internal)
}

/// Lets a redirect and the links of a page lead back through the proxy.
async fn relink(mut response: Response, links: &Links<'_>) -> Response {
    let headers = response.headers_mut();
    if let Some(location) = headers.get(header::LOCATION) {
        let rewritten = location.to_str().ok().and_then(|it| links.rewritten(it)).and_then(|it| HeaderValue::from_str(&it).ok());
        rewritten.into_iter().for_each(|it| _ = headers.insert(header::LOCATION, it));
        return response;
    }
    let text = |name: HeaderName| headers.get(name).and_then(|it| it.to_str().ok()).unwrap_or_default().to_owned();
    let encoding = text(header::CONTENT_ENCODING);
    if text(header::CONTENT_TYPE).split(';').next().unwrap_or_default().trim() != "text/html" || !matches!(encoding.as_str(), "" | "gzip" | "deflate") {
        return response;
    }
    let (mut parts, mut body) = response.into_parts();
    let mut page = BytesMut::new();
    while page.len() <= PAGE_MAX {
        match body.frame().await.map(|it| it.map(hyper::body::Frame::into_data)) {
            Some(Ok(Ok(data))) => page.extend_from_slice(&data),
            Some(Ok(Err(_))) => (),
            // What broke off is passed on as far as it came, and breaks off there.
            Some(Err(why)) => return http::Response::from_parts(parts, body::stream(stream::iter([Ok(page.freeze()), Err(why)]))),
            None => {
                parts.headers.remove(header::CONTENT_LENGTH);
                let page = links.encoded_page(&page, &encoding).map_or_else(|| page.freeze(), Bytes::from);
                return http::Response::from_parts(parts, body::full(page));
            }
        }
    }
    // A page too long to be read whole goes through as it is.
    let rest = BodyStream::new(body).filter_map(async |it| it.map(|it| it.into_data().ok()).transpose());
    http::Response::from_parts(parts, body::stream(stream::iter([Ok(page.freeze())]).chain(rest)))
}

/// `GenericHttpResponseChecker`: what a node says is wrong with the request for a log.
async fn log_error(pod: &str, response: Response) -> Status {
    let status = response.status();
    let text = match Limited::new(response.into_body(), ERROR_MAX).collect().await {
        Ok(body) => String::from_utf8_lossy(&body.to_bytes()).into_owned(),
        Err(why) => why.to_string(),
    };
    let unexpected = |reason, why: String| Status::new(status.as_u16(), reason, format!("{why} ( pods/log {pod})")).with_cause("UnexpectedServerResponse", text.clone(), "");
    match status.as_u16() {
        500 => Status::internal(text),
        400 => Status::bad_request(text),
        404 => unexpected("NotFound", "the server could not find the requested resource".to_owned()),
        code => unexpected("", format!("the server responded with the status code {code} but did not return more information")),
    }
}

#[cfg(test)]
mod tests;
