//! PodDisruptionBudgets: how many of a set of pods may be evicted now. Follows pkg/controller/disruption.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::{
        apps::v1::{Deployment, ReplicaSet},
        core::v1::Pod,
        policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus},
    },
    apimachinery::pkg::{
        apis::meta::v1::{Condition, OwnerReference, Time},
        util::intstr::IntOrString,
    },
};
use kube::{
    Api, Resource, ResourceExt,
    api::{DynamicObject, GroupVersionKind},
};

use super::{Controller, claims, pods};
use crate::{
    base::clock,
    client::{BY_NAMESPACE, Change, Error, EventType, ObjectKey, Result, writes},
    meta::{LabelSelector, cron::until, object::split_api_version},
};

/// Changes of pods within so short a time become one count.
const COALESCE: Duration = Duration::from_millis(20);
/// `DeletionTimeout`: an evicted pod that is still there after this will stay.
const DELETION_TIMEOUT: SignedDuration = SignedDuration::from_secs(2 * 60);
const CONDITION: &str = "DisruptionAllowed";

pub struct DisruptionController;
type Shell = super::Shell<DisruptionController>;

impl Controller for DisruptionController {
    type Key = ObjectKey;
    const NAME: &'static str = "disruption-controller";
    const WORKERS: usize = 2;

    async fn listen(shell: &Arc<Shell>) {
        shell.queue_each(&shell.informers.disruption_budgets);
        shell.on(&shell.informers.pods, Shell::pod_changed);
    }

    async fn reconcile(shell: &Arc<Shell>, key: &ObjectKey) -> Result<Option<Duration>> {
        let Some(budget) = shell.informers.disruption_budgets.get(key) else { return Ok(None) };
        let selector = selector(&budget)?;
        let mut chosen = shell.informers.pods.by(BY_NAMESPACE, &key.namespace);
        chosen.retain(|it| selector.matches(it.labels()));
        if chosen.is_empty() {
            shell.events.event(budget.as_ref(), EventType::Normal, "NoPods", "No matching pods found");
        }
        let now = clock::now();
        let counted = shell.expected(&budget, &chosen).await;
        let status = match &counted {
            Ok(expected) => status(&budget, &chosen, *expected, now),
            Err(error) => failed(&budget, &error.message(), now),
        };
        let next = PodDisruptionBudget { status: Some(status.clone()), ..PodDisruptionBudget::clone(&budget) };
        writes::status(&shell.client, budget.as_ref(), &next).await?;
        if let Err(error) = counted {
            let message = format!("Failed to calculate the number of expected pods: {}", error.message());
            shell.events.event(budget.as_ref(), EventType::Warning, "CalculateExpectedPodCountFailed", message);
            return Err(error);
        }
        let due = status.disrupted_pods.iter().flatten().map(|(_, at)| at.0 + DELETION_TIMEOUT).min();
        Ok(due.map(|it| until(it, now)))
    }
}

impl Shell {
    fn pod_changed(&self, change: &Change<Pod>) {
        let pod = change.object();
        for budget in self.informers.disruption_budgets.by(BY_NAMESPACE, pod.metadata.namespace.as_deref().unwrap_or_default()) {
            let is_chosen = |pod: &Pod| selector(&budget).is_ok_and(|it| it.matches(pod.labels()));
            if is_chosen(pod) || change.old().is_some_and(|it| is_chosen(it)) {
                self.queue.add_after(ObjectKey::of(budget.as_ref()), COALESCE);
            }
        }
    }

    /// `getExpectedPodCount`.
    async fn expected(&self, budget: &PodDisruptionBudget, chosen: &[Arc<Pod>]) -> Result<Expected> {
        let spec = budget.spec.clone().unwrap_or_default();
        let count = match (&spec.max_unavailable, &spec.min_available) {
            (None, Some(IntOrString::Int(healthy))) => return Ok(Expected { count: chosen.len() as i32, healthy: *healthy }),
            (None, None) => return Ok(Expected { count: 0, healthy: 0 }),
            _ => self.scale(budget, chosen).await?,
        };
        let healthy = match &spec.max_unavailable {
            Some(most) => (count - pods::scaled(Some(most), count, true)).max(0),
            None => pods::scaled(spec.min_available.as_ref(), count, true),
        };
        Ok(Expected { count, healthy })
    }

