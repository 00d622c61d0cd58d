//! Calls that the server makes by itself to HTTPS servers which objects name: a Service of the cluster or a URL, and whose certificate is good.
//! Connections are kept for the next call.
//! Source: apiserver `pkg/util/webhook/client.go`, client-go `rest/request.go` for how an answer is read.

use std::{
    collections::HashMap,
    future::Future,
    io,
    sync::{Arc, LazyLock, Mutex, PoisonError},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::Client,
    rt::{TokioIo, TokioTimer},
};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::ring,
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
    server::ParsedCertificate,
};
use serde_json::json;
use tokio::{
    net::TcpStream,
    time::{Instant, timeout_at},
};
use tower::{service_fn, util::BoxCloneSyncService};

use super::endpoint;
use crate::{
    base::Tasks,
    meta::{GroupVersionKind, Meta, Value},
    store::{Snapshot, Store},
};

/// Servers whose connections are kept; the cache is emptied when more are called.
const SERVERS_MAX: usize = 128;
/// An unused connection is closed after this long (Go's `DefaultTransport`).
const IDLE: Duration = Duration::from_secs(90);
/// The largest answer: a list of objects that was converted.
const ANSWER_MAX: usize = 64 << 20;

/// Where a call goes (`WebhookClientConfig`).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Destination {
    /// `https://svc.ns.svc:443`, or what the URL says.
    base: String,
    path: String,
    /// Namespace, name and port.
    service: Option<(String, String, i64)>,
    /// PEM; empty for the authorities of the system.
    authorities: Vec<u8>,
}

impl Destination {
    /// From `clientConfig`; the error is upstream's text.
    pub fn new(config: &Value) -> Result<Self, String> {
        let bundle = STANDARD.decode(config.text("caBundle")).map_err(|why| format!("caBundle: {why}"))?;
        let authorities = if bundle.trim_ascii().is_empty() { Vec::new() } else { bundle };
        if let Some(service) = config.get("service").filter(|it| it.is_object()) {
            let (namespace, name) = (service.text("namespace"), service.text("name"));
            let port = service.int_at(&["port"]).filter(|it| *it > 0).unwrap_or(443);
            return Ok(Self {
                base: format!("https://{name}.{namespace}.svc:{port}"),
                path: cleaned(service.text("path")),
                service: Some((namespace.to_owned(), name.to_owned(), port)),
                authorities,
            });
        }
        let url = config.text("url");
        let uri: Uri = match url {
            "" => return Err("webhook configuration must have either service or URL".to_owned()),
            url => url.parse().map_err(|why| format!("Unparsable URL: {why}"))?,
        };
        let host = uri.authority().map(|it| it.as_str()).unwrap_or_default();
        Ok(Self { base: format!("{}://{host}", uri.scheme_str().unwrap_or("https")), path: cleaned(uri.path()), service: None, authorities })
    }

    /// The URL that is called; a deadline is told to the server in whole seconds, rounded up.
    fn url(&self, deadline: Option<Instant>) -> String {
        let left = deadline.map(|it| it.saturating_duration_since(Instant::now())).filter(|it| !it.is_zero());
        let query = left.map(|it| format!("?timeout={}s", it.as_secs() + u64::from(it.subsec_nanos() > 0)));
        format!("{}{}{}", self.base, self.path, query.unwrap_or_default())
    }
}

/// Go's `path.Join("/", path)`, for what validation lets pass.
fn cleaned(path: &str) -> String {
    format!("/{}", path.trim_matches('/'))
}

/// A question to a webhook: an object of `request` with an id, in the first version that the webhook names and this server knows.
pub struct Review {
    group: &'static str,
    kind: &'static str,
    version: &'static str,
    pub value: Value,
}

impl Review {
    /// `None` where the webhook knows none of the versions.
    pub fn new(group: &'static str, kind: &'static str, versions: &[String], mut request: Value) -> Option<Self> {
        let version = versions.iter().find_map(|it| ["v1", "v1beta1"].into_iter().find(|known| known == it))?;
        request["uid"] = uuid::Uuid::new_v4().to_string().into();
        Some(Self { group, kind, version, value: json!({"kind": kind, "apiVersion": format!("{group}/{version}"), "request": request}) })
    }

    /// In v1beta1 answers were hardly checked.
    pub fn is_strict(&self) -> bool {
        self.version == "v1"
    }

    pub fn uid(&self) -> &str {
        self.value.text_at(&["request", "uid"])
    }

    pub fn check_type(&self, answer: &Value) -> Result<(), String> {
        let (wanted, found) = (GroupVersionKind::new(self.group, "v1", self.kind), GroupVersionKind::of(answer));
        match self.is_strict() && wanted != found {
            true => Err(format!("expected webhook response of {wanted}, got {found}")),
            false => Ok(()),
        }
    }

    pub fn check_uid(&self, response: &Value) -> Result<(), String> {
        match response.text("uid") {
            found if self.is_strict() && found != self.uid() => Err(format!("expected response.uid={:?}, got {found:?}", self.uid())),
            _ => Ok(()),
        }
    }
}

