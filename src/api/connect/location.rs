//! Where a `connect` subresource leads: the node's API for logs and streams, an address and port for the proxy. Pure.

use std::net::IpAddr;

use crate::{
    meta::{
        FieldError, Meta, Path, Result, Status, Value,
        object::{GroupKind, GroupResource},
        options::percent_decode,
    },
    store::{Key, Snapshot, Stored},
};

/// Where nodes listen unless they say otherwise.
const KUBELET_PORT: u16 = 10250;
/// What of a node's addresses is tried, in this order.
const NODE_ADDRESS_TYPES: [&str; 5] = ["InternalIP", "ExternalIP", "InternalDNS", "ExternalDNS", "Hostname"];
const LOG_OPTIONS: [&str; 8] = ["follow", "previous", "timestamps", "sinceSeconds", "sinceTime", "tailLines", "limitBytes", "stream"];
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// A server and what is asked of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub security: Security,
    pub host: String,
    pub port: u16,
    pub path: String,
    pub query: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Security {
    /// Plain HTTP.
    None,
    /// TLS that accepts any certificate.
    Any,
    /// TLS within the cluster's authority.
    Node,
}

impl Target {
    /// `host:port`, without the port where it goes without saying.
    pub fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        match (self.security, self.port) {
            (Security::None, 80) | (Security::Any | Security::Node, 443) => host,
            (_, port) => format!("{host}:{port}"),
        }
    }

    pub fn path_and_query(&self) -> String {
        if self.query.is_empty() { self.path.clone() } else { format!("{}?{}", self.path, self.query) }
    }

    pub fn url(&self) -> String {
        let scheme = if self.security == Security::None { "http" } else { "https" };
        format!("{scheme}://{}{}", self.authority(), self.path_and_query())
    }
}

/// (scheme, name, port) of a proxy's target: `name`, `name:port` or `scheme:name:port`; what is not given is empty.
pub fn split_target(id: &str) -> Option<(&str, &str, &str)> {
    let parts: Vec<&str> = id.split(':').collect();
    let (scheme, name, port) = match parts.as_slice() {
        [name] => ("", *name, ""),
        [name, port] => ("", *name, *port),
        [scheme, name, port] => (*scheme, *name, *port),
        _ => return None,
    };
    (!name.is_empty() && matches!(scheme, "" | "http" | "https")).then_some((scheme, name, port))
}

/// What the path of a proxy request names.
#[derive(Debug, PartialEq, Eq)]
pub struct Place<'a> {
    pub resource: &'a str,
    pub id: String,
    /// Up to `/proxy`.
    pub prefix: &'a str,
}

impl<'a> Place<'a> {
    /// `rest` is what follows `/proxy` in `path`.
    pub fn of(path: &'a str, rest: &str) -> Option<Self> {
        let prefix = path.strip_suffix(rest)?;
        let mut segments = prefix.strip_suffix("/proxy")?.rsplit('/');
        let (id, resource) = (percent_decode(segments.next()?), segments.next()?);
        Some(Self { resource, id, prefix })
    }
}

/// What else is to be known of the cluster.
pub struct Lookup<'a> {
    pub get: Box<dyn Fn(&Key) -> Option<Value> + Send + Sync + 'a>,
    /// The EndpointSlices of a service: (namespace, name).
    pub slices: Box<dyn Fn(&str, &str) -> Vec<Value> + Send + Sync + 'a>,
}

impl<'a> Lookup<'a> {
    pub fn of(snapshot: &'a Snapshot) -> Self {
        let is_of = |stored: &Stored, service: &str| stored.header.labels.iter().any(|(key, value)| &**key == SERVICE_NAME && &**value == service);
        Self {
            get: Box::new(move |key| Some(snapshot.get(key)?.value())),
            slices: Box::new(move |namespace, service| {
                let slices = snapshot.list("discovery.k8s.io/endpointslices", Some(namespace), None);
                slices.filter(|it| is_of(it, service)).map(|it| it.value()).collect()
            }),
        }
    }

    /// The log of a container; `None` while the pod is on no node.
    pub fn log(&self, pod: &Value, query: &str) -> Result<Option<Target>> {
        check_log_options(pod.name(), query)?;
        let container = container(pod, value(query, "container"))?;
        if pod.text_at(&["spec", "nodeName"]).is_empty() {
            return Ok(None);
        }
        let known = pairs(query).filter(|(name, _)| LOG_OPTIONS.contains(name)).map(|(name, value)| format!("{name}={value}"));
        let path = format!("/containerLogs/{}/{}/{container}", pod.namespace(), pod.name());
        Ok(Some(Target { path, query: join(known), ..self.node_of(pod)? }))
    }

    pub fn exec(&self, pod: &Value, query: &str) -> Result<Target> {
        let commands = pairs(query).filter(|(name, _)| *name == "command").map(|(_, value)| format!("command={value}"));
        self.container_stream("exec", pod, query, join(streams(query).chain(commands)))
    }

    pub fn attach(&self, pod: &Value, query: &str) -> Result<Target> {
        self.container_stream("attach", pod, query, join(streams(query)))
    }

