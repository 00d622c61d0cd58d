//! How everything outside the API server sees the cluster: kube-rs clients, in this process or over TLS; informers, work queues,
//! events, leader election.

use std::sync::Arc;

use crate::api::identity::User;

/// Makes clients under one identity or another. In-process it needs no socket; over TLS it has one credential.
#[derive(Clone)]
pub struct Clients {
    make: Arc<dyn Fn(&User) -> kube::Client + Send + Sync>,
}

impl Clients {
    pub fn new(make: impl Fn(&User) -> kube::Client + Send + Sync + 'static) -> Self {
        Self { make: Arc::new(make) }
    }

    /// A client that acts as `user`.
    pub fn of(&self, user: &User) -> kube::Client {
        (self.make)(user)
    }
}
