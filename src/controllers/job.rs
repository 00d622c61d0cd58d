//! Jobs: pods that run to their end, as many as asked for. Follows pkg/controller/job.

pub mod indexes;
pub mod plan;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use k8s_openapi::api::{
    batch::v1::{Job, JobStatus},
    core::v1::{EnvVar, EnvVarSource, ObjectFieldSelector, Pod},
};
use kube::{Api, ResourceExt, api::Patch};
use serde_json::json;

use self::plan::{FINALIZER, Failures, INDEX, INDEX_FAILURES, Plan, Wanted, plan};
use super::{
    Controller,
    claims::{self, controller_of},
    pods,
};
use crate::{
    base::clock,
    client::{
        Change, EventType, ObjectKey, Result,
        informer::{BY_NAMESPACE, BY_OWNER, orphan_of},
        writes::{self, CONTROLLER_MANAGER},
    },
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
        let pods = shell.claim(&job).await?;
        let known = shell.own.failures.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned().unwrap_or_default();
        let plan = plan(&job, &pods, known, clock::now());
        shell.write_status(&job, &plan.status).await?;
        shell.own.failures.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone(), plan.failures.clone());
        for (is_warning, reason, message) in &plan.events {
            let kind = if *is_warning { EventType::Warning } else { EventType::Normal };
            shell.events.event(job.as_ref(), kind, reason, message);
        }
        for pod in &plan.release {
            shell.release(pod).await?;
        }
        match is_current.then_some(shell.act(key, &job, &plan)) {
            Some(work) => work.await?,
            None => return Ok(None),
        }
        Ok(plan.again)
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
        self.own.failures.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
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
        let pod = change.object();
        if change.is_deleted() || controller_of(&pod.metadata).is_some() {
            return;
        }
        let jobs = self.informers.jobs.by(BY_NAMESPACE, pod.metadata.namespace.as_deref().unwrap_or_default());
        let selector = |job: &Job| job.spec.as_ref().and_then(|it| it.selector.as_ref()).map(claims::selector_of);
        let matching: Vec<_> = jobs.iter().filter(|it| selector(it).is_some_and(|it| it.is_ok_and(|it| it.matches(pod.labels())))).collect();
        if matching.is_empty() && is_held(pod) {
            self.queue.add(Item::Orphan(ObjectKey::of(pod.as_ref())));
        }
        matching.iter().for_each(|it| self.queue.add(Item::Job(ObjectKey::of(it.as_ref()))));
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

    async fn claim(&self, job: &Job) -> Result<Vec<Arc<Pod>>> {
        let selector = claims::selector_of(&job.spec.as_ref().and_then(|it| it.selector.clone()).unwrap_or_default())?;
        let mut candidates = self.informers.pods.by(BY_OWNER, &job.uid().unwrap_or_default());
        candidates.extend(self.informers.pods.by(BY_OWNER, &orphan_of(&job.namespace().unwrap_or_default())));
        claims::settle(&self.client, job, claims::claims(&job.metadata, &selector, candidates), &[FINALIZER]).await
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
        if !is_held(pod) {
            return Ok(());
        }
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
        let patch = Patch::Strategic(json!({"metadata": {"uid": pod.uid(), "$deleteFromPrimitiveList/finalizers": [FINALIZER]}}));
        writes::unless_not_found(pods.patch(&pod.name_any(), &writes::patching(CONTROLLER_MANAGER), &patch).await)?;
        Ok(())
    }

    async fn act(&self, key: &ObjectKey, job: &Arc<Job>, plan: &Plan) -> Result<()> {
        let failure = match plan.delete.is_empty() {
            true => self.create_all(key, job, plan.create.iter().map(|it| Arc::new(pod_of(job, it))).collect()).await,
            false => self.delete_all(key, job, plan.delete.clone()).await,
        };
        failure.map_or(Ok(()), Err)
    }

    async fn write_status(&self, job: &Job, status: &JobStatus) -> Result<()> {
        if job.status.as_ref() == Some(status) {
            return Ok(());
        }
        writes::status(&self.client, CONTROLLER_MANAGER, &Job { status: Some(status.clone()), ..job.clone() }).await
    }
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