    /// `getExpectedScale`: what the controllers of the pods ask for in sum.
    async fn scale(&self, budget: &PodDisruptionBudget, chosen: &[Arc<Pod>]) -> Result<i32> {
        let (mut scales, mut unmanaged) = (HashMap::new(), 0);
        for pod in chosen {
            let Some(owner) = claims::controller_of(&pod.metadata) else {
                unmanaged += 1;
                continue;
            };
            if !scales.contains_key(&owner.uid) {
                let namespace = pod.namespace().unwrap_or_default();
                let Some((uid, scale)) = self.controller_scale(&namespace, owner).await? else {
                    return Err(Error::Invalid(format!("found no controllers for pod {:?}", pod.name_any())));
                };
                scales.insert(uid, scale);
                scales.entry(owner.uid.clone()).or_insert(0);
            }
        }
        if unmanaged > 0 {
            let message = "Pods selected by this PodDisruptionBudget were found to be unmanaged. As a result, the status of the PDB cannot be calculated correctly, \
                which may result in undefined behavior. To account for these pods please set \".spec.minAvailable\" field of the PDB to an integer value.";
            self.events.event(budget, EventType::Warning, "UnmanagedPods", message);
        }
        Ok(scales.values().sum())
    }

    /// The uid and the wanted number of the controller, or of the Deployment above it.
    async fn controller_scale(&self, namespace: &str, owner: &OwnerReference) -> Result<Option<(String, i32)>> {
        let key = ObjectKey::new(namespace, owner.name.clone());
        if owner.kind == ReplicaSet::kind(&()) && owner.api_version == ReplicaSet::api_version(&()) {
            let Some(set) = self.informers.replica_sets.get(&key).filter(|it| it.metadata.uid.as_ref() == Some(&owner.uid)) else { return Ok(None) };
            let above = claims::owner_key::<Deployment>(&set.metadata).and_then(|it| self.informers.deployments.get(&it));
            if let Some(deployment) = above {
                let replicas = deployment.spec.as_ref().and_then(|it| it.replicas).unwrap_or(1);
                return Ok(Some((deployment.uid().unwrap_or_default(), replicas)));
            }
            return Ok(Some((owner.uid.clone(), set.spec.as_ref().and_then(|it| it.replicas).unwrap_or(1))));
        }
        let (group, version) = split_api_version(&owner.api_version);
        let (resource, _) = kube::discovery::pinned_kind(&self.client, &GroupVersionKind::gvk(group, version, &owner.kind)).await?;
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, &resource);
        let scale = writes::unless_not_found(api.get_scale(&owner.name).await)?;
        Ok(scale.map(|it| (owner.uid.clone(), it.spec.and_then(|it| it.replicas).unwrap_or(0))))
    }
}

/// How many pods there are to be, and how many of them healthy.
#[derive(Debug, Clone, Copy)]
struct Expected {
    count: i32,
    healthy: i32,
}

fn selector(budget: &PodDisruptionBudget) -> Result<LabelSelector> {
    match budget.spec.as_ref().and_then(|it| it.selector.as_ref()) {
        Some(selector) => claims::selector_of(selector),
        None => LabelSelector::from_value(None).map_err(Error::Invalid),
    }
}

