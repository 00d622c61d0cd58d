//! A whole cluster in one process: what `howdah up` runs, and what the tests start.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde_json::json;
use tokio::net::TcpListener;

use super::{
    bootstrap,
    pki::{self, Identity, Pki},
};
use crate::{
    api::{self, Server, body, connect::Nodes, http::listen, identity::{MASTERS, User}, tokens::{self, Tokens}, trace::Trace},
    base::{Tasks, clock, tasks},
    client::Clients,
    controllers,
    kinds::table,
    meta::{Meta, Value},
    dns, node::{agent::{self, Agent}, server as node_server, simulated}, proxy,
    scheduler,
    store::{Engine, Store, memory::Memory, sqlite::Sqlite},
};

/// Clusters on one machine, each with ranges of its own: 10.96/16 to 10.111/16 for Services, 10.244/16 down to 10.229/16 for pods.
const SLOTS: u8 = 16;
const FIRST_SERVICES: u8 = 96;
const FIRST_PODS: u8 = 244;
/// The last byte of the address of the cluster's DNS, as everywhere.
const DNS_ADDRESS: u8 = 10;
/// The port of a kubelet; another cluster on this machine takes any.
const KUBELET_PORT: u16 = 10250;
/// How long the parts of a cluster get to end.
const STOP_WITHIN: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct Error(String);

impl Error {
    fn new(what: &str, why: impl std::fmt::Display) -> Self {
        Self(format!("{what}: {why}"))
    }
}

type Result<T> = std::result::Result<T, Error>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum StoreKind {
    Sqlite,
    Memory,
}

#[derive(Clone, Debug)]
pub struct Options {
    pub data_dir: PathBuf,
    pub bind: SocketAddr,
    pub kubeconfig: PathBuf,
    pub store: StoreKind,
    pub node: NodeKind,
    pub simulated_nodes: usize,
    /// Where images are looked for before their registries.
    pub registry_mirror: Option<String>,
    /// Where every request is recorded.
    pub trace: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum NodeKind {
    /// This machine runs pods.
    Embedded,
    None,
}

/// A running cluster.
pub struct Cluster {
    pub server: Arc<Server>,
    pub clients: Clients,
    /// Where people reach the API.
    pub url: String,
    pub kubeconfig: PathBuf,
    /// Everything but the store; stops first.
    parts: Tasks,
    store: Tasks,
    slot: Slot,
    node: Option<Arc<Agent>>,
    /// What does not work here, and why.
    pub limits: Vec<String>,
}

impl Cluster {
    /// Starts all parts and returns when the API answers and the objects of a new cluster are there.
    pub async fn start(options: Options) -> Result<Self> {
        std::fs::create_dir_all(&options.data_dir).map_err(|why| Error::new(&options.data_dir.display().to_string(), why))?;
        let slot = Slot::claim(&options.data_dir)?;
        let pki = Pki::open(&options.data_dir.join("pki"), clock::now()).map_err(|why| Error::new("certificates", why))?;
        let (parts, store_tasks) = (Tasks::new(), Tasks::new());
        let store = open_store(&options, &store_tasks).await?;
        let trace = open_trace(&options, &store_tasks).await?;
        let server = make_server(&pki, store, trace, &parts)?;
        let address = machine_address().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let port = serve(&server, &pki, &options, address, &slot, &parts).await?;
        write_kubeconfig(&pki, &options, port)?;
        server.start();
        let clients = in_process(&server);
        let mut cluster = Self {
            url: url(options.bind.ip(), port),
            kubeconfig: options.kubeconfig.clone(),
            server,
            clients,
            parts,
            store: store_tasks,
            slot,
            node: None,
            limits: Vec::new(),
        };
        cluster.bootstrap().await?;
        cluster.start_parts(&pki, &options, address, port);
        if options.node == NodeKind::Embedded {
            match cluster.start_node(&pki, &options, address).await {
                Ok(agent) => cluster.node = Some(agent),
                Err(why) => cluster.limits.push(format!("no pods run on this machine: {why}")),
            }
        }
        Ok(cluster)
    }

