//! The API server: from an HTTP request to an answer, for every kind by the same pipeline.
//!
//! Read `http.rs` (how a request comes in), `request.rs` (what it asks for), `verbs.rs` (what is done), in that order.

pub mod admission;
pub mod aggregation;
pub mod authn;
pub mod authz;
pub mod body;
pub mod bootstrap_tokens;
pub mod certificates;
mod componentstatus;
pub mod connect;
mod conversion;
mod derived;
pub mod delete;
pub mod discovery;
mod endpoint;
pub mod eviction;
mod expiry;
mod fairness;
pub mod forms;
mod health;
pub mod http;
pub mod identity;
mod limits;
pub mod list;
mod metrics;
mod matching;
pub mod negotiation;
pub mod node;
pub mod openapi;
mod outgoing;
pub mod patch;
mod paths;
mod podsecurity;
pub mod policies;
mod quota;
pub mod rbac;
pub mod registration;
pub mod request;
pub mod reviews;
mod routes;
pub mod service;
pub mod subresources;
pub mod target;
pub mod tokens;
pub mod trace;
pub mod verbs;
pub mod watch;
pub mod webhooks;
mod websocket;
pub mod write;

use std::sync::{Arc, atomic::AtomicBool};

use arc_swap::ArcSwap;
use bytes::Bytes;

use crate::{
    base::Tasks,
    kinds::{self, Registry},
    store::{Extract, Revision, Store},
};

/// A body of a request or an answer, whatever carries it.
pub type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, BodyError>;

/// Why a body broke off.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BodyError(String);

impl BodyError {
    pub fn new(why: impl std::fmt::Display) -> Self {
        Self(why.to_string())
    }
}

pub type Request = ::http::Request<Body>;
pub type Response = ::http::Response<Body>;

/// What all requests share. One per process; behind an `Arc`.
pub struct Server {
    pub store: Store,
    /// The kinds served at this moment.
    pub registry: ArcSwap<Registry>,
    /// The definitions of custom resources are followed up to this revision.
    registered: tokio::sync::watch::Sender<Revision>,
    /// Whether the first objects of a cluster are there; until then the server is not ready.
    pub is_bootstrapped: AtomicBool,
    /// Whether controllers and scheduler run in this process, alone in their cluster.
    pub runs_roles: AtomicBool,
    pub authenticator: authn::Authenticator,
    pub authorizer: authz::Authorizer,
    pub tokens: Arc<tokens::Tokens>,
    pub nodes: connect::Nodes,
    pub documents: openapi::Documents,
    pub aggregator: aggregation::Aggregator,
    fairness: fairness::Fairness,
    metrics: metrics::Metrics,
    /// Calls to webhooks.
    outgoing: outgoing::Outgoing,
    webhooks: webhooks::Webhooks,
    policies: policies::Policies,
    /// Where requests are recorded, if they are.
    trace: Option<Arc<trace::Trace>>,
    pub tasks: Tasks,
}

impl Server {
    /// A server over an open store; its kinds are the built-in ones until [`Server::start`].
    pub fn new(store: Store, tokens: Arc<tokens::Tokens>, nodes: connect::Nodes, aggregator: aggregation::Aggregator, trace: Option<Arc<trace::Trace>>, tasks: Tasks) -> Arc<Self> {
        Arc::new(Self {
            outgoing: outgoing::Outgoing::new(store.clone(), tasks.clone()),
            webhooks: webhooks::Webhooks::default(),
            policies: policies::Policies::default(),
            store,
            registry: ArcSwap::from_pointee(kinds::table::registry()),
            registered: tokio::sync::watch::Sender::default(),
            is_bootstrapped: AtomicBool::default(),
            runs_roles: AtomicBool::default(),
            authenticator: authn::Authenticator::new(tokens.clone()),
            authorizer: authz::Authorizer::default(),
            tokens,
            nodes,
            documents: openapi::Documents::default(),
            aggregator,
            fairness: fairness::Fairness::default(),
            metrics: metrics::Metrics::default(),
            trace,
            tasks,
        })
    }

    /// Follows the custom resource definitions and API services from now on, and lets Events expire.
    pub fn start(self: &Arc<Self>) {
        self.tasks.spawn_vital("api-registration", registration::follow(self.clone()));
        self.tasks.spawn_vital("api-services", aggregation::registration::follow(self.clone()));
        self.tasks.spawn_vital("api-service-availability", aggregation::availability::follow(self.clone()));
        self.tasks.spawn("api-expiry", expiry::follow(self.clone()));
    }
}

/// What the store extracts of each object when it loads it, by the kinds of `registry`.
pub fn extract(registry: Arc<Registry>) -> Extract {
    Arc::new(move |key, object| match registry.by_storage(&key.resource) {
        Some(kind) => forms::View::stored(kind).header(object),
        // Custom resources before their definition is read.
        None => forms::header(object, &[], 0),
    })
}
