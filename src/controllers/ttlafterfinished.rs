//! Jobs that are to go some time after they have ended. Follows pkg/controller/ttlafterfinished.

use std::{sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::Job;
use kube::{
    ResourceExt,
    api::{DeleteParams, Preconditions},
};

use super::{Controller, job::plan::finished};
use crate::{
    base::clock,
    client::{ObjectKey, Result, writes},
    meta::cron::until,
};

pub struct TtlAfterFinishedController;
type Shell = super::Shell<TtlAfterFinishedController>;

impl Controller for TtlAfterFinishedController {
    type Key = ObjectKey;
    const NAME: &'static str = "ttl-after-finished-controller";

    async fn listen(shell: &Arc<Shell>) {
        shell.on(&shell.informers.jobs, |it, change| {
            if !change.is_deleted() && due(change.object()).is_some() {
                it.queue.add(ObjectKey::of(change.object().as_ref()));
            }
        });
    }

    async fn reconcile(shell: &Arc<Shell>, key: &ObjectKey) -> Result<Option<Duration>> {
        let Some(job) = shell.informers.jobs.get(key).filter(|it| it.metadata.deletion_timestamp.is_none()) else { return Ok(None) };
        let Some(due) = due(&job) else { return Ok(None) };
        let now = clock::now();
        if due > now {
            return Ok(Some(until(due, now)));
        }
        // What has changed since it was cached may not be meant to go any more: it is looked at again.
        let same = Preconditions { resource_version: job.resource_version(), uid: None };
        writes::delete(&shell.client, job.as_ref(), DeleteParams { preconditions: Some(same), ..DeleteParams::foreground() }).await?;
        Ok(None)
    }
}

/// When the Job is to go, if it has ended and says so.
fn due(job: &Job) -> Option<Timestamp> {
    let seconds = job.spec.as_ref()?.ttl_seconds_after_finished?;
    finished(job)?.1?.checked_add(SignedDuration::from_secs(seconds.into())).ok()
}
