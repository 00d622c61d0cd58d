//! A small HTTP client for probes, hooks and registries: one connection a request, TLS by the system's authorities or by none.

use std::{
    io,
    sync::{Arc, LazyLock},
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, Uri, header};
use http_body_util::Full;
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore, crypto::ring, pki_types::ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::base::{Tasks, pki};

/// Whose certificates are good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Those of the system's authorities.
    System,
    /// Everyone's, as for the probes of a kubelet.
    Anyone,
}

static SYSTEM: LazyLock<Arc<ClientConfig>> = LazyLock::new(|| {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let builder = ClientConfig::builder_with_provider(ring::default_provider().into()).with_safe_default_protocol_versions();
    Arc::new(builder.expect("ring has TLS 1.2 and 1.3").with_root_certificates(roots).with_no_client_auth())
});
static ANYONE: LazyLock<Arc<ClientConfig>> = LazyLock::new(|| Arc::new(pki::trusting_any(None)));

/// Sends a request to the authority of its URI. The answer's body comes as it is read.
pub async fn send(tasks: &Tasks, mut request: Request<Full<Bytes>>, trust: Trust) -> io::Result<Response<Incoming>> {
    let uri = request.uri().clone();
    let (host, port, is_tls) = destination(&uri)?;
    if !request.headers().contains_key(header::HOST) {
        let authority = uri.authority().map(|it| it.as_str()).unwrap_or_default();
        request.headers_mut().insert(header::HOST, HeaderValue::from_str(authority).map_err(io::Error::other)?);
    }
    let path = uri.path_and_query().map_or("/", |it| it.as_str());
    *request.uri_mut() = path.parse().map_err(io::Error::other)?;
    let stream = TcpStream::connect((host.as_str(), port)).await?;
    if !is_tls {
        return converse(tasks, stream, request).await;
    }
    let config = if trust == Trust::System { SYSTEM.clone() } else { ANYONE.clone() };
    let name = ServerName::try_from(host).map_err(io::Error::other)?;
    converse(tasks, TlsConnector::from(config).connect(name, stream).await?, request).await
}

async fn converse<S>(tasks: &Tasks, stream: S, request: Request<Full<Bytes>>) -> io::Result<Response<Incoming>>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    tasks.spawn("http-connection", async move {
        let _ = connection.await;
    });
    sender.send_request(request).await.map_err(io::Error::other)
}

fn destination(uri: &Uri) -> io::Result<(String, u16, bool)> {
    let is_tls = uri.scheme_str() == Some("https");
    let host = uri.host().ok_or_else(|| io::Error::other(format!("{uri} names no host")))?;
    Ok((host.trim_matches(['[', ']']).to_owned(), uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 }), is_tls))
}
