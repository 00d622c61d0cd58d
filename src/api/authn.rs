//! Authentication: client certificates, service-account tokens, impersonation.

use super::identity::{Peer, User};
use crate::{meta::Result, store::Snapshot};

pub struct Authenticator {
    _private: (),
}

impl Authenticator {
    /// The user who sends a request with these headers from this peer; anonymous when it brings no credential.
    /// 401 for a credential that is not valid.
    pub fn authenticate(&self, headers: &http::HeaderMap, peer: &Peer, snapshot: &Snapshot) -> Result<User> {
        let _ = (headers, peer, snapshot);
        todo!()
    }
}
