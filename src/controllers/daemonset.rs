//! DaemonSets: one pod on every node that fits. Follows pkg/controller/daemon.

pub mod plan;

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::api::{
    apps::v1::{ControllerRevision, DaemonSet, DaemonSetStatus},
    core::v1::{Node, Pod},
};
use kube::ResourceExt;
use parking_lot::Mutex;

use self::plan::{Plan, View, by_node};
use super::{
    Controller, claims,
    history::{self, REVISION_HASH, Subject},
    pods,
};
use crate::{
    base::{backoff::Backoff, clock},
    client::{Change, EventType, ObjectKey, Result, writes},
    meta::LabelSelector,
};

/// Changes of pods within so short a time become one update of the status.
const COALESCE: Duration = Duration::from_millis(20);
/// `BurstReplicas`.
const BURST: usize = 250;
/// A node that makes its pod fail gets the next one after a pause (`failedPodsBackoff`).
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(15 * 60);

/// Until when a set leaves a node alone on which its pods fail.
struct Pause {
    backoff: Backoff,
    until: Instant,
}

#[derive(Default)]
pub struct DaemonSetController {
    /// By set and node.
    pauses: Mutex<HashMap<(ObjectKey, String), Pause>>,
}
type Shell = super::Shell<DaemonSetController>;

impl Controller for DaemonSetController {
    type Key = ObjectKey;
    const NAME: &'static str = "daemon-set-controller";
    const WORKERS: usize = 2;

    async fn listen(shell: &Arc<Shell>) {
        shell.on(&shell.informers.daemon_sets, Shell::set_changed);
        shell.on(&shell.informers.pods, Shell::pod_changed);
        shell.on(&shell.informers.nodes, Shell::node_changed);
    }

    async fn reconcile(shell: &Arc<Shell>, key: &ObjectKey) -> Result<Option<Duration>> {
        let Some(set) = shell.informers.daemon_sets.get(key).filter(|it| it.metadata.deletion_timestamp.is_none()) else {
            return Ok(None);
        };
        let Some(spec) = &set.spec else { return Ok(None) };
        let selector = selector(&set)?;
        let collisions = set.status.as_ref().and_then(|it| it.collision_count).unwrap_or(0);
        let subject = Subject { owner: set.as_ref(), selector: &selector, template: &spec.template, hash_label: REVISION_HASH, collisions };
        let history = history::settle(&shell.client, &shell.informers.controller_revisions, &subject).await?;
        let hash = history.update.labels().get(REVISION_HASH).cloned().unwrap_or_default();
        let is_current = shell.expectations.are_satisfied(key);
        let owned = claims::claim(&shell.client, set.as_ref(), &selector, &shell.informers.pods, |_| true, &[]).await?;
        let pods = by_node(owned.clone());
        let nodes = shell.informers.nodes.list();
        let view = View { set: &set, hash: &hash, nodes: &nodes, now: clock::now() };
        let mut pause = None;
        if is_current {
            pause = shell.act(key, &set, &hash, view.manage(&pods)).await?;
            if view.is_rolling() && shell.expectations.are_satisfied(key) {
                shell.act(key, &set, &hash, view.update(&pods)).await?;
            }
        }
        let status = DaemonSetStatus { collision_count: Some(history.collisions).filter(|it| *it > 0), ..view.status(&pods) };
        writes::status(&shell.client, set.as_ref(), &DaemonSet { status: Some(status.clone()), ..DaemonSet::clone(&set) }).await?;
        let live = |it: &ControllerRevision| owned.iter().any(|pod| pod.labels().get(REVISION_HASH) == it.labels().get(REVISION_HASH));
        history::truncate(&shell.client, &history, spec.revision_history_limit.unwrap_or(10), live).await?;
        let is_waiting = status.number_ready != status.number_available.unwrap_or(0);
        let min_ready = spec.min_ready_seconds.filter(|it| *it > 0 && is_waiting).map(|it| Duration::from_secs(it.unsigned_abs().into()));
        Ok(min_ready.into_iter().chain(pause).min())
    }
}

