//! What a Deployment needs next: pure, from the Deployment and its ReplicaSets to actions and a status.
//! Follows pkg/controller/deployment/{sync,rolling,recreate,progress}.go and util/deployment_util.go.

use std::{cmp::Reverse, sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet, ReplicaSetStatus},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::ResourceExt;

use super::{find, template};
use crate::{
    client::{Error, Result},
    controllers::pods,
};

pub const REVISION: &str = "deployment.kubernetes.io/revision";
pub const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
pub const DESIRED_REPLICAS: &str = "deployment.kubernetes.io/desired-replicas";
pub const MAX_REPLICAS: &str = "deployment.kubernetes.io/max-replicas";
/// Annotations of a Deployment that are not its ReplicaSets'.
const NOT_COPIED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED_REPLICAS,
    MAX_REPLICAS,
    "deprecated.deployment.rollback.to",
];
/// `maxRevHistoryLengthInChars`: about 100 revisions.
const HISTORY_MOST: usize = 2000;
/// Time and revisions that mean "never" and "all".
const NO_LIMIT: i32 = i32::MAX;

#[derive(Clone, Debug)]
pub struct Plan {
    pub actions: Vec<Action>,
    /// The Deployment with the status and the annotations it should have.
    pub deployment: Deployment,
    /// When to look again although nothing changes: to notice a lack of progress.
    pub again: Option<Duration>,
}

#[derive(Clone, Debug)]
pub enum Action {
    Create(ReplicaSet),
    Update(ReplicaSet),
    Scale { set: ReplicaSet, from: i32, to: i32 },
    Delete(ReplicaSet),
}

/// `syncDeployment`. `runs_pods` says whether a ReplicaSet has pods that have not ended.
pub fn plan(deployment: &Deployment, owned: &[Arc<ReplicaSet>], runs_pods: impl Fn(&ReplicaSet) -> bool, now: Timestamp) -> Result<Plan> {
    let mut rollout = Rollout::new(deployment, owned, now);
    if deployment.metadata.deletion_timestamp.is_some() {
        rollout.refresh();
        return Ok(rollout.finish_plainly());
    }
    rollout.check_paused();
    rollout.refresh();
    if rollout.is_paused() || rollout.is_scaling() {
        rollout.scale();
        if rollout.is_paused() {
            rollout.clean_up();
        }
        return Ok(rollout.finish_plainly());
    }
    match rollout.strategy() {
        "Recreate" => rollout.recreate(runs_pods),
        "RollingUpdate" => rollout.roll(),
        other => return Err(Error::Invalid(format!("unexpected deployment strategy type: {other}"))),
    }
    Ok(rollout.finish())
}

struct Rollout {
    deployment: Deployment,
    /// The status as it was stored, against which progress is measured.
    stored: DeploymentStatus,
    new: Option<ReplicaSet>,
    old: Vec<ReplicaSet>,
    actions: Vec<Action>,
    now: Timestamp,
}

impl Rollout {
    fn new(deployment: &Deployment, owned: &[Arc<ReplicaSet>], now: Timestamp) -> Self {
        let mut sets: Vec<ReplicaSet> = owned.iter().map(|it| ReplicaSet::clone(it)).collect();
        sets.sort_by_key(age);
        let at = sets.iter().position(|it| template::is_of(deployment, it));
        let new = at.map(|at| sets.remove(at));
        let stored = deployment.status.clone().unwrap_or_default();
        Self { deployment: deployment.clone(), stored, new, old: sets, actions: Vec::new(), now }
    }

    fn wanted(&self) -> i32 {
        self.deployment.spec.as_ref().and_then(|it| it.replicas).unwrap_or(1)
    }

    fn is_paused(&self) -> bool {
        self.deployment.spec.as_ref().and_then(|it| it.paused).unwrap_or(false)
    }

    fn strategy(&self) -> &str {
        let strategy = self.deployment.spec.as_ref().and_then(|it| it.strategy.as_ref());
        strategy.and_then(|it| it.type_.as_deref()).unwrap_or("RollingUpdate")
    }

    fn all(&self) -> impl Iterator<Item = &ReplicaSet> {
        self.old.iter().chain(&self.new)
    }

    fn status(&mut self) -> &mut DeploymentStatus {
        self.deployment.status.get_or_insert_default()
    }

