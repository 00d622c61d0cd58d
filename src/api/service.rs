//! Addresses and node ports of Services. An address is exact because its IPAddress object is a key of the store, written in the
//! transaction that writes the Service; a node port likewise, under a key that no client sees.
//! Source: `pkg/registry/core/service/storage/alloc.go`, `pkg/registry/core/service/ipallocator`.

use std::{collections::BTreeSet, net::Ipv4Addr};

use serde_json::json;

use super::{admission::Context, target::Target, write::value};
use crate::{
    base::clock,
    meta::{FieldError, Meta, Path, Result, Status, Value},
    store::{Change, Draft, Expect, Header, Key, Snapshot, Write},
};

const ADDRESSES: &str = "networking.k8s.io/ipaddresses";
const NODE_PORTS: &str = "internal/nodeports";
/// `--service-node-port-range`.
const PORTS: std::ops::RangeInclusive<i64> = 30_000..=32_767;
/// Tries at a free address or port by chance before all are looked through.
const TRIES: u32 = 32;

/// A range of IPv4 addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    first: u32,
    size: u32,
}

impl Range {
    fn parse(cidr: &str) -> Option<Self> {
        let (address, prefix) = cidr.split_once('/')?;
        let (address, prefix): (Ipv4Addr, u32) = (address.parse().ok()?, prefix.parse().ok().filter(|it| (8..=30).contains(it))?);
        let size = 1u32 << (32 - prefix);
        Some(Self { first: u32::from(address) & !(size - 1), size })
    }

    /// Neither the network's own address nor its broadcast.
    fn holds(self, ip: Ipv4Addr) -> bool {
        (1..self.size - 1).contains(&u32::from(ip).wrapping_sub(self.first))
    }

    /// The lower part is left to addresses that are asked for by name (KEP-3070).
    fn dynamic(self) -> std::ops::Range<u32> {
        let offset = (self.size / 16).clamp(16, 256).min(self.size / 2);
        offset..self.size - 1
    }

    fn at(self, offset: u32) -> Ipv4Addr {
        Ipv4Addr::from(self.first + offset)
    }
}

/// Gives a Service what it lacks; the writes that make it exact.
pub fn allocate(context: &Context<'_>, service: &mut Value) -> Result<Vec<Write>> {
    let target = context.target;
    if target.kind.plural != "services" || !target.kind.group.is_empty() || target.subresource.is_some() {
        return Ok(Vec::new());
    }
    let mut writes = addresses(context, service)?;
    writes.extend(node_ports(context, service)?);
    Ok(writes)
}

/// The writes that give back what a removed Service held.
pub fn release(snapshot: &Snapshot, target: &Target, service: &Value) -> Vec<Write> {
    if target.kind.plural != "services" || !target.kind.group.is_empty() {
        return Vec::new();
    }
    let ips = held_ips(service).into_iter().map(|it| Key::new(ADDRESSES, "", &it));
    let ports = held_ports(service).into_iter().map(|it| Key::new(NODE_PORTS, "", &it.to_string()));
    ips.chain(ports).filter_map(|key| removal(snapshot, &key)).collect()
}

fn removal(snapshot: &Snapshot, key: &Key) -> Option<Write> {
    let stored = snapshot.get(key)?;
    let change = Change::Delete(Draft::new(&value(&stored), stored.header.clone()));
    Some(Write { key: key.clone(), expect: Expect::At(stored.revision), change })
}

fn held_ips(service: &Value) -> BTreeSet<String> {
    let ips = service.items_at(&["spec", "clusterIPs"]).iter().filter_map(Value::as_str);
    ips.filter(|it| !it.is_empty() && *it != "None").map(str::to_owned).collect()
}

fn held_ports(service: &Value) -> BTreeSet<i64> {
    let ports = service.items_at(&["spec", "ports"]).iter().filter_map(|it| it.int_at(&["nodePort"]));
    ports.chain(service.int_at(&["spec", "healthCheckNodePort"])).filter(|it| *it > 0).collect()
}

