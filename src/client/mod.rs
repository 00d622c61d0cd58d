//! How everything outside the API server sees the cluster: kube-rs clients, in this process or over TLS; informers, work queues,
//! events, leader election.

pub mod events;
pub mod expectations;
pub mod informer;
pub mod leader;
pub mod placement;
pub mod pods;
pub mod queue;
pub mod remote;
pub mod volumes;
pub mod writes;

use std::{fmt, sync::Arc};

use crate::api::identity::User;

pub use events::{EventRecorder, EventType};
pub use expectations::Expectations;
pub use informer::{BY_NAMESPACE, BY_OWNER, BY_SERVICE, Cached, Change, Informer, SERVICE_NAME, Watch};
pub use queue::WorkQueue;

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

/// Requests of one client that are under way at once, watches not counted: more would wait in the server's queues and be refused there (429).
const IN_FLIGHT: usize = 64;

/// Upstream's name of the program that acts as `user`: it is told in each request, and the server names the manager of what is written after it.
pub fn program(user: &User) -> &'static str {
    match user.name.as_str() {
        "system:apiserver" => "kube-apiserver",
        "system:kube-scheduler" => "kube-scheduler",
        "system:kube-controller-manager" => "kube-controller-manager",
        name if name.starts_with("system:serviceaccount:kube-system:") => "kube-controller-manager",
        name if name.starts_with("system:node:") => "kubelet",
        _ => "howdah",
    }
}

/// A kube-rs client of a program, which sends its requests by `service`.
pub fn over<S, B>(service: S, program: &'static str) -> kube::Client
where
    S: tower::Service<http::Request<kube::client::Body>, Response = http::Response<B>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<tower::BoxError>,
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<tower::BoxError>,
{
    let named = tower::util::MapRequest::new(service, move |mut request: http::Request<kube::client::Body>| {
        request.headers_mut().insert(http::header::USER_AGENT, http::HeaderValue::from_static(program));
        request
    });
    kube::Client::new(tower::limit::ConcurrencyLimit::new(named, IN_FLIGHT), "default")
}

/// Why a reconcile failed: the server said no, or the object makes no sense. Both are tried again with a back-off.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Kube(#[from] kube::Error),
    #[error("{0}")]
    Invalid(String),
}

impl Error {
    pub fn status(&self) -> Option<&kube::core::Status> {
        match self {
            Self::Kube(kube::Error::Api(status)) => Some(status),
            _ => None,
        }
    }

    /// The text that upstream's controllers put into events and conditions: the server's message alone.
    pub fn message(&self) -> String {
        self.status().map_or_else(|| self.to_string(), |status| status.message.clone())
    }
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// `namespace/name`, with an empty namespace for what is cluster-scoped.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    pub namespace: String,
    pub name: String,
}

impl ObjectKey {
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    pub fn of<K: kube::Resource>(object: &K) -> Self {
        let meta = object.meta();
        Self::new(meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        f.write_str(&self.name)
    }
}