    /// `checkPausedConditions`.
    fn check_paused(&mut self) {
        let reason = find(&self.stored.conditions, "Progressing").and_then(|it| it.reason.as_deref());
        if deadline(&self.deployment).is_none() || reason == Some("ProgressDeadlineExceeded") {
            return;
        }
        let (reason, message) = match (self.is_paused(), reason == Some("DeploymentPaused")) {
            (true, false) => ("DeploymentPaused", "Deployment is paused"),
            (false, true) => ("DeploymentResumed", "Deployment is resumed"),
            _ => return,
        };
        self.set_progressing("Unknown", reason, message);
    }

    /// The number of the new ReplicaSet.
    fn revision(&self) -> i64 {
        self.old.iter().map(revision_of).max().unwrap_or(0) + 1
    }

    /// Brings the new ReplicaSet up to date, where there is one (`getNewReplicaSet`).
    fn refresh(&mut self) {
        let Some(set) = self.new.take() else { return };
        let mut next = set.clone();
        annotate(&self.deployment, &mut next, self.revision());
        let min_ready = self.deployment.spec.as_ref().and_then(|it| it.min_ready_seconds);
        if let Some(spec) = &mut next.spec
            && spec.min_ready_seconds.unwrap_or(0) != min_ready.unwrap_or(0)
        {
            spec.min_ready_seconds = min_ready;
        }
        if next != set {
            self.actions.push(Action::Update(next.clone()));
        }
        let revision = next.annotations().get(REVISION).cloned().unwrap_or_default();
        self.deployment.annotations_mut().insert(REVISION.to_owned(), revision);
        if deadline(&self.deployment).is_some() && self.progressing().is_none() {
            let message = format!("Found new replica set \"{}\"", next.name_any());
            self.set_progressing("True", "FoundNewReplicaSet", &message);
        }
        self.new = Some(next);
    }

    /// Makes the new ReplicaSet, where there is none.
    fn create(&mut self) {
        if self.new.is_some() {
            return;
        }
        let (mut set, revision) = (template::replica_set(&self.deployment), self.revision());
        set.spec.get_or_insert_default().replicas = Some(self.room_for(0));
        annotate(&self.deployment, &mut set, revision);
        annotate_replicas(&self.deployment, &mut set);
        self.deployment.annotations_mut().insert(REVISION.to_owned(), revision.to_string());
        if deadline(&self.deployment).is_some() {
            let message = format!("Created new replica set \"{}\"", set.name_any());
            self.set_progressing("True", "NewReplicaSetCreated", &message);
        }
        self.actions.push(Action::Create(set.clone()));
        self.new = Some(set);
    }

    /// `NewRSNewReplicas`: how many replicas a new ReplicaSet of `present` may have.
    fn room_for(&self, present: i32) -> i32 {
        if self.strategy() == "Recreate" {
            return self.wanted();
        }
        let room = self.wanted() + max_surge(&self.deployment) - total(self.all());
        if room <= 0 { present } else { present + room.min(self.wanted() - present) }
    }

    /// `isScalingEvent`: the number of replicas was changed since the ReplicaSets were last sized.
    fn is_scaling(&self) -> bool {
        self.all().filter(|it| size(it) > 0).filter_map(|it| annotated(it, DESIRED_REPLICAS)).any(|it| it != self.wanted())
    }

    /// `scale`: sizes the ReplicaSets for a new number of replicas without hastening a rollout.
    fn scale(&mut self) {
        let wanted = self.wanted();
        let active = self.all().filter(|it| size(it) > 0).count();
        if active <= 1 {
            if let Some(at) = self.active_or_latest() {
                self.resize(at, wanted, false);
            }
        } else if self.is_saturated() {
            (0..self.old.len()).for_each(|at| self.resize(Which::Old(at), 0, false));
        } else if self.strategy() == "RollingUpdate" {
            self.scale_proportionally();
        }
    }

    /// `FindActiveOrLatest`, when at most one is active.
    fn active_or_latest(&self) -> Option<Which> {
        if self.new.as_ref().is_some_and(|it| size(it) > 0) {
            return Some(Which::New);
        }
        let active = self.old.iter().position(|it| size(it) > 0).map(Which::Old);
        let latest = || if self.new.is_some() { Some(Which::New) } else { self.old.len().checked_sub(1).map(Which::Old) };
        active.or_else(latest)
    }

    fn is_saturated(&self) -> bool {
        let wanted = self.wanted();
        self.new.as_ref().is_some_and(|it| size(it) == wanted && annotated(it, DESIRED_REPLICAS) == Some(wanted) && available(it) == wanted)
    }