    async fn bootstrap(&self) -> Result<()> {
        let services = self.slot.services();
        let snapshot = self.server.store.snapshot();
        let apply = |change| submit(&self.server, change);
        bootstrap::ensure(&[services], &snapshot, apply).await.map_err(|why| Error::new("the objects of a new cluster", why))?;
        for service in [self.slot.kubernetes_service()] {
            match submit(&self.server, bootstrap::Change::Create(service)).await {
                Err(status) if !status.is_already_exists() && status.reason != "Invalid" => return Err(Error::new("Service kubernetes", status)),
                _ => (),
            }
        }
        Ok(())
    }

    fn start_parts(&self, pki: &Pki, options: &Options, address: IpAddr, port: u16) {
        let root_ca = pki.authority().certificate().to_owned();
        controllers::start(&self.clients, &self.parts, controllers::Options { root_ca, leader_identity: None });
        scheduler::start(&self.clients, &self.parts, scheduler::Options { leader_identity: None });
        let own = self.clients.of(&User::system("system:apiserver", &[MASTERS]));
        if !address.is_loopback() {
            controllers::apiserver_endpoints::start(&own, &self.parts, address, port);
        }
        if options.simulated_nodes > 0 {
            simulated::start(&self.clients, &self.parts, options.simulated_nodes);
        }
    }

    /// Starts the node of this machine: agent, its server, service proxy and DNS.
    async fn start_node(&self, pki: &Pki, options: &Options, address: IpAddr) -> Result<Arc<Agent>> {
        if !nix::unistd::geteuid().is_root() {
            return Err(Error("containers need root".to_owned()));
        }
        if address.is_loopback() {
            return Err(Error("the machine has no address but loopback, so that pods could not reach the API".to_owned()));
        }
        let name = nix::unistd::gethostname().map_err(|why| Error::new("the host's name", why))?.to_string_lossy().to_ascii_lowercase();
        let listener = match TcpListener::bind((address, KUBELET_PORT)).await {
            Ok(listener) => listener,
            Err(_) => TcpListener::bind((address, 0)).await.map_err(|why| Error::new("the node's port", why))?,
        };
        let port = listener.local_addr().map_err(|why| Error::new("the node's port", why))?.port();
        let credential = pki.credential("kubelet", &Identity::node(&name, &[address]), clock::now()).map_err(|why| Error::new("certificates", why))?;
        let tls = pki::server_config(&credential, pki.authority().certificate()).map_err(|why| Error::new("certificates", why))?;
        let data_dir = std::fs::canonicalize(&options.data_dir).map_err(|why| Error::new(&options.data_dir.display().to_string(), why))?;
        let agent = Agent::start(
            &self.clients,
            &self.parts,
            agent::Options {
                name: name.clone(),
                address,
                port,
                state_dir: data_dir.join("node"),
                images_dir: data_dir.join("images"),
                registry_mirror: options.registry_mirror.clone(),
                pods: self.slot.pods(),
                cluster_dns: self.slot.service_ip(DNS_ADDRESS),
                api_service: self.slot.service_ip(1),
                cgroup: self.slot.name(),
            },
        )
        .map_err(|why| Error::new("the node", why))?;
        self.parts.spawn_vital("node-server", node_server::listen(agent.clone(), listener, Arc::new(tls), self.parts.clone()));
        proxy::feed::start(&self.clients, &self.parts, proxy::feed::Options { node: name, table: self.slot.name(), pods: self.slot.pods() });
        let dns = dns::feed::start(&self.clients, &self.parts, address, &self.slot.service_ip(DNS_ADDRESS)).await;
        dns.map_err(|why| Error::new("the cluster's DNS", why))?;
        Ok(agent)
    }

    /// Completes when a part without which nothing works has ended.
    pub async fn failed(&self) {
        tokio::select! {
            () = self.parts.stopping() => (),
            () = self.store.stopping() => (),
        }
    }

