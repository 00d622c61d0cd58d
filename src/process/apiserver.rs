//! The API server: it opens the store, finds or makes the cluster's keys there, and serves. Any number of them serve one cluster.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use clap::Args;
use tokio::net::TcpListener;

use super::{
    Error, Result, bootstrap, host_name,
    keys::Keys,
    kubeconfig, machine_address,
    network::{self, Network},
};
use crate::{
    api::{self, Server, aggregation::Aggregator, connect::Nodes, http::listen, identity::{MASTERS, User}, tokens::{self, Tokens}, trace::Trace},
    base::{Tasks, clock, pki::{self, Authority, Identity, Rotating}},
    client::{self, Clients},
    controllers,
    kinds::table,
    meta::{Meta, Quantity, Value},
    store::{Engine, Store, engine, memory::Memory, postgres::{self, Postgres}, sqlite::Sqlite},
};

/// How often it is seen whether certificates must be made anew; they last a year.
const RENEW_EVERY: Duration = Duration::from_secs(6 * 3600);
/// Another server that starts at the same time makes the same objects; what it was quicker with is seen at the next try.
const BOOTSTRAP_TRIES: u32 = 10;
/// The kubeconfigs of the roles, beside the administrator's: kubeadm's names.
const ROLES: [(&str, &str); 2] = [("controller-manager.conf", "system:kube-controller-manager"), ("scheduler.conf", "system:kube-scheduler")];

/// Where objects are stored.
#[derive(Clone, Debug)]
pub enum StoreKind {
    /// A file in the data directory.
    Sqlite,
    /// Nowhere.
    Memory,
    /// A database that other servers may share.
    Postgres(postgres::Address),
}

impl std::str::FromStr for StoreKind {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "sqlite" => Ok(Self::Sqlite),
            "memory" => Ok(Self::Memory),
            url if url.starts_with("postgres") => url.parse().map(Self::Postgres).map_err(|why: engine::Error| why.to_string()),
            _ => Err("neither sqlite, nor memory, nor an address postgres://…".to_owned()),
        }
    }
}

impl std::fmt::Display for StoreKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Sqlite => f.write_str("sqlite"),
            Self::Memory => f.write_str("memory"),
            Self::Postgres(address) => address.fmt(f),
        }
    }
}

/// What an API server needs to know; the comments are the command line's.
#[derive(Args, Clone, Debug)]
#[group(skip)]
pub struct Options {
    /// Where the cluster's state and images are kept.
    #[arg(long, value_name = "DIR", default_value = "data")]
    pub data_dir: PathBuf,
    /// Where people reach the API. Pods and other machines reach it at the machine's address and the same port.
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:6443")]
    pub bind: SocketAddr,
    /// The address at which pods and other machines reach this server, instead of the machine's.
    #[arg(long, value_name = "IP")]
    pub advertise_address: Option<IpAddr>,
    /// One more name or address that the server's certificate is to have. May be repeated.
    #[arg(long, value_name = "NAME")]
    pub tls_san: Vec<String>,
    /// Where the administrator's kubeconfig is written, readable only by you; those of controllers and scheduler stand beside it.
    #[arg(long, value_name = "PATH", default_value = "kubeconfig/admin.conf")]
    pub kubeconfig: PathBuf,
    /// Where objects are stored: `sqlite`, a file that survives everything; `memory`, which survives nothing; or a Postgres, which other
    /// servers may share: postgres://USER:PASSWORD@HOST/DATABASE?schema=NAME&sslmode=verify-full.
    #[arg(long, value_name = "STORE", default_value = "sqlite")]
    pub store: StoreKind,
    /// What all objects may take together, such as 2Gi; beyond it nothing is created (507). Memory holds about a quarter more.
    #[arg(long, value_name = "BYTES", default_value = "2Gi", value_parser = bytes)]
    pub store_quota: usize,
    /// A file to which a line of JSON is added for every request: who asked for what, the answer's status, time and size.
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    #[command(flatten)]
    pub network: network::Wanted,
}

/// A number of bytes, as a quantity.
fn bytes(text: &str) -> std::result::Result<usize, String> {
    let quantity: Quantity = text.parse().map_err(|_| "not a quantity such as 2Gi".to_owned())?;
    usize::try_from(quantity.units()).map_err(|_| "negative".to_owned())
}

/// A running API server.
pub struct ApiServer {
    pub server: Arc<Server>,
    pub clients: Clients,
    pub network: Network,
    pub authority: Arc<Authority>,
    /// Where people reach the API.
    pub url: String,
    pub address: IpAddr,
    /// Whether other processes may serve the same store.
    pub is_alone: bool,
    /// What other servers of this API need to know to trust this one.
    authentication: Value,
    store: Tasks,
}

