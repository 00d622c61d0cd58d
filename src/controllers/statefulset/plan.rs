//! What a StatefulSet needs next: pure, from the set, its revisions and its pods to actions and a status.
//! Follows pkg/controller/statefulset/{stateful_set_control,stateful_set_utils}.go.

use std::{cmp::Reverse, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::{StatefulSet, StatefulSetSpec, StatefulSetStatus},
    core::v1::{PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume},
};
use kube::ResourceExt;

use crate::controllers::{history::REVISION_HASH, pods};

/// The label of a pod's own name.
pub const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
/// The label of a pod's ordinal.
pub const POD_INDEX: &str = "apps.kubernetes.io/pod-index";

/// A template and the name of its revision.
pub struct Revision<'a> {
    pub name: &'a str,
    pub template: &'a PodTemplateSpec,
}

/// The present revision and the one to come.
pub struct Revisions<'a> {
    pub current: Revision<'a>,
    pub update: Revision<'a>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    Create(Box<Pod>),
    Delete(Arc<Pod>),
    /// The pod waits for claims that may be missing.
    Claims(Arc<Pod>),
    /// The pod lacks the labels of its identity.
    Identify(Arc<Pod>),
}

pub struct Plan {
    pub actions: Vec<Action>,
    /// Those outside the range of ordinals, the highest first.
    pub condemned: Vec<Arc<Pod>>,
    pub status: StatefulSetStatus,
}

/// The ordinal in the pod's name, if the pod is named after the set.
pub fn ordinal(set: &StatefulSet, pod: &Pod) -> Option<i32> {
    let name = pod.metadata.name.as_deref()?;
    name.strip_prefix(set.metadata.name.as_deref()?)?.strip_prefix('-')?.parse().ok().filter(|it| *it >= 0)
}

pub fn pod_name(set: &StatefulSet, ordinal: i32) -> String {
    format!("{}-{ordinal}", set.name_any())
}

pub fn claim_name(set: &StatefulSet, template: &str, ordinal: i32) -> String {
    format!("{template}-{}-{ordinal}", set.name_any())
}

fn revision_of(pod: &Pod) -> &str {
    pod.labels().get(REVISION_HASH).map_or("", String::as_str)
}

fn is_created(pod: &Pod) -> bool {
    !pods::phase(pod).is_empty()
}

fn is_running_and_ready(pod: &Pod) -> bool {
    pods::phase(pod) == "Running" && pods::is_ready(pod)
}

fn is_deleting(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// The set as this module reads it.
struct View<'a> {
    set: &'a StatefulSet,
    revisions: &'a Revisions<'a>,
    now: Timestamp,
}

/// `updateStatefulSet`.
pub fn plan(set: &StatefulSet, revisions: &Revisions<'_>, pods: &[Arc<Pod>], now: Timestamp) -> Plan {
    let view = View { set, revisions, now };
    let (start, count) = (view.start(), view.replicas());
    let mut condemned: Vec<Arc<Pod>> = pods.iter().filter(|it| ordinal(set, it).is_some_and(|it| it < start || it >= start + count)).cloned().collect();
    condemned.sort_by_key(|it| Reverse(ordinal(set, it)));
    let slots: Vec<Option<&Arc<Pod>>> = (start..start + count).map(|at| pods.iter().find(|it| ordinal(set, it) == Some(at))).collect();
    let mut status = view.status(pods);
    let mut actions = Vec::new();
    if set.metadata.deletion_timestamp.is_none() && view.place(&slots, &mut actions) && view.condemn(&slots, &condemned, &mut actions) {
        let outdated = view.outdated(&slots);
        status.current_replicas = status.current_replicas.map(|it| (it - outdated.len() as i32).max(0));
        actions.extend(outdated.into_iter().map(Action::Delete));
    }
    view.complete(&mut status);
    Plan { actions, condemned, status }
}