    /// Stops all parts, the store last. Returns whether all of them ended in time.
    pub async fn stop(self) -> bool {
        self.parts.cancel();
        if let Some(node) = self.node {
            let _ = tasks::blocking(move || node.stop()).await;
            proxy::feed::remove(&self.slot.name());
        }
        // The store is the last, so that what the others still write is kept.
        self.parts.stop(STOP_WITHIN).await && self.store.stop(STOP_WITHIN).await
    }
}

async fn open_store(options: &Options, tasks: &Tasks) -> Result<Store> {
    let engine: Arc<dyn Engine> = match options.store {
        StoreKind::Memory => Arc::new(Memory::new()),
        StoreKind::Sqlite => Sqlite::open(&options.data_dir.join("howdah.db")).await.map_err(|why| Error::new("the store", why))?,
    };
    let extract = api::extract(Arc::new(table::registry()));
    Store::open(engine, extract, tasks).await.map_err(|why| Error::new("the store", why))
}

/// The flight recorder. It ends with the store, so that it has what the parts ask for while they stop.
async fn open_trace(options: &Options, tasks: &Tasks) -> Result<Option<Arc<Trace>>> {
    match &options.trace {
        None => Ok(None),
        Some(path) => Trace::open(path, tasks).await.map(Some).map_err(|why| Error::new(&path.display().to_string(), why)),
    }
}

fn make_server(pki: &Pki, store: Store, trace: Option<Arc<Trace>>, tasks: &Tasks) -> Result<Arc<Server>> {
    let failed = |why: &dyn std::fmt::Display| Error::new("certificates", why);
    let key = pki.service_account_key().map_err(|why| failed(&why))?;
    let tokens = Arc::new(Tokens::new(tokens::ISSUER, &key).map_err(|why| failed(&why))?);
    let credential = pki.credential("apiserver-kubelet-client", &Identity::kubelet_client(), clock::now()).map_err(|why| failed(&why))?;
    let config = pki::client_config(pki.authority().certificate(), Some(&credential)).map_err(|why| failed(&why))?;
    Ok(Server::new(store, tokens, Nodes::new(config, tasks.clone()), trace, tasks.clone()))
}

/// Listens where people reach the API, and at the machine's address, where pods do. Returns the port.
async fn serve(server: &Arc<Server>, pki: &Pki, options: &Options, address: IpAddr, slot: &Slot, tasks: &Tasks) -> Result<u16> {
    let names: Vec<String> = [address.to_string(), options.bind.ip().to_string(), slot.service_ip(1)].into_iter().collect();
    let credential = pki.credential("apiserver", &Identity::api_server(&names), clock::now()).map_err(|why| Error::new("certificates", why))?;
    let tls = pki::server_config(&credential, pki.authority().certificate()).map_err(|why| Error::new("certificates", why))?;
    let tls = Arc::new(tls);
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

fn write_kubeconfig(pki: &Pki, options: &Options, port: u16) -> Result<()> {
    let failed = |why: &dyn std::fmt::Display| Error::new(&options.kubeconfig.display().to_string(), why);
    let admin = pki.credential("admin", &Identity::admin(), clock::now()).map_err(|why| failed(&why))?;
    if let Some(folder) = options.kubeconfig.parent() {
        std::fs::create_dir_all(folder).map_err(|why| failed(&why))?;
    }
    let text = pki::kubeconfig(&url(options.bind.ip(), port), pki.authority().certificate(), &admin);
    pki::write(&options.kubeconfig, &text, 0o600).map_err(|why| failed(&why))
}

/// The address from which this machine reaches others; `None` where it reaches none. Nothing is sent.
fn machine_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    // An address of documentation (RFC 5737) stands for "anywhere".
    socket.connect((Ipv4Addr::new(203, 0, 113, 1), 9)).ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|it| !it.is_unspecified() && !it.is_loopback())
}

/// Clients that reach the server without a socket.
fn in_process(server: &Arc<Server>) -> Clients {
    let server = server.clone();
    Clients::new(move |user| kube::Client::new(server.in_process(user), "default"))
}