    fn scale_proportionally(&mut self) {
        let wanted = self.wanted();
        let allowed = if wanted > 0 { wanted + max_surge(&self.deployment) } else { 0 };
        let to_add = allowed - total(self.all());
        let order = self.by_size(to_add);
        let mut added = 0;
        let mut sizes = Vec::new();
        for which in order {
            let set = self.get(which);
            let share = proportion(set, &self.deployment, to_add, added);
            added += share;
            sizes.push((which, size(set) + share));
        }
        if let Some((_, largest)) = sizes.first_mut().filter(|_| to_add != 0) {
            *largest = (*largest + to_add - added).max(0);
        }
        sizes.into_iter().for_each(|(which, to)| self.resize(which, to, true));
    }

    /// The active sets from the largest; of equals the newer first when adding, the older when removing.
    fn by_size(&self, to_add: i32) -> Vec<Which> {
        let mut order: Vec<Which> = (0..self.old.len()).map(Which::Old).chain(self.new.iter().map(|_| Which::New)).collect();
        order.retain(|it| size(self.get(*it)) > 0);
        order.sort_by_key(|it| age(self.get(*it)));
        if to_add > 0 {
            order.reverse();
        }
        order.sort_by_key(|it| Reverse(size(self.get(*it))));
        order
    }

    fn get(&self, which: Which) -> &ReplicaSet {
        match which {
            Which::Old(at) => &self.old[at],
            Which::New => self.new.as_ref().expect("a new set is only named where there is one"),
        }
    }

    /// `scaleReplicaSet`; `force` refreshes the annotations even where the size stays.
    fn resize(&mut self, which: Which, to: i32, force: bool) {
        let from = size(self.get(which));
        if from == to && !force {
            return;
        }
        let mut set = self.get(which).clone();
        set.spec.get_or_insert_default().replicas = Some(to);
        annotate_replicas(&self.deployment, &mut set);
        if set == *self.get(which) {
            return;
        }
        self.actions.push(Action::Scale { set: set.clone(), from, to });
        match which {
            Which::Old(at) => self.old[at] = set,
            Which::New => self.new = Some(set),
        }
    }

    /// `rolloutRolling`.
    fn roll(&mut self) {
        self.create();
        let present = self.new.as_ref().map_or(0, size);
        let to = if present >= self.wanted() { self.wanted() } else { self.room_for(present) };
        if to != present {
            return self.resize(Which::New, to, false);
        }
        if !self.shrink_old() && is_complete(&self.deployment, &self.stored) {
            self.clean_up();
        }
    }

    /// `reconcileOldReplicaSets`. Whether anything shrank.
    fn shrink_old(&mut self) -> bool {
        let before = total(self.old.iter());
        if before == 0 {
            return false;
        }
        let floor = self.wanted() - max_unavailable(&self.deployment);
        let unavailable_new = self.new.as_ref().map_or(0, |it| size(it) - available(it));
        let most = total(self.all()) - floor - unavailable_new;
        if most <= 0 {
            return false;
        }
        // Those that are unhealthy are no loss (`cleanupUnhealthyReplicas`); then `scaleDownOldReplicaSetsForRollingUpdate`.
        self.shrink_by(most, |it| size(it) - available(it));
        let healthy: i32 = self.all().map(available).sum();
        self.shrink_by(healthy - floor, size);
        total(self.old.iter()) < before
    }

    /// Takes away at the most so many of the replicas that may go, from the oldest on.
    fn shrink_by(&mut self, most: i32, may_go: impl Fn(&ReplicaSet) -> i32) {
        let mut left = most;
        for at in 0..self.old.len() {
            let count = left.min(may_go(&self.old[at])).min(size(&self.old[at]));
            if count > 0 {
                self.resize(Which::Old(at), size(&self.old[at]) - count, false);
                left -= count;
            }
        }
    }

    /// `rolloutRecreate`: nothing new before everything old has ended.
    fn recreate(&mut self, runs_pods: impl Fn(&ReplicaSet) -> bool) {
        let before = total(self.old.iter());
        (0..self.old.len()).for_each(|at| self.resize(Which::Old(at), 0, false));
        let is_old_running = self.old.iter().any(|it| statuses(it).replicas > 0 || runs_pods(it));
        if before > 0 || is_old_running {
            return;
        }
        self.create();
        self.resize(Which::New, self.wanted(), false);
        if is_complete(&self.deployment, &self.stored) {
            self.clean_up();
        }
    }

