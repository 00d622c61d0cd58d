//! What a Job needs next and what is to be said of it: a pure function of the Job and its pods.
//! Follows pkg/controller/job/job_controller.go (`syncJob`, `trackJobStatusAndRemoveFinalizers`), pod_failure_policy.go, success_policy.go.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::{
        batch::v1::{Job, JobCondition, JobSpec, JobStatus, PodFailurePolicyRule, UncountedTerminatedPods},
        core::v1::Pod,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::ResourceExt;

use super::indexes::{self, Indexes};
use crate::controllers::pods;

/// Keeps a pod until its end is counted.
pub const FINALIZER: &str = "batch.kubernetes.io/job-tracking";
pub const INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// How often an index has failed before this pod.
pub const INDEX_FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
/// `MaxPodCreateDeletePerSync`.
const BURST: usize = 500;
/// `MaxUncountedPods`.
const UNCOUNTED_MOST: usize = 500;
/// `DefaultJobPodFailureBackOff` and `MaxJobPodFailureBackOff`, in seconds.
const BACKOFF_FIRST: i64 = 10;
const BACKOFF_MOST: i64 = 600;

/// Failures in a row, and the last of them. Lives in memory only: a new controller forgives once.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Failures {
    pub count: u32,
    pub last: Option<Timestamp>,
}

impl Failures {
    /// When the next pod may be made.
    fn until(&self) -> Option<Timestamp> {
        let seconds = BACKOFF_FIRST.saturating_mul(1 << self.count.checked_sub(1)?.min(10)).min(BACKOFF_MOST);
        self.last?.checked_add(SignedDuration::from_secs(seconds)).ok()
    }
}

/// A pod to make: its index, where the Job has indexes, and how often that has failed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wanted {
    pub index: Option<i32>,
    pub failures: i32,
}

#[derive(Debug)]
pub struct Plan {
    pub status: JobStatus,
    pub create: Vec<Wanted>,
    pub delete: Vec<Arc<Pod>>,
    /// Pods whose end the status has taken up.
    pub release: Vec<Arc<Pod>>,
    pub failures: Failures,
    pub again: Option<Duration>,
    /// (is a warning, reason, message)
    pub events: Vec<(bool, String, String)>,
}

/// Why a Job ends.
#[derive(Clone, Debug, PartialEq)]
struct End {
    is_success: bool,
    reason: String,
    message: String,
}

impl End {
    fn new(is_success: bool, reason: &str, message: impl Into<String>) -> Self {
        Self { is_success, reason: reason.to_owned(), message: message.into() }
    }
}

struct Facts<'a> {
    spec: &'a JobSpec,
    pods: &'a [Arc<Pod>],
    now: Timestamp,
    is_indexed: bool,
    status: JobStatus,
    succeeded: i32,
    failed: i32,
    completed_indexes: Indexes,
    failed_indexes: Indexes,
    end: Option<End>,
}

pub fn index_of(pod: &Pod) -> Option<i32> {
    pod.annotations().get(INDEX)?.parse().ok()
}

fn failures_of(pod: &Pod) -> i32 {
    pod.annotations().get(INDEX_FAILURES).and_then(|it| it.parse().ok()).unwrap_or(0)
}

/// Whether the pod counts as failed: by its end, or by its deletion where replacements do not wait for that.
fn is_failed(spec: &JobSpec, pod: &Pod) -> bool {
    let waits = spec.pod_replacement_policy.as_deref() == Some("Failed");
    pods::phase(pod) == "Failed" || !waits && pod.metadata.deletion_timestamp.is_some() && pods::phase(pod) != "Succeeded"
}

