//! A machine that runs pods: the agent, its server, the service proxy and the cluster's DNS.

use std::{
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
};

use sha2::{Digest, Sha256};
use tokio::net::TcpListener;

use super::{Error, Result, host_name, machine_address, network::Network, slot::Slot};
use crate::{
    api::identity::User,
    base::{Tasks, clock, pki::{self, Authority, Identity, Rotating}, tasks},
    client::Clients,
    dns,
    node::{agent::{self, Agent}, server as node_server},
    proxy,
};

/// The port of a kubelet; another cluster on this machine takes any.
const KUBELET_PORT: u16 = 10250;

#[derive(Clone, Debug)]
pub struct Options {
    /// The node's name; by default the host's.
    pub name: Option<String>,
    /// Where other machines reach it; by default the machine's address.
    pub address: Option<IpAddr>,
    pub data_dir: PathBuf,
    /// Where images are looked for before their registries.
    pub registry_mirror: Option<String>,
}

/// A running node.
pub struct Node {
    agent: Arc<Agent>,
    table: String,
}

impl Node {
    /// Starts the node of this machine.
    pub async fn start(clients: &Clients, authority: &Authority, network: &Network, options: &Options, slot: &Slot, tasks: &Tasks) -> Result<Self> {
        if !nix::unistd::geteuid().is_root() {
            return Err(Error("containers need root".to_owned()));
        }
        let Some(address) = options.address.or_else(machine_address) else {
            return Err(Error("the machine has no address but loopback, so that pods could not reach the API".to_owned()));
        };
        let name = options.name.clone().map_or_else(host_name, Ok)?;
        let listener = match TcpListener::bind((address, KUBELET_PORT)).await {
            Ok(listener) => listener,
            Err(_) => TcpListener::bind((address, 0)).await.map_err(|why| Error::new("the node's port", why))?,
        };
        let port = listener.local_addr().map_err(|why| Error::new("the node's port", why))?.port();
        let certificate_error = |why: &dyn std::fmt::Display| Error::new("certificates", why);
        let credential = authority.issue(&Identity::node(&name, &[address]), clock::now()).map_err(|why| certificate_error(&why))?;
        let credential = Rotating::new(&credential).map_err(|why| certificate_error(&why))?;
        let tls = pki::server_config(credential, authority.certificate()).map_err(|why| certificate_error(&why))?;
        let data_dir = std::fs::canonicalize(&options.data_dir).map_err(|why| Error::new(&options.data_dir.display().to_string(), why))?;
        let client = clients.of(&User::system(&format!("system:node:{name}"), &["system:nodes"]));
        let agent = Agent::start(
            client.clone(),
            tasks,
            agent::Options {
                name: name.clone(),
                address,
                port,
                state_dir: data_dir.join("node"),
                images_dir: data_dir.join("images"),
                registry_mirror: options.registry_mirror.clone(),
                pods: network.pods.at(0),
                cluster_dns: network.dns_service().to_string(),
                api_service: network.api_service().to_string(),
                cgroup: group_name(&data_dir),
            },
        )
        .map_err(|why| Error::new("the node", why))?;
        tasks.spawn_vital("node-server", node_server::listen(agent.clone(), listener, Arc::new(tls), tasks.clone()));
        let dns = dns::feed::start(&client, tasks, address).await.map_err(|why| Error::new("the cluster's DNS", why))?;
        proxy::feed::start(&client, tasks, proxy::feed::Options { node: name, table: slot.name(), pods: network.pods, dns });
        Ok(Self { agent, table: slot.name() })
    }

    /// Ends the containers and takes away what the node has in the kernel.
    pub async fn stop(self) {
        let agent = self.agent;
        let _ = tasks::blocking(move || agent.stop()).await;
        proxy::feed::remove(&self.table);
    }
}

/// The node's control group, named by where its state is: there may be several on a machine, in network namespaces of their own.
fn group_name(data_dir: &std::path::Path) -> String {
    let digest = Sha256::digest(data_dir.as_os_str().as_encoded_bytes());
    let hex: String = digest.iter().take(4).map(|it| format!("{it:02x}")).collect();
    format!("howdah-{hex}")
}
