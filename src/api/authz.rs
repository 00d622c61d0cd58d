//! Authorization: RBAC, `system:masters`, and what every authenticated user may ask.

use super::identity::{Attributes, User};
use crate::store::Snapshot;

pub struct Authorizer {
    _private: (),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Allow(String),
    /// No rule allows it; the reason, if there is one to tell.
    NoOpinion(String),
}

impl Authorizer {
    pub fn authorize(&self, user: &User, attributes: &Attributes, snapshot: &Snapshot) -> Decision {
        let _ = (user, attributes, snapshot);
        todo!()
    }
}