/// All servers that have been called.
pub struct Outgoing {
    store: Store,
    tasks: Tasks,
    clients: Mutex<HashMap<Destination, Pool>>,
}

type Pool = Client<HttpsConnector<Dialer>, Full<Bytes>>;

impl Outgoing {
    pub fn new(store: Store, tasks: Tasks) -> Self {
        Self { store, tasks, clients: Mutex::default() }
    }

    /// Posts JSON and returns the JSON that is answered. The error is the text that upstream's client has for it.
    pub async fn post(&self, destination: &Destination, body: &Value, deadline: Option<Instant>) -> Result<Value, String> {
        let url = destination.url(deadline);
        let failed = |why: &dyn std::fmt::Display| format!("Post {url:?}: {why}");
        let pool = self.pool(destination)?;
        let request = Request::builder().method(Method::POST).uri(&url).header(header::CONTENT_TYPE, "application/json");
        let request = request.header(header::ACCEPT, "application/json, */*").header(header::USER_AGENT, "kube-apiserver-admission");
        let request = request.body(Full::new(Bytes::from(body.to_string()))).map_err(|why| failed(&why))?;
        let answered = async {
            let response = pool.request(request).await.map_err(|why| reason(&why))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_MAX).collect().await.map_err(|why| why.to_string())?;
            Ok::<_, String>((status, body.to_bytes()))
        };
        let answered = match deadline {
            Some(deadline) => timeout_at(deadline, answered).await.unwrap_or_else(|_| Err("context deadline exceeded".to_owned())),
            None => answered.await,
        };
        let (status, bytes) = answered.map_err(|why| failed(&why))?;
        read(status, &bytes)
    }

    fn pool(&self, destination: &Destination) -> Result<Pool, String> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let key = Destination { path: String::new(), ..destination.clone() };
        if let Some(pool) = clients.get(&key) {
            return Ok(pool.clone());
        }
        let dialer = dialer(self.store.clone(), destination.service.clone());
        // The name in the certificate is the one in the URL, wherever the Service leads to.
        let connector = HttpsConnectorBuilder::new().with_tls_config(tls(&destination.authorities)?).https_only().enable_http1().wrap_connector(dialer);
        let mut builder = Client::builder(Spawner(self.tasks.clone()));
        let pool = builder.pool_idle_timeout(IDLE).pool_timer(TokioTimer::new()).build(connector);
        if clients.len() == SERVERS_MAX {
            clients.clear();
        }
        clients.insert(key, pool.clone());
        Ok(pool)
    }
}

/// What an answer says: its JSON, or what its status means (`NewGenericServerResponse`).
fn read(status: StatusCode, bytes: &[u8]) -> Result<Value, String> {
    let parsed: Result<Value, _> = serde_json::from_slice(bytes);
    let text = String::from_utf8_lossy(bytes);
    if status.is_success() {
        return parsed.map_err(|why| format!("couldn't get version/kind; json parse error: {why}"));
    }
    if let Ok(told) = parsed
        && told.text("kind") == "Status"
        && !told.text("message").is_empty()
    {
        return Err(told.text("message").to_owned());
    }
    let text = text.trim();
    Err(match status.as_u16() {
        400 => "the server rejected our request for an unknown reason".to_owned(),
        401 => "the server has asked for the client to provide credentials".to_owned(),
        403 | 415 => text.to_owned(),
        404 => "the server could not find the requested resource".to_owned(),
        405 => "the server does not allow this method on the requested resource".to_owned(),
        409 => "the server reported a conflict".to_owned(),
        422 => "the server rejected our request due to an error in our request".to_owned(),
        429 => "the server has received too many requests and has asked us to try again later".to_owned(),
        503 => "the server is currently unable to handle the request".to_owned(),
        504 => "the server was unable to return a response in the time allotted, but may still be processing the request".to_owned(),
        500.. => format!("an error on the server ({text:?}) has prevented the request from succeeding"),
        code => format!("the server responded with the status code {code} but did not return more information"),
    })
}