    fn container_stream(&self, what: &str, pod: &Value, query: &str, node_query: String) -> Result<Target> {
        let container = container(pod, value(query, "container"))?;
        let path = format!("/{what}/{}/{}/{container}", pod.namespace(), pod.name());
        Ok(Target { path, query: node_query, ..self.node_of(pod)? })
    }

    pub fn port_forward(&self, pod: &Value, query: &str) -> Result<Target> {
        let ports: Vec<&str> = pairs(query).filter(|(name, _)| *name == "ports").map(|(_, value)| value).collect();
        let query = if ports.is_empty() { String::new() } else { format!("port={}", ports.join(",")) };
        let path = format!("/portForward/{}/{}", pod.namespace(), pod.name());
        Ok(Target { path, query, ..self.node_of(pod)? })
    }

    /// The API of the node that a pod is on.
    fn node_of(&self, pod: &Value) -> Result<Target> {
        let name = pod.text_at(&["spec", "nodeName"]);
        if name.is_empty() {
            return Err(Status::bad_request(format!("pod {} does not have a host assigned", pod.name())));
        }
        let node = (self.get)(&Key::new("nodes", "", name)).ok_or_else(|| Status::not_found(&GroupResource::new("", "nodes"), name))?;
        node_api(&node)
    }

    /// Where the proxy leads. `turn` chooses among the endpoints of a service.
    pub fn proxy(&self, place: &Place<'_>, object: &Value, turn: usize) -> Result<Target> {
        let what = place.resource.trim_end_matches('s');
        let Some((scheme, name, port)) = split_target(&place.id) else {
            return Err(Status::bad_request(format!("invalid {what} request {:?}", place.id)));
        };
        let security = if scheme == "https" { Security::Any } else { Security::None };
        let (host, port) = match place.resource {
            "pods" => pod_address(object, port, security)?,
            "services" => self.endpoint(object, name, &place.id, port, turn)?,
            _ => return node_target(object, port, security),
        };
        Ok(Target { security, host, port, path: String::new(), query: String::new() })
    }

    /// A ready endpoint of a service that is a pod of its namespace.
    fn endpoint(&self, service: &Value, name: &str, id: &str, port: &str, turn: usize) -> Result<(String, u16)> {
        let none = |of: &str| Status::unavailable(format!("no endpoints available for service {of:?}"));
        let port = port_name(service, name, port)?;
        let slices = (self.slices)(service.namespace(), name);
        if slices.iter().all(|it| it.items_at(&["endpoints"]).is_empty()) {
            return Err(none(name));
        }
        let mut addresses: Vec<(String, u16)> = Vec::new();
        for slice in &slices {
            let named = slice.items_at(&["ports"]).iter().find(|it| it.text("name") == port);
            let Some(number) = named.and_then(|it| u16::try_from(it.int_at(&["port"])?).ok()) else { continue };
            let ready = slice.items_at(&["endpoints"]).iter().filter(|it| it.at(&["conditions", "ready"]) != Some(&Value::Bool(false)));
            addresses.extend(ready.filter_map(|it| Some((self.pod_ip(service.namespace(), it)?, number))));
        }
        let chosen = turn.checked_rem(addresses.len()).map(|at| addresses.swap_remove(at));
        chosen.ok_or_else(|| none(id))
    }

    /// The address of an endpoint, if the pod that it refers to has it.
    fn pod_ip(&self, namespace: &str, endpoint: &Value) -> Option<String> {
        let address = endpoint.items_at(&["addresses"]).first()?.as_str()?;
        let pod = (self.get)(&Key::new("pods", namespace, endpoint.text_at(&["targetRef", "name"])))?;
        pod.items_at(&["status", "podIPs"]).iter().any(|it| it.text("ip") == address).then(|| address.to_owned())
    }
}

/// A port's name in the service: the asked one, or that of the asked number.
fn port_name<'a>(service: &'a Value, name: &str, port: &'a str) -> Result<&'a str> {
    let Ok(number) = port.parse::<i64>() else { return Ok(port) };
    let declared = service.items_at(&["spec", "ports"]).iter().find(|it| it.int_at(&["port"]) == Some(number));
    declared.map(|it| it.text("name")).ok_or_else(|| Status::unavailable(format!("no service port {number} found for service {name:?}")))
}

fn pod_address(pod: &Value, port: &str, security: Security) -> Result<(String, u16)> {
    let ip = pod.items_at(&["status", "podIPs"]).first().map_or("", |it| it.text("ip"));
    check_reachable(ip)?;
    let first = || {
        let ports = pod.items_at(&["spec", "containers"]).iter().filter_map(|it| it.items_at(&["ports"]).first());
        ports.map(|it| it.int_at(&["containerPort"]).unwrap_or_default()).next()
    };
    let port = match port {
        "" => first().and_then(|it| u16::try_from(it).ok()).unwrap_or(if security == Security::Any { 443 } else { 80 }),
        port => port.parse().map_err(|_| Status::bad_request(format!("invalid pod request {:?}", format!("{}:{port}", pod.name()))))?,
    };
    Ok((ip.to_owned(), port))
}