impl Shell {
    fn set_changed(&self, change: &Change<DaemonSet>) {
        let key = ObjectKey::of(change.object().as_ref());
        if change.is_deleted() || change.old().is_some_and(|old| old.metadata.uid != change.object().metadata.uid) {
            self.expectations.forget(&key);
            self.own.pauses.lock().retain(|(set, _), _| *set != key);
        }
        self.queue.add(key);
    }

    /// Heartbeats say nothing new of where pods may run.
    fn node_changed(&self, change: &Change<Node>) {
        let node = change.object();
        let is_same = |old: &Arc<Node>| old.metadata.labels == node.metadata.labels && old.spec == node.spec;
        if change.is_deleted() || !change.old().is_some_and(is_same) {
            self.queue.add_all(self.informers.daemon_sets.list().iter().map(|it| ObjectKey::of(it.as_ref())));
        }
    }

    fn pod_changed(&self, change: &Change<Pod>) {
        if let Some(old) = change.old().and_then(|it| claims::owner_key::<DaemonSet>(&it.metadata)) {
            self.queue.add_after(old, COALESCE);
        }
        match claims::owner_key::<DaemonSet>(&change.object().metadata) {
            Some(key) => {
                self.observe(&key, change);
                self.queue.add_after(key, COALESCE);
            }
            None => self.queue.add_all(claims::adopters(&self.informers.daemon_sets, change, selector)),
        }
    }

    /// Carries out a plan. Returns when to look again at pods that fail too often to be replaced at once.
    async fn act(&self, key: &ObjectKey, set: &Arc<DaemonSet>, hash: &str, mut plan: Plan) -> Result<Option<Duration>> {
        let mut pause: Option<Duration> = None;
        for pod in &plan.ended {
            match self.paused(key, pod) {
                None => self.tell_ended(set, pod),
                Some(left) => {
                    plan.delete.retain(|it| it.metadata.uid != pod.metadata.uid);
                    pause = pause.into_iter().chain([left]).min();
                }
            }
        }
        plan.create.truncate(BURST);
        plan.delete.truncate(BURST);
        if plan.create.is_empty() && plan.delete.is_empty() {
            return Ok(pause);
        }
        let created = plan.create.iter().map(|node| Arc::new(plan::pod(set, node, hash))).collect();
        let failure = self.replace(key, set, created, plan.delete).await;
        failure.map_or(Ok(pause), Err)
    }

    /// How long a failed pod has to stay, lest its node be asked again and again.
    fn paused(&self, key: &ObjectKey, pod: &Pod) -> Option<Duration> {
        if pods::phase(pod) != "Failed" {
            return None;
        }
        let mut pauses = self.own.pauses.lock();
        let now = Instant::now();
        let new = || Pause { backoff: Backoff::new(FIRST_PAUSE, LONGEST_PAUSE), until: now };
        let pause = pauses.entry((key.clone(), pods::node_name(pod).to_owned())).or_insert_with(new);
        if now < pause.until {
            return Some(pause.until - now);
        }
        if now - pause.until > 2 * LONGEST_PAUSE {
            pause.backoff.reset();
        }
        pause.until = now + pause.backoff.next_delay();
        None
    }

    fn tell_ended(&self, set: &DaemonSet, pod: &Pod) {
        let (namespace, name, node) = (pod.namespace().unwrap_or_default(), pod.name_any(), pods::node_name(pod));
        let (kind, reason, word, verb) = match pods::phase(pod) {
            "Failed" => (EventType::Warning, "FailedDaemonPod", "failed", "kill"),
            _ => (EventType::Normal, "SucceededDaemonPod", "succeeded", "delete"),
        };
        let message = format!("Found {word} daemon pod {namespace}/{name} on node {node}, will try to {verb} it");
        self.events.event(set, kind, reason, message);
    }
}

fn selector(set: &DaemonSet) -> Result<LabelSelector> {
    claims::selector_of(&set.spec.as_ref().map(|it| it.selector.clone()).unwrap_or_default())
}