fn addresses(context: &Context<'_>, service: &mut Value) -> Result<Vec<Write>> {
    let before = context.old.map(held_ips).unwrap_or_default();
    let kind = service.text_at(&["spec", "type"]).to_owned();
    let listed = service.items_at(&["spec", "clusterIPs"]).first().and_then(Value::as_str).unwrap_or_default();
    let own = service.text_at(&["spec", "clusterIP"]);
    let asked = if own.is_empty() { listed } else { own }.to_owned();
    let mut writes = Vec::new();
    match (kind.as_str(), asked.as_str()) {
        ("ExternalName", _) => {
            for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
                service.remove_at(&["spec", field]);
            }
        }
        (_, "None") => set_ip(service, "None"),
        (_, "") => {
            let ip = before.first().cloned().map_or_else(|| free_address(context, service), Ok)?;
            set_ip(service, &ip);
        }
        (_, ip) => {
            let ip = ip.to_owned();
            if !before.contains(&ip) {
                check_address(context, service, &ip)?;
            }
            set_ip(service, &ip);
        }
    }
    let after = held_ips(service);
    writes.extend(after.difference(&before).map(|ip| claim_address(ip, service)));
    writes.extend(before.difference(&after).filter_map(|ip| removal(context.snapshot, &Key::new(ADDRESSES, "", ip))));
    Ok(writes)
}

fn set_ip(service: &mut Value, ip: &str) {
    service.set_at(&["spec", "clusterIP"], ip);
    service.set_at(&["spec", "clusterIPs"], json!([ip]));
    for (field, value) in [("ipFamilies", json!(["IPv4"])), ("ipFamilyPolicy", json!("SingleStack"))] {
        if service.at(&["spec", field]).is_none() {
            service.set_at(&["spec", field], value);
        }
    }
}

fn ranges(snapshot: &Snapshot) -> Vec<(String, Range)> {
    let objects = snapshot.list("networking.k8s.io/servicecidrs", None, None).map(|it| value(it)).filter(|it| it.deletion_timestamp().is_none());
    let cidrs = objects.flat_map(|it| it.items_at(&["spec", "cidrs"]).iter().filter_map(|it| it.as_str().map(str::to_owned)).collect::<Vec<_>>());
    cidrs.filter_map(|it| Some((it.clone(), Range::parse(&it)?))).collect()
}

fn invalid(context: &Context<'_>, service: &Value, field: &str, value: Value, detail: String) -> Status {
    let error = FieldError::invalid(&Path::new("spec").child(field), value, detail);
    Status::invalid(&context.target.kind.group_kind(), service.name(), vec![error])
}

/// A random free address of the first range that has one.
fn free_address(context: &Context<'_>, service: &Value) -> Result<String> {
    let is_free = |ip: &Ipv4Addr| context.snapshot.get(&Key::new(ADDRESSES, "", &ip.to_string())).is_none();
    for (_, range) in ranges(context.snapshot) {
        let dynamic = range.dynamic();
        let by_chance = (0..TRIES).map(|_| dynamic.start + random() % (dynamic.end - dynamic.start));
        if let Some(ip) = by_chance.chain(dynamic.clone()).chain(1..dynamic.start).map(|it| range.at(it)).find(is_free) {
            return Ok(ip.to_string());
        }
    }
    let detail = "failed to allocate a serviceIP: range is full".to_owned();
    Err(invalid(context, service, "clusterIPs", json!([]), detail))
}

fn random() -> u32 {
    uuid::Uuid::new_v4().as_fields().0
}

fn check_address(context: &Context<'_>, service: &Value, ip: &str) -> Result<()> {
    let fail = |why: String| Err(invalid(context, service, "clusterIPs", json!([ip]), format!("failed to allocate IP {ip}: {why}")));
    let Ok(address) = ip.parse::<Ipv4Addr>() else {
        let detail = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".to_owned();
        return Err(invalid(context, service, "clusterIPs", json!([ip]), detail));
    };
    let ranges = ranges(context.snapshot);
    if !ranges.iter().any(|(_, range)| range.holds(address)) {
        let all: Vec<&str> = ranges.iter().map(|(cidr, _)| cidr.as_str()).collect();
        return fail(format!("the provided IP ({ip}) is not in the valid range. The range of valid IPs is {}", all.join(",")));
    }
    match context.snapshot.get(&Key::new(ADDRESSES, "", ip)) {
        Some(_) => fail("provided IP is already allocated".to_owned()),
        None => Ok(()),
    }
}

fn claim_address(ip: &str, service: &Value) -> Write {
    let labels = json!({"ipaddress.kubernetes.io/ip-family": "IPv4", "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io"});
    let parent = json!({"group": "", "resource": "services", "namespace": service.namespace(), "name": service.name()});
    let object = json!({"apiVersion": "networking.k8s.io/v1", "kind": "IPAddress", "spec": {"parentRef": parent},
        "metadata": {"name": ip, "uid": uuid::Uuid::new_v4().to_string(), "creationTimestamp": clock::now_rfc3339(), "labels": labels}});
    let labels = object.labels().map(|(key, value)| (key.into(), value.into())).collect();
    let header = Header { uid: object.uid().into(), labels, fields: vec![("spec.parentRef".into(), "".into())], schema: 0 };
    Write { key: Key::new(ADDRESSES, "", ip), expect: Expect::Absent, change: Change::Put(Draft::new(&object, header)) }
}

