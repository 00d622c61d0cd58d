//! Deletes what its owners left behind, over all kinds. Follows pkg/controller/garbagecollector.

pub mod graph;

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{
    Api,
    api::{ApiResource, DeleteParams, DynamicObject, PartialObjectMeta, Patch, Preconditions, PropagationPolicy},
    discovery::{Discovery, Scope, verbs},
    runtime::{
        WatchStreamExt,
        watcher::{self, Event},
    },
};
use serde_json::json;
use tokio::sync::{Notify, watch};

use self::graph::{Coordinates, Graph, Seen, Step, Verdict};
use super::Controller;
use crate::{
    base::Tasks,
    client::{
        Error, Result,
        writes::{self, CONTROLLER_MANAGER},
    },
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
        let synced: Vec<_> = shell.resources().values().map(|it| it.synced.clone()).collect();
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
        shell.attempt(uid).await.map(|()| None)
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
        self.resources().retain(|key, resource| {
            let is_kept = present.contains(key);
            if !is_kept {
                resource.monitor.cancel();
            }
            is_kept
        });
    }

    fn monitor(self: &Arc<Self>, api: ApiResource, is_namespaced: bool) {
        let key = (api.group.clone(), api.kind.clone());
        let mut resources = self.resources();
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
        let due = self.graph().saw(&uid, seen);
        due.into_iter().for_each(|it| self.queue.add(it));
        Some(uid)
    }

    fn lost(&self, uid: &str) {
        let due = self.graph().lost(uid);
        due.into_iter().for_each(|it| self.queue.add(it));
    }

    fn graph(&self) -> MutexGuard<'_, Graph> {
        self.own.graph.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn resources(&self) -> MutexGuard<'_, HashMap<(String, String), Resource>> {
        self.own.resources.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Judges one object and does what follows from it.
    async fn attempt(&self, uid: &str) -> Result<()> {
        let unknown = self.graph().unknown_owners(uid);
        let mut verdicts = HashMap::new();
        for owner in unknown {
            verdicts.insert(owner.uid.clone(), self.look_up(uid, &owner).await?);
        }
        let step = self.graph().step(uid, &verdicts);
        self.perform(step).await
    }

    /// Asks the server about an owner that no watch has shown.
    async fn look_up(&self, uid: &str, owner: &OwnerReference) -> Result<Verdict> {
        let namespace = self.graph().namespace_of(uid);
        let group = crate::meta::object::split_api_version(&owner.api_version).0.to_owned();
        let Some((api, is_namespaced)) = self.resource(&group, &owner.kind) else {
            return Err(Error::Invalid(format!("no kind {} in {}", owner.kind, owner.api_version)));
        };
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
        self.resources().get(&(group.to_owned(), kind.to_owned())).map(|it| (it.api.clone(), it.is_namespaced))
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
                due.into_iter().for_each(|it| self.queue.add(it));
                Ok(())
            }
            Step::Delete { at, uid, version, policy, unblock } => {
                for (at, version, owners) in unblock {
                    self.set_owners(&at, &version, &owners).await?;
                }
                self.delete(&at, uid, version, policy).await
            }
            Step::SetOwners { at, version, owners } => self.set_owners(&at, &version, &owners).await,
            Step::SetFinalizers { at, version, finalizers } => self.patch(&at, json!({"resourceVersion": version, "finalizers": finalizers})).await,
            Step::Orphan { dependents, at, version, finalizers } => {
                for (at, version, owners) in dependents {
                    self.set_owners(&at, &version, &owners).await?;
                }
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

    async fn set_owners(&self, at: &Coordinates, version: &str, owners: &[OwnerReference]) -> Result<()> {
        self.patch(at, json!({"resourceVersion": version, "ownerReferences": owners})).await
    }

    /// The version in the patch turns a change meanwhile into a conflict, and that into another attempt.
    async fn patch(&self, at: &Coordinates, metadata: serde_json::Value) -> Result<()> {
        let Some((api, _)) = self.resource(&at.group, &at.kind) else {
            return Ok(());
        };
        let patch = Patch::Merge(json!({"metadata": metadata}));
        writes::unless_not_found(self.api(&api, &at.namespace).patch_metadata(&at.name, &writes::patching(CONTROLLER_MANAGER), &patch).await)?;
        Ok(())
    }
}