    /// `cleanupDeployment`: forgets the oldest revisions beyond the limit.
    fn clean_up(&mut self) {
        let Some(limit) = self.deployment.spec.as_ref().and_then(|it| it.revision_history_limit).filter(|it| *it != NO_LIMIT) else {
            return;
        };
        let mut alive: Vec<&ReplicaSet> = self.old.iter().filter(|it| it.metadata.deletion_timestamp.is_none()).collect();
        alive.sort_by_key(|it| revision_of(it));
        let surplus = alive.len().saturating_sub(limit.max(0) as usize);
        let is_idle = |it: &&&ReplicaSet| {
            let status = statuses(it);
            status.replicas == 0 && size(it) == 0 && it.metadata.generation.unwrap_or(0) <= status.observed_generation.unwrap_or(0)
        };
        let gone: Vec<Action> = alive.iter().take(surplus).filter(is_idle).map(|it| Action::Delete((*it).clone())).collect();
        self.actions.extend(gone);
    }

    /// `syncDeploymentStatus`: counts, and says nothing of progress.
    fn finish_plainly(mut self) -> Plan {
        let status = self.counted();
        self.deployment.status = Some(status);
        Plan { actions: self.actions, deployment: self.deployment, again: None }
    }

    /// `syncRolloutStatus`.
    fn finish(mut self) -> Plan {
        let mut status = self.counted();
        let has_deadline = deadline(&self.deployment).is_some();
        if !has_deadline {
            remove_condition(&mut status, "Progressing");
        }
        let is_done =
            counts(&status).0 == counts(&status).1 && self.progressing().is_some_and(|it| it.reason.as_deref() == Some("NewReplicaSetAvailable"));
        if has_deadline && !is_done {
            self.judge_progress(&mut status);
        }
        match self.failure() {
            Some(condition) => set_condition(&mut status, condition),
            None => remove_condition(&mut status, "ReplicaFailure"),
        }
        let again = self.next_check(&status);
        self.deployment.status = Some(status);
        Plan { actions: self.actions, deployment: self.deployment, again }
    }

    fn judge_progress(&self, status: &mut DeploymentStatus) {
        let subject = self
            .new
            .as_ref()
            .map_or_else(|| format!("Deployment \"{}\"", self.deployment.name_any()), |it| format!("ReplicaSet \"{}\"", it.name_any()));
        let condition = |state, reason, what: &str| new_condition("Progressing", state, reason, &format!("{subject} {what}"), self.now);
        if is_complete(&self.deployment, status) {
            set_condition(status, condition("True", "NewReplicaSetAvailable", "has successfully progressed."));
        } else if has_progressed(&self.stored, status) {
            let mut next = condition("True", "ReplicaSetUpdated", "is progressing.");
            if let Some(present) = self.progressing().filter(|it| it.status == "True") {
                next.last_transition_time = present.last_transition_time.clone();
            }
            remove_condition(status, "Progressing");
            set_condition(status, next);
        } else if has_timed_out(&self.deployment, status, self.now) {
            set_condition(status, condition("False", "ProgressDeadlineExceeded", "has timed out progressing."));
        }
    }

    /// `calculateStatus`.
    fn counted(&self) -> DeploymentStatus {
        let old = self.deployment.status.clone().unwrap_or_default();
        let sum = |of: fn(&ReplicaSet) -> i32| self.all().map(of).sum::<i32>();
        let healthy = sum(available);
        let mut status = DeploymentStatus {
            observed_generation: self.deployment.metadata.generation,
            replicas: some(sum(|it| statuses(it).replicas)),
            updated_replicas: some(self.new.as_ref().map_or(0, |it| statuses(it).replicas)),
            ready_replicas: some(sum(|it| statuses(it).ready_replicas.unwrap_or(0))),
            available_replicas: some(healthy),
            unavailable_replicas: some((total(self.all()) - healthy).max(0)),
            terminating_replicas: self.all().map(|it| statuses(it).terminating_replicas).sum(),
            collision_count: old.collision_count,
            conditions: old.conditions,
        };
        let is_enough = healthy >= self.wanted() - max_unavailable(&self.deployment);
        let condition = match is_enough {
            true => new_condition("Available", "True", "MinimumReplicasAvailable", "Deployment has minimum availability.", self.now),
            false => new_condition("Available", "False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability.", self.now),
        };
        set_condition(&mut status, condition);
        status
    }