/// Decides over a Job. `failures` are those known so far.
pub fn plan(job: &Job, pods: &[Arc<Pod>], failures: Failures, now: Timestamp) -> Plan {
    let default = JobSpec::default();
    let spec = job.spec.as_ref().unwrap_or(&default);
    let status = job.status.clone().unwrap_or_default();
    let mut facts = Facts {
        spec,
        pods,
        now,
        is_indexed: spec.completion_mode.as_deref() == Some("Indexed"),
        succeeded: status.succeeded.unwrap_or(0),
        failed: status.failed.unwrap_or(0),
        completed_indexes: indexes::parse(status.completed_indexes.as_deref().unwrap_or_default()),
        failed_indexes: indexes::parse(status.failed_indexes.as_deref().unwrap_or_default()),
        end: None,
        status,
    };
    facts.plan(failures)
}

impl Facts<'_> {
    fn plan(&mut self, failures: Failures) -> Plan {
        let mut plan = Plan { status: JobStatus::default(), create: Vec::new(), delete: Vec::new(), release: Vec::new(), failures, again: None, events: Vec::new() };
        self.flush();
        self.take_up(&mut plan);
        self.judge(&mut plan);
        self.suspend(&mut plan);
        match &self.end {
            Some(_) => plan.delete = self.active(),
            None if self.is_suspended() => plan.delete = self.active(),
            None => self.scale(&mut plan),
        }
        self.write(&mut plan);
        plan
    }

    fn active(&self) -> Vec<Arc<Pod>> {
        self.pods.iter().filter(|it| pods::is_active(it)).cloned().collect()
    }

    fn terminating(&self) -> usize {
        self.pods.iter().filter(|it| pods::is_terminating(it)).count()
    }

    fn is_suspended(&self) -> bool {
        self.spec.suspend == Some(true)
    }

    fn condition(&self, kind: &str) -> Option<&JobCondition> {
        self.status.conditions.iter().flatten().find(|it| it.type_ == kind && it.status == "True")
    }

    /// Counts the pods that were taken up before and whose finalizer is gone by now.
    fn flush(&mut self) {
        let uncounted = self.status.uncounted_terminated_pods.take().unwrap_or_default();
        let held: Vec<String> = self.pods.iter().filter(|it| super::is_held(it)).filter_map(|it| it.uid()).collect();
        let split = |uids: Option<Vec<String>>| -> (Vec<String>, i32) {
            let (kept, gone): (Vec<String>, Vec<String>) = uids.unwrap_or_default().into_iter().partition(|it| held.contains(it));
            (kept, gone.len() as i32)
        };
        let ((succeeded, more_succeeded), (failed, more_failed)) = (split(uncounted.succeeded), split(uncounted.failed));
        self.succeeded += more_succeeded;
        self.failed += more_failed;
        self.status.uncounted_terminated_pods = Some(UncountedTerminatedPods { succeeded: Some(succeeded), failed: Some(failed) });
    }

    /// Takes up pods that have ended since: first in the status, then their finalizer goes.
    fn take_up(&mut self, plan: &mut Plan) {
        let mut uncounted = self.status.uncounted_terminated_pods.clone().unwrap_or_default();
        let (succeeded, failed) = (uncounted.succeeded.get_or_insert_default(), uncounted.failed.get_or_insert_default());
        let (mut latest, mut has_succeeded, mut new_failures) = (plan.failures.last, false, 0);
        for pod in self.pods.iter().filter(|it| super::is_held(it)).take(UNCOUNTED_MOST) {
            let uid = pod.uid().unwrap_or_default();
            if succeeded.contains(&uid) || failed.contains(&uid) {
                plan.release.push(pod.clone());
            } else if pods::phase(pod) == "Succeeded" {
                has_succeeded = true;
                plan.release.push(pod.clone());
                match (self.is_indexed, index_of(pod)) {
                    (true, Some(index)) => _ = self.completed_indexes.insert(index),
                    _ => succeeded.push(uid),
                }
            } else if is_failed(self.spec, pod) {
                plan.release.push(pod.clone());
                let verdict = self.failure_policy(pod);
                if verdict != Verdict::Ignore {
                    failed.push(uid);
                    new_failures += 1;
                    latest = latest.max(Some(finished_at(pod).unwrap_or(self.now)));
                }
                self.fail_index(pod, verdict);
            }
        }
        plan.failures = match (has_succeeded, new_failures) {
            (true, _) => Failures::default(),
            (false, 0) => plan.failures.clone(),
            (false, more) => Failures { count: plan.failures.count + more, last: latest },
        };
        self.status.uncounted_terminated_pods = Some(uncounted);
    }

    /// What the pod failure policy says of a pod; the first rule that matches counts.
    fn failure_policy(&mut self, pod: &Pod) -> Verdict {
        let rules = self.spec.pod_failure_policy.iter().flat_map(|it| &it.rules);
        for (at, rule) in rules.enumerate() {
            let Some(why) = matches(rule, pod) else { continue };
            match rule.action.as_str() {
                "FailJob" => {
                    let message = format!("{why} matching FailJob rule at index {at}");
                    self.end.get_or_insert(End::new(false, "PodFailurePolicy", message));
                    return Verdict::Count;
                }
                "Ignore" => return Verdict::Ignore,
                "FailIndex" => return Verdict::FailIndex,
                _ => return Verdict::Count,
            }
        }
        Verdict::Count
    }

    fn fail_index(&mut self, pod: &Pod, verdict: Verdict) {
        let (Some(limit), Some(index)) = (self.spec.backoff_limit_per_index, index_of(pod)) else { return };
        if verdict == Verdict::FailIndex || verdict == Verdict::Count && failures_of(pod) >= limit {
            self.failed_indexes.insert(index);
        }
    }

    fn all_succeeded(&self) -> i32 {
        let uncounted = self.status.uncounted_terminated_pods.as_ref();
        let more = uncounted.and_then(|it| it.succeeded.as_ref()).map_or(0, |it| it.len() as i32);
        if self.is_indexed { self.completed_indexes.len() as i32 } else { self.succeeded + more }
    }

    fn all_failed(&self) -> i32 {
        let uncounted = self.status.uncounted_terminated_pods.as_ref();
        self.failed + uncounted.and_then(|it| it.failed.as_ref()).map_or(0, |it| it.len() as i32)
    }

    /// Whether the Job has come to its end.
    fn judge(&mut self, plan: &mut Plan) {
        let failed = |reason: &str, message: &str| Some(End::new(false, reason, message));
        let told = [("FailureTarget", false), ("SuccessCriteriaMet", true)].into_iter().find_map(|(kind, is_success)| {
            let old = self.condition(kind)?;
            Some(End::new(is_success, old.reason.as_deref().unwrap_or_default(), old.message.clone().unwrap_or_default()))
        });
        self.end = told.or(self.end.take());
        if self.end.is_some() {
            return;
        }
        let backoff_limit = self.spec.backoff_limit.unwrap_or(6);
        self.end = if self.all_failed() > backoff_limit || self.restarts_exceed(backoff_limit) {
            failed("BackoffLimitExceeded", "Job has reached the specified backoff limit")
        } else if self.deadline().is_some_and(|it| it <= self.now) {
            failed("DeadlineExceeded", "Job was active longer than specified deadline")
        } else if self.spec.max_failed_indexes.is_some_and(|it| self.failed_indexes.len() as i32 > it) {
            failed("MaxFailedIndexesExceeded", "Job has exceeded the specified maximal number of failed indexes")
        } else if let Some(at) = self.success_policy() {
            Some(End::new(true, "SuccessPolicy", format!("Matched rules at index {at}")))
        } else if self.is_complete() {
            Some(End::new(true, "CompletionsReached", "Reached expected number of succeeded pods"))
        } else if self.is_indexed && !self.failed_indexes.is_empty() && (self.failed_indexes.len() + self.completed_indexes.len()) as i32 >= self.completions() {
            failed("FailedIndexes", "Job has failed indexes")
        } else {
            None
        };
        if let (None, Some(deadline)) = (&self.end, self.deadline()) {
            plan.again = Some(deadline.duration_since(self.now).unsigned_abs());
        }
    }

    fn completions(&self) -> i32 {
        self.spec.completions.unwrap_or(0)
    }

    fn is_complete(&self) -> bool {
        match self.spec.completions {
            Some(wanted) => self.all_succeeded() >= wanted,
            // A queue of work is empty when one pod says so and the others have ended.
            None => self.all_succeeded() > 0 && self.active().is_empty(),
        }
    }

    fn deadline(&self) -> Option<Timestamp> {
        let began = self.status.start_time.as_ref().filter(|_| !self.is_suspended())?.0;
        began.checked_add(SignedDuration::from_secs(self.spec.active_deadline_seconds?)).ok()
    }

    /// Containers that restart in place count as failures too (`pastBackoffLimitOnFailure`).
    fn restarts_exceed(&self, limit: i32) -> bool {
        let policy = self.spec.template.spec.as_ref().and_then(|it| it.restart_policy.as_deref());
        if policy != Some("OnFailure") {
            return false;
        }
        let running = self.pods.iter().filter(|it| matches!(pods::phase(it), "Running" | "Pending"));
        let restarts: i32 = running
            .flat_map(|it| it.status.iter().flat_map(|it| it.container_statuses.iter().flatten().chain(it.init_container_statuses.iter().flatten())))
            .map(|it| it.restart_count)
            .sum();
        if limit == 0 { restarts > 0 } else { restarts >= limit }
    }

    /// The first rule of the success policy that is met.
    fn success_policy(&self) -> Option<usize> {
        let rules = self.spec.success_policy.as_ref().filter(|_| self.is_indexed)?;
        rules.rules.iter().position(|rule| {
            let of: Option<Indexes> = rule.succeeded_indexes.as_deref().map(indexes::parse);
            let met = self.completed_indexes.iter().filter(|it| of.as_ref().is_none_or(|of| of.contains(it))).count();
            let needed = rule.succeeded_count.map(|it| it.max(0) as usize).or(of.as_ref().map(Indexes::len)).unwrap_or(usize::MAX);
            met >= needed
        })
    }

    /// Keeps the condition Suspended and the time of the start.
    fn suspend(&mut self, plan: &mut Plan) {
        let is_said = self.condition("Suspended").is_some();
        if self.end.is_some() {
            return;
        }
        if self.is_suspended() {
            if !is_said {
                self.set("Suspended", "True", "JobSuspended", "Job suspended");
                self.status.start_time = None;
                plan.events.push((false, "Suspended".to_owned(), "Job suspended".to_owned()));
            }
            return;
        }
        if is_said {
            self.set("Suspended", "False", "JobResumed", "Job resumed");
            self.status.start_time = Some(Time(self.now));
            plan.events.push((false, "Resumed".to_owned(), "Job resumed".to_owned()));
        }
        if self.status.start_time.is_none() {
            self.status.start_time = Some(Time(self.now));
            let deadline = self.spec.active_deadline_seconds.and_then(|it| u64::try_from(it).ok()).map(Duration::from_secs);
            plan.again = deadline.or(plan.again);
        }
    }

    /// Makes as many pods as are missing, or deletes the surplus.
    fn scale(&self, plan: &mut Plan) {
        let active = self.active();
        let parallelism = self.spec.parallelism.unwrap_or(1).max(0) as usize;
        let wanted = match self.spec.completions {
            None if self.all_succeeded() > 0 => active.len(),
            None => parallelism,
            Some(_) if self.is_indexed => parallelism.min((self.completions() as usize).saturating_sub(self.completed_indexes.union(&self.failed_indexes).count())),
            Some(completions) => parallelism.min((completions - self.all_succeeded()).max(0) as usize),
        };
        if active.len() > wanted {
            plan.delete = pods::to_delete(&active, &active, active.len() - wanted, self.now);
            return;
        }
        let waits = self.spec.pod_replacement_policy.as_deref() == Some("Failed");
        let missing = (wanted - active.len()).saturating_sub(if waits { self.terminating() } else { 0 }).min(BURST);
        if missing == 0 {
            return;
        }
        if self.spec.backoff_limit_per_index.is_none()
            && let Some(until) = plan.failures.until().filter(|it| *it > self.now)
        {
            let left = until.duration_since(self.now).unsigned_abs();
            plan.again = Some(plan.again.map_or(left, |it| it.min(left)));
            return;
        }
        plan.create = match self.is_indexed {
            false => vec![Wanted::default(); missing],
            true => self.free_indexes(&active, waits).take(missing).map(|index| Wanted { index: Some(index), failures: self.failures_before(index) }).collect(),
        };
    }

    fn free_indexes(&self, active: &[Arc<Pod>], waits: bool) -> impl Iterator<Item = i32> {
        let mut taken: Indexes = active.iter().filter_map(|it| index_of(it)).collect();
        if waits {
            taken.extend(self.pods.iter().filter(|it| pods::is_terminating(it)).filter_map(|it| index_of(it)));
        }
        taken.extend(self.completed_indexes.iter().chain(&self.failed_indexes));
        (0..self.completions()).filter(move |it| !taken.contains(it))
    }

    fn failures_before(&self, index: i32) -> i32 {
        if self.spec.backoff_limit_per_index.is_none() {
            return 0;
        }
        let ended = self.pods.iter().filter(|it| index_of(it) == Some(index) && is_failed(self.spec, it));
        ended.map(|it| failures_of(it) + 1).max().unwrap_or(0)
    }

    fn set(&mut self, kind: &str, status: &str, reason: &str, message: &str) {
        let now = Time(self.now);
        let all = self.status.conditions.get_or_insert_default();
        let new = JobCondition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            last_probe_time: Some(now.clone()),
            last_transition_time: Some(now),
        };
        match all.iter_mut().find(|it| it.type_ == kind) {
            Some(old) if old.status == status => (),
            Some(old) => *old = new,
            None => all.push(new),
        }
    }

    /// The status, with the conditions of an end: first that it is meant, and once all pods are gone and counted that it is so.
    fn write(&mut self, plan: &mut Plan) {
        let active = self.active();
        let is_settled = plan.release.is_empty() && active.is_empty() && self.terminating() == 0;
        if let Some(End { is_success, reason, message }) = self.end.clone() {
            let (meant, done) = if is_success { ("SuccessCriteriaMet", "Complete") } else { ("FailureTarget", "Failed") };
            self.set(meant, "True", &reason, &message);
            if is_settled && self.condition(done).is_none() {
                self.set(done, "True", &reason, &message);
                self.status.completion_time = is_success.then(|| Time(self.now)).or(self.status.completion_time.take());
                plan.events.push(if is_success { (false, "Completed".to_owned(), "Job completed".to_owned()) } else { (true, reason, message) });
            }
        }
        let some = |count: i32| Some(count).filter(|it| *it != 0);
        let ready = active.iter().filter(|it| pods::is_ready(it)).count() as i32;
        let text = |all: &Indexes| Some(indexes::format(all)).filter(|it| !it.is_empty());
        let uncounted = self.status.uncounted_terminated_pods.take().unwrap_or_default();
        let non_empty = |it: Option<Vec<String>>| it.filter(|it| !it.is_empty());
        plan.status = JobStatus {
            active: some(active.len() as i32 - plan.delete.len() as i32),
            ready: Some(ready),
            terminating: Some((self.terminating() + plan.delete.len()) as i32),
            succeeded: some(if self.is_indexed { self.completed_indexes.len() as i32 } else { self.succeeded }),
            failed: some(self.failed),
            completed_indexes: text(&self.completed_indexes).filter(|_| self.is_indexed),
            failed_indexes: if self.spec.backoff_limit_per_index.is_some() { Some(indexes::format(&self.failed_indexes)) } else { None },
            uncounted_terminated_pods: Some(UncountedTerminatedPods { succeeded: non_empty(uncounted.succeeded), failed: non_empty(uncounted.failed) }),
            ..self.status.clone()
        };
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Count,
    Ignore,
    FailIndex,
}

