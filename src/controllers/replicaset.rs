//! ReplicaSets and ReplicationControllers: as many pods as asked for. Follows pkg/controller/replicaset and pkg/controller/replication.

use std::{borrow::Cow, marker::PhantomData, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus},
        core::v1::Pod,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::ResourceExt;

use super::{
    Controller, Informers,
    claims::{self, controller_of},
    pods,
};
use crate::{
    base::clock,
    client::{BY_OWNER, Cached, Change, Error, Informer, ObjectKey, Result, writes},
    meta::LabelSelector,
};

/// `BurstReplicas`: at most so many pods are made or deleted in one go.
const BURST: usize = 500;
/// Changes of pods within so short a time become one update of the status.
const COALESCE: Duration = Duration::from_millis(20);

/// A kind whose objects ask for a number of equal pods.
pub trait Replicated: Cached + PartialEq {
    /// The name of the controller of the kind.
    const CONTROLLER: &'static str;

    fn informer(informers: &Informers) -> &Informer<Self>;

    /// The object as the ReplicaSet that it amounts to.
    fn set(&self) -> Cow<'_, ReplicaSet>;

    fn with_status(&self, status: ReplicaSetStatus) -> Self;
}

impl Replicated for ReplicaSet {
    const CONTROLLER: &'static str = "replicaset-controller";

    fn informer(informers: &Informers) -> &Informer<Self> {
        &informers.replica_sets
    }

    fn set(&self) -> Cow<'_, ReplicaSet> {
        Cow::Borrowed(self)
    }

    fn with_status(&self, status: ReplicaSetStatus) -> Self {
        Self { status: Some(status), ..self.clone() }
    }
}

/// The controller of one kind of [`Replicated`].
pub struct ReplicaSetController<K>(pub PhantomData<K>);

type Shell<K> = super::Shell<ReplicaSetController<K>>;

impl<K: Replicated> Controller for ReplicaSetController<K> {
    type Key = ObjectKey;
    const NAME: &'static str = K::CONTROLLER;

    async fn listen(shell: &Arc<Shell<K>>) {
        shell.on(K::informer(&shell.informers), Shell::set_changed);
        shell.on(&shell.informers.pods, Shell::pod_changed);
    }

    async fn reconcile(shell: &Arc<Shell<K>>, key: &ObjectKey) -> Result<Option<Duration>> {
        let Some(owner) = K::informer(&shell.informers).get(key) else {
            shell.expectations.forget(key);
            return Ok(None);
        };
        let set = owner.set();
        let is_current = shell.expectations.are_satisfied(key);
        let (active, terminating) = shell.claim(&owner, &set).await?;
        let now = clock::now();
        let failure = match is_current && set.metadata.deletion_timestamp.is_none() {
            true => shell.act(key, &owner, plan(&set, &active, || shell.related(&set), now)).await,
            false => None,
        };
        let status = status(&set, &active, terminating, failure.as_ref().map(Error::message).as_deref(), now);
        writes::status(&shell.client, owner.as_ref(), &owner.with_status(status)).await?;
        match failure {
            Some(error) => Err(error),
            None => Ok(next_check(&set, &active, now)),
        }
    }
}

/// What the number of pods asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum Plan {
    Nothing,
    Create(usize),
    Delete(Vec<Arc<Pod>>),
}

/// `manageReplicas`. `related` are the pods of all ReplicaSets of the same Deployment.
pub fn plan(set: &ReplicaSet, active: &[Arc<Pod>], related: impl FnOnce() -> Vec<Arc<Pod>>, now: Timestamp) -> Plan {
    let wanted = replicas(set);
    if active.len() < wanted {
        return Plan::Create((wanted - active.len()).min(BURST));
    }
    match (active.len() - wanted).min(BURST) {
        0 => Plan::Nothing,
        surplus => Plan::Delete(pods::to_delete(active, &related(), surplus, now)),
    }
}

