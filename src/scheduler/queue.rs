//! The pods that wait for a node: ready ones by priority, failed ones until a back-off passes or the cluster changes to their help.
//! Follows pkg/scheduler/backend/queue.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::{
    cluster::PodInfo,
    framework::ClusterEvent,
    plugins,
};

/// `DefaultPodInitialBackoffDuration` and `DefaultPodMaxBackoffDuration`.
const BACKOFF_FIRST: Duration = Duration::from_secs(1);
const BACKOFF_MOST: Duration = Duration::from_secs(10);
/// `DefaultPodMaxInUnschedulablePodsDuration`: then a pod is tried again, whatever happened.
const UNSCHEDULABLE_MOST: Duration = Duration::from_secs(5 * 60);

#[derive(Default)]
pub struct Queue {
    entries: HashMap<String, Entry>,
    /// (priority, highest first; when it was first added; sequence) -> uid
    active: BTreeMap<(i64, u64), String>,
    sleeping: BTreeSet<(Instant, String)>,
    /// Those whom an event may concern: in flight or unschedulable. Spares events a look at a long queue.
    watching: HashSet<String>,
    sequence: u64,
}

struct Entry {
    pod: Arc<PodInfo>,
    attempts: u32,
    order: u64,
    state: State,
}

enum State {
    Active,
    /// Being scheduled; whether the cluster has changed meanwhile.
    InFlight {
        changed: Vec<ClusterEvent>,
    },
    BackingOff {
        until: Instant,
    },
    Unschedulable {
        by: BTreeSet<&'static str>,
        until: Instant,
        not_before: Instant,
    },
}

impl Queue {
    /// A new or a changed pod without a node. A change gives an unschedulable pod another try.
    pub fn put(&mut self, pod: Arc<PodInfo>) {
        let uid = pod.uid.clone();
        match self.entries.get_mut(&uid) {
            Some(entry) if matches!(entry.state, State::InFlight { .. } | State::BackingOff { .. }) => entry.pod = pod,
            Some(entry) => {
                let is_same = entry.pod.pod.spec == pod.pod.spec && entry.pod.pod.metadata.labels == pod.pod.metadata.labels;
                let is_active = matches!(entry.state, State::Active);
                let priority = entry.pod.priority;
                entry.pod = pod;
                if is_active && entry.pod.priority != priority {
                    self.active.remove(&(-i64::from(priority), entry.order));
                    self.activate(&uid);
                } else if !is_active && !is_same {
                    self.activate(&uid);
                }
            }
            None => {
                self.sequence += 1;
                self.entries.insert(uid.clone(), Entry { pod, attempts: 0, order: self.sequence, state: State::Active });
                self.activate(&uid);
            }
        }
    }

    pub fn remove(&mut self, uid: &str) {
        if let Some(entry) = self.entries.remove(uid) {
            self.active.remove(&(-i64::from(entry.pod.priority), entry.order));
            if let State::BackingOff { until } | State::Unschedulable { until, .. } = entry.state {
                self.sleeping.remove(&(until, uid.to_owned()));
            }
            self.watching.remove(uid);
        }
    }

    /// Brings back a pod whose binding failed, after a back-off.
    pub fn put_back(&mut self, pod: Arc<PodInfo>, now: Instant) {
        let uid = pod.uid.clone();
        self.put(pod);
        if self.entries.get(&uid).is_some_and(|it| matches!(it.state, State::Active)) {
            self.retry(&uid, now);
        }
    }

    /// The next pod to schedule. It stays in flight until it is removed, failed or retried.
    pub fn pop(&mut self) -> Option<Arc<PodInfo>> {
        let (_, uid) = self.active.pop_first()?;
        let entry = self.entries.get_mut(&uid)?;
        entry.attempts += 1;
        entry.state = State::InFlight { changed: Vec::new() };
        self.watching.insert(uid);
        Some(entry.pod.clone())
    }

