//! How containers and pods end: hooks, a request, their grace, the end; nothing of them stays.
//! Source: kubelet `pkg/kubelet/kuberuntime/kuberuntime_container.go` (`killContainer`), KEP-753 for sidecars.

use std::{net::IpAddr, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::{Container as ContainerSpec, Pod};
use kube::ResourceExt;
use nix::sys::signal::Signal;
use tokio::time::Instant;

use super::{
    agent::Agent,
    handlers::{Action, Target},
    plan,
    runtime::{Container, cgroup},
    volumes,
};
use crate::{
    base::tasks,
    client::{EventType, Result, writes},
};

/// A container that is asked to end is looked at this often.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// What is left to a container whose hook has used up its grace (`minimumGracePeriodInSeconds`).
const GRACE_LEAST: Duration = Duration::from_secs(2);
const GRACE_SECONDS: i64 = 30;
/// A pod that is deleted with grace can be seen to be so at least this long: who deletes a pod and then looks at it expects to find it, since
/// no kubelet sees the end of a container sooner.
const SEEN_LEAVING: Duration = Duration::from_millis(250);

fn seconds(count: i64) -> Duration {
    Duration::from_secs(u64::try_from(count).unwrap_or(0))
}

/// The pod's own grace period.
pub fn grace(pod: &Pod) -> Duration {
    seconds(pod.spec.as_ref().and_then(|it| it.termination_grace_period_seconds).unwrap_or(GRACE_SECONDS))
}

impl Agent {
    /// Ends a container: its hook, its signal, and after `within` the end by force. Asked again, only an earlier end counts.
    pub(super) fn kill(self: &Arc<Self>, pod: &Arc<Pod>, container: &Container, within: Duration, why: String) {
        let due = Instant::now() + within;
        {
            let mut ending = self.ending.lock();
            if let Some(known) = ending.get_mut(&container.id) {
                *known = (*known).min(due);
                return;
            }
            ending.insert(container.id.clone(), due);
        }
        self.recorder.event(&**pod, EventType::Normal, "Killing", why);
        let (agent, pod, container) = (self.clone(), pod.clone(), container.clone());
        self.tasks.spawn("container-end", async move {
            agent.before_stop(&pod, &container).await;
            agent.runtime.signal(&container, container.spec.stop_signal());
            while agent.is_running(&container) {
                if agent.is_due(&container.id) {
                    agent.runtime.signal(&container, Signal::SIGKILL);
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
            agent.ending.lock().remove(&container.id);
            agent.wake(&container.spec.pod_uid);
        });
    }

    fn is_running(&self, container: &Container) -> bool {
        self.runtime.container(&container.id).is_some_and(|it| it.is_running())
    }

    fn is_due(&self, id: &str) -> bool {
        self.ending.lock().get(id).is_none_or(|it| Instant::now() >= *it)
    }

    /// Runs the `preStop` hook, at most until the container is to be gone.
    async fn before_stop(&self, pod: &Arc<Pod>, container: &Container) {
        let spec = find(pod, &container.spec.name);
        let hook = spec.as_ref().and_then(|it| it.lifecycle.as_ref()?.pre_stop.as_ref()).and_then(Action::of_hook);
        let (Some(spec), Some(hook)) = (spec, hook) else { return };
        let target = self.target(pod, &spec, container, Duration::MAX);
        let late = async {
            while !self.is_due(&container.id) && self.is_running(container) {
                tokio::time::sleep(LOOK_EVERY * 5).await;
            }
        };
        tokio::select! {
            outcome = target.act(&hook) => if let Err(why) = outcome {
                self.recorder.event(&**pod, EventType::Warning, "FailedPreStopHook", format!("PreStopHook failed: {why}"));
            },
            () = late => (),
        }
        let mut ending = self.ending.lock();
        if let Some(due) = ending.get_mut(&container.id) {
            *due = (*due).max(Instant::now() + GRACE_LEAST);
        }
    }

    /// Runs the `postStart` hook; a container whose hook fails is ended.
    pub(super) async fn after_start(self: &Arc<Self>, pod: &Arc<Pod>, spec: &ContainerSpec, container: &Container) {
        let Some(hook) = spec.lifecycle.as_ref().and_then(|it| it.post_start.as_ref()).and_then(Action::of_hook) else { return };
        // Who deletes the pod need not wait for the hook.
        let leaves = async {
            while self.pod(&pod.namespace().unwrap_or_default(), &pod.name_any()).is_some_and(|it| it.metadata.deletion_timestamp.is_none()) {
                tokio::time::sleep(LOOK_EVERY * 5).await;
            }
        };
        let target = self.target(pod, spec, container, Duration::MAX);
        let outcome = tokio::select! {
            outcome = target.act(&hook) => outcome,
            () = leaves => Ok(None),
        };
        if let Err(why) = outcome {
            self.recorder.event(&**pod, EventType::Warning, "FailedPostStartHook", format!("PostStartHook failed: {why}"));
            self.kill(pod, container, grace(pod), "FailedPostStartHook".to_owned());
        }
    }

    fn target<'a>(&'a self, pod: &Pod, spec: &'a ContainerSpec, container: &'a Container, within: Duration) -> Target<'a> {
        let address: Option<IpAddr> = pod.status.as_ref().and_then(|it| it.pod_ip.as_deref()?.parse().ok());
        Target { runtime: &self.runtime, tasks: &self.tasks, container, spec, address, within }
    }

    /// Ends a pod that was deleted: its containers, the sidecars last, then all that is left, then the object.
    pub(super) async fn end(self: &Arc<Self>, pod: &Arc<Pod>, containers: &[Container]) -> Result<Option<Duration>> {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let since = *self.leaving.lock().entry(uid.clone()).or_insert_with(Instant::now);
        let within = seconds(pod.metadata.deletion_grace_period_seconds.unwrap_or(GRACE_SECONDS)).saturating_sub(since.elapsed());
        if self.end_containers(pod, containers, within) {
            return Ok(Some(Duration::from_secs(1)));
        }
        // Of a pod that others still hold by a finalizer nothing is left here; what was said of its end stands.
        if !containers.is_empty() {
            self.report(pod, containers).await?;
        }
        if let Some(left) = SEEN_LEAVING.checked_sub(since.elapsed()).filter(|it| !it.is_zero()) {
            return Ok(Some(left));
        }
        let agent = self.clone();
        let _ = tasks::blocking(move || agent.clean(&uid)).await;
        if pod.metadata.deletion_grace_period_seconds == Some(0) {
            return Ok(None);
        }
        writes::delete(&self.client, pod.as_ref(), writes::at_once()).await.map(|_| None)
    }

    /// Begins to end what still runs: sidecars one by one from the last, once nothing else does. `false` when nothing runs.
    pub(super) fn end_containers(self: &Arc<Self>, pod: &Arc<Pod>, containers: &[Container], within: Duration) -> bool {
        let running: Vec<&Container> = containers.iter().filter(|it| it.is_running()).collect();
        let is_sidecar = |it: &Container| find(pod, &it.spec.name).is_some_and(|it| plan::is_sidecar(&it));
        let (sidecars, main): (Vec<&Container>, Vec<&Container>) = running.iter().partition(|it| is_sidecar(it));
        let place = |it: &&Container| pod.spec.as_ref().and_then(|spec| spec.init_containers.as_ref()?.iter().position(|own| own.name == it.spec.name));
        let last = sidecars.iter().copied().max_by_key(place);
        let now = if within.is_zero() { running.clone() } else if main.is_empty() { last.into_iter().collect() } else { main };
        for container in now {
            self.kill(pod, container, within, format!("Stopping container {}", container.spec.name));
        }
        !running.is_empty()
    }

    /// Removes all that is left of a pod. Blocks for a moment.
    pub(super) fn clean(&self, uid: &str) {
        for container in self.runtime.containers().iter().filter(|it| it.spec.pod_uid == uid) {
            self.runtime.remove(container);
        }
        self.sandboxes.remove(uid);
        cgroup::remove(&format!("{}/{uid}", self.options.cgroup));
        volumes::remove(&self.runtime.root().join("volumes").join(uid));
        let _ = std::fs::remove_dir_all(self.runtime.root().join("logs").join(uid));
        self.waiting.lock().remove(uid);
        self.evicted.lock().remove(uid);
        self.leaving.lock().remove(uid);
        self.pulls.forget(uid);
    }

    /// Ends all containers of the node, for a clean stop. How they ended stays known, and the next process goes on from there.
    pub fn stop(&self) {
        self.runtime.stop();
        for uid in self.sandboxes.uids() {
            self.sandboxes.remove(&uid);
            volumes::release(&self.runtime.root().join("volumes").join(&uid));
        }
        // Also of pods whose start or end was cut off.
        cgroup::kill_all(&self.options.cgroup);
        cgroup::remove(&self.options.cgroup);
    }
}

/// A container of a pod by its name.
pub fn find(pod: &Pod, name: &str) -> Option<ContainerSpec> {
    let spec = pod.spec.as_ref()?;
    let own = spec.init_containers.iter().flatten().chain(&spec.containers).find(|it| it.name == name).cloned();
    own.or_else(|| spec.ephemeral_containers.iter().flatten().find(|it| it.name == name).map(plan::as_container))
}
