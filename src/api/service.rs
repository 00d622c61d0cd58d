//! Addresses and node ports of Services. An address is exact because its IPAddress object is a key of the store, written in the
//! transaction that writes the Service; a node port likewise, under a key that no client sees.
//! Source: `pkg/registry/core/service/storage/alloc.go`, `pkg/registry/core/service/ipallocator`.

mod addresses;

use std::collections::BTreeSet;

use serde_json::json;

use self::addresses::ADDRESSES;
use super::{admission::Context, target::Target};
use crate::{
    meta::{FieldError, Meta, Path, Result, Status, Value},
    store::{Change, Draft, Expect, Header, Key, Snapshot, Write},
};

const NODE_PORTS: &str = "internal/nodeports";
/// `--service-node-port-range`.
const PORTS: std::ops::RangeInclusive<i64> = 30_000..=32_767;
/// Tries at a free address or port by chance before all are looked through.
const TRIES: u32 = 32;

/// Gives a Service what it lacks; the writes that make it exact.
pub fn allocate(context: &Context<'_>, service: &mut Value) -> Result<Vec<Write>> {
    if !context.is("", "services") {
        return Ok(Vec::new());
    }
    let mut writes = addresses::allocate(context, service)?;
    writes.extend(node_ports(context, service)?);
    Ok(writes)
}

/// The writes that give back what a removed Service held.
pub fn release(snapshot: &Snapshot, target: &Target, service: &Value) -> Vec<Write> {
    if target.kind.plural != "services" || !target.kind.group.is_empty() {
        return Vec::new();
    }
    let ips = addresses::held(service).into_iter().map(|it| Key::new(ADDRESSES, "", &it));
    let ports = held_ports(service).into_iter().map(|it| Key::new(NODE_PORTS, "", &it.to_string()));
    ips.chain(ports).filter_map(|key| Some(snapshot.get(&key)?.removal())).collect()
}

/// The writes that claim what a Service holds now and did not before, and give back what it held.
fn exchange<T: Ord + ToString>(snapshot: &Snapshot, resource: &str, before: &BTreeSet<T>, now: &BTreeSet<T>, claim: impl Fn(&T) -> Result<Write>) -> Result<Vec<Write>> {
    let given_back = before.difference(now).filter_map(|it| Some(snapshot.get(&Key::new(resource, "", &it.to_string()))?.removal()));
    now.difference(before).map(claim).chain(given_back.map(Ok)).collect()
}

fn is_taken(snapshot: &Snapshot, resource: &str, name: &str) -> bool {
    snapshot.get(&Key::new(resource, "", name)).is_some()
}

/// Where something free is looked for: some places by chance, then all.
fn tried(range: std::ops::Range<u128>) -> impl Iterator<Item = u128> {
    let by_chance = |range: std::ops::Range<u128>| range.start + u128::from(uuid::Uuid::new_v4().as_fields().0) % (range.end - range.start);
    let all = range.clone();
    (0..TRIES).map(move |_| by_chance(range.clone())).chain(all)
}

fn held_ports(service: &Value) -> BTreeSet<i64> {
    let ports = service.items_at(&["spec", "ports"]).iter().filter_map(|it| it.int_at(&["nodePort"]));
    ports.chain(service.int_at(&["spec", "healthCheckNodePort"])).filter(|it| *it > 0).collect()
}

fn invalid(context: &Context<'_>, service: &Value, field: &str, value: Value, detail: String) -> Status {
    let error = FieldError::invalid(&Path::new("spec").child(field), value, detail);
    context.target.kind.invalid(service.name(), vec![error])
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
            let same = |it: &&Value| it.text("name") == port.text("name");
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
    exchange(context.snapshot, NODE_PORTS, &before, &held_ports(service), |port| {
        check_port(context, service, *port)?;
        let object = json!({"kind": "NodePort", "metadata": {"name": port.to_string()}, "service": {"namespace": service.namespace(), "name": service.name()}});
        let key = Key::new(NODE_PORTS, "", &port.to_string());
        Ok(Write { key, expect: Expect::Absent, change: Change::Put(Draft::new(&object, Header::default())) })
    })
}

fn free_port(context: &Context<'_>, service: &Value, taken: &BTreeSet<i64>) -> Result<i64> {
    let is_free = |port: &i64| !taken.contains(port) && !is_taken(context.snapshot, NODE_PORTS, &port.to_string());
    let full = || invalid(context, service, "ports", json!([]), "failed to allocate a nodePort: range is full".to_owned());
    tried(*PORTS.start() as u128..*PORTS.end() as u128 + 1).map(|it| it as i64).find(is_free).ok_or_else(full)
}

fn check_port(context: &Context<'_>, service: &Value, port: i64) -> Result<()> {
    let at = service.items_at(&["spec", "ports"]).iter().position(|it| it.int_at(&["nodePort"]) == Some(port)).unwrap_or(0);
    let field = format!("ports[{at}].nodePort");
    if !PORTS.contains(&port) {
        let detail = format!("provided port is not in the valid range. The range of valid ports is {}-{}", PORTS.start(), PORTS.end());
        return Err(invalid(context, service, &field, port.into(), detail));
    }
    if is_taken(context.snapshot, NODE_PORTS, &port.to_string()) {
        return Err(invalid(context, service, &field, port.into(), "provided port is already allocated".to_owned()));
    }
    Ok(())
}
