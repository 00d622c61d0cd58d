//! Jobs: pods that run to their end, as many as asked for. Follows pkg/controller/job.

pub mod indexes;
pub mod plan;

use std::{collections::HashMap, sync::Arc, time::Duration};

use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{EnvVar, EnvVarSource, ObjectFieldSelector, Pod},
};
use kube::{ResourceExt, api::Patch};
use parking_lot::Mutex;
use serde_json::json;

use self::plan::{FINALIZER, Failures, INDEX, INDEX_FAILURES, Wanted, plan};
use super::{
    Controller,
    claims::{self, controller_of},
    pods,
};
use crate::{
    base::clock,
    client::{BY_NAMESPACE, BY_OWNER, Change, EventType, ObjectKey, Result, writes},
    meta::LabelSelector,
};

/// Changes of pods within so short a time become one update of the status.
const COALESCE: Duration = Duration::from_millis(50);
/// The controller of Jobs whose `managedBy` says nothing else.
const CONTROLLER: &str = "kubernetes.io/job-controller";

#[derive(Default)]
pub struct JobController {
    failures: Mutex<HashMap<ObjectKey, Failures>>,
}
type Shell = super::Shell<JobController>;

/// What is to be looked at.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Item {
    Job(ObjectKey),
    /// A pod that is held by a finalizer, but by no Job.
    Orphan(ObjectKey),
}

impl Controller for JobController {
    type Key = Item;
    const NAME: &'static str = "job-controller";

    async fn listen(shell: &Arc<Shell>) {
        shell.on(&shell.informers.jobs, Shell::job_changed);
        shell.on(&shell.informers.pods, Shell::pod_changed);
    }

    async fn reconcile(shell: &Arc<Shell>, item: &Item) -> Result<Option<Duration>> {
        let key = match item {
            Item::Job(key) => key,
            Item::Orphan(key) => return shell.let_orphan_go(key).await,
        };
        let job = shell.informers.jobs.get(key);
        let Some(job) = job.filter(|it| it.metadata.deletion_timestamp.is_none()) else {
            shell.forget(key);
            return shell.let_go(key).await;
        };
        let is_ours = job.spec.as_ref().and_then(|it| it.managed_by.as_deref()).is_none_or(|it| it == CONTROLLER);
        if !is_ours || plan::is_finished(&job) && shell.held(&job).is_empty() {
            return Ok(None);
        }
        let is_current = shell.expectations.are_satisfied(key);
        let pods = claims::claim(&shell.client, job.as_ref(), &selector(&job)?, &shell.informers.pods, |_| true, &[FINALIZER]).await?;
        let known = shell.own.failures.lock().get(key).cloned().unwrap_or_default();
        let plan = plan(&job, &pods, known, clock::now());
        writes::status(&shell.client, job.as_ref(), &Job { status: Some(plan.status.clone()), ..Job::clone(&job) }).await?;
        shell.own.failures.lock().insert(key.clone(), plan.failures.clone());
        for (is_warning, reason, message) in &plan.events {
            let kind = if *is_warning { EventType::Warning } else { EventType::Normal };
            shell.events.event(job.as_ref(), kind, reason, message);
        }
        for pod in &plan.release {
            shell.release(pod).await?;
        }
        if !is_current {
            return Ok(None);
        }
        let (new, old) = match plan.delete.is_empty() {
            true => (plan.create.iter().map(|it| Arc::new(pod_of(&job, it))).collect(), Vec::new()),
            false => (Vec::new(), plan.delete.clone()),
        };
        shell.replace(key, &job, new, old).await.map_or(Ok(plan.again), Err)
    }
}

impl Shell {
    fn job_changed(&self, change: &Change<Job>) {
        let key = ObjectKey::of(change.object().as_ref());
        if change.is_deleted() || change.old().is_some_and(|old| old.metadata.uid != change.object().metadata.uid) {
            self.forget(&key);
        }
        self.queue.add(Item::Job(key));
    }

    fn forget(&self, key: &ObjectKey) {
        self.expectations.forget(key);
        self.own.failures.lock().remove(key);
    }