    /// No node took the pod: it waits for a change that helps one of the plugins `by`; for any, if none is named.
    pub fn reject(&mut self, uid: &str, by: BTreeSet<&'static str>, now: Instant) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        let changed = match &entry.state {
            State::InFlight { changed } => changed.iter().any(|event| helps(*event, &by)),
            _ => false,
        };
        let not_before = now + backoff(entry.attempts);
        if changed {
            self.sleep(uid, not_before);
        } else {
            let until = now + UNSCHEDULABLE_MOST;
            entry.state = State::Unschedulable { by, until, not_before };
            self.sleeping.insert((until, uid.to_owned()));
        }
    }

    /// Something went wrong that is not the pod's fault: again after a back-off.
    pub fn retry(&mut self, uid: &str, now: Instant) {
        if let Some(attempts) = self.entries.get(uid).map(|it| it.attempts) {
            self.sleep(uid, now + backoff(attempts));
        }
    }

    /// Wakes the pods that `event` may help.
    pub fn happened(&mut self, event: ClusterEvent, now: Instant) {
        let mut helped = Vec::new();
        for uid in &self.watching {
            let Some(entry) = self.entries.get_mut(uid) else { continue };
            match &mut entry.state {
                State::InFlight { changed } if !changed.contains(&event) => changed.push(event),
                State::Unschedulable { by, until, not_before } if helps(event, by) => helped.push((uid.clone(), *until, *not_before)),
                _ => (),
            }
        }
        for (uid, until, not_before) in helped {
            self.sleeping.remove(&(until, uid.clone()));
            if not_before > now { self.sleep(&uid, not_before) } else { self.activate(&uid) }
        }
    }

    /// Activates what is due; returns when the next is.
    pub fn release_due(&mut self, now: Instant) -> Option<Instant> {
        while let Some((at, uid)) = self.sleeping.first().cloned() {
            if at > now {
                return Some(at);
            }
            self.sleeping.pop_first();
            self.activate(&uid);
        }
        None
    }

    fn sleep(&mut self, uid: &str, until: Instant) {
        if let Some(entry) = self.entries.get_mut(uid) {
            self.active.remove(&(-i64::from(entry.pod.priority), entry.order));
            self.watching.remove(uid);
            entry.state = State::BackingOff { until };
            self.sleeping.insert((until, uid.to_owned()));
        }
    }

    fn activate(&mut self, uid: &str) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        if let State::BackingOff { until } | State::Unschedulable { until, .. } = &entry.state {
            self.sleeping.remove(&(*until, uid.to_owned()));
        }
        entry.state = State::Active;
        self.watching.remove(uid);
        self.active.insert((-i64::from(entry.pod.priority), entry.order), uid.to_owned());
    }
}

fn helps(event: ClusterEvent, by: &BTreeSet<&'static str>) -> bool {
    by.is_empty() || plugins::ALL.iter().any(|it| by.contains(it.name) && (it.is_helped_by)(event))
}

fn backoff(attempts: u32) -> Duration {
    BACKOFF_FIRST.saturating_mul(2_u32.saturating_pow(attempts.saturating_sub(1))).min(BACKOFF_MOST)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, priority: i32) -> Arc<PodInfo> {
        let value = json!({"metadata": {"name": name, "uid": name}, "spec": {"containers": [], "priority": priority}});
        Arc::new(PodInfo::new(serde_json::from_value(value).unwrap()))
    }

    #[test]
    fn priority_goes_first_then_age() {
        let mut queue = Queue::default();
        [("a", 0), ("b", 5), ("c", 0), ("d", 5)].iter().for_each(|(name, priority)| queue.put(pod(name, *priority)));
        queue.remove("c");
        let order: Vec<String> = std::iter::from_fn(|| queue.pop()).map(|it| it.uid.clone()).collect();
        assert_eq!(order, ["b", "d", "a"]);
    }

    #[test]
    fn a_rejected_pod_waits_for_what_helps_it() {
        let start = Instant::now();
        let later = |seconds| start + Duration::from_secs(seconds);
        let mut queue = Queue::default();
        queue.put(pod("a", 0));
        queue.pop();
        queue.reject("a", ["NodeAffinity"].into(), start);
        queue.happened(ClusterEvent::PodGone, later(2));
        assert!(queue.pop().is_none(), "a pod that went away does not change labels");
        queue.happened(ClusterEvent::NodeAdded, later(2));
        assert!(queue.pop().is_some());
        queue.happened(ClusterEvent::NodeChanged, later(2));
        queue.reject("a", ["NodeAffinity"].into(), later(2));
        assert_eq!(queue.release_due(later(3)), Some(later(4)), "a change during the attempt counts, after the back-off of the second attempt");
        assert!(queue.pop().is_none());
        queue.release_due(later(4));
        assert!(queue.pop().is_some());
        queue.reject("a", ["NodeAffinity"].into(), later(4));
        queue.release_due(later(304));
        assert!(queue.pop().is_some(), "nothing waits for ever");
    }
}
