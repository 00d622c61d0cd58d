//! What controllers ask of pods (ready, available, active) and how they make and delete them.
//! Follows pkg/controller/controller_utils.go and pkg/api/v1/pod/util.go.

use std::{
    cmp::{Ordering, Reverse},
    future::Future,
    sync::Arc,
};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::core::v1::{Pod, PodTemplateSpec},
    apimachinery::pkg::util::intstr::IntOrString,
};
use kube::{
    ResourceExt,
    api::{DeleteParams, ObjectMeta},
};

use super::claims::controller_ref;
pub use crate::client::pods::{condition, is_ready, is_terminal, node_name, phase};
use crate::{
    base::Tasks,
    client::{Cached, Change, Error, EventRecorder, EventType, Expectations, ObjectKey, Result, writes},
};

/// Ready for at least `min_ready_seconds`.
pub fn is_available(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> bool {
    is_ready(pod) && (min_ready_seconds == 0 || available_at(pod, min_ready_seconds).is_some_and(|at| at <= now))
}

/// When a ready pod becomes available.
pub fn available_at(pod: &Pod, min_ready_seconds: i32) -> Option<Timestamp> {
    ready_since(pod)?.checked_add(SignedDuration::from_secs(min_ready_seconds.into())).ok()
}

pub fn is_terminating(pod: &Pod) -> bool {
    !is_terminal(pod) && pod.metadata.deletion_timestamp.is_some()
}

pub fn is_active(pod: &Pod) -> bool {
    !is_terminal(pod) && pod.metadata.deletion_timestamp.is_none()
}

/// A new pod of `owner` after `template`, its name to be completed by the server.
pub fn pod_of<O: Cached>(template: &PodTemplateSpec, owner: &O) -> Pod {
    let meta = template.metadata.clone().unwrap_or_default();
    let metadata = ObjectMeta {
        generate_name: Some(format!("{}-", owner.name_any())),
        namespace: owner.namespace(),
        labels: meta.labels,
        annotations: meta.annotations,
        finalizers: meta.finalizers,
        owner_references: Some(vec![controller_ref(owner)]),
        ..ObjectMeta::default()
    };
    Pod { metadata, spec: template.spec.clone(), status: None }
}

/// How a controller acts: under which identity, and what it has asked for and not yet seen done. It makes and deletes pods on behalf of owners.
#[derive(Clone)]
pub struct Control {
    pub client: kube::Client,
    pub events: EventRecorder,
    pub tasks: Tasks,
    pub expectations: Arc<Expectations>,
}

impl Control {
    async fn create<O: Cached>(&self, pod: &Pod, owner: &O) -> Result<()> {
        let created = writes::create(&self.client, pod).await;
        match &created {
            Ok(pod) => self.events.event(owner, EventType::Normal, "SuccessfulCreate", format!("Created pod: {}", pod.name_any())),
            Err(error) if error.is_namespace_terminating() => (),
            Err(error) => self.events.event(owner, EventType::Warning, "FailedCreate", format!("Error creating: {}", error.message())),
        }
        created.map(drop)
    }

    /// Whether the pod was still there.
    async fn delete<O: Cached>(&self, pod: &Pod, owner: &O) -> Result<bool> {
        let deleted = writes::delete(&self.client, pod, DeleteParams::default()).await;
        match &deleted {
            Ok(true) => self.events.event(owner, EventType::Normal, "SuccessfulDelete", format!("Deleted pod: {}", pod.name_any())),
            Ok(false) => (),
            Err(error) => self.events.event(owner, EventType::Warning, "FailedDelete", format!("Error deleting: {}", error.message())),
        }
        deleted
    }

    /// Takes a change to a pod of the owner `key` into account. Whether it is gone, as a terminating one is.
    pub fn observe(&self, key: &ObjectKey, change: &Change<Pod>) -> bool {
        let pod = change.object();
        let is_gone = change.is_deleted() || pod.metadata.deletion_timestamp.is_some();
        if is_gone {
            self.expectations.deletion_observed(key, pod.metadata.uid.as_deref().unwrap_or_default());
        } else if matches!(change, Change::Added(_)) {
            self.expectations.creation_observed(key);
        }
        is_gone
    }

    /// Creates the new pods in slowly growing batches, which end with the first failure, and deletes the old ones all at once. Returns the first
    /// failure; that the namespace is going is none, nor that a pod is gone already.
    pub async fn replace<O: Cached>(&self, key: &ObjectKey, owner: &Arc<O>, new: Vec<Arc<Pod>>, old: Vec<Arc<Pod>>) -> Option<Error> {
        self.expectations.expect(key, new.len(), old.iter().filter_map(|it| it.uid()));
        let failure = self.create_batches(key, owner, new).await;
        failure.or(self.delete_each(key, owner, old).await)
    }

    async fn create_batches<O: Cached>(&self, key: &ObjectKey, owner: &Arc<O>, pods: Vec<Arc<Pod>>) -> Option<Error> {
        let work = |at: usize| {
            let (control, pod, owner) = (self.clone(), pods[at].clone(), owner.clone());
            async move { control.create(&pod, owner.as_ref()).await }
        };
        let (done, error) = in_slow_start_batches(&self.tasks, "pod-create", pods.len(), work).await;
        (done..pods.len()).for_each(|_| self.expectations.creation_observed(key));
        error.filter(|it| !it.is_namespace_terminating())
    }

    async fn delete_each<O: Cached>(&self, key: &ObjectKey, owner: &Arc<O>, pods: Vec<Arc<Pod>>) -> Option<Error> {
        let works = pods.into_iter().map(|pod| {
            let (control, owner) = (self.clone(), owner.clone());
            async move { (control.delete(&pod, owner.as_ref()).await, pod.uid().unwrap_or_default()) }
        });
        let mut first = None;
        for (result, uid) in concurrently(&self.tasks, "pod-delete", works).await {
            if !matches!(result, Ok(true)) {
                self.expectations.deletion_observed(key, &uid);
            }
            first = first.or(result.err());
        }
        first
    }
}

/// Runs every one of `works` as a task of its own and returns their results in order; one that was stopped yields nothing.
pub async fn concurrently<T, W>(tasks: &Tasks, name: &'static str, works: impl IntoIterator<Item = W>) -> Vec<T>
where
    T: Send + 'static,
    W: Future<Output = T> + Send + 'static,
{
    let start = |work: W| {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        tasks.spawn(name, async move {
            let _ = sender.send(work.await);
        });
        receiver
    };
    let receivers: Vec<_> = works.into_iter().map(start).collect();
    futures::future::join_all(receivers).await.into_iter().flatten().collect()
}

/// `SlowStartInitialBatchSize`: so many tries at first, twice as many after each batch without a failure.
const FIRST_BATCH: usize = 1;

/// Does `count` works in growing concurrent batches. Returns how many succeeded and the first failure, which ended it.
pub async fn in_slow_start_batches<W, F>(tasks: &Tasks, name: &'static str, count: usize, mut work: F) -> (usize, Option<Error>)
where
    F: FnMut(usize) -> W,
    W: Future<Output = Result<()>> + Send + 'static,
{
    let (mut done, mut succeeded, mut batch) = (0, 0, FIRST_BATCH.min(count));
    while batch > 0 {
        let results = concurrently(tasks, name, (done..done + batch).map(&mut work)).await;
        succeeded += results.iter().filter(|it| it.is_ok()).count();
        if let Some(Err(error)) = results.into_iter().find(Result::is_err) {
            return (succeeded, Some(error));
        }
        done += batch;
        batch = (2 * batch).min(count - done);
    }
    (succeeded, None)
}

/// Which of two pods of a ReplicaSet or Job to delete first (`ActivePodsWithRanks`): the lesser. A rank is the number of related pods on the pod's node.
pub fn deletion_order(a: (&Pod, usize), b: (&Pod, usize), now: Timestamp) -> Ordering {
    let (left, right) = (a.0, b.0);
    let phase_rank = |pod: &Pod| ["Pending", "Unknown", "Running"].iter().position(|it| *it == phase(pod)).unwrap_or(0);
    let use_of = |(pod, rank): (&Pod, usize)| (!node_name(pod).is_empty(), phase_rank(pod), is_ready(pod), deletion_cost(pod), Reverse(rank));
    use_of(a)
        .cmp(&use_of(b))
        .then_with(|| if is_ready(left) && is_ready(right) { younger_first(ready_since(left), ready_since(right), now) } else { Ordering::Equal })
        .then_with(|| most_restarts(right).cmp(&most_restarts(left)))
        .then_with(|| younger_first(created_at(left), created_at(right), now))
        .then_with(|| left.metadata.uid.cmp(&right.metadata.uid))
}

fn deletion_cost(pod: &Pod) -> i32 {
    pod.annotations().get("controller.kubernetes.io/pod-deletion-cost").and_then(|it| it.parse().ok()).unwrap_or(0)
}

fn ready_since(pod: &Pod) -> Option<Timestamp> {
    Some(condition(pod, "Ready").filter(|it| it.status == "True")?.last_transition_time.as_ref()?.0)
}

fn created_at(pod: &Pod) -> Option<Timestamp> {
    Some(pod.metadata.creation_timestamp.as_ref()?.0)
}

fn most_restarts(pod: &Pod) -> i32 {
    let statuses = pod.status.iter().flat_map(|it| it.container_statuses.iter().flatten());
    statuses.map(|it| it.restart_count).max().unwrap_or(0)
}

/// Ages compare by powers of two (LogarithmicScaleDown): alike ages fall to the uid, so that not always the youngest goes.
fn younger_first(left: Option<Timestamp>, right: Option<Timestamp>, now: Timestamp) -> Ordering {
    let age_rank = |at: Timestamp| now.duration_since(at).as_nanos().max(1).ilog2();
    match (left, right) {
        (Some(left), Some(right)) => age_rank(left).cmp(&age_rank(right)),
        _ => left.is_some().cmp(&right.is_some()),
    }
}

/// `GetScaledValueFromIntOrPercent`: a number, or a percentage of `of`.
pub fn scaled(value: Option<&IntOrString>, of: i32, round_up: bool) -> i32 {
    match value {
        None => 0,
        Some(IntOrString::Int(count)) => *count,
        Some(IntOrString::String(text)) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(0);
            let product = i64::from(of) * percent;
            (if round_up { (product + 99).div_euclid(100) } else { product.div_euclid(100) }) as i32
        }
    }
}

/// The pods and their ranks, sorted by [`deletion_order`]; ranks count the active pods of `related` by node.
pub fn to_delete(pods: &[Arc<Pod>], related: &[Arc<Pod>], count: usize, now: Timestamp) -> Vec<Arc<Pod>> {
    let mut on_node = std::collections::HashMap::<&str, usize>::new();
    for pod in related.iter().filter(|it| is_active(it)) {
        *on_node.entry(node_name(pod)).or_default() += 1;
    }
    let rank = |pod: &Pod| on_node.get(node_name(pod)).copied().unwrap_or(0);
    let mut sorted: Vec<(Arc<Pod>, usize)> = pods.iter().map(|it| (it.clone(), rank(it))).collect();
    if count < sorted.len() {
        sorted.sort_by(|a, b| deletion_order((&a.0, a.1), (&b.0, b.1), now));
    }
    sorted.into_iter().take(count).map(|it| it.0).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn batches_grow_and_stop_at_a_failure() {
        let tasks = Tasks::new();
        // (count, the index that fails) -> (tried, succeeded)
        for (count, failing, tried, succeeded) in [(10, None, 10, 10), (10, Some(0), 1, 0), (10, Some(4), 7, 6), (0, None, 0, 0)] {
            let tries = Arc::new(AtomicUsize::new(0));
            let counter = tries.clone();
            let work = move |index| {
                counter.fetch_add(1, Relaxed);
                async move { if Some(index) == failing { Err(Error::Invalid("no".into())) } else { Ok(()) } }
            };
            let (done, error) = in_slow_start_batches(&tasks, "test", count, work).await;
            assert_eq!((tries.load(Relaxed), done, error.is_some()), (tried, succeeded, failing.is_some()), "{count} {failing:?}");
        }
    }

    #[test]
    fn the_least_useful_pod_goes_first() {
        let now: Timestamp = "2026-01-02T00:00:00Z".parse().unwrap();
        let pod = |name: &str, node: &str, phase: &str, ready: Option<&str>, extra: serde_json::Value| -> Arc<Pod> {
            let conditions: Vec<_> = ready.iter().map(|it| json!({"type": "Ready", "status": "True", "lastTransitionTime": it})).collect();
            let mut value = json!({
                "metadata": {"name": name, "uid": name, "creationTimestamp": "2026-01-01T00:00:00Z"},
                "spec": {"nodeName": node, "containers": []},
                "status": {"phase": phase, "conditions": conditions},
            });
            json_patch::merge(&mut value, &extra);
            Arc::new(serde_json::from_value(value).unwrap())
        };
        let old = Some("2026-01-01T00:00:00Z");
        let pods = [
            pod("h-oldest-ready", "n3", "Running", old, json!({})),
            pod("g-younger-ready", "n4", "Running", Some("2026-01-01T23:59:00Z"), json!({})),
            pod("f-doubled", "n2", "Running", old, json!({})),
            pod("e-cheap", "n3", "Running", old, json!({"metadata": {"annotations": {"controller.kubernetes.io/pod-deletion-cost": "-5"}}})),
            pod(
                "d-unready-restarting",
                "n3",
                "Running",
                None,
                json!({"status": {"containerStatuses": [
                {"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 3}]}}),
            ),
            pod("c-pending", "n3", "Pending", None, json!({})),
            pod("b-unknown", "n3", "Unknown", None, json!({})),
            pod("a-unassigned", "", "Pending", None, json!({})),
        ];
        let related = [pods[2].clone(), pod("other", "n2", "Running", old, json!({}))];
        let names: Vec<String> = to_delete(&pods, &related, 7, now).iter().map(|it| it.name_any()).collect();
        let expected = ["a-unassigned", "c-pending", "b-unknown", "d-unready-restarting", "e-cheap", "f-doubled", "g-younger-ready"];
        assert_eq!(names, expected);
    }
}
