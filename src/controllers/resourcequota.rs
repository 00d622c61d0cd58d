//! Counts what quotas limit. Admission charges each write; what is given back, or was there before, is found here.
//! Follows pkg/controller/resourcequota.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use futures::StreamExt;
use k8s_openapi::{
    api::core::v1::{ResourceQuota, ResourceQuotaStatus},
    apimachinery::pkg::api::resource::Quantity as K8sQuantity,
};
use kube::{
    Api, ResourceExt,
    api::{ApiResource, DynamicObject, ListParams},
    discovery::{Discovery, Scope},
    runtime::{
        WatchStreamExt,
        watcher::{self, Event},
    },
};
use parking_lot::Mutex;
use serde_json::Value;

use super::Controller;
use crate::{
    client::{BY_NAMESPACE, Error, ObjectKey, Result, writes},
    kinds::quota::{self, Usage},
};

/// `resourceQuotaSyncPeriod`.
const RESYNC: Duration = Duration::from_secs(300);
/// Changes within so short a time become one count.
const COALESCE: Duration = Duration::from_millis(50);

/// A resource by group and plural.
type Resource = (String, String);

#[derive(Default)]
pub struct ResourceQuotaController {
    /// Resources whose changes are followed.
    watched: Mutex<HashMap<Resource, ApiResource>>,
}
type Shell = super::Shell<ResourceQuotaController>;

impl Controller for ResourceQuotaController {
    type Key = ObjectKey;
    const NAME: &'static str = "resourcequota-controller";

    async fn listen(shell: &Arc<Shell>) {
        shell.queue_each(&shell.informers.quotas);
    }

    async fn reconcile(shell: &Arc<Shell>, key: &ObjectKey) -> Result<Option<Duration>> {
        let Some(found) = shell.informers.quotas.get(key) else { return Ok(None) };
        let hard = found.spec.as_ref().and_then(|it| it.hard.clone()).unwrap_or_default();
        let value = serde_json::to_value(found.as_ref()).map_err(|why| Error::Invalid(why.to_string()))?;
        let names: Vec<String> = hard.keys().cloned().collect();
        let used = shell.count(&key.namespace, &value, &names).await?;
        let used = used.into_iter().map(|(name, amount)| (name, K8sQuantity(amount))).collect();
        let status = ResourceQuotaStatus { hard: Some(hard), used: Some(used) };
        // The version turns a charge meanwhile into a conflict, and that into another count.
        writes::status(&shell.client, found.as_ref(), &ResourceQuota { status: Some(status), ..ResourceQuota::clone(&found) }).await?;
        Ok(Some(RESYNC))
    }
}

impl Shell {
    /// What the namespace uses of each name.
    async fn count(self: &Arc<Self>, namespace: &str, found: &Value, names: &[String]) -> Result<BTreeMap<String, String>> {
        let resources: BTreeSet<Resource> = names.iter().map(|it| quota::counted(it)).collect();
        let mut sum: Usage = names.iter().map(|it| (it.clone(), Default::default())).collect();
        for resource in resources {
            let Some(api) = self.follow(&resource).await? else { continue };
            let objects: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, &api);
            for object in objects.list(&ListParams::default()).await?.items {
                let object = serde_json::to_value(object).map_err(|why| Error::Invalid(why.to_string()))?;
                if !quota::is_in_scope(found, &resource.0, &resource.1, &object) {
                    continue;
                }
                for (name, more) in quota::usage(&resource.0, &resource.1, &object) {
                    sum.entry(name).and_modify(|it| *it = it.add(more));
                }
            }
        }
        Ok(sum.into_iter().map(|(name, value)| (name, value.to_string())).collect())
    }

    /// The resource, whose changes from now on lead to a new count; `None` while nothing of that name is served.
    async fn follow(self: &Arc<Self>, resource: &Resource) -> Result<Option<ApiResource>> {
        if let Some(api) = self.own.watched.lock().get(resource) {
            return Ok(Some(api.clone()));
        }
        let discovery = Discovery::new(self.client.clone()).run_aggregated().await?;
        let all = discovery.groups().flat_map(|it| it.recommended_resources());
        let found = all.into_iter().find(|(api, capabilities)| (&api.group, &api.plural) == (&resource.0, &resource.1) && capabilities.scope == Scope::Namespaced);
        let Some((api, _)) = found else { return Ok(None) };
        let is_new = self.own.watched.lock().insert(resource.clone(), api.clone()).is_none();
        if is_new {
            let (shell, followed) = (self.clone(), api.clone());
            self.tasks.spawn("resourcequota-monitor", async move { shell.watch(followed).await });
        }
        Ok(Some(api))
    }

    async fn watch(&self, api: ApiResource) {
        let objects: Api<DynamicObject> = Api::all_with(self.client.clone(), &api);
        let mut events = Box::pin(watcher::watcher(objects, watcher::Config::default().streaming_lists()).default_backoff());
        while let Some(event) = events.next().await {
            let (Ok(Event::Apply(object)) | Ok(Event::Delete(object))) = event else { continue };
            let namespace = object.namespace().unwrap_or_default();
            for quota in self.informers.quotas.by(BY_NAMESPACE, &namespace) {
                self.queue.add_after(ObjectKey::of(&*quota), COALESCE);
            }
        }
    }
}
