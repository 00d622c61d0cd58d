//! Streams to nodes, pods and services: logs, exec, attach, port-forward, proxy. The server authenticates and authorizes, then passes bytes
//! both ways; it understands none of the stream protocols.

use super::{Request, Response};
use crate::{kinds::Action, meta::{Result, Value}, store::Snapshot};

/// The way to nodes: their HTTPS port, with the server's client certificate.
pub struct Nodes {
    _private: (),
}

impl Nodes {
    /// Serves a `connect` subresource of `object` (a Pod, Service or Node). `rest` is what follows `/proxy` in the path, "" otherwise.
    pub async fn connect(&self, action: &Action, object: &Value, rest: &str, request: Request, snapshot: &Snapshot) -> Result<Response> {
        let _ = (action, object, rest, request, snapshot);
        todo!()
    }
}
