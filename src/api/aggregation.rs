//! The aggregation layer: versions of groups that other servers serve behind this one. An APIService names a version and the Service of its
//! server; requests are passed on with the user's name in headers, under a certificate by which the other server knows this one.
//! Source: kube-aggregator `pkg/apiserver/handler_proxy.go`, client-go `transport/round_trippers.go`, apiserver `pkg/util/proxy`.

pub mod availability;
pub mod registration;

use std::{collections::BTreeMap, sync::Arc};

use arc_swap::ArcSwap;
use http::{HeaderMap, HeaderName, HeaderValue};
use rustls::{ClientConfig, pki_types::ServerName};

use super::{Request, Response, Server, body, connect::Route, endpoint, identity::{Attributes, User}, trace::Why};
use crate::{
    base::pki::{self, Rotating},
    meta::{Meta, Result, Status, Value},
    store::{Snapshot, Stored},
};

const API_SERVICES: &str = "apiregistration.k8s.io/apiservices";
const USER: HeaderName = HeaderName::from_static("x-remote-user");
const UID: HeaderName = HeaderName::from_static("x-remote-uid");
const GROUP: HeaderName = HeaderName::from_static("x-remote-group");
const EXTRA: &str = "x-remote-extra-";

/// The versions that are served elsewhere.
pub struct Aggregator {
    /// What tells other servers that it is this one who names the user.
    credential: Arc<Rotating>,
    delegates: ArcSwap<Delegates>,
}

/// By group and version.
pub type Delegates = BTreeMap<(String, String), Arc<Delegate>>;

/// A server of one version of a group.
pub struct Delegate {
    /// Of the APIService: `v1alpha1.wardle.example.com`.
    pub name: String,
    pub group: String,
    pub version: String,
    pub group_priority: i64,
    pub version_priority: i64,
    /// By the condition of its APIService.
    pub is_available: bool,
    spec: Value,
    tls: std::result::Result<Arc<ClientConfig>, String>,
    told: Arc<ArcSwap<Told>>,
}

/// What the server said of itself when it was last asked; kept while it is away.
#[derive(Default)]
pub struct Told {
    /// Its `APIResourceList`.
    pub resources: Value,
    /// The address of its OpenAPI document.
    pub openapi: Option<String>,
}

impl Aggregator {
    pub fn new(credential: Arc<Rotating>) -> Self {
        Self { credential, delegates: ArcSwap::default() }
    }

    pub fn delegates(&self) -> Arc<Delegates> {
        self.delegates.load_full()
    }

    /// Who serves what a request is about, if it is not this server.
    pub fn delegate(&self, info: &Attributes) -> Option<Arc<Delegate>> {
        let (group, version) = match info.is_resource() {
            true => (info.group.as_str(), info.version.as_str()),
            false => match info.path.trim_matches('/').split('/').collect::<Vec<_>>().as_slice() {
                ["apis", group, version] => (*group, *version),
                ["openapi", "v3", "apis", group, version] => (*group, *version),
                _ => return None,
            },
        };
        self.find(group, version)
    }

    fn find(&self, group: &str, version: &str) -> Option<Arc<Delegate>> {
        self.delegates.load().get(&(group.to_owned(), version.to_owned())).cloned()
    }

    /// Takes over what the stored APIServices say.
    fn load(&self, snapshot: &Snapshot) {
        let before = self.delegates.load();
        let remote = snapshot.list(API_SERVICES, None, None).map(|it| it.value()).filter(|it| it.at(&["spec", "service"]).is_some());
        let delegates = remote.map(|it| self.take(&it, &before));
        self.delegates.store(Arc::new(delegates.map(|it| ((it.group.clone(), it.version.clone()), Arc::new(it))).collect()));
    }

    fn take(&self, service: &Value, before: &Delegates) -> Delegate {
        let spec = service["spec"].clone();
        let (group, version) = (spec.text("group").to_owned(), spec.text("version").to_owned());
        let known = before.get(&(group.clone(), version.clone()));
        let same = known.filter(|it| it.spec == spec);
        Delegate {
            name: service.name().to_owned(),
            group_priority: spec.int_at(&["groupPriorityMinimum"]).unwrap_or_default(),
            version_priority: spec.int_at(&["versionPriority"]).unwrap_or_default(),
            is_available: availability::is_true(service),
            tls: same.map_or_else(|| self.tls(&spec), |it| it.tls.clone()),
            told: known.map(|it| it.told.clone()).unwrap_or_default(),
            group,
            version,
            spec,
        }
    }

