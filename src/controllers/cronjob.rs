//! CronJobs: Jobs at times of a schedule. Follows pkg/controller/cronjob.

pub mod plan;

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::batch::v1::{CronJob, Job};
use kube::{ResourceExt, api::DeleteParams};

use self::plan::{Plan, plan, started};
use super::{
    Controller,
    claims::{self, controller_of},
};
use crate::{
    base::clock,
    client::{BY_OWNER, EventType, ObjectKey, Result, writes},
};

pub struct CronJobController;
type Shell = super::Shell<CronJobController>;

impl Controller for CronJobController {
    type Key = ObjectKey;
    const NAME: &'static str = "cronjob-controller";

    async fn listen(shell: &Arc<Shell>) {
        shell.on(&shell.informers.jobs, |it, change| {
            claims::owner_key::<CronJob>(&change.object().metadata).into_iter().for_each(|key| it.queue.add(key));
        });
        shell.queue_each(&shell.informers.cron_jobs);
    }

    async fn reconcile(shell: &Arc<Shell>, key: &ObjectKey) -> Result<Option<Duration>> {
        let Some(cron) = shell.informers.cron_jobs.get(key) else { return Ok(None) };
        let uid = cron.uid().unwrap_or_default();
        let mut jobs = shell.informers.jobs.by(BY_OWNER, &uid);
        jobs.retain(|it| controller_of(&it.metadata).is_some_and(|it| it.uid == uid));
        shell.recall(&cron, &mut jobs).await?;
        let Plan { delete, create, mut status, events, again } = plan(&cron, &jobs, clock::now());
        for (kind, reason, message) in events {
            shell.events.event(cron.as_ref(), kind, reason, message);
        }
        for job in &delete {
            shell.delete(&cron, job).await?;
        }
        if let Some((job, at)) = create
            && let Some(made) = shell.create(&cron, &job).await?
        {
            started(&mut status, &made, at);
        }
        writes::status(&shell.client, cron.as_ref(), &CronJob { status: Some(status), ..CronJob::clone(&cron) }).await?;
        Ok(again)
    }
}

impl Shell {
    /// Active Jobs that the cache does not have yet are asked for, lest they be thought missing.
    async fn recall(&self, cron: &CronJob, jobs: &mut Vec<Arc<Job>>) -> Result<()> {
        let active = cron.status.as_ref().and_then(|it| it.active.as_deref()).unwrap_or_default();
        for reference in active {
            if jobs.iter().any(|it| it.metadata.uid == reference.uid) {
                continue;
            }
            let found = self.job(cron, reference.name.as_deref().unwrap_or_default()).await?;
            jobs.extend(found.filter(|it| it.metadata.uid == reference.uid).map(Arc::new));
        }
        Ok(())
    }

    async fn job(&self, cron: &CronJob, name: &str) -> Result<Option<Job>> {
        Ok(writes::api(&self.client, &cron.namespace().unwrap_or_default()).get_opt(name).await?)
    }

    /// The Job made, or the one that was made before and not noted; nothing if another's has the name.
    async fn create(&self, cron: &CronJob, job: &Job) -> Result<Option<Job>> {
        let name = job.name_any();
        match writes::create(&self.client, job).await {
            Ok(made) => {
                self.events.event(cron, EventType::Normal, "SuccessfulCreate", format!("Created job {name}"));
                Ok(Some(made))
            }
            Err(error) if error.is_already_exists() => {
                let present = self.job(cron, &name).await?;
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
        if writes::delete(&self.client, job, DeleteParams::background()).await? {
            self.events.event(cron, EventType::Normal, "SuccessfulDelete", format!("Deleted job {}", job.name_any()));
        }
        Ok(())
    }
}