impl<'a> View<'a> {
    fn spec<T>(&self, field: impl FnOnce(&'a StatefulSetSpec) -> Option<T>) -> Option<T> {
        self.set.spec.as_ref().and_then(field)
    }

    fn start(&self) -> i32 {
        self.spec(|it| it.ordinals.as_ref()?.start).unwrap_or(0)
    }

    fn replicas(&self) -> i32 {
        self.spec(|it| it.replicas).unwrap_or(1)
    }

    fn min_ready(&self) -> i32 {
        self.spec(|it| it.min_ready_seconds).unwrap_or(0)
    }

    /// One after the other, each after its predecessor is available.
    fn is_monotonic(&self) -> bool {
        self.spec(|it| it.pod_management_policy.clone()).is_none_or(|it| it != "Parallel")
    }

    fn is_rolling(&self) -> bool {
        self.spec(|it| it.update_strategy.as_ref()?.type_.clone()).is_none_or(|it| it == "RollingUpdate")
    }

    fn partition(&self) -> Option<i32> {
        self.spec(|it| it.update_strategy.as_ref()?.rolling_update.as_ref().map(|it| it.partition.unwrap_or(0)))
    }

    fn max_unavailable(&self) -> i32 {
        let wanted = self.spec(|it| it.update_strategy.as_ref()?.rolling_update.as_ref()?.max_unavailable.clone());
        wanted.map_or(1, |it| pods::scaled(Some(&it), self.replicas(), false)).max(1)
    }

    fn is_available(&self, pod: &Pod) -> bool {
        is_running_and_ready(pod) && pods::is_available(pod, self.min_ready(), self.now)
    }

    fn is_unavailable(&self, slot: Option<&Arc<Pod>>) -> bool {
        slot.is_none_or(|it| is_deleting(it) || !self.is_available(it))
    }

    fn status(&self, pods: &[Arc<Pod>]) -> StatefulSetStatus {
        let numbered: Vec<&Arc<Pod>> = pods.iter().filter(|it| ordinal(self.set, it).is_some()).collect();
        let count = |is: &dyn Fn(&Pod) -> bool| numbered.iter().filter(|it| is(it)).count() as i32;
        let of_revision = |name: &str| count(&|pod| is_created(pod) && !is_deleting(pod) && revision_of(pod) == name);
        let old = self.set.status.clone().unwrap_or_default();
        StatefulSetStatus {
            observed_generation: self.set.metadata.generation,
            replicas: count(&is_created),
            ready_replicas: Some(count(&is_running_and_ready)),
            available_replicas: Some(count(&|pod| self.is_available(pod))),
            current_replicas: Some(of_revision(self.revisions.current.name)),
            updated_replicas: Some(of_revision(self.revisions.update.name)),
            current_revision: Some(self.revisions.current.name.to_owned()),
            update_revision: Some(self.revisions.update.name.to_owned()),
            collision_count: old.collision_count,
            conditions: old.conditions,
        }
    }

    /// `completeRollingUpdate`: what all pods run is the present revision.
    fn complete(&self, status: &mut StatefulSetStatus) {
        let wanted = self.replicas();
        if self.is_rolling() && status.updated_replicas == Some(wanted) && status.ready_replicas == Some(wanted) && status.replicas == wanted {
            status.current_replicas = status.updated_replicas;
            status.current_revision.clone_from(&status.update_revision);
        }
    }

    /// What each ordinal needs. Whether it is time to look at the rest.
    fn place(&self, slots: &[Option<&Arc<Pod>>], actions: &mut Vec<Action>) -> bool {
        for (ordinal, slot) in (self.start()..).zip(slots) {
            let is_settled = match slot {
                None => {
                    actions.push(Action::Create(Box::new(self.pod(ordinal))));
                    false
                }
                Some(pod) => self.keep(pod, actions),
            };
            if !is_settled && self.is_monotonic() {
                return false;
            }
        }
        true
    }

    /// Whether the pod lets its successors go on.
    fn keep(&self, pod: &Arc<Pod>, actions: &mut Vec<Action>) -> bool {
        if pods::is_terminal(pod) {
            actions.extend((!is_deleting(pod)).then(|| Action::Delete(pod.clone())));
            return false;
        }
        if pods::phase(pod) == "Pending" {
            actions.push(Action::Claims(pod.clone()));
        }
        if is_deleting(pod) || !self.is_available(pod) {
            return false;
        }
        if pod.labels().get(POD_NAME) != pod.metadata.name.as_ref() {
            actions.push(Action::Identify(pod.clone()));
        }
        true
    }

    /// Scales down from the highest ordinal. Whether an update may go on.
    fn condemn(&self, slots: &[Option<&Arc<Pod>>], condemned: &[Arc<Pod>], actions: &mut Vec<Action>) -> bool {
        let first_unavailable = slots
            .iter()
            .flatten()
            .copied()
            .chain(condemned.iter().rev())
            .find(|it| self.is_unavailable(Some(it)))
            .map(|it| it.metadata.uid.clone());
        for pod in condemned {
            let is_blocked = is_deleting(pod) || !self.is_available(pod) && first_unavailable.as_ref() != Some(&pod.metadata.uid);
            if self.is_monotonic() && is_blocked {
                return false;
            }
            if !is_deleting(pod) {
                actions.push(Action::Delete(pod.clone()));
                if self.is_monotonic() {
                    return false;
                }
            }
        }
        true
    }

    /// The pods to replace now, from the highest ordinal down to the partition.
    fn outdated(&self, slots: &[Option<&Arc<Pod>>]) -> Vec<Arc<Pod>> {
        let unavailable = slots.iter().filter(|it| self.is_unavailable(**it)).count() as i32;
        let budget = self.max_unavailable() - unavailable;
        if !self.is_rolling() || budget <= 0 {
            return Vec::new();
        }
        let from = self.partition().unwrap_or(0) as usize;
        let candidates = slots.iter().skip(from).rev().flatten();
        let is_old = |it: &&&Arc<Pod>| revision_of(it) != self.revisions.update.name && !is_deleting(it);
        candidates.filter(is_old).take(budget as usize).map(|it| (*it).clone()).collect()
    }

    /// `newVersionedStatefulSetPod`.
    fn pod(&self, ordinal: i32) -> Pod {
        let current_replicas = self.set.status.as_ref().and_then(|it| it.current_replicas).unwrap_or(0);
        let is_current = match self.partition() {
            None => self.is_rolling() && ordinal < self.start() + current_replicas,
            Some(partition) => ordinal < self.start() + partition,
        };
        let revision = if is_current { &self.revisions.current } else { &self.revisions.update };
        let mut pod = pods::pod_of(revision.template, self.set);
        let name = pod_name(self.set, ordinal);
        let labels = pod.metadata.labels.get_or_insert_default();
        labels.insert(POD_NAME.to_owned(), name.clone());
        labels.insert(POD_INDEX.to_owned(), ordinal.to_string());
        labels.insert(REVISION_HASH.to_owned(), revision.name.to_owned());
        let spec = pod.spec.get_or_insert_default();
        spec.hostname = Some(name.clone());
        spec.subdomain = self.spec(|it| it.service_name.clone()).filter(|it| !it.is_empty());
        let claims = self.claims(ordinal);
        if !claims.is_empty() {
            let own = spec.volumes.take().unwrap_or_default();
            let others = own.into_iter().filter(|volume| claims.iter().all(|it| it.name != volume.name));
            spec.volumes = Some(claims.iter().cloned().chain(others).collect());
        }
        pod.metadata.generate_name = None;
        pod.metadata.name = Some(name);
        pod
    }

    fn claims(&self, ordinal: i32) -> Vec<Volume> {
        let templates = self.spec(|it| it.volume_claim_templates.as_deref()).unwrap_or_default();
        let volume = |name: String| {
            let source = PersistentVolumeClaimVolumeSource { claim_name: claim_name(self.set, &name, ordinal), read_only: None };
            Volume { name, persistent_volume_claim: Some(source), ..Volume::default() }
        };
        templates.iter().map(|it| volume(it.name_any())).collect()
    }
}

#[cfg(test)]
mod tests;
