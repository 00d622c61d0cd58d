//! Deletes what its owners left behind, over all kinds. Follows pkg/controller/garbagecollector.

pub mod graph;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{
    Api,
    api::{ApiResource, DeleteParams, DynamicObject, PartialObjectMeta, Patch, PatchParams, Preconditions, PropagationPolicy},
    discovery::{Discovery, Scope, verbs},
    runtime::{
        WatchStreamExt,
        watcher::{self, Event},
    },
};
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::{Notify, watch};

use self::graph::{Coordinates, Graph, OwnerChange, Seen, Step, Verdict};
use super::Controller;
use crate::{
    base::Tasks,
    client::{Error, Result, writes},
    meta::object::split_api_version,
};

/// Changes of custom resource definitions are let settle so long before the resources are discovered anew.
const SETTLE: Duration = Duration::from_millis(500);
/// Discovery that failed is tried again after this.
const DISCOVERY_PAUSE: Duration = Duration::from_secs(2);
/// Kinds that come and go by themselves and own nothing (`ignoredResources`).
const IGNORED: [(&str, &str); 2] = [("", "events"), ("events.k8s.io", "events")];

struct Resource {
    api: ApiResource,
    is_namespaced: bool,
    monitor: Tasks,
    synced: watch::Receiver<bool>,
}

#[derive(Default)]
pub struct GarbageCollector {
    graph: Mutex<Graph>,
    /// By (group, kind).
    resources: Mutex<HashMap<(String, String), Resource>>,
    rediscover: Notify,
}
type Shell = super::Shell<GarbageCollector>;

impl Controller for GarbageCollector {
    type Key = String;
    const NAME: &'static str = "generic-garbage-collector";
    const WORKERS: usize = 20;

    async fn listen(shell: &Arc<Shell>) {
        shell.discover().await;
        let synced: Vec<_> = shell.own.resources.lock().values().map(|it| it.synced.clone()).collect();
        for mut one in synced {
            let _ = one.wait_for(|it| *it).await;
        }
        let again = shell.clone();
        shell.tasks.spawn_vital(Self::NAME, async move {
            loop {
                again.own.rediscover.notified().await;
                tokio::time::sleep(SETTLE).await;
                again.discover().await;
            }
        });
    }

    async fn reconcile(shell: &Arc<Shell>, uid: &String) -> Result<Option<Duration>> {
        let unknown = shell.own.graph.lock().unknown_owners(uid);
        let mut verdicts = HashMap::new();
        for owner in unknown {
            verdicts.insert(owner.uid.clone(), shell.look_up(uid, &owner).await?);
        }
        let step = shell.own.graph.lock().step(uid, &verdicts);
        shell.perform(step).await.map(|()| None)
    }
}

impl Shell {
    /// Watches every deletable resource, and no longer those that are gone.
    async fn discover(self: &Arc<Self>) {
        let discovery = loop {
            match Discovery::new(self.client.clone()).run_aggregated().await {
                Ok(discovery) => break discovery,
                Err(error) => tracing::debug!(%error, "discovery failed"),
            }
            tokio::time::sleep(DISCOVERY_PAUSE).await;
        };
        let mut present = HashSet::new();
        for (api, capabilities) in discovery.groups().flat_map(|it| it.recommended_resources()) {
            let is_watched = [verbs::LIST, verbs::WATCH, verbs::DELETE].iter().all(|it| capabilities.supports_operation(it));
            if is_watched && !IGNORED.contains(&(api.group.as_str(), api.plural.as_str())) {
                present.insert((api.group.clone(), api.kind.clone()));
                self.monitor(api, capabilities.scope == Scope::Namespaced);
            }
        }
        self.own.resources.lock().retain(|key, resource| {
            let is_kept = present.contains(key);
            if !is_kept {
                resource.monitor.cancel();
            }
            is_kept
        });
    }

    fn monitor(self: &Arc<Self>, api: ApiResource, is_namespaced: bool) {
        let key = (api.group.clone(), api.kind.clone());
        let mut resources = self.own.resources.lock();
        if resources.contains_key(&key) {
            return;
        }
        let (sender, synced) = watch::channel(false);
        let (shell, monitor, of) = (self.clone(), self.tasks.child(), api.clone());
        monitor.spawn("gc-monitor", async move { shell.follow(of, sender).await });
        resources.insert(key, Resource { api, is_namespaced, monitor, synced });
    }

