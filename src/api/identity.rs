//! Who asks, and what for: the values that authentication and authorization exchange.

use std::{collections::BTreeMap, sync::Arc};

use serde::Serialize;

/// Expressions ask the same questions as requests.
pub use crate::schema::cel::authorizer::{Attributes, Decision};

/// `user.Info`; as JSON `UserInfo`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct User {
    #[serde(rename = "username")]
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub extra: BTreeMap<String, Vec<String>>,
}

pub const ANONYMOUS: &str = "system:anonymous";
pub const AUTHENTICATED: &str = "system:authenticated";
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
pub const MASTERS: &str = "system:masters";

impl User {
    /// A user of the cluster's own components, such as `system:kube-scheduler`, authenticated without a credential (in-process).
    pub fn system(name: &str, groups: &[&str]) -> Self {
        let groups = groups.iter().copied().chain([AUTHENTICATED]).map(str::to_owned).collect();
        Self { name: name.to_owned(), groups, ..Self::default() }
    }

    /// `system:serviceaccount:{namespace}:{name}` with its groups.
    pub fn service_account(namespace: &str, name: &str) -> Self {
        let groups = ["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}"), AUTHENTICATED.to_owned()];
        Self { name: format!("system:serviceaccount:{namespace}:{name}"), groups: groups.into(), ..Self::default() }
    }

    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|it| it == group)
    }
}

/// How a request reached the server, put into its extensions by whoever accepted it.
#[derive(Clone, Debug, Default)]
pub struct Peer {
    /// The DER certificates that a TLS client presented, verified against the client CA; the leaf first.
    pub certificates: Arc<[Vec<u8>]>,
    /// Set by the in-process client: nothing is left to authenticate.
    pub user: Option<User>,
    pub address: Option<std::net::SocketAddr>,
}