fn node_target(node: &Value, port: &str, security: Security) -> Result<Target> {
    let api = node_api(node)?;
    if api.host.parse::<IpAddr>().is_ok() {
        check_reachable(&api.host)?;
    }
    match port.parse() {
        _ if port.is_empty() => Ok(api),
        Ok(port) if port == api.port => Ok(api),
        Ok(port) => Ok(Target { port, security, ..api }),
        Err(_) => Err(Status::bad_request(format!("invalid node request {:?}", format!("{}:{port}", node.name())))),
    }
}

/// The proxy leads to no address of this machine alone, nor to groups of machines (`IsGlobalUnicast`).
fn check_reachable(ip: &str) -> Result<()> {
    let is_link_local = |it: &IpAddr| match it {
        IpAddr::V4(it) => it.is_link_local() || it.is_broadcast(),
        IpAddr::V6(it) => it.is_unicast_link_local(),
    };
    match ip.parse::<IpAddr>() {
        Ok(it) if !it.is_loopback() && !it.is_unspecified() && !it.is_multicast() && !is_link_local(&it) => Ok(()),
        _ => Err(Status::bad_request("address not allowed")),
    }
}

fn node_api(node: &Value) -> Result<Target> {
    let addresses = node.items_at(&["status", "addresses"]);
    let of_type = |kind: &&str| addresses.iter().find(|it| it.text("type") == *kind).map(|it| it.text("address").to_owned());
    let host = NODE_ADDRESS_TYPES.iter().find_map(of_type);
    let host = host.ok_or_else(|| Status::internal(format!("no preferred addresses found; known addresses: {addresses:?}")))?;
    let port = node.int_at(&["status", "daemonEndpoints", "kubeletEndpoint", "Port"]).and_then(|it| u16::try_from(it).ok());
    let port = port.filter(|it| *it > 0).unwrap_or(KUBELET_PORT);
    Ok(Target { security: Security::Node, host, port, path: String::new(), query: String::new() })
}

/// The container that is meant: the named one, or the only one.
fn container<'a>(pod: &'a Value, asked: Option<&'a str>) -> Result<&'a str> {
    let of = |field: &str| pod.items_at(&["spec", field]).iter().map(|it| it.text("name")).collect::<Vec<_>>();
    let containers = of("containers");
    let all = [of("initContainers"), containers.clone(), of("ephemeralContainers")].concat();
    match (asked.filter(|it| !it.is_empty()), containers.as_slice()) {
        (Some(asked), _) if all.contains(&asked) => Ok(asked),
        (Some(asked), _) => Err(Status::bad_request(format!("container {asked} is not valid for pod {}", pod.name()))),
        (None, [only]) => Ok(only),
        (None, []) => Err(Status::bad_request(format!("a container name must be specified for pod {}", pod.name()))),
        (None, _) => {
            let message = format!("a container name must be specified for pod {}, choose one of: [{}]", pod.name(), all.join(" "));
            Err(Status::bad_request(message))
        }
    }
}

/// `ValidatePodLogOptions`.
fn check_log_options(pod: &str, query: &str) -> Result<()> {
    let mut errors = Vec::new();
    for (name, least, detail) in [
        ("tailLines", 0, "must be greater than or equal to 0"),
        ("limitBytes", 1, "must be greater than 0"),
        ("sinceSeconds", 1, "must be greater than 0"),
    ] {
        match value(query, name).map(str::parse::<i64>) {
            Some(Ok(number)) if number < least => errors.push(FieldError::invalid(&Path::new(name), number, detail)),
            Some(Err(_)) => {
                return Err(Status::bad_request(format!("strconv.ParseInt: parsing {:?}: invalid syntax", value(query, name).unwrap_or_default())));
            }
            _ => (),
        }
    }
    if value(query, "sinceTime").is_some() && value(query, "sinceSeconds").is_some() {
        errors.push(FieldError::forbidden(&Path::root(), "at most one of `sinceTime` or `sinceSeconds` may be specified"));
    }
    if errors.is_empty() { Ok(()) } else { Err(Status::invalid(&GroupKind::new("", "PodLogOptions"), pod, errors)) }
}

/// The streams of exec and attach in the words of the node's API.
fn streams(query: &str) -> impl Iterator<Item = String> {
    let words = [("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty")];
    words.into_iter().filter(|(asked, _)| value(query, asked).is_some_and(is_true)).map(|(_, word)| format!("{word}=1"))
}

fn is_true(value: &str) -> bool {
    !(value == "0" || value.eq_ignore_ascii_case("false"))
}

/// Names and values as they stand in the query, still escaped.
fn pairs(query: &str) -> impl Iterator<Item = (&str, &str)> {
    query.split('&').filter(|it| !it.is_empty()).map(|it| it.split_once('=').unwrap_or((it, "")))
}

fn value<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    pairs(query).find(|(it, _)| *it == name).map(|(_, value)| value)
}

fn join(pairs: impl Iterator<Item = String>) -> String {
    pairs.collect::<Vec<_>>().join("&")
}