/// Why a rule of a pod failure policy applies to a pod.
fn matches(rule: &PodFailurePolicyRule, pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let place = format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any());
    if let Some(codes) = &rule.on_exit_codes {
        let containers = status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten());
        let of_name = containers.filter(|it| codes.container_name.as_ref().is_none_or(|name| *name == it.name));
        let ended = of_name.filter_map(|it| Some((&it.name, it.state.as_ref()?.terminated.as_ref()?.exit_code)));
        let fits = |code: i32| code != 0 && (codes.operator == "In") == codes.values.contains(&code);
        let (name, code) = ended.into_iter().find(|(_, code)| fits(*code))?;
        return Some(format!("Container {name} for pod {place} failed with exit code {code}"));
    }
    let conditions: BTreeMap<&str, &str> = status.conditions.iter().flatten().map(|it| (it.type_.as_str(), it.status.as_str())).collect();
    let mut patterns = rule.on_pod_conditions.iter().flatten();
    let met = patterns.find(|it| conditions.get(it.type_.as_str()) == Some(&it.status.as_deref().unwrap_or("True")))?;
    Some(format!("Pod {place} has condition {}", met.type_))
}

/// When the last container of a pod ended.
fn finished_at(pod: &Pod) -> Option<Timestamp> {
    let statuses = pod.status.as_ref()?.container_statuses.iter().flatten();
    let ends = statuses.filter_map(|it| it.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref());
    ends.map(|it| it.0).max().or_else(|| pod.metadata.deletion_timestamp.as_ref().map(|it| it.0))
}