/// `calculateStatus`: what the pods and the outcome of the plan make of the status.
pub fn status(set: &ReplicaSet, active: &[Arc<Pod>], terminating: usize, failure: Option<&str>, now: Timestamp) -> ReplicaSetStatus {
    let old = set.status.clone().unwrap_or_default();
    let min_ready = set.spec.as_ref().and_then(|it| it.min_ready_seconds).unwrap_or(0);
    let labels = template_selector(set);
    let count = |is: &dyn Fn(&Pod) -> bool| active.iter().filter(|it| is(it)).count() as i32;
    ReplicaSetStatus {
        replicas: active.len() as i32,
        fully_labeled_replicas: some(count(&|pod| labels.matches(pod.labels()))),
        ready_replicas: some(count(&pods::is_ready)),
        available_replicas: some(count(&|pod| pods::is_available(pod, min_ready, now))),
        terminating_replicas: Some(terminating as i32),
        observed_generation: set.metadata.generation,
        conditions: conditions(set, old.conditions.unwrap_or_default(), active.len(), failure, now),
    }
}

/// Numbers that the API omits when they are zero.
fn some(count: i32) -> Option<i32> {
    Some(count).filter(|it| *it != 0)
}

fn conditions(
    set: &ReplicaSet,
    mut old: Vec<ReplicaSetCondition>,
    active: usize,
    failure: Option<&str>,
    now: Timestamp,
) -> Option<Vec<ReplicaSetCondition>> {
    let is_failing = old.iter().any(|it| it.type_ == "ReplicaFailure");
    match failure {
        Some(message) if !is_failing => {
            let reason = if active < replicas(set) { "FailedCreate" } else { "FailedDelete" };
            old.push(ReplicaSetCondition {
                type_: "ReplicaFailure".to_owned(),
                status: "True".to_owned(),
                reason: Some(reason.to_owned()),
                message: Some(message.to_owned()),
                last_transition_time: Some(Time(now)),
            });
        }
        None => old.retain(|it| it.type_ != "ReplicaFailure"),
        Some(_) => (),
    }
    Some(old).filter(|it| !it.is_empty())
}

fn replicas(set: &ReplicaSet) -> usize {
    set.spec.as_ref().and_then(|it| it.replicas).unwrap_or(1).max(0) as usize
}

fn template_selector(set: &ReplicaSet) -> LabelSelector {
    let meta = set.spec.as_ref().and_then(|it| it.template.as_ref()).and_then(|it| it.metadata.as_ref());
    LabelSelector::from_map(meta.iter().flat_map(|it| it.labels.iter().flatten()).map(|(key, value)| (key.as_str(), value.as_str())))
}

/// When the next ready pod becomes available.
fn next_check(set: &ReplicaSet, active: &[Arc<Pod>], now: Timestamp) -> Option<Duration> {
    let min_ready = set.spec.as_ref().and_then(|it| it.min_ready_seconds).filter(|it| *it > 0)?;
    let due = active.iter().filter_map(|pod| pods::available_at(pod, min_ready)).filter(|at| *at > now).min()?;
    Some(due.duration_since(now).unsigned_abs())
}

impl<K: Replicated> Shell<K> {
    fn set_changed(&self, change: &Change<K>) {
        let key = ObjectKey::of(change.object().as_ref());
        if change.is_deleted() || change.old().is_some_and(|old| old.uid() != change.object().uid()) {
            self.expectations.forget(&key);
        }
        self.queue.add(key);
    }

    fn pod_changed(&self, change: &Change<Pod>) {
        let pod = change.object();
        if let Some(old) = change.old()
            && controller_of(&old.metadata) != controller_of(&pod.metadata)
            && let Some(key) = claims::owner_key::<K>(&old.metadata)
        {
            self.queue.add(key);
        }
        let Some(key) = claims::owner_key::<K>(&pod.metadata) else {
            return self.queue.add_all(claims::adopters(K::informer(&self.informers), change, |it: &K| selector(&it.set())));
        };
        match self.observe(&key, change) {
            true => self.queue.add(key),
            false => self.queue.add_after(key, COALESCE),
        }
    }

    /// The active pods of the set, after adoption and release, and the number of terminating ones.
    async fn claim(&self, owner: &Arc<K>, set: &ReplicaSet) -> Result<(Vec<Arc<Pod>>, usize)> {
        let selector = selector(set)?;
        let own = self.informers.pods.by(BY_OWNER, &set.uid().unwrap_or_default());
        let terminating = own.iter().filter(|it| pods::is_terminating(it) && selector.matches(it.labels())).count();
        Ok((claims::claim(&self.client, owner.as_ref(), &selector, &self.informers.pods, pods::is_active, &[]).await?, terminating))
    }