impl ApiServer {
    /// Returns when the API answers and the objects of a new cluster are there. Its listeners end with `tasks`, the store with [`ApiServer::stop`].
    pub async fn start(options: &Options, default_network: Network, tasks: &Tasks) -> Result<Self> {
        std::fs::create_dir_all(&options.data_dir).map_err(|why| Error::new(&options.data_dir.display().to_string(), why))?;
        let store_tasks = Tasks::new();
        let engine = open_engine(&options.store, &options.data_dir, &store_tasks).await?;
        let is_alone = engine.is_exclusive();
        let extract = api::extract(Arc::new(table::registry()));
        let store = Store::open(engine, extract, &store_tasks).await.map_err(|why| Error::new("the store", why))?;
        store.set_quota(options.store_quota);
        let network = Network::of(&store, &options.network, default_network).await?;
        let keys = Keys::of(&store, &options.data_dir.join("pki")).await?;
        let address = options.advertise_address.or_else(machine_address).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let mut certificates = Certificates { authority: keys.authority.clone(), all: Vec::new() };
        let trace = open_trace(options, &store_tasks).await?;
        let server = make_server(&keys, store, trace, &mut certificates, tasks)?;
        let port = serve(&server, &mut certificates, options, address, &network, tasks).await?;
        let url = url(options.bind.ip(), port);
        let kubeconfigs = Kubeconfigs { admin: options.kubeconfig.clone(), url: url.clone(), authority: keys.authority.clone() };
        kubeconfigs.write()?;
        tasks.spawn("api-certificates", renew(certificates, kubeconfigs));
        server.start();
        let authentication = bootstrap::authentication(keys.authority.certificate(), keys.front_proxy.certificate());
        let started = Self { authentication, clients: in_process(&server), server, network, authority: keys.authority, url, address, is_alone, store: store_tasks };
        started.bootstrap(port).await?;
        started.server.is_bootstrapped.store(true, Ordering::Relaxed);
        started.publish(port, tasks);
        Ok(started)
    }

    async fn bootstrap(&self, port: u16) -> Result<()> {
        let info = kubeconfig::cluster_info(&url(self.address, port), self.authority.certificate());
        let told = [bootstrap::cluster_info(&info), self.authentication.clone()];
        let mut result = Ok(());
        for _ in 0..BOOTSTRAP_TRIES {
            let snapshot = self.server.store.consistent().await.map_err(|why| Error::new("the store", why))?;
            let own = self.own_client();
            result = bootstrap::ensure(&self.network, &told, &snapshot, |change| submit(&self.server, &own, change)).await;
            if result.is_ok() {
                break;
            }
        }
        result.map_err(|why| Error::new("the objects of a new cluster", why))
    }

    /// A client of the server itself, which may do everything.
    pub fn own_client(&self) -> kube::Client {
        self.clients.of(&User::system("system:apiserver", &[MASTERS]))
    }

    /// Signs certificates and tells about FlowSchemas from now on, and stands in the endpoints of Service `kubernetes`, unless nobody else could reach it there.
    fn publish(&self, port: u16, tasks: &Tasks) {
        let own = self.own_client();
        controllers::certificates::signer::start(&own, tasks, self.authority.clone());
        controllers::flowschema::start(&own, tasks);
        if !self.address.is_loopback() {
            controllers::apiserver_endpoints::start(&own, tasks, self.address, port);
        }
    }

    /// Completes when the store has ended.
    pub async fn failed(&self) {
        self.store.stopping().await;
    }

    /// Stops the store. It is the last to stop, so that what the others still write is kept.
    pub async fn stop(self, grace: Duration) -> bool {
        self.store.stop(grace).await
    }
}

pub async fn open_engine(store: &StoreKind, data_dir: &Path, tasks: &Tasks) -> Result<Arc<dyn Engine>> {
    let failed = |why: engine::Error| Error::new("the store", why);
    Ok(match store {
        StoreKind::Memory => Arc::new(Memory::new()),
        StoreKind::Sqlite => Sqlite::open(&data_dir.join("howdah.db")).await.map_err(failed)?,
        StoreKind::Postgres(address) => Postgres::open(address.clone(), tasks).await.map_err(failed)?,
    })
}

/// The flight recorder. It ends with the store, so that it has what the parts ask for while they stop.
async fn open_trace(options: &Options, tasks: &Tasks) -> Result<Option<Arc<Trace>>> {
    match &options.trace {
        None => Ok(None),
        Some(path) => Trace::open(path, tasks).await.map(Some).map_err(|why| Error::new(&path.display().to_string(), why)),
    }
}

fn make_server(keys: &Keys, store: Store, trace: Option<Arc<Trace>>, certificates: &mut Certificates, tasks: &Tasks) -> Result<Arc<Server>> {
    let tokens = Arc::new(Tokens::new(tokens::ISSUER, &keys.service_accounts).map_err(certificate_error)?);
    let aggregator = Aggregator::new(certificates.issue_by(keys.front_proxy.clone(), Identity::front_proxy())?);
    let credential = certificates.issue(Identity::kubelet_client())?;
    let config = pki::client_config(keys.authority.certificate(), Some(credential)).map_err(certificate_error)?;
    Ok(Server::new(store, tokens, Nodes::new(config, tasks.clone()), aggregator, trace, tasks.clone()))
}

