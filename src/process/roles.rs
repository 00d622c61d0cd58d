//! Controllers and scheduler as processes of their own: over TLS, one of several active by Lease.

use std::path::PathBuf;

use super::{Result, host_name, kubeconfig::Kubeconfig};
use crate::{base::Tasks, client::Clients, controllers, scheduler};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Controllers,
    Scheduler,
}

/// What a role needs to know that runs apart from the API server.
#[derive(clap::Args, Clone, Debug)]
#[group(skip)]
pub struct Options {
    /// Who this process is: a kubeconfig that an API server has written.
    #[arg(long, value_name = "PATH")]
    pub kubeconfig: PathBuf,
    /// An API server to ask instead of the kubeconfig's, as https://HOST:PORT. May be repeated: the next is asked when one fails.
    #[arg(long = "server", value_name = "URL")]
    pub servers: Vec<String>,
}

impl Role {
    pub fn name(self) -> &'static str {
        match self {
            Self::Controllers => "controllers",
            Self::Scheduler => "scheduler",
        }
    }

    /// Starts the role as soon as there is a kubeconfig. It runs when it leads, until `tasks` stop.
    pub async fn start(self, options: &Options, tasks: &Tasks) -> Result<()> {
        let config = Kubeconfig::await_at(&options.kubeconfig).await?;
        let clients = config.connect(&options.kubeconfig, &options.servers, tasks)?;
        self.start_with(&clients, tasks, config.authority, Some(leader_identity()?));
        Ok(())
    }

    /// Starts the role with these clients; at once if there is nobody to share it with.
    pub fn start_with(self, clients: &Clients, tasks: &Tasks, root_ca: String, leader_identity: Option<String>) {
        match self {
            Self::Controllers => controllers::start(clients, tasks, controllers::Options { root_ca, leader_identity }),
            Self::Scheduler => scheduler::start(clients, tasks, scheduler::Options { leader_identity }),
        }
    }
}

/// `host_uuid`, as upstream's: no two processes have the same.
pub fn leader_identity() -> Result<String> {
    Ok(format!("{}_{}", host_name()?, uuid::Uuid::new_v4()))
}
