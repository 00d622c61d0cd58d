//! CronJobs: Jobs at times of a schedule. Follows pkg/controller/cronjob.

pub mod plan;

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::batch::v1::{CronJob, CronJobStatus, Job};
use kube::{Api, ResourceExt};

use self::plan::{Plan, plan, started};
use super::{
    Context, Controller, Informers,
    claims::{self, controller_of},
};
use crate::{
    base::clock,
    client::{
        Change, Error, EventRecorder, EventType, ObjectKey, Result, WorkQueue,
        informer::BY_OWNER,
        writes::{self, CONTROLLER_MANAGER},
    },
};

/// `ConcurrentCronJobSyncs`.
const WORKERS: usize = 5;

pub struct CronJobController;

impl Controller for CronJobController {
    fn name(&self) -> &'static str {
        "cronjob-controller"
    }

    fn start(&self, context: &Context) {
        let shell = Arc::new(Shell {
            client: context.client(self.name()),
            events: context.recorder(self.name()),
            informers: context.informers.clone(),
            queue: WorkQueue::new(),
        });
        let tasks = context.tasks.clone();
        context.spawn_synced(self.name(), move || {
            let jobs = shell.clone();
            shell.informers.jobs.subscribe(move |change| jobs.job_changed(change));
            let crons = shell.clone();
            shell.informers.cron_jobs.subscribe(move |change| crons.queue.add(ObjectKey::of(change.object().as_ref())));
            shell.queue.clone().run(&tasks, "cronjob-controller", WORKERS, move |key| {
                let shell = shell.clone();
                async move { shell.reconcile(&key).await }
            });
        });
    }
}

struct Shell {
    client: kube::Client,
    events: EventRecorder,
    informers: Informers,
    queue: WorkQueue<ObjectKey>,
}

impl Shell {
    fn job_changed(&self, change: &Change<Job>) {
        if let Some(key) = claims::owner_key::<CronJob>(&change.object().metadata) {
            self.queue.add(key);
        }
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>> {
        let Some(cron) = self.informers.cron_jobs.get(key) else { return Ok(None) };
        let uid = cron.uid().unwrap_or_default();
        let mut jobs = self.informers.jobs.by(BY_OWNER, &uid);
        jobs.retain(|it| controller_of(&it.metadata).is_some_and(|it| it.uid == uid));
        self.recall(&cron, &mut jobs).await?;
        let Plan { delete, create, mut status, events, again } = plan(&cron, &jobs, clock::now());
        for (kind, reason, message) in events {
            self.events.event(cron.as_ref(), kind, reason, message);
        }
        for job in &delete {
            self.delete(&cron, job).await?;
        }
        if let Some((job, at)) = create
            && let Some(made) = self.create(&cron, &job).await?
        {
            started(&mut status, &made, at);
        }
        self.write_status(&cron, status).await?;
        Ok(again)
    }

    /// Active Jobs that the cache does not have yet are asked for, lest they be thought missing.
    async fn recall(&self, cron: &CronJob, jobs: &mut Vec<Arc<Job>>) -> Result<()> {
        let active = cron.status.as_ref().and_then(|it| it.active.as_deref()).unwrap_or_default();
        for reference in active {
            if jobs.iter().any(|it| it.metadata.uid == reference.uid) {
                continue;
            }
            let found = self.jobs(cron).get_opt(reference.name.as_deref().unwrap_or_default()).await?;
            jobs.extend(found.filter(|it| it.metadata.uid == reference.uid).map(Arc::new));
        }
        Ok(())
    }

    fn jobs(&self, cron: &CronJob) -> Api<Job> {
        Api::namespaced(self.client.clone(), &cron.namespace().unwrap_or_default())
    }

    /// The Job made, or the one that was made before and not noted; nothing if another's has the name.
    async fn create(&self, cron: &CronJob, job: &Job) -> Result<Option<Job>> {
        let name = job.name_any();
        match self.jobs(cron).create(&writes::posting(CONTROLLER_MANAGER), job).await.map_err(Error::from) {
            Ok(made) => {
                self.events.event(cron, EventType::Normal, "SuccessfulCreate", format!("Created job {name}"));
                Ok(Some(made))
            }
            Err(error) if error.is_already_exists() => {
                let present = self.jobs(cron).get_opt(&name).await?;
                Ok(present.filter(|it| controller_of(&it.metadata).is_some_and(|owner| Some(&owner.uid) == cron.metadata.uid.as_ref())))
            }
            Err(error) if error.is_namespace_terminating() => Ok(None),
            Err(error) => {
                self.events.event(cron, EventType::Warning, "FailedCreate", format!("Error creating job: {}", error.message()));
                Err(error)
            }
        }
    }

    async fn delete(&self, cron: &CronJob, job: &Job) -> Result<()> {
        let name = job.name_any();
        let options = kube::api::DeleteParams { propagation_policy: Some(kube::api::PropagationPolicy::Background), ..writes::deleting(job.metadata.uid.as_deref()) };
        if writes::unless_not_found(self.jobs(cron).delete(&name, &options).await)?.is_some() {
            self.events.event(cron, EventType::Normal, "SuccessfulDelete", format!("Deleted job {name}"));
        }
        Ok(())
    }

    async fn write_status(&self, cron: &CronJob, status: CronJobStatus) -> Result<()> {
        if cron.status.clone().unwrap_or_default() == status {
            return Ok(());
        }
        writes::status(&self.client, CONTROLLER_MANAGER, &CronJob { status: Some(status), ..cron.clone() }).await
    }
}