    fn tls(&self, spec: &Value) -> std::result::Result<Arc<ClientConfig>, String> {
        use base64::{Engine, engine::general_purpose::STANDARD};
        let config = match spec["insecureSkipTLSVerify"] == true {
            true => pki::trusting_any(Some(self.credential.clone())),
            false => {
                let bundle = STANDARD.decode(spec.text("caBundle")).map_err(|why| why.to_string())?;
                pki::client_config(&String::from_utf8_lossy(&bundle), Some(self.credential.clone())).map_err(|why| why.to_string())
            }?,
        };
        Ok(Arc::new(config))
    }
}

impl Delegate {
    fn service(&self) -> (&str, &str, i64) {
        let service = &self.spec["service"];
        (service.text("namespace"), service.text("name"), service.int_at(&["port"]).unwrap_or(443))
    }

    pub fn told(&self) -> Arc<Told> {
        self.told.load_full()
    }

    /// The way to one of its endpoints.
    fn route(&self, snapshot: &Snapshot) -> Result<Route> {
        let (namespace, name, port) = self.service();
        let tls = self.tls.clone().map_err(Status::internal)?;
        let (host, port) = endpoint::resolve(snapshot, namespace, name, port)?;
        let server = ServerName::try_from(format!("{name}.{namespace}.svc")).map_err(Status::internal)?;
        Ok(Route { host, port, tls: Some((tls, server)) })
    }
}

/// Passes a request on, and its answer back.
pub async fn pass(server: &Server, delegate: &Delegate, user: &User, mut request: Request) -> Result<Response> {
    if !delegate.is_available {
        return Ok(unavailable());
    }
    let Ok(route) = delegate.route(&server.store.snapshot()) else { return Ok(unavailable()) };
    set_user(request.headers_mut(), user);
    server.nodes.delegate(&route, request).await.map_err(|why| Status::unavailable(format!("error trying to reach service: {why}")))
}

/// What upstream's `http.Error` leaves.
fn unavailable() -> Response {
    let mut response = body::text(503, "service unavailable\n");
    response.extensions_mut().insert(Why("the aggregated API server is not available".to_owned()));
    response
}

/// Names the user to another server (`SetAuthProxyHeaders`). What a client said there itself goes.
fn set_user(headers: &mut HeaderMap, user: &User) {
    let claimed: Vec<HeaderName> = headers.keys().filter(|it| [USER, UID, GROUP].contains(it) || it.as_str().starts_with(EXTRA)).cloned().collect();
    for name in claimed {
        headers.remove(name);
    }
    let value = |text: &str| HeaderValue::from_bytes(text.as_bytes()).ok();
    headers.extend(value(&user.name).map(|it| (USER, it)));
    headers.extend(value(&user.uid).filter(|_| !user.uid.is_empty()).map(|it| (UID, it)));
    headers.extend(user.groups.iter().filter_map(|it| Some((GROUP, value(it)?))));
    for (key, values) in &user.extra {
        let Ok(name) = HeaderName::try_from(format!("{EXTRA}{}", escaped(key))) else { continue };
        headers.extend(values.iter().filter_map(|it| Some((name.clone(), value(it)?))));
    }
}

/// `headerKeyEscape`: what may not stand in the name of a header is percent-encoded.
fn escaped(key: &str) -> String {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$&'*+-.^_`|~".contains(&byte);
    key.bytes().map(|it| if is_token(it) { char::from(it).to_string() } else { format!("%{it:02X}") }).collect()
}

/// The APIService of a version, as stored.
fn find(snapshot: &Snapshot, name: &str) -> Option<Arc<Stored>> {
    snapshot.get(&crate::store::Key::new(API_SERVICES, "", name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_server_is_told_the_user_and_nothing_that_the_client_claims() {
        let user = User {
            name: "jane".into(),
            uid: "u1".into(),
            groups: vec!["a".into(), "b".into()],
            extra: BTreeMap::from([("acme.io/team".to_owned(), vec!["x".to_owned(), "y".to_owned()])]),
        };
        let claimed = [("x-remote-user", "admin"), ("x-remote-group", "system:masters"), ("x-remote-extra-other", "z"), ("accept", "a/b")];
        let mut headers: HeaderMap = claimed.iter().map(|(name, value)| (name.parse::<HeaderName>().expect("a name"), value.parse().expect("a value"))).collect();
        set_user(&mut headers, &user);
        let mut told: Vec<String> = headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().expect("text"))).collect();
        told.sort();
        let expected = ["accept: a/b", "x-remote-extra-acme.io%2fteam: x", "x-remote-extra-acme.io%2fteam: y", "x-remote-group: a", "x-remote-group: b", "x-remote-uid: u1", "x-remote-user: jane"];
        assert_eq!(told, expected);
    }
}
