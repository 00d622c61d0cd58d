//! What a CronJob needs next: pure, from the CronJob and its Jobs to a Job, deletions and a status.
//! Follows pkg/controller/cronjob/{cronjob_controllerv2,utils}.go.

use std::{sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::{
        batch::v1::{CronJob, CronJobSpec, CronJobStatus, Job},
        core::v1::ObjectReference,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{Resource, ResourceExt, api::ObjectMeta};

use crate::{
    client::EventType,
    controllers::{claims::controller_ref, job::plan::finished},
    meta::cron::{Schedule, until},
};

/// The annotation of the time for which a Job was made.
const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// More missed times than this are a sign of something wrong.
const MISSED_MANY: i64 = 100;
/// `nextScheduleDelta`: the next look is so much after the time, lest a clock that differs a little see it as yet to come.
const DELTA: Duration = Duration::from_millis(100);

pub type Event = (EventType, &'static str, String);

#[derive(Default)]
pub struct Plan {
    pub delete: Vec<Arc<Job>>,
    /// The Job to make now, and for what time it is.
    pub create: Option<(Box<Job>, Timestamp)>,
    pub status: CronJobStatus,
    pub events: Vec<Event>,
    /// When to look again.
    pub again: Option<Duration>,
}

/// `syncCronJob` and `cleanupFinishedJobs`.
pub fn plan(cron: &CronJob, jobs: &[Arc<Job>], now: Timestamp) -> Plan {
    let mut plan = Plan { status: cron.status.clone().unwrap_or_default(), ..Plan::default() };
    let spec = &cron.spec;
    settle(jobs, &mut plan);
    plan.delete = surplus(spec, jobs);
    if cron.metadata.deletion_timestamp.is_none() && spec.suspend != Some(true) {
        match Schedule::parse(&spec.schedule, spec.time_zone.as_deref()) {
            Ok(schedule) => run(cron, spec, &schedule, jobs, now, &mut plan),
            Err(error) => plan.events.push((EventType::Warning, "UnparseableSchedule", format!("unparseable schedule: {:?} : {error}", spec.schedule))),
        }
    }
    plan
}

/// Brings the list of active Jobs up to date.
fn settle(jobs: &[Arc<Job>], plan: &mut Plan) {
    let mut active = plan.status.active.take().unwrap_or_default();
    let is_active = |active: &[ObjectReference], job: &Job| active.iter().any(|it| it.uid == job.metadata.uid);
    for job in jobs {
        let name = job.name_any();
        let Some((condition, _)) = finished(job) else {
            if !is_active(&active, job) {
                plan.events.push((EventType::Warning, "UnexpectedJob", format!("Saw a job that the controller did not create or forgot: {name}")));
            }
            continue;
        };
        if is_active(&active, job) {
            active.retain(|it| it.uid != job.metadata.uid);
            plan.events.push((EventType::Normal, "SawCompletedJob", format!("Saw completed job: {name}, condition: {condition}")));
        }
        let completed = job.status.as_ref().and_then(|it| it.completion_time.clone()).filter(|_| condition == "Complete");
        plan.status.last_successful_time = plan.status.last_successful_time.take().into_iter().chain(completed).max_by_key(|it| it.0);
    }
    active.retain(|it| {
        let is_there = jobs.iter().any(|job| job.metadata.uid == it.uid);
        if !is_there {
            let name = it.name.as_deref().unwrap_or_default();
            plan.events.push((EventType::Normal, "MissingJob", format!("Active job went missing: {name}")));
        }
        is_there
    });
    plan.status.active = Some(active).filter(|it| !it.is_empty());
}

/// The oldest finished Jobs, beyond those that the history keeps.
fn surplus(spec: &CronJobSpec, jobs: &[Arc<Job>]) -> Vec<Arc<Job>> {
    let of = |kind: &str, limit: Option<i32>| {
        let mut done: Vec<&Arc<Job>> = jobs.iter().filter(|it| finished(it).is_some_and(|it| it.0 == kind)).collect();
        done.sort_by_key(|it| (it.status.as_ref().and_then(|it| it.start_time.clone()), it.name_any()));
        let count = limit.map_or(0, |it| done.len().saturating_sub(it.max(0) as usize));
        done.into_iter().take(count).cloned().collect::<Vec<_>>()
    };
    [of("Complete", spec.successful_jobs_history_limit), of("Failed", spec.failed_jobs_history_limit)].concat()
}

fn run(cron: &CronJob, spec: &CronJobSpec, schedule: &Schedule, jobs: &[Arc<Job>], now: Timestamp, plan: &mut Plan) {
    let due = most_recent(cron, spec, schedule, now, true);
    let last = most_recent(cron, spec, schedule, now, false);
    plan.again = schedule.next(last.at.unwrap_or(last.earliest)).map(|next| until(next, now) + DELTA);
    let Some(at) = due.at else { return };
    if due.missed > MISSED_MANY {
        let why = "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
        plan.events.push((EventType::Warning, "TooManyMissedTimes", why.to_owned()));
    }
    if spec.starting_deadline_seconds.is_some_and(|it| at + SignedDuration::from_secs(it) < now) {
        let shown = at.strftime("%a, %d %b %Y %H:%M:%S UTC");
        return plan.events.push((EventType::Warning, "MissSchedule", format!("Missed scheduled time to start a job: {shown}")));
    }
    let name = job_name(cron, at);
    let active = plan.status.active.as_deref().unwrap_or_default();
    if active.iter().any(|it| it.name.as_ref() == Some(&name)) || plan.status.last_schedule_time.as_ref().is_some_and(|it| it.0 == at) {
        return;
    }
    match spec.concurrency_policy.as_deref() {
        Some("Forbid") if !active.is_empty() => {
            let why = "Not starting job because prior execution is running and concurrency policy is Forbid";
            return plan.events.push((EventType::Normal, "JobAlreadyActive", why.to_owned()));
        }
        Some("Replace") => {
            let running = jobs.iter().filter(|job| active.iter().any(|it| it.uid == job.metadata.uid));
            plan.delete.extend(running.cloned());
            plan.status.active = None;
        }
        _ => (),
    }
    plan.create = Some((Box::new(job(cron, spec, schedule, name, at)), at));
}

/// The last time that has come, counted from what was last done.
struct Recent {
    earliest: Timestamp,
    at: Option<Timestamp>,
    missed: i64,
}

/// `mostRecentScheduleTime`.
fn most_recent(cron: &CronJob, spec: &CronJobSpec, schedule: &Schedule, now: Timestamp, with_deadline: bool) -> Recent {
    let created = cron.metadata.creation_timestamp.as_ref().map_or(now, |it| it.0);
    let mut earliest = cron.status.as_ref().and_then(|it| it.last_schedule_time.as_ref()).map_or(created, |it| it.0);
    if let Some(deadline) = spec.starting_deadline_seconds.filter(|_| with_deadline) {
        earliest = earliest.max(now - SignedDuration::from_secs(deadline));
    }
    let none = |earliest| Recent { earliest, at: None, missed: 0 };
    let Some(first) = schedule.next(earliest).filter(|it| *it <= now) else { return none(earliest) };
    let Some(second) = schedule.next(first).filter(|it| *it <= now) else { return Recent { earliest, at: Some(first), missed: 0 } };
    let between = second.duration_since(first).as_secs().max(1);
    let missed = now.duration_since(first).as_secs() / between + 1;
    let mut at = first + SignedDuration::from_secs((missed - 2).max(0) * between);
    if missed < 2 || schedule.next(at).is_none_or(|it| it > now) {
        at = first;
    }
    while let Some(next) = schedule.next(at).filter(|it| *it <= now) {
        at = next;
    }
    Recent { earliest, at: Some(at), missed }
}

/// The same time gives the same name, so that no time has two Jobs.
fn job_name(cron: &CronJob, at: Timestamp) -> String {
    format!("{}-{}", cron.name_any(), at.as_second() / 60)
}

fn job(cron: &CronJob, spec: &CronJobSpec, schedule: &Schedule, name: String, at: Timestamp) -> Job {
    let template = spec.job_template.metadata.clone().unwrap_or_default();
    let mut annotations = template.annotations.unwrap_or_default();
    annotations.insert(SCHEDULED.to_owned(), schedule.shown(at));
    let metadata = ObjectMeta {
        name: Some(name),
        namespace: cron.namespace(),
        labels: template.labels,
        annotations: Some(annotations),
        owner_references: Some(vec![controller_ref(cron)]),
        ..ObjectMeta::default()
    };
    Job { metadata, spec: spec.job_template.spec.clone(), status: None }
}

/// Notes that a Job was made for a time.
pub fn started(status: &mut CronJobStatus, job: &Job, at: Timestamp) {
    let reference = ObjectReference { resource_version: job.resource_version(), ..job.object_ref(&()) };
    status.active.get_or_insert_default().push(reference);
    status.last_schedule_time = Some(Time(at));
}

#[cfg(test)]
mod tests;
