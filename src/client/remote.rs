//! The cluster over TLS: one credential, several API servers of which any will do, and for each service account a token of its own, as
//! upstream's controllers have with `--use-service-account-credentials`.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use http::{HeaderValue, Request, Response, StatusCode, Uri, header, uri::Scheme};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::ServiceAccount,
    discovery::v1::EndpointSlice,
};
use kube::{Api, api::PostParams, client::Body};
use tokio::sync::Mutex;

use super::{Clients, Informer, Watch, program};
use crate::{
    api::identity::User,
    base::{
        Tasks,
        pki::{self, Rotating},
    },
};

/// A server that does not take a connection within this time is passed over.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// A server that is silent is asked whether it lives this often, and given up after as long.
const ALIVE_EVERY: Duration = Duration::from_secs(5);
const TOKEN_SECONDS: i64 = 3600;
/// A token is replaced after this part of its life, as client-go does.
const TOKEN_FRESH: Duration = Duration::from_secs(TOKEN_SECONDS as u64 * 4 / 5);

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Clients of the cluster at `servers` (as https://HOST:PORT) and at those that it says it has, whose authority (PEM) is known. `credential`
/// says who we are in every request that is no service account's.
pub fn connect(servers: Vec<Uri>, authority: &str, credential: Option<Arc<Rotating>>, tasks: &Tasks) -> Result<Clients, pki::Error> {
    let servers = Servers::new(servers);
    let own = Https { client: http_client(pki::client_config(authority, credential)?), servers, bearer: None };
    own.servers.follow(own.client(&User::default()), tasks);
    // A certificate would count before a token.
    let unnamed = http_client(pki::client_config(authority, None)?);
    Ok(Clients::new(move |user| match service_account(user) {
        None => own.client(user),
        Some((namespace, name)) => {
            let token = Token { source: own.client(user), namespace, name, held: Mutex::default() };
            Https { client: unnamed.clone(), servers: own.servers.clone(), bearer: Some(Bearer::Account(Arc::new(token))) }.client(user)
        }
    }))
}

/// A client that shows a token which it was given.
pub fn with_token(servers: Vec<Uri>, authority: &str, token: &str) -> Result<kube::Client, pki::Error> {
    let servers = Servers::new(servers);
    let fixed = Https { client: http_client(pki::client_config(authority, None)?), servers, bearer: Some(Bearer::Fixed(Arc::from(token))) };
    Ok(fixed.client(&User::default()))
}

fn http_client(tls: rustls::ClientConfig) -> Client<HttpsConnector<HttpConnector>, Body> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT_WITHIN));
    let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_only().enable_all_versions().wrap_connector(tcp);
    let mut builder = Client::builder(TokioExecutor::new());
    builder.timer(TokioTimer::new()).pool_timer(TokioTimer::new());
    builder.http2_keep_alive_interval(ALIVE_EVERY).http2_keep_alive_timeout(ALIVE_EVERY).http2_adaptive_window(true);
    builder.build(connector)
}

/// (namespace, name) of the service account that `user` is.
fn service_account(user: &User) -> Option<(String, String)> {
    let (namespace, name) = user.name.strip_prefix("system:serviceaccount:")?.split_once(':')?;
    Some((namespace.to_owned(), name.to_owned()))
}

/// The API servers; the current one is asked until it fails.
struct Servers {
    given: Vec<Uri>,
    /// Those, and then what the cluster says.
    all: ArcSwap<Vec<Uri>>,
    current: AtomicUsize,
}

impl Servers {
    fn new(given: Vec<Uri>) -> Arc<Self> {
        Arc::new(Self { all: ArcSwap::from_pointee(given.clone()), given, current: AtomicUsize::new(0) })
    }

    /// Learns of servers that come and go, from the EndpointSlices of Service `kubernetes`.
    fn follow(self: &Arc<Self>, client: kube::Client, tasks: &Tasks) {
        let own = Watch::default().labels("kubernetes.io/service-name=kubernetes");
        let slices = Informer::start("api-servers", Api::<EndpointSlice>::namespaced(client, "default"), own, tasks);
        let (servers, all) = (self.clone(), slices.clone());
        slices.subscribe(move |_| servers.learn(&all.list()));
    }

    fn learn(&self, slices: &[Arc<EndpointSlice>]) {
        let mut all = self.given.clone();
        let mut found: Vec<Uri> = slices.iter().flat_map(|it| addresses(it)).collect();
        found.sort_by_key(Uri::to_string);
        found.retain(|it| !self.given.iter().any(|given| given.authority() == it.authority()));
        all.append(&mut found);
        self.all.store(Arc::new(all));
    }

    fn current(&self) -> usize {
        self.current.load(Ordering::Relaxed)
    }

    /// `uri` at the server `number`.
    fn place(&self, number: usize, uri: &Uri) -> Result<Uri, BoxError> {
        let all = self.all.load();
        let server = all.get(number % all.len().max(1)).ok_or("no API server is known")?;
        let mut parts = uri.clone().into_parts();
        (parts.scheme, parts.authority) = (Some(Scheme::HTTPS), server.authority().cloned());
        Ok(Uri::from_parts(parts)?)
    }

    /// Of several requests that fail together only the first moves on.
    fn failed(&self, number: usize) {
        let _ = self.current.compare_exchange(number, number.wrapping_add(1), Ordering::Relaxed, Ordering::Relaxed);
    }
}

