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
    ips.chain(ports).filter_map(|key| removal(snapshot, &key)).collect()
}

fn removal(snapshot: &Snapshot, key: &Key) -> Option<Write> {
    let stored = snapshot.get(key)?;
    let change = Change::Delete(Draft::new(&stored.value(), stored.header.clone()));
    Some(Write { key: key.clone(), expect: Expect::At(stored.revision), change })
}

fn held_ports(service: &Value) -> BTreeSet<i64> {
    let ports = service.items_at(&["spec", "ports"]).iter().filter_map(|it| it.int_at(&["nodePort"]));
    ports.chain(service.int_at(&["spec", "healthCheckNodePort"])).filter(|it| *it > 0).collect()
}

fn invalid(context: &Context<'_>, service: &Value, field: &str, value: Value, detail: String) -> Status {
    let error = FieldError::invalid(&Path::new("spec").child(field), value, detail);
    Status::invalid(&context.target.kind.group_kind(), service.name(), vec![error])
}

fn random() -> u32 {
    uuid::Uuid::new_v4().as_fields().0
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