/// `updatePdbStatus`.
fn status(budget: &PodDisruptionBudget, chosen: &[Arc<Pod>], expected: Expected, now: Timestamp) -> PodDisruptionBudgetStatus {
    let old = budget.status.clone().unwrap_or_default();
    let disrupted = still_disrupted(chosen, &old.disrupted_pods.unwrap_or_default(), now);
    let is_healthy = |pod: &Pod| pod.metadata.deletion_timestamp.is_none() && !disrupted.contains_key(&pod.name_any()) && pods::is_ready(pod);
    let healthy = chosen.iter().filter(|it| is_healthy(it)).count() as i32;
    let allowed = if expected.count > 0 { (healthy - expected.healthy).max(0) } else { 0 };
    let (word, reason) = if allowed > 0 { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
    let generation = budget.metadata.generation;
    PodDisruptionBudgetStatus {
        current_healthy: Some(healthy),
        desired_healthy: Some(expected.healthy),
        expected_pods: Some(expected.count),
        disruptions_allowed: Some(allowed),
        disrupted_pods: Some(disrupted).filter(|it| !it.is_empty()),
        observed_generation: generation,
        conditions: Some(with_condition(old.conditions, word, reason, "", generation, now)),
    }
}

/// `failSafe`: what cannot be counted may not be disrupted.
fn failed(budget: &PodDisruptionBudget, why: &str, now: Timestamp) -> PodDisruptionBudgetStatus {
    let old = budget.status.clone().unwrap_or_default();
    let conditions = with_condition(old.conditions.clone(), "False", "SyncFailed", why, old.observed_generation, now);
    PodDisruptionBudgetStatus { disruptions_allowed: Some(0), conditions: Some(conditions), ..old }
}

fn with_condition(conditions: Option<Vec<Condition>>, status: &str, reason: &str, message: &str, generation: Option<i64>, now: Timestamp) -> Vec<Condition> {
    let mut conditions = conditions.unwrap_or_default();
    let since = conditions.iter().find(|it| it.type_ == CONDITION && it.status == status).map(|it| it.last_transition_time.clone());
    let condition = Condition {
        type_: CONDITION.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        observed_generation: generation,
        last_transition_time: since.unwrap_or(Time(now)),
    };
    match conditions.iter_mut().find(|it| it.type_ == CONDITION) {
        Some(present) => *present = condition,
        None => conditions.push(condition),
    }
    conditions
}

/// `buildDisruptedPodMap`: the evicted pods that are yet to go.
fn still_disrupted(chosen: &[Arc<Pod>], disrupted: &BTreeMap<String, Time>, now: Timestamp) -> BTreeMap<String, Time> {
    let is_open = |pod: &Pod, at: &Time| pod.metadata.deletion_timestamp.is_none() && at.0 + DELETION_TIMEOUT >= now;
    let found = chosen.iter().filter_map(|pod| disrupted.get_key_value(&pod.name_any()).filter(|(_, at)| is_open(pod, at)));
    found.map(|(name, at)| (name.clone(), at.clone())).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_status_says_how_many_may_go() {
        let now: Timestamp = "2026-01-01T00:10:00Z".parse().unwrap();
        let pod = |name: &str, ready: bool| -> Arc<Pod> {
            let conditions = json!([{"type": "Ready", "status": if ready { "True" } else { "False" }}]);
            Arc::new(serde_json::from_value(json!({"metadata": {"name": name}, "status": {"conditions": conditions}})).unwrap())
        };
        let pods = [pod("a", true), pod("b", true), pod("c", true), pod("d", false)];
        // (expected, healthy, evicted pods) -> (healthy, allowed, still disrupted)
        let cases = [
            (4, 2, json!({}), (3, 1, 0)),
            (4, 3, json!({}), (3, 0, 0)),
            (0, 0, json!({}), (3, 0, 0)),
            (4, 1, json!({"a": "2026-01-01T00:09:00Z", "gone": "2026-01-01T00:09:00Z"}), (2, 1, 1)),
            (4, 1, json!({"a": "2026-01-01T00:07:00Z"}), (3, 2, 0)),
        ];
        for (count, healthy, disrupted, expected) in cases {
            let base = json!({"currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0, "disruptionsAllowed": 0, "disruptedPods": disrupted});
            let budget: PodDisruptionBudget = serde_json::from_value(json!({"metadata": {"name": "b", "generation": 1}, "status": base})).unwrap();
            let it = status(&budget, &pods, Expected { count, healthy }, now);
            let open = it.disrupted_pods.as_ref().map_or(0, BTreeMap::len);
            assert_eq!((it.current_healthy.unwrap(), it.disruptions_allowed.unwrap(), open), expected, "{disrupted}");
            let condition = &it.conditions.unwrap()[0];
            assert_eq!(condition.status == "True", expected.1 > 0);
        }
    }
}