/// What lies at the bottom of an error, in Go's words.
fn reason(error: &(dyn std::error::Error + 'static)) -> String {
    match (certificate(error), error.source()) {
        (Some(why), _) => format!("tls: failed to verify certificate: x509: {}", certificate_error(why)),
        (None, Some(source)) => reason(source),
        (None, None) => error.to_string(),
    }
}

/// What is wrong with a certificate, if that is the error; errors of IO may hold it one in the other.
fn certificate<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a CertificateError> {
    match error.downcast_ref::<rustls::Error>() {
        Some(rustls::Error::InvalidCertificate(why)) => Some(why),
        _ => certificate(error.downcast_ref::<io::Error>()?.get_ref()?),
    }
}

/// Go's words for the errors of certificates that people meet.
fn certificate_error(error: &CertificateError) -> String {
    match error {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => "certificate signed by unknown authority".to_owned(),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "certificate has expired or is not yet valid".to_owned(),
        CertificateError::NotValidForNameContext { expected, presented } => {
            format!("certificate is valid for {}, not {}", presented.join(", "), expected.to_str())
        }
        other => format!("{other:?}"),
    }
}

#[derive(Clone)]
struct Spawner(Tasks);

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Spawner {
    fn execute(&self, work: F) {
        self.0.spawn("outgoing connection", work);
    }
}

/// Dials one server anew each time: a Service is resolved then.
type Dialer = BoxCloneSyncService<Uri, TokioIo<TcpStream>, io::Error>;

fn dialer(store: Store, service: Option<(String, String, i64)>) -> Dialer {
    BoxCloneSyncService::new(service_fn(move |uri: Uri| {
        let (snapshot, service) = (store.snapshot(), service.clone());
        async move { dial(&snapshot, service, &uri).await.map(TokioIo::new).map_err(io::Error::other) }
    }))
}

async fn dial(snapshot: &Snapshot, service: Option<(String, String, i64)>, uri: &Uri) -> Result<TcpStream, String> {
    let (host, port) = match service {
        Some((namespace, name, port)) => endpoint::resolve(snapshot, &namespace, &name, port).map_err(|it| it.message)?,
        None => (uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned(), uri.port_u16().unwrap_or(443)),
    };
    let stream = TcpStream::connect((host.as_str(), port)).await;
    let stream = stream.map_err(|why| format!("dial tcp {}: connect: {}", endpoint::authority(&host, port), errno(&why)))?;
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

/// The system's word for an error, as Go prints it: without the number and in lower case.
fn errno(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_lowercase()
}

static SYSTEM: LazyLock<Vec<CertificateDer<'static>>> = LazyLock::new(|| rustls_native_certs::load_native_certs().certs);

/// TLS that trusts these authorities (PEM), or the system's.
fn tls(authorities: &[u8]) -> Result<ClientConfig, String> {
    let bundle: Vec<CertificateDer<'static>> = match authorities {
        [] => SYSTEM.clone(),
        pem => CertificateDer::pem_slice_iter(pem).filter_map(Result::ok).collect(),
    };
    let unparsable = || "unable to load root certificates: unable to parse bytes as PEM block".to_owned();
    if bundle.is_empty() && !authorities.is_empty() {
        return Err(unparsable());
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(bundle.iter().cloned());
    let provider = Arc::new(ring::default_provider());
    let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().map_err(|_| unparsable())?;
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().map_err(|why| why.to_string())?;
    let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(Trust { inner, bundle }));
    Ok(builder.with_no_client_auth())
}

/// Trusts what the authorities of a bundle have signed, and, as Go does, a server's certificate that stands in the bundle itself.
#[derive(Debug)]
struct Trust {
    inner: Arc<WebPkiServerVerifier>,
    bundle: Vec<CertificateDer<'static>>,
}

impl Trust {
    fn is_pinned(&self, certificate: &CertificateDer<'_>, now: UnixTime) -> bool {
        use x509_parser::prelude::{ASN1Time, FromDer, X509Certificate};
        let at = i64::try_from(now.as_secs()).ok().and_then(|it| ASN1Time::from_timestamp(it).ok());
        let parsed = X509Certificate::from_der(certificate).ok().zip(at);
        self.bundle.iter().any(|it| it.as_ref() == certificate.as_ref()) && parsed.is_some_and(|((_, it), at)| it.validity().is_valid_at(at))
    }
}

impl ServerCertVerifier for Trust {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.is_pinned(certificate, now) {
            rustls::client::verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
            return Ok(ServerCertVerified::assertion());
        }
        self.inner.verify_server_cert(certificate, intermediates, name, ocsp, now)
    }

    fn verify_tls12_signature(&self, message: &[u8], certificate: &CertificateDer<'_>, signed: &DigitallySignedStruct) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(&self, message: &[u8], certificate: &CertificateDer<'_>, signed: &DigitallySignedStruct) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_certificates_read_as_gos() {
        let nested = |why: CertificateError| io::Error::other(io::Error::other(rustls::Error::InvalidCertificate(why)));
        let unknown = "tls: failed to verify certificate: x509: certificate signed by unknown authority";
        assert_eq!(reason(&nested(CertificateError::UnknownIssuer)), unknown);
        assert_eq!(reason(&nested(CertificateError::BadSignature)), unknown);
        assert_eq!(reason(&io::Error::other("else")), "else");
        assert_eq!(errno(&io::Error::from_raw_os_error(111)), "connection refused");
    }

    #[test]
    fn destinations_are_urls_with_the_time_that_is_left() {
        use serde_json::json;
        let url = |config: Value| Destination::new(&config).map(|it| it.url(None));
        let cases = [
            (json!({"service": {"namespace": "n", "name": "s", "path": "/p/"}}), "https://s.n.svc:443/p"),
            (json!({"service": {"namespace": "n", "name": "s", "port": 8443}}), "https://s.n.svc:8443/"),
            (json!({"url": "https://h:1/p"}), "https://h:1/p"),
        ];
        for (config, expected) in cases {
            assert_eq!(url(config), Ok(expected.to_owned()));
        }
        assert!(url(json!({})).is_err());
        let service = Destination::new(&json!({"url": "https://h"})).expect("a URL");
        assert_eq!(service.url(Some(Instant::now() + Duration::from_millis(1500))), "https://h/?timeout=2s");
    }
}