fn addresses(slice: &EndpointSlice) -> Vec<Uri> {
    let ports: Vec<i32> = slice.ports.iter().flatten().filter_map(|it| it.port).collect();
    let hosts = slice.endpoints.iter().flatten().flat_map(|it| &it.addresses);
    let host = |it: &String| if it.contains(':') { format!("[{it}]") } else { it.clone() };
    hosts.flat_map(|it| ports.iter().filter_map(|port| format!("https://{}:{port}", host(it)).parse().ok()).collect::<Vec<_>>()).collect()
}

/// A service account's token, asked for when it is first needed and again before it expires.
struct Token {
    source: kube::Client,
    namespace: String,
    name: String,
    held: Mutex<Option<(HeaderValue, Instant)>>,
}

impl Token {
    async fn current(&self) -> Result<HeaderValue, BoxError> {
        let mut held = self.held.lock().await;
        if let Some((token, since)) = held.as_ref()
            && since.elapsed() < TOKEN_FRESH
        {
            return Ok(token.clone());
        }
        let token = bearer(&self.request().await?)?;
        *held = Some((token.clone(), Instant::now()));
        Ok(token)
    }

    /// The account is made if it is not there, as upstream's client builder does.
    async fn request(&self) -> Result<String, BoxError> {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.source.clone(), &self.namespace);
        let spec = TokenRequestSpec { expiration_seconds: Some(TOKEN_SECONDS), ..TokenRequestSpec::default() };
        let request = TokenRequest { spec: Some(spec), ..TokenRequest::default() };
        let params = PostParams::default();
        let ask = || accounts.create_token_request(&self.name, &params, &request);
        let answer = match ask().await {
            Err(kube::Error::Api(status)) if status.code == 404 => {
                let mut account = ServiceAccount::default();
                account.metadata.name = Some(self.name.clone());
                match accounts.create(&params, &account).await {
                    Err(kube::Error::Api(status)) if status.code == 409 => (),
                    other => _ = other?,
                }
                ask().await?
            }
            other => other?,
        };
        answer.status.and_then(|it| it.token).ok_or_else(|| "a token request without an answer".into())
    }

    /// The server does not know the token any more: the account is another one, or the key.
    async fn refused(&self) {
        *self.held.lock().await = None;
    }
}

#[derive(Clone)]
struct Https {
    client: Client<HttpsConnector<HttpConnector>, Body>,
    servers: Arc<Servers>,
    bearer: Option<Bearer>,
}

/// What a request without a certificate shows.
#[derive(Clone)]
enum Bearer {
    Fixed(Arc<str>),
    Account(Arc<Token>),
}

impl Bearer {
    async fn header(&self) -> Result<HeaderValue, BoxError> {
        match self {
            Self::Fixed(token) => bearer(token),
            Self::Account(token) => token.current().await,
        }
    }
}

fn bearer(token: &str) -> Result<HeaderValue, BoxError> {
    let mut value = HeaderValue::from_str(&format!("Bearer {token}"))?;
    value.set_sensitive(true);
    Ok(value)
}

impl Https {
    fn client(&self, user: &User) -> kube::Client {
        super::over(self.clone(), program(user))
    }

    async fn send(self, mut request: Request<Body>) -> Result<Response<Incoming>, BoxError> {
        if let Some(bearer) = &self.bearer {
            request.headers_mut().insert(header::AUTHORIZATION, bearer.header().await?);
        }
        let number = self.servers.current();
        *request.uri_mut() = self.servers.place(number, request.uri())?;
        let answer = self.client.request(request).await;
        match &answer {
            Err(_) => self.servers.failed(number),
            Ok(answer) if answer.status() == StatusCode::UNAUTHORIZED => {
                if let Some(Bearer::Account(token)) = &self.bearer {
                    token.refused().await;
                }
            }
            Ok(_) => (),
        }
        Ok(answer?)
    }
}

impl tower::Service<Request<Body>> for Https {
    type Response = Response<Incoming>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.clone().send(request))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_next_server_is_asked_when_one_fails() {
        let servers = Servers::new(["https://a:6443", "https://b:6443"].map(|it| it.parse().unwrap()).to_vec());
        let path: Uri = "/api/v1/pods?watch=1".parse().unwrap();
        let place = || servers.place(servers.current(), &path).unwrap().to_string();
        assert_eq!(place(), "https://a:6443/api/v1/pods?watch=1");
        servers.failed(0);
        servers.failed(0);
        assert_eq!(place(), "https://b:6443/api/v1/pods?watch=1");
        servers.failed(1);
        assert_eq!(place(), "https://a:6443/api/v1/pods?watch=1");
        assert!(Servers::new(Vec::new()).place(0, &path).is_err());
    }

    #[test]
    fn servers_that_the_cluster_names_come_after_those_that_were_given() {
        let servers = Servers::new(vec!["https://10.0.0.1:6443".parse().unwrap()]);
        let slice = |port: u16, addresses: &[&str]| {
            let endpoints: Vec<_> = addresses.iter().map(|it| json!({"addresses": [it]})).collect();
            serde_json::from_value(json!({"addressType": "IPv4", "endpoints": endpoints, "ports": [{"port": port}]})).unwrap()
        };
        servers.learn(&[Arc::new(slice(6444, &["10.0.0.3"])), Arc::new(slice(6443, &["10.0.0.2", "10.0.0.1", "fd00::1"]))]);
        let all: Vec<String> = servers.all.load().iter().map(|it| it.authority().unwrap().to_string()).collect();
        assert_eq!(all, ["10.0.0.1:6443", "10.0.0.2:6443", "10.0.0.3:6444", "[fd00::1]:6443"]);
        servers.learn(&[]);
        assert_eq!(servers.all.load().len(), 1);
    }
}