    async fn follow(&self, api: ApiResource, synced: watch::Sender<bool>) {
        let objects: Api<PartialObjectMeta<DynamicObject>> = Api::all_with(self.client.clone(), &api);
        let mut events = Box::pin(watcher::watcher(objects, watcher::Config::default().streaming_lists()).default_backoff());
        let (mut known, mut listed) = (HashSet::new(), HashSet::new());
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Init) => listed.clear(),
                Ok(Event::InitApply(object)) => listed.extend(self.saw(&api, object)),
                Ok(Event::InitDone) => {
                    let listed = std::mem::take(&mut listed);
                    known.difference(&listed).for_each(|uid| self.lost(uid));
                    known = listed;
                    synced.send_replace(true);
                }
                Ok(Event::Apply(object)) => {
                    known.extend(self.saw(&api, object));
                    self.note_definition(&api);
                }
                Ok(Event::Delete(object)) => {
                    if let Some(uid) = &object.metadata.uid {
                        known.remove(uid);
                        self.lost(uid);
                    }
                    self.note_definition(&api);
                }
                Err(error) => tracing::debug!(%error, kind = api.kind, "watch"),
            }
        }
    }

    fn note_definition(&self, api: &ApiResource) {
        if api.kind == "CustomResourceDefinition" {
            self.own.rediscover.notify_one();
        }
    }

    fn saw(&self, api: &ApiResource, object: PartialObjectMeta<DynamicObject>) -> Option<String> {
        let meta = object.metadata;
        let uid = meta.uid?;
        let seen = Seen {
            at: Coordinates {
                group: api.group.clone(),
                kind: api.kind.clone(),
                namespace: meta.namespace.unwrap_or_default(),
                name: meta.name.unwrap_or_default(),
            },
            version: meta.resource_version.unwrap_or_default(),
            owners: meta.owner_references.unwrap_or_default(),
            finalizers: meta.finalizers.unwrap_or_default(),
            is_deleting: meta.deletion_timestamp.is_some(),
        };
        let due = self.own.graph.lock().saw(&uid, seen);
        self.queue.add_all(due);
        Some(uid)
    }

    fn lost(&self, uid: &str) {
        let due = self.own.graph.lock().lost(uid);
        self.queue.add_all(due);
    }

    /// Asks the server about an owner that no watch has shown.
    async fn look_up(&self, uid: &str, owner: &OwnerReference) -> Result<Verdict> {
        let namespace = self.own.graph.lock().namespace_of(uid);
        let known = self.resource(split_api_version(&owner.api_version).0, &owner.kind);
        let (api, is_namespaced) = known.ok_or_else(|| Error::Invalid(format!("no kind {} in {}", owner.kind, owner.api_version)))?;
        if is_namespaced && namespace.is_empty() {
            return Ok(Verdict::Unresolvable);
        }
        let namespace = if is_namespaced { namespace } else { String::new() };
        let found = writes::unless_not_found(self.api(&api, &namespace).get_metadata(&owner.name).await)?;
        let Some(meta) = found.map(|it| it.metadata).filter(|it| it.uid.as_deref() == Some(&owner.uid)) else {
            return Ok(Verdict::Gone);
        };
        let waits = meta.deletion_timestamp.is_some() && meta.finalizers.iter().flatten().any(|it| it == graph::FOREGROUND);
        Ok(if waits { Verdict::Waiting } else { Verdict::Solid })
    }

    fn resource(&self, group: &str, kind: &str) -> Option<(ApiResource, bool)> {
        self.own.resources.lock().get(&(group.to_owned(), kind.to_owned())).map(|it| (it.api.clone(), it.is_namespaced))
    }

    fn api(&self, api: &ApiResource, namespace: &str) -> Api<DynamicObject> {
        match namespace {
            "" => Api::all_with(self.client.clone(), api),
            _ => Api::namespaced_with(self.client.clone(), namespace, api),
        }
    }

    async fn perform(&self, step: Step) -> Result<()> {
        match step {
            Step::Nothing => Ok(()),
            Step::Wait(due) => {
                self.queue.add_all(due);
                Ok(())
            }
            Step::Delete { at, uid, version, policy, unblock } => {
                self.set_owners(unblock).await?;
                self.delete(&at, uid, version, policy).await
            }
            Step::SetOwners(change) => self.set_owners(vec![change]).await,
            Step::SetFinalizers { dependents, at, version, finalizers } => {
                self.set_owners(dependents).await?;
                self.patch(&at, json!({"resourceVersion": version, "finalizers": finalizers})).await
            }
        }
    }

    async fn delete(&self, at: &Coordinates, uid: String, version: String, policy: PropagationPolicy) -> Result<()> {
        let Some((api, _)) = self.resource(&at.group, &at.kind) else {
            return Ok(());
        };
        let preconditions = Preconditions { uid: Some(uid), resource_version: Some(version) };
        let how = DeleteParams { preconditions: Some(preconditions), propagation_policy: Some(policy), ..DeleteParams::default() };
        writes::unless_not_found(self.api(&api, &at.namespace).delete(&at.name, &how).await)?;
        Ok(())
    }

    async fn set_owners(&self, changes: Vec<OwnerChange>) -> Result<()> {
        for (at, version, owners) in changes {
            self.patch(&at, json!({"resourceVersion": version, "ownerReferences": owners})).await?;
        }
        Ok(())
    }

    /// The version in the patch turns a change meanwhile into a conflict, and that into another attempt.
    async fn patch(&self, at: &Coordinates, metadata: serde_json::Value) -> Result<()> {
        let Some((api, _)) = self.resource(&at.group, &at.kind) else {
            return Ok(());
        };
        let patch = Patch::Merge(json!({"metadata": metadata}));
        writes::unless_not_found(self.api(&api, &at.namespace).patch_metadata(&at.name, &PatchParams::default(), &patch).await)?;
        Ok(())
    }
}
