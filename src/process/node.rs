//! A machine that runs pods: the agent, its server, the service proxy, the cluster's DNS and the routes to other nodes.

use std::{net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;

use super::{
    Error, Result, host_name, machine_address,
    network::{self, Network},
    slot::{Ranges, Slot},
};
use crate::{
    api::identity::User,
    base::{
        Tasks,
        pki::{self, Identity, Rotating},
        tasks,
    },
    client::Clients,
    dns,
    node::{
        agent::{self, Agent},
        certificates::{self, Certificate, Purpose},
        requirements, routes, server as node_server,
    },
    proxy,
};

/// The port of a kubelet; another cluster on this machine takes any.
const KUBELET_PORT: u16 = 10250;
/// How long the API server may take to answer at the start.
const ANSWERS_WITHIN: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What a node needs to know.
#[derive(clap::Args, Clone, Debug)]
#[group(skip)]
pub struct Options {
    /// The node's name, instead of the host's.
    #[arg(long = "node-name", value_name = "NAME")]
    pub name: Option<String>,
    /// The node's address, instead of the one from which the machine reaches others.
    #[arg(long = "node-ip", value_name = "IP")]
    pub address: Option<IpAddr>,
    /// A registry that is asked for images before their own, as http://HOST:PORT.
    #[arg(long, value_name = "URL")]
    pub registry_mirror: Option<String>,
    /// That of the whole process.
    #[arg(skip)]
    pub data_dir: PathBuf,
}

impl Options {
    pub fn node_name(&self) -> Result<String> {
        self.name.clone().map_or_else(host_name, Ok)
    }
}

/// A running node.
pub struct Node {
    agent: Arc<Agent>,
    table: String,
    tasks: Tasks,
    _ranges: Ranges,
    /// What does not work on this machine, and why.
    pub limits: Vec<String>,
}

impl Node {
    /// Starts the node of this machine. `authority` (PEM) is the cluster's; its clients need no other credential than the node's.
    pub async fn start(clients: &Clients, authority: &str, options: &Options, slot: &Slot, parent: &Tasks) -> Result<Self> {
        if !nix::unistd::geteuid().is_root() {
            return Err(Error("containers need root".to_owned()));
        }
        let Some(IpAddr::V4(address)) = options.address.or_else(machine_address) else {
            return Err(Error("the machine has no IPv4 address but loopback, so that pods could not reach the API".to_owned()));
        };
        let (name, tasks) = (options.node_name()?, parent.child());
        let client = clients.of(&User::system(&format!("system:node:{name}"), &["system:nodes"]));
        let network = read_network(&client).await?;
        let ranges = Ranges::claim(&network, &short_hash(authority.as_bytes()))?;
        let (listener, port) = listen(address.into()).await?;
        let data_dir = std::fs::canonicalize(&options.data_dir).map_err(|why| Error::new(&options.data_dir.display().to_string(), why))?;
        let mut limits = requirements::missing(&data_dir);
        limits.extend(proxy::feed::missing());
        let agent = Agent::start(
            client.clone(),
            &tasks,
            agent::Options {
                name: name.clone(),
                address: address.into(),
                port,
                state_dir: data_dir.join("node"),
                images_dir: data_dir.join("images"),
                registry_mirror: options.registry_mirror.clone(),
                cluster_dns: network.dns_service().to_string(),
                api_service: network.api_service().to_string(),
                cgroup: group_name(&data_dir),
            },
        )
        .map_err(|why| Error::new("the node", why))?;
        serve(&agent, listener, &client, authority, certificates::folder(&data_dir), &tasks)?;
        let dns = dns::feed::start(&client, &tasks, address.into()).await.map_err(|why| Error::new("the cluster's DNS", why))?;
        routes::start(&client, &tasks, routes::Options { node: name.clone(), address, pods: network.pods, cluster: slot.name() });
        proxy::feed::start(&client, &tasks, proxy::feed::Options { node: name, table: slot.name(), pods: network.pods, dns });
        Ok(Self { agent, table: slot.name(), tasks, _ranges: ranges, limits })
    }

    /// Completes when a part without which the node does not work has ended.
    pub async fn failed(&self) {
        self.tasks.stopping().await;
    }

    /// Ends the containers and takes away what the node has in the kernel.
    pub async fn stop(self) -> bool {
        self.tasks.cancel();
        let agent = self.agent;
        let _ = tasks::blocking(move || agent.stop()).await;
        let is_clean = self.tasks.stop(super::STOP_WITHIN).await;
        proxy::feed::remove(&self.table);
        is_clean
    }
}

/// The cluster's ranges, which the first API server has published.
async fn read_network(client: &kube::Client) -> Result<Network> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "kube-system");
    let began = std::time::Instant::now();
    loop {
        match maps.get(network::CONFIG_MAP).await {
            Ok(map) => return Network::parse(&json!(map.data)),
            Err(why) if began.elapsed() > ANSWERS_WITHIN => return Err(Error::new("the cluster's ranges of addresses", why)),
            Err(_) => tokio::time::sleep(LOOK_EVERY).await,
        }
    }
}

async fn listen(address: IpAddr) -> Result<(TcpListener, u16)> {
    let failed = |why: std::io::Error| Error::new("the node's port", why);
    let listener = match TcpListener::bind((address, KUBELET_PORT)).await {
        Ok(listener) => listener,
        Err(_) => TcpListener::bind((address, 0)).await.map_err(failed)?,
    };
    let port = listener.local_addr().map_err(failed)?.port();
    Ok((listener, port))
}

/// Serves logs, exec and the like. Who connects before the cluster has signed the certificate waits for it.
fn serve(agent: &Arc<Agent>, listener: TcpListener, client: &kube::Client, authority: &str, folder: PathBuf, tasks: &Tasks) -> Result<()> {
    let credential = Arc::new(Rotating::default());
    let identity = Identity::node(&agent.options.name, &[agent.options.address]);
    let own = Certificate { folder, purpose: Purpose::Serving, identity, authority: authority.to_owned() };
    own.rotate(client.clone(), credential.clone(), tasks);
    let tls = pki::server_config(credential.clone(), authority).map_err(|why| Error::new("certificates", why))?;
    let (agent, group) = (agent.clone(), tasks.clone());
    tasks.spawn_vital("node-server", async move {
        credential.ready().await;
        node_server::listen(agent, listener, Arc::new(tls), group).await;
    });
    Ok(())
}

/// The node's control group, named by where its state is: there may be several on a machine, in network namespaces of their own.
fn group_name(data_dir: &std::path::Path) -> String {
    format!("howdah-{}", short_hash(data_dir.as_os_str().as_encoded_bytes()))
}

fn short_hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().take(4).map(|it| format!("{it:02x}")).collect()
}
