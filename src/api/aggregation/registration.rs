//! APIService objects: those of other servers are taken over as they change; for each version that this server serves itself there is one too.
//! Source: kube-aggregator `pkg/controllers/autoregister`, kubernetes `pkg/controlplane/apiserver/aggregator.go`.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde_json::json;

use super::{API_SERVICES, find};
use crate::{
    api::{Server, registration::insert},
    base::clock,
    kinds::{Kind, Registry, table::PRIORITIES},
    meta::Value,
    store::{Scope, Transaction},
};

/// `onstart` for built-in versions, `true` for those of custom resources, which end with their definition.
const MANAGED: &str = "kube-aggregator.kubernetes.io/automanaged";
/// How often it is seen whether other versions are served.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// The priorities of groups and versions of custom resources (`crdregistration`), and of a built-in version that is not its group's best.
const CUSTOM: (i64, i64) = (1000, 100);
const SECOND: i64 = 15;

/// The priority of a group that this server serves itself.
pub fn group_priority(group: &str) -> i64 {
    PRIORITIES.get(group).map_or(CUSTOM.0, |it| it.0)
}

fn version_priority(group: &str, version: &str) -> i64 {
    PRIORITIES.get(group).filter(|it| it.1 == version).map_or(SECOND, |it| it.2)
}

/// Follows APIServices and the served kinds until the server stops.
pub async fn follow(server: Arc<Server>) {
    let mut generation = None;
    loop {
        let snapshot = server.store.snapshot();
        server.aggregator.load(&snapshot);
        let Ok(mut cursor) = server.store.watch(Scope::resource(API_SERVICES), snapshot.revision()) else { continue };
        loop {
            let registry = server.registry.load_full();
            if generation != Some(registry.generation) {
                generation = Some(registry.generation);
                settle(&server, &registry).await;
            }
            match tokio::time::timeout(LOOK_EVERY, cursor.next()).await {
                Ok(Ok(_)) => server.aggregator.load(&server.store.snapshot()),
                Ok(Err(_)) => break,
                Err(_) => (),
            }
        }
    }
}

/// Makes the APIServices of what is served here that are missing, and removes those of what is no longer.
async fn settle(server: &Arc<Server>, registry: &Registry) {
    let snapshot = server.store.snapshot();
    let mut wanted = BTreeMap::new();
    for kind in registry.iter() {
        wanted.extend(kind.versions.iter().filter(|it| it.is_served).map(|it| (format!("{}.{}", it.name, kind.group), (kind, &it.name))));
    }
    for (name, (kind, version)) in &wanted {
        if find(&snapshot, name).is_none() {
            insert(server, API_SERVICES, &local(name, kind, version)).await;
        }
    }
    let obsolete = snapshot.list(API_SERVICES, None, None).filter(|it| it.header.label(MANAGED) == Some("true") && !wanted.contains_key(&*it.key.name));
    for stored in obsolete {
        let _ = server.store.submit(Transaction { writes: vec![stored.removal()] }).await;
    }
}

fn local(name: &str, kind: &Kind, version: &str) -> Value {
    let (managed, (group_priority, version_priority)) = match kind.custom {
        Some(_) => ("true", CUSTOM),
        None => ("onstart", (group_priority(&kind.group), version_priority(&kind.group, version))),
    };
    let now = clock::now_rfc3339();
    json!({
        "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
        "metadata": {"name": name, "labels": {MANAGED: managed}, "uid": uuid::Uuid::new_v4().to_string(), "creationTimestamp": now},
        "spec": {"group": kind.group, "version": version, "groupPriorityMinimum": group_priority, "versionPriority": version_priority},
        "status": {"conditions": [{"type": "Available", "status": "True", "reason": "Local", "message": "Local APIServices are always available", "lastTransitionTime": now}]},
    })
}
