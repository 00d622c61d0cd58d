//! How a request comes in: over TLS or from within the process, through authentication and authorization, to the verbs.

use std::{
    convert::Infallible,
    net::SocketAddr,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures::FutureExt;
use http::{HeaderValue, Method};
use http_body_util::BodyExt;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::{
    Body, BodyError, Request, Response, Server, aggregation, authn, body, connect, discovery, forms, health,
    metrics::Labels,
    identity::{Attributes, Peer, User},
    negotiation::{self, Encoding, Form},
    registration,
    tokens,
    trace::{Caller, Why},
    verbs,
};
use crate::{
    base::Tasks,
    meta::{Result, Status, options::Query},
    store::{Snapshot, archive},
};

/// The version of Kubernetes whose API this is.
pub const GIT_VERSION: &str = "v1.36.0";
/// What `howdah backup` asks for.
pub const BACKUP_PATH: &str = "/howdah/backup";
/// A client that does not finish its TLS handshake is let go.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// Watches that one HTTP/2 connection may hold: an informer factory has some hundred.
const STREAMS_MAX: u32 = 1000;

/// Accepts TLS connections until `tasks` stop.
pub async fn listen(server: Arc<Server>, listener: TcpListener, tls: Arc<rustls::ServerConfig>, tasks: Tasks) {
    let acceptor = TlsAcceptor::from(tls);
    loop {
        let Ok((stream, address)) = listener.accept().await else {
            // Out of descriptors: waiting lets others end.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        let (acceptor, server) = (acceptor.clone(), server.clone());
        tasks.spawn("api-connection", async move {
            match tokio::time::timeout(HANDSHAKE_WITHIN, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => serve_connection(stream, address, server).await,
                Ok(Err(error)) => tracing::debug!(%address, %error, "a TLS handshake failed"),
                Err(_) => tracing::debug!(%address, "a TLS handshake took too long"),
            }
        });
    }
}

async fn serve_connection(stream: tokio_rustls::server::TlsStream<tokio::net::TcpStream>, address: SocketAddr, server: Arc<Server>) {
    let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default().iter().map(|it| it.to_vec()).collect();
    let peer = Peer { certificates, user: None, address: Some(address) };
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http2().max_concurrent_streams(STREAMS_MAX);
    if let Err(error) = builder.serve_connection_with_upgrades(TokioIo::new(stream), TowerToHyperService::new(InProcess { server, peer })).await {
        tracing::debug!(%address, %error, "a connection ended");
    }
}

impl Server {
    /// Answers a request, and records it where that is asked for.
    pub async fn serve(self: &Arc<Self>, request: Request) -> Response {
        match &self.trace {
            None => self.respond(request).await,
            Some(trace) => trace.recorded(request, |it| self.respond(it)).await,
        }
    }

    /// The answer, whatever happens: an error is a Status, and so is a panic.
    async fn respond(self: &Arc<Self>, request: Request) -> Response {
        let form = Form::negotiate(request.headers(), &Query::default(), true).ok();
        let encoding = form.map_or(Encoding::Json, |it| it.encoding);
        let what = format!("{} {}", request.method(), request.uri().path());
        let (takes_gzip, is_head) = (body::takes_gzip(request.headers()), request.method() == Method::HEAD);
        let query = Query::parse(request.uri().query().unwrap_or_default());
        let info = Attributes::parse(request.method(), request.uri().path(), &query);
        let running = self.metrics.begin(self.labels(&info, &request, &query));
        let answered = AssertUnwindSafe(self.answer(info, query, request)).catch_unwind().await;
        let mut response = match answered {
            Ok(Ok(response)) => response,
            Ok(Err(status)) => error(&status, encoding),
            Err(_) => {
                tracing::error!(request = what, "a request panicked");
                error(&Status::internal("this request caused apiserver to panic. Look in the logs for details."), encoding)
            }
        };
        running.end(response.status().as_u16());
        let id = uuid::Uuid::new_v4().to_string();
        let headers = response.headers_mut();
        headers.entry("cache-control").or_insert(HeaderValue::from_static("no-cache, private"));
        if let Ok(value) = id.parse() {
            headers.insert("audit-id", value);
        }
        let response = if takes_gzip { body::gzipped(response).await } else { response };
        if is_head { body::head(response) } else { response }
    }

    /// How the request is counted.
    fn labels(&self, info: &Attributes, request: &Request, query: &Query) -> Labels {
        let is_served = self.registry.load().find(&info.group, &info.resource).is_some() || self.aggregator.delegate(info).is_some();
        let is_apply = negotiation::media_type(request.headers()).starts_with("application/apply-patch");
        Labels::of(info, request.method(), is_apply, query.get("dryRun").is_some(), is_served)
    }

    async fn answer(self: &Arc<Self>, info: Attributes, query: Query, request: Request) -> Result<Response> {
        let peer = request.extensions().get::<Peer>().cloned().unwrap_or_default();
        let snapshot = self.picture(&info, &query).await?;
        let user = self.authenticator.authenticate(request.headers(), &peer, &snapshot)?;
        let user = authn::impersonate(user, request.headers(), |user, attributes| self.authorizer.authorize(user, attributes, &snapshot))?;
        Caller::note(&request, &user.name);
        // Whoever floods the server with what is forbidden waits for a turn too.
        let ticket = self.fairness.admit(&user, &info, &snapshot).await?;
        let mut checked = info.clone();
        if matches!(info.subresource.as_str(), "exec" | "attach" | "portforward") && info.resource == "pods" {
            // A WebSocket begins with GET, but it is no reading.
            checked.verb = "create".to_owned();
        }
        self.authorizer.check(&user, &checked, &snapshot)?;
        drop(snapshot);
        let mut response = self.dispatch(user, info, query, request).await;
        if let (Ok(response), Some(ticket)) = (&mut response, &ticket) {
            ticket.tell(response.headers_mut());
        }
        response
    }

    /// To whoever serves it.
    async fn dispatch(self: &Arc<Self>, user: User, info: Attributes, query: Query, request: Request) -> Result<Response> {
        if let Some(delegate) = self.aggregator.delegate(&info) {
            return aggregation::pass(self, &delegate, &user, request).await;
        }
        if info.is_resource() {
            return verbs::serve(self.clone(), user, info, query, request).await;
        }
        // A timeout that is none is refused on any path.
        verbs::within(&query)?;
        let is_document = ["/api", "/apis", "/openapi", "/version"].iter().any(|it| info.path == *it || info.path.starts_with(&format!("{it}/")));
        if is_document && request.method() != Method::GET {
            return Err(Status::method_not_allowed());
        }
        if let Some(response) = health::serve(self, &info.path, &query).await {
            return Ok(response);
        }
        registration::await_kinds(self).await;
        self.document(&request, &info.path)
    }

    /// What a request stands on. It sees all that was acknowledged before it, by this server or another, also through the later snapshots
    /// of this server; only a read that allows an older state (a resourceVersion) does not wait for that.
    async fn picture(&self, info: &Attributes, query: &Query) -> Result<Snapshot> {
        let is_read = matches!(info.verb.as_str(), "get" | "list" | "watch");
        let may_be_old = is_read && query.get("resourceVersion").is_some_and(|it| !it.is_empty());
        let lists_kinds = info.path.starts_with("/apis") || info.path.starts_with("/openapi");
        match (info.is_resource() && !may_be_old) || lists_kinds || info.path == BACKUP_PATH {
            true => self.consistent().await,
            false => Ok(self.store.snapshot()),
        }
    }

    /// All that was acknowledged before now, by this server or another; 503 where the store cannot tell.
    pub async fn consistent(&self) -> Result<Snapshot> {
        self.store.consistent().await.map_err(|error| Status::unavailable(error.to_string()))
    }

    /// Paths that are no resources.
    fn document(&self, request: &Request, path: &str) -> Result<Response> {
        let headers = request.headers();
        let host = &connect::host_of(request);
        let registry = self.registry.load();
        let delegates = self.aggregator.delegates();
        if let Some(response) = discovery::serve(&registry, &delegates, path, headers, host) {
            return Ok(response);
        }
        match path {
            "/" => Ok(body::json(200, &json!({"paths": ["/api", "/apis", "/healthz", "/livez", "/metrics", "/openapi/v2", "/openapi/v3", "/readyz", "/version"]}))),
            "/metrics" => Ok(self.metrics.serve(self)),
            "/version" | "/version/" => Ok(body::json(200, &version())),
            tokens::OPENID_CONFIGURATION_PATH => Ok(body::json(200, &self.tokens.openid_configuration(host))),
            tokens::JWKS_PATH => {
                let jwks = self.tokens.jwks().to_string();
                Ok(body::respond(200, "application/jwk-set+json", body::full(jwks)))
            }
            path if path.starts_with("/openapi/") => self.documents.serve(&registry, &delegates, path, headers),
            BACKUP_PATH => Ok(self.backup()),
            _ => Err(Status::no_route()),
        }
    }

    /// Every object of the cluster, as [`archive`] has it. RBAC keeps it to those who may do everything.
    fn backup(&self) -> Response {
        let lines = archive::lines(&self.store.snapshot());
        body::respond(200, "application/x-ndjson", body::stream(futures::stream::iter(lines.map(Ok))))
    }

    /// The server as a tower service for clients in this process, acting as `user`.
    pub fn in_process(self: &Arc<Self>, user: &User) -> InProcess {
        InProcess { server: self.clone(), peer: Peer { user: Some(user.clone()), ..Peer::default() } }
    }
}

fn version() -> crate::meta::Value {
    json!({"major": "1", "minor": "36", "gitVersion": GIT_VERSION, "gitCommit": "", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "", "compiler": "rustc", "platform": format!("{}/{}", std::env::consts::OS, arch())})
}

/// Go's name of the processor.
pub fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

pub fn error(status: &Status, encoding: Encoding) -> Response {
    let value = status.to_value();
    let (encoding, bytes) = match forms::encode(&value, encoding) {
        Ok(bytes) => (encoding, bytes),
        Err(_) => (Encoding::Json, Bytes::from(value.to_string())),
    };
    let mut response = body::respond(status.code, encoding.media_type(), body::full(bytes));
    if status.code >= 500 {
        response.extensions_mut().insert(Why(status.message.clone()));
    }
    let seconds = status.details.as_ref().map_or(0, |it| it.retry_after_seconds);
    if seconds > 0 {
        response.headers_mut().insert(http::header::RETRY_AFTER, seconds.into());
    }
    response
}

/// The server to one client: a connection, or a part of this process.
#[derive(Clone)]
pub struct InProcess {
    server: Arc<Server>,
    peer: Peer,
}

impl<B> tower::Service<http::Request<B>> for InProcess
where
    B: hyper::body::Body<Data = Bytes> + Send + 'static,
    B::Error: std::fmt::Display,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = std::result::Result<Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::result::Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let Self { server, peer } = self.clone();
        let mut request = request.map(|it| Body::new(it.map_err(BodyError::new)));
        request.extensions_mut().insert(peer);
        Box::pin(async move { Ok(server.serve(request).await) })
    }
}