    /// A ReplicaSet's failure, the new one's first.
    fn failure(&self) -> Option<DeploymentCondition> {
        let of = |set: &ReplicaSet| statuses(set).conditions.into_iter().flatten().find(|it| it.type_ == "ReplicaFailure");
        let found = self.new.iter().chain(&self.old).find_map(of)?;
        Some(DeploymentCondition {
            type_: found.type_,
            status: found.status,
            reason: found.reason,
            message: found.message,
            last_update_time: found.last_transition_time.clone(),
            last_transition_time: found.last_transition_time,
        })
    }

    fn progressing(&self) -> Option<&DeploymentCondition> {
        find(&self.deployment.status.as_ref()?.conditions, "Progressing")
    }

    fn set_progressing(&mut self, state: &str, reason: &str, message: &str) {
        let condition = new_condition("Progressing", state, reason, message, self.now);
        set_condition(self.status(), condition);
    }

    /// `requeueStuckDeployment`: a second after the deadline.
    fn next_check(&self, status: &DeploymentStatus) -> Option<Duration> {
        let present = find(&status.conditions, "Progressing")?;
        if is_complete(&self.deployment, status) || present.reason.as_deref() == Some("ProgressDeadlineExceeded") {
            return None;
        }
        let left = due(present, &self.deployment)?.duration_since(self.now).max(SignedDuration::ZERO);
        Some(left.unsigned_abs() + Duration::from_secs(1))
    }
}

#[derive(Clone, Copy, Debug)]
enum Which {
    New,
    Old(usize),
}

/// Creation time, then name.
fn age(set: &ReplicaSet) -> (Option<Timestamp>, String) {
    (set.metadata.creation_timestamp.as_ref().map(|it| it.0), set.name_any())
}

fn size(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|it| it.replicas).unwrap_or(0)
}

fn statuses(set: &ReplicaSet) -> ReplicaSetStatus {
    set.status.clone().unwrap_or_default()
}

fn available(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|it| it.available_replicas).unwrap_or(0)
}

fn total<'a>(sets: impl Iterator<Item = &'a ReplicaSet>) -> i32 {
    sets.map(size).sum()
}

fn revision_of(set: &ReplicaSet) -> i64 {
    set.annotations().get(REVISION).and_then(|it| it.parse().ok()).unwrap_or(0)
}

fn annotated(set: &ReplicaSet, key: &str) -> Option<i32> {
    set.annotations().get(key)?.parse().ok().filter(|it| *it >= 0)
}

/// `GetReplicaSetProportion`.
fn proportion(set: &ReplicaSet, deployment: &Deployment, to_add: i32, added: i32) -> i32 {
    if to_add == 0 || to_add == added {
        return 0;
    }
    let share = fraction(set, deployment);
    let allowed = to_add - added;
    if to_add > 0 { share.min(allowed) } else { share.max(allowed) }
}

/// `getReplicaSetFraction`.
fn fraction(set: &ReplicaSet, deployment: &Deployment) -> i32 {
    let wanted = replicas(deployment);
    if wanted == 0 {
        return -size(set);
    }
    let before = annotated(set, MAX_REPLICAS).filter(|it| *it != 0);
    let before = before.unwrap_or_else(|| deployment.status.as_ref().and_then(|it| it.replicas).unwrap_or(0));
    if before == 0 {
        return 0;
    }
    let next = f64::from(size(set)) * f64::from(wanted + max_surge(deployment)) / f64::from(before);
    next.round() as i32 - size(set)
}

/// `SetNewReplicaSetAnnotations` but for the numbers of replicas.
fn annotate(deployment: &Deployment, set: &mut ReplicaSet, revision: i64) {
    let copied = deployment.annotations().iter().filter(|(key, _)| !NOT_COPIED.contains(&key.as_str()));
    let copied: Vec<_> = copied.map(|(key, value)| (key.clone(), value.clone())).collect();
    set.annotations_mut().extend(copied);
    let present = set.annotations().get(REVISION).cloned();
    let number = present.as_deref().unwrap_or("0").parse::<i64>();
    if number.is_ok_and(|it| it < revision) {
        set.annotations_mut().insert(REVISION.to_owned(), revision.to_string());
        if let Some(present) = present {
            remember(set, &present);
        }
    }
}

/// Keeps the revision that a rolled-back-to ReplicaSet had before.
fn remember(set: &mut ReplicaSet, revision: &str) {
    let history = set.annotations().get(REVISION_HISTORY).cloned().unwrap_or_default();
    let mut revisions: Vec<&str> = history.split(',').filter(|it| !it.is_empty()).chain([revision]).collect();
    while revisions.join(",").len() > HISTORY_MOST {
        revisions.remove(0);
    }
    set.annotations_mut().insert(REVISION_HISTORY.to_owned(), revisions.join(","));
}