/// Listens where people reach the API, and at the machine's address, where pods do. Returns the port.
async fn serve(server: &Arc<Server>, certificates: &mut Certificates, options: &Options, address: IpAddr, network: &Network, tasks: &Tasks) -> Result<u16> {
    let mut names = vec![address.to_string(), options.bind.ip().to_string(), network.api_service().to_string(), host_name()?];
    names.extend(options.tls_san.iter().cloned());
    let credential = certificates.issue(Identity::api_server(&names))?;
    let tls = Arc::new(pki::server_config(credential, certificates.authority.certificate()).map_err(certificate_error)?);
    let first = TcpListener::bind(options.bind).await.map_err(|why| Error::new(&format!("cannot listen on {}", options.bind), why))?;
    let port = first.local_addr().map_err(|why| Error::new("the listener", why))?.port();
    let mut listeners = vec![first];
    if !options.bind.ip().is_unspecified() && options.bind.ip() != address {
        let second = SocketAddr::new(address, port);
        listeners.push(TcpListener::bind(second).await.map_err(|why| Error::new(&format!("cannot listen on {second}"), why))?);
    }
    for listener in listeners {
        tasks.spawn_vital("api-listener", listen(server.clone(), listener, tls.clone(), tasks.clone()));
    }
    Ok(port)
}

fn url(ip: IpAddr, port: u16) -> String {
    let ip = if ip.is_unspecified() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { ip };
    format!("https://{}", SocketAddr::new(ip, port))
}

fn certificate_error(why: impl std::fmt::Display) -> Error {
    Error::new("certificates", why)
}

/// The server's own certificates. They live in memory: the authority is at hand to make others.
struct Certificates {
    authority: Arc<Authority>,
    all: Vec<(Arc<Authority>, Identity, Arc<Rotating>)>,
}

impl Certificates {
    fn issue(&mut self, identity: Identity) -> Result<Arc<Rotating>> {
        self.issue_by(self.authority.clone(), identity)
    }

    fn issue_by(&mut self, authority: Arc<Authority>, identity: Identity) -> Result<Arc<Rotating>> {
        let credential = authority.issue(&identity, clock::now()).map_err(certificate_error)?;
        let rotating = Rotating::new(&credential).map_err(certificate_error)?;
        self.all.push((authority, identity, rotating.clone()));
        Ok(rotating)
    }

    fn renew(&self) -> Result<()> {
        self.all.iter().try_for_each(|(authority, identity, rotating)| {
            let credential = authority.issue(identity, clock::now()).map_err(certificate_error)?;
            rotating.replace(&credential).map_err(certificate_error)
        })
    }
}

/// The files of the administrator and of the roles that run apart.
struct Kubeconfigs {
    admin: PathBuf,
    url: String,
    authority: Arc<Authority>,
}

impl Kubeconfigs {
    fn write(&self) -> Result<()> {
        kubeconfig::write(&self.admin, &self.url, &self.authority, &Identity::admin())?;
        ROLES.iter().try_for_each(|(file, user)| kubeconfig::write(&self.admin.with_file_name(file), &self.url, &self.authority, &Identity::client(user, &[])))
    }
}

/// Certificates and kubeconfigs are new every few hours, so that none is ever about to expire.
async fn renew(certificates: Certificates, kubeconfigs: Kubeconfigs) {
    loop {
        tokio::time::sleep(RENEW_EVERY).await;
        if let Err(error) = certificates.renew().and_then(|()| kubeconfigs.write()) {
            tracing::error!(%error, "certificates could not be renewed");
        }
    }
}

/// Clients that reach the server without a socket.
fn in_process(server: &Arc<Server>) -> Clients {
    let server = server.clone();
    Clients::new(move |user| client::over(server.in_process(user), client::program(user)))
}

/// Sends an object of the bootstrap through the API.
async fn submit(server: &Server, client: &kube::Client, change: bootstrap::Change) -> client::Result<()> {
    let (method, object, name) = match &change {
        bootstrap::Change::Create(object) => (http::Method::POST, object, String::new()),
        bootstrap::Change::Update(object) => (http::Method::PUT, object, format!("/{}", object.name())),
    };
    let request = http::Request::builder().method(method).uri(collection(server, object) + &name).header("content-type", "application/json");
    let request = request.body(object.to_string().into_bytes()).map_err(|why| client::Error::Invalid(why.to_string()))?;
    client.request_text(request).await?;
    Ok(())
}

/// The path of the collection that holds `object`.
fn collection(server: &Server, object: &Value) -> String {
    let gvk = crate::meta::GroupVersionKind::of(object);
    let registry = server.registry.load();
    let kind = registry.by_kind(&gvk.group, &gvk.kind).expect("the objects of the bootstrap are of built-in kinds");
    let root = if gvk.group.is_empty() { format!("/api/{}", gvk.version) } else { format!("/apis/{}", gvk.api_version()) };
    let namespace = if kind.is_namespaced() { format!("/namespaces/{}", object.namespace()) } else { String::new() };
    format!("{root}{namespace}/{}", kind.plural)
}
