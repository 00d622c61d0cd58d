//! Who asks, and what for: the two values that authentication and authorization exchange.

use std::collections::BTreeMap;

/// `user.Info`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
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

/// `authorizer.Attributes`: one question to the authorizer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// `get`, `list`, `create`, `impersonate` …; for other paths the HTTP method in lower case.
    pub verb: String,
    /// A path that is no resource (`/healthz`); empty for resources.
    pub path: String,
    pub group: String,
    pub version: String,
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
}

impl Attributes {
    pub fn is_resource(&self) -> bool {
        self.path.is_empty()
    }
}

/// How a request reached the server, put into its extensions by whoever accepted it.
#[derive(Clone, Debug, Default)]
pub struct Peer {
    /// The DER certificates that a TLS client presented, verified against the client CA; the leaf first.
    pub certificates: Vec<Vec<u8>>,
    /// Set by the in-process client: nothing is left to authenticate.
    pub user: Option<User>,
    pub address: Option<std::net::SocketAddr>,
}
