//! ComponentStatus: how the parts of the control plane are, found out when somebody asks. Nothing of it is stored.
//! Source: `pkg/registry/core/{componentstatus,rest}`, which ask the parts' health ports.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use serde_json::json;

use super::{Server, forms::View, health};
use crate::{
    base::clock,
    meta::{Meta, Status, Value},
    store::{Key, Snapshot, Stored},
};

const LEASES: &str = "coordination.k8s.io/leases";
/// The roles beside the store, by the names of their leases too.
const ROLES: [(&str, &str); 2] = [("controller-manager", "kube-controller-manager"), ("scheduler", "kube-scheduler")];

/// The statuses by name, each as an object of `view`'s kind.
pub async fn all(server: &Server, view: View<'_>) -> Vec<Arc<Stored>> {
    let snapshot = server.store.snapshot();
    let mut found: Vec<(&str, Result<(), String>)> = ROLES.iter().map(|(name, lease)| (*name, role(server, &snapshot, lease))).collect();
    found.push(("etcd-0", health::store(server).await));
    found.into_iter().map(|(name, health)| Arc::new(object(view, name, health))).collect()
}

/// A role runs in this process, or whoever leads renews its lease.
fn role(server: &Server, snapshot: &Snapshot, name: &str) -> Result<(), String> {
    if server.runs_roles.load(Ordering::Relaxed) {
        return Ok(());
    }
    let lease = snapshot.get(&Key::new(LEASES, "kube-system", name)).map(|it| it.value()).unwrap_or_default();
    let holder = lease.text_at(&["spec", "holderIdentity"]);
    let renewed = lease.text_at(&["spec", "renewTime"]).parse::<jiff::Timestamp>().ok();
    let lasts = Duration::from_secs(lease.int_at(&["spec", "leaseDurationSeconds"]).and_then(|it| u64::try_from(it).ok()).unwrap_or_default());
    match renewed.and_then(|it| it.checked_add(lasts).ok()) {
        Some(until) if !holder.is_empty() && until >= clock::now() => Ok(()),
        Some(_) if !holder.is_empty() => Err(format!("{holder} has not renewed the lease kube-system/{name} in time")),
        _ => Err(format!("nobody holds the lease kube-system/{name}")),
    }
}

fn object(view: View<'_>, name: &str, health: Result<(), String>) -> Stored {
    let mut condition = json!({"type": "Healthy", "status": if health.is_ok() { "True" } else { "False" }});
    match health {
        Ok(()) => condition["message"] = "ok".into(),
        Err(why) => condition["error"] = why.into(),
    }
    let value: Value = json!({"apiVersion": view.api_version(), "kind": view.kind.kind, "metadata": {"name": name}, "conditions": [condition]});
    // Its type goes first, as in what is stored: lists leave it out.
    let text = format!("{{\"apiVersion\":{:?},\"kind\":{:?},\"metadata\":{},\"conditions\":{}}}", view.api_version(), view.kind.kind, value["metadata"], value["conditions"]);
    Stored { key: Key::new(&view.kind.resource(), "", name), revision: 0, json: text.into(), header: view.header(&value), forms: Default::default() }
}

/// The status of one part; 404 in upstream's words, which name the resource in the singular.
pub async fn one(server: &Server, view: View<'_>, name: &str) -> Result<Arc<Stored>, Status> {
    let resource = crate::meta::object::GroupResource::new("", "componentstatus");
    all(server, view).await.into_iter().find(|it| *it.key.name == *name).ok_or_else(|| Status::not_found(&resource, name))
}