/// Whether the Job has ended.
pub fn is_finished(job: &Job) -> bool {
    finished(job).is_some()
}

/// `Complete` or `Failed`, and since when.
pub fn finished(job: &Job) -> Option<(&str, Option<Timestamp>)> {
    let conditions = job.status.iter().flat_map(|it| it.conditions.iter().flatten());
    let mut ends = conditions.filter(|it| matches!(it.type_.as_str(), "Complete" | "Failed") && it.status == "True");
    ends.next().map(|it| (it.type_.as_str(), it.last_transition_time.as_ref().map(|it| it.0)))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn now() -> Timestamp {
        "2026-01-01T01:00:00Z".parse().expect("a time")
    }

    fn job(spec: Value, status: Value) -> Job {
        let mut all = json!({"parallelism": 2, "completions": 3, "backoffLimit": 1, "template": {"spec": {"restartPolicy": "Never", "containers": []}}, "selector": {}});
        spec.as_object().expect("a map").iter().for_each(|(key, value)| all[key] = value.clone());
        serde_json::from_value(json!({"metadata": {"name": "j", "uid": "u"}, "spec": all, "status": status})).expect("a Job")
    }

    fn pod(name: &str, phase: &str, index: Option<i32>) -> Arc<Pod> {
        let annotations = index.map_or_else(|| json!({}), |it| json!({INDEX: it.to_string()}));
        let status = json!({"phase": phase, "containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": if phase == "Failed" { json!({"terminated": {"exitCode": 3, "finishedAt": "2026-01-01T00:59:59Z"}}) } else { json!({}) }}]});
        Arc::new(serde_json::from_value(json!({"metadata": {"name": name, "namespace": "n", "uid": name, "finalizers": [FINALIZER], "annotations": annotations}, "status": status})).expect("a Pod"))
    }

    fn said(plan: &Plan) -> String {
        let conditions: Vec<String> = plan.status.conditions.iter().flatten().filter(|it| it.status == "True").map(|it| format!("{} {}", it.type_, it.reason.clone().unwrap_or_default())).collect();
        let create: Vec<String> = plan.create.iter().map(|it| it.index.map_or_else(|| "*".to_owned(), |it| it.to_string())).collect();
        format!("create [{}] delete {} release {} {}", create.join(","), plan.delete.len(), plan.release.len(), conditions.join(", ")).trim_end().to_owned()
    }

    #[test]
    fn pods_are_made_until_the_job_is_complete() {
        let running = |name: &str| pod(name, "Running", None);
        let done = |name: &str| pod(name, "Succeeded", None);
        let cases = [
            (json!({}), json!({}), vec![], "create [*,*] delete 0 release 0"),
            (json!({}), json!({}), vec![running("a"), done("b")], "create [*] delete 0 release 1"),
            (json!({"parallelism": 1}), json!({}), vec![running("a"), running("b")], "create [] delete 1 release 0"),
            (json!({}), json!({"succeeded": 3}), vec![], "create [] delete 0 release 0 SuccessCriteriaMet CompletionsReached, Complete CompletionsReached"),
            (json!({}), json!({"succeeded": 2}), vec![done("c")], "create [] delete 0 release 1 SuccessCriteriaMet CompletionsReached"),
            (json!({"suspend": true}), json!({}), vec![running("a")], "create [] delete 1 release 0 Suspended JobSuspended"),
            (json!({}), json!({"failed": 2}), vec![running("a")], "create [] delete 1 release 0 FailureTarget BackoffLimitExceeded"),
            (json!({}), json!({}), vec![pod("a", "Failed", None)], "create [] delete 0 release 1"),
            (json!({"activeDeadlineSeconds": 5}), json!({"startTime": "2026-01-01T00:00:00Z"}), vec![], "create [] delete 0 release 0 FailureTarget DeadlineExceeded, Failed DeadlineExceeded"),
        ];
        for (spec, status, pods, expected) in cases {
            assert_eq!(said(&plan(&job(spec.clone(), status), &pods, Failures::default(), now())), expected, "{spec}");
        }
    }

    #[test]
    fn indexes_are_done_one_by_one() {
        let indexed = json!({"completionMode": "Indexed", "completions": 4});
        let made = plan(&job(indexed.clone(), json!({"completedIndexes": "1"})), &[pod("a", "Running", Some(0))], Failures::default(), now());
        assert_eq!(said(&made), "create [2] delete 0 release 0");
        let ended = plan(&job(indexed, json!({})), &[pod("a", "Succeeded", Some(2))], Failures::default(), now());
        assert_eq!((ended.status.completed_indexes.as_deref(), ended.status.succeeded), (Some("2"), Some(1)));
        let per_index = json!({"completionMode": "Indexed", "completions": 2, "backoffLimit": i32::MAX, "backoffLimitPerIndex": 0});
        let failed = plan(&job(per_index, json!({"completedIndexes": "0"})), &[pod("a", "Failed", Some(1))], Failures::default(), now());
        assert_eq!(said(&failed), "create [] delete 0 release 1 FailureTarget FailedIndexes");
    }

    #[test]
    fn ends_are_counted_once_their_finalizer_is_gone() {
        let before = plan(&job(json!({}), json!({})), &[pod("a", "Succeeded", None)], Failures::default(), now());
        let uncounted = |it: &JobStatus| it.uncounted_terminated_pods.clone().and_then(|it| it.succeeded);
        assert_eq!((before.status.succeeded, uncounted(&before.status)), (None, Some(vec!["a".to_owned()])));
        let status = serde_json::to_value(&before.status).expect("a status");
        let after = plan(&job(json!({}), status), &[], Failures::default(), now());
        assert_eq!((after.status.succeeded, uncounted(&after.status)), (Some(1), None));
    }

    #[test]
    fn failures_are_judged_by_policy() {
        let rule = |action: &str| json!({"podFailurePolicy": {"rules": [{"action": action, "onExitCodes": {"operator": "In", "values": [3]}}]}});
        let failing = [pod("a", "Failed", None)];
        let fail = plan(&job(rule("FailJob"), json!({})), &failing, Failures::default(), now());
        assert_eq!(said(&fail), "create [] delete 0 release 1 FailureTarget PodFailurePolicy");
        assert_eq!(fail.status.conditions.expect("conditions")[0].message.as_deref(), Some("Container c for pod n/a failed with exit code 3 matching FailJob rule at index 0"));
        let ignored = plan(&job(rule("Ignore"), json!({})), &failing, Failures::default(), now());
        assert_eq!((said(&ignored).as_str(), ignored.failures.count), ("create [*,*] delete 0 release 1", 0));
    }
}