fn node_ports(context: &Context<'_>, service: &mut Value) -> Result<Vec<Write>> {
    let before = context.old.map(held_ports).unwrap_or_default();
    let kind = service.text_at(&["spec", "type"]).to_owned();
    let is_balanced = kind == "LoadBalancer" && service.at(&["spec", "allocateLoadBalancerNodePorts"]) != Some(&Value::Bool(false));
    let mut taken = held_ports(service);
    if kind == "NodePort" || is_balanced {
        let old_ports: Vec<Value> = context.old.map(|it| it.items_at(&["spec", "ports"]).to_vec()).unwrap_or_default();
        let missing: Vec<usize> =
            service.items_at(&["spec", "ports"]).iter().enumerate().filter(|(_, it)| it.int_at(&["nodePort"]).unwrap_or(0) == 0).map(|(at, _)| at).collect();
        for at in missing {
            let port = &service["spec"]["ports"][at];
            let same = |it: &&Value| it.int_at(&["port"]) == port.int_at(&["port"]) && it.text("protocol") == port.text("protocol");
            let kept = old_ports.iter().find(same).and_then(|it| it.int_at(&["nodePort"])).filter(|it| *it > 0 && !taken.contains(it));
            let chosen = kept.map_or_else(|| free_port(context, service, &taken), Ok)?;
            taken.insert(chosen);
            service["spec"]["ports"][at]["nodePort"] = chosen.into();
        }
    } else if context.old.is_some() {
        // A Service that no longer asks for node ports gives them back, unless the client still names them.
        for port in crate::kinds::check::each(service, &["spec", "ports"]) {
            if port.int_at(&["nodePort"]).is_some_and(|it| before.contains(&it)) {
                port.remove_at(&["nodePort"]);
            }
        }
    }
    let after = held_ports(service);
    let mut writes = Vec::new();
    for port in after.difference(&before) {
        check_port(context, service, *port)?;
        let object = json!({"kind": "NodePort", "metadata": {"name": port.to_string()}, "service": {"namespace": service.namespace(), "name": service.name()}});
        let key = Key::new(NODE_PORTS, "", &port.to_string());
        writes.push(Write { key, expect: Expect::Absent, change: Change::Put(Draft::new(&object, Header::default())) });
    }
    writes.extend(before.difference(&after).filter_map(|port| removal(context.snapshot, &Key::new(NODE_PORTS, "", &port.to_string()))));
    Ok(writes)
}

fn is_taken(snapshot: &Snapshot, port: i64) -> bool {
    snapshot.get(&Key::new(NODE_PORTS, "", &port.to_string())).is_some()
}

fn free_port(context: &Context<'_>, service: &Value, taken: &BTreeSet<i64>) -> Result<i64> {
    let size = PORTS.end() - PORTS.start() + 1;
    let by_chance = (0..TRIES).map(|_| PORTS.start() + i64::from(random()) % size);
    let is_free = |port: &i64| !taken.contains(port) && !is_taken(context.snapshot, *port);
    let full = || invalid(context, service, "ports", json!([]), "failed to allocate a nodePort: range is full".to_owned());
    by_chance.chain(PORTS).find(is_free).ok_or_else(full)
}

fn check_port(context: &Context<'_>, service: &Value, port: i64) -> Result<()> {
    let at = service.items_at(&["spec", "ports"]).iter().position(|it| it.int_at(&["nodePort"]) == Some(port)).unwrap_or(0);
    let field = format!("ports[{at}].nodePort");
    if !PORTS.contains(&port) {
        let detail = format!("provided port is not in the valid range. The range of valid ports is {}-{}", PORTS.start(), PORTS.end());
        return Err(invalid(context, service, &field, port.into(), detail));
    }
    if is_taken(context.snapshot, port) {
        return Err(invalid(context, service, &field, port.into(), "provided port is already allocated".to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_leave_their_lower_part_to_static_addresses() {
        let range = Range::parse("10.96.0.0/16").expect("a range");
        assert_eq!(range.dynamic(), 256..65_535);
        assert!(range.holds(Ipv4Addr::new(10, 96, 0, 1)));
        assert!(!range.holds(Ipv4Addr::new(10, 96, 0, 0)));
        assert!(!range.holds(Ipv4Addr::new(10, 97, 0, 1)));
        assert_eq!(Range::parse("10.96.0.0/40"), None);
    }
}