    fn related(&self, set: &ReplicaSet) -> Vec<Arc<Pod>> {
        let Some(owner) = controller_of(&set.metadata) else {
            return self.informers.pods.by(BY_OWNER, &set.uid().unwrap_or_default());
        };
        let sets = K::informer(&self.informers).by(BY_OWNER, &owner.uid);
        sets.iter().flat_map(|it| self.informers.pods.by(BY_OWNER, &it.uid().unwrap_or_default())).collect()
    }

    async fn act(&self, key: &ObjectKey, owner: &Arc<K>, plan: Plan) -> Option<Error> {
        match plan {
            Plan::Nothing => None,
            Plan::Create(count) => {
                let template = owner.set().spec.as_ref().and_then(|it| it.template.clone()).unwrap_or_default();
                let pod = Arc::new(pods::pod_of(&template, owner.as_ref()));
                self.replace(key, owner, vec![pod; count], Vec::new()).await
            }
            Plan::Delete(pods) => self.replace(key, owner, Vec::new(), pods).await,
        }
    }
}

fn selector(set: &ReplicaSet) -> Result<LabelSelector> {
    claims::selector_of(&set.spec.as_ref().map(|it| it.selector.clone()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn now() -> Timestamp {
        "2026-01-01T00:01:00Z".parse().unwrap()
    }

    fn set(replicas: i32, min_ready: i32) -> ReplicaSet {
        let spec = json!({"replicas": replicas, "minReadySeconds": min_ready, "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web", "tier": "1"}}}});
        serde_json::from_value(json!({"metadata": {"name": "web", "uid": "u", "generation": 3}, "spec": spec})).unwrap()
    }

    fn pod(name: &str, labels: serde_json::Value, ready_since: Option<&str>) -> Arc<Pod> {
        let conditions: Vec<_> = ready_since.iter().map(|it| json!({"type": "Ready", "status": "True", "lastTransitionTime": it})).collect();
        let value = json!({"metadata": {"name": name, "uid": name, "labels": labels}, "status": {"phase": "Running", "conditions": conditions}});
        Arc::new(serde_json::from_value(value).unwrap())
    }

    #[test]
    fn pods_are_made_and_deleted_up_to_the_burst() {
        let some = |count| -> Vec<_> { (0..count).map(|it| pod(&it.to_string(), json!({}), None)).collect() };
        let cases = [(3, 3, "nothing"), (3, 1, "create 2"), (2000, 0, "create 500"), (1, 3, "delete 2"), (0, 700, "delete 500")];
        for (wanted, present, expected) in cases {
            let said = match plan(&set(wanted, 0), &some(present), Vec::new, now()) {
                Plan::Nothing => "nothing".to_owned(),
                Plan::Create(count) => format!("create {count}"),
                Plan::Delete(pods) => format!("delete {}", pods.len()),
            };
            assert_eq!(said, expected);
        }
    }

    #[test]
    fn the_status_counts_pods_by_what_they_are() {
        let (all, part) = (json!({"app": "web", "tier": "1"}), json!({"app": "web"}));
        let early = Some("2026-01-01T00:00:00Z");
        let late = Some("2026-01-01T00:00:55Z");
        let active = [pod("a", all.clone(), early), pod("b", all, late), pod("c", part, None)];
        let it = status(&set(3, 10), &active, 2, None, now());
        let numbers =
            (it.replicas, it.fully_labeled_replicas, it.ready_replicas, it.available_replicas, it.terminating_replicas, it.observed_generation);
        assert_eq!(numbers, (3, Some(2), Some(2), Some(1), Some(2), Some(3)));
        assert_eq!(next_check(&set(3, 10), &active, now()), Some(Duration::from_secs(5)));
    }

    #[test]
    fn a_failure_is_a_condition_until_it_passes() {
        let mut failing = set(3, 0);
        let first = status(&failing, &[], 0, Some("quota"), now());
        let condition = &first.conditions.as_ref().unwrap()[0];
        assert_eq!(
            (condition.type_.as_str(), condition.reason.as_deref(), condition.message.as_deref()),
            ("ReplicaFailure", Some("FailedCreate"), Some("quota"))
        );
        failing.status = Some(first.clone());
        assert_eq!(first, status(&failing, &[], 0, Some("another text"), now()));
        assert_eq!(status(&failing, &[], 0, None, now()).conditions, None);
    }
}
