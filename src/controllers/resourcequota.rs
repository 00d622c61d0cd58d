//! Counts what quotas limit. Admission charges each write; what is given back, or was there before, is found here.
//! Follows pkg/controller/resourcequota.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
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
use serde_json::Value;

use super::{Context, Controller};
use crate::{
    base::Tasks,
    client::{
        Error, Informer, ObjectKey, Result, WorkQueue,
        informer::{BY_NAMESPACE, Options, namespace_of},
        writes::{self, CONTROLLER_MANAGER},
    },
    kinds::quota::{self, Usage},
};

const WORKERS: usize = 5;
/// `resourceQuotaSyncPeriod`.
const RESYNC: Duration = Duration::from_secs(300);
/// Changes within so short a time become one count.
const COALESCE: Duration = Duration::from_millis(50);

pub struct ResourceQuotaController;

impl Controller for ResourceQuotaController {
    fn name(&self) -> &'static str {
        "resourcequota-controller"
    }

    fn start(&self, context: &Context) {
        let client = context.client(self.name());
        let by_namespace = Options::default().index(BY_NAMESPACE, namespace_of);
        let shell = Arc::new(Shell {
            quotas: Informer::start("resourcequotas", Api::all(client.clone()), by_namespace, &context.tasks),
            client,
            tasks: context.tasks.clone(),
            queue: WorkQueue::new(),
            watched: Mutex::default(),
        });
        context.tasks.spawn(self.name(), async move {
            shell.quotas.synced().await;
            shell.run();
        });
    }
}

/// A resource by group and plural.
type Resource = (String, String);

struct Shell {
    client: kube::Client,
    quotas: Informer<ResourceQuota>,
    tasks: Tasks,
    queue: WorkQueue<ObjectKey>,
    /// Resources whose changes are followed.
    watched: Mutex<HashMap<Resource, ApiResource>>,
}

impl Shell {
    fn run(self: Arc<Self>) {
        let queue = self.queue.clone();
        self.quotas.subscribe(move |change| queue.add(ObjectKey::of(&**change.object())));
        let (queue, tasks) = (self.queue.clone(), self.tasks.clone());
        queue.run(&tasks, "resourcequota-controller", WORKERS, move |key| {
            let shell = self.clone();
            async move { shell.sync(&key).await }
        });
    }

    async fn sync(self: &Arc<Self>, key: &ObjectKey) -> Result<Option<Duration>> {
        let Some(found) = self.quotas.get(key) else { return Ok(None) };
        let hard = found.spec.as_ref().and_then(|it| it.hard.clone()).unwrap_or_default();
        let value = serde_json::to_value(found.as_ref()).map_err(|why| Error::Invalid(why.to_string()))?;
        let names: Vec<String> = hard.keys().cloned().collect();
        let used = self.count(&key.namespace, &value, &names).await?;
        let used = used.into_iter().map(|(name, amount)| (name, K8sQuantity(amount))).collect();
        let status = ResourceQuotaStatus { hard: Some(hard), used: Some(used) };
        if found.status.as_ref() != Some(&status) {
            // The version turns a charge meanwhile into a conflict, and that into another count.
            let next = ResourceQuota { status: Some(status), ..found.as_ref().clone() };
            writes::status(&self.client, CONTROLLER_MANAGER, &next).await?;
        }
        Ok(Some(RESYNC))
    }

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
        if let Some(api) = self.watched.lock().unwrap_or_else(PoisonError::into_inner).get(resource) {
            return Ok(Some(api.clone()));
        }
        let discovery = Discovery::new(self.client.clone()).run_aggregated().await?;
        let all = discovery.groups().flat_map(|it| it.recommended_resources());
        let found = all.into_iter().find(|(api, capabilities)| (&api.group, &api.plural) == (&resource.0, &resource.1) && capabilities.scope == Scope::Namespaced);
        let Some((api, _)) = found else { return Ok(None) };
        let is_new = self.watched.lock().unwrap_or_else(PoisonError::into_inner).insert(resource.clone(), api.clone()).is_none();
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
            for quota in self.quotas.by(BY_NAMESPACE, &namespace) {
                self.queue.add_after(ObjectKey::of(&*quota), COALESCE);
            }
        }
    }
}
