//! A whole cluster in one process: what `howdah up` runs, and what the tests start.

use std::{sync::atomic::Ordering, time::Duration};

use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;

use super::{
    Result, STOP_WITHIN,
    apiserver::{self, ApiServer},
    node::{self, Node},
    roles::{Role, leader_identity},
    slot::Slot,
};
use crate::{
    base::{Tasks, backoff::Backoff},
    node::simulated,
};

const MARK_FIRST: Duration = Duration::from_millis(20);
const MARK_MOST: Duration = Duration::from_secs(5);

#[derive(clap::Args, Clone, Debug)]
#[group(skip)]
pub struct Options {
    #[command(flatten)]
    pub api: apiserver::Options,
    #[command(flatten)]
    pub node_options: node::Options,
    /// Whether this machine runs pods.
    #[arg(long, value_enum, default_value = "embedded")]
    pub node: NodeKind,
    /// Nodes that only say that their pods run.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub simulated_nodes: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum NodeKind {
    /// This machine runs pods.
    Embedded,
    None,
}

/// A running cluster.
pub struct Cluster {
    pub api: ApiServer,
    /// Everything but the store; stops first.
    parts: Tasks,
    /// Held as long as the cluster runs.
    _slot: Slot,
    node: Option<Node>,
    /// What does not work here, and why.
    pub limits: Vec<String>,
}

impl Cluster {
    /// Starts all parts and returns when the API answers and the objects of a new cluster are there.
    pub async fn start(mut options: Options) -> Result<Self> {
        let data_dir = &options.api.data_dir;
        std::fs::create_dir_all(data_dir).map_err(|why| super::Error::new(&data_dir.display().to_string(), why))?;
        let (slot, parts) = (Slot::claim(data_dir)?, Tasks::new());
        options.node_options.data_dir.clone_from(data_dir);
        options.api.advertise_address = options.api.advertise_address.or(options.node_options.address);
        let api = ApiServer::start(&options.api, slot.network(), &parts).await?;
        let leader = if api.is_alone { None } else { Some(leader_identity()?) };
        api.server.runs_roles.store(leader.is_none(), Ordering::Relaxed);
        for role in [Role::Controllers, Role::Scheduler] {
            role.start_with(&api.clients, &parts, api.authority.certificate().to_owned(), leader.clone());
        }
        if options.simulated_nodes > 0 {
            simulated::start(&api.clients, &parts, options.simulated_nodes);
        }
        let (mut node, mut limits) = (None, Vec::new());
        if options.node == NodeKind::Embedded {
            match Node::start(&api.clients, api.authority.certificate(), &options.node_options, &slot, &parts).await {
                Ok(started) => {
                    parts.spawn("node-role", mark(api.own_client(), options.node_options.node_name()?));
                    limits.clone_from(&started.limits);
                    node = Some(started);
                }
                Err(why) => limits.push(format!("no pods run on this machine: {why}. API, controllers and scheduler work; pods wait for a node that joins, or for --simulated-nodes")),
            }
        }
        Ok(Self { api, parts, _slot: slot, node, limits })
    }

    /// Completes when a part without which nothing works has ended.
    pub async fn failed(&self) {
        tokio::select! {
            () = self.parts.stopping() => (),
            () = self.api.failed() => (),
            () = async { match &self.node { Some(node) => node.failed().await, None => std::future::pending().await } } => (),
        }
    }

    /// Stops all parts, the store last. Returns whether all of them ended in time.
    pub async fn stop(self) -> bool {
        self.parts.cancel();
        let has_node_ended = match self.node {
            Some(node) => node.stop().await,
            None => true,
        };
        self.parts.stop(STOP_WITHIN).await && self.api.stop(STOP_WITHIN).await && has_node_ended
    }
}

/// Labels the node as one that has the control plane, as kubeadm does. It may not do so itself.
async fn mark(client: kube::Client, name: String) {
    let nodes: Api<k8s_openapi::api::core::v1::Node> = Api::all(client);
    let patch = Patch::Merge(json!({"metadata": {"labels": {"node-role.kubernetes.io/control-plane": ""}}}));
    let mut backoff = Backoff::new(MARK_FIRST, MARK_MOST);
    while let Err(error) = nodes.patch(&name, &PatchParams::default(), &patch).await {
        tracing::debug!(%error, "the node is not labelled yet");
        tokio::time::sleep(backoff.next_delay()).await;
    }
}