    fn pod_changed(&self, change: &Change<Pod>) {
        let pod = change.object();
        let Some(key) = claims::owner_key::<Job>(&pod.metadata) else {
            return self.orphan_changed(change);
        };
        self.observe(&key, change);
        self.queue.add_after(Item::Job(key), COALESCE);
    }

    /// Wakes the Jobs that may adopt a pod without a controller; without one it is let go.
    fn orphan_changed(&self, change: &Change<Pod>) {
        let (pod, adopters) = (change.object(), claims::adopters(&self.informers.jobs, change, selector));
        if adopters.is_empty() && !change.is_deleted() && controller_of(&pod.metadata).is_none() && is_held(pod) {
            self.queue.add(Item::Orphan(ObjectKey::of(pod.as_ref())));
        }
        self.queue.add_all(adopters.into_iter().map(Item::Job));
    }

    async fn let_orphan_go(&self, key: &ObjectKey) -> Result<Option<Duration>> {
        if let Some(pod) = self.informers.pods.get(key).filter(|it| controller_of(&it.metadata).is_none()) {
            self.release(&pod).await?;
        }
        Ok(None)
    }

    fn held(&self, job: &Job) -> Vec<Arc<Pod>> {
        let pods = self.informers.pods.by(BY_OWNER, &job.uid().unwrap_or_default());
        pods.into_iter().filter(|it| is_held(it)).collect()
    }

    /// A Job that is gone, or goes, no longer holds its pods.
    async fn let_go(&self, key: &ObjectKey) -> Result<Option<Duration>> {
        let pods = self.informers.pods.by(BY_NAMESPACE, &key.namespace);
        for pod in pods.iter().filter(|it| claims::owner_key::<Job>(&it.metadata).as_ref() == Some(key)) {
            self.release(pod).await?;
        }
        Ok(None)
    }

    /// Takes the finalizer from a pod.
    async fn release(&self, pod: &Pod) -> Result<()> {
        if is_held(pod) {
            let patch = Patch::Strategic(json!({"metadata": {"uid": pod.uid(), "$deleteFromPrimitiveList/finalizers": [FINALIZER]}}));
            writes::patch(&self.client, pod, &patch).await?;
        }
        Ok(())
    }
}

fn selector(job: &Job) -> Result<LabelSelector> {
    claims::selector_of(&job.spec.as_ref().and_then(|it| it.selector.clone()).unwrap_or_default())
}

fn is_held(pod: &Pod) -> bool {
    pod.finalizers().iter().any(|it| it == FINALIZER)
}

/// A pod of the Job; with an index it has a name, a label and a variable for it.
fn pod_of(job: &Job, wanted: &Wanted) -> Pod {
    let template = job.spec.as_ref().map(|it| it.template.clone()).unwrap_or_default();
    let mut pod = pods::pod_of(&template, job);
    pod.metadata.finalizers.get_or_insert_default().push(FINALIZER.to_owned());
    let Some(index) = wanted.index else { return pod };
    pod.metadata.generate_name = Some(format!("{}-{index}-", job.name_any()));
    pod.metadata.annotations.get_or_insert_default().insert(INDEX.to_owned(), index.to_string());
    pod.metadata.labels.get_or_insert_default().insert(INDEX.to_owned(), index.to_string());
    if job.spec.as_ref().is_some_and(|it| it.backoff_limit_per_index.is_some()) {
        pod.metadata.annotations.get_or_insert_default().insert(INDEX_FAILURES.to_owned(), wanted.failures.to_string());
    }
    let spec = pod.spec.get_or_insert_default();
    spec.hostname = Some(format!("{}-{index}", job.name_any()));
    let field = ObjectFieldSelector { field_path: format!("metadata.labels['{INDEX}']"), ..ObjectFieldSelector::default() };
    let source = EnvVarSource { field_ref: Some(field), ..EnvVarSource::default() };
    let variable = EnvVar { name: "JOB_COMPLETION_INDEX".to_owned(), value_from: Some(source), value: None };
    for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
        let variables = container.env.get_or_insert_default();
        if variables.iter().all(|it| it.name != variable.name) {
            variables.push(variable.clone());
        }
    }
    pod
}
