//! The API server: from an HTTP request to an answer, for every kind by the same pipeline.
//!
//! Read `http.rs` (how a request comes in), `request.rs` (what it asks for), `verbs.rs` (what is done), in that order.

pub mod authn;
pub mod authz;
pub mod connect;
pub mod identity;
pub mod rbac;
pub mod reviews;
pub mod tokens;

use std::{error::Error, sync::Arc};

use arc_swap::ArcSwap;
use bytes::Bytes;

use crate::{base::Tasks, kinds::Registry, store::Store};

/// A body of a request or an answer, whatever carries it.
pub type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, Box<dyn Error + Send + Sync>>;
pub type Request = http::Request<Body>;
pub type Response = http::Response<Body>;

/// What all requests share. One per process; behind an `Arc`.
pub struct Server {
    pub store: Store,
    /// The kinds served at this moment.
    pub registry: ArcSwap<Registry>,
    pub authenticator: authn::Authenticator,
    pub authorizer: authz::Authorizer,
    pub tokens: Arc<tokens::Tokens>,
    pub nodes: connect::Nodes,
    pub tasks: Tasks,
}