fn annotate_replicas(deployment: &Deployment, set: &mut ReplicaSet) {
    let wanted = replicas(deployment);
    let annotations = set.annotations_mut();
    annotations.insert(DESIRED_REPLICAS.to_owned(), wanted.to_string());
    annotations.insert(MAX_REPLICAS.to_owned(), (wanted + max_surge(deployment)).to_string());
}

fn replicas(deployment: &Deployment) -> i32 {
    deployment.spec.as_ref().and_then(|it| it.replicas).unwrap_or(1)
}

fn max_surge(deployment: &Deployment) -> i32 {
    fenceposts(deployment).0
}

fn max_unavailable(deployment: &Deployment) -> i32 {
    fenceposts(deployment).1.min(replicas(deployment))
}

/// `ResolveFenceposts`: (surge, unavailable), not both zero lest a rollout stand still.
fn fenceposts(deployment: &Deployment) -> (i32, i32) {
    let strategy = deployment.spec.as_ref().and_then(|it| it.strategy.as_ref());
    if strategy.and_then(|it| it.type_.as_deref()) == Some("Recreate") {
        return (0, 0);
    }
    let rolling = strategy.and_then(|it| it.rolling_update.as_ref());
    let wanted = replicas(deployment);
    let surge = pods::scaled(rolling.and_then(|it| it.max_surge.as_ref()), wanted, true);
    let unavailable = pods::scaled(rolling.and_then(|it| it.max_unavailable.as_ref()), wanted, false);
    if surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable) }
}

/// The progress deadline, if there is one.
pub fn deadline(deployment: &Deployment) -> Option<SignedDuration> {
    let seconds = deployment.spec.as_ref().and_then(|it| it.progress_deadline_seconds).filter(|it| *it != NO_LIMIT)?;
    Some(SignedDuration::from_secs(seconds.into()))
}

fn some(count: i32) -> Option<i32> {
    Some(count).filter(|it| *it != 0)
}

/// (replicas, updated, ready, available)
fn counts(status: &DeploymentStatus) -> (i32, i32, i32, i32) {
    let number = |it: Option<i32>| it.unwrap_or(0);
    (number(status.replicas), number(status.updated_replicas), number(status.ready_replicas), number(status.available_replicas))
}

fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let wanted = replicas(deployment);
    let (replicas, updated, _, available) = counts(status);
    let is_observed = status.observed_generation.unwrap_or(0) >= deployment.metadata.generation.unwrap_or(0);
    (updated, replicas, available) == (wanted, wanted, wanted) && is_observed
}

fn has_progressed(old: &DeploymentStatus, new: &DeploymentStatus) -> bool {
    let (before, after) = (counts(old), counts(new));
    after.1 > before.1 || after.0 - after.1 < before.0 - before.1 || after.2 > before.2 || after.3 > before.3
}

fn has_timed_out(deployment: &Deployment, status: &DeploymentStatus, now: Timestamp) -> bool {
    let Some(present) = find(&status.conditions, "Progressing") else { return false };
    match present.reason.as_deref() {
        Some("NewReplicaSetAvailable") => false,
        Some("ProgressDeadlineExceeded") => true,
        _ => due(present, deployment).is_some_and(|it| it < now),
    }
}

/// Until when there must be progress again.
fn due(progressing: &DeploymentCondition, deployment: &Deployment) -> Option<Timestamp> {
    progressing.last_update_time.as_ref()?.0.checked_add(deadline(deployment)?).ok()
}

pub fn new_condition(kind: &str, state: &str, reason: &str, message: &str, now: Timestamp) -> DeploymentCondition {
    DeploymentCondition {
        type_: kind.to_owned(),
        status: state.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_update_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    }
}

/// `SetDeploymentCondition`: nothing changes while state and reason stay; the transition time only with the state.
pub fn set_condition(status: &mut DeploymentStatus, mut condition: DeploymentCondition) {
    if let Some(present) = find(&status.conditions, &condition.type_) {
        if present.status == condition.status && present.reason == condition.reason {
            return;
        }
        if present.status == condition.status {
            condition.last_transition_time = present.last_transition_time.clone();
        }
    }
    remove_condition(status, &condition.type_);
    status.conditions.get_or_insert_default().push(condition);
}

fn remove_condition(status: &mut DeploymentStatus, kind: &str) {
    if let Some(conditions) = &mut status.conditions {
        conditions.retain(|it| it.type_ != kind);
    }
}

#[cfg(test)]
mod tests;