/// Sends an object of the bootstrap through the API, as the most trusted user.
async fn submit(server: &Arc<Server>, change: bootstrap::Change) -> crate::meta::Result<()> {
    let (method, object) = match change {
        bootstrap::Change::Create(object) => (http::Method::POST, object),
        bootstrap::Change::Update(object) => (http::Method::PUT, object),
    };
    let name = if method == http::Method::PUT { format!("/{}", object.name()) } else { String::new() };
    let uri = format!("{}{name}?fieldManager=kube-apiserver", collection(server, &object)?);
    let request = http::Request::builder().method(method).uri(uri).header("content-type", "application/json");
    let request = request.body(body::full(object.to_string())).map_err(crate::meta::Status::internal)?;
    let mut service = server.in_process(&User::system("system:apiserver", &[MASTERS]));
    let response = match tower::Service::call(&mut service, request).await {
        Ok(response) => response,
        Err(never) => match never {},
    };
    let code = response.status().as_u16();
    if code < 300 {
        return Ok(());
    }
    let bytes = body::read(response.into_body()).await?;
    let status: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let mut error = crate::meta::Status::new(code, "Unknown", status.text("message"));
    error.reason = status.text("reason").to_owned().into();
    Err(error)
}

/// The path of the collection that holds `object`.
fn collection(server: &Server, object: &Value) -> crate::meta::Result<String> {
    let gvk = crate::meta::GroupVersionKind::of(object);
    let registry = server.registry.load();
    let kind = registry.by_kind(&gvk.group, &gvk.kind).ok_or_else(crate::meta::Status::no_route)?;
    let root = if gvk.group.is_empty() { format!("/api/{}", gvk.version) } else { format!("/apis/{}", gvk.api_version()) };
    let namespace = if kind.is_namespaced() { format!("/namespaces/{}", object.namespace()) } else { String::new() };
    Ok(format!("{root}{namespace}/{}", kind.plural))
}

/// A cluster's place among those of this machine: it decides the ranges of addresses. Held by an abstract socket, which the kernel
/// lets go with the process.
struct Slot {
    number: u8,
    _socket: UnixListener,
}

impl Slot {
    /// The slot of this data directory, or the first free one, which it keeps.
    fn claim(data_dir: &Path) -> Result<Self> {
        let path = data_dir.join("slot");
        let kept: Option<u8> = std::fs::read_to_string(&path).ok().and_then(|it| it.trim().parse().ok());
        if let Some(number) = kept {
            let taken = |_| Error(format!("slot {number} of {} is in use: is the cluster running already, or another one with a copy of its data?", data_dir.display()));
            return Ok(Self { number, _socket: lock(number).map_err(taken)? });
        }
        let free = (0..SLOTS).find_map(|number| Some(Self { number, _socket: lock(number).ok()? }));
        let slot = free.ok_or_else(|| Error(format!("{SLOTS} clusters run on this machine already")))?;
        std::fs::write(&path, slot.number.to_string()).map_err(|why| Error::new(&path.display().to_string(), why))?;
        Ok(slot)
    }

    fn services(&self) -> String {
        format!("10.{}.0.0/16", FIRST_SERVICES + self.number)
    }

    /// An address of the Services' range by its last byte.
    fn service_ip(&self, last: u8) -> String {
        format!("10.{}.0.{last}", FIRST_SERVICES + self.number)
    }

    /// The name of what the cluster has in the kernel: its control group and its table of rules.
    fn name(&self) -> String {
        format!("howdah-{}", self.number)
    }

    /// The pods' range.
    pub fn pods(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, FIRST_PODS - self.number, 0, 0)
    }

    fn kubernetes_service(&self) -> Value {
        json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"component": "apiserver", "provider": "kubernetes"}},
            "spec": {"clusterIP": self.service_ip(1), "type": "ClusterIP", "sessionAffinity": "None",
                "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": 6443}]}})
    }
}

fn lock(number: u8) -> std::io::Result<UnixListener> {
    use std::os::linux::net::SocketAddrExt;
    let address = std::os::unix::net::SocketAddr::from_abstract_name(format!("howdah/slot/{number}"))?;
    UnixListener::bind_addr(&address)
}
