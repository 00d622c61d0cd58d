//! Where a `connect` subresource leads: the node's API for logs and streams, an address and port for the proxy. Pure.

use std::net::IpAddr;

use crate::{
    api::endpoint,
    meta::{FieldError, Meta, Path, Result, Status, Value, object::GroupResource, options::Query},
    store::{Key, Snapshot},
};

/// Where nodes listen unless they say otherwise.
const KUBELET_PORT: u16 = 10250;
/// What of a node's addresses is tried, in this order.
const NODE_ADDRESS_TYPES: [&str; 5] = ["InternalIP", "ExternalIP", "InternalDNS", "ExternalDNS", "Hostname"];
const LOG_OPTIONS: [&str; 8] = ["follow", "previous", "timestamps", "sinceSeconds", "sinceTime", "tailLines", "limitBytes", "stream"];

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
        let whole = endpoint::authority(&self.host, self.port);
        let default = if self.security == Security::None { ":80" } else { ":443" };
        whole.strip_suffix(default).map_or_else(|| whole.clone(), str::to_owned)
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

/// The log of a container; `None` while the pod is on no node.
pub fn log(snapshot: &Snapshot, pod: &Value, query: &Query) -> Result<Option<Target>> {
    check_log_options(pod.name(), query)?;
    let container = container(pod, query)?;
    if pod.text_at(&["spec", "nodeName"]).is_empty() {
        return Ok(None);
    }
    let known = LOG_OPTIONS.into_iter().filter_map(|it| Some((it, query.get(it)?)));
    let path = format!("/containerLogs/{}/{}/{container}", pod.namespace(), pod.name());
    Ok(Some(Target { path, query: encoded(known), ..node_of(snapshot, pod)? }))
}

pub fn exec(snapshot: &Snapshot, pod: &Value, query: &Query) -> Result<Target> {
    let commands = query.all("command").map(|it| ("command", it));
    container_stream("exec", snapshot, pod, query, encoded(streams(query).chain(commands)))
}

pub fn attach(snapshot: &Snapshot, pod: &Value, query: &Query) -> Result<Target> {
    container_stream("attach", snapshot, pod, query, encoded(streams(query)))
}

fn container_stream(what: &str, snapshot: &Snapshot, pod: &Value, query: &Query, node_query: String) -> Result<Target> {
    let path = format!("/{what}/{}/{}/{}", pod.namespace(), pod.name(), container(pod, query)?);
    Ok(Target { path, query: node_query, ..node_of(snapshot, pod)? })
}

pub fn port_forward(snapshot: &Snapshot, pod: &Value, query: &Query) -> Result<Target> {
    let ports = query.all("ports").collect::<Vec<_>>().join(",");
    let query = encoded(Some(("port", ports.as_str())).filter(|it| !it.1.is_empty()));
    let path = format!("/portForward/{}/{}", pod.namespace(), pod.name());
    Ok(Target { path, query, ..node_of(snapshot, pod)? })
}

/// The API of the node that a pod is on.
fn node_of(snapshot: &Snapshot, pod: &Value) -> Result<Target> {
    let name = pod.text_at(&["spec", "nodeName"]);
    if name.is_empty() {
        return Err(Status::bad_request(format!("pod {} does not have a host assigned", pod.name())));
    }
    let node = snapshot.get(&Key::new("nodes", "", name)).ok_or_else(|| Status::not_found(&GroupResource::new("", "nodes"), name))?;
    node_api(&node.value())
}

/// Where the proxy leads that is asked for: `id` names `object`, and perhaps a scheme and a port.
pub fn proxy(snapshot: &Snapshot, resource: &str, id: &str, object: &Value) -> Result<Target> {
    let what = resource.trim_end_matches('s');
    let Some((scheme, name, port)) = split_target(id) else {
        return Err(Status::bad_request(format!("invalid {what} request {id:?}")));
    };
    let security = if scheme == "https" { Security::Any } else { Security::None };
    let (host, port) = match resource {
        "pods" => pod_address(object, port, security)?,
        "services" => pod_of_service(snapshot, object, name, id, port)?,
        _ => return node_target(object, port, security),
    };
    Ok(Target { security, host, port, path: String::new(), query: String::new() })
}

/// A ready endpoint of a service that is a pod of its namespace and has the address.
fn pod_of_service(snapshot: &Snapshot, service: &Value, name: &str, id: &str, port: &str) -> Result<(String, u16)> {
    let none = |of: &str| Status::unavailable(format!("no endpoints available for service {of:?}"));
    let port = port_name(service, name, port)?;
    let slices = endpoint::slices(snapshot, service.namespace(), name);
    if slices.iter().all(|it| it.items_at(&["endpoints"]).is_empty()) {
        return Err(none(name));
    }
    let has_address = |endpoint: &Value, address: &str| {
        let pod = snapshot.get(&Key::new("pods", service.namespace(), endpoint.text_at(&["targetRef", "name"])));
        pod.is_some_and(|it| it.value().items_at(&["status", "podIPs"]).iter().any(|it| it.text("ip") == address))
    };
    let ready = slices.iter().flat_map(|it| endpoint::ready(it, port)).filter(|(endpoint, address, _)| has_address(endpoint, address));
    endpoint::any(ready.map(|(_, address, port)| (address.to_owned(), port))).ok_or_else(|| none(id))
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
fn container<'a>(pod: &'a Value, query: &'a Query) -> Result<&'a str> {
    let of = |field: &str| pod.items_at(&["spec", field]).iter().map(|it| it.text("name")).collect::<Vec<_>>();
    let containers = of("containers");
    let all = [of("initContainers"), containers.clone(), of("ephemeralContainers")].concat();
    match (query.get("container").filter(|it| !it.is_empty()), containers.as_slice()) {
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
fn check_log_options(pod: &str, query: &Query) -> Result<()> {
    let mut errors = Vec::new();
    for (name, least, detail) in [
        ("tailLines", 0, "must be greater than or equal to 0"),
        ("limitBytes", 1, "must be greater than 0"),
        ("sinceSeconds", 1, "must be greater than 0"),
    ] {
        let number = query.number::<i64>(name)?.filter(|it| *it < least);
        errors.extend(number.map(|it| FieldError::invalid(&Path::new(name), it, detail)));
    }
    if query.get("sinceTime").is_some() && query.get("sinceSeconds").is_some() {
        errors.push(FieldError::forbidden(&Path::root(), "at most one of `sinceTime` or `sinceSeconds` may be specified"));
    }
    if errors.is_empty() { Ok(()) } else { Err(Status::invalid("", "PodLogOptions", pod, errors)) }
}

/// The streams of exec and attach in the words of the node's API.
fn streams(query: &Query) -> impl Iterator<Item = (&str, &str)> {
    let words = [("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty")];
    words.into_iter().filter(|(asked, _)| query.flag(asked) == Some(true)).map(|(_, word)| (word, "1"))
}

fn encoded<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish()
}
